"""Which passes a step runs, and what stands in for those it does not (docs/fewer-passes.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..model.inputs import Conditioned, Velocity
from .defaults import Savings

SAME_TIME = 1 + 1e-6
SMALLEST = 1e-12


class Needed(NamedTuple):
    """The passes that a step has to run."""

    full: bool
    null: bool


class Passes:
    """The savings of one sampling run: made new for every run, asked before and told after every step.

    The difference full - null belongs to a time and to a kind of null pass (with or without interaction). It
    serves later times of the same kind alone: a solver that goes back in time, or the end of the MA-CFG
    interval, runs the null pass. So any solver may be combined with `Savings.reuse`.

    The step cache expects the velocity of each stream to change as fast along the path as it did between the
    last two steps that were run (as EasyCache does for one stream). A step is left out only where the change
    summed up since the last one that was run stays below the limit in video and in audio, in every clip of
    the batch; conditioned frames do not count, and the last step always runs. It takes over the last
    velocity, so it is right only for solvers that add no noise and ask once a step.

    Args:
        savings: what may be left out; with the default every pass runs and nothing is kept.
        known: where the streams are conditioned.
    """

    def __init__(self, savings: Savings, known: Conditioned):
        self.savings = savings
        self.runs = 0
        self._off = savings == Savings()
        self._generated = [(~mask.cpu()).nonzero()[:, 0] for mask in (known.video, known.audio)]
        self._guided = False
        self._kind: bool | None = None  # of the null pass behind the difference: with interaction or not
        self._kind_now = False
        self._null_time = self._time = 0.0
        self._null_step = self._step = 0
        self._full: Velocity | None = None
        self._difference: Velocity | None = None
        self._place: list[Tensor] = []  # where the last step stood, run or not
        self._run_place: list[Tensor] = []  # and the last that was run, with its velocity
        self._run_velocity: list[Tensor] = []
        self._rates: list[Tensor] = []  # change of the velocity by way, [B] for each generated stream
        self._change: list[Tensor] = []  # relative, expected since the last step that was run

    def needed(
        self, video: Tensor, audio: Tensor, time: Tensor, step: int, steps: int, guided: bool, interacts: bool
    ) -> Needed:
        """What step `step` of `steps` runs at the latents video `[B, C, T, H, W]` and audio `[B, L, bands]`.

        `time` `[B]`, falling; `guided`: whether there is a null pass at all; `interacts`: its kind.
        """
        if self._off:
            self.runs += 1 + guided
            return Needed(True, guided)
        now = float(time[0])
        guided = guided and step < int(self.savings.null_until * steps)
        usable = self._kind == interacts and now <= self._null_time * SAME_TIME
        skipped = self._may_skip(video, audio, now, step, steps, usable or not guided)
        due = (
            not usable
            or step < int(self.savings.reuse_after * steps)
            or step - self._null_step >= self.savings.reuse
            or self.savings.reuse == 1
        )
        found = Needed(not skipped, guided and due and not skipped)
        self._guided, self._kind_now, self._time, self._step = guided, interacts, now, step
        self.runs += sum(found)
        return found

    def completed(self, full: Velocity | None, null: Velocity | None) -> tuple[Velocity, Velocity | None]:
        """The velocities of the passes that `needed` asked for (None: not run) -> those of both passes.

        The second is None where the step has no guidance.
        """
        if self._off:
            if full is None:
                raise ValueError("without savings every step has a full pass")
            return full, null
        if full is not None:
            self._full = full
            if self.savings.cache:
                self._learn(full)
        full = self._full
        if full is None:
            raise ValueError("a step was left out before any was run")
        if not self._guided:
            return full, None
        if null is not None:
            self._difference = Velocity(full.video - null.video, full.audio - null.audio, {})
            self._kind, self._null_time, self._null_step = self._kind_now, self._time, self._step
            return full, null
        if self._difference is None:
            raise ValueError("a null pass was left out before any was run")
        apart = self._difference
        return full, Velocity(full.video - apart.video, full.audio - apart.audio, {})

    def _may_skip(
        self, video: Tensor, audio: Tensor, now: float, step: int, steps: int, usable: bool
    ) -> bool:
        if not self.savings.cache:
            return False
        place = self._rows(video, audio)
        moved, self._place = list(zip(place, self._place)), place
        if not self._rates or not usable or step + 1 >= steps or now * SAME_TIME >= self._time:
            return False
        self._change = [
            change + rate * _norm(here - before) / _norm(velocity)
            for change, rate, velocity, (here, before) in zip(
                self._change, self._rates, self._run_velocity, moved
            )
        ]
        return all(bool((change < self.savings.cache).all()) for change in self._change)

    def _learn(self, full: Velocity) -> None:
        """How fast the velocity changed from the last step that was run to this one."""
        velocity = self._rows(full.video, full.audio)
        if self._run_velocity:
            self._rates = [
                _norm(after - before) / _norm(here - there)
                for after, before, here, there in zip(
                    velocity, self._run_velocity, self._place, self._run_place
                )
            ]
        self._run_velocity, self._run_place = velocity, self._place
        self._change = [torch.zeros_like(_norm(x)) for x in velocity]

    def _rows(self, video: Tensor, audio: Tensor) -> list[Tensor]:
        """What is generated of each stream, `[B, n]`; a stream that is conditioned whole is left out."""
        frames, mels = (places.to(video.device) for places in self._generated)
        rows = (video.index_select(2, frames), audio.index_select(1, mels))
        return [row.flatten(1).float() for row in rows if row.numel()]


def _norm(rows: Tensor) -> Tensor:
    return rows.norm(dim=1).clamp(min=SMALLEST)
