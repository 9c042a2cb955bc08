"""The pack's own sockets and what travels through them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from server import PromptServer
from torch import Tensor

from ..uniavgen_core.errors import UserError
from ..uniavgen_core.media.mel import (
    SILENCE,
    check_voice_length,
    peak_normalise,
    reference_voice,
    sound_latent,
)

CATEGORY = "UniAVGen"
UNSAMPLED = "uniavgen_unsampled"  # in a LATENT: the samples as the task node gave them

VideoSocket = io.Custom("UNIAVGEN_VIDEO")
MelSocket = io.Custom("UNIAVGEN_MEL")
SpeechSocket = io.Custom("UNIAVGEN_SPEECH")
SpeechEncoderSocket = io.Custom("UNIAVGEN_SPEECH_ENCODER")
VocoderSocket = io.Custom("UNIAVGEN_VOCODER")


@dataclass(frozen=True)
class EncodedVideo:
    """A picture (one frame) or a video at 16 fps: raw VAE latent `[1, 48, T, h, w]`, float32."""

    latent: Tensor

    @property
    def frames(self) -> int:
        return 4 * self.latent.shape[2] - 3


@dataclass(frozen=True)
class EncodedSound:
    """A mono waveform `[n]` at 24 kHz; each task makes the mel that it was trained with (SPEC section 6)."""

    waveform: Tensor

    def latent(self) -> Tensor:
        """Known sound as it is, `[1, L, 80]`."""
        return sound_latent(self.waveform[None])

    def driving(self) -> Tensor:
        """Sound that drives a face: peak-normalised, `[1, L, 80]`."""
        self._check_audible("mel")
        return sound_latent(peak_normalise(self.waveform)[None])

    def voice(self) -> Tensor:
        """A reference voice: peak-normalised, with 0.3 s of silence behind it, `[1, L, 80]`."""
        self._check_audible("reference_voice")
        check_voice_length(self.waveform, "reference_voice")
        return sound_latent(reference_voice(self.waveform)[None])

    def _check_audible(self, name: str) -> None:
        peak = float(self.waveform.abs().max())
        if peak < SILENCE:
            raise UserError(
                f"{name} is silent (peak {peak:.1e}, expected at least {SILENCE}); "
                "use a clip in which someone speaks"
            )


@dataclass(frozen=True)
class EncodedSpeech:
    """What is said and its null, features of the speech encoder `[1, N, dim]`.

    `transcript`: whether the words of a reference voice stand before it.
    """

    features: Tensor
    null: Tensor
    transcript: bool


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
