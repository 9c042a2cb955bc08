"""A pack for tests only: the node Given puts any value on a socket, also such as no good node would make."""

from __future__ import annotations

import math
from fractions import Fraction

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import InputImpl, Types

RATE = 24000


def sound(seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> dict:
    """Something like a voice: a gliding tone in bursts of four a second."""
    t = torch.arange(round(seconds * rate)) / rate
    tone = torch.sin(2 * math.pi * (180 * t + 20 * t**2)) * (torch.sin(8 * math.pi * t) > 0)
    return audio(0.3 * tone.expand(1, channels, -1).contiguous(), rate)


def audio(waveform: torch.Tensor, rate: int = RATE) -> dict:
    return {"waveform": waveform, "sample_rate": rate}


def pictures(*shape: int) -> torch.Tensor:
    """Smooth colours in 0..1, `[F, H, W, C]`."""
    ramps = [
        torch.linspace(0.1, 0.9, n).view([-1 if i == k else 1 for i in range(4)]) for k, n in enumerate(shape)
    ]
    return sum(ramps).div(4).expand(shape).contiguous()


def video(sound_of_it: dict | None, fps: int = 30):
    """A VIDEO of 15 frames at 30 fps."""
    parts = Types.VideoComponents(images=pictures(15, 64, 64, 3), audio=sound_of_it, frame_rate=Fraction(fps))
    return InputImpl.VideoFromComponents(parts)


def spoiled(value: torch.Tensor) -> torch.Tensor:
    value.view(-1)[value.numel() // 2] = math.nan
    return value


def joint(video=(1, 48, 2, 4, 6), sound=(1, 80, 31), **extra) -> dict:
    """A LATENT of the shapes that a joint clip of 5 frames of 96 x 64 has."""
    return {"samples": NestedTensor((torch.zeros(video), torch.zeros(sound))), **extra}


def masked(video=(1, 1, 2, 4, 6), sound=(1, 1, 31), value: float = 1.0) -> dict:
    mask = NestedTensor((torch.full(video, value), torch.full(sound, value)))
    return joint(noise_mask=mask)


def half_a_frame() -> dict:
    mask = torch.ones(1, 1, 2, 4, 6)
    mask[:, :, :, :2] = 0
    return joint(noise_mask=NestedTensor((mask, torch.ones(1, 1, 31))))


def conditioning(width: int, **options) -> list:
    return [[torch.zeros(1, 8, width), {"pooled_output": None, **options}]]


class _OtherNet(torch.nn.Module):
    def __init__(self, dtype=None, device=None, operations=None):
        super().__init__()
        self.dtype = dtype
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, timestep, **kwargs):
        return x * self.scale


class _OtherConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}  # noqa: RUF012


def other_model():
    """A MODEL of an image model."""
    config = _OtherConfig({})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, unet_model=_OtherNet)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


GIVEN = {
    # sounds
    "voice": lambda: sound(1.0),
    "voice 44.1 kHz stereo": lambda: sound(1.0, 44100, 2),
    "sound of 5 frames": lambda: sound(0.32),
    "silence": lambda: audio(torch.zeros(1, 1, RATE)),
    "NaN sound": lambda: audio(spoiled(torch.ones(1, 1, RATE))),
    "1 sample": lambda: audio(torch.ones(1, 1, 1)),
    "10 ms": lambda: sound(0.01),
    "100 ms": lambda: sound(0.1),
    "no samples": lambda: audio(torch.zeros(1, 1, 0)),
    "no channels": lambda: audio(torch.zeros(1, 0, RATE)),
    "no clip": lambda: audio(torch.zeros(0, 1, RATE)),
    "0 Hz": lambda: audio(torch.ones(1, 1, RATE), 0),
    "100 Hz": lambda: audio(torch.ones(1, 1, RATE), 100),
    "flat sound": lambda: audio(torch.ones(RATE)),
    "16 bit integers": lambda: audio(torch.ones(1, 1, RATE, dtype=torch.int16)),
    # pictures
    "picture": lambda: pictures(1, 64, 64, 3),
    "RGBA picture": lambda: pictures(1, 64, 64, 4),
    "clear picture": lambda: pictures(1, 64, 64, 4) * torch.tensor([1.0, 1.0, 1.0, 0.0]),
    "grey picture": lambda: pictures(1, 64, 64, 1),
    "odd picture": lambda: pictures(1, 65, 67, 3),
    "2 channels": lambda: pictures(1, 64, 64, 2),
    "NaN picture": lambda: spoiled(pictures(1, 64, 64, 3)),
    "no picture": lambda: torch.zeros(0, 64, 64, 3),
    "mask as picture": lambda: torch.zeros(1, 64, 64),
    "8 x 8 picture": lambda: pictures(1, 8, 8, 3),
    "very wide picture": lambda: pictures(1, 32, 1024, 3),
    "5 frames": lambda: pictures(5, 64, 64, 3),
    "9 frames": lambda: pictures(9, 64, 64, 3),
    # latents
    "LTX latent": lambda: joint((1, 128, 2, 4, 6), (1, 8, 13, 16)),
    "LTX video latent": lambda: {"samples": torch.zeros(1, 128, 2, 4, 6)},
    "latent without noise mask": lambda: joint(),
    "video latent": lambda: {"samples": torch.zeros(1, 48, 2, 4, 6)},
    "latent of three": lambda: {
        "samples": NestedTensor((torch.zeros(1, 48, 2, 4, 6), torch.zeros(1, 80, 31), torch.zeros(1, 4, 4)))
    },
    "latent of another size": lambda: joint((1, 48, 2, 4, 4)),
    "2 videos 1 sound": lambda: joint((2, 48, 2, 4, 6)),
    "64 mel bands": lambda: joint(sound=(1, 64, 31)),
    "time-first mel": lambda: joint(sound=(1, 31, 80)),
    "16 channels": lambda: joint((1, 16, 2, 4, 6)),
    "no mel frames": lambda: joint(sound=(1, 80, 0)),
    "no latent frames": lambda: joint((1, 48, 0, 4, 6)),
    "NaN latent": lambda: (
        joint() | {"samples": NestedTensor((spoiled(torch.ones(1, 48, 2, 4, 6)), torch.ones(1, 80, 31)))}
    ),
    "mask of half a frame": half_a_frame,
    "half-known mask": lambda: masked(value=0.5),
    "mask of two dimensions for sound": lambda: masked(sound=(1, 31)),
    "flat mask for sound": lambda: masked(sound=(31,)),
    "mask of one stream": lambda: joint(noise_mask=NestedTensor((torch.ones(1, 1, 2, 4, 6),))),
    "picture mask": lambda: joint(noise_mask=torch.ones(1, 64, 64)),
    "joint latent cut in time": lambda: joint((1, 48, 2, 4, 6), (1, 80, 56)),
    "joint latent cut in its audio": lambda: joint((1, 48, 3, 4, 6), (1, 80, 31)),
    "mask of another length": lambda: joint(
        noise_mask=NestedTensor((torch.ones(1, 1, 3, 4, 6), torch.ones(1, 1, 31)))
    ),
    "audio mask of another length": lambda: joint(
        noise_mask=NestedTensor((torch.ones(1, 1, 2, 4, 6), torch.ones(1, 1, 56)))
    ),
    "audio latent": lambda: {"samples": torch.zeros(1, 80, 31)},
    "latent without samples": lambda: {"noise_mask": torch.ones(1, 64, 64)},
    # conditioning and models
    "SDXL conditioning": lambda: conditioning(2048),
    "narrow conditioning": lambda: conditioning(32),
    "no conditioning": lambda: [],
    "conditioning of an area": lambda: conditioning(64, area=(4, 4, 0, 0), strength=1.0),
    "other model": other_model,
    # values of wildcard nodes
    "None": lambda: None,
    "a number": lambda: 7,
    "a text": lambda: "hello",
    "a list": lambda: [1, 2],
    "a tensor": lambda: torch.zeros(3),
    "a dict": lambda: {"a": 1},
    "0": lambda: 0,
    "-5": lambda: -5,
    "1000.0": lambda: 1000.0,
    "2.5": lambda: 2.5,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "True": lambda: True,
    "audio without a rate": lambda: {"waveform": torch.zeros(1, 1, RATE)},
    "silent video": lambda: video(None),
    "video": lambda: video(sound(0.3125)),
    "3 frames": lambda: pictures(3, 64, 64, 3),
    "two clips": lambda: pictures(10, 64, 64, 3),
    "two sounds": lambda: audio(torch.cat((sound(0.3125)["waveform"], 0.5 * sound(0.3125)["waveform"]))),
    "500 s": lambda: sound(500.0),
    # masks
    "mask of ones": lambda: torch.ones(1, 64, 96),
    "mask of zeros": lambda: torch.zeros(1, 64, 96),
    "mask of 3 frames": lambda: torch.ones(3, 64, 96),
    "mask of no frames": lambda: torch.ones(0, 64, 96),
    "mask up to 2": lambda: torch.full((1, 64, 96), 2.0),
    "mask below 0": lambda: torch.full((1, 64, 96), -0.5),
    "NaN mask": lambda: spoiled(torch.ones(1, 64, 96)),
}


class Given:
    """`name` of GIVEN -> its value on a socket that fits everywhere."""

    RETURN_TYPES = ("*",)
    FUNCTION = "give"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": (list(GIVEN),)}}

    def give(self, name):
        return (GIVEN[name](),)


NODE_CLASS_MAPPINGS = {"Given": Given}
