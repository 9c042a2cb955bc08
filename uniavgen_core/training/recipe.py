"""What is trained for how long (docs/model.md section 8)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..model.config import Config
from .objective import ALONE, AUDIO_ALONE, MODES

TASK_MIX: dict[str, float] = {
    "joint": 4.0,
    "reference-voice": 1.0,
    "continuation": 1.0,
    "dubbing": 2.0,
    "audio-driven": 2.0,
    "edit": 0.0,
}
"""How often each mode is trained: the paper's mix (docs/model.md section 8), which has no edit."""
GROUPS = ("video", "audio", "a2v", "v2a")
"""The two branches with their embeddings and heads, and the two directions of the interaction."""


_AUDIO = (
    "audio_embedding.",
    "audio_padding",
    "text_embedding.",
    "text_proj.",
    "time_embedding_audio.",
    "time_projection_audio.",
    "guidance_embedding_audio.",
    "audio_blocks.",
    "head_audio.",
)


def group_of(name: str) -> str:
    """Which of `GROUPS` a parameter of a model, or of an objective with one, belongs to."""
    name = name.removeprefix("model.")
    if name.startswith(("a2v_blocks.", "v2a_blocks.")):
        return name[:3]
    return "audio" if name.startswith(_AUDIO) else "video"


@dataclass(frozen=True)
class Schedule:
    """`batch` samples a step over all processes; `warmup` steps of rising learning rate, then constant; over
    the last `decay` (a share of the steps) it falls to 0.

    Raises:
        UserError: values that make no schedule.
    """

    name: str
    steps: int
    batch: int
    learning_rate: float
    warmup: int = field(default=100, kw_only=True)
    decay: float = field(default=0.0, kw_only=True)

    def __post_init__(self):
        for fault, present in self._faults().items():
            if present:
                raise UserError(f"stage {self.name!r}: {fault}")

    def _faults(self) -> dict[str, bool]:
        return {
            f"steps {self.steps} and batch {self.batch} must be at least 1": min(self.steps, self.batch) < 1,
            f"learning_rate is {self.learning_rate}, it must be positive": not self.learning_rate > 0,
            f"decay is {self.decay}, it lies in 0..1": not 0 <= self.decay <= 1,
        }

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        falling = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.learning_rate * min(rising, falling)

    def scale(self, name: str) -> float:
        """Learning rate of a parameter, in units of the stage's."""
        return 1.0

    def muon_scale(self, name: str) -> float | None:
        """Learning rate of a matrix that Muon trains, in units of the stage's; None: AdamW trains it."""
        return None

    def loss_weights(self, step: int) -> dict[str, float]:
        """What the objective is told at a step beside the batch."""
        return {}


@dataclass(frozen=True)
class Stage(Schedule):
    """A schedule of tasks.

    `tasks`: a step's task is drawn with these weights, "audio" and "audio-voice" are the audio branch
    alone, "edit" is a span of a clip with everything before and after it known.
    `mask_weight`: lambda_m at the first and the last step. `null_share` of the steps train the null pass
    (no text, no interaction), `text_drop` of the other samples lose their texts. `logit_normal`: the share
    of times drawn logit-normal, the rest is uniform; a `shift` above 1 moves all times towards noise, where
    the texts and the other branch decide. `task_shifts`: other shifts of some tasks, each drawn as often as
    the others; `task_text_drop`: other shares of dropped texts. `interaction_rate`: learning rate of the
    interaction, face masks included, where it is not `learning_rate`; `audio_rate`: likewise of the audio
    branch. `muon_rate`: the matrices of the video blocks are trained by Muon at this rate, its updates as
    large as AdamW's. `guide`: weight of the guided attention to the speech text. `seam`: weight of frames
    next to a known one in continuations and edits. `groups`: the parameters that are trained, of `GROUPS`;
    the others are frozen. A caption encoder belongs to "video".

    Raises:
        UserError: values that make no stage.
    """

    tasks: dict[str, float]
    mask_weight: tuple[float, float] = (0.1, 0.0)
    null_share: float = 0.1
    text_drop: float = 0.05
    logit_normal: float = 0.5
    shift: float = 1.0
    guide: float = 0.0
    task_shifts: dict[str, tuple[float, ...]] = field(default_factory=dict)
    task_text_drop: dict[str, float] = field(default_factory=dict)
    interaction_rate: float | None = None
    audio_rate: float | None = None
    muon_rate: float | None = None
    seam: float = 1.0
    groups: tuple[str, ...] = GROUPS

    def _faults(self) -> dict[str, bool]:
        named = (*self.tasks, *self.task_shifts, *self.task_text_drop)
        unknown = [task for task in named if task not in MODES]
        shifts = (self.shift, *(shift for row in self.task_shifts.values() for shift in row))
        return super()._faults() | {
            f"task {unknown[:1]} is unknown, choose from {', '.join(MODES)}": bool(unknown),
            "tasks need weights of 0 or more, and one above 0": not self.tasks
            or min(self.tasks.values()) < 0
            or max(self.tasks.values()) == 0,
            f"guide is {self.guide} and seam {self.seam}; they are 0 or more": min(self.guide, self.seam) < 0,
            f"shift is {min(shifts)}, it must be positive": not min(shifts) > 0,
            f"groups are {list(self.groups)}, choose from {', '.join(GROUPS)}": not self.groups
            or not set(self.groups) <= set(GROUPS),
            "a stage of the audio branch alone needs the group audio": self.audio_alone
            and "audio" not in self.groups,
            "task_shifts needs at least one shift for each task": not all(self.task_shifts.values()),
            **{
                f"{name} is {rate}, it must be positive": rate is not None and not rate > 0
                for name, rate in (
                    ("interaction_rate", self.interaction_rate),
                    ("audio_rate", self.audio_rate),
                    ("muon_rate", self.muon_rate),
                )
            },
            "null_share, text_drop and logit_normal lie in 0..1": any(
                not 0 <= x <= 1
                for x in (
                    self.null_share,
                    self.text_drop,
                    self.logit_normal,
                    *self.task_text_drop.values(),
                )
            ),
        }

    @property
    def audio_alone(self) -> bool:
        return set(self.tasks) <= set(ALONE)

    def trains(self, name: str) -> bool:
        """Whether a parameter is trained; a stage of the audio branch alone trains nothing else."""
        group = group_of(name)
        return group in self.groups and (group == "audio" or not self.audio_alone)

    def shifts(self, task: str) -> tuple[float, ...]:
        """Time shifts of a task, each as likely as the others."""
        return self.task_shifts.get(task, (self.shift,))

    def scale(self, name: str) -> float:
        """Learning rate of a parameter, in units of the stage's."""
        rates = {"audio": self.audio_rate, "a2v": self.interaction_rate, "v2a": self.interaction_rate}
        return (rates.get(group_of(name)) or self.learning_rate) / self.learning_rate

    def muon_scale(self, name: str) -> float | None:
        """As in `Schedule`: of the video blocks."""
        if self.muon_rate is None or not name.removeprefix("model.").startswith("blocks."):
            return None
        return self.muon_rate / self.learning_rate

    def loss_weights(self, step: int) -> dict[str, float]:
        """lambda_m and lambda_g, the weights of the mask loss and of the guided attention."""
        first, last = self.mask_weight
        return {"lambda_m": first + (last - first) * step / max(1, self.steps - 1), "lambda_g": self.guide}


@dataclass(frozen=True)
class Recipe:
    """A model and its stages; AdamW (0.9, 0.999), for some matrices Muon where a stage says so.

    `ema`: decay of the weights' moving average, which is what a stage hands on. `clip`: largest gradient
    norm. `dtype`: of the matmuls, "fp32" or "bf16"; weights and optimizer are float32. `resident`: all clips
    are kept in the memory of the device and drawn there, with replacement (`resident.ResidentBatches`).
    """

    config: Config
    stages: tuple[Stage, ...]
    seed: int = 0
    ema: float = 0.999
    clip: float = 1.0
    weight_decay: float = 0.01
    dtype: str = "fp32"
    recompute: bool = False  # gradient checkpointing
    resident: bool = False

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names) or any("/" in name for name in names):
            raise UserError(f"the recipe's stages are {names}; expected one or more, each with its own name")
        if self.dtype not in ("fp32", "bf16"):
            raise UserError(f"the recipe's dtype is {self.dtype!r}; expected fp32 or bf16")
        if not 0 <= self.ema < 1:
            raise UserError(f"the recipe's ema is {self.ema}; expected 0 (off) to below 1")

    def to_dict(self) -> dict:
        """JSON-ready; `Recipe.from_dict` reads it back."""
        return {**dataclasses.asdict(self), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: dict) -> Recipe:
        """Raises UserError for values that make no recipe."""
        try:
            stages = tuple(map(_read_stage, values["stages"]))
            return cls(**{**values, "config": Config.from_dict(values["config"]), "stages": stages})
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"this is no recipe: {error}; see `uniavgen train recipe`") from error


def _read_stage(values: dict[str, Any]) -> Stage:
    given: dict[str, Any] = {k: _tuples(v) for k, v in values.items()}
    return Stage(**given)


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, in dicts too."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from its JSON file.

    Raises:
        UserError: no such file, no JSON, or values that make no recipe.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); give a recipe") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; give a recipe")
    return Recipe.from_dict(values)


def paper_stages() -> tuple[Stage, ...]:
    """The three stages of the paper (docs/model.md section 8)."""
    return (
        Stage("1-audio", 160_000, 256, 2e-5, {AUDIO_ALONE: 1.0}, warmup=1000),
        Stage("2-joint", 30_000, 32, 5e-6, {"joint": 1.0}, mask_weight=(0.1, 0.025)),
        Stage("3-tasks", 10_000, 32, 5e-6, TASK_MIX, mask_weight=(0.025, 0.0)),
    )
