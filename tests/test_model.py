"""The dual-branch transformer: exact, in any dtype, batch and size, and nothing computed twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import forward, inputs, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from uniavgen_core import DualBranchDiT, oracle
from uniavgen_core.model.cache import Cache
from uniavgen_core.model.config import TINY
from uniavgen_core.model.inputs import Velocity
from uniavgen_core.model.layers import sdpa
from uniavgen_core.model.speech_encoder import SpeechEncoder

KINDS = ("Linear", "Conv1d", "Conv3d", "Embedding", "LayerNorm", "RMSNorm")


def conditioned(frames: int = 0, mels: int = 0, of_frames: int = 3, of_mels: int = 23) -> dict:
    return {
        "conditioned_video": torch.arange(of_frames) < frames,
        "conditioned_audio": torch.arange(of_mels) < mels,
    }


def same(a: Velocity, b: Velocity) -> bool:
    masks = a.face_masks.keys() == b.face_masks.keys() and all(
        torch.equal(a.face_masks[k], b.face_masks[k]) for k in a.face_masks
    )
    return masks and torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio)


def close(a: Velocity, b: Velocity, tolerance: float = 1e-5) -> bool:
    errors = [oracle.relative_error(a.video, b.video), oracle.relative_error(a.audio, b.audio)]
    return max(errors) < tolerance


class Calls(Counter):
    """Counts the calls of every submodule, by name, inside the `with`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.hooks = model, []

    def __enter__(self) -> Calls:
        for name, module in self.model.named_modules():
            self.hooks.append(module.register_forward_pre_hook(lambda m, _, n=name: self.update([n])))
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()

    def inside(self, prefix: str) -> list[str]:
        return sorted(name for name in self if name.startswith(prefix))


# the numbers


@settings(max_examples=25, deadline=None)
@given(data=st.data(), frames=st.integers(1, 4), mels=st.integers(1, 30), voice=st.integers(0, 4))
def test_forward_equals_the_transcription_for_any_task(data, frames, mels, voice):
    config = replace(TINY, speech_layers=1, layers=3)
    model = randomise(DualBranchDiT(config), frames)
    n_v, n_a = data.draw(st.integers(0, frames)), data.draw(st.integers(0, mels))
    options = {"a2v": data.draw(st.booleans()), "v2a": data.draw(st.booleans())}
    options["skip_layers"] = data.draw(st.sampled_from([(), (1,), (2,)]))
    arguments = inputs(config, frames=frames, mels=mels, rows=2, columns=4, reference_mels=voice, seed=mels)
    out = forward(model, **arguments, **conditioned(n_v, n_a, frames, mels), **options)
    clip = {k: arguments[k][0].double() for k in arguments if k != "time"}
    clip = oracle.Clip(**clip, time=float(arguments["time"]), n_v=n_v, n_a=n_a, **options)
    state = {k: v.double() for k, v in model.state_dict().items()}
    video, audio, masks = oracle.forward(state, config, clip)
    assert oracle.relative_error(out.video[0], video) < 1e-5
    assert oracle.relative_error(out.audio[0], audio) < 1e-5
    for block in out.face_masks.keys() & masks.keys():
        assert oracle.relative_error(out.face_masks[block][0], masks[block]) < 1e-5


@settings(max_examples=15, deadline=None)
@given(ids=st.lists(st.integers(-1, 19), min_size=1, max_size=14))
def test_speech_features_equal_the_transcription(ids):
    model = randomise(SpeechEncoder(vocab=20, dim=12, layers=2), 2)
    state = {f"text_embedding.{k}": v.double() for k, v in model.state_dict().items()}
    got, wanted = model(torch.tensor([ids]))[0], oracle.speech_features(state, ids)
    assert torch.allclose(got.double(), wanted, atol=1e-5)


@pytest.mark.parametrize("ids", [[[-2, 3]], [[3, 20]]])
def test_unknown_symbol_ids_are_an_error(ids):
    with pytest.raises(ValueError, match=r"expected -1\.\.19"):
        SpeechEncoder(vocab=20, dim=12, layers=1)(torch.tensor(ids))


# dtypes, batches, sizes


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 0.015), (torch.float16, 0.002)], ids=["bf16", "fp16"]
)
def test_half_precision_stays_close_to_float32(model, dtype, bound):
    """Relative error of a whole forward; measured 0.007 and 0.0009."""
    arguments = {**inputs(model.config, reference_mels=5), **conditioned(1, 4)}
    half = DualBranchDiT(model.config, dtype=dtype).eval()
    half.load_state_dict(model.state_dict())
    cast = {k: v.to(dtype) if v.is_floating_point() and k != "time" else v for k, v in arguments.items()}
    with torch.no_grad():
        out, wanted = forward(half, **cast), forward(model, **arguments)
    assert out.video.dtype == out.audio.dtype == torch.float32
    errors = [oracle.relative_error(a, b) for a, b in zip(out[:2], wanted[:2])]
    assert max(errors) < bound, errors
    assert min(errors) > 1e-5  # it did run in half precision


def test_a_batch_of_three_equals_three_batches_of_one(model):
    """Other times, reference voices and speech texts of other lengths in every sample."""
    arguments = {**inputs(model.config, batch=3, reference_mels=7)}
    voices, texts = [7, 2, 5], [4, 11, 8]
    together = forward(
        model,
        **arguments,
        **conditioned(1, 6),
        reference_mel_lengths=torch.tensor(voices),
        speech_lengths=torch.tensor(texts),
    )
    for i in range(3):
        alone = {k: v[i : i + 1] for k, v in arguments.items()}
        alone["reference_mel"] = alone["reference_mel"][:, : voices[i]]
        alone["speech"] = alone["speech"][:, : texts[i]]
        wanted = forward(model, **alone, **conditioned(1, 6))
        got = Velocity(together.video[i : i + 1], together.audio[i : i + 1], {})
        assert close(got, wanted), i
        for block, mask in wanted.face_masks.items():
            assert torch.allclose(together.face_masks[block][i], mask[0], atol=1e-5)


def test_every_sample_of_a_batch_has_its_own_time(model):
    arguments = inputs(model.config, batch=2)
    both = {k: v[:1].repeat(2, *[1] * (v.ndim - 1)) for k, v in arguments.items()}
    both["time"] = torch.tensor([900.0, 30.0])
    out = forward(model, **both)
    for i, time in enumerate((900.0, 30.0)):
        wanted = forward(model, **{k: v[:1] for k, v in both.items()} | {"time": torch.tensor([time])})
        assert close(Velocity(out.video[i : i + 1], out.audio[i : i + 1], {}), wanted)
    assert not torch.allclose(out.video[0], out.video[1], atol=1e-2)
    assert not torch.allclose(out.audio[0], out.audio[1], atol=1e-2)


@pytest.mark.parametrize(("rows", "columns"), [(5, 6), (4, 7), (1, 1), (3, 5)])
@pytest.mark.parametrize("frames", [1, 2])
def test_odd_latent_sizes_run(model, rows, columns, frames):
    arguments = inputs(model.config, batch=2, frames=frames, mels=7, rows=rows, columns=columns)
    out = forward(model, **arguments)
    assert out.video.shape == arguments["video"].shape
    assert out.audio.shape == arguments["audio"].shape
    assert out.video.isfinite().all()
    even = dict(arguments)
    for name in ("video", "reference_image"):  # the edge repeated once
        x = arguments[name]
        x = torch.cat((x, x[..., -1:, :]), -2) if rows % 2 else x
        even[name] = torch.cat((x, x[..., -1:]), -1) if columns % 2 else x
    assert torch.equal(out.video, forward(model, **even).video[..., :rows, :columns])


def test_text_padding_is_seen_by_the_video_and_not_by_the_audio(released):
    """All caption positions attend; positions beyond speech_lengths do not."""
    arguments = inputs(released.config)
    longer = dict(arguments)
    longer["caption"] = nn.functional.pad(arguments["caption"], (0, 0, 0, 20))
    longer["speech"] = nn.functional.pad(arguments["speech"], (0, 0, 0, 6), value=3.0)
    assert close(
        forward(released, **longer, speech_lengths=torch.tensor([11])), forward(released, **arguments), 1e-6
    )


# what a host may replace


def test_every_layer_with_weights_comes_from_the_hosts_namespace(make_model):
    used = Counter()

    def counted(kind: str):
        class Hosted(getattr(nn, kind)):
            def forward(self, x):
                used[kind] += 1
                return super().forward(x)

        return Hosted

    ops = SimpleNamespace(**{kind: counted(kind) for kind in KINDS})
    for variant in ("released", "paper"):
        model = make_model(variant, ops=ops)
        foreign = [n for n, m in model.named_modules() if type(m) in {getattr(nn, k) for k in KINDS}]
        assert foreign == []
        model.text_embedding(torch.tensor([[1, 2, -1]]))
        forward(model, **inputs(model.config))
    assert set(used) == set(KINDS)


def kept_negated(kind: str) -> type:
    """A host's layer that stores its weights negated and alone knows how to use them."""

    class Hosted(getattr(nn, kind)):
        def forward(self, x):
            for p in self.parameters():
                p.neg_()
            out = super().forward(x)
            for p in self.parameters():
                p.neg_()
            return out

    return Hosted


def test_weights_of_a_hosts_layers_are_only_used_by_those_layers(model):
    hosted = DualBranchDiT(model.config, SimpleNamespace(**{kind: kept_negated(kind) for kind in KINDS}))
    theirs = {n for n, m in hosted.named_modules() if type(m).__name__ == "Hosted"}
    state = model.state_dict()
    hosted.load_state_dict({k: -v if k.rpartition(".")[0] in theirs else v for k, v in state.items()})
    arguments = inputs(model.config, reference_mels=3)
    with torch.no_grad():
        assert close(forward(hosted, **arguments), forward(model, **arguments), 1e-6)


def test_the_attention_function_can_be_replaced(model):
    arguments = inputs(model.config, batch=2, reference_mels=4)
    lengths = {"reference_mel_lengths": torch.tensor([4, 2]), "speech_lengths": torch.tensor([11, 3])}
    calls = Counter()

    def naive(branch: str):
        def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
            calls[branch] += 1
            q, k, v = (oracle.heads_of(x, heads) for x in (q, k, v))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            return oracle.joined(torch.softmax(scores, -1) @ v)

        return attend

    out = forward(model, **arguments, **lengths, attention=naive("video"), audio_attention=naive("audio"))
    assert close(out, forward(model, **arguments, **lengths), 1e-6)
    layers, exchanges = model.config.layers, len(model.config.interaction_layers)
    assert calls == {"video": 2 * layers, "audio": 2 * layers + exchanges}


# nothing that need not be computed


@pytest.mark.parametrize(
    ("options", "a2v", "v2a"),
    [
        ({}, True, True),
        ({"a2v": False}, False, True),
        ({"v2a": False}, True, False),
        ({"a2v": False, "v2a": False}, False, False),
        (conditioned(1, 4), True, True),
        (conditioned(frames=3), False, True),
        (conditioned(mels=23), True, False),
    ],
)
def test_a_direction_that_is_off_or_has_nothing_to_change_is_not_computed(model, options, a2v, v2a):
    with Calls(model) as calls:
        out = forward(model, **inputs(model.config), **options)
    assert ("a2v_blocks.0.q" in calls) == ("a2v_blocks.0.o" in calls) == a2v
    assert ("v2a_blocks.0.q" in calls) == ("v2a_blocks.0.o" in calls) == v2a
    assert bool(out.face_masks) == (a2v or v2a)
    if not (options.get("a2v", True) or options.get("v2a", True)):
        assert calls.inside("a2v_blocks") == []
    for way, blocks in (("a2v", "a2v_blocks"), ("v2a", "v2a_blocks")):
        if not options.get(way, True):  # nothing but the face mask, which the other direction may need
            assert [n for n in calls.inside(blocks) if n.count(".") > 1 and "mask_head" not in n] == []


def test_video_is_projected_once_per_latent_frame_and_audio_once_per_mel_frame(released):
    rows = Counter()

    def count(name: str):
        return lambda module, args: rows.update({name: args[0].numel() // args[0].shape[-1]})

    hooks = [
        getattr(blocks[0], part).register_forward_pre_hook(count(f"{way}.{part}"))
        for way, blocks in (("a2v", released.a2v_blocks), ("v2a", released.v2a_blocks))
        for part in ("k", "v")
    ]
    forward(released, **inputs(released.config, frames=3, mels=23, rows=4, columns=6))
    for hook in hooks:
        hook.remove()
    tokens = 3 * 2 * 3
    assert rows["a2v.k"] == rows["a2v.v"] == 23
    assert tokens <= rows["v2a.k"] <= tokens + 1  # and the bias, asked of the layer
    assert tokens <= rows["v2a.v"] <= tokens + 1


def test_a_forward_embeds_two_times_per_branch_not_one_per_token(model, make_model):
    class Linear(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    ops = SimpleNamespace(**{kind: getattr(nn, kind) for kind in KINDS} | {"Linear": Linear})
    hosted = make_model(model.config.variant, ops=ops)
    rows = {}
    for name in (
        "time_embedding.0",
        "time_projection.1",
        "time_embedding_audio.0",
        "time_projection_audio.1",
    ):
        hosted.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: rows.__setitem__(name, args[0].numel() // args[0].shape[-1])
        )
    forward(hosted, **inputs(model.config), **conditioned(1, 4))
    assert len(rows) == 4
    assert max(rows.values()) <= 2


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_known_frames_are_not_changed_by_the_interaction(make_model, branch):
    """With one layer the interaction comes last: a known frame's velocity cannot tell it was there."""
    model = make_model("released", layers=1, interaction_layers=(0,))
    arguments = {**inputs(model.config, reference_mels=3), **conditioned(2, 6)}
    on, off = forward(model, **arguments), forward(model, **arguments, a2v=False, v2a=False)
    if branch == "video":
        on, off, count = on.video[0].transpose(0, 1), off.video[0].transpose(0, 1), 2
    else:
        on, off, count = on.audio[0], off.audio[0], 6
    assert torch.equal(on[:count], off[:count])
    assert all(not torch.equal(a, b) for a, b in zip(on[count:], off[count:]))


# the same at every step


TASKS = {
    "joint": conditioned(1, 0),
    "reference voice": conditioned(1, 0),
    "continuation": conditioned(2, 9),
    "dubbing": conditioned(3, 0),
    "audio-driven": conditioned(1, 23),
    "both known": conditioned(3, 23),
}


def steps(config, task: str, count: int = 3):
    """The arguments of successive steps: other noise where nothing is known, other times."""
    arguments = {**inputs(config, reference_mels=4 if task == "reference voice" else 0), **TASKS[task]}
    for i in range(count):
        noise = inputs(config, seed=i + 1)
        arguments["video"] = torch.where(
            arguments["conditioned_video"][:, None, None], arguments["video"], noise["video"]
        )
        arguments["audio"] = torch.where(
            arguments["conditioned_audio"][:, None], arguments["audio"], noise["audio"]
        )
        arguments["time"] = torch.tensor([1000.0 / (i + 1)])
        yield dict(arguments)


@pytest.mark.parametrize("task", TASKS)
def test_results_with_a_cache_equal_those_without(model, task):
    cache = Cache()
    for arguments in steps(model.config, task):
        assert same(forward(model, **arguments, cache=cache), forward(model, **arguments))


@pytest.mark.parametrize("task", ["dubbing", "audio-driven"])
def test_one_cache_serves_steps_with_and_without_interaction(model, task):
    """The null pass of MA-CFG: no interaction at first, then with it; and with a layer left out or not."""
    cache = Cache()
    for i, arguments in enumerate(steps(model.config, task, 4)):
        options = {"a2v": i >= 2, "v2a": i >= 2, "skip_layers": ((1,), ())[i % 2]}
        got, wanted = (
            forward(model, **arguments, **options, cache=cache),
            forward(model, **arguments, **options),
        )
        assert torch.equal(got.video, wanted.video)
        assert torch.equal(got.audio, wanted.audio)


@pytest.mark.parametrize(
    ("task", "still", "moving"),
    [
        ("dubbing", "blocks", "audio_blocks"),
        ("audio-driven", "audio_blocks", "blocks"),
    ],
)
def test_a_fully_known_branch_runs_once_over_many_steps(model, task, still, moving):
    cache = Cache()
    with Calls(model) as calls:
        for arguments in steps(model.config, task, 4):
            forward(model, **arguments, cache=cache)
    for layer in range(model.config.layers):
        assert calls[f"{still}.{layer}"] == 1
        assert calls[f"{moving}.{layer}"] == 4
    assert calls["head" if task == "dubbing" else "head_audio"] == 1
    reading = (
        ("v2a_blocks.0.k", "v2a_blocks.0.v") if task == "dubbing" else ("a2v_blocks.0.k", "a2v_blocks.0.v")
    )
    with Calls(model) as later:
        forward(model, **arguments, cache=cache)
    assert not any(name in later for name in reading)


def test_texts_are_embedded_once_over_many_steps(model):
    cache = Cache()
    with Calls(model) as calls:
        for arguments in steps(model.config, "joint", 3):
            forward(model, **arguments, cache=cache)
    assert calls["text_embedding_video.0"] == calls["text_proj"] == 1
    for blocks in ("blocks", "audio_blocks"):
        for layer in range(model.config.layers):
            assert calls[f"{blocks}.{layer}.cross_attn.k"] == calls[f"{blocks}.{layer}.cross_attn.v"] == 1
            assert calls[f"{blocks}.{layer}.cross_attn.q"] == 3


# skipped layers


@pytest.mark.parametrize("skipped", [1, 2])
def test_a_skipped_layer_is_left_out_with_its_interaction(model, make_model, skipped):
    """Equal to a model that never had the layer."""
    config = model.config
    kept = [i for i in range(config.layers) if i != skipped]
    meeting = [i for i in config.interaction_layers if i != skipped]
    shorter = make_model(
        config.variant, layers=len(kept), interaction_layers=tuple(kept.index(i) for i in meeting)
    )
    state = {}
    for name, x in model.state_dict().items():
        room, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        if room in ("blocks", "audio_blocks"):
            if int(number) != skipped:
                state[f"{room}.{kept.index(int(number))}.{rest}"] = x
        elif room in ("a2v_blocks", "v2a_blocks"):
            layer = config.interaction_layers[int(number)]
            if layer != skipped:
                state[f"{room}.{meeting.index(layer)}.{rest}"] = x
        else:
            state[name] = x
    shorter.load_state_dict(state)
    arguments = {**inputs(config, reference_mels=4), **conditioned(1, 0)}
    out, wanted = forward(model, **arguments, skip_layers=(skipped,)), forward(shorter, **arguments)
    assert torch.equal(out.video, wanted.video)
    assert torch.equal(out.audio, wanted.audio)
    assert set(out.face_masks) == {config.interaction_layers.index(i) for i in meeting}


# what does not fit


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("video", (1, 47, 3, 4, 6), "(1, 48, any, any, any)"),
        ("video", (1, 48, 4, 6), "(1, 48, any, any, any)"),
        ("audio", (1, 23, 64), "(1, any, 80)"),
        ("audio", (2, 23, 80), "(1, any, 80)"),
        ("time", (2,), "(1)"),
        ("caption", (1, 9, 63), "(1, any, 64)"),
        ("speech", (1, 11, 16), "(1, any, 32)"),
        ("reference_image", (1, 48, 2, 4, 6), "(1, 48, 1, 4, 6)"),
        ("reference_image", (1, 48, 1, 4, 8), "(1, 48, 1, 4, 6)"),
        ("reference_mel", (1, 5, 100), "(1, any, 80)"),
    ],
)
def test_a_wrong_shape_is_named_with_what_was_expected(released, name, shape, wanted):
    arguments = {**inputs(released.config, reference_mels=4), name: torch.zeros(shape)}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        forward(released, **arguments)
    message = str(error.value)
    assert "\n" not in message
    if name != "video":  # everything else is measured against the video
        assert name in message
        assert str(tuple(shape)) in message
        assert wanted in message


def test_a_caption_that_is_too_long_is_an_error(released):
    arguments = {**inputs(released.config), "caption": torch.zeros(1, 65, 64)}
    with pytest.raises(ValueError, match="caption has 65 tokens, at most 64 fit"):
        forward(released, **arguments)


@pytest.mark.parametrize("wrong", [torch.zeros(4, dtype=torch.bool), torch.zeros(3)])
def test_a_mask_of_known_frames_that_does_not_fit_is_an_error(released, wrong):
    with pytest.raises(ValueError, match=r"conditioned_video is torch\..*expected torch.bool \(3,\)"):
        forward(released, **inputs(released.config), conditioned_video=wrong)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"variant": "published"}, "published"),
        ({"video_heads": 5}, "video_dim 96"),
        ({"audio_heads": 4}, "head widths differ"),
        ({"interaction_layers": (0, 4)}, r"\[4\]"),
        ({"freq_dim": 31}, "31"),
    ],
)
def test_a_config_that_cannot_be_built_is_an_error(sizes, named):
    with pytest.raises(ValueError, match=named):
        replace(TINY, **sizes)


def test_the_default_attention_is_exact(released):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 24, generator=generator) for n in (5, 7, 7))
    wanted = [
        oracle.softmax_attention(*(oracle.heads_of(x[i].double(), 4) for x in (q, k, v))) for i in range(2)
    ]
    assert oracle.relative_error(sdpa(q, k, v, 4), torch.stack([oracle.joined(x) for x in wanted])) < 1e-6
