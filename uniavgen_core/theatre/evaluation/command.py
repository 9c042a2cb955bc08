"""`uniavgen eval`: measure a model on the held-out theatre, find its guidance scales, measure any clips."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...training.command import resumable

if TYPE_CHECKING:
    from .people import Instruments

AddWeights = Callable[[argparse.ArgumentParser], None]
ReadWeights = Callable[[argparse.Namespace], object]


def add_parser(commands: argparse._SubParsersAction, add_weights: AddWeights, weights: ReadWeights) -> None:
    """Add `eval` and its own sub-commands; imports nothing heavy until one is run.

    `add_weights` adds the options that name a model, `weights` reads them as `pipeline.Weights`.
    """
    parser = commands.add_parser("eval", help="measure a model on clips it has never seen, or any clips")
    actions = parser.add_subparsers(dest="action", required=True)

    p = actions.add_parser("run", help="make held-out clips in all modes and measure them")
    p.add_argument("--runs", help="such as joint,dubbing (default: all); processes can share the work")
    _add_sampling(p, clips=64)
    p.add_argument("--show", type=int, default=6, help="clips of each run that are kept as mp4")
    p.add_argument("--s-v", type=float, help="guidance of the video; 1 is off")
    p.add_argument("--s-a", type=float, help="guidance of the audio; 1 is off")
    add_weights(p)
    p.set_defaults(run=resumable(_run), weights=weights)

    p = actions.add_parser("grid", help="sync, words and mouth at every pair of guidance scales")
    for name in ("--s-v", "--s-a"):
        p.add_argument(name, default="1,1.5,2,3,4", help="values; processes with parts of them can share")
    _add_sampling(p, clips=32)
    add_weights(p)
    p.set_defaults(run=resumable(_grid), weights=weights, show=0)

    p = actions.add_parser("pareto", help="what fewer passes cost: joint clips made in several ways")
    p.add_argument("--ways", help="names with semicolons (default: all); run again with others to add them")
    p.add_argument("--first", type=int, default=0, help="number of the first clip; processes can share")
    p.add_argument("--against", help="folder of another such run, whose exact way is compared with")
    _add_sampling(p, clips=16)
    p.add_argument("--s-v", type=float, help="guidance of the video; 1 is off")
    p.add_argument("--s-a", type=float, help="guidance of the audio; 1 is off")
    add_weights(p)
    p.set_defaults(run=resumable(_pareto), weights=weights, show=0)

    p = actions.add_parser("report", help="metrics.json and index.html of what has been measured")
    p.add_argument("out", help="folder of results")
    p.set_defaults(run=_report)

    p = actions.add_parser(
        "folder",
        help="measure mp4 files",
        description="Measures length, loudness, pitch and the largest step between frames of any clips. Of "
        "real people also lips, English words and voice, with the instruments of the extra `eval`; with "
        "--puppets those of the theatre, which know its drawn people and their 72 words and tell nothing "
        "about real ones.",
    )
    p.add_argument("folder", help="with a jsonl of file, transcript and, where there is one, voice")
    p.add_argument("--puppets", action="store_true", help="the clips show the theatre's drawn people")
    p.add_argument("--recogniser", help="for --puppets; default: the embedded one")
    p.add_argument("--json", action="store_true", help="print every clip as JSON")
    p.set_defaults(run=_folder)

    p = actions.add_parser("script", help="let held-out faces speak scripts, measure the parts and seams")
    p.add_argument("--out", required=True, help="folder of results and clips; run again to go on")
    p.add_argument("--people", type=int, default=16, help="held-out faces")
    p.add_argument("--first", type=int, default=0, help="the first of them; processes can share the work")
    p.add_argument("--sentences", type=int, default=8, help="of each script, 2 s each")
    p.add_argument("--preset", help="fewer passes of the model, as in generate")
    p.add_argument("--recogniser", help="default: the embedded one")
    add_weights(p)
    p.set_defaults(run=resumable(_script), weights=weights)

    p = actions.add_parser("vocoder", help="measure a vocoder on real mels; without a file Griffin-Lim")
    p.add_argument("vocoder", nargs="?", help="BigVGAN")
    p.add_argument("--clips", type=int, default=64, help="held-out recordings")
    p.add_argument("--recogniser", help="default: the embedded one")
    p.set_defaults(run=_vocoder)

    p = actions.add_parser("train-recogniser", help="train the recogniser of the theatre's words")
    p.add_argument("--out", required=True, help="the .safetensors file to write")
    p.add_argument("--work", help="folder for recordings and checkpoints; default: OUT.work")
    p.add_argument("--clips", type=int, default=5000)
    p.add_argument("--steps", type=int, default=2400)
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=resumable(_train_recogniser))


def _add_sampling(p: argparse.ArgumentParser, clips: int) -> None:
    p.add_argument("--out", required=True, help="folder of results; run again to go on")
    p.add_argument("--clips", type=int, default=clips, help="held-out clips a run")
    p.add_argument("--batch", type=int, default=16, help="clips sampled at once")
    p.add_argument("--frames", type=int, default=33, help="4n + 1 at 16 fps")
    p.add_argument("--size", type=int, default=128, help="pixels a side, a multiple of 16")
    p.add_argument("--steps", type=int, help="default for this, shift and guidance: the model's own")
    p.add_argument("--shift", type=float)
    p.add_argument("--interval", type=float, help="part of the steps that use MA-CFG, then CFG")
    p.add_argument("--skip-layer", type=int, help="layer the null pass leaves out; -1: none")
    p.add_argument("--seed", type=int, default=0, help="of the noise")
    p.add_argument("--recogniser", help="default: the embedded one")


def _run(options: argparse.Namespace) -> int:
    _need_packages()
    from .report import table, write_report
    from .runs import RUNS

    names = options.runs.split(",") if options.runs else RUNS
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        from ...errors import UserError

        raise UserError(f"run {unknown[0]!r} is unknown; choose from {', '.join(RUNS)}")
    evaluation = _evaluation(options)
    for name in names:
        evaluation.run(name)
    print(table(write_report(evaluation.out)["runs"]))
    return 0


def _grid(options: argparse.Namespace) -> int:
    _need_packages()
    from ...errors import UserError
    from .report import write_report

    try:
        s_v, s_a = (tuple(map(float, text.split(","))) for text in (options.s_v, options.s_a))
    except ValueError as error:
        raise UserError(f"--s-v and --s-a are lists of numbers, such as 1,1.5,2 ({error})") from error
    options.s_v = options.s_a = None
    evaluation = _evaluation(options)
    evaluation.grid(s_v, s_a)
    metrics = write_report(evaluation.out)
    for point in metrics["grid"]:
        print(_point(point))
    print(f"best: {_point(metrics['best'])}")
    return 0


def _pareto(options: argparse.Namespace) -> int:
    _need_packages()
    from ...atomic import write_text
    from .pareto import WAYS, figure, loses_nothing, measure_ways, read_ways, summary, table

    names = [name.strip() for name in options.ways.split(";")] if options.ways else list(WAYS)
    evaluation = _evaluation(options)
    against = read_ways(Path(options.against)) if options.against else None
    found = summary(measure_ways(evaluation, names, options.first), against)
    write_text(evaluation.out / "pareto.svg", figure(found))
    same = [f"{values['way']} ({values['passes']:g} passes)" for values in found if loses_nothing(values)]
    text = f"{table(found)}\n\nNothing measurable is lost by: {', '.join(same)}.\n"
    write_text(evaluation.out / "pareto.md", text)
    print(text)
    return 0


def _point(point: dict) -> str:
    measures = (
        f"{name} {point[name][0]:.3f} [{point[name][1]:.3f}, {point[name][2]:.3f}]"
        for name in ("sync", "word_error", "amplitude")
    )
    return f"s_v {point['s_v']:g}  s_a {point['s_a']:g}  " + "  ".join(measures)


def _evaluation(options: argparse.Namespace):
    from tqdm import tqdm

    from ...pipeline import Pipeline
    from ..clips import Theatre
    from .recogniser import EMBEDDED_FILE, load_recogniser
    from .runs import Evaluation

    weights = options.weights(options)
    settings = weights.settings()
    theatre = Theatre(0, "held-out", options.frames, (options.size, options.size))
    recogniser = load_recogniser(options.recogniser or EMBEDDED_FILE)
    return Evaluation(
        Pipeline.load(weights, keep=True),
        recogniser,
        theatre,
        Path(options.out),
        _guidance(options, settings.guidance),
        settings.steps if options.steps is None else options.steps,
        settings.shift if options.shift is None else options.shift,
        options.clips,
        options.batch,
        options.show,
        options.seed,
        on_clips=lambda run, done, count: tqdm.write(f"{run}: {done} of {count}", file=sys.stderr),
    )


def _guidance(options: argparse.Namespace, default):
    from dataclasses import replace

    given = {"s_v": options.s_v, "s_a": options.s_a, "interval": options.interval}
    if options.skip_layer is not None:
        given["skip_layers"] = () if options.skip_layer < 0 else (options.skip_layer,)
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def _report(options: argparse.Namespace) -> int:
    _need_packages()
    from .report import table, write_report

    out = Path(options.out)
    print(table(write_report(out)["runs"]))
    print(out / "index.html")
    return 0


def _folder(options: argparse.Namespace) -> int:
    _need_packages()
    from .people import load_instruments
    from .recogniser import EMBEDDED_FILE, load_recogniser
    from .report import summary, table
    from .runs import measure_folder

    recogniser = load_recogniser(options.recogniser or EMBEDDED_FILE) if options.puppets else None
    people = None if options.puppets else load_instruments()
    rows = measure_folder(Path(options.folder), recogniser, people)
    values = summary(rows)
    if options.json:
        kind = "puppets" if options.puppets else "people" if people and people.names else "any clip"
        used = (
            people.names if people else {"words": "the theatre's recogniser", "lips": "colour of the mouth"}
        )
        print(json.dumps({"instruments": kind, "used": used, "summary": values, "clips": rows}, indent=2))
        return 0
    for line in _instruments_line(people):
        print(line)
    for row in rows:
        print(_folder_line(row))
    print(table({options.folder: values}))
    return 0


def _instruments_line(people: Instruments | None) -> list[str]:
    """What measures people, and what is not there to."""
    if people is None:
        return []
    lines = [f"{key}: {name}" for key, name in people.names.items()]
    if people.missing:
        reasons = "; ".join(dict.fromkeys(people.missing.values()))
        lines.append(
            f"not measured: {', '.join(people.missing)} ({reasons}); for real people pip install "
            "'uniavgen[eval]' in an environment of its own, for the theatre's drawn people give --puppets"
        )
    return lines


def _folder_line(row: dict) -> str:
    pitch = "no voice" if row["pitch"] is None else f"{row['pitch']:.0f} Hz"
    loudness = "silent" if row["loudness"] is None else f"{row['loudness']:.1f} LUFS"
    line = f"{row['file']}: {row['length']:.2f} s, {loudness}, {pitch}"
    if "puppet" not in row:
        return ", ".join([line, *_person_parts(row)])
    if "sync" in row:
        lag = "none" if row["lag"] is None else f"{row['lag']:+d}"
        return f"{line}, sync r {row['sync']:.3f}, best lag {lag}, heard {row['heard']!r}"
    return f"{line}, no puppet's mouth found: lips and words not measured"


def _person_parts(row: dict) -> list[str]:
    parts = []
    if "sync" in row:
        low, high = row["sync_interval"]
        parts.append(f"sync r {row['sync']:.2f} [{low:.2f}, {high:.2f}]")
        if row["lag"] is None:
            parts.append("no lag: the lips do not follow the audio")
        else:
            low, high = row["lag_interval"]
            parts.append(f"video {row['lag']:+d} frames [{low:+d}, {high:+d}] after the audio")
    if "heard" in row:
        wrong = f", {row['errors']} of {row['words']} words wrong" if "errors" in row else ""
        parts.append(f"heard {row['heard']!r}{wrong}")
    if "voice_likeness" in row:
        parts.append(f"likeness of the voice {row['voice_likeness']:.2f}")
    reasons = row.get("not_measured", {})
    for reason in dict.fromkeys(reasons.values()):
        what = " and ".join(key for key in reasons if reasons[key] == reason)
        parts.append(f"{what} not measurable because {reason}")
    return parts


def _script(options: argparse.Namespace) -> int:
    _need_packages()
    from pathlib import Path

    from tqdm import tqdm

    from ...errors import UserError
    from .recogniser import EMBEDDED_FILE, load_recogniser
    from .scripts import run

    if options.people < 1 or options.sentences < 2:
        raise UserError("a script takes --people 1 or more and --sentences 2 or more")
    values = run(
        options.weights(options),
        load_recogniser(options.recogniser or EMBEDDED_FILE),
        Path(options.out),
        list(range(options.first, options.first + options.people)),
        options.sentences,
        options.preset,
        on_part=lambda index, count: tqdm.write(f"part {index + 1} of {count}", file=sys.stderr),
    )
    print(json.dumps(values, indent=2))
    return 0


def _vocoder(options: argparse.Namespace) -> int:
    from ...media.vocoder import GriffinLim, load_vocoder
    from .recogniser import EMBEDDED_FILE, load_recogniser
    from .vocoders import judge

    vocoder = load_vocoder(options.vocoder) if options.vocoder else GriffinLim()
    recogniser = load_recogniser(options.recogniser or EMBEDDED_FILE)
    for name, value in judge(vocoder, recogniser, options.clips).items():
        print(f"{name} {value:.4f}")
    return 0


def _train_recogniser(options: argparse.Namespace) -> int:
    _need_packages()
    from tqdm import tqdm

    from .recogniser import train_recogniser

    with tqdm(disable=None, leave=False) as bar:

        def on_progress(what: str, done: int, count: int) -> None:
            bar.total, bar.n = count, done
            bar.set_description(what)

        about = train_recogniser(
            options.out,
            options.work or f"{options.out}.work",
            options.clips,
            options.steps,
            seed=options.seed,
            on_progress=on_progress,
        )
    print(f"{options.out}: {json.dumps(about)}")
    return 0


def _need_packages() -> None:
    from importlib.util import find_spec

    from ...errors import UserError

    for module, name in (("cv2", "OpenCV"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise UserError(
                f"uniavgen eval needs {name}, which is not installed: pip install 'uniavgen[train]'"
            )
