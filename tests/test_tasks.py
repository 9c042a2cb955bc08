"""Five tasks are five ways of saying what is already known (SPEC section 6)."""

from __future__ import annotations

import pytest
import torch

from uniavgen_core import conditioning
from uniavgen_core.errors import UserError

FRAMES, MELS = 5, 30


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGE = normal(1, 48, 1, 4, 6)
VIDEO = normal(1, 48, FRAMES, 4, 6, seed=1)
MEL = normal(1, MELS, 80, seed=2)
VOICE = normal(1, 7, 80, seed=3)

FIRST = VIDEO[:, :, :1]

# mode: task, known latent frames, known mel frames, reference image, reference mel, V2A of the full pass
TABLE = {
    "joint": (conditioning.joint(IMAGE, FRAMES, MELS), 1, 0, IMAGE, None, True),
    "reference-voice": (conditioning.reference_voice(IMAGE, VOICE, FRAMES, MELS), 1, 0, IMAGE, VOICE, False),
    "reference-voice, paper": (
        conditioning.reference_voice(IMAGE, VOICE, FRAMES, MELS, "paper"),
        *(1, 0, IMAGE, VOICE, True),
    ),
    "continuation": (
        conditioning.continuation(VIDEO[:, :, :2], MEL[:, :9], FRAMES, MELS),
        *(2, 9, FIRST, None, True),
    ),
    "continuation in a voice": (
        conditioning.continuation(VIDEO[:, :, :3], MEL[:, :1], FRAMES, MELS, VOICE),
        *(3, 1, FIRST, VOICE, True),
    ),
    "dubbing": (conditioning.dubbing(VIDEO, MELS), FRAMES, 0, FIRST, None, True),
    "dubbing in a voice": (conditioning.dubbing(VIDEO, MELS, VOICE), FRAMES, 0, FIRST, VOICE, True),
    "audio-driven": (conditioning.audio_driven(IMAGE, MEL, FRAMES), 1, MELS, IMAGE, None, True),
}


@pytest.mark.parametrize("mode", TABLE)
def test_a_mode_is_what_it_knows(mode):
    task, n_v, n_a, image, voice, v2a = TABLE[mode]
    assert task.known_video.tolist() == [i < n_v for i in range(FRAMES)]
    assert task.known_audio.tolist() == [j < n_a for j in range(MELS)]
    assert torch.equal(task.reference_image, image)
    assert (task.reference_mel is None) if voice is None else torch.equal(task.reference_mel, voice)
    assert task.v2a is v2a


@pytest.mark.parametrize("mode", TABLE)
def test_known_frames_are_overwritten_with_clean_data_and_others_are_left(mode):
    task, n_v, n_a, image, *_ = TABLE[mode]
    noise = normal(1, 48, FRAMES, 4, 6, seed=8), normal(1, MELS, 80, seed=9)
    video, audio = task.known(*noise)
    clean = image if n_v == 1 else VIDEO[:, :, :n_v]
    assert torch.equal(video[:, :, :n_v], clean)
    assert torch.equal(video[:, :, n_v:], noise[0][:, :, n_v:])
    assert torch.equal(audio[:, :n_a], MEL[:, :n_a])
    assert torch.equal(audio[:, n_a:], noise[1][:, n_a:])


def test_the_five_modes_have_the_names_of_the_readme():
    assert conditioning.MODES == ("joint", "reference-voice", "continuation", "dubbing", "audio-driven")


def test_noise_is_standard_normal_and_belongs_to_its_seed():
    task = conditioning.joint(normal(1, 48, 1, 16, 16), 9, 400)
    video, audio = task.noise(2025)
    assert video.shape == (1, 48, 9, 16, 16)
    assert audio.shape == (1, 400, 80)
    for x in (video, audio):
        assert x.dtype == torch.float32
        assert abs(float(x.mean())) < 0.02
        assert abs(float(x.std()) - 1) < 0.02
    assert all(torch.equal(a, b) for a, b in zip(task.noise(2025), (video, audio)))
    assert not any(torch.equal(a, b) for a, b in zip(task.noise(2026), (video, audio)))


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (81, 21)])
def test_latent_frames_of_4n_plus_1_video_frames(frames, latents):
    assert conditioning.latent_frames(frames) == latents


@pytest.mark.parametrize(("frames", "instead"), [(80, 77), (82, 81), (84, 81), (2, 1), (0, 1), (-3, 1)])
def test_other_numbers_of_frames_are_an_error_that_names_one_that_fits(frames, instead):
    with pytest.raises(UserError, match=rf"^{frames} video frames.*4n \+ 1.* {instead}$"):
        conditioning.latent_frames(frames)


@pytest.mark.parametrize(("frames", "mels"), [(81, 506), (1, 6), (5, 31), (77, 481), (49, 306), (16, 100)])
def test_mel_frames_of_a_clip(frames, mels):
    assert conditioning.mel_frames(frames) == mels


def test_a_clip_for_given_audio_is_the_longest_that_is_not_longer():
    for mels in range(7, 1200):
        frames = conditioning.frames_for_mels(mels)
        assert frames % 4 == 1
        assert conditioning.mel_frames(frames) <= mels < conditioning.mel_frames(frames + 4)


@pytest.mark.parametrize(("frames", "snapped"), [(81, 81), (84.9, 81), (85, 85), (4, 1), (0.5, 1), (0, 1)])
def test_frames_snap_down_to_4n_plus_1(frames, snapped):
    assert conditioning.snap_frames(frames) == snapped


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: conditioning.continuation(VIDEO, MEL[:, :9], 4, MELS), r"5 latent frames .*only 4 long"),
        (
            lambda: conditioning.continuation(VIDEO[:, :, :2], MEL, FRAMES, 12),
            r"30 mel frames .*only 12 long",
        ),
        (lambda: conditioning.joint(IMAGE, 0, MELS), r"0 latent frames"),
        (lambda: conditioning.joint(IMAGE, FRAMES, 0), r"0 mel frames"),
        (lambda: conditioning.dubbing(VIDEO, 0), r"0 mel frames"),
        (lambda: conditioning.audio_driven(IMAGE, MEL[:, :0], FRAMES), r"0 mel frames"),
        (
            lambda: conditioning.reference_voice(IMAGE, VOICE[:, :0], FRAMES, MELS),
            r"reference voice is empty",
        ),
        (lambda: conditioning.dubbing(VIDEO, MELS, VOICE[:, :0]), r"reference voice is empty"),
        (lambda: conditioning.audio_driven(IMAGE, MEL.repeat(2, 1, 1), FRAMES), r"1 videos but 2 mels"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_both_numbers(make, said):
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
