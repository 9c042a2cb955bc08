"""A clip's timing to look at: face mask, what is known, roughly when which word falls, and the waveform."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from . import FPS
from .mel import HOP, SAMPLE_RATE, fit_length
from .speech import spoken_words

VOICED = 0.1  # of the loud parts (95th percentile): 20 dB below
MARGIN, GAP = 76, 4  # pixels: labels on the left, between rows
HEIGHTS = {"frames": 72, "mask": 34, "video": 14, "audio": 14, "words": 20, "wave": 64, "axis": 16}
BACKGROUND, TEXT, GRID = (24, 24, 28), (224, 224, 224), (70, 70, 78)
KNOWN, MADE, FACE, WAVE = (86, 140, 214), (58, 58, 64), (255, 120, 40), (120, 200, 150)
WORDS = ((74, 86, 110), (96, 76, 104))


class TimedWord(NamedTuple):
    """`start` and `end` in seconds."""

    text: str
    start: float
    end: float


def rough_timing(text: str, language: str, seconds: float, waveform: Tensor | None = None) -> list[TimedWord]:
    """Roughly when each word falls: the voiced time is shared out by the symbols of the words, in order.

    No alignment: nothing listens to the words, and a word may be off by a syllable or more where the pace
    changes. Voiced is what is louder than a tenth of the loud parts; without a recording the whole clip is.

    Args:
        text, language: as `speech.symbol_ids`; Chinese words are syllables in pinyin.
        waveform: mono `[n]` at 24 kHz.
    """
    words = spoken_words(text, language)
    if not words:
        return []
    voiced = np.ones(max(1, round(seconds * SAMPLE_RATE / HOP)), bool)
    if waveform is not None:
        rms = fit_length(waveform.float(), len(voiced) * HOP).unflatten(0, (-1, HOP)).square().mean(1).sqrt()
        loud = float(rms.quantile(0.95))
        if loud > 0:
            voiced = (rms > VOICED * loud).numpy()
    passed = np.concatenate(([0], np.cumsum(voiced)))  # voiced hops before each hop
    ends = np.cumsum([len(word) for word in words]) / sum(map(len, words)) * passed[-1]
    starts = np.concatenate(([0.0], ends[:-1]))
    hop = HOP / SAMPLE_RATE
    timed = []
    for word, start, end in zip(words, starts, ends):
        # a word starts behind the pause that its first voiced hop follows, and ends before the next pause
        first = np.searchsorted(passed, start, side="right") - 1 + start - np.floor(start)
        last = np.searchsorted(passed, end, side="left") - (np.ceil(end) - end)
        timed.append(TimedWord(word, float(first) * hop, float(last) * hop))
    return timed


def timing_strip(
    known_video: Tensor,
    known_audio: Tensor,
    *,
    words: list[TimedWord] | None = None,
    waveform: Tensor | None = None,
    frames: Tensor | None = None,
    mask: Tensor | None = None,
    width: int = 1280,
) -> Tensor:
    """One image of a clip's rows over time, uint8 `[H, width, 3]`; rows that are not given are left out.

    Args:
        known_video: bool, one for every video frame at 16 fps; known_audio: bool, one for every mel frame.
        waveform: mono `[n]` at 24 kHz; frames: uint8 `[F, h, w, 3]`; mask: float `[F, h, w]` in 0..1, drawn
            on the frames and as its share of the frame.
    """
    rows = ["video", "audio", "axis"]
    rows += ["words"] * bool(words) + ["wave"] * (waveform is not None)
    rows += ["frames"] * (frames is not None) + ["mask"] * (mask is not None)
    places, top = {}, GAP
    for name, height in HEIGHTS.items():
        if name in rows:
            places[name] = (top, top + height)
            top += height + GAP
    image = Image.new("RGB", (width, top), BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    seconds, span = len(known_video) / FPS, width - MARGIN - GAP

    def x(at: float) -> float:
        return MARGIN + span * min(max(at / seconds, 0.0), 1.0)

    labels = {
        "frames": "face mask" if mask is not None else "frames",
        "mask": "its share",
        "words": "words ~",
    }
    for name, (low, high) in places.items():
        if name != "axis":
            label = str(labels.get(name, name))
            draw.text((GAP, (low + high) / 2), label, TEXT, font, anchor="lm")
    if frames is not None:
        _thumbnails(image, frames, mask, places["frames"], span)
    if mask is not None:
        low, high = places["mask"]
        share = mask.float().flatten(1).mean(1).tolist()
        for f, value in enumerate(share):
            draw.rectangle((x(f / FPS), high - (high - low) * value, x((f + 1) / FPS) - 1, high), FACE)
    for name, known in (("video", known_video), ("audio", known_audio)):
        low, high = places[name]
        draw.rectangle((MARGIN, low, MARGIN + span, high), MADE)
        for start, end in _runs(known):
            left, right = (x(at / len(known) * seconds) for at in (start, end))
            draw.rectangle((left, low, right, high), KNOWN)
        text = "known" if known.all() else "generated" if not known.any() else "blue: known, grey: generated"
        draw.text((MARGIN + GAP, (low + high) / 2), text, TEXT, ImageFont.load_default(10), anchor="lm")
    for i, word in enumerate(words or []):
        low, high = places["words"]
        left, right = x(word.start), x(word.end)
        draw.rectangle((left, low, right, high), WORDS[i % 2])
        size = 12
        while size > 6 and draw.textlength(word.text, ImageFont.load_default(size)) > right - left - 2:
            size -= 1
        middle = ((left + right) / 2, (low + high) / 2)
        draw.text(middle, word.text, TEXT, ImageFont.load_default(size), anchor="mm")
    if waveform is not None:
        _wave(draw, fit_length(waveform.float(), round(seconds * SAMPLE_RATE)), places["wave"], span)
    low, _ = places["axis"]
    step = next((s for s in (0.25, 0.5, 1, 2, 5, 10, 30, 60) if span * s / seconds >= 48), 300)
    for i in range(int(seconds / step) + 1):
        at = x(i * step)
        draw.line((at, low, at, low + 4), GRID)
        draw.text((at, low + 4), f"{i * step:g} s", TEXT, ImageFont.load_default(10), anchor="mt")
    return torch.from_numpy(np.array(image))


def _thumbnails(
    image: Image.Image, frames: Tensor, mask: Tensor | None, place: tuple[int, int], span: int
) -> None:
    low, high = place
    height = high - low
    wide = max(1, round(height * frames.shape[2] / frames.shape[1]))
    count = min(max(1, span // (wide + 2)), len(frames))
    for i in range(count):
        f = min(len(frames) - 1, int((i + 0.5) * len(frames) / count))
        pixels = frames[f].float()
        if mask is not None:
            shade = mask[min(f, len(mask) - 1)].float()[None, None]
            shade = torch.nn.functional.interpolate(shade, tuple(frames.shape[1:3]), mode="bilinear")[0, 0]
            pixels = torch.lerp(pixels, torch.tensor(FACE, dtype=torch.float32), 0.6 * shade[..., None])
        tile = Image.fromarray(pixels.round().clamp(0, 255).to(torch.uint8).numpy()).resize((wide, height))
        left = MARGIN + round(i * span / count + (span / count - wide) / 2)
        image.paste(tile, (left, low))


def _wave(draw: ImageDraw.ImageDraw, waveform: Tensor, place: tuple[int, int], span: int) -> None:
    low, high = place
    middle, reach = (low + high) / 2, (high - low) / 2
    peak = max(float(waveform.abs().max()), 1e-6)
    for column, part in enumerate(waveform.tensor_split(span)):
        if len(part):
            bottom, top = (float(v) / peak for v in part.aminmax())
            draw.line((MARGIN + column, middle - reach * top, MARGIN + column, middle - reach * bottom), WAVE)


def _runs(known: Tensor) -> list[tuple[int, int]]:
    """First and last place (exclusive) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], known.int().numpy(), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
