"""MA-CFG: two passes mixed, and which of them sees what (docs/model.md section 7)."""

from __future__ import annotations

import pytest
import torch
from conftest import inputs

from uniavgen_core.conditioning import condition
from uniavgen_core.model.config import TINY
from uniavgen_core.model.inputs import TextConditioning, Velocity
from uniavgen_core.sampling.guidance import Guidance, GuidedModel

STEPS = 8
GIVEN = inputs(TINY, reference_mels=4)
POSITIVE = TextConditioning(GIVEN["caption"], GIVEN["speech"])
NEGATIVE = TextConditioning(GIVEN["caption"][:, :2], GIVEN["speech"][:, :3])
JOINT = condition("joint", GIVEN["reference_image"], None, 3, 23)
VOICE = condition(
    "reference-voice", GIVEN["reference_image"], None, 3, 23, reference_mel=GIVEN["reference_mel"]
)


class Recorder:
    """Stands in for the model: keeps what it was asked, answers with noise of its own."""

    dtype, config = torch.float32, TINY

    def __init__(self):
        self.calls, self.answers = [], []

    def __call__(self, video, audio, time, text, references, conditioned, **options) -> Velocity:
        self.calls.append(
            {
                "video": video,
                "audio": audio,
                "time": time,
                "text": text,
                "references": references,
                "conditioned": conditioned,
                **options,
            }
        )
        answer = Velocity(torch.randn_like(video), torch.randn_like(audio), {0: torch.rand(1)})
        self.answers.append(answer)
        return answer


def run(task, guidance: Guidance, steps: int = STEPS) -> tuple[Recorder, list[Velocity]]:
    model = Recorder()
    guided = GuidedModel(model, task, POSITIVE, NEGATIVE, guidance)
    time = torch.tensor([500.0])
    return model, [guided(GIVEN["video"], GIVEN["audio"], time, i, steps) for i in range(steps)]


def directions(call: dict) -> tuple[bool, bool]:
    return call["active"].a2v, call["active"].v2a


def test_each_modality_is_pushed_away_from_one_shared_null_pass_by_its_own_scale():
    model, mixed = run(JOINT, Guidance(s_v=4.5, s_a=1.5), steps=1)
    full, null = model.answers
    assert torch.allclose(mixed[0].video, null.video + 4.5 * (full.video - null.video))
    assert torch.allclose(mixed[0].audio, null.audio + 1.5 * (full.audio - null.audio))
    assert mixed[0].face_masks is full.face_masks


def test_defaults_are_those_of_the_release():
    assert Guidance() == Guidance(s_v=3.0, s_a=2.0, interval=0.5, skip_layers=(11,))


@pytest.mark.parametrize(("interval", "steps", "inside"), [
    (0.5, 8, 4), (0.5, 5, 2), (0.5, 1, 0), (1.0, 7, 7), (0.0, 7, 0), (0.3, 10, 3), (0.99, 3, 2),
])  # fmt: skip
def test_the_null_pass_has_no_interaction_while_i_is_below_int_of_interval_times_n(interval, steps, inside):
    model, _ = run(JOINT, Guidance(interval=interval), steps)
    full, null = model.calls[0::2], model.calls[1::2]
    assert [directions(c) for c in full] == [(True, True)] * steps
    assert [directions(c) for c in null] == [(i >= inside, i >= inside) for i in range(steps)]


def test_every_null_pass_skips_a_layer_and_has_the_empty_texts():
    model, _ = run(JOINT, Guidance(skip_layers=(2,)))
    for full, null in zip(model.calls[0::2], model.calls[1::2]):
        assert full["active"].skip_layers == ()
        assert null["active"].skip_layers == (2,)
        assert torch.equal(full["text"].caption, POSITIVE.caption)
        assert torch.equal(full["text"].speech, POSITIVE.speech)
        assert torch.equal(null["text"].caption, NEGATIVE.caption)
        assert torch.equal(null["text"].speech, NEGATIVE.speech)


def test_references_and_known_frames_are_in_both_passes():
    model, _ = run(VOICE, Guidance(), steps=2)
    for call in model.calls:
        assert torch.equal(call["references"].image, GIVEN["reference_image"])
        assert torch.equal(call["references"].mel, GIVEN["reference_mel"])
        assert torch.equal(call["video"][:, :, :1], GIVEN["reference_image"])
        assert torch.equal(call["video"][:, :, 1:], GIVEN["video"][:, :, 1:])
        assert torch.equal(call["conditioned"].video, VOICE.conditioned_video)


def test_reference_voice_has_v2a_off_in_the_full_pass_and_both_on_in_the_late_null_pass():
    model, _ = run(VOICE, Guidance(), steps=4)
    assert [directions(c) for c in model.calls[0::2]] == [(True, False)] * 4
    assert [directions(c) for c in model.calls[1::2]] == [(False, False)] * 2 + [(True, True)] * 2


@pytest.mark.parametrize(("guidance", "passes"), [
    (Guidance.none(), 1),
    (Guidance(s_v=1.0, s_a=1.0), 1),
    (Guidance(s_v=1.0, s_a=2.0), 2),
    (Guidance(s_v=3.0, s_a=1.0), 2),
    (Guidance(interval=0.0), 2),
])  # fmt: skip
def test_scale_one_costs_one_pass(guidance, passes):
    model, mixed = run(JOINT, guidance)
    assert len(model.calls) == passes * STEPS
    if passes == 1:
        assert mixed == model.answers


def test_plain_guidance_keeps_the_interaction_in_every_null_pass():
    model, _ = run(JOINT, Guidance(interval=0.0, skip_layers=()))
    assert {directions(c) for c in model.calls} == {(True, True)}
    assert all(c["active"].skip_layers == () for c in model.calls)


def test_full_and_null_pass_never_share_a_cache():
    model, _ = run(JOINT, Guidance(), steps=3)
    assert len({id(c["cache"]) for c in model.calls[0::2]}) == 1
    assert len({id(c["cache"]) for c in model.calls[1::2]}) == 1
    assert model.calls[0]["cache"] is not model.calls[1]["cache"]


def test_speech_texts_of_a_batch_may_differ_in_length():
    lengths = torch.tensor([5])
    model = Recorder()
    guided = GuidedModel(
        model, JOINT, TextConditioning(POSITIVE.caption, POSITIVE.speech, lengths), NEGATIVE, Guidance()
    )
    guided(GIVEN["video"], GIVEN["audio"], torch.tensor([1.0]), 0, 1)
    assert model.calls[0]["text"].speech_lengths is lengths
    assert model.calls[1]["text"].speech_lengths is None
