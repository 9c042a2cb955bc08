"""Modality-aware classifier-free guidance, MA-CFG (SPEC section 7)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..conditioning import Task
from ..errors import UserError
from ..model.cache import Cache
from ..model.dit import DualBranchDiT
from ..model.inputs import ActiveParts, Conditioned, References, TextConditioning, Velocity
from ..model.layers import Attention, sdpa


@dataclass(frozen=True)
class Guidance:
    """How the full and the null pass are mixed: `u = null + s (full - null)`, `s_v` video, `s_a` audio.

    During the first `interval` of the steps the null pass has no interaction, so that the scales amplify
    exactly the exchange between sound and picture (MA-CFG); after it, plain CFG. Every null pass leaves
    out `skip_layers`. With both scales 1 there is no null pass.
    """

    s_v: float = 3.0
    s_a: float = 2.0
    interval: float = 0.5
    skip_layers: tuple[int, ...] = (11,)

    @classmethod
    def plain(cls, s_v: float, s_a: float, skip_layers: tuple[int, ...] = (11,)) -> Guidance:
        """Plain CFG all the way: the null pass keeps the interaction."""
        return cls(s_v, s_a, 0.0, skip_layers)

    @classmethod
    def none(cls) -> Guidance:
        """No guidance: one pass a step."""
        return cls(1.0, 1.0)

    @property
    def needs_null(self) -> bool:
        return (self.s_v, self.s_a) != (1.0, 1.0)

    def for_layers(self, layers: int) -> Guidance:
        """For a model of so many layers, of which one too small for the default skip layer skips none.

        Raises:
            UserError: another skip layer that the model does not have.
        """
        outside = [layer for layer in self.skip_layers if not 0 <= layer < layers]
        if not outside:
            return self
        if self.skip_layers == Guidance.skip_layers:
            return replace(self, skip_layers=())
        raise UserError(f"skip layer {outside[0]} does not exist; the model has layers 0..{layers - 1}")

    def null_interacts(self, step: int, steps: int) -> bool:
        """Whether the null pass of a step (from 0) keeps the interaction on."""
        return step >= int(self.interval * steps)

    def mix(self, full: Velocity, null: Velocity) -> Velocity:
        return Velocity(
            null.video + self.s_v * (full.video - null.video),
            null.audio + self.s_a * (full.audio - null.audio),
            full.face_masks,
        )


class GuidedModel:
    """The model with a task, two pairs of texts and a guidance: latents in, one guided velocity out.

    Keeps what is the same at every step; make a new one for every sampling run.
    """

    def __init__(
        self,
        model: DualBranchDiT,
        task: Task,
        positive: TextConditioning,
        negative: TextConditioning,
        guidance: Guidance,
        attention: Attention = sdpa,
    ):
        self.model, self.task, self.guidance, self.attention = model, task, guidance, attention
        self.positive, self.negative = positive, negative
        self.full_cache, self.null_cache = Cache(), Cache()

    def __call__(self, video: Tensor, audio: Tensor, time: Tensor, step: int, steps: int) -> Velocity:
        """Running latents (float32) at `time` `[B]` -> guided velocity, float32."""
        video, audio = self.task.known(video, audio)
        full = self._pass(video, audio, time, self.positive, self.full_cache, ActiveParts(v2a=self.task.v2a))
        if not self.guidance.needs_null:
            return full
        interacts = self.guidance.null_interacts(step, steps)
        null = self._pass(
            video,
            audio,
            time,
            self.negative,
            self.null_cache,
            ActiveParts(a2v=interacts, v2a=interacts, skip_layers=self.guidance.skip_layers),
        )
        return self.guidance.mix(full, null)

    def _pass(
        self,
        video: Tensor,
        audio: Tensor,
        time: Tensor,
        text: TextConditioning,
        cache: Cache,
        active: ActiveParts,
    ) -> Velocity:
        dtype, task = self.model.dtype, self.task
        references = References(task.reference_image, task.reference_mel, task.reference_mel_lengths)
        return self.model(
            video.to(dtype),
            audio.to(dtype),
            time,
            text.to(dtype),
            references.to(dtype),
            Conditioned(task.known_video, task.known_audio),
            active=active,
            cache=cache,
            attention=self.attention,
            audio_attention=self.attention,
        )
