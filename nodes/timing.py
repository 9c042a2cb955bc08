"""A clip's timing to look at."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..uniavgen_core.conditioning import FPS, frame_mask
from ..uniavgen_core.errors import UserError
from ..uniavgen_core.media.mel import MEL_BANDS, prepare_audio
from ..uniavgen_core.media.timing import rough_timing, timing_strip
from .encoding import pictures_uint8
from .host_model import TASK_NODES
from .types import CATEGORY, EncodedSpeech, SpeechSocket


class Timing(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenTiming",
            display_name="UniAVGen Timing",
            search_aliases=["timeline", "waveform", "known frames", "word timing", "inspect latent", "strip"],
            category=CATEGORY,
            description="One picture of a clip over time: frames with the face mask, what is known and what "
            "is generated, roughly when each word falls, the waveform.",
            is_output_node=True,
            inputs=[
                io.Latent.Input("latent", tooltip="From a task node or the sampler: what is known of it."),
                io.Audio.Input("audio", optional=True, tooltip="The decoded audio, for waveform and words."),
                SpeechSocket.Input(
                    "speech",
                    optional=True,
                    tooltip="The words, from UniAVGen Speech Encode. Their times are rough: the voiced time "
                    "is shared out by their letters, nothing listens to them.",
                ),
                io.Image.Input("images", optional=True, tooltip="The decoded frames, to be shown small."),
                io.Mask.Input("mask", optional=True, tooltip="The mask of UniAVGen Face Mask."),
                io.Int.Input(
                    "width", default=1280, min=320, max=8192, step=16, tooltip="Pixels of the picture."
                ),
            ],
            outputs=[io.Image.Output(tooltip="The picture, for Save Image.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        latent: dict,
        width: int,
        audio: dict | None = None,
        speech: EncodedSpeech | None = None,
        images: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        video, sound = _known(latent)
        seconds, waveform = len(video) / FPS, None
        if audio is not None:
            wave = audio["waveform"]
            if wave.ndim != 3 or not len(wave):
                raise UserError(f"audio is {list(wave.shape)}, expected [1, channels, samples]; use an AUDIO")
            waveform = prepare_audio(wave[0], audio["sample_rate"])
        frames = None if images is None else pictures_uint8(images, "images")[: len(video)]
        if mask is not None and (mask.ndim != 3 or not mask.numel()):
            raise UserError(f"mask is {list(mask.shape)}, expected [frames, height, width]; use a MASK")
        words = rough_timing(speech.text, speech.language, seconds, waveform) if speech else None
        strip = timing_strip(
            video,
            sound,
            words=words,
            waveform=waveform,
            frames=frames,
            mask=None if mask is None else mask.cpu().clamp(0, 1)[: len(video)],
            width=width,
        )
        picture = strip[None].float() / 255
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


def _known(latent: dict) -> tuple[Tensor, Tensor]:
    """What is known of a joint latent: bool by video frame and by mel frame, on the CPU."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    streams = samples.unbind() if samples.is_nested else [samples]
    if (
        len(streams) != 2
        or (streams[0].ndim, streams[1].ndim) != (5, 3)
        or streams[1].shape[1] != MEL_BANDS
        or 0 in (*streams[0].shape, *streams[1].shape)
    ):
        found = ", ".join(str(list(x.shape)) for x in streams)
        raise UserError(
            f"latent is {found}, expected a joint latent of video and audio; take it from {TASK_NODES} or "
            "from the sampler behind it"
        )
    masks = list(mask.unbind()) if mask is not None and mask.is_nested else [None, None]
    known = []
    for drawn, stream in zip(masks, streams):
        places = torch.zeros(stream.shape[2], dtype=torch.bool)
        if drawn is not None and drawn.ndim == stream.ndim and drawn.shape[2] == stream.shape[2]:
            places = (drawn == 0).transpose(0, 2).flatten(1).all(1).cpu()
        known.append(places)
    return frame_mask(known[0]), known[1]


NODES = [Timing]
