"""The sampling schedule and the Euler loop (docs/model.md section 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..conditioning import Task
from ..errors import UserError
from ..model.dit import DualBranchDiT
from ..model.inputs import TextConditioning, Velocity
from ..model.layers import Attention, sdpa
from .defaults import Guidance, SamplingDefaults, Savings
from .guidance import GuidedModel, RunPasses, one_by_one


class Cancelled(UserError):
    """The `cancelled` callback of a sampling run said so."""


class Sample(NamedTuple):
    """Latents float32: video `[B, C, T, H, W]`, audio `[B, L, bands]`; face masks of the last step.

    `passes`: how often the model was run.
    """

    video: Tensor
    audio: Tensor
    face_masks: dict[int, Tensor]
    passes: int = 0


def schedule(steps: int, shift: float = SamplingDefaults.shift) -> Tensor:
    """Times `[steps + 1]` float32 from 1000 to 0: `linspace(1000, 1, steps)` shifted, then 0.

    Raises:
        UserError: fewer than one step or a shift that is not positive.
    """
    if steps < 1:
        raise UserError(f"{steps} steps cannot sample anything; use at least 1 (50 is the default)")
    if not shift > 0:
        raise UserError(f"shift is {shift}; it must be positive (5 is the default)")
    u = torch.cat((torch.linspace(1000, 1, steps), torch.zeros(1))) / 1000
    return 1000 * (shift * u / (1 + (shift - 1) * u))


def integrate(
    velocity: Callable[[Tensor, Tensor, Tensor, int, int], Velocity],
    video: Tensor,
    audio: Tensor,
    times: Tensor,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Sample:
    """Euler steps along `velocity(video, audio, time [B], step, steps)`; conditioned frames run along.

    Raises:
        Cancelled: `cancelled()` returned true before a step.
        UserError: the velocity is not finite.
    """
    steps, face_masks = len(times) - 1, {}
    for i in range(steps):
        if cancelled():
            raise Cancelled(f"cancelled after {i} of {steps} steps; nothing was written")
        time = times[i].to(video.device).expand(video.shape[0])
        u = velocity(video, audio, time, i, steps)
        if not (u.video.isfinite().all() and u.audio.isfinite().all()):
            raise UserError(
                f"the model's output is not finite at step {i + 1} of {steps}; "
                "use bf16 or fp32 weights (fp16 can overflow) and look at the file with `uniavgen inspect`"
            )
        dt = (times[i] - times[i + 1]).to(video.device) / 1000
        video, audio, face_masks = video - u.video * dt, audio - u.audio * dt, u.face_masks
        on_step(i + 1, steps)
    return Sample(video, audio, face_masks)


@torch.inference_mode()
def sample(
    model: DualBranchDiT,
    task: Task,
    positive: TextConditioning,
    negative: TextConditioning,
    guidance: Guidance | None = None,
    steps: int = SamplingDefaults.steps,
    shift: float = SamplingDefaults.shift,
    seed: int = SamplingDefaults.seed,
    noise: tuple[Tensor, Tensor] | None = None,
    attention: Attention = sdpa,
    savings: Savings = Savings(),  # noqa: B008 (frozen)
    run_passes: RunPasses = one_by_one,
    **callbacks: Any,
) -> Sample:
    """One clip's latents; conditioned frames come back exactly as they were given.

    `noise`: video and audio, in place of that of `seed`. `savings`: passes that are left out. `callbacks`:
    `on_step` and `cancelled` of `integrate`. The same seed gives the same clip.
    """
    guidance = guidance or Guidance()
    velocity = GuidedModel(model, task, positive, negative, guidance, attention, savings, run_passes)
    video, audio = task.noise(seed) if noise is None else noise
    run = integrate(velocity, video, audio, schedule(steps, shift), **callbacks)
    return Sample(*task.apply(run.video, run.audio), run.face_masks, velocity.passes.runs)
