"""Batches of pieces of the theatre's clips and recordings, for the parts that learn from them directly."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from ..training.data import seeded, shared_rows
from ..training.recipe import Schedule
from .clips import Theatre


@dataclass
class TensorBatch:
    """Tensors whose first axis is the batch, as `fit` wants them."""

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        return len(self._tensors()[0])

    def about(self) -> dict:
        return {}

    def to(self, device: torch.device) -> TensorBatch:
        return type(self)(*(x.to(device) for x in self._tensors()))

    def split(self, size: int) -> list[TensorBatch]:
        return [type(self)(*part) for part in zip(*(x.split(size) for x in self._tensors()))]


@dataclass
class TheatreBatches(torch.utils.data.Dataset):
    """Batch number s is `kind`, the same however many processes share a batch."""

    theatre: Theatre
    stage: Schedule
    rank: int = 0
    processes: int = 1

    kind: ClassVar[type[TensorBatch]]

    def __post_init__(self):
        self.rows = shared_rows(self.stage, self.rank, self.processes)

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> TensorBatch:
        pieces = [self.piece(seeded(self.stage.name, step, row), step) for row in self.rows]
        return self.kind(*(torch.stack(parts) for parts in zip(*pieces)))

    def piece(self, generator: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """The tensors of one sample of step `step`."""
        raise NotImplementedError
