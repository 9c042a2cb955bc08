"""The interaction of our own, variant "aligned": true time in both directions and a learned phase."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from conftest import forward, inputs, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_paper import attend, before_self_attention, mask_of

from uniavgen_core import oracle
from uniavgen_core.errors import UserError
from uniavgen_core.model import rope
from uniavgen_core.model.config import TINY
from uniavgen_core.model.dit import DualBranchDiT
from uniavgen_core.model.variants import align
from uniavgen_core.training import cast_ops
from uniavgen_core.training.initialise import LATER, initialise, other_interaction
from uniavgen_core.weights.checkpoint import load_model
from uniavgen_core.weights.convert import save_checkpoint

ALIGNED = replace(TINY, variant="aligned", layers=1, interaction_layers=(0,))
T, H, W, L = 3, 2, 3, 56


def video_span(latent: int) -> tuple[Fraction, Fraction]:
    """Seconds a latent frame lasts, from its video frames at 16 fps."""
    frames = [0] if latent == 0 else [4 * latent - 3, 4 * latent - 2, 4 * latent - 1, 4 * latent]
    return Fraction(frames[0], 16), Fraction(frames[-1] + 1, 16)


def mel_centre(mel: int) -> Fraction:
    return (mel + Fraction(1, 2)) / 100


def windows(frames: int, mels: int, reach: int) -> list[list[int]]:
    """The mel frames whose centres lie in the four video frames that end a latent frame, and `reach` times as
    many before and after; beyond the clip its first and last mel frame."""
    rows = []
    for i in range(frames):
        end = video_span(i)[1]
        start = end - Fraction(4, 16)
        centred = [j for j in range(-99, 25 * frames + 99) if start <= mel_centre(j) < end]
        assert len(centred) == 25
        row = range(centred[0] - 25 * reach, centred[-1] + 25 * reach + 1)
        rows.append([min(max(j, 0), mels - 1) for j in row])
    return rows


def pairs(frames: int, mels: int) -> list[tuple[int, int, float, float]]:
    """Per mel frame the two latent frames whose centres stand around it, weighted by nearness."""
    centres = [sum(video_span(i)) / 2 for i in range(frames)]
    found = []
    for j in range(mels):
        t = mel_centre(j)
        if t <= centres[0] or frames == 1:
            found.append((0, 0, 1.0, 0.0))
        elif t >= centres[-1]:
            found.append((frames - 1, frames - 1, 1.0, 0.0))
        else:
            i = max(i for i in range(frames) if centres[i] <= t)
            alpha = float((t - centres[i]) / (centres[i + 1] - centres[i]))
            found.append((i, i + 1, 1 - alpha, alpha))
    return found


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(1, 12), mels=st.integers(1, 330), reach=st.integers(0, 2))
def test_both_directions_stand_at_their_true_times(frames, mels, reach):
    plan = align(replace(ALIGNED, window=reach), frames, mels)
    assert plan.window.tolist() == windows(frames, mels, reach)
    dense = torch.zeros(mels, frames, dtype=torch.float64)
    wanted = dense.clone()
    for j, (lo, hi, w_lo, w_hi) in enumerate(pairs(frames, mels)):
        wanted[j, lo] += w_lo
        wanted[j, hi] += w_hi
        first = int(plan.frame[j])
        dense[j, first] += plan.weight[j, 0]
        if plan.weight[j, 1]:
            dense[j, first + 1] += plan.weight[j, 1]
    assert torch.allclose(dense, wanted, rtol=0, atol=1e-12)


def test_the_phase_counts_25_mel_frames_from_the_beginning_of_each_latent_frame():
    phase = align(ALIGNED, 9, 206).phase.tolist()
    for i in range(9):
        start, end = video_span(i)
        inside = [phase[j] for j in range(206) if start <= mel_centre(j) < end]
        assert inside == (list(range(19, 25)) if i == 0 else list(range(25))[: len(inside)])
    assert align(TINY, 9, 206).phase is None


def test_alignment_does_not_depend_on_how_long_the_clip_is():
    short, long = align(ALIGNED, 9, 206), align(ALIGNED, 21, 506)
    inside = short.frame < 8
    assert torch.equal(short.frame[inside], long.frame[:206][inside])
    assert torch.equal(short.weight[inside], long.weight[:206][inside])
    assert torch.equal(short.window[:7], long.window[:7])


@pytest.fixture(scope="module")
def model() -> DualBranchDiT:
    return randomise(DualBranchDiT(ALIGNED), 3)


@pytest.fixture(scope="module")
def clip() -> dict:
    return inputs(ALIGNED, frames=T, mels=L, rows=2 * H, columns=2 * W, seed=3)


def parts_of(model: DualBranchDiT) -> tuple[oracle.State, oracle.State]:
    state = {k: v.double() for k, v in model.state_dict().items()}
    return oracle.part(state, "a2v_blocks.0"), oracle.part(state, "v2a_blocks.0")


def test_video_to_audio_asks_with_the_phase_and_passes_it_on(model, clip):
    video, audio = before_self_attention(model, {**clip, "a2v": False, "v2a": False})
    a2v, w = parts_of(model)
    seen = (mask_of(a2v, video) * video).flatten(1, 2)  # M * H^v
    wanted = []
    for j, (lo, hi, w_lo, w_hi) in enumerate(pairs(T, L)):
        h_j = audio[j : j + 1] + w["phase"][(j + 19) % 25]
        angles = None, oracle.grid_angles(0, H, W, ALIGNED.head_dim)
        context = w_lo * seen[lo] + w_hi * seen[hi]
        attended = attend(w, ALIGNED.audio_heads, h_j, context, *angles)
        wanted.append(oracle.linear(w, "o", h_j + attended))
    _, got = before_self_attention(model, {**clip, "a2v": False})
    assert oracle.relative_error(got - audio, torch.cat(wanted)) < 1e-5


def test_audio_to_video_looks_at_the_mel_frames_of_its_time(model, clip):
    video, audio = before_self_attention(model, {**clip, "a2v": False, "v2a": False})
    w, _ = parts_of(model)
    wanted = []
    for i, window in enumerate(windows(T, L, 1)):
        h_i = video[i].flatten(0, 1)
        angles = (
            oracle.grid_angles(0, H, W, ALIGNED.head_dim),
            oracle.window_angles(len(window), ALIGNED.head_dim),
        )
        attended = attend(w, ALIGNED.video_heads, h_i, audio[window], *angles)
        wanted.append(mask_of(w, h_i) * oracle.linear(w, "o", h_i + attended))
    got, _ = before_self_attention(model, {**clip, "v2a": False})
    assert oracle.relative_error((got - video).flatten(1, 2), torch.stack(wanted)) < 1e-5


def test_a_new_one_is_two_independent_branches_and_differs_from_the_paper_in_the_phase_alone():
    aligned = initialise(DualBranchDiT(replace(TINY, variant="aligned"), cast_ops))
    paper = initialise(DualBranchDiT(replace(TINY, variant="paper"), cast_ops))
    more = aligned.state_dict().keys() - paper.state_dict().keys()
    assert more == {"v2a_blocks.0.phase", "v2a_blocks.1.phase"}
    assert not paper.state_dict().keys() - aligned.state_dict().keys()
    assert not any(layer.phase.any() for layer in aligned.v2a_blocks)
    given = inputs(aligned.config)
    apart, together = forward(aligned, **given, a2v=False, v2a=False), forward(aligned, **given)
    assert torch.equal(together.audio, apart.audio)
    assert torch.equal(together.video, apart.video)


def test_a_file_says_by_its_tensors_that_it_is_aligned(model, tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", model.state_dict().items(), model.config, "fp32")
    loaded = load_model(tmp_path / "m.safetensors", dtype=torch.float32)
    assert loaded.config == model.config
    assert torch.equal(loaded.v2a_blocks[0].phase, model.v2a_blocks[0].phase)


def test_a_paper_model_becomes_an_aligned_one_that_finds_what_it_knew_twelve_places_later():
    paper = randomise(DualBranchDiT(replace(TINY, variant="paper")), 4)
    for interaction in paper.interactions():
        torch.nn.init.ones_(interaction.a2v.norm_q.weight)  # equal within each pair: the turn is exact
    aligned = other_interaction(initialise(DualBranchDiT(replace(TINY, variant="aligned"))), paper)
    same = {n for n, p in paper.state_dict().items() if torch.equal(p, aligned.state_dict()[n])}
    turned = {f"a2v_blocks.{i}.q.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert paper.state_dict().keys() - same == turned
    x, places = torch.randn(1, 5, TINY.video_dim), rope.window(40, TINY.head_dim)
    unturned = rope.window(5, TINY.head_dim)
    unturned = rope.Rotary(torch.ones_like(unturned.cos), torch.zeros_like(unturned.sin))
    key = torch.randn(1, 1, TINY.video_heads, TINY.head_dim)
    scores = []
    for model, place in ((paper, 7), (aligned, 7 + LATER)):
        here = rope.Rotary(places.cos[place : place + 1], places.sin[place : place + 1])
        q = model.interactions()[0].a2v.query(x, unturned).unflatten(-1, (TINY.video_heads, -1))
        scores.append((q * rope.rotate(key, here)).sum(-1))
    torch.testing.assert_close(*scores)
    with pytest.raises(UserError, match="'released' cannot become"):
        other_interaction(aligned, DualBranchDiT(TINY))
