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


def original_name(name):
    """What Wan2.2's own file, which ComfyUI users have, calls a tensor of diffusers."""
    for theirs, ours in [
        ("conv_shortcut.", "shortcut."),
        ("norm1.", "residual.0."),
        ("conv1.", "residual.2."),
        ("norm2.", "residual.3."),
        ("conv2.", "residual.6."),
        ("post_quant_conv.", "conv2."),
        ("quant_conv.", "conv1."),
        ("conv_in.", "conv1."),
        ("norm_out.", "head.0."),
        ("conv_out.", "head.2."),
        ("mid_block.resnets.0.", "middle.0."),
        ("mid_block.resnets.1.", "middle.2."),
        ("mid_block.attentions.0.", "middle.1."),
    ]:
        name = name.replace(theirs, ours)
    for way, last in (("down", 2), ("up", 3)):
        for block in range(4):
            name = name.replace(f"{way}_blocks.{block}.resnets.", f"{way}samples.{block}.{way}samples.")
            name = name.replace(
                f"{way}_blocks.{block}.{way}sampler.", f"{way}samples.{block}.{way}samples.{last}."
            )
    return name


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


def test_the_file_that_comfyui_users_have_is_loaded(small, folder, tmp_path):
    state = {original_name(name): t for name, t in load_file(folder / vae.WEIGHTS).items()}
    assert "decoder.upsamples.0.upsamples.3.time_conv.weight" in state
    assert "encoder.downsamples.1.downsamples.1.residual.6.bias" in state
    assert "decoder.middle.1.to_qkv.weight" in state
    save_file(state, tmp_path / "wan2.2_vae.safetensors")
    loaded = vae.load_vae(tmp_path / "wan2.2_vae.safetensors")
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


def damage_nothing_there(folder):
    return folder / "missing", "no such file"


def damage_no_weights(folder):
    (folder / vae.WEIGHTS).unlink()
    return folder, "no such file"


def damage_truncated(folder):
    whole = (folder / vae.WEIGHTS).read_bytes()
    (folder / vae.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    return folder, "damaged"


def damage_empty(folder):
    (folder / "empty.safetensors").touch()
    return folder / "empty.safetensors", "damaged"


def damage_pickle(folder):
    torch.save({"conv1.weight": torch.zeros(1)}, folder / "Wan2.2_VAE.pth")
    return folder / "Wan2.2_VAE.pth", "no safetensors"


def damage_another_model(folder):
    save_file({"blocks.0.weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder / "model.safetensors", "is no Wan VAE"


def damage_wan21(folder):
    state = load_file(folder / vae.WEIGHTS) | {"post_quant_conv.weight": torch.zeros(16, 16, 1, 1, 1)}
    save_file(state, folder / vae.WEIGHTS)
    return folder, "16 latent channels"


def damage_missing_tensor(folder):
    state = load_file(folder / vae.WEIGHTS)
    del state["decoder.mid_block.attentions.0.proj.weight"]
    save_file(state, folder / vae.WEIGHTS)
    return folder, r"1 tensors .*attentions\.0\.proj\.weight"


def damage_extra_tensor(folder):
    save_file(load_file(folder / vae.WEIGHTS) | {"extra": torch.zeros(1)}, folder / vae.WEIGHTS)
    return folder, "1 tensors .*extra"


def damage_no_config(folder):
    (folder / "config.json").unlink()
    return folder, "missing or damaged"


def damage_another_config(folder):
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    return folder, "no config of an AutoencoderKLWan"


@pytest.mark.parametrize("damage", [f for name, f in sorted(globals().items()) if name.startswith("damage_")])
def test_a_wrong_file_is_named(folder, damage):
    path, message = damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        vae.load_vae(path)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_without_diffusers_the_install_command_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install diffusers"):
        vae.random_vae()
