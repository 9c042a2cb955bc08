"""From an image and a script to one mp4 of any length, in the memory of one part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import embedded
from .atomic import stamps
from .conditioning import latent_frames
from .errors import UserError
from .long_speech import (
    Folder,
    Line,
    OnPart,
    Part,
    Voice,
    Window,
    decode_audio,
    digest,
    longest_part,
    part_latents,
    read_script,
    script_frames,
    speak,
)
from .media import FPS, files, mel, speech
from .media.vae import TEMPORAL
from .model.inputs import TextConditioning
from .pipeline import CompletedRequest, Inputs, Pipeline, Request, Stages, Weights, read_inputs

MODES = ("joint", "reference-voice")


@dataclass(frozen=True)
class ScriptResult:
    """What was made; `parts`: text, first and last second of each, and whether it was made in this run."""

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
    parts: list[dict]

    def to_dict(self) -> dict:
        """JSON-ready."""
        return {**asdict(self), "fps": FPS, "sample_rate": mel.SAMPLE_RATE}


def read_script_file(path: str | Path) -> str:
    """The text of a script file, UTF-8.

    Raises:
        UserError: no such file, a folder, something else than text.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no text in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(
            f"{path}: {reason}, expected a text file with one sentence a line; check its name"
        ) from error


@dataclass(frozen=True)
class Script:
    """A script with all that its parts need, read and checked; made by `prepare`."""

    lines: list[Line]
    longest: int
    completed: CompletedRequest
    inputs: Inputs
    notes: list[str]

    @property
    def frames(self) -> int:
        return script_frames(self.lines, self.longest)


def prepare(request: Request, script: str, weights: Weights, longest: int | None = None) -> Script:
    """Reads and checks everything before the first model is loaded.

    Args:
        request: of mode joint or reference-voice, without frames; its text is not used.
        longest: frames that a part may last, see `long_speech.longest_part`.

    Raises:
        UserError: as `long_speech.read_script`, `Request.completed` and `pipeline.read_inputs`.
    """
    if request.mode not in MODES:
        raise UserError(
            f"a script is spoken from an image, not in mode {request.mode}; use {' or '.join(MODES)}"
        )
    if request.frames is not None:
        raise UserError("the length of a script comes from its sentences; leave --frames out")
    if request.who_speaks or request.stills:
        raise UserError(
            "--who-speaks, --keyframe and --last-image belong to a single clip; leave --script out"
        )
    defaults = weights.settings()
    longest = longest or longest_part(defaults)
    lines = read_script(script, longest)
    as_said = embedded.plain if weights.embedded else str
    completed = replace(request, text=lines[0].text).completed(defaults)
    inputs = read_inputs(completed, as_said)
    notes = list(inputs.notes)
    said = " ".join(line.text for line in lines)
    unknown = speech.unknown_symbols(said, request.language)
    for line in lines:
        speech.symbol_ids(as_said(line.text) if request.language == "en" else line.text, request.language)
    if unknown:
        notes.append(f"the model cannot say {' '.join(unknown)}; these are passed over")
    if weights.embedded:
        notes[:0] = [f"no weights given: this is {embedded.NOTICE}", *embedded.warnings(said)]
    return Script(lines, longest, completed, inputs, list(dict.fromkeys(notes)))


class Speaker:
    """Makes the windows of a script with a pipeline; captions and the image are encoded once."""

    def __init__(self, pipeline: Pipeline, script: Script, is_embedded: bool, **callbacks):
        self.pipeline, self.script, self.callbacks = pipeline, script, callbacks
        request = script.completed.request
        self.as_said = embedded.plain if is_embedded and request.language == "en" else str
        self.guidance = script.completed.guidance.for_layers(pipeline.config.layers)
        seen = {line.caption or request.caption for line in script.lines}
        self.captions: dict[str, Tensor] = {}
        self.notes: list[str] = []
        for caption in (*sorted(seen), request.negative_caption):
            self.captions[caption], too_long = pipeline.encode_captions([caption])
            self.notes += too_long
        pipeline.text_encoder.release()
        self.image = pipeline.encode_frames(script.inputs.frames)

    def voice(self) -> Voice | None:
        """The reference voice that was given."""
        reference = self.script.inputs.plan.reference_mel
        return None if reference is None else Voice(reference, self.script.completed.request.voice_text or "")

    def make(self, window: Window) -> tuple[Tensor, Tensor]:
        """Video and audio latents of a window, its known beginning included."""
        done, pipeline = self.script.completed, self.pipeline
        request = done.request
        text, transcript = self.as_said(window.text), self.as_said(window.transcript)
        symbols = speech.symbol_ids(text, request.language, transcript)
        null = speech.null_symbol_ids(request.language, transcript)
        captions = window.caption or request.caption, request.negative_caption
        positive, negative = (
            TextConditioning(self.captions[caption], pipeline.encode_speech([ids])[0])
            for caption, ids in zip(captions, (symbols, null))
        )
        task = window.plan.task(window.video.to(self.image), pipeline.config.variant, self.image)
        video, audio = task.noise(window.seed)
        made = pipeline.sample(
            task,
            positive,
            negative,
            self.guidance,
            done.steps,
            done.shift,
            noise=(video, window.voiced(audio)),
            savings=done.savings,
            **self.callbacks,
        )
        return made.video, made.audio


def given(script: Script, weights: Weights) -> str:
    """A digest of everything that all parts depend on."""
    done = script.completed
    paths = [weights.model, weights.vae, weights.text_encoder]
    if weights.embedded:
        paths = [str(embedded.folder() / part) for part in embedded.PARTS]
    request = replace(done.request, out="", text="", image=None, voice=None)
    settings = done.guidance, done.steps, done.shift, done.short_side, done.savings
    tensors = script.inputs.frames, script.inputs.plan.reference_mel
    return digest(weights, stamps([Path(path) for path in paths if path]), request, settings, *tensors)


def generate_script(
    request: Request,
    script: str,
    weights: Weights,
    parts: str | Path,
    longest: int | None = None,
    on_stage: Callable[[str], None] = lambda name: None,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    cancelled: Callable[[], bool] = lambda: False,
    on_decoded: Callable[[int, int], None] = lambda done, parts: None,
) -> ScriptResult:
    """One clip of all sentences, written as it is decoded.

    Args:
        parts: a folder in which the latents of each part stay, by their content: a part is made again where
            its sentence, anything before it or anything that all depend on has changed.
        longest: as `prepare`.

    Raises:
        UserError: as `prepare`, `Weights.check` and the loaders.
    """
    prepared = prepare(request, script, weights, longest)
    pipeline = Pipeline.load(weights)
    notes, folder = prepared.notes, Folder(Path(parts))
    folder.check()
    stage = Stages(on_stage)
    made: list[bool] = []  # of each part, whether it was made in this run

    def on_part(index: int, count: int, known: bool) -> None:
        made.append(not known)
        on_stage(f"part {index + 1} of {count}")

    with torch.inference_mode():
        with stage("decoders"):  # their faults show before the sampling, not after it
            pipeline.vocoder.get()
            pipeline.vae.get()
        with stage("encode"):
            speaker = Speaker(pipeline, prepared, weights.embedded, on_step=on_step, cancelled=cancelled)
            notes += speaker.notes

        defaults, depends_on = prepared.completed.defaults, given(prepared, weights)

        def all_parts(on_part: OnPart = lambda index, count, known: None) -> Iterator[Part]:
            return speak(
                prepared.lines,
                prepared.longest,
                prepared.completed.seed,
                speaker.image,
                speaker.make,
                folder,
                depends_on,
                speaker.voice(),
                defaults.keep_voice,
                defaults.tail,
                on_part,
            )

        with stage("sample"):
            audio = torch.cat([part.audio for part in all_parts(on_part)], 1)
            pipeline.model.release()
        report = _report(prepared, made)
        notes.append(
            f"{sum(made)} of {len(made)} parts were made, the others were known; all stay in {parts}"
        )
        with stage("decode and write"):
            waveform = decode_audio(pipeline.decode_audio, audio)
            latents, count = (part.video for part in all_parts()), prepared.frames
            with pipeline.vae.used() as vae:
                pictures = _counted(vae, latents, latent_frames(count), on_decoded)
                size = prepared.inputs.size
                files.write_mp4_stream(request.out, pictures, count, size, FPS, waveform, mel.SAMPLE_RATE)
    return ScriptResult(
        out=str(Path(request.out).absolute()),
        mode=request.mode,
        width=prepared.inputs.size[0],
        height=prepared.inputs.size[1],
        frames=count,
        samples=round(count / FPS * mel.SAMPLE_RATE),
        seed=prepared.completed.seed,
        embedded=weights.embedded,
        notes=notes,
        seconds=stage.seconds,
        parts=report,
    )


def _counted(vae, latents: Iterator[Tensor], count: int, on_decoded) -> Iterator[Tensor]:
    for i, frames in enumerate(vae.decode_stream(latents)):
        yield files.to_uint8(frames[0])
        on_decoded(i + 1, count)


def _report(script: Script, made: list[bool]) -> list[dict]:
    rows, start = [], 0
    for line, new, first in zip(script.lines, made, [1] + [0] * len(made)):
        frames = TEMPORAL * part_latents(line, script.longest) + first
        rows.append({"text": line.text, "start": start / FPS, "end": (start + frames) / FPS, "made": new})
        start += frames
    return rows
