"""A model that needs no download: small trained parts that run anywhere in seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import comfy.latent_formats
import comfy.ldm.wan.vae2_2
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor, nn

from ..uniavgen_core import embedded
from ..uniavgen_core.media.caption import CaptionEncoder
from ..uniavgen_core.media.files import read_image
from ..uniavgen_core.media.vae import LATENT_CHANNELS, diffusers_name, read_vae
from ..uniavgen_core.threads import fitting_threads
from .encoding import check_video_latent
from .loading import LoadedVocoder, parts_of
from .types import CATEGORY, SpeechEncoderSocket, VocoderSocket, tell

PICTURE = Path(__file__).parents[1] / "assets" / "puppet.png"


class HostCLIP:
    """A caption encoder of the core where the host takes a CLIP: captions become states `[1, N, dim]`."""

    def __init__(self, encoder: CaptionEncoder):
        self.encoder = encoder
        self.patcher = comfy.model_patcher.ModelPatcher(
            nn.ModuleList([encoder.model]),  # the host sets a device on it, which transformers forbids
            load_device=comfy.model_management.text_encoder_device(),
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        comfy.model_management.load_models_gpu([self.patcher])
        states = self.encoder([text])
        return [[states.to(comfy.model_management.intermediate_device()), {"pooled_output": None}]]


class HostVAE(comfy.sd.VAE):
    """A VAE of the core, of any width, as a VAE of the host: made of what `vae.read_vae` reads.

    The host's own takes its sizes from the file and knows only the full width, so that its attributes are
    set here; encoding, decoding and tiling are its own.
    """

    def __init__(self, config: dict, tensors: dict[str, Tensor]):
        self.first_stage_model = _host_wan_vae(config, tensors)
        self.latent_channels, self.latent_dim, self.output_channels = LATENT_CHANNELS, 3, 3
        self.upscale_ratio = (lambda t: max(0, t * 4 - 3), 16, 16)
        self.upscale_index_formula = (4, 16, 16)
        self.downscale_ratio = (lambda t: max(0, math.floor((t + 3) / 4)), 16, 16)
        self.downscale_index_formula = (4, 16, 16)
        # what the host estimates for the full width
        encode, decode = 3300 * config["base_dim"] / 160, 8000 * 256 * config["decoder_base_dim"] / 256
        self.memory_used_encode = lambda shape, dtype: encode * shape[3] * shape[4] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: decode * shape[3] * shape[4] * dtype.itemsize
        self.process_input = lambda image: image * 2 - 1
        self.process_output = lambda image: image.add_(1).div_(2).clamp_(0, 1)
        self.pad_channel_value = self.extra_1d_channel = self.format_encoded = None
        self.disable_offload = self.not_video = self.handles_tiling = False
        self.crop_input = True
        self.audio_sample_rate = 44100
        self.working_dtypes, self.vae_dtype = [torch.float32], torch.float32
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.size = comfy.model_management.module_size(self.first_stage_model)

    def decode(self, samples_in: Tensor, vae_options: dict = {}) -> Tensor:  # noqa: B006
        check_video_latent(samples_in.shape)
        with fitting_threads(self.first_stage_model, self.device):
            return super().decode(samples_in, vae_options)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        with fitting_threads(self.first_stage_model, self.device):
            return super().encode(pixel_samples)

    def decode_tiled(self, samples: Tensor, *args, **kwargs) -> Tensor:
        check_video_latent(samples.shape)
        with fitting_threads(self.first_stage_model, self.device):
            return super().decode_tiled(samples, *args, **kwargs)


def _host_wan_vae(config: dict, tensors: dict[str, Tensor]) -> nn.Module:
    """The host's module with these weights. Its raw latents are those that the host's latent format
    normalises to the latents of the core: one affine map of the channels, folded into the 1x1x1 convolutions.
    """
    host = comfy.ldm.wan.vae2_2.WanVAE(
        dim=config["base_dim"],
        dec_dim=config["decoder_base_dim"],
        z_dim=LATENT_CHANNELS,
        dim_mult=config["dim_mult"],
        num_res_blocks=config["num_res_blocks"],
        attn_scales=[],
        temperal_downsample=config["temperal_downsample"],
    )
    host.load_state_dict({name: tensors[diffusers_name(name)] for name in host.state_dict()})
    host = host.float().eval().requires_grad_(False)
    wanted = comfy.latent_formats.Wan22()
    scale = wanted.latents_std.flatten() / torch.tensor(config["latents_std"])
    shift = wanted.latents_mean.flatten() - torch.tensor(config["latents_mean"]) * scale
    encoded, given = host.conv1, host.conv2
    encoded.weight[:LATENT_CHANNELS] *= scale.view(-1, 1, 1, 1, 1)
    encoded.bias[:LATENT_CHANNELS] = encoded.bias[:LATENT_CHANNELS] * scale + shift
    given.weight /= scale.view(1, -1, 1, 1, 1)
    given.bias -= given.weight.flatten(1) @ shift
    return host


class EmbeddedFormat(comfy.latent_formats.Wan22):
    """The host's latent format with the colours of this VAE for live previews (`tools/fit_preview.py`)."""

    def __init__(self):
        super().__init__()
        fitted = json.loads((embedded.folder() / "preview.json").read_text(encoding="utf-8"))
        self.parts = fitted["parts"]
        self.colours, self.bias = torch.tensor(fitted["factors"]), torch.tensor(fitted["bias"])
        self.latent_rgb_factors = torch.eye(3).tolist()
        self.latent_rgb_factors_bias = None
        self.latent_rgb_factors_reshape = self.pixels

    def pixels(self, latent: Tensor) -> Tensor:
        """Normalised `[B, 48, T, h, w]` -> colours in -1..1 of the first frame, `[B, 3, 1, 4h, 4w]`."""
        first = latent[:, :, 0].movedim(1, -1)
        parts = first @ self.colours.to(first) + self.bias.to(first)
        return F.pixel_shuffle(parts.movedim(-1, 1), self.parts)[:, :, None]


class EmbeddedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenEmbeddedModel",
            display_name="UniAVGen Puppet Model",
            search_aliases=[
                "uniavgen",
                "embedded model",
                "no download",
                "cpu model",
                "test model",
                "example model",
            ],
            category=CATEGORY,
            description="A model with all its parts that needs no download and makes a clip on a CPU in less "
            f"than a minute: {embedded.NOTICE}. For real people use UniAVGen Load Model.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="In place of UniAVGen Load Model."),
                SpeechEncoderSocket.Output(
                    display_name="speech_encoder", tooltip="For UniAVGen Speech Encode."
                ),
                io.Clip.Output(tooltip="In place of CLIPLoader; it reads captions like that of the example."),
                io.Vae.Output(tooltip="In place of VAELoader, for UniAVGen Video Encode and VAE Decode."),
                VocoderSocket.Output(display_name="vocoder", tooltip="For UniAVGen Audio Decode."),
                io.Image.Output(
                    display_name="image", tooltip="A drawn person that the model has never seen, to try it."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        tell(cls, embedded.NOTICE)
        model, speech_encoder, _ = parts_of(embedded.model_file(), puppet=True)
        model.model.latent_format = EmbeddedFormat()
        return io.NodeOutput(
            model,
            speech_encoder,
            HostCLIP(embedded.load_caption_encoder()),
            HostVAE(*read_vae(embedded.folder() / "vae")),
            LoadedVocoder(embedded.load_vocoder()),
            read_image(PICTURE)[None].float() / 255,
        )


NODES = [EmbeddedModel]
