"""Small model files for the host's folders: good ones, and all that a user may put there by mistake."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import torch
from random_parts import random_model
from safetensors.torch import load_file, save_file

from uniavgen_core.media.vocoder import random_vocoder
from uniavgen_core.model.config import TINY
from uniavgen_core.weights.convert import save_checkpoint

ENLARGING = {  # files of the host that the workflows name
    "frame_interpolation": "film_net_fp16.safetensors",
    "upscale_models": "RealESRGAN_x4plus.safetensors",
}
BF16, FP32, SHARDS = "tiny.safetensors", "tiny_fp32.safetensors", "tiny_shards"
VOCODER = "tiny_vocoder.safetensors"

# file or folder (name/) in diffusion_models -> words of the message that says what it is
WRONG_MODELS = {
    "empty.safetensors": ("empty file", "download it again"),
    "cut.safetensors": ("cut safetensors", "download it again"),
    "zeros.safetensors": ("unfinished download", "download it again"),
    "header.safetensors": ("broken header", "download it again"),
    "longer.safetensors": ("bytes too many", "download it again"),
    "pickle.safetensors": ("pickle", "get it as .safetensors"),
    "model.pt": ("another model", "choose another file"),
    "zipped.safetensors": ("zip archive", "unpack it"),
    "gguf.safetensors": ("GGUF", ".safetensors"),
    "page.safetensors": ("web page", "download link"),
    "lfs.safetensors": ("git-lfs", "git lfs pull"),
    "json.safetensors": ("JSON file", "choose the .safetensors file"),
    "text.safetensors": ("text file", "choose the .safetensors file"),
    "noise.safetensors": ("no safetensors file", "choose another file"),
    "lora.safetensors": ("LoRA", "apply the LoRA"),
    "wan22_5b.safetensors": ("plain Wan2.2-5B", "MCG-NJU/UniAVGen"),
    "wan21.safetensors": ("Wan2.1", "MCG-NJU/UniAVGen"),
    "wan22_vae.safetensors": ("Wan2.2 VAE", "where the VAE is asked for"),
    "wan21_vae.safetensors": ("Wan2.1 VAE", "get the Wan2.2 VAE"),
    "umt5.safetensors": ("umT5 text encoder", "caption encoder"),
    "t5.safetensors": ("T5 text encoder", "umT5-xxl"),
    "bigvgan.safetensors": ("BigVGAN vocoder", "where the vocoder is asked for"),
    "other.safetensors": ("another model", "choose another file"),
    "less.safetensors": ("missing", "get the whole"),
    "bent.safetensors": ("misshapen", "get the whole"),
    "headless.safetensors": ("number of heads", "uniavgen_config"),
    "lone-00001-of-00002.safetensors": ("1 of 2 shards missing", "download them into"),
    "lacking/": ("of 2 shards missing", "download them into"),
}

# file in vae -> words of the message of the vocoder loader
WRONG_VOCODERS = {
    "empty.safetensors": ("empty", "expected a vocoder"),
    "cut.safetensors": ("a cut safetensors file", "download it again"),
    "pickle.safetensors": ("pickle", "not opened"),
    "uniavgen.safetensors": ("a UniAVGen checkpoint", "expected a vocoder"),
    "wan22_vae.safetensors": ("the Wan2.2 VAE", "expected a vocoder"),
    "norms.safetensors": ("weight norm", "expected a vocoder"),
    "bands.safetensors": ("100 mel bands", "80 mel bands"),
    "less.safetensors": ("1 missing", "get the whole"),
}


def write_models(models: Path) -> None:
    """Fill a `models` folder: TINY in bf16, fp32 and shards, a vocoder, and every wrong file."""
    diffusion, vae = models / "diffusion_models", models / "vae"
    for folder in (diffusion, vae, models / "loras"):
        folder.mkdir(parents=True, exist_ok=True)
    weights = random_model().state_dict()
    save_checkpoint(diffusion / BF16, weights.items(), TINY, "bf16")
    save_checkpoint(diffusion / FP32, weights.items(), TINY, "fp32")
    _write_shards(diffusion / SHARDS, load_file(diffusion / BF16))
    bigvgan = random_vocoder().bigvgan
    save_file(bigvgan.state_dict(), vae / VOCODER)
    _write_wrong_models(diffusion, load_file(diffusion / BF16), (diffusion / BF16).read_bytes())
    _write_wrong_vocoders(vae, bigvgan.state_dict(), (vae / VOCODER).read_bytes())


def _write_shards(folder: Path, weights: dict[str, torch.Tensor], lack: bool = False) -> None:
    folder.mkdir()
    names = [f"diffusion_pytorch_model-{i}-of-00002.safetensors" for i in ("00001", "00002")]
    weight_map = {name: names[i % 2] for i, name in enumerate(sorted(weights))}
    for file in names[:1] if lack else names:
        save_file({n: weights[n] for n, shard in weight_map.items() if shard == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(TINY.to_dict()))


def _write_wrong_models(folder: Path, weights: dict[str, torch.Tensor], good: bytes) -> None:
    def tensors(name: str, **shapes: tuple[int, ...]) -> None:
        values = {key.replace("__", "."): torch.zeros(shape) for key, shape in shapes.items()}
        save_file(values, folder / f"{name}.safetensors")

    broken = b"{" + b"x" * 63
    config = {"uniavgen_config": json.dumps(TINY.to_dict())}
    contents = {
        "empty": b"",
        "cut": good[:-1000],
        "zeros": bytes(4096),
        "header": len(broken).to_bytes(8, "little") + broken,
        "longer": good + bytes(100),
        "pickle": pickle.dumps({"weight": [1.0]}),
        "gguf": b"GGUF" + bytes(100),
        "page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "json": b'{"_class_name": "WanModel"}',
        "text": b"These weights are gated, ask for access first.\n",
        "noise": bytes(range(255, 0, -1)) * 8,
    }
    for name, content in contents.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    torch.save({"weight": torch.zeros(3)}, folder / "model.pt")
    with zipfile.ZipFile(folder / "zipped.safetensors", "w") as archive:
        archive.writestr("model.safetensors", good[:100])
    tensors("lora", diffusion_model__blocks__0__ffn__0__lora_A__weight=(4, 8))
    tensors("wan22_5b", patch_embedding__weight=(8, 48, 1, 2, 2), blocks__0__ffn__0__weight=(8, 8))
    tensors("wan21", patch_embedding__weight=(8, 16, 1, 2, 2), blocks__0__ffn__0__weight=(8, 8))
    tensors("wan22_vae", decoder__conv1__weight=(8, 48, 3, 3, 3))
    tensors("wan21_vae", decoder__conv1__weight=(8, 16, 3, 3, 3))
    bias = {"encoder__block__0__layer__0__SelfAttention__relative_attention_bias__weight": (32, 4)}
    tensors("umt5", shared__weight=(256384, 1), **bias)
    tensors("t5", shared__weight=(32128, 1), **bias)
    tensors("bigvgan", conv_pre__weight=(8, 80, 7), resblocks__0__convs1__0__weight=(8, 8, 3))
    tensors("other", model__layers__0__weight=(8, 8))
    save_file(
        {n: v for n, v in weights.items() if n != "text_proj.weight"}, folder / "less.safetensors", config
    )
    bent = {"text_proj.weight": weights["text_proj.weight"][:-1].clone()}
    save_file(weights | bent, folder / "bent.safetensors", config)
    save_file(weights, folder / "headless.safetensors")
    (folder / "lone-00001-of-00002.safetensors").write_bytes(good)
    _write_shards(folder / "lacking", weights, lack=True)


def _write_wrong_vocoders(folder: Path, weights: dict[str, torch.Tensor], good: bytes) -> None:
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "cut.safetensors").write_bytes(good[:-1000])
    (folder / "pickle.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    save_file({"audio_blocks.0.modulation": torch.zeros(1, 6, 8)}, folder / "uniavgen.safetensors")
    save_file({"decoder.conv1.weight": torch.zeros(8, 48, 3, 3, 3)}, folder / "wan22_vae.safetensors")
    save_file({"conv_pre.weight_g": torch.zeros(8, 1, 1)}, folder / "norms.safetensors")
    wide = torch.zeros(weights["conv_pre.weight"].shape[0], 100, 7)
    save_file(weights | {"conv_pre.weight": wide}, folder / "bands.safetensors")
    save_file({n: v for n, v in weights.items() if n != "conv_post.weight"}, folder / "less.safetensors")


def write_enlarging_models(models: Path) -> None:
    """An interpolation that is the mean of two frames (RIFE without weights), and a random upscaler.

    In the process of the host: the architectures are its own.
    """
    from comfy_extras.frame_interpolation_models.ifnet import IFNet
    from spandrel.architectures.ESRGAN import ESRGAN

    interpolation = IFNet(channels=(4, 4, 4, 4, 4))
    tensors = {key: torch.zeros_like(value) for key, value in interpolation.state_dict().items()}
    upscaler = ESRGAN(num_filters=4, num_blocks=1)
    for (folder, name), content in zip(ENLARGING.items(), (tensors, upscaler.state_dict())):
        (models / folder).mkdir(exist_ok=True)
        save_file(content, models / folder / name)
