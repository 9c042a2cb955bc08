"""Writing safetensors files tensor by tensor, and ComfyUI's scaled fp8."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..atomic import replacing
from ..errors import UserError
from .files import FP8, INT8, INT8_FORMAT, TORCH_DTYPES, first_few

DtypeName = Literal["fp32", "bf16", "fp16", "fp8", "int8"]

STORAGE = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "fp8": FP8, "int8": INT8}
FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
MODEL_LINEAR = re.compile(
    r"(audio_)?blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.weight"
    r"|(a2v|v2a)_blocks\.\d+\.[qkvo]\.weight"
)
TEXT_LINEAR = re.compile(
    r"encoder\.block\.\d+\.layer\.(0\.SelfAttention\.[qkvo]|1\.DenseReluDense\.w(i_[01]|o))\.weight"
)
INT8_MAX = 127
MARKER = "scaled_fp8"  # two elements ask ComfyUI to multiply in full precision


class Entry(NamedTuple):
    """A tensor to be written; `code` is safetensors' dtype."""

    shape: tuple[int, ...]
    code: str

    @property
    def size(self) -> int:
        return math.prod(self.shape) * TORCH_DTYPES[self.code].itemsize


def check_dtype(dtype: str | None) -> None:
    """Raises UserError unless it is one of `STORAGE` or None."""
    if dtype is not None and dtype not in STORAGE:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(STORAGE)}: choose one of these")


def scale_name(weight: str, code: str = FP8) -> str:
    return weight.removesuffix("weight") + ("weight_scale" if code == INT8 else "scale_weight")


def with_scales(layout: Mapping[str, Entry]) -> dict[str, Entry]:
    """The layout with a scale for each fp8 weight and the marker, and one for each row of an int8 weight."""
    fp8 = {scale_name(n): Entry((), "F32") for n, entry in layout.items() if entry.code == FP8}
    int8 = {
        scale_name(n, INT8): Entry((entry.shape[0], 1), "F32")
        for n, entry in layout.items()
        if entry.code == INT8
    }
    return {**layout, **fp8, **int8, **({MARKER: Entry((2,), FP8)} if fp8 else {})}


def quantisation_note(layout: Mapping[str, Entry]) -> dict[str, str]:
    """The metadata that tells ComfyUI which layers are int8; it multiplies them in full precision."""
    note = {"format": INT8_FORMAT, "full_precision_matrix_mult": True}
    layers = {n.removesuffix(".weight"): note for n, entry in layout.items() if entry.code == INT8}
    return {"_quantization_metadata": json.dumps({"layers": layers})} if layers else {}


def encode(
    tensors: Iterable[tuple[str, Tensor]], layout: Mapping[str, Entry]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the file stores them; an fp8 or int8 weight is followed by its scale or scales.

    Raises:
        UserError: values that the dtype cannot hold.
        ValueError: a tensor that is not in the layout.
    """
    for name, value in tensors:
        if name not in layout:
            raise ValueError(f"{name} is not a tensor of this model")
        value, code = value.detach(), layout[name].code
        if code == FP8 and value.dtype != torch.float8_e4m3fn:
            value = value.float()
            lowest, highest = value.aminmax()  # no second copy of the tensor, as abs() would be
            largest = torch.maximum(-lowest, highest)
            whole = largest.isfinite()
            scale = torch.where(largest > 0, largest / FP8_MAX, 1.0)
            yield name, (value / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
            yield scale_name(name), scale
        elif code == INT8 and value.dtype != torch.int8:
            lowest, highest = value.float().aminmax(dim=1, keepdim=True)
            largest = torch.maximum(-lowest, highest)
            whole = largest.isfinite().all()
            scale = torch.where(largest > 0, largest / INT8_MAX, 1.0)
            yield name, (value / scale).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
            yield scale_name(name, INT8), scale
        else:
            stored = value.to(TORCH_DTYPES[code])
            whole = code != "F16" or stored.isfinite().all()
            yield name, stored
        if not whole:
            raise UserError(f"{name} holds values that {code} cannot; expected finite ones: use bf16")
    if MARKER in layout:
        yield MARKER, torch.zeros(2, dtype=torch.float8_e4m3fn)


def check_target(path: Path, layout: Mapping[str, Entry]) -> None:
    """Raises UserError if the file cannot be written: its name, its folder, the room on the disk."""
    if path.suffix != ".safetensors" or path.is_dir():
        raise UserError(f"{path} is not a file name ending in .safetensors: choose such a name")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; expected one to write {path.name} into: create it")
    size = sum(entry.size for entry in layout.values())
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise _disk_full(path, size, free)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file of tensors at hand that appears only when it is whole."""
    with replacing(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)


def write_tensors(
    path: Path,
    layout: Mapping[str, Entry],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write header, then each tensor at its place, to a hidden file that becomes `path` when complete.

    One tensor at a time is in memory. `tensors`: exactly those of the layout, in any order.

    Raises:
        UserError: as `check_target`; a folder that cannot be written to.
        ValueError: tensors that do not fit the layout.
    """
    check_target(path, layout)
    header: dict = {"__metadata__": {"format": "pt", **(metadata or {}), **quantisation_note(layout)}}
    end = 0
    for name in sorted(layout, key=lambda n: (-TORCH_DTYPES[layout[n].code].itemsize, n)):
        begin, end = end, end + layout[name].size
        header[name] = {"dtype": layout[name].code, "shape": layout[name].shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    left = set(layout)
    try:
        with replacing(path) as part, part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, value in tensors:
                if name not in layout:
                    raise ValueError(f"{name} is not a tensor of this model")
                if tuple(value.shape) != layout[name].shape:
                    raise ValueError(f"{name} is {list(value.shape)}, expected {list(layout[name].shape)}")
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                left.discard(name)
            if left:
                raise ValueError(f"{len(left)} tensors were not given ({first_few(sorted(left))})")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(path, 8 + len(text) + end, shutil.disk_usage(path.parent).free) from error
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another folder") from error


def _disk_full(path: Path, size: int, free: int) -> UserError:
    return UserError(
        f"{path} needs {size / 1e6:.1f} MB but {path.parent} has {free / 1e6:.1f} MB free: make room or "
        "choose another folder"
    )
