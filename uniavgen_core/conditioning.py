"""The five tasks are one mechanism: what is already known (SPEC section 6).

A `Task` marks the known latent frames and mel frames and carries the references. Joint, reference voice,
continuation, dubbing and audio-driven differ in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from .errors import UserError

FPS = 16
MELS_PER_SECOND = 100
MODES = ("joint", "reference-voice", "continuation", "dubbing", "audio-driven")


def latent_frames(frames: int) -> int:
    """Latent frames of `4n + 1` video frames.

    Raises:
        UserError: another number of frames.
    """
    if frames < 1 or frames % 4 != 1:
        raise UserError(
            f"{frames} video frames do not fit the 4x temporal VAE; use 4n + 1, such as {snap_frames(frames)}"
        )
    return (frames - 1) // 4 + 1


def snap_frames(frames: float) -> int:
    """The largest `4n + 1` that is not above `frames`, at least 1."""
    return max(int(frames) - 1, 0) // 4 * 4 + 1


def mel_frames(frames: int) -> int:
    """Mel frames that belong to `frames` video frames: `floor(frames / 16 * 100)`."""
    return floor(frames / FPS * MELS_PER_SECOND)


def frames_for_mels(mels: int) -> int:
    """The largest `4n + 1` video frames whose sound is no longer than `mels` mel frames, at least 1."""
    frames = snap_frames(mels * FPS / MELS_PER_SECOND + 4)
    while frames > 1 and mel_frames(frames) > mels:
        frames -= 4
    return frames


@dataclass(frozen=True)
class Task:
    """What is known before sampling; build one with the functions below.

    Shapes: `reference_image` `[B, C, 1, H, W]`; `clean_video` `[B, C, T, H, W]` and `clean_audio`
    `[B, L, bands]`, meaningful where `known_video` bool `[T]` and `known_audio` bool `[L]` are true;
    `reference_mel` `[B, Lr, bands]`, with `reference_mel_lengths` `[B]` where voices of a batch differ in
    length. `v2a`: whether video informs audio in the full pass.
    """

    reference_image: Tensor
    clean_video: Tensor
    known_video: Tensor
    clean_audio: Tensor
    known_audio: Tensor
    reference_mel: Tensor | None = None
    v2a: bool = True
    reference_mel_lengths: Tensor | None = None

    def known(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Both latents with the known positions overwritten by clean data."""
        return (
            torch.where(self.known_video.to(video.device)[:, None, None], self.clean_video.to(video), video),
            torch.where(self.known_audio.to(audio.device)[:, None], self.clean_audio.to(audio), audio),
        )

    def noise(self, seed: int) -> tuple[Tensor, Tensor]:
        """Standard normal video and audio latents, float32, the same on every device.

        Audio is drawn as `[B, bands, L]`, the layout of ComfyUI's latents: a seed gives the same clip there.
        """
        generator = torch.Generator().manual_seed(seed)
        batch, mels, bands = self.clean_audio.shape
        video = torch.randn(self.clean_video.shape, generator=generator)
        audio = torch.randn(batch, bands, mels, generator=generator).transpose(1, 2)
        return video.to(self.clean_video.device), audio.to(self.clean_audio.device)


def joint(reference_image: Tensor, frames: int, mels: int, bands: int = 80) -> Task:
    """Sound and picture together, from a reference image latent `[B, C, 1, H, W]`; its frame opens the clip.

    `frames`, `mels`: lengths T and L in latent frames and mel frames.
    """
    return _task(reference_image, reference_image, frames, _no_mel(reference_image, bands), mels)


def reference_voice(
    reference_image: Tensor, reference_mel: Tensor, frames: int, mels: int, variant: str = "released"
) -> Task:
    """Joint, spoken in the voice of `reference_mel` `[B, Lr, bands]`.

    The released model was trained with V2A off in this task's full pass.
    """
    prefix = _no_mel(reference_image, reference_mel.shape[-1])
    v2a = variant != "released"
    return _task(reference_image, reference_image, frames, prefix, mels, reference_mel, v2a)


def continuation(
    video: Tensor, mel: Tensor, frames: int, mels: int, reference_mel: Tensor | None = None
) -> Task:
    """Go on from `video` `[B, C, n_v, H, W]` and `mel` `[B, n_a, bands]` to `frames`, `mels` in all."""
    return _task(video[:, :, :1], video, frames, mel, mels, reference_mel)


def dubbing(video: Tensor, mels: int, reference_mel: Tensor | None = None, bands: int = 80) -> Task:
    """A voice for a whole video latent `[B, C, T, H, W]`."""
    return _task(video[:, :, :1], video, video.shape[2], _no_mel(video, bands), mels, reference_mel)


def audio_driven(reference_image: Tensor, mel: Tensor, frames: int) -> Task:
    """A face for a whole mel `[B, L, bands]`; the reference image opens the clip."""
    return _task(reference_image, reference_image, frames, mel, mel.shape[1])


def edit(
    reference_image: Tensor,
    video: Tensor,
    mel: Tensor,
    unknown_video: tuple[int, int],
    unknown_mel: tuple[int, int],
) -> Task:
    """A span of a clip again: latent frames `unknown_video` and mel frames `unknown_mel` (first, end) are
    generated, what stands before and after them is known. An empty span leaves that sequence whole.
    """
    spans = (("latent frames", video.shape[2], unknown_video), ("mel frames", mel.shape[1], unknown_mel))
    for unit, length, (first, end) in spans:
        if not 0 <= first <= end <= length:
            raise UserError(f"{unit} {first} to {end} do not lie within the clip's {length}")
    known_video, known_audio = (
        ~((torch.arange(length) >= first) & (torch.arange(length) < end)) for _, length, (first, end) in spans
    )
    return Task(reference_image, video, known_video, mel, known_audio)


def _no_mel(like: Tensor, bands: int) -> Tensor:
    return like.new_zeros(like.shape[0], 0, bands)


def _task(
    reference_image: Tensor,
    video: Tensor,
    frames: int,
    mel: Tensor,
    mels: int,
    reference_mel: Tensor | None = None,
    v2a: bool = True,
) -> Task:
    for name, known, length, unit in (
        ("video", video.shape[2], frames, "latent frames"),
        ("audio", mel.shape[1], mels, "mel frames"),
    ):
        if length < 1:
            raise UserError(f"the clip has {length} {unit}; make it at least 1 long")
        if known > length:
            raise UserError(
                f"{known} {unit} of {name} are given but the clip is only {length} long; "
                f"give less or make the clip longer"
            )
    if mel.shape[0] != video.shape[0]:
        raise UserError(f"{video.shape[0]} videos but {mel.shape[0]} mels in the batch; give one each")
    if reference_mel is not None and reference_mel.shape[1] == 0:
        raise UserError("the reference voice is empty; give a clip with some speech")
    clean_video = video.new_zeros(*video.shape[:2], frames, *video.shape[3:])
    clean_video[:, :, : video.shape[2]] = video
    clean_audio = mel.new_zeros(mel.shape[0], mels, mel.shape[2])
    clean_audio[:, : mel.shape[1]] = mel
    return Task(
        reference_image=reference_image,
        clean_video=clean_video,
        known_video=torch.arange(frames) < video.shape[2],
        clean_audio=clean_audio,
        known_audio=torch.arange(mels) < mel.shape[1],
        reference_mel=reference_mel,
        v2a=v2a,
    )
