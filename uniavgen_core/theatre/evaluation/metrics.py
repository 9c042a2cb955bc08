"""Measures of a clip: pure functions of frames, audio and masks.

Frames are uint8 `[F, H, W, 3]` at 16 fps, waveforms float32 `[n]` at 24 kHz. `measure_any` holds for every
clip, `measure` for the theatre's puppets alone: their mouth is open as far as the audio under the frame is
loud, so a perfect clip has a correlation of 1 at lag 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import torch
import torchaudio

from ...conditioning import FPS
from ...media.mel import SAMPLE_RATE, log_mel
from ..clips import loudness_envelope, measure_aperture, measure_pitch

LAGS = tuple(range(-4, 5))  # frames by which the video is later than the audio
AUDIBLE = 4.0  # nats below a clip's loudest mel cell
FACE_SIDE = 64  # pixels at which faces are compared
FACE_REACH = 0.12  # how far a face may have moved, as a share of the image's side
RESAMPLES = 2000


def measure_any(frames: np.ndarray, waveform: np.ndarray) -> dict:
    """What needs no instrument made for a kind of clip; at least 0.4 s long.

    "length", "audio_length" in seconds; "loudness" in LUFS (ITU-R BS.1770), None for silence; "pitch":
    median f0 in Hz, None where nothing is voiced; "step_picture", "step_mel": the largest step between
    neighbouring frames in units of the clip's median step: a cut or a click is far above 1.
    """
    wave = torch.from_numpy(waveform)
    loudness = float(torchaudio.functional.loudness(wave[None], SAMPLE_RATE))
    picture, (sound, audible) = picture_steps(frames), mel_steps(log_mel(wave).numpy())
    return {
        "length": len(frames) / FPS,
        "audio_length": len(waveform) / SAMPLE_RATE,
        "loudness": loudness if np.isfinite(loudness) else None,
        "pitch": heard_pitch(waveform),
        "step_picture": _relative(picture.max(), picture),
        "step_mel": _relative(sound.max(), sound[audible]),
    }


def measure(frames: np.ndarray, waveform: np.ndarray, first: int = 0) -> dict:
    """Sync, mouth and pitch of any clip in the theatre's style, of its frames from `first` on.

    "sync": Pearson r of mouth aperture and loudness at lag 0; "sync_at_lag": at each of `LAGS`; "lag": the
    best of them, None where the mouth never follows; "amplitude": how far the mouth opens (95th minus 5th
    percentile of the aperture); "pitch": median f0 in Hz, None where nothing is voiced.
    """
    aperture = measure_aperture(frames)[first:]
    loudness = loudness_envelope(waveform, len(frames))[first:]
    at_lag = [lagged_correlation(aperture, loudness, lag) for lag in LAGS]
    return {
        "sync": at_lag[LAGS.index(0)],
        "sync_at_lag": at_lag,
        "lag": LAGS[int(np.argmax(at_lag))] if max(at_lag) > 0 else None,
        "amplitude": amplitude(aperture),
        "pitch": heard_pitch(waveform),
        "aperture": aperture.round(3).tolist(),
        "loudness": loudness.round(3).tolist(),
    }


def lagged_correlation(aperture: np.ndarray, loudness: np.ndarray, lag: int = 0) -> float:
    """Pearson r of `aperture[f + lag]` and `loudness[f]`; 0 where one of them never changes."""
    count = len(aperture) - abs(lag)
    a, b = aperture[max(0, lag) :][:count], loudness[max(0, -lag) :][:count]
    if min(a.std(), b.std()) < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def amplitude(aperture: np.ndarray) -> float:
    """How far a mouth opens: the 95th minus the 5th percentile of its aperture `[F]`."""
    return float(np.subtract(*np.percentile(aperture, (95, 5))))


def heard_pitch(waveform: np.ndarray) -> float | None:
    """Median f0 in Hz, None where nothing is voiced."""
    pitch = measure_pitch(waveform)
    return None if np.isnan(pitch) else pitch


def pitch_error(heard: float | None, wanted: float) -> float:
    """`|heard / wanted - 1|`; 1 where nothing voiced was heard."""
    return 1.0 if heard is None else abs(heard / wanted - 1)


def picture_seam(frames: np.ndarray, first_new: int, every: int = 1) -> float:
    """The step onto frame `first_new` in units of the clip's median step between frames.

    With `every` = 4 the median is that of steps from one latent frame to the next, like the seam itself:
    a VAE makes these larger than those within a latent frame.
    """
    steps = picture_steps(frames)
    return _relative(steps[first_new - 1], steps[(first_new - 1) % every :: every])


def picture_steps(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame to the one before, `[F - 1]`."""
    return np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)])


def mel_seam(mel: np.ndarray, first_new: int) -> float:
    """The step onto mel frame `first_new` of `[80, L]` in units of the clip's median step where it is heard.

    Silence has no steps, so the median is that of frames within `AUDIBLE` of the loudest cell.
    """
    steps, audible = mel_steps(mel)
    return _relative(steps[first_new - 1], steps[audible])


def mel_steps(mel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `[80, L]`: mean absolute difference of each frame to the one before, and which of them are heard."""
    audible = mel.max(0) > mel.max() - AUDIBLE
    return np.abs(np.diff(mel, axis=1)).mean(0), audible[1:] | audible[:-1]


def _relative(step: float, steps: np.ndarray) -> float:
    return float(step / max(1e-3, np.median(steps)))


def mask_iou(predicted: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union of two masks of one shape, each thresholded at 0.5."""
    a, b = predicted > 0.5, target > 0.5
    return float((a & b).sum() / max(1, (a | b).sum()))


class Face:
    """The face of a reference image uint8 `[H, W, 3]` with its mask bool `[H, W]`, to be found again."""

    def __init__(self, picture: np.ndarray, mask: np.ndarray):
        side = min(picture.shape[:2])
        self.scale = min(1.0, FACE_SIDE / side)
        small = self._small(mask.astype(np.float32)) > 0.95
        rows, columns = np.flatnonzero(small.any(1)), np.flatnonzero(small.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        self.mask = np.repeat(small[box].astype(np.float32)[..., None], 3, 2)
        self.picture = np.ascontiguousarray(self._small(picture.astype(np.float32))[box])
        reach = round(FACE_REACH * side * self.scale)
        self.search = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)

    def _small(self, picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, None, fx=self.scale, fy=self.scale, interpolation=cv2.INTER_AREA)

    def distance(self, frames: np.ndarray) -> float:
        """Colour difference (root mean square, 0..255) of this face to the best place near by, the median
        over every fourth frame of a clip."""
        found = []
        for frame in frames[4::4]:
            near = np.ascontiguousarray(self._small(frame.astype(np.float32))[self.search])
            squares = cv2.matchTemplate(near, self.picture, cv2.TM_SQDIFF, mask=self.mask)
            found.append(max(0.0, float(squares.min())) / self.mask.sum())
        return float(np.sqrt(np.median(found)))


def interval(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> tuple[float, float, float]:
    """A statistic and its 95 % bootstrap interval over clips.

    `rows` is `[N]` or `[N, k]`; `statistic` takes `[R, N]` or `[R, N, k]` and gives `[R]`.
    """
    rows = np.asarray(rows, np.float64)
    chosen = np.random.default_rng(seed).integers(len(rows), size=(RESAMPLES, len(rows)))
    low, high = np.percentile(statistic(rows[chosen]), (2.5, 97.5))
    return float(statistic(rows[None])[0]), float(low), float(high)


def mean(samples: np.ndarray) -> np.ndarray:
    """`[R, N]` -> `[R]`, for `interval`."""
    return samples.mean(1)


def median(samples: np.ndarray) -> np.ndarray:
    """`[R, N]` -> `[R]`, for `interval`."""
    return np.median(samples, 1)


def ratio(samples: np.ndarray) -> np.ndarray:
    """`[R, N, 2]` -> `[R]`: the sum of the first column over that of the second, for `interval`."""
    total = samples.sum(1)
    return total[:, 0] / np.maximum(total[:, 1], 1e-9)
