"""`uniavgen` and its commands; a mistake is one line, exit code 2."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from .batch.command import add_parser as add_batch
from .errors import UserError  # torch is imported by the commands that need it: `--help` answers at once
from .modes import MODES
from .sampling.defaults import DEFAULT_PRESET, PRESETS, SamplingDefaults
from .theatre import command as theatre
from .theatre.evaluation.command import add_parser as add_eval
from .training.command import add_parser as add_train

if TYPE_CHECKING:
    from .memory import MemoryPlan
    from .pipeline import Request, Weights
    from .sampling.defaults import Guidance, Savings

DTYPES = ("fp32", "bf16", "fp16")
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "calculation overflowed")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code (0 done, 1 golden values differ, 2 something to mend)."""
    options = _parser().parse_args(argv)
    _say_warnings()
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever downloaded
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = "cancelled; nothing was written, run the same command again to start over"
    except MemoryError:
        message = "out of memory; use fewer --frames or a smaller --short-side"
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except OSError as error:
        message = f"{error.filename or 'a file'}: {error.strerror or error}; check the path and the disk"
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        message = (
            "out of memory; use fewer --frames, a smaller --short-side, or fp8 files (`uniavgen convert` "
            "writes them), which stay fp8 in memory"
        )
    print(f"uniavgen: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _say_warnings() -> None:
    """Warnings of this package go to stderr as notes do, each once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("uniavgen: %(message)s"))
    logger = logging.getLogger(__package__)
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        new = record.getMessage() not in said
        said.add(record.getMessage())
        return new

    handler.addFilter(is_new)
    logger.handlers, logger.propagate = [handler], False


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="uniavgen",
        description="Generates videos of a person saying a given text.",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    p = commands.add_parser(
        "generate",
        help="make a clip",
        description="Makes a clip. The defaults named here are the released model's; the embedded one, which "
        "runs without weights, has its own.",
    )
    _add_clip(p)
    p.add_argument(
        "--script",
        metavar="FILE",
        help="in place of --text: a clip of any length from a text file, one sentence a line, each as "
        "`sentence` or `sentence | caption` (joint, reference-voice)",
    )
    p.add_argument(
        "--parts",
        metavar="DIR",
        help="with --script: where its parts stay, so that only changed sentences and what follows them are "
        "made again (default: OUT with .parts)",
    )
    p.add_argument("--out", required=True, help="the video to write (.mp4, .mov, .mkv)")
    p.add_argument(
        "--takes",
        type=int,
        default=1,
        help="clips to make: OUT, OUT-2, OUT-3, ... of the seeds SEED, SEED + 1, SEED + 2, ...",
    )
    _add_weights(p)
    _add_memory(p)
    p.add_argument("--json", action="store_true", help="print what was made as JSON")
    p.set_defaults(run=_generate)
    _add_other_commands(commands)
    return parser


def _add_clip(p: argparse.ArgumentParser) -> None:
    """The options of one clip, without those that say where it goes and with which weights it is made."""
    d = SamplingDefaults()
    modes = "; ".join(f"{mode.name}: {mode.about}" for mode in MODES.values())
    p.add_argument("--mode", help=f"{modes} (default joint)")
    p.add_argument("--text", help="what is said in the whole clip")
    p.add_argument("--caption", default="", help="what is seen: the person, the place, the mood")
    p.add_argument(
        "--negative-caption", default="", help="what the null pass is told instead (default nothing)"
    )
    p.add_argument("--language", default="en", help="en or zh")
    p.add_argument("--image", help=f"reference image ({_modes_with('image')})")
    p.add_argument("--video", help=f"the video to start from ({_modes_with('video')})")
    p.add_argument("--audio", help=f"speech to animate ({_modes_with('audio')})")
    p.add_argument("--voice", help=f"a clip of the voice to speak with ({_modes_with('voice')})")
    p.add_argument("--voice-text", help="what is said in --voice")
    p.add_argument(
        "--frames",
        type=_frames,
        help=f"length at 16 fps, 4n + 1 (default {d.frames}), or auto: as long as the text needs; where a "
        "video or a recording decides it, the most that is used of it",
    )
    p.add_argument("--prefix-frames", type=int, help="continuation: frames of --video that are kept, 4n + 1")
    p.add_argument(
        "--edit-start", type=float, help="edit: where the part that is made anew begins, in seconds"
    )
    p.add_argument("--edit-end", type=float, help="edit: where it ends, in seconds")
    p.add_argument(
        "--edit", choices=("both", "video", "audio"), help="edit: what is made anew (default both)"
    )
    p.add_argument(
        "--who-speaks",
        metavar="MASK",
        help="an image, white over the face that speaks, or a video of the clip's length",
    )
    p.add_argument(
        "--who-speaks-how",
        choices=("multiply", "replace"),
        help="the mask multiplies the predicted face mask (default) or replaces it",
    )
    p.add_argument("--last-image", help="experimental: an image the clip ends with")
    p.add_argument(
        "--keyframe",
        action="append",
        default=[],
        metavar="FRAME:FILE",
        help="experimental: an image held at a frame (16 a second, -1 is the last); may be given again",
    )
    p.add_argument(
        "--short-side",
        type=int,
        help=f"pixels of the shorter side, a multiple of 32 (default {d.short_side})",
    )
    p.add_argument("--s-v", type=float, help=f"guidance of the video; 1 is off (default {d.guidance.s_v:g})")
    p.add_argument("--s-a", type=float, help=f"guidance of the audio; 1 is off (default {d.guidance.s_a:g})")
    p.add_argument("--guidance", choices=("ma-cfg", "cfg", "none"), default="ma-cfg")
    p.add_argument(
        "--interval",
        type=float,
        help=f"part of the steps that use MA-CFG, then CFG (default {d.guidance.interval:g})",
    )
    p.add_argument(
        "--skip-layer",
        type=int,
        help=f"layer the null pass leaves out; -1: none (default {d.guidance.skip_layers[0]})",
    )
    p.add_argument("--steps", type=int, help=f"(default {d.steps})")
    p.add_argument("--shift", type=float, help=f"(default {d.shift:g})")
    p.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help=f"fewer passes of the model, see docs/fewer-passes.md (default {DEFAULT_PRESET})",
    )
    _add_savings(p)
    p.add_argument("--seed", type=int, help=f"-1 draws one and prints it (default {d.seed})")


def _add_other_commands(commands: argparse._SubParsersAction) -> None:
    add_batch(commands, _add_clip, _add_weights, _request, _weights_on)

    p = commands.add_parser("inspect", help="say what a weights file or a folder of them is")
    p.add_argument("file")
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_inspect)

    p = commands.add_parser(
        "doctor",
        help="what to paste into an issue: device, kernels, files, accuracy, expected cost",
        description="Looks at the device, its kernels and the files, runs the golden cases on it in every "
        "dtype, and says what a clip will take. Needs no weights; with them it looks at yours.",
    )
    _add_weights(p)
    _add_memory(p)
    p.set_defaults(run=_doctor)

    p = commands.add_parser("verify", help="compare with golden files")
    p.add_argument("files", nargs="*", help="default: the golden files of the package")
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_verify)

    p = commands.add_parser(
        "convert",
        help="one safetensors file from any part, or ComfyUI's folders from the release",
        description="Writes one part (model, VAE, text encoder or vocoder, in any form) as one safetensors "
        "file; with --comfyui all four of the release's folder, where ComfyUI's loaders look.",
    )
    p.add_argument("source", help="the release's folder, or a part: folder, shards, one file")
    p.add_argument("target", nargs="?", help="the .safetensors file to write")
    p.add_argument("--comfyui", metavar="MODELS", help="ComfyUI's models folder, in place of a target")
    p.add_argument("--dtype", choices=(*DTYPES, "fp8", "int8"), help="default: as in the source")
    p.set_defaults(run=_convert)

    p = commands.add_parser("bench", help="what a run costs")
    p.add_argument("--flops", action="store_true", help="count FLOPs of the released size; needs no weights")
    p.add_argument(
        "--compare",
        metavar="FOLDER",
        help="a step beside the naive oracle at released width, over frames, resolution and takes, on a CPU: "
        "compare.json and compare.svg; needs no weights, takes minutes, run it again to go on",
    )
    p.add_argument("--layers", type=int, default=2, help="of the models that are compared")
    p.add_argument("--width", type=int, default=None)
    p.add_argument("--height", type=int, default=None)
    p.add_argument("--frames", type=int, default=None)
    p.add_argument("--steps", type=int, default=50)
    _add_weights(p)
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_bench)

    recipes = {"embedded": theatre.embedded_recipe, "embedded-final": theatre.embedded_final_recipe}
    theatre.add_actions(add_train(commands, recipes))
    add_eval(commands, _add_weights, _weights)


def _frames(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number and not auto") from error


def _add_savings(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--reuse",
        type=int,
        help="run the null pass at every so many steps only; this and the next three replace the preset's",
    )
    p.add_argument("--reuse-after", type=float, help="share of the steps, from the first, without --reuse")
    p.add_argument("--null-until", type=float, help="share of the steps after which there is no guidance")
    p.add_argument(
        "--cache",
        type=float,
        help="leave out steps while video and audio are each expected to change by less, such as 0.1",
    )


def _savings(options: argparse.Namespace) -> Savings | None:
    from .sampling.defaults import Savings

    given = {name: getattr(options, name) for name in ("reuse", "reuse_after", "null_until", "cache")}
    given = {name: value for name, value in given.items() if value is not None}
    return Savings(**given) if given else None


def _modes_with(name: str) -> str:
    return ", ".join(mode.name for mode in MODES.values() if name in (*mode.needs, *mode.allows))


def _add_weights(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--model", help="UniAVGen: the release's folder, which gives all parts, or one safetensors file"
    )
    p.add_argument("--vae", help="Wan2.2 VAE: Wan2.2_VAE.pth, wan2.2_vae.safetensors or a diffusers folder")
    p.add_argument(
        "--text-encoder", help="umT5-xxl: the release's .pth, ComfyUI's .safetensors or a transformers folder"
    )
    p.add_argument(
        "--vocoder", help="BigVGAN of Qwen2.5-Omni: its folder, one file or the shards with token2wav"
    )
    p.add_argument("--device", help="cuda, cpu, ...; default: the first GPU if there is one")
    p.add_argument("--dtype", choices=DTYPES, help="of the model; default: as in its file")


def _add_memory(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="the most that a run may take of the device's memory, such as 8: weights that do not fit are "
        "streamed, the VAE works in tiles, and the plan is printed",
    )


def _memory(options: argparse.Namespace) -> int | None:
    """Bytes of --memory."""
    if options.memory is None:
        return None
    if not options.memory > 0:
        raise UserError(f"--memory is {options.memory:g}; give a positive number of GB, such as 8")
    return int(options.memory * 1e9)


def _weights(options: argparse.Namespace) -> Weights:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from .pipeline import check_device

    disable_progress_bar()  # there is one already
    given = any((options.model, options.vae, options.text_encoder, options.vocoder))
    device = options.device or ("cuda" if given and torch.cuda.is_available() else "cpu")
    return _weights_on(options, check_device(device))


def _weights_on(options: argparse.Namespace, device: str) -> Weights:
    from .pipeline import Weights

    return Weights(
        options.model,
        options.vae,
        options.text_encoder,
        options.vocoder,
        device,
        _dtype(options.dtype),
    )


def _dtype(name: str | None):
    import torch

    return {None: None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _print_json(values: dict | list[dict]) -> None:
    print(json.dumps(values, ensure_ascii=False, indent=2))


def _generate(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .media import FPS
    from .parallel import generate_on_all, is_first, processes
    from .pipeline import generate_takes
    from .script import generate_script, read_script_file

    if (options.text is None) == (options.script is None):
        raise UserError("generate says one of --text and --script; give one of them")
    if options.parts is not None and options.script is None:
        raise UserError("--parts belongs to --script; leave it out")
    if options.memory is not None and options.script is not None:
        raise UserError("--memory plans a single clip, --script makes many; leave one of them out")
    if options.script is not None and processes() > 1:
        raise UserError("a script is made by one process; run it without torchrun")
    if options.takes != 1 and (options.script is not None or processes() > 1):
        raise UserError("--takes makes several clips of one --text in one process; leave it out")
    script = None if options.script is None else read_script_file(options.script)
    weights = replace(_weights(options), memory=_memory(options))
    settings = weights.settings()
    request = _request(options, settings)
    silent = None if is_first() else True  # None: where stderr is no terminal
    bar = tqdm(total=request.steps or settings.steps, unit="step", disable=silent, leave=False)

    def on_stage(name: str) -> None:
        if name == "sample" or name.startswith("part "):
            bar.reset()  # the time left is that of the steps, not of the loading before them
        bar.set_description(name)

    def on_decoded(done: int, parts: int) -> None:
        if done == 1:
            bar.unit = "part"
            bar.reset(parts)
        bar.update()

    def on_step(done: int, steps: int) -> None:
        bar.total = steps
        bar.update()

    def on_plan(plan: MemoryPlan) -> None:
        bar.write("\n".join(plan.lines()), file=sys.stderr)

    callbacks = {"on_stage": on_stage, "on_step": on_step, "on_decoded": on_decoded}
    with bar:
        if script is None:
            if options.takes == 1:
                result = generate_on_all(request, weights, on_plan=on_plan, **callbacks)
                results = [] if result is None else [result]  # the first process says what was made
            else:
                results = generate_takes(request, weights, options.takes, on_plan=on_plan, **callbacks)
        else:
            parts = options.parts or f"{options.out}.parts"
            results = [generate_script(request, script, weights, parts, **callbacks)]
    if not results:
        return 0
    for note in results[0].notes:
        print(f"uniavgen: {note}", file=sys.stderr)
    if options.json:
        made = [result.to_dict() for result in results]
        _print_json(made[0] if options.takes == 1 else made)
        return 0
    for result in results:
        length = result.frames / FPS
        seed = f", seed {result.seed}" if len(results) > 1 else ""
        print(f"{result.out}: {result.width}x{result.height}, {result.frames} frames, {length:.2f} s{seed}")
    return 0


def _request(options: argparse.Namespace, settings: SamplingDefaults) -> Request:
    """Of the options of `_add_clip` and `out`; what `settings` are asked for is the guidance."""
    from .pipeline import Request

    names = (
        "out caption negative_caption image video audio voice voice_text language "
        "frames prefix_frames edit_start edit_end edit short_side steps shift seed preset "
        "who_speaks who_speaks_how last_image"
    )
    return Request(
        mode=options.mode or "joint",
        text=options.text or "",
        guidance=_guidance(options, settings.guidance),
        savings=_savings(options),
        keyframes=tuple(map(_keyframe, options.keyframe)),
        **{name: getattr(options, name) for name in names.split()},
    )


def _keyframe(text: str) -> tuple[int, str]:
    frame, colon, path = text.partition(":")
    try:
        number = int(frame)
    except ValueError:
        number = None
    if number is None or not colon or not path:
        raise UserError(f"--keyframe is {text!r}, expected FRAME:FILE, such as 40:smile.png or -1:end.png")
    return number, path


def _guidance(options: argparse.Namespace, default: Guidance) -> Guidance:
    given = {name: getattr(options, name) for name in ("s_v", "s_a", "interval")}
    chosen = replace(default, **{name: value for name, value in given.items() if value is not None})
    if options.skip_layer is not None:
        chosen = replace(chosen, skip_layers=() if options.skip_layer < 0 else (options.skip_layer,))
    return {"ma-cfg": chosen, "cfg": replace(chosen, interval=0.0), "none": chosen.none()}[options.guidance]


def _inspect(options: argparse.Namespace) -> int:
    from .weights.inspect import inspect

    values = inspect(options.file)
    if options.json:
        _print_json(values)
        return 0
    parts = values.pop("parts", {})
    for i, part in enumerate((values, *parts.values())):
        if i:
            print()
        if "memory" in part:
            part["memory"] = {name: f"{size / 1e9:.1f} GB" for name, size in part["memory"].items()}
        for name, value in part.items():
            print(f"{name:12} {value if not isinstance(value, dict) else _row(value)}")
    return 0


def _row(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from .doctor import report

    limit, weights = _memory(options), _weights(options)
    if limit is None and weights.device.startswith("cuda"):
        limit = torch.cuda.mem_get_info(weights.device)[1]
    for line in report(weights.device, weights.paths(), limit):
        print(line, flush=True)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from pathlib import Path

    from .verify import GOLDEN, TOLERANCE

    files = options.files or sorted(str(file) for file in GOLDEN.iterdir())
    golden = [f for f in files if Path(f).suffix in (".safetensors", ".json") or not Path(f).exists()]
    cases = []
    for file in files:
        if file not in golden:
            print(f"{file}: no golden file, passed over", file=sys.stderr)
            continue
        for name, error in _cases(file):
            cases.append({"file": file, "case": name, "error": float(error)})
            if not options.json:
                mark = "ok" if error <= TOLERANCE else "DIFFERS"
                print(f"{Path(file).name}  {name:32} {error:9.2e}  {mark}")
    if not cases:
        raise UserError(f"no golden values in these files; give .safetensors and .json as in {GOLDEN}")
    worst = max(case["error"] for case in cases)
    passed = worst <= TOLERANCE
    if options.json:
        _print_json({"cases": cases, "worst": worst, "passed": passed})
    else:
        print(f"{len(cases)} cases, worst relative error {worst:.2e}, {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


def _cases(file: str) -> Iterator[tuple[str, float]]:
    """Names and errors of a golden file; one that lacks something or holds it in another form is named."""
    from .verify import verify

    try:
        yield from verify(file)
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file} cannot be evaluated ({type(error).__name__}: {reason}), expected a complete golden file "
            "and its .json; copy both again"
        ) from error


def _convert(options: argparse.Namespace) -> int:
    from .weights.convert import convert, convert_release

    if (options.target is None) == (options.comfyui is None):
        raise UserError("convert takes one of a target file and --comfyui MODELS; give one of them")
    if options.comfyui is None:
        convert(options.source, options.target, options.dtype)
        written, notes = [options.target], []
    else:
        written, notes = convert_release(options.source, options.comfyui, options.dtype)
    for note in notes:
        print(f"uniavgen: {note}", file=sys.stderr)
    for path in written:
        print(path)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from pathlib import Path

    from .compare import compare

    report = compare(Path(options.compare), options.layers, on_point=lambda row: print(_row(row), flush=True))
    if options.json:
        _print_json(report)
    return 0


def _bench(options: argparse.Namespace) -> int:
    if options.compare:
        return _compare(options)
    from .bench import Size, flops_report, stage_report
    from .model.config import RELEASED

    weights = _weights(options)
    default = Size() if options.flops or not weights.embedded else Size(128, 128, 33)
    given = {name: getattr(options, name) for name in Size._fields if getattr(options, name) is not None}
    size = default._replace(**given)
    size.check()
    report = flops_report(RELEASED, size, options.steps) if options.flops else stage_report(weights, size)
    if options.json:
        _print_json(report)
        return 0
    for name, values in report.items():
        print(f"{name:28} {_row(values) if isinstance(values, dict) else values}")
    return 0
