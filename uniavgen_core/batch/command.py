"""`uniavgen batch`: many clips from one list, on Ray."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import counted
from ..training.command import resumable

if TYPE_CHECKING:
    from ..pipeline import Request, Weights
    from ..sampling.defaults import SamplingDefaults
    from .jobs import Job
    from .work import Outcome

AddOptions = Callable[[argparse.ArgumentParser], None]
MakeRequest = Callable[[argparse.Namespace, "SamplingDefaults"], "Request"]
WeightsOn = Callable[[argparse.Namespace, str], "Weights"]


def add_parser(
    commands: argparse._SubParsersAction,
    add_clip: AddOptions,
    add_weights: AddOptions,
    request: MakeRequest,
    weights: WeightsOn,
) -> None:
    """Adds `batch`; imports nothing heavy until it is run.

    `add_clip`, `request`: the options of one clip, and what they ask for; `add_weights`, `weights`: of the
    model.
    """
    p = commands.add_parser(
        "batch",
        help="make many clips from a list; run it again to go on",
        description="Makes a clip of every row of a list: OUT/<id>.mp4, and OUT/<id>.json with its options, "
        "seed, seconds and versions. Rows whose clip is there are passed over; where their options or files "
        "have changed, it is made again. Options of a clip given here hold for all rows without their own.",
    )
    p.add_argument(
        "jobs",
        help="jsonl: an object a line with id and options of `generate`; or a CSV file with the release's "
        "columns (data_id, ref_image_path, speech_content, ...)",
    )
    p.add_argument("--out", required=True, help="folder of the results")
    p.add_argument(
        "--workers",
        type=int,
        help="clips at a time; 0: one after the other in this process, without Ray (default: one for each "
        "GPU, on CPUs as many as --cores allows)",
    )
    p.add_argument(
        "--cores", type=int, help="CPU cores of a worker (default: 1 for the embedded model, else all)"
    )
    p.add_argument(
        "--address", help="of a Ray cluster, such as auto or ray://head:10001; default: this machine"
    )
    p.add_argument("--json", action="store_true", help="print what became of the rows as JSON")
    add_clip(p)
    add_weights(p)
    p.set_defaults(run=resumable(_run), add_clip=add_clip, request=request, weights=weights)


def _run(options: argparse.Namespace) -> int:
    from pathlib import Path

    from tqdm import tqdm

    from ..errors import UserError
    from .jobs import Reader
    from .work import is_made, was_made

    for name, least in (("workers", 0), ("cores", 1)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            raise UserError(f"--{name} is {getattr(options, name)}; use at least {least}")
    if not Path(options.jobs).is_file():
        raise UserError(f"{options.jobs}: no such file; expected a jsonl or CSV file")
    weights = options.weights(options, options.device or "cpu")
    config, out = weights.check(), Path(options.out).absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder for the results")
    out.mkdir(parents=True, exist_ok=True)
    reader = Reader(options.add_clip, options.request, options, weights.settings(), config, out)
    jobs, faults = reader.read(Path(options.jobs))
    for fault in faults:
        _say(f"{options.jobs}, line {fault.line}: {fault.message}")
    todo = [job for job in jobs if not is_made(job, weights)]
    changed = sum(was_made(job) for job in todo)
    if changed:
        _say(f"made with other options, weights or files, so made again: {changed}")

    lines, failed = {job.id: job.line for job in todo}, []
    with tqdm(total=len(todo), unit="clip", disable=None, leave=False) as bar:
        for outcome in _outcomes(options, todo, weights) if todo else ():
            bar.update()
            if outcome.error is not None:
                failed.append({"line": lines[outcome.job], "id": outcome.job, "error": outcome.error})
                with bar.external_write_mode(sys.stderr):
                    _say(f"{options.jobs}, line {lines[outcome.job]} (id {outcome.job}): {outcome.error}")
    report = {
        "out": str(out),
        "rows": len(jobs) + len(faults),
        "there": len(jobs) - len(todo),
        "made": len(todo) - len(failed),
        "failed": failed,
        "refused": [fault._asdict() for fault in faults],
    }
    if options.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        counts = f"{counted(report['made'], 'clip')} made, {report['there']} were there"
        print(f"{out}: {counts}, {len(failed)} failed, {len(faults)} rows refused")
    return 2 if failed or faults else 0


def _say(message: str) -> None:
    print(f"uniavgen: {message}", file=sys.stderr)


def _outcomes(options: argparse.Namespace, jobs: list[Job], weights: Weights) -> Iterator[Outcome]:
    """Made in this process or on Ray, whichever the options and what is installed say."""
    from ..errors import UserError
    from ..pipeline import check_device
    from . import cluster
    from .work import Worker

    on_ray = options.workers != 0
    if options.workers is None and not options.address and not cluster.installed():
        _say("Ray is not installed, so clips are made one by one; for more: pip install 'uniavgen[cluster]'")
        on_ray = False
    if not on_ray:
        import torch

        gpu = not weights.embedded and torch.cuda.is_available()
        device = check_device(options.device or ("cuda" if gpu else "cpu"))
        worker = Worker(replace(weights, device=device), options.cores or int(weights.embedded))
        yield from map(worker.make, jobs)
        return

    def cores(on_gpu: bool) -> int:
        return options.cores or (1 if on_gpu or weights.embedded else os.cpu_count() or 1)

    workers = None if options.workers is None else min(options.workers, len(jobs))
    with cluster.connected(options.address, workers and workers * cores(False)) as nodes:
        gpu = not weights.embedded and cluster.room(nodes, True, 1) > 0
        device = (options.device or ("cuda" if gpu else "cpu")).partition(":")[0]  # Ray says which GPU
        on_gpu = device != "cpu"
        room = cluster.room(nodes, on_gpu, cores(on_gpu))
        if room < (workers or 1):
            what = "GPUs" if on_gpu else f"times {cores(on_gpu)} CPU cores"
            raise UserError(
                f"{workers or 1} workers need as many {what}, there are {room}; use fewer --workers"
            )
        workers = workers or min(room, len(jobs))
        yield from cluster.make_all(jobs, replace(weights, device=device), workers, cores(on_gpu))
