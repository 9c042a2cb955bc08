"""The MODEL is a native one: LoRAs, compile, shift, samplers, previews, every kind of file."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_files import BF16, FP32, SHARDS

from uniavgen_core.weights.convert import convert

SIZES = (1, 48, 3, 4, 6), (1, 80, 56)
LORA_LAYERS = ("blocks.0.self_attn.q", "audio_blocks.1.ffn.0", "a2v_blocks.0.k")
LORA_NAMES = {
    "lora_A and lora_B": ("diffusion_model.{layer}", "lora_A.weight", "lora_B.weight"),
    "lora_unet": ("lora_unet_{flat}", "lora_down.weight", "lora_up.weight"),
}
EXACT = 1e-5  # relative: another order of float32 additions
FP8_BOUND = 0.05  # relative: three bits of mantissa in the weights, after four layers


@pytest.fixture(scope="module")
def pack(host) -> SimpleNamespace:
    """Modules of the pack and of the host, and the small model from its file."""

    def module(name: str):
        return importlib.import_module(f"{host.__name__}.{name}")

    modules = {
        "guiding": module("nodes.guiding"),
        "loading": module("nodes.loading"),
        "tasks": module("nodes.tasks"),
        "types": module("nodes.types"),
        "core_tasks": module("uniavgen_core.conditioning"),
        "nodes": importlib.import_module("nodes"),
        "custom": importlib.import_module("comfy_extras.nodes_custom_sampler"),
    }
    return SimpleNamespace(**modules, model=modules["loading"].load_parts(FP32)[0])


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def task_inputs(pack) -> tuple[list, list, dict]:
    """positive, negative and LATENT of a continuation of 5 frames to 9 with a reference voice."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    video, audio = SIZES
    task = pack.core_tasks.condition(
        "continuation",
        normal(1, 48, 2, *video[3:]),
        normal(1, 31, 80),
        video[2],
        audio[2],
        anew=pack.core_tasks.anew_between(2, video[2], video[2], audio[2]),
        reference_mel=normal(1, 40, 80),
    )
    captions = ([[normal(1, 9, 64), {}]] for _ in range(2))
    speech = pack.types.EncodedSpeech(normal(1, 11, 32), normal(1, 10, 32), transcript=True)
    return pack.tasks.conditioned(task, "continuation", *captions, speech).result


def sampled(pack, model, sampler="euler", sigmas=None, guidance=(3.0, 2.0, 0.5, 1)):
    """Through SamplerCustomAdvanced: the output and the denoised output, each `[video, audio]`."""
    positive, negative, latent = task_inputs(pack)
    guider = pack.guiding.Guider.execute(model, positive, negative, *guidance).result[0]
    sigmas = pack.guiding.Scheduler.execute(4, 5.0).result[0] if sigmas is None else sigmas
    method = pack.custom.KSamplerSelect.execute(sampler).result[0]
    outputs = pack.custom.SamplerCustomAdvanced.execute(
        pack.custom.Noise_RandomNoise(7), guider, method, sigmas, latent
    ).result
    return [latent["samples"].unbind() for latent in outputs]


def differences(found, wanted) -> list[float]:
    return [relative_error(a, b) for a, b in zip(found[0], wanted[0], strict=True)]


@pytest.fixture(scope="module")
def plain(pack):
    return sampled(pack, pack.model)


@pytest.mark.parametrize("style", LORA_NAMES)
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_a_native_lora_does_what_its_delta_merged_by_hand_does(pack, plain, models_folder, style, strength):
    weights = load_file(models_folder / "diffusion_models" / FP32)
    generator = torch.Generator().manual_seed(2)
    prefix, down_name, up_name = LORA_NAMES[style]
    lora, merged = {}, dict(weights)
    for layer in LORA_LAYERS:
        rows, columns = weights[f"{layer}.weight"].shape
        down, up = (torch.randn(s, generator=generator) * 0.2 for s in ((4, columns), (rows, 4)))
        name = prefix.format(layer=layer, flat=layer.replace(".", "_"))
        lora |= {f"{name}.{down_name}": down, f"{name}.{up_name}": up, f"{name}.alpha": torch.tensor(2.0)}
        merged[f"{layer}.weight"] = weights[f"{layer}.weight"] + strength * 2.0 / 4 * up @ down
    save_file(lora, models_folder / "loras" / "three.safetensors")
    header = pack.loading.read_checkpoint(models_folder / "diffusion_models" / FP32).metadata
    save_file(merged, models_folder / "diffusion_models" / "merged.safetensors", header)

    loader = pack.nodes.LoraLoaderModelOnly()
    with_lora = sampled(pack, loader.load_lora_model_only(pack.model, "three.safetensors", strength)[0])
    by_hand = sampled(pack, pack.loading.load_parts("merged.safetensors")[0])
    assert max(differences(with_lora, by_hand)) < EXACT
    assert min(differences(with_lora, plain)) > 100 * EXACT
    assert differences(sampled(pack, pack.model), plain) == [0.0, 0.0]  # the model itself is as before


def test_the_compile_node_gives_the_same_clip_with_null_pass_and_skipped_layer(pack):
    """With Dynamo's own backend: what is traced, guarded and traced again is as with inductor."""
    node = importlib.import_module("comfy_extras.nodes_torch_compile").TorchCompileModel
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    torch._dynamo.reset()
    compiled = sampled(pack, node.execute(pack.model, "eager").result[0], sigmas=sigmas)
    torch._dynamo.reset()
    assert max(differences(compiled, sampled(pack, pack.model, sigmas=sigmas))) < EXACT


def test_the_shift_of_a_native_node_changes_the_schedule_of_native_schedulers(pack, plain):
    shifted = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingSD3()
    model = shifted.patch(pack.model, 2.0)[0]
    schedules = [
        pack.custom.BasicScheduler.execute(m, "simple", 4, 1.0).result[0] for m in (pack.model, model)
    ]
    for shift, sigmas in zip((5.0, 2.0), schedules):
        u = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
        assert torch.allclose(sigmas, shift * u / (1 + (shift - 1) * u), atol=1e-3)
    outputs = [sampled(pack, model, sigmas=sigmas) for sigmas in schedules]
    assert min(differences(*outputs)) > 0.01
    # given the same sigmas the shift of the model plays no part
    assert max(differences(outputs[0], sampled(pack, pack.model, sigmas=schedules[0]))) < EXACT


@pytest.mark.parametrize(
    "sampler", ["euler", "dpmpp_2m", "uni_pc", "res_multistep", "heun", "euler_ancestral"]
)
def test_native_samplers_run_and_leave_known_frames_as_they_are(pack, sampler):
    given = task_inputs(pack)[2]["samples"].unbind()
    output, denoised = sampled(pack, pack.model, sampler)
    for video, audio in (output, denoised):
        assert [tuple(video.shape), tuple(audio.shape)] == list(SIZES)
        assert video.isfinite().all()
        assert audio.isfinite().all()
    assert torch.equal(output[0][:, :, :2], given[0][:, :, :2])
    assert torch.equal(output[1][..., :31], given[1][..., :31])
    assert output[0][:, :, 2:].std() > 0.1


def test_a_schedule_sampled_in_two_halves_is_the_whole_one(pack):
    """Split Sigmas and two Sampler Custom Advanced; without an interval, which counts the steps of a run."""
    everywhere = (3.0, 2.0, 0.0, 1)
    sigmas = pack.guiding.Scheduler.execute(6, 5.0).result[0]
    whole = sampled(pack, pack.model, sigmas=sigmas, guidance=everywhere)
    high, low = pack.custom.SplitSigmas.execute(sigmas, 3).result
    positive, negative, latent = task_inputs(pack)
    guider = pack.guiding.Guider.execute(pack.model, positive, negative, *everywhere).result[0]
    method = pack.custom.KSamplerSelect.execute("euler").result[0]
    for noise, part in ((pack.custom.Noise_RandomNoise(7), high), (pack.custom.Noise_EmptyNoise(), low)):
        latent = pack.custom.SamplerCustomAdvanced.execute(noise, guider, method, part, latent).result[0]
    assert max(differences([latent["samples"].unbind()], whole)) < EXACT


def test_a_folder_of_shards_is_the_single_file(pack):
    shards = pack.loading.load_parts(f"{SHARDS}/")[0]
    single = pack.loading.load_parts(BF16)[0]
    assert differences(sampled(pack, shards), sampled(pack, single)) == [0.0, 0.0]


def test_scaled_fp8_stays_fp8_and_is_close_to_bf16(pack, models_folder):
    folder = models_folder / "diffusion_models"
    convert(folder / BF16, folder / "tiny_fp8.safetensors", "fp8")
    model = pack.loading.load_parts("tiny_fp8.safetensors")[0]
    weight = model.model.diffusion_model.blocks[0].ffn[0].weight
    assert weight.dtype == torch.float8_e4m3fn or weight._qdata.dtype == torch.float8_e4m3fn
    found = differences(sampled(pack, model), sampled(pack, pack.loading.load_parts(BF16)[0]))
    assert 0 < max(found) < FP8_BOUND


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_weight_dtype_of_the_loader_halves_the_weights(pack, weight_dtype):
    model = pack.loading.load_parts(BF16, weight_dtype)[0]
    assert model.model.diffusion_model.blocks[0].ffn[0].weight.itemsize == 1
    video, audio = sampled(pack, model)[0]
    assert video.isfinite().all()
    assert audio.isfinite().all()


def test_previews_show_the_video_part_at_every_step(pack, monkeypatch):
    utils = importlib.import_module("comfy.utils")
    preview = importlib.import_module("latent_preview")
    monkeypatch.setattr(preview.args, "preview_method", preview.LatentPreviewMethod.Latent2RGB)
    shown = []
    monkeypatch.setattr(
        utils, "PROGRESS_BAR_HOOK", lambda done, total, image, node_id=None: shown.append(image)
    )
    sampled(pack, pack.model)
    assert [image[1].size for image in shown if image] == [(6, 4)] * 4
    colours = torch.tensor(list(shown[-1][1].tobytes())).float()
    assert colours.std() > 1


def test_a_chosen_attention_serves_the_video_branch_and_never_the_audio_branch(pack, plain):
    lengths = set()

    def attention(original, q, k, v, heads, *args, **kwargs):
        lengths.add((q.shape[1] if q.ndim == 3 else q.shape[2], heads))
        return original(q, k, v, heads, *args, **kwargs)

    model = pack.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    assert max(differences(sampled(pack, model), plain)) < EXACT
    video_tokens = (SIZES[0][2] + 1) * (SIZES[0][3] // 2) * (SIZES[0][4] // 2)
    assert lengths == {(video_tokens, 4)}


def test_wrappers_of_other_packs_see_every_pass_of_the_diffusion_model(pack, plain):
    extension = importlib.import_module("comfy.patcher_extension")
    passes = []

    def wrapper(executor, *args, **kwargs):
        passes.append(1)
        return executor(*args, **kwargs)

    model = pack.model.clone()
    model.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    assert max(differences(sampled(pack, model), plain)) < EXACT
    assert len(passes) == 2 * 4


def test_a_saved_model_loads_again(pack, plain, models_folder):
    """What Save Model writes carries the host's prefix and loads in UniAVGen Load Model."""
    state = pack.model.model.state_dict_for_saving(pack.model.model.diffusion_model.state_dict())
    header = pack.loading.read_checkpoint(models_folder / "diffusion_models" / FP32).metadata
    save_file(state, models_folder / "diffusion_models" / "again.safetensors", header)
    assert next(iter(state)).startswith("model.diffusion_model.")
    again = pack.loading.load_parts("again.safetensors")[0]
    assert max(differences(sampled(pack, again), plain)) < EXACT
