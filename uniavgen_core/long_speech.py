"""A script of many sentences as one clip, made part by part (docs/model.md section 11).

The parts are joined in latent space. A part is a continuation whose known beginning is the tail of the part
before: its last latent frames and the mel frames that belong to them, as they were generated. What a
part adds is what follows its tail, whole latent frames of 25 mel frames each, so that the latents of all
parts, one after the other, are those of one clip. They are decoded as one causal stream: each latent frame
once, after all that came before it, exactly as in a clip of that length.

The image is the reference of all parts. Unless a voice is given, that of the first part is the reference
voice of the others, or the audio noise of all parts has the same mean, which decides the voice where nothing
else does.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .conditioning import FPS, Anew, Plan, Span, mel_frames, video_frames
from .duration import HASTE, frames_for_text, speech_seconds
from .errors import UserError
from .media.mel import HOP, LATENT_MEAN, LATENT_STD, LOG_FLOOR, REFERENCE_SILENCE, SAMPLE_RATE
from .media.vae import TEMPORAL
from .sampling.defaults import SamplingDefaults
from .weights.write import save_tensors

EASE = 5  # mel frames, 50 ms
MAX_LINES = 1000
SEPARATOR = "|"
AUDIBLE = 4.0  # nats below the loudest mel cell of a part within which someone speaks
AUDIO_TILE, AUDIO_CONTEXT, QUIET = 3000, 60, 500  # mel frames
FADE = round(0.01 * SAMPLE_RATE)


class Line(NamedTuple):
    """What is said in a part and, where it is not the caption of the clip, what is seen."""

    text: str
    caption: str = ""


class Part(NamedTuple):
    """The latents that a part adds: video `[1, C, t, H, W]` and audio `[1, l, bands]`."""

    video: Tensor
    audio: Tensor


class Voice(NamedTuple):
    """A reference voice: mel latent `[1, Lr, bands]` and its transcript."""

    mel: Tensor
    transcript: str


@dataclass(frozen=True)
class Window:
    """A part to be sampled: its plan, the latent `[1, C, t, H, W]` that it begins with, and its texts.

    `text` has the words of the tail first; `transcript` is that of the reference voice. `voice_seed`: of the
    mean of the audio noise, where all parts share it.
    """

    index: int
    plan: Plan
    video: Tensor
    text: str
    caption: str
    transcript: str
    seed: int
    voice_seed: int | None = None

    def voiced(self, noise: Tensor) -> Tensor:
        """Audio noise `[1, L, bands]`, standard normal, with the shared mean over time for its own."""
        if self.voice_seed is None:
            return noise
        mean = torch.randn(noise.shape[2], generator=torch.Generator().manual_seed(self.voice_seed))
        return noise - noise.mean(1, keepdim=True) + mean.to(noise) / math.sqrt(noise.shape[1])


OnPart = Callable[[int, int, bool], None]
"""Called before each part with its number, how many there are, and whether it is known already."""


class Store(Protocol):
    """Where parts stay between runs."""

    def get(self, key: str) -> Part | None: ...

    def put(self, key: str, part: Part) -> None: ...


def longest_part(defaults: SamplingDefaults) -> int:
    """Frames that a part may last so that no window is longer than what the model was made for."""
    return defaults.frames - TEMPORAL * (defaults.tail - 1)


def read_script(script: str, longest: int) -> list[Line]:
    """One sentence a line, or `sentence | caption`; blank lines and those that begin with # are left out.

    Args:
        longest: frames that a part may last.

    Raises:
        UserError: nothing to say, too many lines, a line too long for a part.
    """
    lines = []
    for number, row in enumerate(script.splitlines(), 1):
        said, _, caption = (piece.strip() for piece in row.partition(SEPARATOR))
        if row.lstrip().startswith("#") or not (said or caption):
            continue
        if not said:
            raise UserError(f"line {number} of the script has a caption but nothing to say before the |")
        if speech_seconds(said) > HASTE * longest / FPS:
            raise UserError(
                f"line {number} of the script takes {speech_seconds(said):.1f} s to say, a part lasts at "
                f"most {longest / FPS:.2f} s; make two lines of it"
            )
        lines.append(Line(said, caption))
    if not lines:
        raise UserError("the script is empty; write one sentence a line")
    if len(lines) > MAX_LINES:
        raise UserError(f"the script has {len(lines)} lines, expected at most {MAX_LINES}; make it two clips")
    return lines


def part_latents(line: Line, longest: int) -> int:
    """Latent frames that a line takes after the first frame of the clip."""
    return (min(frames_for_text(line.text), longest) - 1) // TEMPORAL


def script_frames(lines: Sequence[Line], longest: int) -> int:
    """Video frames of the whole clip."""
    return TEMPORAL * sum(part_latents(line, longest) for line in lines) + 1


def speak(
    lines: Sequence[Line],
    longest: int,
    seed: int,
    image: Tensor,
    make: Callable[[Window], tuple[Tensor, Tensor]],
    store: Store,
    given: str,
    voice: Voice | None = None,
    keep_voice: Literal["reference", "noise"] = SamplingDefaults.keep_voice,
    tail: int = SamplingDefaults.tail,
    on_part: OnPart = lambda index, count, known: None,
) -> Iterator[Part]:
    """The parts of a clip in order, those from `store` where neither they nor any before them changed.

    Args:
        longest: frames that a part may last, without its tail.
        image: latent of the reference image, `[1, C, 1, H, W]`.
        make: samples a window; gives video `[1, C, T, H, W]` and audio `[1, L, bands]`, the known beginning
            included.
        given: what else the parts depend on: weights, image, voice, guidance.
        voice: a reference voice for all parts.
        keep_voice: what all parts share without one: the first as the reference voice, or the noise's mean.
        tail: latent frames of the clip so far that open a window.
    """
    key, past, before = digest(given, keep_voice, tail), None, ""
    voice_seed = seed if voice is None and keep_voice == "noise" else None
    for index, line in enumerate(lines):
        new = part_latents(line, longest)
        transcript = voice.transcript if voice else ""
        key = digest(key, *line, new, seed)
        part = store.get(key)
        on_part(index, len(lines), part is not None)
        if part is None:
            plan = window_plan(new, past, voice)
            window = Window(
                index,
                plan,
                image if past is None else past.video,
                f"{before} {line.text}".strip(),
                line.caption,
                transcript,
                (seed + index * 0x9E3779B97F4A7C15) % 2**63,
                voice_seed,
            )
            known = (0, 0) if past is None else (past.video.shape[2], past.audio.shape[1])
            video, audio = make(window)
            part = Part(video[:, :, known[0] :].cpu(), eased(audio.cpu(), known[1])[:, known[1] :])
            store.put(key, part)
        if voice is None and keep_voice == "reference":
            voice = Voice(as_reference(part.audio), line.text)
        past = tail_of(part, tail, past)
        before = words_from(line.text, part.audio, part.audio.shape[1] - past.audio.shape[1])
        yield part


def window_plan(new: int, tail: Part | None, voice: Voice | None = None) -> Plan:
    """The plan of a part of `new` latent frames after the first frame of a clip, or after a tail."""
    reference = None if voice is None else voice.mel
    if tail is None:
        mode = "joint" if voice is None else "reference-voice"
        return Plan(mode, video_frames(1 + new), Anew(), None, reference)
    latents = tail.video.shape[2] + new
    frames = video_frames(latents)
    anew = Anew(Span(tail.video.shape[2], latents), Span(tail.audio.shape[1], mel_frames(frames)))
    return Plan("continuation", frames, anew, tail.audio, reference)


def tail_of(part: Part, latents: int, before: Part | None = None) -> Part:
    """The last latent frames of a part, and of the tail before it where the part is shorter.

    The first of them takes the place of the frame that opens a clip, which lasts a quarter as long: of its
    mel frames those of its last video frame are kept.
    """
    video, audio = part
    if before is not None:
        video, audio = torch.cat((before.video, video), 2), torch.cat((before.audio, audio), 1)
    return Part(video[:, :, -latents:], audio[:, -mel_frames(video_frames(latents)) :])


def eased(audio: Tensor, known: int) -> Tensor:
    """A mel latent `[1, L, bands]` whose step onto frame `known` is spread over the `EASE` frames from there.

    The frames before stay as they are. A model that was not trained on seams makes one there that is heard.
    """
    if known:
        step = audio[:, known - 1] - audio[:, known]
        weight = torch.linspace(1, 0, EASE + 2)[1:-1].to(audio)
        audio = audio.clone()
        audio[:, known : known + EASE] += weight[:, None] * step[:, None]
    return audio


def as_reference(audio: Tensor) -> Tensor:
    """A part's audio latent `[1, l, bands]` as a reference voice: 0.3 s of silence follow, as in training."""
    silence = (math.log(LOG_FLOOR) - LATENT_MEAN) / LATENT_STD
    rest = audio.new_full((1, round(REFERENCE_SILENCE * SAMPLE_RATE / HOP), audio.shape[2]), silence)
    return torch.cat((audio, rest), 1)


def words_from(text: str, audio: Tensor, start: int) -> str:
    """The words of `text` that lie behind mel frame `start` of its audio latent `[1, l, bands]`.

    Words are taken to lie evenly, by their letters, between the first and the last frame that is heard.
    """
    loudness = audio[0].amax(-1)
    heard = (loudness > loudness.max() - AUDIBLE / LATENT_STD).nonzero()[:, 0]
    first, last = int(heard[0]), int(heard[-1]) + 1
    place = (start - first) / (last - first) * len(text)
    for word in re.finditer(r"[\u3100-\u9fff]|[^\s\u3100-\u9fff]+", text):
        if (word.start() + word.end()) / 2 >= place:
            return text[word.start() :]
    return ""


def digest(*parts: object) -> str:
    """Hexadecimal digits that tell contents apart: tensors by their values, everything else by its text."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            whole.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        whole.update(json.dumps(list(part.shape) if isinstance(part, Tensor) else repr(part)).encode())
    return whole.hexdigest()[:32]


class Folder:
    """A `Store` of files, one a part, each named by its content; damaged ones count as missing."""

    def __init__(self, path: Path):
        self.path = path

    def check(self) -> None:
        """Makes the folder.

        Raises:
            UserError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path}: the parts of the clip cannot be kept there ({error.strerror}); name a folder "
                "with --parts"
            ) from error

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.safetensors"

    def get(self, key: str) -> Part | None:
        try:
            tensors = load_file(self._file(key))
            return Part(tensors["video"], tensors["audio"])
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, key: str, part: Part) -> None:
        save_tensors(part._asdict(), self._file(key))


def decode_audio(decode: Callable[[Tensor], Tensor], audio: Tensor, tile: int = AUDIO_TILE) -> Tensor:
    """An audio latent `[1, L, bands]` of any length -> waveform `[240 L]`, about `tile` frames at once.

    Tiles meet at the quietest frame of the last 5 s, see `AUDIO_CONTEXT` frames beyond it and are faded over
    10 ms there.

    Args:
        decode: a vocoder on latents, `[1, l, bands]` -> `[1, 240 l]`.
    """
    length, edges = audio.shape[1], [0]
    loudness = audio[0].amax(-1)
    while length - edges[-1] > tile:
        end = edges[-1] + tile
        edges.append(end - min(QUIET, tile // 2) + int(loudness[end - min(QUIET, tile // 2) : end].argmin()))
    waveform = audio.new_zeros(length * HOP)
    for start, end in pairwise([*edges, length]):
        first, last = max(0, start - AUDIO_CONTEXT), min(length, end + AUDIO_CONTEXT)
        made = decode(audio[:, first:last])[0].to(waveform)[(start - first) * HOP :]
        fade = 0 if start == 0 else min(FADE, (end - start) * HOP)
        weight = torch.linspace(0, 1, fade + 2)[1:-1].to(waveform)
        place = start * HOP
        waveform[place : place + fade] = torch.lerp(waveform[place : place + fade], made[:fade], weight)
        reach = min(made.shape[0], (end - start) * HOP + FADE)
        waveform[place + fade : place + reach] = made[fade:reach]
    return waveform
