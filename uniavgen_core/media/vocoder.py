"""From the log-mel back to a waveform (docs/model.md section 9, "Vocoder").

Qwen2.5-Omni's BigVGAN where its weights are at hand, Griffin-Lim where they are not. Both take
log_mel [B, 80, L] (natural log, not normalised) and give [B, 240 L] samples at 24 kHz, fp32, -1..1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..weights.files import CODES, TensorFiles, log, parse_json
from ..weights.identify import open_part
from ..weights.write import Entry, write_tensors
from .hooks import called
from .mel import HOP, LOG_FLOOR, MEL_BANDS, N_FFT, SAMPLE_RATE, mel_filters

WANTED = "Qwen2.5-Omni's BigVGAN (80 mel bands, 240 samples a frame)"
GRIFFIN_LIM_STEPS = 100
GRIFFIN_LIM_MOMENTUM = 0.99
INVERSE_MEL_STEPS = 30
EDGE_FRAMES = 2
LOUDEST_LOG_MEL = 5.0  # above what a waveform in -1..1 can reach

OnPart = Callable[[int, int], None]
"""Progress: parts done and their number."""


class Vocoder(nn.Module):
    """BigVGAN, log_mel [B, 80, L] -> [B, 240 L] on the module's device; made by `load_vocoder`.

    Raises:
        UserError: a mel of another shape, or with NaN in it.
    """

    sample_rate = SAMPLE_RATE
    bigvgan: Any  # a transformers.Qwen2_5OmniToken2WavBigVGANModel

    def __init__(self, bigvgan: Any):
        super().__init__()
        self.bigvgan = bigvgan.eval().requires_grad_(False)
        # the decibels that BigVGAN makes of the mel stay fp32 whatever the weights are
        bigvgan.conv_pre.register_forward_pre_hook(lambda conv, inputs: inputs[0].to(conv.weight.dtype))

    def forward(self, log_mel: Tensor, on_part: OnPart | None = None) -> Tensor:
        """`on_part(done, parts)` is called after each upsampling stage and at the end."""
        _check_mel(log_mel)
        device = self.bigvgan.conv_pre.weight.device
        parts = [*(stage[0] for stage in self.bigvgan.ups), self.bigvgan.conv_post]
        with ExitStack() as hooks:
            if on_part is not None:
                for i, part in enumerate(parts):
                    hooks.enter_context(called(part, lambda _, i=i, tell=on_part: tell(i + 1, len(parts))))
            waveform = self.bigvgan(log_mel.to(device, torch.float32))  # squeezed and on the CPU
        return waveform.reshape(log_mel.shape[0], -1).to(device, torch.float32)


class GriffinLim(nn.Module):
    """A waveform without weights, log_mel [B, 80, L] -> [B, 240 L]: intelligible, metallic, deterministic.

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
                "decoding audio without a vocoder file needs a working torchaudio, which cannot be imported "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                "give a vocoder file or install the torchaudio of your torch"
            ) from error
        self.griffinlim = griffinlim

    def forward(self, log_mel: Tensor, on_part: OnPart | None = None) -> Tensor:
        """`on_part(1, 1)` is called at the end."""
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
        if on_part:
            on_part(1, 1)
        return waveform[:, start : start + mel.shape[-1] * HOP].clamp(-1, 1)


def load_vocoder(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Vocoder:
    """BigVGAN from one file, its own folder, or Qwen2.5-Omni's shards, of which those with token2wav suffice.

    Names may carry a prefix (`token2wav.code2wav_bigvgan_model.`). Sizes are read off the tensors;
    strides and dilations come from the file's metadata or the folder's config.json, else they are the
    released ones.

    Raises:
        UserError: no such file, a damaged one, another model, or weights that do not fit.
    """
    files, config = open_vocoder(path)
    bigvgan = new_bigvgan(config)
    bigvgan.load_state_dict({name: files.tensor(name) for name in bigvgan.state_dict()})
    return Vocoder(bigvgan.to(device, dtype))


def open_vocoder(path: str | Path) -> tuple[TensorFiles, dict]:
    """The vocoder's files and the config that BigVGAN is made of; tensors not used are named in the log.

    Raises:
        UserError: as `load_vocoder`.
    """
    files = open_part(path, "vocoder")
    config = _config(files)
    with torch.device("meta"):
        bigvgan = new_bigvgan(config)
    for note in files.check({n: tuple(t.shape) for n, t in bigvgan.state_dict().items()}):
        log.warning(note)
    return files, config


def save_vocoder(vocoder: Vocoder, out_file: str | Path) -> None:
    """One safetensors file with the config in its metadata, as `load_vocoder` reads it.

    Raises:
        UserError: a place that cannot be written. No partial file stays behind.
    """
    bigvgan = vocoder.bigvgan
    config = {field: getattr(bigvgan.config, field) for field in CONFIG_FIELDS}
    state = bigvgan.state_dict()
    layout = {name: Entry(tuple(value.shape), CODES[value.dtype]) for name, value in state.items()}
    write_tensors(Path(out_file), layout, state.items(), {"config": json.dumps(config)})


def random_vocoder(seed: int = 0, **sizes) -> Vocoder:
    """A small BigVGAN with seeded random weights; torch's own seed is left alone. `sizes`: of its config."""
    bigvgan = new_bigvgan({"upsample_initial_channel": 64} | sizes)
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


CONFIG_FIELDS = (
    "mel_dim",
    "upsample_initial_channel",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
    "upsample_rates",
    "upsample_kernel_sizes",
)


def new_bigvgan(config: dict) -> Any:
    """An untrained BigVGAN of a config, see `open_vocoder`."""
    try:
        from transformers import Qwen2_5OmniToken2WavBigVGANModel as BigVGAN
        from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise UserError(
            "the vocoder needs a transformers with Qwen2.5-Omni, which cannot be imported; "
            "run `pip install -U transformers`"
        ) from error
    with torch.random.fork_rng(devices=[]):
        return BigVGAN(Qwen2_5OmniBigVGANConfig(**config))


def _config(files: TensorFiles) -> dict:
    """Off the tensors, the metadata and the config.json."""
    shapes, path = {name: info.shape for name, info in files.tensors.items()}, files.path
    described = files.settings
    if "config" in files.metadata:
        described = parse_json(files.metadata["config"], f"{path}: the metadata entry config")
    for section in ("token2wav_config", "bigvgan_config"):
        found = described.get(section, described)
        described = found if isinstance(found, dict) else {}
    stages = sum(name.startswith("ups.") and name.endswith(".weight") for name in shapes)
    blocks = sum(name.startswith("resblocks.") and name.endswith("convs1.0.weight") for name in shapes)
    kernels = blocks // stages if stages else 0
    if not kernels:
        raise UserError(f"{path} lacks residual or upsampling blocks; download {WANTED} again")
    try:
        up_kernels = [shapes[f"ups.{i}.0.weight"][2] for i in range(stages)]
        config = {
            "mel_dim": shapes["conv_pre.weight"][1],
            "upsample_initial_channel": shapes["conv_pre.weight"][0],
            "resblock_kernel_sizes": [shapes[f"resblocks.{i}.convs1.0.weight"][2] for i in range(kernels)],
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
