"""The model's checkpoint: its sizes read off the tensors, and loading (docs/model.md section 2).

One safetensors file, or a folder of shards with or without index, in fp32, bf16, fp16 or ComfyUI's scaled
fp8 (an fp8 `X.weight` with one number beside it, `X.scale_weight` or `X.weight_scale`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch

from ..errors import UserError
from ..model.config import Config
from ..model.dit import DualBranchDiT
from .files import TensorFiles, log, parse_json
from .fp8 import load_tensors
from .identify import open_part

CONFIG_KEY = "uniavgen_config"


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint: a file, a folder, an index, or one shard (which stands for its folder).

    Only headers are read; a missing or cut shard is found here, before anything is loaded.

    Raises:
        UserError: not a UniAVGen checkpoint; the line says what it is instead (`WrongFile`).
    """
    found = open_part(path, "model")
    settings = dict(found.settings)
    if CONFIG_KEY in found.metadata:
        settings |= parse_json(found.metadata[CONFIG_KEY], f"{path}: the metadata entry {CONFIG_KEY}")
    return Checkpoint(
        found.path, found.files, found.identity, found.prefix, found.stored, found.metadata, settings
    )


class Checkpoint(TensorFiles):
    """The model's tensors, and the sizes that they tell."""

    def new_model(self, heads: int | None = None) -> tuple[DualBranchDiT, list[str]]:
        """The model without memory (on the meta device), and a note on tensors that it ignores.

        Raises:
            UserError: as `config`; tensors missing, of another shape or not of a float type.
        """
        model = DualBranchDiT(self.config(heads), device="meta")
        return model, self.check({n: tuple(t.shape) for n, t in model.state_dict().items()})

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
            "distilled": "guidance_embedding.0.weight" in self.tensors,
        }
        try:
            return Config(**sizes, **extra)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}: correct {CONFIG_KEY} or get another file") from error

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
    keep_fp8: bool = False,
    streamed: Collection[str] = (),
) -> DualBranchDiT:
    """Load a checkpoint: built without memory, each tensor then goes straight to `device`.

    All of it takes one dtype: `dtype`, else the file's (of most parameters; bfloat16 for fp8). On the
    CPU in the file's own dtype the weights are the file's pages (see `TensorFiles.tensor`). With `keep_fp8`
    weights stored in fp8 stay so and are dequantised as they are used, with the same result. Those named in
    `streamed` stay in their file and come to the device as they are used. Tensors that the model does not
    take are named in a warning of the log.

    Raises:
        UserError: not a UniAVGen checkpoint, unknown `heads` (see `Checkpoint.config`), or tensors
            missing or of another shape.
    """
    checkpoint = read_checkpoint(path)
    model, notes = checkpoint.new_model(heads)
    for note in notes:
        log.warning(note)
    names = {name: name for name in model.state_dict()}
    load_tensors(model, checkpoint, names, device, dtype or checkpoint.dtype, keep_fp8, streamed)
    return model.eval()
