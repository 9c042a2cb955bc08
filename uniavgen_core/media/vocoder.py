"""From the log-mel back to sound (SPEC section 9, "Vocoder").

Qwen2.5-Omni's BigVGAN where its weights are at hand, Griffin-Lim where they are not. Both take
log_mel [B, 80, L] (natural log, not normalised) and give [B, 240 L] samples at 24 kHz, fp32, -1..1.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic import replacing
from ..errors import UserError
from .mel import HOP, LOG_FLOOR, MEL_BANDS, N_FFT, SAMPLE_RATE, mel_filters

WANTED = "Qwen2.5-Omni's BigVGAN (80 mel bands, 240 samples a frame)"
GRIFFIN_LIM_STEPS = 100
GRIFFIN_LIM_MOMENTUM = 0.99
INVERSE_MEL_STEPS = 30
EDGE_FRAMES = 2
LOUDEST_LOG_MEL = 5.0  # above what a waveform in -1..1 can reach


class Vocoder(nn.Module):
    """BigVGAN, log_mel [B, 80, L] -> [B, 240 L] on the module's device; made by `load_vocoder`.

    Raises:
        UserError: a mel of another shape, or with NaN in it.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, bigvgan: nn.Module):
        super().__init__()
        self.bigvgan = bigvgan.eval().requires_grad_(False)
        # the decibels that BigVGAN makes of the mel stay fp32 whatever the weights are
        bigvgan.conv_pre.register_forward_pre_hook(lambda conv, inputs: inputs[0].to(conv.weight.dtype))

    def forward(self, log_mel: Tensor) -> Tensor:
        _check_mel(log_mel)
        device = self.bigvgan.conv_pre.weight.device
        waveform = self.bigvgan(log_mel.to(device, torch.float32))  # squeezed and on the CPU
        return waveform.reshape(log_mel.shape[0], -1).to(device, torch.float32)


class GriffinLim(nn.Module):
    """Sound without weights, log_mel [B, 80, L] -> [B, 240 L]: intelligible, metallic, deterministic.

    Magnitudes come from non-negative multiplicative updates (Kullback-Leibler) that start at the mel
    spread over each band, phases from torchaudio's fast Griffin-Lim.

    Raises:
        UserError: torchaudio cannot be imported; a mel of another shape, or with NaN in it.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self):
        super().__init__()
        try:
            from torchaudio.functional import griffinlim
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise UserError(
                "making sound without a vocoder file needs a working torchaudio, which cannot be imported "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                "give a vocoder file or install the torchaudio of your torch"
            ) from error
        self.griffinlim = griffinlim

    def forward(self, log_mel: Tensor) -> Tensor:
        _check_mel(log_mel)
        mel = log_mel.float().clamp(math.log(LOG_FLOOR), LOUDEST_LOG_MEL).exp()
        # torchaudio centres frame i at sample 240 i, the mel's is centred at 240 i + 120
        magnitude = F.pad(_inverse_mel(mel), (EDGE_FRAMES, EDGE_FRAMES), mode="replicate")
        waveform = self.griffinlim(
            magnitude,
            window=torch.hann_window(N_FFT, device=mel.device),
            n_fft=N_FFT,
            hop_length=HOP,
            win_length=N_FFT,
            power=1.0,
            n_iter=GRIFFIN_LIM_STEPS,
            momentum=GRIFFIN_LIM_MOMENTUM,
            length=(magnitude.shape[-1] - 1) * HOP,
            rand_init=False,
        )
        start = EDGE_FRAMES * HOP - HOP // 2
        return waveform[:, start : start + mel.shape[-1] * HOP].clamp(-1, 1)


def load_vocoder(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Vocoder:
    """BigVGAN from a safetensors file or a folder of them, its own or all of Qwen2.5-Omni's.

    Names may carry a prefix (`token2wav.code2wav_bigvgan_model.`). Sizes are read off the tensors;
    strides and dilations come from the file's metadata or the folder's config.json, else they are the
    released ones. The weights must fit name by name and shape by shape.

    Raises:
        UserError: no such file, a damaged one, another model, or weights that do not fit.
    """
    files = _weight_files(Path(path))
    tensors, metadata = _read_bigvgan(files, path)
    bigvgan = _new_bigvgan(_config(tensors, _described_config(Path(path), metadata), path))
    _check_fit(tensors, bigvgan.state_dict(), path)
    bigvgan.load_state_dict(tensors)
    return Vocoder(bigvgan.to(device, dtype))


def convert_vocoder(folder: str | Path, out_file: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes what `load_vocoder(folder)` reads as one safetensors file with the config in its metadata.

    Raises:
        UserError: as `load_vocoder`; a place that cannot be written. No partial file stays behind.
    """
    save_vocoder(load_vocoder(folder, dtype=dtype), out_file)


def save_vocoder(vocoder: Vocoder, out_file: str | Path) -> None:
    """One safetensors file with the config in its metadata, as `load_vocoder` reads it.

    Raises:
        UserError: a place that cannot be written. No partial file stays behind.
    """
    bigvgan, out_file = vocoder.bigvgan, Path(out_file)
    config = {field: getattr(bigvgan.config, field) for field in _CONFIG_FIELDS}
    try:
        with replacing(out_file) as part:
            save_file(bigvgan.state_dict(), part, {"format": "pt", "config": json.dumps(config)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out_file} cannot be written ({error}); choose another place") from error


def random_vocoder(seed: int = 0, **sizes) -> Vocoder:
    """A small BigVGAN with seeded random weights; torch's own seed is left alone. `sizes`: of its config."""
    bigvgan = _new_bigvgan({"upsample_initial_channel": 64} | sizes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in bigvgan.named_parameters():
            if name.endswith("weight"):
                fan_in = 2 * parameter.shape[0] if name.startswith("ups") else parameter[0].numel()
                gain = 0.3 if name.startswith("resblocks") else 1.0
                parameter.normal_(0, gain / fan_in**0.5, generator=generator)
        last = bigvgan.conv_post.weight
        last.copy_(0.1 * (last - last.mean()))  # a quiet hum without constant offset
    return Vocoder(bigvgan)


def _check_mel(log_mel: Tensor) -> None:
    if log_mel.ndim != 3 or log_mel.shape[1] != MEL_BANDS or log_mel.shape[2] == 0:
        raise UserError(f"the mel has shape {list(log_mel.shape)}, expected [batch, {MEL_BANDS}, frames]")
    if log_mel.isnan().any():
        raise UserError("the mel holds NaN; the sampling went wrong, try fp32 or another seed")


def _inverse_mel(mel: Tensor) -> Tensor:
    """Non-negative magnitudes whose mel is the given one, [B, 80, L] -> [B, 513, L]."""
    filters = torch.from_numpy(mel_filters()).to(mel.device)  # [80, 513]
    weight = filters.sum(0)[:, None].clamp(min=1e-12)  # bins above 8 kHz lie in no band
    magnitude = filters.T @ (mel / filters.sum(1, keepdim=True)) / weight
    for _ in range(INVERSE_MEL_STEPS):
        magnitude = magnitude * (filters.T @ (mel / (filters @ magnitude))) / weight
    return magnitude


_CONFIG_FIELDS = (
    "mel_dim",
    "upsample_initial_channel",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
    "upsample_rates",
    "upsample_kernel_sizes",
)

_KNOWN_TENSORS = {
    "lora": "a LoRA",
    "audio_blocks.": "a UniAVGen model",
    "patch_embedding.": "a Wan video model",
    "decoder.conv1.": "a video VAE",
    "decoder.conv_in.": "a VAE",
    "conv_pre.weight_g": "another vocoder (with weight norm)",
    "conv_pre.parametrizations": "another vocoder (with weight norm)",
    "shared.weight": "a text encoder",
    "thinker.": "a part of Qwen2.5-Omni without the vocoder (its shard with token2wav is needed)",
    "talker.": "a part of Qwen2.5-Omni without the vocoder (its shard with token2wav is needed)",
}


def _new_bigvgan(config: dict) -> nn.Module:
    try:
        from transformers import Qwen2_5OmniToken2WavBigVGANModel as BigVGAN
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise UserError(
            "the vocoder needs a transformers with Qwen2.5-Omni, which cannot be imported; "
            "run `pip install -U transformers`"
        ) from error
    with torch.random.fork_rng(devices=[]):
        return BigVGAN(BigVGAN.config_class(**config))


def _weight_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a vocoder: {WANTED}")
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path} holds no .safetensors file; expected {WANTED}")
    return files


def _read_bigvgan(files: list[Path], path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The vocoder's tensors without prefix, and the metadata of the file they are in."""
    names: dict[str, Path] = {}
    for file in files:
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                if name in names:
                    raise UserError(f"{names[name]} and {file} hold the same tensors; name one of the files")
                names[name] = file
    prefix = _prefix(names, path)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in dict.fromkeys(file for name, file in names.items() if name.startswith(prefix)):
        with _open(file) as opened:
            metadata |= opened.metadata() or {}
            for name, holder in names.items():
                if holder == file and name.startswith(prefix):
                    tensors[name.removeprefix(prefix)] = opened.get_tensor(name)
    return tensors, metadata


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is {_damage(file)}; expected a safetensors file of {WANTED}") from error


def _damage(file: Path) -> str:
    if not os.access(file, os.R_OK):
        return "not readable"
    with file.open("rb") as opened:
        start = opened.read(8)
    if not start:
        return "empty"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "a PyTorch pickle, which can run code and is not opened"
    return "no safetensors file, or cut off (download it again)"


def _prefix(names: Iterable[str], path: str | Path) -> str:
    end = "conv_pre.weight"
    prefixes = [n.removesuffix(end) for n in names if n.endswith(end)]
    prefixes = [p for p in prefixes if f"{p}ups.0.0.weight" in names]
    if len(prefixes) == 1:
        return prefixes[0]
    first = next(iter(names), "none")
    what = next(
        (what for mark, what in _KNOWN_TENSORS.items() if any(mark in name for name in names)),
        f"something else (tensors such as {first})",
    )
    raise UserError(f"{path} is {what}; expected a vocoder: {WANTED}")


def _described_config(path: Path, metadata: dict[str, str]) -> dict:
    """What the metadata or the folder's config.json says of the vocoder; empty where neither does."""
    try:
        if "config" in metadata:
            found = json.loads(metadata["config"])
        elif (path / "config.json").is_file():
            found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        else:
            return {}
    except ValueError as error:
        raise UserError(f"the config of {path} is not JSON ({error}); download it again") from error
    for section in ("token2wav_config", "bigvgan_config"):
        found = found.get(section, found) if isinstance(found, dict) else {}
    return found


def _config(tensors: dict[str, Tensor], described: dict, path: str | Path) -> dict:
    stages = sum(name.startswith("ups.") and name.endswith(".weight") for name in tensors)
    blocks = sum(name.startswith("resblocks.") and name.endswith("convs1.0.weight") for name in tensors)
    kernels = blocks // stages
    if not kernels:
        raise UserError(f"{path} lacks residual blocks; download {WANTED} again")
    try:
        up_kernels = [tensors[f"ups.{i}.0.weight"].shape[2] for i in range(stages)]
        config = {
            "mel_dim": tensors["conv_pre.weight"].shape[1],
            "upsample_initial_channel": tensors["conv_pre.weight"].shape[0],
            "resblock_kernel_sizes": [
                tensors[f"resblocks.{i}.convs1.0.weight"].shape[2] for i in range(kernels)
            ],
            "resblock_dilation_sizes": [
                [int(d) for d in row]
                for row in described.get("resblock_dilation_sizes", [[1, 3, 5]] * kernels)
            ],
            "upsample_rates": [int(r) for r in described.get("upsample_rates", [k // 2 for k in up_kernels])],
            "upsample_kernel_sizes": up_kernels,
        }
    except KeyError as error:
        raise UserError(f"{path} lacks tensor {error}; download {WANTED} again") from error
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} or its config does not describe a BigVGAN ({error}); use {WANTED}"
        ) from error
    hop = math.prod(config["upsample_rates"])
    if config["mel_dim"] != MEL_BANDS or hop != HOP:
        raise UserError(
            f"{path} is a vocoder of {config['mel_dim']} mel bands and {hop} samples a frame; "
            f"expected {WANTED}"
        )
    return config


def _check_fit(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: str | Path) -> None:
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    for what, names in (("lacks", missing), ("has the unknown", extra)):
        if names:
            raise UserError(
                f"{path} {what} {len(names)} tensors, such as {names[0]}; "
                f"expected all of {WANTED} and no more"
            )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} is {list(tensor.shape)}, expected {list(expected[name].shape)}; use {WANTED}"
            )
