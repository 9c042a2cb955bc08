"""What stays the same between the steps of one sampling run (docs/model.md sections 10.4 and 10.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

from torch import Tensor

from .a2v import A2V
from .branches import AudioBranch, VideoBranch
from .inputs import Conditioned
from .interaction import Interaction, InteractionPlan
from .layers import KeyValue, uncompiled
from .rope import Rotary
from .v2a import V2A, VideoKV

K = TypeVar("K")
V = TypeVar("V")
Stage: TypeAlias = "int | Interaction"
"""Of a pass: the number of the layer whose blocks are run, or an interaction."""


class Constants(NamedTuple):
    """Rotary tables of both self-attentions; keys and values of both texts in every layer."""

    video_rotary: Rotary
    audio_rotary: Rotary
    caption_kv: list[KeyValue]
    speech_kv: list[KeyValue]


class VideoRecord(NamedTuple):
    """All that a forward reads of a video branch that does not change between steps."""

    face_masks: dict[A2V, Tensor]
    kv: dict[V2A, VideoKV]
    velocity: Tensor


class AudioRecord(NamedTuple):
    """As `VideoRecord`."""

    kv: dict[A2V, KeyValue]
    velocity: Tensor


@dataclass
class Cache:
    """One cache per pair of texts (so one for the full pass, one for the null pass); valid as long as texts,
    references, conditioned positions and shapes stay what they were. Drop it to free its memory.
    """

    constants: Constants | None = None
    plans: dict[tuple[bool, bool], InteractionPlan] = field(default_factory=dict)  # by (a2v, v2a)
    videos: dict[tuple[int, ...], VideoRecord] = field(default_factory=dict)  # by skipped layers
    audios: dict[tuple[int, ...], AudioRecord] = field(default_factory=dict)

    @uncompiled
    def replayed(
        self,
        v: VideoBranch,
        a: AudioBranch,
        conditioned: Conditioned,
        skip_layers: tuple[int, ...],
        stages: list[Stage],
        rotary: Rotary,
    ) -> tuple[VideoBranch, AudioBranch]:
        """A branch that is conditioned as a whole is run at the first step and read from its record later."""
        if conditioned.video.all():
            video = get_or_compute(self.videos, skip_layers, lambda: record_video(v, stages, rotary))
            v = ReplayedVideo(**vars(v), record=video)
        if conditioned.audio.all():
            audio = get_or_compute(self.audios, skip_layers, lambda: record_audio(a, stages))
            a = ReplayedAudio(**vars(a), record=audio)
        return v, a


@uncompiled
def get_or_compute(store: dict[K, V], key: K, compute: Callable[[], V]) -> V:
    if key not in store:
        store[key] = compute()
    return store[key]


@dataclass(kw_only=True)
class ReplayedVideo(VideoBranch):
    """A fully conditioned video branch, read from its record."""

    record: VideoRecord

    def run(self, layer: int) -> None:
        pass

    def face_mask(self, a2v: A2V) -> Tensor:
        return self.record.face_masks[a2v]

    def kv(self, v2a: V2A, mask: Tensor, rotary: Rotary) -> VideoKV:
        return self.record.kv[v2a]

    def velocity(self) -> Tensor:
        return self.record.velocity


@dataclass(kw_only=True)
class ReplayedAudio(AudioBranch):
    """As `ReplayedVideo`."""

    record: AudioRecord

    def run(self, layer: int) -> None:
        pass

    def kv(self, a2v: A2V) -> KeyValue:
        return self.record.kv[a2v]

    def velocity(self) -> Tensor:
        return self.record.velocity


@uncompiled
def record_video(v: VideoBranch, stages: list[Stage], rotary: Rotary) -> VideoRecord:
    """Runs a branch that the interaction reads and does not change."""
    record = VideoRecord({}, {}, v.tokens)
    for stage in stages:
        if isinstance(stage, int):
            v.run(stage)
        else:
            mask = record.face_masks[stage.a2v] = v.face_mask(stage.a2v)
            record.kv[stage.v2a] = v.kv(stage.v2a, mask, rotary)
    return record._replace(velocity=v.velocity())


@uncompiled
def record_audio(a: AudioBranch, stages: list[Stage]) -> AudioRecord:
    """As `record_video`."""
    record = AudioRecord({}, a.tokens)
    for stage in stages:
        if isinstance(stage, int):
            a.run(stage)
        else:
            record.kv[stage.a2v] = a.kv(stage.a2v)
    return record._replace(velocity=a.velocity())
