"""A mode is a row of one table: conditioned positions, audio, length (docs/model.md section 6)."""

from __future__ import annotations

import pytest
import torch

from uniavgen_core import conditioning
from uniavgen_core.conditioning import Anew, Edit, Span, condition, plan
from uniavgen_core.errors import UserError
from uniavgen_core.media.mel import HOP, peak_normalise, reference_voice, sound_latent
from uniavgen_core.modes import MODES

FRAMES, MELS = 5, 30


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGE = normal(1, 48, 1, 4, 6)
VIDEO = normal(1, 48, FRAMES, 4, 6, seed=1)
MEL = normal(1, MELS, 80, seed=2)
VOICE = normal(1, 7, 80, seed=3)
FIRST = VIDEO[:, :, :1]
OTHER = normal(1, 48, 1, 4, 6, seed=4)


def made(mode: str, video, audio=None, **options):
    return condition(mode, video, audio, FRAMES, MELS, **options)


def beginning(n_v: int, n_a: int) -> Anew:
    return Anew(Span(n_v, FRAMES), Span(n_a, MELS))


def frames(*numbers: int) -> list[int]:
    return list(numbers)


# what is made: task, conditioned latent frames, conditioned mel frames, reference image and mel, V2A
TABLE = {
    "joint": (made("joint", IMAGE), [0], [], IMAGE, None, True),
    "reference-voice": (made("reference-voice", IMAGE, reference_mel=VOICE), [0], [], IMAGE, VOICE, False),
    "reference-voice, paper": (
        made("reference-voice", IMAGE, reference_mel=VOICE, variant="paper"),
        *([0], [], IMAGE, VOICE, True),
    ),
    "continuation": (
        made("continuation", VIDEO[:, :, :2], MEL[:, :9], anew=beginning(2, 9)),
        *([0, 1], range(9), FIRST, None, True),
    ),
    "continuation of a longer clip": (
        made("continuation", VIDEO, MEL, anew=beginning(2, 9)),
        *([0, 1], range(9), FIRST, None, True),
    ),
    "continuation in a voice": (
        made("continuation", VIDEO[:, :, :3], MEL[:, :1], anew=beginning(3, 1), reference_mel=VOICE),
        *([0, 1, 2], [0], FIRST, VOICE, True),
    ),
    "dubbing": (made("dubbing", VIDEO), range(5), [], FIRST, None, True),
    "dubbing in a voice": (made("dubbing", VIDEO, reference_mel=VOICE), range(5), [], FIRST, VOICE, True),
    "dubbing with an image": (made("dubbing", VIDEO, reference_image=OTHER), range(5), [], OTHER, None, True),
    "audio-driven": (made("audio-driven", IMAGE, MEL), [0], range(MELS), IMAGE, None, True),
    "edit": (
        made("edit", VIDEO, MEL, anew=Anew(Span(2, 4), Span(10, 20))),
        *([0, 1, 4], [*range(10), *range(20, 30)], FIRST, None, True),
    ),
    "edit of the video": (
        made("edit", VIDEO, MEL, anew=Anew(video=Span(1, 3))),
        *([0, 3, 4], range(MELS), FIRST, None, True),
    ),
    "edit of the audio": (
        made("edit", VIDEO, MEL, anew=Anew(audio=Span(28, 30))),
        *(range(5), range(28), FIRST, None, True),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_mode_is_what_it_conditions(name):
    task, video, audio, image, voice, v2a = TABLE[name]
    assert task.conditioned_video.nonzero()[:, 0].tolist() == list(video)
    assert task.conditioned_audio.nonzero()[:, 0].tolist() == list(audio)
    assert torch.equal(task.reference_image, image)
    assert (task.reference_mel is None) if voice is None else torch.equal(task.reference_mel, voice)
    assert task.v2a is v2a


@pytest.mark.parametrize("name", TABLE)
def test_conditioned_frames_are_overwritten_with_clean_data_and_others_are_left(name):
    task, video, audio, image, *_ = TABLE[name]
    noise = normal(1, 48, FRAMES, 4, 6, seed=8), normal(1, MELS, 80, seed=9)
    given = VIDEO if MODES[name.split(",")[0].split(" ")[0]].takes_video else image.expand(VIDEO.shape)
    for got, axis, clean, free, kept in (
        (task.apply(*noise)[0], 2, given, noise[0], list(video)),
        (task.apply(*noise)[1], 1, MEL, noise[1], list(audio)),
    ):
        for i in range(got.shape[axis]):
            wanted = clean if i in kept else free
            assert torch.equal(got.select(axis, i), wanted.select(axis, i))


@pytest.mark.parametrize("name", TABLE)
def test_what_is_not_conditioned_is_not_in_the_task(name):
    task, *_ = TABLE[name]
    assert not task.clean_video[:, :, ~task.conditioned_video].any()
    assert not task.clean_audio[:, ~task.conditioned_audio].any()


def test_the_modes_are_the_five_of_the_paper_and_edit():
    assert list(MODES) == ["joint", "reference-voice", "continuation", "dubbing", "audio-driven", "edit"]


def test_noise_is_standard_normal_and_belongs_to_its_seed():
    task = condition("joint", normal(1, 48, 1, 16, 16), None, 9, 400)
    video, audio = task.noise(2025)
    assert video.shape == (1, 48, 9, 16, 16)
    assert audio.shape == (1, 400, 80)
    for x in (video, audio):
        assert x.dtype == torch.float32
        assert abs(float(x.mean())) < 0.02
        assert abs(float(x.std()) - 1) < 0.02
    assert all(torch.equal(a, b) for a, b in zip(task.noise(2025), (video, audio)))
    assert not any(torch.equal(a, b) for a, b in zip(task.noise(2026), (video, audio)))


# lengths


@pytest.mark.parametrize(("count", "latents"), [(1, 1), (5, 2), (81, 21)])
def test_latent_frames_of_4n_plus_1_video_frames(count, latents):
    assert conditioning.latent_frames(count) == latents
    assert conditioning.video_frames(latents) == count


@pytest.mark.parametrize(("count", "instead"), [(80, 77), (82, 81), (84, 81), (2, 1), (0, 1), (-3, 1)])
def test_other_numbers_of_frames_are_an_error_that_names_one_that_fits(count, instead):
    with pytest.raises(UserError, match=rf"^{count} video frames.*4n \+ 1.* {instead}$"):
        conditioning.latent_frames(count)


@pytest.mark.parametrize(("count", "mels"), [(81, 506), (1, 6), (5, 31), (77, 481), (49, 306), (16, 100)])
def test_mel_frames_of_a_clip(count, mels):
    assert conditioning.mel_frames(count) == mels


@pytest.mark.parametrize(
    ("seconds", "count"), [(5.0, 81), (5.05, 81), (5.0625, 81), (5.07, 85), (0.3125, 5), (0.32, 9)]
)
def test_a_clip_for_a_recording_is_the_shortest_that_is_not_shorter(seconds, count):
    assert conditioning.frames_for_audio(round(seconds * 24000)) == count


@pytest.mark.parametrize(("count", "snapped"), [(81, 81), (84.9, 81), (85, 85), (4, 1), (0.5, 1), (0, 1)])
def test_frames_snap_down_to_4n_plus_1(count, snapped):
    assert conditioning.snap_frames(count) == snapped


# plans


def sound(seconds: float, seed: int = 5) -> torch.Tensor:
    return 0.1 * normal(round(seconds * 24000), seed=seed)


def test_a_recording_is_never_cut_and_its_end_is_filled_with_silence():
    wave = sound(1.2)
    made = plan("audio-driven", audio=wave)
    assert (made.frames, made.mels) == (21, 131)
    whole = torch.cat((wave, torch.zeros(131 * HOP - len(wave))))
    assert torch.equal(made.audio, sound_latent(peak_normalise(whole))[None])
    assert made.masks[1].all()
    assert made.notes == ["21 frames (1.31 s) for the audio (1.20 s): the last 0.11 s are silence"]


def test_a_shorter_clip_of_a_recording_is_cut_before_its_peak_is_set():
    wave = sound(1.2)
    wave[-2000:] = 1.0
    made = plan("audio-driven", 9, audio=wave)
    assert torch.equal(made.audio, sound_latent(peak_normalise(wave[: 56 * HOP]))[None])
    assert "the last 0.64 s of it are left out" in made.notes[0]


def test_a_reference_voice_has_its_peak_set_and_silence_behind_it():
    wave = sound(0.7)
    made = plan("reference-voice", 9, voice=wave)
    assert torch.equal(made.reference_mel, sound_latent(reference_voice(wave))[None])


def test_a_beginning_is_conditioned_as_far_as_its_audio_goes():
    wave = sound(0.4)
    made = plan("continuation", 17, given_frames=9, audio=wave, prefix_frames=9)
    assert made.anew == Anew(Span(3, 5), Span(40, 106))
    assert torch.equal(made.audio, sound_latent(wave)[None])
    assert any("ends 0.16 s before" in note for note in made.notes)
    longer = plan("continuation", 17, given_frames=9, audio=sound(2.0), prefix_frames=9)
    assert longer.anew == Anew(Span(3, 5), Span(56, 106))
    assert torch.equal(longer.audio, sound_latent(sound(2.0)[: 106 * HOP])[None])
    task = longer.task(VIDEO[:, :, :3])
    assert torch.equal(task.clean_audio[:, :56], longer.audio[:, :56])
    assert not task.clean_audio[:, 56:].any()


@pytest.mark.parametrize(
    ("edit", "video", "audio"),
    [
        (Edit(1.0, 2.0), Span(4, 9), Span(100, 200)),
        (Edit(1.0, 2.0, "video"), Span(4, 9), Span()),
        (Edit(1.0, 2.0, "audio"), Span(), Span(100, 200)),
        (Edit(0.0, 0.5), Span(1, 3), Span(0, 50)),
        (Edit(0.29, 0.3), Span(1, 2), Span(29, 30)),
        (Edit(0.8125, 1.0625), Span(4, 5), Span(81, 107)),
        (Edit(1.5, 9.0), Span(6, 9), Span(150, 206)),
    ],
)
def test_an_edited_range_is_whole_latent_frames_of_video_and_10_ms_of_audio(edit, video, audio):
    made = plan("edit", given_frames=35, audio=sound(2.1), edit=edit)
    assert (made.frames, made.anew) == (33, Anew(video, audio))
    assert made.audio.shape == (1, 206, 80)


def test_a_plan_takes_from_a_longer_video_what_it_conditions():
    made = plan("continuation", 17, given_frames=17, audio=sound(1.0), prefix_frames=9)
    assert made.given_frames == 9
    task = made.task(VIDEO)
    assert torch.equal(task.clean_video[:, :, :3], VIDEO[:, :, :3])
    assert not task.clean_video[:, :, 3:].any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: condition("dubbing", VIDEO, None, 4, MELS), r"5 latent frames .*only 4 long"),
        (lambda: condition("audio-driven", IMAGE, MEL, FRAMES, 12), r"30 mel frames .*only 12 long"),
        (lambda: condition("joint", IMAGE, None, 0, MELS), r"0 latent frames|only 0 long"),
        (lambda: condition("joint", IMAGE, None, FRAMES, 0), r"0 mel frames"),
        (lambda: made("dubbing", IMAGE), r"conditions 5 frames of the video latent but 1 are given"),
        (lambda: made("audio-driven", IMAGE), r"conditions 30 frames of the audio latent but 0 are given"),
        (lambda: made("joint", IMAGE, reference_mel=VOICE[:, :0]), r"reference voice is empty"),
        (lambda: made("audio-driven", IMAGE, MEL.repeat(2, 1, 1)), r"1 video but 2 mels"),
        (lambda: made("edit", VIDEO, MEL, anew=Anew(Span(2, 6))), r"frames 2 to 6 do not lie within"),
        (lambda: plan("audio-driven"), r"needs audio"),
        (lambda: plan("audio-driven", audio=sound(0.2)), r"lasts 0.200 s.*give a longer one"),
        (lambda: plan("audio-driven", audio=torch.zeros(24000)), r"audio is silent"),
        (lambda: plan("joint"), r"needs the number of frames"),
        (lambda: plan("joint", 8), r"8 video frames"),
        (lambda: plan("reference-voice", 9, voice=sound(0.2)), r"voice lasts 0.200 s"),
        (lambda: plan("dubbing", given_frames=3), r"video lasts 0.188 s"),
        (
            lambda: plan("continuation", 9, given_frames=9, audio=sound(1), prefix_frames=9),
            r"9 of the video's 9 frames \(16 fps\) cannot open a clip of 9",
        ),
        (
            lambda: plan("continuation", 17, given_frames=9, audio=sound(0.1), prefix_frames=9),
            r"audio lasts 0.10 s but the video that is kept 0.56 s",
        ),
        (lambda: plan("edit", given_frames=33, audio=sound(2)), r"needs a time range"),
        (lambda: plan("edit", given_frames=33, audio=sound(2), edit=Edit(1, 1)), r"range 1 to 1 s"),
        (lambda: plan("edit", given_frames=33, audio=sound(2), edit=Edit(3, 4)), r"clip of 2.062 s"),
        (lambda: plan("edit", given_frames=33, audio=sound(2), edit=Edit(-1, 4)), r"range -1 to 4 s"),
        (lambda: plan("edit", given_frames=33, audio=sound(2), edit=Edit(0, 0.05)), r"only the first frame"),
        (lambda: plan("edit", given_frames=33, audio=sound(2), edit=Edit(0, 1, "lips")), r"'lips'"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_both_numbers(make, said):
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


# what comes back


def test_kept_frames_are_whole_latent_frames_of_the_source():
    source, fresh = torch.zeros(9, 2, 2, 3, dtype=torch.uint8), torch.ones(9, 2, 2, 3, dtype=torch.uint8)
    out = conditioning.keep_frames(fresh, source, torch.tensor([True, False, True]))
    assert out[:, 0, 0, 0].tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0]


def test_kept_samples_are_exact_and_seams_fade_inside_what_is_generated():
    source, fresh = normal(30 * HOP, seed=1), normal(30 * HOP, seed=2)
    kept = Span(10, 20).outside(30)
    out = conditioning.keep_audio(fresh, source, kept)
    samples = kept.repeat_interleave(HOP)
    assert torch.equal(out[samples], source[samples])
    fade = HOP
    assert torch.equal(out[10 * HOP + fade : 20 * HOP - fade], fresh[10 * HOP + fade : 20 * HOP - fade])
    first = out[10 * HOP]
    assert abs(first - source[10 * HOP]) < abs(first - fresh[10 * HOP])
    assert abs(out[20 * HOP - 1] - source[20 * HOP - 1]) < abs(out[20 * HOP - 1] - fresh[20 * HOP - 1])


def test_a_source_that_ends_at_the_seam_is_not_faded_into():
    source, fresh = normal(10 * HOP, seed=1), normal(30 * HOP, seed=2)
    out = conditioning.keep_audio(fresh, source, torch.arange(30) < 10)
    assert torch.equal(out, torch.cat((source, fresh[10 * HOP :])))


def test_spans_of_training_leave_something_to_condition_and_something_to_generate():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(300):
        video, audio = conditioning.draw_span("edit", 9, 206, generator)
        assert 0 <= video.start <= video.stop <= 9
        assert 0 <= audio.start <= audio.stop <= 206
        assert video.start != 0 or video == Span()
        assert video != Span() or audio != Span()
        seen.add((video == Span(), audio == Span()))
    assert seen == {(False, False), (True, False), (False, True)}
    rest = conditioning.draw_span("continuation", 9, 206, generator)
    assert (rest.video.stop, rest.audio.stop) == (9, 206)
    assert rest.audio.start == conditioning.mel_frames(conditioning.video_frames(rest.video.start))
