"""The guider as the host's samplers and guidance nodes expect one: CFG functions, shift, caches, devices."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_native import (  # noqa: F401
    EXACT,
    SIZES,
    differences,
    pack,
    relative_error,
    sampled,
    task_inputs,
)


def module(name: str):
    return importlib.import_module(name)


def patched(model, node: str, **values):
    """MODEL behind a native node of comfy_extras: `nodes_cfg.CFGNorm`."""
    file, name = node.split(".")
    found = getattr(module(f"comfy_extras.{file}"), name, None)
    if found is None:
        pytest.skip(f"this ComfyUI has no {name}")
    if hasattr(found, "FUNCTION") and not hasattr(found, "define_schema"):
        return getattr(found(), found.FUNCTION)(model, **values)[0]
    return found.execute(model, **values).result[0]


@pytest.fixture
def told(pack, monkeypatch) -> list[str]:  # noqa: F811
    """What is said on the running node."""
    lines: list[str] = []
    monkeypatch.setattr(pack.guiding, "tell_running_node", lines.append)
    return lines


@pytest.fixture(scope="module")
def plain(pack):  # noqa: F811
    return sampled(pack, pack.model)


def test_every_sampler_of_the_host_does_what_it_does_with_the_hosts_guider(pack):  # noqa: F811
    """With one scale, no interval and no skipped layer MA-CFG is plain CFG; known frames stay as given."""
    samplers = module("comfy.samplers")
    assert len(samplers.SAMPLER_NAMES) >= 40
    positive, negative, latent = task_inputs(pack)
    given, sigmas = latent["samples"].unbind(), pack.guiding.Scheduler.execute(4, 5.0).result[0]
    ours = pack.guiding.MACFGGuider(pack.model, pack.guiding.guidance(2.5, 2.5, 0.0, -1))
    theirs = samplers.CFGGuider(pack.model)
    theirs.set_cfg(2.5)
    noise, failed = pack.custom.Noise_RandomNoise(7).generate_noise(latent), []
    for name in samplers.SAMPLER_NAMES:
        made = []
        for guider in (ours, theirs):
            guider.set_conds(positive, negative)
            sampler, mask = samplers.sampler_object(name), latent["noise_mask"]
            run = guider.sample(noise, latent["samples"], sampler, sigmas, mask, disable_pbar=True, seed=7)
            made.append(run.unbind())
        (video, audio), (wanted_video, wanted_audio) = made
        unlike = max(
            relative_error(video[:, :, 2:], wanted_video[:, :, 2:]),
            relative_error(audio[..., 31:], wanted_audio[..., 31:]),
        )
        kept = torch.equal(video[:, :, :2], given[0][:, :, :2])
        kept = kept and torch.equal(audio[..., :31], given[1][..., :31])
        if not unlike < 1e-3 or not kept:
            failed.append(f"{name}: {unlike:.1e} from the host's guider, known frames kept: {kept}")
    assert not failed


ACTING = {
    "nodes_apg.APG": {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.3},
    "nodes_cfg.CFGNorm": {"strength": 1.0},
    "nodes_cfg.CFGZeroStar": {},
    "nodes_model_advanced.RescaleCFG": {"multiplier": 0.7},
    "nodes_slg.SkipLayerGuidanceDiT": {
        "scale": 3.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "double_layers": "1",
    },
    "nodes_slg.SkipLayerGuidanceDiTSimple": {
        "start_percent": 0.0,
        "end_percent": 1.0,
        "double_layers": "0",
    },
    "nodes_tcfg.TCFG": {},
    "nodes_mahiro.Mahiro": {},
    "nodes_fresca.FreSca": {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 1},
    "nodes_lumina2.RenormCFG": {"cfg_trunc": 100.0, "renorm_cfg": 1.0},
    "nodes_eps.EpsilonScaling": {"scaling_factor": 1.01},
    "nodes_eps.TemporalScoreRescaling": {"tsr_k": 0.95, "tsr_sigma": 1.0},
    "nodes_lt.LTXVModalityGuidance": {"modality_scale": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    "nodes_custom_sampler.CFGOverride": {"cfg": 5.0, "start_percent": 0.0, "end_percent": 0.5},
}
WITHOUT_EFFECT = {
    "nodes_sag.SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    "nodes_pag.PerturbedAttentionGuidance": {"scale": 3.0},
    "nodes_video_model.VideoLinearCFGGuidance": {"min_cfg": 1.0},
    "nodes_video_model.VideoTriangleCFGGuidance": {"min_cfg": 1.0},
    "nodes_lt.LTXVSpatioTemporalGuidance": {
        "scale": 1.0,
        "blocks": "1",
        "start_percent": 0.0,
        "end_percent": 1.0,
    },
}


@pytest.mark.parametrize("node", ACTING)
def test_guidance_nodes_act_on_both_streams(pack, plain, told, node):  # noqa: F811
    found = sampled(pack, patched(pack.model, node, **ACTING[node]))
    assert all(x.isfinite().all() for x in found[0])
    assert min(differences(found, plain)) > 100 * EXACT
    assert not told


@pytest.mark.parametrize("node", WITHOUT_EFFECT)
def test_guidance_nodes_without_meaning_change_nothing_and_are_named(pack, plain, told, node):  # noqa: F811
    found = sampled(pack, patched(pack.model, node, **WITHOUT_EFFECT[node]))
    assert differences(found, plain) == [0.0, 0.0]
    assert len(told) == 1
    assert node.partition(".")[2] in told[0]


def test_skip_layer_guidance_of_layers_that_are_not_there_is_named(pack, plain, told):  # noqa: F811
    layers = {"scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "double_layers": "17, 18"}
    found = sampled(pack, patched(pack.model, "nodes_slg.SkipLayerGuidanceDiT", **layers))
    assert max(differences(found, plain)) < EXACT
    assert "the model has the layers 0 to 3" in told[0]


def test_each_stream_is_guided_with_its_own_scale(pack):  # noqa: F811
    """RescaleCFG at s_a = 1 leaves what the audio is at the first step alone and changes the video."""
    rescaled = patched(pack.model, "nodes_model_advanced.RescaleCFG", multiplier=0.7)
    one_step = torch.tensor([1.0, 0.0])
    guidance = (3.0, 1.0, 0.5, 1)
    video, audio = differences(
        sampled(pack, rescaled, sigmas=one_step, guidance=guidance),
        sampled(pack, pack.model, sigmas=one_step, guidance=guidance),
    )
    assert video > 10 * EXACT
    assert audio < EXACT


@pytest.mark.parametrize(("steps", "place", "interval"), [(4, 2, 0.5), (5, 1, 0.5), (5, 3, 0.8)])
def test_a_split_schedule_is_the_whole_one_with_an_interval(pack, steps, place, interval):  # noqa: F811
    guidance = (3.0, 2.0, interval, 1)
    sigmas = pack.guiding.Scheduler.execute(steps, 5.0).result[0]
    whole = sampled(pack, pack.model, sigmas=sigmas, guidance=guidance)
    positive, negative, latent = task_inputs(pack)
    guider = pack.guiding.Guider.execute(pack.model, positive, negative, *guidance).result[0]
    method = pack.custom.KSamplerSelect.execute("euler").result[0]
    high, low = pack.custom.SplitSigmas.execute(sigmas, place).result
    for noise, part in ((pack.custom.Noise_RandomNoise(7), high), (pack.custom.Noise_EmptyNoise(), low)):
        latent = pack.custom.SamplerCustomAdvanced.execute(noise, guider, method, part, latent).result[0]
    assert max(differences([latent["samples"].unbind()], whole)) < EXACT


def test_the_interval_counts_as_the_core_does_at_every_step_of_a_part(pack):  # noqa: F811
    guider = pack.guiding.MACFGGuider(pack.model, pack.guiding.guidance(3.0, 2.0, 0.5, 1))
    for steps in (4, 7, 16, 25, 50, 99):
        sigmas = pack.guiding.Scheduler.execute(steps, 5.0).result[0]
        for first in range(1, steps):
            part = sigmas[first:]
            places = [guider._place(part[i : i + 1], part) for i in range(len(part) - 1)]
            assert [guider.guidance.null_interacts(*place) for place in places] == [
                guider.guidance.null_interacts(first + i, steps) for i in range(len(part) - 1)
            ]


def test_a_shift_node_sets_the_shift_of_our_sampler_and_scheduler(pack, told):  # noqa: F811
    model = patched(pack.model, "nodes_model_advanced.ModelSamplingSD3", shift=2.0)
    wanted = pack.guiding.Scheduler.execute(4, 2.0).result[0]
    assert torch.equal(pack.guiding.Scheduler.execute(4, 5.0, model).result[0], wanted)
    own = pack.guiding.Scheduler.execute(4, 5.0, pack.model).result[0]
    assert torch.equal(own, pack.guiding.Scheduler.execute(4, 5.0).result[0])
    positive, negative, latent = task_inputs(pack)
    run = (positive, negative, latent, 3.0, 2.0, 7, 4, 0.5, 1)
    made, plain = (pack.guiding.Sampler.execute(m, *run, 5.0).result[0] for m in (model, pack.model))
    assert differences([made["samples"].unbind()], sampled(pack, pack.model, sigmas=wanted)) == [0.0, 0.0]
    assert min(differences([made["samples"].unbind()], [plain["samples"].unbind()])) > 100 * EXACT
    assert set(told) == {"shift 2 of the MODEL in place of 5"}


def test_a_model_of_another_kind_of_noise_is_refused(pack, host):  # noqa: F811
    model = patched(pack.model, "nodes_model_advanced.ModelSamplingDiscrete", sampling="eps", zsnr=False)
    errors = module(f"{host.__name__}.uniavgen_core.errors")
    with pytest.raises(errors.UserError, match="ModelSamplingSD3"):
        sampled(pack, model)


@pytest.mark.parametrize(("node", "most"), [("EasyCache", 0.5), ("LazyCache", 0.5)])
def test_step_caches_of_the_host_leave_out_passes_of_both_streams(pack, node, most):  # noqa: F811
    sigmas = pack.guiding.Scheduler.execute(20, 5.0).result[0]
    calls = []
    hook = pack.model.model.diffusion_model.audio_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    whole = sampled(pack, pack.model, sigmas=sigmas)
    all_calls = len(calls)
    cached = patched(
        pack.model,
        f"nodes_easycache.{node}Node",
        reuse_threshold=0.3,
        start_percent=0.1,
        end_percent=0.95,
        verbose=False,
    )
    calls.clear()
    found = sampled(pack, cached, sigmas=sigmas)
    hook.remove()
    assert len(calls) < all_calls
    assert max(differences(found, whole)) < most
    assert [tuple(x.shape) for x in found[0]] == list(SIZES)


def test_context_windows_are_refused_by_name(pack, host):  # noqa: F811
    windows = module("comfy_extras.nodes_context_windows").ContextWindowsManualNode
    model = windows.execute(
        pack.model,
        context_length=2,
        context_overlap=1,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="pyramid",
        dim=2,
        freenoise=False,
    ).result[0]
    errors = module(f"{host.__name__}.uniavgen_core.errors")
    with pytest.raises(errors.UserError, match="context windows"):
        sampled(pack, model)


def test_both_passes_are_one_batch_of_the_host_and_run_apart(pack, plain):  # noqa: F811
    extension, batches, runs = module("comfy.patcher_extension"), [], []

    def batch(executor, model, conds, *args):
        batches.append([cond is not None for cond in conds])
        return executor(model, conds, *args)

    def run(apply, args):
        runs.append(args["cond_or_uncond"])
        return apply(args["input"], args["timestep"], **args["c"])

    model = pack.model.clone()
    model.add_wrapper_with_key(extension.WrappersMP.CALC_COND_BATCH, "test", batch)
    model.set_model_unet_function_wrapper(run)
    assert max(differences(sampled(pack, model), plain)) < EXACT
    assert batches == [[True, True]] * 4
    assert runs == [[0], [1]] * 4


def test_the_multi_gpu_split_gives_each_pass_a_device(pack, plain, monkeypatch):  # noqa: F811
    """Two names of the CPU stand for two devices; the host's own scheduler decides what goes where."""
    pytest.importorskip("comfy.multigpu")
    devices = torch.device("cpu"), torch.device("cpu", 0)
    samplers, management = module("comfy.samplers"), module("comfy.model_management")
    monkeypatch.setattr(management, "set_torch_device", lambda device: None)
    ran = {device: [] for device in devices}

    class Clone:
        """The MODEL on a device, writing down which pass it runs."""

        def __init__(self, model, device):
            self.model, self.device = self, device
            self._model, self.current_patcher = model, model.current_patcher

        def prepare_state(self, timestep, model_options):
            pass

        def apply_model(self, x, t, **c):
            ran[self.device].append(c["transformer_options"]["cond_or_uncond"])
            return self._model.apply_model(x, t, **c)

    def split(model, conds, x, timestep, model_options):
        pool = module("comfy.multigpu").MultiGPUThreadPool(list(devices))
        clones = {device: Clone(model, device) for device in devices}
        options = model_options | {"multigpu_clones": clones, "multigpu_thread_pool": pool}
        try:
            return samplers._calc_cond_batch_multigpu(model, conds, x, timestep, options)
        finally:
            pool.shutdown()

    monkeypatch.setattr(samplers, "calc_cond_batch", split)
    assert max(differences(sampled(pack, pack.model), plain)) < EXACT
    assert ran == {devices[0]: [[0]] * 4, devices[1]: [[1]] * 4}


def test_attention_functions_are_told_which_layer_they_serve(pack, plain):  # noqa: F811
    layers = []

    def attention(original, *args, **kwargs):
        layers.append(kwargs["transformer_options"]["block_index"])
        return original(*args, **kwargs)

    model = pack.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    assert max(differences(sampled(pack, model, sigmas=torch.tensor([1.0, 0.0])), plain)) > 0
    full, null = [0, 1, 2, 3], [0, 2, 3]  # the null pass leaves out layer 1
    assert list(dict.fromkeys(layers)) == full
    assert layers.count(1) * 2 == layers.count(0) == layers.count(3)
    assert layers == sorted(layers[: layers.count(1) * 4]) + sorted(layers[layers.count(1) * 4 :])
    assert set(layers[layers.count(1) * 4 :]) == set(null)
