"""What a run costs: far fewer FLOPs than written down naively, and the time and memory of every stage."""

import json
import math
from dataclasses import replace

import pytest
import torch
from clips import (
    uniavgen,
)
from torch.utils.flop_counter import FlopCounterMode

from uniavgen_core import bench, compare
from uniavgen_core.model.config import RELEASED, TINY
from uniavgen_core.oracle import Clip, forward, speech_features
from uniavgen_core.sampling.guidance import Guidance

SMALL = bench.Size(96, 128, 9)


def test_the_released_model_at_full_size_saves_what_the_readme_says(capfd):
    code, printed, notes = uniavgen(capfd, "bench", "--flops", "--json")
    assert (code, notes) == (0, "")
    report = json.loads(printed)
    assert report["size"] == {"width": 1280, "height": 736, "frames": 81, "steps": 50}
    assert report["joint_step"]["ratio_to_naive"] <= 0.72
    assert report["joint_step_outside_interval"]["ratio_to_naive"] <= 0.74
    assert report["dubbing_run"]["ratio_to_naive"] <= 0.02
    assert report["joint_step"]["tflop"] < report["joint_step_outside_interval"]["tflop"]


def test_the_naive_count_is_that_of_the_reference():
    """docs/model.md section 10: one forward about 475 TFLOP, a step with its null pass about 940."""
    assert bench.naive_forward_flops(RELEASED, bench.Size()) == pytest.approx(475e12, rel=0.03)
    assert bench.naive_step_flops(RELEASED, bench.Size(), Guidance()) == pytest.approx(940e12, rel=0.03)


def count(work):
    """FLOPs of matmuls, matrix times vector included."""
    rules = {torch.ops.aten.mv: lambda matrix, vector, out_shape: 2 * math.prod(matrix)}
    with FlopCounterMode(display=False, custom_mapping=rules) as counter:
        work()
    return counter.get_total_flops()


def test_the_naive_count_is_what_the_model_written_down_naively_takes(make_model):
    model = make_model()
    config, state = model.config, model.state_dict()
    frames, rows, columns = SMALL.latent
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def naive():
        forward(
            state,
            config,
            Clip(
                video=normal(48, frames, rows, columns),
                audio=normal(SMALL.mels, 80),
                time=500.0,
                caption=normal(9, config.caption_dim),
                speech=speech_features(state, list(range(bench.SPEECH_SYMBOLS))),
                reference_image=normal(48, 1, rows, columns),
            ),
        )

    video_tokens = (frames + 1) * rows * columns // 4
    per_token = [(video_tokens, config.video_dim, 2), (SMALL.mels, config.audio_dim, 1)]
    # the oracle embeds each distinct time once and only projects it for every token
    spared = sum(2 * (n - times) * (config.freq_dim * d + d * d) for n, d, times in per_token)
    assert count(naive) + spared == bench.naive_forward_flops(config, SMALL)


def test_a_dubbing_run_computes_the_video_once(make_model):
    config = make_model().config
    steps = bench.run_flops(config, "dubbing", SMALL, 10)
    assert len(steps) == 10
    assert steps[1] == min(steps)
    assert steps[0] > 1.5 * steps[1]
    assert sum(steps) < 0.5 * 10 * bench.naive_step_flops(config, SMALL, Guidance())


def test_beside_the_oracle_a_step_is_the_same_and_takes_less_memory(tmp_path, capfd, monkeypatch):
    points = [compare.Point(5, 64), compare.Point(9, 64), compare.Point(5, 64, takes=2)]
    sweeps = {"frames": points[:2], "takes": [points[0], points[2]]}
    config = replace(TINY, layers=2, interaction_layers=(0,))
    report = compare.compare(tmp_path, sweeps=sweeps, config=config)
    rows = report["rows"]
    assert [compare.Point(row["frames"], row["side"], row["takes"]) for row in rows] == points
    assert all(row["differs"] < 1e-5 for row in rows)
    assert all(row["mb"] < row["oracle_mb"] for row in rows[:2])
    assert all(row["seconds"] > 0 and row["oracle_seconds"] > 0 for row in rows)
    assert "<svg" in (tmp_path / "compare.svg").read_text()

    monkeypatch.setattr(compare, "measure", None)  # what is there is not measured again
    assert compare.compare(tmp_path, sweeps=sweeps, config=config)["rows"] == rows
    code, _, notes = uniavgen(capfd, "bench", "--compare", tmp_path, "--layers", 3)
    assert code == 2
    assert "choose another folder" in notes


def test_every_stage_is_timed(capfd):
    sizes = ("--width", 64, "--height", 64, "--frames", 5)
    code, printed, _ = uniavgen(capfd, "bench", *sizes, "--json")
    report = json.loads(printed)
    assert code == 0
    assert report["size"] == {"width": 64, "height": 64, "frames": 5}
    assert (report["device"], report["embedded"]) == ("cpu", True)
    stages = ["load_caption_encoder", "caption", "load_vae", "vae_encode_image", "load_model", "speech"]
    stages += [
        f"{step}_{kind}" for kind in ("no_guidance", "ma_cfg", "cfg") for step in ("first_step", "step")
    ]
    stages += ["vae_decode", "vocoder"]
    assert [name for name, row in report.items() if isinstance(row, dict) and "seconds" in row] == stages
    assert all(report[stage]["seconds"] > 0 and report[stage]["peak_gb"] > 0 for stage in stages[2:])
    assert report["step_no_guidance"]["tflop"] < report["step_ma_cfg"]["tflop"] < report["step_cfg"]["tflop"]
    code, printed, _ = uniavgen(capfd, "bench", *sizes)
    assert code == 0
    assert [line.split()[0] for line in printed.splitlines()][3:] == stages
