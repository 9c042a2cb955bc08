"""Small parts with seeded random weights, for tests that need the released variant, speed or another seed."""

from __future__ import annotations

import torch

from uniavgen_core.media.caption import CaptionEncoder, random_caption_encoder
from uniavgen_core.media.vae import WanVAE, random_vae
from uniavgen_core.media.vocoder import Vocoder, random_vocoder
from uniavgen_core.model.config import TINY, Config
from uniavgen_core.model.dit import DualBranchDiT
from uniavgen_core.pipeline import Weights
from uniavgen_core.sampling.defaults import SamplingDefaults


def random_model(seed: int = 0) -> DualBranchDiT:
    """A `DualBranchDiT` of size `TINY`; the global random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DualBranchDiT(TINY)
        for name, parameter in model.named_parameters():
            if "modulation" in name or "grn" in name or name == "audio_padding":
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


class RandomWeights(Weights):
    """All four parts, without any file."""

    embedded = False

    def settings(self) -> SamplingDefaults:
        return SamplingDefaults(frames=17, short_side=64)

    def check(self) -> Config:
        return TINY

    def load_model(self) -> DualBranchDiT:
        return random_model()

    def load_vae(self) -> WanVAE:
        return random_vae()

    def load_caption_encoder(self) -> CaptionEncoder:
        return random_caption_encoder()

    def load_vocoder(self) -> Vocoder:
        return random_vocoder()
