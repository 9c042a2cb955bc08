"""Every example workflow runs on a real server and leaves videos whose picture and sound are equally long."""

from __future__ import annotations

import json
import shutil
import wave
from math import pi, sin
from pathlib import Path

import av
import graphs
import pytest
from host_server import PACK_NAME, HostServer
from PIL import Image
from test_server import AAC_FRAME, lengths
from tiny_files import write_enlarging_models

ROOT = Path(__file__).parents[2]
TWINS = sorted((ROOT / "workflows" / "api").glob("*.json"))
SHORT_SIDE, FRAMES, STEPS = 64, 21, 2
# which output of the embedded model stands for which loader of the released one
LOADERS = {"UniAVGenLoadModel": 0, "CLIPLoader": 2, "VAELoader": 3, "UniAVGenLoadVocoder": 4}


@pytest.fixture(scope="module")
def files(server, host) -> HostServer:
    """The server with the files that the workflows name: a picture, a video with sound, a voice, models."""
    given = server.base / "input"
    write_enlarging_models(server.base / "models")
    picture = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    picture.putalpha(Image.linear_gradient("L").resize((96, 64)))  # as Load Image keeps a mask
    picture.save(given / "example.png")
    with wave.open(str(given / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(
            b"".join(
                int(9000 * sin(2 * pi * 180 * n / 16000)).to_bytes(2, "little", signed=True)
                for n in range(12000)
            )
        )
    return server


@pytest.fixture(scope="module")
def clip(files) -> None:
    """`clip.mp4`, made by the joint workflow."""
    made = files.run(small(read("embedded_joint"), frames=9), 300)
    assert not made.error
    shutil.copy(saved(files, made.outputs)[0], files.base / "input" / "clip.mp4")


def read(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def small(graph: dict, frames: int = FRAMES) -> dict:
    """The same graph on the embedded parts, with sizes that take seconds."""
    loaders = {
        key: LOADERS[node["class_type"]] for key, node in graph.items() if node["class_type"] in LOADERS
    }
    if loaders:
        graph = {key: node for key, node in graph.items() if key not in loaders}
        graph["embedded"] = {"class_type": "UniAVGenEmbeddedModel", "inputs": {}}
    for node in graph.values():
        inputs = node["inputs"]
        for name, value in inputs.items():
            if isinstance(value, list) and value[0] in loaders:
                inputs[name] = ["embedded", loaders[value[0]] + value[1]]
        if "short_side" in inputs:
            inputs["short_side"] = SHORT_SIDE
        if "steps" in inputs:
            inputs["steps"] = STEPS
        if inputs.get("frames", 0) > frames:
            inputs["frames"] = frames
        if loaders and "script" in inputs:
            inputs["script"] = "Good morning.\nShow me the moon."
        if "start" in inputs:
            inputs["start"], inputs["end"] = 0.1, 0.4
        if "s_v" in inputs and isinstance(inputs["s_v"], str):
            inputs["s_v"], inputs["s_a"] = "1, 3", "1, 2"
    return graph


def saved(server: HostServer, outputs: dict) -> list[Path]:
    entries = [entry for output in outputs.values() for entry in output.get("images", [])]
    files = [server.base / entry["type"] / entry["subfolder"] / entry["filename"] for entry in entries]
    return [file for file in files if file.suffix == ".mp4"]


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_every_workflow_makes_a_video(files, clip, twin):
    graph = small(read(twin.stem))
    made = files.run(graph, 300)
    assert not made.error
    videos = saved(files, made.outputs)
    sheets = [file for file in videos if "_clip" not in file.name] if "grid" in twin.stem else []
    assert len(videos) == (5 if sheets else 2 if "face_mask" in twin.stem else 1)
    for file in set(videos) - set(sheets):
        picture, sound, rate = lengths(file)
        assert picture > 0.3
        assert abs(picture - sound) <= AAC_FRAME / rate


@pytest.mark.parametrize("name", ["embedded_advanced", "joint"])
def test_a_workflow_saved_with_version_0_1_0_still_makes_its_video(files, name):
    old = ROOT / "tests" / "old_workflows" / "api" / f"{name}.json"
    made = files.run(small(json.loads(old.read_text(encoding="utf-8"))), 300)
    assert not made.error
    assert len(saved(files, made.outputs)) == (2 if "advanced" in name else 1)


def test_the_larger_clip_has_24_frames_a_second_for_the_same_seconds(files):
    made = files.run(small(read("embedded_upscaled")), 300)
    assert not made.error
    (file,) = saved(files, made.outputs)
    with av.open(str(file)) as clip:
        stream = clip.streams.video[0]
        frames = sum(1 for _ in clip.decode(stream))
        assert (stream.width, stream.height) == (4 * SHORT_SIDE, 4 * SHORT_SIDE)
        assert stream.average_rate == 24
    assert frames == 3 * (FRAMES - 1) // 2 + 1


def test_another_s_v_leaves_the_encoders_cached(files):
    graph = small(read("embedded_joint"))
    sampler = next(key for key, node in graph.items() if node["class_type"] == "UniAVGenSampler")
    files.run(graph, 300)
    graph[sampler]["inputs"]["s_v"] = 4.5
    again = files.run(graph, 300)
    assert not again.error
    kept = {graph[key]["class_type"] for key in again.cached}
    assert {"UniAVGenVideoEncode", "UniAVGenSpeechEncode", "CLIPTextEncode", "UniAVGenJoint"} <= kept
    assert sampler not in again.cached


@pytest.mark.parametrize("puppet", json.loads((ROOT / "web" / "puppets" / "puppets.json").read_text()))
def test_a_puppet_gives_an_image_and_a_recording_with_its_audio(server, puppet):
    made = server.run(
        {
            "puppet": graphs.node("UniAVGenPuppet", puppet=puppet),
            "image": graphs.node("PreviewImage", images=["puppet", 0]),
            "video": graphs.node(
                "SaveVideo",
                video=["puppet", 1],
                filename_prefix="puppet",
                **{"format": "mp4", "format.codec": "auto"},
            ),
            "mel": graphs.node("UniAVGenMelEncode", audio=["puppet", 2]),
            "shown": graphs.node("PreviewAny", source=["mel", 0]),
        },
    )
    assert not made.error
    image = made.outputs["image"]["images"][0]
    with Image.open(server.base / image["type"] / image["subfolder"] / image["filename"]) as opened:
        assert opened.size == (128, 128)
    video = made.outputs["video"]["images"][0]
    picture, sound, rate = lengths(server.base / video["type"] / video["subfolder"] / video["filename"])
    assert picture == pytest.approx(33 / 16)
    assert abs(picture - sound) <= 2 * AAC_FRAME / rate


def test_the_host_serves_the_templates_and_the_blueprints(server):
    titles = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert set(server.get("/workflow_templates")[PACK_NAME]) == titles
    entries = server.get("/global_subgraphs")
    ours = [
        key for key, entry in entries.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK_NAME}"
    ]
    assert len(ours) == len(list((ROOT / "subgraphs").glob("*.json")))
    for key in ours:
        served = server.get(f"/global_subgraphs/{key}")
        assert json.loads(served["data"])["definitions"]["subgraphs"][0]["name"] == served["name"]
