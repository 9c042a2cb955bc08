"""The face mask M, with which face-aware modulation steers the interaction (docs/model.md sections 4 and 5).

A2V writes into the video where M is high, V2A reads the video features `M * H`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import Head


class ReleasedFaceMask(Head):
    """`sigmoid(Linear(LN(h) (1 + s) + b))`, `(b, s) = modulation + e` of the token."""

    def __init__(self, dim: int, eps: float, ops, **factory):
        super().__init__(dim, 1, eps, ops, **factory)

    def forward(self, x: Tensor, embedding: Tensor, dtype: torch.dtype) -> Tensor:
        """Video tokens float32 `[B, T, S, D]`, `embedding` `[B, T, D]` -> `[B, T, S]` in 0..1."""
        logits = super().forward(x.flatten(1, 2), embedding, dtype)
        return torch.sigmoid(logits).view(x.shape[:-1])


class PaperFaceMask(nn.Module):
    """`sigmoid(W_m (gamma * LN(h) + beta) + b_m)`; time plays no part."""

    def __init__(self, dim: int, eps: float, ops, **factory):
        super().__init__()
        self.norm = ops.LayerNorm(dim, eps=eps, **factory)
        self.head = ops.Linear(dim, 1, **factory)

    def forward(self, x: Tensor, embedding: Tensor, dtype: torch.dtype) -> Tensor:
        """As `ReleasedFaceMask.forward`."""
        return torch.sigmoid(self.head(self.norm(x.to(dtype))).float()).squeeze(-1)


class NoFaceMask(nn.Module):
    """`M = 1`: the interaction without face-aware modulation."""

    def __init__(self, dim: int, eps: float, ops, **factory):
        super().__init__()

    def forward(self, x: Tensor, embedding: Tensor, dtype: torch.dtype) -> Tensor:
        """As `ReleasedFaceMask.forward`."""
        return x.new_ones(x.shape[:-1])
