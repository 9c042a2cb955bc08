"""Asymmetric cross-modal interaction: A2V and V2A of one layer (docs/model.md sections 4, 5 and 10)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import rope
from .a2v import A2V
from .branches import AudioBranch, VideoBranch
from .config import Config
from .inputs import Conditioned
from .layers import Attention, uncompiled
from .v2a import V2A, MelGroups, group_mels
from .variants import align


class Interaction(NamedTuple):
    """Both directions of one interaction layer; `block` counts the interaction layers from 0."""

    block: int
    a2v: A2V
    v2a: V2A


class InteractionPlan(NamedTuple):
    """Which positions are changed, and what they attend to; the same at every step of a run.

    Conditioned positions are attended to but not changed. A direction that is off or has nothing to change
    is not computed.
    """

    a2v: bool
    v2a: bool
    frames: Tensor  # latent frames that A2V changes [T']
    mels: Tensor  # mel frames that V2A changes [n]
    window: Tensor  # mel frames they attend to [T', W]
    groups: MelGroups | None  # of the n mel frames
    phase: Tensor | None  # of the n mel frames [n]
    rotary: rope.Rotary  # (row, column) of a frame's tokens, V2A's keys
    query_rotary: rope.Rotary  # of the frames that A2V changes
    window_rotary: rope.Rotary
    mel_rotary: rope.Rotary | None  # of the n mel frames, where they attend to all latent frames


@uncompiled
def plan_interaction(
    config: Config, conditioned: Conditioned, video: Tensor, a2v: bool, v2a: bool
) -> InteractionPlan:
    """For a latent `video` `[B, C, T, H, W]` and masks on the CPU."""
    frames, mels = (~conditioned.video).nonzero()[:, 0], (~conditioned.audio).nonzero()[:, 0]
    alignment = align(config, len(conditioned.video), len(conditioned.audio))
    height, width = (-(-n // p) for n, p in zip(video.shape[3:], config.patch))
    window, device = alignment.window[frames], video.device
    rotary = query_rotary = rope.grid(1, height, width, config.head_dim)
    mel_rotary = groups = None
    if alignment.times is not None:
        rotary = rope.timed_grid(alignment.times, height, width, config.head_dim)
        query_rotary = rope.Rotary(rotary.cos[frames], rotary.sin[frames])
        places = rope.window(len(conditioned.audio), config.head_dim)
        mel_rotary = rope.Rotary(places.cos[mels], places.sin[mels]).to(device)
    elif len(mels):
        groups = group_mels(alignment.frame[mels], alignment.weight[mels], video.shape[2]).to(device)
    return InteractionPlan(
        a2v=a2v and len(frames) > 0,
        v2a=v2a and len(mels) > 0,
        frames=frames.to(device),
        mels=mels.to(device),
        window=window.to(device),
        groups=groups,
        phase=None if alignment.phase is None else alignment.phase[mels].to(device),
        rotary=rotary.to(device),
        query_rotary=query_rotary.to(device),
        window_rotary=rope.window(window.shape[1], config.head_dim).to(device),
        mel_rotary=mel_rotary,
    )


@uncompiled
def interact(
    layer: Interaction, v: VideoBranch, a: AudioBranch, plan: InteractionPlan, attention: Attention
) -> Tensor:
    """Updates both branches from the same features; returns the face mask `[B, T, S]`."""
    mask = v.face_mask(layer.a2v)
    video_update = audio_update = None
    if plan.a2v:
        video_update = layer.a2v(
            v.target()[:, plan.frames],
            mask[:, plan.frames],
            a.kv(layer.a2v),
            plan.window,
            attention,
            plan.query_rotary,
            plan.window_rotary,
        )
    if plan.v2a:
        video_kv = v.kv(layer.v2a, mask, plan.rotary)
        mels = a.target()[:, plan.mels]
        if plan.groups is None:
            audio_update = layer.v2a.attend_to_all(mels, video_kv, plan.mel_rotary)
        else:
            audio_update = layer.v2a(mels, video_kv, plan.groups, plan.phase)
    if video_update is not None:
        v.add(plan.frames, video_update)
    if audio_update is not None:
        a.add(plan.mels, audio_update)
    return mask
