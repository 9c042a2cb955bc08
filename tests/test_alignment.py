"""Frame alignment is what docs/model.md sections 4 and 5 say, for any two lengths."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen_core import oracle
from uniavgen_core.model.config import TINY
from uniavgen_core.model.variants import align

CONFIGS = [
    TINY,
    replace(TINY, variant="paper"),
    replace(TINY, variant="paper", window=0),
    replace(TINY, variant="paper", window=3),
]
NAMES = ["released", "paper", "paper w=0", "paper w=3"]


def blend(frames: int, entries) -> torch.Tensor:
    """[L, T] weights from (first, second, weight of first, weight of second) per mel frame."""
    dense = torch.zeros(len(entries), frames, dtype=torch.float64)
    for j, (lo, hi, w_lo, w_hi) in enumerate(entries):
        dense[j, lo] += w_lo
        if w_hi:
            dense[j, hi] += w_hi
    return dense


def core_blend(config, frames: int, mels: int) -> torch.Tensor:
    plan = align(config, frames, mels)
    return blend(frames, [(int(f), int(f) + 1, *w.tolist()) for f, w in zip(plan.frame, plan.weight)])


def agrees(config, frames: int, mels: int) -> None:
    assert align(config, frames, mels).window.tolist() == oracle.windows(config, frames, mels)
    wanted = blend(frames, oracle.pairs(config, frames, mels))
    assert torch.allclose(core_blend(config, frames, mels), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 40), mels=st.integers(1, 700))
def test_windows_and_weights_for_any_lengths(config, frames, mels):
    agrees(config, frames, mels)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize(
    ("frames", "mels"), [(21, 506), (1, 1), (1, 6), (1, 300), (20, 3), (21, 80), (20, 481), (5, 106), (2, 4)]
)
def test_windows_and_weights_at_the_edges(config, frames, mels):
    agrees(config, frames, mels)


@pytest.mark.parametrize(("frames", "mels"), [(4, 27), (4, 108), (6, 174), (6, 410)])
def test_float64_rounding_decides_the_released_window_width(frames, mels):
    exact = Fraction(mels, 4 * (frames - 1) + 1)
    spans = [(4 * i + 1, 4 * i + 5) for i in range(frames - 1)]
    without_rounding = max(ceil(e * exact) - floor(s * exact) for s, e in spans)
    without_rounding += floor(2 * exact) + ceil(2 * exact)
    assert align(TINY, frames, mels).window.shape[1] == without_rounding + 1
    agrees(TINY, frames, mels)


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 40), mels=st.integers(1, 700))
def test_released_weights_sum_to_one_and_to_two_at_the_very_end(frames, mels):
    total = core_blend(TINY, frames, mels).sum(1)
    last = 4 * (frames - 1)
    r = mels / (last + 1)
    at_the_end = torch.tensor([j / r >= last for j in range(mels)])
    assert torch.allclose(total, 1.0 + at_the_end.double(), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 40), mels=st.integers(1, 700))
def test_paper_weights_always_sum_to_one(frames, mels):
    total = core_blend(replace(TINY, variant="paper"), frames, mels).sum(1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-12)


@pytest.mark.parametrize(("frames", "mels"), [(0, 5), (5, 0)])
def test_nothing_to_align_is_an_error(frames, mels):
    with pytest.raises(ValueError, match=f"{frames} latent frames with {mels} mel frames"):
        align(TINY, frames, mels)
