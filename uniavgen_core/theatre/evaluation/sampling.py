"""Held-out clips of the theatre, and batches of them made again by a model in any mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ... import conditioning
from ...media.speech import FILLER, null_symbol_ids, symbol_ids
from ...media.vae import WanVAE
from ...model.config import Config
from ...model.dit import DualBranchDiT
from ...model.inputs import TextConditioning, Velocity
from ...pipeline import Pipeline
from ...sampling.defaults import Guidance
from ...sampling.guidance import GuidedModel
from ...sampling.sampler import Sample, sample
from ...training.cast_ops import quick_attention
from ...training.data import encode_clip, seeded
from ...training.objective import Batch, conditions, token_mask
from ..clips import Clip, Recording, Theatre

LOW_NOISE = 0.1  # the time at which face masks are read


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
class GeneratedClip:
    """A clip as it came out: frames uint8 `[F, H, W, 3]`, audio `[n]`, latents `[C, T, H, W]`, `[L, 80]`.

    `passes`: how often the model was run for it.
    """

    frames: np.ndarray
    waveform: np.ndarray
    video: Tensor
    audio: Tensor
    passes: int = 0


@dataclass(frozen=True)
class WithoutInteraction:
    """A model whose two branches never look at each other."""

    model: DualBranchDiT

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def config(self) -> Config:
        return self.model.config

    def __call__(self, *inputs, **options) -> Velocity:
        apart = replace(options.pop("active"), a2v=False, v2a=False)
        return self.model(*inputs, active=apart, **options)


@torch.inference_mode()
def make(
    pipeline: Pipeline,
    examples: list[Example],
    mode: str,
    guidance: Guidance,
    steps: int,
    shift: float,
    seed: int = 0,
    interaction: bool = True,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    **options: Any,
) -> list[GeneratedClip]:
    """The examples, all of one size and length, made again in one batch; `options`: others of `sample`.

    A clip's noise depends on `seed` and its own number alone, so the batch size changes nothing.
    """
    batch = _batch(examples, mode, seed).to(pipeline.device)
    config, model = pipeline.config, pipeline.model.get()
    sampled = sample(
        model if interaction else cast(DualBranchDiT, WithoutInteraction(model)),
        conditions(batch, config.variant, config.patch),
        _texts(pipeline, examples, mode, null=False),
        _texts(pipeline, examples, mode, null=True),
        guidance,
        steps,
        shift,
        noise=(batch.video_noise, batch.audio_noise),
        attention=quick_attention(model.dtype, pipeline.device),
        on_step=on_step,
        **options,
    )
    return _decode(pipeline, examples, mode, sampled)


@torch.inference_mode()
def face_masks(
    pipeline: Pipeline, examples: list[Example], seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true face mask of each example's tokens, `[T, S]`.

    Predicted: the mean over interaction layers in one joint pass over the true clip at `LOW_NOISE`.
    """
    batch, velocity = velocity_at(pipeline, examples, "joint", LOW_NOISE, seed)
    predicted = torch.stack(list(velocity.face_masks.values())).mean(0)
    target = token_mask(batch.mask, pipeline.config.patch)
    return list(zip(predicted.cpu().numpy(), target.cpu().numpy()))


@torch.inference_mode()
def velocity_at(
    pipeline: Pipeline,
    examples: list[Example],
    mode: str,
    time: float,
    seed: int = 0,
    interaction: bool = True,
) -> tuple[Batch, Velocity]:
    """One pass of a mode over the true clips at a time in 0..1, and the batch it was made of.

    A clip's noise depends on `seed` and its own number alone, as in `make`.
    """
    batch = _batch(examples, mode, seed).to(pipeline.device)
    config, model = pipeline.config, pipeline.model.get()
    texts = _texts(pipeline, examples, mode, null=False)
    guided = GuidedModel(
        model if interaction else cast(DualBranchDiT, WithoutInteraction(model)),
        conditions(batch, config.variant, config.patch),
        texts,
        texts,
        Guidance.none(),
        quick_attention(model.dtype, pipeline.device),
    )
    video = torch.lerp(batch.video, batch.video_noise, time)
    audio = torch.lerp(batch.audio, batch.audio_noise, time)
    times = torch.full((len(examples),), 1000 * time, device=pipeline.device)
    return batch, guided(video, audio, times, 0, 1)


@torch.inference_mode()
def ceiling(pipeline: Pipeline, example: Example) -> GeneratedClip:
    """The true clip through the VAE and through mel and vocoder: the best any model could do."""
    latents = example.latents
    given = Sample(latents["video"][None], latents["audio"][None], {})
    return _decode(pipeline, [example], "joint", given)[0]


def _batch(examples: list[Example], mode: str, seed: int) -> Batch:
    """The examples as a training batch: what the tasks of docs/model.md section 6 are cut from."""
    with_voice = "voice" in conditioning.MODES[mode].needs
    audio = "audio_peak" if conditioning.MODES[mode].normalised else "audio"
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
    voices = (
        [conditioning.voice_latent(torch.from_numpy(e.given.waveform)) for e in examples]
        if with_voice
        else None
    )
    speech = [torch.tensor(ids) for ids in _symbols(examples, mode)]
    return Batch(
        mode=mode,
        interaction=True,
        anew=conditioning.example_span(mode, clean["video"].shape[2], clean["audio"].shape[1]),
        **clean,
        **{name: torch.stack(parts) for name, parts in noise.items()},
        time=torch.zeros(len(examples)),
        speech=torch.nn.utils.rnn.pad_sequence(speech, batch_first=True, padding_value=FILLER),
        speech_lengths=torch.tensor([len(ids) for ids in speech]),
        captions=[e.clip.caption for e in examples],
        voice=torch.stack(voices) if voices else None,
        voice_lengths=torch.tensor([len(voice) for voice in voices]) if voices else None,
    )


def _symbols(examples: list[Example], mode: str, null: bool = False) -> list[list[int]]:
    """Symbol ids of what is said in each clip, or of its null."""
    with_voice = "voice" in conditioning.MODES[mode].needs
    before = [e.given.transcript if with_voice else "" for e in examples]
    if null:
        return [null_symbol_ids("en", said) for said in before]
    return [symbol_ids(e.clip.transcript, "en", said) for e, said in zip(examples, before)]


def _texts(pipeline: Pipeline, examples: list[Example], mode: str, null: bool) -> TextConditioning:
    caption, _ = pipeline.encode_captions(["" if null else e.clip.caption for e in examples])
    symbols = _symbols(examples, mode, null)
    return TextConditioning(caption, *pipeline.encode_speech(symbols))


def _decode(pipeline: Pipeline, examples: list[Example], mode: str, sampled: Sample) -> list[GeneratedClip]:
    """What a mode is given whole, it gives back as it was."""
    video, audio = sampled.video, sampled.audio
    row = conditioning.MODES[mode]
    if row.audio == "all":
        waveforms = [e.clip.waveform for e in examples]
    else:
        sound = pipeline.decode_audio(audio).numpy()
        waveforms = [np.pad(wave, (0, len(e.clip.waveform) - len(wave))) for wave, e in zip(sound, examples)]
    made = []
    for i, example in enumerate(examples):
        frames = example.clip.frames
        if row.video != "all":
            frames = pipeline.decode_video(video[i : i + 1]).numpy()
        made.append(GeneratedClip(frames, waveforms[i], video[i].cpu(), audio[i].cpu(), sampled.passes))
    return made
