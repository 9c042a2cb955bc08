"""The modes as nodes: what is conditioned goes into the noise mask, references into CONDITIONING.

Each node is its inputs alone; what a mode does with them stands in the core (`modes`, `conditioning.plan`).
"""

from __future__ import annotations

import node_helpers
from comfy_api.latest import io

from ..uniavgen_core.conditioning import EDITS, FPS, MAX_FRAMES, MODES, Edit, Task, plan, snap_frames
from ..uniavgen_core.duration import too_long
from ..uniavgen_core.errors import UserError
from ..uniavgen_core.sampling.takes import MAX_TAKES
from .types import (
    CATEGORY,
    UNSAMPLED,
    EncodedSpeech,
    EncodedVideo,
    JointLatent,
    MelSocket,
    PreparedAudio,
    SpeechSocket,
    VideoSocket,
    tell,
)

FOREIGN = {"area": "ConditioningSetArea", "mask": "ConditioningSetMask", "control": "Apply ControlNet"}


def conditioned(
    task: Task, mode: str, positive: list, negative: list, speech: EncodedSpeech, takes: int = 1
) -> io.NodeOutput:
    """positive, negative and LATENT of a task, a batch of so many takes; raw video and normalised mel."""
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
    generate_video = (~task.conditioned_video).float().view(1, 1, -1, 1, 1).expand(1, 1, *video.shape[2:])
    generate_audio = (~task.conditioned_audio).float().view(1, 1, -1)
    samples = JointLatent([x.repeat(takes, *[1] * (x.ndim - 1)) for x in (video, audio)])
    latent = {
        "samples": samples,
        "noise_mask": JointLatent((generate_video.contiguous(), generate_audio)),
        UNSAMPLED: samples,
    }
    return io.NodeOutput(
        node_helpers.conditioning_set_values(positive, full),
        node_helpers.conditioning_set_values(negative, null),
        latent,
    )


def prepared(
    node: type[io.ComfyNode],
    mode: str,
    positive: list,
    negative: list,
    speech: EncodedSpeech,
    video: EncodedVideo,
    mel: PreparedAudio | None = None,
    reference_voice: PreparedAudio | None = None,
    reference_image: EncodedVideo | None = None,
    frames: int | None = None,
    takes: int | None = 1,
    **options,
) -> io.NodeOutput:
    """What every node of this file gives; says on the node what was made of its inputs.

    `options`: others of `conditioning.plan`.
    """
    takes_video = MODES[mode].takes_video
    if takes_video and video.frames == 1:
        raise UserError("video is one image, expected the frames of a video; use UniAVGen Joint for an image")
    length = None if frames is None else snap_frames(frames)
    planned = plan(
        mode,
        length,
        given_frames=video.frames,
        audio=None if mel is None else mel.waveform,
        voice=None if reference_voice is None else reference_voice.waveform,
        **options,
    )
    if reference_image is not None and reference_image.latent.shape[3:] != video.latent.shape[3:]:
        sizes = (f"{16 * x.latent.shape[4]}x{16 * x.latent.shape[3]}" for x in (reference_image, video))
        raise UserError(
            "reference_image is {} but video {} pixels; crop the image to the shape of the video".format(
                *sizes
            )
        )
    task = planned.task(
        video.latent,
        reference_image=None if reference_image is None else reference_image.latent[:, :, :1],
    )
    changed = f"{frames} frames -> " if length != frames else ""
    notes = [f"{changed}{planned.frames} frames, {planned.frames / FPS:.2f} s at {FPS} fps", *planned.notes]
    if not takes_video and video.frames > 1:
        notes.append(f"of {video.frames} frames the first is the reference")
    rushed = too_long(speech.text, planned.frames, fixed=MODES[mode].length != "frames")
    notes += [rushed] if rushed else []
    if takes and takes > 1:
        notes.append(f"{takes} takes")
    tell(node, "; ".join(notes))
    return conditioned(task, mode, positive, negative, speech, takes or 1)


def _texts() -> list:
    return [
        io.Conditioning.Input("positive", tooltip="The caption: how the scene looks (CLIP Text Encode)."),
        io.Conditioning.Input(
            "negative", tooltip="An empty caption (CLIP Text Encode without text), or what is not wanted."
        ),
        SpeechSocket.Input("speech", tooltip="What is said, from UniAVGen Speech Encode."),
    ]


def _frames(tooltip: str) -> io.Input:
    return io.Int.Input("frames", default=81, min=5, max=MAX_FRAMES, step=4, tooltip=tooltip)


def _seconds(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=MAX_FRAMES / FPS, step=0.01, round=0.001, tooltip=tooltip
    )


def _voice(optional: bool) -> io.Input:
    return MelSocket.Input(
        "reference_voice",
        optional=optional,
        tooltip="A clip of the voice to speak in, 3 to 10 s; its words go into transcript of UniAVGen Speech "
        "Encode. Every second adds 100 audio tokens.",
    )


def _takes() -> io.Input:
    return io.Int.Input(
        "takes",
        default=1,
        min=1,
        max=MAX_TAKES,
        optional=True,
        tooltip="How many clips to make of these inputs, each with noise of its own: take k is the clip that "
        "seed + k - 1 makes alone. Time grows with the number.",
    )


LENGTH = "Length in frames at 16 fps, 4n + 1; 81 is 5 s. Time grows a little faster than the length."


ALIASES = {
    "UniAVGenJoint": ["joint", "image to video", "talking head", "avatar", "lip sync"],
    "UniAVGenReferenceVoice": ["voice clone", "voice cloning", "tts voice", "speaker"],
    "UniAVGenContinuation": ["extend video", "video extension", "longer", "continue"],
    "UniAVGenDubbing": ["dub", "video to audio", "voice over", "foley"],
    "UniAVGenAudioDriven": ["audio driven", "speech to video", "s2v", "audio to video", "talking head"],
    "UniAVGenEdit": ["edit", "inpaint video", "replace words", "redo", "retake"],
}


def _schema(node_id: str, name: str, description: str, inputs: list) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=name,
        search_aliases=ALIASES[node_id],
        category=f"{CATEGORY}/tasks",
        description=description,
        inputs=[*_texts(), *inputs, _takes()],
        outputs=[
            io.Conditioning.Output(display_name="positive", tooltip="Caption, text and references."),
            io.Conditioning.Output(display_name="negative", tooltip="The null of caption and text."),
            io.Latent.Output(
                display_name="latent",
                tooltip="Video and audio in one, with a noise mask over what is conditioned; for any "
                "sampler.",
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
            "Generates video and audio jointly: the person in the image says the text in a voice that fits.",
            [
                VideoSocket.Input("video", tooltip="The reference image; it opens the clip."),
                _frames(LENGTH),
            ],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return prepared(cls, "joint", **inputs)


class ReferenceVoice(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenReferenceVoice",
            "UniAVGen Reference Voice",
            "As Joint, spoken in the voice of a clip.",
            [
                VideoSocket.Input("video", tooltip="The reference image; it opens the clip."),
                _voice(optional=False),
                _frames(LENGTH),
            ],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return prepared(cls, "reference-voice", **inputs)


class Continuation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenContinuation",
            "UniAVGen Continuation",
            "Continues a video and its audio; the given part comes back unchanged.",
            [
                VideoSocket.Input("video", tooltip="The beginning, encoded with its frame rate."),
                MelSocket.Input("mel", tooltip="The audio of the beginning, as long as its video."),
                _frames("Length of the whole clip, the beginning included, 4n + 1 frames at 16 fps."),
                _voice(optional=True),
            ],
        )

    @classmethod
    def execute(cls, video: EncodedVideo, **inputs) -> io.NodeOutput:
        return prepared(cls, "continuation", video=video, prefix_frames=video.frames, **inputs)


class Dubbing(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenDubbing",
            "UniAVGen Dubbing",
            "Generates speech for a finished video: the video comes back unchanged, the speech fits the "
            "lips.",
            [
                VideoSocket.Input("video", tooltip="The whole video, encoded with its frame rate."),
                _voice(optional=True),
                VideoSocket.Input(
                    "reference_image",
                    optional=True,
                    tooltip="An image of the person, in the shape of the video; without one it is the first "
                    "frame.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return prepared(cls, "dubbing", **inputs)


class AudioDriven(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenAudioDriven",
            "UniAVGen Audio-Driven",
            "Generates a video for recorded speech: the person in the image speaks it, the audio comes back "
            "unchanged but for its loudness. The clip takes the next 4n + 1 frames above the length of the "
            "audio.",
            [
                VideoSocket.Input("video", tooltip="The reference image; it opens the clip."),
                MelSocket.Input("mel", tooltip="The speech; its words go into UniAVGen Speech Encode."),
            ],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        return prepared(cls, "audio-driven", **inputs)


class EditRange(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "UniAVGenEdit",
            "UniAVGen Edit",
            "Generates a time range of a clip anew, in video, audio or both, with a new text; everything "
            "outside "
            "the range comes back unchanged.",
            [
                VideoSocket.Input("video", tooltip="The whole clip, encoded with its frame rate."),
                MelSocket.Input("mel", tooltip="The audio of the whole clip."),
                _seconds("start", 0.5, "Where the range begins, in seconds."),
                _seconds(
                    "end", 1.5, "Where it ends. Audio is made anew to 10 ms, video in groups of 4 frames."
                ),
                io.Combo.Input(
                    "edit",
                    options=list(EDITS),
                    default=EDITS[0],
                    tooltip="What is made anew in the range: both, or one of them to fit the other.",
                ),
            ],
        )

    @classmethod
    def execute(cls, start: float, end: float, edit: str, **inputs) -> io.NodeOutput:
        return prepared(cls, "edit", edit=Edit(start, end, edit), **inputs)


NODES = [Joint, ReferenceVoice, Continuation, Dubbing, AudioDriven, EditRange]
