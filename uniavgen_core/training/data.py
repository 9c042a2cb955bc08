"""Clips as latents on disk, and the batches of a training run (docs/model.md sections 1, 6 and 8).

A folder of latents holds `latents.json` and safetensors shards of 64 clips, written once, each atomically,
and memory-mapped in training. Everything random about sample number g of a run follows from (seed, g), and
about step s from (seed, s): the same samples and the same noise, however many processes share a batch and
wherever a run is taken up again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import conditioning
from ..atomic import write_text
from ..errors import UserError
from ..media.files import to_float
from ..media.speech import FILLER, null_symbol_ids, symbol_ids
from ..media.vae import SPATIAL, TEMPORAL
from ..weights.write import save_tensors
from .objective import ALONE, VOICE_ALONE, Batch, draw_time
from .recipe import Schedule, Stage

PER_SHARD = 64
MANIFEST = "latents.json"

EncodeVideo = Callable[[Tensor], Tensor]
"""`[1, 3, F, H, W]` in -1..1 -> latent `[1, C, T, H/16, W/16]`, as `WanVAE.encode`."""
EncodeCaption = Callable[[list[str]], Tensor]
"""Captions -> states `[B, M, dim]`, as `CaptionEncoder`."""


@dataclass
class Sample:
    """One clip: tensors as in `Batch` without the batch axis, and its texts.

    `audio_peak` is the latent of the audio with its peak at 0.999146, which is what audio-driven is given.
    """

    video: Tensor
    audio: Tensor
    audio_peak: Tensor
    mask: Tensor
    transcript: str
    caption: str
    language: str
    voice: Tensor | None = None
    voice_transcript: str = ""
    caption_states: Tensor | None = None

    TENSORS = ("video", "audio", "audio_peak", "mask", "voice", "caption_states")
    TEXTS = ("transcript", "caption", "language", "voice_transcript")


def seeded(*key: object) -> torch.Generator:
    """A generator that depends on nothing but `key`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def shared_rows(stage: Schedule, rank: int, processes: int) -> range:
    """Which samples of each of the stage's batches are process number `rank`'s.

    Raises:
        UserError: a batch that the processes cannot share equally.
    """
    if stage.batch % processes:
        raise UserError(
            f"stage {stage.name!r} has batches of {stage.batch}; {processes} processes "
            "cannot share that equally: change the batch or the number of processes"
        )
    local = stage.batch // processes
    return range(rank * local, (rank + 1) * local)


def encode_clip(
    frames: np.ndarray | Tensor, waveform: Tensor, face_mask: np.ndarray | Tensor, encode: EncodeVideo
) -> dict[str, Tensor]:
    """uint8 frames `[F, H, W, 3]`, audio `[n]` at 24 kHz, bool mask `[F, H, W]` -> latents of a `Sample`."""
    frames, face_mask = torch.as_tensor(frames), torch.as_tensor(face_mask)
    mels = conditioning.mel_frames(len(frames))
    return {
        "video": encode(to_float(frames)[None])[0].cpu(),
        "audio": conditioning.audio_latent(waveform, mels),
        "audio_peak": conditioning.audio_latent(waveform, mels, normalised=True),
        "mask": cell_mask(face_mask),
    }


def cell_mask(face_mask: Tensor) -> Tensor:
    """bool `[F, H, W]` -> `[T, H/16, W/16]`: the face share of each latent cell (4 frames; the first: 1)."""
    cells = F.avg_pool2d(face_mask.float()[:, None], SPATIAL)[:, 0]
    return torch.cat((cells[:1], cells[1:].unflatten(0, (-1, TEMPORAL)).mean(1)))


def prepare(
    folder: str | Path,
    count: int,
    sample: Callable[[int], Sample],
    about: dict,
    encode_caption: EncodeCaption | None = None,
    part: tuple[int, int] = (0, 1),
    on_clip: Callable[[int, int], object] = lambda done, count: None,
) -> Latents:
    """Write the shards of clips 0..count-1 that are missing.

    `about` (JSON-ready) says what the clips are; `part` (i, n) makes this call write every n-th shard only,
    so that n processes can share the work. With `encode_caption` the caption states are stored too.

    Raises:
        UserError: the folder holds other clips.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"about": about, "clips": count, "per_shard": PER_SHARD}
    file = folder / MANIFEST
    if file.exists() and json.loads(file.read_text())["about"] != about:
        raise UserError(f"{folder} holds other clips; choose another folder")
    if encode_caption is not None:
        save_tensors({"states": encode_caption([""])[0].half()}, folder / "null_caption.safetensors")
    for shard in range(part[0], -(-count // PER_SHARD), part[1]):
        indices = range(shard * PER_SHARD, min(count, (shard + 1) * PER_SHARD))
        path = _shard(folder, shard, len(indices))
        if path.exists():
            continue
        tensors, texts = {}, []
        for i in indices:
            item = sample(i)
            if encode_caption is not None:
                item.caption_states = encode_caption([item.caption])[0]
            for name in Sample.TENSORS:
                value = getattr(item, name)
                if value is not None:
                    tensors[f"{len(texts)}.{name}"] = value.half()
            texts.append({name: getattr(item, name) for name in Sample.TEXTS})
            on_clip(i + 1, count)
        save_tensors(tensors, path, {"clips": json.dumps(texts)})
    write_text(file, json.dumps(manifest))
    return Latents(folder)


def _shard(folder: Path, number: int, clips: int) -> Path:
    return folder / f"{number:05d}-{clips:02d}.safetensors"


class Latents:
    """A folder of prepared clips, all of one size and length.

    Raises:
        UserError: nothing prepared there, or shards missing.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        file = self.folder / MANIFEST
        if not file.is_file():
            raise UserError(f"{file} is missing; prepare the clips with `uniavgen train theatre` or `videos`")
        manifest = json.loads(file.read_text())
        self.count, self.about = manifest["clips"], manifest["about"]
        missing = [path.name for path in self._paths() if not path.exists()]
        if missing:
            raise UserError(f"{self.folder}: {len(missing)} shards are missing ({missing[0]}); prepare again")
        self._open: dict[Path, tuple] = {}
        null = self.folder / "null_caption.safetensors"
        self.null_caption = safe_open(null, "pt").get_tensor("states").float() if null.exists() else None

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict:  # a data loader's worker opens the files itself
        return {**self.__dict__, "_open": {}}

    def _paths(self) -> list[Path]:
        starts = range(0, self.count, PER_SHARD)
        return [_shard(self.folder, i, min(PER_SHARD, self.count - start)) for i, start in enumerate(starts)]

    def __getitem__(self, index: int) -> Sample:
        shard, place = divmod(index, PER_SHARD)
        path = _shard(self.folder, shard, min(PER_SHARD, self.count - shard * PER_SHARD))
        if path not in self._open:
            try:
                file = safe_open(path, "pt")
            except SafetensorError as error:
                raise UserError(f"{path} is damaged; delete it and prepare again") from error
            self._open[path] = (file, set(file.keys()), json.loads(file.metadata()["clips"]))
        file, names, texts = self._open[path]
        tensors = {
            name: file.get_tensor(f"{place}.{name}").float()
            for name in Sample.TENSORS
            if f"{place}.{name}" in names
        }
        return Sample(**tensors, **texts[place])


@lru_cache(maxsize=4)
def _order(seed: int, stage: str, epoch: int, count: int) -> list[int]:
    return torch.randperm(count, generator=seeded(seed, stage, "order", epoch)).tolist()


def draw_task(stage: Stage, seed: int, step: int) -> tuple[str, bool, torch.Generator]:
    """The task of a step, whether it trains the null pass, and the generator to draw the span with."""
    generator = seeded(seed, stage.name, "step", step)
    chances = torch.tensor(list(stage.tasks.values()), dtype=torch.float64)
    mode = list(stage.tasks)[int(torch.multinomial(chances, 1, generator=generator))]
    return mode, bool(torch.rand((), generator=generator) < stage.null_share), generator


@dataclass
class Batches(torch.utils.data.Dataset):
    """Batch number s of a stage: this process's `stage.batch / processes` of its samples.

    `speech`: clips without video that the tasks of the audio branch alone take in place of `latents`.

    Raises:
        UserError: a batch that the processes cannot share equally, or clips that lack what a task needs.
    """

    latents: Latents
    stage: Stage
    seed: int
    rank: int = 0
    processes: int = 1
    with_states: bool = True  # captions come as stored states, not as texts
    speech: Latents | None = None

    def __post_init__(self):
        self.rows = shared_rows(self.stage, self.rank, self.processes)
        for clips in {self.clips_of(task) for task in filter(needs_voice, self.stage.tasks)}:
            if clips[0].voice is not None:
                continue
            raise UserError(
                f"{clips.folder} has no reference voices; name the speakers of your clips, or take "
                "reference-voice out of the stage's tasks"
            )
        if self.with_states and self.latents.null_caption is None:
            raise UserError(
                f"{self.latents.folder} was prepared without a text encoder; prepare it again with "
                "--text-encoder, or train the caption encoder with the model"
            )

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        stage = self.stage
        mode, null, generator = draw_task(stage, self.seed, step)
        first = self.clips_of(mode)[0]
        anew = conditioning.draw_span(mode, first.video.shape[1], first.audio.shape[0], generator)
        rows = [self._row(step * stage.batch + row, mode, null) for row in self.rows]
        ids = [row.pop("ids") for row in rows]
        captions = [row.pop("caption") for row in rows]
        states = [row.pop("states") for row in rows]
        voices = [row.pop("voice") for row in rows]
        with_voice = needs_voice(mode)
        return Batch(
            mode=mode,
            interaction=not null,
            anew=anew,
            **{name: torch.stack([row[name] for row in rows]) for name in rows[0]},
            speech=torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=FILLER),
            speech_lengths=torch.tensor([len(x) for x in ids]),
            captions=captions,
            caption=torch.nn.utils.rnn.pad_sequence(states, batch_first=True) if self.with_states else None,
            voice=torch.nn.utils.rnn.pad_sequence(voices, batch_first=True) if with_voice else None,
            voice_lengths=torch.tensor([len(x) for x in voices]) if with_voice else None,
        )

    def clips_of(self, mode: str) -> Latents:
        """The clips that a mode is trained on."""
        return self.speech if self.speech is not None and mode in ALONE else self.latents

    def clip(self, g: int, mode: str) -> int:
        """The number of the clip of sample number g of the run: all clips in a new order, again and again."""
        count = len(self.clips_of(mode))
        return _order(self.seed, self.stage.name, g // count, count)[g % count]

    def _row(self, g: int, mode: str, null: bool) -> dict:
        """Sample number g of the run, with its time and noise."""
        item = self.clips_of(mode)[self.clip(g, mode)]
        generator = seeded(self.seed, self.stage.name, "sample", g)
        time = draw_time(generator, self.stage.logit_normal, self.stage.shifts(mode))
        text_drop = self.stage.task_text_drop.get(mode, self.stage.text_drop)
        dropped = null or bool(torch.rand((), generator=generator) < text_drop)
        said_before = item.voice_transcript if needs_voice(mode) else ""
        null_ids = null_symbol_ids(item.language, said_before)
        ids = null_ids if dropped else symbol_ids(item.transcript, item.language, said_before)
        audio = getattr(item, audio_name(mode))
        return {
            "video": item.video,
            "audio": audio,
            "mask": item.mask,
            "audio_noise": torch.randn(audio.shape, generator=generator),
            "video_noise": item.video
            if mode in ALONE
            else torch.randn(item.video.shape, generator=generator),
            "time": time,
            "ids": torch.tensor(ids),
            "said_before": torch.tensor(sum(i != FILLER for i in null_ids) if said_before else 0),
            "caption": "" if dropped else item.caption,
            "states": self.latents.null_caption
            if dropped or item.caption_states is None
            else item.caption_states,
            "voice": item.voice,
        }


def needs_voice(mode: str) -> bool:
    """Whether a mode, or the audio branch alone, is trained with a reference voice."""
    return mode == VOICE_ALONE or (mode not in ALONE and "voice" in conditioning.MODES[mode].needs)


def audio_name(mode: str) -> str:
    """Which audio latent of a `Sample` a mode is trained on."""
    return "audio_peak" if mode not in ALONE and conditioning.MODES[mode].normalised else "audio"


def one_clip(latents: Latents, index: int, mode: str) -> Batch:
    """A clip as a batch of one, clean: what sampling it again in a task starts from."""
    item = latents[index]
    audio = getattr(item, audio_name(mode))
    with_voice = needs_voice(mode)
    voice = item.voice if with_voice else None
    ids = symbol_ids(item.transcript, item.language, item.voice_transcript if with_voice else "")
    return Batch(
        mode=mode,
        interaction=True,
        anew=conditioning.example_span(mode, item.video.shape[1], item.audio.shape[0]),
        video=item.video[None],
        audio=audio[None],
        mask=item.mask[None],
        video_noise=torch.zeros_like(item.video)[None],
        audio_noise=torch.zeros_like(audio)[None],
        time=torch.zeros(1),
        speech=torch.tensor([ids]),
        speech_lengths=torch.tensor([len(ids)]),
        captions=[item.caption],
        caption=None if item.caption_states is None else item.caption_states[None],
        voice=None if voice is None else voice[None],
        voice_lengths=None if voice is None else torch.tensor([len(voice)]),
    )
