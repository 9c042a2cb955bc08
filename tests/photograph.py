"""A talking person without a recording: a photograph whose mouth is opened by a known amount."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from uniavgen_core.media import files
from uniavgen_core.media.mel import prepare_audio

LINE = 146.5  # the row of the mouth in the whole photograph, between the lips
MIDDLE, HALF = 223.0, 22.0  # its middle column, and half its width
CHIN = 180.0
LOWEST = 9.0  # pixels by which a mouth of aperture 1 opens
CROP = slice(40, 240), slice(124, 324)


def talking(photograph: np.ndarray, aperture: np.ndarray) -> np.ndarray:
    """uint8 `[F, 400, 400, 3]`: below the line of the lips the face moves down, the gap is dark."""
    rows, columns = np.mgrid[: photograph.shape[0], : photograph.shape[1]].astype(np.float64)
    across = np.clip(1 - np.square((columns - MIDDLE) / HALF), 0, 1)
    frames = []
    for open_by in aperture:
        gap = LOWEST * float(open_by) * across
        below = rows > LINE
        # From the lower lip to the chin the shift fades, so that the neck stays where it is.
        fade = np.clip((CHIN + 12 - rows) / (CHIN + 12 - LINE), 0, 1)
        source = np.where(below, rows - gap * fade, rows)
        moved = np.stack(
            [map_coordinates(photograph[..., c].astype(float), (source, columns), order=1) for c in range(3)],
            -1,
        )
        inside = below & (rows < LINE + gap)
        moved[inside] = (45, 12, 16)
        frames.append(moved[CROP].repeat(2, 0).repeat(2, 1).clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def spoken(text: str, file: Path, voice: str = "en-us") -> torch.Tensor:
    """espeak-ng says a text; `[n]` at 24 kHz."""
    subprocess.run(["espeak-ng", "-v", voice, "-s", "140", "-w", str(file), text], check=True)
    return prepare_audio(*files.read_audio(file))
