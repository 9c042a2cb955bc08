"""Drawn people whom the embedded model can animate, to try it without files of one's own."""

from __future__ import annotations

import json
from pathlib import Path

from comfy_api.latest import InputImpl, io

from ..uniavgen_core.media.files import read_image
from .types import CATEGORY

FOLDER = Path(__file__).parents[1] / "web" / "puppets"
PUPPETS = json.loads((FOLDER / "puppets.json").read_text(encoding="utf-8"))


class Puppet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenPuppet",
            display_name="UniAVGen Puppet",
            category=CATEGORY,
            description="A drawn person that the embedded model has never seen: an image, and a recording of "
            "2 seconds with audio for the modes that take one.",
            search_aliases=["uniavgen", "test image", "example video", "drawn person", "avatar"],
            inputs=[
                io.Combo.Input(
                    "puppet",
                    options=list(PUPPETS),
                    tooltip="Who it is. Beside the image stand the caption and the words of the recording.",
                )
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The person, 128 x 128 pixels, in place of Load Image."
                ),
                io.Video.Output(
                    display_name="video", tooltip="33 frames at 16 fps with audio, in place of Load Video."
                ),
                io.Audio.Output(
                    display_name="audio", tooltip="The audio of the recording, in place of Load Audio."
                ),
            ],
        )

    @classmethod
    def execute(cls, puppet: str) -> io.NodeOutput:
        facts = PUPPETS[puppet]
        video = InputImpl.VideoFromFile(str(FOLDER / f"{facts['file']}.mp4"))
        image = read_image(FOLDER / f"{facts['file']}.png")[None].float() / 255
        return io.NodeOutput(image, video, video.get_components().audio)


NODES = [Puppet]
