"""The paper's interaction, formula by formula (docs/model.md section 5), beside what the model does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import forward, inputs, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uniavgen_core import DualBranchDiT, oracle
from uniavgen_core.model.config import TINY
from uniavgen_core.oracle import linear, part

PAPER = replace(TINY, variant="paper", layers=1, interaction_layers=(0,))
T, H, W = 3, 2, 3  # latent frames, tokens down and across
L = 11  # not a multiple of T: k = 4, one padded
K = 4


def before_self_attention(model: DualBranchDiT, arguments: dict, block: int = 0) -> tuple[Tensor, Tensor]:
    """The target tokens [T, h, w, D] and [L, A] of the first clip as the blocks of a layer get them."""
    seen = {}

    def keep(name: str):
        return lambda module, args: seen.__setitem__(name, args[0][0])

    hooks = [
        model.blocks[block].register_forward_pre_hook(keep("video")),
        model.audio_blocks[block].register_forward_pre_hook(keep("audio")),
    ]
    forward(model, **arguments)
    for hook in hooks:
        hook.remove()
    frames, rows, columns = arguments["video"].shape[2:]
    video = seen["video"].unflatten(0, (frames + 1, rows // 2, columns // 2))[1:]
    return video.double(), seen["audio"][-arguments["audio"].shape[1] :].double()


@pytest.fixture(scope="module")
def model() -> DualBranchDiT:
    return randomise(DualBranchDiT(PAPER), 3)


@pytest.fixture(scope="module")
def clip() -> dict:
    return inputs(PAPER, frames=T, mels=L, rows=2 * H, columns=2 * W, seed=3)


@pytest.fixture(scope="module")
def plain(model, clip) -> tuple[Tensor, Tensor]:
    """H^v [T, h, w, D] and H^a [L, A] of the layer, before anything was exchanged."""
    return before_self_attention(model, {**clip, "a2v": False, "v2a": False})


@pytest.fixture(scope="module")
def weights(model) -> tuple[oracle.State, oracle.State]:
    state = {k: v.double() for k, v in model.state_dict().items()}
    return part(state, "a2v_blocks.0"), part(state, "v2a_blocks.0")


def attend(w: oracle.State, heads: int, query: Tensor, context: Tensor, q_angles, k_angles) -> Tensor:
    """CrossAttn(W_q query, W_k context, W_v context): the model's own attention, without its output."""
    q = oracle.heads_of(oracle.rms_norm(linear(w, "q", query), w["norm_q.weight"], PAPER.eps), heads)
    k = oracle.heads_of(oracle.rms_norm(linear(w, "k", context), w["norm_k.weight"], PAPER.eps), heads)
    v = oracle.heads_of(linear(w, "v", context), heads)
    q = q if q_angles is None else oracle.rotate(q, q_angles)
    return oracle.joined(oracle.softmax_attention(q, oracle.rotate(k, k_angles), v))


def mask_of(w: oracle.State, video: Tensor) -> Tensor:
    """M = sigmoid(W_m (gamma * LN(H^v) + beta) + b_m)."""
    mean, variance = video.mean(-1, keepdim=True), video.var(-1, unbiased=False, keepdim=True)
    normed = (video - mean) / torch.sqrt(variance + PAPER.eps)
    m = part(w, "mask_head")
    return torch.sigmoid(linear(m, "head", m["norm.weight"] * normed + m["norm.bias"]))


def test_face_mask_is_the_sigmoid_of_a_linear_layer_on_the_normalised_video(model, clip, plain, weights):
    shown = forward(model, **clip).face_masks[0][0].double()
    assert oracle.relative_error(shown, mask_of(weights[0], plain[0]).flatten(1)) < 1e-6


def test_audio_to_video_looks_one_latent_frame_to_either_side(model, clip, plain, weights):
    video, audio = plain
    w = weights[0]
    padded = torch.cat((audio, audio[-1:]))  # L to a multiple of T by its last frame
    blocks = padded.unflatten(0, (T, K))  # H^a_i
    wanted = []
    for i in range(T):
        before, after = blocks[max(i - 1, 0)], blocks[min(i + 1, T - 1)]
        c_i = torch.cat((before, blocks[i], after))
        h_i = video[i].flatten(0, 1)
        angles = oracle.grid_angles(0, H, W, PAPER.head_dim), oracle.window_angles(3 * K, PAPER.head_dim)
        hbar = linear(w, "o", h_i + attend(w, PAPER.video_heads, h_i, c_i, *angles))
        wanted.append(h_i + mask_of(w, h_i) * hbar)
    got, _ = before_self_attention(model, {**clip, "v2a": False})
    assert (
        oracle.relative_error(
            got.flatten(1, 2) - video.flatten(1, 2), torch.stack(wanted) - video.flatten(1, 2)
        )
        < 1e-5
    )


def test_video_to_audio_blends_two_neighbouring_latent_frames(model, clip, plain, weights):
    video, audio = plain
    seen = (mask_of(weights[0], video) * video).flatten(1, 2)  # M * H^v
    w, wanted = weights[1], []
    for j in range(L):
        i, alpha = j // K, (j % K) / K
        c_j = (1 - alpha) * seen[i] + alpha * seen[i + 1] if i < T - 1 else seen[T - 1]
        angles = None, oracle.grid_angles(0, H, W, PAPER.head_dim)
        h_j = audio[j : j + 1]
        wanted.append(linear(w, "o", h_j + attend(w, PAPER.audio_heads, h_j, c_j, *angles)))
    _, got = before_self_attention(model, {**clip, "a2v": False})
    assert oracle.relative_error(got - audio, torch.cat(wanted)) < 1e-5


def test_both_directions_start_from_the_same_features(model, clip):
    alone = (
        before_self_attention(model, {**clip, "v2a": False})[0],
        before_self_attention(model, {**clip, "a2v": False})[1],
    )
    together = before_self_attention(model, clip)
    assert all(torch.equal(x, y) for x, y in zip(alone, together))


def test_known_frames_and_references_are_not_changed(model, clip):
    known = {
        **clip,
        "reference_mel": inputs(PAPER, reference_mels=5)["reference_mel"],
        "conditioned_video": torch.arange(T) < 1,
        "conditioned_audio": torch.arange(L) < 4,
    }
    off = before_self_attention(model, {**known, "a2v": False, "v2a": False})
    on = before_self_attention(model, known)
    for with_exchange, without, count in zip(on, off, (1, 4)):
        assert torch.equal(with_exchange[:count], without[:count])
        assert all(not torch.equal(x, y) for x, y in zip(with_exchange[count:], without[count:]))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_a_face_mask_of_nothing_keeps_the_audio_out_of_the_video(model, clip, plain, scale):
    """W_m = 0 and b_m = -scale: with M = 0 A2V changes nothing, with M = 1/2 it does."""
    closed = DualBranchDiT(PAPER).eval()
    closed.load_state_dict(model.state_dict())
    with torch.no_grad():
        closed.a2v_blocks[0].mask_head.head.weight.zero_()
        closed.a2v_blocks[0].mask_head.head.bias.fill_(-scale)
        video, _ = before_self_attention(closed, {**clip, "v2a": False})
    assert torch.equal(video, plain[0]) == (scale > 0)


def test_with_its_zero_initial_output_the_model_is_two_independent_transformers():
    config = replace(TINY, variant="paper")
    fresh = DualBranchDiT(config)
    for layer in (*fresh.a2v_blocks, *fresh.v2a_blocks):
        assert not layer.o.weight.any()
        assert not layer.o.bias.any()
    model = randomise(DualBranchDiT(config), 5)
    with torch.no_grad():
        for layer in (*model.a2v_blocks, *model.v2a_blocks):
            layer.o.weight.zero_()
            layer.o.bias.zero_()
        given = inputs(config, batch=2, reference_mels=4)
        apart = forward(model, **given, a2v=False, v2a=False)
        together = forward(model, **given)
        other = inputs(config, batch=2, reference_mels=4, seed=1)
        other_audio = forward(model, **{**given, "audio": other["audio"], "speech": other["speech"]})
        other_video = forward(model, **{**given, "video": other["video"], "caption": other["caption"]})
    assert together.face_masks
    assert torch.equal(together.video, apart.video)
    assert torch.equal(together.audio, apart.audio)
    assert torch.equal(together.video, other_audio.video)
    assert torch.equal(together.audio, other_video.audio)


@settings(max_examples=15, deadline=None)
@given(
    reach=st.integers(0, 2),
    frames=st.integers(1, 4),
    mels=st.integers(1, 30),
    voice=st.integers(0, 4),
    data=st.data(),
)
def test_whole_forward_equals_the_transcription(reach, frames, mels, voice, data):
    config = replace(TINY, variant="paper", window=reach, layers=3)
    model = randomise(DualBranchDiT(config), reach)
    given = inputs(config, frames=frames, mels=mels, reference_mels=voice, seed=mels)
    n_v, n_a = data.draw(st.integers(0, frames)), data.draw(st.integers(0, mels))
    out = forward(
        model,
        **given,
        conditioned_video=torch.arange(frames) < n_v,
        conditioned_audio=torch.arange(mels) < n_a,
    )
    clip = oracle.Clip(
        **{k: given[k][0].double() for k in given if k != "time"}, time=float(given["time"]), n_v=n_v, n_a=n_a
    )
    state = {k: v.double() for k, v in model.state_dict().items()}
    video, audio, masks = oracle.forward(state, config, clip)
    assert oracle.relative_error(out.video[0], video) < 1e-5
    assert oracle.relative_error(out.audio[0], audio) < 1e-5
    for block in out.face_masks.keys() & masks.keys():
        assert oracle.relative_error(out.face_masks[block][0], masks[block]) < 1e-5
