"""Sound becomes the audio latent, whatever its rate, length and channels."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from uniavgen_core.errors import UserError
from uniavgen_core.media.mel import (
    SAMPLE_RATE,
    check_audible,
    latent_to_mel,
    log_mel,
    mel_to_latent,
    peak_normalise,
    prepare_audio,
    resample,
    to_mono,
)
from uniavgen_core.verify import GOLDEN

ROOT = Path(__file__).parents[1]
MEL_CASE = load_file(GOLDEN / "mel_case.safetensors")


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def tone(frequency, rate, seconds=0.5):
    return torch.sin(2 * torch.pi * frequency * torch.arange(int(rate * seconds), dtype=torch.float64) / rate)


def test_the_golden_waveform_gives_the_golden_mel_and_latent():
    mel = log_mel(MEL_CASE["waveform"])
    assert relative_error(mel, MEL_CASE["log_mel"]) < 1e-6
    assert relative_error(mel_to_latent(mel), MEL_CASE["latent"]) < 1e-6
    assert relative_error(latent_to_mel(MEL_CASE["latent"]), MEL_CASE["log_mel"]) < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=3), st.integers(393, 3000))
def test_a_second_of_sound_is_a_hundred_frames_in_any_batch(batch, samples):
    waveform = torch.rand(*batch, samples) - 0.5
    mel = log_mel(waveform)
    assert mel.shape == (*batch, 80, samples // 240)
    one = log_mel(waveform.reshape(-1, samples)[-1])
    torch.testing.assert_close(mel.reshape(-1, 80, samples // 240)[-1], one, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-6), (torch.float16, 2e-2), (torch.bfloat16, 2e-1)]
)
def test_any_floating_point_sound_is_computed_in_fp32(dtype, limit):
    mel = log_mel(MEL_CASE["waveform"].to(dtype))
    assert mel.dtype == torch.float32
    assert relative_error(mel, MEL_CASE["log_mel"]) < limit


def test_digital_silence_is_the_floor_of_the_log():
    assert torch.equal(log_mel(torch.zeros(480)), torch.full((80, 2), 1e-5).log())


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(44100, 24000), (8000, 24000), (24000, 16000), (48000.0, 24000)]
)
def test_resampling_keeps_a_tone_and_its_place_in_time(rate_in, rate_out):
    got = resample(torch.stack([tone(440, rate_in), tone(1000, rate_in)]), rate_in, rate_out)
    expected = torch.stack([tone(440, rate_out), tone(1000, rate_out)])
    assert got.dtype == torch.float64
    middle = slice(200, -200)
    assert relative_error(got[:, middle], expected[:, middle]) < 5e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(1000, 50000), st.integers(1000, 50000), st.integers(1, 400))
def test_resampling_works_at_any_two_rates(rate_in, rate_out, samples):
    got = resample(torch.ones(2, samples), rate_in, rate_out)
    assert got.shape == (2, -(-samples * rate_out // rate_in))
    assert got.dtype == torch.float32
    assert got.isfinite().all()


def test_any_clip_becomes_mono_24_khz_fp32():
    eight = tone(300, 48000).half().expand(8, -1)
    prepared = prepare_audio(eight, 48000)
    assert prepared.dtype == torch.float32
    assert relative_error(prepared[200:-200], tone(300, 24000).float()[200:-200]) < 5e-3


def test_mono_is_the_mean_of_the_channels():
    assert torch.equal(to_mono(torch.tensor([[1.0, 0.5], [0.0, -0.5]])), torch.tensor([0.5, 0.0]))


def test_each_clip_is_normalised_to_the_models_peak():
    clips = torch.tensor([[0.1, -0.2, 0.05], [0.0, 0.0, 0.0], [1e-39, 0.0, -5e-40]])
    normal = peak_normalise(clips)
    assert normal[0].tolist() == pytest.approx([0.499573, -0.999146, 0.2497865])
    assert torch.equal(normal[1], clips[1])
    assert normal[2].abs().max().item() == pytest.approx(0.999146)


@pytest.mark.parametrize("samples", [1, 392])
def test_a_clip_too_short_for_one_frame_is_told_how_long_it_must_be(samples):
    with pytest.raises(UserError, match=rf"has {samples} samples .* at least 393 \(16\.4 ms\)"):
        log_mel(torch.zeros(samples))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "call", [log_mel, lambda w: prepare_audio(w[None], 44100), lambda w: resample(w, 2000, 1000)]
)
def test_samples_that_are_no_numbers_are_counted(call, bad):
    waveform = torch.zeros(1000)
    waveform[[3, 7]] = bad
    with pytest.raises(UserError, match="2 of 1000 samples are NaN or infinite"):
        call(waveform)


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (torch.zeros(2, 0), 24000, "no samples"),
        (torch.zeros(0, 100), 24000, "no samples"),
        (torch.zeros(100), 24000, r"shape \[100\], expected \[channels, samples\]"),
        (torch.zeros(1, 100, dtype=torch.int16), 24000, "int16, expected floating-point"),
        (torch.zeros(1, 100), 0, "rate is 0 Hz"),
        (torch.zeros(1, 100), -8000, "rate is -8000 Hz"),
        (torch.zeros(1, 100), float("nan"), "rate is nan Hz"),
        (torch.full((2, 9), 3e38), 24000, "infinite"),
    ],
)
def test_unusable_sound_is_refused_in_one_line(waveform, rate, message):
    with pytest.raises(UserError, match=message):
        prepare_audio(waveform, rate)


def test_a_silent_clip_is_refused_only_where_it_must_be_heard():
    silent = torch.full((1, 4800), 5e-5)
    assert prepare_audio(silent, SAMPLE_RATE).shape == (4800,)
    with pytest.raises(UserError, match="the voice is silent"):
        check_audible(silent, "the voice")


def test_mel_and_resampling_need_no_torchaudio():
    code = (
        "import sys; sys.modules['torchaudio'] = None\n"
        "import torch\n"
        "from uniavgen_core.media.mel import log_mel, prepare_audio\n"
        "print(*log_mel(prepare_audio(torch.rand(2, 44100), 44100)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["80", "100"], done.stderr
