"""Lengths that come from the text, and scripts of many sentences."""

from __future__ import annotations

import importlib

import pytest
import torch
from graphs import changed, clip, node, parts
from test_server import AAC_FRAME, lengths, saved_file

from uniavgen_core import embedded
from uniavgen_core.conditioning import FPS
from uniavgen_core.duration import frames_for_text
from uniavgen_core.long_speech import Line, script_frames
from uniavgen_core.media.vae import read_vae

TEXT = "Good morning."
SCRIPT = ("hello", "good morning", "thanks")


def script(text: str, **inputs) -> dict:
    """A graph that speaks a script, small and in one step."""
    settings = {"language": "en", "s_v": 3.0, "s_a": 2.0, "seed": 1, "steps": 1, "interval": 0.5}
    settings |= {"skip_layer": -1, "shift": 5.0}
    sockets = {"model": ["parts", 0], "speech_encoder": ["parts", 1], "video": ["video", 0]}
    sockets |= {"positive": ["caption", 0], "negative": ["no caption", 0]}
    graph = parts()
    del graph["words"]
    return graph | {
        "spoken": node("UniAVGenLongSpeech", script=text, **sockets | settings | inputs),
        "file": node("UniAVGenDecodeToFile", latent=["spoken", 0], vae=["parts", 3], vocoder=["parts", 4]),
        "saved": node(
            "SaveVideo",
            video=["file", 0],
            filename_prefix="script",
            **{"format": "mp4", "format.codec": "auto"},
        ),
    }


def test_a_text_decides_the_length_of_its_clip(server):
    length = {"length": node("UniAVGenTextDuration", text=TEXT)}
    answer = server.run(changed(clip(steps=1), {"task.frames": ["length", 0]}, length))
    assert not answer.error
    picture, _, _ = lengths(saved_file(server, answer.outputs))
    assert picture == frames_for_text(TEXT) / FPS


def test_a_text_too_long_for_its_clip_is_told_with_the_length_it_needs(server):
    text = "Good morning, and how very good it is to see you here again today."
    answer = server.run(changed(clip(steps=1), {"words.text": text}))
    assert not answer.error
    assert f"give it {frames_for_text(text)} frames" in server.log


def test_a_script_becomes_one_video_and_an_edit_makes_what_follows_alone(server):
    frames = script_frames([Line(text) for text in SCRIPT], embedded.FRAMES)
    answer = server.run(script("\n".join(SCRIPT)))
    assert not answer.error
    picture, sound, rate = lengths(saved_file(server, answer.outputs))
    assert picture == frames / FPS
    assert abs(picture - sound) <= AAC_FRAME / rate
    assert f"3 sentences, {frames} frames, {frames / FPS:.2f} s; 3 made in this run" in server.log
    assert not server.run(script("hello\ngood evening\nthanks")).error
    assert "; 2 made in this run" in server.log
    assert not server.run(script("hello\ngood evening\nthanks\nhello")).error
    assert "4 sentences" in server.log
    assert "; 1 made in this run" in server.log


def test_a_line_may_have_a_caption_of_its_own(server):
    assert not server.run(script("hello | a man in the city\nthanks", clip=["parts", 2])).error


@pytest.mark.parametrize(
    ("text", "inputs", "words"),
    [
        ("  \n", {}, "script is empty"),
        ("# only a comment", {}, "script is empty"),
        ("hello\nthanks | a man", {}, "connect clip"),
        ("hello\n" + 20 * "hello ", {}, "line 2 of the script takes"),
        ("hello", {"transcript": "hello"}, "belong together"),
        ("\u2603", {}, "knows no character"),
        ("hello", {"model": ["caption", 0]}, "model"),
        ("hello", {"steps": 0}, "steps"),
    ],
)
def test_a_wrong_script_is_answered_with_what_to_do(server, text, inputs, words):
    assert words in server.run(script(text, **inputs)).error


def test_a_latent_that_was_not_sampled_is_not_written_to_a_file(server):
    graph = clip() | {key: value for key, value in script("hello").items() if key in ("file", "saved")}
    assert "nothing was generated" in server.run(changed(graph, {"file.latent": ["task", 2]})).error


def test_frames_decoded_to_a_file_are_those_of_vae_decode_one_latent_frame_at_a_time(host):
    nodes = importlib.import_module(f"{host.__name__}.nodes.long_speech")
    vae = importlib.import_module(f"{host.__name__}.nodes.embedded").HostVAE(
        *read_vae(embedded.folder() / "vae")
    )
    latent = torch.randn(1, 48, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    pieces = list(nodes.decoded(vae, latent))
    assert [len(piece) for piece in pieces] == [1, 4, 4, 4]
    whole = (vae.decode(latent)[0] * 255).round()
    assert (torch.cat(pieces) - whole).abs().max() <= 1  # a rounding that falls the other way
