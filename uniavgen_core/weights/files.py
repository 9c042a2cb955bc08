"""Tensor files: safetensors and PyTorch's .pth, headers first, tensors memory-mapped and read when asked for.

A `.pth` is opened with `torch.load(weights_only=True, mmap=True)` and nothing else, so no code in it runs.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError

MAX_HEADER = 100_000_000
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin|\.pth)")
FP8 = "F8_E4M3"
INT8 = "I8"
INT8_FORMAT = "int8_tensorwise"  # ComfyUI's name, also where each row has its scale
QUANTISED = ("F8", INT8)  # how the codes of tensors begin that are multiplied by a scale
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What a file is: a short `kind`, the same in words, and what to do with it."""

    kind: str
    what: str
    advice: str


class WrongFile(UserError):
    """A file or folder that is not what was expected; `identity` says what it is."""

    def __init__(self, path: Path, identity: Identity, expected: str):
        super().__init__(f"{path} is {identity.what}; expected {expected}: {identity.advice}")
        self.identity = identity


class Unreadable(Exception):
    """A file that cannot be read as tensors; `identity` says what it is instead."""

    def __init__(self, file: Path, identity: Identity):
        super().__init__(identity.what)
        self.file, self.identity = file, identity


AGAIN = "download it again"
MISSING = Identity("missing", "not there", "check the path")
EMPTY = Identity("empty", "an empty file", AGAIN)
ZEROS = Identity("truncated", "an unfinished download (it starts with zeros)", AGAIN)
CUT_PTH = Identity("truncated", "a cut or damaged .pth file", AGAIN)
PICKLE = Identity(
    "pickle",
    "a PyTorch pickle that holds more than tensors or is of an old kind, which is not opened because it can "
    "run code",
    "get it as .safetensors",
)
ZIP = Identity("zip", "a zip archive", "unpack it and choose the .safetensors file in it")
GGUF = Identity("gguf", "a GGUF file", "get the .safetensors file; `uniavgen convert --dtype fp8` shrinks it")
HTML = Identity("html", "a web page saved in place of the file", "use the site's download link")
LFS = Identity("git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull` in its folder")
JSON = Identity("json", "a JSON file", "choose the .safetensors file or its folder")
TEXT = Identity("text", "a text file", "choose the .safetensors file or its folder")
BINARY = Identity("binary", "no safetensors file, nor any known model format", "choose another file")


def damaged(what: str) -> Identity:
    return Identity("damaged", what, AGAIN)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file's header describes it; `dtype` is safetensors' code, such as BF16."""

    stored_name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of one file; the size of a safetensors file must be what its header says.

    Raises:
        Unreadable: neither a whole safetensors file nor a whole .pth of tensors.
        UserError: no permission to read it.
    """
    size = file.stat().st_size
    if size == 0:
        raise Unreadable(file, EMPTY)
    try:
        with file.open("rb") as opened:
            head = opened.read(1024)
            length = int.from_bytes(head[:8], "little")
            if length > MAX_HEADER or head[8:9] != b"{":
                if not head.startswith(b"PK\x03\x04"):
                    raise Unreadable(file, _identify_bytes(head))
                tensors = read_pth(file)
                return {
                    n: TensorInfo(n, file, tuple(t.shape), CODES.get(t.dtype, str(t.dtype)))
                    for n, t in tensors.items()
                }, {}
            opened.seek(8)
            text = opened.read(length)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from error
    if size < 8 + length:
        raise Unreadable(file, _cut(size, 8 + length))
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {n: TensorInfo(n, file, tuple(e["shape"]), e["dtype"]) for n, e in header.items()}
        places = sorted((*entry["data_offsets"], name) for name, entry in header.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(file, damaged("a safetensors file with a broken header")) from error
    end = 0
    for begin, stop, name in places:
        dtype = TORCH_DTYPES.get(tensors[name].dtype)
        fits = dtype is None or stop - begin == tensors[name].parameters * dtype.itemsize
        if begin != end or not fits:
            raise Unreadable(file, damaged(f"a safetensors file with a wrong entry {name}"))
        end = stop
    if size < 8 + length + end:
        raise Unreadable(file, _cut(size, 8 + length + end))
    if size > 8 + length + end:
        raise Unreadable(file, damaged(f"a safetensors file with {size - 8 - length - end} bytes too many"))
    return tensors, metadata


def read_pth(file: Path) -> dict[str, Tensor]:
    """The named tensors of a `.pth`, memory-mapped; a state dict in an entry `state_dict` is found there.

    Raises:
        Unreadable: cut, or more than tensors (which only unsafe loading would read).
    """
    try:
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise Unreadable(file, PICKLE) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        with file.open("rb") as opened:
            known = b".pkl" in opened.read(1024)
        raise Unreadable(file, CUT_PTH if known else ZIP) from error
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    named = isinstance(values, dict) and {k: v for k, v in values.items() if isinstance(v, Tensor)}
    if not named:
        raise Unreadable(file, damaged("a .pth file without named tensors"))
    return named


def parse_json(text: str | bytes, name: str | Path) -> dict:
    """A JSON object from the file or entry `name`."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{name} is not a JSON object: correct or remove it, or {AGAIN}")
    return value


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


class TensorFiles:
    """The tensors of one part, from one file or several.

    Attributes:
        path: as given.
        files: the files, in order.
        identity: what the part is.
        prefix: what stands before every name in the files and is left out here.
        stored: every tensor as the files hold it, by name without the prefix.
        tensors: the part's tensors; the scales and markers of fp8 layouts are folded away.
        scales: one number for each fp8 weight that has one, by the weight's name.
        metadata: the files' own notes.
        settings: the config.json beside them.
    """

    def __init__(
        self,
        path: Path,
        files: list[Path],
        identity: Identity,
        prefix: str,
        stored: dict[str, TensorInfo],
        metadata: dict[str, str],
        settings: dict,
    ):
        self.path, self.files, self.identity, self.prefix = path, files, identity, prefix
        self.stored, self.metadata, self.settings = stored, metadata, settings
        self.scales: dict[str, TensorInfo] = {}
        self._open = {}
        self.tensors = self._fold_quantisation()

    @property
    def dtype(self) -> torch.dtype:
        """Of most parameters; bfloat16 for fp8 and int8."""
        counts = Counter()
        for info in self.tensors.values():
            counts[info.dtype] += info.parameters
        most = counts.most_common(1)[0][0]
        return torch.bfloat16 if most.startswith(QUANTISED) else TORCH_DTYPES[most]

    def check(
        self, expected: Mapping[str, tuple[int, ...]], names: Mapping[str, str] | None = None
    ) -> list[str]:
        """Compare names and shapes with what a model takes; `names`: the model's name -> the stored one.

        Returns a note on tensors that the model does not take, which are ignored.

        Raises:
            UserError: tensors missing, of another shape or not of a float type.
        """
        names = names or {name: name for name in self.tensors}
        found = {name: self.tensors[stored] for name, stored in names.items() if name in expected}
        faults = [
            f"{len(names)} {fault} ({first_few(names)})"
            for names, fault in (
                ([n for n in expected if n not in found], "missing"),
                (
                    [
                        f"{n} {list(i.shape)} for {list(expected[n])}"
                        for n, i in found.items()
                        if i.shape != tuple(expected[n])
                    ],
                    "misshapen",
                ),
                (
                    [
                        f"{n} {i.dtype}"
                        for n, i in found.items()
                        if i.dtype not in FLOATS and names[n] not in self.scales
                    ],
                    "not floating point",
                ),
            )
            if names
        ]
        if faults:
            raise UserError(
                f"{self.path} does not fit the model, tensors are {', '.join(faults)}; expected "
                f"{len(expected)}: get the whole, unchanged file"
            )
        extra = [stored for name, stored in names.items() if name not in expected]
        return (
            [f"{self.path} holds {len(extra)} more tensors, which are ignored: {first_few(extra)}"]
            if extra
            else []
        )

    def tensor(
        self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """One of the part's tensors, dequantised, on `device`; 8 bits become bfloat16 without `dtype`.

        On the CPU in its stored dtype it is the file's own pages (a private, copy-on-write mapping:
        writing to it changes memory, never the file); otherwise it is a new tensor.
        """
        info = self.tensors[name]
        value = self.stored_tensor(info).to(device)
        if dtype is None:
            dtype = torch.bfloat16 if self.quantised(name) else value.dtype
        if name in self.scales:
            value = value.float() * self.scale(name).to(device)
        return value.to(dtype)

    def quantised(self, name: str) -> bool:
        """Whether a tensor is stored in 8 bits and multiplied by its `scale`."""
        return self.tensors[name].dtype.startswith(QUANTISED)

    def scale(self, name: str) -> Tensor:
        """What an 8-bit weight is to be multiplied by, float32: a number, or one for each row `[n, 1]`."""
        info = self.scales.get(name)
        if info is None:
            return torch.ones(())
        return self.stored_tensor(info).float().reshape(() if info.parameters == 1 else (-1, 1))

    def stored_tensor(self, info: TensorInfo) -> Tensor:
        """A tensor as its file holds it, memory-mapped."""
        if info.file not in self._open:
            zipped = info.file.open("rb").read(4) == b"PK\x03\x04"
            self._open[info.file] = (
                read_pth(info.file) if zipped else safe_open(str(info.file), framework="pt", device="cpu")
            )
        opened = self._open[info.file]
        return opened[info.stored_name] if isinstance(opened, dict) else opened.get_tensor(info.stored_name)

    def _fold_quantisation(self) -> dict[str, TensorInfo]:
        """Names of the part's tensors; scales go to `scales`, markers and activation scales are dropped."""
        tensors = {}
        formats = {}
        if "_quantization_metadata" in self.metadata:
            notes = parse_json(
                self.metadata["_quantization_metadata"], f"{self.path}: _quantization_metadata"
            )
            formats = {layer: _format(note) for layer, note in notes.get("layers", {}).items()}
        for name, info in self.stored.items():
            layer, _, leaf = name.rpartition(".")
            if leaf in ("scale_weight", "weight_scale"):
                self.scales[f"{layer}.weight"] = info
            elif leaf == "comfy_quant":
                note = parse_json(bytes(self.stored_tensor(info).tolist()), f"{self.path}: {name}")
                formats[layer] = _format(note)
            elif name != "scaled_fp8" and leaf not in ("scale_input", "input_scale"):
                tensors[name] = info
        foreign = {f for f in formats.values() if f not in ("float8_e4m3fn", "float8_e5m2", INT8_FORMAT)}

        def fits(weight: TensorInfo | None, scale: TensorInfo) -> bool:
            by_row = weight is not None and weight.dtype == INT8 and scale.shape == (weight.shape[0], 1)
            return by_row or scale.parameters == 1

        blockwise = [n for n, info in self.scales.items() if not fits(tensors.get(n), info)]
        if foreign or blockwise:
            kind = ", ".join(sorted(map(str, foreign)))
            kind = kind or f"8 bits with many scales a tensor ({first_few(blockwise)})"
            raise UserError(
                f"{self.path} is quantised as {kind}; expected fp32, bf16, fp16, fp8 with one scale a tensor "
                "or int8 with one a tensor or row: use such a file"
            )
        return tensors


def _format(note: dict) -> str:
    """What ComfyUI calls the quantisation of a layer; with rotated weights it is another one."""
    rotated = note.get("convrot") or (note.get("params") or {}).get("convrot")
    return f"{note.get('format')}{' with convrot' if rotated else ''}"


def _cut(size: int, whole: int) -> Identity:
    return Identity("truncated", f"a cut safetensors file ({size} of at least {whole} bytes)", AGAIN)


def _identify_bytes(head: bytes) -> Identity:
    """What a file that is neither safetensors nor a zipped .pth starts like."""
    text = head.lstrip()
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return PICKLE
    if head.startswith(b"GGUF"):
        return GGUF
    if text[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return HTML
    if head.startswith(b"version https://git-lfs"):
        return LFS
    if not head.strip(b"\0"):
        return ZEROS
    if b"\0" not in head and head.decode("utf-8", "replace").count("\ufffd") <= 1:
        return JSON if text.startswith((b"{", b"[")) else TEXT
    return BINARY
