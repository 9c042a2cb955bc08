"""A new caption encoder: umT5's architecture, small, with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..media.caption import CaptionEncoder, clean


def new_caption_encoder(
    captions: Iterable[str], dim: int, layers: int = 2, vocabulary: int = 640, seed: int = 0
) -> CaptionEncoder:
    """Seeded weights of width `dim`; the tokenizer's merges come from `captions`, its bytes read any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((clean(caption) for caption in captions), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    config = UMT5Config(
        vocab_size=len(fast),
        d_model=dim,
        d_kv=dim // 4,
        d_ff=2 * dim,
        num_layers=layers,
        num_heads=4,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CaptionEncoder(UMT5EncoderModel(config), fast)
