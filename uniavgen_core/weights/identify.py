"""What a model file is, from its place, first bytes, header and tensor names; nothing is unpickled."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError

EXPECTED = "a UniAVGen checkpoint (a .safetensors file or the folder of its shards)"
MAX_HEADER = 100_000_000
INDEX = ".safetensors.index.json"
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")

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


@dataclass(frozen=True)
class Identity:
    """What a file is: a short `kind`, the same in words, and what to do with it."""

    kind: str
    what: str
    advice: str


class WrongFile(UserError):
    """A file or folder that holds no usable UniAVGen checkpoint; `identity` says what it is."""

    def __init__(self, path: Path, identity: Identity):
        super().__init__(f"{path} is {identity.what}; expected {EXPECTED}: {identity.advice}")
        self.identity = identity


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


AGAIN = "download it again"
UNIAVGEN = Identity("uniavgen", "a UniAVGen checkpoint", "load it as the model")
MISSING = Identity("missing", "not there", "check the path")
EMPTY = Identity("empty", "an empty file", AGAIN)
ZEROS = Identity("truncated", "an unfinished download (it starts with zeros)", AGAIN)
PICKLE = Identity(
    "pickle", "a PyTorch pickle, which is never opened because it can run code", "get it as .safetensors"
)
ZIP = Identity("zip", "a zip archive", "unpack it and choose the .safetensors file in it")
GGUF = Identity("gguf", "a GGUF file", "get the .safetensors file; `uniavgen convert --dtype fp8` shrinks it")
HTML = Identity("html", "a web page saved in place of the file", "use the site's download link")
LFS = Identity("git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull` in its folder")
JSON = Identity("json", "a JSON file", "choose the .safetensors file or its folder")
TEXT = Identity("text", "a text file", "choose the .safetensors file or its folder")
BINARY = Identity("binary", "no safetensors file, nor any known model format", "choose another file")
LORA = Identity("lora", "a LoRA", "choose the model here and apply the LoRA to it in ComfyUI")
WAN_DOWNLOAD = "download MCG-NJU/UniAVGen, which holds both branches"
VAE_PLACE = "give it where the VAE is asked for"
TEXT_PLACE = "give it where the caption encoder is asked for"
VOCODER = Identity("bigvgan", "a BigVGAN vocoder", "give it where the vocoder is asked for")


def locate(path: Path) -> tuple[list[Path], dict[str, str], dict]:
    """The files of a checkpoint, its index (tensor name -> file name) and its folder's config.json."""
    if not path.exists():
        raise WrongFile(path, MISSING)
    if path.is_dir():
        files, weight_map, _ = locate(_folder_entry(path))
        return files, weight_map, _folder_settings(path)
    shard = SHARD.fullmatch(path.name)
    if path.name.endswith(INDEX):
        index = path
    elif shard and int(shard["count"]) > 1:
        index = path.with_name(shard["stem"] + INDEX)
        if not index.exists():
            what = f"one shard of {int(shard['count'])} without {index.name} beside it"
            raise WrongFile(path, Identity("missing shard", what, "download the whole folder"))
    else:
        return [path], {}, {}

    weight_map = parse_json(index.read_bytes(), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WrongFile(index, _damaged("an index without a weight_map"))
    names = sorted(set(weight_map.values()))
    outside = [n for n in names if Path(n).name != n]
    if outside:
        raise WrongFile(index, _damaged(f"an index to other folders ({some(outside)})"))
    absent = [n for n in names if not (index.parent / n).is_file()]
    if absent:
        what = f"a checkpoint with {len(absent)} of {len(names)} shards missing ({some(absent)})"
        raise WrongFile(path, Identity("missing shard", what, f"download them into {index.parent}"))
    return [index.parent / n for n in names], weight_map, _folder_settings(index.parent)


def _folder_entry(folder: Path) -> Path:
    """The index in a folder, else its only safetensors file."""
    visible = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    indexes = [p for p in visible if p.name.endswith(INDEX)]
    files = [p for p in visible if p.suffix == ".safetensors"]
    if len(indexes) == 1:
        return indexes[0]
    if len(files) == 1:
        return files[0]
    if files:
        what = f"a folder with {len(files)} safetensors files and {len(indexes)} indexes"
        advice = f"name one of them ({some([p.name for p in indexes or files])})"
        raise WrongFile(folder, Identity("folder", what, advice))
    inside = [p.name for p in visible if p.is_dir() and any(p.glob("*.safetensors"))]
    advice = f"choose its {some(inside)}" if inside else "download the model into it or choose another one"
    raise WrongFile(folder, Identity("folder", "a folder without safetensors files", advice))


def _folder_settings(folder: Path) -> dict:
    file = folder / "config.json"
    return parse_json(file.read_bytes(), file) if file.is_file() else {}


def parse_json(text: str | bytes, name: str | Path) -> dict:
    """A JSON object from the file or entry `name`."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{name} is not a JSON object: correct or remove it, or {AGAIN}")
    return value


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of one safetensors file, whose size must be what its header says."""
    size = file.stat().st_size
    if size == 0:
        raise WrongFile(file, EMPTY)
    try:
        with file.open("rb") as opened:
            head = opened.read(1024)
            length = int.from_bytes(head[:8], "little")
            if length > MAX_HEADER or head[8:9] != b"{":
                raise WrongFile(file, _identify_bytes(head))
            opened.seek(8)
            text = opened.read(length)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from error
    if size < 8 + length:
        raise WrongFile(file, _cut(size, 8 + length))
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {n: TensorInfo(n, file, tuple(e["shape"]), e["dtype"]) for n, e in header.items()}
        places = sorted((*entry["data_offsets"], name) for name, entry in header.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongFile(file, _damaged("a safetensors file with a broken header")) from error
    end = 0
    for begin, stop, name in places:
        dtype = TORCH_DTYPES.get(tensors[name].dtype)
        fits = dtype is None or stop - begin == tensors[name].parameters * dtype.itemsize
        if begin != end or not fits:
            raise WrongFile(file, _damaged(f"a safetensors file with a wrong entry {name}"))
        end = stop
    if size < 8 + length + end:
        raise WrongFile(file, _cut(size, 8 + length + end))
    if size > 8 + length + end:
        raise WrongFile(file, _damaged(f"a safetensors file with {size - 8 - length - end} bytes too many"))
    return tensors, metadata


def _damaged(what: str) -> Identity:
    return Identity("damaged", what, AGAIN)


def _cut(size: int, whole: int) -> Identity:
    return Identity("truncated", f"a cut safetensors file ({size} of at least {whole} bytes)", AGAIN)


def _identify_bytes(head: bytes) -> Identity:
    """What a file that is no safetensors file starts like."""
    text = head.lstrip()
    if head.startswith(b"PK\x03\x04"):
        return PICKLE if b"/data.pkl" in head else ZIP
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


def identify_tensors(stored: Mapping[str, TensorInfo]) -> Identity:
    """Which model the tensors belong to, by names and a few shapes."""

    def channels(name: str, axis: int) -> int | None:
        return stored[name].shape[axis] if name in stored and len(stored[name].shape) == 5 else None

    if any(mark in name for name in stored for mark in ("lora_", "hada_", "lokr_")):
        return LORA
    if any(name.startswith("audio_blocks.") for name in stored):
        return UNIAVGEN
    wan = channels("patch_embedding.weight", 1)
    if wan == 48:
        return Identity("wan2.2-5b", "plain Wan2.2-5B, a video model without an audio branch", WAN_DOWNLOAD)
    if wan in (16, 36):
        what = f"Wan2.1 or a 14B Wan2.2 ({wan} channels), a video model without an audio branch"
        return Identity("wan2.1", what, WAN_DOWNLOAD)
    if wan:
        return Identity("wan", f"a Wan video model ({wan} channels) without an audio branch", WAN_DOWNLOAD)
    latent = channels("decoder.conv1.weight", 1) or channels("decoder.conv_in.weight", 1)
    if latent == 48:
        return Identity("wan2.2-vae", "the Wan2.2 VAE", VAE_PLACE)
    if latent == 16:
        return Identity("wan2.1-vae", "the Wan2.1 VAE", "get the Wan2.2 VAE and " + VAE_PLACE)
    if "decoder.conv_in.weight" in stored or "decoder.conv1.weight" in stored:
        return Identity("vae", "the VAE of another model", "get the Wan2.2 VAE and " + VAE_PLACE)
    embedding = stored.get("shared.weight") or stored.get("token_embedding.weight")
    if embedding and any(
        "SelfAttention.relative_attention_bias" in n or "pos_embedding" in n for n in stored
    ):
        if embedding.shape[0] == 256384:
            return Identity("umt5", "the umT5 text encoder", TEXT_PLACE)
        return Identity("t5", "a T5 text encoder", "get umT5-xxl and " + TEXT_PLACE)
    if any("conv_pre.weight" in name for name in stored) and any("resblocks." in name for name in stored):
        return VOCODER
    return Identity("other", f"another model ({len(stored)} tensors: {some(stored)})", "choose another file")


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
