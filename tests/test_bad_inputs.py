"""A user's mistake is answered in one line that says what is wrong and what to do; nothing stays behind."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import (
    photograph,
    speech,
    talking_video,
    uniavgen,
    write_wav,
)
from PIL import Image
from random_parts import random_model
from safetensors.torch import load_file, save_file

from uniavgen_core import embedded, pipeline
from uniavgen_core.media import files
from uniavgen_core.media.caption import random_caption_encoder
from uniavgen_core.media.vae import random_vae
from uniavgen_core.verify import GOLDEN

TEXT = "Well, that went better than I thought."


def half(source, target):
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of good and bad files."""
    g = tmp_path_factory.mktemp("given")
    photo, voice = photograph(g / "photo.png"), speech(g / "voice.wav")
    clip = talking_video(g / "clip.mp4", photo, voice, seconds=1.2)
    for suffix in ("png", "wav", "mp4", "safetensors", "json"):
        (g / f"empty.{suffix}").touch()
        (g / f"text.{suffix}").write_text("Dear all, the file is attached.\n" * 40)
    for source in (photo, voice, clip):
        half(source, g / f"cut{source.suffix}")
    (g / "folder.mp4").mkdir()
    (g / "plain").touch()
    Image.new("RGB", (1, 1)).save(g / "dot.png")
    Image.new("RGB", (1000, 20)).save(g / "line.png")
    write_wav(g / "silent.wav", np.zeros(24000))
    write_wav(g / "nan.wav", np.full(24000, np.nan))
    write_wav(g / "inf.wav", np.full(24000, np.inf))
    write_wav(g / "sample.wav", np.full(1, 0.5))
    write_wav(g / "none.wav", np.zeros(0))
    write_wav(g / "blip.wav", np.sin(np.arange(4800)))
    for name, picture_flags in (("mute.mp4", "-an"), ("single.mp4", "-frames:v 1")):
        remux(clip, g / name, picture_flags)

    tensors = random_model().state_dict()
    config = json.dumps(random_model().config.to_dict())
    whole = g / "model.safetensors"
    save_file(tensors, whole, {"uniavgen_config": config})
    half(whole, g / "cut.safetensors")
    for kind, name, shape in (
        ("wan2.2-5b", "patch_embedding.weight", (8, 48, 1, 2, 2)),
        ("wan2.1", "patch_embedding.weight", (8, 16, 1, 2, 2)),
        ("vae", "decoder.conv1.weight", (8, 48, 3, 3, 3)),
        ("lora", "diffusion_model.audio_blocks.0.self_attn.q.lora_A.weight", (4, 8)),
        ("other", "embed.weight", (2, 2)),
    ):
        save_file({name: torch.zeros(shape)}, g / f"{kind}.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "audio_padding"}, g / "hole.safetensors",
              {"uniavgen_config": config})  # fmt: skip
    torch.save({"a": Path}, g / "pickle.safetensors")
    (g / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    (g / "page.safetensors").write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
    (g / "pointer.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (g / "shards").mkdir()
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    index = {"weight_map": {"a": shard, "b": shard.replace("00001-", "00002-")}}
    (g / "shards" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, g / "shards" / shard)
    (g / "nothing").mkdir()
    random_vae().model.save_pretrained(g / "good_vae")
    narrow = random_caption_encoder(dim=32)
    narrow.model.save_pretrained(g / "narrow" / "text_encoder")
    narrow.tokenizer.save_pretrained(g / "narrow" / "tokenizer")

    golden = load_file(GOLDEN / "released_tiny.safetensors")
    half(GOLDEN / "released_tiny.safetensors", g / "golden_cut.safetensors")
    shutil.copy(GOLDEN / "released_tiny.safetensors", g / "golden_alone.safetensors")
    shutil.copy(GOLDEN / "released_tiny.safetensors", g / "golden_json.safetensors")
    (g / "golden_json.json").write_text("{" * 9)
    save_file({k: v for k, v in golden.items() if k != "in.video"}, g / "golden_hole.safetensors")
    shutil.copy(GOLDEN / "released_tiny.json", g / "golden_hole.json")
    (g / "golden_text.json").write_text('[{"ids": [1], "lang": "en"}]')
    (g / "caption.json").write_text('{"caption": "a person talks"}')
    return g


def remux(source, target, options):
    """A copy without sound (-an) or with one frame only."""
    video = files.read_video(source)
    import av

    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *video.frames.shape[1:3], "yuv420p"
        for picture in video.frames[: 1 if "1" in options else None]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")))
        container.mux(stream.encode(None))


# What is given, which words name the problem, which words say what to do. `{g}` is the folder of given files,
# `{o}` the empty output folder. Without --mode, --text, --image and --out good ones are added.

JOINT = "generate --image {g}/photo.png"
DUB = "generate --mode dubbing --video"
EDIT = "generate --mode edit --video {g}/clip.mp4"
CONTINUE = "generate --mode continuation --video"
DRIVE = "generate --mode audio-driven --image {g}/photo.png --audio"
VOICE = "generate --mode reference-voice --image {g}/photo.png --voice-text Hello --voice"
PHOTO = "generate --image"
MODEL = "generate --image {g}/photo.png --vae {g}/vae.safetensors --text-encoder {g}/nothing --model"

CASES = {
    # what is said
    "no text": ([*JOINT.split(), "--text", ""], "text to say is empty", "write"),
    "blank text": ([*JOINT.split(), "--text", " \t "], "text to say is empty", "write"),
    "unknown symbols": (
        [*JOINT.split(), "--text", "\u0c95\u0ca8 \u0ca8\u0ca1"],
        "knows no character",
        "write",
    ),
    "language": (JOINT + " --language fr", "language is 'fr'", 'expected "en" or "zh"'),
    "blank transcript": (
        [*VOICE.replace("Hello", "BLANK").replace("BLANK", "\u00a0").split(" "), "{g}/voice.wav"],
        "transcript of the reference voice is empty",
        "write",
    ),
    # pictures
    "missing picture": (PHOTO + " {g}/nobody.png", "nobody.png: no such file", "check the name"),
    "empty picture": (PHOTO + " {g}/empty.png", r"empty.png: the file is empty", "again"),
    "cut picture": (PHOTO + " {g}/cut.png", "cut.png: no image or a damaged one", "save it as PNG"),
    "text as picture": (PHOTO + " {g}/text.png", "text.png: no image", "save it as PNG"),
    "sound as picture": (PHOTO + " {g}/voice.wav", "voice.wav: no image", "save it as PNG"),
    "folder as picture": (PHOTO + " {g}/folder.mp4", "is a folder", "choose a file"),
    "tiny picture": (PHOTO + " {g}/dot.png", "1x1 pixels", "choose a larger one"),
    "narrow picture": (PHOTO + " {g}/line.png", "1000x20 pixels", "cut it"),
    # sound
    "missing sound": (DRIVE + " {g}/nobody.wav", "nobody.wav: no such file", "check the name"),
    "empty sound": (DRIVE + " {g}/empty.wav", "the file is empty", "again"),
    "cut sound": (DRIVE + " {g}/cut.wav", "cut.wav: cut short", "again"),
    "text as sound": (DRIVE + " {g}/text.wav", "text.wav: (cannot be read|this is a text)", "expected|copy"),
    "picture as sound": (DRIVE + " {g}/photo.png", "this is a text or an image", "expected audio"),
    "folder as sound": (DRIVE + " {g}", "is a folder", "choose a file"),
    "video without sound": (DRIVE + " {g}/mute.mp4", "no audio in this file", "choose"),
    "silence": (DRIVE + " {g}/silent.wav", "the audio is silent", "use a clip in which someone speaks"),
    "NaN": (DRIVE + " {g}/nan.wav", "not numbers", "export it again"),
    "infinity": (DRIVE + " {g}/inf.wav", "not numbers", "export it again"),
    "one sample": (DRIVE + " {g}/sample.wav", "lasts 0.000 s", "give a longer one"),
    "no sample": (DRIVE + " {g}/none.wav", "no samples|cannot be read", "choose|again"),
    "short sound": (DRIVE + " {g}/blip.wav", "lasts 0.200 s", "give a longer one"),
    "silent voice": (
        VOICE + " {g}/silent.wav",
        "reference voice is silent",
        "use a clip in which someone speaks",
    ),
    "short voice": (VOICE + " {g}/blip.wav", "voice lasts 0.200 s", "give a clip of 3 to 10 s"),
    "one sample of a voice": (VOICE + " {g}/sample.wav", "voice lasts 0.000 s", "give a clip of 3 to 10 s"),
    # video
    "missing video": (DUB + " {g}/nobody.mp4", "nobody.mp4: no such file", "check the name"),
    "empty video": (DUB + " {g}/empty.mp4", "the file is empty", "again"),
    "cut video": (DUB + " {g}/cut.mp4", "cut.mp4: .*cut short", "again"),
    "text as video": (DUB + " {g}/text.mp4", "text.mp4: (cannot be read|this is a text)", "expected|copy"),
    "picture as video": (DUB + " {g}/photo.png", "this is a text or an image", "expected a video"),
    "sound as video": (DUB + " {g}/voice.wav", "no video in this file", "choose a video"),
    "folder as video": (DUB + " {g}/folder.mp4", "is a folder", "choose a file"),
    "one frame": (DUB + " {g}/single.mp4", "the video lasts 0.06", "give a longer one"),
    "mute video to continue": (
        CONTINUE + " {g}/mute.mp4",
        "has no audio",
        "choose a video with audio",
    ),
    # lengths and sizes
    "frames 80": (JOINT + " --frames 80", "80 video frames", "use 4n . 1, such as 77"),
    "frames 0": (JOINT + " --frames 0", "--frames is 0", "at least 5"),
    "frames -3": (JOINT + " --frames -3", "--frames is -3", "at least 5"),
    "frames 4": (JOINT + " --frames 4", "--frames is 4", "at least 5"),
    "frames 1": (JOINT + " --frames 1", "--frames is 1", "at least 5"),
    "frames many": (
        JOINT + " --frames many",
        "--frames: 'many' is no whole number and not auto",
        "see uniavgen generate --help",
    ),
    "longer prefix than clip": (
        CONTINUE + " {g}/clip.mp4 --frames 9 --prefix-frames 13",
        "13 of the video's .* frames",
        "keep fewer .--prefix-frames.",
    ),
    "longer prefix than video": (
        CONTINUE + " {g}/clip.mp4 --frames 81 --prefix-frames 41",
        "41 of the video's .* frames",
        "keep fewer .--prefix-frames.",
    ),
    "prefix 8": (CONTINUE + " {g}/clip.mp4 --prefix-frames 8", "8 video frames", "use 4n . 1, such as 5"),
    "prefix 0": (CONTINUE + " {g}/clip.mp4 --prefix-frames 0", "0 video frames", "use 4n . 1"),
    "short side 100": (JOINT + " --short-side 100", "100 pixels", "try 96"),
    "short side 0": (JOINT + " --short-side 0", "0 pixels", "try 32"),
    "short side -64": (JOINT + " --short-side -64", "-64 pixels", "try 32"),
    "short side of a country": (JOINT + " --short-side 6400000", "out of memory", "smaller --short-side"),
    # modes
    "unknown mode": (
        "generate --mode sing --image {g}/photo.png",
        "mode 'sing' is unknown",
        "choose one of joint",
    ),
    "joint without picture": ("generate --mode joint", "mode joint needs", "--image"),
    "voice without clip": (
        "generate --mode reference-voice --image {g}/photo.png",
        "mode reference-voice needs",
        "--voice",
    ),
    "voice without transcript": (
        "generate --mode reference-voice --image {g}/photo.png --voice {g}/voice.wav",
        "needs",
        "--voice-text",
    ),
    "transcript without voice": (
        DUB + " {g}/clip.mp4 --voice-text Hello",
        "--voice and --voice-text belong together",
        "give the clip",
    ),
    "dubbing voice without transcript": (
        DUB + " {g}/clip.mp4 --voice {g}/voice.wav",
        "--voice and --voice-text belong together",
        "give the clip",
    ),
    "dubbing without video": ("generate --mode dubbing", "mode dubbing needs", "--video"),
    "continuation without video": ("generate --mode continuation", "mode continuation needs", "--video"),
    "audio-driven without sound": (
        "generate --mode audio-driven --image {g}/photo.png",
        "mode audio-driven needs",
        "--audio",
    ),
    "joint with sound": (JOINT + " --audio {g}/voice.wav", "no use for --audio", "choose another mode"),
    "joint with a voice": (
        JOINT + " --voice {g}/voice.wav --voice-text Hello",
        "no use for --voice",
        "choose another mode",
    ),
    "continuation with a picture": (
        CONTINUE + " {g}/clip.mp4 --image {g}/photo.png",
        "no use for --image",
        "leave it out",
    ),
    "audio-driven with a video": (
        DRIVE + " {g}/voice.wav --video {g}/clip.mp4",
        "no use for --video",
        "leave it out",
    ),
    "edit without a range": (EDIT + " --edit-start 1", "mode edit needs", "--edit-end"),
    "edit without video": (
        "generate --mode edit --edit-start 0.1 --edit-end 1",
        "mode edit needs",
        "--video",
    ),
    "edit of a mute video": (
        "generate --mode edit --edit-start 0.1 --edit-end 1 --video {g}/mute.mp4",
        "has no audio",
        "choose a video with audio",
    ),
    "edit backwards": (EDIT + " --edit-start 1 --edit-end 0.5", "range 1 to 0.5 s", "start below its end"),
    "edit behind the end": (EDIT + " --edit-start 9 --edit-end 10", "does not lie within", "give a start"),
    "edit of nan": (EDIT + " --edit-start nan --edit-end 1", "range nan to 1 s", "give a start"),
    "edit of lips": (
        EDIT + " --edit-start 0 --edit-end 1 --edit lips",
        "invalid choice: 'lips'",
        "choose from",
    ),
    "edit of a part": (
        EDIT + " --edit-start 0 --edit-end 1 --frames 9",
        "keeps the whole video",
        "leave --frames out",
    ),
    "range without edit": (JOINT + " --edit-start 1", "no use for --edit-start", "leave it out"),
    # sliders
    "steps 0": (JOINT + " --steps 0", "0 steps", "use at least 1"),
    "steps -1": (JOINT + " --steps -1", "-1 steps", "use at least 1"),
    "shift 0": (JOINT + " --shift 0", "shift is 0.0", "must be positive"),
    "shift -1": (JOINT + " --shift -1", "shift is -1.0", "must be positive"),
    "shift nan": (JOINT + " --shift nan", "shift is nan", "must be positive"),
    "shift inf": (JOINT + " --shift inf", "shift is inf", "use a finite one"),
    "s_v -1": (JOINT + " --s-v -1", "s_v is -1.0", "use 0 to 100"),
    "s_v nan": (JOINT + " --s-v nan", "s_v is nan", "use 0 to 100"),
    "s_a inf": (JOINT + " --s-a inf", "s_a is inf", "use 0 to 100"),
    "interval 2": (JOINT + " --interval 2", "interval is 2.0", "use 0 .* to 1"),
    "skip layer 99": (JOINT + " --skip-layer 99", "skip layer 99 does not exist", "has layers 0"),
    "guidance": (JOINT + " --guidance strong", "invalid choice: 'strong'", "choose from"),
    "seed -2": (JOINT + " --seed -2", "seed is -2", "use a whole number from 0"),
    "seed 2^63": (JOINT + f" --seed {2**63}", f"seed is {2**63}", "use a whole number from 0"),
    "device": (JOINT + " --device warp", "device 'warp' cannot be used", "try cpu"),
    "no data device": (JOINT + " --device meta", "device 'meta' cannot be used", "try cpu"),
    "unknown flag": (JOINT + " --smile", "unrecognized arguments: --smile", "see uniavgen --help"),
    "no command": ("", "required: command", "see uniavgen --help"),
    # where it goes
    "output extension": (JOINT + " --out {o}/clip.avi", "ends in '.avi'", "expected .mp4"),
    "output without extension": (JOINT + " --out {o}/clip", "ends in ''", "expected .mp4"),
    "output folder missing": (JOINT + " --out {o}/a/clip.mp4", "no such folder", "create it"),
    "output is a folder": (JOINT + " --out {g}/folder.mp4", "is a folder", "expected the name of the video"),
    "output below a file": (JOINT + " --out {g}/plain/clip.mp4", "no such folder", "choose another"),
    "output name too long": (
        JOINT + " --out {o}/" + "x" * 300 + ".mp4",
        "File name too long",
        "choose|check",
    ),
    "picture name too long": (PHOTO + " {g}/" + "x" * 300 + ".png", "File name too long|no such", "check"),
    # weights
    "only a model": (JOINT + " --model {g}/model.safetensors", "not --vae, --text-encoder", "give all three"),
    "only a vocoder": (
        JOINT + " --vocoder {g}/nothing",
        "not --model, --vae, --text-encoder",
        "give all three",
    ),
    "missing model": (MODEL + " {g}/nobody.safetensors", "is not there", "check the path"),
    "plain Wan2.2-5B": (
        MODEL + " {g}/wan2.2-5b.safetensors",
        "is plain Wan2.2-5B",
        "download MCG-NJU/UniAVGen",
    ),
    "Wan2.1": (MODEL + " {g}/wan2.1.safetensors", "is Wan2.1", "download MCG-NJU/UniAVGen"),
    "VAE as model": (MODEL + " {g}/vae.safetensors", "is the Wan2.2 VAE", "where the VAE is asked for"),
    "LoRA as model": (MODEL + " {g}/lora.safetensors", "is a LoRA", "choose the model"),
    "another model": (MODEL + " {g}/other.safetensors", "is another model", "choose another file"),
    "cut model": (MODEL + " {g}/cut.safetensors", "cut safetensors file", "download it again"),
    "empty model": (MODEL + " {g}/empty.safetensors", "is an empty file", "download it again"),
    "text as model": (MODEL + " {g}/text.safetensors", "is a text file", "choose the .safetensors file"),
    "pickle": (MODEL + " {g}/pickle.safetensors", "is a PyTorch pickle", "get it as .safetensors"),
    "GGUF": (MODEL + " {g}/model.gguf", "is a GGUF file", "get the .safetensors file"),
    "web page": (MODEL + " {g}/page.safetensors", "is a web page", "use the site's download link"),
    "git-lfs pointer": (MODEL + " {g}/pointer.safetensors", "git-lfs pointer", "git lfs pull"),
    "missing shard": (MODEL + " {g}/shards", "1 of 2 shards missing", "download them"),
    "folder without model": (MODEL + " {g}/nothing", "a folder without safetensors", "download the model"),
    "missing VAE": (
        JOINT + " --model {g}/model.safetensors --vae {g}/no --text-encoder {g}/nothing",
        "no is not there; expected the Wan2.2 VAE",
        "check the path",
    ),
    # the other commands
    "inspect a picture": ("inspect {g}/photo.png", "photo.png is no safetensors file", "choose another file"),
    "inspect nothing": ("inspect {g}/nobody.safetensors", "is not there", "check the path"),
    "inspect a part of a VAE": ("inspect {g}/vae.safetensors", "lacks 3 tensors", "download it again"),
    "inspect a hole": ("inspect {g}/hole.safetensors", "1 missing .audio_padding", "get the whole"),
    "convert a pickle": ("convert {g}/pickle.safetensors {o}/m.safetensors", "PyTorch pickle", "get it as"),
    "convert missing shards": ("convert {g}/shards {o}/m.safetensors", "shards missing", "download them"),
    "convert into nowhere": (
        "convert {g}/model.safetensors {o}/a/m.safetensors",
        "is no folder",
        "create it",
    ),
    "convert to a picture": (
        "convert {g}/model.safetensors {o}/m.png",
        "not a file name ending in",
        "choose",
    ),
    "convert onto itself": (
        "convert {g}/model.safetensors {g}/model.safetensors",
        "is the file being converted",
        "choose another name",
    ),
    "convert to int4": (
        "convert {g}/model.safetensors {o}/m.safetensors --dtype int4",
        "'int4'",
        "choose from",
    ),
    "verify nothing": ("verify {g}/nobody.json", "is not a file", "give golden files"),
    "verify a text": ("verify {g}/text.json", "is not valid JSON", "copy it again"),
    "verify an empty file": (
        "verify {g}/empty.safetensors",
        "cannot be read as safetensors",
        "copy it again",
    ),
    "verify a cut file": (
        "verify {g}/golden_cut.safetensors",
        "cannot be read as safetensors",
        "copy it again",
    ),
    "verify without json": (
        "verify {g}/golden_alone.safetensors",
        "golden_alone.json is missing",
        "describes",
    ),
    "verify a damaged json": ("verify {g}/golden_json.safetensors", "golden_json", "copy"),
    "verify a hole": ("verify {g}/golden_hole.safetensors", "golden_hole.*video'", "copy"),
    "verify damaged texts": ("verify {g}/golden_text.json", "golden_text.json .*text", "copy"),
    "verify a model": ("verify {g}/model.safetensors", "holds no golden values", "expected"),
    "verify a caption": ("verify {g}/caption.json", "holds no golden values", "expected"),
    "bench of odd sizes": ("bench --flops --width 1000", "1000x736 pixels", "must be multiples of 32"),
    "bench of nothing": ("bench --width 0", "0x128 pixels", "must be multiples of 32"),
    "bench of 80 frames": ("bench --flops --frames 80", "80 video frames", "such as 77"),
    "bench of 2 steps": ("bench --flops --steps 2", "2 steps are too few", "use at least 8"),
    "bench of a part": ("bench --model {g}/model.safetensors", "not --vae", "give all three"),
}


def fill(argument, given, out):
    return argument.replace("{g}", str(given)).replace("{o}", str(out))


def command(arguments, given, out):
    arguments = arguments.split() if isinstance(arguments, str) else arguments
    arguments = [fill(argument, given, out) for argument in arguments]
    if arguments[:1] == ["generate"]:
        defaults = {"--text": TEXT, "--out": str(out / "clip.mp4")}
        for flag, value in defaults.items():
            arguments += [] if flag in arguments else [flag, value]
    return arguments


def only_line(code, printed, notes, problem, advice):
    assert code == 2, printed + notes
    assert "Traceback" not in printed + notes
    (line,) = (line for line in notes.splitlines() if "passed over" not in line)
    assert line.startswith("uniavgen")
    assert re.search(problem, line), line
    assert re.search(advice, line), line


def forbidden(*args, **kwargs):
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_answered_in_one_line_before_any_model_runs(tmp_path, capfd, monkeypatch, given, case):
    for part in ("model", "vae", "caption_encoder", "vocoder"):
        monkeypatch.setattr(pipeline.Weights, f"load_{part}", forbidden)
    arguments, problem, advice = CASES[case]
    before = sorted(given.rglob("*"))
    only_line(*uniavgen(capfd, *command(arguments, given, tmp_path)), problem, advice)
    assert list(tmp_path.iterdir()) == []
    assert sorted(given.rglob("*")) == before


PARTS = "generate --image {g}/photo.png --frames 5 --short-side 32 --device cpu --model {g}/model.safetensors"
LATE = {
    "a narrow text encoder": (
        " --vae {g}/good_vae --text-encoder {g}/narrow",
        "gives 32 channels, the model takes 64",
        "choose the umT5",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_a_wrong_part_is_named_before_any_step(tmp_path, capfd, monkeypatch, given, case):
    monkeypatch.setattr(pipeline, "sample", forbidden)
    arguments, problem, advice = LATE[case]
    only_line(*uniavgen(capfd, *command(PARTS + arguments, given, tmp_path)), problem, advice)
    assert list(tmp_path.iterdir()) == []


SMALL = "generate --image {g}/photo.png --frames 5 --short-side 32 --steps 1"


def test_a_model_that_yields_nan_is_told(tmp_path, capfd, monkeypatch, given):
    def broken(*place):
        model = whole(*place)
        model.head.head.bias.fill_(float("nan"))
        return model

    whole = embedded.load_model
    monkeypatch.setattr(embedded, "load_model", broken)
    only_line(*uniavgen(capfd, *command(SMALL, given, tmp_path)), "output is not finite", "use bf16 or fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_too_long_for_the_memory_is_told(tmp_path, capfd, given):
    arguments = SMALL.replace("--frames 5", f"--frames {4 * 10**14 + 1}")
    only_line(*uniavgen(capfd, *command(arguments, given, tmp_path)), "out of memory", "use fewer --frames")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_clip_as_it_was(tmp_path, capfd, monkeypatch, given):
    def full(path, *args):
        Path(path).write_bytes(b"half a clip")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_encode", full)
    (tmp_path / "clip.mp4").write_bytes(b"the old clip")
    only_line(
        *uniavgen(capfd, *command(SMALL, given, tmp_path)), "no space left", "free some or choose another"
    )
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the old clip"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of a file the POSIX way")
def test_a_clip_larger_than_files_may_be_leaves_nothing(tmp_path, given):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    arguments = command(SMALL, given, tmp_path)
    found = subprocess.run(
        [sys.executable, "-B", "-m", "uniavgen_core", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        preexec_fn=limit,
    )
    only_line(found.returncode, found.stdout, found.stderr, "cannot be written|no space", "choose another")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_told(tmp_path, capfd, given):
    arguments = command(SMALL + " --out /proc/clip.mp4", given, tmp_path)
    only_line(*uniavgen(capfd, *arguments), "/proc/clip.mp4: cannot be written", "choose another output")
