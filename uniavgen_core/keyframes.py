"""Still images as known frames anywhere in a clip. Experimental: the weights were trained with beginnings."""

from __future__ import annotations

import torch
from torch import Tensor

from .conditioning import FPS, latent_of, video_frames
from .errors import UserError

STILL_FRAMES = 25


def still(image: Tensor) -> Tensor:
    """The frames to encode for a keyframe, `[1, H, W, 3]` -> `[25, H, W, 3]`; the last latent frame is taken.

    The VAE is causal; its first latent frame holds one video frame, all others four. The latent of one image
    is such a first frame, and inside a clip it decodes to something else. So the image is held until its
    latent frame hardly depends on where the clip began (embedded VAE: within 3 % of where it ends), and that
    latent frame stands for four equal frames.
    """
    return image.expand(STILL_FRAMES, -1, -1, -1)


def place(frame: int, conditioned: Tensor) -> int:
    """The latent frame that holds video frame `frame` of a clip; -1 is the last frame, -2 the one before.

    Args:
        conditioned: bool `[T]`, the latent frames that are known already.

    Raises:
        UserError: outside the clip; in the first latent frame, which is the reference image; known already.
    """
    frames = video_frames(len(conditioned))
    at = frame + frames if frame < 0 else frame
    if not 0 <= at < frames:
        raise UserError(
            f"keyframe {frame} is outside the clip, which has the frames 0 to {frames - 1} (-1 is the last)"
        )
    latent = latent_of(at)
    if latent == 0:
        raise UserError(
            f"keyframe {frame} is the first frame, which is the reference image; choose a later one"
        )
    if conditioned[latent]:
        raise UserError(
            f"keyframe {frame} lies in frames {_range(latent)}, which are known already; choose another frame"
        )
    return latent


def put(video: Tensor, conditioned: Tensor, frame: int, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Clean video and mask of a task with one more known latent frame, both copies.

    Args:
        video: `[B, C, T, h, w]`; conditioned: bool `[T]`.
        latent: `[1, C, t, h, w]` of `still`, whose last latent frame is taken.

    Raises:
        UserError: as `place`.
    """
    at = place(frame, conditioned)
    video, conditioned = video.clone(), conditioned.clone()
    video[:, :, at] = latent[:, :, -1].to(video)
    conditioned[at] = True
    return video, conditioned


def described(frame: int, conditioned: Tensor) -> str:
    """A note for the user; raises UserError as `place`."""
    at = place(frame, conditioned)
    start, stop = (video_frames(n) / FPS for n in (at, at + 1))
    return (
        f"the keyframe is held in frames {_range(at)} ({start:.2f} to {stop:.2f} s); experimental, the "
        "weights were trained with beginnings only"
    )


def marked(conditioned: Tensor, frame: int) -> Tensor:
    """`conditioned` with the latent frame of a keyframe; raises UserError as `place`."""
    return conditioned | (torch.arange(len(conditioned)) == place(frame, conditioned))


def _range(latent: int) -> str:
    return f"{video_frames(latent)} to {video_frames(latent + 1) - 1}"
