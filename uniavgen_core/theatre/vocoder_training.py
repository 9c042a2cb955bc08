"""A small BigVGAN trained on the theatre's speech.

It learns from the errors of spectra alone, without the discriminators of the paper (BigVGAN, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..media import mel
from ..media.vocoder import random_vocoder, save_vocoder
from ..training.loop import Run, fit, make_accelerator
from ..training.recipe import Schedule
from .batches import TensorBatch, TheatreBatches
from .clips import Theatre
from .recipe import EMBEDDED

SIZES = {
    "upsample_initial_channel": 128,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
}
SECONDS = 0.4  # of a training piece
POOL = 256  # recordings that a step draws from
WINDOWS = (128, 512, 2048)  # samples of the compared spectra; hops are a quarter
_speech = lru_cache(maxsize=POOL)(Theatre.speech)


@dataclass
class Waveforms(TensorBatch):
    """waveform `[B, n]` at 24 kHz."""

    waveform: Tensor


class TheatreWaveforms(TheatreBatches):
    """Pieces of recordings, each with speech in it."""

    kind = Waveforms

    def piece(self, generator: torch.Generator, step: int) -> tuple[Tensor]:
        waveform = _speech(self.theatre, step + int(torch.randint(POOL, (), generator=generator))).waveform
        length = round(SECONDS * mel.SAMPLE_RATE)
        heard = np.flatnonzero(np.abs(waveform) > 0.05)
        centre = int(heard[int(torch.randint(len(heard), (), generator=generator))])
        first = min(max(centre - length // 2, 0), len(waveform) - length)
        return (torch.from_numpy(waveform[first : first + length]),)


class Resynthesis(nn.Module):
    """Waveform -> mel -> waveform, and the distance of their spectra."""

    def __init__(self, bigvgan: nn.Module):
        super().__init__()
        self.bigvgan = bigvgan

    def forward(self, sounds: Waveforms) -> dict[str, Tensor]:
        """Scalars: "loss" and its parts "mel" (nats) and "spectra"."""
        wanted = sounds.waveform
        made = self.bigvgan(mel.log_mel(wanted)).to(wanted.device).reshape(len(wanted), -1)
        wanted = wanted[:, : made.shape[1]]
        parts = {"mel": mel_distance(made, wanted), "spectra": spectral_distance(made, wanted)}
        return {"loss": parts["mel"] + parts["spectra"], **parts}


def mel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the log-mels of two sounds `[B, n]`, in nats."""
    return F.l1_loss(mel.log_mel(a), mel.log_mel(b))


def spectral_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over `WINDOWS` of spectral convergence plus log-magnitude distance (Parallel WaveGAN, 2020)."""
    distances = []
    for size in WINDOWS:
        window = torch.hann_window(size, device=a.device)
        x, y = (
            torch.stft(s, size, size // 4, window=window, return_complex=True).abs().clamp(min=1e-5)
            for s in (a, b)
        )
        distances.append((x - y).norm() / y.norm() + F.l1_loss(x.log(), y.log()))
    return torch.stack(distances).mean()


def train_vocoder(theatre: Theatre, stage: Schedule, out: str | Path, run: Run | None = None) -> Path:
    """Train a BigVGAN of `SIZES`; returns its safetensors file. A run that was stopped goes on.

    Raises:
        UserError: as `fit`; a batch that the processes cannot share equally.
    """
    accelerator, out = make_accelerator(), Path(out)
    file = out / "vocoder.safetensors"
    if file.exists():
        return file
    vocoder = random_vocoder(**SIZES)
    vocoder.bigvgan.train().requires_grad_(True)
    batches = TheatreWaveforms(theatre, stage, accelerator.process_index, accelerator.num_processes)
    objective = Resynthesis(vocoder.bigvgan)
    state = fit(accelerator, objective, stage, batches, out / stage.name, EMBEDDED, run or Run())
    if accelerator.is_main_process:
        vocoder.load_state_dict(state)
        save_vocoder(vocoder, file)
    accelerator.wait_for_everyone()
    return file
