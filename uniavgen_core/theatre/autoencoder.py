"""A small VAE of Wan2.2's architecture, trained on the theatre.

First it learns single pictures, of which a step sees many, then motion from pieces of clips, where a square
around the mouth teaches as much as four times its pixels; then the latents are frozen with the encoder, and
the decoder may learn on while a model is trained on these latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..media.files import to_float
from ..media.vae import ARCHITECTURE, LATENT_CHANNELS, WanVAE, autoencoder, load_vae
from ..training.loop import Run, fit, make_accelerator
from ..training.recipe import Schedule
from .batches import TensorBatch, TheatreBatches
from .clips import Theatre
from .recipe import EMBEDDED

SMALL = {"base_dim": 16, "decoder_base_dim": 16, "dim_mult": [1, 2, 8, 8], "num_res_blocks": 1}
POOL = 64  # clips that a step draws from; the next step knows one more and forgets one
FIRST_DEVIATION = 0.1
ENCODER = ("encoder.", "quant_conv.")
_clip = lru_cache(maxsize=POOL)(Theatre.clip)


@dataclass(frozen=True)
class VAEStage(Schedule):
    """A schedule of pieces of clips, `frames` (4n + 1) long.

    `crop`: side of a square near the mouth that is all they show; None for whole pictures. `motion`: added
    weight of a pixel's error per unit (of -1..1) that it differs from the mean over its latent frame.
    """

    frames: int = field(default=1, kw_only=True)
    crop: int | None = field(default=None, kw_only=True)
    motion: float = field(default=0.0, kw_only=True)

    def _faults(self) -> dict[str, bool]:
        return super()._faults() | {
            f"pieces of {self.frames} frames, expected 4n + 1": self.frames % 4 != 1,
            f"crop is {self.crop}, expected a multiple of 16": self.crop is not None
            and (self.crop < 16 or self.crop % 16 > 0),
            f"motion is {self.motion}, it is 0 or more": not self.motion >= 0,
        }


@dataclass
class Clips(TensorBatch):
    """frames `[B, 3, F, H, W]` in -1..1, `weight` `[B, 1, F, H, W]` of each pixel's error, `noise` of the
    posterior `[B, 48, T, H/16, W/16]`."""

    frames: Tensor
    weight: Tensor
    noise: Tensor


@dataclass
class TheatreClips(TheatreBatches):
    """Pieces of clips."""

    stage: VAEStage
    kind = Clips

    def piece(self, generator: torch.Generator, step: int) -> tuple[Tensor, Tensor, Tensor]:
        stage = self.stage

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        clip = _clip(self.theatre, step + draw(POOL))
        first = draw(self.theatre.frames - stage.frames + 1)
        part = slice(first, first + stage.frames)
        frames = to_float(torch.from_numpy(clip.frames[part]))
        weight = 1 + 2 * clip.face_mask[part].astype(np.float32)
        for picture, (x0, y0, x1, y1) in zip(weight, clip.mouth_box[part]):
            picture[max(0, int(y0) - 2) : int(y1) + 3, max(0, int(x0) - 2) : int(x1) + 3] = 10
        weight = torch.from_numpy(weight)[None]
        weight = weight * (1 + stage.motion * _motion(frames))
        if stage.crop:
            x, y = clip.mouth_box[first].reshape(2, 2).mean(0)
            rows, columns = (
                _near(int(centre), side, stage.crop, draw)
                for centre, side in zip((y, x), self.theatre.size[::-1])
            )
            frames, weight = frames[..., rows, columns], weight[..., rows, columns]
        shape = (LATENT_CHANNELS, (stage.frames + 3) // 4, *(side // 16 for side in frames.shape[2:]))
        return frames, weight, torch.randn(shape, generator=generator)


def _motion(frames: Tensor) -> Tensor:
    """How far each frame of a piece differs from the mean of its latent frame, `[1, F, H, W]`."""
    groups = frames[:, 1:].unflatten(1, (frames.shape[1] // 4, 4))
    difference = (groups - groups.mean(2, keepdim=True)).flatten(1, 2).abs().mean(0, keepdim=True)
    return F.pad(difference, (0, 0, 0, 0, 1, 0))


def _near(centre: int, side: int, length: int, draw: Callable[[int], int]) -> slice:
    """`length` of 0..side, with `centre` somewhere in its middle half."""
    first = centre - length // 4 - draw(length // 2)
    first = min(max(first, 0), side - length)
    return slice(first, first + length)


class Reconstruction(nn.Module):
    """Errors of pixels, and a light pull of the latents to N(0, 1).

    (Errors of pixel differences lead astray: a new decoder's first step to less of them is a flat picture,
    and there it stays.)

    Args:
        model: a `diffusers.AutoencoderKLWan`.
        kl: weight of the divergence per latent value, against an error per pixel.
        jitter: deviation of what is added to frozen latents, so that the decoder bears a model's errors.
    """

    std: Tensor

    def __init__(self, model: Any, kl: float = 2e-4, jitter: float = 0.1):
        super().__init__()
        self.model, self.kl, self.jitter = model, kl, jitter
        self.frozen = not next(model.encoder.parameters()).requires_grad
        std = torch.tensor(model.config.latents_std).view(1, -1, 1, 1, 1)
        self.register_buffer("std", std, persistent=False)

    def forward(self, clips: Clips) -> dict[str, Tensor]:
        """Scalars: "loss" and its parts "pixels", "kl"."""
        with torch.autocast(clips.frames.device.type, torch.bfloat16):
            with torch.set_grad_enabled(not self.frozen):
                posterior = self.model.encode(clips.frames).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            deviation = self.jitter * self.std if self.frozen else (0.5 * logvar).exp()
            pictures = self.model.decode(mean + deviation * clips.noise).sample.float()
        error = pictures - clips.frames
        weight = clips.weight / clips.weight.mean()
        parts = {
            "pixels": (error.abs() * weight).mean(),
            "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        }
        loss = parts["pixels"] + (0 if self.frozen else self.kl) * parts["kl"]
        return {"loss": loss, **parts}


def see_single_pictures(model: nn.Module) -> None:
    """One frame needs the last tap of a causal convolution alone, the others would multiply its padding."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    def last_tap(layer: nn.Conv3d, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def convolve(x: Tensor, cache: Tensor | None = None) -> Tensor:
            if x.shape[2] > 1 or cache is not None:
                return forward(x, cache)
            weight, padding = layer.weight[:, :, -1], layer.weight.shape[-1] // 2
            return F.conv2d(x[:, :, 0], weight, layer.bias, padding=padding).unsqueeze(2)

        return convolve

    for layer in model.modules():
        if isinstance(layer, WanCausalConv3d):
            layer.forward = last_tap(layer, layer.forward)


def train_vae(
    theatre: Theatre,
    stages: Sequence[VAEStage],
    out: str | Path,
    start: str | Path | None = None,
    run: Run | None = None,
) -> Path:
    """Train a VAE, or with `start` the decoder of that VAE alone.

    Returns the folder of the trained one. A run that was stopped goes on from its last checkpoint.

    Raises:
        UserError: as `fit`; `start` is no VAE.
    """
    accelerator, out = make_accelerator(), Path(out)
    folder = out / "vae"
    if (folder / "config.json").exists():
        return folder
    model = new_autoencoder() if start is None else load_vae(start).model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(start is None or not name.startswith(ENCODER))
    see_single_pictures(model)
    for stage in stages:
        batches = TheatreClips(theatre, stage, accelerator.process_index, accelerator.num_processes)
        objective = Reconstruction(model)
        state = fit(accelerator, objective, stage, batches, out / stage.name, EMBEDDED, run or Run())
        if accelerator.is_main_process:  # the others are given its weights when they go on
            model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        accelerator.free_memory()
    if accelerator.is_main_process:
        if start is None:
            measure_latents(model, theatre)
        save_vae(model, folder)
    accelerator.wait_for_everyone()
    return folder


def new_autoencoder(seed: int = 0) -> Any:
    """An `AutoencoderKLWan` of the sizes `SMALL` with seeded weights.

    It begins as a VAE of single frames, with latents of deviation 1 and a posterior of
    `FIRST_DEVIATION`: in torch's own beginning the decoder hardly sees them under the posterior's noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        plain = {"latents_mean": [0.0] * LATENT_CHANNELS, "latents_std": [1.0] * LATENT_CHANNELS}
        model: Any = autoencoder(ARCHITECTURE | SMALL | plain)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("gamma"):
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            if name.endswith("time_conv.weight"):  # the mean of two frames, and one frame twice
                first = 1 if name.startswith("encoder") else 2
                identity = torch.eye(parameter.shape[1]).repeat(len(parameter) // parameter.shape[1], 1)
                nn.init.zeros_(parameter)
                parameter.data[:, :, first:, 0, 0] = identity[..., None] / (3 - first)
            elif parameter.ndim == 5:
                nn.init.zeros_(parameter[:, :, :-1])  # a picture needs the last tap alone
        clip = F.interpolate(torch.rand(1, 3, 9, 8, 8) * 2 - 1, (9, 128, 128), mode="trilinear")
    mean, deviation = model.quant_conv.weight.detach().chunk(2)  # views of the parameter
    bias = model.quant_conv.bias.detach()
    with torch.no_grad():
        mean /= model.encode(clip).latent_dist.mean.std()
        deviation.zero_()
        bias[LATENT_CHANNELS:] = 2 * math.log(FIRST_DEVIATION)
    return model


@torch.no_grad()
def measure_latents(model: Any, theatre: Theatre, clips: int = 64) -> None:
    """Write mean and deviation of each latent channel, over some clips, into the model's config."""
    vae = WanVAE(model)
    vae.mean, vae.std = torch.zeros_like(vae.mean), torch.ones_like(vae.std)
    latents = [vae.encode(to_float(torch.from_numpy(theatre.clip(i).frames))[None]) for i in range(clips)]
    std, mean = torch.std_mean(torch.cat(latents), (0, 2, 3, 4))
    model.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def save_vae(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """As a diffusers folder that `load_vae` reads."""
    model.to(dtype).save_pretrained(folder)
