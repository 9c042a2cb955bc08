"""What fewer passes of the model cost: the same joint clips from the same noise, made in several ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from ...errors import UserError
from ...sampling.defaults import Savings
from ...weights.write import save_tensors
from ..clips import measure_aperture
from .metrics import Face, amplitude, interval, mean, measure, ratio
from .recogniser import word_errors, words
from .report import COLOURS, svg
from .runs import Evaluation, Results, read_lines
from .sampling import make

EXACT = "exact"
FILE = "pareto.jsonl"


@dataclass(frozen=True)
class Way:
    """How clips are sampled: a share of the model's steps, and what is left out of them."""

    share: float = 1.0
    savings: Savings = Savings()  # noqa: RUF009 (frozen)


WAYS = {
    EXACT: Way(),
    "reuse 2": Way(savings=Savings(reuse=2)),
    "reuse 4 after 20 %": Way(savings=Savings(reuse=4, reuse_after=0.2)),
    "cache 0.2": Way(savings=Savings(cache=0.2)),
    "half the steps": Way(0.5),
    "3/4 of the steps, reuse 4 after 20 %": Way(0.75, Savings(reuse=4, reuse_after=0.2)),
    "half the steps, reuse 2": Way(0.5, Savings(reuse=2)),
}


def measure_ways(evaluation: Evaluation, names: list[str], first: int = 0) -> list[dict]:
    """Measures what is missing of `evaluation.clips` clips from `first` on, and returns all rows.

    Beside measures of a joint clip a row has "passes" and "video_distance" and "audio_distance": of the
    latents to those of the exact way, relative to their norm.

    Raises:
        UserError: a way that there is none of; `evaluation.out` holds another evaluation.
    """
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        raise UserError(f"way {unknown[0]!r} is unknown; choose from {', '.join(WAYS)}")
    names = [EXACT, *(name for name in names if name != EXACT)]
    with Results(evaluation.out / FILE, evaluation.about) as lines:
        done = {(row["index"], row["way"]) for row in lines.rows}
        end = first + evaluation.clips
        for start in range(first, end, evaluation.batch):
            indices = range(start, min(start + evaluation.batch, end))
            for name in names:
                missing = [i for i in indices if (i, name) not in done]
                for row in _rows(evaluation, name, missing) if missing else ():
                    lines.add(row)
                evaluation.on_clips(name, indices[-1] + 1, end)
        return lines.rows


def _rows(evaluation: Evaluation, name: str, indices: list[int]) -> list[dict]:
    way, examples = WAYS[name], [evaluation.example(i) for i in indices]
    made = make(
        evaluation.pipeline,
        examples,
        "joint",
        evaluation.guidance,
        max(1, round(way.share * evaluation.steps)),
        evaluation.shift,
        evaluation.seed,
        savings=way.savings,
    )
    heard = evaluation.recogniser.transcribe(torch.from_numpy(np.stack([clip.waveform for clip in made])))
    rows = []
    for example, clip, text in zip(examples, made, heard):
        file = evaluation.out / "exact" / f"{example.index:05d}.safetensors"
        found = {"video": clip.video, "audio": clip.audio}
        if name == EXACT:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(found, file)
        exact = load_file(file)
        measured, true = measure(clip.frames, clip.waveform), example.clip
        row = {
            "index": example.index,
            "way": name,
            "passes": clip.passes,
            "sync": measured["sync"],
            "words": len(words(true.transcript)),
            "errors": word_errors(true.transcript, text),
            "amplitude_ratio": measured["amplitude"] / amplitude(measure_aperture(true.frames)),
            "face_distance": Face(true.frames[0], true.face_mask[0]).distance(clip.frames),
        }
        rows.append(row | {f"{key}_distance": distance(x, exact[key]) for key, x in found.items()})
    return rows


def distance(a: Tensor, b: Tensor) -> float:
    """Of `a` to `b`, relative to the norm of `b`."""
    return float((a - b).norm() / b.norm())


MEASURES = {"sync": "sync r", "words": "word error", "mouth": "mouth / true", "face": "distance to the face"}


def summary(rows: list[dict], against: list[dict] | None = None) -> list[dict]:
    """A row a way: passes, the means of `MEASURES` with their intervals, and of each the paired difference
    to the exact way of `against` (by default of the same rows) on the same clips, with its interval.

    Raises:
        UserError: no clip was made in the exact way.
    """
    exact = {row["index"]: row for row in (rows if against is None else against) if row["way"] == EXACT}
    if not exact:
        raise UserError("no clip was made in the exact way, which the others are compared with")
    found = []
    for name in dict.fromkeys(row["way"] for row in rows):
        pairs = [(row, exact[row["index"]]) for row in rows if row["way"] == name and row["index"] in exact]
        if not pairs:
            continue
        values: dict = {"way": name, "clips": len(pairs)}
        values["passes"] = float(np.mean([row["passes"] for row, _ in pairs]))
        for key, field in (("sync", "sync"), ("mouth", "amplitude_ratio"), ("face", "face_distance")):
            table = np.array([[a[field], a[field] - b[field]] for a, b in pairs])
            values[key], values[f"{key}_difference"] = (list(interval(column, mean)) for column in table.T)
        words = np.array([[a["errors"], a["words"], b["errors"], b["words"]] for a, b in pairs], np.float64)
        values["words"] = list(interval(words[:, :2], ratio))
        values["words_difference"] = list(
            interval(words, lambda samples: ratio(samples[..., :2]) - ratio(samples[..., 2:]))
        )
        for key in ("video_distance", "audio_distance"):
            values[key] = float(np.mean([row[key] for row, _ in pairs]))
        found.append(values)
    return sorted(found, key=lambda values: -values["passes"])


def loses_nothing(values: dict) -> bool:
    """Whether sync is not measurably lower and the word error not measurably higher than the exact way's."""
    return values["sync_difference"][2] >= 0 and values["words_difference"][1] <= 0


def table(found: list[dict]) -> str:
    """Markdown, a line a way; differences to the exact way with their 95 % intervals."""
    lines = [
        "| way | passes | sync r | difference | word error | difference | mouth / true | face | "
        "latents differ, video / audio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for values in found:
        cells = [values["way"], f"{values['passes']:.1f}"]
        for key in ("sync", "words"):
            cells += [
                f"{values[key][0]:.3f}",
                "{:+.3f} [{:+.3f}, {:+.3f}]".format(*values[f"{key}_difference"]),
            ]
        cells += [f"{values['mouth'][0]:.2f}", f"{values['face'][0]:.1f}"]
        cells += [f"{values['video_distance']:.2f} / {values['audio_distance']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(found: list[dict]) -> str:
    """Sync and word error over passes, with the intervals of the differences to the exact way, as SVG."""
    drawn = Figure((11, 4.2), layout="constrained")
    for axes, key in zip(drawn.subplots(1, 2), ("sync", "words")):
        for i, values in enumerate(found):
            value, (middle, low, high) = values[key][0], values[f"{key}_difference"]
            error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
            marker = "os^Dv<>Pp*"[i % 10]
            axes.errorbar(
                values["passes"],
                value,
                error,
                label=values["way"],
                color=COLOURS[i % len(COLOURS)],
                marker=marker,
                capsize=3,
            )
        axes.set_title(f"{MEASURES[key]} over passes")
        axes.set_xlabel("passes of the model")
        axes.grid(color="#e5e5e5")
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside right", fontsize=8)  # pyright: ignore[reportArgumentType]
    return svg(drawn)


def read_ways(out: Path) -> list[dict]:
    """The rows measured in a folder.

    Raises:
        UserError: there are none.
    """
    rows = read_lines(out / FILE)[1] if (out / FILE).exists() else []
    if not rows:
        raise UserError(f"{out}: holds no {FILE}; run `uniavgen eval pareto --out {out}` first")
    return rows
