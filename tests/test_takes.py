"""`generate --takes`: several clips of one input, each the clip of its own seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from uniavgen_core import pipeline
from uniavgen_core.cli import main
from uniavgen_core.errors import UserError
from uniavgen_core.media import files
from uniavgen_core.sampling.takes import clips_at_once, take_paths, take_seed

PUPPET = Path(__file__).parents[1] / "assets" / "puppet.png"
SMALL = {"text": "Hello.", "image": str(PUPPET), "frames": 5, "short_side": 64, "steps": 1}


def command(out: Path, *arguments: str) -> list[str]:
    given = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["generate", "--out", str(out), *given, *arguments]


def test_each_take_is_the_clip_of_its_own_seed(tmp_path):
    steps: list[tuple[int, int]] = []
    request = pipeline.Request("joint", str(tmp_path / "clip.mp4"), seed=7, **SMALL)
    takes = pipeline.generate_takes(
        request, pipeline.Weights(), 2, on_step=lambda done, total: steps.append((done, total))
    )
    assert [take.seed for take in takes] == [7, 8]
    assert [Path(take.out).name for take in takes] == ["clip.mp4", "clip-2.mp4"]
    assert steps == [(1, 2), (2, 2)]
    again = pipeline.Request("joint", str(tmp_path / "alone.mp4"), seed=8, **SMALL)
    alone = pipeline.generate(again, pipeline.Weights())
    assert torch.equal(alone.sample.video, takes[1].sample.video)
    assert torch.equal(alone.sample.audio, takes[1].sample.audio)
    assert not torch.equal(alone.sample.audio, takes[0].sample.audio)
    found, wanted = (files.read_video(name).frames for name in (takes[1].out, alone.out))
    assert torch.equal(found, wanted)


def test_the_command_line_lists_its_takes_with_their_seeds(tmp_path, capsys):
    assert main(command(tmp_path / "a.mp4", "--takes", "2", "--seed", "3", "--json")) == 0
    assert [take["seed"] for take in json.loads(capsys.readouterr().out)] == [3, 4]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-2.mp4", "a.mp4"]


@pytest.mark.parametrize("takes", ["0", "-1", "65"])
def test_a_wrong_number_of_takes_is_told_before_any_work(tmp_path, capsys, takes):
    assert main(command(tmp_path / "a.mp4", "--takes", takes)) == 2
    assert f"--takes is {takes}; use 1 to 64" in capsys.readouterr().err


def test_takes_of_a_script_are_refused(tmp_path, capsys):
    script = tmp_path / "script.txt"
    script.write_text("Hello.\n", encoding="utf-8")
    arguments = ["generate", "--script", str(script), "--out", str(tmp_path / "a.mp4"), "--takes", "2"]
    assert main(arguments) == 2
    assert "--takes makes several clips of one --text in one process; leave it out" in capsys.readouterr().err


def test_a_name_of_a_later_take_that_cannot_be_written_is_told_before_any_work(tmp_path, capsys):
    (tmp_path / "a-2.mp4").mkdir()
    assert main(command(tmp_path / "a.mp4", "--takes", "2")) == 2
    assert re.search(r"a-2\.mp4: is a folder", capsys.readouterr().err)
    assert not (tmp_path / "a.mp4").exists()


def test_takes_are_numbered_from_the_second():
    assert [path.name for path in take_paths("x/clip.one.mkv", 3)] == [
        "clip.one.mkv",
        "clip.one-2.mkv",
        "clip.one-3.mkv",
    ]
    with pytest.raises(UserError):
        take_paths("clip.mp4", 0)


def test_seeds_run_over_the_end_of_64_bits():
    assert [take_seed(2**64 - 2, take) for take in range(3)] == [2**64 - 2, 2**64 - 1, 0]


@pytest.mark.parametrize(
    ("free", "wanted"), [(0, 1), (-5e9, 1), (2.9e9, 1), (3e9, 2), (7.4e9, 4), (7.5e9, 5), (1e12, 8)]
)
def test_as_many_clips_run_together_as_fit_into_memory_with_half_as_much_again_free(free, wanted):
    assert clips_at_once(8, free, 1e9) == wanted
