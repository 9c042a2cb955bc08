"""The plan that keeps a run below a memory limit (docs/memory.md).

Each stage of a run is counted by itself, for its parts are loaded when it begins and released when it ends:
weights from the files' headers, everything else by running the code on the meta device (`allocations`).
Where it does not fit, weights of the transformer and of the text encoder are streamed, and the VAE works in
tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from . import conditioning
from .allocations import Allocations, flash_attention
from .conditioning import MODES, Anew, Span
from .errors import UserError
from .media import vae_tiles
from .media.caption import CAPTION_LENGTH, open_text_encoder
from .media.vae import LATENT_CHANNELS, autoencoder, open_vae
from .media.vae_tiles import Tiles
from .media.vocoder import open_vocoder
from .model.config import Config
from .model.dit import DualBranchDiT
from .model.inputs import TextConditioning
from .model.layers import Attention
from .sampling.defaults import Guidance
from .sampling.guidance import GuidedModel
from .weights.checkpoint import read_checkpoint
from .weights.files import TORCH_DTYPES, TensorFiles
from .weights.streaming import AHEAD, spread
from .weights.write import MODEL_LINEAR, TEXT_LINEAR

RESERVE = 500_000_000  # libraries, kernels' workspaces and what an allocator cannot use
SPEECH_SYMBOLS = 200
TILES = [Tiles(r, c) for r, c in ((1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 5), (5, 6), (6, 8))]


class Clip(NamedTuple):
    """What decides the memory of a run, lengths in frames of the video and of the mel."""

    mode: str
    width: int
    height: int
    frames: int
    mels: int
    voice: int = 0  # mel frames of a reference voice

    @property
    def latent(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        return conditioning.latent_frames(self.frames), self.height // 16, self.width // 16


@dataclass(frozen=True)
class Stage:
    """One stage of a run: bytes on the device by what they are for."""

    name: str
    parts: dict[str, int]
    note: str = ""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def line(self) -> str:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.parts.items())
        return f"{self.name:8} {self.total / 1e9:5.2f} GB: {parts}{self.note and f' ({self.note})'}"


@dataclass(frozen=True)
class MemoryPlan:
    """How a run stays below `limit` bytes.

    `model`, `text_encoder`: the weights that are streamed, by the names of the module; `tiles`: of the VAE,
    for encoding and for decoding.
    """

    limit: int
    stages: tuple[Stage, ...]
    model: frozenset[str]
    text_encoder: frozenset[str]
    tiles: tuple[Tiles, Tiles]

    @property
    def peak(self) -> int:
        return max(stage.total for stage in self.stages)

    def lines(self) -> list[str]:
        """The plan as text, a line for each stage."""
        return [
            f"memory: at most {self.peak / 1e9:.2f} of {self.limit / 1e9:.2f} GB",
            *(stage.line() for stage in self.stages),
        ]


def plan(
    paths: Mapping[str, str | Path | None],
    clip: Clip,
    guidance: Guidance,
    limit: int,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    text_dtype: torch.dtype = torch.bfloat16,
) -> MemoryPlan:
    """The plan for one clip from the parts at `paths` (model, vae, text_encoder, vocoder or None).

    `dtype`: of the model, None: as in its file. On a CPU the decoded frames count, too.

    Raises:
        UserError: a stage does not fit however small its parts are cut; as the functions that open the parts.
    """
    checkpoint = read_checkpoint(_given(paths, "model"))
    config, dtype = checkpoint.new_model()[0].config, dtype or checkpoint.dtype
    latents, rows, columns = clip.latent
    numbers = LATENT_CHANNELS * latents * rows * columns + clip.mels * config.audio_channels
    texts = 2 * 4 * config.caption_length * config.caption_dim  # the caption and the null caption
    base = {"texts and latents": 4 * 4 * numbers + texts, "reserve": RESERVE}

    text, names, _ = open_text_encoder(_given(paths, "text_encoder"))
    linear = {name for name in names if TEXT_LINEAR.fullmatch(name)}
    activations = {"activations": text_activations(text, names, text_dtype)}
    caption, text_streamed = _stage("caption", text, names, linear, text_dtype, activations | base, limit)

    names = {name: name for name in DualBranchDiT(config, device="meta").state_dict()}
    linear = {name for name in names if MODEL_LINEAR.fullmatch(name)}
    peak, kept = model_memory(config, clip, guidance, dtype)
    activations = {"activations": peak - kept, "kept between steps": kept}
    sample, streamed = _stage("sample", checkpoint, names, linear, dtype, activations | base, limit)

    vae, vae_names, vae_config = open_vae(_given(paths, "vae"))
    base["VAE"] = 4 * sum(vae.tensors[stored].parameters for stored in vae_names.values())
    with torch.device("meta"):
        autoencoder_ = autoencoder(vae_config)
    given = clip.frames if MODES[clip.mode].takes_video else 1
    pixels = clip.width * clip.height
    frames = {"frames": 15 * pixels * given} if device == "cpu" else {}
    encode, encode_tiles = _tiled(
        "encode", frames | base, limit, lambda t: encode_memory(autoencoder_, clip, t, given)
    )
    frames = {"frames": 15 * pixels * clip.frames} if device == "cpu" else {}
    decode, decode_tiles = _tiled(
        "decode", frames | base, limit, lambda t: decode_memory(autoencoder_, clip, t)
    )
    stages = [caption, encode, sample, decode]
    if paths.get("vocoder"):
        stages.append(_vocoder(_given(paths, "vocoder"), clip))
    return MemoryPlan(limit, tuple(stages), streamed, text_streamed, (encode_tiles, decode_tiles))


def model_memory(config: Config, clip: Clip, guidance: Guidance, dtype: torch.dtype) -> tuple[int, int]:
    """Peak bytes of a guided step and of those after it, and what of them is kept between the steps.

    Deep models are counted with few layers, see `by_layers`.
    """
    return by_layers(config, lambda c: _count_steps(c, clip, guidance, dtype))


def by_layers(config: Config, count: Callable[[Config], tuple[int, int]]) -> tuple[int, int]:
    """What `count` gives for a model whose pairs of layers cost the same, from two and four layers."""
    regular = config.interaction_layers == tuple(range(0, config.layers, 2))
    if config.layers <= 6 or config.layers % 2 or not regular:
        return count(config)
    two, four = (count(replace(config, layers=n, interaction_layers=tuple(range(0, n, 2)))) for n in (2, 4))
    pairs = config.layers // 2 - 1
    return two[0] + pairs * (four[0] - two[0]), two[1] + pairs * (four[1] - two[1])


def _count_steps(config: Config, clip: Clip, guidance: Guidance, dtype: torch.dtype) -> tuple[int, int]:
    """Two steps on the meta device, one within the interval of MA-CFG and one after it."""
    guided = guided_on_meta(config, clip, guidance, dtype)
    video, audio = torch.empty_like(guided.task.clean_video), torch.empty_like(guided.task.clean_audio)
    with torch.inference_mode(), Allocations() as counted:
        for step in range(2):
            guided(video, audio, torch.empty(1, device="meta"), step, 2)
        return counted.peak, counted.alive


def guided_on_meta(
    config: Config, clip: Clip, guidance: Guidance, dtype: torch.dtype, attention: Attention = flash_attention
) -> GuidedModel:
    """The guided model and a task of a clip's sizes, without data; half of the steps are those of MA-CFG."""
    model = DualBranchDiT(config, device="meta", dtype=dtype)
    latents, rows, columns = clip.latent
    row = MODES[clip.mode]

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta")

    task = conditioning.condition(
        clip.mode,
        empty(config.video_channels, latents if row.takes_video else 1, rows, columns),
        None if row.audio == "nothing" else empty(clip.mels, config.audio_channels),
        latents,
        clip.mels,
        anew=Anew(Span(1, latents), Span(0, clip.mels)),
        variant=config.variant,
        reference_mel=empty(clip.voice, config.audio_channels) if clip.voice else None,
        bands=config.audio_channels,
    )
    text = TextConditioning(
        empty(config.caption_length, config.caption_dim), empty(SPEECH_SYMBOLS, config.speech_dim)
    )
    guidance = replace(guidance, interval=0.5, skip_layers=())
    return GuidedModel(model, task, text, text, guidance, attention)


def decode_memory(model: Any, clip: Clip, tiles: Tiles) -> int:
    """Peak bytes of decoding a clip; `model`: the VAE on the meta device. Its result is not counted."""
    latents, rows, columns = clip.latent
    width = model.post_quant_conv.out_channels
    some = min(latents, 3)  # with the third everything is full that is kept from one to the next
    raw = torch.empty(1, width, some, rows, columns, device="meta")
    row, column = _widest_tile(tiles, rows, columns)
    with torch.inference_mode(), Allocations() as counted:
        middles = list(vae_tiles.middles(model, raw))
        one = middles[0].untyped_storage().nbytes()
        for _ in vae_tiles.decode_tile(model.decoder, middles, row, column):
            pass
    return counted.peak + (latents - some) * one


def encode_memory(model: Any, clip: Clip, tiles: Tiles, frames: int) -> int:
    """Peak bytes of encoding so many frames, which are not counted."""
    _, rows, columns = clip.latent
    some = min(frames, 9)
    video = torch.empty(1, 3, some, clip.height, clip.width, device="meta")
    with torch.inference_mode(), Allocations() as counted:
        one = 0
        for features in vae_tiles.encode_tile(model, video, *_widest_tile(tiles, rows, columns)):
            one = features.shape[1] * rows * columns * features.element_size()
    return counted.peak + (1 + (frames - 1) // 4) * one


def _widest_tile(tiles: Tiles, rows: int, columns: int) -> tuple[vae_tiles.Span, vae_tiles.Span]:
    """The tile that is largest with its margins."""
    grid = tiles.grid(rows, columns)
    return max(grid, key=lambda t: _extent(t[0], rows) * _extent(t[1], columns))


def _extent(span: vae_tiles.Span, length: int) -> int:
    margin = 13  # that of the decoder's first block
    return min(span.end + margin, length) - max(span.begin - margin, 0)


def text_activations(files: TensorFiles, names: Mapping[str, str], dtype: torch.dtype) -> int:
    """Bytes that umT5 needs for the longest caption beside its weights."""
    dim = files.tensors[names["shared.weight"]].shape[1]
    wide = files.tensors[names["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]].shape[0]
    heads = files.tensors[
        names["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    ].shape[1]
    n = CAPTION_LENGTH
    scores = n * n * heads * (4 * dtype.itemsize + 2 * 4)  # bias, scores, mask, weights; softmax in float32
    return scores + n * (4 * wide * dtype.itemsize + 8 * 4 * dim)


def _vocoder(path: str | Path, clip: Clip) -> Stage:
    files, config = open_vocoder(path)
    length, channels, widest = clip.mels, config["upsample_initial_channel"], 0
    for rate in config["upsample_rates"]:
        length, channels = length * rate, channels // 2
        widest = max(widest, length * channels)
    weights = 4 * sum(info.parameters for info in files.tensors.values())
    return Stage("vocoder", {"weights": weights, "activations": 16 * 4 * widest, "reserve": RESERVE})


def _stage(
    name: str,
    files: TensorFiles,
    names: Mapping[str, str],
    linear: Collection[str],
    dtype: torch.dtype,
    others: dict[str, int],
    limit: int,
) -> tuple[Stage, frozenset[str]]:
    """A stage whose linear weights stay on the device as far as they fit beside `others`."""

    def resident(n: str) -> int:
        stored = files.tensors[names[n]]
        kept = n in linear and files.quantised(names[n])
        return stored.parameters * (1 if kept else dtype.itemsize)

    sizes = {n: resident(n) for n in names if n in linear}
    parts = {"weights": sum(map(resident, names))}
    quantised = [n for n in sizes if files.quantised(names[n])]
    at_work = max((files.tensors[names[n]].parameters for n in sizes), default=0) * dtype.itemsize
    if quantised:
        parts["weight at work"] = at_work
    streamed: frozenset[str] = frozenset()
    need = sum(parts.values()) + sum(others.values())
    if need > limit:
        on_the_way = AHEAD + max(map(lambda n: _stored(files, names[n]), sizes), default=0)
        parts |= {"weight at work": at_work, "weights on the way": on_the_way}
        fixed = sum(others.values()) + parts["weights"] - sum(sizes.values()) + at_work + on_the_way
        if fixed > limit:
            _refuse(name, fixed, limit)
        streamed = frozenset(spread(sizes, limit - fixed))
        parts["weights"] -= sum(sizes[n] for n in streamed)
    size = sum(_stored(files, names[n]) for n in streamed)
    note = f"{size / 1e9:.1f} GB of weights are streamed" if streamed else ""
    return Stage(name, parts | others, note), streamed


def _tiled(
    name: str, others: dict[str, int], limit: int, count: Callable[[Tiles], int]
) -> tuple[Stage, Tiles]:
    """A stage of the VAE in as few tiles as fit beside `others`."""
    need = 0
    for tiles in TILES:
        need = sum(others.values()) + count(tiles)
        if need <= limit:
            number = tiles.rows * tiles.columns
            note = f"{number} tiles" if number > 1 else ""
            return Stage(name, {"activations": need - sum(others.values()), **others}, note), tiles
    return _refuse(name, need, limit)


def _refuse(name: str, need: int, limit: int) -> NoReturn:
    raise UserError(
        f"--memory {limit / 1e9:g} is too little: the stage {name} takes {need / 1e9:.1f} GB at least; use a "
        "smaller --short-side, fewer --frames or fp8 files"
    )


def _stored(files: TensorFiles, stored: str) -> int:
    info = files.tensors[stored]
    return info.parameters * TORCH_DTYPES[info.dtype].itemsize


def _given(paths: Mapping[str, str | Path | None], part: str) -> str | Path:
    path = paths[part]
    assert path is not None
    return path
