"""Wrong graphs of who speaks, keyframes, timing and masks: each is answered by name, before it samples."""

from __future__ import annotations

import importlib

import pytest
import torch
from graphs import FOLLOWERS, changed, clip, given, node
from test_bad_graphs import BARE, EMPTY_LATENT, GRID, PIXEL_VAE, Bad

WHO = {
    "who": node(
        "UniAVGenWhoSpeaks",
        positive=["task", 0],
        negative=["task", 1],
        mask=["given mask", 0],
        how="multiply",
    ),
    "given mask": given("mask of ones"),
}


def keyframe() -> dict:
    return node("UniAVGenKeyframe", latent=["task", 2], vae=["parts", 3], image=["picture", 0], frame=-1)


KEY = {"key": keyframe()}
TIMING = {"timing": node("UniAVGenTiming", latent=["task", 2], width=640)}
THROUGH_WHO = {"sampler.positive": ["who", 0], "sampler.negative": ["who", 1]}
THROUGH_KEY = {"sampler.latent": ["key", 0]}


def who(place: str, value, *words: str) -> Bad:
    return _bad("who", place, value, words, WHO, THROUGH_WHO)


def key(place: str, value, *words: str, mode: str = "joint", extra: dict | None = None) -> Bad:
    return _bad("key", place, value, words, KEY | (extra or {}), THROUGH_KEY, mode)


def timing(place: str, value, *words: str) -> Bad:
    return _bad("timing", place, value, words, TIMING, {})


def _bad(name, place, value, words, extra, changes, mode="joint") -> Bad:
    """`value`: a link, a value of a field, or in angle brackets the name of something of the test pack."""
    if isinstance(value, str) and value.startswith("<"):
        extra, shown, value = extra | {"wrong": given(value.strip("<>"))}, value, ["wrong", 0]
    else:
        shown = value
    return Bad(
        f"{name}.{place} is {shown} in {mode}", changes | {f"{name}.{place}": value}, words, mode, extra
    )


CASES = [
    who("mask", "<None>", "mask is nothing (None)", "a MASK"),
    who("mask", "<a number>", "mask is 7", "a MASK"),
    who("mask", "<a text>", "mask is 'hello'", "a MASK"),
    who("mask", "<a dict>", "mask is a dict", "a MASK"),
    who("mask", "<voice>", "mask is a dict of waveform", "a MASK"),
    who("mask", "<picture>", "who speaks is [1, 64, 64, 3]", "[frames, height, width]"),
    who("mask", "<a tensor>", "who speaks is [3]", "[frames, height, width]"),
    who("mask", "<mask of no frames>", "who speaks is [0, 64, 96]", "[frames, height, width]"),
    who("mask", "<mask of zeros>", "0 everywhere", "nobody would speak", "white"),
    who("mask", "<mask up to 2>", "from 2 to 2", "from 0 to 1"),
    who("mask", "<mask below 0>", "from -0.5 to -0.5", "from 0 to 1"),
    who("mask", "<NaN mask>", "from nan to nan", "from 0 to 1"),
    who("mask", "<mask of 3 frames>", "has 3 frames", "1 or the clip's 5"),
    who("mask", ["picture", 0], "mask", "IMAGE", "MASK"),
    who("mask", None, "Required input is missing", "mask"),
    who("how", "add", "how", "not in"),
    who("how", "<a number>", "how is 7", "multiply, replace"),
    who("how", "<None>", "how is nothing (None)", "multiply, replace"),
    who("positive", ["caption", 0], "positive does not come from", "task node"),
    who("negative", ["no caption", 0], "negative does not come from", "task node"),
    who("positive", "<None>", "positive is nothing (None)", "CONDITIONING"),
    who("negative", "<a list>", "negative is a list", "CONDITIONING"),
    who("positive", "<no conditioning>", "positive does not come from", "task node"),
    who("positive", ["task", 1], "not in their places", "swap"),
    who("positive", ["task", 2], "positive", "LATENT", "CONDITIONING"),
    key("latent", "<None>", "latent is nothing (None)", "a LATENT"),
    key("latent", "<LTX latent>", "[1, 128, 2, 4, 6]", "a joint latent", "task node"),
    key("latent", "<video latent>", "latent is [1, 48, 2, 4, 6]", "a joint latent", "task node"),
    key("latent", "<audio latent>", "latent is [1, 80, 31]", "a joint latent", "task node"),
    key("latent", "<latent of three>", "[1, 4, 4]", "a joint latent", "task node"),
    key("latent", "<16 channels>", "[1, 16, 2, 4, 6]", "a joint latent", "task node"),
    key("latent", "<no latent frames>", "[1, 48, 0, 4, 6]", "a joint latent", "task node"),
    key("latent", "<64 mel bands>", "[1, 64, 31]", "a joint latent", "task node"),
    key("latent", "<latent without noise mask>", "no noise mask", "right behind the task node"),
    key("latent", "<picture mask>", "no noise mask", "right behind the task node"),
    key("latent", "<mask of one stream>", "no noise mask", "right behind the task node"),
    key("latent", "<mask of another length>", "no noise mask", "right behind the task node"),
    key("latent", ["empty", 0], "[1, 4, 8, 8]", "task node", extra={"empty": EMPTY_LATENT["wrong"]}),
    key("latent", ["video", 0], "latent", "UNIAVGEN_VIDEO", "LATENT"),
    key("vae", "<None>", "vae is nothing (None)", "Load VAE"),
    key("vae", "<a text>", "vae is 'hello'", "Load VAE"),
    key("vae", "<other model>", "vae is a ModelPatcher", "Load VAE"),
    key("vae", ["pixels", 0], "3 latent channels", "wan2.2_vae", extra={"pixels": PIXEL_VAE["wrong"]}),
    key("image", "<None>", "image is nothing (None)", "an IMAGE"),
    key("image", "<no picture>", "image is [0, 64, 64, 3]", "use an IMAGE"),
    key("image", "<NaN picture>", "pixels that are not numbers", "undamaged"),
    key("image", "<2 channels>", "image is [1, 64, 64, 2]", "use an IMAGE"),
    key("image", "<mask as picture>", "image is [1, 64, 64]", "use an IMAGE"),
    key("image", "<9 frames>", "image is 9 images, expected one", "Image From Batch"),
    key("image", "<8 x 8 picture>", "8x8", "enlarge"),
    key("image", "<very wide picture>", "1024x32", "crop"),
    key("frame", 0, "keyframe 0 is the first frame", "reference image", "later one"),
    key("frame", -5, "keyframe -5 is the first frame", "later one"),
    key("frame", 99, "keyframe 99 is outside", "frames 0 to 4"),
    key("frame", -99, "keyframe -99 is outside", "-1 is the last"),
    key("frame", 5000, "frame", "bigger than max"),
    key("frame", "soon", "frame", "convert"),
    key("frame", "<2.5>", "frame is 2.5", "whole number"),
    key("frame", "<None>", "frame is nothing (None)", "whole number"),
    key("frame", 2, "frames 1 to 4", "known already", mode="dubbing"),
    key("frame", 3, "frames 1 to 4", "known already", mode="continuation"),
    key("latent", ["first", 0], "frames 1 to 4", "known already", extra={"first": keyframe()}),
    timing("latent", "<None>", "latent is nothing (None)", "a LATENT"),
    timing("latent", "<video latent>", "latent is [1, 48, 2, 4, 6]", "a joint latent", "task node"),
    timing("latent", "<audio latent>", "latent is [1, 80, 31]", "a joint latent", "task node"),
    timing("latent", "<no mel frames>", "[1, 80, 0]", "a joint latent", "task node"),
    timing("latent", "<LTX latent>", "[1, 128, 2, 4, 6]", "a joint latent", "task node"),
    timing("audio", "<a number>", "audio is 7", "an AUDIO"),
    timing("audio", "<audio without a rate>", "audio is a dict of waveform", "an AUDIO"),
    timing("audio", "<NaN sound>", "1 of 24000 samples are NaN", "undamaged"),
    timing("audio", "<flat sound>", "audio is [24000]", "use an AUDIO"),
    timing("audio", "<no clip>", "audio is [0, 1, 24000]", "use an AUDIO"),
    timing("audio", "<0 Hz>", "sample rate is 0 Hz", "expected 1000"),
    timing("speech", "<a text>", "speech is 'hello'", "UniAVGen Speech Encode"),
    timing("speech", ["caption", 0], "speech", "CONDITIONING", "UNIAVGEN_SPEECH"),
    timing("images", "<mask as picture>", "images is [1, 64, 64]", "use an IMAGE"),
    timing("images", "<NaN picture>", "images has pixels", "undamaged"),
    timing("mask", "<a text>", "mask is 'hello'", "a MASK"),
    timing("mask", "<a tensor>", "mask is [3]", "use a MASK"),
    timing("width", 0, "width", "smaller than min of 320"),
    timing("width", "<a text>", "width is 'hello'", "whole number"),
]
STRENGTHS = [
    Bad(
        f"{name} into the sampler",
        {"sampler.latent": ["wrong", 0]},
        words,
        extra={"wrong": given(name)},
    )
    for name, words in {
        "half-known mask": ("noise mask of the video holds 0.5", "no strengths between", "Threshold Mask"),
        "mask of half a frame": ("0 in one part of a frame", "cover whole frames"),
    }.items()
]
CASES += STRENGTHS


@pytest.fixture(scope="module", autouse=True)
def still_working(server):
    """After all that, an ordinary clip with the new nodes is made."""
    yield
    graph = clip() | WHO | KEY | TIMING
    assert not server.run(changed(graph, THROUGH_WHO | THROUGH_KEY | {"timing.latent": ["sampler", 0]})).error


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.name) for bad in CASES])
def test_the_answer_names_what_is_wrong_and_what_to_do(server, bad):
    graph = changed(clip(bad.mode), bad.changes, bad.extra)
    if "timing" in graph:
        graph = {name: part for name, part in graph.items() if name not in FOLLOWERS}
    answer = server.run(graph)
    assert answer.error, "it ran"
    missing = [word for word in bad.words if word not in answer.error]
    assert not missing, f"{missing} not in {answer.kind} of {answer.node}: {answer.error}"
    assert answer.kind in ("UserError", "refused"), f"{answer.kind}: {answer.error}"
    assert not any(word in answer.error for word in (*BARE, "uniavgen_core", "comfy.")), answer.error
    assert "sampler" not in answer.executed


def test_a_latent_that_was_sampled_takes_no_keyframe(server):
    changes = {"key.latent": ["sampler", 0], "split.latent": ["key", 0]}
    answer = server.run(changed(clip(), changes, KEY))
    assert "latent was sampled already" in answer.error
    assert "between task node and sampler" in answer.error


def test_the_grid_names_the_one_wrong_field_before_the_model_is_loaded(server):
    graph = changed(
        clip(), {"grid.s_a": "1, twelve", "words.text": "A new text, so that nothing is kept."}, GRID
    )
    graph = {name: part for name, part in graph.items() if name not in FOLLOWERS}
    answer = server.run(graph)
    assert answer.kind == "UserError"
    assert answer.error.startswith("s_a is '1, twelve'")
    assert "s_v" not in answer.error
    assert not {"words", "task"} & answer.executed


def test_a_native_vae_says_what_is_wrong_with_an_audio_latent(host):
    encoding = importlib.import_module(f"{host.__name__}.nodes.encoding")

    class NativeVAE:
        latent_channels = 48

        def throw_exception_if_invalid(self):
            pass

        def memory_used_decode(self, shape, dtype):
            return shape[3] * shape[4]

    vae = encoding.checked_vae(encoding.checked_vae(NativeVAE()))
    assert vae.memory_used_decode(torch.Size((1, 48, 2, 4, 6)), torch.float32) == 24
    with pytest.raises(Exception, match=r"samples is \[1, 80, 31\].*UniAVGen Audio Decode"):
        vae.memory_used_decode(torch.Size((1, 80, 31)), torch.float32)
    assert not isinstance(vae.memory_used_decode.memory, encoding.CheckedMemory)


def test_there_are_more_than_sixty():
    assert len({bad.name for bad in CASES}) > 60
