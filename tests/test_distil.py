"""One pass for two: what the student is shown, what it learns, and that it is a model like any other."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import forward, inputs, needs_accelerate, randomise
from test_training import caption_states, random_sample

from uniavgen_core.cli import main
from uniavgen_core.conditioning import condition
from uniavgen_core.errors import UserError
from uniavgen_core.model.config import TINY, Config
from uniavgen_core.model.dit import DualBranchDiT
from uniavgen_core.model.inputs import TextConditioning
from uniavgen_core.sampling.defaults import Guidance
from uniavgen_core.sampling.guidance import GuidedModel, mix
from uniavgen_core.sampling.sampler import sample, schedule
from uniavgen_core.training.data import Latents, prepare
from uniavgen_core.training.distil import (
    Distillation,
    Lesson,
    LessonBatches,
    edges_of,
    new_student,
    train_distil,
)
from uniavgen_core.training.loop import Run
from uniavgen_core.weights.checkpoint import load_model
from uniavgen_core.weights.convert import save_checkpoint

SIZES = {"caption_dim": 16, "patch": (1, 1)}


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Latents:
    folder = tmp_path_factory.mktemp("clips") / "latents"
    return prepare(folder, 6, random_sample, {"clips": "random"}, caption_states)


def lesson(**changes) -> Lesson:
    values = {
        "name": "distil",
        "steps": 6,
        "batch": 2,
        "learning_rate": 1e-3,
        "tasks": {"joint": 1.0},
        "warmup": 1,
        "guidance": Guidance(3.0, 2.0, 1.0, ()),
        "points": 4,
    }
    return Lesson(**{**values, **changes})


@pytest.mark.parametrize("variant", ["released", "paper", "aligned"])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (5.0, 2.0)])
def test_a_new_student_is_its_teacher_whatever_scales_it_is_told(make_model, variant, scales):
    teacher = make_model(variant)
    student = new_student(teacher)
    given = inputs(teacher.config)
    plain = forward(teacher, **given)
    found = forward(student, **given, scales=torch.tensor([scales]))
    assert torch.equal(plain.video, found.video)
    assert torch.equal(plain.audio, found.audio)


def test_scales_change_what_is_generated_and_leave_clean_frames_alone(make_model):
    """What is conditioned whole is replayed for any scales, so it must not hear them."""
    student = randomise(new_student(make_model("released")))
    seen = {}
    hook = student.blocks[0].register_forward_pre_hook(lambda _, args: seen.__setitem__("time", args[1]))
    given = inputs(student.config)
    known = torch.tensor([True, False, False])
    found = []
    for scales in ((1.0, 1.0), (4.0, 2.0)):
        out = forward(student, **given, conditioned_video=known, scales=torch.tensor([scales]))
        found.append((out, seen["time"].embedding))
    hook.remove()
    (one, first), (other, second) = found
    assert not torch.allclose(one.video, other.video)
    assert not torch.allclose(one.audio, other.audio)
    assert torch.equal(first[:, :2], second[:, :2])  # the reference image and the conditioned frame
    assert not torch.allclose(first[:, 2:], second[:, 2:])


def test_scales_are_for_distilled_models_alone(make_model):
    model = make_model("released")
    with pytest.raises(ValueError, match="not distilled"):
        forward(model, **inputs(model.config), scales=torch.ones(1, 2))


def test_a_distilled_checkpoint_is_known_by_its_tensors_and_others_are_as_before(make_model, tmp_path):
    teacher = make_model("paper")
    student = randomise(new_student(teacher))
    for name, model in (("teacher", teacher), ("student", student)):
        save_checkpoint(tmp_path / f"{name}.safetensors", model.state_dict().items(), model.config, "fp32")
    assert load_model(tmp_path / "student.safetensors").config == student.config
    assert load_model(tmp_path / "student.safetensors").config.distilled
    assert load_model(tmp_path / "teacher.safetensors").config == teacher.config
    assert "distilled" not in teacher.config.to_dict()
    assert Config.from_dict(student.config.to_dict()) == student.config
    assert len(DualBranchDiT(TINY, device="meta").state_dict()) + 8 == len(
        DualBranchDiT(Config(**{**vars(TINY), "distilled": True}), device="meta").state_dict()
    )


def test_a_distilled_model_is_sampled_in_one_pass_a_step_and_told_the_scales(make_model):
    student = randomise(new_student(make_model("released")))
    given = inputs(student.config)
    texts = TextConditioning(given["caption"], given["speech"])
    task = condition("joint", given["reference_image"], None, 3, 23)
    told = []
    hook = student.register_forward_pre_hook(
        lambda _, args, options: told.append(options["scales"].tolist()), with_kwargs=True
    )
    guidance = Guidance(3.5, 1.5, 0.5, ())
    out = sample(student, task, texts, texts, guidance, steps=4)
    hook.remove()
    assert told == [[[3.5, 1.5]]] * 4
    assert out.passes == 4


@pytest.mark.parametrize("jump", [1, 2, 4])
def test_the_students_times_are_those_of_the_sampler_and_the_teachers_lie_between(jump):
    edges = edges_of(8, 3.0, jump)
    assert edges.shape == (8, jump + 1)
    assert torch.equal(1000 * edges[:, 0], schedule(8, 3.0)[:-1])
    assert torch.equal(edges[1:, 0], edges[:-1, -1])
    assert edges[-1, -1] == 0
    assert (edges.diff(dim=1) < 0).all()


def test_half_of_the_samples_have_the_models_own_scales_and_the_rest_the_range(latents):
    batches = LessonBatches(latents, lesson(batch=40, steps=10, s_v=(2.0, 4.0), s_a=(1.0, 1.5)), seed=0)
    scales = torch.cat([batches[i].scales for i in range(10)])
    own = (scales == torch.tensor([3.0, 2.0])).all(1)
    assert 0.4 < own.float().mean() < 0.6
    assert scales[~own].amin(0).tolist() == pytest.approx([2.0, 1.0], abs=0.1)
    assert scales[~own].amax(0).tolist() == pytest.approx([4.0, 1.5], abs=0.1)


def test_a_batch_has_one_kind_of_null_pass_and_texts_are_never_dropped(latents):
    batches = LessonBatches(latents, lesson(batch=8, steps=20, guidance=Guidance(interval=0.5)), seed=0)
    times = schedule(4) / 1000
    kinds = set()
    for i in range(20):
        batch = batches[i]
        places = [int((times - time).abs().argmin()) for time in batch.time]
        assert {place >= 2 for place in places} == {batch.null_interacts}
        kinds.add(batch.null_interacts)
        assert batch.interaction
        assert all(batch.captions)
        assert torch.equal(batch.time, batch.edges[:, 0])
    assert kinds == {False, True}


@pytest.mark.parametrize("jump", [1, 2])
def test_the_target_is_the_mean_velocity_of_the_teachers_guided_steps(make_model, latents, jump):
    teacher = make_model("paper", **SIZES)
    taught = lesson(jump=jump)
    objective = Distillation(new_student(teacher), teacher, taught.guidance, torch.float32)
    batch = LessonBatches(latents, taught, seed=3)[0]
    seen = {}
    objective._led = lambda guided, batch, start: seen.update(guided=guided, start=start) or (start, start)
    objective(batch)
    del objective._led
    guided, (video, audio) = seen["guided"], seen["start"]
    (found, _), (x, y) = objective._led(guided, batch, (video, audio)), (video, audio)
    s_v, s_a = (scale.view(-1, 1, 1, 1, 1) for scale in batch.scales.T)
    for now, then in zip(batch.edges.T, batch.edges.T[1:]):
        full = guided.full(x, y, 1000 * now)
        null = guided.null(x, y, 1000 * now, False)
        dt = (now - then).view(-1, 1, 1, 1, 1)
        x = x - dt * mix(null.video, full.video, s_v)
        y = y - dt[..., 0, 0] * mix(null.audio, full.audio, s_a[..., 0, 0])
        x, y = guided.task.apply(x, y)
    whole = (batch.edges[:, 0] - batch.edges[:, -1]).view(-1, 1, 1, 1, 1)
    assert torch.allclose(found[0][:, :, 1:], ((video - x) / whole)[:, :, 1:], atol=1e-4)
    assert torch.allclose(found[1], (audio - y) / whole[..., 0, 0], atol=1e-4)


def test_an_untaught_student_is_as_far_off_as_the_full_pass_alone(make_model, latents):
    teacher = make_model("paper", **SIZES)
    objective = Distillation(new_student(teacher), teacher, lesson().guidance, torch.float32)
    losses = objective(LessonBatches(latents, lesson(), seed=1)[0])
    assert losses["video"] > 0
    assert torch.isclose(losses["video"], losses["video_plain"], rtol=1e-4)
    assert torch.isclose(losses["audio"], losses["audio_plain"], rtol=1e-4)
    losses["loss"].backward()
    assert objective.model.guidance_embedding[2].weight.grad.any()
    assert all(p.grad is None for p in teacher.parameters())


@needs_accelerate
def test_the_student_learns_to_be_led_and_its_file_is_a_model(make_model, latents, tmp_path):
    teacher = make_model("paper", **SIZES)
    save_checkpoint(tmp_path / "teacher.safetensors", teacher.state_dict().items(), teacher.config, "fp32")
    taught = lesson(steps=12, learning_rate=5e-3, s_v=(3.0, 3.0), s_a=(2.0, 2.0), points=1)
    file = train_distil(
        tmp_path / "teacher.safetensors", latents, tmp_path / "out", taught, run=Run(save_every=12)
    )
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    shares = [(row["video"] + row["audio"]) / (row["video_plain"] + row["audio_plain"]) for row in log]
    assert shares[0] == pytest.approx(1, rel=1e-3)
    assert max(shares[-2:]) < 0.8
    assert load_model(file).config.distilled


@needs_accelerate
def test_a_lora_is_distilled_for_one_pair_of_scales(make_model, latents, tmp_path):
    teacher = make_model("paper", **SIZES)
    save_checkpoint(tmp_path / "teacher.safetensors", teacher.state_dict().items(), teacher.config, "fp32")
    with pytest.raises(UserError, match="one value for --s-v and --s-a"):
        train_distil(tmp_path / "teacher.safetensors", latents, tmp_path / "out", lesson(), rank=2)
    taught = lesson(s_v=(3.0, 3.0), s_a=(2.0, 2.0), steps=2)
    file = train_distil(tmp_path / "teacher.safetensors", latents, tmp_path / "out", taught, rank=2)
    assert file.name == "lora.safetensors"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {"audio": 1.0}}, "cannot be distilled"),
        ({"s_v": (4.0, 2.0)}, "must rise"),
        ({"jump": 0}, "at least 1"),
        ({"points": 0}, "0 points"),
    ],
)
def test_a_lesson_that_cannot_be_is_an_error(changes, said):
    with pytest.raises(UserError, match=said):
        lesson(**changes)


@pytest.mark.parametrize("text", ["1,2,3", "high", ""])
def test_a_range_that_is_none_is_told(text, latents, tmp_path, capsys):
    arguments = ["--latents", str(latents.folder), "--out", str(tmp_path / "out"), "--s-v", text]
    assert main(["train", "distil", *arguments]) == 2
    assert "--s-v is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_guided_model_tells_a_batch_its_own_scales(make_model):
    student = randomise(new_student(make_model("released")))
    given = inputs(student.config, batch=2)
    texts = TextConditioning(given["caption"], given["speech"])
    task = condition("joint", given["reference_image"], None, 3, 23)
    guided = GuidedModel(student, task, texts, texts, Guidance(3.0, 2.0, 1.0, ()))
    time = torch.full((2,), 500.0)
    video, audio = task.apply(given["video"], given["audio"])
    both = guided.full(video, audio, time, torch.tensor([[3.0, 2.0], [1.0, 1.0]]))
    own = guided.full(video, audio, time)
    assert torch.allclose(both.video[0], own.video[0], atol=1e-6)
    assert not torch.allclose(both.video[1], own.video[1], atol=1e-3)
