"""The training objective (docs/model.md section 8): flow matching on both branches and the face mask.

`x_t = (1 - t) data + t noise`, the model's time is `1000 t`, its target the velocity `noise - data`.
Conditioned and reference tokens enter clean and carry no loss.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import conditioning
from ..media.caption import CaptionEncoder, clean
from ..model.dit import DualBranchDiT
from ..model.inputs import ActiveParts, Conditioned, References, TextConditioning
from ..model.layers import Attention
from . import cast_ops

if TYPE_CHECKING:
    from typing_extensions import Self

AUDIO_ALONE, VOICE_ALONE = "audio", "audio-voice"
ALONE = (AUDIO_ALONE, VOICE_ALONE)
MODES = (*ALONE, *conditioning.MODES)
"""What a step can train: the audio branch alone (stage 1), without or with a reference voice, or one of the
modes."""
SEAM = (1, 6)
"""How many unknown latent frames and mel frames on either side of a seam count as next to it."""


@dataclass
class Batch:
    """The samples of one step that one process sees; everything random is already drawn.

    video `[B, C, T, H, W]`, audio `[B, L, bands]`: clean latents; `mask` `[B, T, H, W]`: share of each
    latent cell that is face; `time` `[B]` in 0..1; `speech` `[B, N]` symbol ids, padded, with
    `speech_lengths` `[B]`; `caption` `[B, M, dim]` states, or None where `captions` are encoded by the
    objective; `voice` `[B, Lr, bands]` with `voice_lengths` `[B]` where a mode has one; `anew`:
    the latent frames and mel frames that continuation and edit generate; `interaction`: off in a null pass;
    `said_before` `[B]`: how many symbols of `speech` the reference voice says.
    """

    mode: str
    interaction: bool
    anew: conditioning.Anew
    video: Tensor
    audio: Tensor
    mask: Tensor
    video_noise: Tensor
    audio_noise: Tensor
    time: Tensor
    speech: Tensor
    speech_lengths: Tensor
    captions: list[str]
    caption: Tensor | None = None
    voice: Tensor | None = None
    voice_lengths: Tensor | None = None
    said_before: Tensor | None = None

    def __len__(self) -> int:
        return len(self.time)

    def about(self) -> dict:
        """What the log says of this step."""
        return {"task": self.mode, "interaction": self.interaction}

    def to(self, device: torch.device) -> Self:
        return self._each(lambda x: x.to(device) if isinstance(x, Tensor) else x)

    def split(self, size: int) -> list[Self]:
        """Micro-batches of `size` samples."""

        def part(start: int) -> Self:
            rows = slice(start, start + size)
            return self._each(lambda x: x[rows] if isinstance(x, (Tensor, list)) else x)

        return [part(start) for start in range(0, len(self), size)]

    def _each(self, change) -> Self:
        return type(self)(**{f.name: change(getattr(self, f.name)) for f in dataclasses.fields(self)})


def draw_time(
    generator: torch.Generator, logit_normal: float, shifts: float | tuple[float, ...] = 1.0
) -> Tensor:
    """A time in 0..1: logit-normal with probability `logit_normal`, else uniform; then shifted, by one of
    `shifts`, each as likely as the others."""
    if isinstance(shifts, tuple):
        shift = shifts[int(torch.randint(len(shifts), (), generator=generator))]
    else:
        shift = shifts
    choice, uniform = torch.rand(2, generator=generator)
    normal = torch.randn((), generator=generator).sigmoid()
    time = torch.where(choice < logit_normal, normal, uniform)
    return shift * time / (1 + (shift - 1) * time)


def flow_loss(
    velocity: Tensor,
    noise: Tensor,
    data: Tensor,
    known: Tensor,
    axis: int,
    reach: int = 0,
    seam_weight: float = 1.0,
) -> Tensor:
    """`||velocity - (noise - data)||^2`, the mean over positions along `axis` that are not known.

    Positions with a known one at most `reach` away count `seam_weight` times.
    """
    unknown = (~known).nonzero()[:, 0]
    if not len(unknown):
        return velocity.new_zeros(())
    near = F.max_pool1d(known.float()[None], 2 * reach + 1, 1, reach)[0, unknown]
    weight = (1 + (seam_weight - 1) * near).to(data.device)
    square = (velocity - (noise - data)).square().index_select(axis, unknown.to(data.device))
    return (square.movedim(axis, -1) * (weight / weight.mean())).mean()


def token_mask(mask: Tensor, patch: tuple[int, int]) -> Tensor:
    """Face shares of latent cells `[B, T, H, W]` -> of tokens `[B, T, H/p * W/q]`; edges repeated."""
    rows, columns = -mask.shape[2] % patch[0], -mask.shape[3] % patch[1]
    padded = F.pad(mask, (0, columns, 0, rows), mode="replicate")
    return F.avg_pool2d(padded, patch).flatten(2)


def mask_loss(predicted: dict[int, Tensor], target: Tensor) -> Tensor:
    """`||M - M_gt||^2`, the mean over interaction layers and tokens; 0 where no mask was made."""
    if not predicted:
        return target.new_zeros(())
    return torch.stack([F.mse_loss(mask, target) for mask in predicted.values()]).mean()


def conditions(batch: Batch, variant: str, patch: tuple[int, int]) -> conditioning.Task:
    """What is conditioned in this batch (docs/model.md section 6)."""
    mode, video, audio = batch.mode, batch.video, batch.audio
    if mode in ALONE:  # one conditioned token stands for the video, and the interaction is off
        mode, video = "dubbing", video.new_zeros(*video.shape[:2], 1, *patch)
    return conditioning.condition(
        mode,
        video,
        audio,
        video.shape[2],
        audio.shape[1],
        anew=batch.anew,
        variant=variant,
        reference_mel=batch.voice,
        reference_mel_lengths=batch.voice_lengths,
    )


def _reading(mel: Tensor, first: Tensor, end: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A steady reading of symbols `first` to `end` `[B]` by a mel `[B, L, bands]`: which frames are loud and
    so read, and the symbol each stands at, float `[B, L]`. `there`: frames that are no padding."""
    loudness = mel.float().mean(-1)
    low, high = (loudness.quantile(q, 1, keepdim=True) for q in (0.05, 0.95))
    spoken = (loudness > low + (high - low) / 4).float()
    if there is not None:
        spoken = spoken * there
    read = spoken.cumsum(1) / spoken.sum(1, keepdim=True).clamp(min=1)
    return spoken, first[:, None] + read * (end - first)[:, None]


class TextGuide:
    """An `Attention` for audio that also sums up how much weight it gives to symbols away from a steady
    reading (guided attention, Tachibana et al. 2018): text and speech find each other in hundreds of steps
    instead of thousands.

    Args:
        batch: read where its mel is loud, a reference voice its own words; dropped texts are not read.
        attention: what computes the attention itself.
        spread: in symbols, the distance from the steady reading below which little is penalised (sigma).
    """

    def __init__(self, batch: Batch, attention: Attention, spread: float = 2.0):
        symbols = torch.arange(batch.speech.shape[1], device=batch.speech.device)
        before = batch.said_before
        if before is None:
            before = torch.zeros_like(batch.speech_lengths)
        # A dropped text says nothing after the reference voice's words: a space and fillers.
        says = ((batch.speech > 0) & (symbols >= before[:, None])).any(1, keepdim=True)
        self.attention = attention
        spoken, place = _reading(batch.audio, before, batch.speech_lengths)
        spoken = spoken * says
        if batch.voice is not None and batch.voice_lengths is not None:
            there = torch.arange(batch.voice.shape[1], device=place.device) < batch.voice_lengths[:, None]
            voiced, place_before = _reading(batch.voice, torch.zeros_like(before), before, there)
            spoken, place = torch.cat((voiced, spoken), 1), torch.cat((place_before, place), 1)
        distance = symbols - place[..., None]
        self.spoken = spoken  # [B, Lr + L]
        self.fault = spoken[..., None] * (1 - torch.exp(-distance.square() / (2 * spread**2)))
        self.faults: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        if (q.shape[1], k.shape[1]) == self.fault.shape[1:]:
            shares = cast_ops.attention_weights(q, k, heads, mask)
            self.faults.append((shares.float() * self.fault[:, None]).sum((-1, -2)).mean(1).sum())
            return cast_ops.weighted_values(shares, v)
        return self.attention(q, k, v, heads, mask=mask)

    def loss(self) -> Tensor:
        """The share of attention away from the steady reading, over all heads and layers."""
        return torch.stack(self.faults).mean() / self.spoken.sum().clamp(min=1)


class Objective(nn.Module):
    """The model with its losses, so that any wrapper (DDP, FSDP) sees one forward from batch to loss.

    Args:
        model: either variant.
        caption: an encoder to be trained with the model; without it batches carry caption states.
        dtype: of the matmuls; bfloat16 over float32 weights needs a model built from `mixed`.
        seam_weight: of frames next to a known one, see `SEAM`.
    """

    def __init__(
        self,
        model: DualBranchDiT,
        caption: CaptionEncoder | None = None,
        dtype: torch.dtype = torch.float32,
        seam_weight: float = 1.0,
    ):
        super().__init__()
        self.model, self.dtype, self.seam_weight = model, dtype, seam_weight
        self.caption_model: nn.Module | None = caption.model if caption else None
        self.tokenizer: Any = caption.tokenizer if caption else None

    def forward(self, batch: Batch, lambda_m: float, lambda_g: float = 0.0) -> dict[str, Tensor]:
        """Scalars: "loss" (to be minimised) and its parts "video", "audio", "mask", "guide"."""
        config, model = self.model.config, self.model
        task = conditions(batch, config.variant, config.patch)
        alone = batch.mode in ALONE
        clean_video = task.clean_video if alone else batch.video
        video_noise = torch.zeros_like(clean_video) if alone else batch.video_noise
        t = batch.time
        video, audio = task.apply(
            torch.lerp(clean_video, video_noise, t.view(-1, 1, 1, 1, 1)),
            torch.lerp(batch.audio, batch.audio_noise, t.view(-1, 1, 1)),
        )
        interaction = batch.interaction and not alone
        attention = cast_ops.quick_attention(self.dtype, t.device)
        text_guide = TextGuide(batch, attention) if lambda_g else None
        text = TextConditioning(
            self.caption_states(batch),
            self.speech_features(batch.speech, batch.speech_lengths),
            batch.speech_lengths,
        )
        references = References(task.reference_image, task.reference_mel, task.reference_mel_lengths)
        velocity = model(
            video.to(self.dtype),
            audio.to(self.dtype),
            1000 * t,
            text.to(self.dtype),
            references.to(self.dtype),
            Conditioned(task.conditioned_video, task.conditioned_audio),
            ActiveParts(a2v=interaction, v2a=interaction and task.v2a),
            attention=attention,
            audio_attention=text_guide or attention,
        )
        # In audio-driven and joint clips the first frame is given: a seam of its own that needs no weight.
        weight = self.seam_weight if batch.mode in ("continuation", "edit") else 1.0
        parts = {
            "video": flow_loss(
                velocity.video, video_noise, clean_video, task.conditioned_video, 2, SEAM[0], weight
            ),
            "audio": flow_loss(
                velocity.audio, batch.audio_noise, batch.audio, task.conditioned_audio, 1, SEAM[1], weight
            ),
            "mask": mask_loss({} if alone else velocity.face_masks, token_mask(batch.mask, config.patch)),
        }
        loss = parts["video"] + parts["audio"] + lambda_m * parts["mask"]
        if text_guide:
            parts["guide"] = text_guide.loss()
            loss = loss + lambda_g * parts["guide"]
        return {"loss": loss, **parts}

    def caption_states(self, batch: Batch) -> Tensor:
        """`[B, M, caption_dim]`, zero past the end of each caption."""
        if self.caption_model is None:
            if batch.caption is None:
                raise ValueError("the batch has no caption states and the objective no caption encoder")
            return batch.caption
        tokens = self.tokenizer(
            [clean(text) for text in batch.captions],
            padding="longest",
            truncation=True,
            max_length=self.model.config.caption_length,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(batch.time.device)
        states = self.caption_model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return states.masked_fill(tokens.attention_mask[..., None] == 0, 0)

    def speech_features(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """`[B, N, speech_dim]`; each text is encoded at its own length, as in inference."""
        return self.model.text_embedding(ids, lengths)


def recompute_blocks(model: DualBranchDiT) -> None:
    """Gradient checkpointing: a block keeps its input alone and runs again in the backward pass."""

    def wrap(forward):
        return lambda *args: checkpoint(forward, *args, use_reentrant=False)

    for block in (*model.blocks, *model.audio_blocks):
        block.forward = wrap(block.forward)


def compile_blocks(model: DualBranchDiT) -> None:
    """Blocks go through torch.compile, one graph for all layers of a branch and each kind of task."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in (*model.blocks, *model.audio_blocks):
        block.forward = torch.compile(block.forward)
