import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from uniavgen_core.media import caption


@pytest.fixture(scope="module")
def encoder():
    return caption.random_caption_encoder(0, dim=32)


@pytest.fixture
def folder(encoder, tmp_path):
    """A folder as umT5 is published: weights, config and tokenizer.json side by side."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "rain": 3, "sun": 4, "falls": 5}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    encoder.model.save_pretrained(tmp_path / "umt5")
    tokenizer.save_pretrained(tmp_path / "umt5")
    return tmp_path / "umt5"


def test_a_caption_becomes_hidden_states(encoder):
    hidden = encoder(["A woman in a red coat speaks."])
    assert hidden.dtype == torch.float32
    assert hidden.shape == (1, 30, 32)  # a byte each and the end
    assert hidden.abs().sum(-1).min() > 0
    assert encoder.dim == 32


def test_a_short_caption_is_filled_with_zeros_and_does_not_feel_its_neighbours(encoder):
    alone = encoder(["rain"])
    batch = encoder(["rain", "a much longer caption"])
    assert batch.shape[1] == 22
    assert torch.allclose(batch[0, :5], alone[0], atol=1e-6)
    assert batch[0, 5:].abs().max() == 0


def test_the_empty_caption_is_the_null_caption(encoder):
    hidden = encoder(["", "rain"])
    assert torch.allclose(hidden[0, :1], encoder([" \n"])[0], atol=1e-6)
    assert hidden[0, 1:].abs().max() == 0


def test_a_long_caption_is_cut_to_512_positions(encoder):
    assert encoder(["word " * 400]).shape == (1, 512, 32)


def test_white_space_and_html_do_not_matter(encoder):
    assert caption.clean("  Tom &amp;amp; Ann\n\tspeak ") == "Tom & Ann speak"
    assert torch.equal(encoder(["  Tom &amp; Ann\n speak"]), encoder(["Tom & Ann speak"]))


def test_the_random_encoder_follows_its_seed_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, other = (caption.random_caption_encoder(seed)(["rain"]) for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def test_a_transformers_folder_is_loaded(encoder, folder):
    hidden = caption.load_caption_encoder(folder)(["rain falls", "sun"])
    assert hidden.shape == (2, 3, 32)
    expected = encoder.model(torch.tensor([[3, 5, 1]])).last_hidden_state
    assert torch.allclose(hidden[0], expected[0], atol=1e-6)
    assert hidden[1, 2].abs().max() == 0


def test_a_folder_with_text_encoder_and_tokenizer_is_loaded(encoder, tmp_path):
    encoder.model.save_pretrained(tmp_path / "text_encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = caption.load_caption_encoder(tmp_path)
    assert torch.equal(loaded(["rain"]), encoder(["rain"]))


def test_half_precision_stays_close(folder):
    half = caption.load_caption_encoder(folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    hidden, exact = half(["rain falls"]), caption.load_caption_encoder(folder)(["rain falls"])
    assert hidden.dtype == torch.float32
    assert (hidden - exact).norm() / exact.norm() < 0.05


def test_a_saved_encoder_opens_in_transformers_4_and_5_and_encodes_the_same(folder, tmp_path):
    encoder = caption.load_caption_encoder(folder)
    encoder.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = caption.load_caption_encoder(tmp_path / "saved")
    assert torch.equal(again(["rain falls", ""]), encoder(["rain falls", ""]))
