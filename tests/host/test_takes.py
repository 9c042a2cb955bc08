"""Several takes of one task: each is the clip that its seed makes alone, in whatever way they are sampled."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_native import EXACT, pack, relative_error, task_inputs  # noqa: F401

TAKES = 3
SEED = 2**64 - 2  # the seeds of the takes run over the end of 64 bits


@pytest.fixture(scope="module")
def takes(pack):  # noqa: F811
    return importlib.import_module(f"{pack.guiding.__name__.rpartition('.')[0]}.takes")


@pytest.fixture
def muxing(takes):
    return importlib.import_module(f"{takes.__name__.rpartition('.')[0]}.muxing")


@pytest.fixture(autouse=True)
def told(takes, muxing, monkeypatch) -> list[str]:
    """What is said on nodes that run alone."""
    lines: list[str] = []
    for module in (takes, muxing):
        monkeypatch.setattr(module, "tell", lambda node, text: lines.append(text))
    return lines


def inputs(pack, count: int) -> tuple[list, list, dict]:  # noqa: F811
    positive, negative, latent = task_inputs(pack)
    streams = [x.repeat(count, *[1] * (x.ndim - 1)) for x in latent["samples"].unbind()]
    samples = pack.types.JointLatent(streams)
    return positive, negative, {**latent, "samples": samples, pack.types.UNSAMPLED: samples}


def by_sampler(pack, count: int, seed: int, model=None) -> list[torch.Tensor]:  # noqa: F811
    model = pack.model if model is None else model
    run = pack.guiding.Sampler.execute(model, *inputs(pack, count), 3.0, 2.0, seed, 3, 0.5, 1, 5.0)
    return run.result[0]["samples"].unbind()


def by_host(pack, takes, count: int, seed: int, name: str) -> list[list[torch.Tensor]]:  # noqa: F811
    """Output and denoised output of Sampler Custom Advanced."""
    positive, negative, latent = inputs(pack, count)
    run = pack.custom.SamplerCustomAdvanced.execute(
        takes.TakesNoise.execute(seed).result[0],
        pack.guiding.Guider.execute(pack.model, positive, negative, 3.0, 2.0, 0.5, 1).result[0],
        pack.custom.KSamplerSelect.execute(name).result[0],
        pack.guiding.Scheduler.execute(3, 5.0).result[0],
        latent,
    ).result
    return [made["samples"].unbind() for made in run]


@pytest.fixture
def room_for(pack, monkeypatch):  # noqa: F811
    """Sets how many clips fit into memory."""

    def set_room(clips: int) -> None:
        monkeypatch.setattr(pack.guiding, "clips_at_once", lambda count, free, one: min(count, clips))

    return set_room


def alone(seed: int, take: int) -> int:
    return (seed + take) % 2**64


def test_one_by_one_each_take_is_bit_for_bit_the_clip_of_its_own_seed(pack, room_for):  # noqa: F811
    room_for(1)
    together = by_sampler(pack, TAKES, SEED)
    assert len(together[0]) == len(together[1]) == TAKES
    assert not torch.equal(together[0][0], together[0][1])
    for take in range(TAKES):
        for stream, single in zip(together, by_sampler(pack, 1, alone(SEED, take))):
            assert torch.equal(stream[take : take + 1], single)


@pytest.mark.parametrize("clips", [2, TAKES])
def test_in_one_batch_each_take_is_the_clip_of_its_own_seed_to_rounding(pack, room_for, clips):  # noqa: F811
    room_for(1)
    apart = by_sampler(pack, TAKES, SEED)
    room_for(clips)
    for stream, wanted in zip(by_sampler(pack, TAKES, SEED), apart):
        assert all(relative_error(a, b) < EXACT for a, b in zip(stream, wanted))


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_sde", "dpm_adaptive", "uni_pc"])
def test_under_any_sampler_of_the_host_each_take_is_the_clip_of_its_own_seed(pack, takes, name):  # noqa: F811
    output, denoised = by_host(pack, takes, 2, 7, name)
    for take in range(2):
        single = by_host(pack, takes, 1, 7 + take, name)
        for found, wanted in zip((*output, *denoised), (*single[0], *single[1]), strict=True):
            assert relative_error(found[take : take + 1], wanted) < EXACT


def test_takes_run_one_by_one_where_another_node_has_a_function_on_the_model(pack, room_for):  # noqa: F811
    room_for(TAKES)
    batches = []

    def whole_batch(args: dict) -> torch.Tensor:
        batches.append(len(args["denoised"]))
        return args["denoised"]

    model = pack.model.clone()
    model.set_model_sampler_post_cfg_function(whole_batch)
    by_sampler(pack, TAKES, SEED, model)
    assert set(batches) == {1}


def test_the_progress_of_takes_is_one_bar(pack, room_for, monkeypatch):  # noqa: F811
    room_for(2)
    seen = []
    monkeypatch.setattr(
        pack.guiding, "preview_callback", lambda model, steps: lambda *step: seen.append((step[0], step[3]))
    )
    by_sampler(pack, TAKES, SEED)
    assert seen == [(0, 6), (1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (5, 6)]


def test_a_picked_take_is_that_take_alone(pack, takes):  # noqa: F811
    _, _, latent = inputs(pack, TAKES)
    made = {**latent, "samples": latent["samples"] + latent["samples"]}
    made["samples"].tensors[0] *= torch.arange(TAKES).view(-1, 1, 1, 1, 1)
    (one,) = takes.PickTake.execute(made, 3).result
    video, audio = one["samples"].unbind()
    assert torch.equal(video, made["samples"].unbind()[0][2:])
    assert len(audio) == 1
    assert [len(mask) for mask in one["noise_mask"].unbind()] == [1, 1]
    with pytest.raises(ValueError, match="take is 4, the latent holds 3; use 1 to 3"):
        takes.PickTake.execute(made, 4)
    with pytest.raises(ValueError, match="nothing was generated"):
        takes.PickTake.execute(latent, 1)


def test_nodes_for_one_stream_say_what_to_do_with_a_joint_latent(pack):  # noqa: F811
    _, _, latent = inputs(pack, 2)
    nodes = pack.nodes
    for run in (
        lambda: nodes.LatentFromBatch().frombatch(latent, 0, 1),
        lambda: nodes.RepeatLatentBatch().repeat(latent, 2),
        lambda: torch.cat((latent["samples"], latent["samples"])),
        lambda: latent["samples"].contiguous(),  # Save Latent
    ):
        with pytest.raises(ValueError, match="Separate AV Latent"):
            run()
    assert not hasattr(latent["samples"], "contiguous")


def test_takes_become_a_list_of_videos_and_a_row_each_on_a_sheet(takes, muxing):
    frames = torch.rand(TAKES * 5, 32, 48, 3)
    sounds = torch.rand(TAKES, 1, 7500) - 0.5
    (videos,) = muxing.Mux.execute(frames, {"waveform": sounds, "sample_rate": 24000}, 16.0).result
    assert len(videos) == TAKES
    for take, video in enumerate(videos):
        parts = video.get_components()
        assert torch.equal(parts.audio["waveform"], sounds[take][None])
        assert torch.allclose(parts.images, frames[take * 5 : take * 5 + 5], atol=1 / 255)
    (sheet,) = takes.TakesSheet.execute(videos, [3], [48]).result
    number = takes.MIN_LABEL
    assert sheet.shape == (1, TAKES * 32, number + 3 * 48, 3)
    row = sheet[0, 32:64, number:]  # of the second take
    for column, frame in enumerate((5, 7, 9)):
        assert torch.allclose(row[:, 48 * column : 48 * (column + 1)], frames[frame], atol=1 / 255)


def test_takes_with_the_audio_of_one_clip_are_pointed_out(muxing, told):
    sound = {"waveform": torch.zeros(1, 1, 7500), "sample_rate": 24000}
    muxing.Mux.execute(torch.rand(15, 32, 48, 3), sound, 16.0)
    assert "images are 3 times as long; if they are takes, connect audio of as many" in told[0]


def test_nodes_that_look_at_one_clip_refuse_several_takes(pack):  # noqa: F811
    grid = pack.guiding.GuidanceGrid.execute
    with pytest.raises(ValueError, match="latent holds 2 takes, expected one; set takes"):
        grid(pack.model, *inputs(pack, 2), "1, 3", "1", 0, 1, 0.5, 1, 5.0)
