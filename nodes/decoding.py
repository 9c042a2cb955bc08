"""The joint latent taken apart; its audio decoded."""

from __future__ import annotations

from comfy_api.latest import io

from ..uniavgen_core.errors import UserError
from ..uniavgen_core.media.mel import MEL_BANDS, latent_to_mel
from .types import CATEGORY, UNSAMPLED, VocoderSocket


def check_sampled(latent: dict) -> None:
    """Raises UserError for the LATENT of a task node as it came from there."""
    if latent.get(UNSAMPLED) is latent["samples"]:
        raise UserError(
            "latent is as the task node gave it, nothing was generated; connect UniAVGen Sampler between the "
            "task node and this one, or switch its bypass off"
        )


class Split(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenSplit",
            display_name="UniAVGen Split Video and Audio",
            search_aliases=["separate audio video", "unpack latent", "split av latent"],
            category=CATEGORY,
            description="Takes the joint latent apart into its video and its audio.",
            inputs=[io.Latent.Input("latent", tooltip="From UniAVGen Sampler or Sampler Custom Advanced.")],
            outputs=[
                io.Latent.Output(display_name="video latent", tooltip="For VAE Decode (the Wan2.2 VAE)."),
                io.Latent.Output(display_name="audio latent", tooltip="For UniAVGen Audio Decode."),
            ],
        )

    @classmethod
    def execute(cls, latent: dict) -> io.NodeOutput:
        check_sampled(latent)
        samples = latent["samples"]
        streams = samples.unbind() if samples.is_nested else [samples]
        if (
            len(streams) != 2
            or streams[0].ndim != 5
            or streams[1].ndim != 3
            or streams[1].shape[1] != MEL_BANDS
        ):
            found = ", ".join(str(list(x.shape)) for x in streams)
            raise UserError(
                f"latent is {found}, expected video [B, 48, T, h, w] and audio [B, {MEL_BANDS}, L] in one; "
                "take it from UniAVGen Sampler, or Sampler Custom Advanced on a UniAVGen latent"
            )
        return io.NodeOutput({"samples": streams[0]}, {"samples": streams[1]})


class VocoderDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenVocoderDecode",
            display_name="UniAVGen Audio Decode",
            search_aliases=["vocoder", "decode audio", "latent to audio", "mel to audio"],
            category=CATEGORY,
            description="Decodes the audio latent to mono audio at 24 kHz.",
            inputs=[
                VocoderSocket.Input("vocoder", tooltip="From UniAVGen Load Vocoder or the embedded model."),
                io.Latent.Input("audio", tooltip="The audio output of UniAVGen Split Video and Audio."),
            ],
            outputs=[io.Audio.Output(tooltip="For UniAVGen Join Video and Audio or Save Audio.")],
        )

    @classmethod
    def execute(cls, vocoder, audio: dict) -> io.NodeOutput:
        latent = audio["samples"]
        if latent.is_nested or latent.ndim != 3 or latent.shape[1] != MEL_BANDS:
            found = "a joint latent" if latent.is_nested else str(list(latent.shape))
            raise UserError(
                f"audio is {found}, expected [B, {MEL_BANDS}, L]; connect the audio output of UniAVGen Split "
                "Video and Audio"
            )
        waveform = vocoder(latent_to_mel(latent.transpose(1, 2)))  # [B, 240 L]
        return io.NodeOutput({"waveform": waveform[:, None], "sample_rate": vocoder.sample_rate})


NODES = [Split, VocoderDecode]
