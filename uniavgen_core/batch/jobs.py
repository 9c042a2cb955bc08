"""What is to be made: lines of a jsonl file or rows of a CSV file, each checked before anything is loaded."""

from __future__ import annotations

import argparse
import copy
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ..atomic import stamps
from ..errors import UserError
from ..modes import MODES

if TYPE_CHECKING:
    from ..model.config import Config
    from ..pipeline import Request
    from ..sampling.defaults import SamplingDefaults

RELEASE_COLUMNS = {
    "data_id": "id",
    "ref_image_path": "image",
    "speech_content": "text",
    "prompt": "caption",
    "lang": "language",
    "ref_audio_path": "voice",
    "ref_speech_content": "voice_text",
    "video_path": "video",
    "audio_path": "audio",
}
"""The columns of the release's CSV files, by the options of `generate` that they are."""
FILES = ("image", "video", "audio", "voice", "who_speaks", "last_image")
NOT_IN_NAMES = re.compile(r'[\x00-\x1f/\\:*?"<>|]')
LONGEST_NAME = 200  # bytes of an id, so that its files and their temporary names fit a file system


@dataclass(frozen=True)
class Job:
    """One clip. `line`: where it stands, from 1; `options`: those that are not the defaults, as given."""

    line: int
    id: str
    request: Request
    options: dict[str, Any]

    def files(self) -> dict[str, list[int]]:
        """The `atomic.stamps` of every file that the clip is made from, by its path."""
        paths = [getattr(self.request, name) for name in FILES] + [path for _, path in self.request.keyframes]
        return {path: numbers for path, *numbers in stamps(Path(path) for path in paths if path)}


class Fault(NamedTuple):
    """A row that no clip can be made of."""

    line: int
    message: str


class _Row(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class Reader:
    """Turns rows into jobs.

    Args:
        add_clip: adds the options of one clip to a parser.
        request: makes a `Request` of them and of `out`.
        shared: options that hold for every row that does not say otherwise.
        settings, config: of the model.
        out: the folder of the results.
    """

    def __init__(
        self,
        add_clip: Callable[[argparse.ArgumentParser], None],
        request: Callable[[argparse.Namespace, SamplingDefaults], Request],
        shared: argparse.Namespace,
        settings: SamplingDefaults,
        config: Config,
        out: Path,
    ):
        self._parser = _Row(add_help=False, allow_abbrev=False)
        add_clip(self._parser)
        self._defaults = vars(self._parser.parse_args([]))
        self._shared = {name: getattr(shared, name) for name in self._defaults}
        self._request, self._settings, self._config, self._out = request, settings, config, out

    def read(self, path: Path) -> tuple[list[Job], list[Fault]]:
        """All rows of a file: those that can be made and those that cannot.

        Raises:
            UserError: no such file, no text file, no rows, no column of ids.
        """
        is_csv = path.suffix.lower() == ".csv"
        rows = _csv_rows(path, self._shared["mode"]) if is_csv else _jsonl_rows(path)
        jobs, faults, lines = [], [], {}
        for line, row in rows:
            try:
                if isinstance(row, str):
                    raise UserError(row)
                job = self._job(line, row, path.parent)
                if job.id.casefold() in lines:
                    raise UserError(f"the id {job.id!r} is that of line {lines[job.id.casefold()]} too")
                lines[job.id.casefold()] = line
                jobs.append(job)
            except UserError as error:
                faults.append(Fault(line, " ".join(str(error).split())))
        if not jobs and not faults:
            raise UserError(f"{path}: there are no rows in this file; write one for each clip")
        return jobs, faults

    def _job(self, line: int, row: dict[str, Any], beside: Path) -> Job:
        row = {name.replace("-", "_"): value for name, value in row.items() if value not in (None, "")}
        name = _checked_id(row.pop("id", None))
        options = self._options(row)
        for file in FILES:
            given = getattr(options, file)
            if given and not Path(given).is_file():
                if not (beside / given).is_file():
                    expected = "it is looked for here and beside the list"
                    raise UserError(f"{given}: no such file ({file}); {expected}")
                setattr(options, file, str(beside / given))
        if not (options.text or "").strip():
            raise UserError("nothing to say: the row has no text")
        options.out = str(self._out / f"{name}.mp4")
        request = self._request(options, self._settings)
        completed = request.completed(self._settings)
        completed.guidance.for_layers(self._config.layers)
        for _, given in request.keyframes:
            if not Path(given).is_file():
                raise UserError(f"{given}: no such file (keyframe); it is looked for here")
        differing = {
            key: value
            for key, value in vars(options).items()
            if key in self._defaults and value != self._defaults[key]
        }
        return Job(line, name, request, differing)

    def _options(self, row: dict[str, Any]) -> argparse.Namespace:
        """A row as the command line would read it, over what is shared by all rows."""
        arguments, shared = [], copy.deepcopy(self._shared)
        for name, value in row.items():
            if name not in self._defaults:
                raise UserError(f"{name!r} is no option of a clip; the options are those of `generate`")
            flag = "--" + name.replace("_", "-")
            if isinstance(value, dict):
                raise UserError(f"{name} is an object, expected one value")
            if isinstance(value, bool):
                arguments += [flag] if value else []
                continue
            if isinstance(shared[name], list):
                shared[name] = []  # the row's own, not added to those of all rows
            values = value if isinstance(value, list) else [value]
            arguments += [f"{flag}={part}" for part in values]
        return self._parser.parse_args(arguments, argparse.Namespace(**shared))


def _checked_id(given: object) -> str:
    if given is None:
        raise UserError("the row has no id; give each its own, it becomes the name of the clip")
    name = str(given)
    if NOT_IN_NAMES.search(name) or name.startswith(".") or name != name.strip():
        raise UserError(f"the id {name!r} cannot be the name of a file; use letters, digits, - and _")
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"the id {name[:20]!r}... has {len(name)} letters; use at most {LONGEST_NAME}")
    return name


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text in UTF-8; give a jsonl or CSV file") from error


Rows = Iterator[tuple[int, "dict[str, Any] | str"]]
"""Line and values of each row, or what is wrong with it."""


def _jsonl_rows(path: Path) -> Rows:
    for line, text in enumerate(_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            yield line, f"no JSON ({error}); write one object a line"
            continue
        yield line, row if isinstance(row, dict) else 'no JSON object; write one a line, such as {"id": ...}'


def _csv_rows(path: Path, mode: str | None) -> Rows:
    reader = csv.DictReader(_text(path).splitlines(keepends=True), strict=True)
    try:
        columns = reader.fieldnames or []
        if not {"data_id", "id"} & set(columns):
            raise UserError(f"{path}: there is no column data_id (or id); the first line names the columns")
        while True:
            line = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            if None in row:
                yield line, f"the row has more cells than the {len(columns)} columns"
            else:
                yield line, _of_release(row, mode)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: no CSV ({error}); save it again as CSV") from error


def _of_release(row: dict[str, str | None], mode: str | None) -> dict[str, Any]:
    """A row under the names of `generate`.

    Its mode is its own, else that of all rows, which then leaves out files that it has no use for, else the
    release's task for the files that are given.
    """
    named: dict[str, Any] = {RELEASE_COLUMNS.get(name, name): value for name, value in row.items() if value}
    if "language" in named:
        named["language"] = named["language"].lower()
    if mode in MODES and "mode" not in named:
        used = {*MODES[mode].needs, *MODES[mode].allows}
        given = {"image", "video", "audio", "voice", "voice_text"}
        return {k: v for k, v in named.items() if k in used or k not in given}
    return {"mode": mode or _task(named), **named}


def _task(row: dict[str, Any]) -> str:
    if "audio" in row:
        return "audio-driven"
    if "video" in row:
        return "dubbing"
    return "reference-voice" if "voice" in row else "joint"
