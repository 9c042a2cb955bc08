import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from uniavgen_core.errors import UserError
from uniavgen_core.media import vae

pytest.importorskip("diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def small():
    return vae.random_vae(0)


@pytest.fixture
def folder(small, tmp_path):
    small.model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def picture(frames=5, height=64, width=96, seed=1):
    noise = torch.rand(1, 3, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise * 2 - 1, (frames, height, width), mode="trilinear")


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (9, 3)])
def test_a_latent_frame_stands_for_four_frames_and_16x16_pixels(small, frames, latents):
    latent = small.encode(picture(frames))
    assert latent.dtype == torch.float32
    assert latent.shape == (1, 48, latents, 4, 6)
    assert small.decode(latent).shape == (1, 3, frames, 64, 96)


def test_latents_are_of_order_one_and_frames_stay_in_range(small):
    latent = small.encode(picture(9))
    assert 0.3 < latent.std() < 3
    frames = small.decode(10 * latent)
    assert frames.dtype == torch.float32
    assert frames.abs().max() <= 1
    assert frames.std() > 0.05


def test_the_values_that_the_host_is_compared_with_are_those_of_the_core():
    folder = Path(__file__).parent / "host" / "tiny_vae"
    values = {name: tensor.float() for name, tensor in load_file(folder / "values.safetensors").items()}
    tiny = vae.load_vae(folder)
    encoded = tiny.encode(values["frames"].permute(3, 0, 1, 2)[None] * 2 - 1)
    assert torch.allclose(encoded, values["encoded"], atol=1e-5)
    decoded = (tiny.decode(values["latent"])[0].permute(1, 2, 3, 0) + 1) / 2
    assert torch.allclose(decoded, values["decoded"], atol=1e-5)


def test_encoding_is_deterministic_and_normalised_by_mean_and_deviation(small):
    frames = picture()
    assert torch.equal(small.encode(frames), small.encode(frames))
    posterior = small.model.encode(frames).latent_dist
    raw = small.encode(frames) * small.std + small.mean
    assert torch.allclose(raw, posterior.mean, atol=1e-5)


def test_the_first_latent_frame_depends_on_the_first_frame_only(small):
    frames = picture(5)
    assert torch.allclose(small.encode(frames)[:, :, :1], small.encode(frames[:, :, :1]), atol=1e-5)


def test_a_batch_is_encoded_like_its_members(small):
    a, b = picture(seed=2), picture(seed=3)
    both = small.encode(torch.cat([a, b]))
    assert torch.allclose(both, torch.cat([small.encode(a), small.encode(b)]), atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 3, 4, 32, 32), "4n[+]1; give 1"),
        (torch.zeros(1, 3, 80, 32, 32), "4n[+]1; give 77"),
        (torch.zeros(1, 3, 0, 32, 32), "4n[+]1; give 1"),
        (torch.zeros(1, 3, 5, 32, 40), "multiples of 16"),
        (torch.zeros(1, 1, 5, 32, 32), "expected float"),
        (torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8), "expected float"),
    ],
)
def test_frames_that_do_not_fit_are_refused(small, frames, message):
    with pytest.raises(UserError, match=message):
        small.encode(frames)


def test_a_latent_that_does_not_fit_is_refused(small):
    with pytest.raises(UserError, match=r"expected \[B, 48, T, h, w\]"):
        small.decode(torch.zeros(1, 16, 2, 4, 4))


def test_the_random_vae_follows_its_seed_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, other = vae.random_vae(7), vae.random_vae(7), vae.random_vae(8)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(a.encode(picture()), b.encode(picture()))
    assert not torch.equal(a.encode(picture()), other.encode(picture()))


def test_a_diffusers_folder_or_its_parent_is_loaded(small, folder):
    for path in (folder, folder.parent):
        assert torch.equal(vae.load_vae(path).encode(picture()), small.encode(picture()))


def test_names_of_diffusers_become_those_of_wan_and_back():
    with torch.device("meta"):
        model = vae.autoencoder(vae.ARCHITECTURE)
    for name in model.state_dict():
        assert vae.diffusers_name(vae.original_name(name)) == name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_file_of_wan_and_comfyui_is_loaded(small, folder, tmp_path, suffix):
    state = {vae.original_name(name): t for name, t in load_file(folder / WEIGHTS).items()}
    assert "decoder.upsamples.0.upsamples.3.time_conv.weight" in state
    assert "encoder.downsamples.1.downsamples.1.residual.6.bias" in state
    assert "decoder.middle.1.to_qkv.weight" in state
    file = tmp_path / f"wan2.2_vae{suffix}"
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    loaded = vae.load_vae(file)
    raw = small.encode(picture()) * small.std + small.mean
    assert torch.equal(
        loaded.model.encode(picture()).latent_dist.mode(), small.model.encode(picture()).latent_dist.mode()
    )
    assert torch.allclose(loaded.encode(picture()) * loaded.std + loaded.mean, raw, atol=1e-5)
    assert loaded.mean.flatten()[19].item() == pytest.approx(0.5109)
    assert loaded.std.flatten()[39].item() == pytest.approx(1.6887)


def test_half_precision_stays_close(small, folder):
    half = vae.load_vae(folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    latent = half.encode(picture())
    exact = small.encode(picture())
    assert latent.dtype == torch.float32
    assert (latent - exact).norm() / exact.norm() < 0.1


def test_a_folder_without_the_vaes_config_is_refused(folder):
    config = folder / "config.json"
    for content in (None, json.dumps({"_class_name": "AutoencoderKL"})):
        config.unlink() if content is None else config.write_text(content)
        with pytest.raises(
            UserError, match=r"config\.json is missing or is no config of an AutoencoderKLWan"
        ):
            vae.load_vae(folder)


def test_without_diffusers_the_install_command_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install diffusers"):
        vae.random_vae()
