"""What `uniavgen doctor` says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from uniavgen_core import cli, doctor
from uniavgen_core.bench import Size, run_flops
from uniavgen_core.memory import Clip
from uniavgen_core.model.config import RELEASED, TINY
from uniavgen_core.verify import GOLDEN, verify


@pytest.fixture
def small(monkeypatch):
    """The cost of a tiny model in the place of the released one's."""
    monkeypatch.setattr(doctor, "RELEASED", TINY)
    monkeypatch.setattr(doctor, "CLIPS", (Clip("joint", 96, 64, 9, 56),))


def test_the_report_names_device_files_parity_and_cost(small, capsys):
    assert cli.main(["doctor", "--memory", "8"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == "UniAVGen doctor"
    assert any(line.startswith("device cpu: ") for line in lines)
    assert any(line.startswith("attention kernels of torch: ") and "math" in line for line in lines)
    assert any(line.startswith("model ") and "a UniAVGen checkpoint" in line for line in lines)
    for name in ("fp32", "bf16", "fp16", "fp8"):
        line = next(line for line in lines if line.startswith(f"{name:5} "))
        assert line.endswith("ok"), line
    assert "memory: at most" in said
    assert "while sampling; about" in said


def test_a_missing_and_a_wrong_file_are_named(small, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello")
    lines = list(doctor._files({"model": text, "vae": None}))
    assert "text file" in lines[0]
    assert lines[1].split() == ["vae", "none"]


def test_lower_precision_is_further_off():
    file = next(GOLDEN.glob("*tiny*.safetensors"))
    worst = {
        name: max(case.error for case in verify(file, dtype=dtype, fp8=name == "fp8"))
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}.items()
    }
    assert worst["fp32"] < 1e-4 < worst["bf16"] < worst["fp8"] < doctor.EXPECTED["fp8"]


def test_the_flops_of_a_run_are_those_of_the_benchmark():
    clip, config = doctor.CLIPS[0], replace(RELEASED, layers=8, interaction_layers=(0, 2, 4, 6))
    counted = sum(run_flops(config, "joint", Size(clip.width, clip.height, clip.frames), 8))
    assert doctor.run_flops(config, clip, steps=8) == pytest.approx(counted, rel=0.05)
