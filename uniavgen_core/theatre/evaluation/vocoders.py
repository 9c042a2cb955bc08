"""Measures of a vocoder: real mels of held-out recordings made audio again."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...media import mel
from ..clips import Theatre, measure_pitch
from ..vocoder_training import mel_distance, spectral_distance
from .metrics import heard_pitch, pitch_error
from .recogniser import Recogniser, word_errors, words


@torch.no_grad()
def judge(
    vocoder: Callable[[Tensor], Tensor], recogniser: Recogniser, recordings: int = 64
) -> dict[str, float]:
    """What `vocoder` (log-mel `[1, 80, L]` -> waveform `[1, 240 L]`) makes of held-out recordings.

    "mel", "spectra": distances to the recording (see `training/vocoder.py`); "pitch": median error of f0, 1
    where nothing is voiced; "word_error": the recogniser's, and "real_word_error" on the recordings
    themselves; "seconds" of work per second of audio.
    """
    theatre, distances, pitches = Theatre(split="held-out"), [], []
    wrong, wrong_real, said, work = 0, 0, 0, 0.0
    for index in range(recordings):
        speech = theatre.speech(index)
        real = torch.from_numpy(speech.waveform)[None]
        log_mel = mel.log_mel(real)
        begin = time.perf_counter()
        made = vocoder(log_mel).cpu()
        work += (time.perf_counter() - begin) * mel.SAMPLE_RATE / made.shape[1]
        real = real[:, : made.shape[1]]
        distances.append([mel_distance(made, real).item(), spectral_distance(made, real).item()])
        pitches.append(pitch_error(heard_pitch(made[0].numpy()), measure_pitch(speech.waveform)))
        wrong += word_errors(speech.transcript, recogniser.transcribe(made)[0])
        wrong_real += word_errors(speech.transcript, recogniser.transcribe(real)[0])
        said += len(words(speech.transcript))
    of_mel, of_spectra = np.mean(distances, 0).tolist()
    return {
        "mel": of_mel,
        "spectra": of_spectra,
        "pitch": float(np.median(pitches)),
        "word_error": wrong / said,
        "real_word_error": wrong_real / said,
        "seconds": work / recordings,
    }
