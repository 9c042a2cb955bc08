"""The VAE's training: a new one learns pictures, a frozen one keeps its latents."""

import json
from functools import partial

import pytest
import torch

from uniavgen_core.training import autoencoder
from uniavgen_core.training.autoencoder import measure_latents, train_vae
from uniavgen_core.training.recipe import Schedule
from uniavgen_core.training.theatre import Theatre
from uniavgen_core.vae import load_vae

THEATRE = Theatre(frames=17, size=(64, 64))


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    """A pool of four clips at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "POOL", 4)
        patch.setattr(autoencoder, "measure_latents", partial(measure_latents, clips=4))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("vae")
    pictures = Schedule("pictures", 40, 8, 1e-3, warmup=4)
    return train_vae(THEATRE, pictures, Schedule("clips", 2, 1, 1e-4), out)


def picture() -> torch.Tensor:
    frames = torch.from_numpy(THEATRE.clip(0).frames[:5])
    return frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def test_pictures_come_closer_and_latents_are_of_order_one(trained):
    losses = [json.loads(line)["pixels"] for line in (trained.parent / "pictures" / "log.jsonl").open()]
    assert sum(losses[-10:]) / 10 < 0.8 * sum(losses[:3]) / 3
    latent = load_vae(trained).encode(picture())
    assert latent.shape == (1, 48, 2, 4, 4)
    assert 0.3 < latent.std() < 3


def test_a_decoder_that_learns_on_leaves_the_latents_alone(trained, tmp_path):
    later = train_vae(THEATRE, None, Schedule("clips", 3, 1, 1e-3, warmup=1), tmp_path, start=trained)
    before, after = load_vae(trained), load_vae(later)
    latent = before.encode(picture())
    assert torch.equal(after.encode(picture()), latent)
    assert not torch.equal(after.decode(latent), before.decode(latent))
