"""The caption encoder: umT5 hidden states of a description of the scene (SPEC section 1)."""

from __future__ import annotations

import html
import json
import textwrap
from pathlib import Path

import torch

from ..errors import UserError

CAPTION_LENGTH = 512


class CaptionEncoder:
    """Turns captions into hidden states; positions past a caption's end are zero."""

    def __init__(self, model, tokenizer):
        """`model` is a `transformers.UMT5EncoderModel`, `tokenizer` the one it was trained with."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.dim = model.config.d_model

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Captions -> float32 `[B, N, dim]`, N the longest in tokens, at most 512 (the rest is cut).

        An empty caption is the null caption. Each caption is encoded alone, whatever shares its batch.
        """
        tokens = self.tokenizer(
            [clean(text) for text in texts],
            padding="longest",
            truncation=True,
            max_length=CAPTION_LENGTH,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        hidden = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return hidden.float().masked_fill(tokens.attention_mask[..., None] == 0, 0)

    def save(self, folder: str | Path) -> None:
        """Write `text_encoder` and `tokenizer` folders that `load_caption_encoder` reads."""
        self.model.save_pretrained(Path(folder) / "text_encoder")
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")
        file = Path(folder) / "tokenizer" / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["tokenizer_class"] == "TokenizersBackend":  # transformers 5; 4 knows the class by this name
            file.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))


def clean(text: str) -> str:
    """HTML entities resolved (twice, as in Wan's training), runs of white space made one space."""
    return " ".join(html.unescape(html.unescape(text)).split())


def load_caption_encoder(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> CaptionEncoder:
    """Loads a transformers folder of umT5 with its tokenizer, or a parent of text_encoder/ and tokenizer/.

    Raises:
        UserError: no such folder, another model, missing tensors or files.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, UMT5EncoderModel

    path = Path(path)
    folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; the caption encoder is a transformers folder of umT5-xxl "
            "(config.json, weights, tokenizer), not a single file"
        )
    kind = _model_type(folder / "config.json")
    if kind != "umt5":
        raise UserError(
            f"{folder}: holds a model of type {kind!r}, expected 'umt5'; choose the folder of umT5-xxl"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_folder(path, folder), local_files_only=True)
        model, loading = UMT5EncoderModel.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise UserError(
            f"{folder}: the caption encoder cannot be loaded: {reason}; download it again"
        ) from error
    if loading["missing_keys"]:
        raise UserError(
            f"{folder}: {len(loading['missing_keys'])} tensors of the caption encoder are missing "
            f"({min(loading['missing_keys'])}); download the folder again"
        )
    return CaptionEncoder(model.to(device), tokenizer)


def random_caption_encoder(seed: int = 0, dim: int = 64) -> CaptionEncoder:
    """A small seeded encoder that reads bytes; `dim` is the width of its hidden states."""
    from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

    tokenizer = ByT5Tokenizer()
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=dim, d_kv=16, d_ff=2 * dim, num_layers=2, num_heads=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CaptionEncoder(UMT5EncoderModel(config), tokenizer)


def _tokenizer_folder(path: Path, folder: Path) -> Path:
    return path / "tokenizer" if (path / "tokenizer").is_dir() else folder


def _model_type(file: Path) -> str:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: missing or not the config of a transformers model; choose the folder of umT5-xxl"
        ) from error
