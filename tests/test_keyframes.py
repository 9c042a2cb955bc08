"""A still image is held at any frame: where it stands, what is encoded, and what is refused."""

from __future__ import annotations

import pytest
import torch
from clips import photograph, speech, talking_video
from PIL import Image

from uniavgen_core import embedded, keyframes, pipeline
from uniavgen_core.cli import main
from uniavgen_core.errors import UserError

BEGINNING = torch.tensor([True, False, False, False, False])  # 17 frames


@pytest.mark.parametrize(
    ("frame", "latent"), [(1, 1), (4, 1), (5, 2), (8, 2), (16, 4), (-1, 4), (-4, 4), (-5, 3), (-16, 1)]
)
def test_a_frame_lies_in_the_latent_frame_that_holds_it(frame, latent):
    assert keyframes.place(frame, BEGINNING) == latent


@pytest.mark.parametrize(
    ("frame", "known", "said"),
    [
        (17, BEGINNING, r"keyframe 17 is outside the clip, which has the frames 0 to 16"),
        (-18, BEGINNING, r"keyframe -18 is outside"),
        (0, BEGINNING, r"keyframe 0 is the first frame, which is the reference image"),
        (-17, BEGINNING, r"keyframe -17 is the first frame"),
        (6, torch.tensor([True, True, True, False, False]), r"frames 5 to 8, which are known already"),
    ],
)
def test_a_place_that_is_not_free_is_named(frame, known, said):
    with pytest.raises(UserError, match=said):
        keyframes.place(frame, known)


def test_a_keyframe_is_the_last_latent_frame_of_a_held_image_and_becomes_known():
    video, latent = torch.zeros(2, 48, 5, 4, 4), torch.randn(1, 48, 7, 4, 4)
    made, known = keyframes.put(video, BEGINNING, -1, latent)
    assert torch.equal(made[:, :, 4], latent[:, :, -1].expand(2, -1, -1, -1))
    assert not made[:, :, :4].any()
    assert known.tolist() == [True, False, False, False, True]
    assert not video.any()
    assert BEGINNING.tolist() == [True, False, False, False, False]


def test_a_held_image_no_longer_depends_on_where_the_clip_began():
    """The embedded VAE: the latent frame that is taken is within 4 % of one held much longer; a first one is
    not."""
    vae = embedded.load_vae()
    image = torch.randint(0, 256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0)).float()
    with torch.inference_mode():

        def latents(frames):
            return vae.encode((frames / 127.5 - 1).permute(3, 0, 1, 2)[None])

        held = latents(keyframes.still(image))
        long = latents(image.expand(49, -1, -1, -1))[:, :, -1]
    assert (held[:, :, -1] - long).norm() < 0.04 * long.norm()
    assert (held[:, :, 0] - long).norm() > 0.3 * long.norm()


# the command line


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folder with photo.png, voice.wav, clip.mp4 (2 s) and end.png."""
    folder = tmp_path_factory.mktemp("real")
    talking_video(folder / "clip.mp4", photograph(folder / "photo.png"), speech(folder / "voice.wav"))
    Image.new("RGB", (90, 50), (10, 200, 30)).save(folder / "end.png")
    return folder


def request(real, mode="joint", **changes):
    given = {
        "joint": {"image": str(real / "photo.png"), "frames": 17},
        "continuation": {"video": str(real / "clip.mp4"), "prefix_frames": 9, "frames": 17},
        "edit": {"video": str(real / "clip.mp4"), "edit_start": 0.3, "edit_end": 0.9},
        "dubbing": {"video": str(real / "clip.mp4")},
    }[mode]
    return pipeline.Request(mode, str(real / "out.mp4"), "hello", short_side=64, **given | changes)


def prepared(request):
    """The task, with the mean of every latent frame's colours in the place of the VAE."""
    inputs = pipeline.read_inputs(request.completed(embedded.settings()))
    whole = pipeline.Pipeline.load(pipeline.Weights())
    whole.encode_frames = lambda frames: (
        frames.float().mean()
        + torch.zeros(1, 48, (len(frames) - 1) // 4 + 1, frames.shape[1] // 16, frames.shape[2] // 16)
    )
    return pipeline.prepare_task(whole, inputs), inputs


@pytest.mark.parametrize(("mode", "known"), [("joint", [0]), ("continuation", [0, 1, 2])])
def test_last_image_and_keyframes_are_known_beside_what_the_mode_knows(real, mode, known):
    end = str(real / "end.png")
    task, inputs = prepared(request(real, mode, last_image=end))
    assert task.conditioned_video.nonzero()[:, 0].tolist() == [*known, 4]
    assert torch.allclose(task.clean_video[:, :, 4], torch.tensor(80.0), atol=0.5)
    assert any("held in frames 13 to 16 (0.81 to 1.06 s); experimental" in note for note in inputs.notes)
    task, _ = prepared(request(real, mode, keyframes=((10, end), (-1, end))))
    assert task.conditioned_video.nonzero()[:, 0].tolist() == sorted({*known, 3, 4})


def test_an_edited_range_may_have_a_keyframe_and_the_source_stays_outside(real):
    plain, _ = prepared(request(real, "edit"))
    task, _ = prepared(request(real, "edit", keyframes=((10, str(real / "end.png")),)))
    assert (task.conditioned_video != plain.conditioned_video).nonzero()[:, 0].tolist() == [3]


def test_without_keyframes_nothing_changes(real):
    task, inputs = prepared(request(real))
    assert task.conditioned_video.nonzero()[:, 0].tolist() == [0]
    assert not inputs.stills


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keyframe", "end.png"], "--keyframe is 'end.png', expected FRAME:FILE"),
        (["--keyframe", "x:end.png"], "expected FRAME:FILE"),
        (["--keyframe", "4:"], "expected FRAME:FILE"),
        (["--keyframe", "4:nothere.png"], "nothere.png"),
        (["--keyframe", "0:end.png"], "the first frame, which is the reference image"),
        (["--keyframe", "40:end.png"], "outside the clip, which has the frames 0 to 16"),
        (["--keyframe", "15:end.png", "--last-image", "end.png"], "frames 13 to 16, which are known already"),
        (["--mode", "dubbing", "--last-image", "end.png"], "keeps the whole video"),
    ],
)
def test_what_cannot_be_held_is_answered_before_anything_is_loaded(real, monkeypatch, capfd, arguments, said):
    monkeypatch.chdir(real)
    monkeypatch.setattr(pipeline.Weights, "load_model", lambda self: pytest.fail("the model was loaded"))
    clip = ["--video", "clip.mp4"] if "dubbing" in arguments else ["--image", "photo.png", "--frames", "17"]
    line = ["generate", *clip, "--text", "hello", "--out", "out.mp4", "--short-side", "64", *arguments]
    assert main(line) == 2
    assert said in capfd.readouterr().err.strip().splitlines()[-1]
