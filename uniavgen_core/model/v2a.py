"""V2A, video to audio: cross-attention of every mel frame to a temporal-aligned interpolation of two latent
video frames, factored. Half of the asymmetric cross-modal interaction (docs/model.md sections 4, 5 and 10.1).

The context of mel frame j is `c0 X_f + c1 X_{f+1}`, linear in two latent frames. So keys and values are
projected once per latent frame, and scores and outputs are blended instead of contexts. With
`K_f = W_k X_f + b` and `c2 = 1 - c0 - c1` (0 but at the very end of the released variant, where c1 is 0):

    key_j   = W_k context_j + b = c0 K_f + c1 K_{f+1} + c2 b
    score_j = (c0 q_j . R(g K_f) + c1 q_j . R(g K_{f+1}) + c2 q_j . R(g b)) / rms(key_j)
    A rms^2 = c0^2 <K_f, K_f> + c1^2 <K_{f+1}, K_{f+1}> + c2^2 <b, b>
              + 2 c0 c1 <K_f, K_{f+1}> + 2 c0 c2 <K_f, b>

with the norm's weight g and the rotation R both linear. No `[L, S, D]` tensor is ever built.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import Config
from .layers import AttentionProjections, sdpa
from .rope import Rotary, rotate
from .variants import VARIANTS


class VideoKV(NamedTuple):
    """Keys and values of T latent frames of S tokens; A is the audio width, products are over A."""

    key: Tensor  # R(g K) [B, T, S, heads, d]
    value: Tensor  # W_v X + b_v [B, T, S, heads, d]
    square: Tensor  # <K_f, K_f> / A, float32 [B, T, S]
    neighbour: Tensor  # <K_f, K_{f+1}> / A; the last frame's own square, never weighted
    with_bias: Tensor  # <K_f, b> / A
    bias_key: Tensor  # R(g b) [S, heads, d]
    bias_square: Tensor  # <b, b> / A, a scalar
    bias_value: Tensor  # b_v [A]


class MelGroups(NamedTuple):
    """The mel frames that are to be changed, grouped by the first latent frame they attend to.

    `frame`, `following` int64 `[G]`: the two latent frames;
    `row` int64 `[G, J]`: places among the changed mel frames (short groups repeat one);
    `weight` float32 `[G, J, 3]`: c0, c1, c2;
    `place` int64 `[n]`: where each changed frame stands in `G * J`.
    """

    frame: Tensor
    following: Tensor
    row: Tensor
    weight: Tensor
    place: Tensor

    def to(self, device: torch.device) -> MelGroups:
        return MelGroups(*(x.to(device) for x in self))


def group_mels(frame: Tensor, weight: Tensor, frames: int) -> MelGroups:
    """Group n mel frames that attend to latent `frame` `[n]` (ascending) and the next, `weight` `[n, 2]`."""
    used, group, count = frame.unique_consecutive(return_inverse=True, return_counts=True)
    first = count.cumsum(0) - count
    offset = torch.arange(len(frame)) - first[group]
    row = first[:, None] + torch.arange(int(count.max())).clamp(max=count[:, None] - 1)
    c0, c1 = weight.unbind(-1)
    weight = torch.stack((c0, c1, 1 - c0 - c1), dim=-1).float()
    return MelGroups(
        frame=used,
        following=(used + 1).clamp(max=frames - 1),
        row=row,
        weight=weight[row],
        place=group * row.shape[1] + offset,
    )


class V2A(AttentionProjections):
    """Released: `o(attention)`; paper (residual): `o(H + attention)`.

    Aligned: as in the paper, with `H + phase` in the place of `H`, query included: a learned vector for each
    place of a mel frame within its latent frame (4 video frames), zero at first. Without it all mel frames of
    a latent frame would ask the same question of it.
    """

    def __init__(self, config: Config, ops=nn, **factory):
        super().__init__(config.audio_dim, config.video_dim, config.audio_heads, config.eps, ops, **factory)
        variant = VARIANTS[config.variant]
        self.residual = variant.residual
        if variant.phases:
            self.phase = nn.Parameter(torch.zeros(variant.phases, config.audio_dim, **factory))
        self.eps = config.eps

    def project_video_kv(self, video: Tensor, rotary: Rotary) -> VideoKV:
        """Project masked video features `M * H` `[B, T, S, D]` at positions (row, column)."""
        # Biases and gain are asked of the layers, not read off them: a host may keep their weights elsewhere.
        nothing = video.new_zeros(1, video.shape[-1])
        key, bias = self.k(video), self.k(nothing).float()[0]
        gain = self.norm_k(torch.ones_like(key[0, 0, 0])).float() * (1 + self.eps) ** 0.5
        k = key.float()

        def rotated(x: Tensor) -> Tensor:
            return rotate((x * gain).unflatten(-1, (self.heads, -1)), rotary).to(video.dtype)

        return VideoKV(
            key=rotated(k),
            value=self.v(video).unflatten(-1, (self.heads, -1)),
            square=k.square().mean(-1),
            neighbour=(k * torch.cat((k[:, 1:], k[:, -1:]), dim=1)).mean(-1),
            with_bias=(k @ bias) / len(bias),
            bias_key=rotated(bias.expand(video.shape[2], -1)),
            bias_square=bias.square().mean(),
            bias_value=self.v(nothing).float()[0],
        )

    def forward(
        self, audio: Tensor, video_kv: VideoKV, groups: MelGroups, phase: Tensor | None = None
    ) -> Tensor:
        """What is added to the changed mel frames, `[B, n, A]` float32 -> `[B, n, A]`.

        `phase` int64 `[n]`: their places within their latent frames, in a variant with phases.
        """
        dtype = video_kv.value.dtype
        if phase is not None:
            audio = audio + self.phase.to(audio)[phase]
        q = self.query(audio.to(dtype)).unflatten(-1, (self.heads, -1))[:, groups.row]  # [B, G, J, heads, d]
        q = q.float() * q.shape[-1] ** -0.5
        here, after = groups.frame, groups.following
        c0, c1, c2 = groups.weight[:, None].unbind(-1)  # [G, 1, J], over heads
        c0, c1, c2 = c0[..., None], c1[..., None], c2[..., None]  # [G, 1, J, 1]

        def scores(key: Tensor) -> Tensor:
            return torch.einsum("bgjhd,bgshd->bghjs", q, key.float())

        blend = c0 * scores(video_kv.key[:, here])
        blend += c1 * scores(video_kv.key[:, after])
        blend += c2 * torch.einsum("bgjhd,shd->bghjs", q, video_kv.bias_key.float())

        def per_frame(x: Tensor, frame: Tensor) -> Tensor:
            return x[:, frame, None, None]  # [B, G, 1, 1, S]

        square = (
            c0.square() * per_frame(video_kv.square, here)
            + c1.square() * per_frame(video_kv.square, after)
            + c2.square() * video_kv.bias_square
            + 2 * c0 * c1 * per_frame(video_kv.neighbour, here)
            + 2 * c0 * c2 * per_frame(video_kv.with_bias, here)
        )
        attention = torch.softmax(blend * torch.rsqrt(square + self.eps), dim=-1)

        def gather(weight: Tensor, value: Tensor) -> Tensor:
            return torch.einsum("bghjs,bgshd->bgjhd", (weight * attention).to(dtype), value).float()

        out = gather(c0, video_kv.value[:, here]) + gather(c1, video_kv.value[:, after])
        out = out.flatten(-2) + groups.weight[..., 2:] * video_kv.bias_value
        out = out.flatten(1, 2)[:, groups.place]
        if self.residual:
            out = audio + out
        return self.o(out.to(dtype))

    def attend_to_all(self, audio: Tensor, video_kv: VideoKV, rotary: Rotary | None) -> Tensor:
        """As `forward`, where every mel frame attends to the tokens of all latent frames ("global")."""
        dtype = video_kv.value.dtype
        norm = torch.rsqrt(video_kv.square + self.eps)[..., None, None]
        key, value = (video_kv.key.float() * norm).to(dtype).flatten(1, 2), video_kv.value.flatten(1, 2)
        out = sdpa(self.query(audio.to(dtype), rotary), key.flatten(-2), value.flatten(-2), self.heads)
        return self.o((audio + out if self.residual else out).to(dtype))
