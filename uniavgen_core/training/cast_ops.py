"""Layers whose weights stay as stored and are cast to their input's dtype.

Handed to `DualBranchDiT` as `ops`, they train float32 weights with bfloat16 matmuls and keep the
precision rules of docs/model.md section 3: whoever hands a layer float32 gets float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.layers import Attention, sdpa

Embedding = nn.Embedding


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), _cast(self.bias, x.dtype))


class Conv1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), _cast(self.bias, x.dtype))


class Conv3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), _cast(self.bias, x.dtype))


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def quick_attention(dtype: torch.dtype, device: torch.device) -> Attention:
    """SDPA, or what beats it: on CPUs `softmax_attention` takes half its time in bfloat16."""
    return softmax_attention if dtype == torch.bfloat16 and device.type == "cpu" else sdpa


def attention_weights(q: Tensor, k: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """`[B, heads, N, M]`, each row's sum is 1."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


def weighted_values(weights: Tensor, v: Tensor) -> Tensor:
    """What `attention_weights` look at, `[B, N, heads * d]`."""
    v = v.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    return (weights @ v).transpose(1, 2).flatten(2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """An `Attention` of plain products."""
    return weighted_values(attention_weights(q, k, heads, mask), v)
