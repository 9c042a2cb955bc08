"""`uniavgen eval`: what the numbers mean, and that they can be trusted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed")

from conftest import needs_espeak, randomise

from uniavgen_core.cli import main
from uniavgen_core.errors import UserError
from uniavgen_core.media import files
from uniavgen_core.media.caption import random_caption_encoder
from uniavgen_core.media.mel import log_mel
from uniavgen_core.media.vae import random_vae
from uniavgen_core.media.vocoder import GriffinLim
from uniavgen_core.model.config import TINY
from uniavgen_core.model.dit import DualBranchDiT
from uniavgen_core.pipeline import Pipeline
from uniavgen_core.sampling.guidance import Guidance
from uniavgen_core.theatre.clips import Theatre
from uniavgen_core.theatre.evaluation import people, runs
from uniavgen_core.theatre.evaluation.metrics import (
    Face,
    interval,
    mask_iou,
    mean,
    measure,
    measure_any,
    mel_seam,
    picture_seam,
    pitch_error,
    ratio,
)
from uniavgen_core.theatre.evaluation.recogniser import (
    Recogniser,
    disturbed,
    held_out_errors,
    load_recogniser,
    train_recogniser,
    word_errors,
)
from uniavgen_core.theatre.evaluation.report import summary, write_report
from uniavgen_core.theatre.evaluation.runs import Evaluation, measure_folder, sampler
from uniavgen_core.theatre.evaluation.sampling import Example, face_masks, make
from uniavgen_core.theatre.evaluation.vocoders import judge

GUIDANCE = Guidance(2.0, 2.0, 1.0, ())

pytestmark = needs_espeak


class HumVocoder(torch.nn.Module):
    """Stands in for Griffin-Lim, which takes a second: the mel's loudness as that of a hum."""

    def forward(self, mel, on_part=None):
        level = mel.mean(1).sigmoid().repeat_interleave(240, dim=1)
        return level * torch.sin(torch.arange(level.shape[1]) * 0.03)


@pytest.fixture(scope="module")
def clips():
    theatre = Theatre(1, "held-out")
    return [theatre.clip(i) for i in range(5)]


@pytest.fixture(scope="module")
def parts():
    sizes = replace(
        TINY,
        variant="paper",
        video_dim=48,
        video_heads=2,
        layers=2,
        interaction_layers=(0, 1),
        patch=(1, 1),
    )
    model = randomise(DualBranchDiT(sizes))
    return Pipeline.of(model, random_vae(), random_caption_encoder(), HumVocoder())


@pytest.fixture(scope="module")
def theatre():
    return Theatre(0, "held-out", 17, (64, 64))


@pytest.fixture(scope="module")
def examples(theatre, parts):
    return [Example.make(theatre, i, parts.vae.get()) for i in range(2)]


@pytest.fixture
def evaluation(parts, theatre, tmp_path):
    return Evaluation(parts, Recogniser().eval(), theatre, tmp_path, GUIDANCE, 2, 1.0, 3, 2, show=1)


def test_a_true_clip_is_in_sync_at_lag_0(clips):
    for clip in clips:
        found = measure(clip.frames, clip.waveform)
        assert found["sync"] > 0.95
        assert found["lag"] == 0
        assert found["amplitude"] > 0.6
        assert pitch_error(found["pitch"], clip.voice.pitch) < 0.08


def test_a_picture_two_frames_late_has_lag_2(clips):
    late = np.roll(clips[0].frames, 2, axis=0)
    assert measure(late, clips[0].waveform)["lag"] == 2


def test_the_sound_of_another_clip_is_not_in_sync(clips):
    pairs = zip(clips, clips[1:] + clips[:1])
    assert np.mean([measure(a.frames, b.waveform)["sync"] for a, b in pairs]) < 0.4


def test_a_mouth_that_never_moves_has_no_lag_and_silence_no_pitch(clips):
    found = measure(np.repeat(clips[0].frames[:1], 33, 0), np.zeros(49500, np.float32))
    assert (found["sync"], found["lag"], found["pitch"]) == (0.0, None, None)
    assert pitch_error(found["pitch"], 200) == 1.0


def test_a_cut_at_the_seam_is_seen_in_picture_and_mel(clips):
    a, b = clips[:2]
    assert picture_seam(np.concatenate((a.frames[:17], b.frames[17:])), 17) > 5 * picture_seam(a.frames, 17)
    jerky = a.frames[(np.arange(33) + 3) // 4 * 4]  # moves from one latent frame to the next alone
    assert picture_seam(jerky, 17, every=4) < 3 < picture_seam(jerky, 17)
    loud = log_mel(torch.from_numpy(a.waveform)).numpy()
    where = int(loud.mean(0).argmax())
    cut = loud.copy()
    cut[:, where:] = loud.min()
    assert mel_seam(cut, where) > 2 * mel_seam(loud, where)


def test_mask_iou_is_shared_over_joint_area():
    a, b = np.zeros((2, 2, 8))
    a[0, :6], b[0, 2:8] = 1, 0.6
    assert mask_iou(a, b) == 4 / 8


def test_a_face_is_nearest_to_itself_in_later_frames_and_elsewhere(clips):
    faces = [Face(clip.frames[0], clip.face_mask[0]) for clip in clips]
    for i, clip in enumerate(clips):
        moved = np.roll(clip.frames, (5, -6), (1, 2))
        assert np.argmin([face.distance(moved) for face in faces]) == i


def test_the_interval_holds_the_mean_and_narrows_with_more_clips():
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    few, many = interval(values[:16], mean), interval(values, mean)
    for value, low, high in (few, many):
        assert low < value < high
    assert many[2] - many[1] < 0.4 * (few[2] - few[1])
    assert interval(np.array([[1, 2], [0, 6]]), ratio)[0] == 1 / 8


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("my cat sings", "my cat sings", 0),
        ("my cat sings now", "my dog sings", 2),
        ("I see. Hello now", "i see hello very now", 1),
        ("hello now", "", 2),
    ],
)
def test_word_errors_are_edits(said, heard, errors):
    assert word_errors(said, heard) == errors


def test_the_recogniser_hears_held_out_speech_at_any_level():
    model, theatre = load_recogniser(), Theatre(5, "held-out")
    speech = [theatre.speech(i) for i in range(24)]
    waveform = torch.stack([torch.from_numpy(s.waveform) for s in speech])
    count = sum(len(s.transcript.split()) for s in speech)
    for sound in (waveform, 0.02 * waveform):
        heard = model.transcribe(sound)
        assert sum(word_errors(s.transcript, h) for s, h in zip(speech, heard)) < 0.05 * count


def test_the_recogniser_understands_what_griffin_lim_gives_back():
    assert held_out_errors(load_recogniser(), 4, lambda *_: None)["word_error_griffin_lim"] <= 0.1


def test_training_the_recogniser_goes_on_where_it_was_stopped(tmp_path):
    def train(work: str, stop_at: int = 9) -> dict:
        def on_progress(what, done, count):
            if what.startswith("loss") and done == stop_at:
                raise KeyboardInterrupt

        options = {"clips": 10, "steps": 4, "batch": 4, "save_every": 2, "judged": 2}
        train_recogniser(
            tmp_path / f"{work}.safetensors", tmp_path / work, **options, on_progress=on_progress
        )
        return load_recogniser(tmp_path / f"{work}.safetensors").state_dict()

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_at=3)
    for name, value in train("stopped").items():
        assert torch.equal(value, whole[name]), name


def test_disturbed_mels_keep_their_bands_and_differ_each_time():
    mel = torch.randn(2, 80, 100)
    first, second = (disturbed(mel, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert first.shape[:2] == (2, 80)
    assert first.shape != second.shape or not torch.equal(first, second)
    assert first.isfinite().all()


def test_a_clip_does_not_depend_on_the_batch_it_is_made_in(parts, examples):
    def made(which):
        return make(parts, which, "reference-voice", GUIDANCE, 2, 1.0)

    together, alone = made(examples), made(examples[1:])
    assert torch.allclose(together[1].video, alone[0].video, atol=1e-4)
    assert torch.allclose(together[1].audio, alone[0].audio, atol=1e-4)


def test_without_interaction_the_sound_knows_nothing_of_the_picture(parts, examples):
    blank = [
        replace(e, latents={**e.latents, "video": torch.zeros_like(e.latents["video"])}) for e in examples
    ]

    def sound(which, interaction):
        made = make(parts, which, "dubbing", GUIDANCE, 2, 1.0, interaction=interaction)
        return made[0].audio

    assert torch.equal(sound(examples, False), sound(blank, False))
    assert not torch.allclose(sound(examples, True), sound(blank, True), atol=1e-3)


def test_face_masks_come_with_the_true_share_of_face_in_each_token(parts, examples):
    for example, (predicted, target) in zip(examples, face_masks(parts, examples)):
        assert predicted.shape == target.shape == (5, 16)
        assert np.allclose(target[0].sum() * 256, example.clip.face_mask[0].sum(), rtol=1e-4)
        assert 0 < predicted.min() < predicted.max() < 1


def test_a_continuation_keeps_its_known_frames_exactly(evaluation):
    row = next(evaluation.rows("continuation", [0]))
    assert row["known_difference"] == 0
    assert len(row["aperture"]) == 17 - 9  # measured from the seam on


def test_no_guidance_gets_as_many_passes_as_guidance():
    assert sampler(GUIDANCE, 12, "") == (GUIDANCE, 12)
    assert sampler(GUIDANCE, 12, "cfg") == (Guidance(2.0, 2.0, 0.0, ()), 12)
    assert sampler(GUIDANCE, 12, "none") == (Guidance.none(), 24)
    assert sampler(Guidance.none(), 12, "none")[1] == 12


def test_a_stopped_evaluation_goes_on_and_says_the_same(evaluation):
    evaluation.run("joint")
    file = evaluation.out / "runs" / "joint.jsonl"
    first = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(file.read_text().splitlines()[:3]) + '\n{"index": 2, "sa')
    replace(evaluation, batch=1).run("joint")
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["index"] for row in again[1:]] == [0, 1, 2]
    for before, after in zip(first[1:], again[1:]):
        assert after["sync"] == pytest.approx(before["sync"], abs=1e-3)
    with pytest.raises(UserError, match="another s_v"):
        replace(evaluation, guidance=replace(GUIDANCE, s_v=3.0)).run("joint")


def test_the_report_shows_runs_clips_and_curves(evaluation):
    for name in ("truth", "mismatched", "face-mask", "joint-cut"):
        evaluation.run(name)
    metrics = write_report(evaluation.out)
    assert metrics == json.loads((evaluation.out / "metrics.json").read_text())
    assert metrics["runs"]["truth"]["sync"][0] > 0.9 > metrics["runs"]["mismatched"]["sync"][0]
    assert metrics["runs"]["truth"]["face_known"][0] == 1
    assert 0 <= metrics["runs"]["face-mask"]["mask_iou"][0] <= 1
    moved = metrics["by_motion"]["truth"]
    assert set(moved) == {clip.motion for clip in map(evaluation.theatre.clip, range(evaluation.clips))}
    assert sum(values["clips"] for values in moved.values()) == evaluation.clips
    assert min(values["sync"][0] for values in moved.values()) > 0.9
    assert "face-mask" not in metrics["by_motion"]
    page = (evaluation.out / "index.html").read_text()
    assert 'src="clips/truth-0.mp4"' in page
    assert "truth-1.mp4" not in page
    assert page.count("<svg") == 1 + page.count("<video") > 2
    assert files.read_video(evaluation.out / "clips" / "truth-0.mp4").frames.shape == (17, 64, 64, 3)


def test_the_grid_measures_each_pair_of_scales_once_and_names_the_best(evaluation, monkeypatch):
    seen = []

    def rows(self, name, indices):
        assert self.show == 0
        scales = (self.guidance.s_v, self.guidance.s_a)
        seen.append(scales)
        sync = 0.9 if scales == (2.0, 1.0) else 0.5
        return [{"sync": sync, "errors": 1, "words": 4, "amplitude_ratio": 1.0} for _ in indices]

    monkeypatch.setattr(Evaluation, "rows", rows)
    evaluation.grid((1.0, 2.0), (1.0, 2.0, 3.0))
    evaluation.grid((1.0, 2.0, 3.0), (1.0, 2.0, 3.0))
    assert len(seen) == 2 * len(set(seen)) == 2 * 9  # two batches each
    metrics = write_report(evaluation.out)
    assert (metrics["best"]["s_v"], metrics["best"]["s_a"]) == (2.0, 1.0)
    assert (evaluation.out / "grid.svg").read_text().startswith("<svg")
    assert evaluation.guidance == GUIDANCE


@pytest.fixture
def folder(clips, tmp_path):
    for i, clip in enumerate(clips[:2]):
        sound = torch.from_numpy(clip.waveform)
        files.write_mp4(tmp_path / f"{i}.mp4", torch.from_numpy(clip.frames), 16, sound, 24000)
    lines = [json.dumps({"file": f"{i}.mp4", "transcript": clips[i].transcript}) for i in range(2)]
    (tmp_path / "said.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_a_folder_of_puppets_is_measured_with_the_instruments_for_puppets(folder, capsys):
    assert main(["eval", "folder", str(folder), "--puppets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["instruments"] == "puppets"
    assert found["summary"]["sync"][0] > 0.9
    assert found["summary"]["word_error"][0] < 0.3
    assert [row["lag"] for row in found["clips"]] == [0, 0]


def test_without_instruments_a_folder_gets_only_measures_that_hold_for_any_clip(folder, capsys, monkeypatch):
    none = people.Instruments(missing={"lips": "No module named 'mediapipe'"})
    monkeypatch.setattr(people, "load_instruments", lambda: none)
    assert main(["eval", "folder", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["instruments"] == "any clip"
    anything = {"file", "said", "length", "audio_length", "loudness", "pitch", "step_picture", "step_mel"}
    assert {name for row in found["clips"] for name in row} == anything
    assert found["summary"]["length"][0] == 33 / 16
    assert main(["eval", "folder", str(folder)]) == 0
    assert (
        "not measured: lips (No module named 'mediapipe'); for real people pip install"
        in capsys.readouterr().out
    )


def test_lips_and_words_of_a_photographed_person_are_refused(tmp_path, capsys):
    picture = torch.from_numpy(pytest.importorskip("skimage.data").astronaut())
    frames = files.fit_image(picture, 128, 128).expand(17, -1, -1, -1)
    files.write_mp4(tmp_path / "a.mp4", frames, 16, torch.sin(torch.arange(25500) * 0.05) / 4, 24000)
    assert main(["eval", "folder", str(tmp_path), "--puppets"]) == 0
    assert "a.mp4: 1.06 s, " in (shown := capsys.readouterr().out)
    assert "no puppet's mouth found: lips and words not measured" in shown
    assert "sync" not in shown


def test_a_cut_and_silence_are_told_of_any_clip(clips):
    a, b = clips[:2]
    found = measure_any(a.frames, a.waveform)
    assert -40 < found["loudness"] < -10
    assert found["length"] == found["audio_length"] == 33 / 16
    cut = measure_any(np.concatenate((a.frames[:16], b.frames[16:])), np.zeros(24000, np.float32))
    assert cut["step_picture"] > 5 * found["step_picture"]
    assert (cut["loudness"], cut["pitch"], cut["audio_length"]) == (None, None, 1.0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file": "0.mp4"}', "line 1"),
        ("what", "line 1"),
        ('{"file": "x.mp4", "transcript": "hello"}', "names none"),
    ],
)
def test_a_wrong_list_of_transcripts_is_named(folder, lines, message):
    (folder / "said.jsonl").write_text(lines)
    with pytest.raises(UserError, match=message):
        measure_folder(folder, Recogniser())


def test_words_outside_the_vocabulary_are_not_judged(folder):
    (folder / "said.jsonl").write_text('{"file": "0.mp4", "transcript": "quite unheard of"}')
    assert "word_error" not in summary(measure_folder(folder, Recogniser().eval()))


def test_mistakes_are_answered_in_one_line(tmp_path, capsys):
    for arguments, answer in (
        (["folder", str(tmp_path)], "no mp4"),
        (["folder", str(tmp_path / "none")], "no such folder"),
        (["report", str(tmp_path)], "holds no results"),
        (["run", "--out", str(tmp_path), "--runs", "joint,dance"], "'dance' is unknown"),
        (["run", "--out", str(tmp_path), "--clips", "1"], "at least 2"),
        (["grid", "--out", str(tmp_path), "--s-v", "1,x"], "lists of numbers"),
    ):
        assert main(["eval", *arguments]) == 2
        error = capsys.readouterr().err
        assert answer in error
        assert error.count("\n") == 1


def test_a_file_that_is_no_recogniser_is_refused(tmp_path):
    path = Path(tmp_path) / "other.safetensors"
    with pytest.raises(UserError, match="train-recogniser"):
        load_recogniser(path)
    path.write_text("nothing")
    with pytest.raises(UserError, match="train-recogniser"):
        load_recogniser(path)
    assert set(runs.BASELINES) < set(runs.RUNS)


def test_a_vocoder_is_judged_by_what_it_makes_of_real_recordings():
    class Silence:
        def __call__(self, log_mel):
            return torch.zeros(1, 240 * log_mel.shape[-1])

    recogniser = load_recogniser()
    good, none = (judge(vocoder, recogniser, recordings=2) for vocoder in (GriffinLim(), Silence()))
    assert good["mel"] < 0.3 < 2 < none["mel"]
    assert good["spectra"] < none["spectra"]
    assert good["pitch"] < 0.05
    assert none["word_error"] == none["pitch"] == 1
    assert good["real_word_error"] == none["real_word_error"]
