"""Small models with every weight random, and inputs that fit them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

# The models here are tiny, and GNU OpenMP's idle threads spin while they wait for each other: where anything
# else keeps a core busy, two threads were 16 times slower than one. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).parents[1]
for folder in (str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from uniavgen_core.model.config import TINY  # noqa: E402
from uniavgen_core.model.dit import DualBranchDiT  # noqa: E402
from uniavgen_core.model.inputs import (  # noqa: E402
    ActiveParts,
    Conditioned,
    References,
    TextConditioning,
    Velocity,
)

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed"
)
needs_muon = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="this torch has no Muon; it came with torch 2.9"
)
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values everywhere, also where training starts at zero or one; features stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1 and "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.3 * noise)
            elif p.ndim == 1 or "modulation" in name or "grn" in name:
                p.copy_(0.3 * noise)
            else:
                p.copy_(noise * p[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_model():
    """`make_model(variant="released", seed=0, **sizes)`: a random TINY model."""

    def make(variant: str = "released", seed: int = 0, ops=torch.nn, **sizes) -> DualBranchDiT:
        return randomise(DualBranchDiT(replace(TINY, variant=variant, **sizes), ops), seed)

    return make


@pytest.fixture(scope="session")
def released(make_model) -> DualBranchDiT:
    return make_model("released")


@pytest.fixture(scope="session")
def paper(make_model) -> DualBranchDiT:
    return make_model("paper")


@pytest.fixture(params=["released", "paper"])
def model(request) -> DualBranchDiT:
    """Both variants, one after the other."""
    return request.getfixturevalue(request.param)


def inputs(config, batch=1, frames=3, mels=23, rows=4, columns=6, reference_mels=0, seed=0) -> dict:
    """Random arguments of `forward`; nothing is conditioned."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    given = {
        "video": normal(batch, config.video_channels, frames, rows, columns),
        "audio": normal(batch, mels, config.audio_channels),
        "time": torch.tensor([731.5, 250.0, 12.25, 990.0])[:batch],
        "caption": normal(batch, 9, config.caption_dim),
        "speech": normal(batch, 11, config.speech_dim),
        "reference_image": normal(batch, config.video_channels, 1, rows, columns),
    }
    if reference_mels:
        given["reference_mel"] = normal(batch, reference_mels, config.audio_channels)
    return given


def forward(
    model: DualBranchDiT,
    video: torch.Tensor,
    audio: torch.Tensor,
    time: torch.Tensor,
    caption: torch.Tensor,
    speech: torch.Tensor,
    reference_image: torch.Tensor,
    reference_mel: torch.Tensor | None = None,
    conditioned_video: torch.Tensor | None = None,
    conditioned_audio: torch.Tensor | None = None,
    reference_mel_lengths: torch.Tensor | None = None,
    speech_lengths: torch.Tensor | None = None,
    a2v: bool = True,
    v2a: bool = True,
    skip_layers: tuple[int, ...] = (),
    **options,
) -> Velocity:
    """`DualBranchDiT.forward` with every value by its own name."""
    none = Conditioned.none(video.shape[2], audio.shape[1])
    return model(
        video,
        audio,
        time,
        TextConditioning(caption, speech, speech_lengths),
        References(reference_image, reference_mel, reference_mel_lengths),
        Conditioned(
            none.video if conditioned_video is None else conditioned_video,
            none.audio if conditioned_audio is None else conditioned_audio,
        ),
        ActiveParts(a2v, v2a, skip_layers),
        **options,
    )


@pytest.fixture(scope="session")
def make_inputs():
    return inputs
