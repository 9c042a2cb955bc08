"""A script of many sentences becomes one clip; what did not change is not made again."""

import json
from pathlib import Path

import pytest
import torch
from clips import uniavgen

from uniavgen_core import long_speech, script
from uniavgen_core.conditioning import FPS, mel_frames, video_frames
from uniavgen_core.duration import frames_for_text
from uniavgen_core.errors import UserError
from uniavgen_core.long_speech import Folder, Line, Part, Voice, read_script, script_frames
from uniavgen_core.media import files
from uniavgen_core.media.mel import HOP
from uniavgen_core.media.vae import random_vae
from uniavgen_core.pipeline import Pipeline, Request, Weights

PUPPET = Path(__file__).parents[1] / "assets" / "puppet.png"
LONGEST = 33
TAIL = 3
TAIL_MELS = mel_frames(video_frames(TAIL))
LINES = [
    Line("hello, we see"),
    Line("the moon", "a woman by the sea"),
    Line("where is your cat"),
    Line("thanks"),
]


class Kept(dict):
    """A `Store` in memory."""

    def put(self, key, part):
        self[key] = part


class Sampler:
    """Stands in for the model: noise of the window's seed behind the known beginning."""

    def __init__(self):
        self.windows = []

    def __call__(self, window):
        self.windows.append(window)
        plan, generator = window.plan, torch.Generator().manual_seed(window.seed)
        video = torch.randn(1, 48, plan.latents, 2, 2, generator=generator)
        audio = torch.randn(1, plan.mels, 80, generator=generator)
        if plan.mode == "continuation":
            video[:, :, :TAIL], audio[:, :TAIL_MELS] = window.video, plan.audio
        return video, audio

    @property
    def made(self):
        return [window.index for window in self.windows]


def spoken(lines=LINES, store=None, given="", **options):
    sampler, image = Sampler(), torch.zeros(1, 48, 1, 2, 2)
    store = Kept() if store is None else store
    return list(long_speech.speak(lines, LONGEST, 7, image, sampler, store, given, **options)), sampler


def joined(parts):
    return torch.cat([part.video for part in parts], 2), torch.cat([part.audio for part in parts], 1)


def test_the_latents_of_all_parts_are_those_of_one_clip():
    parts, _ = spoken()
    video, audio = joined(parts)
    frames = script_frames(LINES, LONGEST)
    assert frames == 1 + sum(frames_for_text(line.text) - 1 for line in LINES)
    assert video_frames(video.shape[2]) == frames
    assert audio.shape[1] == mel_frames(frames)


def test_a_part_begins_with_what_the_clip_ends_with_so_far():
    parts, sampler = spoken()
    for index, window in enumerate(sampler.windows[1:], 1):
        video, audio = joined(parts[:index])
        assert torch.equal(window.video, video[:, :, -TAIL:])
        assert torch.equal(window.plan.audio, audio[:, -TAIL_MELS:])
        known_video, known_audio = window.plan.masks
        assert known_video.nonzero()[:, 0].tolist() == list(range(TAIL))
        assert known_audio.nonzero()[:, 0].tolist() == list(range(TAIL_MELS))
        assert window.plan.latents == TAIL + parts[index].video.shape[2]


def test_a_tail_reaches_into_the_part_before_where_the_last_one_is_shorter():
    before = Part(torch.arange(3.0).view(1, 1, 3, 1, 1), torch.arange(56.0).view(1, 56, 1))
    part = Part(torch.full((1, 1, 1, 1, 1), 3.0), torch.arange(56.0, 81.0).view(1, 25, 1))
    tail = long_speech.tail_of(part, TAIL, before)
    assert tail.video.flatten().tolist() == [1, 2, 3]
    assert tail.audio.flatten().tolist() == list(range(25, 81))


@pytest.mark.parametrize("changed", range(len(LINES)))
def test_a_changed_sentence_makes_itself_and_what_follows_anew_and_nothing_before_it(changed):
    store = Kept()
    before, first = spoken(store=store)
    assert first.made == [0, 1, 2, 3]
    again, sampler = spoken(store=store)
    assert sampler.made == []
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(before, again))
    lines = [line._replace(text="sorry") if i == changed else line for i, line in enumerate(LINES)]
    _, sampler = spoken(lines, store)
    assert sampler.made == list(range(changed, len(LINES)))


def test_a_changed_caption_of_a_line_and_a_changed_setting_count_too():
    store = Kept()
    spoken(store=store)
    lines = [*LINES[:2], LINES[2]._replace(caption="a man in the city"), LINES[3]]
    assert spoken(lines, store)[1].made == [2, 3]
    assert spoken(store=store, given="other weights")[1].made == [0, 1, 2, 3]


def test_a_given_voice_is_that_of_all_parts_else_the_first_part_gives_it():
    voice = Voice(torch.zeros(1, 90, 80), "one two")
    _, sampler = spoken(voice=voice)
    assert [window.transcript for window in sampler.windows] == ["one two"] * 4
    assert all(window.plan.reference_mel is voice.mel for window in sampler.windows)
    parts, sampler = spoken()
    assert [window.transcript for window in sampler.windows] == ["", *[LINES[0].text] * 3]
    assert sampler.windows[0].plan.reference_mel is None
    assert torch.equal(sampler.windows[3].plan.reference_mel[:, :-30], parts[0].audio)
    noise = torch.randn(1, 50, 80)
    assert all(torch.equal(window.voiced(noise), noise) for window in sampler.windows)


def test_the_audio_noise_of_all_parts_has_one_mean_where_it_is_what_keeps_the_voice():
    _, sampler = spoken(keep_voice="noise")
    assert all(window.plan.reference_mel is None for window in sampler.windows)
    noises = [torch.randn(1, window.plan.mels, 80) for window in sampler.windows]
    assert len({noise.shape for noise in noises}) > 1
    voiced = [window.voiced(noise) for window, noise in zip(sampler.windows, noises)]
    means = [noise.mean(1) * noise.shape[1] ** 0.5 for noise in voiced]
    assert all(torch.allclose(mean, means[0], atol=1e-5) for mean in means)
    assert 0.6 < float(means[0].std()) < 1.4  # that of the mean of standard normal noise
    for new, old in zip(voiced, noises):
        assert torch.allclose(new - new.mean(1, keepdim=True), old - old.mean(1, keepdim=True), atol=1e-6)
    _, given = spoken(keep_voice="noise", voice=Voice(torch.zeros(1, 90, 80), "one two"))
    assert all(torch.equal(window.voiced(noise), noise) for window in given.windows for noise in noises)


def test_the_words_of_a_tail_stand_before_those_of_its_part():
    audio = torch.full((1, 100, 80), -3.0)
    audio[:, 20:80] = 0.0  # four words of 15 frames each
    text = "aaaa bbbb cccc dddd"
    assert long_speech.words_from(text, audio, 90) == ""
    assert long_speech.words_from(text, audio, 66) == "dddd"
    assert long_speech.words_from(text, audio, 45) == "cccc dddd"
    assert long_speech.words_from(text, audio, 0) == text
    chinese = "\u4f60\u597d\u4e16\u754c"
    assert long_speech.words_from(chinese, audio, 50) == chinese[2:]


def test_a_script_is_a_sentence_a_line_with_a_caption_behind_a_bar():
    text = "# the first scene\nHello there.\n\n  The moon. | a woman by the sea \r\n"
    assert read_script(text, LONGEST) == [Line("Hello there."), Line("The moon.", "a woman by the sea")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the script is empty"),
        (" \n# nothing but a comment\n", "write one sentence a line"),
        ("hello\n | a caption", "line 2 of the script has a caption but nothing to say"),
        (f"hello\n\n{'word ' * 20}", "line 3 of the script takes 6.6 s to say, a part lasts at most 2.06 s"),
        ("hello\n" * 1001, "1001 lines, expected at most 1000"),
    ],
)
def test_a_script_that_cannot_be_spoken_is_answered_before_anything_is_loaded(text, words):
    with pytest.raises(UserError, match=words):
        read_script(text, LONGEST)


def test_parts_in_a_folder_come_back_as_they_were_and_damaged_ones_are_missing(tmp_path):
    folder = Folder(tmp_path / "parts")
    folder.check()
    part = Part(torch.randn(1, 48, 2, 2, 2), torch.randn(1, 50, 80))
    folder.put("a", part)
    assert all(torch.equal(x, y) for x, y in zip(folder.get("a"), part))
    assert folder.get("b") is None
    (folder.path / "a.safetensors").write_bytes(b"cut")
    assert folder.get("a") is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept there"):
        Folder(tmp_path / "file").check()


def test_a_stream_of_latents_decodes_to_the_clip_of_all_of_them_a_latent_frame_at_a_time():
    vae, latent = random_vae(), torch.randn(1, 48, 6, 2, 3)
    pieces = list(vae.decode_stream([latent[:, :, :4], latent[:, :, 4:5], latent[:, :, 5:]]))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4, 4, 4, 4]
    torch.testing.assert_close(torch.cat(pieces, 2), vae.decode(latent), rtol=0, atol=1e-5)


def test_audio_of_any_length_is_decoded_in_tiles_that_meet_in_silence():
    audio = torch.randn(1, 1000, 80)
    audio[:, 180:185] = audio[:, 390:395] = -5.0
    sizes = []

    def vocoder(latent):
        sizes.append(latent.shape[1])
        return latent.mean(-1).repeat_interleave(HOP, 1)

    waveform = long_speech.decode_audio(vocoder, audio, tile=200)
    assert max(sizes) <= 200 + 2 * long_speech.AUDIO_CONTEXT
    assert len(sizes) > 4
    torch.testing.assert_close(waveform, vocoder(audio)[0])
    assert long_speech.decode_audio(vocoder, audio[:, :100]).shape == (100 * HOP,)


def test_a_video_written_as_it_is_made_is_the_same_file_and_never_half_of_one(tmp_path):
    frames = torch.randint(0, 255, (9, 32, 32, 3), dtype=torch.uint8)
    wave = 0.1 * torch.randn(13500)
    files.write_mp4(tmp_path / "a.mp4", frames, 16, wave, 24000)
    pieces = (frames[:1], frames[1:5], frames[5:])
    files.write_mp4_stream(tmp_path / "b.mp4", iter(pieces), 9, (32, 32), 16, wave, 24000)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()

    def stopped():
        yield frames[:1]
        raise UserError("cancelled")

    with pytest.raises(UserError, match="cancelled"):
        files.write_mp4_stream(tmp_path / "c.mp4", stopped(), 9, (32, 32), 16, wave, 24000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_the_known_tail_comes_back_from_the_model_exactly():
    weights = Weights()
    request = Request("joint", "clip.mp4", "", image=str(PUPPET), short_side=32, steps=1)
    prepared = script.prepare(request, "hello\nthe moon", weights)
    with torch.inference_mode():
        speaker, windows = script.Speaker(Pipeline.load(weights, keep=True), prepared, True), []

        def make(window):
            windows.append((window, speaker.make(window)))
            return windows[-1][1]

        lines, image = prepared.lines, speaker.image
        parts = long_speech.speak(lines, LONGEST, 1, image, make, Kept(), "", tail=TAIL)
        video, audio = joined(list(parts))
    window, made = windows[1]
    assert torch.equal(made[0][:, :, :TAIL], window.video)
    assert torch.equal(made[1][:, :TAIL_MELS], window.plan.audio)
    assert torch.equal(video[:, :, -made[0].shape[2] :], made[0])
    new = made[1].shape[1] - TAIL_MELS - long_speech.EASE
    assert torch.equal(audio[:, -new:], made[1][:, -new:])


def test_the_step_of_the_audio_onto_a_new_part_is_spread_over_the_frames_behind_it():
    audio = torch.zeros(1, 20, 80)
    audio[:, 8:] = 6.0
    eased = long_speech.eased(audio, 8)
    assert torch.equal(eased[:, :8], audio[:, :8])
    assert torch.equal(eased[:, 8 + long_speech.EASE :], audio[:, 8 + long_speech.EASE :])
    torch.testing.assert_close(eased[0, 7:14].diff(dim=0), torch.ones(6, 80))
    assert torch.equal(long_speech.eased(audio, 0), audio)


def test_generate_makes_one_clip_of_a_script_and_again_only_what_changed(capfd, tmp_path):
    lines, out = tmp_path / "lines.txt", tmp_path / "clip.mp4"
    common = ("generate", "--script", lines, "--image", PUPPET, "--out", out, "--json")
    common += ("--steps", 1, "--short-side", 32)

    def run(text):
        lines.write_text(text, encoding="utf-8")
        code, said, told = uniavgen(capfd, *common)
        assert code == 0, told
        return json.loads(said)

    first = run("hello\nthe moon\nthanks")
    assert [part["made"] for part in first["parts"]] == [True] * 3
    video = files.read_video(out)
    assert (
        len(video.frames)
        == first["frames"]
        == 1 + sum(frames_for_text(text) - 1 for text in ("hello", "the moon", "thanks"))
    )
    assert first["parts"][-1]["end"] == first["frames"] / FPS
    assert abs(video.audio[0].shape[1] / 24000 - first["frames"] / FPS) < 0.05
    second = run("hello\nthe house\nthanks")
    assert [part["made"] for part in second["parts"]] == [False, True, True]
    assert any("2 of 3 parts were made" in note for note in second["notes"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip.mp4", "clip.mp4.parts", "lines.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--text", "hello"), "one of --text and --script"),
        (("--frames", 33), "leave --frames out"),
        (("--last-image", PUPPET), "belong to a single clip"),
        (("--mode", "dubbing"), "not in mode dubbing"),
        (("--script", "nowhere.txt"), "expected a text file"),
        (("--script", PUPPET), "no text in UTF-8"),
    ],
)
def test_what_does_not_go_with_a_script_is_answered_at_once(capfd, tmp_path, flags, words):
    lines = tmp_path / "lines.txt"
    lines.write_text("hello", encoding="utf-8")
    common = ("generate", "--script", lines, "--image", PUPPET, "--out", tmp_path / "clip.mp4")
    code, _, told = uniavgen(capfd, *common, *flags)
    assert code == 2
    assert words in told
    assert [file.name for file in tmp_path.iterdir()] == ["lines.txt"]


def test_neither_text_nor_script_and_parts_without_script_are_answered(capfd, tmp_path):
    common = ("generate", "--image", PUPPET, "--out", tmp_path / "clip.mp4")
    assert "one of --text and --script" in uniavgen(capfd, *common)[2]
    code, _, told = uniavgen(capfd, *common, "--text", "hello", "--parts", tmp_path)
    assert (code, "--parts belongs to --script" in told) == (2, True)
