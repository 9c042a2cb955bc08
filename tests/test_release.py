"""The release's download is enough: one folder for every part, and each part alone in every public form."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clips import uniavgen
from conftest import forward
from PIL import Image
from release_folder import (
    CAPTION,
    SHARD,
    SPEECH,
    TEXT,
    TOKENIZER,
    VAE,
    VOCODER,
    text_encoder,
    write_release,
)
from safetensors.torch import load_file, save_file

from uniavgen_core.media import caption, files, vae, vocoder
from uniavgen_core.weights.checkpoint import load_model
from uniavgen_core.weights.convert import convert
from uniavgen_core.weights.fp8 import Fp8Linear
from uniavgen_core.weights.identify import identify

ROOT = Path(__file__).parents[1]
OMNI = "token2wav.code2wav_bigvgan_model."


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release") / "UniAVGen")


@pytest.fixture(scope="module")
def comfyui(release, tmp_path_factory):
    """What `convert --comfyui` makes of it, in bf16 and fp8."""
    from uniavgen_core.weights.convert import convert_release

    models = tmp_path_factory.mktemp("models")
    for dtype in (None, "fp8"):
        convert_release(release, models, dtype)
    return models


def flags_of(models, dtype="bf16"):
    text = {"bf16": "umt5_xxl_bf16", "fp8": "umt5_xxl_fp8_e4m3fn_scaled"}[dtype]
    return (
        "--model", models / "diffusion_models" / f"uniavgen_{dtype}.safetensors",
        "--vae", models / "vae" / "wan2.2_vae.safetensors",
        "--text-encoder", models / "text_encoders" / f"{text}.safetensors",
        "--vocoder", models / "vae" / "qwen2.5_omni_bigvgan.safetensors",
    )  # fmt: skip


def generate(capfd, out, *weights):
    photo = out.with_name("photo.png")
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(photo)
    small = ("--frames", 5, "--steps", 1, "--short-side", 32, "--device", "cpu")
    said = ("--image", photo, "--text", SPEECH, "--caption", CAPTION, "--out", out)
    code, _, notes = uniavgen(capfd, "generate", *said, *small, *weights)
    assert code == 0, notes
    made = files.read_video(out)
    return made.frames, made.audio[0], notes


def test_one_flag_makes_the_clip_that_the_files_for_comfyui_make(tmp_path, capfd, release, comfyui):
    frames, audio, notes = generate(capfd, tmp_path / "clip.mp4", "--model", release)
    assert "puppet" not in notes
    converted = generate(capfd, tmp_path / "clip.mp4", *flags_of(comfyui))
    # tensors that lie elsewhere in memory may be summed in another order
    assert (frames.float() - converted[0].float()).abs().mean() < 1
    assert (audio - converted[1]).norm() < 0.01 * audio.norm()
    fp8 = generate(capfd, tmp_path / "clip.mp4", *flags_of(comfyui, "fp8"))
    assert 0 < (audio - fp8[1]).norm() < 0.5 * audio.norm()


def test_a_flag_of_its_own_goes_before_what_lies_in_the_folder(tmp_path, capfd, release):
    found = uniavgen(
        capfd, "generate", "--text", SPEECH, "--image", "x.png", "--out", tmp_path / "clip.mp4",
        "--model", release, "--vae", tmp_path / "mine.pth",
    )  # fmt: skip
    assert found[0] == 2
    assert "mine.pth is not there; expected the Wan2.2 VAE" in found[2]


def test_comfyuis_folders_get_four_files_and_a_second_run_keeps_them(tmp_path, capfd, release):
    code, printed, _ = uniavgen(capfd, "convert", release, "--comfyui", tmp_path)
    names = [
        "diffusion_models/uniavgen_bf16.safetensors",
        "vae/wan2.2_vae.safetensors",
        "text_encoders/umt5_xxl_bf16.safetensors",
        "vae/qwen2.5_omni_bigvgan.safetensors",
    ]
    assert code == 0
    assert printed.split() == [str(tmp_path / name) for name in names]
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    code, printed, notes = uniavgen(capfd, "convert", release, "--comfyui", tmp_path)
    assert (code, printed) == (0, "")
    assert notes.count("is there already and is kept") == 4
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names} == before
    assert sorted(p.name for p in tmp_path.rglob("*.part")) == []


def test_the_files_for_comfyui_are_as_comfyui_reads_them(release, comfyui):
    video = load_file(comfyui / "vae" / "wan2.2_vae.safetensors")
    own = torch.load(release / VAE)
    assert video.keys() == own.keys()
    assert all(torch.equal(video[name], own[name]) for name in own)
    text = load_file(comfyui / "text_encoders" / "umt5_xxl_bf16.safetensors")
    spiece = (release / TOKENIZER / "spiece.model").read_bytes()
    assert text.pop("spiece_model").numpy().tobytes() == spiece
    expected = text_encoder().state_dict()
    del expected["encoder.embed_tokens.weight"]
    assert text.keys() == expected.keys()
    assert all(torch.equal(text[name], expected[name]) for name in expected)
    fp8 = load_file(comfyui / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    wo = "encoder.block.1.layer.1.DenseReluDense.wo"
    assert fp8[f"{wo}.weight"].dtype == torch.float8_e4m3fn
    assert fp8[f"{wo}.scale_weight"].shape == ()
    assert fp8["scaled_fp8"].numel() == 2
    assert fp8["shared.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("how", ["module", "folder"])
def test_convert_runs_where_the_command_is_not_installed(tmp_path, release, how):
    """In the pack's folder, or from anywhere by the path of the core."""
    start = ["-m", "uniavgen_core"] if how == "module" else [ROOT / "uniavgen_core"]
    command = [sys.executable, *start, "convert", release, "--comfyui", tmp_path]
    place = ROOT if how == "module" else tmp_path
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=place)
    assert (found.returncode, found.stderr) == (0, "")
    assert len(found.stdout.split()) == 4


def test_inspect_names_every_part_of_the_folder(capfd, release):
    code, printed, _ = uniavgen(capfd, "inspect", release, "--json")
    found = json.loads(printed)
    assert (code, found["kind"], found["files"], found["variant"]) == (0, "uniavgen", 2, "released")
    kinds = {name: part["kind"] for name, part in found["parts"].items()}
    assert kinds == {"vae": "wan2.2-vae", "text_encoder": "umt5", "vocoder": "bigvgan"}
    assert found["parts"]["text_encoder"]["tokenizer"] == str(release / TOKENIZER)
    code, printed, _ = uniavgen(capfd, "inspect", release)
    assert code == 0
    for what in ("a UniAVGen checkpoint", "the Wan2.2 VAE", "umT5's encoder", "a BigVGAN vocoder"):
        assert what in printed


# Each part alone, in every public form


def vae_forms(release, folder):
    tensors = torch.load(release / VAE)
    save_file(tensors, folder / "wan2.2_vae.safetensors")
    save_file({f"model.{k}": v for k, v in tensors.items()}, folder / "prefixed.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "nested.pth")
    loaded = vae.load_vae(release / VAE).model
    loaded.save_pretrained(folder / "Wan2.2-TI2V-5B" / "vae")
    (folder / "Wan2.2-TI2V-5B" / "transformer").mkdir()
    alone = folder / "alone"
    alone.mkdir()
    shutil.copy(release / VAE, alone)
    return [
        release / VAE,
        release,
        alone,
        folder / "wan2.2_vae.safetensors",
        folder / "prefixed.safetensors",
        folder / "nested.pth",
        folder / "Wan2.2-TI2V-5B",
        folder / "Wan2.2-TI2V-5B" / "vae",
    ]


def text_forms(release, folder):
    model = text_encoder()
    diffusers = folder / "Wan2.2-TI2V-5B"
    model.save_pretrained(diffusers / "text_encoder", max_shard_size="200KB")
    shutil.copytree(release / TOKENIZER, diffusers / "tokenizer")
    model.save_pretrained(folder / "umt5")
    shutil.copytree(release / TOKENIZER, folder / "umt5", dirs_exist_ok=True)
    convert(release / TEXT, folder / "comfyui.safetensors")
    sentencepiece = folder / "sentencepiece"
    sentencepiece.mkdir()
    shutil.copy(release / TEXT, sentencepiece)
    shutil.copy(release / TOKENIZER / "spiece.model", sentencepiece)
    return [
        release / TEXT,
        release,
        diffusers,
        diffusers / "text_encoder",
        folder / "umt5",
        folder / "umt5" / "model.safetensors",
        folder / "comfyui.safetensors",
        sentencepiece,
    ]


def vocoder_forms(release, folder):
    weights = load_file(release / VOCODER / "model.safetensors")
    names = sorted(weights)
    parts = {4: names[:200], 5: names[200:]}
    weight_map = {"thinker.a": "model-00001-of-00005.safetensors"}
    for name in ("indexed", "shards"):
        (folder / name).mkdir()
        for i, part in parts.items():
            file = f"model-{i:05d}-of-00005.safetensors"
            tensors = {OMNI + n: weights[n] for n in part} | {f"token2wav.dit.{i}": torch.zeros(1)}
            weight_map |= dict.fromkeys(tensors, file)
            save_file(tensors, folder / name / file)
    index = folder / "indexed" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    one = {OMNI + n: w for n, w in weights.items()} | {"talker.b": torch.zeros(1)}
    save_file(one, folder / "one.safetensors")
    convert(folder / "shards", folder / "converted.safetensors")
    return [
        release / VOCODER,
        release,
        folder / "indexed",
        index,
        folder / "indexed" / "model-00005-of-00005.safetensors",
        folder / "shards",
        folder / "one.safetensors",
        folder / "converted.safetensors",
    ]


@pytest.mark.parametrize(
    ("forms", "load"),
    [
        (vae_forms, lambda path: vae.load_vae(path).model),
        (text_forms, lambda path: caption.load_caption_encoder(path, dtype=torch.bfloat16).model),
        (vocoder_forms, vocoder.load_vocoder),
    ],
)
def test_every_public_form_of_a_part_holds_the_same_weights(tmp_path, release, forms, load):
    places = forms(release, tmp_path)
    expected = load(places[0]).state_dict()
    for place in places[1:]:
        found = load(place).state_dict()
        assert found.keys() == expected.keys(), place
        assert all(torch.equal(found[name], expected[name]) for name in expected), place


def test_the_tokenizer_of_sentencepiece_gives_the_tokens_of_transformers(tmp_path, release):
    convert(release / TEXT, tmp_path / "text.safetensors")
    theirs = caption.load_caption_encoder(release / TEXT)
    ours = caption.load_caption_encoder(tmp_path / "text.safetensors")
    assert isinstance(ours.tokenizer, caption.SentencePieceTokenizer)
    assert not isinstance(theirs.tokenizer, caption.SentencePieceTokenizer)
    for texts in ([CAPTION], ["", SPEECH], [CAPTION * 30, SPEECH]):
        assert torch.equal(ours(texts), theirs(texts))


# fp8 in memory


def linear_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, Fp8Linear)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fp8_kept_in_memory_computes_what_the_dequantised_model_computes(comfyui, make_inputs, dtype):
    path = comfyui / "diffusion_models" / "uniavgen_fp8.safetensors"
    kept, expanded = load_model(path, dtype=dtype, keep_fp8=True), load_model(path, dtype=dtype)
    layers = linear_layers(kept)
    assert len(layers) == 8 * (8 + 2) + 4 * 4
    assert all(layer.quantised.dtype == torch.float8_e4m3fn for layer in layers)
    assert not linear_layers(expanded)
    inputs = {n: x if n == "time" else x.to(dtype) for n, x in make_inputs(kept.config).items()}
    with torch.no_grad():
        a, b = forward(kept, **inputs), forward(expanded, **inputs)
    assert torch.equal(a.video, b.video)
    assert torch.equal(a.audio, b.audio)


def test_an_fp8_text_encoder_computes_what_its_dequantised_self_computes(comfyui):
    path = comfyui / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
    encoder = caption.load_caption_encoder(path, dtype=torch.bfloat16)
    layers = linear_layers(encoder.model)
    assert len(layers) == 2 * 7
    states = encoder([CAPTION])
    for name, layer in list(encoder.model.named_modules()):
        if isinstance(layer, Fp8Linear):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight = torch.nn.Parameter(layer.ready(torch.bfloat16), requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(encoder.model.get_submodule(parent), leaf, plain)
    assert torch.equal(encoder([CAPTION]), states)


# tensors that the model does not take


@pytest.mark.parametrize("part", ["model", "vae", "text_encoder", "vocoder"])
def test_further_tensors_are_named_once_and_ignored(tmp_path, capfd, release, part):
    copy = shutil.copytree(release, tmp_path / "UniAVGen")
    extra = torch.zeros(2)
    if part == "model":
        weights = load_file(copy / SHARD.format(2, 2))
        save_file(weights | {"blocks.0.extra": extra, "ema.decay": extra.clone()}, copy / SHARD.format(2, 2))
    elif part == "vocoder":
        file = copy / VOCODER / "model.safetensors"
        save_file(load_file(file) | {"blocks.0.extra": extra, "ema.decay": extra.clone()}, file)
    else:
        file = copy / {"vae": VAE, "text_encoder": TEXT}[part]
        weights = torch.load(file) | {"blocks.0.extra": extra, "ema.decay": extra}
        torch.save(weights, file)
    _, _, notes = generate(capfd, tmp_path / "clip.mp4", "--model", copy)
    assert notes.count("holds 2 more tensors, which are ignored: blocks.0.extra, ema.decay") == 1
    assert identify(copy).kind == "uniavgen"
