"""Still images as known frames of a joint latent."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..uniavgen_core import keyframes
from ..uniavgen_core.conditioning import MAX_FRAMES
from ..uniavgen_core.errors import UserError
from ..uniavgen_core.media.files import fit_image
from ..uniavgen_core.media.mel import MEL_BANDS
from ..uniavgen_core.media.vae import LATENT_CHANNELS, SPATIAL
from .encoding import checked_vae, pictures_uint8
from .host_model import TASK_NODES
from .types import CATEGORY, UNSAMPLED, JointLatent, tell


class Keyframe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenKeyframe",
            display_name="UniAVGen Keyframe",
            search_aliases=["last frame", "end image", "first last frame", "guide", "flf2v", "known frame"],
            category=CATEGORY,
            description="Holds an image at a frame of the clip, such as the last. Between a task node and "
            "the sampler; one after the other for several. Experimental: the weights were trained with "
            "beginnings only, so what lies between may jump.",
            is_experimental=True,
            inputs=[
                io.Latent.Input("latent", tooltip="From a task node, or from another Keyframe."),
                io.Vae.Input("vae", tooltip="The VAE that UniAVGen Video Encode has."),
                io.Image.Input(
                    "image",
                    tooltip="What is to be seen there, cut and resized to the clip. It fills one latent "
                    "frame, which is four frames of the clip.",
                ),
                io.Int.Input(
                    "frame",
                    default=-1,
                    min=-MAX_FRAMES,
                    max=MAX_FRAMES,
                    tooltip="Which frame, 16 a second, counted from 0; -1: the last, -2: the one before.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For the sampler or another Keyframe.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latent: dict, vae, image: Tensor, frame: int) -> io.NodeOutput:
        streams, masks = _streams(latent)
        video, mask = streams[0], masks[0]
        known = (mask == 0).transpose(0, 2).flatten(1).all(1).cpu()
        note = keyframes.described(frame, known)
        pictures = pictures_uint8(image)
        if len(pictures) > 1:
            raise UserError(f"image is {len(pictures)} images, expected one; choose one (Image From Batch)")
        picture = fit_image(pictures, SPATIAL * video.shape[4], SPATIAL * video.shape[3])
        encoded = checked_vae(vae).encode(keyframes.still(picture).float() / 255).float()
        video, _ = keyframes.put(video, known, frame, encoded)
        mask = mask.clone()
        mask[:, :, keyframes.place(frame, known)] = 0
        tell(cls, note)
        samples = JointLatent((video, streams[1]))
        changed = {**latent, "samples": samples, "noise_mask": JointLatent((mask, masks[1]))}
        if UNSAMPLED in latent:
            changed[UNSAMPLED] = samples
        return io.NodeOutput(changed)


def _streams(latent: dict) -> tuple[list[Tensor], list[Tensor]]:
    """Video and audio of a task node's latent, and their noise masks; UserError for any other latent."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    streams = samples.unbind() if samples.is_nested else [samples]
    if (
        len(streams) != 2
        or streams[0].ndim != 5
        or streams[0].shape[1] != LATENT_CHANNELS
        or streams[1].ndim != 3
        or streams[1].shape[1] != MEL_BANDS
        or 0 in streams[0].shape
    ):
        found = ", ".join(str(list(x.shape)) for x in streams)
        raise UserError(f"latent is {found}, expected a joint latent; take it from {TASK_NODES}")
    masks = list(mask.unbind()) if mask is not None and mask.is_nested else []
    if len(masks) != 2 or masks[0].ndim != 5 or masks[0].shape[2] != streams[0].shape[2]:
        raise UserError(
            "latent has no noise mask of video and audio; connect UniAVGen Keyframe right behind the task "
            "node"
        )
    if UNSAMPLED in latent and latent[UNSAMPLED] is not samples:
        raise UserError("latent was sampled already; put UniAVGen Keyframe between task node and sampler")
    return list(streams), masks


NODES = [Keyframe]
