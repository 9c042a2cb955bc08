"""int8 weights with a scale for each row, as ComfyUI stores them."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import forward
from release_folder import write_release
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uniavgen_core.errors import UserError
from uniavgen_core.verify import relative_error
from uniavgen_core.weights.checkpoint import load_model, read_checkpoint
from uniavgen_core.weights.convert import convert
from uniavgen_core.weights.fp8 import Fp8Linear
from uniavgen_core.weights.write import MODEL_LINEAR


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("int8") / "UniAVGen")


@pytest.fixture(scope="module")
def file(release):
    convert(release, release.parent / "int8.safetensors", "int8")
    return release.parent / "int8.safetensors"


def test_every_row_of_a_linear_weight_has_its_own_scale(release, file):
    stored, exact = load_file(file), load_model(release).state_dict()
    linear = [name for name in exact if MODEL_LINEAR.fullmatch(name)]
    for name in linear:
        scale = stored[name.removesuffix("weight") + "weight_scale"]
        assert scale.shape == (len(exact[name]), 1)
        off = stored[name].float() * scale - exact[name].float()
        assert (off.abs() <= scale / 2 + 1e-8).all()
        assert (stored[name].abs().amax(1) == 127).all()
    others = exact.keys() - set(linear)
    assert all(torch.equal(stored[name], exact[name]) for name in others)


def test_comfyui_is_told_which_layers_are_int8(file):
    with safe_open(file, "pt") as opened:
        layers = json.loads(opened.metadata()["_quantization_metadata"])["layers"]
        weights = {n for n in opened.keys() if opened.get_slice(n).get_dtype() == "I8"}  # noqa: SIM118
    assert {f"{layer}.weight" for layer in layers} == weights
    assert all(note["format"] == "int8_tensorwise" for note in layers.values())


def test_int8_kept_in_memory_computes_what_the_dequantised_model_computes(file, make_inputs):
    kept, expanded = (load_model(file, dtype=torch.float32, keep_fp8=k) for k in (True, False))
    assert any(isinstance(m, Fp8Linear) and m.quantised.dtype == torch.int8 for m in kept.modules())
    with torch.no_grad():
        a, b = (forward(model, **make_inputs(kept.config)) for model in (kept, expanded))
    assert torch.equal(a.video, b.video)
    assert torch.equal(a.audio, b.audio)


def test_int8_is_nearer_to_the_weights_than_fp8(release, file, make_inputs):
    convert(release, release.parent / "fp8.safetensors", "fp8")
    models = [
        load_model(path, dtype=torch.float32) for path in (release, file, release.parent / "fp8.safetensors")
    ]
    with torch.no_grad():
        exact, int8, fp8 = (forward(model, **make_inputs(model.config)).video for model in models)
    assert 0 < 2 * relative_error(int8, exact) < relative_error(fp8, exact)


def test_int8_stays_as_it_is_and_becomes_bf16_again(file, tmp_path):
    convert(file, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    convert(file, tmp_path / "bf16.safetensors", "bf16")
    a, b = load_model(file).state_dict(), load_model(tmp_path / "bf16.safetensors").state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_rotated_int8_is_refused(file, tmp_path):
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    note = json.loads(metadata["_quantization_metadata"])
    for layer in note["layers"].values():
        layer["convrot"] = True
    path = tmp_path / "rotated.safetensors"
    save_file(load_file(file), path, metadata | {"_quantization_metadata": json.dumps(note)})
    with pytest.raises(UserError, match="is quantised as int8_tensorwise with convrot; expected"):
        read_checkpoint(path)
