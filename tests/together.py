"""What `test_parallel` compares: sampling runs of a tiny model, in one process or as one of two.

`python together.py RANK FOLDER` is one of two; its results are `FOLDER/RANK.safetensors`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import inputs, randomise
from random_parts import RandomWeights
from safetensors.torch import save_file

from uniavgen_core.conditioning import Anew, Span, condition
from uniavgen_core.model.config import TINY
from uniavgen_core.model.dit import DualBranchDiT
from uniavgen_core.model.inputs import TextConditioning
from uniavgen_core.model.parallel import split_tokens
from uniavgen_core.parallel import SideBySide, generate_together
from uniavgen_core.pipeline import Request
from uniavgen_core.sampling.defaults import Guidance
from uniavgen_core.sampling.sampler import sample

FRAMES, MELS = 3, 17
GIVEN = inputs(TINY, frames=FRAMES, mels=MELS, rows=6, columns=6, reference_mels=5)  # 9 tokens: 5 and 4
IMAGE, VIDEO, MEL, VOICE = (GIVEN[k] for k in ("reference_image", "video", "audio", "reference_mel"))
TEXTS = TextConditioning(GIVEN["caption"], GIVEN["speech"])
NULL = TextConditioning(GIVEN["caption"][:, :2], GIVEN["speech"][:, :4])
TASKS = {
    "joint": condition("joint", IMAGE, None, FRAMES, MELS),
    "reference-voice": condition("reference-voice", IMAGE, None, FRAMES, MELS, reference_mel=VOICE),
    "continuation": condition("continuation", VIDEO, MEL, FRAMES, MELS, anew=Anew(Span(2, 3), Span(6, MELS))),
    "dubbing": condition("dubbing", VIDEO, None, FRAMES, MELS),
    "audio-driven": condition("audio-driven", IMAGE, MEL, FRAMES, MELS),
}
VARIANTS = ("released", "paper", "aligned")
STEPS = 2


def model_of(variant: str) -> DualBranchDiT:
    return randomise(DualBranchDiT(replace(TINY, variant=variant)))


def runs(model: DualBranchDiT, **options) -> dict[str, torch.Tensor]:
    """Latents and last face masks of every task."""
    found = {}
    for name, task in TASKS.items():
        run = sample(model, task, TEXTS, NULL, Guidance(skip_layers=(1,)), STEPS, seed=3, **options)
        found |= {f"{name} video": run.video, f"{name} audio": run.audio}
        found |= {f"{name} mask {block}": mask for block, mask in run.face_masks.items()}
    return found


def request(folder: Path) -> Request:
    """A tiny clip."""
    out, image = str(folder / "clip.mp4"), str(folder / "image.png")
    return Request("joint", out, "Hello.", image=image, frames=5, short_side=32, steps=2, seed=4)


def one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for variant in VARIANTS:
        model = model_of(variant)
        with split_tokens(model):
            found |= {f"{variant} tokens {name}": value for name, value in runs(model).items()}
        run_passes = SideBySide()
        found |= {f"{variant} passes {k}": v for k, v in runs(model, run_passes=run_passes).items()}
    result = generate_together(request(folder), RandomWeights())
    assert (result is None) == (rank == 1)
    if result is not None:
        found |= {"clip video": result.sample.video, "clip audio": result.sample.audio}
    save_file({name: value.contiguous() for name, value in found.items()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), Path(sys.argv[2]))
