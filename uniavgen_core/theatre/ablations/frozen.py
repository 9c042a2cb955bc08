"""Trainings of the interaction alone, with the video branch of dubbing read from what it gave once.

In dubbing nothing that the video branch computes depends on the noise, the time or the interaction, so that a
frozen one gives the same tokens for a clip at every step: a third of the cost of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...model.branches import VideoBranch
from ...model.config import Config
from ...model.dit import DualBranchDiT
from ...model.inputs import ActiveParts, Conditioned, References, TextConditioning
from ...training import cast_ops
from ...training.data import Batches, Latents
from ...training.objective import Batch, Objective


@dataclass(kw_only=True)
class KnownVideo(VideoBranch):
    """A video branch conditioned whole.

    `known` `[B, n + 1, N, D]`: its tokens before every layer and after the last.
    """

    known: Tensor

    def run(self, layer: int) -> None:
        self.tokens = self.known[:, layer + 1].float()


class FrozenVideoDiT(DualBranchDiT):
    """`known`: tokens of the clips of the next forward, which runs no video block in dubbing."""

    known: Tensor | None = None

    def _embed_video(self, *inputs) -> VideoBranch:
        branch = super()._embed_video(*inputs)
        if self.known is None or not branch.fixed:
            return branch
        return KnownVideo(**vars(branch), known=self.known)


@dataclass
class ClipBatch(Batch):
    """A batch that knows the numbers of its clips, int64 `[B]`."""

    clips: Tensor | None = None


@dataclass
class ArmBatches(Batches):
    """Batches that name their clips."""

    def __getitem__(self, step: int) -> Batch:
        batch = super().__getitem__(step)
        clips = [self.clip(step * self.stage.batch + row, batch.mode) for row in self.rows]
        return ClipBatch(**vars(batch), clips=torch.tensor(clips))


class InteractionObjective(Objective):
    """The objective of a model of which the interaction alone learns.

    `known`: tokens of the frozen video branch by clip, from `video_tokens`.
    """

    def __init__(self, model: FrozenVideoDiT, known: Tensor):
        super().__init__(model)
        self.known = known
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("a2v_blocks." in name or "v2a_blocks." in name)

    def forward(self, batch: Batch, lambda_m: float, lambda_g: float = 0.0) -> dict[str, Tensor]:
        assert isinstance(self.model, FrozenVideoDiT)
        clips = batch.clips if isinstance(batch, ClipBatch) and batch.mode == "dubbing" else None
        self.model.known = None if clips is None else self.known[clips]
        try:
            return super().forward(batch, lambda_m, lambda_g)
        finally:
            self.model.known = None


@torch.inference_mode()
def video_tokens(start: DualBranchDiT, latents: Latents, batch: int = 8) -> Tensor:
    """What the video branch of `start` makes of each clip and its caption: half `[N, n + 1, (T+1) * S, D]`.

    The tokens before every layer and after the last; the same for any interaction, which changes nothing in a
    video that is conditioned whole.
    """
    config: Config = start.config
    model = DualBranchDiT(config, cast_ops)
    model.load_state_dict(start.state_dict())
    seen: list[Tensor] = []

    def before(module: nn.Module, given: tuple) -> None:
        seen.append(given[0])

    def after(module: nn.Module, given: tuple, out: Tensor) -> None:
        seen.append(out)

    for block in model.blocks:
        block.register_forward_pre_hook(before)
    model.blocks[-1].register_forward_hook(after)
    rows = []
    for first in range(0, len(latents), batch):
        items = [latents[i] for i in range(first, min(len(latents), first + batch))]
        video = torch.stack([item.video for item in items])
        captions = [item.caption_states for item in items if item.caption_states is not None]
        nothing = video.new_zeros(len(items), 1, config.audio_channels)
        seen.clear()
        model(
            video,
            nothing,
            video.new_zeros(len(items)),
            TextConditioning(
                torch.nn.utils.rnn.pad_sequence(captions, batch_first=True),
                video.new_zeros(len(items), 1, config.speech_dim),
            ),
            References(video[:, :, :1]),
            Conditioned(torch.ones(video.shape[2], dtype=torch.bool), torch.zeros(1, dtype=torch.bool)),
            ActiveParts(a2v=False, v2a=False),
        )
        rows.append(torch.stack(seen, 1).half())
    return torch.cat(rows).clone()
