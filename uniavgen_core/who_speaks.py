"""Who speaks: a mask drawn on the image, as a face mask for the interaction (docs/model.md section 4)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .conditioning import FPS, video_frames
from .errors import UserError, counted
from .media.files import crop_box, read_image, read_video
from .media.vae import TEMPORAL
from .model.inputs import Speaker

HOW = ("multiply", "replace")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


def check_mask(mask: Tensor) -> None:
    """Raises UserError unless `mask` is `[frames, height, width]` in 0..1 and somewhere above 0."""
    if mask.ndim != 3 or 0 in mask.shape:
        raise UserError(f"the mask of who speaks is {list(mask.shape)}, expected [frames, height, width]")
    low, high = (float(x) for x in mask.aminmax())
    if not (low >= 0 and high <= 1):
        raise UserError(f"the mask of who speaks goes from {low:g} to {high:g}, expected values from 0 to 1")
    if high == 0:
        raise UserError(
            "the mask of who speaks is 0 everywhere, so nobody would speak; make it 1 (white) over the face "
            "that speaks (Load Image gives an empty mask of an image without transparency)"
        )


def token_mask(mask: Tensor, latent: tuple[int, int, int], patch: tuple[int, int] = (2, 2)) -> Tensor:
    """A mask over pixels, resampled to the video tokens: `[F, H, W]` in 0..1 -> `[1, 1 or T, S]`.

    In space it goes the way of the image: its middle is cut to the aspect of the video, then every latent
    pixel (16x16 pixels) takes the mean of its area, and every token the mean of its `patch`. In time one mask
    serves all frames; one mask per frame at 16 fps is averaged over the frames of each latent frame (the
    first alone, then four each).

    Args:
        mask: any height and width; F is 1 or the clip's 4 (T - 1) + 1 frames.
        latent: T, h, w of the video latent.

    Raises:
        UserError: as `check_mask`; another number of frames.
    """
    check_mask(mask)
    (latents, rows, columns), frames = latent, len(mask)
    if frames not in (1, video_frames(latents)):
        raise UserError(
            f"the mask of who speaks has {counted(frames, 'frame')}, expected 1 or the clip's "
            f"{video_frames(latents)} ({FPS} a second)"
        )
    top, left, height, width = crop_box(mask.shape[1], mask.shape[2], columns, rows)
    x = mask[:, None, top : top + height, left : left + width].float()
    x = F.interpolate(x, (rows, columns), mode="area")
    x = F.pad(x, (0, -columns % patch[1], 0, -rows % patch[0]), mode="replicate")
    x = F.avg_pool2d(x, patch).flatten(1)
    if frames > 1:
        x = torch.cat((x[:1], x[1:].unflatten(0, (-1, TEMPORAL)).mean(1)))
    return x[None]


def speaker(mask: Tensor, how: str, latent: tuple[int, int, int], patch: tuple[int, int]) -> Speaker:
    """What the model takes; `how` is one of `HOW`.

    Raises:
        UserError: as `token_mask`; another `how`.
    """
    if how not in HOW:
        raise UserError(f"the mask of who speaks is to {how!r}, expected {' or '.join(HOW)}")
    return Speaker(token_mask(mask, latent, patch), instead=how == "replace")


def read_mask(path: str | Path) -> Tensor:
    """Brightness of an image, or of the frames of a video at 16 fps: float `[F, H, W]`; white speaks.

    Raises:
        UserError: as `read_image`, `read_video` and `check_mask`.
    """
    video = Path(path).suffix.lower() in VIDEOS
    frames = read_video(path, fps=FPS).frames if video else read_image(path)[None]
    mask = frames.float().mean(-1) / 255
    check_mask(mask)
    return mask
