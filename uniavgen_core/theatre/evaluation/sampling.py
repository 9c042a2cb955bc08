"""Held-out clips of the theatre, and batches of them made again by a model in any of the five modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ... import conditioning
from ...conditioning import Task
from ...errors import UserError
from ...media.caption import CaptionEncoder
from ...media.mel import latent_to_mel
from ...media.speech import FILLER, null_symbol_ids, symbol_ids
from ...media.vae import TEMPORAL, WanVAE
from ...media.vocoder import GriffinLim, Vocoder
from ...model.dit import DualBranchDiT
from ...model.inputs import TextConditioning, Velocity
from ...pipeline import Weights
from ...sampling.guidance import Guidance, GuidedModel
from ...sampling.sampler import integrate, schedule
from ...training.cast_ops import quick_attention
from ...training.data import encode_clip, encode_voice, seeded
from ...training.objective import Batch, Objective, conditions, token_mask
from ..clips import Clip, Recording, Theatre

LOW_NOISE = 0.1  # the time at which face masks are read


@dataclass(frozen=True)
class Parts:
    """The four parts a model is made of."""

    model: DualBranchDiT
    vae: WanVAE
    captions: CaptionEncoder
    vocoder: Vocoder | GriffinLim

    @classmethod
    def load(cls, weights: Weights) -> Parts:
        """Raises UserError as `Weights.check` and the loaders, and for a text encoder of another model."""
        wanted, captions = weights.check().caption_dim, weights.load_caption_encoder()
        if captions.dim != wanted:
            raise UserError(
                f"the text encoder gives {captions.dim} channels, the model takes {wanted}; "
                "choose the one that belongs to it"
            )
        return cls(weights.load_model(), weights.load_vae(), captions, weights.load_vocoder())


@dataclass(frozen=True)
class Example:
    """A held-out clip with its latents as `encode_clip` makes them; `given`: a recording of another voice."""

    index: int
    clip: Clip
    latents: dict[str, Tensor]
    given: Recording

    @classmethod
    def make(cls, theatre: Theatre, index: int, vae: WanVAE) -> Example:
        clip = theatre.clip(index)
        latents = encode_clip(clip.frames, torch.from_numpy(clip.waveform), clip.face_mask, vae.encode)
        return cls(index, clip, latents, theatre.reference(index, theatre.other_voice(index)))


@dataclass(frozen=True)
class Made:
    """A clip as it came out: frames uint8 `[F, H, W, 3]`, sound `[n]`, latents `[C, T, H, W]`, `[L, 80]`."""

    frames: np.ndarray
    waveform: np.ndarray
    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class WithoutInteraction:
    """A model whose two branches never look at each other."""

    model: DualBranchDiT

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def __call__(self, *inputs, **options) -> Velocity:
        apart = replace(options.pop("active"), a2v=False, v2a=False)
        return self.model(*inputs, active=apart, **options)


def seam(latent_frames: int) -> tuple[int, int]:
    """Latent frames and video frames that a continuation of so many latent frames knows: the first half."""
    n_v = (latent_frames + 1) // 2
    return n_v, TEMPORAL * (n_v - 1) + 1


@torch.inference_mode()
def make(
    parts: Parts,
    examples: list[Example],
    mode: str,
    guidance: Guidance,
    steps: int,
    shift: float,
    seed: int = 0,
    interaction: bool = True,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> list[Made]:
    """The examples, all of one size and length, made again in one batch.

    A clip's noise depends on `seed` and its own number alone, so the batch size changes nothing.
    """
    batch = _batch(examples, mode, seed).to(parts.model.audio_padding.device)
    task = conditions(batch, parts.model.config.variant, parts.model.config.patch)
    model = parts.model if interaction else WithoutInteraction(parts.model)
    texts = [_texts(parts, examples, mode, null) for null in (False, True)]
    attention = quick_attention(parts.model.dtype, batch.video.device)
    velocity = GuidedModel(model, task, *texts, guidance, attention)
    times = schedule(steps, shift)
    run = integrate(velocity, batch.video_noise, batch.audio_noise, times, on_step)
    return _decode(parts, examples, mode, *task.known(run.video, run.audio))


@torch.inference_mode()
def face_masks(parts: Parts, examples: list[Example], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true face mask of each example's tokens, `[T, S]`.

    Predicted: the mean over interaction layers in one joint pass over the true clip at `LOW_NOISE`.
    """
    batch = _batch(examples, "joint", seed).to(parts.model.audio_padding.device)
    task: Task = conditions(batch, parts.model.config.variant, parts.model.config.patch)
    texts = _texts(parts, examples, "joint", null=False)
    noisy = (
        torch.lerp(clean, noise, LOW_NOISE)
        for clean, noise in ((batch.video, batch.video_noise), (batch.audio, batch.audio_noise))
    )
    time = torch.full((len(examples),), 1000 * LOW_NOISE, device=batch.video.device)
    masks = GuidedModel(parts.model, task, texts, texts, Guidance.none())(*noisy, time, 0, 1).face_masks
    predicted = torch.stack(list(masks.values())).mean(0)
    target = token_mask(batch.mask, parts.model.config.patch)
    return list(zip(predicted.cpu().numpy(), target.cpu().numpy()))


@torch.inference_mode()
def ceiling(parts: Parts, example: Example) -> Made:
    """The true clip through the VAE and through mel and vocoder: the best any model could do."""
    latents = example.latents
    return _decode(parts, [example], "joint", latents["video"][None], latents["audio"][None])[0]


def _batch(examples: list[Example], mode: str, seed: int) -> Batch:
    """The examples as a training batch: what the tasks of SPEC section 6 are cut from."""
    with_voice = mode == "reference-voice"
    audio = "audio_peak" if mode == "audio-driven" else "audio"
    clean = {
        "video": torch.stack([e.latents["video"] for e in examples]),
        "audio": torch.stack([e.latents[audio] for e in examples]),
        "mask": torch.stack([e.latents["mask"] for e in examples]),
    }
    noise = {"video_noise": [], "audio_noise": []}
    for example in examples:
        generator = seeded("evaluation", seed, example.index)
        for name, like in (("video_noise", clean["video"]), ("audio_noise", clean["audio"])):
            noise[name].append(torch.randn(like.shape[1:], generator=generator))
    n_v, frames = seam(clean["video"].shape[2])
    voices = [encode_voice(torch.from_numpy(e.given.waveform)) for e in examples] if with_voice else None
    speech, lengths = _symbols(examples, mode, null=False)
    return Batch(
        mode=mode,
        interaction=True,
        prefix=(n_v, conditioning.mel_frames(frames)),
        **clean,
        **{name: torch.stack(parts) for name, parts in noise.items()},
        time=torch.zeros(len(examples)),
        speech=speech,
        speech_lengths=lengths,
        captions=[e.clip.caption for e in examples],
        voice=torch.stack(voices) if voices else None,
        voice_lengths=torch.tensor([len(voice) for voice in voices]) if voices else None,
    )


def _symbols(examples: list[Example], mode: str, null: bool) -> tuple[Tensor, Tensor]:
    """Symbol ids of what is said, padded `[B, N]`, and their lengths `[B]`."""
    rows = []
    for e in examples:
        before = e.given.transcript if mode == "reference-voice" else ""
        ids = null_symbol_ids("en", before) if null else symbol_ids(e.clip.transcript, "en", before)
        rows.append(torch.tensor(ids))
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=FILLER)
    return padded, torch.tensor([len(row) for row in rows])


def _texts(parts: Parts, examples: list[Example], mode: str, null: bool) -> TextConditioning:
    ids, lengths = _symbols(examples, mode, null)
    longest = parts.model.config.caption_length
    caption = parts.captions(["" if null else e.clip.caption for e in examples])[:, :longest]
    device = parts.model.audio_padding.device
    features = Objective(parts.model).speech_features(ids.to(device), lengths.to(device))
    return TextConditioning(caption.to(device), features, lengths.to(device))


def _decode(parts: Parts, examples: list[Example], mode: str, video: Tensor, audio: Tensor) -> list[Made]:
    """What a mode is given whole, it gives back as it was."""
    if mode == "audio-driven":
        waveforms = [e.clip.waveform for e in examples]
    else:
        sound = parts.vocoder(latent_to_mel(audio)).cpu().numpy()
        waveforms = [np.pad(row, (0, len(e.clip.waveform) - len(row))) for row, e in zip(sound, examples)]
    made = []
    for row, example in enumerate(examples):
        frames = example.clip.frames
        if mode != "dubbing":
            picture = parts.vae.decode(video[row : row + 1])[0].permute(1, 2, 3, 0)  # [F, H, W, 3]
            frames = ((picture + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
        made.append(Made(frames, waveforms[row], video[row].cpu(), audio[row].cpu()))
    return made
