"""The release's download at a tiny size: its file names, its layout and the tensor names of Wan."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
import torch
from random_parts import random_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from uniavgen_core.media.vae import original_name, random_vae
from uniavgen_core.media.vocoder import random_vocoder

SHARD = "diffusion_pytorch_model-{:05d}-of-{:05d}.safetensors"
VAE = "Wan2.2_VAE.pth"
TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = "google/umt5-xxl"
VOCODER = "code2wav_bigvgan_model"
CAPTION = "A woman in a red coat talks by the sea, the wind in her hair."
SPEECH = "Good morning, the tide is coming in."


def write_release(folder: Path, vae: dict[str, torch.Tensor] | None = None) -> Path:
    """The whole folder; the model has random weights of size TINY in bf16, as all but VAE and vocoder.

    `vae`: tensors in place of `wan_vae()`, which needs diffusers.
    """
    folder.mkdir()
    model = random_model()
    tensors = {name: value.bfloat16() for name, value in model.state_dict().items()}
    write_shards(folder, tensors)
    config = {"_class_name": "UniAVGen", "num_heads": model.config.video_heads, "text_len": 64}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(wan_vae() if vae is None else vae, folder / VAE)
    write_tokenizer(folder / TOKENIZER)
    torch.save(wan_text_encoder(text_encoder()), folder / TEXT)
    random_vocoder().bigvgan.save_pretrained(folder / VOCODER)
    return folder


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], count: int = 2) -> None:
    weight_map = {key: SHARD.format(i % count + 1, count) for i, key in enumerate(tensors)}
    for name in set(weight_map.values()):
        save_file({k: v for k, v in tensors.items() if weight_map[k] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def wan_vae() -> dict[str, torch.Tensor]:
    """A narrow Wan2.2 VAE under the names of Wan's own file."""
    return {original_name(name): value for name, value in random_vae().model.state_dict().items()}


def text_encoder(dim: int = 64) -> UMT5EncoderModel:
    """A random umT5 that reads the tokens of `write_tokenizer`, in bf16."""
    config = UMT5Config(vocab_size=64, d_model=dim, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return UMT5EncoderModel(config).bfloat16().eval()


def wan_text_encoder(model: UMT5EncoderModel) -> dict[str, torch.Tensor]:
    """Its tensors under the names of Wan's own file."""
    names = {
        "shared.": "token_embedding.",
        "encoder.final_layer_norm.": "norm.",
        "encoder.block.": "blocks.",
        "layer.0.layer_norm.": "norm1.",
        "layer.0.SelfAttention.relative_attention_bias.": "pos_embedding.embedding.",
        "layer.0.SelfAttention.": "attn.",
        "layer.1.layer_norm.": "norm2.",
        "layer.1.DenseReluDense.wi_0.": "ffn.gate.0.",
        "layer.1.DenseReluDense.wi_1.": "ffn.fc1.",
        "layer.1.DenseReluDense.wo.": "ffn.fc2.",
    }
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "encoder.embed_tokens.weight":
            continue
        for theirs, wan in names.items():
            name = name.replace(theirs, wan)
        tensors[name] = value.clone()
    return tensors


def write_tokenizer(folder: Path) -> None:
    """`spiece.model` and the same as `tokenizer.json`, 64 pieces: pad 0, end 1, unknown 2."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([CAPTION, SPEECH, "A man with a beard laughs in a kitchen."] * 3),
        model_writer=trained,
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(trained.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    assert pieces.get_piece_size() <= 64
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    end = ("</s>", 1)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
