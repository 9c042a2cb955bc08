"""A length proposed for a text, and texts that do not fit their clip."""

from pathlib import Path

import pytest
from clips import uniavgen
from conftest import needs_espeak

from uniavgen_core.conditioning import FPS, MAX_FRAMES
from uniavgen_core.duration import LETTERS_PER_SECOND, ROOM, frames_for_text, speech_seconds, too_long
from uniavgen_core.theatre.voices import Voice, speak

PUPPET = Path(__file__).parents[1] / "assets" / "puppet.png"


def test_fifteen_letters_or_four_chinese_characters_take_a_second():
    assert speech_seconds("fifteen letters") == pytest.approx(1)
    assert speech_seconds("  fifteen \n letters ") == pytest.approx(1)
    assert speech_seconds("\u4f60\u597d\u4e16\u754c") == pytest.approx(1)
    assert speech_seconds("\u4f60\u597d, you") == pytest.approx(0.5 + 5 / LETTERS_PER_SECOND)


@pytest.mark.parametrize("count", [1, 14, 15, 60, 400])
def test_the_proposed_clip_is_the_shortest_of_4n_plus_1_frames_that_holds_the_text(count):
    frames, needed = frames_for_text("a" * count), count / LETTERS_PER_SECOND + ROOM
    assert frames % 4 == 1
    assert (frames - 4) / FPS < needed <= frames / FPS


def test_a_proposal_stays_within_the_longest_clip():
    assert frames_for_text("word " * 10_000) == MAX_FRAMES


def test_a_text_that_fits_its_proposal_is_not_told_and_twice_of_it_is():
    text = "Hello from the workshop, it is good to see you."
    frames = frames_for_text(text)
    assert too_long(text, frames) is None
    told = too_long(f"{text} {text}", frames)
    assert f"the clip lasts {frames / FPS:.2f} s" in told
    assert f"{frames_for_text(f'{text} {text}')} frames" in told
    assert "frames" not in too_long(f"{text} {text}", frames, fixed=True)


@needs_espeak
def test_the_proposal_holds_what_the_theatre_says_at_its_pace():
    for text in (
        "we see",
        "my teacher sings",
        "your old friend laughs tonight",
        "I remember the yellow flower",
    ):
        for pace in (140, 160, 180):
            lasts = len(speak(text, Voice("f2", 200, 1.0), pace)) / 24000
            assert lasts <= frames_for_text(text) / FPS


def test_frames_auto_is_the_length_of_the_text_and_a_short_clip_is_told(capfd, tmp_path):
    text, out = "we remember the yellow flower", tmp_path / "a.mp4"
    common = ("generate", "--image", PUPPET, "--text", text, "--steps", 1, "--short-side", 32, "--out", out)
    code, said, told = uniavgen(capfd, *common, "--frames", "auto")
    assert code == 0
    assert f"{frames_for_text(text)} frames" in said
    assert "shorten the text" not in told
    code, _, told = uniavgen(capfd, *common, "--frames", 9)
    assert code == 0
    assert f"give it {frames_for_text(text)} frames" in told
