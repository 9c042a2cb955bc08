"""Modality-aware classifier-free guidance, MA-CFG (docs/model.md section 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import Task
from ..model.cache import Cache
from ..model.dit import DualBranchDiT
from ..model.inputs import ActiveParts, Conditioned, References, TextConditioning, Velocity
from ..model.layers import Attention, sdpa
from .defaults import Guidance


def mix(null: Tensor, full: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance: `null + scale (full - null)`."""
    return null + scale * (full - null)


def speech_features(encoder: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    """Padded symbol ids `[B, N]` -> features `[B, N, speech_dim]`; each text is encoded at its own length."""
    features = []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        encoded = encoder(ids[rows, :length])
        features.append((rows, F.pad(encoded, (0, 0, 0, ids.shape[1] - length))))
    order = torch.cat([rows for rows, _ in features]).argsort()
    return torch.cat([encoded for _, encoded in features])[order]


class GuidedModel:
    """The model with a task, two pairs of texts and a guidance: latents in, one guided velocity out.

    Keeps what is the same at every step; make a new one for every sampling run.
    """

    def __init__(
        self,
        model: DualBranchDiT,
        task: Task,
        positive: TextConditioning,
        negative: TextConditioning,
        guidance: Guidance,
        attention: Attention = sdpa,
    ):
        self.model, self.task, self.guidance, self.attention = model, task, guidance, attention
        self.positive, self.negative = positive, negative
        self.full_cache, self.null_cache = Cache(), Cache()

    def __call__(self, video: Tensor, audio: Tensor, time: Tensor, step: int, steps: int) -> Velocity:
        """Running latents (float32) at `time` `[B]` -> guided velocity, float32."""
        video, audio = self.task.apply(video, audio)
        full = self._pass(video, audio, time, self.positive, self.full_cache, ActiveParts(v2a=self.task.v2a))
        if not self.guidance.needs_null:
            return full
        interacts = self.guidance.null_interacts(step, steps)
        null = self._pass(
            video,
            audio,
            time,
            self.negative,
            self.null_cache,
            ActiveParts(a2v=interacts, v2a=interacts, skip_layers=self.guidance.skip_layers),
        )
        return Velocity(
            mix(null.video, full.video, self.guidance.s_v),
            mix(null.audio, full.audio, self.guidance.s_a),
            full.face_masks,
        )

    def _pass(
        self,
        video: Tensor,
        audio: Tensor,
        time: Tensor,
        text: TextConditioning,
        cache: Cache,
        active: ActiveParts,
    ) -> Velocity:
        dtype, task = self.model.dtype, self.task
        references = References(task.reference_image, task.reference_mel, task.reference_mel_lengths)
        return self.model(
            video.to(dtype),
            audio.to(dtype),
            time,
            text.to(dtype),
            references.to(dtype),
            Conditioned(task.conditioned_video, task.conditioned_audio),
            active=active,
            cache=cache,
            attention=self.attention,
            audio_attention=self.attention,
        )
