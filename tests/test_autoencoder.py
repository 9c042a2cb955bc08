"""The VAE's training: a new one learns pictures, a frozen one keeps its latents."""

import json
from functools import partial

import pytest
import torch

from uniavgen_core.errors import UserError
from uniavgen_core.media.files import to_float
from uniavgen_core.media.vae import load_vae
from uniavgen_core.theatre import autoencoder
from uniavgen_core.theatre.autoencoder import TheatreClips, VAEStage, measure_latents, train_vae
from uniavgen_core.theatre.clips import Theatre

THEATRE = Theatre(frames=17, size=(64, 64))


@pytest.fixture(scope="module", autouse=True)
def small():
    """Half as wide as the shipped one, and a pool of four clips at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(autoencoder.SMALL, "base_dim", 8)
        patch.setitem(autoencoder.SMALL, "decoder_base_dim", 8)
        patch.setattr(autoencoder, "POOL", 4)
        patch.setattr(autoencoder, "measure_latents", partial(measure_latents, clips=4))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("vae")
    pictures = VAEStage("pictures", 40, 8, 1e-3, warmup=4, crop=32)
    return train_vae(THEATRE, (pictures, VAEStage("clips", 2, 1, 1e-4, frames=9, motion=5.0)), out)


def picture() -> torch.Tensor:
    frames = torch.from_numpy(THEATRE.clip(0).frames[:5])
    return to_float(frames)[None]


def test_pictures_come_closer_and_latents_are_of_order_one(trained):
    losses = [json.loads(line)["pixels"] for line in (trained.parent / "pictures" / "log.jsonl").open()]
    assert sum(losses[-10:]) / 10 < 0.8 * sum(losses[:3]) / 3
    latent = load_vae(trained).encode(picture())
    assert latent.shape == (1, 48, 2, 4, 4)
    assert 0.3 < latent.std() < 3


def test_a_decoder_that_learns_on_leaves_the_latents_alone(trained, tmp_path):
    stage = VAEStage("clips", 3, 1, 1e-3, warmup=1, frames=9)
    later = train_vae(THEATRE, (stage,), tmp_path, start=trained)
    before, after = load_vae(trained), load_vae(later)
    latent = before.encode(picture())
    assert torch.equal(after.encode(picture()), latent)
    assert not torch.equal(after.decode(latent), before.decode(latent))


def test_a_crop_shows_the_mouth_and_motion_weighs_what_moves():
    plain, weighted = (
        TheatreClips(THEATRE, VAEStage("x", 1, 2, 1e-3, frames=9, crop=32, motion=motion))[0]
        for motion in (0.0, 5.0)
    )
    assert plain.frames.shape == (2, 3, 9, 32, 32)
    assert plain.noise.shape == (2, 48, 3, 2, 2)
    assert (plain.weight == 10).any()  # the mouth is in every piece's first frame
    assert torch.equal(weighted.weight[:, :, 0], plain.weight[:, :, 0])  # a latent frame of its own
    groups = plain.frames[:, :, 1:].unflatten(2, (2, 4))
    still = (groups == groups[:, :, :, :1]).all(3).all(1)[:, :, None].expand(-1, -1, 4, -1, -1).flatten(1, 2)
    ratio = (weighted.weight / plain.weight)[:, 0, 1:]
    assert (ratio[still] == 1).all()
    assert (ratio[~still] > 1).float().mean() > 0.9  # some pixels pass through their mean


@pytest.mark.parametrize("fault", [{"frames": 8}, {"crop": 20}, {"motion": -1.0}])
def test_pieces_that_cannot_be_are_refused(fault):
    with pytest.raises(UserError, match=next(iter(fault))):
        VAEStage("x", 1, 2, 1e-3, **fault)
