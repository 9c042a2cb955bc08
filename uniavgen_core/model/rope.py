"""Rotary positions (docs/model.md section 3): interleaved pairs, angles in float64, rotation in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """Cosines and sines, float32 `[..., tokens, head_dim / 2]`."""

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device) -> Rotary:
        return Rotary(self.cos.to(device), self.sin.to(device))


def _angles(positions: Tensor, pairs: int, width: int) -> Tensor:
    frequencies = 10000.0 ** (-2.0 * torch.arange(pairs, dtype=torch.float64) / width)
    return positions.to("cpu", torch.float64)[..., None] * frequencies


def _rotary(angles: Tensor) -> Rotary:
    return Rotary(angles.cos().float(), angles.sin().float())


def frame_pairs(head_dim: int) -> int:
    """How many of a head's rotary pairs belong to time; row and column share the rest equally."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3)


def sequence(positions: Tensor, head_dim: int) -> Rotary:
    """1-D positions `[..., N]` over all pairs: audio self-attention and both sides of its cross-attention."""
    return _rotary(_angles(positions, head_dim // 2, head_dim))


def grid(frames: int, height: int, width: int, head_dim: int) -> Rotary:
    """3-D positions of `frames * height * width` video tokens, each axis with its own frequency table."""
    axis = head_dim // 2 // 3
    f, r, c = torch.meshgrid(
        torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij"
    )  # each [F, H, W]
    angles = torch.cat(
        [
            _angles(p.flatten(), n, 2 * n) if n else p.new_zeros(p.numel(), 0, dtype=torch.float64)
            for p, n in ((f, frame_pairs(head_dim)), (r, axis), (c, axis))
        ],
        dim=-1,
    )
    return _rotary(angles)


def window(places: int, head_dim: int) -> Rotary:
    """Places in an A2V window: the audio table on the pairs that belong to time, the others unrotated."""
    angles = _angles(torch.arange(places), head_dim // 2, head_dim)
    angles[:, frame_pairs(head_dim) :] = 0
    return _rotary(angles)


def timed_grid(times: Tensor, height: int, width: int, head_dim: int) -> Rotary:
    """`[T, height * width, head_dim / 2]`: (time, row, column) with time in the table of `window`."""
    pairs = frame_pairs(head_dim)
    place = grid(1, height, width, head_dim)
    time = _rotary(_angles(times, head_dim // 2, head_dim)[:, None, :pairs])
    rows = (len(times), height * width, -1)
    return Rotary(
        *(torch.cat((t.expand(*rows), p[:, pairs:].expand(*rows)), dim=-1) for t, p in zip(time, place))
    )


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate heads `[..., N, heads, head_dim]` by tables `[..., N, head_dim / 2]`, in float32, dtype kept."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary.cos.unsqueeze(-2), rotary.sin.unsqueeze(-2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
