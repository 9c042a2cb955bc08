"""Training: what is learnt from, that it is learnt, and that nothing of a run depends on how it was run."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import forward, needs_accelerate, needs_espeak
from safetensors.torch import load_file

from uniavgen_core.cli import main
from uniavgen_core.conditioning import masks
from uniavgen_core.errors import UserError
from uniavgen_core.media import files
from uniavgen_core.model.config import Config
from uniavgen_core.model.dit import DualBranchDiT
from uniavgen_core.theatre.recipe import EMBEDDED
from uniavgen_core.training import cast_ops, command
from uniavgen_core.training.data import Batches, Latents, Sample, one_clip, prepare
from uniavgen_core.training.initialise import initialise
from uniavgen_core.training.objective import (
    MODES,
    Objective,
    TextGuide,
    flow_loss,
    token_mask,
)
from uniavgen_core.training.recipe import TASK_MIX, Recipe, Stage, group_of, paper_stages
from uniavgen_core.weights.checkpoint import load_model
from uniavgen_core.weights.convert import save_checkpoint

ROOT = Path(__file__).parents[1]
TASKS = MODES[2:]
SIZES = Config(
    variant="paper",
    video_dim=48,
    video_heads=2,
    video_ffn=96,
    audio_dim=48,
    audio_heads=2,
    audio_ffn=96,
    layers=2,
    interaction_layers=(0, 1),
    freq_dim=32,
    caption_dim=16,
    caption_length=16,
    speech_dim=32,
    speech_layers=1,
    patch=(1, 1),
)

needs_opencv = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed")


def random_sample(index: int, frames: int = 5, side: int = 2, mels: int = 106) -> Sample:
    generator = torch.Generator().manual_seed(index)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    audio = normal(mels, 80)
    return Sample(
        video=normal(48, frames, side, side),
        audio=audio,
        audio_peak=audio + 0.1,
        mask=torch.rand(frames, side, side, generator=generator),
        transcript="hello " * (1 + index % 3) + "world",
        caption=f"person {index}",
        language="en",
        voice=normal(12 + index % 2, 80),
        voice_transcript="a voice",
    )


def caption_states(texts: list[str]) -> torch.Tensor:
    return torch.stack([torch.full((3, 16), len(text) / 10) for text in texts])


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Latents:
    folder = tmp_path_factory.mktemp("clips") / "latents"
    return prepare(folder, 10, random_sample, {"clips": "random"}, caption_states)


def stage(**changes) -> Stage:
    values = {"name": "only", "steps": 20, "batch": 4, "learning_rate": 1e-3, "tasks": TASK_MIX, "warmup": 5}
    return Stage(**{**values, **changes})


def batch_of(latents: Latents, mode: str, **changes):
    return Batches(latents, stage(tasks={mode: 1}, null_share=0.0, **changes), seed=1)[0]


def trainable(make_model, variant: str = "paper", **sizes) -> Objective:
    """Every weight random, so that nothing is hidden behind a zero."""
    sizes = {"caption_dim": 16, "patch": (1, 1), **sizes}
    return Objective(make_model(variant, **sizes).requires_grad_(True))


@pytest.mark.parametrize("mode", TASKS)
def test_known_frames_carry_no_loss(mode, make_model, latents):
    objective = trainable(make_model)
    batch = batch_of(latents, mode)
    video, audio = masks(mode, 5, 106, batch.anew)
    losses = objective(batch, 0.1)
    batch.video_noise[:, :, video] += 5
    batch.audio_noise[:, audio] += 5
    again = objective(batch, 0.1)
    assert torch.equal(losses["loss"], again["loss"])
    if mode != "edit":
        assert (losses["video"] == 0) == (mode == "dubbing")
        assert (losses["audio"] == 0) == (mode == "audio-driven")
    assert torch.isclose(losses["loss"], losses["video"] + losses["audio"] + 0.1 * losses["mask"])


def test_a_model_that_knows_the_answer_has_no_loss(latents):
    batch = batch_of(latents, "joint")
    model = DualBranchDiT(SIZES)
    model.forward = lambda video, audio, *args, **options: argparse.Namespace(
        video=batch.video_noise - batch.video,
        audio=batch.audio_noise - batch.audio,
        face_masks={0: token_mask(batch.mask, (1, 1))},
    )
    assert Objective(model)(batch, 0.1)["loss"] == 0


def test_the_face_mask_is_learnt_per_token():
    face = torch.zeros(1, 1, 3, 4)
    face[0, 0, :2, :2] = 1  # 2 x 2 of 3 x 4 cells; the last row of tokens repeats the edge
    assert token_mask(face, (2, 2)).tolist() == [[[1, 0, 0, 0]]]
    assert token_mask(face, (1, 1)).sum() == 4


@pytest.mark.parametrize("variant", ["released", "paper", "aligned"])
def test_every_weight_of_all_variants_learns(variant, make_model, latents):
    objective = trainable(make_model, variant)
    for mode in ("joint", "reference-voice"):
        objective(batch_of(latents, mode), 0.1)["loss"].backward()
    still = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["model.audio_padding"]  # stands where no token looks


def test_the_audio_stage_leaves_the_picture_alone(make_model, latents):
    objective = trainable(make_model)
    losses = objective(batch_of(latents, "audio"), 0.1)
    losses["loss"].backward()
    moved = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert losses["video"] == losses["mask"] == 0
    assert moved
    assert not any(n.startswith(("model.blocks", "model.a2v", "model.v2a", "model.head.")) for n in moved)


def test_texts_of_different_length_are_encoded_as_in_inference(make_model, latents):
    objective = trainable(make_model)
    batch = batch_of(latents, "joint")
    assert len(set(batch.speech_lengths.tolist())) > 1
    together = objective.speech_features(batch.speech, batch.speech_lengths)
    for features, ids, length in zip(together, batch.speech, batch.speech_lengths):
        alone = objective.model.text_embedding(ids[None, :length])[0]
        torch.testing.assert_close(features[:length], alone)


def test_half_precision_and_recomputation_change_rounding_only(make_model, latents):
    from uniavgen_core.training.objective import recompute_blocks

    model = make_model("paper", ops=cast_ops, caption_dim=16, patch=(1, 1))
    batch = batch_of(latents, "joint")
    exact = Objective(model)(batch, 0.1)["loss"]
    half = Objective(model, dtype=torch.bfloat16)(batch, 0.1)["loss"]
    assert 0 < abs(half - exact) < 0.02 * exact
    model.requires_grad_(True)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        Objective(model)(batch, 0.1)["loss"].backward()
        gradients.append(model.blocks[0].self_attn.q.weight.grad.clone())
        recompute_blocks(model)
    assert torch.equal(*gradients)


def test_tasks_are_mixed_4_1_1_2_2_and_a_tenth_of_the_steps_is_the_null_pass(latents):
    batches = Batches(latents, stage(steps=1500, batch=1), seed=0)
    drawn = [batches[step] for step in range(1500)]
    counts = Counter(batch.mode for batch in drawn)
    assert TASK_MIX.keys() == set(TASKS)  # a mode that is not trained says so
    for task, weight in TASK_MIX.items():
        assert abs(counts[task] / 1500 - weight / 10) < 0.03
    null = [batch for batch in drawn if not batch.interaction]
    assert abs(len(null) / 1500 - 0.1) < 0.03
    assert {batch.captions[0] for batch in null} == {""}
    silent = [batch for batch in drawn if batch.interaction and batch.captions[0] == ""]
    assert abs(len(silent) / 1500 - 0.045) < 0.02


def test_times_are_half_uniform_half_logit_normal(latents):
    for share, middle in ((0.0, 0.5), (1.0, 0.729)):  # of a logit-normal, 73 % lie in 1/4..3/4
        batches = Batches(latents, stage(steps=1, batch=1000, logit_normal=share), seed=0)
        times = batches[0].time
        assert 0 < times.min() < times.max() < 1
        assert abs(((times > 0.25) & (times < 0.75)).float().mean() - middle) < 0.05


def test_each_task_has_its_own_times_and_text_drop(latents):
    changes = {
        "task_shifts": {"dubbing": (10.0, 2.0), "joint": (4.0,)},
        "task_text_drop": {"dubbing": 0.3},
        "logit_normal": 0.0,
        "shift": 1.0,
    }

    def drawn(mode: str):
        only = stage(steps=1, batch=3000, tasks={mode: 1}, null_share=0.0, **changes)
        return Batches(latents, only, seed=0)[0]

    def moved(shift: float) -> float:  # the median of shifted uniform times
        return shift / (1 + shift)

    dubbing, joint, other = drawn("dubbing"), drawn("joint"), drawn("continuation")
    assert abs(joint.time.median() - moved(4)) < 0.02
    assert abs(other.time.median() - 0.5) < 0.03
    below = sum(0.8 / (s - (s - 1) * 0.8) for s in (10, 2)) / 2  # the share of t < 0.8 in the mixture
    assert abs((dubbing.time < 0.8).float().mean() - below) < 0.03
    dropped = [sum(text == "" for text in batch.captions) / 3000 for batch in (dubbing, joint)]
    assert abs(dropped[0] - 0.3) < 0.03
    assert abs(dropped[1] - 0.05) < 0.02


def test_the_interaction_has_its_own_learning_rate():
    s = stage(learning_rate=5e-4, interaction_rate=1e-3)
    for part in ("a2v_blocks.0.q.weight", "v2a_blocks.1.phase", "a2v_blocks.0.mask_head.head.bias"):
        assert s.scale(f"model.{part}") == pytest.approx(2)
    assert s.scale("model.blocks.0.self_attn.q.weight") == s.scale("caption_model.x") == 1
    assert stage().scale("model.a2v_blocks.0.q.weight") == 1


def test_frames_next_to_a_seam_weigh_more():
    data, noise = torch.zeros(1, 12, 1), torch.zeros(1, 12, 1)
    known = torch.tensor([True, False, False, False, False, True, True, False, False, False, False, False])
    velocity = torch.arange(12.0).view(1, 12, 1)
    near, far = [1, 2, 3, 4, 7, 8], [9, 10, 11]
    weights = torch.tensor([3.0] * len(near) + [1.0] * len(far))
    squares = velocity.flatten()[near + far].square()
    expected = (weights * squares).sum() / weights.sum()
    assert torch.isclose(flow_loss(velocity, noise, data, known, 1, 2, 3.0), expected)
    assert torch.isclose(flow_loss(velocity, noise, data, known, 1), squares.mean())
    assert flow_loss(velocity, noise, data, torch.ones(12, dtype=torch.bool), 1, 2, 3.0) == 0


@pytest.mark.parametrize("mode", ["dubbing", "audio-driven"])
def test_a_branch_known_whole_is_read_without_a_gradient(mode, make_model, latents):
    objective = trainable(make_model, "aligned")
    objective(batch_of(latents, mode), 0.1)["loss"].backward()
    learns = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    whole, other = ("blocks", "audio_blocks") if mode == "dubbing" else ("audio_blocks", "blocks")
    reads = "v2a_blocks" if mode == "dubbing" else "a2v_blocks"
    assert not any(n.startswith(f"model.{whole}.") for n in learns)
    for part in (f"{other}.0.self_attn.q", f"{reads}.0.k", f"{reads}.0.q", "a2v_blocks.0.mask_head.head"):
        assert f"model.{part}.weight" in learns


def test_every_clip_is_seen_once_an_epoch(latents):
    batches = Batches(latents, stage(batch=5, tasks={"joint": 1}), seed=0)
    seen = [tuple(video.flatten()[:2].tolist()) for step in range(4) for video in batches[step].video]
    assert len(set(seen[:10])) == 10
    assert set(seen[:10]) == set(seen[10:])
    assert seen[:10] != seen[10:]


def test_two_processes_share_the_very_batch_of_one(latents):
    for step in range(6):
        one = Batches(latents, stage(), 3)[step]
        first, second = (Batches(latents, stage(), 3, rank, 2)[step] for rank in (0, 1))
        assert one.mode == first.mode == second.mode
        for name in ("video", "audio", "video_noise", "audio_noise", "time", "mask", "speech_lengths"):
            assert torch.equal(getattr(one, name), torch.cat((getattr(first, name), getattr(second, name))))
        assert one.captions == first.captions + second.captions
    with pytest.raises(UserError, match="3 processes"):
        Batches(latents, stage(), 3, 0, 3)


def test_a_steady_reading_is_no_fault_and_a_backward_one_is(latents):
    batch = batch_of(latents, "audio", text_drop=0.0)
    batch.audio[:] = torch.where(torch.arange(106) < 50, -1.0, 1.0)[
        None, :, None
    ]  # speech in the second half
    frame, symbols = torch.arange(106), batch.speech.shape[1]

    def fault(backward: bool) -> float:
        guide = TextGuide(batch, cast_ops.softmax_attention)
        share = ((frame - 49) / 56).clamp(0, 1)
        place = (1 - share if backward else share) * batch.speech_lengths[:, None]
        looks = -(torch.arange(symbols) - place[..., None]).square()  # [B, L, N]: near symbol `place`
        q, k = 100 * looks, torch.eye(symbols).expand(len(batch), -1, -1)
        guide(q, k, k, heads=1)
        return guide.loss().item()

    assert fault(backward=False) < 0.05
    assert fault(backward=True) > 0.6


def test_a_reference_voice_reads_its_own_words_and_the_clip_the_rest(latents):
    batch = batch_of(latents, "audio-voice", text_drop=0.0)
    assert set(batch.said_before.tolist()) == {len("a voice ")}
    guide = TextGuide(batch, cast_ops.softmax_attention)
    frames = batch.voice.shape[1] + 106
    assert guide.fault.shape == (len(batch), frames, batch.speech.shape[1])
    before = batch.voice.shape[1]
    loud = guide.spoken.bool()
    best = guide.fault.argmin(-1)
    assert (best[:, :before][loud[:, :before]] <= 8).all()
    assert (best[:, before:][loud[:, before:]] >= 8).all()
    dropped = batch_of(latents, "audio-voice", text_drop=1.0)
    guide = TextGuide(dropped, cast_ops.softmax_attention)
    assert not guide.spoken[:, before:].any()
    assert guide.spoken[:, :before].any()


def test_the_guide_draws_looks_at_the_text_and_spares_dropped_texts(make_model, latents):
    objective = trainable(make_model)
    batch = batch_of(latents, "audio", text_drop=0.0)
    plain, guided = objective(batch, 0.0), objective(batch, 0.0, 0.3)
    assert "guide" not in plain
    assert torch.isclose(guided["loss"], plain["loss"] + 0.3 * guided["guide"])
    guided["guide"].backward()
    assert objective.model.audio_blocks[0].cross_attn.q.weight.grad.abs().sum() > 0
    batch.speech[:] = torch.tensor([0] + [-1] * (batch.speech.shape[1] - 1))
    assert objective(batch, 0.0, 0.3)["guide"] == 0


def test_the_learning_rate_warms_up_and_the_mask_weight_falls_to_zero():
    s = stage(steps=100, warmup=10, decay=0.2, learning_rate=1.0)
    assert [s.rate(i) for i in (0, 9, 50, 80)] == [0.1, 1.0, 1.0, 1.0]
    assert s.rate(99) == pytest.approx(0.05)
    assert [s.loss_weights(i)["lambda_m"] for i in (0, 99)] == [0.1, 0.0]
    assert s.loss_weights(33)["lambda_m"] == pytest.approx(0.1 * 2 / 3)


def test_a_new_model_starts_as_two_independent_branches(latents):
    torch.manual_seed(0)
    model, same, other = (initialise(DualBranchDiT(SIZES), seed) for seed in (1, 1, 2))
    together = forward(model, **inputs_of(latents))
    apart = forward(model, **inputs_of(latents), a2v=False, v2a=False)
    assert torch.equal(together.video, apart.video)
    assert torch.equal(together.audio, apart.audio)
    weights, again, fresh = (m.state_dict() for m in (model, same, other))
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert not torch.equal(weights["blocks.0.self_attn.q.weight"], fresh["blocks.0.self_attn.q.weight"])


def inputs_of(latents: Latents) -> dict:
    item = latents[0]
    return {
        "video": item.video[None],
        "audio": item.audio[None],
        "time": torch.tensor([500.0]),
        "caption": item.caption_states[None],
        "speech": torch.ones(1, 10, 32),
        "reference_image": item.video[None, :, :1],
    }


def test_preparing_goes_on_where_it_stopped(tmp_path):
    made = []

    def sample(index: int) -> Sample:
        made.append(index)
        return random_sample(index, mels=20)

    prepare(tmp_path, 70, sample, {"seed": 0})
    assert made == list(range(70))
    next(tmp_path.glob("00001-*.safetensors")).unlink()
    with pytest.raises(UserError, match="1 shards are missing"):
        Latents(tmp_path)
    again = prepare(tmp_path, 70, sample, {"seed": 0})
    assert made[70:] == list(range(64, 70))
    expected = random_sample(69, mels=20)
    assert torch.equal(again[69].video, expected.video.half().float())
    assert again[69].transcript == expected.transcript
    with pytest.raises(UserError, match="other clips"):
        prepare(tmp_path, 70, sample, {"seed": 1})
    with pytest.raises(UserError, match="without a text encoder"):
        Batches(again, stage(), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"singing": 1}}, "task .*singing.* is unknown"),
        ({"task_shifts": {"dubbing": []}}, "at least one shift"),
        ({"task_shifts": {"dubbing": [10, 0]}}, "shift is 0, it must be positive"),
        ({"task_text_drop": {"dancing": 0.3}}, "task .*dancing.* is unknown"),
        ({"task_text_drop": {"dubbing": 3}}, "0..1"),
        ({"interaction_rate": 0}, "must be positive"),
        ({"guide": -0.1}, "0 or more"),
        ({"learning_rate": 0}, "must be positive"),
        ({"steps": 0}, "at least 1"),
        ({"null_share": 2}, "0..1"),
        ({"speed": 3}, "no recipe"),
    ],
)
def test_a_wrong_recipe_is_named(change, message):
    values = json.loads(json.dumps(Recipe(SIZES, (stage(),)).to_dict()))
    values["stages"][0] |= change
    with pytest.raises(UserError, match=message):
        Recipe.from_dict(values)


def test_the_command_prints_a_recipe_that_can_be_read_back(capsys):
    assert main(["train", "recipe", "embedded"]) == 0
    assert Recipe.from_dict(json.loads(capsys.readouterr().out)) == EMBEDDED
    assert main(["train", "recipe", "paper"]) == 0
    assert Recipe.from_dict(json.loads(capsys.readouterr().out)).stages == paper_stages()


@pytest.mark.parametrize("flag", ["--learning-rate", "--rate"])
def test_the_learning_rate_has_one_name_and_answers_to_its_old_one(flag):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    given = ["train", "lora", "--model", "m", "--latents", "l", "--out", "o"]
    assert parser.parse_args(given).learning_rate == 1e-4
    assert parser.parse_args([*given, flag, "0.5"]).learning_rate == 0.5


def run_command(recipe: Recipe, latents: Latents, out: Path, processes: int = 1, **popen) -> subprocess.Popen:
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".json")
    file.write_text(json.dumps(recipe.to_dict()))
    script = out.with_suffix(".py")
    script.write_text(
        "import argparse, os, sys\n"
        f"assert os.environ.get('WORLD_SIZE', '1') == '{processes}'\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from uniavgen_core.training.command import add_parser\n"
        "parser = argparse.ArgumentParser()\n"
        "add_parser(parser.add_subparsers())\n"
        "options = parser.parse_args()\n"
        "options.run(options)\n"
    )
    # `accelerate launch --cpu` starts one process however many are asked for.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    arguments = ["train", "run", str(file), "--latents", str(latents.folder), "--out", str(out)]
    return subprocess.Popen(
        [
            sys.executable,
            *(launch if processes > 1 else []),
            str(script),
            *arguments,
            "--save-every",
            "5",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def finished(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


def log_of(out: Path, name: str = "only") -> list[dict]:
    lines = (out / name / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def one_run(latents, tmp_path_factory) -> tuple[Recipe, Path]:
    """Twenty steps of all five tasks in one process."""
    from uniavgen_core.training.loop import train

    recipe = Recipe(SIZES, (stage(),), seed=5, ema=0.9)
    out = tmp_path_factory.mktemp("one") / "run"
    train(recipe, latents, out)
    return recipe, out


@needs_accelerate
def test_two_processes_learn_what_one_learns(one_run, latents, tmp_path):
    recipe, one = one_run
    two = tmp_path / "two"
    finished(run_command(recipe, latents, two, processes=2))
    expected, found = log_of(one), log_of(two)
    assert len({entry["task"] for entry in expected}) >= 4
    assert len(found) == len(expected) == 20
    for a, b in zip(expected, found):
        assert a["task"] == b["task"]
        for name in ("loss", "video", "audio", "mask", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6)
    weights, others = (load_file(out / "only" / "model.safetensors") for out in (one, two))
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-4, msg=name)


@needs_accelerate
def test_a_run_killed_in_mid_step_goes_on_as_if_nothing_had_been(one_run, latents, tmp_path):
    from uniavgen_core.training.loop import train

    recipe, one = one_run
    out = tmp_path / "killed"
    process = run_command(recipe, latents, out)
    log = out / "only" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 8):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "only" / "model.safetensors").exists()
    train(recipe, latents, out)
    assert log_of(out) == log_of(one)
    weights, others = (load_file(folder / "only" / "model.safetensors") for folder in (one, out))
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


@needs_accelerate
def test_stages_follow_each_other_and_the_first_trains_the_audio_branch_alone(latents, tmp_path):
    from uniavgen_core.training.loop import Run, train

    stages = (
        stage(name="sound", steps=3, tasks={"audio": 1}),
        stage(name="both", steps=3, tasks={"joint": 1}),
    )
    recipe = Recipe(SIZES, stages, seed=2)
    result = train(recipe, latents, tmp_path / "run", run=Run(micro_batch=2))
    start = initialise(DualBranchDiT(SIZES), 2).state_dict()
    sound = load_model(tmp_path / "run" / "sound" / "model.safetensors").state_dict()
    both = load_model(result).state_dict()
    for name, value in start.items():
        video = name.startswith(
            ("blocks", "head.", "patch", "a2v", "v2a", "time_embedding.", "text_embedding_v")
        )
        assert not video or torch.equal(sound[name], value)
    assert not torch.equal(sound["audio_blocks.0.ffn.0.weight"], start["audio_blocks.0.ffn.0.weight"])
    assert not torch.equal(both["head.head.weight"], start["head.head.weight"])
    with pytest.raises(UserError, match="another recipe"):
        train(dataclasses.replace(recipe, seed=3), latents, tmp_path / "run")


@needs_accelerate
def test_only_the_groups_of_a_stage_are_trained(latents, tmp_path):
    from uniavgen_core.training.loop import train

    only = stage(steps=2, tasks={"joint": 1}, null_share=0.0, groups=("audio", "v2a"))
    trained = load_model(train(Recipe(SIZES, (only,), seed=2), latents, tmp_path)).state_dict()
    start = initialise(DualBranchDiT(SIZES), 2).state_dict()
    changed = {name for name, value in start.items() if not torch.equal(trained[name], value)}
    assert {group_of(name) for name in changed} == {"audio", "v2a"}
    assert {"audio_blocks.0.ffn.0.weight", "v2a_blocks.0.o.weight"} <= changed


@needs_accelerate
def test_a_step_that_reaches_nothing_that_is_trained_is_passed_over(latents, tmp_path):
    from uniavgen_core.training.loop import train

    only = stage(steps=2, tasks={"audio-driven": 1}, null_share=1.0, groups=("audio", "a2v", "v2a"))
    recipe = Recipe(SIZES, (only,), seed=2, weight_decay=0.0)
    trained = load_model(train(recipe, latents, tmp_path)).state_dict()
    start = initialise(DualBranchDiT(SIZES), 2).state_dict()
    assert all(torch.equal(trained[name], value) for name, value in start.items())


def test_groups_that_make_no_stage_are_refused():
    with pytest.raises(UserError, match=r"groups are \['lips'\], choose from video, audio, a2v, v2a"):
        stage(groups=("lips",))
    with pytest.raises(UserError, match="needs the group audio"):
        stage(tasks={"audio": 1}, groups=("video", "v2a"))


def test_the_audio_branch_alone_takes_recordings_where_they_are_given(latents, tmp_path):
    def recording(index: int) -> Sample:
        sample = random_sample(100 + index)
        sample.caption_states = None
        return sample

    recordings = prepare(tmp_path, 4, recording, {"clips": "recordings"})
    mixed = stage(steps=60, tasks={"audio": 1, "joint": 1}, null_share=0.0)
    batches = Batches(latents, mixed, seed=1, speech=recordings)
    known = {id(clips): [clips[i].audio for i in range(len(clips))] for clips in (latents, recordings)}
    seen = set()
    for batch in map(batches.__getitem__, range(12)):
        own = known[id(recordings if batch.mode == "audio" else latents)]
        assert all(any(torch.equal(row, audio) for audio in own) for row in batch.audio)
        seen.add(batch.mode)
    assert seen == {"audio", "joint"}


@needs_accelerate
def test_the_caption_encoder_is_trained_with_the_model(latents, tmp_path):
    from uniavgen_core.media.caption import load_caption_encoder, random_caption_encoder
    from uniavgen_core.training.loop import train

    recipe = Recipe(SIZES, (stage(steps=4, null_share=0.0),))
    result = train(recipe, latents, tmp_path, caption=random_caption_encoder(dim=16))
    trained = load_caption_encoder(result.parent / "caption_encoder")
    assert trained(["a woman"]).shape[-1] == 16
    before = random_caption_encoder(dim=16)(["a woman"])
    assert not torch.equal(trained(["a woman"]), before)


@needs_accelerate
def test_validation_clips_are_written(latents, tmp_path):
    from uniavgen_core.training.loop import clip_preview, train

    class Colours(torch.nn.Module):
        """Stands for the VAE: three channels, four frames a latent frame but the first."""

        def decode(self, latent: torch.Tensor, on_frame=None) -> torch.Tensor:
            frames = latent[:, :3].repeat_interleave(4, 2)[:, :, 3:]
            return frames.repeat(1, 1, 1, 8, 8)  # [1, 3, F, 16, 16]

    class Silence(torch.nn.Module):
        def forward(self, log_mel: torch.Tensor, on_part=None) -> torch.Tensor:
            return torch.zeros(1, 240 * log_mel.shape[-1])

    preview = clip_preview(latents, [0, 1], Colours(), Silence(), ("joint", "reference-voice", "dubbing"), 2)
    train(Recipe(SIZES, (stage(steps=2),)), latents, tmp_path, preview=preview)
    clips = sorted((tmp_path / "only" / "clips" / "0000002").glob("*.mp4"))
    assert [clip.name for clip in clips][:3] == ["0-dubbing.mp4", "0-joint.mp4", "0-reference-voice.mp4"]
    assert files.read_video(clips[0]).frames.shape == (17, 16, 16, 3)


@needs_accelerate
@needs_opencv
@needs_espeak
def test_four_clips_of_the_theatre_are_learnt_by_heart(tmp_path):
    from uniavgen_core.theatre.clips import Theatre
    from uniavgen_core.theatre.samples import theatre_sample
    from uniavgen_core.training.loop import train

    def encode(frames: torch.Tensor) -> torch.Tensor:
        """4 x 4 means of three colours in each 16 x 16 patch: a latent of 48 channels."""
        small = F.pixel_unshuffle(F.avg_pool2d(frames[0].transpose(0, 1), 4), 4)  # [F, 48, h, w]
        return torch.cat((small[:1], small[1:].unflatten(0, (-1, 4)).mean(1))).transpose(0, 1)[None]

    theatre = Theatre(frames=17, size=(64, 64))
    clips = prepare(tmp_path / "clips", 4, lambda i: theatre_sample(theatre, i, encode), {}, caption_states)
    sizes = dataclasses.replace(SIZES, video_dim=96, audio_dim=96, video_ffn=192, audio_ffn=192)
    only = stage(steps=120, learning_rate=3e-3, tasks={"joint": 1}, warmup=20, null_share=0.0, text_drop=0.0)
    train(Recipe(sizes, (only,)), clips, tmp_path / "run")
    log = log_of(tmp_path / "run")

    def mean(name: str, entries: list[dict]) -> float:
        return sum(entry[name] for entry in entries) / len(entries)

    for name, factor in (("video", 2), ("audio", 2)):
        assert mean(name, log[-20:]) < mean(name, log[:5]) / factor, name


@needs_accelerate
def test_a_lora_merged_by_hand_gives_what_the_trained_model_gives(make_model, latents, tmp_path):
    from uniavgen_core.training.lora import add_lora, train_lora

    base = make_model("released", caption_dim=16, patch=(1, 1))
    weights = tmp_path / "base.safetensors"
    save_checkpoint(weights, base.state_dict().items(), base.config, "fp32")
    file = train_lora(weights, latents, tmp_path / "run", stage(steps=6), rank=4, alpha=8.0, dtype="fp32")
    lora = load_file(file)
    modules = {
        name.removeprefix("diffusion_model.").rsplit(".lora_")[0] for name in lora if ".lora_A" in name
    }
    assert {"blocks.0.self_attn.q", "audio_blocks.3.ffn.2", "a2v_blocks.1.o", "v2a_blocks.0.k"} <= modules
    assert len(lora) == 3 * len(modules)

    adapted = add_lora(load_model(weights), 4, 8.0)
    names = {f"diffusion_model.{n}": p for n, p in adapted.named_parameters() if ".lora_" in n}
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(lora[name])
    state = base.state_dict()
    for module in modules:
        a, b = (lora[f"diffusion_model.{module}.lora_{x}.weight"] for x in "AB")
        assert b.any()
        scale = lora[f"diffusion_model.{module}.alpha"] / len(a)
        state[f"{module}.weight"] = state[f"{module}.weight"] + scale * b @ a
    merged = DualBranchDiT(base.config)
    merged.load_state_dict(state)
    batch = one_clip(latents, 0, "joint")
    given = {**inputs_of(latents), "caption": batch.caption}
    before, by_hand, active = (forward(m, **given) for m in (base, merged, adapted))
    torch.testing.assert_close(active.video, by_hand.video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(active.audio, by_hand.audio, rtol=1e-4, atol=1e-5)
    assert (by_hand.video - before.video).abs().max() > 1e-4
    with pytest.raises(UserError, match="choose from video, audio, a2v, v2a"):
        add_lora(load_model(weights), 4, 8.0, ("faces",))


def write_clip(path: Path, seconds: float = 1.2) -> None:
    frames = torch.full((round(16 * seconds), 64, 96, 3), 90, dtype=torch.uint8)
    sound = 0.3 * torch.sin(torch.arange(round(24000 * seconds)) * 0.06)
    files.write_mp4(path, frames, 16, sound, 24000)


def write_list(folder: Path, *rows: dict | str) -> Path:
    file = folder / "list.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def row(**changes) -> dict:
    return {"file": "a.mp4", "caption": "c", "transcript": "hello", "language": "en", **changes}


def encode_means(frames: torch.Tensor) -> torch.Tensor:
    small = F.avg_pool2d(frames[0].transpose(0, 1), 16)
    return torch.cat((small[:1], small[1::4])).transpose(0, 1)[None].repeat(1, 16, 1, 1, 1)


def test_a_folder_of_mp4_becomes_training_clips(tmp_path):
    from uniavgen_core.training.footage import footage_sample, read_list

    write_clip(tmp_path / "a.mp4")
    write_clip(tmp_path / "b.mp4")
    rows = read_list(
        write_list(
            tmp_path,
            row(faces=[32, 0, 64, 32], speaker="s"),
            row(file="b.mp4", transcript="good day", speaker="s"),
        )
    )
    first = footage_sample(rows, 0, 17, (64, 64), encode_means)
    assert first.video.shape == (48, 5, 4, 4)
    assert first.audio.shape == (106, 80)
    # The middle 64 of 96 columns are kept: the box covers columns 16 to 48 of the cut, rows 0 to 32.
    assert first.mask[0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0] * 4, [0] * 4]
    assert first.voice_transcript == "good day"
    assert first.voice.shape[1] == 80
    found = footage_sample(rows, 1, 17, (64, 64), encode_means, lambda picture: (32, 32, 64, 64))
    assert found.mask[4].tolist() == [[0] * 4, [0] * 4, [0, 1, 1, 0], [0, 1, 1, 0]]
    with pytest.raises(UserError, match=r"list.jsonl:2: no face was found"):
        footage_sample(rows, 1, 17, (64, 64), encode_means, lambda picture: None)
    with pytest.raises(UserError, match="19 frames at 16 fps, 33 are needed"):
        footage_sample(rows, 0, 33, (64, 64), encode_means)


WITHOUT_THE_THEATRE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cv2" or name.startswith("uniavgen_core.theatre."):
            if name not in ("uniavgen_core.theatre.command", "uniavgen_core.theatre.evaluation.command",
                            "uniavgen_core.theatre.evaluation"):
                raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
from uniavgen_core.cli import main

for line in sys.stdin.read().splitlines():
    assert main(line.split()) == 0, line
"""


@needs_accelerate
def test_real_clips_are_prepared_and_trained_on_without_theatre_opencv_and_espeak(make_model, tmp_path):
    from uniavgen_core.media.caption import random_caption_encoder
    from uniavgen_core.media.vae import random_vae

    write_clip(tmp_path / "a.mp4")
    write_list(tmp_path, row(faces=[32, 0, 64, 32]))
    random_vae().model.save_pretrained(tmp_path / "vae")
    random_caption_encoder(dim=16).save(tmp_path / "captions")
    recipe = Recipe(SIZES, (stage(steps=1, batch=1, tasks={"joint": 1}),))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    base = make_model("paper", caption_dim=16, patch=(1, 1))
    save_checkpoint(tmp_path / "base.safetensors", base.state_dict().items(), base.config, "fp32")
    commands = """
        train videos list.jsonl --out clips --frames 5 --size 32x32 --vae vae --text-encoder captions
        train run recipe.json --latents clips --out run
        train lora --model base.safetensors --latents clips --out lora --steps 1 --rank 2 --dtype fp32
    """
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_THEATRE],
        input="\n".join(line.strip() for line in commands.strip().splitlines()),
        cwd=tmp_path,
        env={**os.environ, "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "run" / "only" / "model.safetensors").is_file()
    assert (tmp_path / "lora" / "lora.safetensors").is_file()


def test_finding_faces_without_opencv_is_told_with_its_cure(monkeypatch):
    from uniavgen_core.training.footage import face_finder

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r'not installed; give "faces" boxes .*pip install'):
        face_finder()


@needs_opencv
def test_opencv_finds_the_face_or_says_which_version_does():
    import cv2

    from uniavgen_core.training.footage import face_finder

    if int(cv2.__version__.split(".")[0]) >= 5:
        with pytest.raises(UserError, match="opencv-python-headless<5"):
            face_finder()
        return
    picture = pytest.importorskip("skimage.data").astronaut()
    x0, y0, x1, y1 = face_finder()(picture)
    assert x0 < 225 < x1
    assert y0 < 115 < y1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], "list.jsonl:1: is no JSON"),
        ([row(), "[1]"], "list.jsonl:2: is no JSON object"),
        ([{k: v for k, v in row().items() if k != "caption"}], 'list.jsonl:1: has no text "caption"'),
        ([row(file="none.mp4")], "there is no file .*none.mp4"),
        ([row(language="xx")], 'list.jsonl:1: language is .xx., expected "en" or "zh"'),
        ([row(transcript=" ")], "list.jsonl:1: the text to say is empty"),
        ([row(faces=[4, 0, 2, 5])], 'list.jsonl:1: "faces" must be'),
        ([row(faces="left")], 'list.jsonl:1: "faces" must be'),
        ([row(captoin="x")], '"captoin" means nothing here'),
        ([row(speaker="s")], "has no second clip"),
        ([], "there are no clips"),
    ],
)
def test_a_bad_line_is_named_with_what_to_do(rows, message, tmp_path):
    from uniavgen_core.training.footage import read_list

    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=message):
        read_list(write_list(tmp_path, *rows))


def test_the_sizes_of_the_embedded_recipe_fit_the_pack():
    model = DualBranchDiT(EMBEDDED.config, device="meta")
    assert sum(p.numel() for p in model.parameters()) * 2 < 45e6  # bytes in half precision
