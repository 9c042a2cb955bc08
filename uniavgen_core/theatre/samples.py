"""Training samples of the theatre's clips and recordings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import conditioning
from ..media.vae import LATENT_CHANNELS, SPATIAL
from ..training.data import EncodeVideo, Sample, encode_clip
from .clips import Theatre


def theatre_sample(theatre: Theatre, index: int, encode: EncodeVideo) -> Sample:
    """Clip `index` of the theatre; its reference is another recording of the same speaker."""
    clip, reference = theatre.clip(index), theatre.reference(index)
    return Sample(
        **encode_clip(clip.frames, torch.from_numpy(clip.waveform), clip.face_mask, encode),
        transcript=clip.transcript,
        caption=clip.caption,
        language=clip.language,
        voice=conditioning.voice_latent(torch.from_numpy(reference.waveform)),
        voice_transcript=reference.transcript,
    )


def speech_sample(theatre: Theatre, index: int) -> Sample:
    """The audio of clip `index` with its texts and an empty video, for the audio branch alone."""
    speech, reference = theatre.speech(index), theatre.reference(index)
    frames = np.zeros((theatre.frames, SPATIAL, SPATIAL, 3), np.uint8)
    length = conditioning.latent_frames(theatre.frames)

    def nothing(frames: Tensor) -> Tensor:
        return frames.new_zeros(1, LATENT_CHANNELS, length, 1, 1)

    return Sample(
        **encode_clip(frames, torch.from_numpy(speech.waveform), frames[..., 0] > 0, nothing),
        transcript=speech.transcript,
        caption=theatre.caption(index),
        language="en",
        voice=conditioning.voice_latent(torch.from_numpy(reference.waveform)),
        voice_transcript=reference.transcript,
    )
