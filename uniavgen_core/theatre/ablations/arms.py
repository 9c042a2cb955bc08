"""What is compared: arms, the measures of their clips, and what the paper says of them.

An arm is one row of `ARMS`; a comparison is a row of `CLAIMS`. "none", "symmetric" and "global" are the
alternatives that the paper's interaction is compared with, see `model.alignment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ...model.config import Variant
from ...training.recipe import TASK_MIX, Stage

TWO_WAYS: Mapping[str, float] = {"audio-driven": 1.0, "dubbing": 1.0}
"""Each direction of the interaction by itself: video from true audio, audio from true video."""


@dataclass(frozen=True)
class Arm:
    """One training, or with `steps` 0 the start itself, sampled with `guidance`.

    `interaction`: whether the branches see each other at all; `mask_weight`: lambda_m at the first and the
    last step; `tasks`: how often each is trained; `guidance`: a variant of `evaluation.runs.sampler`.
    """

    group: str
    title: str
    variant: Variant = "paper"
    interaction: bool = True
    mask_weight: tuple[float, float] = (0.1, 0.0)
    tasks: Mapping[str, float] = field(default_factory=lambda: TWO_WAYS)
    guidance: str | None = None

    def stage(self, steps: int, batch: int) -> Stage:
        """The same for all arms, but for tasks and face mask; captions stay, as `video_tokens` has them."""
        return Stage(
            "ablation",
            steps,
            batch,
            2e-3,
            dict(self.tasks),
            warmup=max(1, steps // 8),
            decay=0.5,
            mask_weight=self.mask_weight,
            null_share=0.0,
            text_drop=0.0,
            shift=3.0,
            task_shifts={"dubbing": (10.0, 2.0), "audio-driven": (10.0, 2.0)},
        )


ARMS: Mapping[str, Arm] = {
    "paper": Arm("interaction", "the paper's asymmetric"),
    "none": Arm("interaction", "none", interaction=False),
    "global": Arm("interaction", "symmetric, global", variant="global"),
    "symmetric": Arm("interaction", "symmetric, time-aligned", variant="symmetric"),
    "aligned": Arm("interaction", "ours, aligned", variant="aligned"),
    "released": Arm("interaction", "the release's", variant="released"),
    "no-mask": Arm("face mask", "none", variant="unmasked"),
    "unsupervised": Arm("face mask", "unsupervised", mask_weight=(0.0, 0.0)),
    "fixed": Arm("face mask", "supervised, fixed", mask_weight=(0.1, 0.1)),
    "joint-alone": Arm("tasks", "joint alone", tasks={"joint": 1.0}),
    "together": Arm("tasks", "all tasks together", tasks=TASK_MIX),
    "ma-cfg": Arm("guidance", "MA-CFG", guidance=""),
    "cfg": Arm("guidance", "CFG", guidance="cfg"),
    "no-guidance": Arm("guidance", "none, twice the steps", guidance="none"),
}
"""Arm "paper" has the decaying supervision of the face mask and stands in both of the first groups."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "interaction": ("none", "global", "symmetric", "released", "aligned", "paper"),
    "face mask": ("no-mask", "unsupervised", "fixed", "paper"),
    "tasks": ("joint-alone", "together"),
    "guidance": ("no-guidance", "cfg", "ma-cfg"),
}
"""The last arm of a group is the one that the figure compares the others with."""


class Measure(NamedTuple):
    """A column of the table; `better` is 1 where more is better, -1 where less is."""

    title: str
    better: int


MEASURES: Mapping[str, Measure] = {
    "mouth_loss": Measure("loss of the mouth, audio-driven, t = 0.9", -1),
    "audio_loss": Measure("loss of the audio, dubbing, t = 0.99", -1),
    "joint_loss": Measure("loss of both, joint, t = 0.9", -1),
    "sync_audio_driven": Measure("sync r, audio-driven", 1),
    "sync_dubbing": Measure("sync r, dubbing", 1),
    "sync_joint": Measure("sync r, joint", 1),
    "word_error": Measure("words wrong, joint", -1),
    "mask_iou": Measure("face mask IoU", 1),
    "drift": Measure("drift of the background, audio-driven", -1),
}
SHOWN: Mapping[str, tuple[str, ...]] = {
    "interaction": ("mouth_loss", "audio_loss", "sync_audio_driven", "sync_dubbing"),
    "face mask": ("mask_iou", "drift", "mouth_loss", "audio_loss", "sync_audio_driven", "sync_dubbing"),
    "tasks": ("joint_loss", "mouth_loss", "audio_loss", "sync_joint", "word_error"),
    "guidance": ("sync_joint", "word_error"),
}
"""What each group's table shows."""


class Claim(NamedTuple):
    """Arm `better` is better than arm `worse`; `ours`: expected by this project, not said by the paper."""

    better: str
    worse: str
    measures: tuple[str, ...]
    ours: bool = False


_BOTH_WAYS = ("mouth_loss", "audio_loss", "sync_audio_driven", "sync_dubbing")
CLAIMS: tuple[Claim, ...] = (
    Claim("paper", "none", _BOTH_WAYS),
    Claim("paper", "global", _BOTH_WAYS),
    Claim("paper", "symmetric", _BOTH_WAYS),
    Claim("symmetric", "global", _BOTH_WAYS),
    Claim("aligned", "paper", _BOTH_WAYS, ours=True),
    Claim("paper", "released", _BOTH_WAYS, ours=True),
    Claim("paper", "no-mask", ("drift", *_BOTH_WAYS)),
    Claim("paper", "unsupervised", ("mask_iou", "drift", *_BOTH_WAYS)),
    Claim("paper", "fixed", ("mask_iou", "drift", *_BOTH_WAYS)),
    Claim("together", "joint-alone", ("joint_loss", "sync_joint", "word_error")),
    Claim("ma-cfg", "cfg", ("sync_joint", "word_error")),
    Claim("ma-cfg", "no-guidance", ("sync_joint", "word_error")),
)
