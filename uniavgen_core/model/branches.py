"""One branch during one forward: its tokens, and what the other branch or the heads read of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from .a2v import A2V
from .inputs import Speaker
from .layers import Attention, Head, KeyValue, TimeEmbedding, uncompiled
from .rope import Rotary
from .v2a import V2A, VideoKV


def gradient(wanted: bool) -> AbstractContextManager[None]:
    """Where a gradient is not wanted, nothing is kept for one."""
    return nullcontext() if wanted else torch.no_grad()


@dataclass(kw_only=True)
class Branch:
    """Tokens `[B, N, dim]` float32, those of the reference first, and what its blocks need beside them."""

    tokens: Tensor
    blocks: nn.ModuleList
    head: Head
    time: TimeEmbedding
    rotary: Rotary
    text_kv: list[KeyValue]  # of every layer's cross-attention
    attention: Attention
    dtype: torch.dtype  # of the matmuls
    fixed: bool = False  # conditioned whole: without loss, so kept out of the gradient
    text_rotary: Rotary | None = None  # the queries' positions in the cross-attention
    mask: Tensor | None = None
    text_mask: Tensor | None = None

    @uncompiled
    def run(self, layer: int) -> None:
        """Self-attention, cross-attention to the branch's text and feed-forward of one layer."""
        with gradient(not self.fixed):
            self.tokens = self.blocks[layer](
                self.tokens,
                self.time,
                self.text_kv[layer],
                self.attention,
                self.rotary,
                self.text_rotary,
                self.mask,
                self.text_mask,
            )


@dataclass(kw_only=True)
class VideoBranch(Branch):
    """The tokens are one reference frame and T target frames of S tokens each."""

    size: tuple[int, int, int]  # T, H, W of the latent
    patch: tuple[int, int]
    speaker: Speaker | None = None

    @uncompiled
    def target(self) -> Tensor:
        """`[B, T, S, D]`"""
        return self.tokens.unflatten(1, (self.size[0] + 1, -1))[:, 1:]

    @uncompiled
    def face_mask(self, a2v: A2V) -> Tensor:
        """M of every target token, `[B, T, S]`: predicted, times or in place of it what is given."""
        target = self.target()
        if self.speaker is not None and self.speaker.instead:
            return self.speaker.mask.to(target).expand(target.shape[:-1])
        predicted = a2v.mask_head(target, self.time.embedding[:, 1:], self.dtype)
        return predicted if self.speaker is None else self.speaker.mask.to(predicted) * predicted

    @uncompiled
    def kv(self, v2a: V2A, mask: Tensor, rotary: Rotary) -> VideoKV:
        """Keys and values of the masked features `M * H`."""
        return v2a.project_video_kv((mask.unsqueeze(-1) * self.target()).to(self.dtype), rotary)

    @uncompiled
    def add(self, frames: Tensor, update: Tensor) -> None:
        """Add `[B, T', S, D]` to the target frames whose indices `[T']` are given."""
        tokens = self.tokens.unflatten(1, (self.size[0] + 1, -1))
        self.tokens = tokens.index_add(1, frames + 1, update.float()).flatten(1, 2)

    @uncompiled
    def velocity(self) -> Tensor:
        """`[B, C, T, H, W]`"""
        (frames, height, width), (p, q) = self.size, self.patch
        reference = self.tokens.shape[1] // (frames + 1)
        out = self.head(self.tokens[:, reference:], self.time.embedding[:, 1:], self.dtype)
        out = rearrange(out, "b (t h w) (p q c) -> b c t (h p) (w q)", t=frames, h=-(-height // p), p=p, q=q)
        return out[..., :height, :width]


@dataclass(kw_only=True)
class AudioBranch(Branch):
    """The tokens are those of the reference mel and L target tokens."""

    length: int  # L

    @uncompiled
    def target(self) -> Tensor:
        """`[B, L, A]`"""
        return self.tokens[:, -self.length :]

    @uncompiled
    def kv(self, a2v: A2V) -> KeyValue:
        """Keys and values of the target tokens."""
        return a2v.project_kv(self.target().to(self.dtype))

    @uncompiled
    def add(self, mels: Tensor, update: Tensor) -> None:
        """Add `[B, n, A]` to the target tokens whose indices `[n]` are given."""
        first = self.tokens.shape[1] - self.length
        self.tokens = self.tokens.index_add(1, first + mels, update.float())

    @uncompiled
    def velocity(self) -> Tensor:
        """`[B, L, bands]`"""
        embedding = self.time.embedding
        if embedding.shape[1] > 1:
            embedding = embedding[:, -self.length :]
        return self.head(self.target(), embedding, self.dtype)
