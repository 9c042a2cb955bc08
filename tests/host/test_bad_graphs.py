"""Whatever a user connects or types wrongly is answered by name, with what to do; the server lives on."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from graphs import advanced_sampler, changed, clip, given, node, shown
from tiny_files import WRONG_MODELS, WRONG_VOCODERS

BARE = ("mat1", "size mismatch", "shape mismatch", "NoneType", "KeyError", "object has no", "index out of")


@dataclass(frozen=True)
class Bad:
    """A clip with some inputs changed; `words` must all stand in the answer."""

    name: str
    changes: dict
    words: tuple[str, ...]
    mode: str = "joint"
    extra: dict = field(default_factory=dict)


def value(place: str, wrong, *words: str, mode: str = "joint") -> Bad:
    """A wrong value in a field."""
    return Bad(f"{place} is {wrong!r}", {place: wrong}, words, mode)


def socket(place: str, name: str, *words: str, mode: str = "joint") -> Bad:
    """Something wrong from the test pack on a socket."""
    return Bad(f"{place} gets {name}", {place: ["wrong", 0]}, words, mode, {"wrong": given(name)})


def link(place: str, source: list, *words: str, mode: str = "joint", extra: dict | None = None) -> Bad:
    """An existing node on the wrong socket."""
    return Bad(f"{place} from {source[0]} {source[1]}", {place: source}, words, mode, extra or {})


LOADED = {"loaded": node("UniAVGenLoadModel", model_name="", weight_dtype="default")}
VOCODER = {"vocoder": node("UniAVGenLoadVocoder", vocoder_name="")}
EMPTY_LATENT = {"wrong": node("EmptyLatentImage", width=64, height=64, batch_size=1)}
PIXEL_VAE = {"wrong": node("VAELoader", vae_name="pixel_space")}
FACE = {
    "face": node(
        "UniAVGenFaceMask",
        model=["parts", 0],
        positive=["task", 0],
        negative=["task", 1],
        latent=["sampler", 0],
        block=-1,
        noise=0.5,
        variation=0,
    ),
    **shown(["face", 0]),
}
GRID = {
    "grid": node(
        "UniAVGenGuidanceGrid",
        model=["parts", 0],
        positive=["task", 0],
        negative=["task", 1],
        latent=["task", 2],
        s_v="1, 3",
        s_a="1, 2",
        seed=0,
        steps=1,
        interval=0.5,
        skip_layer=1,
        shift=5.0,
    ),
    **shown(["grid", 1]),
}
COMPARE = {
    "labels": node("PrimitiveString", value="one"),
    "compare": node("UniAVGenCompare", images=["frames", 0], labels=["labels", 0], columns=2),
    **shown(["compare", 0]),
}
WINDOWS = node(
    "ContextWindowsManual",
    model=["parts", 0],
    context_length=1,
    context_overlap=0,
    context_schedule="standard_static",
    context_stride=1,
    closed_loop=False,
    fuse_method="pyramid",
    dim=2,
    freenoise=False,
    cond_retain_index_list="",
    split_conds_to_windows=False,
    latent_retain_index_list="",
    causal_window_fix=False,
)
NATIVE = {
    "sampler": node(
        "KSampler",
        model=["parts", 0],
        positive=["task", 0],
        negative=["task", 1],
        latent_image=["task", 2],
        seed=0,
        steps=1,
        cfg=2.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
}

FIELDS = [
    value("sampler.steps", 0, "steps", "smaller than min of 1"),
    value("sampler.steps", -5, "steps", "smaller than min of 1"),
    value("sampler.steps", 100000, "steps", "bigger than max"),
    value("sampler.s_v", -1.0, "s_v", "smaller than min of 0"),
    value("sampler.s_a", -0.1, "s_a", "smaller than min of 0"),
    value("sampler.s_v", 11.0, "s_v", "bigger than max of 10"),
    value("sampler.interval", 2.0, "interval", "bigger than max of 1"),
    value("sampler.interval", -0.5, "interval", "smaller than min of 0"),
    value("sampler.skip_layer", 30, "skip_layer", "bigger than max of 29"),
    value("sampler.skip_layer", -2, "skip_layer", "smaller than min of -1"),
    value("sampler.shift", 0.0, "shift", "smaller than min"),
    value("sampler.seed", -1, "seed", "smaller than min of 0"),
    value("sampler.steps", "many", "steps", "convert"),
    value("task.takes", 0, "takes", "smaller than min of 1"),
    value("task.takes", 65, "takes", "bigger than max of 64"),
    value("task.frames", 0, "frames", "smaller than min of 5"),
    value("task.frames", 100000, "frames", "bigger than max"),
    value("video.short_side", 100, "short_side", "multiple of 32", "try 96"),
    value("video.short_side", 0, "short_side", "multiple of 32", "try 32"),
    value("video.short_side", 4096, "short_side", "from 32 to 2048", "try 2048"),
    value("video.fps", 0.0, "fps", "smaller than min of 1"),
    value("mux.fps", 0.0, "fps", "smaller than min of 1"),
    value("words.text", "", "text is empty", "write what the person says"),
    value("words.text", "  \n ", "text is empty", "write what the person says"),
    value("words.text", "\u2603\u2603", "knows no character of the text to say", "write English"),
    value("words.language", "fr", "language", "not in"),
    value("words.transcript", "hello there", "transcript", "no reference voice", "connect reference_voice"),
    value("words.transcript", "", "no transcript", "write what the voice says", mode="reference-voice"),
    value(
        "task.frames", 5, "5 of the video's 5 frames", "clip of 5", "make frames larger", mode="continuation"
    ),
]

SOUNDS = [
    socket("mel.audio", "silence", "the reference voice is silent", "someone speaks", mode="reference-voice"),
    socket("mel.audio", "silence", "the audio is silent", "someone speaks", mode="audio-driven"),
    socket("mel.audio", "NaN sound", "1 of 24000 samples are NaN", "undamaged", mode="audio-driven"),
    socket("mel.audio", "1 sample", "1 samples", "longer clip", mode="audio-driven"),
    socket("mel.audio", "10 ms", "240 samples", "longer clip", mode="reference-voice"),
    socket("mel.audio", "100 ms", "audio lasts 0.100 s", "longer one", mode="audio-driven"),
    socket("mel.audio", "no samples", "no samples", "clip that is not empty", mode="audio-driven"),
    socket("mel.audio", "no channels", "no samples", "clip that is not empty", mode="audio-driven"),
    socket("mel.audio", "no clip", "audio is [0, 1, 24000]", "use an AUDIO", mode="audio-driven"),
    socket("mel.audio", "0 Hz", "sample rate is 0 Hz", "expected 1000", mode="audio-driven"),
    socket("mel.audio", "100 Hz", "sample rate is 100 Hz", "expected 1000", mode="audio-driven"),
    socket("mel.audio", "flat sound", "audio is [24000]", "use an AUDIO", mode="audio-driven"),
    socket("mel.audio", "16 bit integers", "torch.int16", "floating-point", mode="audio-driven"),
    Bad(
        "9 frames of video but 0.1 s of sound",
        {"picture.name": "9 frames", "heard.name": "100 ms", "task.frames": 13},
        ("audio lasts 0.10 s", "video that is kept 0.56 s", "audio of the same clip"),
        "continuation",
    ),
    socket("mux.audio", "no samples", "audio is [1, 1, 0]", "use an AUDIO"),
    socket("mux.audio", "NaN sound", "audio", "NaN"),
    socket("mux.audio", "flat sound", "audio is [24000]", "use an AUDIO"),
    socket("mux.audio", "0 Hz", "sample rate is 0 Hz", "expected 1000"),
]

PICTURES = [
    socket("video.image", "2 channels", "image is [1, 64, 64, 2]", "use an IMAGE"),
    socket("video.image", "NaN picture", "pixels that are not numbers", "undamaged image"),
    socket("video.image", "no picture", "image is [0, 64, 64, 3]", "use an IMAGE"),
    socket("video.image", "mask as picture", "image is [1, 64, 64]", "use an IMAGE"),
    socket("video.image", "8 x 8 picture", "8x8", "enlarge"),
    socket("video.image", "very wide picture", "1024x32", "crop"),
    socket("mux.images", "mask as picture", "images is [1, 64, 64]", "use an IMAGE"),
    socket("mux.images", "NaN picture", "images has pixels", "undamaged"),
    socket("mux.images", "no picture", "images is [0, 64, 64, 3]", "use an IMAGE"),
    socket("picture.name", "picture", "video is one image", "UniAVGen Joint", mode="continuation"),
    socket("picture.name", "picture", "video is one image", "UniAVGen Joint", mode="dubbing"),
    link("video.vae", ["wrong", 0], "vae has 3 latent channels", "wan2.2_vae.safetensors", extra=PIXEL_VAE),
]
PICTURES = [
    Bad(bad.name, {"picture.name": "picture"}, bad.words, bad.mode) if "picture.name" in bad.changes else bad
    for bad in PICTURES
]

LATENTS = [
    link("sampler.latent", ["wrong", 0], "latent is [1, 4, 8, 8]", "UniAVGen task node", extra=EMPTY_LATENT),
    socket("sampler.latent", "LTX latent", "[1, 128, 2, 4, 6]", "UniAVGen task node"),
    socket("sampler.latent", "LTX video latent", "[1, 128, 2, 4, 6]", "UniAVGen task node"),
    socket("sampler.latent", "video latent", "[1, 48, 2, 4, 6]", "UniAVGen task node"),
    socket("sampler.latent", "latent of three", "[1, 4, 4]", "UniAVGen task node"),
    socket("sampler.latent", "latent of another size", "(4, 6)", "(4, 4)", "from one task node"),
    socket("sampler.latent", "2 videos 1 sound", "2 videos but 1 audio clip;", "make as many"),
    socket("sampler.latent", "64 mel bands", "[1, 64, 31]", "UniAVGen task node"),
    socket("sampler.latent", "time-first mel", "[1, 31, 80]", "UniAVGen task node"),
    socket("sampler.latent", "16 channels", "[1, 16, 2, 4, 6]", "UniAVGen task node"),
    socket("sampler.latent", "no mel frames", "[1, 80, 0]", "UniAVGen task node"),
    socket("sampler.latent", "no latent frames", "[1, 48, 0, 4, 6]", "UniAVGen task node"),
    socket("sampler.latent", "NaN latent", "the latent holds values that are not numbers", "task node"),
    socket("sampler.latent", "mask of half a frame", "noise mask of the video", "whole frames"),
    socket("sampler.latent", "half-known mask", "noise mask of the video", "whole frames"),
    socket("sampler.latent", "mask of two dimensions for sound", "noise mask of the audio", "[B, 1, L]"),
    socket("sampler.latent", "flat mask for sound", "noise mask of the audio", "[B, 1, L]"),
    socket("split.latent", "video latent", "latent is [1, 48, 2, 4, 6]", "UniAVGen Sampler"),
    socket("split.latent", "LTX latent", "latent is [1, 128, 2, 4, 6]", "UniAVGen Sampler"),
    link("split.latent", ["wrong", 0], "latent is [1, 4, 8, 8]", "UniAVGen Sampler", extra=EMPTY_LATENT),
    link(
        "sound.audio",
        ["split", 0],
        "audio is [1, 48, 2, 4, 6]",
        "audio output of UniAVGen Split Video and Audio",
    ),
    link(
        "sound.audio",
        ["sampler", 0],
        "audio is a joint latent",
        "audio output of UniAVGen Split Video and Audio",
    ),
    Bad(
        "KSampler gets an LTX latent",
        {"sampler.latent_image": ["wrong", 0]},
        ("[1, 128, 2, 4, 6]", "task node"),
        extra=NATIVE | {"wrong": given("LTX latent")},
    ),
    Bad(
        "KSampler gets an image latent",
        {"sampler.latent_image": ["wrong", 0]},
        ("[1, 48, 1, 4, 4]", "task node"),
        extra=NATIVE | EMPTY_LATENT,
    ),
]

LATENTS += [
    Bad(
        "Sampler Custom Advanced gets an image latent",
        {"sampler.latent_image": ["wrong", 0]},
        ("[1, 48, 1, 4, 4]", "task node"),
        extra=advanced_sampler() | EMPTY_LATENT,
    ),
    Bad(
        "Sampler Custom Advanced gets an LTX latent",
        {"sampler.latent_image": ["wrong", 0]},
        ("[1, 128, 2, 4, 6]", "task node"),
        extra=advanced_sampler() | {"wrong": given("LTX latent")},
    ),
    Bad(
        "the guider gets a plain caption",
        {"guider.positive": ["caption", 0]},
        ("positive does not come from", "task node"),
        extra=advanced_sampler(),
    ),
    Bad(
        "the guider gets another model",
        {"guider.model": ["wrong", 0]},
        ("model is a BaseModel", "UniAVGen Load Model"),
        extra=advanced_sampler() | {"wrong": given("other model")},
    ),
    Bad(
        "no steps in the schedule",
        {"sigmas.steps": 0},
        ("steps", "smaller than min of 1"),
        extra=advanced_sampler(),
    ),
    Bad(
        "negative shift in the schedule",
        {"sigmas.shift": -5.0},
        ("shift", "smaller than min"),
        extra=advanced_sampler(),
    ),
]

WIRES = [
    link("words.speech_encoder", ["parts", 0], "speech_encoder", "MODEL", "UNIAVGEN_SPEECH_ENCODER"),
    link("sound.vocoder", ["parts", 3], "vocoder", "VAE", "UNIAVGEN_VOCODER"),
    link("task.video", ["picture", 0], "video", "IMAGE", "UNIAVGEN_VIDEO"),
    link("task.speech", ["caption", 0], "speech", "CONDITIONING", "UNIAVGEN_SPEECH"),
    link("sampler.latent", ["video", 0], "latent", "UNIAVGEN_VIDEO", "LATENT"),
    link("mux.images", ["split", 0], "images", "LATENT", "IMAGE"),
    link("mux.audio", ["split", 1], "audio", "LATENT", "AUDIO"),
]

TEXTS = [
    link("sampler.positive", ["caption", 0], "positive does not come from", "UniAVGen task node"),
    link("sampler.negative", ["no caption", 0], "negative does not come from", "UniAVGen task node"),
    link("sampler.positive", ["task", 1], "not in their places", "swap"),
    socket("sampler.positive", "no conditioning", "positive does not come from", "UniAVGen task node"),
    socket("task.positive", "no conditioning", "positive is empty", "CLIP Text Encode"),
    socket("task.positive", "SDXL conditioning", "2048 wide", "takes 64", "umT5-xxl", "its own CLIP"),
    socket("task.negative", "narrow conditioning", "negative is encoded 32 wide", "umT5-xxl", "its own CLIP"),
    socket("task.positive", "conditioning of an area", "ConditioningSetArea", "leave it out"),
    Bad(
        "KSampler gets a plain caption",
        {"sampler.positive": ["caption", 0]},
        ("positive does not come from", "task node"),
        extra=NATIVE,
    ),
]

MODELS = [
    socket("sampler.model", "other model", "model is a BaseModel", "UniAVGen Load Model"),
    Bad(
        "a file that is not there",
        {"loaded.model_name": "nothere.safetensors", "sampler.model": ["loaded", 0]},
        ("model_name 'nothere.safetensors'", "download it from huggingface.co/MCG-NJU/UniAVGen"),
        extra=LOADED,
    ),
    Bad(
        "a folder that leads out",
        {"loaded.model_name": "../../secret.safetensors", "sampler.model": ["loaded", 0]},
        ("model_name", "download it from"),
        extra=LOADED,
    ),
    Bad(
        "a vocoder that is not there",
        {"vocoder.vocoder_name": "no.safetensors", "sound.vocoder": ["vocoder", 0]},
        ("vocoder_name 'no.safetensors'", "download it from huggingface.co/MCG-NJU/UniAVGen"),
        extra=VOCODER,
    ),
    Bad(
        "an unknown weight dtype",
        {
            "loaded.model_name": "tiny.safetensors",
            "loaded.weight_dtype": "int3",
            "sampler.model": ["loaded", 0],
        },
        ("weight_dtype", "int3", "not in"),
        extra=LOADED,
    ),
    Bad("no vocoder connected", {"sound.vocoder": None}, ("Required input is missing", "vocoder")),
    Bad("no latent connected", {"sampler.latent": None}, ("Required input is missing", "latent")),
    Bad(
        "no reference voice connected",
        {"task.reference_voice": None},
        ("Required input is missing", "reference_voice"),
        "reference-voice",
    ),
    Bad(
        "face mask of a block that is not there",
        {"face.block": 7},
        ("block is 7", "blocks 0 to 2"),
        extra=FACE,
    ),
    Bad(
        "face mask on other pictures",
        {"face.images": ["wrong", 0]},
        ("images are", "same latent"),
        extra=FACE | {"wrong": given("9 frames")},
    ),
    Bad(
        "face mask of an image latent",
        {"face.latent": ["wrong", 0]},
        ("[1, 4, 8, 8]", "task node"),
        extra=FACE | EMPTY_LATENT,
    ),
    Bad("grid of words", {"grid.s_v": "low, high"}, ("s_v is 'low, high'", "such as 1, 3, 5"), extra=GRID),
    Bad("grid of nothing", {"grid.s_a": " , "}, ("s_a is ' , '", "such as 1, 3, 5"), extra=GRID),
    Bad("grid of negative scales", {"grid.s_a": "1, -2"}, ("s_a is '1, -2'", "from 0 to 10"), extra=GRID),
    Bad("grid of NaN", {"grid.s_a": "1, nan"}, ("s_a is '1, nan'", "from 0 to 10"), extra=GRID),
    Bad(
        "fewer labels than clips",
        {"compare.images": ["decoded", 0]},
        ("2 clips", "1 name;", "each clip a label"),
        extra=COMPARE
        | GRID
        | {
            "grid": {**GRID["grid"], "inputs": GRID["grid"]["inputs"] | {"s_a": "1"}},
            "decoded": node("VAEDecode", samples=["grid", 0], vae=["parts", 3]),
        },
    ),
]

FILES = [
    *(
        Bad(
            f"model {name}",
            {"loaded.model_name": name, "sampler.model": ["loaded", 0]},
            (name.rstrip("/"), *words),
            extra=LOADED,
        )
        for name, words in WRONG_MODELS.items()
    ),
    *(
        Bad(
            f"vocoder {name}",
            {"vocoder.vocoder_name": name, "sound.vocoder": ["vocoder", 0]},
            (name, *words),
            extra=VOCODER,
        )
        for name, words in WRONG_VOCODERS.items()
    ),
]

NUMBERS = [
    socket("sampler.s_v", "1000.0", "s_v is 1000.0", "from 0.0 to 10.0"),
    socket("sampler.s_v", "-5", "s_v is -5", "from 0.0 to 10.0"),
    socket("sampler.s_v", "NaN", "s_v is nan", "from 0.0 to 10.0"),
    socket("sampler.s_a", "infinity", "s_a is inf", "from 0.0 to 10.0"),
    socket("sampler.s_a", "None", "s_a is nothing (None)", "from 0.0 to 10.0"),
    socket("sampler.s_a", "a text", "s_a is 'hello'", "number"),
    socket("sampler.steps", "0", "steps is 0", "from 1 to 1000"),
    socket("sampler.steps", "2.5", "steps is 2.5", "whole number"),
    socket("sampler.steps", "True", "steps is True", "whole number"),
    socket("sampler.steps", "None", "steps is nothing (None)", "whole number"),
    socket("sampler.interval", "-5", "interval is -5", "from 0.0 to 1.0"),
    socket("sampler.skip_layer", "-5", "skip_layer is -5", "from -1 to 29"),
    socket("sampler.skip_layer", "a number", "skip layer 7 does not exist", "layers 0..5"),
    socket("sampler.shift", "0", "shift is 0", "from 0.1 to 100.0"),
    socket("sampler.seed", "-5", "seed is -5", "from 0 to"),
    socket("task.frames", "-5", "frames is -5", "from 5 to 1601"),
    socket("task.frames", "0", "frames is 0", "from 5 to 1601"),
    socket("task.frames", "None", "frames is nothing (None)", "from 5 to 1601"),
    socket("video.fps", "0", "fps is 0", "from 1.0 to"),
    socket("video.fps", "NaN", "fps is nan", "from 1.0 to"),
    socket("video.short_side", "0", "short_side is 0", "from 32 to 2048"),
    socket("mux.fps", "0", "fps is 0", "from 1.0 to"),
    socket("mux.fps", "None", "fps is nothing (None)", "from 1.0 to"),
]

FOREIGN = [
    socket(
        "mel.audio", "None", "audio is nothing (None)", "a video without sound has none", mode="audio-driven"
    ),
    socket("mel.audio", "a number", "audio is 7", "Load Audio", mode="audio-driven"),
    socket("mel.audio", "a tensor", "audio is a tensor [3]", "Load Audio", mode="audio-driven"),
    socket("mel.audio", "audio without a rate", "audio is a dict of waveform", "AUDIO", mode="audio-driven"),
    socket("mel.audio", "silent video", "a video without sound", "recording", mode="audio-driven"),
    socket("mux.audio", "None", "audio is nothing (None)", "a video without sound has none"),
    socket("mux.audio", "a dict", "audio is a dict of a", "AUDIO"),
    socket("mux.images", "None", "images is nothing (None)", "Load Image"),
    socket("mux.images", "a list", "images is a list", "Load Image"),
    socket("video.image", "None", "image is nothing (None)", "Load Image"),
    socket("video.image", "a dict", "image is a dict of a", "IMAGE", "VIDEO"),
    socket("video.image", "3 frames", "image is 3 frames at 16 fps", "one picture", "at least 5 frames"),
    socket("video.vae", "None", "vae is nothing (None)", "Load VAE"),
    socket("video.vae", "a text", "vae is 'hello'", "Load VAE"),
    socket("words.speech_encoder", "None", "speech_encoder is nothing (None)", "UniAVGen Load Model"),
    socket("words.speech_encoder", "other model", "speech_encoder is a ModelPatcher", "UniAVGen Load Model"),
    socket("words.text", "None", "text is nothing (None)", "a text"),
    socket("words.text", "a number", "text is 7", "a text"),
    socket("words.language", "a number", "language is 7", "one of"),
    socket("words.transcript", "a list", "transcript is a list", "a text"),
    socket("task.video", "None", "video is nothing (None)", "UniAVGen Video Encode"),
    socket("task.video", "picture", "video is a tensor [1, 64, 64, 3]", "UniAVGen Video Encode"),
    socket("task.speech", "None", "speech is nothing (None)", "UniAVGen Speech Encode"),
    socket("task.speech", "a text", "speech is 'hello'", "UniAVGen Speech Encode"),
    socket("task.positive", "None", "positive is nothing (None)", "CONDITIONING"),
    socket("task.negative", "a list", "negative is a list", "CONDITIONING"),
    socket("task.mel", "None", "mel is nothing (None)", "UniAVGen Mel Encode", mode="audio-driven"),
    socket("task.mel", "voice", "mel is a dict of waveform", "UniAVGen Mel Encode", mode="audio-driven"),
    socket("task.reference_voice", "a number", "reference_voice is 7", "Mel Encode", mode="reference-voice"),
    socket("sampler.model", "None", "model is nothing (None)", "UniAVGen Load Model"),
    socket("sampler.model", "a text", "model is 'hello'", "UniAVGen Load Model"),
    socket("sampler.positive", "None", "positive is nothing (None)", "CONDITIONING"),
    socket("sampler.latent", "None", "latent is nothing (None)", "LATENT"),
    socket("sampler.latent", "latent without samples", "latent is a dict of noise_mask", "LATENT"),
    socket("split.latent", "None", "latent is nothing (None)", "LATENT"),
    socket("sound.audio", "None", "audio is nothing (None)", "LATENT"),
    socket("sound.vocoder", "None", "vocoder is nothing (None)", "UniAVGen Load Vocoder"),
    socket("sound.vocoder", "other model", "vocoder is a ModelPatcher", "UniAVGen Load Vocoder"),
    Bad(
        "a scheduler with a number as model",
        {"sigmas.model": ["wrong", 0]},
        ("model is 7", "Load Model"),
        extra=advanced_sampler() | {"wrong": given("a number")},
    ),
    Bad(
        "face mask of no latent",
        {"face.latent": ["wrong", 0]},
        ("latent is nothing (None)", "LATENT"),
        extra=FACE | {"wrong": given("None")},
    ),
    Bad(
        "face mask of no model",
        {"face.model": ["wrong", 0]},
        ("model is nothing (None)", "Load Model"),
        extra=FACE | {"wrong": given("None")},
    ),
    Bad(
        "labels that are numbers",
        {"compare.labels": ["wrong", 0]},
        ("labels is 7", "a text"),
        extra=COMPARE | {"wrong": given("a number")},
    ),
]

STAGES = [
    link("frames.samples", ["split", 1], "samples is [1, 80, 31]", "video output of UniAVGen Split"),
    socket("frames.samples", "audio latent", "samples is [1, 80, 31]", "video output of UniAVGen Split"),
    socket("frames.samples", "16 channels", "samples is [1, 16, 2, 4, 6]", "video [B, 48, T, h, w]"),
    link("split.latent", ["task", 2], "nothing was generated", "UniAVGen Sampler", "bypass"),
    Bad(
        "face mask of a latent that was not sampled",
        {"face.latent": ["task", 2]},
        ("nothing was generated", "UniAVGen Sampler"),
        extra=FACE,
    ),
    socket("sampler.latent", "joint latent cut in time", "2 latent frames (5 frames)", "31 mel frames", "56"),
    socket("sampler.latent", "joint latent cut in its audio", "3 latent frames (9 frames)", "56 mel", "31"),
    socket("sampler.latent", "mask of another length", "noise mask of the video is 3 long", "latent 2"),
    socket(
        "sampler.latent", "audio mask of another length", "noise mask of the audio is 56 long", "latent 31"
    ),
    Bad(
        "3 frames into Dubbing",
        {"picture.name": "3 frames"},
        ("3 frames at 16 fps", "longer video"),
        "dubbing",
    ),
    Bad(
        "500 s of speech",
        {"heard.name": "500 s"},
        ("the audio lasts 500.00 s", "the longest clip is 1601 frames", "shorter"),
        "audio-driven",
    ),
    Bad(
        "two sounds for 5 frames",
        {"mux.audio": ["wrong", 0]},
        ("2 clips", "5 frames", "same latent"),
        extra={"wrong": given("two sounds")},
    ),
    Bad(
        "context windows",
        {"sampler.model": ["windows", 0]},
        ("context windows", "Continuation"),
        extra={"windows": WINDOWS},
    ),
    Bad(
        "another kind of noise levels",
        {"sampler.model": ["discrete", 0]},
        ("ModelSamplingSD3", "leave out"),
        extra={"discrete": node("ModelSamplingDiscrete", model=["parts", 0], sampling="eps", zsnr=False)},
    ),
]

PICK = {"pick": node("UniAVGenPickTake", latent=["sampler", 0], take=2)}
SHEET = {
    "sheet": node("UniAVGenTakesSheet", videos=["mux", 0], columns=2, width=64),
    **shown(["sheet", 0]),
}


def one_stream(class_type: str, socket: str = "samples", **inputs) -> Bad:
    """A node of the host that knows only latents of one tensor."""
    extra = {"wrong": node(class_type, **{socket: ["sampler", 0]}, **inputs), **shown(["wrong", 0])}
    if class_type == "SaveLatent":
        del extra["shown wrong"]
    return Bad(f"{class_type} of a joint latent", {}, ("Separate AV Latent", "Concat AV Latent"), extra=extra)


TAKES = [
    Bad("a take that is not there", {"split.latent": ["pick", 0]}, ("take is 2", "holds 1"), extra=PICK),
    Bad("take 0", {"pick.take": 0, "split.latent": ["pick", 0]}, ("take", "smaller than min"), extra=PICK),
    Bad(
        "a take of nothing",
        {"pick.latent": ["wrong", 0], "split.latent": ["pick", 0]},
        ("latent is nothing (None)", "LATENT"),
        extra=PICK | {"wrong": given("None")},
    ),
    Bad(
        "a take that was not sampled",
        {"pick.latent": ["task", 2], "split.latent": ["pick", 0], "pick.take": 1},
        ("nothing was generated", "UniAVGen Sampler"),
        extra=PICK,
    ),
    Bad("a grid of takes", {"task.takes": 2}, ("2 takes, expected one", "Pick Take"), extra=GRID),
    Bad("a face mask of takes", {"task.takes": 2}, ("2 takes, expected one", "Pick Take"), extra=FACE),
    socket("task.takes", "2.5", "takes is 2.5", "whole number"),
    socket("task.takes", "-5", "takes is -5", "from 1 to 64"),
    Bad(
        "a sheet of nothing",
        {"sheet.videos": ["wrong", 0]},
        ("videos is nothing (None)", "VIDEO"),
        extra=SHEET | {"wrong": given("None")},
    ),
    Bad("a sheet of no columns", {"sheet.columns": 0}, ("columns", "smaller than min of 1"), extra=SHEET),
    one_stream("LatentFromBatch", batch_index=0, length=1),
    one_stream("RepeatLatentBatch", amount=2),
    one_stream("LatentBatch", "samples1", samples2=["sampler", 0]),
    one_stream("LatentFlip", flip_method="y-axis: horizontally"),
    one_stream("SaveLatent", filename_prefix="latent"),
]

CASES = [
    *TAKES,
    *NUMBERS,
    *FOREIGN,
    *STAGES,
    *FIELDS,
    *WIRES,
    *SOUNDS,
    *PICTURES,
    *LATENTS,
    *TEXTS,
    *MODELS,
    *FILES,
]


@pytest.fixture(scope="module", autouse=True)
def still_working(server):
    """After all that, an ordinary clip is still made."""
    assert not server.run(clip()).error
    yield
    assert not server.run(changed(clip(), {"sampler.seed": 99})).error


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.name) for bad in CASES])
def test_the_answer_names_what_is_wrong_and_what_to_do(server, bad):
    answer = server.run(changed(clip(bad.mode), bad.changes, bad.extra))
    assert answer.error, "it ran"
    missing = [word for word in bad.words if word not in answer.error]
    assert not missing, f"{missing} not in {answer.kind} of {answer.node}: {answer.error}"
    assert answer.kind in ("UserError", "WrongFile", "WrongLatent", "refused"), (
        f"{answer.kind}: {answer.error}"
    )
    assert not any(word in answer.error for word in BARE), answer.error
    assert "\n" not in answer.error or answer.kind == "refused", answer.error


def test_the_page_shows_no_module_before_the_name_of_the_error(server):
    queued = server.queue(changed(clip(), {"split.latent": ["task", 2]}))
    server.wait(queued["prompt_id"])
    messages = dict(server.get(f"/history/{queued['prompt_id']}")[queued["prompt_id"]]["status"]["messages"])
    assert messages["execution_error"]["exception_type"] == "UserError"


def test_there_are_more_than_two_hundred():
    assert len(CASES) > 200
