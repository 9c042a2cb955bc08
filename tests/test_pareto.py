"""`uniavgen eval pareto`: clips are compared in pairs, and a run goes on where it stopped."""

from __future__ import annotations

import pytest

pytest.importorskip("cv2", reason="OpenCV is not installed")

from conftest import needs_espeak
from test_evaluation import evaluation, parts, theatre  # noqa: F401

from uniavgen_core.errors import UserError
from uniavgen_core.theatre.evaluation.pareto import (
    WAYS,
    figure,
    loses_nothing,
    measure_ways,
    read_ways,
    summary,
    table,
)


def row(index: int, way: str, sync: float, errors: int, passes: int = 32) -> dict:
    return {
        "index": index,
        "way": way,
        "passes": passes,
        "sync": sync,
        "errors": errors,
        "words": 5,
        "amplitude_ratio": 1.0,
        "face_distance": 10.0,
        "video_distance": 0.1,
        "audio_distance": 0.2,
    }


def rows(shift: float, more_errors: int = 0) -> list[dict]:
    """Ten clips of very different sync; the other way has each lower by the same."""
    exact = [row(i, "exact", 0.1 * i, i % 3) for i in range(10)]
    return exact + [row(i, "reuse 2", 0.1 * i - shift, i % 3 + more_errors, 24) for i in range(10)]


def test_a_loss_that_every_clip_has_is_seen_however_far_clips_differ():
    exact, other = summary(rows(0.05, 1))
    assert exact["way"] == "exact"
    assert exact["sync_difference"] == [0.0, 0.0, 0.0]
    assert other["passes"] == 24
    assert other["sync"][2] - other["sync"][1] > 0.2
    assert other["sync_difference"] == pytest.approx([-0.05, -0.05, -0.05])
    assert other["words_difference"][0] == pytest.approx(0.2)
    assert not loses_nothing(other)


def test_a_way_whose_clips_are_better_or_worse_by_chance_loses_nothing():
    mixed = rows(0.0)
    for i, found in enumerate(mixed[10:]):
        found["sync"] += 0.05 * (-1) ** i
    assert loses_nothing(summary(mixed)[1])


def test_only_clips_that_both_ways_made_are_compared():
    some = [found for found in rows(0.1) if found["way"] == "exact" or found["index"] < 4]
    assert [values["clips"] for values in summary(some)] == [10, 4]
    with pytest.raises(UserError, match="exact way"):
        summary([row(0, "reuse 2", 0.5, 0)])


def test_another_models_clips_are_compared_with_the_given_ones():
    found = summary([row(i, "exact", 0.1 * i + 0.02, 0, 16) for i in range(10)], against=rows(0.0))
    assert found[0]["sync_difference"] == pytest.approx([0.02, 0.02, 0.02])


def test_table_and_figure_name_every_way():
    found = summary(rows(0.05))
    assert table(found).count("\n") == 3
    assert "| reuse 2 | 24.0 |" in table(found)
    assert figure(found).startswith("<svg")


@needs_espeak
def test_ways_are_measured_on_the_same_clips_and_a_second_call_makes_none(evaluation, monkeypatch):  # noqa: F811
    names = ["reuse 2", "half the steps"]
    found = measure_ways(evaluation, names)
    passes = {"exact": 4, "reuse 2": 3, "half the steps": 2}
    assert [(r["index"], r["way"], r["passes"]) for r in found] == [
        (i, name, passes[name]) for indices in ((0, 1), (2,)) for name in ("exact", *names) for i in indices
    ]
    assert all(r["video_distance"] == r["audio_distance"] == 0 for r in found if r["way"] == "exact")
    assert all(r["video_distance"] > 0 for r in found if r["way"] != "exact")
    monkeypatch.setattr("uniavgen_core.theatre.evaluation.pareto.make", None)
    assert measure_ways(evaluation, names) == found == read_ways(evaluation.out)


def test_a_way_that_there_is_none_of_is_named(tmp_path):
    with pytest.raises(UserError, match="'fast' is unknown; choose from exact, reuse 2"):
        measure_ways(None, ["fast"])
    with pytest.raises(UserError, match="holds no pareto"):
        read_ways(tmp_path)
    assert "exact" in WAYS
