"""Frames and audio into a VIDEO, and several clips side by side."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import InputImpl, Types, io
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..uniavgen_core.conditioning import FPS
from ..uniavgen_core.errors import UserError, counted
from ..uniavgen_core.media.files import AAC_RATES, MAX_FPS
from ..uniavgen_core.media.mel import fit_length, resample
from .encoding import pictures_uint8
from .types import CATEGORY, tell

MIN_LABEL = 20


class Mux(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenMux",
            display_name="UniAVGen Join Video and Audio",
            search_aliases=["mux", "create video", "add audio to video", "combine video and audio"],
            category=CATEGORY,
            description="Joins frames and audio to a video of equal lengths: the audio is cut or filled "
            "with silence. A batch of clips becomes a list of videos, each with its own audio. Save Video "
            "writes "
            "them.",
            inputs=[
                io.Image.Input("images", tooltip="From VAE Decode. An odd side loses one pixel for H.264."),
                io.Audio.Input("audio", tooltip="From UniAVGen Audio Decode."),
                io.Float.Input(
                    "fps",
                    default=float(FPS),
                    min=1.0,
                    max=float(MAX_FPS),
                    step=0.01,
                    tooltip="The model makes 16 frames a second; at another rate audio and lips go out of "
                    "sync.",
                ),
            ],
            outputs=[io.Video.Output(is_output_list=True, tooltip="For Save Video.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: Tensor, audio: dict, fps: float) -> io.NodeOutput:
        frames = pictures_uint8(images, "images").float() / 255
        frames = frames[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]
        waveform, rate = audio["waveform"], audio["sample_rate"]
        if waveform.ndim != 3 or not waveform.numel():
            raise UserError(f"audio is {list(waveform.shape)}, expected [1, channels, samples]; use an AUDIO")
        if not waveform.isfinite().all():
            raise UserError("audio has samples that are NaN or infinite; use an undamaged clip")
        takes = len(waveform)
        if len(frames) % takes:
            raise UserError(
                f"audio holds {takes} clips but images {counted(len(frames), 'frame')}, which cannot "
                "be shared out evenly; decode video and audio of the same latent"
            )
        if rate not in AAC_RATES:
            waveform, rate = resample(waveform, rate, 48000), 48000
        if waveform.shape[1] > 2:
            waveform = waveform.mean(1, keepdim=True)
        count = len(frames) // takes
        samples, wanted = waveform.shape[-1], round(count / fps * rate)
        waveform = fit_length(waveform, wanted)
        change = (samples - wanted) / rate
        note = (
            ""
            if abs(change) < 0.01
            else f", audio {'cut' if change > 0 else 'filled with silence'} by {abs(change):.2f} s"
        )
        times = wanted / samples
        if takes == 1 and times > 1.5 and abs(times - round(times)) < 0.1:
            note += f": images are {round(times)} times as long; if they are takes, connect audio of as many"
        several = f"{takes} videos of " if takes > 1 else ""
        tell(cls, f"{several}{counted(count, 'frame')}, {count / fps:.2f} s{note}")
        videos = [
            InputImpl.VideoFromComponents(
                Types.VideoComponents(
                    images=take,
                    audio={"waveform": track[None], "sample_rate": rate},
                    frame_rate=Fraction(fps).limit_denominator(1001),
                )
            )
            for take, track in zip(frames.split(count), waveform)
        ]
        return io.NodeOutput(videos)


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenCompare",
            display_name="UniAVGen Compare",
            search_aliases=["contact sheet", "side by side", "image grid"],
            category=CATEGORY,
            description="Tiles clips with their labels into one, frame by frame: a contact sheet that plays.",
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="A list of clips, such as VAE Decode makes of Guidance Grid."
                ),
                io.String.Input("labels", force_input=True, tooltip="A label for each clip."),
                io.Int.Input("columns", default=3, min=1, max=16, tooltip="Clips side by side."),
            ],
            outputs=[
                io.Image.Output(tooltip="As long as the longest clip; shorter ones hold their last frame.")
            ],
        )

    @classmethod
    def execute(cls, images: list[Tensor], labels: list[str], columns: list[int]) -> io.NodeOutput:
        if len(images) != len(labels):
            raise UserError(
                f"images holds {counted(len(images), 'clip')}, labels {counted(len(labels), 'name')}; "
                "give each clip a label"
            )
        clips = [pictures_uint8(clip, "images") for clip in images]
        height, width = (max(clip.shape[axis] for clip in clips) for axis in (1, 2))
        strip = max(MIN_LABEL, height // 12) // 2 * 2
        length = max(map(len, clips))
        tiles = []
        for clip, label in zip(clips, labels):
            held = clip[torch.arange(length).clamp(max=len(clip) - 1)]
            tile = F.pad(held, (0, 0, 0, width - clip.shape[2], 0, height - clip.shape[1]))
            title = banner(label, width, strip).expand(length, -1, -1, -1)
            tiles.append(torch.cat((title, tile), dim=1))
        across = min(columns[0], len(tiles))
        tiles += [torch.zeros_like(tiles[0])] * (-len(tiles) % across)
        rows = [torch.cat(tiles[i : i + across], dim=2) for i in range(0, len(tiles), across)]
        return io.NodeOutput(torch.cat(rows, dim=1).float() / 255)


def banner(label: str, width: int, height: int) -> Tensor:
    """The label in white on black, uint8 `[height, width, 3]`."""
    image = Image.new("RGB", (width, height))
    size = height * 3 // 4
    draw = ImageDraw.Draw(image)
    while size > 6 and draw.textlength(label, ImageFont.load_default(size)) > width - 4:
        size -= 1
    draw.text((2, height // 2), label, "white", ImageFont.load_default(size), anchor="lm")
    return torch.from_numpy(np.array(image))


NODES = [Mux, Compare]
