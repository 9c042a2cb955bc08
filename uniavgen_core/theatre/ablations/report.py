"""The tables, the verdicts and the figure of a study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...atomic import write_text
from ...errors import UserError
from ..evaluation.metrics import RESAMPLES
from ..evaluation.report import svg
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


def _difference(a: dict[tuple[int, int], float], b: dict[tuple[int, int], float]) -> np.ndarray | None:
    """`a - b`, `[seeds, clips]` of what both have."""
    return _table({key: a[key] - b[key] for key in a.keys() & b.keys()})


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
            table = _difference(a, b)
            if table is None:
                continue
            size, low, high = estimate(sign * table)
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
    write_text(out / "ablations.svg", figure(found))
    return table


def markdown(arms: dict[str, dict[str, Estimate]], said: list[dict]) -> str:
    """For each group what its arms measured, and what that says of its claims."""
    parts = []
    for group, names in GROUPS.items():
        shown = [m for m in SHOWN[group] if any(m in arms.get(name, {}) for name in names)]
        if shown:
            rows = {title(group, name): arms[name] for name in names if name in arms}
            parts.append(_lines(group, shown, rows, _cell))
        claims: dict[str, dict[str, dict]] = {}
        for row in said:
            if ARMS[row["worse"]].group == group:
                pair = f"{title(group, row['better'])} before {title(group, row['worse'])}"
                by = "by us" if row["ours"] else "by the paper"
                claims.setdefault(f"{pair}, {by}", {})[row["measure"]] = row
        if claims:
            measured = [m for m in SHOWN[group] if any(m in row for row in claims.values())]
            parts.append(_lines("expected: difference towards it", measured, claims, _verdict))
    return "\n\n".join(parts) + "\n"


def _lines(head: str, measures: list[str], rows: Mapping[str, Mapping[str, Any]], cell) -> str:
    """A table with a column for each measure."""
    lines = [f"| {head} | " + " | ".join(MEASURES[m].title for m in measures) + " |"]
    lines.append("|---" * (len(measures) + 1) + "|")
    for name, row in rows.items():
        cells = (cell(row[m]) if m in row else "" for m in measures)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Estimate) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*found)


def _verdict(row: dict) -> str:
    return "{}: {:+.3f} [{:+.3f}, {:+.3f}]".format(row["verdict"], *row["difference"])


def title(group: str, arm: str) -> str:
    """An arm's name in a group's table; the paper's arm stands in two."""
    return "supervised, decaying" if (group, arm) == ("face mask", "paper") else ARMS[arm].title


def figure(found: Found) -> str:
    """Paired differences of arms to the last one of their group, with 95 % intervals: SVG, a row a group."""
    shown = {
        group: [m for m in SHOWN[group] if values(found, names[-1], m)] for group, names in GROUPS.items()
    }
    shown = {group: measures for group, measures in shown.items() if measures}
    columns = max(map(len, shown.values()), default=1)
    picture = Figure((2.9 * columns, 2.0 * max(1, len(shown))), layout="constrained")
    grid = picture.subplots(max(1, len(shown)), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (group, measures) in zip(grid, shown.items()):
        names, last = [name for name in GROUPS[group] if name in found], GROUPS[group][-1]
        for axes, measure in zip(row, measures):
            axes.set_axis_on()
            reference = values(found, last, measure)
            for place, name in enumerate(names):
                table = _difference(values(found, name, measure), reference)
                if table is not None:
                    middle, low, high = estimate(table)
                    error = [[middle - low], [high - middle]]
                    axes.errorbar(middle, place, xerr=error, fmt="o", color="#1b6ca8")
            labels = [title(group, name) for name in names] if axes is row[0] else [""] * len(names)
            axes.set_yticks(range(len(names)), labels, fontsize=7)
            axes.axvline(0, color="#888888", linewidth=0.8)
            axes.tick_params(axis="x", labelsize=7)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(axis="x", color="#e5e5e5")
            better = "more" if MEASURES[measure].better > 0 else "less"
            middle = np.mean(list(reference.values()))
            axes.set_title(
                f"{MEASURES[measure].title}\ndifference to {middle:.2f} ({better} is better)", fontsize=7
            )
    return svg(picture)
