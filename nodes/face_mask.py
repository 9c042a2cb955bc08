"""Where the model sees the face (docs/model.md sections 4 and 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..uniavgen_core.errors import UserError
from ..uniavgen_core.sampling.guidance import Guidance
from .decoding import check_sampled
from .encoding import pictures_uint8
from .guiding import MACFGGuider, sample
from .host_model import FaceMasks
from .types import CATEGORY, check_one_take, tell

PIXELS = 16
FACE_COLOUR = (1.0, 0.35, 0.1)


class FaceMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenFaceMask",
            display_name="UniAVGen Face Mask",
            search_aliases=["face attention", "mouth mask", "where is the face", "attention map"],
            category=CATEGORY,
            description="The face mask that the model predicts, frame by frame: one pass over a sampled "
            "latent. "
            "If the mask misses the mouth, lip sync suffers.",
            inputs=[
                io.Model.Input("model", tooltip="The model that sampled the latent."),
                io.Conditioning.Input("positive", tooltip="From the task node."),
                io.Conditioning.Input("negative", tooltip="From the task node."),
                io.Latent.Input("latent", tooltip="A sampled joint latent, from UniAVGen Sampler."),
                io.Int.Input(
                    "block",
                    default=-1,
                    min=-1,
                    max=14,
                    tooltip="Interaction block, 0 the earliest; -1: the mean of all.",
                ),
                io.Float.Input(
                    "noise",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How noisy the latent is made before the model looks, as in the middle of a run.",
                ),
                io.Int.Input(
                    "variation",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    tooltip="The seed of the noise.",
                    advanced=True,
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="The decoded frames, to draw the mask on; else on black."
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="0 to 1 for every frame at 16 fps."),
                io.Image.Output(display_name="overlay", tooltip="The mask drawn on the frames."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent: dict,
        block: int,
        noise: float,
        variation: int,
        images: Tensor | None = None,
    ) -> io.NodeOutput:
        check_sampled(latent)
        check_one_take(latent)
        masks = FaceMasks()
        guider = MACFGGuider(model, Guidance.none(), masks)
        guider.set_conds(positive, negative)
        sample(guider, latent, torch.tensor([noise, 0.0]), variation)
        if block not in (-1, *masks):
            raise UserError(
                f"block is {block}, this model has interaction blocks 0 to {max(masks)}; use one of these"
            )
        chosen = torch.stack(list(masks.values())).mean(0) if block < 0 else masks[block]
        shape, patch = latent["samples"].unbind()[0].shape, model.model.core_config.patch
        mask = per_frame(chosen[0].float().cpu(), shape, patch)  # [F, H, W]
        tell(cls, f"{len(masks)} interaction blocks, mean {float(mask.mean()):.2f}")
        if images is None:
            frames = mask.new_zeros(*mask.shape, 3)
        else:
            frames = pictures_uint8(images, "images").float() / 255
        if frames.shape[:3] != mask.shape:
            raise UserError(
                f"images are {list(frames.shape)}, the mask is {list(mask.shape)}; give the frames "
                "decoded from the same latent"
            )
        colour = torch.tensor(FACE_COLOUR)
        return io.NodeOutput(mask, torch.lerp(frames, colour.expand_as(frames), 0.6 * mask[..., None]))


def per_frame(mask: Tensor, shape: torch.Size, patch: tuple[int, int]) -> Tensor:
    """Mask of the video tokens `[T, tokens]` -> `[4 T - 3, 16 h, 16 w]`, one for every frame and pixel."""
    rows, columns = (-(-n // p) for n, p in zip(shape[3:], patch))
    grid = mask.unflatten(1, (rows, columns))[:, None]
    pixels = F.interpolate(grid, scale_factor=tuple(p * PIXELS for p in patch), mode="bilinear")[:, 0]
    pixels = pixels[:, : shape[3] * PIXELS, : shape[4] * PIXELS]
    return torch.cat((pixels[:1], pixels[1:].repeat_interleave(4, dim=0)))


NODES = [FaceMask]
