"""What one forward of the network takes and gives (docs/model.md sections 1, 3 and 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Config


class Velocity(NamedTuple):
    """`noise - data`, float32: video `[B, C, T, H, W]` without the reference frame, audio `[B, L, bands]`.

    `face_masks`: interaction block -> `[B, T, H/2 * W/2]` in 0..1 as they were used, for the blocks that were
    run.
    """

    video: Tensor
    audio: Tensor
    face_masks: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """Caption of the video and speech text of the audio, both encoded.

    `caption`: umT5 states `[B, <=caption_length, caption_dim]`, zero-padded by the model;
    `speech`: features `[B, N, speech_dim]` of the `SpeechEncoder`;
    `speech_lengths` `[B]`, where the speech texts of a batch differ in length.
    """

    caption: Tensor
    speech: Tensor
    speech_lengths: Tensor | None = None

    def to(self, dtype: torch.dtype) -> TextConditioning:
        return TextConditioning(self.caption.to(dtype), self.speech.to(dtype), self.speech_lengths)


@dataclass(frozen=True, eq=False)
class References:
    """Clean latents that precede the target in both branches.

    `image` `[B, C, 1, H, W]`: the reference image; `mel` `[B, Lr, bands]`: a reference voice, with
    `mel_lengths` `[B]` where the voices of a batch differ in length.
    """

    image: Tensor
    mel: Tensor | None = None
    mel_lengths: Tensor | None = None

    def to(self, dtype: torch.dtype) -> References:
        mel = None if self.mel is None else self.mel.to(dtype)
        return References(self.image.to(dtype), mel, self.mel_lengths)


@dataclass(frozen=True, eq=False)
class Conditioned:
    """Where the latents hold clean data: bool `[T]` over latent frames, bool `[L]` over mel frames."""

    video: Tensor
    audio: Tensor

    @classmethod
    def none(cls, frames: int, mels: int) -> Conditioned:
        return cls(torch.zeros(frames, dtype=torch.bool), torch.zeros(mels, dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Speaker:
    """Who speaks: a face mask from outside (docs/model.md section 4).

    `mask` `[1 or B, 1 or T, S]` in 0..1 over the S tokens of the target frames; it multiplies the predicted
    face mask, or `instead` takes its place.
    """

    mask: Tensor
    instead: bool = False


@dataclass(frozen=True)
class ActiveParts:
    """Which parts of the network a pass runs.

    `a2v`, `v2a`: the two directions of the interaction; `skip_layers`: layers left out whole, in both
    branches and with their interaction.
    """

    a2v: bool = True
    v2a: bool = True
    skip_layers: tuple[int, ...] = ()


def check(
    config: Config,
    video: Tensor,
    audio: Tensor,
    time: Tensor,
    text: TextConditioning,
    references: References,
    conditioned: Conditioned,
    speaker: Speaker | None = None,
) -> None:
    """Raises ValueError for shapes that do not fit the model or each other."""
    c, batch = config, video.shape[0]
    expected: dict[str, tuple[Tensor, tuple[int | None, ...]]] = {
        "video": (video, (batch, c.video_channels, None, None, None)),
        "audio": (audio, (batch, None, c.audio_channels)),
        "time": (time, (batch,)),
        "caption": (text.caption, (batch, None, c.caption_dim)),
        "speech": (text.speech, (batch, None, c.speech_dim)),
        "reference_image": (references.image, (batch, c.video_channels, 1, *video.shape[3:])),
    }
    if references.mel is not None:
        expected["reference_mel"] = (references.mel, (batch, None, c.audio_channels))
    for name, (x, shape) in expected.items():
        if x.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, x.shape)):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected ({wanted})")
    for name, lengths, padded in (
        ("reference_mel", references.mel_lengths, references.mel),
        ("speech", text.speech_lengths, text.speech),
    ):
        if lengths is None:
            continue
        longest = 0 if padded is None else padded.shape[1]
        if lengths.shape != (batch,) or int(lengths.max()) > longest:
            raise ValueError(
                f"{name}_lengths {lengths.tolist()} do not fit {batch} samples of at most {longest}"
            )
    if text.caption.shape[1] > c.caption_length:
        raise ValueError(f"caption has {text.caption.shape[1]} tokens, at most {c.caption_length} fit")
    for name, mask, length in (
        ("video", conditioned.video, video.shape[2]),
        ("audio", conditioned.audio, audio.shape[1]),
    ):
        if mask.shape != (length,) or mask.dtype != torch.bool:
            raise ValueError(
                f"conditioned_{name} is {mask.dtype} {tuple(mask.shape)}, expected torch.bool ({length},)"
            )
    if speaker is not None:
        rows, columns = (-(-n // p) for n, p in zip(video.shape[3:], c.patch))
        wanted = ((1, batch), (1, video.shape[2]), (rows * columns,))
        shape = tuple(speaker.mask.shape)
        if len(shape) != 3 or any(n not in allowed for n, allowed in zip(shape, wanted)):
            raise ValueError(
                f"the speaker's mask has shape {shape}, expected 1 or {batch}, 1 or {video.shape[2]}, "
                f"{rows * columns}"
            )
