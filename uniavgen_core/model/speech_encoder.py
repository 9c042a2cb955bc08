"""The speech text encoder: ConvNeXt V2 over symbol embeddings (docs/model.md section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILLER = -1


class GlobalResponseNorm(nn.Module):
    """`g = ||x|| over time; gamma (x g / (mean over channels of g + 1e-6)) + beta + x`."""

    def __init__(self, dim: int, **factory):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim, **factory))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim, **factory))

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:  # [B, N, D], bool [B, N, 1]
        counted = x.float() if there is None else x.float() * there
        norm = torch.linalg.vector_norm(counted, dim=1, keepdim=True)
        norm = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return (self.gamma.to(norm) * (x * norm) + self.beta.to(norm) + x).to(x.dtype)


class ConvNeXtV2Block(nn.Module):
    """Depthwise convolution over time, norm, widen, GELU, response norm, narrow, residual."""

    def __init__(self, dim: int, ops, **factory):
        super().__init__()
        self.dwconv = ops.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim, **factory)
        self.norm = ops.LayerNorm(dim, eps=1e-6, **factory)
        self.pwconv1 = ops.Linear(dim, 2 * dim, **factory)
        self.grn = GlobalResponseNorm(2 * dim, **factory)
        self.pwconv2 = ops.Linear(2 * dim, dim, **factory)

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:  # [B, N, D], bool [B, N, 1]
        y = self.norm(self.dwconv(x.transpose(1, 2)).transpose(1, 2))
        return x + self.pwconv2(self.grn(F.gelu(self.pwconv1(y)), there))


class SpeechEncoder(nn.Module):
    """Symbol ids `[B, N]` (-1: filler) -> features `[B, N, dim]`.

    A stage of its own: the transformer takes the features, so that a graph can cache or blend them.
    """

    def __init__(self, vocab: int, dim: int, layers: int, ops=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.vocab = vocab
        self.text_embed = ops.Embedding(vocab + 1, dim, **factory)
        self.text_blocks = nn.ModuleList(ConvNeXtV2Block(dim, ops, **factory) for _ in range(layers))

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """With `lengths` `[B]` each text ends there, as if it were encoded alone; features after it are 0.

        Raises:
            ValueError: ids outside -1..vocab-1.
        """
        low, high = int(ids.min()), int(ids.max())
        if low < FILLER or high >= self.vocab:
            raise ValueError(f"symbol ids span {low}..{high}, expected {FILLER}..{self.vocab - 1}")
        silent = (ids == FILLER).unsqueeze(-1)
        there = None
        if lengths is not None:
            places = torch.arange(ids.shape[1], device=ids.device)
            there = (places < lengths.to(ids.device)[:, None]).unsqueeze(-1)
            silent = silent | ~there
        x = self.text_embed(ids + 1)
        x = (x + _positions(*x.shape[1:], device=x.device).to(x.dtype)).masked_fill(silent, 0)
        for block in self.text_blocks:
            x = block(x, there).masked_fill(silent, 0)
        return x


def _positions(length: int, dim: int, device: torch.device) -> Tensor:
    frequencies = 10000.0 ** (-2.0 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)
