"""The recipe of the embedded model."""

from __future__ import annotations

from dataclasses import replace

from ..model.config import Config
from ..training.objective import AUDIO_ALONE, VOICE_ALONE
from ..training.recipe import Recipe, Stage

EMBEDDED = Recipe(
    config=Config(
        variant="aligned",
        video_dim=256,
        video_heads=4,
        video_ffn=1024,
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
    ),
    ema=0.995,
    dtype="bf16",
)
"""The embedded model: 128x128 pictures of 33 frames, 8x8 tokens a latent frame; with its caption encoder."""

EMBEDDED_FINAL = replace(
    EMBEDDED,
    stages=(
        Stage(
            "3-tasks",
            12_003,
            128,
            1e-3,
            {"joint": 3.2, "audio-driven": 3.0, "dubbing": 2.6, "continuation": 1.2, "edit": 1.6}
            | {"reference-voice": 1.6, VOICE_ALONE: 2.0, AUDIO_ALONE: 0.6},
            warmup=200,
            decay=0.55,
            mask_weight=(0.5, 0.5),
            shift=3.0,
            # Near noise the other branch decides.
            task_shifts={
                "dubbing": (10.0, 10.0, 2.0),
                "audio-driven": (10.0, 2.0),
                "joint": (4.0, 2.0),
                "reference-voice": (4.0, 2.0),
                "continuation": (4.0, 1.5),
                "edit": (4.0, 1.5),
            },
            task_text_drop={"dubbing": 0.3},
            interaction_rate=1.5e-3,
            audio_rate=5e-4,
            muon_rate=6e-3,
            guide=0.15,
            seam=5.0,
        ),
    ),
    ema=0.9985,
    resident=True,
)
"""All tasks on many clips, with the caption encoder as it is. For a GPU: a step of 128 clips takes 27 GB."""
