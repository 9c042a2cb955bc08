"""The recipe of the embedded model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..model.config import Config
from ..training.objective import AUDIO_ALONE, VOICE_ALONE
from ..training.recipe import TASK_MIX, Recipe, Stage

EMBEDDED = Recipe(
    config=Config(
        variant="paper",
        video_dim=192,
        video_heads=3,
        video_ffn=768,
        audio_dim=192,
        audio_heads=3,
        audio_ffn=768,
        layers=6,
        interaction_layers=(0, 2, 4),
        freq_dim=128,
        caption_dim=64,
        caption_length=64,
        speech_dim=192,
        speech_layers=4,
        patch=(1, 1),
    ),
    stages=(
        Stage("1-audio", 1200, 32, 1e-3, {AUDIO_ALONE: 1.0}),
        Stage("1-words", 900, 32, 1e-3, {AUDIO_ALONE: 1.0}, shift=3.0),
        Stage("1-reading", 1500, 32, 1e-3, {AUDIO_ALONE: 1.0}, warmup=30, shift=3.0, guide=0.3),
        Stage(
            "2-joint",
            2000,
            16,
            1e-3,
            {"joint": 2.0, "audio-driven": 2.0, "dubbing": 1.0},
            mask_weight=(1.0, 0.5),
            shift=2.0,
        ),
        Stage("3-tasks", 2050, 16, 1e-3, TASK_MIX, warmup=20, decay=0.35, mask_weight=(0.5, 0.3), shift=2.0),
    ),
    ema=0.995,
    dtype="bf16",
)
"""The embedded model: 128x128 pictures of 33 frames, 8x8 tokens a latent frame."""

_NEAR_NOISE: dict[str, tuple[float, ...]] = {
    "dubbing": (10.0, 10.0, 2.0),
    "audio-driven": (10.0, 2.0),
    "joint": (4.0,),
}
"""Time shifts: near noise the other branch decides."""
_aligned = partial(Stage, mask_weight=(0.3, 0.3), shift=3.0, task_shifts=_NEAR_NOISE)

ALIGNED = replace(
    EMBEDDED,
    config=replace(EMBEDDED.config, variant="aligned"),
    stages=(
        _aligned(
            "4-dubbing",
            1700,
            16,
            5e-4,
            {"dubbing": 3.0, AUDIO_ALONE: 1.0, VOICE_ALONE: 0.6},
            warmup=20,
            decay=0.25,
            task_text_drop={"dubbing": 0.3},
            interaction_rate=2e-3,
            guide=0.3,
            groups=("audio", "v2a"),
        ),
        _aligned(
            "4-hearing",
            1160,
            8,
            2e-4,
            {"audio-driven": 4.0, "joint": 3.5, "continuation": 1.0, "edit": 1.0, "reference-voice": 0.3},
            warmup=20,
            decay=0.7,
            shift=2.0,
            task_shifts={"audio-driven": (10.0, 2.0), "joint": (4.0, 2.0)},
            interaction_rate=5e-4,
            seam=4.0,
            groups=("video", "a2v"),
        ),
        _aligned(
            "4-tasks",
            360,
            16,
            2.5e-4,
            {"dubbing": 3.0, "joint": 3.0, "audio-driven": 1.5, VOICE_ALONE: 1.2, AUDIO_ALONE: 0.7}
            | {"continuation": 0.7, "edit": 0.7, "reference-voice": 0.5},
            warmup=15,
            decay=0.7,
            task_text_drop={"dubbing": 0.3},
            interaction_rate=6e-4,
            guide=0.2,
            seam=4.0,
            groups=("audio", "a2v", "v2a"),
        ),
    ),
    ema=0.99,
    dtype="fp32",
)
"""From the embedded model of variant "paper" (`train run --start`) to one of variant "aligned".

What made the shipped model, in one line: it had more pieces, see its card.
"""
