"""What a weights file or folder is: model, VAE, text encoder or vocoder (docs/model.md section 9).

A part may be one file, a folder, an index or one shard of several (which stands for all). Everything is
decided on headers and tensor names; see `files` for how they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import UserError
from .files import (
    MISSING,
    SHARD,
    Identity,
    TensorFiles,
    TensorInfo,
    Unreadable,
    WrongFile,
    damaged,
    first_few,
    parse_json,
    read_header,
)

Part = Literal["model", "vae", "text_encoder", "vocoder"]

EXPECTED: dict[str, str] = {
    "model": "a UniAVGen checkpoint (a .safetensors file or the folder of its shards)",
    "vae": "the Wan2.2 VAE (Wan2.2_VAE.pth, wan2.2_vae.safetensors or a diffusers folder of it)",
    "text_encoder": "umT5-xxl (the release's .pth, ComfyUI's .safetensors or a transformers folder)",
    "vocoder": "a vocoder: Qwen2.5-Omni's BigVGAN (code2wav_bigvgan_model, one file or the token2wav shards)",
}
KINDS = {"uniavgen": "model", "wan2.2-vae": "vae", "umt5": "text_encoder", "bigvgan": "vocoder"}
# part -> names that it has in the release, in ComfyUI's folders or in a diffusers folder, best first
NAMES = {
    "vae": ("Wan2.2_VAE.pth", "wan2.2_vae*.safetensors", "vae"),
    "text_encoder": ("models_t5_umt5-xxl*.pth", "umt5*xxl*.safetensors", "text_encoder"),
    "vocoder": ("code2wav_bigvgan_model", "*bigvgan*.safetensors", "vocoder"),
}
INDEX = ".safetensors.index.json"
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
OMNI_VOCODER = "token2wav.code2wav_bigvgan_model."

LORA = Identity("lora", "a LoRA", "choose the model here and apply the LoRA to it in ComfyUI")
UNIAVGEN = Identity("uniavgen", "a UniAVGen checkpoint", "give it where the model is asked for")
WAN_DOWNLOAD = "download MCG-NJU/UniAVGen, which holds both branches"
VAE_PLACE = "give it where the VAE is asked for"
TEXT_PLACE = "give it where the caption encoder is asked for"
VOCODER = Identity("bigvgan", "a BigVGAN vocoder", "give it where the vocoder is asked for")
WEIGHT_NORM = Identity(
    "vocoder", "another vocoder (with weight norm)", "download code2wav_bigvgan_model of MCG-NJU/UniAVGen"
)
OMNI = Identity(
    "qwen2.5-omni",
    "a part of Qwen2.5-Omni without the vocoder",
    "download its shards that hold token2wav, the last ones",
)


@dataclass(frozen=True)
class Source:
    """Files that belong together. `weight_map`: of the index, as far as it is needed; `absent`: needed shards
    that are not there; `others`: shards of the index that hold nothing of use."""

    path: Path
    files: list[Path]
    weight_map: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    settings: dict = field(default_factory=dict)


def identify(path: str | Path) -> Identity:
    """Say what a file or folder is; reads no tensor and runs no code.

    Kinds: uniavgen, lora, wan2.2-5b, wan2.1, wan, wan2.2-vae, wan2.1-vae, vae, umt5, t5, bigvgan, vocoder,
    qwen2.5-omni, other, and for what cannot be opened missing, empty, truncated, damaged, missing shard,
    pickle, zip, gguf, html, git-lfs, json, text, binary, folder.
    """
    try:
        return open_any(Path(path)).identity
    except WrongFile as error:
        return error.identity


def open_any(path: Path) -> TensorFiles:
    """Open whatever part lies there; of a folder with several the model, else the first of `EXPECTED`.

    Raises:
        WrongFile: no part of UniAVGen.
    """
    first = None
    for part in EXPECTED:
        try:
            return open_part(path, part)
        except WrongFile as error:
            if error.identity.kind not in KINDS and first is None:
                first = error
    assert first is not None  # a kind of KINDS is opened as its own part
    raise first


def open_part(path: str | Path, part: Part | str) -> TensorFiles:
    """Open a part: a file, a folder, an index, or one shard (which stands for all).

    Of a folder with several parts, such as the release, the one asked for is taken. Only headers are read;
    a missing or cut shard is found here, before anything is loaded.

    Raises:
        WrongFile: something else; the line says what it is instead.
        UserError: a broken config or index, a file without permission.
    """
    path = Path(path)
    if not path.exists():
        raise WrongFile(path, MISSING, EXPECTED[part])
    if not path.is_dir():
        return _read(_source(path, part), path, part)

    fitting, faults = [], []
    sources = _sources(path, part)
    for source in sources:
        try:
            fitting.append(_read(source, source.path if len(sources) > 1 else path, part))
        except WrongFile as error:
            faults.append(error)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = first_few([source.path.name for source in sources])
        raise WrongFile(
            path,
            Identity("folder", f"a folder with {len(fitting)} of them", f"name one ({names})"),
            EXPECTED[part],
        )
    for name in NAMES.get(part, ()):
        if (path / name).is_dir():
            return open_part(path / name, part)
    if faults:
        hinted = [
            e for s, e in zip(sources, faults) if any(s.path.match(name) for name in NAMES.get(part, ()))
        ]
        raise min(hinted or faults, key=lambda error: error.identity.kind in KINDS)
    inside = [p.name for p in sorted(path.iterdir()) if p.is_dir() and any(p.glob("*.safetensors"))]
    advice = "download the model into it or choose another one"
    if inside:
        advice = f"choose its {first_few(inside)}"
    raise WrongFile(path, Identity("folder", "a folder without safetensors files", advice), EXPECTED[part])


def find_parts(model: str | Path | None) -> dict[str, Path]:
    """Where `vae`, `text_encoder` and `vocoder` lie in the folder given as the model, where they are there.

    By name, so that a damaged file is named when it is loaded; else by what a file holds.
    """
    folder = Path(model) if model else None
    if folder is None or not folder.is_dir():
        return {}
    found = {}
    for part, names in NAMES.items():
        path = next((path for name in names for path in sorted(folder.glob(name))), None)
        if path is None:
            try:
                path = open_part(folder, part).files[0]
            except UserError:
                continue
        found[part] = path
    return found


def _source(path: Path, part: str) -> Source:
    """What a file stands for: itself, or all shards of its index or its series."""
    shard = SHARD.fullmatch(path.name)
    if path.name.endswith(INDEX):
        return _indexed(path, part)
    if shard and int(shard["count"]) > 1:
        index = path.with_name(shard["stem"] + INDEX)
        return _indexed(index, part) if index.exists() else _series(path, shard)
    return Source(path, [path])


def _sources(folder: Path, part: str) -> list[Source]:
    """The indexes, series of shards and single files of a folder."""
    visible = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    indexes = [_indexed(p, part) for p in visible if p.name.endswith(INDEX)]
    used = {file for source in indexes for file in source.files + source.others}
    sources = {source.path: source for source in indexes}
    for path in visible:
        tensors = path.suffix in (".safetensors", ".pth") or path.match("pytorch_model*.bin")
        if tensors and path not in used:
            source = Source(path, [path], settings=_settings(folder))
            if shard := SHARD.fullmatch(path.name):
                source = _series(path, shard)
                used |= set(source.files)
            sources[source.path] = source
    return list(sources.values())


def _indexed(index: Path, part: str) -> Source:
    weight_map = parse_json(index.read_bytes(), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WrongFile(index, damaged("an index without a weight_map"), EXPECTED[part])
    outside = [n for n in set(weight_map.values()) if Path(n).name != n]
    if outside:
        raise WrongFile(index, damaged(f"an index to other folders ({first_few(outside)})"), EXPECTED[part])
    others = []
    if any(name.startswith(OMNI_VOCODER) for name in weight_map):  # only these shards are needed
        others = [index.with_name(name) for name in set(weight_map.values())]
        weight_map = {n: file for n, file in weight_map.items() if n.startswith(OMNI_VOCODER)}
    names = sorted(set(weight_map.values()))
    absent = [n for n in names if not (index.parent / n).is_file()]
    files = [index.parent / n for n in names if n not in absent]
    return Source(index, files, weight_map, absent, others, _settings(index.parent))


def _series(path: Path, shard: re.Match) -> Source:
    """A shard and its neighbours, without an index."""
    count = int(shard["count"])
    names = [f"{shard['stem']}-{i:05d}-of-{count:05d}{shard['suffix']}" for i in range(1, count + 1)]
    absent = [n for n in names if not path.with_name(n).is_file()]
    files = [path.with_name(n) for n in names if n not in absent]
    return Source(files[0], files, absent=absent, settings=_settings(path.parent))


def _settings(folder: Path) -> dict:
    file = folder / "config.json"
    return parse_json(file.read_bytes(), file) if file.is_file() else {}


def _read(source: Source, path: Path, part: str) -> TensorFiles:
    """Open the files of a source as `part`; `path` is how messages name it."""
    stored: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    try:
        for file in source.files:
            tensors, notes = read_header(file)
            twice = sorted(stored.keys() & tensors.keys())
            if twice:
                what = f"a checkpoint with {twice[0]} in two shards"
                raise Unreadable(
                    file, Identity("damaged", what, "download index and shards again, of one release")
                )
            stored |= tensors
            metadata |= notes
    except Unreadable as error:
        raise WrongFile(error.file if path.is_dir() else path, error.identity, EXPECTED[part]) from error
    vocoder = _vocoder_prefix(stored)
    if source.absent and (source.weight_map or vocoder is None):
        of = len(source.absent) + len(source.files)
        what = f"a checkpoint with {len(source.absent)} of {of} shards missing ({first_few(source.absent)})"
        advice = f"download them into {source.path.parent}"
        raise WrongFile(path, Identity("missing shard", what, advice), EXPECTED[part])
    missing = [n for n, shard in source.weight_map.items() if n not in stored or stored[n].file.name != shard]
    if missing:
        what = f"a checkpoint whose shards lack {len(missing)} tensors of the index ({first_few(missing)})"
        identity = Identity("damaged", what, "download index and shards again, of one release")
        raise WrongFile(path, identity, EXPECTED[part])

    if vocoder is None:
        prefix = next((p for p in PREFIXES if 2 * sum(n.startswith(p) for n in stored) > len(stored)), "")
        stored = {name.removeprefix(prefix): info for name, info in stored.items()}
        identity = identify_tensors(stored)
    else:
        prefix, identity = vocoder, VOCODER
        stored = {n.removeprefix(prefix): info for n, info in stored.items() if n.startswith(prefix)}
    if KINDS.get(identity.kind) != part:
        raise WrongFile(path, identity, EXPECTED[part])
    files = list(dict.fromkeys(info.file for info in stored.values()))
    return TensorFiles(path, files, identity, prefix, stored, metadata, source.settings)


def _vocoder_prefix(names: Iterable[str]) -> str | None:
    """What stands before the names of a BigVGAN among these; None if there is none."""
    names = set(names)
    if any(name.startswith(OMNI_VOCODER) for name in names):
        return OMNI_VOCODER
    heads = [n.removesuffix("conv_pre.weight") for n in names if n.endswith("conv_pre.weight")]
    return next((h for h in heads if any(n.startswith((f"{h}resblocks.", f"{h}ups.")) for n in names)), None)


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
        return Identity(
            "wan2.1-vae", "the Wan2.1 VAE (16 latent channels)", "get the Wan2.2 VAE and " + VAE_PLACE
        )
    if "decoder.conv_in.weight" in stored or "decoder.conv1.weight" in stored:
        return Identity("vae", "the VAE of another model", "get the Wan2.2 VAE and " + VAE_PLACE)
    embedding = stored.get("shared.weight") or stored.get("token_embedding.weight")
    encoder = [name for name in stored if name.startswith(("encoder.", "blocks."))]
    biases = sum("SelfAttention.relative_attention_bias" in n or "pos_embedding" in n for n in encoder)
    if embedding and biases:
        if embedding.shape[0] == 256384 or biases > 1:  # T5 has one for all layers, umT5 one each
            return Identity("umt5", "the umT5 text encoder", TEXT_PLACE)
        return Identity("t5", "a T5 text encoder", "get umT5-xxl and " + TEXT_PLACE)
    if any("conv_pre.weight_g" in name or "conv_pre.parametrizations" in name for name in stored):
        return WEIGHT_NORM
    if any(name.startswith(("thinker.", "talker.", "token2wav.")) for name in stored):
        return OMNI
    what = f"another model ({len(stored)} tensors: {first_few(stored)})"
    return Identity("other", what, "choose another file")
