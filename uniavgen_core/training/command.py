"""`uniavgen train`: prepares clips, prints recipes, trains a model, fine-tunes one with LoRA."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..errors import counted

if TYPE_CHECKING:
    from .data import EncodeVideo, Sample
    from .loop import Preview, Run
    from .recipe import Recipe

MakeRecipe = Callable[[], "Recipe"]


def add_parser(
    commands: argparse._SubParsersAction, recipes: Mapping[str, MakeRecipe] | None = None
) -> argparse._SubParsersAction:
    """Adds `train` with its sub-commands and returns these; imports nothing heavy until one is run.

    `recipes`: what `train recipe` prints by name, beside the paper's.
    """
    train = commands.add_parser("train", help="train a model on your clips or on the synthetic theatre")
    actions = train.add_subparsers(dest="action", required=True)
    recipes = {"paper": _paper, **(recipes or {})}

    p = actions.add_parser("videos", help="prepare clips from mp4 files")
    p.add_argument("list", help="jsonl: file, caption, transcript, language; optional faces, speaker")
    p.add_argument("--out", required=True, help="folder for the latents")
    add_preparation(p, frames=81, size="1280x736")
    p.set_defaults(run=resumable(_videos))

    p = actions.add_parser("recipe", help="print a recipe to start from")
    p.add_argument("name", choices=sorted(recipes))
    p.set_defaults(run=_recipe, recipes=recipes)

    p = actions.add_parser(
        "run",
        help="train; run it again to go on (several processes: `accelerate launch`, on CPUs `torchrun`)",
    )
    p.add_argument("recipe", help="JSON file, see `train recipe`")
    p.add_argument("--latents", required=True, help="folder of prepared clips")
    p.add_argument("--out", required=True, help="folder of the run")
    p.add_argument("--start", help="weights to begin with instead of new ones")
    p.add_argument("--caption-encoder", help="folder of a umT5 that is trained with the model")
    p.add_argument("--speech", help="folder of clips for the tasks of the audio branch alone")
    _add_run(p)
    p.set_defaults(run=resumable(_run))

    p = actions.add_parser("lora", help="fine-tune weights; writes lora.safetensors for ComfyUI's loaders")
    p.add_argument("--model", required=True, help="folder of shards or one safetensors file")
    p.add_argument("--latents", required=True, help="folder of prepared clips")
    p.add_argument("--out", required=True, help="folder of the run")
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--batch", type=int, default=1)
    add_learning_rate(p, 1e-4)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--alpha", type=float, help="default: the rank")
    p.add_argument("--groups", default="video,audio,a2v,v2a", help="what is adapted")
    p.add_argument("--tasks", default="joint:1", help="such as joint:4,dubbing:1")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    _add_run(p)
    p.set_defaults(run=resumable(_lora))

    p = actions.add_parser(
        "distil",
        help="teach a model to need one pass a step, or fewer steps",
        description="The student learns the guided velocity (MA-CFG) of its teacher in one pass, for a range "
        "of scales. Defaults of the sampling are those of the weights. Run it on its own result with "
        "--jump 2 to halve the steps.",
    )
    p.add_argument("--model", help="folder of shards or one safetensors file; default: the embedded model")
    p.add_argument("--latents", required=True, help="folder of prepared clips")
    p.add_argument("--out", required=True, help="folder of the run")
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--batch", type=int, default=4)
    add_learning_rate(p, 2e-4)
    p.add_argument("--rank", type=int, help="a LoRA of this rank for one pair of scales, in place of a model")
    p.add_argument("--s-v", help="range of the video's scale that is learnt, such as 1,5; one value: only it")
    p.add_argument("--s-a", help="of the audio's scale")
    p.add_argument("--interval", type=float, help="part of the steps in which the teacher uses MA-CFG")
    p.add_argument("--skip-layer", type=int, help="layer the teacher's null pass leaves out; -1: none")
    p.add_argument("--sampling-steps", type=int, help="with which the student will be sampled")
    p.add_argument("--shift", type=float, help="with which the student will be sampled")
    p.add_argument("--jump", type=int, default=1, help="steps of the teacher in one of the student")
    p.add_argument("--tasks", default="joint:1", help="such as joint:4,dubbing:1")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--recompute", action="store_true", help="less memory, a third more time")
    _add_run(p)
    p.set_defaults(run=resumable(_distil))
    return actions


def add_learning_rate(p: argparse.ArgumentParser, default: float) -> None:
    """`--learning-rate`, which was once called `--rate`."""
    p.add_argument("--learning-rate", type=float, default=default)
    p.add_argument(
        "--rate", type=float, dest="learning_rate", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def resumable(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A command that is stopped says how to go on, and exits with 2."""

    def run(options: argparse.Namespace) -> int:
        try:
            return action(options)
        except KeyboardInterrupt:
            print("uniavgen: stopped; run the same command again to go on", file=sys.stderr)
            return 2

    return run


def add_preparation(p: argparse.ArgumentParser, frames: int, size: str) -> None:
    """The options that `prepare_folder` reads, beside what the clips are."""
    p.add_argument("--frames", type=int, default=frames, help="4n + 1 at 16 fps")
    p.add_argument("--size", default=size, help="width x height, multiples of 16")
    p.add_argument("--vae", required=True, help="Wan2.2 VAE: diffusers folder or one safetensors file")
    p.add_argument("--text-encoder", help="umT5 folder; not needed where the caption encoder is trained too")
    p.add_argument("--device", default="cpu")
    p.add_argument("--part", default="1/1", help="2/4: the second of four processes that share the work")


def _add_run(p: argparse.ArgumentParser) -> None:
    p.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    p.add_argument("--micro-batch", type=int, help="samples at once on a process; default: its share")
    p.add_argument("--workers", type=int, default=0, help="processes that read ahead")
    p.add_argument("--compile", action="store_true", help="through torch.compile (needs a C++ compiler)")
    p.add_argument("--preview-every", type=int, default=2000, help="steps between validation clips")
    p.add_argument("--preview", help="folder of prepared clips to make validation clips from; needs --vae")
    p.add_argument("--preview-modes", default="joint", help="such as joint,dubbing")
    p.add_argument("--vae", help="Wan2.2 VAE, for validation clips")
    p.add_argument("--vocoder", help="BigVGAN, for validation clips; Griffin-Lim without it")


def _videos(options: argparse.Namespace) -> int:
    from .. import conditioning
    from .footage import footage_sample, read_list

    size = parse_size(options.size)
    conditioning.latent_frames(options.frames)
    rows = read_list(options.list)
    about = {"videos": options.list, "frames": options.frames, "size": list(size)}

    def sample(i: int, encode: EncodeVideo) -> Sample:
        return footage_sample(rows, i, options.frames, size, encode)

    return prepare_folder(options, len(rows), about, sample)


def prepare_folder(
    options: argparse.Namespace, count: int, about: dict, sample: Callable[[int, EncodeVideo], Sample]
) -> int:
    """Writes the latents of `sample(0, encode)` to `sample(count - 1, encode)` into the folder `--out`."""
    from tqdm import tqdm

    from ..errors import UserError
    from ..media.caption import load_caption_encoder
    from ..media.vae import load_vae
    from .data import prepare

    if count < 1:
        raise UserError(f"--clips is {count}; use at least 1")
    vae = load_vae(options.vae, options.device)
    captions = options.text_encoder and load_caption_encoder(options.text_encoder, options.device)
    with tqdm(total=count, unit="clip", disable=None) as bar:
        prepare(
            options.out,
            count,
            lambda i: sample(i, vae.encode),
            {**about, "vae": options.vae, "text_encoder": options.text_encoder},
            captions,
            _part(options.part),
            lambda done, count: bar.update(),
        )
    print(f"{options.out}: {counted(count, 'clip')}")
    return 0


def _recipe(options: argparse.Namespace) -> int:
    import json

    print(json.dumps(options.recipes[options.name]().to_dict(), indent=2))
    return 0


def _paper() -> Recipe:
    from dataclasses import replace

    from ..model.config import Config
    from .recipe import Recipe, paper_stages

    config = replace(Config(), variant="paper")
    return Recipe(config, paper_stages(), ema=0.9999, dtype="bf16", recompute=True)


def _run(options: argparse.Namespace) -> int:
    from .data import Latents
    from .loop import train
    from .recipe import read_recipe

    recipe, latents = read_recipe(options.recipe), Latents(options.latents)
    result = train(
        recipe,
        latents,
        options.out,
        options.start,
        options.caption_encoder,
        _how(options),
        _preview(options),
        Latents(options.speech) if options.speech else None,
    )
    print(result)
    return 0


def _lora(options: argparse.Namespace) -> int:
    from .data import Latents
    from .lora import train_lora
    from .recipe import Stage

    stage = Stage("lora", options.steps, options.batch, options.learning_rate, _weights(options.tasks))
    result = train_lora(
        options.model,
        Latents(options.latents),
        options.out,
        stage,
        options.rank,
        options.alpha,
        tuple(options.groups.split(",")),
        options.seed,
        options.dtype,
        run=_how(options),
        preview=_preview(options),
    )
    print(result)
    return 0


def _distil(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from .. import embedded
    from ..sampling.defaults import SamplingDefaults
    from .data import Latents
    from .distil import Lesson, train_distil

    defaults = SamplingDefaults() if options.model else embedded.settings()
    guidance = defaults.guidance
    if options.interval is not None:
        guidance = replace(guidance, interval=options.interval)
    if options.skip_layer is not None:
        guidance = replace(guidance, skip_layers=() if options.skip_layer < 0 else (options.skip_layer,))
    ranges = {}
    for name in ("s_v", "s_a"):
        found = _range(options, name)
        if found is not None:
            ranges[name] = found
            if found[0] == found[1]:
                guidance = replace(guidance, **{name: found[0]})
        elif options.rank is not None:
            ranges[name] = (getattr(guidance, name),) * 2
    lesson = Lesson(
        "distil",
        options.steps,
        options.batch,
        options.learning_rate,
        _weights(options.tasks),
        warmup=min(20, options.steps),
        decay=0.5,
        guidance=guidance,
        points=options.sampling_steps or defaults.steps,
        shift_of_points=options.shift or defaults.shift,
        jump=options.jump,
        embedding_rate=3 * options.learning_rate,
        **ranges,
    )
    result = train_distil(
        options.model or embedded.model_file(),
        Latents(options.latents),
        options.out,
        lesson,
        options.rank,
        options.seed,
        options.dtype,
        options.recompute,
        _how(options),
        _preview(options),
    )
    print(result)
    return 0


def _range(options: argparse.Namespace, name: str) -> tuple[float, float] | None:
    """The two numbers of such as `--s-v 1,5`; one number is both."""
    from ..errors import UserError

    text = getattr(options, name)
    if text is None:
        return None
    try:
        low, *high = map(float, text.split(","))
        (high,) = high or [low]
    except ValueError as error:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} is {text!r}; write one number or two, such as 1,5") from error
    return low, high


def _how(options: argparse.Namespace) -> Run:
    from ..errors import UserError
    from .loop import Run

    for name in ("save_every", "preview_every", "micro_batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; use at least 1")
    return Run(
        options.save_every, options.preview_every, options.micro_batch, options.workers, options.compile
    )


def _preview(options: argparse.Namespace) -> Preview | None:
    """Clips 0 to 3 of the preview folder, made again by the model under training."""
    from ..errors import UserError
    from ..media.vae import load_vae
    from ..media.vocoder import GriffinLim, load_vocoder
    from .data import Latents
    from .loop import clip_preview

    if options.preview is None:
        return None
    if options.vae is None:
        raise UserError("--preview needs --vae to decode latents")
    latents = Latents(options.preview)
    vocoder = load_vocoder(options.vocoder) if options.vocoder else GriffinLim()
    modes = tuple(options.preview_modes.split(","))
    return clip_preview(latents, list(range(min(4, len(latents)))), load_vae(options.vae), vocoder, modes)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "128x128"."""
    from ..errors import UserError

    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdecimal() and int(p) and int(p) % 16 == 0 for p in parts):
        raise UserError(f"--size is {text!r}; write width x height in multiples of 16, such as 128x128")
    return int(parts[0]), int(parts[1])


def _part(text: str) -> tuple[int, int]:
    from ..errors import UserError

    parts = text.split("/")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise UserError(f"--part is {text!r}; write i/n, such as 1/2 and 2/2")
    return int(parts[0]) - 1, int(parts[1])


def _weights(text: str) -> dict[str, float]:
    from ..errors import UserError

    try:
        return {name: float(weight) for name, weight in (item.split(":") for item in text.split(","))}
    except ValueError as error:
        raise UserError(f"--tasks is {text!r}; write task:weight, such as joint:4,dubbing:1") from error
