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

PHASES = 25
"""Mel frames a latent frame lasts: 4 video frames at 16 fps, 100 mel frames a second."""
_FIRST = 19  # latent frame i >= 1 begins with mel frame 25 i - 19


@dataclass(frozen=True, eq=False)
class Alignment:
    """T latent video frames against L mel frames.

    `window` int64 `[T, W]`: the mel frames that latent frame i attends to (A2V).
    `frame` int64 `[L]`, `weight` float64 `[L, 2]`: mel frame j attends to
    `weight[j, 0] * latent[frame[j]] + weight[j, 1] * latent[frame[j] + 1]` (V2A).
    `phase` int64 `[L]`: place of mel frame j within its latent frame, of `PHASES`; "aligned" alone has it.
    `times` float64 `[T]`: where latent frames stand, in mel frames; "global" alone has it: `frame` and
    `weight` play no part, every mel frame attends to all latent frames, and rotary positions carry the time.
    """

    window: Tensor
    frame: Tensor
    weight: Tensor
    phase: Tensor | None = None
    times: Tensor | None = None


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


@lru_cache(maxsize=16)
def align_symmetric(frames: int, mels: int, reach: int) -> Alignment:
    """The symmetric time-aligned interaction the paper compares with: a latent frame and its own block of mel
    frames see each other alone, without context and without interpolation; `reach` plays no part."""
    window = align_paper(frames, mels, 0).window
    frame = torch.arange(mels) // ceil(mels / frames)
    return Alignment(window, frame, torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(mels, 2))


@lru_cache(maxsize=16)
def align_global(frames: int, mels: int, reach: int) -> Alignment:
    """The symmetric global interaction the paper compares with: every latent frame sees all mel frames and
    every mel frame all latent frames; `reach` plays no part."""
    own = align_symmetric(frames, mels, reach)
    times = (torch.arange(frames, dtype=torch.float64) + 0.5) * mels / frames - 0.5
    return Alignment(torch.arange(mels).expand(frames, mels), own.frame, own.weight, times=times)


@lru_cache(maxsize=16)
def align_true_time(frames: int, mels: int, reach: int) -> Alignment:
    """Variant "aligned", our own: both sequences at their true times, however long they are.

    Mel frame j lasts from j to j + 1 hundredths of a second, video frame f from f/16 to (f + 1)/16 s; latent
    frame 0 holds video frame 0, latent frame i >= 1 the frames 4i-3 .. 4i. So a latent frame lasts 25 mel
    frames, 25i-19 .. 25i+5 by their centres. A2V: a window of those and `reach` times as many on either side.
    V2A: the two latent frames whose centres stand around that of the mel frame. The phase `(j + 19) mod 25`
    is a mel frame's place within its latent frame (latent frame 0, a single video frame: the last 6 places).
    """
    latent, j = torch.arange(frames), torch.arange(mels)
    first = PHASES * latent - _FIRST
    window = first[:, None] + torch.arange(-reach * PHASES, (reach + 1) * PHASES)

    # Centres in eighths of a mel frame, all whole: latent frame i at (4i - 1) / 16 s, the first at 1/32 s.
    centre = torch.where(latent > 0, 200 * latent - 50, 25)
    time = 8 * j + 4
    frame = (torch.searchsorted(centre, time, right=True) - 1).clamp(min=0)
    following = (frame + 1).clamp(max=frames - 1)
    apart = (centre[following] - centre[frame]).clamp(min=1)
    alpha = ((time - centre[frame]).double() / apart).clamp(0, 1)
    alpha = torch.where(following > frame, alpha, 0.0)
    weight = torch.stack((1 - alpha, alpha), dim=-1)
    return Alignment(window.clamp(0, mels - 1), frame, weight, (j + _FIRST) % PHASES)
