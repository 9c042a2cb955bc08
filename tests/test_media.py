import errno
import io
import os
import subprocess
import sys
import wave as wavefile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from uniavgen_core.errors import UserError
from uniavgen_core.media import files

RATE = 24000


def tone(seconds, rate=RATE, channels=1):
    time = torch.arange(round(seconds * rate)) / rate
    return torch.stack([0.5 * torch.sin(2 * torch.pi * (100 + 20 * c) * time) for c in range(channels)])


def moving_picture(count, height=96, width=128):
    """A soft colour field with a bright bar that moves two pixels a frame: uint8 [F, H, W, 3]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    still = torch.stack([220 * x, 200 * y, 120 + 0 * x], -1)
    frames = still.repeat(count, 1, 1, 1)
    for i in range(count):
        frames[i, :, (8 + 2 * i) % (width - 8) :][:, :8] = 230
    return frames.to(torch.uint8)


def write_audio(path, wave, rate, codec, layout):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for start in range(0, wave.shape[1], 4800):
            packed = np.ascontiguousarray(wave[:, start : start + 4800].T.numpy()).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_wav(path, samples, rate, channels=1, width=2):
    with wavefile.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples)


def write_video(path, frames, stamps, time_base, rotation=None, codec="libx264", fps=30):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = time_base
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for picture, stamp in zip(frames, stamps):
            frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def psnr(a, b):
    return 10 * torch.log10(255**2 / (a.double() - b.double()).square().mean()).item()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """81 frames with sound, the length of a release video."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    files.write_mp4(path, moving_picture(81), 16, tone(81 / 16), RATE)
    return path


# pictures


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_a_picture_of_any_common_kind_is_read(tmp_path, suffix):
    picture = moving_picture(1)[0]
    Image.fromarray(picture.numpy()).save(tmp_path / f"face.{suffix}")
    read = files.read_image(tmp_path / f"face.{suffix}")
    assert read.dtype == torch.uint8
    assert read.shape == picture.shape
    assert psnr(read, picture) > 25


def test_a_photograph_is_read_exactly(tmp_path):
    data = pytest.importorskip("skimage.data")
    photo = data.astronaut()
    Image.fromarray(photo).save(tmp_path / "astronaut.png")
    assert torch.equal(files.read_image(tmp_path / "astronaut.png"), torch.from_numpy(photo))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 100 * 257, (100, 100, 100)),
    ],
)
def test_grey_transparent_and_deep_pictures_become_rgb(tmp_path, mode, value, expected):
    Image.new(mode, (32, 20), value).save(tmp_path / "face.png")
    picture = files.read_image(tmp_path / "face.png")
    assert picture.shape == (20, 32, 3)
    assert picture.unique(dim=0).shape[0] == 1
    assert tuple(picture[0, 0].tolist()) == expected


def test_a_palette_picture_with_a_transparent_colour_lies_on_white(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(0, (0, 0, 16, 32))
    image.save(tmp_path / "face.png", transparency=0)
    picture = files.read_image(tmp_path / "face.png")
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[0, 31].tolist() == [200, 100, 50]


def test_a_phone_photo_stands_upright(tmp_path):
    image = Image.new("RGB", (64, 32), "black")
    image.paste((255, 255, 255), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise
    image.save(tmp_path / "photo.png", exif=exif)
    picture = files.read_image(tmp_path / "photo.png")
    assert picture.shape == (64, 32, 3)
    assert picture[0, 0, 0] == 255
    assert picture[-1, 0, 0] == 0


@pytest.mark.parametrize(
    ("size", "message"), [((1, 1), "at least 16"), ((15, 200), "at least 16"), ((900, 100), "8:1")]
)
def test_a_picture_of_a_useless_size_is_refused(tmp_path, size, message):
    Image.new("RGB", size).save(tmp_path / "face.png")
    with pytest.raises(UserError, match=message):
        files.read_image(tmp_path / "face.png")


def test_a_picture_of_32_bits_a_channel_is_refused(tmp_path):
    Image.new("F", (32, 32)).save(tmp_path / "face.tiff")
    with pytest.raises(UserError, match="8 or 16"):
        files.read_image(tmp_path / "face.tiff")


# bad files


READERS = [files.read_image, files.read_audio, files.read_video]


def refusal(reader, path, capfd):
    with pytest.raises(UserError) as caught:
        reader(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert capfd.readouterr().err == ""
    return str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_an_empty_file_and_a_folder_are_refused(tmp_path, capfd, reader):
    (tmp_path / "empty.mp4").touch()
    assert "no such file" in refusal(reader, tmp_path / "missing.mp4", capfd)
    assert "0 bytes" in refusal(reader, tmp_path / "empty.mp4", capfd)
    assert "is a folder" in refusal(reader, tmp_path, capfd)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["face.png", "voice.wav", "clip.mp4", "notes.txt"])
def test_what_is_no_medium_is_refused(tmp_path, capfd, reader, name):
    for content in (bytes(range(256)) * 40, b"a text is no medium\n" * 40):
        (tmp_path / name).write_bytes(content)
        refusal(reader, tmp_path / name, capfd)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.85])
@pytest.mark.parametrize("reader", [files.read_audio, files.read_video])
def test_a_cut_mp4_is_refused(tmp_path, capfd, clip, reader, part):
    whole = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(part * len(whole))])
    assert "cut" in refusal(reader, tmp_path / "cut.mp4", capfd)


def test_a_cut_wav_flac_or_picture_is_refused(tmp_path, capfd):
    write_wav(tmp_path / "whole.wav", bytes(48000), 16000)
    write_audio(tmp_path / "whole.flac", tone(2), RATE, "flac", "mono")
    Image.fromarray(moving_picture(1)[0].numpy()).save(tmp_path / "whole.jpg")
    Image.fromarray(moving_picture(1)[0].numpy()).save(tmp_path / "whole.png")
    for suffix, reader in zip(("wav", "flac", "jpg", "png"), [files.read_audio] * 2 + [files.read_image] * 2):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole[: len(whole) // 2])
        reader(tmp_path / f"whole.{suffix}")
        refusal(reader, cut, capfd)


def test_a_file_without_the_stream_asked_for_says_so(tmp_path, capfd):
    write_wav(tmp_path / "voice.wav", bytes(4800), RATE)
    write_video(tmp_path / "silent.mp4", moving_picture(4), range(4), Fraction(1, 30))
    Image.new("RGB", (64, 64)).save(tmp_path / "face.png")
    assert "no video" in refusal(files.read_video, tmp_path / "voice.wav", capfd)
    assert "no audio" in refusal(files.read_audio, tmp_path / "silent.mp4", capfd)
    assert "image" in refusal(files.read_video, tmp_path / "face.png", capfd)
    assert files.read_video(tmp_path / "silent.mp4").audio is None


def test_an_audio_file_without_samples_is_refused(tmp_path, capfd):
    write_wav(tmp_path / "empty.wav", b"", RATE)
    assert "no samples" in refusal(files.read_audio, tmp_path / "empty.wav", capfd)


def test_samples_that_are_not_numbers_are_refused(tmp_path, capfd):
    wave = tone(0.5)
    wave[0, 100] = float("nan")
    write_audio(tmp_path / "nan.wav", wave, RATE, "pcm_f32le", "mono")
    assert "NaN" in refusal(files.read_audio, tmp_path / "nan.wav", capfd)


# sound


@pytest.mark.parametrize(
    ("suffix", "codec", "layout", "channels", "rate", "tolerance"),
    [
        ("wav", "pcm_u8", "mono", 1, 8000, 1e-2),
        ("wav", "pcm_s16le", "stereo", 2, 44100, 1e-4),
        ("wav", "pcm_s24le", "mono", 1, 48000, 1e-6),
        ("wav", "pcm_f64le", "stereo", 2, 48000, 1e-6),
        ("wav", "pcm_s16le", "7.1", 8, 48000, 1e-4),
        ("wav", "pcm_s16le", "hexadecagonal", 16, 48000, 1e-4),
        ("flac", "flac", "5.1", 6, 96000, 1e-4),
        ("mp3", "libmp3lame", "stereo", 2, 44100, 5e-2),
        ("opus", "libopus", "7.1", 8, 48000, 5e-2),
        ("m4a", "aac", "7.1", 8, 48000, 1e-1),
    ],
)
def test_any_codec_sample_format_and_channel_count_is_read(
    tmp_path, suffix, codec, layout, channels, rate, tolerance
):
    wave = tone(1, rate, channels)
    path = tmp_path / f"voice.{suffix}"
    write_audio(path, wave, rate, codec, layout)
    read, read_rate = files.read_audio(path)
    assert read.dtype == torch.float32
    assert read_rate == rate
    assert len(read) == channels
    assert 0 <= read.shape[1] - rate <= 2304
    middle = slice(rate // 4, rate // 2)
    assert (read[:, middle] - wave[:, middle]).abs().max() < tolerance


def test_only_the_seconds_asked_for_are_read(tmp_path):
    write_audio(tmp_path / "long.wav", tone(3), RATE, "pcm_s16le", "mono")
    wave, _ = files.read_audio(tmp_path / "long.wav", max_seconds=1.25)
    assert wave.shape == (1, 30000)


def test_a_single_sample_is_sound(tmp_path):
    write_wav(tmp_path / "click.wav", b"\x00\x40", RATE)
    wave, rate = files.read_audio(tmp_path / "click.wav")
    assert wave.tolist() == [[0.5]]
    assert rate == RATE


# video


def test_a_written_video_comes_back(clip):
    video = files.read_video(clip)
    frames = moving_picture(81)
    assert video.fps == 16
    assert video.frames.shape == frames.shape
    assert min(psnr(a, b) for a, b in zip(video.frames, frames)) > 34
    wave, rate = video.audio
    assert rate == RATE
    assert len(wave) == 1
    assert 0 <= wave.shape[1] - 121500 < 1024
    assert (wave[0, 2000:119000] - tone(81 / 16)[0, 2000:119000]).abs().max() < 0.02


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_picture_and_sound_are_equally_long(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    files.write_mp4(path, moving_picture(33), 16, tone(5, channels=2), RATE)
    with av.open(path) as container:
        assert abs(container.duration / 1e6 - 33 / 16) < 1024 / RATE + 1e-3  # Matroska counts in milliseconds
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.audio[0].codec_context.name == "aac"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    video = files.read_video(path)
    assert len(video.frames) == 33
    assert 0 <= video.audio[0].shape[1] - round(33 / 16 * RATE) < 1024


def test_short_sound_is_filled_with_silence(tmp_path):
    files.write_mp4(tmp_path / "clip.mp4", moving_picture(33), 16, tone(0.5)[0], RATE)
    wave, _ = files.read_video(tmp_path / "clip.mp4").audio
    assert wave.shape[1] >= round(33 / 16 * RATE)
    assert wave[0, : RATE // 2].abs().max() > 0.4
    assert wave[0, RATE // 2 + 2048 :].abs().max() < 1e-3


def test_a_video_can_be_played_while_it_downloads(clip):
    whole = clip.read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")


def test_colours_are_tagged_and_kept(tmp_path):
    colours = torch.tensor([[200, 30, 40], [30, 180, 60], [40, 50, 210], [128, 128, 128]], dtype=torch.uint8)
    frames = colours.repeat_interleave(32, 0).expand(5, 64, 128, 3).contiguous()
    files.write_mp4(tmp_path / "colours.mp4", frames, 16, torch.zeros(7500), RATE)
    with av.open(tmp_path / "colours.mp4") as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
    read = files.read_video(tmp_path / "colours.mp4").frames[2, 32, 16::32]
    assert (read.int() - colours.int()).abs().max() <= 6


def test_a_phone_video_stands_upright(tmp_path):
    frames = torch.zeros(6, 48, 96, 3, dtype=torch.uint8)
    frames[:, :, :48] = 255  # stored lying: its left is the top once turned clockwise
    write_video(tmp_path / "phone.mp4", frames, range(6), Fraction(1, 30), rotation=-90)
    read = files.read_video(tmp_path / "phone.mp4").frames
    assert read.shape == (6, 96, 48, 3)
    assert read[:, 10].min() > 240
    assert read[:, -10].max() < 15


def numbered(count):
    """Frames whose brightness is their number, so that a reader can tell which one it got."""
    return (torch.arange(count) * 4 + 8).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3).contiguous()


def numbers(frames):
    return ((frames[:, 16, 16, 1].double() - 8) / 4).round().long().tolist()


@pytest.mark.parametrize("fps", [60, 30, 25, 24, 12])
def test_frames_are_resampled_to_the_nearest_in_time(fps):
    frames = numbered(48)
    resampled = files.resample_frames(frames, fps)
    assert abs(len(resampled) / 16 - 48 / fps) <= 0.5 / 16
    for i, number in enumerate(numbers(resampled)):
        assert abs(number / fps - i / 16) <= 0.5 / fps + 1e-6


def test_16_frames_per_second_stay_as_they_are():
    assert torch.equal(files.resample_frames(numbered(33), 16), numbered(33))


@pytest.mark.parametrize("fps", [60, 30, 25, 12])
def test_reading_at_a_rate_gives_the_frames_that_resampling_gives(tmp_path, fps):
    write_video(tmp_path / "clip.mp4", numbered(48), range(48), Fraction(1, fps), fps=fps)
    whole = files.read_video(tmp_path / "clip.mp4")
    assert whole.fps == fps
    assert numbers(whole.frames) == list(range(48))
    at_16 = files.read_video(tmp_path / "clip.mp4", fps=16)
    assert at_16.fps == 16
    assert numbers(at_16.frames) == numbers(files.resample_frames(whole.frames, fps))


def test_a_variable_frame_rate_is_evened_out(tmp_path):
    stamps = [0, 1, 2, 3, 4, 5, 10, 15, 20, 25]  # in 1/30 s: the second half is slower
    write_video(tmp_path / "phone.mp4", numbered(10), stamps, Fraction(1, 30))
    frames = numbers(files.read_video(tmp_path / "phone.mp4", fps=30).frames)
    assert frames[:6] == [0, 1, 2, 3, 4, 5]
    assert [frames[stamp] for stamp in stamps] == list(range(10))


def test_a_long_video_is_read_only_as_far_as_asked(clip):
    video = files.read_video(clip, max_seconds=1.5)
    assert len(video.frames) == 24
    assert video.audio[0].shape == (1, 36000)


def test_sound_that_starts_late_stays_in_time(tmp_path):
    with av.open(tmp_path / "late.mkv", "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for i in range(25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(25)[i].numpy(), format="rgb24")))
        container.mux(video.encode(None))
        sound = (tone(0.5) * 32767).to(torch.int16).numpy()
        frame = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
        frame.rate, frame.pts, frame.time_base = RATE, RATE // 2, Fraction(1, RATE)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    wave, _ = files.read_video(tmp_path / "late.mkv").audio
    assert wave[0, : RATE // 2 - 50].abs().max() == 0
    assert wave[0, RATE // 2 : RATE // 2 + 200].abs().max() > 0.4


def test_the_cover_of_a_song_is_no_video(tmp_path, capfd):
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(cover, "JPEG")
    write_audio(tmp_path / "plain.mp3", tone(0.5), RATE, "libmp3lame", "mono")
    picture = b"\x00image/jpeg\x00\x03\x00" + cover.getvalue()
    tag = b"APIC" + len(picture).to_bytes(4, "big") + b"\x00\x00" + picture
    size = bytes((len(tag) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    (tmp_path / "song.mp3").write_bytes(
        b"ID3\x03\x00\x00" + size + tag + (tmp_path / "plain.mp3").read_bytes()
    )
    assert files.read_audio(tmp_path / "song.mp3")[1] == RATE
    assert "no video" in refusal(files.read_video, tmp_path / "song.mp3", capfd)


# sizes


@pytest.mark.parametrize(
    ("picture", "short_side", "expected"),
    [
        ((512, 512), 736, (736, 736)),
        ((1920, 1080), 736, (1312, 736)),
        ((1080, 1920), 736, (736, 1312)),
        ((640, 480), 480, (640, 480)),
        ((641, 480), 480, (672, 480)),
        ((100, 100), 32, (32, 32)),
    ],
)
def test_the_shorter_side_is_given_and_the_longer_rounded_up(picture, short_side, expected):
    assert files.size_for(*picture, short_side) == expected


@pytest.mark.parametrize("short_side", [0, -32, 720, 33])
def test_a_side_that_is_no_multiple_of_32_is_refused(short_side):
    with pytest.raises(UserError, match="multiple of 32; try"):
        files.size_for(512, 512, short_side)


def test_a_picture_is_cut_in_the_middle_and_resized():
    picture = torch.zeros(100, 300, 3, dtype=torch.uint8)
    picture[:, 100:200] = 255
    assert torch.equal(files.fit_image(picture, 64, 64), torch.full((64, 64, 3), 255, dtype=torch.uint8))
    assert torch.equal(files.fit_image(picture, 300, 100), picture)
    assert files.fit_image(picture.expand(5, -1, -1, -1), 96, 160).shape == (5, 160, 96, 3)


def test_making_a_picture_smaller_does_not_alias():
    stripes = (torch.arange(256) % 2 * 255).to(torch.uint8).view(1, -1, 1).expand(256, -1, 3)
    small = files.fit_image(stripes, 50, 50)[5:-5, 5:-5].double()
    assert (small - 127.5).abs().max() < 12


# failures leave nothing behind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.avi", r"\.mp4, \.mov, \.mkv"),
        ("clip", r"\.mp4, \.mov, \.mkv"),
        ("nowhere/clip.mp4", "no such folder"),
        ("folder.mp4", "is a folder"),
        ("x" * 300 + ".mp4", "cannot be written"),
    ],
)
def test_a_bad_output_is_refused_before_the_work(tmp_path, name, message):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match=message):
        files.check_output(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.mp4"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(UserError, match="cannot be written"):
        files.check_output("/proc/clip.mp4")


def test_a_good_output_is_checked_without_a_trace(tmp_path):
    assert files.check_output(tmp_path / "clip.MP4") == tmp_path / "clip.MP4"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(5, 33, 32, 3, dtype=torch.uint8)}, "even"),
        ({"frames": torch.zeros(5, 32, 32, 3)}, "uint8"),
        ({"frames": torch.zeros(0, 32, 32, 3, dtype=torch.uint8)}, "F > 0"),
        ({"waveform": torch.full((7500,), float("nan"))}, "NaN"),
        ({"waveform": torch.zeros(8, 7500)}, "mono or stereo"),
        ({"rate": 23000}, "AAC"),
        ({"fps": 0}, "frame rate"),
    ],
)
def test_values_that_cannot_be_written_are_refused(tmp_path, change, message):
    good = {"frames": numbered(5), "fps": 16, "waveform": torch.zeros(7500), "rate": RATE}
    with pytest.raises(UserError, match=message):
        files.write_mp4(tmp_path / "clip.mp4", **good | change)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of a file the POSIX way")
def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"the old video")
    script = (
        "import resource, sys, torch\n"
        "from uniavgen_core.media import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "frames = torch.randint(0, 255, (33, 96, 96, 3), dtype=torch.uint8)\n"
        "try:\n"
        "    files.write_mp4(sys.argv[1], frames, 16, torch.zeros(1), 24000)\n"
        "except files.UserError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "clip.mp4"],
        capture_output=True,
        text=True,
        cwd=Path(files.__file__).parents[2],
    )
    assert run.stderr == ""
    assert "cannot be written (File too large)" in run.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == b"the old video"


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError, "no space left in"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_stop_in_the_last_moment_leaves_nothing(tmp_path, monkeypatch, failure, expected, message):
    def fail(self, target):
        assert self.stat().st_size > 1000
        raise failure

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(expected, match=message):
        files.write_mp4(tmp_path / "clip.mp4", moving_picture(9), 16, tone(1), RATE)
    assert not list(tmp_path.iterdir())
