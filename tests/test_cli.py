"""One command turns a photo, a voice or a video into a clip with sound, in every mode, on any machine."""

import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import (
    SENTENCE,
    photograph,
    speech,
    talking_video,
    uniavgen,
    write_wav,
)
from random_parts import RandomWeights, random_model
from safetensors.torch import load_file, save_file

from uniavgen_core import conditioning, pipeline
from uniavgen_core.media import files, mel
from uniavgen_core.media.caption import random_caption_encoder
from uniavgen_core.media.vae import random_vae
from uniavgen_core.media.vocoder import random_vocoder
from uniavgen_core.sampling.guidance import Guidance
from uniavgen_core.verify import GOLDEN

FRAMES, SIDE = 17, 64
MELS = conditioning.mel_frames(FRAMES)
AAC_FRAME = 1024 / 24000
TEXT = "Well, that went better than I thought."


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folder with photo.png, voice.wav and clip.mp4 (25 fps, 2 s)."""
    folder = tmp_path_factory.mktemp("real")
    talking_video(folder / "clip.mp4", photograph(folder / "photo.png"), speech(folder / "voice.wav"))
    return folder


def inputs_of(mode, real):
    """What the mode needs, by the names of `Request`."""
    photo, voice, clip = (str(real / name) for name in ("photo.png", "voice.wav", "clip.mp4"))
    return {
        "joint": {"image": photo},
        "reference-voice": {"image": photo, "voice": voice, "voice_text": SENTENCE},
        "continuation": {"video": clip, "prefix_frames": 9},
        "dubbing": {"video": clip},
        "audio-driven": {"image": photo, "audio": voice},
        "edit": {"video": clip, "edit_start": 0.3, "edit_end": 0.6},
    }[mode]


def frames_of(mode):
    """Of the clip that `clip_of` and `request` make: an edit keeps the whole video of 2 s."""
    return 29 if mode == "edit" else FRAMES


def flags(values):
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]


def clip_of(capfd, out, *arguments):
    """`uniavgen generate --json` at a small size: the video it wrote, what it printed, its notes."""
    short = {} if "edit" in map(str, arguments) else {"frames": FRAMES}
    small = flags({"text": TEXT, "out": out, **short, "short_side": SIDE, "steps": 2})
    code, printed, notes = uniavgen(capfd, "generate", *small, *arguments, "--json")
    assert code == 0, notes
    assert "Traceback" not in notes
    return files.read_video(out), json.loads(printed), notes


def request(mode, real, out, **changes):
    """The same clip as `clip_of`, asked for from Python."""
    small = {"text": TEXT, "short_side": SIDE, "steps": 2}
    if mode != "edit":
        small["frames"] = FRAMES
    return pipeline.Request(mode, str(out), **{**small, **inputs_of(mode, real), **changes})


def seconds_of(audio):
    wave, rate = audio
    return wave.shape[1] / rate


@pytest.mark.parametrize("mode", conditioning.MODES)
def test_every_mode_makes_a_playable_clip_with_sound(tmp_path, capfd, real, mode):
    out = tmp_path / "clip.mp4"
    video, made, notes = clip_of(capfd, out, "--mode", mode, *flags(inputs_of(mode, real)))
    height, width = (64, 96) if conditioning.MODES[mode].takes_video else (64, 64)
    frames = frames_of(mode)
    assert video.frames.shape == (frames, height, width, 3)
    assert video.fps == 16
    assert video.audio[1] == 24000
    assert abs(seconds_of(video.audio) - frames / 16) <= AAC_FRAME
    assert video.audio[0].abs().max() > 1e-3
    expected = {"out": str(out), "mode": mode, "width": width, "height": height, "frames": frames, "fps": 16}
    expected |= {"samples": frames * 1500, "sample_rate": 24000, "seed": 2025, "embedded": True}
    assert {name: made[name] for name in expected} == expected
    assert made["seconds"].keys() >= {"caption", "encode", "sample", "decode", "write"}
    assert all(note in notes for note in made["notes"])
    assert "a small puppet model, trained on synthetic drawn faces" in notes
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("mode", conditioning.MODES)
def test_a_seed_gives_the_same_clip_and_another_seed_another(tmp_path, real, mode):
    def run(seed):
        out = tmp_path / "clip.mp4"
        small = request(mode, real, out, seed=seed, short_side=32)
        made = pipeline.generate(small, RandomWeights())
        again = files.read_video(out)
        return made.sample.video, made.sample.audio, again.frames, again.audio[0]

    first, second, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    differs = [not torch.equal(a, b) for a, b in zip(first, other)]
    assert differs == {
        "dubbing": [False, True, False, True],
        "audio-driven": [True, False, True, False],
    }.get(mode, [True] * 4)


def encoded(pictures):
    """uint8 `[F, H, W, 3]` -> the VAE's latent."""
    return random_vae().encode(pictures.permute(3, 0, 1, 2)[None].float() / 127.5 - 1)


def latent_of(waveform):
    return mel.mel_to_latent(mel.log_mel(waveform))[None]


def test_a_given_photo_opens_the_clip_exactly(tmp_path, real):
    photo = files.fit_image(files.read_image(real / "photo.png")[None], SIDE, SIDE)
    for mode in ("joint", "reference-voice", "audio-driven"):
        short = request(mode, real, tmp_path / "clip.mp4", frames=5, steps=1)
        made = pipeline.generate(short, RandomWeights())
        assert torch.equal(made.sample.video[:, :, :1], encoded(photo))


def test_a_continuation_keeps_the_beginning_of_picture_and_sound_exactly(tmp_path, real):
    known = files.read_video(real / "clip.mp4", fps=16)
    pictures = files.fit_image(known.frames[:9], 96, 64)
    wave = mel.prepare_audio(*known.audio)[: MELS * mel.HOP]
    made = pipeline.generate(request("continuation", real, tmp_path / "clip.mp4"), RandomWeights())
    assert made.sample.video.shape[2] == 5
    assert torch.equal(made.sample.video[:, :, :3], encoded(pictures))
    assert made.sample.audio.shape[1] == MELS
    n_a = conditioning.mel_frames(9)
    assert torch.equal(made.sample.audio[:, :n_a], latent_of(wave)[:, :n_a])


def test_without_prefix_frames_half_the_clip_is_kept_and_told(tmp_path, capfd, real):
    arguments = ("--mode", "continuation", "--video", real / "clip.mp4")
    _, made, _ = clip_of(capfd, tmp_path / "clip.mp4", *arguments)
    assert "the first 9 frames (0.56 s) of the video are kept" in made["notes"]


def test_dubbing_keeps_the_whole_picture_and_gives_it_a_voice(tmp_path, real):
    given = files.read_video(real / "clip.mp4", fps=16)
    pictures = files.fit_image(given.frames[:FRAMES], 96, 64)
    made = pipeline.generate(request("dubbing", real, tmp_path / "clip.mp4"), RandomWeights())
    assert torch.equal(made.sample.video, encoded(pictures))
    written = files.read_video(tmp_path / "clip.mp4").frames
    assert (written.float() - pictures.float()).square().mean() < 255**2 / 10**3  # 30 dB


def test_an_edit_keeps_everything_outside_its_range_exactly(tmp_path, real, monkeypatch):
    given = files.read_video(real / "clip.mp4", fps=16)
    pictures = files.fit_image(given.frames[:29], 96, 64)
    sound = mel.fit_length(mel.prepare_audio(*given.audio), 29 * 1500)
    written = []
    monkeypatch.setattr(
        files, "write_mp4", lambda path, frames, fps, wave, rate: written.append((frames, wave))
    )
    made = pipeline.generate(request("edit", real, tmp_path / "clip.mp4"), RandomWeights())
    frames, wave = written[0]
    outside = torch.ones(29, dtype=torch.bool)
    outside[1:13] = False  # 0.3 to 0.6 s are frames 4 to 9, in the latent frames of frames 1 to 12
    assert torch.equal(frames[outside], pictures[outside])
    assert not torch.equal(frames[~outside], pictures[~outside])
    start, stop = 30 * mel.HOP, 60 * mel.HOP
    assert torch.equal(wave[:start], sound[:start])
    assert torch.equal(wave[stop:], sound[stop : len(wave)])
    assert not torch.allclose(wave[start:stop], sound[start:stop], atol=1e-3)
    latent = encoded(pictures)
    assert torch.equal(made.sample.video[:, :, [0, 4, 5, 6, 7]], latent[:, :, [0, 4, 5, 6, 7]])


def test_dubbing_takes_a_reference_image_of_its_own(tmp_path, real):
    plain = request("dubbing", real, tmp_path / "clip.mp4")
    without, with_image = (
        pipeline.generate(r, RandomWeights()).sample.audio
        for r in (plain, replace(plain, image=str(real / "photo.png")))
    )
    assert not torch.equal(without, with_image)


def test_a_negative_caption_is_what_the_null_pass_is_told(tmp_path, real):
    plain = request("joint", real, tmp_path / "clip.mp4", frames=5, short_side=32)
    first, second = (
        pipeline.generate(r, RandomWeights()).sample.video
        for r in (plain, replace(plain, negative_caption="a dark street"))
    )
    assert not torch.equal(first, second)


def test_seed_minus_one_draws_one_and_tells_it(tmp_path, capfd, real):
    arguments = ("--image", real / "photo.png", "--frames", 5, "--steps", 1, "--short-side", 32)
    _, made, _ = clip_of(capfd, tmp_path / "clip.mp4", *arguments, "--seed", -1)
    assert f"seed {made['seed']} was drawn" in made["notes"]


def test_audio_driven_keeps_the_whole_sound(tmp_path, real):
    sound = mel.prepare_audio(*files.read_audio(real / "voice.wav"))[: MELS * mel.HOP]
    made = pipeline.generate(request("audio-driven", real, tmp_path / "clip.mp4"), RandomWeights())
    assert torch.equal(made.sample.audio, latent_of(mel.peak_normalise(sound)))
    heard = files.read_video(tmp_path / "clip.mp4").audio[0][0, : len(sound)]
    assert torch.corrcoef(torch.stack((heard, sound)))[0, 1] > 0.98


@pytest.mark.parametrize("fps", [8, 25, 30])
def test_a_video_of_any_rate_is_dubbed_at_16_fps_and_the_length_is_told(tmp_path, capfd, real, fps):
    source = tmp_path / "source.mp4"
    talking_video(source, real / "photo.png", real / "voice.wav", fps, seconds=1.2)
    given = files.read_video(source)
    out = tmp_path / "clip.mp4"
    video, made, _ = clip_of(capfd, out, "--mode", "dubbing", "--video", source, "--frames", 81)
    assert (len(video.frames), video.fps) == (17, 16)
    length = round(len(given.frames) / fps * 16) / 16
    assert any(f"17 frames (1.06 s) for the video ({length:.2f} s)" in note for note in made["notes"])
    shown = files.fit_image(given.frames[round(16 / 16 * fps)][None], 96, 64)[0]
    assert (video.frames[16].float() - shown.float()).abs().mean() < 8


@pytest.mark.parametrize(("rate", "channels"), [(44100, 8), (8000, 1), (48000, 2)])
def test_sound_of_any_rate_and_channel_count_drives_a_face(tmp_path, capfd, real, rate, channels):
    voice = mel.prepare_audio(*files.read_audio(real / "voice.wav"))
    wave = mel.resample(voice, 24000, rate)[: round(1.5 * rate)]
    write_wav(
        tmp_path / "many.wav", np.stack([wave.numpy() * (i + 1) / channels for i in range(channels)], 1), rate
    )
    arguments = ("--mode", "audio-driven", "--image", real / "photo.png", "--audio", tmp_path / "many.wav")
    video, made, _ = clip_of(capfd, tmp_path / "clip.mp4", *arguments, "--frames", 81)
    assert len(video.frames) == 25
    assert "25 frames (1.56 s) for the audio (1.50 s): the last 0.06 s are silence" in made["notes"]


def test_grey_and_transparent_pictures_and_odd_sizes_are_taken(tmp_path, capfd, real):
    from PIL import Image

    photo = Image.open(real / "photo.png")
    for picture, size in (
        (photo.convert("L").resize((331, 200)), (128, 64)),
        (photo.convert("RGBA").resize((200, 331)), (64, 128)),
        (photo.resize((17, 16)), (96, 64)),
    ):
        picture.save(tmp_path / "picture.png")
        arguments = ("--image", tmp_path / "picture.png", "--frames", 5, "--steps", 1)
        _, made, _ = clip_of(capfd, tmp_path / "clip.mp4", *arguments)
        assert (made["width"], made["height"]) == size


def test_chinese_is_spoken_and_unknown_symbols_are_told(tmp_path, capfd, real):
    pytest.importorskip("jieba")
    arguments = ("--image", real / "photo.png", "--frames", 5, "--steps", 1, "--language", "zh")
    text = "\u4f60\u597d\uff0c\u4e16\u754c \U0001f600"
    _, made, _ = clip_of(capfd, tmp_path / "clip.mp4", *arguments, "--text", text)
    assert any("cannot say \U0001f600" in note for note in made["notes"])


def test_a_caption_longer_than_the_model_reads_is_cut_and_told(tmp_path, capfd, real):
    arguments = ("--image", real / "photo.png", "--frames", 5, "--steps", 1)
    _, made, _ = clip_of(capfd, tmp_path / "clip.mp4", *arguments, "--caption", "a woman by the sea " * 40)
    told = r"the caption has \d+ tokens, the model reads the first 64"
    assert any(re.fullmatch(told, note) for note in made["notes"])


def test_without_sizes_the_embedded_model_makes_two_seconds_at_128_pixels(tmp_path, capfd, real):
    out = tmp_path / "clip.mov"
    arguments = ("--text", TEXT, "--image", real / "photo.png", "--steps", 1, "--out", out)
    code, printed, _ = uniavgen(capfd, "generate", *arguments)
    assert code == 0
    assert printed.strip() == f"{out}: 128x128, 33 frames, 2.06 s"
    assert files.read_video(out).frames.shape == (33, 128, 128, 3)


def test_guidance_is_a_slider_whose_ends_are_plain_cfg_and_none(tmp_path, capfd, real):
    def frames(*arguments):
        small = ("--image", real / "photo.png", "--frames", 5, "--short-side", 32)
        made = clip_of(capfd, tmp_path / "clip.mp4", *small, *arguments)
        return made[0].frames, made[0].audio[0]

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b))

    ma_cfg, cfg, none = frames("--interval", 0.5), frames("--guidance", "cfg"), frames("--guidance", "none")
    assert same(cfg, frames("--interval", 0))
    assert same(none, frames("--s-v", 1, "--s-a", 1))
    assert not same(ma_cfg, cfg)
    assert not same(ma_cfg, none)
    assert not same(ma_cfg, frames("--interval", 0.5, "--skip-layer", 2))


# weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The random parts as their publishers release such parts: folders, the model in three shards."""
    folder = tmp_path_factory.mktemp("weights")
    model = random_model()
    tensors = model.state_dict()
    names = [f"diffusion_pytorch_model-{i + 1:05d}-of-00003.safetensors" for i in range(3)]
    places = {key: names[i % 3] for i, key in enumerate(tensors)}
    (folder / "model").mkdir()
    for name in names:
        save_file({k: v for k, v in tensors.items() if places[k] == name}, folder / "model" / name)
    index = folder / "model" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model" / "config.json").write_text(json.dumps(model.config.to_dict()))
    random_vae().model.save_pretrained(folder / "vae")
    encoder = random_caption_encoder()
    encoder.model.save_pretrained(folder / "umt5" / "text_encoder")
    encoder.tokenizer.save_pretrained(folder / "umt5" / "tokenizer")
    random_vocoder().bigvgan.save_pretrained(folder / "vocoder")
    return folder


def test_weights_from_files_make_the_clip_that_the_same_parts_make(tmp_path, capfd, real, weights):
    model, vocoder = tmp_path / "model.safetensors", tmp_path / "vocoder.safetensors"
    for source, target in ((weights / "model", model), (weights / "vocoder", vocoder)):
        code, printed, _ = uniavgen(capfd, "convert", source, target)
        assert (code, printed.strip()) == (0, str(target))
    paths = {"model": model, "vae": weights / "vae", "text_encoder": weights / "umt5", "vocoder": vocoder}
    small = (*flags(paths), "--dtype", "fp32", "--device", "cpu", "--image", real / "photo.png")
    video, made, notes = clip_of(capfd, tmp_path / "clip.mp4", *small)
    assert not made["embedded"]
    assert "puppet" not in notes
    pipeline.generate(request("joint", real, tmp_path / "same.mp4"), RandomWeights())
    reference = files.read_video(tmp_path / "same.mp4")
    # tensors that lie elsewhere in memory may be summed in another order
    assert (video.frames.float() - reference.frames.float()).abs().mean() < 1
    assert (video.audio[0] - reference.audio[0]).norm() < 0.01 * reference.audio[0].norm()


def test_without_a_vocoder_the_sound_comes_from_griffin_lim(tmp_path, capfd, real, weights):
    paths = {"model": weights / "model", "vae": weights / "vae", "text_encoder": weights / "umt5"}
    arguments = (*flags(paths), "--device", "cpu", "--image", real / "photo.png")
    video, _, _ = clip_of(capfd, tmp_path / "clip.mp4", *arguments)
    assert abs(seconds_of(video.audio) - FRAMES / 16) <= AAC_FRAME


def test_half_precision_files_work_and_inspect_says_what_they_are(tmp_path, capfd, real, weights):
    parameters = sum(p.numel() for p in random_model().parameters())
    for dtype, code in (("bf16", "BF16"), ("fp16", "F16"), ("fp8", "F8_E4M3")):
        model = tmp_path / f"{dtype}.safetensors"
        assert uniavgen(capfd, "convert", weights / "model", model, "--dtype", dtype)[0] == 0
        found = json.loads(uniavgen(capfd, "inspect", model, "--json")[1])
        assert (found["variant"], found["parameters"], found["files"]) == ("released", parameters, 1)
        assert code in found["dtypes"]
        assert found["config"]["video_heads"] == 4
        paths = {"model": model, "vae": weights / "vae", "text_encoder": weights / "umt5"}
        arguments = (*flags(paths), "--device", "cpu", "--image", real / "photo.png", "--frames", 5)
        clip_of(capfd, tmp_path / "clip.mp4", *arguments)
    code, printed, _ = uniavgen(capfd, "inspect", weights / "model")
    assert code == 0
    for words in ("variant      released", "video_dim 96", "F32", "memory       bf16"):
        assert words in printed


def test_every_part_goes_to_the_device_asked_for():
    parts = pipeline.Weights(device="meta")
    modules = (
        parts.load_model(),
        parts.load_vae().model,
        parts.load_caption_encoder().model,
        parts.load_vocoder(),
    )
    assert all(p.is_meta for module in modules for p in module.parameters())


# golden files


def test_verify_without_files_takes_the_golden_ones_of_the_package(capfd):
    code, printed, _ = uniavgen(capfd, "verify", "--json")
    found = json.loads(printed)
    assert (code, found["passed"]) == (0, True)
    assert found["worst"] < 1e-5
    assert len(found["cases"]) > 50
    assert {Path(case["file"]) for case in found["cases"]} == set(GOLDEN.iterdir()) - {
        GOLDEN / "released_tiny.json"
    }


def test_verify_passes_over_other_files(tmp_path, capfd):
    (tmp_path / "README.md").write_text("Golden values.")
    code, printed, notes = uniavgen(capfd, "verify", GOLDEN / "mel_case.safetensors", tmp_path / "README.md")
    assert code == 0
    assert "README.md: no golden file, passed over" in notes
    assert "log_mel" in printed
    assert "2 cases, worst relative error" in printed


def test_verify_says_which_value_differs(tmp_path, capfd):
    values = load_file(GOLDEN / "mel_case.safetensors")
    values["log_mel"][..., 0] += 0.1
    save_file(values, tmp_path / "mel.safetensors")
    cases = json.loads((GOLDEN / "text_cases.json").read_text(encoding="utf-8"))[:1]
    cases[0]["ids"][0] += 1
    (tmp_path / "text.json").write_text(json.dumps(cases))
    code, printed, _ = uniavgen(capfd, "verify", tmp_path / "mel.safetensors", tmp_path / "text.json")
    assert code == 1
    wrong = [line for line in printed.splitlines() if line.endswith("DIFFERS")]
    assert [line.split()[:2] for line in wrong] == [["mel.safetensors", "log_mel"], ["text.json", "text"]]
    assert printed.strip().endswith("FAILED")


# the process


def test_help_answers_without_torch():
    script = (
        "import sys, runpy\n"
        "sys.argv = ['uniavgen', '--help']\n"
        "try:\n"
        "    runpy.run_module('uniavgen_core', run_name='__main__')\n"
        "finally:\n"
        "    sys.exit('torch was imported' if 'torch' in sys.modules else 0)\n"
    )
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert (found.returncode, found.stderr) == (0, "")
    for command in ("generate", "inspect", "verify", "convert", "bench"):
        assert command in found.stdout


def test_a_reader_that_has_seen_enough_ends_the_command_quietly():
    script = "import sys; from uniavgen_core.cli import main; sys.exit(main(sys.argv[1:]))"
    reader, writer = os.pipe()
    os.close(reader)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", script, "verify", str(GOLDEN / "mel_case.safetensors")]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=root)
    os.close(writer)
    assert (found.returncode, found.stderr) == (2, "")


def read_until(terminal, pattern):
    """What a terminal shows until the pattern appears or, without one, until the program has ended."""
    shown, deadline = "", time.monotonic() + 60
    while pattern is None or not re.search(pattern, shown):
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], shown
        try:
            part = os.read(terminal, 4096).decode()
        except OSError:  # the other side is closed
            break
        shown += part
    return shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal and signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_cancelling_leaves_nothing_but_one_line(tmp_path, real, stop):
    """In a terminal, with its progress bar, in the middle of sampling."""
    import fcntl
    import pty
    import termios

    out = tmp_path / "out"
    out.mkdir()
    small = {
        "text": TEXT,
        "image": real / "photo.png",
        "out": out / "clip.mp4",
        "frames": 5,
        "short_side": 32,
    }
    command = [sys.executable, "-m", "uniavgen_core", "generate", *flags(small), "--steps", "1000000"]
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=side,
        stderr=side,
        cwd=root,
        # a shell's background job, and all it starts, would ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(side)
    try:
        read_until(terminal, r"sample: .*\| [1-9]\d*/1000000 \[.*<.*step/s\]")
        process.send_signal(stop)
        shown = read_until(terminal, None)
    finally:
        process.kill()
        os.close(terminal)
    assert process.wait(10) == 2
    assert "Traceback" not in shown
    line = "uniavgen: cancelled; nothing was written, run the same command again to start over"
    assert shown.replace("\r\n", "\n").split("\r")[-1].splitlines() == [line]
    assert list(out.iterdir()) == []


def test_a_python_caller_can_cancel_and_watch(tmp_path, real):
    seen, stages = [], []
    wanted = replace(request("joint", real, tmp_path / "clip.mp4", steps=9), guidance=Guidance.none())
    with pytest.raises(ValueError, match="cancelled after 3 of 9 steps"):
        pipeline.generate(
            wanted,
            pipeline.Weights(),
            on_stage=stages.append,
            on_step=lambda done, steps: seen.append((done, steps)),
            cancelled=lambda: len(seen) == 3,
        )
    assert seen == [(1, 9), (2, 9), (3, 9)]
    assert stages[-1] == "sample"
    assert list(tmp_path.iterdir()) == []
