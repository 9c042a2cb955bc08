"""The table, the verdicts and the figure of a study."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...atomic import write_text
from ...errors import UserError
from ..evaluation.metrics import RESAMPLES
from .arms import ARMS, CLAIMS, GROUPS, MEASURES, SHOWN
from .study import read_study

Found = dict[str, dict[int, list[dict]]]
Estimate = tuple[float, float, float]  # value and its 95 % interval


def estimate(table: np.ndarray) -> Estimate:
    """The mean of `[seeds, clips]` and its 95 % bootstrap interval over clips, and over seeds if several."""
    seeds, clips = table.shape
    rng = np.random.default_rng(0)
    s, c = (rng.integers(n, size=(RESAMPLES, n)) for n in (seeds, clips))
    low, high = np.percentile(table[s[:, :, None], c[:, None, :]].mean((1, 2)), (2.5, 97.5))
    return float(table.mean()), float(low), float(high)


def values(found: Found, arm: str, measure: str) -> dict[tuple[int, int], float]:
    """A measure by (seed, clip), where the arm has it."""
    return {
        (seed, row["index"]): row[measure]
        for seed, rows in found.get(arm, {}).items()
        for row in rows
        if measure in row
    }


def _table(chosen: dict[tuple[int, int], float]) -> np.ndarray | None:
    """`[seeds, clips]` of what every seed has."""
    seeds = sorted({seed for seed, _ in chosen})
    clips = sorted({c for _, c in chosen if all((seed, c) in chosen for seed in seeds)})
    if not clips:
        return None
    return np.array([[chosen[seed, clip] for clip in clips] for seed in seeds])


def summary(found: Found) -> dict[str, dict[str, Estimate]]:
    """Every measure of every arm."""
    tables = {arm: {m: _table(values(found, arm, m)) for m in MEASURES} for arm in found}
    return {
        arm: {m: estimate(table) for m, table in row.items() if table is not None}
        for arm, row in tables.items()
    }


def verdicts(found: Found) -> list[dict]:
    """For each claim and measure that was measured: the paired difference, towards better, and what it says.

    "found": the interval lies above 0; "not found": below 0, the other way round; else "undecided".
    """
    said = []
    for claim in CLAIMS:
        for measure in claim.measures:
            a, b = (values(found, arm, measure) for arm in (claim.better, claim.worse))
            sign = MEASURES[measure].better
            table = _table({key: sign * (a[key] - b[key]) for key in a.keys() & b.keys()})
            if table is None:
                continue
            size, low, high = estimate(table)
            verdict = "found" if low > 0 else "not found" if high < 0 else "undecided"
            said.append(
                {
                    "better": claim.better,
                    "worse": claim.worse,
                    "ours": claim.ours,
                    "measure": measure,
                    "difference": [round(x, 4) for x in (size, low, high)],
                    "verdict": verdict,
                }
            )
    return said


def write_report(out: Path) -> str:
    """`ablations.json`, `table.md` and `ablations.svg` of what has been measured; the table.

    Raises:
        UserError: nothing has been measured there.
    """
    found = read_study(out)
    if not found:
        raise UserError(f"{out}: holds no measured arm; run `uniavgen train ablations --out {out}` first")
    arms, said = summary(found), verdicts(found)
    about = json.loads((out / "about.json").read_text())
    about["seeds"] = sorted({seed for rows in found.values() for seed in rows})
    table = markdown(arms, said)
    write_text(out / "ablations.json", json.dumps({"about": about, "arms": arms, "claims": said}, indent=2))
    write_text(out / "table.md", table)
    write_text(out / "ablations.svg", figure(arms))
    return table


def _cell(found: Estimate | None) -> str:
    return "" if found is None else "{:.3f} [{:.3f}, {:.3f}]".format(*found)


def markdown(arms: dict[str, dict[str, Estimate]], said: list[dict]) -> str:
    """A table a group, and one of the verdicts."""
    parts = []
    for group, names in GROUPS.items():
        shown = [m for m in SHOWN[group] if any(m in arms.get(name, {}) for name in names)]
        if not shown:
            continue
        lines = [f"| {group} | " + " | ".join(MEASURES[m].title for m in shown) + " |"]
        lines.append("|---" * (len(shown) + 1) + "|")
        for name in names:
            if name in arms:
                cells = (_cell(arms[name].get(m)) for m in shown)
                lines.append(f"| {title(group, name)} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    lines = ["| expected | by | measure | difference towards it | verdict |", "|---|---|---|---|---|"]
    for row in said:
        pair = f"{ARMS[row['better']].title} before {ARMS[row['worse']].title}"
        size = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["difference"])
        by = "us" if row["ours"] else "the paper"
        lines.append(f"| {pair} | {by} | {MEASURES[row['measure']].title} | {size} | {row['verdict']} |")
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def title(group: str, arm: str) -> str:
    """An arm's name in a group's table; the paper's arm stands in two."""
    return "supervised, decaying" if (group, arm) == ("face mask", "paper") else ARMS[arm].title


def figure(arms: dict[str, dict[str, Estimate]]) -> str:
    """Every group's measures with their intervals, a row a group, as SVG."""
    shown = {
        group: [m for m in SHOWN[group] if any(m in arms.get(name, {}) for name in names)]
        for group, names in GROUPS.items()
    }
    shown = {group: measures for group, measures in shown.items() if measures}
    columns = max(map(len, shown.values()))
    picture = Figure((3.2 * columns, 2.1 * len(shown)), layout="constrained")
    grid = picture.subplots(len(shown), columns, squeeze=False)
    for row, (group, measures) in zip(grid, shown.items()):
        names = [name for name in GROUPS[group] if name in arms]
        for axes, measure in zip(row, [*measures, *[None] * (columns - len(measures))]):
            if measure is None:
                axes.set_axis_off()
                continue
            there = [(i, arms[name][measure]) for i, name in enumerate(names) if measure in arms[name]]
            places = [i for i, _ in there]
            middle, low, high = np.array([found for _, found in there]).T
            axes.errorbar(middle, places, xerr=(middle - low, high - middle), fmt="o", color="#1b6ca8")
            axes.set_yticks(range(len(names)), [title(group, name) for name in names], fontsize=7)
            axes.tick_params(axis="x", labelsize=7)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(axis="x", color="#e5e5e5")
            towards = "more is better" if MEASURES[measure].better > 0 else "less is better"
            axes.set_title(f"{MEASURES[measure].title}\n({towards})", fontsize=7)
    file = io.StringIO()
    picture.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
