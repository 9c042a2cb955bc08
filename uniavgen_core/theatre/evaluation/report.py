"""From measured rows to `metrics.json`, `index.html` and the figure of the guidance grid."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...atomic import write_text
from ...errors import UserError, counted
from .metrics import LAGS, interval, mean, median, ratio
from .runs import RUNS, read_lines

Estimate = tuple[float, float, float]  # value and its 95 % interval

MEASURES = {
    "sync": ("sync r", mean, "sync"),
    "lag_0": ("best at lag 0", mean, "lag"),
    "word_error": ("word error", ratio, "errors words"),
    "amplitude": ("mouth amplitude / true", median, "amplitude_ratio"),
    "pitch_error": ("pitch error", median, "pitch_error"),
    "own_voice_error": ("pitch to the face's own voice", median, "own_voice_error"),
    "face_distance": ("colour distance to the face", mean, "face_distance"),
    "other_face_distance": ("to other faces", mean, "other_face_distance"),
    "face_known": ("nearest face is its own", mean, "face_known"),
    "seam_picture": ("seam, video", median, "seam_picture"),
    "seam_latent": ("seam, video / latent steps", median, "seam_latent"),
    "seam_mel": ("seam, mel", median, "seam_mel"),
    "mask_iou": ("mask IoU", mean, "mask_iou"),
    "voice_likeness": ("likeness of the voice", mean, "voice_likeness"),
    "length": ("seconds", mean, "length"),
    "step_picture": ("largest step, video", median, "step_picture"),
    "step_mel": ("largest step, mel", median, "step_mel"),
}
"""Name: title, statistic over clips, fields of a row."""

NOTES = (
    "All values with their 95 % bootstrap interval over clips.",
    "Sync r: Pearson correlation of the mouth's aperture, measured in the video, with the loudness of the "
    "audio under the frame; mean over clips. Mismatched: a true video with the audio of another clip.",
    "Ceiling: true clips through the VAE and through mel and vocoder. Cut: the same model with both "
    "directions of the interaction off. None: no guidance at twice the steps, so equal passes.",
    "Word error: edits over words, by a recogniser whose own error stands in the row of the truth and, "
    "through the vocoder, in that of the ceiling. A continuation's words include those of its known half.",
    "Pitch error: |f0 / wanted - 1|, the median; wanted is the voice given in reference-voice, else the "
    "face's own. Nothing voiced counts as 1.",
    "Faces: colour difference (root mean square of 0 to 255) of the reference face to the best place near "
    "by. Seam: step onto the first new frame in units of the clip's own median step; latent steps are those "
    "from one latent frame to the next, as the seam is one.",
    "Mask IoU: the mean mask of all interaction layers on the true clip at time 0.1, tokens above 0.5.",
)


def summary(rows: list[dict]) -> dict:
    """Every measure that the rows carry, as (value, low, high); `lag_0` counts clips best at lag 0."""
    values: dict = {"clips": len(rows)}
    for name, (_, statistic, fields) in MEASURES.items():
        found = [[row[f] for f in fields.split()] for row in rows if all(f in row for f in fields.split())]
        if found:
            data = [[lag == 0] for (lag,) in found] if name == "lag_0" else found
            table = np.array(data, np.float64)
            values[name] = rounded(interval(table if table.shape[1] > 1 else table[:, 0], statistic))
    if any("sync_at_lag" in row for row in rows):
        curve = np.mean([row["sync_at_lag"] for row in rows if "sync_at_lag" in row], 0)
        values["sync_at_lag"] = dict(zip(map(str, LAGS), curve.round(4).tolist()))
    for name in ("known_difference", "seconds"):
        if any(name in row for row in rows):
            found = [row[name] for row in rows if name in row]
            values[name] = max(found) if name == "known_difference" else round(float(np.mean(found)), 2)
    return values


def by_motion(rows: list[dict]) -> dict[str, dict]:
    """The `summary` of the clips of each motion of the head; empty where rows do not name it."""
    motions = sorted({row["motion"] for row in rows if "motion" in row})
    return {motion: summary([row for row in rows if row.get("motion") == motion]) for motion in motions}


def rounded(estimate: Estimate) -> list[float]:
    return [round(x, 4) for x in estimate]


def grid_summary(points: list[dict]) -> list[dict]:
    """Each point of the grid with sync, word_error and amplitude as (value, low, high), and its score.

    The score, by which the best point is chosen: sync r minus word error.
    """
    result = []
    for point in points:
        values = summary(point["rows"])
        kept = {name: values[name] for name in ("sync", "word_error", "amplitude")}
        score = kept["sync"][0] - kept["word_error"][0]
        result.append({"s_v": point["s_v"], "s_a": point["s_a"], **kept, "score": round(score, 4)})
    return result


def write_report(out: Path) -> dict:
    """`metrics.json` and `index.html` of all results in a folder, `grid.svg` where there is a grid.

    Raises:
        UserError: nothing has been measured there.
    """
    found = {name: out / "runs" / f"{name}.jsonl" for name in RUNS}
    files = {name: read_lines(path) for name, path in found.items() if path.exists()}
    files = {name: (about, rows) for name, (about, rows) in files.items() if rows}
    about, points = read_lines(out / "grid.jsonl") if (out / "grid.jsonl").exists() else (None, [])
    if not files and not points:
        raise UserError(f"{out}: holds no results; run `uniavgen eval run --out {out}` first")
    runs = {name: summary(rows) for name, (_, rows) in files.items()}
    metrics = {"about": next((a for a, _ in files.values()), about), "runs": runs}
    moved = {name: by_motion(rows) for name, (_, rows) in files.items()}
    metrics["by_motion"] = {name: motions for name, motions in moved.items() if motions}
    if points:
        metrics["grid"] = grid_summary(points)
        metrics["best"] = max(metrics["grid"], key=lambda point: point["score"])
        write_text(out / "grid.svg", grid_figure(metrics["grid"]))
    write_text(out / "metrics.json", json.dumps(metrics, indent=2))
    write_text(out / "index.html", page(metrics, {name: rows for name, (_, rows) in files.items()}))
    return metrics


def table(runs: dict[str, dict]) -> str:
    """The measures as lines of text, a run each."""
    lines = []
    for name, values in runs.items():
        parts = [
            f"{title} {values[key][0]:.3f} [{values[key][1]:.3f}, {values[key][2]:.3f}]"
            for key, (title, _, _) in MEASURES.items()
            if key in values
        ]
        lines.append(f"{name:18} {counted(values['clips'], 'clip')}: " + "; ".join(parts))
    return "\n".join(lines)


COLOURS = ("#1b6ca8", "#d1495b", "#edae49", "#3c8d5a", "#7a5195", "#555555")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ddd;padding:3px 7px;text-align:left}
td small{color:#777;white-space:nowrap}.clips{display:flex;flex-wrap:wrap;gap:14px}.clip{width:256px;
font-size:12px}video{width:256px;height:256px;image-rendering:auto;background:#000}.wide{overflow-x:auto}"""


def page(metrics: dict, rows: dict[str, list[dict]]) -> str:
    """One HTML page; it needs nothing but the clips beside it."""
    about = ", ".join(f"{name} {value}" for name, value in (metrics["about"] or {}).items())
    parts = [f"<h1>UniAVGen on the held-out theatre</h1><p>{html.escape(about)}</p>"]
    if metrics["runs"]:
        parts += [f'<div class="wide">{_html_table(metrics["runs"])}</div>']
        parts += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in NOTES), "</ul>"]
        moved = {
            f"{run}, {motion}": values
            for run, motions in metrics["by_motion"].items()
            for motion, values in motions.items()
        }
        if moved:
            parts += [f'<h2>By the motion of the head</h2><div class="wide">{_html_table(moved)}</div>']
        curves = {
            name: list(values["sync_at_lag"].values())
            for name, values in metrics["runs"].items()
            if "sync_at_lag" in values
        }
        parts += ["<h2>Sync r where the video is shifted by so many frames</h2>", lag_figure(curves)]
    if "grid" in metrics:
        best = metrics["best"]
        parts += ["<h2>Guidance scales</h2>", grid_figure(metrics["grid"])]
        parts += [f"<p>Best: s_v {best['s_v']:g}, s_a {best['s_a']:g} (sync r less word error).</p>"]
        parts += [_grid_table(metrics["grid"])]
    for name, found in rows.items():
        shown = [row for row in found if "clip" in row]
        if shown:
            parts += [f'<h2>{name}</h2><div class="clips">', *map(_clip, shown), "</div>"]
    head = f'<meta charset="utf-8"><title>UniAVGen evaluation</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "<td></td>"
    value, low, high = estimate
    return f"<td>{value:.3f} <small>{low:.3f} to {high:.3f}</small></td>"


def _html_table(runs: dict[str, dict]) -> str:
    shown = {key: title for key, (title, _, _) in MEASURES.items() if any(key in v for v in runs.values())}
    lines = ["<table><tr><th>run</th><th>clips</th>", *(f"<th>{title}</th>" for title in shown.values())]
    lines += ["<th>known frames differ by</th><th>s a clip</th></tr>"]
    for name, values in runs.items():
        lines += [f"<tr><td>{name}</td><td>{values['clips']}</td>", *(_cell(values.get(k)) for k in shown)]
        lines += [f"<td>{values.get(k, '')}</td>" for k in ("known_difference", "seconds")]
        lines += ["</tr>"]
    return "".join(lines) + "</table>"


def _grid_table(points: list[dict]) -> str:
    lines = ["<table><tr><th>s_v</th><th>s_a</th><th>sync r</th><th>word error</th><th>amplitude</th>"]
    lines += ["<th>score</th></tr>"]
    for point in points:
        lines += [f"<tr><td>{point['s_v']:g}</td><td>{point['s_a']:g}</td>"]
        lines += [_cell(point[name]) for name in ("sync", "word_error", "amplitude")]
        lines += [f"<td>{point['score']:.3f}</td></tr>"]
    return "".join(lines) + "</table>"


def _clip(row: dict) -> str:
    said = f"said: {html.escape(row['said'])}<br>heard: {html.escape(row['heard'])}"
    return (
        f'<div class="clip"><video src="{row["clip"]}" controls loop></video>'
        f"{mouth_figure(row['aperture'], row['loudness'])}r {row['sync']:.2f}, {said}</div>"
    )


def mouth_figure(aperture: list[float], loudness: list[float]) -> str:
    """Mouth aperture (line) over the loudness of the audio (area), as SVG."""
    figure = Figure((2.56, 0.7), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(range(len(loudness)), loudness, color="#cfe0ee")
    axes.plot(aperture, color=COLOURS[1], gid="aperture")
    axes.set_axis_off()
    axes.set_ylim(0, 1.1)
    return svg(figure)


def lag_figure(curves: dict[str, list[float]]) -> str:
    """Mean sync r at each lag, a line a run, as SVG."""
    figure = Figure((7.3, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title("sync r by lag (frames, video later)")
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(LAGS, curve, label=name, **_line(i))
    axes.set_xticks(LAGS)
    axes.grid(axis="y", color="#e5e5e5")
    figure.legend(loc="outside right")  # pyright: ignore[reportArgumentType]
    return svg(figure)


def grid_figure(points: list[dict]) -> str:
    """Sync, word error and mouth amplitude over the scale they answer to, with intervals, as SVG.

    A line for each value of the other scale.
    """
    titles = {
        "sync": ("sync r over s_v", "s_v", "s_a"),
        "amplitude": ("mouth amplitude / true over s_v", "s_v", "s_a"),
        "word_error": ("word error over s_a", "s_a", "s_v"),
    }
    figure = Figure((12, 3), layout="constrained")
    for axes, (name, (title, across, by)) in zip(figure.subplots(1, 3), titles.items()):
        axes.set_title(title)
        for i, other in enumerate(sorted({point[by] for point in points})):
            found = sorted((point[across], *point[name]) for point in points if point[by] == other)
            xs, values, low, high = np.array(found).T
            errors = np.stack((values - low, high - values)).clip(0)
            axes.errorbar(xs, values, errors, label=f"{by} = {other:g}", **_line(i))
        axes.set_xticks(sorted({point[across] for point in points}))
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.grid(axis="y", color="#e5e5e5")
        axes.legend()
    return svg(figure)


def _line(number: int) -> dict:
    """Lines past the last colour begin with the first one again, dashed."""
    style = ("-", "--", ":")[min(2, number // len(COLOURS))]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": style}


def svg(figure: Figure) -> str:
    """A figure as an SVG element."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
