"""Both directions of the interaction against the naive way, for any sizes.

The core turns rotary pairs and takes softmax in float32 whatever it is given, so it runs in float32 here and
the oracle in float64; they agree to 1e-5.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from uniavgen_core import RELEASED, oracle
from uniavgen_core.model.a2v import A2V
from uniavgen_core.model.config import TINY
from uniavgen_core.model.layers import sdpa
from uniavgen_core.model.rope import grid, window
from uniavgen_core.model.v2a import V2A, group_mels
from uniavgen_core.model.variants import align

TOLERANCE = 1e-5
many = settings(max_examples=40, deadline=None)


@st.composite
def scenes(draw) -> dict:
    """A config and the sizes of a clip: known frames lead, at least one is left to be changed."""
    heads = {"video_heads": draw(st.integers(1, 4)), "audio_heads": draw(st.integers(1, 3))}
    width = draw(st.sampled_from([2, 4, 6, 8, 12, 20]))
    config = replace(
        TINY,
        variant=draw(st.sampled_from(["released", "paper"])),
        window=draw(st.integers(0, 2)),
        video_dim=width * heads["video_heads"],
        audio_dim=width * heads["audio_heads"],
        **heads,
    )
    frames, mels = draw(st.integers(1, 6)), draw(st.integers(1, 60))
    return {
        "config": config,
        "shape": (draw(st.integers(1, 3)), frames, draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "mels": mels,
        "n_v": draw(st.integers(0, frames - 1)),
        "n_a": draw(st.integers(0, mels - 1)),
        "seed": draw(st.integers(0, 99)),
    }


def features(config, shape: tuple, mels: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Video [B, T, h, w, D], its mask [B, T, h, w], audio [B, L, A]."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(*shape, config.video_dim, generator=generator)
    mask = torch.rand(shape, generator=generator)
    return video, mask, torch.randn(shape[0], mels, config.audio_dim, generator=generator)


def doubles(module: torch.nn.Module) -> oracle.State:
    return {k: v.double() for k, v in module.state_dict().items()}


def run_a2v(module: A2V, config, video, mask, audio, n_v: int = 0) -> torch.Tensor:
    """[B, T - n_v, S, D]"""
    _, frames, height, width, _ = video.shape
    plan = align(config, frames, audio.shape[1])
    return module(
        video.flatten(2, 3)[:, n_v:],
        mask.flatten(2)[:, n_v:],
        module.project_kv(audio),
        plan.window[n_v:],
        sdpa,
        grid(1, height, width, config.head_dim),
        window(plan.window.shape[1], config.head_dim),
    )


def run_v2a(module: V2A, config, video, mask, audio, n_a: int = 0) -> torch.Tensor:
    """[B, L - n_a, A]"""
    _, frames, height, width, _ = video.shape
    plan = align(config, frames, audio.shape[1])
    masked = (mask.unsqueeze(-1) * video).flatten(2, 3)
    video_kv = module.project_video_kv(masked, grid(1, height, width, config.head_dim))
    return module(audio[:, n_a:], video_kv, group_mels(plan.frame[n_a:], plan.weight[n_a:], frames))


def naive_a2v(module: A2V, config, video, mask, audio, n_v: int = 0) -> torch.Tensor:
    w, mask = doubles(module), mask.double()[..., None]
    updates = []
    for m, x, y in zip(mask, video.double(), audio.double()):
        heard = oracle.a2v(w, config, x, y)
        paper = config.variant == "paper"
        updates.append(m * oracle.linear(w, "o", heard) if paper else oracle.linear(w, "o", m * heard))
    return torch.stack(updates).flatten(2, 3)[:, n_v:]


def naive_v2a(module: V2A, config, video, mask, audio, n_a: int = 0) -> torch.Tensor:
    w, seen = doubles(module), mask.double()[..., None] * video.double()
    return torch.stack([oracle.v2a(w, config, x, y) for x, y in zip(seen, audio.double())])[:, n_a:]


@many
@given(scene=scenes())
def test_audio_to_video_equals_projecting_every_gathered_window(scene):
    config, n_v = scene["config"], scene["n_v"]
    module = randomise(A2V(config), scene["seed"])
    given = features(config, scene["shape"], scene["mels"], scene["seed"])
    got = run_a2v(module, config, *given, n_v)
    assert oracle.relative_error(got, naive_a2v(module, config, *given, n_v)) < TOLERANCE


@many
@given(scene=scenes())
def test_video_to_audio_equals_building_every_context(scene):
    config, n_a = scene["config"], scene["n_a"]
    module = randomise(V2A(config), scene["seed"])
    given = features(config, scene["shape"], scene["mels"], scene["seed"])
    got = run_v2a(module, config, *given, n_a)
    assert oracle.relative_error(got, naive_v2a(module, config, *given, n_a)) < TOLERANCE


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize(("frames", "mels"), [(21, 506), (1, 9), (5, 2), (20, 481), (4, 108)])
def test_both_directions_at_notable_lengths(variant, frames, mels):
    config = replace(TINY, variant=variant)
    a2v, v2a = randomise(A2V(config), 1), randomise(V2A(config), 2)
    given = features(config, (1, frames, 2, 3), mels, 3)
    assert oracle.relative_error(run_a2v(a2v, config, *given), naive_a2v(a2v, config, *given)) < TOLERANCE
    assert oracle.relative_error(run_v2a(v2a, config, *given), naive_v2a(v2a, config, *given)) < TOLERANCE


def test_video_to_audio_with_a_bias_that_outweighs_the_features():
    """The key's bias is no part of what is blended: three weights, not two, at the end of the clip."""
    module = randomise(V2A(TINY), 4)
    with torch.no_grad():
        module.k.bias.mul_(30)
        module.v.bias.mul_(30)
    given = features(TINY, (2, 3, 2, 2), 31, 5)
    assert oracle.relative_error(run_v2a(module, TINY, *given), naive_v2a(module, TINY, *given)) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_video_to_audio_in_half_precision_stays_close(dtype):
    """Measured 0.005 and 0.0006."""
    module = randomise(V2A(TINY), 6)
    given = features(TINY, (1, 5, 3, 4), 101, 7)
    wanted = naive_v2a(module, TINY, *given)
    module.to(dtype)
    got = run_v2a(module, TINY, *(x.to(dtype) for x in given))
    assert oracle.relative_error(got, wanted) < (0.01 if dtype == torch.bfloat16 else 0.0012)


def test_released_video_to_audio_takes_a_20th_of_the_flops_and_a_10th_of_the_memory_of_the_naive_way():
    frames, mels, side = 21, 506, 8
    module = randomise(V2A(RELEASED), 8)
    video, mask, audio = features(RELEASED, (1, frames, side, side), mels, 9)
    w, seen = module.state_dict(), mask[0, ..., None] * video[0]

    def cost(call) -> tuple[torch.Tensor, int, int]:
        with FlopCounterMode(display=False) as counter, oracle.PeakBytes() as memory:
            out = call()
        return out, counter.get_total_flops(), memory.peak

    with torch.inference_mode():
        got, flops, peak = cost(lambda: run_v2a(module, RELEASED, video, mask, audio)[0])
        wanted, naive_flops, naive_peak = cost(lambda: oracle.v2a(w, RELEASED, seen, audio[0]))
    assert oracle.relative_error(got, wanted) < TOLERANCE
    assert naive_flops >= 20 * flops
    assert naive_peak >= 10 * peak
