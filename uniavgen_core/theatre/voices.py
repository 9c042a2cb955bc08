"""The theatre's speech: a small language, voices of known pitch, and how sound is measured.

Speech is synthesised by espeak-ng (a program, `apt install espeak-ng`), resampled to 24 kHz. Waveforms
are float32 in -1..1. Everything here is a pure function of its arguments.
"""

import hashlib
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import floor

import numpy as np
from scipy.signal import resample_poly

from ..errors import UserError
from ..media import FPS
from ..media.mel import SAMPLE_RATE

HELD_OUT_SHARE = 8  # one identity or sentence in eight is held out

DETERMINERS = ["the", "my", "your", "her"]
ADJECTIVES = ["red", "green", "happy", "little", "old", "big", "new", "yellow"]
NOUNS = ["cat", "dog", "bird", "house", "garden", "flower", "river", "moon", "window"]
NOUNS += ["table", "apple", "teacher", "friend", "brother", "water", "bread", "story", "mountain"]
VERBS = ["see", "like", "want", "love", "need", "remember", "know", "bring"]
ACTIONS = ["sings", "sleeps", "runs", "waits", "jumps", "laughs"]
WHEN = ["now", "today", "here", "again", "tonight", "slowly"]
PRONOUNS = ["I", "we", "you", "they"]
GREETINGS = ["hello", "please", "thanks", "sorry", "maybe"]
QUESTIONS = ["where", "who", "what", "when"]

_SLOTS = {
    "D": DETERMINERS,
    "A": ADJECTIVES,
    "N": NOUNS,
    "V": VERBS,
    "R": ACTIONS,
    "W": WHEN,
    "P": PRONOUNS,
    "G": GREETINGS,
    "Q": QUESTIONS,
}
_TEMPLATES = [
    "D N",
    "P V",
    "D A N",
    "P V D N",
    "P V D A N",
    "P V D N W",
    "D N R",
    "D N R W",
    "D A N R",
    "D A N R W",
    "D N is A",
    "D N is very A",
    "D N is not A",
    "Q is D N",
    "Q is D A N",
    "G bring me D N",
    "G show me D N",
    "open D A N",
    "G good morning",
    "G good evening",
    "G D N R",
    "D N W",
    "G W",
]
_LENGTHS = {2: 0.15, 3: 0.25, 4: 0.3, 5: 0.3}  # share of sentences by number of words
_UNSTRESSED = {*DETERMINERS, "is", "very", "not", "I", "we", "you", "they"}


def held_out(text: str) -> bool:
    """Whether an identity or a sentence belongs to the held-out split, by its SHA-256."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Voice:
    """A speaker: espeak-ng variant, median pitch in Hz, and formants relative to the variant's own."""

    variant: str
    pitch: float
    formants: float


@dataclass(frozen=True)
class Recording:
    """Speech of `voice`: waveform float32 [n] at 24 kHz, and what is said."""

    waveform: np.ndarray
    transcript: str
    voice: Voice


# log f0 as a cubic of (p - 50) / 50 for espeak-ng's `-p`, highest power first, at `_INTONATION` (measured).
_LOG_PITCH = {
    "adam": (-0.037, 0.073, 0.527, 4.537),
    "edward": (-0.027, 0.073, 0.521, 4.537),
    "f2": (-0.004, 0.039, 0.518, 5.190),
    "f5": (-0.002, 0.033, 0.548, 5.255),
}
_INTONATION = "40%"
_FASTEST = 215


def sentence(rng: np.random.Generator, is_held_out: bool) -> str:
    """A sentence of 2 to 5 words of `VOCABULARY`, from the wanted split."""
    while True:
        length = rng.choice(list(_LENGTHS), p=list(_LENGTHS.values()))
        templates = [t.split() for t in _TEMPLATES if len(t.split()) == length]
        template = templates[rng.integers(len(templates))]
        slots = [_SLOTS.get(token, [token]) for token in template]
        text = " ".join(str(words[rng.integers(len(words))]) for words in slots)
        if held_out(text) == is_held_out:
            return text


def recording(
    rng: np.random.Generator, voice: Voice, seconds: float, is_held_out: bool, transcript: str | None = None
) -> Recording:
    """A recording of exactly round(seconds * 24000) samples: a sentence for every 2.5 s, with random onsets,
    pauses and speed; the sentences of `transcript` where that is given.
    """
    samples = round(seconds * SAMPLE_RATE)
    count = max(1, floor(seconds / 2.5))
    texts = transcript.split(". ") if transcript else [None] * count
    longest = samples // count
    waveform, said = np.zeros(samples, np.float32), []
    for place, text in enumerate(texts):
        text, speech = _fitting(rng, voice, longest, is_held_out, text)
        # Beta(0.5, 0.5) leans to both ends: the middle of a clip is not always the loud part.
        onset = place * longest + int((longest - len(speech)) * rng.beta(0.5, 0.5))
        waveform[onset : onset + len(speech)] = speech
        said.append(text)
    return Recording(waveform, ". ".join(said), voice)


def _fitting(rng, voice: Voice, longest: int, is_held_out: bool, text: str | None) -> tuple[str, np.ndarray]:
    """A sentence (or `text`) and its speech of at most `longest` samples, quickened where it must be."""
    fixed = text is not None
    while True:
        words = text if fixed else sentence(rng, is_held_out)
        rate = rng.uniform(135, 185)
        paused = _with_pauses(rng, words) if rng.random() < 0.75 else words
        for ssml, speed in ((paused, rate), (words, rate)):
            speech = speak(ssml, voice, speed)
            if len(speech) <= longest:
                return words, speech
        # Speech shortens a little less than the rate grows.
        needed = rate
        while len(speech) > longest and (fixed or needed < _FASTEST) and needed < 2 * _FASTEST:
            needed *= 1.05 * len(speech) / longest
            speech = speak(words, voice, needed)
        if len(speech) <= longest:
            return words, speech
        if fixed:
            raise UserError(f"{words!r} does not fit into {longest / SAMPLE_RATE:.2f} s; use more frames")


def _with_pauses(rng, text: str) -> str:
    """SSML with breaks of 60 to 420 ms after some of the stressed words."""
    words = text.split()
    parts = [words[0]]
    for before, word in pairwise(words):
        pause = rng.random() < 0.5 and before not in _UNSTRESSED
        parts.append(f' <break time="{rng.integers(60, 420)}ms"/> ' if pause else " ")
        parts.append(word)
    return "".join(parts)


def _pitch_position(variant: str, pitch: float) -> int:
    """The value of espeak-ng's `-p` (0..99) whose median f0 is nearest to `pitch` Hz."""
    positions = np.arange(100)
    heard = np.exp(np.polyval(_LOG_PITCH[variant], (positions - 50) / 50))
    return int(np.abs(np.log(heard / pitch)).argmin())


def speak(text: str, voice: Voice, words_per_minute: float = 160) -> np.ndarray:
    """`text` (SSML breaks allowed) said by `voice`: float32 [n] at 24 kHz, silence trimmed, same loudness.

    Raises UserError where espeak-ng is not installed.
    """
    tract = round(voice.formants * 20) / 20
    position = _pitch_position(voice.variant, voice.pitch / tract)
    raw = _espeak(text, voice.variant, position, round(words_per_minute / tract))
    waveform = resample_poly(raw, 160 * 20, 147 * round(tract * 20)).astype(np.float32)
    loud = np.flatnonzero(np.abs(waveform) > 0.02 * np.abs(waveform).max())
    waveform = waveform[loud[0] : loud[-1] + 1]
    level = np.sqrt(np.mean(waveform**2))
    return waveform * min(0.13 / level, 0.95 / np.abs(waveform).max())


@lru_cache(maxsize=128)
def _espeak(text: str, variant: str, position: int, words_per_minute: int) -> np.ndarray:
    ssml = f'<prosody range="{_INTONATION}">{text}</prosody>'
    command = ["espeak-ng", "-m", "-v", f"en-us+{variant}", "-p", str(position)]
    command += ["-s", str(words_per_minute), "--stdout", ssml]
    try:
        wav = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise UserError(
            "the theatre speaks through the program espeak-ng, which was not found; install it"
            " (Debian, Ubuntu: apt install espeak-ng; macOS: brew install espeak-ng)"
        ) from None
    pcm = wav[44 : 44 + (len(wav) - 44) // 2 * 2]
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768


def loudness_envelope(waveform: np.ndarray, frames: int) -> np.ndarray:
    """RMS of the sound under each video frame over its 95th percentile, at most 1: float32 [frames].

    `waveform` is [n] at 24 kHz; frame f covers samples 1500 f to 1500 (f + 1), missing ones are silent.
    """
    hop = SAMPLE_RATE // FPS
    padded = np.zeros(frames * hop, np.float64)
    heard = np.asarray(waveform, np.float64).reshape(-1)[: frames * hop]
    padded[: len(heard)] = heard
    rms = np.sqrt((padded.reshape(frames, hop) ** 2).mean(1))
    return np.minimum(rms / max(np.percentile(rms, 95), 1e-6), 1).astype(np.float32)


def measure_pitch(waveform: np.ndarray, lowest: float = 65, highest: float = 420) -> float:
    """Median f0 in Hz over voiced frames of a waveform [n] at 24 kHz; nan where nothing is voiced.

    Normalised autocorrelation of 45 ms windows (Boersma 1993), voiced above 0.6.
    """
    wave = np.asarray(waveform, np.float64).reshape(-1)
    width, hop = int(0.045 * SAMPLE_RATE), SAMPLE_RATE // 100
    if len(wave) < width:
        return float("nan")
    windows = np.lib.stride_tricks.sliding_window_view(wave, width)[::hop]
    rms = np.sqrt((windows**2).mean(1))
    windows = windows[(rms > 0.25 * np.percentile(rms, 95)) & (rms > 1e-4)]
    if len(windows) == 0:
        return float("nan")
    hann = np.hanning(width)
    size = 1 << (2 * width - 1).bit_length()
    shaped = (windows - windows.mean(1, keepdims=True)) * hann
    correlation = np.fft.irfft(np.abs(np.fft.rfft(shaped, size)) ** 2)[:, :width]
    own = np.fft.irfft(np.abs(np.fft.rfft(hann, size)) ** 2)[:width]
    first, last = int(SAMPLE_RATE / highest), int(SAMPLE_RATE / lowest) + 1
    r = (correlation / correlation[:, :1] / (own / own[0]))[:, first - 1 : last + 2]
    middle = r[:, 1:-1]
    peaks = np.where((middle >= r[:, :-2]) & (middle > r[:, 2:]), middle, -1.0)
    best = peaks.max(1)
    rows = np.flatnonzero(best > 0.6)
    if len(rows) == 0:
        return float("nan")
    # The shortest lag that is nearly as good as the best one: no octave below.
    lag = (peaks[rows] >= 0.9 * best[rows, None]).argmax(1) + 1
    left, top, right = r[rows, lag - 1], r[rows, lag], r[rows, lag + 1]
    offset = (left - right) / (2 * (left - 2 * top + right))
    return float(np.median(SAMPLE_RATE / (first - 1 + lag + offset)))
