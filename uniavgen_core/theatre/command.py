"""`uniavgen train theatre`, `decoder`, `vocoder` and `embedded`: what is trained on synthetic clips."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..training.command import add_learning_rate, add_preparation, parse_size, prepare_folder, resumable

if TYPE_CHECKING:
    from ..training.recipe import Recipe


def embedded_recipe() -> Recipe:
    """What `train recipe embedded` prints."""
    from .recipe import EMBEDDED

    return EMBEDDED


def aligned_recipe() -> Recipe:
    """What `train recipe aligned` prints."""
    from .recipe import ALIGNED

    return ALIGNED


def add_actions(actions: argparse._SubParsersAction) -> None:
    """Adds the theatre's commands to those of `train`; imports nothing heavy until one is run."""
    p = actions.add_parser("theatre", help="prepare synthetic clips (needs espeak-ng)")
    p.add_argument("--out", required=True, help="folder for the latents")
    p.add_argument("--clips", type=int, default=5000)
    p.add_argument("--split", default="train", help="train or held-out")
    p.add_argument("--seed", type=int, default=0)
    add_preparation(p, frames=33, size="128x128")
    p.set_defaults(run=resumable(_theatre))

    p = actions.add_parser("decoder", help="train a VAE's decoder further on synthetic clips")
    p.add_argument("vae", help="folder of a VAE; its latents stay what they are")
    p.add_argument("--out", required=True, help="folder of the run; the result: vae/")
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--batch", type=int, default=4)
    add_learning_rate(p, 5e-4)
    p.add_argument("--size", default="128x128", help="width x height, multiples of 16")
    p.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    p.set_defaults(run=resumable(_decoder))

    p = actions.add_parser("vocoder", help="train a small BigVGAN on synthetic speech (needs espeak-ng)")
    p.add_argument("--out", required=True)
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--batch", type=int, default=8, help="pieces of 0.4 s a step, over all processes")
    add_learning_rate(p, 1e-3)
    p.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    p.set_defaults(run=resumable(_vocoder))

    p = actions.add_parser("embedded", help="make the embedded model from nothing (needs espeak-ng)")
    p.add_argument("--out", required=True, help="folder of all its trainings; the parts: embedded_model/")
    p.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    p.add_argument("--compile", action="store_true", help="through torch.compile (needs a C++ compiler)")
    p.set_defaults(run=resumable(_embedded))


def _theatre(options: argparse.Namespace) -> int:
    from .clips import Theatre
    from .samples import theatre_sample

    theatre = Theatre(options.seed, options.split, options.frames, parse_size(options.size))
    return prepare_folder(
        options, options.clips, theatre.about(), lambda i, encode: theatre_sample(theatre, i, encode)
    )


def _embedded(options: argparse.Namespace) -> int:
    from ..training.loop import Run
    from .build_embedded import make_embedded

    print(make_embedded(options.out, run=Run(save_every=options.save_every, compile=options.compile)))
    return 0


def _vocoder(options: argparse.Namespace) -> int:
    from ..training.loop import Run
    from ..training.recipe import Schedule
    from .clips import Theatre
    from .vocoder_training import train_vocoder

    stage = Schedule("vocoder", options.steps, options.batch, options.learning_rate, decay=0.5)
    print(train_vocoder(Theatre(), stage, options.out, Run(save_every=options.save_every)))
    return 0


def _decoder(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from ..training.loop import Run
    from .autoencoder import train_vae
    from .build_embedded import DECODER
    from .clips import Theatre

    theatre, run = Theatre(size=parse_size(options.size)), Run(options.save_every)
    stage = replace(DECODER[0], steps=options.steps, batch=options.batch, learning_rate=options.learning_rate)
    print(train_vae(theatre, (stage,), options.out, options.vae, run))
    return 0
