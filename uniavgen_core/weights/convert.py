"""Conversion of any part to one safetensors file, and of the release to ComfyUI's folders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..media.caption import (
    SENTENCEPIECE,
    SENTENCEPIECE_FILE,
    open_text_encoder,
    tokenizer_folder,
)
from ..media.vae import LATENTS_MEAN, LATENTS_STD, open_vae, original_name
from ..media.vocoder import CONFIG_FIELDS, new_bigvgan, open_vocoder
from ..model.config import Config
from ..model.dit import DualBranchDiT
from .checkpoint import CONFIG_KEY, read_checkpoint
from .files import FLOATS, FP8, INT8, TensorFiles, log
from .identify import KINDS, find_parts, open_any, open_part
from .write import (
    MODEL_LINEAR,
    STORAGE,
    TEXT_LINEAR,
    DtypeName,
    Entry,
    check_dtype,
    check_target,
    encode,
    scale_name,
    with_scales,
    write_tensors,
)

# part -> folder of ComfyUI's models, and file name by dtype
COMFYUI = {
    "model": ("diffusion_models", "uniavgen_{dtype}.safetensors"),
    "vae": ("vae", "wan2.2_vae.safetensors"),
    "text_encoder": ("text_encoders", "umt5_xxl_{dtype}.safetensors"),
    "vocoder": ("vae", "qwen2.5_omni_bigvgan.safetensors"),
}
FILE_DTYPES = {"text_encoder": {"fp8": "fp8_e4m3fn_scaled"}}


@dataclass(frozen=True)
class Plan:
    """One file to be written: what goes into it, decided on headers alone."""

    files: TensorFiles
    layout: dict[str, Entry]
    names: dict[str, str]  # in the new file -> in the old one
    metadata: dict[str, str]
    extra: dict[str, Callable[[], Tensor]] = field(default_factory=dict)

    def write(self, target: Path) -> None:
        """Raises UserError: as `write_tensors`; the target is part of the source."""
        if target.resolve() in [file.resolve() for file in self.files.files]:
            raise UserError(f"{target} is the file being converted; expected a new file: choose another name")
        write_tensors(target, self.layout, encode(self._tensors(), self.layout), self.metadata)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, stored in self.names.items():
            info = self.files.tensors[stored]
            if self.layout[name].code == info.dtype and info.dtype in (FP8, INT8):
                yield name, self.files.stored_tensor(info)
                scale = self.files.scale(stored)
                yield (
                    scale_name(name, info.dtype),
                    scale if info.dtype == FP8 else scale.expand(info.shape[0], 1),
                )
            else:
                exact = torch.float32 if self.files.quantised(stored) else None
                yield name, self.files.tensor(stored, dtype=exact)
        for name, tensor in self.extra.items():
            yield name, tensor()


def save_checkpoint(
    path: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: Config,
    dtype: DtypeName = "bf16",
) -> None:
    """Write a model's tensors, given one at a time in any order, to one safetensors file.

    "fp8" is ComfyUI's scaled fp8: the linear weights inside the blocks as `X.weight` in float8_e4m3fn with
    `X.scale_weight` (largest magnitude / 448), the rest bfloat16, and the two-element marker `scaled_fp8`
    that asks ComfyUI to multiply in full precision. "int8" is its int8_tensorwise: the same weights in int8
    with `X.weight_scale` for each row (largest magnitude / 127). The config goes into the metadata. The file
    appears only when complete; one tensor at a time is in memory.

    Raises:
        UserError: no room on the disk, a folder that cannot be written to, values too large for fp16.
        ValueError: tensors that are not exactly those of `config`.
    """
    check_dtype(dtype)
    shapes = {n: tuple(t.shape) for n, t in DualBranchDiT(config, device="meta").state_dict().items()}
    layout = _layout(shapes, {}, dtype, MODEL_LINEAR)
    write_tensors(Path(path), layout, encode(tensors, layout), {CONFIG_KEY: json.dumps(config.to_dict())})


def convert(
    source: str | Path, target: str | Path, dtype: DtypeName | None = None, heads: int | None = None
) -> None:
    """Rewrite one part as one safetensors file that ComfyUI's folders take (see `save_checkpoint`).

    Without `dtype` every tensor keeps its own; scaled fp8 stays as it is. The VAE gets Wan's names, the text
    encoder those of transformers and its tokenizer. Of a folder with several parts the model is taken.

    Raises:
        UserError: the source is no part or incomplete; a target that cannot be written or is part of it.
    """
    check_dtype(dtype)
    part = KINDS[open_any(Path(source)).identity.kind]
    plan(source, part, dtype, heads).write(Path(target))


def plan(source: str | Path, part: str, dtype: DtypeName | None = None, heads: int | None = None) -> Plan:
    """What `convert` will write of `source`, taken as `part`.

    Raises:
        UserError: another kind of file, an incomplete one, a dtype that the part is not kept in.
    """
    if part in ("vae", "vocoder") and dtype in ("fp8", "int8"):
        raise UserError(f"the {part} is kept in fp32, bf16 or fp16; choose another --dtype")
    return {"model": _model, "vae": _vae, "text_encoder": _text_encoder, "vocoder": _vocoder}[part](
        source, dtype, heads
    )


def convert_release(
    folder: str | Path, models: str | Path, dtype: DtypeName | None = None
) -> tuple[list[Path], list[str]]:
    """Write the four files that ComfyUI's loaders take, from the release's folder into ComfyUI's `models`.

    `dtype` is that of model and text encoder, bf16 or fp8; VAE and vocoder keep theirs. A file that is there
    already is kept. Returns the files written and notes on those kept. Nothing is written before all parts
    are found complete and the disk has room for them.

    Raises:
        UserError: a part missing or incomplete, `models` is no folder, no room.
    """
    check_dtype(dtype)
    folder, models = Path(folder), Path(models)
    if not models.is_dir():
        raise UserError(f"{models} is no folder; expected ComfyUI's models folder, such as ComfyUI/models")
    open_part(folder, "model")
    sources = {"model": folder, **find_parts(folder)}
    plans: dict[Path, Plan] = {}
    notes = []
    for part, (subfolder, pattern) in COMFYUI.items():
        chosen = dtype if part in ("model", "text_encoder") else None
        said = FILE_DTYPES.get(part, {}).get(chosen or "bf16", chosen or "bf16")
        target = models / subfolder / pattern.format(dtype=said)
        if target.is_file():
            notes.append(f"{target} is there already and is kept; remove it to have it written anew")
        elif part not in sources:
            raise UserError(
                f"{folder} holds no {part.replace('_', ' ')}, expected all files of MCG-NJU/UniAVGen: "
                f"download the rest, or put {target.name} into {target.parent}"
            )
        else:
            plans[target] = plan(sources[part], part, chosen)
    size = sum(entry.size for each in plans.values() for entry in each.layout.values())
    free = shutil.disk_usage(models).free
    if free < size:
        raise UserError(
            f"{models} needs {size / 1e9:.1f} GB but has {free / 1e9:.1f} GB free: make room or "
            "use --dtype fp8"
        )
    for target, each in plans.items():
        target.parent.mkdir(exist_ok=True)
        check_target(target, each.layout)
    for target, each in plans.items():
        each.write(target)
    return list(plans), notes


def _model(source: str | Path, dtype: DtypeName | None, heads: int | None) -> Plan:
    checkpoint = read_checkpoint(source)
    model, notes = checkpoint.new_model(heads)
    for note in notes:
        log.warning(note)
    names = {name: name for name in model.state_dict()}
    metadata = {CONFIG_KEY: json.dumps(model.config.to_dict())}
    return Plan(checkpoint, _file_layout(checkpoint, names, dtype, MODEL_LINEAR), names, metadata)


def _vae(source: str | Path, dtype: DtypeName | None, heads: int | None) -> Plan:
    files, names, config = open_vae(source)
    if (config["latents_mean"], config["latents_std"]) != (LATENTS_MEAN, LATENTS_STD):
        raise UserError(
            f"{source} normalises its latents otherwise than Wan2.2's VAE, which one file cannot say: "
            "keep its folder"
        )
    written = {original_name(name): stored for name, stored in names.items()}
    return Plan(files, _file_layout(files, written, dtype), written, {})


def _text_encoder(source: str | Path, dtype: DtypeName | None, heads: int | None) -> Plan:
    files, names, _ = open_text_encoder(source)
    layout = _file_layout(files, names, dtype, TEXT_LINEAR)
    if SENTENCEPIECE in files.tensors:
        info = files.tensors[SENTENCEPIECE]
        layout[SENTENCEPIECE] = Entry(info.shape, info.dtype)
        return Plan(files, layout, names, {}, {SENTENCEPIECE: lambda: files.stored_tensor(info)})
    file = tokenizer_folder(files) / SENTENCEPIECE_FILE
    if not file.is_file():
        raise UserError(
            f"{file} is missing, which ComfyUI reads captions with; download it from google/umt5-xxl"
        )
    model = bytearray(file.read_bytes())
    layout[SENTENCEPIECE] = Entry((len(model),), "U8")
    return Plan(files, layout, names, {}, {SENTENCEPIECE: lambda: torch.frombuffer(model, dtype=torch.uint8)})


def _vocoder(source: str | Path, dtype: DtypeName | None, heads: int | None) -> Plan:
    files, config = open_vocoder(source)
    with torch.device("meta"):
        names = {name: name for name in new_bigvgan(config).state_dict()}
    metadata = {"config": json.dumps({key: config[key] for key in CONFIG_FIELDS})}
    return Plan(files, _file_layout(files, names, dtype), names, metadata)


def _file_layout(
    files: TensorFiles, names: Mapping[str, str], dtype: DtypeName | None, linear: re.Pattern | None = None
) -> dict[str, Entry]:
    """The layout of a new file with these tensors of old ones."""
    shapes = {name: files.tensors[stored].shape for name, stored in names.items()}
    codes = {name: files.tensors[stored].dtype for name, stored in names.items()}
    if any(codes[n] not in FLOATS and not files.quantised(stored) for n, stored in names.items()):
        raise UserError(f"{files.path} holds tensors that are not floating point: get the unchanged file")
    if dtype is None and any(map(files.quantised, names.values())):
        dtype = "int8" if INT8 in codes.values() else "fp8"
    return _layout(shapes, codes, dtype, linear)


def _layout(
    shapes: Mapping[str, tuple[int, ...]],
    codes: Mapping[str, str],
    dtype: DtypeName | None,
    linear: re.Pattern | None,
) -> dict[str, Entry]:
    """`linear`: the weights that 8-bit files keep in 8 bits; `codes`: what a tensor keeps without `dtype`."""
    if dtype is None:
        return {name: Entry(tuple(shape), codes[name]) for name, shape in shapes.items()}
    eight = dtype in ("fp8", "int8")
    rest = "BF16" if eight else STORAGE[dtype]
    small = {name for name in shapes if eight and linear and linear.fullmatch(name)}
    stored = {name: STORAGE[dtype] if name in small else rest for name in shapes}
    return with_scales({name: Entry(tuple(shape), stored[name]) for name, shape in shapes.items()})
