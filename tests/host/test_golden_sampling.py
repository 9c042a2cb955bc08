"""The guider on the real host gives the numbers of the public model, with any sampler."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "uniavgen_core" / "data" / "golden" / "released_tiny.safetensors"
RUNS = ("joint", "joint_all_macfg", "ref_voice", "audio_driven", "dubbing")
MODES = ("joint", "reference-voice", "audio-driven", "dubbing")
SAMPLERS = ("euler", "dpmpp_2m", "uni_pc", "res_multistep", "heun")


@pytest.fixture(scope="module")
def golden(host) -> SimpleNamespace:
    """The pack's modules, the golden values, and the golden model as a MODEL of the host."""

    def module(name: str):
        return importlib.import_module(f"{host.__name__}.{name}")

    values = load_file(GOLDEN)
    description = json.loads(GOLDEN.with_suffix(".json").read_text())
    core = module("uniavgen_core.verify")._golden_model(description["config"], values)
    model = module("nodes.host_model").build_patcher(core.state_dict(), core.config)
    return SimpleNamespace(values=values, runs=description["sampling"], core=core, model=model, module=module)


def prepared(golden, name: str) -> SimpleNamespace:
    """What the task node makes of a golden run: both CONDITIONINGs, LATENT, noise and known frames."""
    case, values, module = golden.runs[name], golden.values, golden.module
    raw = golden.model.model.latent_format.process_out
    given = {key[3:]: x for key, x in values.items() if key.startswith("in.")}
    clean = torch.zeros_like(given["video"])
    clean[:, :, : case["vcond"]] = given[case["cond_video"]][:, :, : case["vcond"]]
    task = module("uniavgen_core.conditioning").Task(
        reference_image=raw(given["ref_image"]),
        clean_video=raw(clean),
        conditioned_video=torch.arange(clean.shape[2]) < case["vcond"],
        clean_audio=given["cond_audio"],
        conditioned_audio=torch.arange(given["audio"].shape[1]) < case["acond"],
        reference_mel=given["ref_audio"] if name == "ref_voice" else None,
    )
    encode = golden.core.text_embedding
    speech = module("nodes.types").EncodedSpeech(
        encode(given[case["text"]]), encode(given[case["neg_text"]]), transcript=name == "ref_voice"
    )
    captions = ([[given[key], {}]] for key in ("caption", "neg_caption"))
    made = module("nodes.tasks").conditioned(task, MODES[case["task"]], *captions, speech).result
    noise = [values[f"samp.{name}.noise_{branch}"] for branch in ("video", "audio")]
    nested = importlib.import_module("comfy.nested_tensor").NestedTensor
    return SimpleNamespace(
        case=case,
        task=task,
        positive=made[0],
        negative=made[1],
        latent=made[2],
        noise=nested((noise[0], noise[1].transpose(1, 2))),
        guidance=module("nodes.guiding").guidance(case["s_v"], case["s_a"], case["macfg_prop"], case["slg"]),
        sigmas=module("uniavgen_core.sampling.sampler").schedule(case["steps"], case["shift"]) / 1000,
    )


def sampled(golden, run: SimpleNamespace, sampler: str = "euler", guider=None):
    samplers = importlib.import_module("comfy.samplers")
    if guider is None:
        guider = golden.module("nodes.guiding").MACFGGuider(golden.model, run.guidance)
        guider.set_conds(run.positive, run.negative)
    return guider.sample(
        run.noise,
        run.latent["samples"],
        samplers.sampler_object(sampler),
        run.sigmas,
        denoise_mask=run.latent["noise_mask"],
        disable_pbar=True,
        seed=0,
    ).unbind()


@pytest.mark.parametrize("name", RUNS)
def test_the_guider_reproduces_the_golden_runs_of_the_public_model(golden, name):
    run = prepared(golden, name)
    relative_error = golden.module("uniavgen_core.verify").relative_error
    video, audio = sampled(golden, run)
    video, audio = golden.model.model.latent_format.process_in(video), audio.transpose(1, 2)
    made_video, made_audio = ~run.task.conditioned_video, ~run.task.conditioned_audio
    wanted = [golden.values[f"samp.{name}.{branch}"] for branch in ("video", "audio")]
    if made_video.any():
        assert relative_error(video[:, :, made_video], wanted[0][:, :, made_video]) < 1e-5
    if made_audio.any():
        assert relative_error(audio[:, made_audio], wanted[1][:, made_audio]) < 1e-5


def every_task(tasks, variant: str) -> dict:
    generator = torch.Generator().manual_seed(4)
    image, clip, mel, voice, whole = (
        torch.randn(shape, generator=generator)
        for shape in ((1, 48, 1, 4, 6), (1, 48, 4, 4, 6), (1, 61, 80), (1, 17, 80), (1, 81, 80))
    )
    made, parts = tasks.condition, tasks.anew_between
    return {
        "joint": made("joint", image, None, 4, 81),
        "reference-voice": made("reference-voice", image, None, 4, 81, reference_mel=voice, variant=variant),
        "continuation": made("continuation", clip, mel, 4, 81, anew=parts(2, 4, 4, 81)),
        "continuation with a voice": made(
            "continuation", clip, mel, 4, 81, anew=parts(2, 4, 4, 81), reference_mel=voice
        ),
        "dubbing": made("dubbing", clip, None, 4, 81),
        "dubbing with a voice": made("dubbing", clip, None, 4, 81, reference_mel=voice),
        "audio-driven": made("audio-driven", image, mel, 3, 61),
        "edit": made("edit", clip, whole, 4, 81, anew=parts(1, 3, 4, 81)),
        "edit of the audio": made("edit", clip, whole, 4, 81, anew=tasks.Anew(audio=tasks.Span(20, 50))),
    }


def beside_the_core(module, core, name: str, steps: int, savings=None) -> SimpleNamespace:
    """A task of `every_task` for the random weights of `core`.

    `wanted`: as the core alone samples it; `run` and `model`: what `sampled` takes to do the same on the
    host; `differences`: of its result to `wanted`.
    """
    config = module("uniavgen_core.model.config").Config(**vars(core.config))
    own = module("uniavgen_core.model.dit").DualBranchDiT(config)
    own.load_state_dict(core.state_dict())
    model = module("nodes.host_model").build_patcher(core.state_dict(), config)
    latent_format, sampling = model.model.latent_format, module("uniavgen_core.sampling.sampler")
    nested = importlib.import_module("comfy.nested_tensor").NestedTensor
    generator = torch.Generator().manual_seed(8)
    captions = torch.randn(2, 1, 9, 64, generator=generator)
    speeches = torch.randn(2, 1, 12, 32, generator=generator)
    texts = [module("uniavgen_core.model.inputs").TextConditioning(*pair) for pair in zip(captions, speeches)]
    task = every_task(module("uniavgen_core.conditioning"), config.variant)[name]
    guidance = module("nodes.guiding").guidance(3.0, 2.0, 0.5, 1)
    savings = savings or module("uniavgen_core.sampling.defaults").Savings()
    wanted = sampling.sample(own, task, *texts, guidance, steps=steps, seed=9, savings=savings)

    image, clip = map(latent_format.process_out, (task.reference_image, task.clean_video))
    positive, negative, latent = (
        module("nodes.tasks")
        .conditioned(
            replace(task, reference_image=image, clean_video=clip),
            name.split(" ")[0],
            *([[states, {}]] for states in captions),
            module("nodes.types").EncodedSpeech(*speeches, transcript=task.reference_mel is not None),
        )
        .result
    )
    noise = task.noise(9)
    run = SimpleNamespace(
        positive=positive,
        negative=negative,
        latent=latent,
        noise=nested((noise[0], noise[1].transpose(1, 2))),
        guidance=guidance,
        sigmas=sampling.schedule(steps) / 1000,
    )

    def differences(made) -> list[float]:
        video, audio = latent_format.process_in(made[0]), made[1].transpose(1, 2)
        pairs = ((video, wanted.video), (audio, wanted.audio))
        return [float((a - b).norm() / b.norm()) for a, b in pairs]

    return SimpleNamespace(module=module, wanted=wanted, run=run, model=model, differences=differences)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_every_task_samples_as_the_core_alone_does(golden, make_model, variant):
    core = make_model(variant, seed=2)
    for name in every_task(golden.module("uniavgen_core.conditioning"), variant):
        both = beside_the_core(golden.module, core, name, steps=4)
        assert max(both.differences(sampled(both, both.run))) < 1e-4, name


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", RUNS)
def test_known_frames_come_back_exactly_with_any_sampler(golden, name, sampler):
    run = prepared(golden, name)
    video, audio = sampled(golden, run, sampler)
    known_video, known_audio = run.task.conditioned_video, run.task.conditioned_audio
    assert torch.equal(video[:, :, known_video], run.task.clean_video[:, :, known_video])
    assert torch.equal(audio.transpose(1, 2)[:, known_audio], run.task.clean_audio[:, known_audio])
    assert video.isfinite().all()
    assert audio.isfinite().all()


def test_the_hosts_own_cfg_runs_the_same_conditioning(golden):
    """Scale 1 on the ordinary guider is the full pass alone, as s_v = s_a = 1 on ours."""
    run = prepared(golden, "ref_voice")
    run.guidance = golden.module("nodes.guiding").guidance(1.0, 1.0, 0.5, -1)
    plain = importlib.import_module("comfy.samplers").CFGGuider(golden.model)
    plain.set_conds(run.positive, run.negative)
    plain.set_cfg(1.0)
    for ours, theirs in zip(sampled(golden, run), sampled(golden, run, guider=plain)):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_plain_cfg_of_the_host_equals_both_scales_without_an_interval(golden):
    run = prepared(golden, "joint")
    run.guidance = golden.module("nodes.guiding").guidance(2.5, 2.5, 0.0, -1)
    plain = importlib.import_module("comfy.samplers").CFGGuider(golden.model)
    plain.set_conds(run.positive, run.negative)
    plain.set_cfg(2.5)
    for ours, theirs in zip(sampled(golden, run), sampled(golden, run, guider=plain)):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_nothing_of_a_run_is_kept_after_it_or_after_an_interrupted_one(golden):
    run = prepared(golden, "dubbing")
    guider = golden.module("nodes.guiding").MACFGGuider(golden.model, run.guidance)
    guider.set_conds(run.positive, run.negative)
    sampled(golden, run, guider=guider)
    assert guider.caches == {}
    management = importlib.import_module("comfy.model_management")
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        sampled(golden, run, guider=guider)
    assert guider.caches == {}
    sampled(golden, run, guider=guider)


def test_the_schedule_node_is_the_cores_schedule(golden):
    node = golden.module("nodes.guiding").Scheduler
    sigmas = node.execute(50, 5.0).result[0]
    assert torch.equal(sigmas, golden.module("uniavgen_core.sampling.sampler").schedule(50, 5.0) / 1000)


@pytest.mark.parametrize(("name", "still"), [("dubbing", "blocks.0"), ("audio_driven", "audio_blocks.0")])
def test_a_known_branch_runs_once_for_each_pass_and_not_at_every_step(golden, name, still):
    calls = []
    block = golden.model.model.diffusion_model.get_submodule(still)
    hook = block.register_forward_hook(lambda *_: calls.append(1))
    sampled(golden, prepared(golden, name))
    hook.remove()
    assert len(calls) == 2


@pytest.mark.parametrize(("scales", "passes"), [((3.0, 2.0), 2), ((1.0, 1.0), 1)])
def test_without_guidance_a_step_is_one_pass(golden, scales, passes):
    calls = []
    hook = golden.model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    run = prepared(golden, "joint")
    run.guidance = golden.module("nodes.guiding").guidance(*scales, 0.5, -1)
    sampled(golden, run)
    hook.remove()
    assert len(calls) == passes * (len(run.sigmas) - 1)
