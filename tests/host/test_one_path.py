"""Command line and nodes make the same tensors of the same files, bit for bit, in all six modes.

Images and recordings are read by the host's own loaders. The frames of a video come from the core's reader on
both sides: the host's converts colours otherwise, by up to 2 of 255.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import SENTENCE, speech, talking_video, write_wav
from PIL import Image
from pooling_vae import PoolingVAE
from torch import Tensor

SIDE = 64
TEXT = "Well, that went better than I thought."
SECONDS = 1.4  # of the video: 22 frames at 16 fps, of which 21 are used
USED = 21


class SymbolsAsFeatures:
    """Stands in for the speech encoder: its features are the symbol ids."""

    puppet = False

    def __call__(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """photo.png, wide.png, voice.wav, song.wav (loud at its end) and clip.mp4 at 25 fps."""
    folder = tmp_path_factory.mktemp("files")
    ramp = np.linspace(0, 255, 512, dtype=np.uint8)
    picture = np.stack(
        (np.tile(ramp, (512, 1)), np.tile(ramp[:, None], (1, 512)), np.full((512, 512), 90)), -1
    )
    Image.fromarray(picture.astype(np.uint8)).save(folder / "photo.png")
    Image.fromarray(picture[:400, :600].astype(np.uint8)).save(folder / "wide.png")
    voice = speech(folder / "voice.wav")
    talking_video(folder / "clip.mp4", folder / "photo.png", voice, 25, SECONDS)
    time = np.arange(round(1.23 * 44100)) / 44100
    write_wav(folder / "song.wav", 0.1 * np.sin(2 * np.pi * 220 * time) * (1 + 8 * (time > 1.15)), 44100)
    return folder


@pytest.fixture
def pack(host, monkeypatch) -> SimpleNamespace:
    def module(name: str):
        return importlib.import_module(f"{host.__name__}.{name}")

    said: list[str] = []
    for name in ("nodes.tasks", "nodes.encoding"):
        monkeypatch.setattr(module(name), "tell", lambda node, text: said.append(text))
    core = SimpleNamespace(
        pipeline=module("uniavgen_core.pipeline"),
        defaults=module("uniavgen_core.sampling.defaults"),
        files=module("uniavgen_core.media.files"),
        modes=module("uniavgen_core.modes").MODES,
    )
    video = importlib.import_module("comfy_api.latest").InputImpl.VideoFromFile
    audio = importlib.import_module("comfy_extras.nodes_audio").load
    return SimpleNamespace(
        core=core,
        tasks=module("nodes.tasks"),
        encoding=module("nodes.encoding"),
        video=video,
        load=audio,
        said=said,
    )


def requests(files: Path) -> dict[str, dict]:
    """What the command line is given beside mode, text and size."""
    photo, voice, clip, song = (str(files / n) for n in ("photo.png", "voice.wav", "clip.mp4", "song.wav"))
    return {
        "joint": {"image": photo, "frames": 17},
        "reference-voice": {"image": photo, "voice": voice, "voice_text": SENTENCE, "frames": 17},
        "continuation": {"video": clip, "prefix_frames": USED, "frames": 33},
        "dubbing": {"video": clip, "image": str(files / "wide.png")},
        "audio-driven": {"image": photo, "audio": song},
        "edit": {"video": clip, "edit_start": 0.5, "edit_end": 0.9, "edit": "both"},
    }


def by_command(pack, mode: str, given: dict, out: Path) -> dict:
    """The task of the command line, which reads the files itself."""
    core = pack.core
    defaults = core.defaults.SamplingDefaults(short_side=SIDE)
    completed = core.pipeline.Request(mode, str(out / "clip.mp4"), TEXT, **given).completed(defaults)
    inputs = core.pipeline.read_inputs(completed)
    vae = PoolingVAE(core.files.to_float)
    stand_in = SimpleNamespace(
        encode_frames=lambda frames: vae.encode(core.files.to_float(frames)[None]),
        config=SimpleNamespace(variant="released"),
    )
    task = core.pipeline.prepare_task(stand_in, inputs)
    return {
        "video": task.clean_video,
        "conditioned video": task.conditioned_video,
        "audio": task.clean_audio,
        "conditioned audio": task.conditioned_audio,
        "reference image": task.reference_image,
        "reference mel": task.reference_mel,
        "symbols": inputs.symbols,
        "null symbols": inputs.null_symbols,
    }


def by_nodes(pack, mode: str, given: dict) -> dict:
    """What the task node puts into CONDITIONING and LATENT, of files that the host's loaders read."""
    vae = PoolingVAE(pack.core.files.to_float)

    def image(path: str):
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")).astype(np.float32) / 255.0)[None]
        return pack.encoding.VideoEncode.execute(vae, pixels, SIDE, 16.0).result[0]

    def heard(audio: dict):
        return pack.encoding.MelEncode.execute(audio).result[0]

    def recording(path: str):
        waveform, rate = pack.load(path)
        return heard({"waveform": waveform[None], "sample_rate": rate})

    inputs = {}
    if "video" in given:
        video = pack.core.files.read_video(given["video"])
        pixels = video.frames.float() / 255.0
        frames = pack.encoding.VideoEncode.execute(vae, pixels, SIDE, video.fps)
        inputs["video"] = frames.result[0]
        if pack.core.modes[mode].audio != "nothing":
            inputs["mel"] = heard(pack.video(given["video"]).get_components().audio)
        if "image" in given:
            inputs["reference_image"] = image(given["image"])
    else:
        inputs["video"] = image(given["image"])
    if "audio" in given:
        inputs["mel"] = recording(given["audio"])
    if "voice" in given:
        inputs["reference_voice"] = recording(given["voice"])
    for name, at in (("frames", "frames"), ("edit", "edit"), ("edit_start", "start"), ("edit_end", "end")):
        if name in given:
            inputs[at] = given[name]
    speech = pack.encoding.SpeechEncode.execute(
        SymbolsAsFeatures(), TEXT, "en", given.get("voice_text", "")
    ).result[0]
    node = {n.define_schema().node_id: n for n in pack.tasks.NODES}[NODES[mode]]
    caption = [[torch.zeros(1, 4, 64), {}]]
    positive, negative, latent = node.execute(
        positive=caption, negative=caption, speech=speech, **inputs
    ).result
    video, audio = latent["samples"].unbind()
    made_video, made_audio = latent["noise_mask"].unbind()
    options = positive[0][1]
    return {
        "video": video,
        "conditioned video": made_video[0, 0, :, 0, 0] == 0,
        "audio": audio.transpose(1, 2),
        "conditioned audio": made_audio[0, 0] == 0,
        "reference image": options["uniavgen_reference_image"],
        "reference mel": options["uniavgen_reference_mel"],
        "symbols": options["uniavgen_speech"].tolist(),
        "null symbols": negative[0][1]["uniavgen_speech"].tolist(),
    }


NODES = {
    "joint": "UniAVGenJoint",
    "reference-voice": "UniAVGenReferenceVoice",
    "continuation": "UniAVGenContinuation",
    "dubbing": "UniAVGenDubbing",
    "audio-driven": "UniAVGenAudioDriven",
    "edit": "UniAVGenEdit",
}


def test_every_mode_has_a_node(pack):
    assert NODES.keys() == pack.core.modes.keys()
    assert {node.define_schema().node_id for node in pack.tasks.NODES} == set(NODES.values())


@pytest.mark.parametrize("mode", NODES)
def test_files_become_the_same_tensors_on_the_command_line_and_in_the_nodes(pack, files, tmp_path, mode):
    given = requests(files)[mode]
    command, nodes = by_command(pack, mode, given, tmp_path), by_nodes(pack, mode, given)
    for name, wanted in command.items():
        got = nodes[name]
        if isinstance(wanted, Tensor):
            assert wanted.shape == got.shape, name
            assert torch.equal(wanted, got), f"{name}: {float((wanted.float() - got.float()).abs().max())}"
        else:
            assert wanted == got, name
