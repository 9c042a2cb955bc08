"""Model files: telling what a file is, loading the model from it, writing it (SPEC section 2).

A checkpoint is one safetensors file, or a folder of shards with an index, in fp32, bf16, fp16 or
ComfyUI's scaled fp8 (an fp8 `X.weight` with one number beside it, `X.scale_weight` or `X.weight_scale`).
Everything is decided on the headers; tensors are memory-mapped and read when asked for.
"""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from ..atomic import replacing
from ..errors import UserError
from ..model.config import Config
from ..model.dit import DualBranchDiT
from .identify import (
    TORCH_DTYPES,
    UNIAVGEN,
    Identity,
    TensorInfo,
    WrongFile,
    identify_tensors,
    locate,
    parse_json,
    read_header,
    some,
)

DtypeName = Literal["fp32", "bf16", "fp16", "fp8"]

CONFIG_KEY = "uniavgen_config"
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
FP8 = "F8_E4M3"
FP8_MAX = torch.finfo(torch.float8_e4m3fn).max

STORAGE = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "fp8": FP8}
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
QUANTISED = re.compile(
    r"(audio_)?blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.weight|(a2v|v2a)_blocks\.\d+\.[qkvo]\.weight"
)


def identify(path: str | Path) -> Identity:
    """Say what a file or folder is from its first bytes and tensor names; reads no tensor, never unpickles.

    Kinds: uniavgen, lora, wan2.2-5b, wan2.1, wan, wan2.2-vae, wan2.1-vae, vae, umt5, t5, bigvgan, other,
    and for what cannot be opened missing, empty, truncated, damaged, missing shard, pickle, zip, gguf,
    html, git-lfs, json, text, binary, folder.
    """
    try:
        read_checkpoint(path)
    except WrongFile as error:
        return error.identity
    return UNIAVGEN


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint: a file, a folder, an index, or one shard (which stands for its folder).

    Only headers are read; a missing or cut shard is found here, before anything is loaded.

    Raises:
        UserError: not a UniAVGen checkpoint; the line says what it is instead (`WrongFile`).
    """
    path = Path(path)
    files, weight_map, settings = locate(path)
    stored: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for file in files:
        tensors, notes = read_header(file)
        twice = sorted(stored.keys() & tensors.keys())
        if twice:
            what = f"a checkpoint with {twice[0]} in two shards"
            raise WrongFile(
                path, Identity("damaged", what, "download index and shards again, of one release")
            )
        stored |= tensors
        metadata |= notes
    lost = [n for n, shard in weight_map.items() if n not in stored or stored[n].file.name != shard]
    if lost:
        what = f"a checkpoint whose shards lack {len(lost)} tensors of the index ({some(lost)})"
        raise WrongFile(path, Identity("damaged", what, "download index and shards again, of one release"))

    prefix = next((p for p in PREFIXES if 2 * sum(n.startswith(p) for n in stored) > len(stored)), "")
    stored = {name.removeprefix(prefix): info for name, info in stored.items()}
    identity = identify_tensors(stored)
    if identity.kind != "uniavgen":
        raise WrongFile(path, identity)
    if CONFIG_KEY in metadata:
        settings |= parse_json(metadata[CONFIG_KEY], f"{path}: the metadata entry {CONFIG_KEY}")
    return Checkpoint(path, files, prefix, stored, metadata, settings)


class Checkpoint:
    """An opened checkpoint: what its headers say, and its tensors on demand.

    Attributes:
        path: as given.
        files: the safetensors files, in order.
        prefix: what stands before every name in the files and is left out here.
        stored: every tensor as the files hold it, by name without the prefix.
        tensors: the model's tensors; the scales and markers of fp8 layouts are folded away.
        metadata: the files' own notes.
    """

    def __init__(
        self,
        path: Path,
        files: list[Path],
        prefix: str,
        stored: dict[str, TensorInfo],
        metadata: dict[str, str],
        settings: dict,
    ):
        self.path, self.files, self.prefix = path, files, prefix
        self.stored, self.metadata, self.settings = stored, metadata, settings
        self._open = {}
        self._scales: dict[str, TensorInfo] = {}
        self.tensors = self._fold_quantisation()

    @property
    def dtype(self) -> torch.dtype:
        """Of most parameters; bfloat16 for fp8."""
        most = self.dtypes().most_common(1)[0][0]
        return torch.bfloat16 if most.startswith("F8") else TORCH_DTYPES[most]

    def dtypes(self) -> Counter[str]:
        """Parameters per stored dtype, by safetensors' codes."""
        counts = Counter()
        for info in self.tensors.values():
            counts[info.dtype] += info.parameters
        return counts

    def config(self, heads: int | None = None) -> Config:
        """The sizes, read off the tensors.

        The number of heads cannot be: it is `heads` (of the video branch; the audio branch has heads of
        the same width), else the metadata's `uniavgen_config` or the folder's config.json, else heads
        of 128 if both widths are multiples of 128. The same two also say interaction layers (else every
        second one), window, caption length and eps.

        Raises:
            UserError: a tensor that decides a size is missing, or heads or layers stay unknown.
        """
        said = self.settings
        video_dim, video_channels, _, *patch = self._shape("patch_embedding.weight", 5)
        audio_dim, audio_channels = self._shape("audio_embedding.0.weight", 2)
        layers = self._count("blocks")
        mask_head = "a2v_blocks.0.mask_head"
        if f"{mask_head}.modulation" in self.tensors:
            variant = "released"
        elif f"{mask_head}.norm.weight" in self.tensors:
            variant = "aligned" if "v2a_blocks.0.phase" in self.tensors else "paper"
        else:
            raise UserError(
                f"{self.path} has neither {mask_head}.modulation (released) nor {mask_head}.norm.weight "
                "(paper), so the variant is unknown: get the whole file"
            )

        video_heads = heads or said.get("video_heads") or said.get("num_heads")
        if video_heads is None:
            if video_dim % 128 or audio_dim % 128:
                raise UserError(
                    f"{self.path}: the number of heads cannot be read off the tensors (widths {video_dim} "
                    f"and {audio_dim}): add video_heads to the metadata entry {CONFIG_KEY} or to a "
                    "config.json in its folder"
                )
            video_heads = video_dim // 128
        if video_heads < 1 or video_dim % video_heads or audio_dim * video_heads % video_dim:
            raise UserError(
                f"{self.path}: {video_heads} heads do not divide widths {video_dim} and {audio_dim} into "
                "heads of one width: correct video_heads"
            )

        blocks = self._count("a2v_blocks")
        chosen = tuple(said.get("interaction_layers", range(0, layers, 2)))
        if len(chosen) != blocks:
            raise UserError(
                f"{self.path} has {blocks} interaction blocks but {len(chosen)} interaction layers "
                f"{list(chosen)}: list them as interaction_layers in the metadata entry {CONFIG_KEY}"
            )
        extra = {k: said[k] for k in ("window", "caption_length", "eps") if k in said}
        if "text_len" in said:
            extra.setdefault("caption_length", said["text_len"])
        sizes = {
            "variant": variant,
            "video_dim": video_dim,
            "video_heads": video_heads,
            "video_ffn": self._shape("blocks.0.ffn.0.weight", 2)[0],
            "audio_dim": audio_dim,
            "audio_heads": audio_dim * video_heads // video_dim,
            "audio_ffn": self._shape("audio_blocks.0.ffn.0.weight", 2)[0],
            "layers": layers,
            "interaction_layers": chosen,
            "freq_dim": self._shape("time_embedding.0.weight", 2)[1],
            "caption_dim": self._shape("text_embedding_video.0.weight", 2)[1],
            "speech_vocab": self._shape("text_embedding.text_embed.weight", 2)[0] - 1,
            "speech_dim": self._shape("text_embedding.text_embed.weight", 2)[1],
            "speech_layers": self._count("text_embedding.text_blocks"),
            "video_channels": video_channels,
            "audio_channels": audio_channels,
            "patch": tuple(patch),
        }
        try:
            return Config(**sizes, **extra)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}: correct {CONFIG_KEY} or get another file") from error

    def check(self, expected: Mapping[str, Tensor]) -> None:
        """Compare names and shapes with a model's state dict.

        Raises:
            UserError: tensors missing, left over, of another shape or not of a float type.
        """
        shapes = {name: tuple(value.shape) for name, value in expected.items()}
        missing = [n for n in shapes if n not in self.tensors]
        extra = [n for n in self.tensors if n not in shapes]
        common = [n for n in shapes if n in self.tensors]
        bent = [n for n in common if self.tensors[n].shape != shapes[n]]
        other = [n for n in common if self.tensors[n].dtype not in FLOATS]
        faults = [
            f"{len(names)} {fault} ({some(names)})"
            for names, fault in (
                (missing, "missing"),
                (extra, "unexpected"),
                ([f"{n} {list(self.tensors[n].shape)} for {list(shapes[n])}" for n in bent], "misshapen"),
                ([f"{n} {self.tensors[n].dtype}" for n in other], "not floating point"),
            )
            if names
        ]
        if faults:
            raise UserError(
                f"{self.path} does not fit the model, tensors are {', '.join(faults)}; expected exactly "
                f"{len(shapes)}: get the whole, unchanged file"
            )

    def tensor(
        self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """One of the model's tensors, dequantised, on `device`; fp8 becomes bfloat16 unless `dtype` is given.

        On the CPU in its stored dtype it is the file's own pages (a private, copy-on-write mapping:
        writing to it changes memory, never the file); otherwise it is a new tensor.
        """
        info = self.tensors[name]
        value = self._stored(info).to(device)
        if dtype is None:
            dtype = torch.bfloat16 if info.dtype.startswith("F8") else value.dtype
        if name in self._scales:
            value = value.float() * self._stored(self._scales[name]).to(device).float()
        return value.to(dtype)

    def raw_state_dict(self) -> dict[str, Tensor]:
        """Everything as stored, fp8 weights, scales and markers included, memory-mapped; for ComfyUI."""
        return {name: self._stored(info) for name, info in self.stored.items()}

    def _stored(self, info: TensorInfo) -> Tensor:
        if info.file not in self._open:
            self._open[info.file] = safe_open(str(info.file), framework="pt", device="cpu")
        return self._open[info.file].get_tensor(info.stored_name)

    def _fold_quantisation(self) -> dict[str, TensorInfo]:
        """Names of the model's tensors; scales go to `_scales`, markers and activation scales are dropped."""
        tensors = {}
        formats = {}
        if "_quantization_metadata" in self.metadata:
            notes = parse_json(
                self.metadata["_quantization_metadata"], f"{self.path}: _quantization_metadata"
            )
            formats = {layer: note.get("format") for layer, note in notes.get("layers", {}).items()}
        for name, info in self.stored.items():
            layer, _, leaf = name.rpartition(".")
            if leaf in ("scale_weight", "weight_scale"):
                self._scales[f"{layer}.weight"] = info
            elif leaf == "comfy_quant":
                note = parse_json(bytes(self._stored(info).tolist()), f"{self.path}: {name}")
                formats[layer] = note.get("format")
            elif name != "scaled_fp8" and leaf not in ("scale_input", "input_scale"):
                tensors[name] = info
        foreign = {f for f in formats.values() if f not in ("float8_e4m3fn", "float8_e5m2")}
        blockwise = [n for n, info in self._scales.items() if info.parameters != 1]
        if foreign or blockwise:
            kind = (
                ", ".join(sorted(map(str, foreign))) or f"fp8 with many scales a tensor ({some(blockwise)})"
            )
            raise UserError(
                f"{self.path} is quantised as {kind}; expected fp32, bf16, fp16 or fp8 with one scale a "
                "tensor: use such a file"
            )
        return tensors

    def _shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        info = self.tensors.get(name)
        if info is None or len(info.shape) != dimensions:
            found = "has no" if info is None else f"has {list(info.shape)} as"
            raise UserError(
                f"{self.path} {found} {name}, which must have {dimensions} dimensions: get the whole file"
            )
        return info.shape

    def _count(self, group: str) -> int:
        """How many numbered blocks `group.0`, `group.1`, ... there are."""
        found = re.compile(rf"{re.escape(group)}\.(\d+)\.")
        return max((int(m[1]) + 1 for m in map(found.match, self.tensors) if m), default=0)


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    heads: int | None = None,
) -> DualBranchDiT:
    """Load a checkpoint strictly: built without memory, each tensor then goes straight to `device`.

    All of it takes one dtype: `dtype`, else the file's (of most parameters; bfloat16 for fp8). On the
    CPU in the file's own dtype the weights are the file's pages (see `Checkpoint.tensor`).

    Raises:
        UserError: not a UniAVGen checkpoint, unknown `heads` (see `Checkpoint.config`), or tensors
            missing, left over or of another shape.
    """
    checkpoint = read_checkpoint(path)
    model = DualBranchDiT(checkpoint.config(heads), device="meta")
    checkpoint.check(model.state_dict())
    dtype = dtype or checkpoint.dtype
    model.load_state_dict(
        {name: checkpoint.tensor(name, device, dtype) for name in checkpoint.tensors}, assign=True
    )
    return model.eval()


def save_checkpoint(
    path: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: Config,
    dtype: DtypeName = "bf16",
) -> None:
    """Write a model's tensors, given one at a time in any order, to one safetensors file.

    "fp8" is ComfyUI's scaled fp8: the linear weights inside the blocks as `X.weight` in float8_e4m3fn with
    `X.scale_weight` (largest magnitude / 448), the rest bfloat16, and the two-element marker `scaled_fp8`
    that asks ComfyUI to multiply in full precision. The config goes into the metadata. The file appears
    only when complete; one tensor at a time is in memory.

    Raises:
        UserError: no room on the disk, a folder that cannot be written to, values too large for fp16.
        ValueError: tensors that are not exactly those of `config`.
    """
    shapes = {n: tuple(t.shape) for n, t in DualBranchDiT(config, device="meta").state_dict().items()}
    codes = _storage(shapes, dtype)
    _save(Path(path), shapes, codes, _encode(tensors, codes), config)


def convert(
    source: str | Path, target: str | Path, dtype: DtypeName | None = None, heads: int | None = None
) -> None:
    """Rewrite a checkpoint as one safetensors file for ComfyUI's folders (see `save_checkpoint`).

    Without `dtype` every tensor keeps its own; scaled fp8 stays as it is.

    Raises:
        UserError: as `load_model` and `save_checkpoint`; a target that is part of the source.
    """
    checkpoint, target = read_checkpoint(source), Path(target)
    config = checkpoint.config(heads)
    checkpoint.check(DualBranchDiT(config, device="meta").state_dict())
    if target.resolve() in [file.resolve() for file in checkpoint.files]:
        raise UserError(f"{target} is the file being converted; expected a new file: choose another name")
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    codes = {name: info.dtype for name, info in checkpoint.tensors.items()}
    if dtype or any(code.startswith("F8") for code in codes.values()):
        codes = _storage(shapes, dtype or "fp8")

    def stored_forms() -> Iterator[tuple[str, Tensor]]:
        for name, info in checkpoint.tensors.items():
            if codes[name] == info.dtype == FP8:
                scale = checkpoint._scales.get(name)
                yield name, checkpoint._stored(info)
                yield _scale_name(name), checkpoint._stored(scale).float() if scale else torch.ones(())
            else:
                exact = torch.float32 if info.dtype.startswith("F8") else None
                yield from _encode([(name, checkpoint.tensor(name, dtype=exact))], codes)

    _save(target, shapes, codes, stored_forms(), config)


def inspect(path: str | Path, heads: int | None = None) -> dict:
    """Describe a checkpoint from its headers, JSON-ready.

    Keys: path, kind, variant, config, prefix, files, tensors, parameters, bytes, dtypes (parameters per
    stored dtype) and memory: bytes to run one 81-frame 1280x736 pass with bf16 or (ComfyUI) fp8 weights,
    an estimate of the weights plus the widest activations of one block, without VAE and encoders.

    Raises:
        UserError: as `load_model`; the file is checked whole.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint.config(heads)
    checkpoint.check(DualBranchDiT(config, device="meta").state_dict())
    parameters = sum(info.parameters for info in checkpoint.tensors.values())
    quantised = sum(i.parameters for n, i in checkpoint.tensors.items() if QUANTISED.fullmatch(n))
    tokens = 22 * 920
    activations = 2 * tokens * (2 * config.video_ffn + 8 * config.video_dim)
    return {
        "path": str(path),
        "kind": "uniavgen",
        "variant": config.variant,
        "config": config.to_dict(),
        "prefix": checkpoint.prefix,
        "files": len(checkpoint.files),
        "tensors": len(checkpoint.tensors),
        "parameters": parameters,
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "dtypes": dict(checkpoint.dtypes()),
        "memory": {
            "bf16": 2 * parameters + activations,
            "fp8": 2 * parameters - quantised + activations,
        },
    }


def _storage(names: Iterable[str], dtype: DtypeName) -> dict[str, str]:
    """The safetensors code of each tensor in a file of `dtype`."""
    if dtype not in STORAGE:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(STORAGE)}: choose one of these")
    rest = "BF16" if dtype == "fp8" else STORAGE[dtype]
    return {name: FP8 if dtype == "fp8" and QUANTISED.fullmatch(name) else rest for name in names}


def _scale_name(name: str) -> str:
    return name.removesuffix("weight") + "scale_weight"


def _encode(tensors: Iterable[tuple[str, Tensor]], codes: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the file stores them; an fp8 weight is followed by its scale."""
    for name, value in tensors:
        if name not in codes:
            raise ValueError(f"{name} is not a tensor of this model")
        value = value.detach()
        if codes[name] == FP8:
            value = value.float()
            lowest, highest = value.aminmax()  # no second copy of the tensor, as abs() would be
            largest = torch.maximum(-lowest, highest)
            whole = largest.isfinite()
            scale = torch.where(largest > 0, largest / FP8_MAX, 1.0)
            yield name, (value / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
            yield _scale_name(name), scale
        else:
            stored = value.to(TORCH_DTYPES[codes[name]])
            whole = codes[name] != "F16" or stored.isfinite().all()
            yield name, stored
        if not whole:
            raise UserError(f"{name} holds values that {codes[name]} cannot; expected finite ones: use bf16")


def _save(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    codes: dict[str, str],
    tensors: Iterable[tuple[str, Tensor]],
    config: Config,
) -> None:
    """Write header, then each tensor at its place, to a hidden file that becomes `path` when whole."""
    if path.suffix != ".safetensors" or path.is_dir():
        raise UserError(f"{path} is not a file name ending in .safetensors: choose such a name")
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected one to write {path.name} into: create it")
    layout = dict(shapes)
    codes = dict(codes)
    if FP8 in codes.values():
        scales = [_scale_name(n) for n, code in codes.items() if code == FP8]
        layout |= dict.fromkeys(scales, ()) | {"scaled_fp8": (2,)}
        codes |= dict.fromkeys(scales, "F32") | {"scaled_fp8": FP8}
        tensors = chain(tensors, [("scaled_fp8", torch.zeros(2, dtype=torch.float8_e4m3fn))])

    header = {"__metadata__": {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict())}}
    end = 0
    for name in sorted(layout, key=lambda n: (-TORCH_DTYPES[codes[n]].itemsize, n)):
        begin, end = end, end + math.prod(layout[name]) * TORCH_DTYPES[codes[name]].itemsize
        header[name] = {"dtype": codes[name], "shape": layout[name], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size = 8 + len(text) + end
    free = shutil.disk_usage(folder).free
    if free < size:
        raise _disk_full(path, size, free)

    left = set(layout)
    try:
        with replacing(path) as part, part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, value in tensors:
                if tuple(value.shape) != layout[name]:
                    raise ValueError(f"{name} is {list(value.shape)}, expected {list(layout[name])}")
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
                left.discard(name)
            if left:
                raise ValueError(f"{len(left)} tensors were not given ({some(sorted(left))})")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(path, size, shutil.disk_usage(folder).free) from error
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another folder") from error


def _disk_full(path: Path, size: int, free: int) -> UserError:
    return UserError(
        f"{path} needs {size / 1e6:.1f} MB but {path.parent} has {free / 1e6:.1f} MB free: make room or "
        "choose another folder"
    )
