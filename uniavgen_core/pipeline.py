"""From files to a finished mp4, without ComfyUI: a `Request`, the `Pipeline` that serves it, `generate`."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor

from . import conditioning, duration, embedded, keyframes, memory, who_speaks
from .conditioning import MAX_FRAMES, MIN_FRAMES, Edit, Mode, Plan, Task
from .errors import UserError
from .media import FPS, files, mel, speech
from .media.caption import CaptionEncoder, load_caption_encoder
from .media.vae import SPATIAL, WanVAE, load_vae
from .media.vocoder import GriffinLim, Vocoder, load_vocoder
from .memory import Clip, MemoryPlan
from .model.config import Config
from .model.dit import DualBranchDiT
from .model.inputs import TextConditioning
from .modes import ALL, MODES
from .sampling.defaults import Guidance, SamplingDefaults, Savings, find_preset
from .sampling.sampler import Sample, sample, schedule
from .sampling.takes import take_paths, take_seed
from .weights.checkpoint import load_model
from .weights.identify import find_parts
from .weights.inspect import check_parts

INPUTS = ("image", "video", "audio", "voice", "voice_text", "prefix_frames", "edit_start", "edit_end", "edit")


@dataclass(frozen=True)
class Weights:
    """Where the four parts are; without a vocoder the audio comes from Griffin-Lim.

    Parts that are not given are looked for in the folder of the model (the release's download holds all).
    Without any path all four are those of the embedded model.
    `memory`: bytes that a run may take; `plan`: how it keeps below them, made by `generate`.
    """

    model: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    vocoder: str | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None
    memory: int | None = None
    plan: MemoryPlan | None = None

    def __post_init__(self):
        for name, path in find_parts(self.model).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, str(path))

    @property
    def embedded(self) -> bool:
        return not (self.model or self.vae or self.text_encoder or self.vocoder)

    def settings(self) -> SamplingDefaults:
        """How the model is run unless the request says otherwise."""
        return embedded.settings() if self.embedded else SamplingDefaults()

    def check(self) -> Config:
        """Everything that can be known about the files without loading them; the model's sizes.

        Raises:
            UserError: a part is missing, damaged, incomplete or something else.
        """
        if self.embedded:
            return embedded.config()
        missing = [name for name in ("model", "vae", "text_encoder") if not getattr(self, name)]
        if missing:
            names = ", ".join("--" + name.replace("_", "-") for name in missing)
            raise UserError(
                f"some weights are given but not {names}; give all three, or none for the embedded model"
            )
        return check_parts(
            cast(str, self.model), cast(str, self.vae), cast(str, self.text_encoder), self.vocoder
        )

    def paths(self) -> dict[str, str | Path | None]:
        """The four parts by name, those of the embedded model too."""
        if not self.embedded:
            return {
                "model": self.model,
                "vae": self.vae,
                "text_encoder": self.text_encoder,
                "vocoder": self.vocoder,
            }
        folder = embedded.folder()
        vocoder = folder / "vocoder"
        return {
            "model": embedded.model_file(),
            "vae": folder / "vae",
            "text_encoder": folder / "caption_encoder",
            "vocoder": vocoder if vocoder.exists() else None,
        }

    def planned(self, clip: Clip, guidance: Guidance) -> Weights:
        """These with the plan for a clip, if `memory` is limited.

        Raises:
            UserError: it does not fit.
        """
        if self.memory is None:
            return self
        model, text = (torch.float32, torch.float32) if self.embedded else (None, torch.bfloat16)
        made = memory.plan(
            self.paths(), clip, guidance, self.memory, self.device, self.dtype or model, self.dtype or text
        )
        return replace(self, plan=made)

    def load_model(self) -> DualBranchDiT:
        streamed = self.plan.model if self.plan else ()
        if self.embedded:
            return embedded.load_model(self.device, self.dtype, streamed)
        return load_model(cast(str, self.model), self.device, self.dtype, keep_fp8=True, streamed=streamed)

    def load_vae(self) -> WanVAE:
        vae = embedded.load_vae(self.device) if self.embedded else load_vae(cast(str, self.vae), self.device)
        vae.tiles = self.plan.tiles if self.plan else None
        return vae

    def load_caption_encoder(self) -> CaptionEncoder:
        if self.embedded:
            return embedded.load_caption_encoder(self.device)
        streamed = self.plan.text_encoder if self.plan else ()
        dtype = self.dtype or torch.bfloat16
        return load_caption_encoder(cast(str, self.text_encoder), self.device, dtype, streamed)

    def load_vocoder(self) -> Vocoder | GriffinLim:
        if self.embedded:
            return embedded.load_vocoder(self.device)
        return load_vocoder(self.vocoder, self.device) if self.vocoder else GriffinLim()


def drawn_seed() -> int:
    """What seed -1 asks for."""
    return random.SystemRandom().randrange(2**32)


def check_device(device: str) -> str:
    """The name of a device on which tensors can be made and read.

    Raises:
        UserError: there is none of that name.
    """
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try cpu"
        ) from error
    return device


@dataclass(frozen=True)
class Request:
    """One clip to make. Paths are files; which of them a mode needs and allows stands in `modes.MODES`.

    `text`: what is said in the whole clip; `voice_text`: the transcript of `voice`.
    `frames` (4n + 1 at 16 fps): the length, where no input decides it, else the longest that is wanted;
    "auto": as long as the text needs.
    `short_side` (a multiple of 32), `guidance`, `steps`, `shift` and `seed` default to the
    `Weights.settings` of the weights; seed -1 draws one.
    `preset`: one of `sampling.defaults.PRESETS`, which takes its share of `steps`; `savings`: passes that
    are left out, in place of the preset's.
    `prefix_frames`: how many frames of a video a continuation keeps, by default half the clip.
    `edit_start`, `edit_end` in seconds, `edit` ("both", "video", "audio"): what edit makes anew.
    `who_speaks`: a mask, white over the face that speaks, an image or a video of the clip's length;
    `who_speaks_how`: "multiply" (default) the predicted face mask, or "replace" it.
    `last_image`, `keyframes` (frame number and image): images held at frames of the clip; -1 is the last.
    """

    mode: str
    out: str
    text: str
    caption: str = ""
    negative_caption: str = ""
    image: str | None = None
    video: str | None = None
    audio: str | None = None
    voice: str | None = None
    voice_text: str | None = None
    language: str = "en"
    frames: int | Literal["auto"] | None = None
    prefix_frames: int | None = None
    edit_start: float | None = None
    edit_end: float | None = None
    edit: str | None = None
    short_side: int | None = None
    guidance: Guidance | None = None
    steps: int | None = None
    shift: float | None = None
    seed: int | None = None
    preset: str | None = None
    savings: Savings | None = None
    who_speaks: str | None = None
    who_speaks_how: str | None = None
    last_image: str | None = None
    keyframes: tuple[tuple[int, str], ...] = ()

    def completed(self, defaults: SamplingDefaults) -> CompletedRequest:
        """The request with the model's defaults where it has no values of its own, before any file is read.

        Raises:
            UserError: something is missing, superfluous or out of range.
        """
        if self.mode not in MODES:
            raise UserError(f"mode {self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        mode = MODES[self.mode]
        self._check_inputs(mode)

        def chosen(name: str):
            value = getattr(self, name)
            return getattr(defaults, name) if value is None else value

        seed, notes = chosen("seed"), []
        if seed == -1:
            seed = drawn_seed()
            notes.append(f"seed {seed} was drawn")
        frames = self.frames
        if frames is None:
            frames = defaults.frames if mode.length == "frames" else MAX_FRAMES
        elif frames == "auto":
            if mode.length != "frames":
                raise UserError(
                    f"mode {mode.name} takes its length from the {mode.length}; leave --frames out"
                )
            frames = duration.frames_for_text(self.text)
            notes.append(f"{frames} frames ({frames / FPS:.2f} s) for the text")
        preset = find_preset(self.preset)
        done = CompletedRequest(
            self,
            mode,
            frames=frames,
            short_side=chosen("short_side"),
            guidance=chosen("guidance"),
            steps=preset.steps(chosen("steps")),
            shift=chosen("shift"),
            seed=seed,
            defaults=defaults,
            savings=preset.savings if self.savings is None else self.savings,
            notes=notes,
        )
        done.check()
        return done

    def _check_inputs(self, mode: Mode) -> None:
        given = {name for name in (*INPUTS, "frames") if getattr(self, name) not in (None, "")}
        for name in INPUTS:
            flag = "--" + name.replace("_", "-")
            if name in mode.needs and name not in given:
                raise UserError(f"mode {mode.name} needs {flag}")
            if name in given - {*mode.needs, *mode.allows}:
                raise UserError(
                    f"mode {mode.name} has no use for {flag}; leave it out or choose another mode"
                )
        if "frames" in given and "frames" not in mode.allows:
            raise UserError(f"mode {mode.name} keeps the whole video; leave --frames out")
        if ("voice" in given) != ("voice_text" in given):
            raise UserError("--voice and --voice-text belong together: give the clip and what is said in it")
        if self.who_speaks_how and not self.who_speaks:
            raise UserError("--who-speaks-how needs --who-speaks; give the mask")
        if self.stills and mode.video == ALL:
            raise UserError(f"mode {mode.name} keeps the whole video; leave --keyframe and --last-image out")

    @property
    def stills(self) -> tuple[tuple[int, str], ...]:
        """All keyframes, the last image among them."""
        return (*self.keyframes, *(((-1, self.last_image),) if self.last_image else ()))


@dataclass(frozen=True)
class CompletedRequest:
    """A checked request with nothing left open; `frames` is a maximum where an input decides the length."""

    request: Request
    mode: Mode
    frames: int
    short_side: int
    guidance: Guidance
    steps: int
    shift: float
    seed: int
    defaults: SamplingDefaults
    savings: Savings
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises UserError where a value is out of range."""
        if self.frames < MIN_FRAMES:
            raise UserError(f"--frames is {self.frames}; use 4n + 1, at least {MIN_FRAMES}")
        conditioning.latent_frames(self.frames)
        files.size_for(1, 1, self.short_side)
        if self.request.prefix_frames is not None:
            conditioning.latent_frames(self.request.prefix_frames)
        for name in ("s_v", "s_a"):
            if not 0 <= getattr(self.guidance, name) <= 100:
                raise UserError(f"{name} is {getattr(self.guidance, name)}; use 0 to 100, such as 2")
        if not 0 <= self.guidance.interval <= 1:
            raise UserError(f"the MA-CFG interval is {self.guidance.interval}; use 0 (never) to 1 (always)")
        if not 0 <= self.seed < 2**63:
            raise UserError(
                f"the seed is {self.seed}; use a whole number from 0 to {2**63 - 1}, or -1 to draw one"
            )
        if self.shift == math.inf:
            raise UserError("shift is inf; use a finite one, such as 5")
        schedule(self.steps, self.shift)
        files.check_output(self.request.out)


@dataclass(frozen=True)
class Inputs:
    """What the files hold, cut and converted: nothing of a model has run yet.

    `frames` uint8 `[F, H, W, 3]`: the reference image, or the source video; `image` `[1, H, W, 3]`: a
    reference image beside a video; `audio` `[n]` at 24 kHz: the source audio; `who_speaks`: a mask
    `[F, H, W]` and what is done with it; `stills`: keyframes, each a frame number and an image
    `[1, H, W, 3]`.
    """

    plan: Plan
    size: tuple[int, int]  # width, height
    symbols: list[int]
    null_symbols: list[int]
    frames: Tensor
    image: Tensor | None
    audio: Tensor | None
    notes: list[str]
    who_speaks: tuple[Tensor, str] | None = None
    stills: tuple[tuple[int, Tensor], ...] = ()

    def clip(self) -> Clip:
        """What decides the memory of the run."""
        voice = 0 if self.plan.reference_mel is None else self.plan.reference_mel.shape[1]
        return Clip(self.plan.mode, *self.size, self.plan.frames, self.plan.mels, voice)


def read_inputs(completed: CompletedRequest, as_said: Callable[[str], str] = str) -> Inputs:
    """Reads and checks every file and text of a request.

    `as_said`: English as the model learnt to write it.

    Raises:
        UserError: as the functions of `media` and `conditioning.plan`.
    """
    request, mode = completed.request, completed.mode
    text, voice_text = request.text, request.voice_text or ""
    if request.language == "en":
        text, voice_text = as_said(text), as_said(voice_text)
    symbols = speech.symbol_ids(text, request.language, voice_text)
    null_symbols = speech.null_symbol_ids(request.language, voice_text)
    notes = list(completed.notes)
    unknown = speech.unknown_symbols(request.text, request.language)
    if unknown:
        notes.append(f"the model cannot say {' '.join(unknown)}; these are passed over")

    audio = None
    if request.video:
        video = files.read_video(request.video, max_seconds=completed.frames / FPS, fps=FPS)
        frames = video.frames
        if mode.audio != "nothing":
            if video.audio is None:
                raise UserError(f"{request.video}: has no audio; choose a video with audio")
            audio = mel.prepare_audio(*video.audio)
    else:
        frames = files.read_image(request.image or "")[None]
    if request.audio:
        audio = mel.prepare_audio(*files.read_audio(request.audio))
    voice = mel.prepare_audio(*files.read_audio(request.voice)) if request.voice else None
    edit = None
    if request.edit_start is not None and request.edit_end is not None:
        edit = Edit(request.edit_start, request.edit_end, request.edit or "both")
    plan = conditioning.plan(
        mode.name,
        completed.frames,
        given_frames=len(frames),
        audio=audio,
        voice=voice,
        prefix_frames=request.prefix_frames,
        edit=edit,
    )
    notes += plan.notes
    too_long = duration.too_long(request.text, plan.frames, fixed=mode.length != "frames")
    notes += [too_long] if too_long else []
    if plan.frames > completed.defaults.frames:
        notes.append(f"the model was made for {completed.defaults.frames} frames, the clip has {plan.frames}")

    given_width, given_height = frames.shape[2], frames.shape[1]
    width, height = files.size_for(given_width, given_height, completed.short_side)
    if (width, height) != (given_width, given_height):
        notes.append(f"image {given_width}x{given_height} fitted to {width}x{height}")
    image = None
    if request.video and request.image:
        image = files.fit_image(files.read_image(request.image)[None], width, height)
    frames = files.fit_image(frames[: plan.given_frames], width, height)
    mask = None
    if request.who_speaks:
        mask = who_speaks.read_mask(request.who_speaks)[: plan.frames], request.who_speaks_how or "multiply"
        size = (plan.latents, height // SPATIAL, width // SPATIAL)
        who_speaks.speaker(*mask, size, (1, 1))  # says now what does not fit
    stills, known = [], plan.masks[0]
    for frame, path in request.stills:
        notes.append(keyframes.described(frame, known))
        known = keyframes.marked(known, frame)
        stills.append((frame, files.fit_image(files.read_image(path)[None], width, height)))
    return Inputs(
        plan, (width, height), symbols, null_symbols, frames, image, audio, notes, mask, tuple(stills)
    )


class _Movable(Protocol):
    def to(self, device: torch.device, /) -> object: ...


T = TypeVar("T", bound=_Movable)


class Part(Generic[T]):
    """One of the four parts, loaded when it is first asked for.

    Args:
        load: makes the part.
        parked: whether it is on the device only while it is used, and on the CPU in between.
        keep: whether it stays when it is released, for callers that make many clips.
    """

    def __init__(self, load: Callable[[], T], device: torch.device, parked: bool, keep: bool):
        self._load, self._device, self._parked, self._keep = load, device, parked, keep
        self._part: T | None = None

    def get(self) -> T:
        """The part where it is; loads it if need be."""
        if self._part is None:
            self._part = self._load()
        return self._part

    @contextmanager
    def used(self) -> Iterator[T]:
        """The part on the device."""
        part = self.get()
        part.to(self._device)
        try:
            yield part
        finally:
            if self._parked:
                part.to(torch.device("cpu"))

    def release(self) -> None:
        """Forgets the part unless it is kept; it is loaded again when asked for."""
        if not self._keep:
            self._part = None
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


class Pipeline:
    """Model, VAE, text encoder and vocoder: the one assembly that makes clips of tasks.

    Used by `generate`, the evaluation, the benchmark and the previews of a training. Each part is loaded for
    its stage; while the model samples, the others are not on the device unless they are kept there.
    """

    def __init__(
        self,
        model: Callable[[], DualBranchDiT],
        vae: Callable[[], WanVAE],
        text_encoder: Callable[[], CaptionEncoder],
        vocoder: Callable[[], Vocoder | GriffinLim],
        config: Config,
        device: torch.device | str = "cpu",
        keep: bool = False,
        defaults: SamplingDefaults | None = None,
    ):
        self.device, self.config = torch.device(device), config
        self.defaults = defaults or SamplingDefaults()
        self.model = Part(model, self.device, parked=False, keep=keep)
        self.vae = Part(vae, self.device, parked=not keep, keep=keep)
        self.text_encoder = Part(text_encoder, self.device, parked=False, keep=keep)
        self.vocoder = Part(vocoder, self.device, parked=not keep, keep=keep)

    @classmethod
    def load(cls, weights: Weights, keep: bool = False) -> Pipeline:
        """Of the parts of `weights`, which are loaded when they are used.

        Raises:
            UserError: as `Weights.check`.
        """
        config = weights.check()
        waiting = weights if keep else replace(weights, device="cpu")  # on the CPU until their stage
        return cls(
            weights.load_model,
            waiting.load_vae,
            weights.load_caption_encoder,
            waiting.load_vocoder,
            config,
            weights.device,
            keep,
            weights.settings(),
        )

    @classmethod
    def of(
        cls,
        model: DualBranchDiT,
        vae: WanVAE,
        text_encoder: CaptionEncoder | None,
        vocoder: Vocoder | GriffinLim,
        device: torch.device | str | None = None,
        defaults: SamplingDefaults | None = None,
    ) -> Pipeline:
        """Of parts that are there already and stay where they are."""

        def no_encoder() -> CaptionEncoder:
            raise UserError("this pipeline has no text encoder; give caption states")

        return cls(
            lambda: model,
            lambda: vae,
            (lambda: text_encoder) if text_encoder is not None else no_encoder,
            lambda: vocoder,
            model.config,
            model.audio_padding.device if device is None else device,
            keep=True,
            defaults=defaults,
        )

    def encode_captions(self, captions: list[str]) -> tuple[Tensor, list[str]]:
        """Caption states `[B, N, caption_dim]` on the device, and a note where one is too long.

        Raises:
            UserError: the text encoder is of another width than the model takes.
        """
        with self.text_encoder.used() as encoder:
            if encoder.dim != self.config.caption_dim:
                raise UserError(
                    f"the text encoder gives {encoder.dim} channels, the model takes "
                    f"{self.config.caption_dim}; choose the umT5 that belongs to it"
                )
            states = encoder(captions).to(self.device)
        longest = self.config.caption_length
        if states.shape[1] <= longest:
            return states, []
        note = f"the caption has {states.shape[1]} tokens, the model reads the first {longest}"
        return states[:, :longest], [note]

    def encode_speech(self, symbols: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Rows of symbol ids -> features of the speech encoder `[B, N, dim]` and their lengths `[B]`."""
        rows = [torch.tensor(ids) for ids in symbols]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=speech.FILLER)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        with self.model.used() as model:
            return model.text_embedding(padded.to(self.device), lengths), lengths

    def encode_frames(self, frames: Tensor) -> Tensor:
        """uint8 `[F, H, W, 3]` -> normalised latent `[1, C, T, H/16, W/16]` on the device."""
        with self.vae.used() as vae:
            return vae.encode(files.to_float(frames)[None])

    def sample(
        self,
        task: Task,
        positive: TextConditioning,
        negative: TextConditioning,
        guidance: Guidance,
        steps: int,
        shift: float,
        seed: int = SamplingDefaults.seed,
        **options: Any,
    ) -> Sample:
        """One sampling run; `options`: others of `sampling.sampler.sample`."""
        with self.model.used() as model:
            return sample(model, task, positive, negative, guidance, steps, shift, seed, **options)

    def decode_video(self, latent: Tensor, on_frame: Callable[[int, int], None] | None = None) -> Tensor:
        """`[1, C, T, h, w]` -> uint8 `[F, H, W, 3]` on the CPU; `on_frame(done, T)` by latent frame."""
        with self.vae.used() as vae:
            video = vae.decode(latent.to(self.device), on_frame)[0]
        return torch.cat([files.to_uint8(part) for part in video.split(8, dim=1)])

    def decode_audio(self, latent: Tensor, on_part: Callable[[int, int], None] | None = None) -> Tensor:
        """`[B, L, 80]` -> waveforms `[B, n]` at 24 kHz on the CPU; `on_part(done, parts)` by stage."""
        with self.vocoder.used() as vocoder:
            return vocoder(mel.latent_to_mel(latent.to(self.device)), on_part).cpu()


class Stages:
    """Tells the name of each stage before it begins; `seconds` holds how long each took in all."""

    def __init__(self, on_stage: Callable[[str], None]):
        self._on_stage = on_stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


@dataclass
class Result:
    """What was made; `seconds` by stage, of all takes together."""

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
        return {**values, "passes": self.sample.passes, "fps": FPS, "sample_rate": mel.SAMPLE_RATE}


def prepare_task(pipeline: Pipeline, inputs: Inputs) -> Task:
    """The task of a request's inputs: its frames through the VAE, on the pipeline's device."""
    video = pipeline.encode_frames(inputs.frames)
    image = None if inputs.image is None else pipeline.encode_frames(inputs.image)
    task = inputs.plan.task(video, pipeline.config.variant, image)
    for frame, still in inputs.stills:
        latent = pipeline.encode_frames(keyframes.still(still))
        known = keyframes.put(task.clean_video, task.conditioned_video, frame, latent)
        task = replace(task, clean_video=known[0], conditioned_video=known[1])
    if inputs.who_speaks is not None:
        latents, rows, columns = task.clean_video.shape[2:]
        size, patch = (latents, rows, columns), pipeline.config.patch
        task = replace(task, speaker=who_speaks.speaker(*inputs.who_speaks, size, patch))
    return task


def finished(
    pipeline: Pipeline,
    task: Task,
    inputs: Inputs,
    sampled: Sample,
    on_decoded: Callable[[int, int], None] = lambda done, parts: None,
) -> tuple[Tensor, Tensor]:
    """Frames uint8 `[F, H, W, 3]` and waveform `[n]` of a sampled clip.

    Conditioned frames of a source video and conditioned samples of a recording are those of the source.
    """
    from_video, from_source = MODES[inputs.plan.mode].takes_video, inputs.plan.masks[0]
    if from_video and from_source.all():
        frames = inputs.frames
    else:
        frames = pipeline.decode_video(sampled.video, on_decoded)
        if from_video:
            frames = conditioning.keep_frames(frames, inputs.frames, from_source)
    if inputs.audio is not None and task.conditioned_audio.all():
        return frames, inputs.audio
    waveform = pipeline.decode_audio(sampled.audio, on_decoded)[0]
    if inputs.audio is not None:
        waveform = conditioning.keep_audio(waveform, inputs.audio, task.conditioned_audio)
    return frames, waveform


def generate(
    request: Request,
    weights: Weights,
    on_stage: Callable[[str], None] = lambda name: None,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    cancelled: Callable[[], bool] = lambda: False,
    on_decoded: Callable[[int, int], None] = lambda done, parts: None,
    on_plan: Callable[[MemoryPlan], None] = lambda plan: None,
    pipeline: Pipeline | None = None,
) -> Result:
    """Make one clip and write it: `generate_takes` of one."""
    callbacks = on_stage, on_step, cancelled, on_decoded, on_plan
    return generate_takes(request, weights, 1, *callbacks, pipeline)[0]


def generate_takes(
    request: Request,
    weights: Weights,
    takes: int = 1,
    on_stage: Callable[[str], None] = lambda name: None,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    cancelled: Callable[[], bool] = lambda: False,
    on_decoded: Callable[[int, int], None] = lambda done, parts: None,
    on_plan: Callable[[MemoryPlan], None] = lambda plan: None,
    pipeline: Pipeline | None = None,
) -> list[Result]:
    """Make so many takes of a clip and write each to a file of its own (`take_paths`).

    Take k is the clip of the seed `request.seed + k - 1`, bit for bit what `generate` makes with that seed.
    They are sampled one after the other. Everything that can be wrong is looked at before the first model is
    loaded. What is conditioned and stems from a file comes back from that file, not through VAE and vocoder.

    `pipeline`: of the same weights, for callers that make many clips; by default one is made and dropped.

    Raises:
        UserError: see `take_paths`, `Request.completed`, `Weights.check`, `read_inputs` and the loaders.
    """
    completed = request.completed(weights.settings())
    paths = take_paths(request.out, takes)
    seeds = [take_seed(completed.seed, take) for take in range(takes)]
    for path in paths[1:]:
        files.check_output(path)
    pipeline = pipeline or Pipeline.load(weights)
    guidance = completed.guidance.for_layers(pipeline.config.layers)
    inputs = read_inputs(completed, embedded.plain if weights.embedded else str)
    if weights.memory is not None:
        weights = weights.planned(inputs.clip(), guidance)
        pipeline = Pipeline.load(weights)
        on_plan(cast(MemoryPlan, weights.plan))
    notes = inputs.notes
    if weights.embedded:
        notes[:0] = [f"no weights given: this is {embedded.NOTICE}", *embedded.warnings(request.text)]
    stage = Stages(on_stage)

    with torch.inference_mode():
        with stage("decoders"):  # their faults show before the sampling, not after it
            pipeline.vocoder.get()
            pipeline.vae.get()
        with stage("caption"):
            captions = []
            for text in (request.caption, request.negative_caption):
                states, too_long = pipeline.encode_captions([text])
                captions.append(states)
                notes += too_long
            pipeline.text_encoder.release()
        with stage("encode"):
            task = prepare_task(pipeline, inputs)
            if weights.plan:  # never beside the transformer
                pipeline.vae.release()
                pipeline.vocoder.release()
        with stage("load"):
            pipeline.model.get()
        with stage("sample"):
            features = [pipeline.encode_speech([ids])[0] for ids in (inputs.symbols, inputs.null_symbols)]
            positive, negative = map(TextConditioning, captions, features)
            made = []
            for take, seed in enumerate(seeds):

                def on_take_step(done: int, steps: int, before: int = take) -> None:
                    on_step(before * steps + done, takes * steps)

                made.append(
                    pipeline.sample(
                        task,
                        positive,
                        negative,
                        guidance,
                        completed.steps,
                        completed.shift,
                        seed,
                        on_step=on_take_step,
                        cancelled=cancelled,
                        savings=completed.savings,
                    )
                )
            pipeline.model.release()
        for path, out in zip(paths, made):
            with stage("decode"):
                frames, waveform = finished(pipeline, task, inputs, out, on_decoded)
            with stage("write"):
                files.write_mp4(path, frames, FPS, waveform, mel.SAMPLE_RATE)
    return [
        Result(
            out=str(path.absolute()),
            mode=request.mode,
            width=inputs.size[0],
            height=inputs.size[1],
            frames=inputs.plan.frames,
            samples=round(inputs.plan.frames / FPS * mel.SAMPLE_RATE),
            seed=seed,
            embedded=weights.embedded,
            notes=notes,
            seconds=stage.seconds,
            sample=out,
        )
        for path, seed, out in zip(paths, seeds, made)
    ]
