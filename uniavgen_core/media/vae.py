"""The Wan2.2 VAE: video frames to normalised latents and back (SPEC section 1), through diffusers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError

LATENT_CHANNELS = 48
SPATIAL = 16
TEMPORAL = 4
WEIGHTS = "diffusion_pytorch_model.safetensors"
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


class WanVAE:
    """Encodes frames in -1..1 to latents of mean 0 and deviation 1 per channel, and decodes them."""

    def __init__(self, model):
        """`model` is a `diffusers.AutoencoderKLWan` of the Wan2.2 kind."""
        self.model = model.eval().requires_grad_(False)
        shape = (1, LATENT_CHANNELS, 1, 1, 1)
        self.mean = torch.tensor(model.config.latents_mean, device=model.device).view(shape)
        self.std = torch.tensor(model.config.latents_std, device=model.device).view(shape)

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
        latent = self.model.encode(frames.to(self.model.device, self.model.dtype)).latent_dist.mode()
        return (latent.float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """`[B, 48, T, h, w]` -> float32 `[B, 3, 4(T-1)+1, 16h, 16w]` in -1..1.

        Raises:
            UserError: another shape.
        """
        if latent.ndim != 5 or latent.shape[1] != LATENT_CHANNELS or not latent.numel():
            raise UserError(f"the latent is {list(latent.shape)}, expected [B, {LATENT_CHANNELS}, T, h, w]")
        raw = latent.to(self.model.device, torch.float32) * self.std + self.mean
        return self.model.decode(raw.to(self.model.dtype)).sample.float().clamp(-1, 1)


def load_vae(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> WanVAE:
    """Loads the VAE strictly from a diffusers folder (or its parent) or ComfyUI's `wan2.2_vae.safetensors`.

    Raises:
        UserError: as `read_vae`, another VAE, missing or extra tensors.
    """
    config, state = read_vae(path, device, dtype)
    with torch.device("meta"):
        model = autoencoder(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise UserError(
            f"{_weights_file(Path(path))}: {len(wrong)} tensors are missing, extra or of another shape "
            f"({wrong[0]}), expected the whole Wan2.2 VAE; download it again"
        )
    model.load_state_dict(state, assign=True)
    return WanVAE(model)


def read_vae(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[dict, dict[str, torch.Tensor]]:
    """The config and the tensors of what `load_vae` loads, in the words of diffusers, which is not needed.

    Raises:
        UserError: nothing there, another kind of file, a VAE with other latents.
    """
    file = _weights_file(Path(path))
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; give a diffusers folder of the Wan2.2 VAE or wan2.2_vae.safetensors"
        )
    try:
        state = {
            diffusers_name(name): tensor.to(dtype) for name, tensor in load_file(file, str(device)).items()
        }
    except SafetensorError as error:
        raise UserError(
            f"{file}: no safetensors file, or a damaged one; download wan2.2_vae.safetensors again"
        ) from error
    kernels = ("encoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight")
    if any(name not in state for name in kernels):
        raise UserError(f"{file}: is no Wan VAE; expected wan2.2_vae.safetensors or a diffusers folder of it")
    channels = state["post_quant_conv.weight"].shape[0]
    if channels != LATENT_CHANNELS:
        raise UserError(
            f"{file}: a VAE of {channels} latent channels (Wan2.1 has 16), expected {LATENT_CHANNELS}; "
            "use wan2.2_vae.safetensors"
        )
    config = ARCHITECTURE | {"latents_mean": LATENTS_MEAN, "latents_std": LATENTS_STD}
    if file != Path(path):
        config |= _read_config(file.with_name("config.json"))
    config["base_dim"] = state["encoder.conv_in.weight"].shape[0]
    config["decoder_base_dim"] = state["decoder.conv_out.weight"].shape[1]
    return config, state


def _weights_file(path: Path) -> Path:
    folder = path / "vae" if (path / "vae").is_dir() else path
    return folder / WEIGHTS if folder.is_dir() else path


def random_vae(seed: int = 0) -> WanVAE:
    """A small seeded VAE of the same architecture whose latents of pictures are of order one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        small = {"base_dim": 8, "decoder_base_dim": 8, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
        vae = WanVAE(autoencoder(ARCHITECTURE | small))
        clip = F.interpolate(torch.rand(1, 3, 5, 8, 8) * 2 - 1, (5, 128, 128), mode="trilinear")
    latent = vae.encode(clip)
    std, mean = torch.std_mean(latent, (0, 2, 3, 4))
    vae.model.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return WanVAE(vae.model)


def autoencoder(config: dict):
    """The untrained `diffusers.AutoencoderKLWan` of a config, see `ARCHITECTURE`."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise UserError("the VAE needs diffusers, which is not installed: pip install diffusers") from error
    return AutoencoderKLWan.from_config(config)


def _read_config(file: Path) -> dict:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: missing or damaged, expected the config of the VAE; download it again"
        ) from error
    if not isinstance(config, dict) or config.get("_class_name") != "AutoencoderKLWan":
        raise UserError(f"{file}: is no config of an AutoencoderKLWan; choose the vae folder of Wan2.2")
    return config


def diffusers_name(name: str) -> str:
    """The name that diffusers gives to a tensor of the original Wan2.2 layout; its own names stay."""
    for pattern, replacement in ORIGINAL_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
