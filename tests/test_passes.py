"""Passes that are left out: which they are, what stands in for them, and that off means off."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import inputs

from uniavgen_core.cli import main
from uniavgen_core.conditioning import condition
from uniavgen_core.errors import UserError
from uniavgen_core.model.config import TINY
from uniavgen_core.model.inputs import Conditioned, TextConditioning, Velocity
from uniavgen_core.pipeline import Request
from uniavgen_core.sampling.defaults import DEFAULT_PRESET, PRESETS, SamplingDefaults, Savings, find_preset
from uniavgen_core.sampling.guidance import Guidance, GuidedModel
from uniavgen_core.sampling.passes import Passes
from uniavgen_core.sampling.sampler import sample

GIVEN = inputs(TINY)
TEXTS = TextConditioning(GIVEN["caption"], GIVEN["speech"])
NULL = TextConditioning(GIVEN["caption"][:, :2], GIVEN["speech"][:, :3])
JOINT = condition("joint", GIVEN["reference_image"], None, 3, 23)
STEPS = 10
FREE = Conditioned.none(3, 23)


class Recorder:
    """Stands in for the model: the velocity is the time, for the null pass half of it; keeps what was run."""

    dtype, config = torch.float32, TINY

    def __init__(self):
        self.runs = []

    def __call__(self, video, audio, time, text, references, conditioned, active, **options) -> Velocity:
        null = text.caption.shape == NULL.caption.shape
        self.runs.append((round(float(time[0])), "null" if null else "full", active.a2v))
        value = float(time[0]) / (2000 if null else 1000)
        return Velocity(torch.full_like(video, value), torch.full_like(audio, value), {})


def run(savings: Savings, guidance: Guidance | None = None, times=None) -> tuple[Recorder, list[Velocity]]:
    """One call at each time, by default at steps of a tenth."""
    model = Recorder()
    chosen = Guidance(interval=1.0) if guidance is None else guidance
    guided = GuidedModel(model, JOINT, TEXTS, NULL, chosen, savings=savings)
    times = [(i, 1000 - 100 * i) for i in range(STEPS)] if times is None else times
    found = [
        guided(GIVEN["video"], GIVEN["audio"], torch.tensor([float(time)]), step, STEPS)
        for step, time in times
    ]
    assert guided.passes.runs == len(model.runs)
    return model, found


def null_steps(model: Recorder) -> list[int]:
    return [10 - time // 100 for time, kind, _ in model.runs if kind == "null"]


@pytest.mark.parametrize(
    ("savings", "steps"),
    [
        (Savings(), list(range(10))),
        (Savings(reuse=2), [0, 2, 4, 6, 8]),
        (Savings(reuse=4), [0, 4, 8]),
        (Savings(reuse=4, reuse_after=0.3), [0, 1, 2, 6]),
        (Savings(null_until=0.5), [0, 1, 2, 3, 4]),
        (Savings(reuse=2, null_until=0.5), [0, 2, 4]),
        (Savings(null_until=0.0), []),
    ],
)
def test_the_null_pass_runs_at_these_steps_and_the_full_pass_at_all(savings, steps):
    model, _ = run(savings)
    assert null_steps(model) == steps
    assert sum(kind == "full" for _, kind, _ in model.runs) == STEPS


def test_the_difference_of_the_last_null_pass_serves_the_steps_between():
    _, found = run(Savings(reuse=2), Guidance(s_v=3.0, s_a=2.0, interval=1.0))
    for i, velocity in enumerate(found):
        full, difference = 1 - i / 10, (1 - (i - i % 2) / 10) / 2
        assert velocity.video.unique().tolist() == pytest.approx([full + 2 * difference])
        assert velocity.audio.unique().tolist() == pytest.approx([full + difference])


def test_after_its_last_null_pass_a_run_is_without_guidance():
    _, found = run(Savings(null_until=0.5))
    assert found[4].video.unique().tolist() == pytest.approx([0.6 + 2 * 0.3])
    assert found[5].video.unique().tolist() == pytest.approx([0.5])


def test_a_difference_does_not_serve_the_other_kind_of_null_pass():
    model, _ = run(Savings(reuse=10), Guidance(interval=0.5))
    assert [(time, a2v) for time, kind, a2v in model.runs if kind == "null"] == [(1000, False), (500, True)]


def test_a_solver_that_goes_back_in_time_gets_a_null_pass_of_its_own():
    times = [(0, 1000), (1, 900), (1, 950), (2, 800)]
    model, _ = run(Savings(reuse=10), times=times)
    assert null_steps(model) == [0]
    model, _ = run(Savings(reuse=10), times=[(1, 900), (1, 950), (2, 800)])
    assert [time for time, kind, _ in model.runs if kind == "null"] == [900, 950]


def test_calls_within_a_step_share_its_null_pass():
    times = [(0, 1000), (1, 900), (1, 900), (2, 800), (2, 800), (3, 700)]
    model, _ = run(Savings(reuse=2), times=times)
    assert [time for time, kind, _ in model.runs if kind == "null"] == [1000, 800]


@pytest.mark.parametrize("parts", [(4,), (2, 6)])
def test_the_parts_of_a_schedule_run_the_null_passes_of_the_whole(parts):
    """Where a part begins with a step that runs it anyway; else that step runs it too."""
    whole, _ = run(Savings(reuse=2))
    edges = [0, *parts, STEPS]
    runs = []
    for first, end in pairwise(edges):
        runs += run(Savings(reuse=2), times=[(i, 1000 - 100 * i) for i in range(first, end)])[0].runs
    assert runs == whole.runs


def test_off_is_bit_for_bit_what_it_was(model):
    plain = sample(model, JOINT, TEXTS, NULL, Guidance(skip_layers=(1,)), steps=3)
    again = sample(model, JOINT, TEXTS, NULL, Guidance(skip_layers=(1,)), steps=3, savings=Savings())
    assert torch.equal(plain.video, again.video)
    assert torch.equal(plain.audio, again.audio)
    assert plain.passes == again.passes == 6


@pytest.mark.parametrize(
    ("savings", "passes"), [(Savings(reuse=2), 12), (Savings(reuse=4, reuse_after=0.25), 11)]
)
def test_a_run_says_how_often_the_model_was_run(released, savings, passes):
    forwards = []
    hook = released.register_forward_hook(lambda *_: forwards.append(1))
    out = sample(released, JOINT, TEXTS, NULL, Guidance(interval=1.0, skip_layers=()), 8, savings=savings)
    hook.remove()
    assert out.passes == len(forwards) == passes


class Path:
    """Asks `Passes` along a path and keeps which steps were run."""

    def __init__(self, limit: float, known: Conditioned = FREE):
        self.passes = Passes(Savings(cache=limit), known)
        self.ran = []

    def go(self, videos: list[torch.Tensor], audios: list[torch.Tensor], velocity) -> list[int]:
        """`velocity(i)`: video and audio of step i; the latents given are where the steps stand."""
        steps = len(videos)
        for i in range(steps):
            time = torch.tensor([1000.0 * (steps - i) / steps])
            needed = self.passes.needed(videos[i], audios[i], time, i, steps, False, True)
            full = Velocity(*velocity(i), {}) if needed.full else None
            self.passes.completed(full, None)
            if needed.full:
                self.ran.append(i)
        return self.ran


def straight(steps: int, like: torch.Tensor) -> list[torch.Tensor]:
    return [like + i for i in range(steps)]


def slowly(i: int, like: torch.Tensor) -> torch.Tensor:
    """Changes by about 1 % a step."""
    return torch.ones_like(like) * (1 + 0.01 * i)


def fast(i: int, like: torch.Tensor) -> torch.Tensor:
    """Changes by about half of itself a step."""
    return torch.ones_like(like) * (1 + 0.5 * i)


VIDEO, AUDIO = GIVEN["video"], GIVEN["audio"]


@pytest.mark.parametrize(
    ("video", "audio", "ran"),
    [
        (slowly, slowly, [0, 1, 5, 9]),
        (slowly, fast, list(range(10))),
        (fast, slowly, list(range(10))),
        (fast, fast, list(range(10))),
    ],
)
def test_a_step_is_left_out_only_where_both_streams_hardly_change(video, audio, ran):
    path = Path(0.035)
    at = straight(10, VIDEO), straight(10, AUDIO)
    assert path.go(*at, lambda i: (video(i, VIDEO), audio(i, AUDIO))) == ran


def test_a_stream_that_is_conditioned_whole_is_not_asked():
    known = Conditioned(torch.zeros(3, dtype=torch.bool), torch.ones(23, dtype=torch.bool))
    path = Path(0.035, known)
    at = straight(10, VIDEO), straight(10, AUDIO)
    assert path.go(*at, lambda i: (slowly(i, VIDEO), fast(i, AUDIO))) == [0, 1, 5, 9]


def test_conditioned_frames_do_not_count():
    known = Conditioned(torch.tensor([True, False, False]), torch.zeros(23, dtype=torch.bool))
    path = Path(0.035, known)

    def velocity(i):
        video = slowly(i, VIDEO)
        video[:, :, 0] = 100.0 * i
        return video, slowly(i, AUDIO)

    assert path.go(straight(10, VIDEO), straight(10, AUDIO), velocity) == [0, 1, 5, 9]


def test_one_restless_clip_of_a_batch_keeps_all_running():
    video, audio = VIDEO.repeat(2, 1, 1, 1, 1), AUDIO.repeat(2, 1, 1)

    def velocity(i):
        both = slowly(i, video)
        both[1] = 1 + 0.5 * i
        return both, slowly(i, audio)

    assert Path(0.035).go(straight(10, video), straight(10, audio), velocity) == list(range(10))


def test_a_step_that_is_left_out_takes_over_the_last_velocity_whole():
    passes = Passes(Savings(cache=0.5), FREE)
    found = []
    for i in range(6):
        time = torch.tensor([1000.0 - 100 * i])
        needed = passes.needed(VIDEO + i, AUDIO + i, time, i, 6, True, True)
        full = Velocity(slowly(i, VIDEO), slowly(i, AUDIO), {}) if needed.full else None
        null = Velocity(VIDEO * 0, AUDIO * 0, {}) if needed.null else None
        found.append(passes.completed(full, null))
        assert needed.full == needed.null
    values = [float(full.video.unique()) for full, _ in found]
    assert values == pytest.approx([1.0, 1.01, 1.01, 1.01, 1.01, 1.05])
    for _, null in found:
        assert null is not None
        assert null.video.abs().max() < 1e-6
    assert passes.runs == 6


def test_a_call_at_the_same_or_an_earlier_time_is_run():
    passes = Passes(Savings(cache=1.0), FREE)
    ran = []
    for time in (1000, 900, 800, 800, 850, 700):
        needed = passes.needed(VIDEO, AUDIO + time, torch.tensor([float(time)]), 0, 10, False, True)
        passes.completed(Velocity(VIDEO, AUDIO, {}) if needed.full else None, None)
        ran.append(needed.full)
    assert ran == [True, True, False, True, True, False]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reuse": 0}, "0 steps"),
        ({"reuse_after": 1.5}, "reuse_after is 1.5"),
        ({"null_until": -0.1}, "null_until is -0.1"),
        ({"cache": 2.0}, "limit is 2.0"),
    ],
)
def test_savings_that_cannot_be_are_an_error(values, said):
    with pytest.raises(UserError, match=said):
        Savings(**values)


def test_presets_have_names_and_exact_leaves_nothing_out():
    assert list(PRESETS) == ["draft", "standard", "exact"]
    assert PRESETS["exact"].savings == Savings()
    assert [PRESETS["exact"].steps(n) for n in (1, 16, 50)] == [1, 16, 50]
    assert find_preset(None) is PRESETS[DEFAULT_PRESET]
    with pytest.raises(UserError, match="'fast' is unknown; choose one of draft, standard, exact"):
        find_preset("fast")


def test_a_request_takes_steps_and_savings_from_its_preset_and_what_it_names_itself_wins(tmp_path):
    given = Request("joint", str(tmp_path / "a.mp4"), "Hello.", image="a.png", preset="draft", steps=30)
    done = given.completed(SamplingDefaults())
    assert (done.steps, done.savings) == (PRESETS["draft"].steps(30), PRESETS["draft"].savings)
    done = replace(given, savings=Savings(reuse=4)).completed(SamplingDefaults())
    assert (done.steps, done.savings) == (PRESETS["draft"].steps(30), Savings(reuse=4))
    with pytest.raises(UserError, match="preset 'quick' is unknown"):
        replace(given, preset="quick").completed(SamplingDefaults())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--reuse", "0", "0 steps"),
        ("--cache", "3", "limit is 3.0"),
        ("--null-until", "2", "null_until is 2.0"),
    ],
)
def test_the_command_line_refuses_savings_that_cannot_be(option, value, said, tmp_path, capsys):
    out = tmp_path / "a.mp4"
    assert main(["generate", "--text", "Hello.", "--out", str(out), option, value]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
