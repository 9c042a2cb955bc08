"""The alternatives that the paper's design is compared with, and what a study says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from conftest import forward, inputs, needs_espeak, randomise
from test_training import caption_states, random_sample

from uniavgen_core.cli import main
from uniavgen_core.errors import UserError
from uniavgen_core.media.caption import random_caption_encoder
from uniavgen_core.media.vae import random_vae
from uniavgen_core.media.vocoder import GriffinLim
from uniavgen_core.model import rope
from uniavgen_core.model.config import TINY
from uniavgen_core.model.dit import DualBranchDiT
from uniavgen_core.model.v2a import V2A
from uniavgen_core.model.variants import align
from uniavgen_core.pipeline import Pipeline
from uniavgen_core.theatre.ablations.arms import ARMS, CLAIMS, GROUPS, MEASURES, SHOWN
from uniavgen_core.theatre.ablations.frozen import ArmBatches, InteractionObjective, video_tokens
from uniavgen_core.theatre.ablations.report import estimate, verdicts, write_report
from uniavgen_core.theatre.ablations.study import (
    Study,
    background_drift,
    mouth,
    new_interaction,
    read_study,
)
from uniavgen_core.theatre.clips import Theatre
from uniavgen_core.theatre.evaluation.recogniser import Recogniser
from uniavgen_core.training.data import prepare
from uniavgen_core.training.objective import Objective

SIZES = replace(
    TINY, variant="paper", caption_dim=16, caption_length=8, layers=2, interaction_layers=(0, 1), patch=(1, 1)
)
T, L = 5, 106


@pytest.fixture(scope="module")
def start():
    return randomise(DualBranchDiT(SIZES))


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "latents"
    return prepare(folder, 6, random_sample, {"clips": "random"}, caption_states)


def test_in_the_symmetric_interaction_a_latent_frame_and_its_mel_frames_see_each_other_alone():
    found = align(replace(TINY, variant="symmetric"), T, L)
    k = ceil(L / T)
    assert found.window.tolist() == [[min(k * i + j, L - 1) for j in range(k)] for i in range(T)]
    assert found.frame.tolist() == [j // k for j in range(L)]
    assert (found.weight == torch.tensor([1.0, 0.0])).all()


def test_in_the_global_interaction_every_frame_sees_all_mel_frames():
    found = align(replace(TINY, variant="global"), T, L)
    assert found.window.tolist() == [list(range(L))] * T
    assert found.times is not None
    assert found.times.tolist() == pytest.approx([(i + 0.5) * L / T - 0.5 for i in range(T)])


def test_global_video_to_audio_is_attention_to_all_tokens_of_the_clip():
    config = replace(TINY, variant="global")
    module, generator = randomise(V2A(config), 3), torch.Generator().manual_seed(0)
    video = torch.randn(2, T, 6, config.video_dim, generator=generator)
    audio = torch.randn(2, L, config.audio_dim, generator=generator)
    times = align(config, T, L).times
    assert times is not None
    places = rope.timed_grid(times, 2, 3, config.head_dim)
    asked = rope.window(L, config.head_dim)
    found = module.attend_to_all(audio, module.project_video_kv(video, places), asked)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (config.audio_heads, -1))

    q = rope.rotate(heads(module.norm_q(module.q(audio))), asked)
    k = rope.rotate(heads(module.norm_k(module.k(video))), places).flatten(1, 2)
    v = heads(module.v(video)).flatten(1, 2)
    weight = torch.einsum("blhd,bshd->bhls", q, k).mul(config.head_dim**-0.5).softmax(-1)
    wanted = module.o(audio + torch.einsum("bhls,bshd->blhd", weight, v).flatten(-2))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_time_of_queries_and_keys_is_read_from_one_table():
    """A token at a mel frame's own time stands at that mel frame's place."""
    grid, places = rope.timed_grid(torch.tensor([7.0]), 1, 1, 24), rope.window(8, 24)
    pairs = rope.frame_pairs(24)
    torch.testing.assert_close(grid.cos[0, 0, :pairs], places.cos[7, :pairs])


@pytest.mark.parametrize("variant", ["symmetric", "global", "unmasked"])
def test_an_alternative_runs_and_both_directions_tell(variant):
    model = randomise(DualBranchDiT(replace(TINY, variant=variant)))
    given = inputs(model.config)
    both, apart = forward(model, **given), forward(model, **given, a2v=False, v2a=False)
    for one, other in ((both.video, apart.video), (both.audio, apart.audio)):
        assert one.isfinite().all()
        assert (one - other).abs().max() > 1e-3


def test_without_a_face_mask_the_interaction_is_everywhere():
    model = randomise(DualBranchDiT(replace(TINY, variant="unmasked")))
    masks = forward(model, **inputs(model.config)).face_masks
    assert masks
    assert all((mask == 1).all() for mask in masks.values())
    assert not [name for name in model.state_dict() if "mask_head" in name]


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.guidance is None])
def test_all_arms_start_from_the_same_branches_without_an_effect(name, start):
    model, paper = (new_interaction(start, ARMS[arm], 5) for arm in (name, "paper"))
    own, shared = model.state_dict(), paper.state_dict()
    for key, value in start.state_dict().items():
        if not key.startswith(("a2v_blocks.", "v2a_blocks.")):
            assert torch.equal(own[key], value), key
    for key in own.keys() & shared.keys():
        assert torch.equal(own[key], shared[key]), key
    assert all(
        (layer.a2v.o.weight == 0).all() and (layer.v2a.o.weight == 0).all() for layer in model.interactions()
    )


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_dubbing_from_kept_tokens_has_the_loss_of_running_the_video_branch(variant, start, latents):
    arm = replace(ARMS["paper"], variant=variant, tasks={"dubbing": 1.0})
    model = new_interaction(start, arm, 1)
    for number, layer in enumerate(model.interactions()):
        randomise(layer.v2a, number)
    batch = ArmBatches(latents, arm.stage(2, 3), 4)[1]
    assert sorted(batch.clips.tolist()) != [0, 1, 2]
    kept = InteractionObjective(model, video_tokens(start, latents, batch=4))(batch, 0.1)
    run = Objective(model)(batch, 0.1)
    assert kept["audio"].item() == pytest.approx(run["audio"].item(), rel=2e-3)
    assert kept["mask"].item() == pytest.approx(run["mask"].item(), rel=2e-3)
    apart = Objective(model)(replace(batch, interaction=False), 0.1)
    assert abs(apart["audio"] - run["audio"]) > 5 * abs(kept["audio"] - run["audio"])


def test_the_interaction_alone_learns(start):
    objective = InteractionObjective(new_interaction(start, ARMS["paper"], 1), torch.zeros(0))
    learns = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert learns == {n for n, _ in objective.named_parameters() if "a2v_blocks." in n or "v2a_blocks." in n}


def test_the_mouth_is_the_lower_half_of_the_face_after_the_first_frame():
    mask = torch.zeros(1, 2, 6, 4)
    mask[:, :, 1:5, 1:3] = 1
    found = mouth(mask)
    assert found[0, 1].nonzero()[:, 0].unique().tolist() == [3, 4]
    assert found[0, 0].sum() == 0


def test_background_drift_leaves_the_face_out():
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    face = np.zeros((3, 4, 4), bool)
    face[1, :2] = True
    frames[1:, :2] = 200
    assert background_drift(frames, face) == 0
    frames[2, 3] = 10
    assert background_drift(frames, face) == pytest.approx(10 / 4)


def rows(value, spread=0.0, clips=12, **more):
    """A measure of some clips, the same hard and easy ones for every arm."""
    hard = np.linspace(-1, 1, clips)
    sign = np.where(np.arange(clips) % 2, 1, -1)
    return [
        {"index": i, **{m: v + hard[i] + spread * sign[i] for m, v in {**value, **more}.items()}}
        for i in range(clips)
    ]


def test_a_difference_is_judged_on_the_same_clips():
    found = {
        "paper": {0: rows({"mouth_loss": 0.4, "audio_loss": 0.5, "sync_dubbing": 0.5})},
        "symmetric": {0: rows({"mouth_loss": 0.5, "audio_loss": 0.5}, 0.2, sync_dubbing=0.9)},
    }
    said = {row["measure"]: row for row in verdicts(found) if row["worse"] == "symmetric"}
    assert said["mouth_loss"]["verdict"] == "undecided"  # 0.1 better, but differently on every clip
    found["symmetric"] = {0: rows({"mouth_loss": 0.5, "audio_loss": 0.5, "sync_dubbing": 0.9}, 0.05)}
    said = {row["measure"]: row for row in verdicts(found) if row["worse"] == "symmetric"}
    assert said["mouth_loss"]["verdict"] == "found"  # less loss
    assert said["mouth_loss"]["difference"][0] == pytest.approx(0.1)
    assert said["audio_loss"]["verdict"] == "undecided"
    assert said["sync_dubbing"]["verdict"] == "not found"  # more sync, the other way round


def test_several_seeds_widen_the_interval_where_they_disagree():
    same, other = np.tile(np.linspace(0, 1, 20), (3, 1)), np.tile(np.linspace(0, 1, 20), (3, 1))
    other += np.array([[-1.0], [0.0], [1.0]])
    (_, low, high), (_, wide_low, wide_high) = estimate(same), estimate(other)
    assert wide_low < low < 0.5 < high < wide_high


def test_tables_name_arms_and_measures_that_exist():
    for group, names in GROUPS.items():
        assert set(names) <= ARMS.keys()
        assert set(SHOWN[group]) <= MEASURES.keys()
    assert {name for names in GROUPS.values() for name in names} == ARMS.keys()
    assert {m for claim in CLAIMS for m in claim.measures} <= MEASURES.keys()
    assert {arm for claim in CLAIMS for arm in (claim.better, claim.worse)} <= ARMS.keys()


@needs_espeak
def test_a_study_trains_measures_and_reads_what_it_kept(start, latents, tmp_path):
    def made() -> Study:
        parts = Pipeline.of(start, random_vae(), random_caption_encoder(dim=16), GriffinLim())
        theatre = Theatre(0, "held-out", 17, (64, 64))
        return Study(
            parts, latents, Recogniser(), theatre, tmp_path, 2, 1, clips=2, sampled=1, sampling_steps=1
        )

    made().run(("paper", "none", "no-mask"))
    made().run(("together", "no-guidance"))
    found = read_study(tmp_path)
    shown = {name: set(found[name][0][0]) - {"index"} for name in found}
    assert shown["paper"] == set(SHOWN["face mask"])
    assert shown["none"] == set(SHOWN["interaction"]) | {"drift"}
    assert shown["no-mask"] == shown["paper"]  # its mask is 1 everywhere
    assert shown["together"] == {*SHOWN["tasks"], "mask_iou"}
    assert shown["no-guidance"] == set(SHOWN["guidance"])
    assert found["paper"][0][1]["mouth_loss"] != found["none"][0][1]["mouth_loss"]
    assert "sync_dubbing" not in found["paper"][0][1]  # the second clip is not generated


@pytest.fixture
def study(start, latents, tmp_path, monkeypatch):
    """A study whose trainings and measurements are counted, not carried out."""
    parts = Pipeline.of(start, random_vae(), random_caption_encoder(), GriffinLim())
    made = Study(parts, latents, Recogniser(), Theatre(0, "held-out", 17, (64, 64)), tmp_path, seeds=2)
    done = []

    def trained(self, arm, seed, folder):
        folder.mkdir(parents=True)
        (folder / "checkpoint.pt").write_text("large")
        done.append((arm.title, seed))
        assert set(arm.tasks) == set(self.ways)

    measured = rows({"mouth_loss": 0.4, "audio_loss": 1.0, "sync_dubbing": 0.5, "mask_iou": 0.3})
    monkeypatch.setattr(Study, "_trained", trained)
    monkeypatch.setattr(Study, "_measured", lambda self, model, arm, seed: measured)
    return made, done


def test_a_study_goes_on_where_it_was_stopped_and_keeps_no_checkpoints(study):
    made, done = study
    made.run(("paper",))
    made.run(("paper", "symmetric"))
    assert done == [(ARMS[name].title, seed) for name, seed in (("paper", 0), ("paper", 1))] + [
        (ARMS["symmetric"].title, seed) for seed in (0, 1)
    ]
    assert not list(made.out.rglob("checkpoint.pt"))
    with pytest.raises(UserError, match="other settings"):
        replace(made, steps=81)


def test_the_report_has_a_table_a_figure_and_verdicts(study):
    made, _ = study
    with pytest.raises(UserError, match="no measured arm"):
        write_report(made.out)
    made.run(("paper", "symmetric", "fixed"))
    table = write_report(made.out)
    assert "| the paper's asymmetric | 0.400 [" in table
    assert "| supervised, decaying | 0.300 [" in table
    assert "| the paper's asymmetric before symmetric, time-aligned, by the paper | undecided: " in table
    assert "| supervised, decaying before supervised, fixed, by the paper | " in table
    assert (made.out / "ablations.svg").read_text().startswith("<svg")
    assert json.loads((made.out / "ablations.json").read_text())["about"]["seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--arms", "paper,dance"], "'dance' is unknown"),
        (["--latents", "nowhere"], "latents.json is missing"),
        (["--steps", "0"], "--steps is 0"),
        (["--clips", "1"], "--clips is 1"),
        (["--sampled", "65"], "--sampled 65"),
        (["--ways", "dubbing,joint"], "--ways is 'dubbing,joint'"),
    ],
)
def test_a_wrong_study_is_answered_in_one_line(arguments, answer, latents, tmp_path, capsys):
    given = {"--latents": str(latents.folder), "--out": str(tmp_path / "out"), arguments[0]: arguments[1]}
    assert main(["train", "ablations", *(x for pair in given.items() for x in pair)]) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
