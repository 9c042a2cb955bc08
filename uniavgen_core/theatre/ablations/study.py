"""Trains and measures the arms; a study that was stopped goes on where it was.

The folder holds `about.json`, `kept/` with what is computed once, and for each seed and arm a folder with the
stage's log and `clips.jsonl`, one line of measures for each held-out clip. The interaction alone learns: all
arms of a seed have the same two branches, which stay as they are, and a new interaction (equal where its
shapes are), and see the same clips, times and noise in one order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ...atomic import write_text
from ...errors import UserError
from ...model.dit import DualBranchDiT
from ...pipeline import Pipeline
from ...sampling.defaults import Guidance
from ...training import cast_ops
from ...training.data import Latents
from ...training.initialise import initialise
from ...training.loop import Run, fit, make_accelerator
from ...training.objective import Batch
from ...training.recipe import Recipe
from ...weights.write import save_tensors
from ..clips import Theatre
from ..evaluation.metrics import mask_iou, measure
from ..evaluation.recogniser import Recogniser, word_errors, words
from ..evaluation.runs import fingerprint, read_lines, sampler
from ..evaluation.sampling import Example, face_masks, make, velocity_at
from .arms import ARMS, TWO_WAYS, Arm
from .frozen import ArmBatches, FrozenVideoDiT, InteractionObjective, video_tokens

MOUTH_TIME, AUDIO_TIME = 0.9, 0.99
"""Times at which losses are read: near noise, where the other branch decides."""


@dataclass
class Study:
    """All arms, in one folder. `clips` held-out clips give losses and masks, `sampled` of them are generated.

    `ways`: the directions that interaction and face mask are trained and measured in, of `TWO_WAYS`.
    `pipeline` holds the start; its VAE, caption encoder and vocoder serve all arms. `steps` of `batch` clips
    for each training; `sampling_steps` without guidance, or with it for the arms of guidance.

    Raises:
        UserError: the folder holds another study; numbers below 1; clips that do not fit the model.
    """

    pipeline: Pipeline
    latents: Latents
    recogniser: Recogniser
    theatre: Theatre
    out: Path
    steps: int = 80
    batch: int = 4
    seeds: int = 1
    clips: int = 24
    sampled: int = 8
    sampling_steps: int = 8
    save_every: int = 20
    ways: tuple[str, ...] = tuple(TWO_WAYS)
    on_arm: Callable[[str, str], object] = lambda arm, what: None
    _examples: list[Example] = field(default_factory=list)
    _known: Tensor | None = None

    def __post_init__(self):
        for name in ("steps", "batch", "seeds", "sampling_steps", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; use at least 1")
        if not 0 <= self.sampled <= self.clips or self.clips < 2:
            raise UserError(
                f"--clips is {self.clips} and --sampled {self.sampled}; use 2 or more and sample 0 to all"
            )
        if not self.ways or not set(self.ways) <= TWO_WAYS.keys():
            raise UserError(f"--ways is {','.join(self.ways)!r}; choose from {', '.join(TWO_WAYS)}")
        about = {
            "start": fingerprint(self.pipeline.model.get()),
            "latents": len(self.latents),
            "theatre": [self.theatre.seed, self.theatre.split, self.theatre.frames, *self.theatre.size],
            "steps": self.steps,
            "batch": self.batch,
            "clips": self.clips,
            "sampled": self.sampled,
            "sampling_steps": self.sampling_steps,
            "ways": list(self.ways),
        }
        file = self.out / "about.json"
        if file.exists() and json.loads(file.read_text()) != about:
            raise UserError(f"{self.out} holds a study with other settings; choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(about))

    def run(self, names: tuple[str, ...] = tuple(ARMS)) -> None:
        """Train and measure what is missing of these arms, one seed after the other."""
        for seed in range(self.seeds):
            for name in names:
                folder = self.out / f"seed-{seed}" / name
                if (folder / "clips.jsonl").exists():
                    continue
                self.on_arm(name, f"seed {seed}")
                arm = self._arm(name)
                if arm.guidance is not None:
                    rows = self._guided(arm.guidance, seed)
                else:
                    rows = self._measured(self._trained(arm, seed, folder), arm, seed)
                folder.mkdir(parents=True, exist_ok=True)
                lines = [json.dumps(row) for row in (name_row(name, seed), *rows)]
                write_text(folder / "clips.jsonl", "".join(line + "\n" for line in lines))
                (folder / "checkpoint.pt").unlink(missing_ok=True)

    def _arm(self, name: str) -> Arm:
        arm = ARMS[name]
        return arm if arm.group == "tasks" else replace(arm, tasks=dict.fromkeys(self.ways, 1.0))

    def _trained(self, arm: Arm, seed: int, folder: Path) -> DualBranchDiT:
        start = self.pipeline.model.get()
        model = new_interaction(start, arm, seed)
        if not arm.interaction:
            return model.eval()
        if self._known is None:
            kept = self._kept("video_tokens", lambda: {"known": video_tokens(start, self.latents)})
            self._known = kept["known"]
        stage = arm.stage(self.steps, self.batch)
        recipe = Recipe(model.config, (stage,), seed=seed, ema=0.9)
        run = Run(save_every=self.save_every)
        accelerator = make_accelerator()
        objective = InteractionObjective(model, self._known)
        batches = ArmBatches(self.latents, stage, seed)
        state = fit(accelerator, objective, stage, batches, folder, recipe, run)
        accelerator.free_memory()
        model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        return model.eval()

    def _measured(self, model: DualBranchDiT, arm: Arm, seed: int) -> list[dict]:
        given = self.pipeline
        pipeline = Pipeline.of(
            model, given.vae.get(), given.text_encoder.get(), given.vocoder.get(), defaults=given.defaults
        )
        rows = [{"index": example.index} for example in self.examples]
        for part in self._parts(rows):
            examples = [self.examples[row["index"]] for row in part]
            for row, values in zip(part, losses(pipeline, examples, seed, arm)):
                row |= values
            if arm.interaction:
                for row, (mask, target) in zip(part, face_masks(pipeline, examples, seed)):
                    row["mask_iou"] = mask_iou(mask, target)
        for mode in ("joint",) if arm.group == "tasks" else arm.tasks:
            self._sample(
                pipeline, rows[: self.sampled], mode, Guidance.none(), self.sampling_steps, seed, arm
            )
        return rows

    def _guided(self, variant: str, seed: int) -> list[dict]:
        guidance, steps = sampler(self.pipeline.defaults.guidance, self.sampling_steps, variant)
        rows = [{"index": example.index} for example in self.examples[: self.sampled]]
        self._sample(self.pipeline, rows, "joint", guidance, steps, seed)
        return rows

    def _sample(
        self,
        pipeline: Pipeline,
        rows: list[dict],
        mode: str,
        guidance: Guidance,
        steps: int,
        seed: int,
        arm: Arm | None = None,
    ) -> None:
        """Add to the rows what is measured on their clips, made again."""
        for part in self._parts(rows):
            examples = [self.examples[row["index"]] for row in part]
            interaction = arm is None or arm.interaction
            shift = self.pipeline.defaults.shift
            made = make(pipeline, examples, mode, guidance, steps, shift, seed, interaction)
            for row, example, clip in zip(part, examples, made):
                key = mode.replace("-", "_")
                row[f"sync_{key}"] = measure(clip.frames, clip.waveform)["sync"]
                if mode == "audio-driven":
                    row["drift"] = background_drift(clip.frames, example.clip.face_mask)
                if mode == "joint":
                    heard = self.recogniser.transcribe(torch.from_numpy(clip.waveform)[None])[0]
                    said = example.clip.transcript
                    row["word_error"] = word_errors(said, heard) / max(1, len(words(said)))

    @property
    def examples(self) -> list[Example]:
        """The held-out clips, the same for all arms."""
        while len(self._examples) < self.clips:
            self._examples.append(self._example(len(self._examples)))
        return self._examples

    def _example(self, index: int) -> Example:
        def latents() -> dict[str, Tensor]:
            return Example.make(self.theatre, index, self.pipeline.vae.get()).latents

        given = self.theatre.reference(index, self.theatre.other_voice(index))
        return Example(index, self.theatre.clip(index), self._kept(f"clip-{index}", latents), given)

    def _kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that a study that goes on reads again."""
        file = self.out / "kept" / f"{name}.safetensors"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            save_tensors(make(), file)
        return load_file(file)

    @staticmethod
    def _parts(rows: list[dict], size: int = 8) -> Iterator[list[dict]]:
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def name_row(name: str, seed: int) -> dict:
    """The first line of an arm's file."""
    return {"arm": name, "seed": seed}


def read_study(out: Path) -> dict[str, dict[int, list[dict]]]:
    """Rows of the held-out clips by arm and seed, of all that has been measured in a folder."""
    found: dict[str, dict[int, list[dict]]] = {}
    for file in sorted(out.glob("seed-*/*/clips.jsonl")):
        about, rows = read_lines(file)
        if about is not None:
            found.setdefault(about["arm"], {})[about["seed"]] = rows
    return {name: found[name] for name in ARMS if name in found}


def new_interaction(start: DualBranchDiT, arm: Arm, seed: int) -> FrozenVideoDiT:
    """The start's two branches with the arm's interaction, new and without effect at first.

    What an interaction shares in name and shape with that of the paper's variant begins equal in all arms.
    """

    model = FrozenVideoDiT(replace(start.config, variant=arm.variant), cast_ops)
    initialise(model, seed)
    state = initialise(DualBranchDiT(replace(start.config, variant="paper")), seed).state_dict()
    state |= {k: v for k, v in start.state_dict().items() if not k.startswith(("a2v_blocks.", "v2a_blocks."))}
    own = model.state_dict()
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    return model


def losses(pipeline: Pipeline, examples: list[Example], seed: int, arm: Arm) -> list[dict[str, float]]:
    """Of each true clip: the squared error of the velocity where the other branch decides.

    "mouth_loss": lower half of the face, audio-driven; "audio_loss": audio in dubbing; "joint_loss", of
    the group of tasks: video and audio in joint, their sum.
    """

    def error(mode: str, time: float) -> tuple[Batch, Tensor, Tensor]:
        batch, velocity = velocity_at(pipeline, examples, mode, time, seed, arm.interaction)
        video = (velocity.video - (batch.video_noise - batch.video)).square().mean(1)  # [B, T, H, W]
        audio = (velocity.audio - (batch.audio_noise - batch.audio)).square().mean((1, 2))
        return batch, video, audio

    found = {}
    every = arm.group == "tasks"
    if every or "audio-driven" in arm.tasks:
        batch, video, _ = error("audio-driven", MOUTH_TIME)
        weight = mouth(batch.mask)
        found["mouth_loss"] = (video * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1e-6)
    if every or "dubbing" in arm.tasks:
        found["audio_loss"] = error("dubbing", AUDIO_TIME)[2]
    if every:
        _, video, audio = error("joint", MOUTH_TIME)
        found["joint_loss"] = video[:, 1:].mean((1, 2, 3)) + audio
    return [dict(zip(found, row)) for row in torch.stack(list(found.values()), 1).tolist()]


def mouth(mask: Tensor) -> Tensor:
    """Shares of face `[B, T, H, W]` -> the same in the lower half of each face, 0 in the first frame."""
    rows = torch.arange(mask.shape[2], device=mask.device).view(1, 1, -1, 1).float()
    middle = (mask * rows).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp(min=1e-6)
    lower = mask * (rows > middle)
    lower[:, 0] = 0
    return lower


def background_drift(frames: np.ndarray, face_mask: np.ndarray) -> float:
    """Mean absolute difference (0 to 255) of each frame uint8 `[F, H, W, 3]` to the first one, where no frame
    of the true clip shows a face (`[F, H, W]`)."""
    outside = ~face_mask.any(0)
    return float(np.abs(frames[1:].astype(np.int16) - frames[:1])[:, outside].mean())
