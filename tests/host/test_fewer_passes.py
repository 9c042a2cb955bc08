"""The guider leaves out the passes that the core leaves out, with any of the host's samplers."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_golden_sampling import beside_the_core
from test_golden_sampling import sampled as guided_by
from test_native import EXACT, SIZES, differences, pack, task_inputs  # noqa: F401

STEPS = 6
EVERYWHERE = (3.0, 2.0, 1.0, 1)  # one kind of null pass in the whole run


@pytest.fixture
def forwards(pack):  # noqa: F811
    """Counts the model's runs."""
    calls = []
    hook = pack.model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def run(pack, sampler="euler", savings=(), guidance=EVERYWHERE, sigmas=None):  # noqa: F811
    positive, negative, latent = task_inputs(pack)
    guider = pack.guiding.Guider.execute(pack.model, positive, negative, *guidance, *savings).result[0]
    sigmas = pack.guiding.Scheduler.execute(STEPS, 5.0).result[0] if sigmas is None else sigmas
    method = pack.custom.KSamplerSelect.execute(sampler).result[0]
    outputs = pack.custom.SamplerCustomAdvanced.execute(
        pack.custom.Noise_RandomNoise(7), guider, method, sigmas, latent
    ).result
    return [latent["samples"].unbind() for latent in outputs]


SAVINGS = {
    "reuse": {"reuse": 2},
    "reuse after": {"reuse": 3, "reuse_after": 0.3},
    "null until": {"null_until": 0.5},
    "cache": {"cache": 0.9},
    "both": {"reuse": 2, "cache": 0.9},
}


@pytest.mark.parametrize("task", ["joint", "continuation with a voice", "dubbing", "audio-driven"])
@pytest.mark.parametrize("savings", SAVINGS)
def test_the_guider_saves_as_the_core_alone_does(host, make_model, savings, task):
    def module(name: str):
        return importlib.import_module(f"{host.__name__}.{name}")

    saves = module("uniavgen_core.sampling.defaults").Savings(**SAVINGS[savings])
    steps = 24 if saves.cache else STEPS
    both = beside_the_core(module, make_model("released", seed=2), task, steps, saves)
    assert both.wanted.passes < 2 * steps
    guider = module("nodes.guiding").MACFGGuider(both.model, both.run.guidance, savings=saves)
    guider.set_conds(both.run.positive, both.run.negative)
    calls = []
    hook = both.model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    made = guided_by(both, both.run, guider=guider)
    hook.remove()
    assert len(calls) == both.wanted.passes
    assert max(both.differences(made)) < 1e-4


@pytest.mark.parametrize(
    ("sampler", "whole", "saved"),
    [("euler", 12, 9), ("dpmpp_2m", 12, 9), ("heun", 22, 14), ("euler_ancestral", 12, 9), ("uni_pc", 12, 9)],
)
def test_half_the_null_passes_are_left_out_with_any_sampler(pack, forwards, sampler, whole, saved):  # noqa: F811
    plain = run(pack, sampler)
    assert len(forwards) == whole
    forwards.clear()
    found = run(pack, sampler, savings=(2,))
    assert len(forwards) == saved
    assert 0 < max(differences(found, plain)) < 0.5


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        ("heun", "sample_heun"),
        ("euler_ancestral", "sample_euler_ancestral"),
        ("dpm_adaptive", "dpm_adaptive"),
    ],
)
def test_a_sampler_for_which_the_step_cache_is_wrong_runs_without_it_and_is_named(
    pack,  # noqa: F811
    forwards,
    monkeypatch,
    sampler,
    named,
):
    told = []
    monkeypatch.setattr(pack.guiding, "tell_running_node", told.append)
    plain = run(pack, sampler)
    passes = len(forwards)
    forwards.clear()
    assert differences(run(pack, sampler, savings=(1, 0.0, 1.0, 0.9)), plain) == [0.0, 0.0]
    assert len(forwards) == passes
    assert len(told) == 1
    assert "step cache" in told[0]
    assert named in told[0]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "res_multistep", "ipndm", "gradient_estimation"])
def test_the_step_cache_leaves_out_both_passes_of_a_step(pack, forwards, sampler):  # noqa: F811
    found = run(pack, sampler, savings=(1, 0.0, 1.0, 1.0))
    assert len(forwards) < 2 * STEPS
    assert all(x.isfinite().all() for x in found[0])


def test_two_parts_of_a_schedule_give_the_clip_of_the_whole(pack):  # noqa: F811
    """Split at a step whose null pass runs anyway."""
    sigmas = pack.guiding.Scheduler.execute(STEPS, 5.0).result[0]
    whole = run(pack, savings=(2,), sigmas=sigmas)
    high, low = pack.custom.SplitSigmas.execute(sigmas, 2).result
    positive, negative, latent = task_inputs(pack)
    guider = pack.guiding.Guider.execute(pack.model, positive, negative, *EVERYWHERE, 2).result[0]
    method = pack.custom.KSamplerSelect.execute("euler").result[0]
    for noise, part in ((pack.custom.Noise_RandomNoise(7), high), (pack.custom.Noise_EmptyNoise(), low)):
        latent = pack.custom.SamplerCustomAdvanced.execute(noise, guider, method, part, latent).result[0]
    assert max(differences([latent["samples"].unbind()], whole)) < EXACT


def test_the_clips_of_a_batch_are_those_of_a_run_of_their_own(pack):  # noqa: F811
    positive, negative, latent = task_inputs(pack)
    nested = importlib.import_module("comfy.nested_tensor").NestedTensor
    noises = [
        [torch.randn(size, generator=torch.Generator().manual_seed(s)) for size in SIZES] for s in (1, 2)
    ]
    sigmas = pack.guiding.Scheduler.execute(STEPS, 5.0).result[0]
    sampler = importlib.import_module("comfy.samplers").sampler_object("euler")

    def clips(*chosen: int) -> list[torch.Tensor]:
        def batched(x):
            return nested([part.repeat(len(chosen), *[1] * (part.ndim - 1)) for part in x.unbind()])

        guider = pack.guiding.Guider.execute(pack.model, positive, negative, *EVERYWHERE, 2).result[0]
        noise = nested([torch.cat(parts) for parts in zip(*(noises[i] for i in chosen))])
        given, mask = batched(latent["samples"]), batched(latent["noise_mask"])
        return guider.sample(noise, given, sampler, sigmas, denoise_mask=mask, disable_pbar=True).unbind()

    for both, first, second in zip(clips(0, 1), clips(0), clips(1)):
        for found, wanted in zip(both, (first[0], second[0])):
            assert (found - wanted).norm() / wanted.norm() < EXACT


def test_functions_on_the_null_pass_still_find_one(pack):  # noqa: F811
    seen = []
    model = pack.model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    positive, negative, latent = task_inputs(pack)
    guider = pack.guiding.Guider.execute(model, positive, negative, *EVERYWHERE, 2).result[0]
    method = pack.custom.KSamplerSelect.execute("euler").result[0]
    sigmas = pack.guiding.Scheduler.execute(STEPS, 5.0).result[0]
    pack.custom.SamplerCustomAdvanced.execute(
        pack.custom.Noise_RandomNoise(7), guider, method, sigmas, latent
    )
    assert len(seen) == STEPS
    assert all((args["cond_denoised"] - args["uncond_denoised"]).norm() > 0 for args in seen)
    assert all(args["uncond"] is not None for args in seen)


@pytest.mark.parametrize("preset", ["draft", "standard", "exact"])
def test_a_preset_of_the_sampler_runs_the_model_so_often(pack, forwards, preset):  # noqa: F811
    positive, negative, latent = task_inputs(pack)
    pack.guiding.Sampler.execute(
        pack.model, positive, negative, latent, 3.0, 2.0, 7, 10, 1.0, 1, 5.0, preset=preset
    )
    passes = {"draft": 8 + 2, "standard": 10 + 5, "exact": 20}
    assert len(forwards) == passes[preset]
