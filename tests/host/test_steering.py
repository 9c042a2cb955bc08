"""Who speaks and keyframes: nodes between a task node and the sampler do what the core does."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pooling_vae import PoolingVAE

SPEECH = (torch.zeros(1, 12, 32), torch.zeros(1, 10, 32))


@pytest.fixture(scope="module")
def pack(host, make_model) -> SimpleNamespace:
    def module(name: str):
        return importlib.import_module(f"{host.__name__}.{name}")

    core = make_model("released", seed=2)
    config = module("uniavgen_core.model.config").Config(**vars(core.config))
    own = module("uniavgen_core.model.dit").DualBranchDiT(config)
    own.load_state_dict(core.state_dict())
    return SimpleNamespace(
        module=module, core=own, model=module("nodes.host_model").build_patcher(core.state_dict(), config)
    )


@pytest.fixture(autouse=True)
def untold(pack, monkeypatch) -> None:
    """Nodes that are run by themselves have no place to tell anything."""
    for name in ("nodes.who_speaks", "nodes.keyframes"):
        monkeypatch.setattr(pack.module(name), "tell", lambda node, text: None)


def clip(pack, latents: int = 3) -> SimpleNamespace:
    """A joint task of 9 frames, and what its node gives; normalised latents in `task`."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, 48, 1, 4, 6, generator=generator)
    captions = torch.randn(2, 1, 9, 64, generator=generator)
    task = pack.module("uniavgen_core.conditioning").condition("joint", image, None, latents, 56)
    raw = pack.model.model.latent_format.process_out
    given = replace(task, reference_image=raw(image), clean_video=raw(task.clean_video))
    speech = pack.module("nodes.types").EncodedSpeech(*SPEECH, transcript=False)
    texts = [[[x, {}]] for x in captions]
    made = pack.module("nodes.tasks").conditioned(given, "joint", *texts, speech).result
    return SimpleNamespace(
        task=task, captions=captions, positive=made[0], negative=made[1], latent=made[2], raw=raw
    )


def sampled(pack, made, task):
    """By the nodes and by the core: video and audio each."""
    guiding, sampling = pack.module("nodes.guiding"), pack.module("uniavgen_core.sampling.sampler")
    scales = guiding.guidance(3.0, 2.0, 0.5, 1)
    guider = guiding.MACFGGuider(pack.model, scales)
    guider.set_conds(made.positive, made.negative)
    noise, nested = task.noise(9), importlib.import_module("comfy.nested_tensor").NestedTensor
    by_nodes = guider.sample(
        nested((noise[0], noise[1].transpose(1, 2))),
        made.latent["samples"],
        importlib.import_module("comfy.samplers").sampler_object("euler"),
        sampling.schedule(3) / 1000,
        denoise_mask=made.latent["noise_mask"],
        disable_pbar=True,
        seed=0,
    ).unbind()
    condition = pack.module("uniavgen_core.model.inputs").TextConditioning
    texts = [condition(caption, speech) for caption, speech in zip(made.captions, SPEECH)]
    by_core = sampling.sample(pack.core, task, *texts, scales, steps=3, seed=9)
    normal = pack.model.model.latent_format.process_in
    return (normal(by_nodes[0]), by_nodes[1].transpose(1, 2)), (by_core.video, by_core.audio)


@pytest.mark.parametrize("how", ["multiply", "replace"])
@pytest.mark.parametrize("frames", [1, 9])
def test_a_mask_steers_the_nodes_as_it_steers_the_core(pack, how, frames):
    made = clip(pack)
    mask = torch.rand(frames, 64, 96, generator=torch.Generator().manual_seed(frames))
    node = pack.module("nodes.who_speaks").WhoSpeaks
    steered = SimpleNamespace(**vars(made))
    steered.positive, steered.negative = node.execute(made.positive, made.negative, mask, how).result
    speaker = pack.module("uniavgen_core.who_speaks").speaker(mask, how, (3, 4, 6), (2, 2))
    by_nodes, by_core = sampled(pack, steered, replace(made.task, speaker=speaker))
    plain, _ = sampled(pack, made, made.task)
    for a, b, c in zip(by_nodes, by_core, plain):
        assert (a - b).norm() / b.norm() < 1e-4
        assert (a - c).norm() / c.norm() > 1e-4


def test_keyframes_are_known_where_the_core_holds_them(pack):
    made, keyframes = clip(pack), pack.module("uniavgen_core.keyframes")
    files = pack.module("uniavgen_core.media.files")
    vae = PoolingVAE(files.to_float)
    image = torch.rand(1, 90, 70, 3, generator=torch.Generator().manual_seed(1))
    node = pack.module("nodes.keyframes").Keyframe
    latent = node.execute(made.latent, vae, image, -1).result[0]
    latent = node.execute(latent, vae, 1 - image, 2).result[0]
    video, known = made.latent["samples"].unbind()[0], made.task.conditioned_video
    for frame, picture in ((-1, image), (2, 1 - image)):
        fitted = files.fit_image((255 * picture).round().to(torch.uint8), 96, 64)
        encoded = vae.encode(files.to_float(keyframes.still(fitted))[None])
        video, known = keyframes.put(video, known, frame, encoded)
    assert torch.equal(latent["samples"].unbind()[0], video)
    mask = latent["noise_mask"].unbind()
    assert torch.equal(mask[0][0, 0, :, 0, 0] == 0, known)
    assert torch.equal(mask[1], made.latent["noise_mask"].unbind()[1])
    normal = pack.model.model.latent_format.process_in
    held = SimpleNamespace(**(vars(made) | {"latent": latent}))
    task = replace(made.task, clean_video=normal(video) * known[:, None, None], conditioned_video=known)
    by_nodes, by_core = sampled(pack, held, task)
    assert torch.allclose(by_nodes[0][:, :, known], normal(video)[:, :, known], atol=1e-5)
    for a, b in zip(by_nodes, by_core):
        assert (a - b).norm() / b.norm() < 1e-4


def test_a_latent_with_keyframes_still_counts_as_not_sampled(pack):
    made = clip(pack)
    vae = PoolingVAE(pack.module("uniavgen_core.media.files").to_float)
    node = pack.module("nodes.keyframes").Keyframe
    latent = node.execute(made.latent, vae, torch.zeros(1, 64, 96, 3), -1).result[0]
    with pytest.raises(pack.module("uniavgen_core.errors").UserError, match="nothing was generated"):
        pack.module("nodes.decoding").check_sampled(latent)
