"""Images, audio and video: files in and out (docs/model.md sections 1 and 6)."""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from ..atomic import replacing
from ..errors import UserError
from . import FPS

SIZE_STEP = 32
MIN_SIDE = 16
MAX_ASPECT = 8
MAX_FPS = 240
OUTPUT_SUFFIXES = (".mp4", ".mov", ".mkv")
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
BT709 = 1
EXACT_DURATION = ("mov,mp4,m4a,3gp,3g2,mj2", "flac")
STREAMED_WAV_SIZE = 0x7FFF0000


@dataclass(frozen=True)
class Video:
    """Frames at a constant rate and the audio that starts with the first of them."""

    frames: torch.Tensor  # uint8 [F, H, W, 3]
    fps: float
    audio: tuple[torch.Tensor, int] | None  # float32 [channels, n], rate in Hz


def read_image(path: str | Path) -> torch.Tensor:
    """Reads an image as uint8 `[H, W, 3]`: upright (EXIF), transparent parts on white, 16 bits cut to 8.

    Raises:
        UserError: no image or a damaged one, a side below 16 pixels, one side over 8 times the other.
    """
    path = _existing_file(path, "an image")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            rgb = _flattened(image)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: the image has too many pixels; make it smaller, 4096 a side will do"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path}: no image or a damaged one, expected PNG, JPEG, WebP, BMP, GIF or TIFF; save it as PNG"
        ) from error
    if image.mode in ("F", "I"):
        raise UserError(f"{path}: the image has 32 bits a channel, expected 8 or 16; save it as 8-bit PNG")
    _check_size(path, image.width, image.height)
    return torch.from_numpy(np.array(rgb))


def read_audio(path: str | Path, max_seconds: float | None = None) -> tuple[torch.Tensor, int]:
    """Reads the audio of an audio or video file: float32 `[channels, n]` and its rate in Hz.

    Raises:
        UserError: no audio, no samples, samples that are not numbers, a damaged or cut file.
    """
    path = _existing_file(path, "an audio file")
    with _reading(path, "audio") as container:
        stream = cast(AudioStream | None, container.streams.best("audio"))
        if stream is None:
            raise UserError(
                f"{path}: there is no audio in this file; choose a recording or a video with audio"
            )
        audio = _decode_audio(path, container, stream, None, max_seconds)
    if audio is None:
        raise UserError(f"{path}: the audio has no samples; choose a recording that is not empty")
    return audio


def read_video(path: str | Path, max_seconds: float | None = None, fps: float | None = None) -> Video:
    """Reads a video upright, with square pixels and at a constant rate; its audio starts with frame 0.

    Frame i is the one nearest in time to i / fps, which also evens out a variable rate. `fps` defaults to
    the file's average; with a lower one only the frames of that rate are kept in memory.

    Raises:
        UserError: no video, no frame in it, a damaged or cut file, a strange size or frame rate.
    """
    path = _existing_file(path, "a video")
    with _reading(path, "a video") as container:
        stream = cast(VideoStream | None, container.streams.best("video"))
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise UserError(f"{path}: there is no video in this file; choose a video such as an MP4")
        source_fps = float(stream.average_rate or stream.guessed_rate or 0)
        if not 0 < source_fps <= MAX_FPS:
            raise UserError(
                f"{path}: the video claims {source_fps:g} frames per second, expected at most {MAX_FPS}; "
                "re-encode it as MP4"
            )
        fps = fps or source_fps
        limit = math.inf if max_seconds is None else max(1, round(max_seconds * fps))
        frames, start = _decode_frames(path, container, stream, source_fps, fps, limit)
    audio = None
    with _reading(path, "a video") as container:
        stream = cast(AudioStream | None, container.streams.best("audio"))
        if stream is not None:
            audio = _decode_audio(path, container, stream, start, max_seconds)
    return Video(torch.stack(frames), fps, audio)


def resample_frames(frames: torch.Tensor, fps: float, target_fps: float = FPS) -> torch.Tensor:
    """Frames `[F, ...]` at another rate: each new frame is the old one nearest in time, duration kept."""
    count = max(1, round(len(frames) / fps * target_fps))
    nearest = (torch.arange(count, dtype=torch.float64) * (fps / target_fps) + 0.5 - 1e-6).floor().long()
    return frames[nearest.clamp(max=len(frames) - 1)]


def crop_box(h: int, w: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest middle of `h` x `w` pixels with the aspect wanted."""
    crop_w = min(w, max(1, round(h * width / height)))
    crop_h = min(h, max(1, round(w * height / width)))
    return (h - crop_h) // 2, (w - crop_w) // 2, crop_h, crop_w


def fit_image(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Cuts the middle of uint8 `[H, W, 3]` or `[F, H, W, 3]` to the aspect wanted, then resizes (bicubic)."""
    top, left, crop_h, crop_w = crop_box(image.shape[-3], image.shape[-2], width, height)
    planes = image[..., top : top + crop_h, left : left + crop_w, :].movedim(-1, -3)  # [..., 3, h, w]
    batch = planes.reshape(-1, *planes.shape[-3:])
    resized = F.interpolate(batch, (height, width), mode="bicubic", antialias=True)
    return resized.reshape(*planes.shape[:-2], height, width).movedim(-3, -1).contiguous()


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """uint8 frames `[F, H, W, 3]` -> video `[3, F, H, W]` in -1..1, as the VAE takes it."""
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Video `[3, F, H, W]` in -1..1, as the VAE gives it -> uint8 frames `[F, H, W, 3]` on the CPU."""
    return ((video.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


def size_for(image_w: int, image_h: int, short_side: int = 736) -> tuple[int, int]:
    """Width and height of the video for an image (docs/model.md section 6).

    The shorter side becomes `short_side`, the longer keeps the ratio and is rounded up to 32.

    Raises:
        UserError: `short_side` is no positive multiple of 32.
    """
    if short_side < SIZE_STEP or short_side % SIZE_STEP:
        raise UserError(
            f"the shorter side is {short_side} pixels, expected a multiple of {SIZE_STEP}; "
            f"try {max(1, round(short_side / SIZE_STEP)) * SIZE_STEP}"
        )
    short, long = sorted((image_w, image_h))
    long_side = -(-long * short_side // (short * SIZE_STEP)) * SIZE_STEP
    return (long_side, short_side) if image_w >= image_h else (short_side, long_side)


def check_output(path: str | Path) -> Path:
    """Says before any long work whether `write_mp4` will be able to write there.

    Raises:
        UserError: unknown extension, a folder of that name, a folder that is missing or cannot be written.
    """
    path = Path(path).absolute()
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"{path}: the output ends in {path.suffix!r}, expected {', '.join(OUTPUT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; create it or choose another output")
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected the name of the video to write")
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise _write_error(path, error) from error


def write_mp4(path: str | Path, frames: torch.Tensor, fps: float, waveform: torch.Tensor, rate: int) -> None:
    """Writes H.264 (BT.709, yuv420p) and AAC; the file appears only when it is whole.

    Args:
        path: ends in .mp4, .mov or .mkv; an existing file is replaced.
        frames: uint8 `[F, H, W, 3]`, even height and width.
        fps: frames per second.
        waveform: float `[n]` or `[channels, n]` in -1..1, mono or stereo; filled with silence or cut to
            `round(F / fps * rate)` samples, the length of the video.
        rate: sampling rate in Hz, one that AAC knows.

    Raises:
        UserError: what `check_output` says, wrong sizes or values, no space left.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or not len(frames):
        raise UserError(
            f"frames are {frames.dtype} {list(frames.shape)}, expected uint8 [F, H, W, 3] with F > 0"
        )
    write_mp4_stream(
        path, frames[:, None], len(frames), (frames.shape[2], frames.shape[1]), fps, waveform, rate
    )


def write_mp4_stream(
    path: str | Path,
    frames: Iterable[torch.Tensor],
    count: int,
    size: tuple[int, int],
    fps: float,
    waveform: torch.Tensor,
    rate: int,
) -> None:
    """As `write_mp4`, of frames uint8 `[f, H, W, 3]` that are made as they are written.

    Args:
        count: of all frames.
        size: width and height.
    """
    path = check_output(path)
    width, height = size
    if width % 2 or height % 2:
        raise UserError(f"frames are {width}x{height}, H.264 needs even sizes; cut one pixel")
    if not 1 <= fps <= MAX_FPS:
        raise UserError(f"the frame rate is {fps:g}, expected 1 to {MAX_FPS}")
    if rate not in AAC_RATES:
        raise UserError(
            f"the sampling rate is {rate} Hz, AAC knows {', '.join(map(str, AAC_RATES))}; resample"
        )
    wave = torch.atleast_2d(waveform.detach().float().cpu())  # [channels, n]
    if wave.ndim != 2 or len(wave) not in (1, 2):
        raise UserError(f"the audio is {list(waveform.shape)}, expected [n] or [channels, n], mono or stereo")
    if not torch.isfinite(wave).all():
        raise UserError("the audio has samples that are not numbers (NaN or infinite); nothing was written")
    n = round(count / fps * rate)
    wave = F.pad(wave.clamp(-1, 1), (0, max(0, n - wave.shape[1])))[:, :n]
    try:
        with replacing(path, path.suffix.lower()) as part:
            pictures = (picture for some in frames for picture in some)
            _encode(part, pictures, count, size, Fraction(fps).limit_denominator(1001), wave.numpy(), rate)
    except (OSError, FFmpegError) as error:
        raise _write_error(path, error) from error


def _encode(
    path: Path,
    frames: Iterable[torch.Tensor],
    count: int,
    size: tuple[int, int],
    fps: Fraction,
    wave: np.ndarray,
    rate: int,
) -> None:
    options = {} if path.suffix == ".mkv" else {"movflags": "+faststart"}
    layout = ("mono", "stereo")[len(wave) - 1]
    with av.open(path, "w", options=options) as container:
        # x264's macroblock tree reads unset memory at widths off 128: the same frames, another file
        options = {"crf": "17", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", rate=fps, options=options)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = BT709
        audio = container.add_stream("aac", rate=rate, layout=layout)
        audio.bit_rate = 128_000 * len(wave)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels.cpu().contiguous().numpy(), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = i, 1 / fps
            container.mux(video.encode(frame))
            start, end = i * wave.shape[1] // count, (i + 1) * wave.shape[1] // count
            samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, start:end]), "fltp", layout)
            samples.rate, samples.pts, samples.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(samples))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _write_error(path: Path, error: OSError | FFmpegError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: no space left in {path.parent}; free some or choose another folder")
    return UserError(f"{path}: cannot be written ({error.strerror}); choose another output")


def _existing_file(path: str | Path, expected: str) -> Path:
    path = Path(path).absolute()
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected {expected}; choose a file in it")
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected {expected}; check the name")
    if path.stat().st_size == 0:
        raise UserError(
            f"{path}: the file is empty (0 bytes), expected {expected}; copy or download it again"
        )
    return path


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[InputContainer]:
    try:
        with av.open(path, metadata_errors="ignore") as container:
            # FFmpeg reads any text as terminal art and an image as a video of one frame
            if container.format.name in ("tty", "image2") or container.format.name.endswith("_pipe"):
                raise UserError(f"{path}: this is a text or an image, expected {expected}")
            yield container
    except (OSError, FFmpegError) as error:
        raise UserError(
            f"{path}: cannot be read as {expected}, damaged or cut short ({error.strerror}); "
            "copy it again or re-encode it"
        ) from error


def _check_whole(path: Path, container: InputContainer, stream: Stream, end: float) -> None:
    """Compares what could be decoded, in seconds, with what the file says it holds."""
    if container.format.name == "wav":
        with path.open("rb") as file:
            magic, size = file.read(4), int.from_bytes(file.read(4), "little")
        cut = magic == b"RIFF" and size < STREAMED_WAV_SIZE and path.stat().st_size < size + 7
    else:
        declared = float((stream.duration or 0) * (stream.time_base or 0))
        cut = container.format.name in EXACT_DURATION and end < 0.95 * declared - 0.25
    if cut:
        raise UserError(f"{path}: cut short, it ends after {end:.2f} s; copy it again or re-encode it")


def _check_size(path: Path, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"{path}: is {width}x{height} pixels, expected at least {MIN_SIDE} a side; choose a larger one"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{path}: is {width}x{height} pixels, far too narrow; cut it to at most {MAX_ASPECT}:1"
        )


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _decode_frames(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    source_fps: float,
    fps: float,
    limit: float,
) -> tuple[list[torch.Tensor], float]:
    """uint8 `[H, W, 3]` frames nearest in time to 0, 1/fps, ... and the time of the first in the file."""
    kept: list[torch.Tensor] = []
    start, time, end, previous, size = 0.0, 0.0, 0.0, None, (0, 0)

    def keep_until(slots: float, frame: av.VideoFrame) -> None:
        if len(kept) < min(slots, limit):
            pixels = _upright(frame, size)
            while len(kept) < min(slots, limit):
                kept.append(pixels)

    for index, frame in enumerate(container.decode(stream)):
        stamp = index / source_fps if frame.time is None else frame.time
        if previous is None:
            _check_size(path, frame.width, frame.height)
            start, size = stamp, (round(frame.width * (stream.sample_aspect_ratio or 1)), frame.height)
        else:
            keep_until(((time + stamp - start) / 2 + 1e-6) * fps, previous)
        if len(kept) >= limit:
            return kept, start
        time, previous = stamp - start, frame
        end = time + max(1 / source_fps, float((frame.duration or 0) * (frame.time_base or 0)))
    if previous is None:
        raise UserError(f"{path}: no frame of the video can be decoded; re-encode it as MP4")
    _check_whole(path, container, stream, end)
    keep_until(max(1, round(end * fps)), previous)
    return kept, start


def _upright(frame: av.VideoFrame, size: tuple[int, int]) -> torch.Tensor:
    pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return torch.from_numpy(np.rot90(pixels, round(frame.rotation / 90)).copy())


def _decode_audio(
    path: Path,
    container: InputContainer,
    stream: AudioStream,
    start: float | None,
    max_seconds: float | None,
) -> tuple[torch.Tensor, int] | None:
    """Samples from `start` seconds on (None: from the first); None if there are none."""
    parts, skip, have, rate, limit = [], 0, 0, 0, math.inf
    resampler = av.AudioResampler(format="flt")  # packed: PyAV crashes on 8 and more planes
    for frame in container.decode(stream):
        if not parts:
            rate = frame.sample_rate
            skip = 0 if start is None or frame.time is None else round((start - frame.time) * rate)
            limit = math.inf if max_seconds is None else max(1, round(max_seconds * rate))
        channels = frame.layout.nb_channels
        parts += [
            torch.from_numpy(part.to_ndarray().reshape(-1, channels)) for part in resampler.resample(frame)
        ]
        have += frame.samples
        if have - skip >= limit:
            break
    if not parts:
        return None
    wave = torch.cat(parts).T  # [channels, n]
    if have - skip < limit:
        _check_whole(path, container, stream, have / rate)
    if not torch.isfinite(wave).all():
        raise UserError(
            f"{path}: the audio has samples that are not numbers (NaN or infinite); export it again"
        )
    wave = F.pad(wave[:, max(0, skip) :], (max(0, -skip), 0))
    wave = wave if limit == math.inf else wave[:, :limit]
    return (wave.contiguous(), rate) if wave.shape[1] else None
