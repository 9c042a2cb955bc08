"""Temporal alignment of the two branches: index and weight tensors from the two lengths alone.

A2V uses a temporal-aligned window: each latent video frame attends to a window of mel frames. V2A uses
temporal-aligned interpolation: each mel frame attends to a blend of two neighbouring latent video frames.
Every variant comes down to the same three tensors, so that one pair of attentions serves all
(docs/model.md sections 4 and 5); `variants` says which function belongs to which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Alignment:
    """T latent video frames against L mel frames.

    `window` int64 `[T, W]`: the mel frames that latent frame i attends to (A2V).
    `frame` int64 `[L]`, `weight` float64 `[L, 2]`: mel frame j attends to
    `weight[j, 0] * latent[frame[j]] + weight[j, 1] * latent[frame[j] + 1]` (V2A).
    """

    window: Tensor
    frame: Tensor
    weight: Tensor


@lru_cache(maxsize=16)
def align_released(frames: int, mels: int, reach: int) -> Alignment:
    """docs/model.md section 4: windows in video frames, two frames of context; `reach` plays no part."""
    video_frames = 4 * (frames - 1) + 1
    r = mels / video_frames  # mel frames per video frame

    spans = [(-floor(2 * r), 1 + ceil(2 * r))]
    for i in range(1, frames):
        s = 4 * (i - 1) + 1
        spans.append((floor(s * r) - floor(2 * r), ceil((s + 4) * r) + ceil(2 * r)))
    longest = max(end - start for start, end in spans[1:] or spans)
    starts = []
    for start, end in spans:
        extra = longest - (end - start)
        if start < 0:
            start -= extra
        elif end < mels:
            start -= extra // 2
        starts.append(start)
    window = torch.tensor(starts)[:, None] + torch.arange(longest)

    position = torch.arange(mels, dtype=torch.float64) / r
    low = position.floor().long().clamp(max=video_frames - 1)
    high = (low + 1).clamp(max=video_frames - 1)
    weight_low, weight_high = 1 - (position - low), 1 - (high - position)
    frame, next_frame = ((f + 3) // 4 for f in (low, high))  # video frame -> latent frame
    same = frame == next_frame
    weight = torch.stack(
        (weight_low + torch.where(same, weight_high, 0.0), torch.where(same, 0.0, weight_high)), dim=-1
    )
    return Alignment(window.clamp(0, mels - 1), frame, weight)


@lru_cache(maxsize=16)
def align_paper(frames: int, mels: int, reach: int) -> Alignment:
    """docs/model.md section 5: blocks of `k = L / T` mel frames, `reach` (the paper's w) blocks each side."""
    k = ceil(mels / frames)  # mel frames per latent frame
    blocks = torch.arange(frames)[:, None] + torch.arange(-reach, reach + 1)
    window = blocks.clamp(0, frames - 1)[:, :, None] * k + torch.arange(k)

    j = torch.arange(mels)
    frame = j // k
    alpha = torch.where(frame < frames - 1, (j % k).double() / k, 0.0)
    return Alignment(window.flatten(1).clamp(max=mels - 1), frame, torch.stack((1 - alpha, alpha), dim=-1))
