"""Inputs to a `Task`: the one path of command line, nodes, training and evaluation (docs/model.md section 6).

A mode (`modes.MODES`) says which parts of a clip are conditioned. `plan` turns lengths and recordings into
masks, mels and notes before anything is encoded; `Plan.task` adds the video latent. `condition` is the last
step of both, and the whole path of training, whose latents lie on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, floor
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError, counted
from .media import FPS
from .media.mel import (
    HOP,
    MEL_BANDS,
    SAMPLE_RATE,
    check_audible,
    check_voice_length,
    fit_length,
    peak_normalise,
    reference_voice,
    sound_latent,
)
from .media.vae import TEMPORAL
from .model.inputs import Speaker
from .modes import ALL, FIRST, MODES, NOTHING, OUTSIDE, Mode

__all__ = [
    "FPS",
    "MELS_PER_SECOND",
    "MODES",
    "Anew",
    "Edit",
    "Mode",
    "Plan",
    "Span",
    "Task",
    "condition",
    "plan",
]

MELS_PER_SECOND = SAMPLE_RATE // HOP
MIN_FRAMES, MAX_FRAMES = 5, 1601
SEAM = 0.01  # seconds of cross-fade, inside the part that is generated
EDITS = ("both", "video", "audio")


# lengths


def latent_frames(frames: int) -> int:
    """Latent frames of `4n + 1` video frames.

    Raises:
        UserError: another number of frames.
    """
    if frames < 1 or frames % TEMPORAL != 1:
        raise UserError(
            f"{frames} video frames do not fit the 4x temporal VAE; use 4n + 1, such as {snap_frames(frames)}"
        )
    return (frames - 1) // TEMPORAL + 1


def video_frames(latents: int) -> int:
    """Video frames of so many latent frames; the inverse of `latent_frames`."""
    return TEMPORAL * (latents - 1) + 1 if latents else 0


def snap_frames(frames: float) -> int:
    """The largest `4n + 1` that is not above `frames`, at least 1."""
    return max(int(frames) - 1, 0) // TEMPORAL * TEMPORAL + 1


def mel_frames(frames: int) -> int:
    """Mel frames that belong to `frames` video frames: `floor(frames / 16 * 100)`."""
    return floor(frames / FPS * MELS_PER_SECOND)


def frames_for_audio(samples: int) -> int:
    """The smallest `4n + 1` video frames that last as long as so many samples at 24 kHz."""
    return ceil(max(0, samples * FPS / SAMPLE_RATE - 1) / TEMPORAL) * TEMPORAL + 1


# spans and masks


class Span(NamedTuple):
    """Frames from `start` up to but without `stop`; empty by default."""

    start: int = 0
    stop: int = 0

    def outside(self, length: int) -> Tensor:
        """bool `[length]`, true outside the span; an empty span leaves everything outside.

        Raises:
            UserError: a span that does not lie within the length.
        """
        if not 0 <= self.start <= self.stop <= length:
            raise UserError(f"frames {self.start} to {self.stop} do not lie within the clip's {length}")
        place = torch.arange(length)
        return (place < self.start) | (place >= self.stop)


class Anew(NamedTuple):
    """What is generated in a mode that conditions the rest: latent frames and mel frames."""

    video: Span = Span()
    audio: Span = Span()


def anew_between(start: int, stop: int, latents: int, mels: int) -> Anew:
    """Latent frames `start` up to `stop` of a clip's `latents`, and the mel frames that belong to them."""
    ends = (mel_frames(video_frames(start)), mels if stop == latents else mel_frames(video_frames(stop)))
    return Anew(Span(start, stop), Span(*(min(end, mels) for end in ends)))


def example_span(mode: str, latents: int, mels: int) -> Anew:
    """What previews and evaluation generate: the second half of a clip, or the middle third in edit."""
    if MODES[mode].anew == "range":
        start = min(max(1, latents // 3), latents)
        return anew_between(start, max(start, latents - latents // 3), latents, mels)
    return anew_between((latents + 1) // 2, latents, latents, mels)


def draw_span(mode: str, latents: int, mels: int, generator: torch.Generator) -> Anew:
    """A random span for training: the rest of a clip after any beginning, or in edit any range after the
    first frame, of which a quarter each leave the video or the audio conditioned whole."""
    count = int(torch.randint(1, max(2, latents), (), generator=generator))
    if mode not in MODES or MODES[mode].anew != "range":
        return anew_between(count, latents, latents, mels)
    start = int(torch.randint(1, max(2, latents - count + 1), (), generator=generator))
    video, audio = anew_between(start, min(start + count, latents), latents, mels)
    kind = float(torch.rand((), generator=generator))
    return Anew(Span() if kind < 0.25 else video, Span() if kind > 0.75 else audio)


def _mask(rule: str, length: int, anew: Span) -> Tensor:
    if rule == OUTSIDE:
        return anew.outside(length)
    return torch.arange(length) < {NOTHING: 0, FIRST: 1, ALL: length}[rule]


def masks(mode: str, latents: int, mels: int, anew: Anew | None = None) -> tuple[Tensor, Tensor]:
    """Which latent frames `[T]` and mel frames `[L]` a mode conditions, bool on the CPU.

    `anew`: what is generated, in the modes that condition what is outside of it.
    """
    row, anew = MODES[mode], anew or Anew()
    return _mask(row.video, latents, anew.video), _mask(row.audio, mels, anew.audio)


def frame_mask(latents: Tensor) -> Tensor:
    """bool latent frames `[T]` -> bool video frames `[4(T - 1) + 1]`."""
    return torch.cat((latents[:1], latents[1:].repeat_interleave(TEMPORAL)))


# audio


def audio_latent(waveform: Tensor, mels: int, normalised: bool = False) -> Tensor:
    """Audio `[..., n]` at 24 kHz as so many mel frames of a clip: `[..., mels, 80]`.

    It is cut or filled with silence first; then, in audio-driven, its peak is set (docs/model.md section 6).
    """
    waveform = fit_length(waveform, mels * HOP)
    return sound_latent(peak_normalise(waveform) if normalised else waveform)


def voice_latent(waveform: Tensor) -> Tensor:
    """A reference voice `[..., n]` at 24 kHz -> `[..., Lr, 80]`: its peak set, 0.3 s of silence appended."""
    return sound_latent(reference_voice(waveform))


# tasks


@dataclass(frozen=True)
class Task:
    """What is conditioned before sampling; made by `condition`.

    Shapes: `reference_image` `[B, C, 1, H, W]`; `clean_video` `[B, C, T, H, W]` and `clean_audio`
    `[B, L, bands]`, zero but where `conditioned_video` bool `[T]` and `conditioned_audio` bool `[L]` are true
    (any frames); `reference_mel` `[B, Lr, bands]`, with `reference_mel_lengths` `[B]` where voices of a batch
    differ in length. `v2a`: whether video informs audio in the full pass. `speaker`: see `who_speaks`.
    """

    reference_image: Tensor
    clean_video: Tensor
    conditioned_video: Tensor
    clean_audio: Tensor
    conditioned_audio: Tensor
    reference_mel: Tensor | None = None
    v2a: bool = True
    reference_mel_lengths: Tensor | None = None
    speaker: Speaker | None = None

    def apply(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Both latents with the conditioned positions overwritten by clean data."""
        return (
            torch.where(
                self.conditioned_video.to(video.device)[:, None, None], self.clean_video.to(video), video
            ),
            torch.where(self.conditioned_audio.to(audio.device)[:, None], self.clean_audio.to(audio), audio),
        )

    def noise(self, seed: int) -> tuple[Tensor, Tensor]:
        """Standard normal video and audio latents, float32, the same on every device.

        Audio is drawn as `[B, bands, L]`, the layout of ComfyUI's latents: a seed gives the same clip there.
        """
        generator = torch.Generator().manual_seed(seed)
        batch, mels, bands = self.clean_audio.shape
        video = torch.randn(self.clean_video.shape, generator=generator)
        audio = torch.randn(batch, bands, mels, generator=generator).transpose(1, 2)
        return video.to(self.clean_video.device), audio.to(self.clean_audio.device)


def condition(
    mode: str,
    video: Tensor,
    audio: Tensor | None,
    latents: int,
    mels: int,
    *,
    anew: Anew | None = None,
    variant: str = "released",
    reference_image: Tensor | None = None,
    reference_mel: Tensor | None = None,
    reference_mel_lengths: Tensor | None = None,
    bands: int = MEL_BANDS,
) -> Task:
    """The task of a mode over `latents` latent frames and `mels` mel frames.

    Args:
        video: `[B, C, t, H, W]`, the latent of an image (t = 1) or of a video from its first frame on.
        audio: `[B, l, bands]`, the latent of the audio from its beginning on, None where there is none.
        anew: what is generated, in the modes that condition what is outside of it.
        variant: of the model, which decides the directions of the interaction.
        reference_image: `[B, C, 1, H, W]`, by default the first latent frame of `video`.

    Raises:
        UserError: less is given than the mode conditions, more than the clip holds, an empty reference voice.
    """
    row = MODES[mode]
    if audio is None:
        audio = video.new_zeros(video.shape[0], 0, bands)
    for name, given, length, unit in (
        ("video", video.shape[2], latents, "latent frames"),
        ("audio", audio.shape[1], mels, "mel frames"),
    ):
        if length < 1:
            raise UserError(f"the clip has {length} {unit}; make it at least 1 long")
        if given > length:
            raise UserError(
                f"{given} {unit} of {name} are given but the clip is only {length} long; "
                f"give less or make the clip longer"
            )
    conditioned = masks(mode, latents, mels, anew)
    for name, x, axis, mask in (("video", video, 2, conditioned[0]), ("audio", audio, 1, conditioned[1])):
        if mask[x.shape[axis] :].any():
            raise UserError(
                f"mode {mode} conditions {counted(int(mask.nonzero().max()) + 1, 'frame')} of the {name} "
                f"latent but {x.shape[axis]} are given; give the whole {name}"
            )
    if audio.shape[0] != video.shape[0]:
        raise UserError(
            f"{counted(video.shape[0], 'video')} but {counted(audio.shape[0], 'mel')} in the batch; "
            "give one each"
        )
    if reference_mel is not None and reference_mel.shape[1] == 0:
        raise UserError("the reference voice is empty; give a clip with some speech")

    def clean(x: Tensor, axis: int, mask: Tensor) -> Tensor:
        whole = x.new_zeros(*x.shape[:axis], len(mask), *x.shape[axis + 1 :])
        places = mask.nonzero()[:, 0].to(x.device)
        return whole.index_copy(axis, places, x.index_select(axis, places))

    return Task(
        reference_image=video[:, :, :1] if reference_image is None else reference_image,
        clean_video=clean(video, 2, conditioned[0]),
        conditioned_video=conditioned[0],
        clean_audio=clean(audio, 1, conditioned[1]),
        conditioned_audio=conditioned[1],
        reference_mel=reference_mel,
        v2a=variant not in row.v2a_off,
        reference_mel_lengths=reference_mel_lengths,
    )


# plans


class Edit(NamedTuple):
    """A time range in seconds, and whether its "video", its "audio" or "both" are made anew."""

    start: float
    end: float
    what: str = "both"


@dataclass(frozen=True)
class Plan:
    """A clip before its video is encoded: length, spans, mels, and notes for the user."""

    mode: str
    frames: int
    anew: Anew
    audio: Tensor | None = None  # [1, l, 80]
    reference_mel: Tensor | None = None  # [1, Lr, 80]
    notes: list[str] = field(default_factory=list)

    @property
    def latents(self) -> int:
        return latent_frames(self.frames)

    @property
    def mels(self) -> int:
        return mel_frames(self.frames)

    @property
    def masks(self) -> tuple[Tensor, Tensor]:
        """Conditioned latent frames `[T]` and mel frames `[L]`."""
        return masks(self.mode, self.latents, self.mels, self.anew)

    @property
    def given_frames(self) -> int:
        """How many frames of the image or the video are conditioned on, from the first."""
        return video_frames(int(self.masks[0].nonzero().max()) + 1)

    def task(self, video: Tensor, variant: str = "released", reference_image: Tensor | None = None) -> Task:
        """The task, on the device of `video` `[1, C, t, H, W]`; of a longer one the first frames are used.

        Raises:
            UserError: as `condition`.
        """
        used = latent_frames(self.given_frames)

        def there(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(video.device)

        return condition(
            self.mode,
            video[:, :, :used],
            there(self.audio),
            self.latents,
            self.mels,
            anew=self.anew,
            variant=variant,
            reference_image=there(reference_image),
            reference_mel=there(self.reference_mel),
        )


def plan(
    mode: str,
    frames: int | None = None,
    *,
    given_frames: int = 1,
    audio: Tensor | None = None,
    voice: Tensor | None = None,
    prefix_frames: int | None = None,
    edit: Edit | None = None,
) -> Plan:
    """Everything about a clip that its lengths and recordings decide.

    A recording that drives a face decides the length: the clip takes the next 4n + 1 frames at or above it,
    and what is missing at its end, less than 0.25 s, is conditioned as silence. The release generates that
    end instead, with all audio at time 0; silence comes back as it was given, is what a reference voice ends
    with in training too, and leaves the audio branch the same at every step. A recording that is shorter than
    the beginning it belongs to is conditioned as far as it goes, and the rest of the audio is generated.
    Around an edited range missing audio is silence.

    Args:
        frames: the length where no input decides it, else the longest that is wanted.
        given_frames: of the image (1) or the video at 16 fps.
        audio, voice: mono `[n]` at 24 kHz, the audio of the clip and a reference voice.
        prefix_frames: how many frames of the video are kept in a continuation, by default half the clip.
        edit: the range that is made anew in edit.

    Raises:
        UserError: inputs too short, silent or missing; a length or a range that does not fit.
    """
    row, notes = MODES[mode], []
    if row.takes_video and given_frames < MIN_FRAMES:
        raise UserError(
            f"the video lasts {given_frames / FPS:.3f} s ({counted(given_frames, 'frame')} at 16 fps); "
            f"the shortest clip is {MIN_FRAMES} frames, give a longer one"
        )
    if row.audio in (ALL, OUTSIDE) and audio is None:
        raise UserError(f"mode {mode} needs audio; give a recording or a video with audio")
    recording = cast(Tensor, audio)  # read in modes that condition audio alone
    length = _clip_frames(row, frames, given_frames, recording, notes)
    mels, anew, latent = mel_frames(length), Anew(), None
    if row.anew == "rest":
        kept = _prefix(prefix_frames, length, given_frames, notes)
        anew = anew_between(latent_frames(kept), latent_frames(length), latent_frames(length), mels)
        heard = min(anew.audio.start, recording.shape[-1] // HOP)
        if heard < anew.audio.start:
            if 2 * heard < anew.audio.start:
                raise UserError(
                    f"the audio lasts {recording.shape[-1] / SAMPLE_RATE:.2f} s but the video that is kept "
                    f"{kept / FPS:.2f} s; give the audio of the same clip"
                )
            missing = (anew.audio.start - heard) / MELS_PER_SECOND
            notes.append(
                f"the audio ends {missing:.2f} s before the video that is kept; the rest is generated"
            )
            anew = Anew(anew.video, Span(heard, mels))
        # as in training, the mel of what is kept sees the audio behind the seam where there is some
        latent = audio_latent(recording, min(mels, recording.shape[-1] // HOP))
    elif row.anew == "range":
        anew = _range(edit, latent_frames(length), mels, notes)
    if row.audio == ALL:
        check_audible(recording, "the audio")
    if latent is None and row.audio != NOTHING:
        latent = audio_latent(recording, mels, row.normalised)
    if voice is not None:
        check_audible(voice, "the reference voice")
        check_voice_length(voice, "the reference voice")
        voice = voice_latent(voice)[None]
    return Plan(mode, length, anew, None if latent is None else latent[None], voice, notes)


def _clip_frames(row: Mode, frames: int | None, given: int, audio: Tensor, notes: list[str]) -> int:
    if row.length == "frames":
        if frames is None:
            raise UserError(f"mode {row.name} needs the number of frames; give 4n + 1, such as 81")
        latent_frames(frames)
        return frames
    if row.length == "audio":
        seconds = audio.shape[-1] / SAMPLE_RATE
        if seconds * FPS < MIN_FRAMES:
            raise UserError(
                f"the audio lasts {seconds:.3f} s; the shortest clip is {MIN_FRAMES} frames "
                f"({MIN_FRAMES / FPS:.4f} s), give a longer one"
            )
        available = frames_for_audio(audio.shape[-1])
    else:
        seconds, available = given / FPS, snap_frames(given)
    length = available if frames is None else min(frames, available)
    if length > MAX_FRAMES:
        raise UserError(
            f"the {row.length} lasts {seconds:.2f} s; the longest clip is {MAX_FRAMES} frames "
            f"({MAX_FRAMES / FPS:.0f} s), give a shorter one"
        )
    latent_frames(length)
    lasts = length / FPS
    if lasts != seconds:
        rest = "are silence" if lasts > seconds else "of it are left out"
        notes.append(
            f"{length} frames ({lasts:.2f} s) for the {row.length} ({seconds:.2f} s): "
            f"the last {abs(lasts - seconds):.2f} s {rest}"
        )
    return length


def _prefix(wanted: int | None, length: int, given: int, notes: list[str]) -> int:
    available = snap_frames(given)
    kept = min(available, snap_frames(length // 2 + 1)) if wanted is None else wanted
    latent_frames(kept)
    if kept > available or kept >= length:
        raise UserError(
            f"{kept} of the video's {counted(given, 'frame')} (16 fps) cannot open a clip of {length} "
            "frames; keep fewer (--prefix-frames) or make frames larger"
        )
    stays = "is" if kept == 1 else "are"
    notes.append(f"the first {counted(kept, 'frame')} ({kept / FPS:.2f} s) of the video {stays} kept")
    return kept


def _range(edit: Edit | None, latents: int, mels: int, notes: list[str]) -> Anew:
    """Audio is made anew to 10 ms, video in whole latent frames around the range. The first frame is the
    reference image and stays."""
    if edit is None:
        raise UserError("mode edit needs a time range; give its start and its end in seconds")
    start, end, what = edit
    frames = video_frames(latents)
    if what not in EDITS:
        raise UserError(f"edit is {what!r}, expected {', '.join(EDITS)}")
    if not (0 <= start < end and start < frames / FPS):
        raise UserError(
            f"the range {start:g} to {end:g} s does not lie within the clip of {frames / FPS:.4g} s; give a "
            "start below its end, both in seconds"
        )
    first, last = floor(start * FPS + 1e-6), min(ceil(end * FPS - 1e-6), frames) - 1
    video = Span(max(1, latent_of(first)), latent_of(last) + 1)
    audio = Span(
        min(floor(start * MELS_PER_SECOND + 1e-6), mels - 1),
        min(ceil(end * MELS_PER_SECOND - 1e-6), mels) if last < frames - 1 else mels,
    )
    if what != "audio" and video.start >= video.stop:
        raise UserError(
            f"the range {start:g} to {end:g} s holds only the first frame, which stays; make the range longer"
        )
    made = []
    if what == "audio":
        video = Span()
    else:
        made.append(
            f"video from {video_frames(video.start) / FPS:.2f} to {video_frames(video.stop) / FPS:.2f} s"
        )
    if what == "video":
        audio = Span()
    else:
        made.append(f"audio from {audio.start / MELS_PER_SECOND:.2f} to {audio.stop / MELS_PER_SECOND:.2f} s")
    notes.append(f"{' and '.join(made)} made anew, everything else stays")
    return Anew(video, audio)


def latent_of(frame: int) -> int:
    """The latent frame that holds a video frame."""
    return -(-frame // TEMPORAL)


# outputs


def keep_frames(made: Tensor, source: Tensor, conditioned: Tensor) -> Tensor:
    """Frames uint8 `[F, H, W, 3]` with those of the source where their latent frames `[T]` are conditioned.

    Latent frames are whole groups of four frames, so a seam never lies inside one.
    """
    mask = frame_mask(conditioned)
    if mask.all():
        return source[: len(mask)]
    out = made.clone()
    places = mask.nonzero()[:, 0]
    out[places] = source[places].to(out)
    return out


def keep_audio(made: Tensor, source: Tensor, conditioned: Tensor) -> Tensor:
    """Samples `[n]` with those of the source where their mel frames `[L]` are conditioned.

    A seam is faded over 10 ms inside the generated part, as far as the source reaches.
    """
    length = made.shape[-1]
    kept = conditioned.repeat_interleave(HOP)
    kept = F.pad(kept, (0, max(0, length - len(kept))), value=bool(conditioned[-1]))[:length]
    reach, source = source.shape[-1], fit_length(source, length).to(made)
    if kept.all():
        return source
    weight = kept.to(made)  # of the source
    ramp = torch.linspace(1, 0, round(SEAM * SAMPLE_RATE) + 2)[1:-1].to(made)
    for edge in (kept.int().diff().nonzero()[:, 0] + 1).tolist():  # the first sample of the other kind
        if kept[edge]:
            n = min(len(ramp), edge)
            weight[edge - n : edge] = torch.maximum(weight[edge - n : edge], ramp[:n].flip(0))
        else:
            n = max(0, min(len(ramp), reach - edge, length - edge))
            weight[edge : edge + n] = torch.maximum(weight[edge : edge + n], ramp[:n])
    return torch.where(kept.to(made.device), source, weight * source + (1 - weight) * made)
