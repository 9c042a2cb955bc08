"""The numbers of the public model, reproduced."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from uniavgen_core import RELEASED, DualBranchDiT
from uniavgen_core.verify import GOLDEN, verify

FILES = ["released_tiny.safetensors", "mel_case.safetensors", "text_cases.json"]


@pytest.fixture(scope="module", params=FILES)
def cases(request) -> list:
    return list(verify(GOLDEN / request.param))


def test_every_golden_case_is_reproduced(cases):
    assert cases
    assert [c for c in cases if not c.error < 1e-5] == []


def test_every_golden_value_of_the_model_is_compared():
    values = load_file(GOLDEN / "released_tiny.safetensors")
    wanted = {n.removeprefix("out.") for n in values if n.startswith(("out.", "plan."))}
    runs = json.loads((GOLDEN / "released_tiny.json").read_text())["sampling"]
    wanted |= {f"sampling {run}.{branch}" for run in runs for branch in ("video", "audio")}
    assert {c.name for c in verify(GOLDEN / "released_tiny.safetensors")} == wanted


@pytest.mark.parametrize(
    ("changed", "noticed"),
    [
        ("out.joint.video", {"joint.video"}),
        ("out.dubbing.mask.1", {"dubbing.mask.1"}),
        ("samp.dubbing.audio", {"sampling dubbing.audio"}),
        ("plan.a2v_index", {"plan.a2v_index"}),
        ("w.v2a_blocks.0.norm_k.weight", {"joint.audio", "continuation.audio", "sampling dubbing.audio"}),
        ("w.a2v_blocks.1.mask_head.head.bias", {"joint.video", "joint.mask.1", "sampling joint.video"}),
    ],
)
def test_verify_notices_a_wrong_value(tmp_path, changed, noticed):
    values = load_file(GOLDEN / "released_tiny.safetensors")
    values[changed] = values[changed] + (torch.ones_like(values[changed]) if "plan" in changed else 0.1)
    save_file(values, tmp_path / "released_tiny.safetensors")
    shutil.copy(GOLDEN / "released_tiny.json", tmp_path)
    wrong = {c.name for c in verify(tmp_path / "released_tiny.safetensors") if c.error > 1e-4}
    assert noticed <= wrong
    if not changed.startswith("w."):
        assert wrong == noticed


def test_verify_notices_a_wrong_mel_and_wrong_symbols(tmp_path):
    values = load_file(GOLDEN / "mel_case.safetensors")
    save_file({**values, "log_mel": values["log_mel"] + 0.01}, tmp_path / "mel_case.safetensors")
    assert {c.name for c in verify(tmp_path / "mel_case.safetensors") if c.error > 1e-4} == {"log_mel"}
    texts = json.loads((GOLDEN / "text_cases.json").read_text(encoding="utf-8"))
    texts[1]["ids"][0] += 1
    (tmp_path / "text_cases.json").write_text(json.dumps(texts), encoding="utf-8")
    assert [c.error for c in verify(tmp_path / "text_cases.json")].count(0) == (
        len(list(verify(GOLDEN / "text_cases.json"))) - 1
    )


def released_names() -> dict[str, tuple[int, ...]]:
    """docs/model.md section 2, spelled out: name -> shape."""
    d, a, caption, speech = 3072, 1536, 4096, 512
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def attention(name: str, dim: int, source: int) -> None:
        for part, into in (("q", dim), ("k", source), ("v", source), ("o", dim)):
            linear(f"{name}.{part}", dim, into)
        for part in ("norm_q", "norm_k"):
            shapes[f"{name}.{part}.weight"] = (dim,)

    def head(name: str, dim: int, out: int) -> None:
        shapes[f"{name}.modulation"] = (1, 2, dim)
        linear(f"{name}.head", out, dim)

    shapes["patch_embedding.weight"], shapes["patch_embedding.bias"] = (d, 48, 1, 2, 2), (d,)
    linear("audio_embedding.0", a, 80)
    linear("audio_embedding.2", a, a)
    shapes["audio_padding"] = (a,)
    linear("text_embedding_video.0", d, caption)
    linear("text_embedding_video.2", d, d)
    shapes["text_embedding.text_embed.weight"] = (2546, speech)
    for i in range(4):
        block = f"text_embedding.text_blocks.{i}"
        shapes[f"{block}.dwconv.weight"], shapes[f"{block}.dwconv.bias"] = (speech, 1, 7), (speech,)
        shapes[f"{block}.norm.weight"], shapes[f"{block}.norm.bias"] = (speech,), (speech,)
        linear(f"{block}.pwconv1", 2 * speech, speech)
        shapes[f"{block}.grn.gamma"] = shapes[f"{block}.grn.beta"] = (1, 1, 2 * speech)
        linear(f"{block}.pwconv2", speech, 2 * speech)
    linear("text_proj", a, speech, bias=False)
    for suffix, dim in (("", d), ("_audio", a)):
        linear(f"time_embedding{suffix}.0", dim, 256)
        linear(f"time_embedding{suffix}.2", dim, dim)
        linear(f"time_projection{suffix}.1", 6 * dim, dim)
    for blocks, dim, ffn in (("blocks", d, 14336), ("audio_blocks", a, 8960)):
        for i in range(30):
            block = f"{blocks}.{i}"
            shapes[f"{block}.modulation"] = (1, 6, dim)
            attention(f"{block}.self_attn", dim, dim)
            shapes[f"{block}.norm3.weight"], shapes[f"{block}.norm3.bias"] = (dim,), (dim,)
            attention(f"{block}.cross_attn", dim, dim)
            linear(f"{block}.ffn.0", ffn, dim)
            linear(f"{block}.ffn.2", dim, ffn)
    for i in range(15):
        attention(f"a2v_blocks.{i}", d, a)
        head(f"a2v_blocks.{i}.mask_head", d, 1)
        attention(f"v2a_blocks.{i}", a, d)
    head("head", d, 4 * 48)
    head("head_audio", a, 80)
    return shapes


def test_the_released_model_has_the_names_and_sizes_of_the_public_checkpoint():
    state = DualBranchDiT(RELEASED, device="meta").state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == released_names()
    assert len(state) == 2036
    assert sum(x.numel() for x in state.values()) == 7_056_424_223
