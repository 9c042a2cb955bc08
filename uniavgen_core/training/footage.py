"""Training clips from real video: mp4 files and a jsonl that describes them (docs/model.md sections 6 and 8).

One JSON object a line: "file" (relative to the list), "caption", "transcript", "language" ("en" or "zh");
optional "faces": one box [x0, y0, x1, y1] in pixels of the file, or one for each of its frames, found by
OpenCV when absent; optional "speaker", in all lines or none: clips of one speaker serve each other as
reference voices.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import conditioning
from ..errors import UserError, counted
from ..media import files, mel
from ..media.speech import symbol_ids
from .data import EncodeVideo, Sample, encode_clip

REQUIRED = ("file", "caption", "transcript", "language")
OPTIONAL = ("faces", "speaker")

FindFace = Callable[[np.ndarray], "tuple[float, float, float, float] | None"]
"""RGB frame `[H, W, 3]` -> box of its largest face, or none."""


@dataclass(frozen=True)
class Row:
    """One line of a list; `place` names list and line in error messages."""

    place: str
    file: Path
    caption: str
    transcript: str
    language: str
    faces: Tensor | None = None  # [1 or frames, 4]
    speaker: str | None = None


def read_list(path: str | Path) -> list[Row]:
    """All lines of a jsonl, checked before any video is opened.

    Raises:
        UserError: the first line that cannot be used, with what to do about it.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a UTF-8 jsonl, one clip a line") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{path}: there are no clips in it; write one JSON object a line")
    speakers = [row.speaker for row in rows]
    if any(speakers):
        for row in rows:
            if row.speaker is None or speakers.count(row.speaker) < 2:
                raise UserError(
                    f"{row.place}: speaker {row.speaker!r} has no second clip to lend its voice; "
                    'name a "speaker" of two or more clips in every line, or in none'
                )
    return rows


def _row(path: Path, number: int, line: str) -> Row:
    place = f"{path}:{number}"
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: is no JSON ({error}); write one object a line") from error
    if not isinstance(values, dict):
        raise UserError(f"{place}: is no JSON object; write {{...}} with {', '.join(REQUIRED)}")
    missing = [name for name in REQUIRED if not isinstance(values.get(name), str)]
    if missing:
        raise UserError(f'{place}: has no text "{missing[0]}"; add it')
    unknown = [name for name in values if name not in REQUIRED + OPTIONAL]
    if unknown:
        raise UserError(f'{place}: "{unknown[0]}" means nothing here; use {", ".join(REQUIRED + OPTIONAL)}')
    file = path.parent / values["file"]
    if not file.is_file():
        raise UserError(f"{place}: there is no file {file}; correct the path, it is relative to the list")
    try:
        symbol_ids(values["transcript"], values["language"])
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    faces = values.pop("faces", None)
    return Row(place, **{**values, "file": file}, faces=None if faces is None else _boxes(place, faces))


def _boxes(place: str, faces: object) -> Tensor:
    fault = f'{place}: "faces" must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1, or a list of such'
    try:
        boxes = torch.tensor(faces, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{fault}; correct or remove it") from error
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not (boxes[:, :2] < boxes[:, 2:]).all():
        raise UserError(f"{fault}; correct or remove it")
    return boxes


def footage_sample(
    rows: list[Row],
    index: int,
    frames: int,
    size: tuple[int, int],
    encode: EncodeVideo,
    find_face: FindFace | None = None,
) -> Sample:
    """The first `frames` (4n + 1, at 16 fps) of a clip, its middle fitted to `size` (width, height).

    `find_face` defaults to OpenCV's frontal face detector.

    Raises:
        UserError: a clip too short, without audio or (where it has no boxes) without a visible face.
    """
    row = rows[index]
    seconds = frames / conditioning.FPS
    video = files.read_video(row.file, max_seconds=seconds)
    video_frames = files.resample_frames(video.frames, video.fps)[:frames]
    if len(video_frames) < frames:
        raise UserError(
            f"{row.place}: {row.file.name} has {counted(len(video_frames), 'frame')} at 16 fps, "
            f"{frames} are needed; leave the line out or train on shorter clips"
        )
    if video.audio is None:
        raise UserError(f"{row.place}: {row.file.name} has no audio; leave the line out")
    boxes = row.faces
    if boxes is None:
        boxes = _found_faces(row, video_frames.numpy(), find_face or face_finder())
    elif len(boxes) > 1:
        if len(boxes) < len(video.frames):
            raise UserError(
                f"{row.place}: {len(boxes)} face boxes for {counted(len(video.frames), 'frame')}; "
                "give one for each, or one for all"
            )
        boxes = files.resample_frames(boxes[: len(video.frames)], video.fps)[:frames]
    width, height = size
    drawn = _drawn(boxes.expand(frames, -1), *video_frames.shape[1:3])  # cut like the frames
    face_mask = files.fit_image(drawn, width, height)[..., 0] > 127
    voice, said = None, ""
    if row.speaker is not None:
        same = [r for r in rows if r.speaker == row.speaker]
        other = same[(same.index(row) + 1) % len(same)]
        voice_audio = mel.prepare_audio(*files.read_audio(other.file, seconds))
        mel.check_audible(voice_audio, str(other.file))
        voice, said = conditioning.voice_latent(voice_audio), other.transcript
    return Sample(
        **encode_clip(
            files.fit_image(video_frames, width, height), mel.prepare_audio(*video.audio), face_mask, encode
        ),
        transcript=row.transcript,
        caption=row.caption,
        language=row.language,
        voice=voice,
        voice_transcript=said,
    )


def _drawn(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes `[F, 4]` as white on black, uint8 `[F, H, W, 3]`."""
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    x0, y0, x1, y1 = (boxes[:, i, None] for i in range(4))
    columns, rows = (x >= x0) & (x <= x1), (y >= y0) & (y <= y1)
    inside = rows[:, :, None] & columns[:, None]  # [F, H, W]
    return (255 * inside.to(torch.uint8))[..., None].expand(-1, -1, -1, 3)


def _found_faces(row: Row, video_frames: np.ndarray, find_face: FindFace) -> Tensor:
    """A box per frame; frames without one take that of the nearest frame."""
    found = [find_face(frame) for frame in video_frames]
    seen = [i for i, box in enumerate(found) if box is not None]
    if not seen:
        raise UserError(
            f'{row.place}: no face was found in {row.file.name}; give "faces" boxes or leave the line out'
        )
    nearest = [min(seen, key=lambda j: abs(i - j)) for i in range(len(found))]
    return torch.tensor([found[j] for j in nearest], dtype=torch.float32)


def face_finder() -> FindFace:
    """OpenCV's frontal face cascade, which its packages before 5 ship.

    Raises:
        UserError: there is no OpenCV, or one without a detector and its model inside.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            'finding faces needs OpenCV, which is not installed; give "faces" boxes in the list, '
            'or run `pip install "opencv-python-headless<5"`'
        ) from error
    if int(cv2.__version__.split(".")[0]) >= 5:
        raise UserError(
            f'OpenCV {cv2.__version__} ships no face detector; give "faces" boxes in the list, '
            'or run `pip install "opencv-python-headless<5"`'
        )
    folder = Path(cv2.__file__).parent / "data"
    cascade = cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_default.xml"))

    def find(frame: np.ndarray) -> tuple[float, float, float, float] | None:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        smallest = round(0.12 * min(grey.shape))
        boxes = cascade.detectMultiScale(grey, 1.1, 4, minSize=(smallest, smallest))
        if not len(boxes):
            return None
        x, y, w, h = max(boxes, key=lambda box: box[2] * box[3])
        return float(x), float(y), float(x + w), float(y + h)

    return find
