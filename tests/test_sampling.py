"""From noise to a clip: the schedule, Euler's steps, and known frames that stay exactly as they were."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import inputs

from uniavgen_core import oracle
from uniavgen_core.conditioning import Anew, Span, condition
from uniavgen_core.errors import UserError
from uniavgen_core.model.config import TINY
from uniavgen_core.model.inputs import TextConditioning, Velocity
from uniavgen_core.sampling.guidance import Guidance
from uniavgen_core.sampling.sampler import Cancelled, integrate, sample, schedule

FRAMES, MELS = 3, 17
GIVEN = inputs(TINY, frames=FRAMES, mels=MELS, reference_mels=5)
IMAGE, VIDEO, MEL, VOICE = (GIVEN[k] for k in ("reference_image", "video", "audio", "reference_mel"))
TEXTS = TextConditioning(GIVEN["caption"], GIVEN["speech"])
NULL = TextConditioning(GIVEN["caption"][:, :2], GIVEN["speech"][:, :4])
GUIDANCE = Guidance(skip_layers=(1,))
TASKS = {
    "joint": condition("joint", IMAGE, None, FRAMES, MELS),
    "reference-voice": condition("reference-voice", IMAGE, None, FRAMES, MELS, reference_mel=VOICE),
    "continuation": condition("continuation", VIDEO, MEL, FRAMES, MELS, anew=Anew(Span(2, 3), Span(6, MELS))),
    "dubbing": condition("dubbing", VIDEO, None, FRAMES, MELS),
    "audio-driven": condition("audio-driven", IMAGE, MEL, FRAMES, MELS),
    "edit": condition("edit", VIDEO, MEL, FRAMES, MELS, anew=Anew(Span(1, 2), Span(4, 9))),
    "edit of the audio": condition("edit", VIDEO, MEL, FRAMES, MELS, anew=Anew(audio=Span(4, 9))),
}


def falling(video, audio, time, step, steps) -> Velocity:
    """A velocity that depends on everything it is given."""
    t = time.view(-1, 1, 1) / 1000
    return Velocity(0.3 * video + t.view(-1, 1, 1, 1, 1), torch.sin(audio) * t + step / steps, {0: time})


# the schedule


@pytest.mark.parametrize("steps", [1, 2, 4, 25, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_times_fall_from_1000_to_0_as_the_formula_says(steps, shift):
    times = schedule(steps, shift)
    assert times.dtype == torch.float32
    assert times.shape == (steps + 1,)
    assert times[0] == 1000
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert torch.allclose(
        times.double(), torch.tensor(oracle.times(steps, shift)).double(), rtol=1e-6, atol=0
    )


def test_the_schedule_is_computed_in_float32_as_written():
    times = []
    for t in [*torch.linspace(1000, 1, 50, dtype=torch.float32), torch.tensor(0.0)]:
        u = t / 1000
        times.append(1000 * (5.0 * u / (1 + (5.0 - 1) * u)))
    assert torch.equal(schedule(50), torch.stack(times))


@pytest.mark.parametrize(
    ("steps", "shift", "said"),
    [
        (0, 5.0, "0 steps"),
        (-2, 5.0, "-2 steps"),
        (4, 0.0, "shift is 0"),
        (4, -1.0, "-1"),
        (4, math.nan, "nan"),
    ],
)
def test_a_schedule_that_cannot_be_is_an_error(steps, shift, said):
    with pytest.raises(UserError, match=said):
        schedule(steps, shift)


# the loop


def test_each_step_is_eulers():
    times = schedule(6, 3.0)
    out = integrate(falling, VIDEO, MEL, times)
    video, audio = VIDEO.clone(), MEL.clone()
    for i in range(6):
        velocity = falling(video, audio, times[i].expand(1), i, 6)
        dt = float(times[i] - times[i + 1]) / 1000
        video, audio = video - velocity.video * dt, audio - velocity.audio * dt
    assert torch.allclose(out.video, video, atol=1e-6)
    assert torch.allclose(out.audio, audio, atol=1e-6)
    assert torch.equal(out.face_masks[0], times[5:6])


def test_a_constant_velocity_leads_from_noise_to_the_data_in_any_number_of_steps():
    data = torch.randn_like(VIDEO), torch.randn_like(MEL)
    velocity = Velocity(VIDEO - data[0], MEL - data[1], {})
    for steps in (1, 7):
        out = integrate(lambda *_: velocity, VIDEO, MEL, schedule(steps))
        assert torch.allclose(out.video, data[0], atol=1e-5)
        assert torch.allclose(out.audio, data[1], atol=1e-5)


def test_progress_is_told_after_every_step():
    told = []
    integrate(falling, VIDEO, MEL, schedule(3), on_step=lambda done, steps: told.append((done, steps)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("done", [0, 2])
def test_a_run_can_be_cancelled_between_steps(done):
    told = []
    callbacks = {"on_step": lambda i, _: told.append(i), "cancelled": lambda: len(told) == done}
    with pytest.raises(Cancelled, match=f"cancelled after {done} of 5 steps") as error:
        integrate(falling, VIDEO, MEL, schedule(5), **callbacks)
    assert len(told) == done
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize("branch", ["video", "audio"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_velocity_that_is_not_finite_is_an_error_at_its_step(branch, value):
    def breaking(video, audio, time, step, steps):
        velocity = falling(video, audio, time, step, steps)
        if step == 2:
            getattr(velocity, branch).view(-1)[3] = value
        return velocity

    with pytest.raises(UserError, match=r"not finite at step 3 of 4.*bf16 or fp32") as error:
        integrate(breaking, VIDEO, MEL, schedule(4))
    assert "\n" not in str(error.value)


# whole runs


@pytest.mark.parametrize("mode", TASKS)
def test_known_frames_come_back_exactly_in_every_mode(model, mode):
    task = TASKS[mode]
    out = sample(model, task, TEXTS, NULL, GUIDANCE, steps=3)
    assert out.video.shape == VIDEO.shape
    assert out.audio.shape == MEL.shape
    assert out.video.dtype == out.audio.dtype == torch.float32
    keep_video, keep_audio = task.conditioned_video, task.conditioned_audio
    assert torch.equal(out.video[:, :, keep_video], task.clean_video[:, :, keep_video])
    assert torch.equal(out.audio[:, keep_audio], task.clean_audio[:, keep_audio])
    assert out.video.isfinite().all()
    assert out.audio.isfinite().all()


@pytest.mark.parametrize("mode", TASKS)
def test_known_frames_are_clean_at_every_step_in_what_the_model_sees(released, mode):
    task, seen = TASKS[mode], []
    hook = released.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    sample(released, task, TEXTS, NULL, GUIDANCE, steps=3)
    hook.remove()
    assert len(seen) == 6
    for video, audio in seen:
        assert torch.equal(
            video[:, :, task.conditioned_video], task.clean_video[:, :, task.conditioned_video]
        )
        assert torch.equal(audio[:, task.conditioned_audio], task.clean_audio[:, task.conditioned_audio])


def test_the_same_seed_gives_the_same_clip_and_another_seed_another(model):
    def clip(seed: int):
        return sample(model, TASKS["joint"], TEXTS, NULL, GUIDANCE, steps=2, seed=seed)

    first, again, other = clip(1), clip(1), clip(2)
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.audio, again.audio)
    assert not torch.allclose(first.video, other.video, atol=1e-2)
    assert not torch.allclose(first.audio, other.audio, atol=1e-2)


@pytest.mark.parametrize(("guidance", "passes"), [(Guidance.none(), 1), (GUIDANCE, 2)])
def test_forwards_of_a_run(released, guidance, passes):
    forwards = []
    hook = released.register_forward_hook(lambda *_: forwards.append(1))
    sample(released, TASKS["joint"], TEXTS, NULL, guidance, steps=4)
    hook.remove()
    assert len(forwards) == 4 * passes


@pytest.mark.parametrize(("mode", "still"), [("dubbing", "blocks"), ("audio-driven", "audio_blocks")])
def test_a_known_branch_runs_once_for_each_pass_of_a_whole_run(model, mode, still):
    """Once for the full pass and once for the null pass, inside and outside the interval alike."""
    calls = []
    hook = model.get_submodule(f"{still}.0").register_forward_hook(lambda *_: calls.append(1))
    sample(model, TASKS[mode], TEXTS, NULL, GUIDANCE, steps=6)
    hook.remove()
    assert len(calls) == 2


@pytest.mark.parametrize("mode", TASKS)
def test_a_whole_run_equals_the_transcription(model, mode):
    """Every mode in both variants, past the middle of the schedule, in float64."""
    task, config = TASKS[mode], model.config
    if config.variant == "paper" and mode == "reference-voice":
        task = condition("reference-voice", IMAGE, None, FRAMES, MELS, variant="paper", reference_mel=VOICE)
    state = {k: v.double() for k, v in model.state_dict().items()}
    n_v, n_a = task.conditioned_video, task.conditioned_audio
    voice = None if task.reference_mel is None else task.reference_mel[0].double()
    video, audio = (x[0].double() for x in task.noise(7))
    times = oracle.times(2, 5.0)
    for i in range(2):
        passes = []
        for texts, a2v, v2a, skip in (
            (TEXTS, True, mode != "reference-voice" or config.variant == "paper", ()),
            (NULL, i >= 1, i >= 1, (1,)),
        ):
            seen = video.clone(), audio.clone()
            seen[0][:, n_v] = task.clean_video[0, :, n_v].double()
            seen[1][n_a] = task.clean_audio[0, n_a].double()
            clip = oracle.Clip(
                *seen, times[i], texts.caption[0].double(), texts.speech[0].double(),
                task.reference_image[0].double(), voice, n_v, n_a, a2v, v2a, skip,
            )  # fmt: skip
            passes.append(oracle.forward(state, config, clip))
        (full_v, full_a, _), (null_v, null_a, _) = passes
        dt = (times[i] - times[i + 1]) / 1000
        video = video - dt * (null_v + 3 * (full_v - null_v))
        audio = audio - dt * (null_a + 2 * (full_a - null_a))
    video[:, n_v] = task.clean_video[0, :, n_v].double()
    audio[n_a] = task.clean_audio[0, n_a].double()
    out = sample(model, task, TEXTS, NULL, GUIDANCE, steps=2, seed=7)
    assert oracle.relative_error(out.video[0], video) < 1e-5
    assert oracle.relative_error(out.audio[0], audio) < 1e-5


def test_face_masks_of_the_last_step_are_returned(released):
    out = sample(released, TASKS["joint"], TEXTS, NULL, GUIDANCE, steps=2)
    assert out.face_masks.keys() == {0, 1}
    for mask in out.face_masks.values():
        assert mask.shape == (1, FRAMES, 2 * 3)
        assert ((mask > 0) & (mask < 1)).all()
