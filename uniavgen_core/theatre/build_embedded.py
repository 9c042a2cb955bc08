"""The embedded model from nothing: every part trained on the theatre, in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ..media.caption import load_caption_encoder
from ..media.vae import load_vae
from ..training.data import prepare
from ..training.loop import Run, train
from ..training.recipe import Recipe
from ..weights.checkpoint import load_model
from ..weights.convert import save_checkpoint
from .autoencoder import VAEStage, save_vae, train_vae
from .captions import new_caption_encoder
from .clips import Theatre
from .recipe import EMBEDDED
from .samples import speech_sample, theatre_sample

SPEECH, CLIPS = 4096, 4096
VAE = (
    VAEStage("pictures", 1700, 16, 1e-3, decay=0.3),
    VAEStage("clips", 250, 2, 5e-4, warmup=20, decay=0.7, frames=9),
    VAEStage("mouths", 600, 4, 1e-3, warmup=30, frames=9, crop=64, motion=10.0),
    VAEStage("motion", 1000, 4, 5e-4, warmup=20, decay=0.6, frames=17, crop=64, motion=5.0),
)
DECODER = (VAEStage("decoder", 700, 1, 7e-4, warmup=20, decay=0.6, frames=17, motion=5.0),)


def make_embedded(out: str | Path, recipe: Recipe = EMBEDDED, run: Run | None = None) -> Path:
    """VAE, latents, caption encoder, model and decoder, one after the other; the folder `out/embedded_model`.

    Run it again to go on with what was stopped. The sampling settings and the card are not made here.

    Raises:
        UserError: as `train_vae`, `prepare` and `train`.
    """
    out, theatre = Path(out), Theatre()
    vae = train_vae(theatre, VAE, out / "vae", run=run)
    decoder = train_vae(Theatre(1), DECODER, out / "decoder", vae, run)
    encode = load_vae(vae).encode
    about = theatre.about()
    latents = prepare(out / "latents", CLIPS, lambda i: theatre_sample(theatre, i, encode), about)
    speech = prepare(out / "speech", SPEECH, lambda i: speech_sample(theatre, i), about | {"size": None})
    captions = out / "captions"
    if not captions.exists():
        new_caption_encoder(map(theatre.caption, range(2000)), recipe.config.caption_dim).save(captions)
    model = train(recipe, latents, out / "model", caption=captions, run=run, speech=speech)
    return collect(model, decoder, model.parent / "caption_encoder", out / "embedded_model")


def collect(model: str | Path, vae: str | Path, captions: str | Path, folder: str | Path) -> Path:
    """Write the parts in half precision as the pack ships them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_model(model, dtype=torch.float32)
    save_checkpoint(folder / "model.safetensors", weights.state_dict().items(), weights.config, "fp16")
    save_vae(load_vae(vae).model, folder / "vae", torch.float16)
    encoder = load_caption_encoder(captions)
    encoder.model.half()
    shutil.rmtree(folder / "caption_encoder", ignore_errors=True)
    encoder.save(folder / "caption_encoder")
    return folder
