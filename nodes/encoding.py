"""Images, video, audio and text as the model takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import Input, io
from torch import Tensor

from ..uniavgen_core import embedded
from ..uniavgen_core.conditioning import FPS, snap_frames
from ..uniavgen_core.duration import frames_for_text
from ..uniavgen_core.errors import UserError
from ..uniavgen_core.media.files import MAX_ASPECT, MAX_FPS, MIN_SIDE, fit_image, resample_frames, size_for
from ..uniavgen_core.media.mel import SAMPLE_RATE, log_mel, prepare_audio
from ..uniavgen_core.media.speech import LANGUAGES, null_symbol_ids, symbol_ids, unknown_symbols
from ..uniavgen_core.media.vae import LATENT_CHANNELS
from .types import (
    CATEGORY,
    EncodedSpeech,
    EncodedVideo,
    MelSocket,
    PreparedAudio,
    SpeechEncoderSocket,
    SpeechSocket,
    VideoSocket,
    tell,
)


def pictures_uint8(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE `[F, H, W, 1, 3 or 4]` in 0..1 -> uint8 `[F, H, W, 3]`, transparent parts on white."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or not len(image):
        raise UserError(f"{name} is {list(image.shape)}, expected [frames, height, width, 3]; use an IMAGE")
    if not image.isfinite().all():
        raise UserError(f"{name} has pixels that are not numbers; use an undamaged image")
    height, width = image.shape[1:3]
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise UserError(
            f"{name} is {width}x{height}, expected at least {MIN_SIDE} pixels a side and at most "
            f"{MAX_ASPECT}:1; crop or enlarge it"
        )
    rgb = image[..., :3] if image.shape[-1] > 1 else image.expand(-1, -1, -1, 3)
    if image.shape[-1] == 4:
        rgb = 1 + image[..., 3:] * (rgb - 1)
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def check_video_latent(shape: torch.Size) -> None:
    """Raises UserError unless it is what the VAE decodes."""
    if len(shape) != 5 or shape[1] != LATENT_CHANNELS:
        raise UserError(
            f"samples is {list(shape)}, expected video [B, {LATENT_CHANNELS}, T, h, w]; connect the video "
            "output of UniAVGen Split Video and Audio, and its audio output to UniAVGen Audio Decode"
        )


class CheckedMemory:
    """A VAE's estimate of its memory, which the host asks for before it decodes; checks the latent first."""

    def __init__(self, memory: Callable[[torch.Size, torch.dtype], float]):
        self.memory = memory

    def __call__(self, shape: torch.Size, dtype: torch.dtype) -> float:
        check_video_latent(shape)
        return self.memory(shape, dtype)


def checked_vae(vae: Any) -> Any:
    """The host's VAE of Wan2.2, made to say what is wrong when it gets the audio of a joint latent to decode.

    Left alone it gives an IndexError.

    Raises:
        UserError: another VAE.
    """
    vae.throw_exception_if_invalid()
    if vae.latent_channels != LATENT_CHANNELS:
        raise UserError(
            f"vae has {vae.latent_channels} latent channels, expected {LATENT_CHANNELS} (Wan2.2); load "
            "wan2.2_vae.safetensors"
        )
    memory = getattr(vae, "memory_used_decode", None)
    if memory is not None and not isinstance(memory, CheckedMemory):
        vae.memory_used_decode = CheckedMemory(memory)
    return vae


class VideoEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenVideoEncode",
            display_name="UniAVGen Video Encode",
            search_aliases=["vae encode", "encode image", "reference image", "image to latent"],
            category=CATEGORY,
            description="Encodes an image of the person, or the frames of a video to continue, dub or edit. "
            "Size, frame rate and length are made to fit, and the node says how.",
            inputs=[
                io.Vae.Input(
                    "vae", tooltip="The Wan2.2 VAE (wan2.2_vae.safetensors), or the embedded model's."
                ),
                io.MultiType.Input(
                    "image",
                    [io.Image, io.Video],
                    tooltip="One image: the reference. Five frames or more, or a VIDEO: a video, whose first "
                    "frame is the reference. It is resized to sides of a multiple of 32 pixels, cutting "
                    "edges evenly.",
                ),
                io.Int.Input(
                    "short_side",
                    default=736,
                    min=32,
                    max=2048,
                    step=32,
                    tooltip="Pixels of the shorter side, a multiple of 32; the longer keeps the ratio. 736 "
                    "is what the model was trained at; half of it costs about a fifth of the time.",
                ),
                io.Float.Input(
                    "fps",
                    default=float(FPS),
                    min=1.0,
                    max=float(MAX_FPS),
                    step=0.01,
                    tooltip="Frame rate of the frames that come in (fps of Get Video Components); they are "
                    "resampled to 16. Not used for a single image and for a VIDEO, which has its own.",
                ),
            ],
            outputs=[
                VideoSocket.Output(display_name="encoded video", tooltip="For the UniAVGen task nodes."),
                io.Image.Output(
                    display_name="seen",
                    tooltip="The frames after resizing and resampling, as they are encoded.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, short_side: int | None) -> bool | str:
        if short_side is None or (32 <= short_side <= 2048 and short_side % 32 == 0):
            return True
        nearest = min(max(round(short_side / 32), 1), 64) * 32
        return f"short_side is {short_side}, expected a multiple of 32 from 32 to 2048; try {nearest}"

    @classmethod
    def execute(cls, vae, image: Any, short_side: int, fps: float) -> io.NodeOutput:
        vae = checked_vae(vae)
        if isinstance(image, Input.Video):
            components = image.get_components()
            image, fps = components.images, float(components.frame_rate)
        frames = pictures_uint8(image)
        given = f"{image.shape[2]}x{image.shape[1]}"
        if len(frames) > 1:
            count = len(frames)
            if fps != FPS:
                frames = resample_frames(frames, fps)
            frames = frames[: snap_frames(len(frames))]
            if len(frames) < 5:
                raise UserError(
                    f"image is {count} frames at {fps:g} fps, expected one picture or at least 5 frames at "
                    f"{FPS} fps; give one picture, or a longer video"
                )
            given += f", {count} frames at {fps:g} fps"
        width, height = size_for(image.shape[2], image.shape[1], short_side)
        frames = fit_image(frames, width, height)
        used = f"{width}x{height}" + (f", {len(frames)} frames at {FPS} fps" if len(image) > 1 else "")
        tell(cls, f"{given} -> {used}" if given != used else used)
        seen = frames.float() / 255
        latent = vae.encode(seen)
        if latent.ndim != 5:
            raise UserError(
                f"vae made a latent {list(latent.shape)}, expected a video latent; load the Wan2.2 VAE"
            )
        return io.NodeOutput(EncodedVideo(latent.float()), seen)


class MelEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenMelEncode",
            display_name="UniAVGen Audio Encode",
            search_aliases=["mel encode", "encode audio", "encode voice", "spectrogram"],
            category=CATEGORY,
            description="Prepares audio: a reference voice, the audio of a video, or the speech that drives "
            "a face. Loudness and trailing silence are set by the task node, as each task needs it.",
            inputs=[
                io.MultiType.Input(
                    "audio",
                    [io.Audio, io.Video],
                    tooltip="A recording, or a VIDEO for its audio. Any rate and any channels; it is made "
                    "mono and resampled to 24 kHz. 100 mel frames a second.",
                ),
            ],
            outputs=[MelSocket.Output(display_name="mel", tooltip="For the UniAVGen task nodes.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, audio: Any) -> io.NodeOutput:
        if isinstance(audio, Input.Video):
            sound = audio.get_components().audio
            if sound is None:
                raise UserError("audio is a video without sound; connect one with sound, or a recording")
            audio = dict(sound)
        waveform = audio["waveform"]
        if waveform.ndim != 3 or not len(waveform):
            raise UserError(f"audio is {list(waveform.shape)}, expected [1, channels, samples]; use an AUDIO")
        prepared = PreparedAudio(prepare_audio(waveform[0], audio["sample_rate"]))
        mels = log_mel(prepared.waveform).shape[-1]
        first = f", the first of {len(waveform)} clips" if len(waveform) > 1 else ""
        tell(cls, f"{len(prepared.waveform) / SAMPLE_RATE:.2f} s, {mels} mel frames{first}")
        return io.NodeOutput(prepared)


def encode_speech(
    speech_encoder, text: str, language: str, transcript: str
) -> tuple[EncodedSpeech, list[str]]:
    """Features of a text, behind the transcript of a reference voice, and of its null; notes for the user."""
    written, notes = text, []
    unknown = unknown_symbols(text + transcript, language)
    if unknown:
        notes.append(
            f"the model cannot say {' '.join(unknown)} and leaves a gap; write it in other characters"
        )
    if speech_encoder.puppet:
        notes += embedded.warnings(text)
        if language == "en":
            text, transcript = embedded.plain(text), embedded.plain(transcript)
    ids = symbol_ids(text, language, transcript)
    null = null_symbol_ids(language, transcript)
    features, null_features = speech_encoder(ids), speech_encoder(null)
    return EncodedSpeech(features, null_features, bool(transcript), written, language), notes


class SpeechEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenSpeechEncode",
            display_name="UniAVGen Speech Encode",
            search_aliases=["text to speech", "tts", "words", "dialogue", "script", "transcript"],
            category=CATEGORY,
            description="Encodes the words to say. How the scene looks belongs into the caption instead.",
            inputs=[
                SpeechEncoderSocket.Input("speech_encoder", tooltip="From the loader of the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder="what the person says",
                    tooltip="The words to say. About 15 characters of English or 4 of Chinese fit a second.",
                ),
                io.Combo.Input(
                    "language",
                    options=list(LANGUAGES),
                    default="en",
                    tooltip="en: letters as they stand. zh: Chinese, also mixed with English words.",
                ),
                io.String.Input(
                    "transcript",
                    multiline=True,
                    default="",
                    optional=True,
                    placeholder="what the reference voice says",
                    tooltip="The exact words of the reference voice, where the task has one; else empty.",
                ),
            ],
            outputs=[SpeechSocket.Output(display_name="speech", tooltip="For the UniAVGen task nodes.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, text: str | None) -> bool | str:
        return True if text is None or text.strip() else "text is empty; write what the person says"

    @classmethod
    def execute(cls, speech_encoder, text: str, language: str, transcript: str = "") -> io.NodeOutput:
        speech, notes = encode_speech(speech_encoder, text, language, transcript.strip())
        if notes:
            tell(cls, "; ".join(notes))
        return io.NodeOutput(speech)


class TextDuration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenTextDuration",
            display_name="UniAVGen Duration From Text",
            search_aliases=["length from text", "frames from text", "speech duration", "auto length"],
            category=CATEGORY,
            description="How long the clip must be so that the words can be said at an easy pace. Connect "
            "frames to the task node, and write the words in one String node for both.",
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder="what the person says",
                    tooltip="The words to say: 15 letters of English or 4 characters of Chinese take a "
                    "second, and half a second is added.",
                ),
            ],
            outputs=[
                io.Int.Output(
                    display_name="frames", tooltip="Frames at 16 fps, 4n + 1, for a task node's frames."
                ),
                io.Float.Output(display_name="seconds", tooltip="The same in seconds."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, text: str | None) -> bool | str:
        return True if text is None or text.strip() else "text is empty; write what the person says"

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        if not text.strip():
            raise UserError("text is empty; write what the person says")
        frames = frames_for_text(text)
        tell(cls, f"{frames} frames, {frames / FPS:.2f} s at {FPS} fps")
        return io.NodeOutput(frames, frames / FPS)


NODES = [VideoEncode, MelEncode, SpeechEncode, TextDuration]
