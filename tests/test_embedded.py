"""Without weights a small trained model makes the clip; its parts fit together, it says what it can."""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import (
    uniavgen,
)

from uniavgen_core import embedded, pipeline
from uniavgen_core.errors import UserError
from uniavgen_core.media import files
from uniavgen_core.sampling.defaults import SamplingDefaults
from uniavgen_core.sampling.guidance import Guidance
from uniavgen_core.vocabulary import VOCABULARY, words
from uniavgen_core.weights.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[1]
PUPPET = ROOT / "assets" / "puppet.png"
CAPTION = "a middle-aged woman with black hair in a bun, glasses and earrings holds still while speaking, "
CAPTION += "looking happy, in a forest"  # of the puppet
SMALL = ("--image", PUPPET, "--frames", 5, "--short-side", 64)


def made(capfd, tmp_path, *arguments, text="hello show me the moon"):
    """`uniavgen generate` without weights at a small size: the notes, and the request as it was run."""
    seen = []
    completed = pipeline.Request.completed

    def watch(request, settings):
        seen.append(completed(request, settings))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.Request, "completed", watch)
        out = ("--text", text, "--out", tmp_path / "clip.mp4", "--json")
        code, printed, said = uniavgen(capfd, "generate", *SMALL, *arguments, *out)
    assert code == 0, said
    return json.loads(printed)["notes"], seen[-1]


def test_the_parts_fit_together_and_weigh_at_most_60_mb_in_half_precision():
    config, encoder = embedded.config(), embedded.load_caption_encoder()
    assert config.variant == "aligned"
    assert encoder.dim == config.caption_dim
    model = embedded.load_model()
    assert model.config == config
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert read_checkpoint(embedded.model_file()).dtype == torch.float16
    files = [file for file in embedded.FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 60e6


def test_its_files_travel_with_the_package():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["uniavgen_core"]
    packed = {file for pattern in patterns for file in embedded.PACKAGE.glob(pattern) if file.is_file()}
    assert {file for file in embedded.FOLDER.rglob("*") if file.is_file()} <= packed


def test_its_tokenizer_opens_in_every_transformers_that_is_allowed():
    config = embedded.FOLDER / "caption_encoder" / "tokenizer" / "tokenizer_config.json"
    assert json.loads(config.read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_it_brings_its_own_settings_and_what_the_user_says_wins(capfd, tmp_path):
    own = embedded.settings()
    assert own != SamplingDefaults()
    _, request = made(capfd, tmp_path, "--steps", 1)
    assert request.guidance == own.guidance
    assert request.shift == own.shift
    assert (request.steps, request.frames, request.short_side) == (1, 5, 64)
    _, request = made(capfd, tmp_path, "--steps", 2, "--s-v", 1.25, "--skip-layer", 3, "--shift", 4)
    expected = Guidance(1.25, own.guidance.s_a, own.guidance.interval, (3,))
    assert (request.guidance, request.shift) == (expected, 4)


def test_the_released_model_keeps_its_own_settings():
    weights = pipeline.Weights(model="m", vae="v", text_encoder="t")
    assert weights.settings() == SamplingDefaults(Guidance(3.0, 2.0, 0.5, (11,)), 50, 5.0, 81, 736)


def test_it_says_what_it_is_and_which_words_it_never_learnt(capfd, tmp_path):
    notes, _ = made(capfd, tmp_path, "--steps", 1, text="Hello, SHOW me the purple cat's moon!")
    assert (
        "a small puppet model, trained on synthetic drawn faces and 72 words; not the 7 B model" in notes[0]
    )
    assert "never learnt to say purple, cat's;" in notes[1]
    notes, _ = made(capfd, tmp_path, "--steps", 1, text="Hello, SHOW me the moon!")
    assert not any("never learnt" in note for note in notes)


def test_capitals_and_punctuation_play_no_part(tmp_path):
    def latent(text):
        request = pipeline.Request("joint", str(tmp_path / "clip.mp4"), text, image=str(PUPPET))
        small = replace(request, frames=5, short_side=64, steps=1)
        return pipeline.generate(small, pipeline.Weights()).sample.audio

    encoder = embedded.load_caption_encoder()
    assert torch.equal(encoder(["A woman by the sea"]), encoder(["a woman by the sea"]))
    assert torch.equal(latent("I see the moon."), latent("i  See, the moon"))
    assert not torch.equal(latent("I see the moon."), latent("I see the dog."))


def test_its_vocabulary_has_the_72_words_that_it_is_said_to_know():
    assert len(set(VOCABULARY)) == 72
    assert words(" ".join(VOCABULARY)) == VOCABULARY


@pytest.mark.parametrize("part", embedded.PARTS)
def test_a_broken_installation_is_told_before_anything_runs(capfd, tmp_path, monkeypatch, part):
    whole = shutil.copytree(embedded.FOLDER, tmp_path / "embedded_model")
    lost = whole / part
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    monkeypatch.setattr(embedded, "FOLDER", whole)
    out = ("--text", "hello", "--out", tmp_path / "clip.mp4")
    code, printed, said = uniavgen(capfd, "generate", *SMALL, *out)
    assert (code, printed) == (2, "")
    (line,) = said.splitlines()
    assert f"{lost}: this part of the embedded model is missing" in line
    assert "install the whole package again" in line


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"steps": 16}'])
def test_damaged_settings_are_told(tmp_path, monkeypatch, content):
    whole = shutil.copytree(embedded.FOLDER, tmp_path / "embedded_model")
    (whole / "settings.json").write_text(content)
    monkeypatch.setattr(embedded, "FOLDER", whole)
    with pytest.raises(UserError, match=r"damaged.*install the package again"):
        embedded.settings()


def test_the_lips_of_the_puppet_follow_its_voice(tmp_path, capfd):
    pytest.importorskip("cv2")
    theatre = importlib.import_module("uniavgen_core.theatre.clips")
    out = tmp_path / "clip.mp4"
    line = ("--text", "Hello, show me the moon.", "--caption", CAPTION)
    code, _, said = uniavgen(capfd, "generate", "--image", PUPPET, *line, "--out", out)
    assert code == 0, said
    video = files.read_video(out)
    lips = theatre.measure_aperture(video.frames.numpy())
    voice = theatre.loudness_envelope(video.audio[0][0].numpy(), len(lips))
    assert np.corrcoef(lips, voice)[0, 1] > 0.6
