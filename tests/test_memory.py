"""A run below a memory limit: its plan, streamed weights and tiles of the VAE."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import forward
from PIL import Image
from random_parts import random_model
from release_folder import write_release
from torch import nn
from torch.profiler import ProfilerActivity, profile

from uniavgen_core import cli, conditioning, memory
from uniavgen_core.allocations import Allocations
from uniavgen_core.errors import UserError
from uniavgen_core.media import caption, vae_tiles
from uniavgen_core.media.files import read_video
from uniavgen_core.media.vae import autoencoder, random_vae
from uniavgen_core.media.vae_tiles import Tiles
from uniavgen_core.media.vocoder import load_vocoder
from uniavgen_core.memory import Clip
from uniavgen_core.model.config import TINY
from uniavgen_core.model.inputs import TextConditioning
from uniavgen_core.pipeline import Weights
from uniavgen_core.sampling.defaults import Guidance
from uniavgen_core.sampling.guidance import GuidedModel
from uniavgen_core.weights.checkpoint import load_model, read_checkpoint
from uniavgen_core.weights.convert import convert
from uniavgen_core.weights.fp8 import Fp8Linear, dequantised
from uniavgen_core.weights.streaming import Stream, spread
from uniavgen_core.weights.write import MODEL_LINEAR

CLIP = Clip("joint", 96, 64, 9, conditioning.mel_frames(9))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("memory") / "UniAVGen")


@pytest.fixture(scope="module")
def vae():
    return random_vae()


def measured(work) -> int:
    """The most bytes that torch's own allocator held at once while `work` ran, less those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    del kept
    return peak


# dequantising


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_fp8_value_is_dequantised_as_torch_does_it(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    stored = codes[codes & 127 != 127].view(torch.float8_e4m3fn).repeat(40).view(-1, 254)
    scale = torch.tensor(0.0123)
    assert torch.equal(dequantised(stored, scale, dtype), (stored.float() * scale).to(dtype))


# streaming


class Blocks(nn.Module):
    def __init__(self, stream: Stream | None, count: int = 6):
        super().__init__()
        self.weights = [torch.randn(32, 32, generator=torch.Generator().manual_seed(i)) for i in range(count)]
        self.layers = nn.ModuleList(Fp8Linear(w, None, None, torch.float32, stream) for w in self.weights)

    def forward(self, x, skip=None):
        for i, layer in enumerate(self.layers):
            x = x if i == skip else layer(x) / 6
        return x


def test_streamed_weights_are_foreseen_from_the_second_pass_on():
    stream = Stream("cpu", ahead=2 * 32 * 32 * 4)
    streamed, resident = Blocks(stream), Blocks(None)
    x = torch.randn(3, 32)
    for _ in range(3):
        assert torch.equal(streamed(x), resident(x))
    assert (stream.missed, stream.foreseen) == (6 + 1, 2 * 6 - 1)


def test_streamed_weights_survive_passes_that_skip_layers_by_turns():
    stream = Stream("cpu", ahead=2 * 32 * 32 * 4)
    streamed, resident = Blocks(stream), Blocks(None)
    x = torch.randn(3, 32)
    for skip in (None, 2, None, 2, None, 5):
        assert torch.equal(streamed(x, skip), resident(x, skip))


def test_no_more_than_asked_for_is_on_the_way():
    one = 32 * 32 * 4
    stream = Stream("cpu", ahead=2 * one)
    blocks = Blocks(stream)
    blocks(torch.randn(1, 32))
    for layer, weight in zip(blocks.layers, blocks.weights):
        stream.take(layer, weight)
        assert len(stream._coming) <= 2


def test_what_does_not_fit_is_spread_evenly():
    sizes = {str(i): 10 for i in range(12)}
    assert spread(sizes, 120) == set()
    assert spread(sizes, -5) == set(sizes)
    half = spread(sizes, 60)
    assert len(half) == 6
    assert all(len(half & {str(2 * i), str(2 * i + 1)}) == 1 for i in range(6))


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_a_streamed_model_computes_what_the_loaded_one_computes(tmp_path, release, make_inputs, form):
    path = tmp_path / "model.safetensors"
    convert(release, path, form)
    loaded = load_model(path, dtype=torch.float32, keep_fp8=True)
    names = linear_names(path)
    streamed = load_model(path, dtype=torch.float32, keep_fp8=True, streamed=names[::2])
    assert sum(isinstance(layer, Fp8Linear) and bool(layer.stream) for layer in streamed.modules()) == len(
        names[::2]
    )
    with torch.no_grad():
        for _ in range(2):
            a, b = (forward(model, **make_inputs(loaded.config)) for model in (loaded, streamed))
            assert torch.equal(a.video, b.video)
            assert torch.equal(a.audio, b.audio)


def test_a_streamed_text_encoder_computes_what_the_loaded_one_computes(release):
    file = release / "models_t5_umt5-xxl-enc-bf16.pth"
    loaded = caption.load_caption_encoder(file, dtype=torch.bfloat16)
    names = [
        f"encoder.block.{i}.layer.1.DenseReluDense.{leaf}.weight" for i in (0, 1) for leaf in ("wi_0", "wo")
    ]
    streamed = caption.load_caption_encoder(file, dtype=torch.bfloat16, streamed=names)
    assert torch.equal(loaded(["A person talks."]), streamed(["A person talks."]))


# tiles


@pytest.mark.parametrize("tiles", [Tiles(1, 1), Tiles(1, 2), Tiles(2, 3)])
def test_a_decode_in_tiles_is_the_whole_decode(vae, tiles):
    latent = torch.randn(1, 48, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    vae.tiles = None
    whole, told = vae.decode(latent), []
    vae.tiles = (Tiles(), tiles)
    parts = vae.decode(latent, lambda done, parts: told.append((done, parts)))
    assert whole.std() > 0.1
    assert (parts - whole).abs().max() < 1e-4
    count = 3 * tiles.rows * tiles.columns
    assert told == [(i + 1, count) for i in range(count)]


def test_an_encoding_in_tiles_is_the_whole_encoding(vae):
    frames = torch.rand(1, 3, 5, 192, 384, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae.tiles = None
    whole = vae.encode(frames)
    vae.tiles = (Tiles(1, 2), Tiles())
    assert (vae.encode(frames) - whole).abs().max() < 1e-4 * whole.abs().max()


def test_a_margin_one_pixel_narrower_is_seen(vae, monkeypatch):
    latent = torch.randn(1, 48, 1, 4, 40, generator=torch.Generator().manual_seed(0))
    vae.tiles = None
    whole = vae.decode(latent)
    right = vae_tiles._reaches
    monkeypatch.setattr(vae_tiles, "_reaches", lambda blocks: [n - 4 for n in right(blocks)])
    vae.tiles = (Tiles(), Tiles(1, 2))
    assert (vae.decode(latent) - whole).abs().max() > 1e-3


# counting and planning


def test_the_counted_memory_of_decoding_is_that_of_real_tensors(vae):
    tiles = Tiles(1, 2)
    with torch.device("meta"):
        empty = autoencoder(dict(vae.model.config))
    clip = Clip("joint", 480, 64, 17, 101)
    counted = memory.decode_memory(empty, clip, tiles)
    latent = torch.randn(1, 48, 5, 4, 30)
    vae.tiles = (Tiles(), tiles)
    out = 3 * 17 * 64 * 480 * 4
    with Allocations() as real:  # not torch's allocator: on a CPU its convolutions unfold their input
        vae.decode(latent)
    assert counted <= real.peak <= 1.05 * counted + 2 * out


def test_the_counted_memory_of_steps_is_the_measured_one():
    counted, kept = memory.model_memory(TINY, CLIP, Guidance(), torch.float32)
    assert 0 < kept < counted
    model = random_model()
    task = conditioning.condition("joint", torch.randn(1, 48, 1, 4, 6), None, 3, CLIP.mels)
    text = TextConditioning(torch.randn(1, 64, 64), torch.randn(1, memory.SPEECH_SYMBOLS, 32))

    def two_steps():
        guided = GuidedModel(model, task, text, text, replace(Guidance(), skip_layers=()))
        with torch.inference_mode():
            for step in range(2):
                guided(*task.noise(0), torch.full((1,), 500.0), step, 2)
        return guided

    assert measured(two_steps) == pytest.approx(counted, rel=0.1)


def test_the_text_encoder_takes_no_more_than_is_counted(release):
    file = release / "models_t5_umt5-xxl-enc-bf16.pth"
    files, names, _ = caption.open_text_encoder(file)
    encoder = caption.load_caption_encoder(file, dtype=torch.bfloat16)
    with Allocations() as real:
        assert encoder(["A person talks. " * 300]).shape[1] == caption.CAPTION_LENGTH
    assert real.peak <= memory.text_activations(files, names, torch.bfloat16) <= 3 * real.peak


def test_the_vocoder_takes_no_more_than_is_counted(release):
    stage = memory._vocoder(release / "code2wav_bigvgan_model", CLIP)
    vocoder = load_vocoder(release / "code2wav_bigvgan_model")
    with torch.inference_mode(), Allocations() as real:
        vocoder(torch.zeros(1, 80, CLIP.mels))
    assert real.peak <= stage.parts["activations"] <= 5 * real.peak
    assert stage.parts["weights"] == 4 * sum(p.numel() for p in vocoder.state_dict().values())


def test_a_deep_model_is_counted_from_its_first_layers():
    deep = replace(TINY, layers=8, interaction_layers=(0, 2, 4, 6))
    whole = memory._count_steps(deep, CLIP, Guidance(), torch.float32)
    assert memory.model_memory(deep, CLIP, Guidance(), torch.float32) == pytest.approx(whole, rel=0.02)


def test_tensors_that_are_gone_are_not_counted():
    with Allocations() as counted:
        a = torch.zeros(100)
        b = a + 1
        del a
        b = b.view(10, 10) + 1
    assert (counted.alive, counted.peak) == (400, 800)
    del b


def linear_names(path) -> list[str]:
    return [name for name in load_model(path).state_dict() if MODEL_LINEAR.fullmatch(name)]


def test_a_stage_streams_what_does_not_fit(release, monkeypatch):
    monkeypatch.setattr(memory, "AHEAD", 0)
    checkpoint, names = read_checkpoint(release), linear_names(release)
    every = {name: name for name in checkpoint.tensors}
    whole, streamed = memory._stage("sample", checkpoint, every, names, torch.bfloat16, {"x": 7}, 10**9)
    assert not streamed
    assert whole.parts == {"weights": 2 * sum(i.parameters for i in checkpoint.tensors.values()), "x": 7}
    part, streamed = memory._stage(
        "sample", checkpoint, every, names, torch.bfloat16, {"x": 7}, whole.total - 10**5
    )
    assert streamed < set(names)
    assert whole.total - 2 * 10**5 < part.total <= whole.total - 10**5
    size = sum(2 * checkpoint.tensors[name].parameters for name in streamed)
    assert part.parts["weights"] == whole.parts["weights"] - size


def test_the_clip_is_the_same_with_streamed_weights_and_tiles(capfd, tmp_path, release, monkeypatch):
    made = memory.plan

    def harder(*args):
        names = frozenset(linear_names(release))
        return replace(made(*args), model=names, tiles=(Tiles(1, 2), Tiles(2, 2)))

    monkeypatch.setattr(memory, "plan", harder)
    image = tmp_path / "image.png"
    Image.new("RGB", (96, 64), (90, 120, 30)).save(image)
    clips = []
    for name, more in (("whole", []), ("limited", ["--memory", "0.7"])):
        out = tmp_path / f"{name}.mp4"
        options = ["--image", image, "--text", "Good morning.", "--model", release, "--out", out]
        options += ["--frames", "9", "--short-side", "64", "--steps", "2", "--json"]
        assert cli.main(["generate", *map(str, [*options, *more])]) == 0
        said = capfd.readouterr()
        json.loads(said.out)
        clips.append(read_video(out, max_seconds=1, fps=16).frames)
    assert (clips[0].int() - clips[1].int()).abs().max() <= 1
    lines = said.err.splitlines()
    assert [line.split()[0] for line in lines if " GB: " in line] == [
        "caption",
        "encode",
        "sample",
        "decode",
        "vocoder",
    ]
    assert "memory: at most 0." in said.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text", "Hello.", "--memory", "-1"], "--memory is -1; give a positive number of GB, such as 8"),
        (["--script", "lines.txt", "--memory", "8"], "--memory plans a single clip"),
    ],
)
def test_a_limit_without_sense_is_refused(capsys, tmp_path, options, said):
    assert cli.main(["generate", "--out", str(tmp_path / "clip.mp4"), *options]) == 2
    assert said in capsys.readouterr().err


def test_too_small_a_limit_is_refused_before_anything_is_loaded(release):
    weights = Weights(str(release), memory=int(0.5e9))
    with pytest.raises(
        UserError, match=r"--memory 0.5 is too little: the stage caption takes 0\.\d GB at least"
    ):
        weights.planned(CLIP, Guidance())
