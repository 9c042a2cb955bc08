"""From real files to a finished mp4: the five tasks end to end, without ComfyUI."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from . import conditioning, embedded
from .errors import UserError
from .media import files, mel, speech
from .media.caption import CaptionEncoder, load_caption_encoder
from .media.vae import WanVAE, load_vae
from .media.vocoder import GriffinLim, Vocoder, load_vocoder
from .model.config import Config
from .model.dit import DualBranchDiT
from .model.inputs import TextConditioning
from .sampling.guidance import Guidance
from .sampling.sampler import Sample, Settings, sample, schedule
from .weights.checkpoint import load_model, read_checkpoint
from .weights.release import find_parts

MIN_FRAMES = 5

NEEDS = {
    "joint": {"image"},
    "reference-voice": {"image", "voice", "voice_text"},
    "continuation": {"video"},
    "dubbing": {"video"},
    "audio-driven": {"image", "audio"},
}
ALLOWS = {
    "continuation": {"voice", "voice_text"},
    "dubbing": {"voice", "voice_text"},
}
INPUTS = ("image", "video", "audio", "voice", "voice_text")


@dataclass(frozen=True)
class Weights:
    """Where the four parts are; without a vocoder the sound comes from Griffin-Lim.

    Parts that are not given are looked for in the folder of the model (the release's download holds all).
    Without any path all four are those of the embedded model.
    """

    model: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    vocoder: str | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None

    def __post_init__(self):
        for name, path in find_parts(self.model).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, str(path))

    @property
    def embedded(self) -> bool:
        return not (self.model or self.vae or self.text_encoder or self.vocoder)

    def settings(self) -> Settings:
        """How the model is run unless the request says otherwise."""
        return embedded.settings() if self.embedded else Settings()

    def check(self) -> Config:
        """Everything that can be known about the files without loading them; the model's sizes.

        Raises:
            UserError: the model's file is missing, damaged or another model; a part is missing.
        """
        if self.embedded:
            return embedded.config()
        missing = [name for name in ("model", "vae", "text_encoder") if not getattr(self, name)]
        if missing:
            names = ", ".join("--" + name.replace("_", "-") for name in missing)
            raise UserError(
                f"some weights are given but not {names}; give all three, or none for the embedded model"
            )
        for path in (self.vae, self.text_encoder, self.vocoder):
            if path and not Path(path).exists():
                raise UserError(f"{path}: no such file or folder; check the path")
        return read_checkpoint(self.model).config()

    def load_model(self) -> DualBranchDiT:
        if self.embedded:
            return embedded.load_model(self.device, self.dtype)
        return load_model(self.model, self.device, self.dtype)

    def load_vae(self) -> WanVAE:
        return embedded.load_vae(self.device) if self.embedded else load_vae(self.vae, self.device)

    def load_caption_encoder(self) -> CaptionEncoder:
        if self.embedded:
            return embedded.load_caption_encoder(self.device)
        return load_caption_encoder(self.text_encoder, self.device, self.dtype or torch.bfloat16)

    def load_vocoder(self) -> Vocoder | GriffinLim:
        if self.embedded:
            return embedded.load_vocoder(self.device)
        return load_vocoder(self.vocoder, self.device) if self.vocoder else GriffinLim()


@dataclass(frozen=True)
class Request:
    """One clip to make. Paths are files; which of them a mode needs is in `NEEDS` and `ALLOWS`.

    `text`: what is said in the whole clip; `voice_text`: the transcript of `voice`.
    `frames` (4n + 1 at 16 fps), `short_side` (a multiple of 32), `guidance`, `steps` and `shift` default to
    the `Weights.settings` of the weights.
    `prefix_frames`: how many frames of a video a continuation keeps, by default half the clip.
    """

    mode: str
    out: str
    text: str
    caption: str = ""
    image: str | None = None
    video: str | None = None
    audio: str | None = None
    voice: str | None = None
    voice_text: str | None = None
    language: str = "en"
    frames: int | None = None
    prefix_frames: int | None = None
    short_side: int | None = None
    guidance: Guidance | None = None
    steps: int | None = None
    shift: float | None = None
    seed: int = 2025

    def completed(self, settings: Settings) -> Request:
        """The same request with the model's settings where it has none of its own."""
        return replace(self, **{k: v for k, v in vars(settings).items() if getattr(self, k) is None})

    def check(self) -> None:
        """Of a completed request, before any file is read.

        Raises:
            UserError: something is missing, superfluous or out of range.
        """
        if self.mode not in conditioning.MODES:
            raise UserError(f"mode {self.mode!r} is unknown; choose one of {', '.join(conditioning.MODES)}")
        given = {name for name in INPUTS if getattr(self, name)}
        for name in INPUTS:
            flag = "--" + name.replace("_", "-")
            if name in NEEDS[self.mode] - given:
                raise UserError(f"mode {self.mode} needs {flag}")
            if name in given - NEEDS[self.mode] - ALLOWS.get(self.mode, set()):
                raise UserError(
                    f"mode {self.mode} has no use for {flag}; leave it out or choose another mode"
                )
        if ("voice" in given) != ("voice_text" in given):
            raise UserError("--voice and --voice-text belong together: give the clip and what is said in it")
        if self.frames < MIN_FRAMES:
            raise UserError(f"--frames is {self.frames}; use 4n + 1, at least {MIN_FRAMES}")
        conditioning.latent_frames(self.frames)
        files.size_for(1, 1, self.short_side)
        if self.prefix_frames is not None:
            conditioning.latent_frames(self.prefix_frames)
        for name in ("s_v", "s_a"):
            if not 0 <= getattr(self.guidance, name) <= 100:
                raise UserError(f"{name} is {getattr(self.guidance, name)}; use 0 to 100, such as 2")
        if not 0 <= self.guidance.interval <= 1:
            raise UserError(f"the MA-CFG interval is {self.guidance.interval}; use 0 (never) to 1 (always)")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"the seed is {self.seed}; use a whole number from 0 to {2**63 - 1}")
        if self.shift == math.inf:
            raise UserError("shift is inf; use a finite one, such as 5")
        schedule(self.steps, self.shift)
        files.check_output(self.out)


@dataclass
class Inputs:
    """What the files hold, cut and converted: nothing of a model has run yet."""

    size: tuple[int, int]  # width, height
    frames: int
    symbols: list[int]
    null_symbols: list[int]
    picture: Tensor  # uint8 [F, H, W, 3]: the reference image or the known frames
    sound: Tensor | None = None  # [n] 24 kHz: the known sound
    voice: Tensor | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def mels(self) -> int:
        return conditioning.mel_frames(self.frames)


@dataclass
class Result:
    """What was made; `seconds` by stage."""

    out: str
    mode: str
    width: int
    height: int
    frames: int
    samples: int
    seed: int
    embedded: bool
    notes: list[str]
    seconds: dict[str, float]
    sample: Sample

    def to_dict(self) -> dict:
        """JSON-ready: everything but the latents."""
        values = {k: v for k, v in self.__dict__.items() if k != "sample"}
        return {**values, "fps": conditioning.FPS, "sample_rate": mel.SAMPLE_RATE}


def read_inputs(request: Request, as_said: Callable[[str], str] = str) -> Inputs:
    """Reads and checks every file and text of a completed request.

    Its `frames` are the length to make where the files do not decide it, and the most that is used of them.
    `as_said`: English as the model learnt to write it.

    Raises:
        UserError: as the functions of `media`, `mel` and `speech`, or files too short for the task.
    """
    frames = request.frames
    text, voice_text = request.text, request.voice_text or ""
    if request.language == "en":
        text, voice_text = as_said(text), as_said(voice_text)
    symbols = speech.symbol_ids(text, request.language, voice_text)
    null_symbols = speech.null_symbol_ids(request.language, voice_text)
    notes = []
    unknown = speech.unknown_symbols(request.text, request.language)
    if unknown:
        notes.append(f"the model cannot say {' '.join(unknown)}; these are passed over")

    if request.mode in ("joint", "reference-voice", "audio-driven"):
        picture, sound = files.read_image(request.image)[None], None
        if request.mode == "audio-driven":
            sound = mel.prepare_audio(*files.read_audio(request.audio), require_sound=True)
            available = conditioning.frames_for_mels(len(sound) // mel.HOP)
            frames = _shorten("audio", frames, available, len(sound) / mel.SAMPLE_RATE, notes)
            sound = sound[: conditioning.mel_frames(frames) * mel.HOP]
    else:
        video = files.read_video(request.video, max_seconds=frames / conditioning.FPS, fps=conditioning.FPS)
        picture, sound = video.frames, None
        snapped = conditioning.snap_frames(len(picture))
        if request.mode == "dubbing":
            frames = _shorten("video", frames, snapped, len(picture) / conditioning.FPS, notes)
            picture = picture[:frames]
        else:
            known = request.prefix_frames or min(snapped, conditioning.snap_frames(frames // 2 + 1))
            if known > snapped or known >= frames:
                raise UserError(
                    f"{request.video}: {known} of its {len(picture)} frames (16 fps) cannot open a clip of "
                    f"{frames} frames; set --prefix-frames below both"
                )
            if video.audio is None:
                raise UserError(f"{request.video}: has no sound to go on from; choose a video with sound")
            picture = picture[:known]
            sound = mel.fit_length(mel.prepare_audio(*video.audio), conditioning.mel_frames(known) * mel.HOP)
            notes.append(f"the first {known} frames ({known / conditioning.FPS:.2f} s) of the video are kept")

    width, height = files.size_for(picture.shape[2], picture.shape[1], request.short_side)
    if (width, height) != (picture.shape[2], picture.shape[1]):
        notes.append(f"picture {picture.shape[2]}x{picture.shape[1]} fitted to {width}x{height}")
    voice = None
    if request.voice:
        voice = mel.prepare_audio(*files.read_audio(request.voice), require_sound=True)
        mel.check_voice_length(voice, request.voice)
        voice = mel.reference_voice(voice)
    picture = files.fit_image(picture, width, height)
    return Inputs((width, height), frames, symbols, null_symbols, picture, sound, voice, notes)


def _shorten(what: str, wanted: int, available: int, seconds: float, notes: list[str]) -> int:
    if available < MIN_FRAMES:
        raise UserError(
            f"the {what} lasts {seconds:.3f} s; the shortest clip is {MIN_FRAMES} frames "
            f"({MIN_FRAMES / conditioning.FPS:.4f} s), give a longer one"
        )
    frames = min(wanted, available)
    notes.append(
        f"{frames} frames ({frames / conditioning.FPS:.2f} s) of the {what} ({seconds:.2f} s) are used"
    )
    return frames


def generate(
    request: Request,
    weights: Weights,
    on_stage: Callable[[str], None] = lambda name: None,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Result:
    """Make one clip and write it. Everything that can be wrong is looked at before the first model is loaded.

    Raises:
        UserError: see `Request.check`, `Weights.check`, `read_inputs` and the loaders.
    """
    request = request.completed(weights.settings())
    request.check()
    config = weights.check()
    guidance = request.guidance.for_layers(config.layers)
    if weights.embedded:
        inputs = read_inputs(request, embedded.plain)
        inputs.notes[:0] = [f"no weights given: this is {embedded.NOTICE}", *embedded.warnings(request.text)]
    else:
        inputs = read_inputs(request)
    device = torch.device(weights.device)
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        on_stage(name)
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 3)

    with torch.inference_mode():
        with stage("decoders"):
            vocoder, vae = weights.load_vocoder(), weights.load_vae()
        with stage("caption"):
            encoder = weights.load_caption_encoder()
            if encoder.dim != config.caption_dim:
                raise UserError(
                    f"the text encoder gives {encoder.dim} channels, the model takes {config.caption_dim}; "
                    "choose the umT5 that belongs to it"
                )
            caption, null_caption = encoder([request.caption]), encoder([""])
            if caption.shape[1] > config.caption_length:
                inputs.notes.append(
                    f"the caption has {caption.shape[1]} tokens, the model reads the first "
                    f"{config.caption_length}"
                )
                caption = caption[:, : config.caption_length]
            del encoder
            gc.collect()
        with stage("encode"):
            video = vae.encode(_to_signed(inputs.picture).to(device))
        with stage("load"):
            model = weights.load_model()
            texts = [
                TextConditioning(states.to(device), model.text_embedding(torch.tensor([ids], device=device)))
                for states, ids in ((caption, inputs.symbols), (null_caption, inputs.null_symbols))
            ]
            task = _task(request.mode, inputs, video, model.config.variant, device)
        with stage("sample"):
            out = sample(
                model,
                task,
                *texts,
                guidance,
                request.steps,
                request.shift,
                request.seed,
                on_step=on_step,
                cancelled=cancelled,
            )
            del model
            gc.collect()
        with stage("decode"):
            if request.mode == "dubbing":
                pictures = inputs.picture
            else:
                pictures = _to_bytes(vae.decode(out.video))
            if request.mode == "audio-driven":
                waveform = inputs.sound
            else:
                waveform = vocoder(mel.latent_to_mel(out.audio))[0]
        with stage("write"):
            files.write_mp4(request.out, pictures, conditioning.FPS, waveform, mel.SAMPLE_RATE)
    return Result(
        out=str(Path(request.out).absolute()),
        mode=request.mode,
        width=inputs.size[0],
        height=inputs.size[1],
        frames=inputs.frames,
        samples=round(inputs.frames / conditioning.FPS * mel.SAMPLE_RATE),
        seed=request.seed,
        embedded=weights.embedded,
        notes=inputs.notes,
        seconds=seconds,
        sample=out,
    )


def _task(mode: str, inputs: Inputs, video: Tensor, variant: str, device: torch.device) -> conditioning.Task:
    frames, mels = conditioning.latent_frames(inputs.frames), inputs.mels

    def latent(waveform: Tensor) -> Tensor:
        return mel.sound_latent(waveform)[None].to(device)  # [1, L, 80]

    voice = None if inputs.voice is None else latent(inputs.voice)
    if mode == "joint":
        return conditioning.joint(video, frames, mels)
    if mode == "reference-voice":
        return conditioning.reference_voice(video, voice, frames, mels, variant)
    if mode == "continuation":
        return conditioning.continuation(video, latent(inputs.sound), frames, mels, voice)
    if mode == "dubbing":
        return conditioning.dubbing(video, mels, voice)
    return conditioning.audio_driven(video, latent(mel.peak_normalise(inputs.sound)), frames)


def _to_signed(pictures: Tensor) -> Tensor:
    """uint8 `[F, H, W, 3]` -> `[1, 3, F, H, W]` in -1..1."""
    return pictures.permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def _to_bytes(video: Tensor) -> Tensor:
    """The inverse of `_to_signed`."""
    return ((video[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
