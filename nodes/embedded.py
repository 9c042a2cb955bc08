"""A model that needs no download: small parts that run anywhere in seconds."""

from __future__ import annotations

import math

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.wan.vae2_2 import WanVAE
from comfy_api.latest import io
from torch import nn

from ..uniavgen_core.config import TINY
from ..uniavgen_core.convnext import FILLER, SpeechEncoder
from ..uniavgen_core.embedded import random_model
from ..uniavgen_core.vocoder import random_vocoder
from .host_model import build_patcher
from .loading import SPEECH_PART, LoadedSpeechEncoder, LoadedVocoder
from .types import CATEGORY, SpeechEncoderSocket, VocoderSocket, tell

VAE_WIDTH = 8
NOTICE = "random weights: shows that every node works, the picture is noise and the sound a hum"


class ByteCaptions:
    """A small seeded CLIP: every byte of the caption becomes one state `[1, N, dim]`."""

    def __init__(self, dim: int, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = SpeechEncoder(256, dim, 2).eval().requires_grad_(False)
        self.patcher = comfy.model_patcher.ModelPatcher(
            module,
            load_device=comfy.model_management.text_encoder_device(),
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode("utf-8")) or [FILLER]

    def encode_from_tokens_scheduled(self, tokens: list[int]) -> list:
        comfy.model_management.load_models_gpu([self.patcher])
        states = self.patcher.model(torch.tensor([tokens], device=self.patcher.load_device))
        return [[states.to(comfy.model_management.intermediate_device()), {"pooled_output": None}]]


class TinyVAE(comfy.sd.VAE):
    """The Wan2.2 VAE's architecture, narrow and with seeded random weights.

    The host's VAE takes its sizes from the file and knows only the full width, so that its attributes are
    set here; encoding, decoding and tiling are its own.
    """

    def __init__(self, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.first_stage_model = _random_wan_vae()
        self.latent_channels, self.latent_dim, self.output_channels = 48, 3, 3
        self.upscale_ratio = (lambda t: max(0, t * 4 - 3), 16, 16)
        self.upscale_index_formula = (4, 16, 16)
        self.downscale_ratio = (lambda t: max(0, math.floor((t + 3) / 4)), 16, 16)
        self.downscale_index_formula = (4, 16, 16)
        self.memory_used_encode = lambda shape, dtype: 200 * shape[3] * shape[4] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: 400 * shape[3] * shape[4] * 256 * dtype.itemsize
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


def _random_wan_vae() -> nn.Module:
    """Latents of pictures have about the deviation that the Wan2.2 latent format expects."""
    vae = WanVAE(
        dim=VAE_WIDTH,
        dec_dim=VAE_WIDTH,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    for name, p in vae.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(p)
        elif p.ndim > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
        else:
            nn.init.zeros_(p)
    vae = vae.eval().requires_grad_(False)
    clip = nn.functional.interpolate(torch.rand(1, 3, 5, 8, 8) * 2 - 1, (5, 128, 128), mode="trilinear")
    wanted = comfy.latent_formats.Wan22().latents_std.mean()
    vae.conv1.weight[:48] *= wanted / vae.encode(clip).std()
    return vae


class EmbeddedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenEmbeddedModel",
            display_name="UniAVGen Embedded Model",
            category=CATEGORY,
            description="A small model with all its parts that needs no download and runs anywhere in "
            f"seconds. It has {NOTICE}. For real clips use UniAVGen Load Model.",
            inputs=[
                io.Int.Input(
                    "variation",  # any number named seed gets a control that changes it after every run
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    tooltip="Which random weights; free of cost.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="In place of UniAVGen Load Model."),
                SpeechEncoderSocket.Output(
                    display_name="speech_encoder", tooltip="For UniAVGen Speech Encode."
                ),
                io.Clip.Output(tooltip="In place of CLIPLoader; captions of up to 64 bytes."),
                io.Vae.Output(tooltip="In place of VAELoader, for UniAVGen Video Encode and VAE Decode."),
                VocoderSocket.Output(display_name="vocoder", tooltip="For UniAVGen Vocoder Decode."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, variation: int) -> io.NodeOutput:
        tell(cls, NOTICE)
        state_dict = random_model(variation).state_dict()
        speech = {k.removeprefix(SPEECH_PART): x for k, x in state_dict.items() if k.startswith(SPEECH_PART)}
        encoder = LoadedSpeechEncoder(speech, TINY)
        model = embedded_model(variation)
        clip = ByteCaptions(TINY.caption_dim, variation)
        vocoder = LoadedVocoder(random_vocoder(variation))
        return io.NodeOutput(model, encoder, clip, TinyVAE(variation), vocoder)


def embedded_model(seed: int, disable_dynamic: bool = False):
    patcher = build_patcher(random_model(seed).state_dict(), TINY, disable_dynamic=disable_dynamic)
    patcher.cached_patcher_init = (embedded_model, (seed,))
    return patcher


NODES = [EmbeddedModel]
