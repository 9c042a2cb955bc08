"""Audio to video: every latent frame looks at a window of mel frames (SPEC sections 4, 5 and 10.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Config
from ..layers import Attention, AttentionLayer, KeyValue
from ..rope import Rotary, rotate
from .face_mask import face_mask


class A2V(AttentionLayer):
    """The L audio tokens are projected once; the windows are gathered from the projections.

    Queries carry (row, column), keys their place in the window. Released: `o(M * attention)`;
    paper and aligned: `M * o(H + attention)` with o starting at zero.
    """

    def __init__(self, config: Config, ops=nn, **factory):
        super().__init__(config.video_dim, config.audio_dim, config.video_heads, config.eps, ops, **factory)
        self.paper = config.variant != "released"
        self.mask_head = face_mask(config.variant, config.video_dim, config.eps, ops, **factory)

    def forward(
        self,
        video: Tensor,  # [B, T, S, D] float32, the frames that are to be changed
        mask: Tensor,  # [B, T, S]
        audio: KeyValue,  # look_at(audio tokens), [B, L, D]
        window: Tensor,  # [T, W] indices into L
        attention: Attention,
        rotary: Rotary,  # (row, column) of the S tokens of a frame
        window_rotary: Rotary,  # place among the W keys
    ) -> Tensor:
        """What is added to `video`, `[B, T, S, D]`."""
        batch, frames = video.shape[:2]
        key, value = (x[:, window] for x in audio)  # [B, T, W, D]
        key = rotate(key.unflatten(-1, (self.heads, -1)), window_rotary).flatten(-2)
        query = self.query(video.to(key.dtype), rotary)
        out = attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), self.heads)
        out = out.unflatten(0, (batch, frames))
        mask = mask.unsqueeze(-1)
        if self.paper:
            return mask * self.o((video + out).to(out.dtype))
        return self.o((mask * out).to(out.dtype))


def zero_output(layer: AttentionLayer) -> None:
    """The paper's W_o starts at zero: both branches begin as two independent transformers."""
    with torch.no_grad():
        layer.o.weight.zero_()
        layer.o.bias.zero_()
