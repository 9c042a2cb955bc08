"""Whose face exchanges with the audio: a mask for the interaction."""

from __future__ import annotations

import node_helpers
from comfy_api.latest import io
from torch import Tensor

from ..uniavgen_core.errors import UserError
from ..uniavgen_core.who_speaks import HOW, check_mask
from .host_model import TASK_NODES
from .types import CATEGORY, tell


class WhoSpeaks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenWhoSpeaks",
            display_name="UniAVGen Who Speaks",
            search_aliases=[
                "two people",
                "several faces",
                "speaker mask",
                "face mask",
                "dialogue",
                "lip sync",
            ],
            category=CATEGORY,
            description="Several faces in the image: a mask over the one that speaks. The audio moves what "
            "is in the mask and follows the lips in it. Between a task node and the sampler.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="From the task node."),
                io.Conditioning.Input("negative", tooltip="From the task node."),
                io.Mask.Input(
                    "mask",
                    tooltip="1 (white) over the face that speaks, drawn on the image: one mask for all "
                    "frames, or one for every frame of the clip at 16 fps.",
                ),
                io.Combo.Input(
                    "how",
                    options=list(HOW),
                    default=HOW[0],
                    tooltip="multiply: within the mask the model finds the face itself. replace: the mask is "
                    "taken as it is drawn; draw the face and no background.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, positive: list, negative: list, mask: Tensor, how: str) -> io.NodeOutput:
        mask = mask.detach().float().cpu()
        check_mask(mask)
        for side, conditioning in (("positive", positive), ("negative", negative)):
            if not conditioning or any("uniavgen_null" not in options for _, options in conditioning):
                raise UserError(
                    f"{side} does not come from {TASK_NODES}; connect the {side} output of one of them"
                )
        frames = "every frame" if len(mask) == 1 else f"{len(mask)} frames"
        tell(cls, f"{100 * float(mask.mean()):.0f} % of the image speaks, in {frames}")
        values = {"uniavgen_who_speaks": (mask, how)}
        return io.NodeOutput(
            node_helpers.conditioning_set_values(positive, values),
            node_helpers.conditioning_set_values(negative, values),
        )


NODES = [WhoSpeaks]
