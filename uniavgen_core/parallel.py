"""One clip by several processes, such as `torchrun` starts: each step's two guidance passes run side by side.

With an even number of processes one half runs the full pass and the other the null pass; within each half (or
with an odd number, all together) the processes share the video tokens, see `model.parallel`. Every process
reads the inputs, encodes them and holds the whole model; the first one decodes and writes the clip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .conditioning import Task
from .errors import UserError
from .model.inputs import TextConditioning, Velocity
from .model.parallel import split_tokens
from .pipeline import Pipeline, Request, Result, Weights, drawn_seed, generate
from .sampling.defaults import Guidance
from .sampling.sampler import Sample


def processes() -> int:
    """How many processes `torchrun` has started beside and with this one; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process decodes, writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[str]:
    """The processes meet inside the `with`; the device of this one, each GPU of a machine being one's."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


class SideBySide:
    """Runs two passes in two processes of `group` at once and gives both results to both.

    Face masks stay with the process that ran the pass.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def __call__(self, passes: list[Callable[[], Velocity]]) -> list[Velocity]:
        if len(passes) != self.size:
            return [run() for run in passes]
        mine = passes[self.rank]()
        flat = torch.cat((mine.video.flatten(), mine.audio.flatten()))
        parts = [torch.empty_like(flat) for _ in passes]
        dist.all_gather(parts, flat, group=self.group)
        return [mine if rank == self.rank else self._like(mine, part) for rank, part in enumerate(parts)]

    @staticmethod
    def _like(velocity: Velocity, flat: Tensor) -> Velocity:
        video, audio = flat.split([velocity.video.numel(), velocity.audio.numel()])
        return Velocity(video.view_as(velocity.video), audio.view_as(velocity.audio), {})


class Team:
    """How the processes share a clip: `passes` side by side (1 or 2), each by `shares` of the tokens.

    Raises:
        UserError: the model's heads cannot be divided among the processes of a pass.
    """

    def __init__(self, heads: int):
        size, rank = dist.get_world_size(), dist.get_rank()
        self.first = rank == 0
        self.passes = 2 if size % 2 == 0 else 1
        self.shares = size // self.passes
        if heads % self.shares:
            raise UserError(
                f"{size} processes cannot share a clip: the model's {heads} heads do not divide into "
                f"{self.shares}; start another number of processes, such as 2"
            )
        ranks = torch.arange(size).view(self.passes, self.shares)
        halves = [_group(row) for row in ranks.tolist()]  # all take part in making every group
        pairs = [_group(column) for column in ranks.T.tolist()]
        self.half, pair = halves[rank // self.shares], pairs[rank % self.shares]
        self.run_passes = SideBySide(pair)


def _group(ranks: list[int]) -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.new_group(ranks))


class _Sampled(Exception):
    """Ends a process that has no more to do: the first one decodes and writes the clip."""


class TeamPipeline(Pipeline):
    """A pipeline that samples together with those of the other processes."""

    team: Team

    def sample(
        self,
        task: Task,
        positive: TextConditioning,
        negative: TextConditioning,
        guidance: Guidance,
        *arguments: Any,
        **options: Any,
    ) -> Sample:
        """As `Pipeline.sample`; returns in the first process only."""
        options["run_passes"] = self.team.run_passes
        with self.model.used() as model:
            split = split_tokens(model, self.team.half) if self.team.shares > 1 else nullcontext()
            with split:
                result = super().sample(task, positive, negative, guidance, *arguments, **options)
        if not self.team.first:
            raise _Sampled
        return result


def generate_together(request: Request, weights: Weights, **callbacks: Any) -> Result | None:
    """As `pipeline.generate`, called by all processes inside of `joined`; nothing in all but the first.

    Raises:
        UserError: as `generate`; more processes than the model can be divided among.
    """
    pipeline = cast(TeamPipeline, TeamPipeline.load(weights))
    pipeline.team = Team(pipeline.config.video_heads)
    note = []
    if request.seed == -1:
        seed = [drawn_seed()]
        dist.broadcast_object_list(seed)
        request, note = replace(request, seed=seed[0]), [f"seed {seed[0]} was drawn"]
    try:
        result = generate(request, weights, pipeline=pipeline, **callbacks)
    except _Sampled:
        return None
    result.notes[:0] = note
    return result


def generate_on_all(request: Request, weights: Weights, **callbacks: Any) -> Result | None:
    """As `pipeline.generate`, by all the processes that `torchrun` has started; nothing in all but the first.

    Raises:
        UserError: as `generate_together`.
    """
    if processes() == 1:
        return generate(request, weights, **callbacks)
    if weights.memory is not None:
        raise UserError("--memory plans for one process; leave it out, or run without torchrun")
    with joined(weights.device) as device:
        return generate_together(request, replace(weights, device=device), **callbacks)
