"""The pack's own sockets and what travels through them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from server import PromptServer
from torch import Tensor

from ..uniavgen_core.conditioning import video_frames
from ..uniavgen_core.errors import UserError

CATEGORY = "UniAVGen"
UNSAMPLED = "uniavgen_unsampled"  # in a LATENT: the samples as the task node gave them

VideoSocket = io.Custom("UNIAVGEN_VIDEO")
MelSocket = io.Custom("UNIAVGEN_MEL")
SpeechSocket = io.Custom("UNIAVGEN_SPEECH")
SpeechEncoderSocket = io.Custom("UNIAVGEN_SPEECH_ENCODER")
VocoderSocket = io.Custom("UNIAVGEN_VOCODER")


@dataclass(frozen=True)
class EncodedVideo:
    """An image (one frame) or a video at 16 fps: raw VAE latent `[1, 48, T, h, w]`, float32."""

    latent: Tensor

    @property
    def frames(self) -> int:
        return video_frames(self.latent.shape[2])


@dataclass(frozen=True)
class PreparedAudio:
    """A mono waveform `[n]` at 24 kHz; `conditioning.plan` makes the mel that a mode was trained with."""

    waveform: Tensor


@dataclass(frozen=True)
class EncodedSpeech:
    """What is said and its null, features of the speech encoder `[1, N, dim]`.

    `transcript`: whether the words of a reference voice stand before it; `text`, `language`: what is said.
    """

    features: Tensor
    null: Tensor
    transcript: bool
    text: str = ""
    language: str = "en"


class WrongLatent(UserError, AttributeError):
    """A node asked a joint latent for what only a single tensor has; `hasattr` of it is false."""


class JointLatent(NestedTensor):
    """Video `[B, 48, T, h, w]` and audio `[B, 80, L]`; nodes for one tensor are told what to do instead."""

    def _copy(self) -> JointLatent:
        return JointLatent(self.tensors)

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        raise WrongLatent(
            "this node takes one stream, but the latent holds video and audio; put Separate AV Latent before "
            "it and Concat AV Latent behind it, or use UniAVGen Pick Take for one clip of several"
        )

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        return cls([]).one_stream


def clips(samples: NestedTensor, which: slice) -> JointLatent:
    """Some clips of a batch of joint latents or of its noise masks, of which one may serve all."""
    return JointLatent([x if len(x) == 1 else x[which] for x in samples.unbind()])


def check_one_take(latent: dict) -> None:
    """Raises UserError for a batch of takes."""
    takes = latent["samples"].shape[0]
    if takes > 1:
        raise UserError(
            f"latent holds {takes} takes, expected one; set takes of the task node to 1, or choose one with "
            "UniAVGen Pick Take"
        )


def tell(node: type[io.ComfyNode], text: str) -> None:
    """Show a line on the running node and in the log; the last one stays. Needs the hidden unique_id."""
    logging.info("UniAVGen: %s", text)
    PromptServer.instance.send_progress_text(text, node.hidden.unique_id)


def tell_running_node(text: str) -> None:
    """As `tell`, on whichever node is running: a guider runs inside a node of the host."""
    logging.info("UniAVGen: %s", text)
    context = get_executing_context()
    if context is not None:
        PromptServer.instance.send_progress_text(text, context.node_id)
