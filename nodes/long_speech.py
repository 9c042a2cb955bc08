"""A script of many sentences as one joint latent, and a latent of any length written to a video file."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.ldm.wan.vae2_2 import WanVAE, count_conv3d, unpatchify
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..uniavgen_core import embedded
from ..uniavgen_core.conditioning import FPS, video_frames, voice_latent
from ..uniavgen_core.errors import UserError, counted
from ..uniavgen_core.long_speech import (
    Part,
    Voice,
    Window,
    decode_audio,
    digest,
    longest_part,
    read_script,
    speak,
)
from ..uniavgen_core.media.files import write_mp4_stream
from ..uniavgen_core.media.mel import SAMPLE_RATE, check_audible, check_voice_length, latent_to_mel
from ..uniavgen_core.media.speech import LANGUAGES
from ..uniavgen_core.sampling.defaults import DEFAULT_PRESET, SamplingDefaults, find_preset
from ..uniavgen_core.sampling.sampler import schedule
from .decoding import Split
from .encoding import encode_speech
from .guiding import (
    MACFGGuider,
    _details,
    _preset,
    _shift,
    _sliders,
    _steps,
    guidance,
    model_shift,
    sample,
    takes_noise,
)
from .tasks import conditioned
from .types import (
    CATEGORY,
    EncodedVideo,
    MelSocket,
    PreparedAudio,
    SpeechEncoderSocket,
    VideoSocket,
    VocoderSocket,
    tell,
)


class Parts(dict[str, Part]):
    """The parts that were made with one MODEL; those of the last run stay, so that an edit finds them."""

    def put(self, key: str, part: Part) -> None:
        self[key] = part

    def keep(self, keys: set[str]) -> None:
        for key in self.keys() - keys:
            del self[key]


class Asked:
    """`Parts` that remember which of them a run used."""

    def __init__(self, parts: Parts):
        self.parts, self.keys = parts, set[str]()

    def get(self, key: str) -> Part | None:
        self.keys.add(key)
        return self.parts.get(key)

    def put(self, key: str, part: Part) -> None:
        self.parts.put(key, part)


MADE: WeakKeyDictionary[ModelPatcher, Parts] = WeakKeyDictionary()


class LongSpeech(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenLongSpeech",
            display_name="UniAVGen Long Speech",
            search_aliases=["script", "long video", "many sentences", "story", "extend", "infinite length"],
            category=CATEGORY,
            description="Generates a clip of any length from a script, one sentence after the other, without "
            "a seam: each continues from the end of the one before. Changing a sentence makes it and what "
            "follows anew, nothing before it.",
            inputs=[
                io.Model.Input("model", tooltip="From UniAVGen Load Model, LoRAs and compile included."),
                SpeechEncoderSocket.Input("speech_encoder", tooltip="From the loader of the model."),
                io.Conditioning.Input(
                    "positive", tooltip="The caption: how the scene looks (CLIP Text Encode)."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="An empty caption (CLIP Text Encode without text), or what is not wanted.",
                ),
                VideoSocket.Input("video", tooltip="The reference image; it opens the clip."),
                io.String.Input(
                    "script",
                    multiline=True,
                    default="",
                    placeholder="one sentence a line",
                    tooltip="One sentence a line; each gets its length from its words. With clip connected a "
                    "line may have a caption of its own: sentence | caption. Lines with # are left out.",
                ),
                io.Combo.Input(
                    "language",
                    options=list(LANGUAGES),
                    default="en",
                    tooltip="en: letters as they stand. zh: Chinese, also mixed with English words.",
                ),
                *_sliders(),
                io.Int.Input(
                    "seed",
                    default=2025,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Another seed makes all sentences anew.",
                ),
                _steps(),
                *_details(),
                _shift(),
                MelSocket.Input(
                    "reference_voice",
                    optional=True,
                    tooltip="A clip of the voice to speak in, 3 to 10 s; without one that of the first "
                    "sentence is kept.",
                ),
                io.String.Input(
                    "transcript",
                    multiline=True,
                    default="",
                    optional=True,
                    placeholder="what the reference voice says",
                    tooltip="The exact words of the reference voice, if there is one; else empty.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="For lines with a caption of their own."),
                _preset(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Video and audio of all sentences in one, for UniAVGen Decode to Video File.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, script: str | None) -> bool | str:
        return True if script is None or script.strip() else "script is empty; write one sentence a line"

    @classmethod
    def execute(
        cls,
        model,
        speech_encoder,
        positive,
        negative,
        video: EncodedVideo,
        script: str,
        language: str,
        s_v: float,
        s_a: float,
        seed: int,
        steps: int,
        interval: float,
        skip_layer: int,
        shift: float,
        reference_voice: PreparedAudio | None = None,
        transcript: str = "",
        clip=None,
        preset: str = DEFAULT_PRESET,
    ) -> io.NodeOutput:
        defaults = embedded.settings() if speech_encoder.puppet else SamplingDefaults()
        longest, transcript = longest_part(defaults), transcript.strip()
        lines = read_script(script, longest)
        if clip is None and any(line.caption for line in lines):
            raise UserError("a line of the script has a caption; connect clip, or leave out the |")
        voice = _voice(reference_voice, transcript)
        scales = guidance(s_v, s_a, interval, skip_layer)
        chosen = find_preset(preset)
        sigmas = schedule(chosen.steps(steps), model_shift(model, shift)) / 1000
        image, notes = video.latent[:, :, :1], []

        def make(window: Window) -> tuple[Tensor, Tensor]:
            speech, said = encode_speech(speech_encoder, window.text, language, window.transcript)
            notes.extend(said)
            seen = positive
            if window.caption and clip is not None:
                seen = clip.encode_from_tokens_scheduled(clip.tokenize(window.caption))
            task = window.plan.task(window.video, reference_image=image)
            prepared = conditioned(task, window.plan.mode, seen, negative, speech).args
            guider = MACFGGuider(model, scales, savings=chosen.savings)
            guider.set_conds(prepared[0], prepared[1])
            plain = takes_noise(prepared[2]["samples"], window.seed).unbind()
            noise = NestedTensor((plain[0], window.voiced(plain[1].transpose(1, 2)).transpose(1, 2)))
            streams = sample(guider, prepared[2], sigmas, window.seed, noise)["samples"].unbind()
            return streams[0], streams[1].transpose(1, 2)

        def on_part(index: int, count: int, known: bool) -> None:
            if not known:
                tell(cls, f"sentence {index + 1} of {count}")

        given = digest(
            *_contents(positive),
            *_contents(negative),
            image,
            None if reference_voice is None else reference_voice.waveform,
            transcript,
            language,
            scales,
            chosen.savings,
            sigmas,
            id(speech_encoder),
            id(clip),
        )
        known = MADE.setdefault(model, Parts())
        asked, before = Asked(known), set(known)
        spoken = speak(
            lines,
            longest,
            seed,
            image,
            make,
            asked,
            given,
            voice,
            defaults.keep_voice,
            defaults.tail,
            on_part,
        )
        parts = list(spoken)
        known.keep(asked.keys)
        whole = torch.cat([part.video for part in parts], 2), torch.cat([part.audio for part in parts], 1)
        frames = video_frames(whole[0].shape[2])
        made = len(asked.keys - before)
        notes = [
            f"{counted(len(lines), 'sentence')}, {frames} frames, {frames / FPS:.2f} s; "
            f"{made} made in this run",
            *dict.fromkeys(notes),
        ]
        tell(cls, "; ".join(notes))
        return io.NodeOutput({"samples": NestedTensor((whole[0], whole[1].transpose(1, 2).contiguous()))})


def _voice(given: PreparedAudio | None, transcript: str) -> Voice | None:
    if (given is None) != (not transcript):
        raise UserError(
            "reference_voice and transcript belong together; connect the voice and write what it says"
        )
    if given is None:
        return None
    check_audible(given.waveform, "the reference voice")
    check_voice_length(given.waveform, "the reference voice")
    return Voice(voice_latent(given.waveform)[None], transcript)


def _contents(conditioning: list) -> Iterator[object]:
    for states, options in conditioning:
        yield states
        yield {name: value for name, value in options.items() if not isinstance(value, Tensor)}
        yield from (value for value in options.values() if isinstance(value, Tensor))


class DecodeToFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenDecodeToFile",
            display_name="UniAVGen Decode to Video File",
            search_aliases=["decode long video", "vae decode", "streaming decode", "save memory"],
            category=CATEGORY,
            description="Decodes a joint latent of any length and writes it to a video file as it goes, in "
            "the memory of a few frames: in place of Split, VAE Decode, Audio Decode and Join.",
            inputs=[
                io.Latent.Input("latent", tooltip="From UniAVGen Long Speech or a UniAVGen sampler."),
                io.Vae.Input("vae", tooltip="The Wan2.2 VAE, or the embedded model's."),
                VocoderSocket.Input("vocoder", tooltip="From UniAVGen Load Vocoder or the embedded model."),
            ],
            outputs=[io.Video.Output(tooltip="16 frames a second with audio, for Save Video.")],
        )

    @classmethod
    def execute(cls, latent: dict, vae, vocoder) -> io.NodeOutput:
        video, audio = (stream["samples"] for stream in Split.execute(latent=latent).args)
        vae.throw_exception_if_invalid()
        if not isinstance(vae.first_stage_model, WanVAE):
            raise UserError("vae is not the Wan2.2 VAE; load wan2.2_vae.safetensors")
        if len(video) > 1:
            raise UserError(
                f"latent holds {len(video)} clips, expected one; use VAE Decode and UniAVGen Join Video and "
                "Audio, which give a video each"
            )
        waveform = decode_audio(
            lambda mel: vocoder(latent_to_mel(mel)).cpu(), audio.transpose(1, 2).contiguous()
        )
        size = 16 * video.shape[4], 16 * video.shape[3]
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"uniavgen_{uuid.uuid4().hex}.mp4"
        count = video_frames(video.shape[2])
        write_mp4_stream(file, decoded(vae, video), count, size, FPS, waveform, SAMPLE_RATE)
        return io.NodeOutput(InputImpl.VideoFromFile(str(file)))


def decoded(vae, latent: Tensor) -> Iterator[Tensor]:
    """uint8 frames `[f, H, W, 3]` of each latent frame of `[1, 48, T, h, w]`: what VAE Decode gives, to
    rounding, one latent frame after the other through the causal decoder."""
    model, bar = vae.first_stage_model, comfy.utils.ProgressBar(latent.shape[2])
    needed = vae.memory_used_decode(latent[:, :, :1].shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed)
    seen = [None] * count_conv3d(model.decoder)
    for i, frame in enumerate(latent.split(1, dim=2)):
        x = model.conv2(frame.to(vae.device, vae.vae_dtype))
        x = unpatchify(model.decoder(x, feat_cache=seen, feat_idx=[0], first_chunk=i == 0), patch_size=2)
        frames = vae.process_output(x.to(torch.float32))[0].movedim(0, -1)
        yield (frames * 255).round().to("cpu", torch.uint8)
        bar.update(1)


NODES = [LongSpeech, DecodeToFile]
