"""One forward over several processes: they share the tokens of the video branch (sequence parallelism).

Every process holds the model and all tokens between two blocks, and runs a video block on its share. In the
self-attention they change over from a share of the tokens to a share of the heads and back (the all-to-all
of DeepSpeed-Ulysses, arXiv 2309.14509), with torch's own collectives. Everything else, the audio branch
included, every process computes for itself. The network is not touched: hooks hand each block its tokens and
an `Attention`, so masks, caches and the interaction see what they would see in one process.

Results equal those of one process to rounding. A block's matmuls and attention are split evenly; per block
three exchanges remain: queries, keys and values, the attended values, and the finished tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .dit import DualBranchDiT
from .layers import Attention
from .rope import Rotary


class TokenShare:
    """Which tokens are this process's: of every frame the same part, so that a frame keeps its time.

    Args:
        group: the processes that share the tokens; by default all.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sizes(self, tokens: int) -> list[int]:
        """How many of a frame's tokens each process has; they differ by one at most."""
        return [tokens // self.size + (rank < tokens % self.size) for rank in range(self.size)]

    def mine(self, x: Tensor, frames: int, dim: int) -> Tensor:
        """Of a dimension with `frames` equal runs of tokens the share of each."""
        runs = x.unflatten(dim, (frames, -1))
        sizes = self.sizes(runs.shape[dim + 1])
        return runs.narrow(dim + 1, sum(sizes[: self.rank]), sizes[self.rank]).flatten(dim, dim + 1)

    def gathered(self, x: Tensor, frames: int, tokens: int) -> Tensor:
        """The shares `[B, frames * mine, D]` of all processes -> `[B, frames * tokens, D]`."""
        sizes = self.sizes(tokens)
        runs = x.unflatten(1, (frames, -1))
        runs = F.pad(runs, (0, 0, 0, sizes[0] - runs.shape[2])).contiguous()
        parts = [torch.empty_like(runs) for _ in sizes]
        dist.all_gather(parts, runs, group=self.group)
        return torch.cat([part[:, :, :size] for part, size in zip(parts, sizes)], dim=2).flatten(1, 2)

    def heads_of_all(self, x: Tensor, tokens: list[int]) -> Tensor:
        """All heads of the own tokens `[B, mine, D]` -> the own heads of all tokens `[B, sum, D / size]`.

        `tokens`: how many each process has.
        """
        batch, width = len(x), x.shape[-1] // self.size
        sent = x.unflatten(-1, (self.size, width)).movedim(2, 0).contiguous()  # [size, B, mine, D / size]
        parts = self._exchanged(sent, [sent[0].numel()] * self.size, [batch * n * width for n in tokens])
        return torch.cat([part.view(batch, n, width) for part, n in zip(parts, tokens)], dim=1)

    def tokens_of_mine(self, x: Tensor, tokens: list[int]) -> Tensor:
        """The inverse of `heads_of_all`."""
        batch, width = len(x), x.shape[-1]
        sent = torch.cat([part.flatten() for part in x.split(tokens, dim=1)])
        mine = batch * tokens[self.rank] * width
        parts = self._exchanged(sent, [batch * n * width for n in tokens], [mine] * self.size)
        return torch.cat([part.view(batch, -1, width) for part in parts], dim=-1)

    def _exchanged(self, sent: Tensor, sizes: list[int], received: list[int]) -> list[Tensor]:
        out = sent.new_empty(sum(received))
        dist.all_to_all_single(out, sent.flatten(), received, sizes, group=self.group)
        return list(out.split(received))

    def attention(self, inner: Attention, tokens: list[int], text: Tensor) -> Attention:
        """`inner`, over the own heads of all tokens; keys that are `text` are there in every process."""

        def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
            if k is text:
                return inner(q, k, v, heads, mask=mask)
            together = torch.stack((q, k, v)).flatten(0, 1)  # one exchange for all three
            q, k, v = self.heads_of_all(together, tokens).unflatten(0, (3, -1))
            return self.tokens_of_mine(inner(q, k, v, heads // self.size), tokens)

        return attend


class _SplitBlock:
    """The hooks of one block."""

    def __init__(self, share: TokenShare):
        self._share = share
        self._frames = self._tokens = 0  # of the call between the two hooks: tokens of a frame

    def before(self, block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The block's arguments with its share of the tokens."""
        x, time, text, attention, rotary, *rest = arguments
        self._frames = frames = time.projection.shape[1]
        self._tokens = x.shape[1] // frames
        tokens = [frames * n for n in self._share.sizes(self._tokens)]
        return (
            self._share.mine(x, frames, 1),
            time,
            text,
            self._share.attention(attention, tokens, text.key),
            Rotary(*(self._share.mine(table, frames, 0) for table in rotary)),
            *rest,
        )

    def after(self, block: nn.Module, arguments: tuple[Any, ...], x: Tensor) -> Tensor:
        """The tokens of all."""
        return self._share.gathered(x, self._frames, self._tokens)


@contextmanager
def split_tokens(model: DualBranchDiT, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Inside the `with` the processes of `group` run `model` together, each calling it with the same inputs.

    For inference: the exchanges have no gradient.

    Raises:
        ValueError: more processes than the heads can be divided among.
    """
    share, heads = TokenShare(group), model.config.video_heads
    if heads % share.size:
        raise ValueError(f"{heads} heads cannot be divided among {share.size} processes")

    hooks = []
    for block in model.blocks:
        split = _SplitBlock(share)
        hooks += [block.register_forward_pre_hook(split.before), block.register_forward_hook(split.after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
