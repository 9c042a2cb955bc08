"""Real inputs for tests: a photograph, a spoken sentence, videos made of both, and the command itself."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uniavgen_core.cli import main
from uniavgen_core.media import files

SENTENCE = "She had your dark suit in greasy wash water all year."


def uniavgen(capfd, *arguments) -> tuple[int, str, str]:
    """Runs the command in this process: exit code, stdout, stderr."""
    capfd.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capfd.readouterr()


def photograph(path: Path) -> Path:
    """Eileen Collins in 1999, 512x512, from scikit-image."""
    Image.fromarray(pytest.importorskip("skimage.data").astronaut()).save(path)
    return path


def speech(path: Path) -> Path:
    """A spoken sentence of some 3 s as a WAV file; without espeak-ng a voiced sound with its formants."""
    if shutil.which("espeak-ng"):
        subprocess.run(["espeak-ng", "-w", str(path), SENTENCE], check=True)
        return path
    rate = 22050
    time = np.arange(3 * rate) / rate
    pitch = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 0.7 * time)) / rate
    voiced = sum(np.sin(n * pitch) / (1 + abs(n * 120 - 700) / 300) for n in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * time), 0, 1)
    write_wav(path, (0.1 * voiced * syllables).astype(np.float32), rate)
    return path


def write_wav(path: Path, samples: np.ndarray, rate: int = 24000) -> Path:
    """float32 `[n]` or `[n, channels]` as a 32-bit float WAV, whatever the values are."""
    samples = np.asarray(samples, dtype="<f4")
    channels, body = samples.shape[1] if samples.ndim == 2 else 1, samples.tobytes()
    form = struct.pack("<HHIIHH", 3, channels, rate, 4 * channels * rate, 4 * channels, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


def talking_video(path: Path, photo: Path, sound: Path, fps: float = 25, seconds: float = 2.0) -> Path:
    """A camera that moves over the photograph while the sentence is heard: 160x128."""
    picture = files.read_image(photo)[::2, ::2]  # [256, 256, 3]
    frames = []
    for i in range(round(seconds * fps)):
        shift = round(20 * i / fps)
        frames.append(picture[shift : shift + 128, shift : shift + 160])
    wave, rate = files.read_audio(sound)
    files.write_mp4(path, torch.stack(frames), fps, wave.mean(0), rate)
    return path
