"""One model, whatever the file: the host loads it and samples the same clip."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from random_parts import random_model
from safetensors.torch import load_file, save_file

TINY_VAE = Path(__file__).parent / "tiny_vae"
# file, weight_dtype -> how far the clip may be from that of the float32 file
CLOSE = {
    ("fp32.safetensors", "default"): 0,
    ("prefixed.safetensors", "default"): 0,
    ("release/", "default"): 0,
    ("fp16.safetensors", "default"): 2e-3,
    ("bf16.safetensors", "default"): 2e-2,
    ("fp8.safetensors", "default"): 0.1,
    ("prefixed_fp8.safetensors", "default"): 0.1,
    ("int8.safetensors", "default"): 0.05,
    ("fp32.safetensors", "fp8_e4m3fn"): 0.2,
    ("fp32.safetensors", "fp8_e4m3fn_fast"): 0.2,
    ("fp32.safetensors", "fp8_e5m2"): 0.3,
    ("bf16.safetensors", "fp8_e4m3fn"): 0.2,
}


@pytest.fixture(scope="module")
def pack(host, tmp_path_factory) -> SimpleNamespace:
    """Modules of the pack, and a folder of the host with one model in every form."""

    def module(name: str):
        return importlib.import_module(f"{host.__name__}.{name}")

    folder = tmp_path_factory.mktemp("diffusion_models")
    config = module("uniavgen_core.model.config").TINY
    weights = random_model(3).state_dict()
    for dtype in ("fp32", "bf16", "fp16", "fp8", "int8"):
        module("uniavgen_core.weights.convert").save_checkpoint(
            folder / f"{dtype}.safetensors", weights.items(), config, dtype
        )
    said = {"uniavgen_config": json.dumps(config.to_dict())}
    for name in ("fp32", "fp8"):
        tensors = load_file(folder / f"{name}.safetensors")
        prefixed = {f"model.diffusion_model.{key}": x for key, x in tensors.items()}
        save_file(
            prefixed, folder / f"prefixed{name.removeprefix('fp32').replace('fp8', '_fp8')}.safetensors", said
        )
    release, names = folder / "release", list(weights)
    release.mkdir()
    index = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({key: weights[key] for key in part}, release / shard)
        index |= dict.fromkeys(part, shard)
    index_file = release / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": index}))
    (release / "config.json").write_text(json.dumps(config.to_dict()))
    importlib.import_module("folder_paths").add_model_folder_path(
        "diffusion_models", str(folder), is_default=True
    )
    return SimpleNamespace(module=module, folder=folder, weights=weights)


def clip(pack, model, speech_encoder) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image, caption = (torch.randn(*shape, generator=generator) for shape in ((1, 48, 1, 4, 6), (1, 9, 64)))
    speech = pack.module("nodes.types").EncodedSpeech(
        speech_encoder([5, 1, 9, 2, 30]), speech_encoder([-1] * 10), transcript=False
    )
    task = pack.module("uniavgen_core.conditioning").condition("joint", image, None, 3, 56)
    positive, negative, latent = (
        pack.module("nodes.tasks")
        .conditioned(task, "joint", [[caption, {}]], [[torch.zeros_like(caption), {}]], speech)
        .result
    )
    guiding = pack.module("nodes.guiding")
    guider = guiding.MACFGGuider(model, guiding.guidance(3.0, 2.0, 0.5, 1))
    guider.set_conds(positive, negative)
    sigmas = pack.module("uniavgen_core.sampling.sampler").schedule(3) / 1000
    return guiding.sample(guider, latent, sigmas, 1)["samples"].unbind()


@pytest.fixture(scope="module")
def wanted(pack) -> list[torch.Tensor]:
    return clip(pack, *pack.module("nodes.loading").load_parts("fp32.safetensors")[:2])


@pytest.mark.parametrize(("name", "weight_dtype"), CLOSE)
def test_every_form_of_a_file_samples_the_same_clip(pack, wanted, name, weight_dtype):
    made = clip(pack, *pack.module("nodes.loading").load_parts(name, weight_dtype)[:2])
    for a, b in zip(made, wanted):
        assert (a - b).norm() / b.norm() <= CLOSE[name, weight_dtype]


def test_a_folder_of_shards_is_offered_once_under_its_name(pack):
    names = pack.module("nodes.loading").listed("diffusion_models")
    assert names.count("release/") == 1
    assert not [name for name in names if "-of-" in name and name.startswith("release")]


def test_the_tensors_of_the_model_have_the_names_of_the_file_so_that_loras_find_them(pack):
    model = pack.module("nodes.loading").load_parts("fp32.safetensors")[0]
    assert model.model.diffusion_model.state_dict().keys() == pack.weights.keys()
    keys = importlib.import_module("comfy.lora").model_lora_keys_unet(model.model, {})
    assert keys["diffusion_model.blocks.0.self_attn.q"] == "diffusion_model.blocks.0.self_attn.q.weight"


def test_a_fresh_copy_without_dynamic_memory_can_be_made_of_a_loaded_model(pack, wanted):
    """What the host asks for before torch.compile."""
    loading = pack.module("nodes.loading")
    model, speech_encoder, _ = loading.load_parts("fp32.safetensors")
    again, arguments = model.cached_patcher_init
    copy = again(*arguments, disable_dynamic=True)
    for a, b in zip(clip(pack, copy, speech_encoder), wanted):
        assert torch.equal(a, b)


def test_a_caption_encoder_of_the_core_stands_in_for_a_clip(pack):
    encoder = pack.module("uniavgen_core.media.caption").random_caption_encoder()
    clip = pack.module("nodes.embedded").HostCLIP(encoder)
    encode = importlib.import_module("nodes").CLIPTextEncode().encode
    for caption in ("A woman talks by the sea.", ""):
        states, _ = encode(clip, caption)[0][0]
        assert torch.equal(states, encoder([caption]))


@pytest.fixture(scope="module")
def vae(pack):
    """A small VAE of the core, other statistics than the released one's, as a VAE of the host."""
    return pack.module("nodes.embedded").HostVAE(*pack.module("uniavgen_core.media.vae").read_vae(TINY_VAE))


def test_a_vae_of_the_core_gives_the_host_the_latents_that_it_normalises_to_the_same(vae):
    """The values are the core's, whose own test is `test_vae.py`: it needs diffusers, the host does not."""
    values = {name: tensor.float() for name, tensor in load_file(TINY_VAE / "values.safetensors").items()}
    latent_format = importlib.import_module("comfy.latent_formats").Wan22()
    raw = vae.encode(values["frames"])
    assert raw.shape == values["encoded"].shape == (1, 48, 2, 4, 2)
    assert torch.allclose(latent_format.process_in(raw), values["encoded"], atol=1e-5)
    images = vae.decode(latent_format.process_out(values["latent"]))
    assert torch.allclose(images[0], values["decoded"], atol=1e-5)
    assert images.std() > 0.01


def test_a_vae_of_the_core_is_decoded_in_tiles_by_the_host(vae):
    latent = torch.randn(1, 48, 3, 4, 6, generator=torch.Generator().manual_seed(6))
    tiled = vae.decode_tiled(latent, tile_x=4, tile_y=4, overlap=2, tile_t=2, overlap_t=1)
    assert tiled.shape == (1, 9, 64, 96, 3)
    assert tiled.min() >= 0
    assert tiled.max() <= 1


def test_the_face_mask_of_a_latent_frame_lies_over_its_four_frames(pack):
    per_frame = pack.module("nodes.face_mask").per_frame
    for patch, tokens in (((2, 2), 2 * 3), ((1, 1), 4 * 6)):
        mask = torch.rand(3, tokens)
        frames = per_frame(mask, torch.Size((1, 48, 3, 4, 6)), patch)
        assert frames.shape == (9, 64, 96)
        assert torch.equal(frames[1], frames[4])
        assert not torch.equal(frames[4], frames[5])
        assert torch.isclose(frames[0, 0, 0], mask[0, 0])


def test_clips_are_tiled_row_by_row_under_their_labels(pack):
    compare = pack.module("nodes.muxing").Compare
    clips = [torch.full((frames, 64, 96, 3), shade) for frames, shade in ((5, 0.2), (5, 0.4), (3, 1.0))]
    sheet = compare.execute(clips, ["one", "two", "three"], [2]).result[0]
    strip = 20
    assert sheet.shape == (5, 2 * (64 + strip), 2 * 96, 3)
    for i, shade in enumerate((0.2, 0.4, 1.0)):
        top, left = (i // 2) * (64 + strip) + strip, (i % 2) * 96
        tile = sheet[:, top : top + 64, left : left + 96]
        assert torch.allclose(tile, torch.full_like(tile, shade), atol=1 / 255)
        assert sheet[:, top - strip : top, left : left + 96].amax() > 0.5


def test_the_doctor_reports_on_the_host_and_its_files(pack, monkeypatch):
    core, memory = pack.module("uniavgen_core.doctor"), pack.module("uniavgen_core.memory")
    monkeypatch.setattr(core, "RELEASED", pack.module("uniavgen_core.model.config").TINY)
    monkeypatch.setattr(core, "CLIPS", (memory.Clip("joint", 96, 64, 9, 56),))
    doctor = pack.module("nodes.doctor")
    found = doctor.found_files()
    assert found["model"] is not None
    monkeypatch.setattr(doctor, "found_files", lambda: found | {"model": pack.folder / "bf16.safetensors"})
    output = doctor.Doctor.execute()
    lines = output.result[0].splitlines()
    assert output.ui.as_dict() == {"text": (output.result[0],)}
    assert lines[0].startswith("ComfyUI 0.")
    assert any(line.startswith("model ") and "a UniAVGen checkpoint" in line for line in lines), lines
    assert all(line.endswith("ok") for line in lines if line[:4] in ("fp32", "bf16", "fp16", "fp8 "))
    assert any("while sampling; about" in line for line in lines)
