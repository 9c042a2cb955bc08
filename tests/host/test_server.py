"""On a running ComfyUI: the pack loads, a clip is made and saved, and only what changed runs again."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path

import av
import pytest
import torch
from graphs import ENCODERS, FOLLOWERS, advanced_sampler, changed, clip, given, node, sampler, shown
from host_server import PACK_NAME, HostServer
from PIL import Image
from tiny_files import BF16, FP32, SHARDS, VOCODER

from uniavgen_core import embedded, pipeline
from uniavgen_core.media.vae import read_vae
from uniavgen_core.sampling.guidance import Guidance

MODES = ("joint", "reference-voice", "continuation", "dubbing", "audio-driven", "edit")
PUPPET = Path(__file__).parents[2] / "assets" / "puppet.png"
OBJECT_INFO = Path(__file__).parents[1] / "object_info.json"
AAC_FRAME = 1024
MEMORY_GROWTH = 10e6


def nodes_of_the_pack(server: HostServer) -> dict:
    """`/object_info` of our nodes without what depends on the folder's name and the user's files."""
    found = {}
    for name, info in server.get("/object_info").items():
        if info["python_module"] != f"custom_nodes.{PACK_NAME}":
            continue
        info = json.loads(json.dumps(info)) | {"python_module": ""}
        for inputs in info["input"].values():
            for key, (_, *options) in inputs.items():
                if key.endswith("_name"):
                    options[0]["options"] = []
        found[name] = info
    return found


def lengths(file: Path) -> tuple[float, float, int]:
    """Seconds of picture and of sound in a video file, and the sound's rate."""
    with av.open(str(file)) as opened:
        rate = opened.streams.audio[0].rate
        frames = sum(1 for _ in opened.decode(video=0))
        seconds = frames / float(opened.streams.video[0].average_rate)
    with av.open(str(file)) as opened:
        stream = opened.streams.audio[0]
        return seconds, float(stream.duration * stream.time_base), rate


def saved_file(server: HostServer, outputs: dict) -> Path:
    entry = outputs["saved"]["images"][0]
    return server.base / "output" / entry["subfolder"] / entry["filename"]


def pixels(server, graph: dict, name: str) -> list[bytes]:
    """The frames of a clip before they are compressed."""
    answer = server.run(graph | {"kept": node("SaveImage", images=["frames", 0], filename_prefix=name)})
    assert not answer.error
    files = [server.base / "output" / entry["filename"] for entry in answer.outputs["kept"]["images"]]
    return [Image.open(file).tobytes() for file in files]


def test_the_pack_is_imported_whole(server):
    assert "IMPORT FAILED" not in server.log
    assert len(re.findall(r"[\d.]+ seconds.*custom_nodes/" + PACK_NAME, server.log)) == 1


def test_object_info_is_the_golden_one(server):
    """`REWRITE_OBJECT_INFO=1 pytest tests/host -k object_info` writes the golden file anew."""
    found = nodes_of_the_pack(server)
    if os.environ.get("REWRITE_OBJECT_INFO"):
        OBJECT_INFO.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        pytest.skip(f"{OBJECT_INFO.name} is written; look at what changed in it")
    assert found == json.loads(OBJECT_INFO.read_text(encoding="utf-8"))


def test_the_model_combo_shows_a_folder_of_shards_once(server):
    info = server.get("/object_info/UniAVGenLoadModel")["UniAVGenLoadModel"]
    names = info["input"]["required"]["model_name"][1]["options"]
    assert names.count(f"{SHARDS}/") == 1
    assert not [name for name in names if name.startswith(f"{SHARDS}/") and name != f"{SHARDS}/"]


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_of_each_mode_is_saved_with_sound_as_long_as_its_picture(server, mode):
    answer = server.run(clip(mode))
    assert not answer.error
    picture, sound, rate = lengths(saved_file(server, answer.outputs))
    assert picture > 0.3
    assert abs(picture - sound) <= AAC_FRAME / rate


def test_guider_and_schedule_under_the_hosts_sampler_make_the_clip_of_the_sampler_node(server):
    assert pixels(server, clip(), "one") == pixels(server, clip() | advanced_sampler(), "four")


class HostVAE:
    """The embedded VAE as the core calls it, computed by the host: that of the core needs diffusers, and that
    both are the same `test_loading.py` tests."""

    def __init__(self, host):
        nodes = importlib.import_module(f"{host.__name__}.nodes.embedded")
        self.vae = nodes.HostVAE(*read_vae(embedded.folder() / "vae"))
        self.format = importlib.import_module("comfy.latent_formats").Wan22()

    def to(self, device):
        return self

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return self.format.process_in(self.vae.encode((frames[0].permute(1, 2, 3, 0) + 1) / 2))

    def decode(self, latent: torch.Tensor, on_frame=None) -> torch.Tensor:
        images = self.vae.decode(self.format.process_out(latent))
        return images.permute(0, 4, 1, 2, 3) * 2 - 1


def test_the_embedded_model_makes_here_the_clip_of_the_command_without_comfyui(
    server, host, tmp_path, monkeypatch
):
    text, caption = "Hello, show me the moon.", "an old man nods while speaking, looking sad, by the sea"
    changes = {"words.text": text, "caption.text": caption, "video.image": ["parts", 5]}
    here = pixels(server, changed(clip(), changes), "puppet")
    request = pipeline.Request(
        "joint",
        str(tmp_path / "clip.mp4"),
        text,
        caption,
        image=str(PUPPET),
        guidance=Guidance(3.0, 2.0, 0.5, (1,)),
        steps=2,
        shift=5.0,
        frames=5,
        short_side=64,
    )
    vae = HostVAE(host)
    monkeypatch.setattr(pipeline.Weights, "load_vae", lambda weights: vae)
    latent = pipeline.generate(request, pipeline.Weights()).sample.video
    there = ((vae.decode(latent)[0].permute(1, 2, 3, 0) + 1) * 127.5).byte()
    assert len(here) == len(there)
    for found, wanted in zip(here, there):
        found = torch.frombuffer(bytearray(found), dtype=torch.uint8).view(64, 64, 3)
        assert (found.int() - wanted.int()).abs().max() <= 2


@pytest.mark.parametrize("slider", ["s_v", "s_a"])
def test_turning_a_slider_repeats_the_sampler_and_what_follows_and_no_encoder(server, slider):
    server.run(clip())
    answer = server.run(changed(clip(), {f"sampler.{slider}": 1.5}))
    assert not answer.error
    assert answer.cached == ENCODERS


def test_the_same_prompt_again_runs_nothing(server):
    server.run(clip())
    answer = server.run(clip())
    assert answer.cached >= ENCODERS | (FOLLOWERS - {"saved"})


# a changed input, its value (or what the test pack gives) -> what the node says
SAID = [
    ("task.frames", 11, "11 frames -> 9 frames"),
    ("video.image", "odd picture", "67x65 -> 96x64"),
    ("video.image", "9 frames", "of 9 frames the first is the reference"),
    ("words.text", "Hi \u2603", "cannot say \u2603"),
    ("words.text", "Hello, purple moon.", "never learnt to say purple;"),
    ("mux.audio", "10 ms", "audio filled with silence by 0.30 s"),
    ("mux.audio", "voice", "audio cut by 0.69 s"),
]


@pytest.mark.parametrize(("place", "value", "words"), SAID)
def test_what_is_made_to_fit_is_said(server, place, value, words):
    from_pack = place in ("video.image", "mux.audio")
    changes = {place: ["given", 0] if from_pack else value}
    before = len(server.log)
    answer = server.run(changed(clip(), changes, {"given": given(value)} if from_pack else {}))
    assert not answer.error
    assert words in server.log[before:]


@pytest.mark.parametrize(
    ("place", "name", "mode"),
    [
        ("sampler.latent", "latent without noise mask", "joint"),
        ("sampler.latent", "mask of one stream", "joint"),
        ("sampler.latent", "picture mask", "joint"),
        ("mel.audio", "voice 44.1 kHz stereo", "audio-driven"),
        ("mel.audio", "voice 44.1 kHz stereo", "reference-voice"),
        ("mux.audio", "voice 44.1 kHz stereo", "joint"),
    ],
)
def test_unusual_but_right_inputs_just_work(server, place, name, mode):
    answer = server.run(changed(clip(mode), {place: ["given", 0]}, {"given": given(name)}))
    assert not answer.error
    assert saved_file(server, answer.outputs).stat().st_size > 0


# a native node between ours: the changed inputs and the node
BETWEEN = {
    "VAE Decode (Tiled)": (
        {"mux.images": ["native", 0]},
        node(
            "VAEDecodeTiled",
            samples=["split", 0],
            vae=["parts", 3],
            tile_size=64,
            overlap=32,
            temporal_size=8,
            temporal_overlap=4,
        ),
    ),
    "Separate AV Latent": (
        {"frames.samples": ["native", 0], "sound.audio": ["native", 1]},
        node("LTXVSeparateAVLatent", av_latent=["sampler", 0]),
    ),
    "Concat AV Latent": (
        {"second.latent": ["native", 0], "frames.samples": ["again", 0]},
        node("LTXVConcatAVLatent", video_latent=["split", 0], audio_latent=["split", 1]),
    ),
    "Set Latent Noise Mask": (
        {"sampler.latent": ["native", 0]},
        node("SetLatentNoiseMask", samples=["task", 2], mask=["all known", 0]),
    ),
    "Conditioning (Set Timestep Range)": (
        {"sampler.positive": ["native", 0]},
        node("ConditioningSetTimestepRange", conditioning=["task", 0], start=0.0, end=0.5),
    ),
    "Conditioning (Combine)": (
        {"sampler.positive": ["native", 0]},
        node("ConditioningCombine", conditioning_1=["task", 0], conditioning_2=["task", 0]),
    ),
    "Conditioning Zero Out": (
        {"sampler.negative": ["native", 0]},
        node("ConditioningZeroOut", conditioning=["task", 1]),
    ),
}


@pytest.mark.parametrize("title", BETWEEN)
def test_native_nodes_work_between_ours(server, title):
    changes, native = BETWEEN[title]
    extra = {
        "native": native,
        "second": sampler()["sampler"],
        "again": node("UniAVGenSplit", latent=["second", 0]),
        "all known": node("SolidMask", value=0.0, width=64, height=64),
    }
    answer = server.run(changed(clip(), changes, extra))
    assert not answer.error
    assert saved_file(server, answer.outputs).stat().st_size > 0


@pytest.mark.parametrize(
    ("model", "weight_dtype", "vocoder"),
    [
        (BF16, "default", VOCODER),
        (f"{SHARDS}/", "fp8_e4m3fn", VOCODER),
        (f"{SHARDS}/", "fp8_e5m2", "Griffin-Lim (no file)"),
        (FP32, "fp8_e4m3fn_fast", "Griffin-Lim (no file)"),
    ],
)
def test_a_clip_is_made_from_files(server, model, weight_dtype, vocoder):
    loaders = {
        "file": node("UniAVGenLoadModel", model_name=model, weight_dtype=weight_dtype),
        "voice": node("UniAVGenLoadVocoder", vocoder_name=vocoder),
    }
    changes = {
        "sampler.model": ["file", 0],
        "words.speech_encoder": ["file", 1],
        "sound.vocoder": ["voice", 0],
    }
    answer = server.run(changed(clip(), changes, loaders))
    assert not answer.error
    assert saved_file(server, answer.outputs).stat().st_size > 0


def test_the_clip_is_the_same_after_the_memory_was_freed(server):
    before = pixels(server, clip(), "before")
    server.post("/free", {"unload_models": True, "free_memory": True})
    server.until(lambda: not server.get("/queue")["queue_running"], 10)
    assert pixels(server, clip(), "after") == before


def seen_by_the_model(server, name: str) -> Image.Image:
    """A picture of the test pack behind Video Encode."""
    pictures = node("SaveImage", images=["video", 1], filename_prefix=name)
    graph = changed(clip(), {"video.image": ["given", 0]}, {"given": given(name), "pictures": pictures})
    answer = server.run(graph)
    assert not answer.error
    return Image.open(server.base / "output" / answer.outputs["pictures"]["images"][0]["filename"])


def test_transparent_parts_of_a_picture_are_white_and_grey_pictures_are_taken(server):
    colours = {
        name: [colour for _, colour in seen_by_the_model(server, name).getcolors(64 * 64)]
        for name in ("clear picture", "grey picture", "RGBA picture")
    }
    assert colours["clear picture"] == [(255, 255, 255)]
    assert all(red == green == blue for red, green, blue in colours["grey picture"])
    assert min(map(len, (colours["grey picture"], colours["RGBA picture"]))) > 1


@pytest.mark.parametrize("takes", [1, 2])
def test_running_again_and_again_does_not_grow_memory(server, takes):
    """`PROMPTS=100` runs as many; 12 by default."""
    graph = changed(clip(steps=1), {"task.takes": takes})
    for seed in range(3):
        server.run(changed(graph, {"sampler.seed": seed}))
    before = server.memory
    for seed in range(10, 10 + int(os.environ.get("PROMPTS", "12"))):
        assert not server.run(changed(graph, {"sampler.seed": seed})).error
    grown = server.memory - before
    print(f"{grown / 1e6:.1f} MB")
    assert grown < MEMORY_GROWTH


def test_each_take_is_saved_as_a_clip_and_has_a_row_on_the_sheet(server):
    sheet = {
        "sheet": node("UniAVGenTakesSheet", videos=["mux", 0], columns=2, width=64),
    }
    answer = server.run(changed(clip() | sheet, {"task.takes": 3}))
    assert not answer.error
    assert len(answer.outputs["saved"]["images"]) == 3
    (picture,) = answer.outputs["sheet"]["images"]
    assert Image.open(server.base / "temp" / picture["filename"]).size == (20 + 128, 3 * 43)  # of 96x64
    again = changed(clip() | sheet, {"task.takes": 3, "split.latent": ["pick", 0]})
    again["pick"] = node("UniAVGenPickTake", latent=["sampler", 0], take=2)
    answer = server.run(again)
    assert not answer.error
    assert "sampler" in answer.cached
    assert len(answer.outputs["saved"]["images"]) == 1


def test_after_an_interrupted_run_the_next_prompt_runs_at_once(server):
    server.run(clip())
    queued = server.queue(clip(steps=1000))
    before = len(server.log)
    server.until(lambda: "/1000" in server.log[before:], 300)
    server.post("/interrupt")
    ended = server.wait(queued["prompt_id"], 300)
    assert ended.interrupted
    assert ended.node == "UniAVGenSampler"
    answer = server.run(clip(steps=3), 300)
    assert not answer.error
    assert answer.cached == ENCODERS


def test_an_interrupted_grid_of_clips_stops_too(server):
    graph = changed(clip(steps=1000), {})
    inputs = graph["sampler"]["inputs"] | {"s_v": "1, 3", "s_a": "1, 2"}
    graph["sampler"] = {"class_type": "UniAVGenGuidanceGrid", "inputs": inputs}
    queued = server.queue(graph | shown(["sampler", 1]))
    before = len(server.log)
    server.until(lambda: "/1000" in server.log[before:], 300)
    server.post("/interrupt")
    assert server.wait(queued["prompt_id"], 300).interrupted
    assert not server.run(clip()).error
