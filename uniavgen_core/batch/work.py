"""One worker: its own pipeline, which stays loaded, and clips one after the other."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from .. import __version__, atomic
from ..errors import UserError
from ..pipeline import Pipeline, Weights, generate
from .jobs import Job

T = TypeVar("T")

REMEMBERED = 64


class Outcome(NamedTuple):
    """What became of a job; `error` is a line, with the traceback after it where nobody foresaw the error."""

    job: str
    error: str | None
    seconds: float
    worker: str


class RememberingPipeline(Pipeline):
    """Keeps the last encodings, so that a caption or an image that many clips share is encoded once."""

    def encode_captions(self, captions: list[str]) -> tuple[Tensor, list[str]]:
        encode = super().encode_captions
        return self._remembered(tuple(captions), lambda: encode(captions))

    def encode_frames(self, frames: Tensor) -> Tensor:
        encode = super().encode_frames
        key = hashlib.sha256(frames.contiguous().numpy().data).digest(), frames.shape
        return self._remembered(key, lambda: encode(frames))

    def _remembered(self, key: Hashable, encode: Callable[[], T]) -> T:
        kept: OrderedDict = self.__dict__.setdefault("_kept", OrderedDict())
        if key not in kept:
            kept[key] = encode()
        kept.move_to_end(key)
        while len(kept) > REMEMBERED:
            kept.popitem(last=False)
        return kept[key]


def named(weights: Weights) -> dict[str, str]:
    """What the clips are made with, as it stands in their records; nothing for the embedded model."""
    parts = {name: getattr(weights, name) for name in ("model", "vae", "text_encoder", "vocoder", "dtype")}
    return {name: str(value) for name, value in parts.items() if value is not None}


def record_of(job: Job) -> Path:
    """The JSON file beside the clip; it is written last, so where it is the clip is whole."""
    return Path(job.request.out).with_suffix(".json")


def is_made(job: Job, weights: Weights) -> bool:
    """Whether the clip is there, made of these files with these very options and weights."""
    if not Path(job.request.out).is_file():
        return False
    return _made_with(job) == (job.options, named(weights), job.files())


def was_made(job: Job) -> bool:
    """Whether the clip is there, made with whatever options."""
    return Path(job.request.out).is_file() and _made_with(job) is not None


def _made_with(job: Job) -> tuple[Any, Any, Any] | None:
    try:
        record = json.loads(record_of(job).read_text(encoding="utf-8"))
        return record["options"], record["weights"], record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Worker:
    """Makes clips; every part of the model is loaded once.

    Args:
        weights: the model, with the device of this worker.
        cores: threads of a CPU; 0 leaves torch's own number.
    """

    def __init__(self, weights: Weights, cores: int = 0):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever downloaded
        disable_progress_bar()
        if cores:
            torch.set_num_threads(cores)
        self.weights = weights
        self.pipeline = RememberingPipeline.load(weights, keep=True)
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def make(self, job: Job) -> Outcome:
        """Makes one clip and its record, unless they are there: a worker killed after both made them."""
        start = time.perf_counter()
        error = None
        try:
            if not is_made(job, self.weights):
                self._make(job, start)
        except (UserError, OSError) as reason:
            error = " ".join(str(reason).split())
        except Exception as reason:
            error = f"{type(reason).__name__}: {reason}\n{traceback.format_exc()}"
            if self.pipeline.device.type == "cuda":
                torch.cuda.empty_cache()
        return Outcome(job.id, error, time.perf_counter() - start, self.name)

    def _make(self, job: Job, start: float) -> None:
        record = record_of(job)
        record.unlink(missing_ok=True)  # until the clip is whole, it is not that of any record
        about = {"id": job.id, "options": job.options, "weights": named(self.weights), "files": job.files()}
        result = generate(job.request, self.weights, pipeline=self.pipeline)
        values = result.to_dict()
        values["out"] = Path(result.out).name
        values["seconds"] = {**result.seconds, "total": round(time.perf_counter() - start, 3)}
        made_by = {"worker": self.name, "device": _device(self.pipeline.device), "versions": _versions()}
        text = json.dumps({**about, **values, **made_by}, ensure_ascii=False, indent=2)
        atomic.write_text(record, text + "\n")


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _versions() -> dict[str, str]:
    return {"uniavgen": __version__, "torch": torch.__version__, "python": platform.python_version()}
