"""The embedded model from nothing: every part trained on the theatre, in one folder."""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import UserError
from ..media.caption import load_caption_encoder
from ..media.vae import load_vae
from ..training.data import prepare
from ..training.loop import Run, train
from ..training.recipe import Recipe, Schedule
from ..weights.checkpoint import load_model
from ..weights.convert import save_checkpoint
from .autoencoder import VAEStage, save_vae, train_vae
from .captions import new_caption_encoder
from .clips import Theatre
from .recipe import EMBEDDED, EMBEDDED_FINAL
from .samples import speech_sample, theatre_sample

SPEECH, CLIPS, MOVING_CLIPS = 4096, 4096, 29_422
STILL = "holds still"
"""What a caption says of a head that does not move."""
AnySchedule = TypeVar("AnySchedule", bound=Schedule)
VAE = (
    VAEStage("pictures", 1700, 16, 1e-3, decay=0.3),
    VAEStage("clips", 250, 2, 5e-4, warmup=20, decay=0.7, frames=9),
    VAEStage("mouths", 600, 4, 1e-3, warmup=30, frames=9, crop=64, motion=10.0),
    VAEStage("motion", 1000, 4, 5e-4, warmup=20, decay=0.6, frames=17, crop=64, motion=5.0),
)
DECODER = (VAEStage("decoder", 700, 1, 7e-4, warmup=20, decay=0.6, frames=17, motion=5.0),)


def make_embedded(
    out: str | Path,
    recipes: tuple[Recipe, Recipe] = (EMBEDDED, EMBEDDED_FINAL),
    run: Run | None = None,
    share: float = 1.0,
) -> Path:
    """VAE, latents, caption encoder, model and decoder, one after the other; folder `out/embedded_model`.

    The second recipe goes on from the result of the first, on other clips. `share`: of all steps and clips,
    to try the command with few. Run it again to go on with what was stopped. The sampling settings and the
    card are not made here.

    Raises:
        UserError: as `train_vae`, `prepare` and `train`; `share` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"--share is {share}; it lies above 0 and is at most 1")
    out, theatre = Path(out), Theatre()
    first, second = (replace(r, stages=_shortened(r.stages, share)) for r in recipes)
    clips, speech_clips, moving_clips = (math.ceil(share * n) for n in (CLIPS, SPEECH, MOVING_CLIPS))
    vae = train_vae(theatre, _shortened(VAE, share), out / "vae", run=run)
    decoder = train_vae(Theatre(1), _shortened(DECODER, share), out / "decoder", vae, run)
    encode = load_vae(vae).encode
    about = theatre.about()
    latents = prepare(out / "latents", clips, lambda i: theatre_sample(theatre, i, encode), about)
    about_speech = about | {"size": None}
    speech = prepare(out / "speech", speech_clips, lambda i: speech_sample(theatre, i), about_speech)
    captions = out / "captions"
    if not captions.exists():
        new_caption_encoder(map(theatre.caption, range(2000)), first.config.caption_dim).save(captions)
    model = train(first, latents, out / "model", caption=captions, run=run, speech=speech)
    captions = model.parent / "caption_encoder"
    others = Theatre(7)
    numbers = moving(others, moving_clips)
    latents = prepare(
        out / "moving",
        moving_clips,
        lambda i: theatre_sample(others, numbers[i], encode),
        others.about() | {"still": "one of three"},
        load_caption_encoder(captions),
    )
    model = train(second, latents, out / "final", start=model, run=run)
    return collect(model, decoder, captions, out / "embedded_model")


def moving(theatre: Theatre, count: int) -> list[int]:
    """The first `count` clips of a theatre without two of three of the heads that hold still."""
    wanted = (i for i in itertools.count() if i % 3 == 0 or STILL not in theatre.caption(i))
    return list(itertools.islice(wanted, count))


def _shortened(stages: tuple[AnySchedule, ...], share: float) -> tuple[AnySchedule, ...]:
    return tuple(replace(stage, steps=math.ceil(share * stage.steps)) for stage in stages)


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
