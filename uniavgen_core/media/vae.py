"""The Wan2.2 VAE: frames to normalised latents and back (docs/model.md section 1), through diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..weights.files import TensorFiles, log
from ..weights.fp8 import load_tensors
from ..weights.identify import open_part
from .hooks import called
from .vae_tiles import Tiles, decode, encode

LATENT_CHANNELS = 48
SPATIAL = 16
TEMPORAL = 4
ARCHITECTURE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": LATENT_CHANNELS,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": SPATIAL,
    "scale_factor_temporal": TEMPORAL,
}
# fmt: off
LATENTS_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]
LATENTS_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]
# fmt: on
ORIGINAL_NAMES = [
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)\.", r".\1_blocks.\2.\1sampler.\3."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
]
_DECISIVE = ("encoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight")


class WanVAE:
    """Encodes frames in -1..1 to latents of mean 0 and deviation 1 per channel, and decodes them.

    `tiles`: of a frame, for encoding and decoding with less memory (see `vae_tiles`); None: whole frames.
    """

    def __init__(self, model):
        """`model` is a `diffusers.AutoencoderKLWan` of the Wan2.2 kind."""
        self.model = model.eval().requires_grad_(False)
        self.tiles: tuple[Tiles, Tiles] | None = None
        shape = (1, LATENT_CHANNELS, 1, 1, 1)
        self.mean = torch.tensor(model.config.latents_mean, device=model.device).view(shape)
        self.std = torch.tensor(model.config.latents_std, device=model.device).view(shape)

    def to(self, device: str | torch.device) -> WanVAE:
        """Moves the VAE; latents are made and taken there."""
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """`[B, 3, F, H, W]` in -1..1, F = 4n+1 -> float32 `[B, 48, n+1, H/16, W/16]`, the posterior's mode.

        Raises:
            UserError: another number of frames, or a size that is no multiple of 16.
        """
        if frames.ndim != 5 or frames.shape[1] != 3 or not frames.is_floating_point():
            raise UserError(
                f"frames are {frames.dtype} {list(frames.shape)}, expected float [B, 3, F, H, W] in -1..1"
            )
        count, height, width = frames.shape[2:]
        if count % TEMPORAL != 1:
            raise UserError(
                f"there are {count} frames, the VAE takes 4n+1; give {max(0, count - 1) // 4 * 4 + 1}"
            )
        if height % SPATIAL or width % SPATIAL or not height or not width:
            raise UserError(f"frames are {width}x{height}, the VAE takes multiples of {SPATIAL}; resize them")
        if self.tiles is not None:
            latent = encode(self.model, frames, self.tiles[0])
        else:
            latent = self.model.encode(frames.to(self.model.device, self.model.dtype)).latent_dist.mode()
        return (latent.float() - self.mean) / self.std

    @torch.no_grad()
    def decode(
        self, latent: torch.Tensor, on_frame: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """`[B, 48, T, h, w]` -> float32 `[B, 3, 4(T-1)+1, 16h, 16w]` in -1..1.

        `on_frame(done, T)` is called after each latent frame, which is how the decoder works; with `tiles`
        after each of each tile, and the frames lie on the CPU.

        Raises:
            UserError: another shape.
        """
        if latent.ndim != 5 or latent.shape[1] != LATENT_CHANNELS or not latent.numel():
            raise UserError(f"the latent is {list(latent.shape)}, expected [B, {LATENT_CHANNELS}, T, h, w]")
        raw = latent.to(self.model.device, torch.float32) * self.std + self.mean
        if self.tiles is not None:
            tell = on_frame or (lambda done, parts: None)
            return decode(self.model, raw.to(self.model.dtype), self.tiles[1], tell).float()
        with called(self.model.decoder, lambda done: on_frame and on_frame(done, latent.shape[2])):
            return self.model.decode(raw.to(self.model.dtype)).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def decode_stream(self, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """`decode` of a clip of any length, to rounding, in the memory of one latent frame.

        Args:
            latents: `[B, 48, t, h, w]`, one after the other in time.

        Yields:
            float32 `[B, 3, f, 16h, 16w]` in -1..1 for each latent frame, f = 1 for the first, then 4.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify

        decoder = self.model.decoder
        seen = [None] * sum(isinstance(part, WanCausalConv3d) for part in decoder.modules())
        first = True
        for latent in latents:
            for frame in latent.split(1, dim=2):
                raw = frame.to(self.model.device, torch.float32) * self.std + self.mean
                x = self.model.post_quant_conv(raw.to(self.model.dtype))
                x = decoder(x, feat_cache=seen, feat_idx=[0], first_chunk=first)
                yield unpatchify(x, self.model.config.patch_size).float().clamp(-1, 1)
                first = False


def load_vae(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> WanVAE:
    """Loads the VAE from any of its public forms, see `open_vae`.

    Raises:
        UserError: as `open_vae`; tensors missing or of another shape.
    """
    files, names, config = open_vae(path)
    with torch.device("meta"):
        model = autoencoder(config)
    load_tensors(model, files, names, device, dtype)
    return WanVAE(model)


def open_vae(path: str | Path) -> tuple[TensorFiles, dict[str, str], dict]:
    """The VAE's files, the names of diffusers -> the stored ones, and the config that `autoencoder` takes.

    Taken are Wan's `Wan2.2_VAE.pth`, ComfyUI's `wan2.2_vae.safetensors`, a diffusers folder or its parent.
    Tensors that are not used are named in the log.

    Raises:
        UserError: nothing there, another kind of file, a folder without its config; tensors missing or of
            another shape (which is found only where diffusers is installed).
    """
    files = open_part(path, "vae")
    names = {diffusers_name(name): name for name in files.tensors}
    missing = [name for name in _DECISIVE if name not in names]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} tensors of the Wan2.2 VAE ({missing[0]}), expected all of it; "
            "download it again"
        )
    config = _config(files, names)
    if find_spec("diffusers"):
        with torch.device("meta"):
            expected = {n: tuple(t.shape) for n, t in autoencoder(config).state_dict().items()}
        for note in files.check(expected, names):
            log.warning(note)
        names = {name: names[name] for name in expected}
    return files, names, config


def read_vae(path: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The config and the float32 tensors of what `load_vae` loads, under the names of diffusers, which is not
    needed.

    Raises:
        UserError: as `open_vae`.
    """
    files, names, config = open_vae(path)
    return config, {name: files.tensor(stored, dtype=torch.float32) for name, stored in names.items()}


def _config(files: TensorFiles, names: dict[str, str]) -> dict:
    config = ARCHITECTURE | {"latents_mean": LATENTS_MEAN, "latents_std": LATENTS_STD}
    in_folder = files.path.is_dir() or files.settings
    if "decoder.conv_in.weight" in files.tensors and in_folder:  # names of diffusers
        if files.settings.get("_class_name") != "AutoencoderKLWan":
            raise UserError(
                f"{files.files[0].parent / 'config.json'} is missing or is no config of an AutoencoderKLWan, "
                "expected that of the VAE; download the folder again"
            )
        config |= files.settings
    config["base_dim"] = files.tensors[names["encoder.conv_in.weight"]].shape[0]
    config["decoder_base_dim"] = files.tensors[names["decoder.conv_out.weight"]].shape[1]
    return config


def random_vae(seed: int = 0) -> WanVAE:
    """A small seeded VAE of the same architecture whose latents of images are of order one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        small = {"base_dim": 8, "decoder_base_dim": 8, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
        vae = WanVAE(autoencoder(ARCHITECTURE | small))
        clip = F.interpolate(torch.rand(1, 3, 5, 8, 8) * 2 - 1, (5, 128, 128), mode="trilinear")
    latent = vae.encode(clip)
    std, mean = torch.std_mean(latent, (0, 2, 3, 4))
    vae.model.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return WanVAE(vae.model)


def autoencoder(config: dict) -> Any:
    """The untrained `diffusers.AutoencoderKLWan` of a config, see `ARCHITECTURE`."""
    try:
        import diffusers.models.autoencoders.autoencoder_kl_wan as wan
    except ImportError as error:
        raise UserError("the VAE needs diffusers, which is not installed: pip install diffusers") from error
    return wan.AutoencoderKLWan.from_config(config)


def diffusers_name(name: str) -> str:
    """The name that diffusers gives to a tensor of the original Wan2.2 layout; its own names stay."""
    for pattern, replacement in ORIGINAL_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def original_name(name: str) -> str:
    """The inverse of `diffusers_name`: what Wan and ComfyUI call a tensor."""
    for theirs, ours in (
        ("conv_shortcut.", "shortcut."),
        ("norm1.", "residual.0."),
        ("conv1.", "residual.2."),
        ("norm2.", "residual.3."),
        ("conv2.", "residual.6."),
        ("post_quant_conv.", "conv2."),
        ("quant_conv.", "conv1."),
        ("conv_in.", "conv1."),
        ("norm_out.", "head.0."),
        ("conv_out.", "head.2."),
        ("mid_block.resnets.0.", "middle.0."),
        ("mid_block.resnets.1.", "middle.2."),
        ("mid_block.attentions.0.", "middle.1."),
    ):
        name = name.replace(theirs, ours)
    block = r"(down|up)_blocks\.(\d+)\."
    name = re.sub(block + r"resnets\.(\d+)\.", r"\1samples.\2.\1samples.\3.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsampler\.", r"downsamples.\1.downsamples.2.", name)
    return re.sub(r"up_blocks\.(\d+)\.upsampler\.", r"upsamples.\1.upsamples.3.", name)
