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


def embedded_final_recipe() -> Recipe:
    """What `train recipe embedded-final` prints."""
    from .recipe import EMBEDDED_FINAL

    return EMBEDDED_FINAL


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
    p.add_argument("--share", type=float, default=1.0, help="of all steps and clips, to try it: 0.001")
    p.set_defaults(run=resumable(_embedded))

    p = actions.add_parser(
        "ablations",
        help="compare interactions, face masks, task mixes and guidance from one start at equal steps",
        description="Trains each arm from the same weights with a new interaction, on the same clips, times "
        "and noise, and measures them on held-out clips of the theatre (needs espeak-ng). Run it again to go "
        "on.",
    )
    p.add_argument("--out", required=True, help="folder of the study; the result: table.md, ablations.svg")
    p.add_argument("--latents", required=True, help="clips of `train theatre`, with the start's encoders")
    p.add_argument("--arms", help="such as paper,symmetric (default: all)")
    p.add_argument("--steps", type=int, default=400, help="of each training")
    p.add_argument("--batch", type=int, default=8, help="clips a step")
    p.add_argument("--seeds", type=int, default=3, help="trainings of each arm")
    p.add_argument("--clips", type=int, default=64, help="held-out clips for losses and masks")
    p.add_argument("--sampled", type=int, default=32, help="how many of them are generated; 0: none")
    p.add_argument(
        "--ways", default="audio-driven,dubbing", help="directions that the interaction is tried in"
    )
    p.add_argument("--sampling-steps", type=int, default=16)
    p.add_argument("--save-every", type=int, default=20, help="steps between checkpoints")
    p.set_defaults(run=resumable(_ablations))


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

    run = Run(save_every=options.save_every, compile=options.compile)
    print(make_embedded(options.out, run=run, share=options.share))
    return 0


def _ablations(options: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from ..errors import UserError
    from ..pipeline import Pipeline, Weights
    from ..training.data import Latents
    from .ablations.arms import ARMS
    from .ablations.report import write_report
    from .ablations.study import Study
    from .clips import Theatre
    from .evaluation.recogniser import load_recogniser

    names = tuple(options.arms.split(",")) if options.arms else tuple(ARMS)
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise UserError(f"arm {unknown[0]!r} is unknown; choose from {', '.join(ARMS)}")
    numbers = ("steps", "batch", "seeds", "clips", "sampled", "sampling_steps", "save_every")
    study = Study(
        Pipeline.load(Weights(), keep=True),
        Latents(options.latents),
        load_recogniser(),
        Theatre(0, "held-out"),
        Path(options.out),
        **{name: getattr(options, name) for name in numbers},
        ways=tuple(options.ways.split(",")),
        on_arm=lambda arm, what: print(f"{arm}, {what}", file=sys.stderr, flush=True),
    )
    study.run(names)
    print(write_report(study.out))
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
