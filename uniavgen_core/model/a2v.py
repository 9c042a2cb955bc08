"""A2V, audio to video: cross-attention of every latent frame to its temporal-aligned window of mel frames.

Half of the asymmetric cross-modal interaction, gated by the face mask (docs/model.md sections 4, 5 and 10.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import Config
from .layers import Attention, AttentionProjections, KeyValue
from .rope import Rotary, rotate
from .variants import VARIANTS


class A2V(AttentionProjections):
    """The L audio tokens are projected once; the windows are gathered from the projections.

    Queries carry (row, column), keys their place in the window. Released: `o(M * attention)`;
    paper and aligned (residual): `M * o(H + attention)`.
    """

    def __init__(self, config: Config, ops=nn, **factory):
        super().__init__(config.video_dim, config.audio_dim, config.video_heads, config.eps, ops, **factory)
        variant = VARIANTS[config.variant]
        self.residual = variant.residual
        self.mask_head = variant.face_mask(config.video_dim, config.eps, ops, **factory)

    def forward(
        self,
        video: Tensor,  # [B, T, S, D] float32, the frames that are to be changed
        mask: Tensor,  # [B, T, S]
        audio_kv: KeyValue,  # project_kv(audio tokens), [B, L, D]
        window: Tensor,  # [T, W] indices into L
        attention: Attention,
        rotary: Rotary,  # (row, column) of the S tokens of a frame
        window_rotary: Rotary,  # place among the W keys
    ) -> Tensor:
        """What is added to `video`, `[B, T, S, D]`."""
        batch, frames = video.shape[:2]
        key, value = (x[:, window] for x in audio_kv)  # [B, T, W, D]
        key = rotate(key.unflatten(-1, (self.heads, -1)), window_rotary).flatten(-2)
        query = self.query(video.to(key.dtype), rotary)
        out = attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), self.heads)
        out = out.unflatten(0, (batch, frames))
        mask = mask.unsqueeze(-1)
        if self.residual:
            return mask * self.o((video + out).to(out.dtype))
        return self.o((mask * out).to(out.dtype))


def zero_output(layer: AttentionProjections) -> None:
    """The paper's W_o starts at zero: both branches begin as two independent transformers."""
    with torch.no_grad():
        layer.o.weight.zero_()
        layer.o.bias.zero_()
