"""The embedded model from nothing: every part trained on the theatre, in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ..caption import load_caption_encoder
from ..checkpoint import load_model, save_checkpoint
from ..vae import load_vae
from .autoencoder import save_vae, train_vae
from .captions import new_caption_encoder
from .data import Latents, prepare, theatre_sample
from .recipe import EMBEDDED, Recipe, Schedule
from .theatre import Theatre
from .train import Run, train

CLIPS = 3072
PICTURES = Schedule("pictures", 1500, 16, 1e-3, decay=0.3)
VIDEOS = Schedule("clips", 600, 2, 5e-4, warmup=20, decay=0.7)


def make_embedded(
    out: str | Path,
    recipe: Recipe = EMBEDDED,
    clips: int = CLIPS,
    theatre: Theatre | None = None,
    run: Run | None = None,
) -> Path:
    """VAE, latents, caption encoder and model, one after the other; the folder `out/embedded_model`.

    Run it again to go on with what was stopped.

    Raises:
        UserError: as `train_vae`, `prepare` and `train`.
    """
    out, theatre = Path(out), theatre or Theatre()
    vae_folder = train_vae(theatre, PICTURES, VIDEOS, out / "vae", run=run)
    encode = load_vae(vae_folder).encode
    height, width = theatre.size
    about = {"theatre": [theatre.seed, theatre.split], "frames": theatre.frames, "size": [width, height]}
    prepare(out / "latents", clips, lambda i: theatre_sample(theatre, i, encode), about)
    captions = out / "captions"
    if not captions.exists():
        new = new_caption_encoder(map(theatre.caption, range(2000)), recipe.config.caption_dim)
        new.save(captions)
    model = train(recipe, Latents(out / "latents"), out / "model", caption=captions, run=run)
    return collect(model, vae_folder, model.parent / "caption_encoder", out / "embedded_model")


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
