"""Clips held in the memory of the device, with batches drawn there: for models whose steps take less time
than reading a batch does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import conditioning
from ..errors import UserError
from ..media.speech import FILLER, null_symbol_ids, symbol_ids
from .data import Latents, Sample, audio_name, draw_task, needs_voice, seeded, shared_rows
from .objective import ALONE, Batch
from .recipe import Stage

TEXTS: dict[str, Callable[[Sample], list[int]]] = {
    "says": lambda x: symbol_ids(x.transcript, x.language),
    "says_null": lambda x: null_symbol_ids(x.language),
    "says_voiced": lambda x: symbol_ids(x.transcript, x.language, x.voice_transcript),
    "says_voiced_null": lambda x: null_symbol_ids(x.language, x.voice_transcript),
}
"""Symbol ids of what is said and of its null, without and with the text of a reference voice before it."""


class ResidentClips:
    """All clips of a folder of latents on one device: latents in half precision, texts as padded symbol ids.

    Raises:
        UserError: clips without caption states.
    """

    def __init__(self, latents: Latents, device: torch.device | str = "cpu"):
        items = [latents[i] for i in range(len(latents))]
        if latents.null_caption is None or items[0].caption_states is None:
            raise UserError(
                f"{latents.folder} was prepared without a text encoder, which resident clips need; prepare "
                "it again with --text-encoder, or take `resident` out of the recipe"
            )
        self.tensors: dict[str, Tensor] = {}
        for name in ("video", "audio", "audio_peak", "mask"):
            self.tensors[name] = torch.stack([getattr(x, name).half() for x in items])
        voices = [x.voice.half() for x in items if x.voice is not None]
        if voices:
            self.tensors["voice"] = pad_sequence(voices, batch_first=True)
            self.tensors["voice_length"] = torch.tensor([len(voice) for voice in voices])
        states = [x.caption_states.half() for x in items if x.caption_states is not None]
        self.tensors["caption"] = pad_sequence([*states, latents.null_caption.half()], batch_first=True)
        for name, ids in TEXTS.items():
            if "voiced" in name and not voices:
                continue
            rows = [torch.tensor(ids(x)) for x in items]
            self.tensors[name] = pad_sequence(rows, batch_first=True, padding_value=FILLER)
            self.tensors[f"{name}_length"] = torch.tensor([len(row) for row in rows])
        if voices:
            self.tensors["said_before"] = (self.tensors["says_voiced_null"] != FILLER).sum(1)
        self.tensors = {name: x.to(device) for name, x in self.tensors.items()}
        self.folder, self.device, self.count = latents.folder, torch.device(device), len(items)

    def __len__(self) -> int:
        return self.count


class ResidentBatches(torch.utils.data.Dataset):
    """Batch number s of a stage: this process's `stage.batch / processes` of its samples, drawn with
    replacement.

    What is drawn follows from (seed, stage, s, rank), on one kind of device. `speech`: clips without video
    that the tasks of the audio branch alone take in place of `clips`.

    Raises:
        UserError: a batch that the processes cannot share equally, or clips that lack what a task needs.
    """

    def __init__(
        self,
        clips: ResidentClips,
        speech: ResidentClips | None,
        stage: Stage,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ):
        self.clips, self.speech, self.stage, self.seed, self.rank = clips, speech or clips, stage, seed, rank
        self.size = len(shared_rows(stage, rank, processes))
        for task in filter(needs_voice, stage.tasks):
            source = self._source(task)
            if "voice" not in source.tensors:
                raise UserError(
                    f"{source.folder} has no reference voices; name the speakers of your clips, or take "
                    f"{task} out of the stage's tasks"
                )

    def __len__(self) -> int:
        return self.stage.steps

    def _source(self, mode: str) -> ResidentClips:
        return self.speech if mode in ALONE else self.clips

    def __getitem__(self, step: int) -> Batch:
        stage, size = self.stage, self.size
        mode, null, generator = draw_task(stage, self.seed, step)
        clips = self._source(mode)
        device, tensors = clips.device, clips.tensors
        latents, mels = tensors["video"].shape[2], tensors["audio"].shape[1]
        anew = conditioning.draw_span(mode, latents, mels, generator)

        generator = seeded(self.seed, stage.name, "samples", step, self.rank)
        rows = torch.randint(len(clips), (size,), generator=generator).to(device)
        time = draw_times(generator, size, stage.logit_normal, stage.shifts(mode)).to(device)
        drop = 1.0 if null else stage.task_text_drop.get(mode, stage.text_drop)
        dropped = (torch.rand(size, generator=generator) < drop).to(device)
        on_device = torch.Generator(device)
        on_device.manual_seed(int(torch.randint(2**62, (), generator=generator)))

        def clean(name: str) -> Tensor:
            return tensors[name][rows].float()

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=on_device, device=device)

        voiced = needs_voice(mode)
        says = "says_voiced" if voiced else "says"
        longest = max(tensors[name].shape[1] for name in (says, f"{says}_null"))

        def symbols(name: str) -> Tensor:
            missing = longest - tensors[name].shape[1]
            return torch.nn.functional.pad(tensors[name][rows], (0, missing), value=FILLER)

        video, audio = clean("video"), clean(audio_name(mode))
        return Batch(
            mode=mode,
            interaction=not null,
            anew=anew,
            video=video,
            audio=audio,
            mask=clean("mask"),
            video_noise=video if mode in ALONE else noise(video),
            audio_noise=noise(audio),
            time=time,
            speech=torch.where(dropped[:, None], symbols(f"{says}_null"), symbols(says)),
            speech_lengths=torch.where(
                dropped, tensors[f"{says}_null_length"][rows], tensors[f"{says}_length"][rows]
            ),
            captions=[""] * size,
            caption=tensors["caption"][torch.where(dropped, len(clips), rows)].float(),
            voice=clean("voice") if voiced else None,
            voice_lengths=tensors["voice_length"][rows] if voiced else None,
            said_before=tensors["said_before"][rows] if voiced else torch.zeros_like(rows),
        )


def draw_times(
    generator: torch.Generator, count: int, logit_normal: float, shifts: tuple[float, ...]
) -> Tensor:
    """`count` times in 0..1, each as `objective.draw_time` draws one."""
    shift = torch.tensor(shifts)[torch.randint(len(shifts), (count,), generator=generator)]
    choice, uniform = torch.rand(2, count, generator=generator)
    normal = torch.randn(count, generator=generator).sigmoid()
    time = torch.where(choice < logit_normal, normal, uniform)
    return shift * time / (1 + (shift - 1) * time)
