"""Attention, transformer block and head, shared by both branches (docs/model.md section 3).

The residual stream and everything elementwise is float32; matmuls run in the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import Rotary, rotate

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Under torch.compile such bookkeeping runs as it is, so that single blocks are compiled: one graph for
    all layers of a branch."""
    return cast(Function, torch.compiler.disable(function, recursive=False))


Attention = Callable[..., Tensor]
"""`(q [B, N, heads * d], k [B, M, heads * d], v, heads, mask=None) -> [B, N, heads * d]`; a mask is bool
`[B, 1, 1, M]`, true where a key is attended to."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """The default `Attention`: torch's scaled dot-product attention."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def linear_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer` in float32 whatever its weights are stored in; a host's layers cast to their input."""
    if type(layer) is nn.Linear:
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())
    return layer(x.float())


def sinusoid(time: Tensor, width: int) -> Tensor:
    """`[cos | sin]` of `time * 10000^(-i / half)`: `[N]` -> float32 `[N, width]`, computed in float64."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=time.device) / half)
    angles = time.double()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`LN(x) (1 + scale) + shift`; x `[B, N, D]`, shift and scale `[B, G, D]` for G equal runs of tokens."""
    groups = F.layer_norm(x, x.shape[-1:], eps=eps).unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift.unsqueeze(2), groups, 1 + scale.unsqueeze(2)).flatten(1, 2)


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """`x + gate * update`, gate `[B, G, D]` as in `modulate`; float32."""
    groups = (gate.shape[1], -1)
    return torch.addcmul(
        x.unflatten(1, groups), update.float().unflatten(1, groups), gate.unsqueeze(2)
    ).flatten(1, 2)


class TimeEmbedding(NamedTuple):
    """One forward's times for a branch, in G equal runs of tokens (1: all tokens share one time)."""

    embedding: Tensor  # e  [B, G, D]
    projection: Tensor  # e0 [B, G, 6, D]


def embed_scales(embed: nn.Sequential, scales: Tensor) -> Tensor:
    """Guidance scales `[B, 2]` (s_v, s_a) -> float32 `[B, D]`, to be added to the time embedding."""
    return linear_float32(embed[2], F.silu(linear_float32(embed[0], scales - 1)))


def embed_time(
    embed: nn.Sequential,
    project: nn.Sequential,
    width: int,
    time: Tensor,
    clean: Tensor,
    scales: Tensor | None = None,
) -> TimeEmbedding:
    """Two times at most: that of the step and 0 where `clean` (bool `[G]`, on the CPU).

    `scales` `[B, D]`: of `embed_scales`, added to the time of the step.
    """
    times = torch.cat((time, time.new_zeros(1)))
    e = linear_float32(embed[2], F.silu(linear_float32(embed[0], sinusoid(times, width))))
    if scales is not None:
        e = torch.cat((e[:-1] + scales, e[-1:]))
    e0 = linear_float32(project[1], F.silu(e)).unflatten(-1, (6, -1))

    def spread(x: Tensor) -> Tensor:  # [B + 1, ...] -> [B, G, ...]
        return torch.where(clean.to(x.device).view(1, -1, *[1] * (x.ndim - 1)), x[-1], x[:-1, None])

    return TimeEmbedding(spread(e), spread(e0))


class KeyValue(NamedTuple):
    """Keys (normalised, rotated) and values of an attention's source, `[B, M, heads * d]` each."""

    key: Tensor
    value: Tensor


class AttentionProjections(nn.Module):
    """Projections of a multi-head attention; q and k RMS-normalised over the full width, before the heads.

    `dim` is the width of queries and output, `source_dim` that of the source of keys and values.
    """

    def __init__(self, dim: int, source_dim: int, heads: int, eps: float, ops, **factory):
        super().__init__()
        self.heads = heads
        self.q = ops.Linear(dim, dim, **factory)
        self.k = ops.Linear(source_dim, dim, **factory)
        self.v = ops.Linear(source_dim, dim, **factory)
        self.o = ops.Linear(dim, dim, **factory)
        self.norm_q = ops.RMSNorm(dim, eps=eps, **factory)
        self.norm_k = ops.RMSNorm(dim, eps=eps, **factory)

    def query(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        return self._rotate(self.norm_q(self.q(x)), rotary)

    def project_kv(self, source: Tensor, rotary: Rotary | None = None) -> KeyValue:
        """Keys and values of a source `[B, M, source_dim]`."""
        return KeyValue(self._rotate(self.norm_k(self.k(source)), rotary), self.v(source))

    def _rotate(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        if rotary is None:
            return x
        return rotate(x.unflatten(-1, (self.heads, -1)), rotary).flatten(-2)


class AttentionLayer(AttentionProjections):
    """Attention of the tokens `[B, N, dim]` to the keys and values of a source."""

    def forward(
        self,
        x: Tensor,
        source: KeyValue,
        attention: Attention,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return self.o(attention(self.query(x, rotary), source.key, source.value, self.heads, mask=mask))


class Block(nn.Module):
    """Self-attention, cross-attention to the branch's text, feed-forward; modulated by time."""

    def __init__(self, dim: int, heads: int, ffn: int, eps: float, ops, **factory):
        super().__init__()
        self.eps = eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim, **factory))
        self.self_attn = AttentionLayer(dim, dim, heads, eps, ops, **factory)
        self.norm3 = ops.LayerNorm(dim, eps=eps, **factory)
        self.cross_attn = AttentionLayer(dim, dim, heads, eps, ops, **factory)
        self.ffn = nn.Sequential(
            ops.Linear(dim, ffn, **factory), nn.GELU("tanh"), ops.Linear(ffn, dim, **factory)
        )

    def forward(
        self,
        x: Tensor,  # [B, N, D] float32
        time: TimeEmbedding,
        text: KeyValue,
        attention: Attention,
        rotary: Rotary,
        text_rotary: Rotary | None = None,  # the queries' positions in the cross-attention
        mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        dtype = text.key.dtype
        modulation = self.modulation.to(x) + time.projection
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(2)

        y = modulate(x, shift1, scale1, self.eps).to(dtype)
        y = self.self_attn(y, self.self_attn.project_kv(y, rotary), attention, rotary, mask)
        x = gated(x, y, gate1)
        x = x + self.cross_attn(self.norm3(x.to(dtype)), text, attention, text_rotary, text_mask)
        return gated(x, self.ffn(modulate(x, shift2, scale2, self.eps).to(dtype)), gate2)


class Head(nn.Module):
    """`Linear(LN(x) (1 + scale) + shift)` with `(shift, scale) = modulation + e`."""

    def __init__(self, dim: int, out: int, eps: float, ops, **factory):
        super().__init__()
        self.eps = eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim, **factory))
        self.head = ops.Linear(dim, out, **factory)

    def forward(self, x: Tensor, embedding: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` float32 `[B, N, D]`, `embedding` e `[B, G, D]` -> float32 `[B, N, out]`."""
        shift, scale = (self.modulation.to(x) + embedding.unsqueeze(2)).unbind(2)
        return self.head(modulate(x, shift, scale, self.eps).to(dtype)).float()
