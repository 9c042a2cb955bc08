"""The parts that need no download.

A trained embedded model does not exist yet: these are small seeded random parts of the real classes. They
run the real path in seconds on a CPU and make noise, not a person; whoever uses them must say so.
"""

from __future__ import annotations

import torch

from .config import TINY
from .model import DualBranchDiT
from .sampling import Settings

SETTINGS = Settings(frames=33, short_side=128)

NOTICE = (
    "no weights given: small RANDOM weights are used, the clip will be noise and not a talking person; "
    "give the released weights for a real one"
)


def random_model(seed: int = 0) -> DualBranchDiT:
    """A `DualBranchDiT` of size `TINY` with seeded random weights; the global random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DualBranchDiT(TINY)
        for name, parameter in model.named_parameters():
            if "modulation" in name or "grn" in name or name == "audio_padding":
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)
