"""Any file a user may have: the model in all its forms loads the same, anything else is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uniavgen_core.errors import UserError
from uniavgen_core.model.config import RELEASED, TINY, Config
from uniavgen_core.model.dit import DualBranchDiT
from uniavgen_core.verify import GOLDEN
from uniavgen_core.weights import files, write
from uniavgen_core.weights.checkpoint import load_model, read_checkpoint
from uniavgen_core.weights.convert import convert, save_checkpoint
from uniavgen_core.weights.identify import KINDS, identify
from uniavgen_core.weights.inspect import inspect

MODEL_CASE = GOLDEN / "released_tiny.safetensors"
GOLDEN_CONFIG = Config(
    video_dim=80,
    video_heads=4,
    video_ffn=128,
    audio_dim=40,
    audio_heads=2,
    audio_ffn=64,
    layers=4,
    interaction_layers=(0, 2),
    freq_dim=32,
    caption_dim=24,
    speech_vocab=60,
    speech_dim=16,
)
PAPER = Config(**{**TINY.__dict__, "variant": "paper", "interaction_layers": (1,), "window": 2})
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")


@pytest.fixture(scope="module")
def weights():
    with safe_open(MODEL_CASE, framework="pt") as file:
        return {k[2:]: file.get_tensor(k) for k in file.keys() if k.startswith("w.")}  # noqa: SIM118


def write_shards(folder, tensors, count=3):
    """A folder as Hugging Face releases it."""
    folder.mkdir(exist_ok=True)
    names = [f"diffusion_pytorch_model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    weight_map = {key: names[i % count] for i, key in enumerate(tensors)}
    for name in names:
        save_file({k: tensors[k] for k in tensors if weight_map[k] == name}, folder / name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def same(model, tensors, dtype=None):
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(
        torch.equal(state[k], tensors[k].to(dtype or tensors[k].dtype)) for k in tensors
    )


def meta_shapes(config):
    return {k: v.shape for k, v in DualBranchDiT(config, device="meta").state_dict().items()}


# What loads


def test_released_size_has_the_tensors_of_the_public_checkpoint():
    shapes = meta_shapes(RELEASED)
    assert len(shapes) == 2036
    assert sum(s.numel() for s in shapes.values()) == 7_056_424_223


def test_folder_index_shard_and_single_file_load_the_same_model(tmp_path, weights):
    folder = write_shards(tmp_path / "shards", weights)
    (tmp_path / "one").mkdir()
    single = tmp_path / "one" / "model.safetensors"
    save_file(weights, single)
    (tmp_path / "one" / "._model.safetensors").write_bytes(b"made by another system")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    shard = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    for path in (folder, index, shard, tmp_path / "one", single):
        model = load_model(path, heads=4)
        assert same(model, weights)
        assert model.config == GOLDEN_CONFIG
        assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_stripped(tmp_path, weights, prefix):
    save_file({prefix + k: v for k, v in weights.items()}, tmp_path / "m.safetensors")
    assert same(load_model(tmp_path / "m.safetensors", heads=4), weights)
    assert inspect(tmp_path / "m.safetensors", heads=4)["prefix"] == prefix


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_keeps_the_dtype_of_its_file_unless_told(tmp_path, weights, stored):
    kept = {k: v.to(stored) for k, v in weights.items()}
    kept["head.modulation"] = weights["head.modulation"]
    save_file(kept, tmp_path / "m.safetensors")
    assert same(load_model(tmp_path / "m.safetensors", heads=4), kept, stored)
    assert same(load_model(tmp_path / "m.safetensors", dtype=torch.float32, heads=4), kept, torch.float32)


def test_every_config_comes_back_from_its_file(tmp_path):
    for config in (TINY, PAPER, GOLDEN_CONFIG):
        state = DualBranchDiT(config).state_dict()
        save_checkpoint(tmp_path / "m.safetensors", reversed(state.items()), config, "fp32")
        model = load_model(tmp_path / "m.safetensors")
        assert model.config == config
        assert same(model, state)


def test_a_full_size_release_is_understood_from_its_headers_alone(tmp_path):
    header, end = {}, 0
    for name, shape in meta_shapes(RELEASED).items():
        begin, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    found = inspect(path)
    assert Config.from_dict(found["config"]) == RELEASED
    assert (found["tensors"], found["parameters"]) == (2036, 7_056_424_223)
    assert found["dtypes"] == {"BF16": 7_056_424_223}
    assert 14.1e9 < found["bytes"] < 14.2e9
    assert found["memory"]["fp8"] < 10e9 < 14.1e9 < found["memory"]["bf16"] < 17e9


def test_heads_come_from_metadata_or_config_json_or_are_asked_for(tmp_path, weights):
    folder = write_shards(tmp_path, weights)
    with pytest.raises(UserError, match=r"number of heads.*video_heads"):
        load_model(folder)
    for settings in ({"num_heads": 4, "text_len": 16}, {"video_heads": 4, "caption_length": 16}):
        (folder / "config.json").write_text(json.dumps(settings))
        config = read_checkpoint(folder).config()
        assert (config.video_heads, config.audio_heads, config.caption_length) == (4, 2, 16)
    with pytest.raises(UserError, match="7 heads do not divide"):
        load_model(folder, heads=7)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is not a JSON object"):
        load_model(folder)


def test_interaction_layers_that_cannot_be_guessed_are_asked_for(tmp_path, weights):
    one = {k: v for k, v in weights.items() if "2v_blocks.1" not in k and "2a_blocks.1" not in k}
    save_file(one, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="1 interaction blocks but 2 interaction layers"):
        load_model(tmp_path / "m.safetensors", heads=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.ffn.0.bias"), r"1 missing \(blocks.1.ffn.0.bias\)"),
        (
            lambda w: w.update({"text_proj.weight": torch.zeros(40, 17)}),
            r"1 misshapen .*\[40, 17\] for \[40, 16\]",
        ),
        (lambda w: w.update({"audio_padding": torch.zeros(40, dtype=torch.int8)}), "not floating point"),
        (lambda w: w.pop("patch_embedding.weight"), "has no patch_embedding.weight"),
        (lambda w: [w.pop(k) for k in list(w) if "mask_head" in k], "variant is unknown"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, weights, change, message):
    weights = dict(weights)
    change(weights)
    save_file(weights, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "m.safetensors", heads=4)


def test_changing_a_loaded_weight_leaves_the_file_alone(tmp_path, weights):
    path = tmp_path / "m.safetensors"
    save_file(weights, path)
    before = path.read_bytes()
    with torch.no_grad():
        load_model(path, heads=4).audio_padding.add_(1)
    assert path.read_bytes() == before


# fp8


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def test_fp8_keeps_the_blocks_within_three_percent_and_the_rest_in_bf16(tmp_path, weights):
    save_file(weights, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "fp8.safetensors", "fp8", heads=4)
    stored = load_file(tmp_path / "fp8.safetensors")
    loaded = load_model(tmp_path / "fp8.safetensors", dtype=torch.float32).state_dict()
    quantised = [k for k, v in stored.items() if v.dtype == torch.float8_e4m3fn and k != "scaled_fp8"]
    assert len(quantised) == 8 * (8 + 2) + 4 * 4
    assert all(k.endswith(".weight") and stored[k].ndim == 2 and "blocks" in k for k in quantised)
    for name, value in weights.items():
        if name in quantised:
            assert stored[name.removesuffix("weight") + "scale_weight"].shape == ()
            assert relative_error(loaded[name], value) < 0.03
        else:
            assert stored[name].dtype == torch.bfloat16
            assert torch.equal(loaded[name], value.bfloat16().float())
    assert stored["scaled_fp8"].numel() == 2
    assert load_model(tmp_path / "fp8.safetensors").dtype == torch.bfloat16


def test_both_fp8_layouts_of_comfyui_load_the_same(tmp_path, weights):
    save_file(weights, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "old.safetensors", "fp8", heads=4)
    old = load_file(tmp_path / "old.safetensors")
    new = {k.replace("scale_weight", "weight_scale"): v for k, v in old.items() if k != "scaled_fp8"}
    layers = [k.removesuffix(".scale_weight") for k in old if k.endswith(".scale_weight")]
    note = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    noted = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    marked = new | {f"{layer}.comfy_quant": noted.clone() for layer in layers}
    marked |= {f"{layer}.input_scale": torch.ones(()) for layer in layers}
    save_file({f"model.diffusion_model.{k}": v for k, v in marked.items()}, tmp_path / "marked.safetensors")
    metadata = {"_quantization_metadata": json.dumps({"layers": {layer: note for layer in layers}})}
    save_file(new, tmp_path / "noted.safetensors", metadata)
    expected = load_model(tmp_path / "old.safetensors").state_dict()
    for name in ("marked", "noted"):
        assert same(load_model(tmp_path / f"{name}.safetensors", heads=4), expected)

    metadata = {"_quantization_metadata": json.dumps({"layers": {layers[0]: {"format": "nvfp4"}}})}
    save_file(new, tmp_path / "nvfp4.safetensors", metadata)
    with pytest.raises(UserError, match="quantised as nvfp4"):
        load_model(tmp_path / "nvfp4.safetensors", heads=4)


# Writing


def test_convert_makes_one_flat_file_that_needs_no_further_word(tmp_path, weights):
    prefixed = {f"model.diffusion_model.{k}": v for k, v in weights.items()}
    folder = write_shards(tmp_path / "shards", prefixed)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        convert(folder, tmp_path / f"{name}.safetensors", name, heads=4)
        assert same(load_model(tmp_path / f"{name}.safetensors"), weights, dtype)
    convert(folder, tmp_path / "kept.safetensors", heads=4)
    assert same(load_model(tmp_path / "kept.safetensors"), weights)
    convert(tmp_path / "kept.safetensors", tmp_path / "fp8.safetensors", "fp8")
    convert(tmp_path / "fp8.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "fp8.safetensors").read_bytes()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path, failure):
    state = list(DualBranchDiT(TINY).state_dict().items())
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"the old file")

    def breaks():
        yield from state[:50]
        raise failure

    with pytest.raises(UserError if isinstance(failure, OSError) else failure):
        save_checkpoint(path, breaks(), TINY, "fp8")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert path.read_bytes() == b"the old file"


def test_writing_says_what_stands_in_its_way(tmp_path, weights, monkeypatch):
    source = tmp_path / "m.safetensors"
    large, lost = torch.full((40,), 1e6), torch.full((40, 40), torch.nan)
    save_file({**weights, "audio_padding": large, "audio_blocks.0.self_attn.q.weight": lost}, source)
    new = tmp_path / "new.safetensors"
    with pytest.raises(UserError, match=r"holds values that F16 cannot"):
        convert(source, new, "fp16", heads=4)
    with pytest.raises(UserError, match=r"self_attn.q.weight holds values that F8_E4M3 cannot"):
        convert(source, new, "fp8", heads=4)
    with pytest.raises(UserError, match="choose another name"):
        convert(source, source, "bf16", heads=4)
    with pytest.raises(UserError, match=r"ending in \.safetensors"):
        convert(source, tmp_path / "m.ckpt", "bf16", heads=4)
    with pytest.raises(UserError, match="create it"):
        convert(source, tmp_path / "none" / "m.safetensors", "bf16", heads=4)
    with pytest.raises(UserError, match="expected one of fp32, bf16, fp16, fp8"):
        convert(source, new, "int4", heads=4)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"needs \d\.\d MB but .* has 0\.0 MB free"):
        convert(source, new, "bf16", heads=4)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_only_a_whole_model_is_saved(tmp_path):
    state = dict(DualBranchDiT(TINY).state_dict())
    short, bent = dict(state), dict(state)
    short.popitem()
    bent["audio_padding"] = torch.zeros(3)
    for wrong, message in (
        (short, "1 tensors were not given"),
        (bent, r"\[3\], expected \[48\]"),
        (state | {"x": torch.zeros(1)}, "x is not a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            save_checkpoint(tmp_path / "m.safetensors", wrong.items(), TINY)
    assert not list(tmp_path.iterdir())


# Wrong files


def zeros(**shapes):
    return {k.replace("__", "."): torch.zeros(shape, dtype=torch.bfloat16) for k, shape in shapes.items()}


OTHER_MODELS = {
    "wan2.2-5b": zeros(
        patch_embedding__weight=(8, 48, 1, 2, 2), blocks__0__modulation=(1, 6, 8), head__modulation=(1,)
    ),
    "wan2.2-5b diffusers": zeros(
        patch_embedding__weight=(8, 48, 1, 2, 2), blocks__0__attn1__to_q__weight=(8, 8), proj_out__weight=(8,)
    ),
    "wan2.1": zeros(patch_embedding__weight=(8, 16, 1, 2, 2), blocks__0__modulation=(1, 6, 8)),
    "wan2.1 image to video": zeros(patch_embedding__weight=(8, 36, 1, 2, 2), blocks__0__modulation=(1, 6, 8)),
    "wan2.2-vae": zeros(decoder__conv1__weight=(8, 48, 3, 3, 3), decoder__middle__0__residual__0__gamma=(8,)),
    "wan2.2-vae diffusers": zeros(
        decoder__conv_in__weight=(8, 48, 3, 3, 3), post_quant_conv__weight=(48, 48, 1, 1, 1)
    ),
    "wan2.1-vae": zeros(decoder__conv1__weight=(8, 16, 3, 3, 3)),
    "vae": zeros(decoder__conv_in__weight=(8, 4, 3, 3)),
    "umt5": zeros(
        shared__weight=(256384, 1),
        encoder__block__0__layer__0__SelfAttention__relative_attention_bias__weight=(32, 1),
    ),
    "umt5 original": zeros(
        token_embedding__weight=(256384, 1), blocks__0__pos_embedding__embedding__weight=(32, 1)
    ),
    "t5": zeros(
        shared__weight=(32128, 1),
        encoder__block__0__layer__0__SelfAttention__relative_attention_bias__weight=(32, 1),
    ),
    "lora": zeros(diffusion_model__audio_blocks__0__self_attn__q__lora_A__weight=(4, 8)),
    "lora diffusers": zeros(
        blocks__0__self_attn__q__lora_down__weight=(4, 8), blocks__0__self_attn__q__alpha=()
    ),
    "bigvgan": zeros(conv_pre__weight=(8, 80, 5), resblocks__0__convs1__0__weight=(8, 8, 3)),
    "other": zeros(embed__weight=(2, 2)),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_another_model_is_named(tmp_path, name):
    path = tmp_path / "m.safetensors"
    save_file(OTHER_MODELS[name], path)
    expect_named(path, name.split()[0])


def expect_named(path, kind):
    assert identify(path).kind == kind
    # another part of UniAVGen is described and converted as what it is
    any_part = () if kind in KINDS else (inspect, lambda p: convert(p, p.parent / "new.safetensors"))
    for use in (load_model, *any_part):
        with pytest.raises(UserError) as caught:
            use(path)
        line = str(caught.value)
        assert "\n" not in line
        assert " is " in line
        assert "; expected a UniAVGen checkpoint" in line
    assert not (path.parent / "new.safetensors").exists()


class RunsCode:
    def __reduce__(self):
        return print, ("a pickle has run code",)


def torch_pickle(path, zipped):
    torch.save({"a": torch.zeros(2), "b": RunsCode()}, path, _use_new_zipfile_serialization=zipped)


NOT_MODELS = {
    "empty": b"",
    "pickle": lambda path: torch_pickle(path, True),
    "pickle legacy": lambda path: torch_pickle(path, False),
    "zip": b"PK\x03\x04" + bytes(26) + b"model.safetensors",
    "gguf": b"GGUF\x03\x00\x00\x00" + bytes(64),
    "html": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14112848446\n",
    "json": b'{"_class_name": "WanModel", "dim": 3072}',
    "text": "Bitte anmelden, um das Modell herunterzuladen: ä".encode(),
    "binary": bytes(range(255, 0, -1)),
    "truncated zeros": bytes(4096),
    "damaged": (16).to_bytes(8, "little") + b'{"a": {"b": 1}} ',
    "damaged header": (9).to_bytes(8, "little") + b'{"a": {"b',
}


@pytest.mark.parametrize("name", NOT_MODELS)
def test_a_file_that_is_no_model_is_named(tmp_path, name):
    path = tmp_path / "m.safetensors"
    content = NOT_MODELS[name]
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    expect_named(path, name.split()[0])


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.9999])
def test_a_cut_file_is_named(tmp_path, weights, share):
    path = tmp_path / "m.safetensors"
    save_file(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    expect_named(path, "truncated")
    path.write_bytes(whole + b"tail")
    expect_named(path, "damaged")


def test_paths_and_folders_that_hold_no_model_are_named(tmp_path, weights):
    expect_named(tmp_path / "nothing.safetensors", "missing")
    expect_named(tmp_path, "folder")
    for name in ("a", "b"):
        save_file(weights, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        UserError, match=r"a folder with 2 of them.*name one \(a.safetensors, b.safetensors\)"
    ):
        load_model(tmp_path)
    (tmp_path / "repository").mkdir()
    write_shards(tmp_path / "repository" / "transformer", weights)
    with pytest.raises(UserError, match="choose its transformer"):
        load_model(tmp_path / "repository")


def test_a_broken_set_of_shards_is_noticed_before_anything_loads(tmp_path, weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "safe_open", None)
        expect_broken_sets_named(tmp_path, weights)


def expect_broken_sets_named(tmp_path, weights):
    folder = write_shards(tmp_path / "shards", weights)
    second = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    content = second.read_bytes()

    second.write_bytes(content[:-1])
    expect_named(folder, "truncated")
    second.write_bytes((folder / "diffusion_pytorch_model-00001-of-00003.safetensors").read_bytes())
    expect_named(folder, "damaged")
    save_file({"audio_padding": weights["audio_padding"]}, second)
    expect_named(folder, "damaged")
    second.unlink()
    expect_named(folder, "missing shard")
    with pytest.raises(UserError, match=r"1 of 3 shards missing \(diffusion_pytorch_model-00002-of-00003"):
        load_model(folder)
    second.write_bytes(content)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("diffusion_pytorch_model-00003", "../diffusion_pytorch_model-00003"))
    expect_named(folder, "damaged")
    index.write_text("{}")
    expect_named(folder, "damaged")


def test_shards_without_their_index_are_the_model_if_none_is_missing(tmp_path, weights):
    folder = write_shards(tmp_path, weights)
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    second = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    for path in (folder, second):
        assert same(load_model(path, heads=4), weights)
    (folder / "diffusion_pytorch_model-00001-of-00003.safetensors").unlink()
    for path in (folder, second):
        expect_named(path, "missing shard")


# Memory

MEASURE = """
import sys, threading
import torch
from uniavgen_core.weights.checkpoint import load_model
from uniavgen_core.weights.convert import convert
from uniavgen_core.model.config import TINY
from uniavgen_core.model.dit import DualBranchDiT

DualBranchDiT(TINY, device="meta").state_dict()  # what torch sets up once is not counted

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("RssAnon"))

work, source, target = sys.argv[1:]
start, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
kept = None
if work == "convert":
    convert(source, target, "fp8")
else:
    kept = load_model(source, dtype=getattr(torch, work))
done.set()
watcher.join()
print(max(peak, anonymous()) - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
def test_neither_loading_nor_converting_holds_the_model_twice(tmp_path):
    config = Config(
        video_dim=1024, video_heads=8, video_ffn=4096, audio_dim=512, audio_heads=4, audio_ffn=2048,
        layers=3, interaction_layers=(0, 2), caption_dim=256, speech_layers=1, speech_dim=64,
    )  # fmt: skip
    shapes = meta_shapes(config)
    megabytes = sum(4 * s.numel() for s in shapes.values()) / 2**20
    assert 200 < megabytes < 400
    source = tmp_path / "m.safetensors"
    save_checkpoint(source, ((k, torch.full(s, 0.01)) for k, s in shapes.items()), config, "fp32")
    peak = {}
    for work in ("float32", "bfloat16", "convert"):
        command = [sys.executable, "-c", MEASURE, work, str(source), str(tmp_path / "new.safetensors")]
        peak[work] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"{megabytes:.0f} MB in fp32; peak of memory taken, MB: {peak}")
    assert peak["float32"] < 0.05 * megabytes
    assert 0.4 * megabytes < peak["bfloat16"] < 0.6 * megabytes
    assert peak["convert"] < 0.25 * megabytes
