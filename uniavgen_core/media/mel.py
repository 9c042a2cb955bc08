"""From audio to the audio latent and back (docs/model.md sections 1 and 9, "Mel").

waveform [..., samples] at 24 kHz, -1..1  ->  log_mel [..., 80, L], natural log, 100 frames a second
->  latent [..., L, 80], normalised.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import resample_poly
from torch import Tensor

from ..errors import UserError

SAMPLE_RATE = 24000
HOP = 240
MEL_BANDS = 80
N_FFT = 1024
MAX_FREQUENCY = 8000
LOG_FLOOR = 1e-5
PADDING = (N_FFT - HOP) // 2
MIN_SAMPLES = PADDING + 1
LATENT_MEAN = -5.1753
LATENT_STD = 2.1544
PEAK = 0.999146
REFERENCE_SILENCE = 0.3  # seconds
MIN_VOICE_SECONDS = 0.5
SILENCE = 1e-4
MIN_RATE, MAX_RATE = 1000, 1_000_000


def fit_length(waveform: Tensor, samples: int) -> Tensor:
    """`[..., n]` cut, or filled up with silence, to `[..., samples]`."""
    return F.pad(waveform[..., :samples], (0, max(0, samples - waveform.shape[-1])))


def log_mel(waveform: Tensor) -> Tensor:
    """Natural-log mel spectrogram, [..., samples] at 24 kHz -> [..., 80, samples // 240], fp32.

    Raises:
        UserError: samples that are no floating-point numbers or not finite, or fewer than 393 of them.
    """
    _check_samples(waveform)
    samples = waveform.shape[-1]
    if samples < MIN_SAMPLES:
        raise UserError(
            f"the audio has {samples} samples ({1000 * samples / SAMPLE_RATE:.1f} ms at 24 kHz), expected at "
            f"least {MIN_SAMPLES} ({1000 * MIN_SAMPLES / SAMPLE_RATE:.1f} ms); use a longer clip"
        )
    clips = waveform.float().reshape(-1, samples)
    padded = F.pad(clips, (PADDING, PADDING), mode="reflect")
    spectrum = torch.stft(
        padded,
        N_FFT,
        HOP,
        window=torch.hann_window(N_FFT, device=clips.device),
        center=False,
        return_complex=True,
    )  # [clips, 513, L]
    power = spectrum.real.square() + spectrum.imag.square()
    filters = torch.from_numpy(mel_filters()).to(clips.device)
    mel = filters @ torch.sqrt(power + 1e-9)  # [clips, 80, L]
    return mel.clamp(min=LOG_FLOOR).log().reshape(*waveform.shape[:-1], MEL_BANDS, -1)


def mel_to_latent(log_mel: Tensor) -> Tensor:
    """[..., 80, L] natural-log mel -> [..., L, 80] audio latent (docs/model.md section 1)."""
    return (log_mel.transpose(-1, -2) - LATENT_MEAN) / LATENT_STD


def latent_to_mel(latent: Tensor) -> Tensor:
    """[..., L, 80] audio latent -> [..., 80, L] natural-log mel; the inverse of `mel_to_latent`."""
    return (latent * LATENT_STD + LATENT_MEAN).transpose(-1, -2)


@cache
def mel_filters() -> np.ndarray:
    """Slaney mel filters, [80, 513] float32, 0 to 8000 Hz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        N_FFT // 2 + 1, MEL_BANDS, 0.0, float(MAX_FREQUENCY), SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return np.ascontiguousarray(filters.T, dtype=np.float32)


def prepare_audio(waveform: Tensor, rate: float) -> Tensor:
    """Any audio as the model takes it: [channels, n] at `rate` Hz -> mono [n'] at 24 kHz, fp32.

    Raises:
        UserError: no samples, samples that are not finite, a rate outside 1 kHz..1 MHz.
    """
    return resample(to_mono(waveform), rate, SAMPLE_RATE)


def check_audible(waveform: Tensor, name: str) -> None:
    """Raises UserError where the peak of a recording, called `name`, is below 0.0001."""
    peak = float(waveform.abs().max())
    if peak < SILENCE:
        raise UserError(
            f"{name} is silent (peak {peak:.1e}, expected at least {SILENCE}); "
            "use a clip in which someone speaks"
        )


def to_mono(waveform: Tensor) -> Tensor:
    """The mean of all channels, [channels, n] -> [n] in fp32.

    Raises:
        UserError: no channel, no samples, or samples that are not finite.
    """
    if waveform.ndim != 2:
        raise UserError(f"the audio has shape {list(waveform.shape)}, expected [channels, samples]")
    _check_samples(waveform)
    return waveform.mean(0, dtype=torch.float32)


def resample(waveform: Tensor, rate_in: float, rate_out: float) -> Tensor:
    """Band-limited resampling, [..., n] at `rate_in` -> [..., ceil(n * rate_out / rate_in)] at `rate_out`.

    float64 stays float64, everything else comes back as fp32.

    Raises:
        UserError: no samples, samples that are not finite, or a rate outside 1 kHz..1 MHz.
    """
    _check_samples(waveform)
    for rate in (rate_in, rate_out):
        if not MIN_RATE <= rate <= MAX_RATE:
            raise UserError(f"the sample rate is {rate} Hz, expected {MIN_RATE} to {MAX_RATE}")
    exact = waveform if waveform.dtype == torch.float64 else waveform.float()
    ratio = (Fraction(rate_out) / Fraction(rate_in)).limit_denominator(1_000_000)
    if ratio == 1:
        return exact
    samples = exact.detach().cpu().numpy()
    resampled = resample_poly(samples, ratio.numerator, ratio.denominator, axis=-1)
    return torch.from_numpy(resampled).to(exact)


def peak_normalise(waveform: Tensor) -> Tensor:
    """[..., n] with each clip's peak at 0.999146 (docs/model.md section 6); a silent clip stays as it is."""
    peak = waveform.abs().amax(-1, keepdim=True)
    return waveform / torch.where(peak > 0, peak, 1.0) * PEAK


def sound_latent(waveform: Tensor) -> Tensor:
    """`[..., n]` at 24 kHz -> normalised latent `[..., L, 80]`, L = n // 240."""
    return mel_to_latent(log_mel(waveform))


def check_voice_length(waveform: Tensor, name: str) -> None:
    """Raises UserError where a reference voice `[n]` at 24 kHz, called `name`, is too short to tell."""
    seconds = len(waveform) / SAMPLE_RATE
    if seconds < MIN_VOICE_SECONDS:
        raise UserError(
            f"{name}: the voice lasts {seconds:.3f} s, expected at least {MIN_VOICE_SECONDS} s; give a clip "
            "of 3 to 10 s"
        )


def reference_voice(waveform: Tensor) -> Tensor:
    """A reference voice: peak-normalised and followed by 0.3 s of silence (docs/model.md section 6)."""
    return F.pad(peak_normalise(waveform), (0, round(REFERENCE_SILENCE * SAMPLE_RATE)))


def _check_samples(waveform: Tensor) -> None:
    if not waveform.is_floating_point():
        raise UserError(f"the samples are {waveform.dtype}, expected floating-point numbers in -1..1")
    if waveform.numel() == 0:
        raise UserError("the audio has no samples; use a clip that is not empty")
    if not waveform.isfinite().all():
        wrong = int((~waveform.isfinite()).sum())
        raise UserError(f"{wrong} of {waveform.numel()} samples are NaN or infinite; use an undamaged clip")
