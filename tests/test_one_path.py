"""Training data and command line make the same task of the same clip, bit for bit, in every mode."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from clips import photograph, speech, talking_video, write_wav
from PIL import Image

from uniavgen_core.media import files
from uniavgen_core.media.speech import symbol_ids
from uniavgen_core.modes import MODES
from uniavgen_core.pipeline import Request, prepare_task, read_inputs
from uniavgen_core.sampling.defaults import SamplingDefaults
from uniavgen_core.training.data import one_clip
from uniavgen_core.training.footage import footage_sample, read_list
from uniavgen_core.training.objective import conditions

FRAMES, SIDE, SAID = 17, 64, "Well, that went better than I thought."
FIELDS = ("reference_image", "clean_video", "conditioned_video", "clean_audio", "conditioned_audio")


def encode(video: torch.Tensor) -> torch.Tensor:
    """Stands in for the VAE: the mean of each 16x16 cell of a latent frame, in 48 channels."""
    cells = torch.nn.functional.avg_pool3d(video, (1, 16, 16))
    parts = cells.tensor_split(tuple(range(1, cells.shape[2], 4)), dim=2)
    return torch.cat([x.mean(2, keepdim=True) for x in parts], 2).repeat(1, 16, 1, 1, 1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with two clips of one speaker and the first frame; the first clip as training reads it."""
    folder = tmp_path_factory.mktemp("clip")
    photo, voice = photograph(folder / "photo.png"), speech(folder / "voice.wav")
    for name in ("a.mp4", "b.mp4"):
        talking_video(folder / name, photo, voice, fps=25, seconds=FRAMES / 16)
    said = {"caption": "c", "transcript": SAID, "language": "en", "speaker": "s", "faces": [9, 9, 60, 60]}
    (folder / "list.jsonl").write_text(
        "\n".join(json.dumps({"file": name} | said) for name in ("a.mp4", "b.mp4"))
    )
    heard, rate = files.read_audio(folder / "b.mp4", FRAMES / 16)  # as much as training takes of it
    write_wav(folder / "b.wav", heard.T.numpy(), rate)
    first = files.read_video(folder / "a.mp4", fps=16).frames[0]
    Image.fromarray(first.numpy()).save(folder / "first.png")
    sample = footage_sample(read_list(folder / "list.jsonl"), 0, FRAMES, (96, 64), encode)
    return folder, sample


@pytest.mark.parametrize("mode", MODES)
def test_training_and_command_line_condition_alike(clip, tmp_path, mode):
    folder, sample = clip
    video, image = str(folder / "a.mp4"), str(folder / "first.png")
    given = {
        "joint": {"image": image, "frames": FRAMES},
        "reference-voice": {
            "image": image,
            "voice": str(folder / "b.wav"),
            "voice_text": SAID,
            "frames": FRAMES,
        },
        "continuation": {"video": video, "prefix_frames": 9, "frames": FRAMES},
        "dubbing": {"video": video},
        "audio-driven": {"image": image, "audio": video, "frames": FRAMES},
        "edit": {"video": video, "edit_start": 1 / 16, "edit_end": 9 / 16},
    }[mode]
    request = Request(mode, str(tmp_path / "clip.mp4"), SAID, **given)
    inputs = read_inputs(request.completed(SamplingDefaults(short_side=SIDE)))
    stand_in = SimpleNamespace(
        encode_frames=lambda frames: encode(files.to_float(frames)[None]),
        config=SimpleNamespace(variant="released"),
    )
    task = prepare_task(stand_in, inputs)
    batch = one_clip([sample], 0, mode)
    batch.anew = inputs.plan.anew  # training draws its own
    trained = conditions(batch, "released", (2, 2))
    for name in FIELDS:
        assert torch.equal(getattr(task, name), getattr(trained, name)), name
    assert task.v2a == trained.v2a
    assert inputs.symbols == batch.speech[0].tolist()
    if mode == "reference-voice":
        assert torch.equal(task.reference_mel, trained.reference_mel)
        assert inputs.symbols == symbol_ids(SAID, "en", SAID)
