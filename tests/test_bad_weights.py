"""Every part in every form, missing, damaged or something else: one line, exit code 2, nothing written."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from clips import uniavgen
from release_folder import SHARD, TEXT, TOKENIZER, VAE, VOCODER, write_release
from safetensors.torch import load_file, save_file
from test_bad_inputs import only_line

from uniavgen_core import pipeline
from uniavgen_core.weights import convert

FIRST, SECOND = SHARD.format(1, 2), SHARD.format(2, 2)
INDEX = "diffusion_pytorch_model.safetensors.index.json"
GENERATE = "generate --model {r} --text Hello --image {r}/photo.png --frames 5 --out {o}/clip.mp4"
COMFYUI = "convert {r} --comfyui {o}"
OMNI = "token2wav.code2wav_bigvgan_model."


class RunsCode:
    def __reduce__(self):
        return print, ("a pickle has run code",)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("given") / "UniAVGen")


@pytest.fixture
def damaged(release, tmp_path):
    """A copy whose files are those of `release` until one is replaced."""
    return shutil.copytree(release, tmp_path / "UniAVGen", copy_function=os.link)


def content(name, data):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return damage


def without(*names):
    def damage(folder):
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def cut(name, share):
    def damage(folder):
        whole = (folder / name).read_bytes()
        content(name, whole[: int(share * len(whole))])(folder)

    return damage


def saved(name, values, **options):
    """A `.pth` of anything."""

    def damage(folder):
        (folder / name).unlink()
        torch.save(values, folder / name, **options)

    return damage


def tensors(name, change):
    """The same file with its tensors changed: `change(dict) -> dict`."""

    def damage(folder):
        path = folder / name
        whole = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        path.unlink()
        new = change(dict(whole))
        save_file(new, path) if path.suffix == ".safetensors" else torch.save(new, path)

    return damage


def less(name):
    return lambda values: {key: value for key, value in values.items() if key != name}


def other(name, value):
    return lambda values: values | {name: value}


def zipped(folder):
    (folder / VAE).unlink()
    with zipfile.ZipFile(folder / VAE, "w") as archive:
        archive.writestr("Wan2.2_VAE.safetensors", "x")


def shards(*changes):
    """Shards of Qwen2.5-Omni in place of the vocoder's folder: which tensors are in which of three files."""

    def damage(folder):
        weights = load_file(folder / VOCODER / "model.safetensors")
        shutil.rmtree(folder / VOCODER)
        (folder / VOCODER).mkdir()
        names = sorted(weights)
        parts = ({"thinker.embed.weight": torch.zeros(2)}, names[:200], names[200:])
        weight_map = {}
        for i, part in enumerate(parts, 1):
            file = f"model-{i:05d}-of-00003.safetensors"
            named = part if isinstance(part, dict) else {OMNI + n: weights[n] for n in part}
            weight_map |= dict.fromkeys(named, file)
            save_file(named, folder / VOCODER / file)
        index = folder / VOCODER / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        for name in changes:
            (folder / VOCODER / name).unlink()

    return damage


def index(change):
    def damage(folder):
        values = json.loads((folder / INDEX).read_text())
        content(INDEX, json.dumps(change(values)).encode())(folder)

    return damage


def moved(source, target):
    def damage(folder):
        content(target, (folder / source).read_bytes())(folder)

    return damage


def both(*damages):
    def damage(folder):
        for each in damages:
            each(folder)

    return damage


T5 = {
    "shared.weight": torch.zeros(32128, 4),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": torch.zeros(32, 2),
    "encoder.block.1.layer.0.SelfAttention.q.weight": torch.zeros(4, 4),
}
WEIGHT_NORM = {"conv_pre.weight_g": torch.zeros(8, 1, 1), "conv_pre.weight_v": torch.zeros(8, 80, 7)}
WAN = {"patch_embedding.weight": torch.zeros(8, 48, 1, 2, 2), "blocks.0.modulation": torch.zeros(1, 6, 8)}
HTML = b"<!DOCTYPE html><html><body>Sign in to download</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
VOCODER_FILE = f"{VOCODER}/model.safetensors"
Q = "audio_blocks.1.self_attn.q.weight"

# what happens to a good release, the command, which words name the problem, which say what to do
CASES = {
    # the model
    "empty folder": (
        lambda folder: [shutil.rmtree(folder), folder.mkdir()],
        "inspect {r}",
        "a folder without safetensors files",
        "download the model into it",
    ),
    "half a shard": (cut(SECOND, 0.5), GENERATE, "cut safetensors file", "download it again"),
    "shard of zeros": (content(FIRST, bytes(4096)), GENERATE, "unfinished download", "download it again"),
    "page as shard": (content(FIRST, HTML), GENERATE, "a web page", "download link"),
    "absent shard": (without(SECOND), GENERATE, f"1 of 2 shards missing .{SECOND}", "download them into"),
    "absent shard and index": (
        without(FIRST, INDEX),
        GENERATE,
        "1 of 2 shards missing",
        "download them into",
    ),
    "one shard twice": (moved(FIRST, SECOND), GENERATE, "in two shards", "of one release"),
    "shard of another release": (
        tensors(SECOND, lambda values: {Q: torch.zeros(2)}),
        GENERATE,
        "shards lack \\d+ tensors of the index",
        "of one release",
    ),
    "other sizes": (
        both(tensors(FIRST, other("text_proj.weight", torch.zeros(48, 31))), without(INDEX)),
        "inspect {r}",
        "in two shards|1 misshapen",
        "get the whole|of one release",
    ),
    "broken index": (content(INDEX, b"{"), GENERATE, "is not a JSON object", "download it again"),
    "index of nothing": (index(lambda v: {}), GENERATE, "an index without a weight_map", "download it again"),
    "index to elsewhere": (
        index(lambda v: {"weight_map": {Q: "../other.safetensors"}}),
        GENERATE,
        "an index to other folders",
        "download it again",
    ),
    "broken config": (content("config.json", b"no"), GENERATE, "is not a JSON object", "remove it"),
    "no config": (without("config.json"), GENERATE, "number of heads cannot be read", "add video_heads"),
    "other heads": (
        content("config.json", b'{"num_heads": 7}'),
        GENERATE,
        "7 heads do not divide",
        "correct",
    ),
    "plain Wan2.2": (
        both(without(FIRST, SECOND, INDEX), lambda f: save_file(WAN, f / "wan.safetensors")),
        GENERATE,
        "plain Wan2.2-5B",
        "download MCG-NJU/UniAVGen",
    ),
    "pickled model": (
        lambda f: torch.save({"w": RunsCode()}, f / "m.pth"),
        "inspect {r}/m.pth",
        "a PyTorch pickle that holds more than tensors",
        "get it as .safetensors",
    ),
    # the VAE
    "no VAE": (without(VAE), GENERATE, "not --vae", "give all three"),
    "empty VAE": (content(VAE, b""), GENERATE, "an empty file", "download it again"),
    "cut VAE": (cut(VAE, 0.6), GENERATE, "Wan2.2_VAE.pth is a cut or damaged .pth", "download it again"),
    "VAE with code": (
        saved(VAE, {"conv1.weight": torch.zeros(1), "x": RunsCode()}),
        GENERATE,
        "a PyTorch pickle .* can run code",
        "get it as .safetensors",
    ),
    "VAE of an old kind": (
        saved(VAE, {"conv1.weight": torch.zeros(1)}, _use_new_zipfile_serialization=False),
        GENERATE,
        "a PyTorch pickle",
        "get it as .safetensors",
    ),
    "VAE without names": (saved(VAE, [torch.zeros(1)]), GENERATE, "without named tensors", "again"),
    "zipped VAE": (zipped, GENERATE, "a zip archive", "unpack it"),
    "web page as VAE": (content(VAE, HTML), GENERATE, "a web page", "download link"),
    "pointer as VAE": (content(VAE, LFS), GENERATE, "a git-lfs pointer", "git lfs pull"),
    "VAE of Wan2.1": (
        saved(VAE, {"decoder.conv1.weight": torch.zeros(8, 16, 3, 3, 3)}),
        GENERATE,
        "the Wan2.1 VAE .16 latent channels.; expected the Wan2.2 VAE",
        "get the Wan2.2 VAE",
    ),
    "VAE of an image model": (
        saved(VAE, {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}),
        GENERATE,
        "the VAE of another model",
        "get the Wan2.2 VAE",
    ),
    "VAE with a hole": (
        tensors(VAE, less("decoder.middle.1.proj.weight")),
        GENERATE,
        r"1 missing \(decoder.mid_block.attentions.0.proj.weight\)",
        "get the whole",
    ),
    "VAE without decoder": (
        tensors(VAE, lambda v: {k: x for k, x in v.items() if "decoder.head" not in k}),
        COMFYUI,
        "lacks 1 tensors of the Wan2.2 VAE",
        "download it again",
    ),
    "bent VAE": (tensors(VAE, other("conv2.bias", torch.zeros(3))), GENERATE, "1 misshapen", "get the whole"),
    "VAE of numbers": (
        tensors(VAE, other("conv2.bias", torch.zeros(48, dtype=torch.int8))),
        "inspect {r}",
        "not floating point",
        "get the whole",
    ),
    "model as VAE": (
        without(),
        GENERATE + " --vae {r}/" + FIRST,
        "is a UniAVGen checkpoint; expected the Wan2.2 VAE",
        "where the model is asked for",
    ),
    # the text encoder
    "no text encoder": (without(TEXT), GENERATE, "not --text-encoder", "give all three"),
    "cut text encoder": (cut(TEXT, 0.9), GENERATE, "a cut or damaged .pth", "download it again"),
    "text encoder with code": (
        saved(TEXT, RunsCode()),
        GENERATE,
        "a PyTorch pickle .* can run code",
        "get it as .safetensors",
    ),
    "foreign T5": (saved(TEXT, T5), GENERATE, "a T5 text encoder; expected umT5-xxl", "get umT5-xxl"),
    "text encoder with a hole": (
        tensors(TEXT, less("blocks.1.ffn.fc2.weight")),
        GENERATE,
        r"1 missing \(encoder.block.1.layer.1.DenseReluDense.wo.weight\)",
        "get the whole",
    ),
    "half a text encoder": (
        tensors(TEXT, less("blocks.0.attn.q.weight")),
        COMFYUI,
        "lacks 1 tensors of umT5",
        "download it again",
    ),
    "VAE as text encoder": (moved(VAE, TEXT), GENERATE, "is the Wan2.2 VAE", "where the VAE is asked for"),
    "no tokenizer": (without(TOKENIZER), GENERATE, "has no tokenizer beside it", "download that folder too"),
    "empty tokenizer": (
        lambda f: [shutil.rmtree(f / TOKENIZER), (f / TOKENIZER).mkdir()],
        GENERATE,
        "expected google/umt5-xxl/ with tokenizer.json",
        "download that folder too",
    ),
    "broken tokenizer": (
        content(f"{TOKENIZER}/tokenizer.json", b"{"),
        GENERATE,
        "tokenizer cannot be loaded",
        "download it again",
    ),
    "broken sentencepiece": (
        both(without(f"{TOKENIZER}/tokenizer.json"), content(f"{TOKENIZER}/spiece.model", b"pieces")),
        GENERATE,
        "no sentencepiece model",
        "download it again",
    ),
    "no sentencepiece for ComfyUI": (
        without(f"{TOKENIZER}/spiece.model"),
        COMFYUI,
        "spiece.model is missing",
        "download it from google/umt5-xxl",
    ),
    # the vocoder
    "empty vocoder folder": (
        without(VOCODER_FILE, f"{VOCODER}/config.json"),
        GENERATE,
        "a folder without safetensors files; expected a vocoder",
        "download",
    ),
    "cut vocoder": (cut(VOCODER_FILE, 0.5), GENERATE, "cut safetensors file", "download it again"),
    "vocoder with weight norm": (
        tensors(VOCODER_FILE, lambda v: WEIGHT_NORM),
        GENERATE,
        "another vocoder .with weight norm.",
        "download code2wav_bigvgan_model",
    ),
    "vocoder of 100 bands": (
        tensors(VOCODER_FILE, other("conv_pre.weight", torch.zeros(64, 100, 7))),
        GENERATE,
        "100 mel bands",
        "80 mel bands",
    ),
    "vocoder with a hole": (
        tensors(VOCODER_FILE, less("conv_post.weight")),
        GENERATE,
        r"1 missing \(conv_post.weight\)",
        "get the whole",
    ),
    "broken vocoder config": (
        content(f"{VOCODER}/config.json", b"["),
        GENERATE,
        "config.json is not a JSON object",
        "download it again",
    ),
    "Omni without token2wav": (
        shards(
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "model.safetensors.index.json",
        ),
        GENERATE,
        "2 of 3 shards missing|a part of Qwen2.5-Omni",
        "download",
    ),
    "Omni with half of token2wav": (
        shards("model-00003-of-00003.safetensors"),
        GENERATE,
        "1 of 2 shards missing .model-00003-of-00003",
        "download them into",
    ),
    "Omni with half of token2wav, no index": (
        shards("model-00003-of-00003.safetensors", "model.safetensors.index.json"),
        COMFYUI,
        "lacks residual or upsampling blocks",
        "download Qwen2.5-Omni",
    ),
    "model as vocoder": (
        without(),
        GENERATE + " --vocoder {r}/" + TEXT,
        "is the umT5 text encoder; expected a vocoder",
        "where the caption encoder is asked for",
    ),
    # the commands
    "release without vocoder": (without(VOCODER), COMFYUI, "holds no vocoder", "download the rest"),
    "no ComfyUI": (without(), "convert {r} --comfyui {o}/models", "models is no folder", "ComfyUI/models"),
    "two targets": (without(), COMFYUI.replace("{r}", "{r} {o}/m.safetensors"), "takes one of", "give one"),
    "no target": (without(), "convert {r}", "takes one of", "give one"),
    "fp8 VAE": (
        without(),
        "convert {r}/" + VAE + " {o}/v.safetensors --dtype fp8",
        "the vae is kept in fp32, bf16 or fp16",
        "choose another --dtype",
    ),
    "unknown dtype": (without(), COMFYUI + " --dtype int4", "invalid choice: 'int4'", "choose from"),
    "inspect a release with a bad part": (cut(VAE, 0.1), "inspect {r}", "cut or damaged .pth", "again"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_weights_are_named_in_one_line(tmp_path, damaged, capfd, monkeypatch, case):
    monkeypatch.setattr(pipeline, "sample", None)
    damage, command, problem, advice = CASES[case]
    damage(damaged)
    out = tmp_path / "out"
    out.mkdir()
    words = [word.replace("{r}", str(damaged)).replace("{o}", str(out)) for word in command.split()]
    if words[0] == "generate":
        from PIL import Image

        Image.new("RGB", (64, 64)).save(damaged / "photo.png")
    code, printed, notes = uniavgen(capfd, *words)
    assert "a pickle has run code" not in printed
    only_line(code, printed, notes, problem, advice)
    assert list(out.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, release, capfd, monkeypatch):
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    found = uniavgen(capfd, "convert", release, "--comfyui", tmp_path)
    only_line(*found, r"needs 0\.0 GB but has 0\.0 GB free", "make room or use --dtype fp8")
    assert list(tmp_path.iterdir()) == []
