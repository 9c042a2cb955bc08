"""A description of any part, or of a folder of parts, from headers alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..errors import UserError
from ..media.caption import SENTENCEPIECE, open_text_encoder, tokenizer_folder
from ..media.vae import open_vae
from ..media.vocoder import open_vocoder
from ..model.config import Config
from .checkpoint import read_checkpoint
from .files import TensorFiles, log
from .identify import KINDS, find_parts, open_any
from .write import MODEL_LINEAR

WHAT = {
    "model": "a UniAVGen checkpoint",
    "vae": "the Wan2.2 VAE",
    "text_encoder": "umT5's encoder",
    "vocoder": "a BigVGAN vocoder",
}


def inspect(path: str | Path, heads: int | None = None) -> dict:
    """Describe a part from its headers, JSON-ready; of a folder with several, each under `parts` too.

    Keys: path, kind, what, files, tensors, parameters, bytes, dtypes (parameters per stored dtype); of a
    model also variant, config, prefix and memory: bytes to run one 81-frame 1280x736 pass with bf16 or fp8
    weights, an estimate of the weights plus the widest activations of one block, without VAE and encoders.

    Raises:
        UserError: no part of UniAVGen, or an incomplete one; every file is checked.
    """
    part = KINDS[open_any(Path(path)).identity.kind]
    described = _describe(path, part, heads)
    beside = find_parts(path)
    if part == "model" and beside:
        described["parts"] = {name: _describe(place, name) for name, place in beside.items()}
    return described


def check_parts(
    model: str | Path, vae: str | Path, text_encoder: str | Path, vocoder: str | Path | None = None
) -> Config:
    """Everything that can be known of the four parts without loading them; the model's sizes.

    Raises:
        UserError: one of them is missing, damaged, incomplete or something else.
    """
    config = read_checkpoint(model).new_model()[0].config
    open_vae(vae)
    files, _, _ = open_text_encoder(text_encoder)
    if SENTENCEPIECE not in files.tensors:
        tokenizer_folder(files)
    if vocoder:
        open_vocoder(vocoder)
    return config


def _describe(path: str | Path, part: str, heads: int | None = None) -> dict:
    if part == "model":
        return _describe_model(path, heads)
    if part == "vae":
        files, _, _ = open_vae(path)
        own = {"layout": "Wan" if "decoder.conv1.weight" in files.tensors else "diffusers"}
    elif part == "text_encoder":
        files, _, model = open_text_encoder(path)
        own = {
            "layout": "Wan" if "token_embedding.weight" in files.tensors else "transformers",
            "layers": model.config.num_layers,
            "width": model.config.d_model,
            "tokenizer": _tokenizer(files),
        }
    else:
        files, config = open_vocoder(path)
        own = {"mel_bands": config["mel_dim"], "prefix": files.prefix}
    return _common(files, path, part) | own


def _tokenizer(files: TensorFiles) -> str:
    if SENTENCEPIECE in files.tensors:
        return "in the file"
    try:
        return str(tokenizer_folder(files))
    except UserError:
        return "none beside it"


def _common(files: TensorFiles, path: str | Path, part: str) -> dict:
    weights = {name: info for name, info in files.tensors.items() if name != SENTENCEPIECE}
    dtypes: Counter[str] = Counter()
    for info in weights.values():
        dtypes[info.dtype] += info.parameters
    return {
        "path": str(path),
        "kind": files.identity.kind,
        "what": WHAT[part],
        "files": len(files.files),
        "tensors": len(weights),
        "parameters": sum(dtypes.values()),
        "bytes": sum(file.stat().st_size for file in files.files),
        "dtypes": dict(dtypes),
    }


def _describe_model(path: str | Path, heads: int | None) -> dict:
    checkpoint = read_checkpoint(path)
    model, notes = checkpoint.new_model(heads)
    for note in notes:
        log.warning(note)
    config = model.config
    shapes = {name: value.numel() for name, value in model.state_dict().items()}
    parameters = sum(shapes.values())
    quantised = sum(size for name, size in shapes.items() if MODEL_LINEAR.fullmatch(name))
    tokens = 22 * 920
    activations = 2 * tokens * (2 * config.video_ffn + 8 * config.video_dim)
    return _common(checkpoint, path, "model") | {
        "variant": config.variant,
        "prefix": checkpoint.prefix,
        "memory": {
            "bf16": 2 * parameters + activations,
            "fp8": 2 * parameters - quantised + activations,
        },
        "config": config.to_dict(),
    }
