"""Modality-aware classifier-free guidance, MA-CFG (docs/model.md section 7)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..conditioning import Task
from ..model.cache import Cache
from ..model.dit import DualBranchDiT
from ..model.inputs import ActiveParts, Conditioned, References, TextConditioning, Velocity
from ..model.layers import Attention, sdpa
from .defaults import Guidance, Savings
from .passes import Passes


def mix(null: Tensor, full: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance: `null + scale (full - null)`."""
    return null + scale * (full - null)


RunPasses = Callable[[list[Callable[[], Velocity]]], list[Velocity]]
"""Runs the passes of a step, which do not depend on each other, and gives their results in the same order."""


def one_by_one(passes: list[Callable[[], Velocity]]) -> list[Velocity]:
    """The default `RunPasses`."""
    return [run() for run in passes]


class GuidedModel:
    """The model with a task, two pairs of texts and a guidance: latents in, one guided velocity out.

    A distilled model is told the scales and needs no null pass. Keeps what is the same at every step; make
    a new one for every sampling run.
    """

    def __init__(
        self,
        model: DualBranchDiT,
        task: Task,
        positive: TextConditioning,
        negative: TextConditioning,
        guidance: Guidance,
        attention: Attention = sdpa,
        savings: Savings = Savings(),  # noqa: B008 (frozen)
        run_passes: RunPasses = one_by_one,
    ):
        self.run_passes = run_passes
        self.model, self.task, self.guidance, self.attention = model, task, guidance, attention
        self.positive, self.negative = positive, negative
        self.full_cache, self.null_cache = Cache(), Cache()
        self.passes = Passes(savings, Conditioned(task.conditioned_video, task.conditioned_audio))

    def __call__(self, video: Tensor, audio: Tensor, time: Tensor, step: int, steps: int) -> Velocity:
        """Running latents (float32) at `time` `[B]` -> guided velocity, float32."""
        video, audio = self.task.apply(video, audio)
        interacts = self.guidance.null_interacts(step, steps)
        guided = self.guidance.needs_null and not self.model.config.distilled
        needed = self.passes.needed(video, audio, time, step, steps, guided, interacts)
        wanted = {}
        if needed.full:
            wanted["full"] = partial(self.full, video, audio, time)
        if needed.null:
            wanted["null"] = partial(self.null, video, audio, time, interacts)
        made = dict(zip(wanted, self.run_passes(list(wanted.values()))))
        full, null = self.passes.completed(made.get("full"), made.get("null"))
        if null is None:
            return full
        return Velocity(
            mix(null.video, full.video, self.guidance.s_v),
            mix(null.audio, full.audio, self.guidance.s_a),
            full.face_masks,
        )

    def full(self, video: Tensor, audio: Tensor, time: Tensor, scales: Tensor | None = None) -> Velocity:
        """The full pass at latents with the conditioned frames in them.

        `scales` `[B, 2]`: what a distilled model is told in place of the guidance's.
        """
        if scales is None and self.model.config.distilled:
            scales = time.new_tensor([[self.guidance.s_v, self.guidance.s_a]]).expand(len(time), -1)
        active = ActiveParts(v2a=self.task.v2a)
        return self._pass(video, audio, time, self.positive, self.full_cache, active, scales)

    def null(self, video: Tensor, audio: Tensor, time: Tensor, interacts: bool) -> Velocity:
        """The null pass, with or without interaction, as `full`."""
        active = ActiveParts(a2v=interacts, v2a=interacts, skip_layers=self.guidance.skip_layers)
        return self._pass(video, audio, time, self.negative, self.null_cache, active)

    def _pass(
        self,
        video: Tensor,
        audio: Tensor,
        time: Tensor,
        text: TextConditioning,
        cache: Cache,
        active: ActiveParts,
        scales: Tensor | None = None,
    ) -> Velocity:
        dtype, task = self.model.dtype, self.task
        references = References(task.reference_image, task.reference_mel, task.reference_mel_lengths)
        return self.model(
            video.to(dtype),
            audio.to(dtype),
            time,
            text.to(dtype),
            references.to(dtype),
            Conditioned(task.conditioned_video, task.conditioned_audio),
            active=active,
            cache=cache,
            attention=self.attention,
            audio_attention=self.attention,
            **({} if scales is None else {"scales": scales}),
            speaker=task.speaker,
        )
