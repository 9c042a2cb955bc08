"""The release's folder in ComfyUI: our loaders take it as it is, the host's own take what `convert` makes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from release_folder import CAPTION, SPEECH, TEXT, VAE, write_release
from safetensors.torch import load_file, save_file
from test_loading import clip

ROOT = Path(__file__).parents[2]
NARROW = {"dim": 8, "dec_dim": 8}
UMT5 = {
    "d_ff": 128,
    "d_kv": 16,
    "d_model": 64,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "umt5",
    "num_heads": 4,
    "num_layers": 2,
    "vocab_size": 64,
}


def narrow_vae() -> torch.nn.Module:
    """The host's Wan2.2 VAE, 8 channels wide, with random weights."""
    module = importlib.import_module("comfy.ldm.wan.vae2_2").WanVAE(
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        **NARROW,
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0 if name.endswith("bias") else max(1, parameter[0].numel()) ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if name.endswith("gamma"):
                parameter.fill_(1)
    return module


@pytest.fixture(scope="module")
def pack(host, tmp_path_factory) -> SimpleNamespace:
    """A `models` folder with the release in diffusion_models, and beside it what `convert` made of it there,
    run by the host's Python, which has no `uniavgen` command."""
    models = tmp_path_factory.mktemp("models")
    (models / "diffusion_models").mkdir()
    folder = write_release(models / "diffusion_models" / "UniAVGen", narrow_vae().state_dict())
    for dtype in ("bf16", "fp8"):
        command = ["convert", str(folder), "--comfyui", str(models), "--dtype", dtype]
        subprocess.run([sys.executable, str(ROOT / "uniavgen_core"), *command], check=True)
    folder_paths = importlib.import_module("folder_paths")
    for name in ("diffusion_models", "vae", "text_encoders"):
        folder_paths.add_model_folder_path(name, str(models / name), is_default=True)
    return SimpleNamespace(
        module=lambda name: importlib.import_module(f"{host.__name__}.{name}"),
        models=models,
        release=folder,
        nodes=importlib.import_module("nodes"),
    )


def loaded(pack, name):
    return pack.module("nodes.loading").load_parts(name)[:2]


def test_the_folder_is_offered_once_and_its_vocoder_by_the_vocoders_loader(pack):
    loading = pack.module("nodes.loading")
    models = loading.listed("diffusion_models")
    assert models.count("UniAVGen/") == 1
    assert not [name for name in models if name.startswith("UniAVGen/") and name != "UniAVGen/"]
    name = "UniAVGen/code2wav_bigvgan_model/"
    assert name in loading.listed("vae")
    assert loading.located("vae", name) == pack.release / "code2wav_bigvgan_model"


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_the_folder_and_the_file_made_of_it_sample_the_same_clip(pack, dtype):
    wanted = clip(pack, *loaded(pack, "UniAVGen/"))
    found = clip(pack, *loaded(pack, f"uniavgen_{dtype}.safetensors"))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() / b.norm() <= {"bf16": 0, "fp8": 0.1}[dtype]


def test_both_vocoders_sound_the_same(pack):
    load = pack.module("nodes.loading").LoadVocoder.execute
    mel = torch.randn(1, 80, 20, generator=torch.Generator().manual_seed(4))
    names = ("UniAVGen/code2wav_bigvgan_model/", "qwen2.5_omni_bigvgan.safetensors")
    waveforms = [load(name).result[0](mel) for name in names]
    assert torch.equal(*waveforms)


def test_the_hosts_vae_loader_takes_wans_file_and_ours_alike(pack, monkeypatch):
    """The host knows the full width only, so its class is narrowed; names and detection are its own."""
    vae2_2 = importlib.import_module("comfy.ldm.wan.vae2_2")
    whole = vae2_2.WanVAE
    monkeypatch.setattr(vae2_2, "WanVAE", lambda **sizes: whole(**(sizes | NARROW)))
    host = pack.nodes.VAELoader().load_vae("wan2.2_vae.safetensors")[0]
    ours = pack.module("nodes.embedded").HostVAE(
        *pack.module("uniavgen_core.media.vae").read_vae(pack.release / VAE)
    )
    for vae in (host, ours):
        vae.first_stage_model.to(torch.float32)
        vae.vae_dtype = torch.float32
    frames = torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(5))
    latents = [vae.encode(frames) for vae in (host, ours)]
    assert torch.allclose(*latents, atol=1e-5)
    assert torch.allclose(host.decode(latents[0]), ours.decode(latents[0]), atol=1e-5)


@pytest.mark.parametrize(("name", "bound"), [("umt5_xxl_bf16", 0.02), ("umt5_xxl_fp8_e4m3fn_scaled", 0.1)])
def test_the_hosts_clip_loader_encodes_captions_as_the_releases_encoder_does(pack, monkeypatch, name, bound):
    """The host knows umT5 by the shape of its 24th layer, so it is told; names and tokenizer are its own."""
    sd, wan = importlib.import_module("comfy.sd"), importlib.import_module("comfy.text_encoders.wan")
    sd1_clip, t5 = (importlib.import_module(f"comfy.{n}") for n in ("sd1_clip", "text_encoders.t5"))

    class Narrow(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", layer="last", layer_idx=None, dtype=None, model_options={}):  # noqa: B006
            super().__init__(
                device=device,
                layer=layer,
                layer_idx=layer_idx,
                textmodel_json_config=UMT5,
                dtype=dtype,
                special_tokens={"end": 1, "pad": 0},
                model_class=t5.T5,
                enable_attention_masks=True,
                zero_out_masked=True,
                model_options=model_options,
            )

    monkeypatch.setattr(sd, "detect_te_model", lambda tensors: sd.TEModel.T5_XXL)
    monkeypatch.setattr(
        sd, "t5xxl_detect", lambda data: sd.comfy.text_encoders.sd3_clip.t5_xxl_detect(data[0])
    )
    monkeypatch.setattr(wan, "UMT5XXlModel", Narrow)
    encoder = pack.module("uniavgen_core.media.caption").load_caption_encoder(pack.release / TEXT)
    clip = pack.nodes.CLIPLoader().load_clip(f"{name}.safetensors", "wan")[0]
    for caption in (CAPTION, SPEECH, ""):
        states = pack.nodes.CLIPTextEncode().encode(clip, caption)[0][0][0]
        wanted = encoder([caption])
        length = wanted.shape[1]
        assert (states[:, :length] - wanted).norm() / wanted.norm() < bound
        assert states[:, length:].abs().sum() == 0


def test_further_tensors_are_told_on_the_node_and_ignored(pack, monkeypatch):
    loading = pack.module("nodes.loading")
    file = pack.models / "diffusion_models" / "uniavgen_bf16.safetensors"
    save_file(
        load_file(file) | {"ema.decay": torch.zeros(1)},
        file.with_name("more.safetensors"),
        loading.read_checkpoint(file).metadata,
    )
    told = []
    monkeypatch.setattr(loading, "tell", lambda node, text: told.append(text))
    model, speech_encoder = loading.LoadModel.execute("more.safetensors", "default").result
    assert [line for line in told if "1 more tensors, which are ignored: ema.decay" in line] == told != []
    for a, b in zip(clip(pack, model, speech_encoder), clip(pack, *loaded(pack, "UniAVGen/")), strict=True):
        assert torch.equal(a, b)
