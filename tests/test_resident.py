"""Training on clips held in memory, and with Muon."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import needs_accelerate, needs_muon
from safetensors.torch import load_file
from test_training import SIZES, caption_states, latents, random_sample, stage, trainable  # noqa: F401

from uniavgen_core.errors import UserError
from uniavgen_core.training.data import Batches, prepare
from uniavgen_core.training.loop import Run, train
from uniavgen_core.training.objective import ALONE, MODES, draw_time
from uniavgen_core.training.recipe import Recipe
from uniavgen_core.training.resident import ResidentBatches, ResidentClips, draw_times


def batches(clips: ResidentClips, mode: str, rank: int = 0, processes: int = 1, **changes) -> ResidentBatches:
    return ResidentBatches(clips, None, stage(tasks={mode: 1}, **changes), 1, rank, processes)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_one_of_the_folders_clips_as_from_disk(mode, latents, make_model):  # noqa: F811
    batch = batches(ResidentClips(latents), mode, null_share=0.0, text_drop=0.0)[3]
    rows = [latents[i] for i in range(len(latents))]
    peak = "audio_peak" if mode == "audio-driven" else "audio"
    for i in range(len(batch)):
        found = [k for k, x in enumerate(rows) if torch.equal(getattr(x, peak), batch.audio[i])]
        assert len(found) == 1
        item = rows[found[0]]
        torch.testing.assert_close(batch.video[i], item.video)
        torch.testing.assert_close(batch.mask[i], item.mask)
        torch.testing.assert_close(batch.caption[i, :3], item.caption_states)
        if batch.voice is not None:
            length = int(batch.voice_lengths[i])
            assert length == len(item.voice)
            torch.testing.assert_close(batch.voice[i, :length], item.voice)
    losses = trainable(make_model)(batch, lambda_m=0.1, lambda_g=0.2)
    assert losses["loss"].isfinite()
    assert (losses["video"] == 0) == (mode in ALONE or mode == "dubbing")


def test_texts_are_those_of_batches_from_disk(latents):  # noqa: F811
    clips = ResidentClips(latents)
    for mode in ("joint", "reference-voice"):
        disk = Batches(latents, stage(tasks={mode: 1}, null_share=0.0, text_drop=0.0), seed=1)
        known = {}
        for step in range(12):
            b = disk[step]
            for k in range(len(b)):
                ids = b.speech[k, : b.speech_lengths[k]].tolist()
                known[tuple(b.audio[k, 0].tolist())] = ids, int(b.said_before[k])
        assert len(known) == len(latents)
        for step in range(4):
            b = batches(clips, mode, null_share=0.0, text_drop=0.0)[step]
            for k in range(len(b)):
                ids = b.speech[k, : b.speech_lengths[k]].tolist()
                assert known[tuple(b.audio[k, 0].tolist())] == (ids, int(b.said_before[k]))


def test_a_dropped_text_and_a_null_pass_say_nothing(latents):  # noqa: F811
    clips = ResidentClips(latents)
    dropped = batches(clips, "joint", text_drop=1.0, null_share=0.0)[0]
    null = batches(clips, "joint", text_drop=0.0, null_share=1.0)[0]
    for batch in (dropped, null):
        assert (batch.speech_lengths == clips.tensors["says_null_length"][0]).all()
        torch.testing.assert_close(batch.caption[0, :3], latents.null_caption.expand(3, -1)[:3])
    assert dropped.interaction
    assert not null.interaction


def test_processes_draw_different_samples_of_one_task(latents):  # noqa: F811
    clips = ResidentClips(latents)
    alone = batches(clips, "edit")[5]
    first, second = (batches(clips, "edit", rank, 2)[5] for rank in (0, 1))
    assert len(first) == len(second) == len(alone) // 2
    assert first.anew == second.anew == alone.anew
    assert not torch.equal(first.time, second.time)
    again = batches(clips, "edit", 1, 2)[5]
    assert torch.equal(second.video_noise, again.video_noise)


def test_times_are_distributed_as_one_by_one():
    generator = torch.Generator().manual_seed(0)
    many = draw_times(generator, 4000, 0.5, (10.0, 2.0))
    single = torch.stack([draw_time(generator, 0.5, (10.0, 2.0)) for _ in range(4000)])
    for q in (0.1, 0.5, 0.9):
        assert abs(float(many.quantile(q) - single.quantile(q))) < 0.03


def test_clips_without_caption_states_or_voices_are_refused(tmp_path):
    bare = prepare(tmp_path / "bare", 2, random_sample, {})
    with pytest.raises(UserError, match="--text-encoder"):
        ResidentClips(bare)
    silent = prepare(
        tmp_path / "silent", 2, lambda i: replace(random_sample(i), voice=None), {}, caption_states
    )
    clips = ResidentClips(silent)
    assert batches(clips, "joint")[0].voice is None
    with pytest.raises(UserError, match="reference voices"):
        batches(clips, "reference-voice")


@needs_accelerate
@needs_muon
def test_a_run_with_muon_goes_on_where_it_was_stopped(tmp_path, latents):  # noqa: F811
    def recipe(steps: int) -> Recipe:
        only = stage(steps=steps, muon_rate=2e-3, audio_rate=5e-4, interaction_rate=2e-3)
        return Recipe(SIZES, (only,), seed=3, ema=0.5, resident=True)

    whole = load_file(train(recipe(8), latents, tmp_path / "whole", run=Run(save_every=4)))
    half = tmp_path / "half"
    (half / "only").mkdir(parents=True)

    def stop(objective, folder):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(recipe(8), latents, half, run=Run(save_every=4, preview_every=4), preview=stop)
    resumed = load_file(train(recipe(8), latents, half, run=Run(save_every=4)))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)
    rows = [json.loads(line) for line in (half / "only" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(8))


@needs_accelerate
@needs_muon
def test_muon_takes_the_matrices_of_the_video_blocks_alone(latents, make_model):  # noqa: F811
    from uniavgen_core.training.loop import _optimizers

    objective = trainable(make_model)
    adamw, muon = _optimizers(objective, stage(muon_rate=4e-3), Recipe(SIZES, (stage(),)))
    names = {id(p): name for name, p in objective.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert taken == {
        n for n, p in objective.named_parameters() if n.startswith("model.blocks.") and p.ndim == 2
    }
    others = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert not taken & others
    assert len(taken | others) == len(names)
    assert [group["scale"] for group in muon.param_groups] == [4.0]
