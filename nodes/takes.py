"""Several takes of one task: their noise, one of them to go on with, and a sheet to choose from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import Input, io, ui
from torch import Tensor

from ..uniavgen_core.errors import UserError
from ..uniavgen_core.sampling.takes import MAX_TAKES
from .decoding import check_sampled
from .encoding import pictures_uint8
from .guiding import takes_noise
from .muxing import MIN_LABEL, banner
from .types import CATEGORY, clips, tell


class EachTakesNoise:
    """NOISE for the host's samplers."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, latent: dict) -> NestedTensor | Tensor:
        return takes_noise(latent["samples"], self.seed)


class TakesNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenTakesNoise",
            display_name="UniAVGen Takes Noise",
            search_aliases=["random noise", "batch seed", "seed per take", "variations"],
            category=CATEGORY,
            description="In place of RandomNoise where there are several takes: take k gets the noise that "
            "seed + k - 1 gives a single clip, as UniAVGen Sampler does, so that each take can be made again "
            "alone.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=2025,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the first take.",
                )
            ],
            outputs=[io.Noise.Output(tooltip="For Sampler Custom Advanced.")],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        return io.NodeOutput(EachTakesNoise(seed))


class PickTake(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenPickTake",
            display_name="UniAVGen Pick Take",
            search_aliases=["latent from batch", "select take", "choose clip", "batch index"],
            category=CATEGORY,
            description="One take of several, to decode only that or to go on with it.",
            inputs=[
                io.Latent.Input("latent", tooltip="Several takes, from UniAVGen Sampler."),
                io.Int.Input(
                    "take", default=1, min=1, max=MAX_TAKES, tooltip="Its number on the sheet, from 1."
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The take, in place of all of them.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latent: dict, take: int) -> io.NodeOutput:
        check_sampled(latent)
        samples = latent["samples"]
        takes = samples.shape[0]
        if take > takes:
            raise UserError(f"take is {take}, the latent holds {takes}; use 1 to {takes}")
        tell(cls, f"take {take} of {takes}")
        one = slice(take - 1, take)
        picked = {k: v for k, v in latent.items() if k != "batch_index"}
        for name in ("samples", "noise_mask"):
            if name in latent:
                x = latent[name]
                picked[name] = clips(x, one) if x.is_nested else x if len(x) == 1 else x[one]
        return io.NodeOutput(picked)


class TakesSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenTakesSheet",
            display_name="UniAVGen Takes Sheet",
            search_aliases=["contact sheet", "compare takes", "overview", "storyboard"],
            category=CATEGORY,
            description="A contact sheet to choose a take from: a row for each video with its number and "
            "frames from its beginning to its end.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Video.Input("videos", tooltip="From UniAVGen Join Video and Audio: one for each take."),
                io.Int.Input(
                    "columns", default=6, min=1, max=32, tooltip="Frames of each take, evenly spaced."
                ),
                io.Int.Input(
                    "width",
                    default=160,
                    min=32,
                    max=1024,
                    step=2,
                    tooltip="Of a frame on the sheet, in pixels.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The sheet that the node shows, for Save Image.")],
        )

    @classmethod
    def execute(cls, videos: list[Input.Video], columns: list[int], width: list[int]) -> io.NodeOutput:
        rows = [_row(f"{take}", video, columns[0], width[0]) for take, video in enumerate(videos, 1)]
        across = max(row.shape[1] for row in rows)
        sheet = torch.cat([F.pad(row, (0, 0, 0, across - row.shape[1])) for row in rows])
        sheet = sheet[None].float() / 255
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


def _row(label: str, video: Input.Video, columns: int, width: int) -> Tensor:
    """The number left of frames of a take, uint8 `[h, n + columns * width, 3]`."""
    frames = video.get_components().images
    chosen = torch.linspace(0, len(frames) - 1, columns).round().long()
    pictures = pictures_uint8(frames[chosen], "videos")
    height = max(1, round(width * pictures.shape[1] / pictures.shape[2]))
    small = (
        F.interpolate(pictures.movedim(-1, 1).float(), (height, width), mode="bilinear", antialias=True)
        .round()
        .to(torch.uint8)
    )
    tiles = torch.cat(list(small.movedim(1, -1)), dim=1)
    return torch.cat((banner(label, max(MIN_LABEL, height // 4), height), tiles), dim=1)


NODES = [TakesNoise, PickTake, TakesSheet]
