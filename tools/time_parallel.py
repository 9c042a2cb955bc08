"""Prints what each part of a step takes in several processes, at released width with random weights.

torchrun --standalone --nproc-per-node 2 tools/time_parallel.py --frames 9 --side 256 --layers 2
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch
import torch.distributed as dist

from uniavgen_core import oracle
from uniavgen_core.compare import Inputs, Point, few_layers, random_model
from uniavgen_core.model.parallel import TokenShare, split_tokens
from uniavgen_core.parallel import SideBySide

EXCHANGES = ("heads_of_all", "tokens_of_mine", "gathered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("frames", 9), ("side", 256), ("layers", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    seconds: dict[str, float] = defaultdict(float)

    def timed(name, work):
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = work(*args, **kwargs)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    for name in EXCHANGES:
        setattr(TokenShare, name, timed(name, getattr(TokenShare, name)))
    model = random_model(few_layers(options.layers))
    inputs = Inputs(model.config, Point(options.frames, options.side))

    def best(step) -> dict[str, float]:
        """The parts of the fastest of some steps, after one that computes what a run keeps."""
        found = []
        for repeat in range(options.repeats + 1):
            seconds.clear()
            dist.barrier()
            timed("step", step)()
            if repeat:
                found.append(dict(seconds))
        return min(found, key=lambda parts: parts["step"])

    def say(name: str, parts: dict[str, float]) -> None:
        if rank == 0:
            print(f"{name:28}", *(f"{part} {value:.3f} s" for part, value in parts.items()), flush=True)

    for block in (*model.blocks, *model.audio_blocks):
        block.forward = timed("video blocks" if block in model.blocks else "audio blocks", block.forward)
    with torch.inference_mode():
        step = inputs.model_step(model)
        if rank == 0:  # alone: the others wait
            step()
            seconds.clear()
            alone = timed("step", step)()
            say("one process alone", dict(seconds))
        say("all at once, nothing shared", best(step))
        with split_tokens(model):
            say(f"tokens shared by {size}", best(step))
            shared = step()
        if size == 2:
            step = inputs.model_step(model, run_passes=SideBySide())
            say("passes side by side", best(step))
            side = step()
            if rank == 0:
                print("difference, side by side", *(oracle.relative_error(a, b) for a, b in zip(side, alone)))
    if rank == 0:
        print("difference, tokens shared", *(oracle.relative_error(a, b) for a, b in zip(shared, alone)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
