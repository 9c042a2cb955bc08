"""Who speaks: a given mask goes where the predicted face mask goes, and comes from pixels to tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clips import photograph
from conftest import forward, inputs, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uniavgen_core import DualBranchDiT, conditioning, embedded, oracle, pipeline
from uniavgen_core.cli import main
from uniavgen_core.errors import UserError
from uniavgen_core.media import files
from uniavgen_core.model.cache import Cache
from uniavgen_core.model.config import TINY
from uniavgen_core.model.inputs import Speaker
from uniavgen_core.who_speaks import read_mask, token_mask


@settings(max_examples=12, deadline=None)
@given(
    variant=st.sampled_from(["released", "paper", "aligned"]),
    instead=st.booleans(),
    every_frame=st.booleans(),
    known=st.integers(0, 3),
)
def test_a_forward_with_a_given_mask_equals_the_transcription(variant, instead, every_frame, known):
    frames, mels = 3, 14
    config = replace(TINY, variant=variant, speech_layers=1, layers=3)
    model = randomise(DualBranchDiT(config), known)
    arguments = inputs(config, frames=frames, mels=mels, rows=2, columns=4, seed=known)
    mask = torch.rand(1, frames if every_frame else 1, 2, generator=torch.Generator().manual_seed(known))
    conditioned = {"conditioned_video": torch.arange(frames) < known}
    out = forward(model, **arguments, **conditioned, speaker=Speaker(mask, instead))
    if variant == "aligned":  # the transcription has no such variant; what the mask does is the same there
        plain = forward(model, **arguments, **conditioned)
        used = mask[0].expand(frames, -1)
        first = used if instead else used * plain.face_masks[0][0]
        assert torch.allclose(out.face_masks[0][0], first, atol=1e-6)
        return
    clip = {k: arguments[k][0].double() for k in arguments if k != "time"}
    clip = oracle.Clip(
        **clip,
        time=float(arguments["time"]),
        n_v=known,
        speaker=mask[0].double().expand(frames, -1),
        instead=instead,
    )
    state = {k: v.double() for k, v in model.state_dict().items()}
    video, audio, masks = oracle.forward(state, config, clip)
    assert oracle.relative_error(out.video[0], video) < 1e-5
    assert oracle.relative_error(out.audio[0], audio) < 1e-5
    for block, used in masks.items():
        assert oracle.relative_error(out.face_masks[block][0], used) < 1e-5


def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_is_no_interaction(model):
    arguments = inputs(model.config, batch=2)
    tokens = arguments["video"].shape[3] * arguments["video"].shape[4] // 4
    plain = forward(model, **arguments)
    ones = forward(model, **arguments, speaker=Speaker(torch.ones(1, 1, tokens)))
    assert torch.equal(ones.video, plain.video)
    assert torch.equal(ones.audio, plain.audio)
    paper = model.config.variant == "paper"
    nobody = forward(model, **arguments, speaker=Speaker(torch.zeros(1, 1, tokens), instead=True))
    alone = forward(model, **arguments, a2v=False, v2a=False)
    assert torch.equal(nobody.video, alone.video) == paper  # the released variant adds the bias of o
    assert not torch.equal(nobody.video, plain.video)


def test_only_the_tokens_in_the_mask_are_moved_by_the_audio(paper):
    arguments = inputs(paper.config)
    rows, columns = arguments["video"].shape[3] // 2, arguments["video"].shape[4] // 2
    left = torch.zeros(rows, columns)
    left[:, 0] = 1
    seen = {}
    layer = paper.a2v_blocks[0]
    hook = layer.register_forward_hook(lambda module, given, out: seen.setdefault("update", out))
    forward(paper, **arguments, speaker=Speaker(left.flatten()[None, None]))
    hook.remove()
    update = seen["update"][0].unflatten(1, (rows, columns))
    assert update[:, :, 0].abs().max() > 0
    assert not update[:, :, 1:].any()


@pytest.mark.parametrize("known", ["video", "audio"])
def test_results_with_a_cache_equal_those_without(model, known):
    arguments = inputs(model.config)
    length = {"video": 3, "audio": 23}[known]
    arguments[f"conditioned_{known}"] = torch.ones(length, dtype=torch.bool)
    tokens = arguments["video"].shape[3] * arguments["video"].shape[4] // 4
    speaker, cache = Speaker(torch.rand(1, 3, tokens)), Cache()
    for time in (900.0, 100.0):
        arguments["time"] = torch.tensor([time])
        got = forward(model, **arguments, speaker=speaker, cache=cache)
        wanted = forward(model, **arguments, speaker=speaker)
        assert torch.equal(got.video, wanted.video)
        assert torch.equal(got.audio, wanted.audio)


def test_a_mask_of_another_size_is_an_error(released):
    with pytest.raises(ValueError, match=r"speaker's mask has shape \(1, 1, 5\), expected 1 or 1, 1 or 3, 6"):
        forward(released, **inputs(released.config), speaker=Speaker(torch.ones(1, 1, 5)))


# pixels to tokens


def test_a_token_takes_the_mean_of_its_pixels_and_a_latent_frame_that_of_its_frames():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(9, 64, 96, generator=generator)
    got = token_mask(mask, (3, 4, 6))
    assert got.shape == (1, 3, 6)
    for latent, frames in enumerate((slice(0, 1), slice(1, 5), slice(5, 9))):
        for row in range(2):
            for column in range(3):
                area = mask[frames, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
                assert torch.isclose(got[0, latent, 3 * row + column], area.mean(), atol=1e-6)
    assert torch.allclose(token_mask(mask[:1], (3, 4, 6))[0, 0], got[0, 0])


def test_a_mask_goes_the_way_of_the_image_it_is_drawn_on():
    """Whatever its size: the same middle is cut out, the same side is marked."""
    image = torch.zeros(300, 500, 3, dtype=torch.uint8)
    image[:, 250:] = 255
    fitted = files.fit_image(image[None], 64, 64)[0].float().mean(-1) / 255
    got = token_mask((image.float().mean(-1) / 255)[None], (1, 4, 4))
    assert torch.allclose(got[0, 0], token_mask(fitted[None].clamp(0, 1), (1, 4, 4))[0, 0], atol=0.02)
    assert got[0, 0].tolist() == [0, 1, 0, 1]


def test_odd_latents_repeat_their_edge_as_the_model_does():
    assert token_mask(torch.eye(3)[None], (1, 3, 3))[0, 0].tolist() == [0.5, 0, 0, 1]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.ones(4, 4), r"mask of who speaks is \[4, 4\], expected \[frames, height, width\]"),
        (torch.full((1, 4, 4), 2.0), r"from 2 to 2, expected values from 0 to 1"),
        (torch.full((1, 4, 4), float("nan")), r"from nan to nan"),
        (torch.zeros(1, 4, 4), r"0 everywhere, so nobody would speak"),
        (torch.ones(5, 4, 4), r"has 5 frames, expected 1 or the clip's 9"),
    ],
)
def test_a_mask_that_cannot_be_is_one_line(mask, said):
    with pytest.raises(UserError, match=said):
        token_mask(mask, (3, 4, 4))


# files


def request(tmp_path, **changes):
    image = photograph(tmp_path / "photo.png")
    small = {"image": str(image), "frames": 9, "short_side": 64}
    return pipeline.Request("joint", str(tmp_path / "clip.mp4"), "hello", **small, **changes)


def prepared(request):
    completed = request.completed(embedded.settings())
    inputs = pipeline.read_inputs(completed)
    whole = pipeline.Pipeline.load(pipeline.Weights())
    whole.encode_frames = lambda frames: torch.zeros(1, 48, (len(frames) - 1) // 4 + 1, 4, 4)
    return pipeline.prepare_task(whole, inputs)


def test_the_command_line_reads_an_image_white_where_someone_speaks(tmp_path):
    picture = Image.new("L", (512, 512))
    picture.paste(255, (256, 0, 512, 512))
    picture.save(tmp_path / "mask.png")
    task = prepared(request(tmp_path, who_speaks=str(tmp_path / "mask.png"), who_speaks_how="replace"))
    assert task.speaker.instead
    assert task.speaker.mask[0].tolist() == [4 * [0, 0, 1, 1]]  # its tokens are one latent pixel each
    assert prepared(request(tmp_path)).speaker is None


def test_a_video_is_a_mask_for_every_frame(tmp_path):
    frames = torch.zeros(9, 64, 64, 3, dtype=torch.uint8)
    frames[5:] = 255
    files.write_mp4(tmp_path / "mask.mp4", frames, 16, torch.zeros(1, 13500), 24000)
    assert read_mask(tmp_path / "mask.mp4").shape == (9, 64, 64)
    task = prepared(request(tmp_path, who_speaks=str(tmp_path / "mask.mp4")))
    assert [round(x, 2) for x in task.speaker.mask.mean(-1)[0].tolist()] == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--who-speaks", "nothere.png"], "nothere.png"),
        (["--who-speaks-how", "replace"], "--who-speaks-how needs --who-speaks"),
        (["--who-speaks", "black.png"], "nobody would speak"),
        (["--who-speaks", "short.mp4"], "has 5 frames, expected 1 or the clip's 9"),
    ],
)
def test_a_wrong_mask_is_answered_before_anything_is_loaded(tmp_path, monkeypatch, capfd, arguments, said):
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path / "photo.png")
    Image.new("L", (64, 64)).save("black.png")
    frames = torch.full((5, 64, 64, 3), 255, dtype=torch.uint8)
    files.write_mp4("short.mp4", frames, 16, torch.zeros(1, 7500), 24000)
    monkeypatch.setattr(pipeline.Weights, "load_model", lambda self: pytest.fail("the model was loaded"))
    clip = ["generate", "--image", "photo.png", "--text", "hello", "--frames", "9", "--out", "clip.mp4"]
    assert main([*clip, "--short-side", "64", *arguments]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert said in error[-1]
    assert not (tmp_path / "clip.mp4").exists()
    assert conditioning.mel_frames(9) == 56
