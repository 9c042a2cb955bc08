"""The caption encoder: umT5 hidden states of a description of the scene (docs/model.md section 1)."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Collection
from pathlib import Path

import ftfy
import torch

from ..errors import UserError
from ..weights.files import TensorFiles, log
from ..weights.fp8 import load_tensors
from ..weights.identify import open_part

CAPTION_LENGTH = 512
SENTENCEPIECE = "spiece_model"  # ComfyUI's name of the tokenizer among the tensors
SENTENCEPIECE_FILE = "spiece.model"
SECOND_EMBEDDING = "encoder.embed_tokens.weight"  # the same tensor as shared.weight
WAN_NAMES = [
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
]
_DECISIVE = (
    "shared.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
)
_DECODER = ("decoder.", "lm_head.")
_TOKENIZER_FILES = ("tokenizer.json", SENTENCEPIECE_FILE, "tokenizer_config.json")


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

    def to(self, device: str | torch.device) -> CaptionEncoder:
        """Moves the encoder; captions are encoded there."""
        self.model.to(device)
        return self

    def save(self, folder: str | Path) -> None:
        """Write `text_encoder` and `tokenizer` folders that `load_caption_encoder` reads."""
        self.model.save_pretrained(Path(folder) / "text_encoder")
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")
        file = Path(folder) / "tokenizer" / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["tokenizer_class"] == "TokenizersBackend":  # transformers 5; 4 knows the class by this name
            file.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))


def clean(text: str) -> str:
    """A caption as those of the training were (docs/model.md section 9): broken Unicode mended, curly quotes,
    ligatures and full-width characters made plain (ftfy), HTML entities resolved twice, white space
    collapsed.

    ComfyUI's own CLIP Text Encode tokenises its text as it stands; only what goes through this encoder, on
    the command line, in training and as the embedded model's CLIP, is cleaned.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def load_caption_encoder(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    streamed: Collection[str] = (),
) -> CaptionEncoder:
    """Loads umT5 and its tokenizer from any of their public forms, see `open_text_encoder`.

    On the CPU in their own dtype the weights are the file's pages; linear layers stored in fp8 stay in fp8.
    Those named in `streamed` stay in their file and come to the device as they are used.

    Raises:
        UserError: as `open_text_encoder` and `load_tokenizer`; tensors missing or of another shape.
    """
    files, names, model = open_text_encoder(path)
    tokenizer = load_tokenizer(files)
    load_tensors(model, files, names, device, dtype, True, streamed)
    model.encoder.embed_tokens.weight = model.shared.weight
    return CaptionEncoder(model, tokenizer)


def open_text_encoder(path: str | Path):
    """The files of umT5's encoder, the names of transformers -> the stored ones, and a meta model.

    Taken are Wan's `models_t5_umt5-xxl-enc-bf16.pth`, ComfyUI's `umt5_xxl_*.safetensors`, a transformers
    folder, and a parent of text_encoder/ and tokenizer/. Tensors that are not used are named in the log.

    Raises:
        UserError: nothing there, another kind of file, tensors missing or of another shape.
    """
    from transformers import UMT5EncoderModel

    files = open_part(path, "text_encoder")
    names = {transformers_name(name): name for name in files.tensors if name != SENTENCEPIECE}
    names = {n: stored for n, stored in names.items() if n != SECOND_EMBEDDING and not n.startswith(_DECODER)}
    missing = [name for name in _DECISIVE if name not in names]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} tensors of umT5 ({missing[0]}), expected its whole encoder; "
            "download it again"
        )
    with torch.device("meta"):
        model = UMT5EncoderModel(_umt5_config(files, names))
    expected = {n: tuple(t.shape) for n, t in model.state_dict().items() if n != SECOND_EMBEDDING}
    for note in files.check(expected, names):
        log.warning(note)
    return files, {name: names[name] for name in expected}, model


def _umt5_config(files: TensorFiles, names: dict[str, str]):
    """The `transformers.UMT5Config` of the tensors."""
    from transformers import UMT5Config

    def shape(name: str) -> tuple[int, ...]:
        return files.tensors[names[name]].shape

    vocabulary, dim = shape("shared.weight")
    buckets, heads = shape(_DECISIVE[1])
    layers = 1 + max(int(n.split(".")[2]) for n in names if n.startswith("encoder.block."))
    kept = ("layer_norm_epsilon", "relative_attention_max_distance", "feed_forward_proj")
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=dim,
        d_kv=shape(_DECISIVE[2])[0] // heads,
        d_ff=shape(_DECISIVE[3])[0],
        num_layers=layers,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        **{key: files.settings[key] for key in kept if key in files.settings},
    )


def load_tokenizer(files: TensorFiles):
    """The tokenizer that belongs to the weights: in the same file (ComfyUI's), or in a folder beside it.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if SENTENCEPIECE in files.tensors:
        model = files.stored_tensor(files.tensors[SENTENCEPIECE]).numpy().tobytes()
        return SentencePieceTokenizer(model, files.path)
    folder = tokenizer_folder(files)
    if not (folder / "tokenizer.json").is_file() and (folder / SENTENCEPIECE_FILE).is_file():
        file = folder / SENTENCEPIECE_FILE
        return SentencePieceTokenizer(file.read_bytes(), file)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises a bare Exception
        reason = textwrap.shorten(str(error), 300)
        raise UserError(
            f"{folder}: the tokenizer cannot be loaded ({reason}), expected that of umT5; download it again"
        ) from error


def tokenizer_folder(files: TensorFiles) -> Path:
    """Where the tokenizer of these weights lies.

    Raises:
        UserError: nowhere.
    """
    beside = files.files[0].parent
    places = [beside, beside / "tokenizer", beside.parent / "tokenizer", beside / "google" / "umt5-xxl"]
    for place in places:
        if any((place / name).is_file() for name in _TOKENIZER_FILES):
            return place
    raise UserError(
        f"{files.path} has no tokenizer beside it, expected google/umt5-xxl/ with tokenizer.json or "
        f"{SENTENCEPIECE_FILE} in {beside}; download that folder too"
    )


class SentencePieceTokenizer:
    """A sentencepiece model, called as a tokenizer of transformers is; an end token closes each text."""

    def __init__(self, model: bytes, source: Path):
        """Raises UserError: no sentencepiece model, or the package is not installed."""
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError(
                f"{source}: this tokenizer needs sentencepiece, which is not installed: "
                "pip install sentencepiece"
            ) from error
        try:
            self.processor = SentencePieceProcessor(model_proto=model, add_bos=False, add_eos=True)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{source}: the tokenizer in it is no sentencepiece model, expected that of umT5; "
                "download it again"
            ) from error

    def __call__(self, texts: list[str], max_length: int = CAPTION_LENGTH, **kwargs):
        from transformers import BatchEncoding

        end = self.processor.eos_id()
        ids = [self.processor.encode(text) for text in texts]
        ids = [row if len(row) <= max_length else [*row[: max_length - 1], end] for row in ids]
        longest = max(map(len, ids))
        padded = [row + [0] * (longest - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
        return BatchEncoding({"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)})


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


def transformers_name(name: str) -> str:
    """The name that transformers gives to a tensor of Wan's umT5; its own names stay."""
    for pattern, replacement in WAN_NAMES:
        name, found = re.subn(pattern, replacement, name)
        if found:
            break
    return name
