from dataclasses import replace
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import pytest
from conftest import needs_accelerate, needs_espeak, needs_muon

from uniavgen_core.errors import UserError
from uniavgen_core.theatre import drawing, voices
from uniavgen_core.theatre.clips import (
    Theatre,
    identity_voice,
    loudness_envelope,
    measure_aperture,
    measure_pitch,
)
from uniavgen_core.vocabulary import VOCABULARY


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.fixture(scope="module")
def held_out_clips():
    theatre = Theatre(seed=3, split="held-out")
    return [theatre.clip(i) for i in range(16)]


@needs_espeak
def test_a_clip_is_a_pure_function_of_seed_split_and_index():
    first, again = Theatre(seed=1).clip(5), Theatre(seed=1).clip(5)
    for field in ("frames", "waveform", "face_mask", "aperture", "mouth_box"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    assert (first.caption, first.transcript, first.identity) == (
        again.caption,
        again.transcript,
        again.identity,
    )
    for other in (
        Theatre(seed=2).clip(5),
        Theatre(seed=1).clip(6),
        Theatre(seed=1, split="held-out").clip(5),
    ):
        assert not np.array_equal(first.frames, other.frames)
        assert not np.array_equal(first.waveform, other.waveform)


@needs_espeak
@pytest.mark.parametrize(("frames", "size"), [(17, (64, 64)), (33, (128, 128)), (81, (160, 96))])
def test_picture_and_sound_have_the_asked_size_and_length(frames, size):
    clip = Theatre(seed=4, frames=frames, size=size).clip(0)
    assert clip.frames.shape == (frames, *size[::-1], 3)
    assert clip.frames.dtype == np.uint8
    assert clip.waveform.shape == (round(frames / 16 * 24000),)
    assert clip.waveform.dtype == np.float32
    assert 0.1 < np.abs(clip.waveform).max() <= 0.951
    assert clip.face_mask.shape == (frames, *size[::-1])
    assert len(clip.transcript.split(". ")) == max(1, int(frames / 16 / 2.5))


@needs_espeak
def test_splits_share_no_face_and_no_sentence():
    train, held_out = Theatre(split="train"), Theatre(split="held-out")

    def named(identity):
        return tuple(v for v in vars(identity).values() if not isinstance(v, float))

    assert not {named(train.identity(i)) for i in range(400)} & {
        named(held_out.identity(i)) for i in range(400)
    }
    said = [{t.speech(i).transcript for i in range(60)} for t in (train, held_out)]
    assert not said[0] & said[1]
    assert all(voices.held_out(text) for text in said[1])
    references = {held_out.reference(i).transcript for i in range(20)}
    assert all(voices.held_out(text) for text in references)


def test_the_language_has_at_least_60_words_and_thousands_of_sentences():
    rng = np.random.default_rng(0)
    texts = {voices.sentence(rng, is_held_out=False) for _ in range(8000)}
    assert len(texts) > 4000
    assert len(VOCABULARY) >= 60
    assert {word for text in texts for word in text.split()} == set(VOCABULARY)
    assert {len(text.split()) for text in texts} == {2, 3, 4, 5}


@needs_espeak
def test_every_sentence_is_spoken_to_its_end_inside_the_clip():
    theatre = Theatre(seed=5)
    for i in range(60):
        speech = theatre.speech(i)
        heard = np.flatnonzero(speech.waveform)
        bare = voices.speak(speech.transcript, speech.voice, 240)
        assert len(heard) > 0.8 * len(bare)
        assert np.abs(speech.waveform[-60:]).max() < 0.1


@needs_espeak
def test_the_mouth_follows_the_loudness(held_out_clips):
    measured = [
        correlation(measure_aperture(c.frames), loudness_envelope(c.waveform, 33)) for c in held_out_clips
    ]
    assert min(measured) >= 0.95
    assert np.mean(measured) > 0.98
    for clip in held_out_clips:
        assert np.array_equal(clip.aperture, loudness_envelope(clip.waveform, 33))
        assert (clip.aperture == 1).mean() < 0.1
        assert 0.8 < np.percentile(measure_aperture(clip.frames), 95) < 1.25


@needs_espeak
def test_the_mouth_is_measured_through_blur_and_jpeg(held_out_clips):
    def worn(frame):
        _, data = cv2.imencode(".jpg", cv2.GaussianBlur(frame, (0, 0), 1.0), [cv2.IMWRITE_JPEG_QUALITY, 60])
        return cv2.imdecode(data, cv2.IMREAD_COLOR)

    scores = [
        correlation(measure_aperture(np.stack([*map(worn, c.frames)])), c.aperture) for c in held_out_clips
    ]
    assert np.mean(scores) > 0.95
    assert min(scores) > 0.9


@needs_espeak
def test_the_mouth_is_found_without_knowing_where_it_is(held_out_clips):
    for clip in held_out_clips[:8]:
        assert (
            correlation(measure_aperture(clip.frames), measure_aperture(clip.frames, clip.mouth_box)) > 0.98
        )


@needs_espeak
def test_clips_do_not_share_a_rhythm():
    theatre = Theatre(seed=6)
    curves = np.array([loudness_envelope(theatre.speech(i).waveform, 33) for i in range(80)])
    pairs = np.corrcoef(curves)[np.triu_indices(80, 1)]
    assert pairs.mean() < 0.2


@needs_espeak
def test_the_face_mask_is_the_face(held_out_clips):
    for clip in held_out_clips:
        for f in (0, 16, 32):
            mask, (x0, y0, x1, y1) = clip.face_mask[f], clip.mouth_box[f]
            assert 0.1 < mask.mean() < 0.5
            assert mask[int((y0 + y1) / 2), int((x0 + x1) / 2)]
            skin = np.abs(clip.frames[f].astype(int) - drawing.SKINS[clip.identity.skin]).max(-1) < 6
            above_neck = skin[: int(y1)]
            ears = 0.2 * mask.sum()
            assert (above_neck & ~mask[: int(y1)]).sum() < ears
            assert (above_neck & mask[: int(y1)]).sum() > 0.1 * mask.sum()


@needs_espeak
def test_the_pitch_heard_is_the_pitch_told(held_out_clips):
    errors = [abs(measure_pitch(c.waveform) / c.pitch - 1) for c in held_out_clips]
    assert np.median(errors) < 0.03
    assert np.mean(np.array(errors) < 0.05) >= 0.9


def test_pitch_of_a_buzz_is_exact_and_of_silence_is_not_a_number():
    t = np.arange(24000) / 24000
    for hertz in (90, 151.5, 333):
        buzz = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 9))
        assert measure_pitch(buzz) == pytest.approx(hertz, rel=0.005)
    assert np.isnan(measure_pitch(np.zeros(24000)))


def test_the_face_tells_the_voice():
    people = [Theatre(seed=8).identity(i) for i in range(300)]
    pitch = {
        kind: [identity_voice(p).pitch for p in people if p.person == kind]
        for kind in ("man", "woman", "girl")
    }
    assert np.median(pitch["man"]) < np.median(pitch["woman"]) < np.median(pitch["girl"])
    young = sorted(
        (p.width, identity_voice(p).pitch) for p in people if (p.person, p.age) == ("man", "young")
    )
    assert all(wider[1] < narrower[1] for narrower, wider in pairwise(young))


@needs_espeak
def test_a_given_voice_says_the_same_sentence_with_the_same_face():
    theatre = Theatre(seed=9)
    for i in range(4):
        own, voice = theatre.clip(i), theatre.other_voice(i)
        other = theatre.clip(i, voice)
        assert (other.transcript, other.identity, other.caption) == (
            own.transcript,
            own.identity,
            own.caption,
        )
        assert other.own_voice == own.voice != other.voice
        heard = measure_pitch(other.waveform)
        assert abs(heard / voice.pitch - 1) < 0.08 < abs(heard / own.pitch - 1)
        reference = theatre.reference(i, voice)
        assert reference.transcript != own.transcript
        assert abs(measure_pitch(reference.waveform) / voice.pitch - 1) < 0.08


@needs_espeak
def test_the_caption_says_what_is_seen(held_out_clips):
    for clip in held_out_clips:
        assert clip.identity.person in clip.caption
        assert ("glasses" in clip.caption) == (clip.identity.glasses != "none")
        assert clip.expression in clip.caption


@needs_espeak
def test_the_head_moves_as_the_caption_says():
    theatre = Theatre(seed=10)
    travel = {"still": [], "swaying": []}
    for i in range(40):
        clip = theatre.clip(i)
        if clip.motion in travel:
            centre = clip.mouth_box[:, 0] + clip.mouth_box[:, 2]
            travel[clip.motion].append(np.ptp(centre) / 2)
    assert np.median(travel["swaying"]) > 2 * np.median(travel["still"]) > 0


def test_a_missing_espeak_is_named_with_its_cure(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="espeak-ng, which was not found; install it"):
        Theatre(seed=123456).speech(0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 32}, "32 frames, expected 4n"),
        ({"size": (100, 128)}, "multiples of 16"),
        ({"split": "test"}, "expected one of"),
    ],
)
def test_values_it_cannot_play_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Theatre(**wrong)


@needs_espeak
@needs_accelerate
@needs_muon
def test_the_embedded_model_is_made_from_nothing(tmp_path, monkeypatch):
    """The whole way with few steps and clips; what comes out loads and says which variant it is."""
    from uniavgen_core.pipeline import Pipeline, Weights
    from uniavgen_core.theatre import autoencoder, build_embedded
    from uniavgen_core.theatre.recipe import EMBEDDED, EMBEDDED_FINAL

    def few(stages: tuple) -> tuple:
        return tuple(replace(stage, steps=1, batch=1) for stage in stages)

    monkeypatch.setattr(autoencoder, "measure_latents", partial(autoencoder.measure_latents, clips=2))
    for name in ("VAE", "DECODER"):
        stages = few(getattr(build_embedded, name))
        small = tuple(replace(stage, frames=min(stage.frames, 5), crop=32) for stage in stages)
        monkeypatch.setattr(build_embedded, name, small)
    monkeypatch.setattr(build_embedded, "MOVING_CLIPS", 1)
    recipes = tuple(replace(r, stages=few(r.stages), dtype="fp32") for r in (EMBEDDED, EMBEDDED_FINAL))
    folder = build_embedded.make_embedded(tmp_path, recipes, share=1 / 4096)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "vae", "caption_encoder"}
    pipeline = Pipeline.load(
        Weights(str(folder / "model.safetensors"), str(folder / "vae"), str(folder / "caption_encoder"))
    )
    assert pipeline.config == EMBEDDED_FINAL.config
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 60e6
    with pytest.raises(UserError, match="--share is 0"):
        build_embedded.make_embedded(tmp_path, share=0)


def test_two_of_three_still_heads_are_left_out():
    from uniavgen_core.theatre.build_embedded import STILL, moving

    theatre = Theatre(3)
    numbers = moving(theatre, 60)
    still = [i for i in numbers if STILL in theatre.caption(i)]
    left_out = set(range(numbers[-1])) - set(numbers)
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 60
    assert still
    assert left_out
    assert all(i % 3 == 0 for i in still)
    assert all(STILL in theatre.caption(i) and i % 3 for i in left_out)
