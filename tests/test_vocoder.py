"""Mel becomes sound: BigVGAN from any layout of its file, Griffin-Lim without one."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from uniavgen_core.errors import UserError
from uniavgen_core.media.mel import log_mel
from uniavgen_core.media.vocoder import GriffinLim, load_vocoder, random_vocoder
from uniavgen_core.training.recipe import Schedule
from uniavgen_core.verify import GOLDEN
from uniavgen_core.weights.convert import convert

MEL_CASE = load_file(GOLDEN / "mel_case.safetensors")
PREFIX = "token2wav.code2wav_bigvgan_model."


@pytest.fixture(scope="module")
def vocoder():
    return random_vocoder(7)


@pytest.fixture
def weights(vocoder):
    return {name: tensor.clone() for name, tensor in vocoder.bigvgan.state_dict().items()}


@pytest.fixture
def mel():
    return MEL_CASE["log_mel"][None, :, :30].contiguous()


def test_a_frame_is_240_samples_and_a_batch_is_its_clips(vocoder, mel):
    batch = torch.cat([mel, mel.flip(-1)])
    waveform = vocoder(batch)
    assert (waveform.shape, waveform.dtype) == ((2, 30 * 240), torch.float32)
    assert vocoder.sample_rate == 24000
    torch.testing.assert_close(waveform[1:], vocoder(mel.flip(-1)), rtol=0, atol=1e-6)
    assert vocoder(mel[:, :, :1]).shape == (1, 240)


def test_the_random_vocoder_sounds_follows_the_mel_and_leaves_the_seed_alone(vocoder, mel):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    same = random_vocoder(7)
    assert torch.equal(torch.rand(1), expected)
    waveform = vocoder(mel)
    assert torch.equal(same(mel), waveform)
    assert not torch.allclose(random_vocoder(8)(mel), waveform, atol=1e-3)
    assert not torch.allclose(vocoder(mel + 2), waveform, atol=1e-3)
    assert 0.005 < waveform.square().mean().sqrt() < 0.3
    assert waveform.abs().max() < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_nearly_the_same_fp32_sound(weights, vocoder, mel, dtype, tmp_path):
    save_file(weights, tmp_path / "v.safetensors")
    waveform = load_vocoder(tmp_path / "v.safetensors", dtype=dtype)(mel)
    assert waveform.dtype == torch.float32
    expected = vocoder(mel)
    assert (waveform - expected).norm() < 0.1 * expected.norm()


def one_file(folder, weights):
    save_file(weights, folder / "v.safetensors")
    return folder / "v.safetensors"


def bigvgan_folder(folder, weights):
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"upsample_rates": [5, 3, 2, 2, 2, 2]}))
    return folder


def omni_folder(folder, weights):
    names = sorted(weights)
    save_file({"thinker.embed.weight": torch.zeros(2)}, folder / "model-00001-of-00003.safetensors")
    for part, chosen in ((2, names[:100]), (3, names[100:])):
        save_file(
            {PREFIX + n: weights[n] for n in chosen}
            | {f"token2wav.code2wav_dit_model.{part}": torch.zeros(1)},
            folder / f"model-0000{part}-of-00003.safetensors",
        )
    config = {"token2wav_config": {"bigvgan_config": {"upsample_rates": [5, 3, 2, 2, 2, 2]}}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def omni_shard(folder, weights):
    return one_file(
        folder, {PREFIX + name: tensor for name, tensor in weights.items()} | {"talker.w": torch.zeros(1)}
    )


@pytest.mark.parametrize("layout", [one_file, bigvgan_folder, omni_folder, omni_shard])
def test_every_layout_of_the_same_weights_sounds_the_same(layout, weights, vocoder, mel, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    loaded = load_vocoder(layout(tmp_path, weights))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(loaded(mel), vocoder(mel))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_converts_to_one_file_that_carries_its_config(weights, mel, dtype, tmp_path):
    (tmp_path / "in").mkdir()
    folder = omni_folder(tmp_path / "in", weights)
    rates = [3, 5, 2, 2, 2, 2]  # cannot be told from the tensors
    config = {"token2wav_config": {"bigvgan_config": {"upsample_rates": rates}}}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "v.safetensors", {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype])
    with safe_open(tmp_path / "v.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["upsample_rates"] == rates
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118
    expected = load_vocoder(folder, dtype=dtype)(mel)
    assert torch.equal(load_vocoder(tmp_path / "v.safetensors", dtype=dtype)(mel), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "v.safetensors"]


def change(name, tensor):
    return lambda weights: weights | {name: tensor}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda w: {n: t for n, t in w.items() if n != "conv_post.weight"},
            r"1 missing \(conv_post",
        ),
        (
            lambda w: {n: t for n, t in w.items() if "resblocks" not in n},
            "lacks residual or upsampling blocks",
        ),
        (
            change("conv_post.weight", torch.zeros(1, 1, 9)),
            r"1 misshapen \(conv_post.weight \[1, 1, 9\] for \[1, 1, 7\]",
        ),
        (change("conv_pre.weight", torch.zeros(64, 100, 7)), "vocoder of 100 mel bands and 240 samples"),
        (change("ups.0.0.weight", torch.zeros(64, 32, 16)), "vocoder of 80 mel bands and 384 samples"),
    ],
)
def test_weights_that_do_not_fit_are_refused(edit, message, weights, tmp_path):
    with pytest.raises(UserError, match=message):
        load_vocoder(one_file(tmp_path, edit(weights)))


@pytest.mark.parametrize("config", ["not json", '{"upsample_rates": "fast"}', '{"upsample_rates": 5}'])
def test_a_broken_config_is_refused(config, weights, tmp_path):
    (bigvgan_folder(tmp_path, weights) / "config.json").write_text(config)
    with pytest.raises(UserError, match="config"):
        load_vocoder(tmp_path)


def test_two_files_of_the_same_weights_in_a_folder_are_refused(weights, tmp_path):
    bigvgan_folder(tmp_path, weights)
    one_file(tmp_path, weights)
    with pytest.raises(UserError, match="name one"):
        load_vocoder(tmp_path)


@pytest.mark.parametrize("make", [GriffinLim, random_vocoder])
def test_a_mel_that_cannot_be_played_is_refused(make, mel):
    for wrong in (mel[0], mel[:, :40], mel.transpose(1, 2), mel[:, :, :0]):
        with pytest.raises(UserError, match=r"expected \[batch, 80, frames\]"):
            make()(wrong)
    with pytest.raises(UserError, match="NaN"):
        make()(mel * float("nan"))


def test_griffin_lim_gives_back_the_mel_it_was_given():
    mel = MEL_CASE["log_mel"][None]
    waveform = GriffinLim()(mel)
    assert (waveform.shape, waveform.dtype) == ((1, 100 * 240), torch.float32)
    assert (log_mel(waveform) - mel).abs().mean() < 0.2
    assert torch.equal(GriffinLim()(mel), waveform)


def test_griffin_lim_keeps_every_frame_in_its_place():
    times = torch.arange(24000)
    noise = torch.randn(24000, generator=torch.Generator().manual_seed(0)) * 0.3
    mel = log_mel(noise * torch.sin(times / 24000 * 2 * torch.pi * 9))
    waveform = GriffinLim()(mel[None])[0]
    error = {s: (log_mel(waveform.roll(s)) - mel)[:, 2:-2].square().mean() for s in (-120, -60, 0, 60, 120)}
    assert min(error, key=error.get) == 0


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_griffin_lim_plays_few_frames_and_any_loudness(frames):
    mel = torch.linspace(-60, 100, 2 * 80 * frames).reshape(2, 80, frames)
    waveform = GriffinLim()(mel.half())
    assert waveform.shape == (2, 240 * frames)
    assert waveform.isfinite().all()
    assert waveform.abs().max() <= 1


def test_without_torchaudio_griffin_lim_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(UserError, match="give a vocoder file or install the torchaudio"):
        GriffinLim()


def test_without_transformers_the_vocoder_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install -U transformers"):
        random_vocoder()


def test_training_brings_the_spectra_closer_and_writes_a_vocoder(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed")
    training = pytest.importorskip("uniavgen_core.theatre.vocoder_training")
    monkeypatch.setattr(training, "POOL", 4)
    monkeypatch.setattr(training, "SIZES", training.SIZES | {"upsample_initial_channel": 64})
    file = training.train_vocoder(training.Theatre(), Schedule("vocoder", 12, 2, 2e-3, warmup=2), tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "vocoder" / "log.jsonl").open()]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert load_vocoder(file)(log_mel(torch.rand(1, 4800) - 0.5)).shape == (1, 4800)
