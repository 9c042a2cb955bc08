"""The five tasks: what is known before sampling goes into the noise mask, references into CONDITIONING."""

from __future__ import annotations

import node_helpers
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..uniavgen_core import conditioning
from ..uniavgen_core.conditioning import FPS, MELS_PER_SECOND, Task, latent_frames, mel_frames, snap_frames
from ..uniavgen_core.errors import UserError
from .types import (
    CATEGORY,
    EncodedSound,
    EncodedSpeech,
    EncodedVideo,
    MelSocket,
    SpeechSocket,
    VideoSocket,
    tell,
)

MAX_FRAMES = 1601
LATENT_FRAME_MELS = MELS_PER_SECOND // 4
FOREIGN = {"area": "ConditioningSetArea", "mask": "ConditioningSetMask", "control": "Apply ControlNet"}


def conditioned(
    task: Task, mode: str, positive: list, negative: list, speech: EncodedSpeech
) -> io.NodeOutput:
    """positive, negative and LATENT of a task; its latents are raw video and normalised mel."""
    for side, cond in (("positive", positive), ("negative", negative)):
        if not cond:
            raise UserError(f"{side} is empty; connect CLIP Text Encode")
        for _, options in cond:
            for key, node in FOREIGN.items():
                if options.get(key) is not None:
                    raise UserError(f"{side} went through {node}, which has no meaning here; leave it out")
    if (task.reference_mel is not None) != speech.transcript:
        raise UserError(
            "there is a reference voice but speech has no transcript of it; write what the voice says into "
            "transcript of UniAVGen Speech Encode"
            if task.reference_mel is not None
            else "speech has a transcript but there is no reference voice; connect reference_voice or empty "
            "transcript of UniAVGen Speech Encode"
        )
    shared = {
        "uniavgen_mode": mode,
        "uniavgen_reference_image": task.reference_image,
        "uniavgen_reference_mel": task.reference_mel,
    }
    full = {**shared, "uniavgen_speech": speech.features, "uniavgen_null": False}
    null = {**shared, "uniavgen_speech": speech.null, "uniavgen_null": True}
    video, audio = task.clean_video, task.clean_audio.transpose(1, 2)  # [1, 48, T, h, w], [1, 80, L]
    generate_video = (~task.known_video).float().view(1, 1, -1, 1, 1).expand(1, 1, *video.shape[2:])
    generate_audio = (~task.known_audio).float().view(1, 1, -1)
    latent = {
        "samples": NestedTensor((video, audio.contiguous())),
        "noise_mask": NestedTensor((generate_video.contiguous(), generate_audio)),
    }
    return io.NodeOutput(
        node_helpers.conditioning_set_values(positive, full),
        node_helpers.conditioning_set_values(negative, null),
        latent,
    )


def snapped(node: type[io.ComfyNode], frames: int, *notes: str) -> int:
    """`frames` as 4n + 1, said on the node together with `notes`."""
    count = snap_frames(frames)
    changed = "" if count == frames else f"{frames} frames -> "
    tell(
        node, "; ".join((f"{changed}{count} frames, {count / FPS:.2f} s at {FPS} fps", *filter(None, notes)))
    )
    return count


def reference(video: EncodedVideo) -> tuple[Tensor, str]:
    """The reference picture `[1, 48, 1, h, w]`, and a note if it is the first frame of a video."""
    note = f"of {video.frames} frames the first is the reference" if video.frames > 1 else ""
    return video.latent[:, :, :1], note


def _texts() -> list:
    return [
        io.Conditioning.Input("positive", tooltip="The caption: how the scene looks (CLIP Text Encode)."),
        io.Conditioning.Input("negative", tooltip="An empty caption (CLIP Text Encode without text)."),
        SpeechSocket.Input("speech", tooltip="What is said, from UniAVGen Speech Encode."),
    ]


def _frames(tooltip: str) -> io.Input:
    return io.Int.Input("frames", default=81, min=5, max=MAX_FRAMES, step=4, tooltip=tooltip)


def _voice(optional: bool) -> io.Input:
    return MelSocket.Input(
        "reference_voice",
        optional=optional,
        tooltip="A clip of the voice to speak in, 3 to 10 s; its words go into transcript of UniAVGen Speech "
        "Encode. Every second adds 100 audio tokens.",
    )


LENGTH = "Length in frames at 16 fps, 4n + 1; 81 is 5 s. Time grows a little faster than the length."


def _schema(node_id: str, name: str, description: str, inputs: list) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=name,
        category=f"{CATEGORY}/tasks",
        description=description,
        inputs=[*_texts(), *inputs],
        outputs=[
            io.Conditioning.Output(display_name="positive", tooltip="Caption, words and references."),
            io.Conditioning.Output(display_name="negative", tooltip="The null of caption and words."),
            io.Latent.Output(
                display_name="latent",
                tooltip="Video and audio in one, with a noise mask over what is known; for any sampler.",
            ),
        ],
        hidden=[io.Hidden.unique_id],
    )


class Joint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenJoint",
            "UniAVGen Joint",
            "Sound and picture together: the person of the picture says the words in a voice that fits.",
            [
                VideoSocket.Input("video", tooltip="The reference picture; it opens the clip."),
                _frames(LENGTH),
            ],
        )

    @classmethod
    def execute(
        cls, positive: list, negative: list, speech: EncodedSpeech, video: EncodedVideo, frames: int
    ) -> io.NodeOutput:
        image, note = reference(video)
        count = snapped(cls, frames, note)
        task = conditioning.joint(image, latent_frames(count), mel_frames(count))
        return conditioned(task, "joint", positive, negative, speech)


class ReferenceVoice(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenReferenceVoice",
            "UniAVGen Reference Voice",
            "As Joint, spoken in the voice of a clip.",
            [
                VideoSocket.Input("video", tooltip="The reference picture; it opens the clip."),
                _voice(optional=False),
                _frames(LENGTH),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        speech: EncodedSpeech,
        video: EncodedVideo,
        reference_voice: EncodedSound,
        frames: int,
    ) -> io.NodeOutput:
        image, note = reference(video)
        count = snapped(cls, frames, note)
        task = conditioning.reference_voice(
            image, reference_voice.voice(), latent_frames(count), mel_frames(count)
        )
        return conditioned(task, "reference-voice", positive, negative, speech)


class Continuation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenContinuation",
            "UniAVGen Continuation",
            "Goes on from a video and its sound; the given part comes back unchanged.",
            [
                VideoSocket.Input("video", tooltip="The beginning, encoded with its frame rate."),
                MelSocket.Input("mel", tooltip="The sound of the beginning, as long as its picture."),
                _frames("Length of the whole clip, the beginning included, 4n + 1 frames at 16 fps."),
                _voice(optional=True),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        speech: EncodedSpeech,
        video: EncodedVideo,
        mel: EncodedSound,
        frames: int,
        reference_voice: EncodedSound | None = None,
    ) -> io.NodeOutput:
        if video.frames == 1:
            raise UserError(
                "video is one picture, expected the frames of a video; use UniAVGen Joint for a picture"
            )
        if frames <= video.frames:
            raise UserError(
                f"frames is {frames} but the beginning already has {video.frames}; make frames larger, such "
                f"as {video.frames + 40}, or shorten the video"
            )
        known, wanted = mel.latent(), mel_frames(video.frames)
        if known.shape[1] < wanted - LATENT_FRAME_MELS:
            raise UserError(
                f"mel lasts {known.shape[1] / MELS_PER_SECOND:.2f} s but video "
                f"{wanted / MELS_PER_SECOND:.2f} s; give the sound of the same clip"
            )
        cut = f"the sound is cut from {known.shape[1]} to {wanted} mel frames, the length of the video"
        count = snapped(cls, frames, cut if known.shape[1] > wanted else "")
        voice = None if reference_voice is None else reference_voice.voice()
        task = conditioning.continuation(
            video.latent, known[:, :wanted], latent_frames(count), mel_frames(count), voice
        )
        return conditioned(task, "continuation", positive, negative, speech)


class Dubbing(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenDubbing",
            "UniAVGen Dubbing",
            "A voice for a finished video: the picture comes back unchanged, the sound fits the lips.",
            [
                VideoSocket.Input("video", tooltip="The whole video, encoded with its frame rate."),
                _voice(optional=True),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        speech: EncodedSpeech,
        video: EncodedVideo,
        reference_voice: EncodedSound | None = None,
    ) -> io.NodeOutput:
        if video.frames == 1:
            raise UserError("video is one picture, expected the frames of the video that is to be dubbed")
        voice = None if reference_voice is None else reference_voice.voice()
        task = conditioning.dubbing(video.latent, mel_frames(video.frames), voice)
        snapped(cls, video.frames)
        return conditioned(task, "dubbing", positive, negative, speech)


class AudioDriven(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenAudioDriven",
            "UniAVGen Audio-Driven",
            "A face for finished speech: the person of the picture speaks it, the sound comes back unchanged "
            "but for its loudness. The clip is as long as the sound.",
            [
                VideoSocket.Input("video", tooltip="The reference picture; it opens the clip."),
                MelSocket.Input("mel", tooltip="The speech; its words go into UniAVGen Speech Encode."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        speech: EncodedSpeech,
        video: EncodedVideo,
        mel: EncodedSound,
    ) -> io.NodeOutput:
        image, note = reference(video)
        known = mel.driving()
        count = conditioning.frames_for_mels(known.shape[1])
        if count < 5:
            raise UserError(
                f"mel lasts {known.shape[1] / MELS_PER_SECOND:.2f} s, expected at least 0.32 s (5 frames); "
                "use a longer clip"
            )
        kept = mel_frames(count)
        cut = f"the sound is cut from {known.shape[1]} to {kept} mel frames"
        snapped(cls, count, note, cut if known.shape[1] > kept else "")
        task = conditioning.audio_driven(image, known[:, :kept], latent_frames(count))
        return conditioned(task, "audio-driven", positive, negative, speech)


NODES = [Joint, ReferenceVoice, Continuation, Dubbing, AudioDriven]
