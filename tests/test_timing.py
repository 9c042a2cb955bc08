"""The strip shows what is known, the face mask and roughly when each word falls."""

from __future__ import annotations

import pytest
import torch

from uniavgen_core.media import timing
from uniavgen_core.media.speech import spoken_words
from uniavgen_core.media.timing import rough_timing, timing_strip

RATE = 24000


def bursts(*spans: tuple[float, float], seconds: float = 2.0) -> torch.Tensor:
    """Noise within the spans, nearly silence outside."""
    wave = 1e-4 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0))
    for start, end in spans:
        wave[round(start * RATE) : round(end * RATE)] *= 3000
    return wave


def test_words_share_the_voiced_time_by_their_letters():
    words = rough_timing("ab cdefgh", "en", 2.0, bursts((0.5, 1.3)))
    assert [word.text for word in words] == ["ab", "cdefgh"]
    wanted = [(0.5, 0.7), (0.7, 1.3)]
    for word, (start, end) in zip(words, wanted):
        assert word.start == pytest.approx(start, abs=0.011)
        assert word.end == pytest.approx(end, abs=0.011)


def test_a_pause_lies_between_words_not_in_them():
    first, second = rough_timing("four more", "en", 2.0, bursts((0.2, 0.6), (1.2, 1.6)))
    assert first.end == pytest.approx(0.6, abs=0.011)
    assert second.start == pytest.approx(1.2, abs=0.011)


@pytest.mark.parametrize("wave", [None, torch.zeros(48000)])
def test_without_anything_voiced_words_fill_the_clip(wave):
    words = rough_timing("one two", "en", 2.0, wave)
    assert [(w.start, w.end) for w in words] == [(0.0, 1.0), (1.0, 2.0)]
    assert rough_timing(" ", "en", 2.0) == []


def test_chinese_words_are_syllables_in_pinyin():
    pytest.importorskip("jieba")
    pytest.importorskip("pypinyin")
    assert spoken_words("\u4f60\u597d", "zh") == ["ni2", "hao3"]


def test_known_parts_are_blue_at_their_times():
    known = torch.zeros(33, dtype=torch.bool)
    known[:9] = True
    strip = timing_strip(known, torch.zeros(206, dtype=torch.bool), width=76 + 330 + 4)
    low = timing.GAP + 2
    row = strip[low]
    assert row[76 + 5].tolist() == list(timing.KNOWN)
    assert row[76 + 88].tolist() == list(timing.KNOWN)
    assert row[76 + 93].tolist() == list(timing.MADE)
    assert strip[low + timing.HEIGHTS["video"] + timing.GAP][76 + 88].tolist() == list(timing.MADE)


def test_rows_that_are_not_given_are_left_out():
    known = torch.zeros(9, dtype=torch.bool), torch.zeros(56, dtype=torch.bool)
    bare = timing_strip(*known)
    everything = timing_strip(
        *known,
        words=rough_timing("hello there", "en", 9 / 16),
        waveform=bursts((0.1, 0.4), seconds=9 / 16),
        frames=torch.full((9, 64, 96, 3), 200, dtype=torch.uint8),
        mask=torch.ones(9, 64, 96),
        width=640,
    )
    rows = timing.HEIGHTS
    more = rows["words"] + rows["wave"] + rows["frames"] + rows["mask"] + 4 * timing.GAP
    assert bare.shape[1:] == (1280, 3)
    assert everything.shape == (bare.shape[0] + more, 640, 3)
    orange = (everything.int() - torch.tensor(timing.FACE)).abs().amax(-1) < 4
    assert orange[timing.GAP + rows["frames"] + timing.GAP + 10].sum() > 500  # the whole picture is face
