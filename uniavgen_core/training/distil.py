"""One pass for two, and fewer steps: a student learns where its teacher is led (docs/fewer-passes.md).

Guidance distillation (Meng et al. 2023, "On distillation of guided diffusion models"): the student's one
pass gives the velocity that the teacher's full and null pass give together (MA-CFG), for any scales in a
range, which it is told by an embedding added to that of the time; or, as a LoRA, for one pair of scales. With
`jump` above 1 a step of the student goes as far as so many of the teacher's (progressive distillation,
Salimans and Ho 2022): the target is the mean velocity of the teacher's steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..media.speech import FILLER, null_symbol_ids
from ..model.dit import DualBranchDiT
from ..model.inputs import ActiveParts, Conditioned, References, TextConditioning
from ..sampling.defaults import Guidance
from ..sampling.guidance import GuidedModel, mix
from ..sampling.sampler import schedule
from ..weights.checkpoint import load_model
from ..weights.convert import save_checkpoint
from . import cast_ops
from .data import Batches, Latents, needs_voice, seeded
from .initialise import silence_scales
from .loop import DTYPES, Preview, Run, fit, make_accelerator
from .lora import add_lora, save_lora
from .objective import ALONE, Batch, Objective, conditions, flow_loss, recompute_blocks
from .recipe import Recipe, Stage

EMBEDDINGS = ("guidance_embedding.", "guidance_embedding_audio.")


@dataclass(frozen=True)
class Lesson(Stage):
    """What is distilled: `guidance` gives interval and skipped layers of the teacher's null pass.

    `s_v`, `s_a`: ranges of the scales, drawn evenly, half of the samples at the guidance's own (equal ends:
    one value). `points`, `shift_of_points`: the schedule that the student will be sampled with, whose times
    it is trained at. `jump`: how many steps of the teacher go into one of them. `embedding_rate`:
    learning rate of the embedding of the scales.

    Raises:
        UserError: values that make no lesson.
    """

    null_share: float = 0.0
    text_drop: float = 0.0
    guidance: Guidance = field(default_factory=Guidance, kw_only=True)
    s_v: tuple[float, float] = field(default=(1.0, 5.0), kw_only=True)
    s_a: tuple[float, float] = field(default=(1.0, 4.0), kw_only=True)
    points: int = field(default=50, kw_only=True)
    shift_of_points: float = field(default=5.0, kw_only=True)
    jump: int = field(default=1, kw_only=True)
    embedding_rate: float | None = field(default=None, kw_only=True)

    def _faults(self) -> dict[str, bool]:
        alone = [task for task in self.tasks if task in ALONE]
        return super()._faults() | {
            f"task {alone[:1]} trains one branch alone and cannot be distilled": bool(alone),
            f"the ranges {self.s_v} and {self.s_a} must rise from 0 or more": any(
                not 0 <= low <= high for low, high in (self.s_v, self.s_a)
            ),
            f"a step of the student covers {self.jump} of the teacher's; use at least 1": self.jump < 1,
            f"the schedule has {self.points} points; use at least 1": self.points < 1,
        }

    def scale(self, name: str) -> float:
        """Learning rate of a parameter, in units of the stage's."""
        if self.embedding_rate is not None and any(part in name for part in EMBEDDINGS):
            return self.embedding_rate / self.learning_rate
        return 1.0

    def loss_weights(self, step: int) -> dict[str, float]:
        """Nothing: the loss has no weights."""
        return {}


@dataclass
class LessonBatch(Batch):
    """A batch with what distillation draws beside it.

    `edges` `[B, jump + 1]`: times in 0..1 of the teacher's steps, falling, the first is `time`; `scales`
    `[B, 2]`; the texts of the null pass as `speech` and `caption`; `null_interacts`: its kind.
    """

    edges: Tensor = field(default_factory=Tensor)
    scales: Tensor = field(default_factory=Tensor)
    null_speech: Tensor = field(default_factory=Tensor)
    null_speech_lengths: Tensor = field(default_factory=Tensor)
    null_caption: Tensor = field(default_factory=Tensor)
    null_interacts: bool = False


def edges_of(points: int, shift: float, jump: int) -> Tensor:
    """Times in 0..1 `[points, jump + 1]`: the student's step and the teacher's steps within it.

    The student's are those of `sampling.sampler.schedule`; the teacher's are even between them before the
    shift.
    """
    times = schedule(points, shift).double() / 1000
    even = times / (shift - (shift - 1) * times)
    shares = torch.linspace(0, 1, jump + 1, dtype=torch.float64)
    within = torch.lerp(even[:-1, None], even[1:, None], shares)
    found = shift * within / (1 + (shift - 1) * within)
    found[:, 0], found[:, -1] = times[:-1], times[1:]
    return found.float()


class LessonBatches(Batches):
    """`Batches` at the times of a schedule, with scales and null texts; all is drawn from the seed."""

    stage: Lesson

    def __getitem__(self, step: int) -> LessonBatch:
        lesson, batch = self.stage, super().__getitem__(step)
        edges = edges_of(lesson.points, lesson.shift_of_points, lesson.jump)
        generator = seeded(self.seed, lesson.name, "kind", step)
        places = torch.arange(lesson.points)
        kinds = torch.tensor([lesson.guidance.null_interacts(i, lesson.points) for i in places.tolist()])
        kind = kinds[int(torch.randint(lesson.points, (), generator=generator))]
        places = places[kinds == kind]  # a batch has one kind of null pass
        drawn, scales, nulls = [], [], []
        for row in self.rows:
            g = step * lesson.batch + row
            generator = seeded(self.seed, lesson.name, "lesson", g)
            drawn.append(places[int(torch.randint(len(places), (), generator=generator))])
            own, *at = torch.rand(3, generator=generator).tolist()
            ranges = (lesson.s_v, lesson.s_a)
            pair = [low + share * (high - low) for share, (low, high) in zip(at, ranges)]
            scales.append([lesson.guidance.s_v, lesson.guidance.s_a] if own < 0.5 else pair)
            item = self.latents[self.clip(g, batch.mode)]
            before = item.voice_transcript if needs_voice(batch.mode) else ""
            nulls.append(torch.tensor(null_symbol_ids(item.language, before)))
        chosen = torch.stack(drawn)
        if self.latents.null_caption is None:
            raise UserError(f"{self.latents.folder} has no caption states; prepare it with --text-encoder")
        values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        values |= {"time": edges[chosen, 0], "edges": edges[chosen]}
        return LessonBatch(
            **values,
            scales=torch.tensor(scales),
            null_speech=torch.nn.utils.rnn.pad_sequence(nulls, batch_first=True, padding_value=FILLER),
            null_speech_lengths=torch.tensor([len(ids) for ids in nulls]),
            null_caption=self.latents.null_caption.expand(len(nulls), -1, -1),
            null_interacts=bool(kind),
        )


class Distillation(Objective):
    """The student with its teacher: one forward from a `LessonBatch` to the loss.

    Args:
        student: a distilled model, or one with a LoRA, which is told nothing.
        teacher: kept as it is; where it is distilled itself, it is told the scales and has no null pass.
    """

    def __init__(
        self, student: DualBranchDiT, teacher: DualBranchDiT, guidance: Guidance, dtype: torch.dtype
    ):
        super().__init__(student, None, dtype)
        self.guidance = guidance
        self._teacher = [teacher.requires_grad_(False).eval()]  # in a list: no part of the student's state

    def forward(self, batch: LessonBatch) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scalars: "loss", its parts "video" and "audio", and the same of the teacher's full pass alone,
        "video_plain" and "audio_plain", which is what an untaught student has."""
        config = self.model.config
        task = conditions(batch, config.variant, config.patch)
        teacher = self._teacher[0].to(batch.time.device)
        attention = cast_ops.quick_attention(self.dtype, batch.time.device)
        with torch.no_grad():
            positive, negative = (
                TextConditioning(states, teacher.text_embedding(ids, lengths), lengths)
                for states, ids, lengths in (
                    (self.caption_states(batch), batch.speech, batch.speech_lengths),
                    (batch.null_caption, batch.null_speech, batch.null_speech_lengths),
                )
            )
            guided = GuidedModel(teacher, task, positive, negative, self.guidance, attention)
            t = batch.time
            video = torch.lerp(batch.video, batch.video_noise, t.view(-1, 1, 1, 1, 1))
            audio = torch.lerp(batch.audio, batch.audio_noise, t.view(-1, 1, 1))
            start = task.apply(video, audio)
            target, plain = self._led(guided, batch, start)
        text = TextConditioning(
            self.caption_states(batch),
            self.speech_features(batch.speech, batch.speech_lengths),
            batch.speech_lengths,
        )
        references = References(task.reference_image, task.reference_mel, task.reference_mel_lengths)
        velocity = self.model(
            start[0].to(self.dtype),
            start[1].to(self.dtype),
            1000 * t,
            text.to(self.dtype),
            references.to(self.dtype),
            Conditioned(task.conditioned_video, task.conditioned_audio),
            ActiveParts(v2a=task.v2a),
            attention=attention,
            audio_attention=attention,
            scales=batch.scales if config.distilled else None,
        )

        def apart(found: tuple[Tensor, Tensor]) -> list[Tensor]:
            known = (task.conditioned_video, task.conditioned_audio)
            zeros = (torch.zeros_like(x) for x in target)
            return [
                flow_loss(f, x, z, k, axis) for f, x, z, k, axis in zip(found, target, zeros, known, (2, 1))
            ]

        parts = dict(zip(("video", "audio"), apart((velocity.video, velocity.audio))))
        parts |= dict(zip(("video_plain", "audio_plain"), apart(plain)))
        return {"loss": parts["video"] + parts["audio"], **parts}

    def _led(
        self, guided: GuidedModel, batch: LessonBatch, start: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The mean guided velocity of the teacher's steps, and its first full pass alone."""
        velocities, plain = [], start
        video, audio = start
        shapes = ((-1, 1, 1, 1, 1), (-1, 1, 1))
        s_v, s_a = (scale.view(shape) for scale, shape in zip(batch.scales.T, shapes))
        distilled = guided.model.config.distilled
        steps = batch.edges[:, :-1] - batch.edges[:, 1:]  # [B, jump]
        for now, dt in zip(batch.edges.T, steps.T):
            full = guided.full(video, audio, 1000 * now, batch.scales if distilled else None)
            u = full.video, full.audio
            if not velocities:
                plain = u
            if not distilled:
                null = guided.null(video, audio, 1000 * now, batch.null_interacts)
                u = mix(null.video, full.video, s_v), mix(null.audio, full.audio, s_a)
            velocities.append(u)
            moved = (x - v * dt.view(shape) for x, v, shape in zip((video, audio), u, shapes))
            video, audio = guided.task.apply(*moved)
        if len(velocities) == 1:
            return velocities[0], plain
        shares = steps / steps.sum(1, keepdim=True)
        video, audio = (
            torch.stack([v * share.view(shape) for v, share in zip(stream, shares.T)]).sum(0)
            for stream, shape in zip(zip(*velocities), shapes)
        )
        return (video, audio), plain


def new_student(teacher: DualBranchDiT, seed: int = 0) -> DualBranchDiT:
    """A distilled model with the teacher's weights; the embedding of the scales begins at zero."""
    student = DualBranchDiT(replace(teacher.config, distilled=True), cast_ops)
    student.load_state_dict(teacher.state_dict(), strict=False)
    if not teacher.config.distilled:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for embedding in (student.guidance_embedding, student.guidance_embedding_audio):
                cast(nn.Linear, embedding[0]).reset_parameters()
        silence_scales(student)
    return student


def train_distil(
    base: str | Path,
    latents: Latents,
    out: str | Path,
    lesson: Lesson,
    rank: int | None = None,
    seed: int = 0,
    dtype: str = "fp32",
    recompute: bool = False,
    run: Run | None = None,
    preview: Preview | None = None,
) -> Path:
    """Distil a checkpoint into a model of its own, or with `rank` into a LoRA; the written file.

    The model is `model.safetensors` in the folder `out` and takes the scales as before, in one pass. The
    LoRA is `lora.safetensors` and holds for one pair of scales: it is sampled with both scales at 1. A run
    that was stopped goes on from its last checkpoint.

    Raises:
        UserError: a LoRA for a range of scales or of a distilled model; as `fit`.
    """
    accelerator, out = make_accelerator(), Path(out)
    teacher = load_model(base, dtype=DTYPES[dtype])
    guidance = lesson.guidance.for_layers(teacher.config.layers)
    lesson = replace(lesson, guidance=guidance)
    if rank is None:
        student = new_student(load_model(base, dtype=torch.float32), seed)
    else:
        own = (guidance.s_v, guidance.s_v), (guidance.s_a, guidance.s_a)
        if teacher.config.distilled or (lesson.s_v, lesson.s_a) != own:
            raise UserError(
                "a LoRA cannot be told the scales: give one value for --s-v and --s-a and a model that is "
                "not distilled, or leave out --rank"
            )
        student = add_lora(load_model(base, dtype=DTYPES[dtype]), rank, rank, seed=seed)
    if recompute:
        recompute_blocks(student)
    average = 1 - 10 / max(20, lesson.steps)
    recipe = Recipe(student.config, (lesson,), seed, ema=average, weight_decay=0.0)
    objective = Distillation(student, teacher, guidance, DTYPES[dtype])
    batches = LessonBatches(latents, lesson, seed, accelerator.process_index, accelerator.num_processes)
    state = fit(
        accelerator,
        objective,
        lesson,
        batches,
        out,
        recipe,
        run or Run(),
        preview,
        trained_only=rank is not None,
    )
    found = {name.removeprefix("model."): value for name, value in state.items()}
    file = out / ("model.safetensors" if rank is None else "lora.safetensors")
    if accelerator.is_main_process:
        if rank is None:
            save_checkpoint(file, found.items(), student.config, "fp32")
        else:
            save_lora(found, file, rank)
    accelerator.wait_for_everyone()
    return file
