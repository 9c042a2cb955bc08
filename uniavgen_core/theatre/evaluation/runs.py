"""What is evaluated: each run fills one jsonl file, a line a clip, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ... import conditioning
from ...errors import UserError, counted
from ...media import files
from ...media.mel import SAMPLE_RATE, latent_to_mel, prepare_audio
from ...media.vae import TEMPORAL
from ...model.dit import DualBranchDiT
from ...pipeline import Pipeline
from ...sampling.defaults import Guidance
from ..clips import Theatre, measure_aperture, measure_pitch, shows_puppet
from .metrics import Face, amplitude, mask_iou, measure, measure_any, mel_seam, picture_seam, pitch_error
from .people import Instruments, measure_person
from .recogniser import Recogniser, is_known, word_errors, words
from .sampling import Example, GeneratedClip, ceiling, face_masks, make

BASELINES = ("truth", "ceiling", "mismatched", "face-mask")
VARIANTS = {
    "joint": ("cut", "cfg", "none"),
    "dubbing": ("cut",),
    "audio-driven": ("cut",),
}
RUNS = (
    *BASELINES,
    *conditioning.MODES,
    *(f"{mode}-{variant}" for mode, variants in VARIANTS.items() for variant in variants),
)
"""A mode alone is MA-CFG; "-cut": without interaction, "-cfg": plain CFG, "-none": no guidance, twice the
steps; "truth": the clips themselves, "ceiling": through VAE and vocoder, "mismatched": with the next clip's
audio."""
GRID = (1.0, 1.5, 2.0, 3.0, 4.0)


def sampler(guidance: Guidance, steps: int, variant: str) -> tuple[Guidance, int]:
    """Guidance and number of steps of a variant ("" is MA-CFG): the same number of passes in each."""
    if variant == "cfg":
        return replace(guidance, interval=0.0), steps
    if variant == "none":
        return Guidance.none(), steps * (2 if guidance.needs_null else 1)
    return guidance, steps


@dataclass
class Evaluation:
    """A model before the held-out theatre. `out` is the folder of results, `show` the clips kept of a run.

    Raises:
        UserError: `out` holds another evaluation.
    """

    pipeline: Pipeline
    recogniser: Recogniser
    theatre: Theatre
    out: Path
    guidance: Guidance
    steps: int
    shift: float
    clips: int = 64
    batch: int = 16
    show: int = 6
    seed: int = 0
    on_clips: Callable[[str, int, int], None] = lambda run, done, count: None
    _examples: dict[int, Example] = field(default_factory=dict)
    _faces: list[Face] = field(default_factory=list)

    def __post_init__(self):
        if self.clips < 2:
            raise UserError(f"--clips is {self.clips}; use at least 2, 64 for numbers to rely on")
        if self.batch < 1:
            raise UserError(f"--batch is {self.batch}; use at least 1")
        self.about = {
            "model": fingerprint(self.pipeline.model.get()),
            "theatre": [self.theatre.seed, self.theatre.split, self.theatre.frames, *self.theatre.size],
            "seed": self.seed,
            "steps": self.steps,
            "shift": self.shift,
            **asdict(self.guidance),
            "skip_layers": list(self.guidance.skip_layers),
        }

    def run(self, name: str) -> None:
        """Measure what is missing of run `name`."""
        with Results(self.out / "runs" / f"{name}.jsonl", self.about) as lines:
            for indices in self._batches({row["index"] for row in lines.rows}):
                for row in self.rows(name, indices):
                    lines.add(row)
                self.on_clips(name, indices[-1] + 1, self.clips)

    def grid(self, s_v: tuple[float, ...] = GRID, s_a: tuple[float, ...] = GRID) -> None:
        """Joint clips at every pair of scales that is missing, MA-CFG, the same noise everywhere."""
        about = {k: v for k, v in self.about.items() if k not in ("s_v", "s_a")} | {"clips": self.clips}
        with Results(self.out / "grid.jsonl", about) as lines:
            done = {(row["s_v"], row["s_a"]) for row in lines.rows}
            for v, a in ((v, a) for v in s_v for a in s_a if (v, a) not in done):
                point = replace(self, guidance=replace(self.guidance, s_v=v, s_a=a), show=0)
                rows = [
                    {k: row[k] for k in ("sync", "errors", "words", "amplitude_ratio")}
                    for indices in self._batches(set())
                    for row in point.rows("joint", indices)
                ]
                lines.add({"s_v": v, "s_a": a, "rows": rows})
                self.on_clips(f"s_v {v:g}, s_a {a:g}", self.clips, self.clips)

    def rows(self, name: str, indices: list[int]) -> Iterator[dict]:
        """What is measured on these clips in run `name`."""
        examples = [self.example(i) for i in indices]
        if name == "face-mask":
            for example, (mask, target) in zip(examples, face_masks(self.pipeline, examples, self.seed)):
                yield {"index": example.index, "mask_iou": mask_iou(mask, target)}
            return
        if name == "mismatched":
            for example in examples:
                sound = self.theatre.speech((example.index + 1) % self.clips).waveform
                yield {"index": example.index, **measure(example.clip.frames, sound)}
            return
        mode, variant = _split(name)
        start = time.perf_counter()
        if name == "truth":
            made = [
                GeneratedClip(e.clip.frames, e.clip.waveform, e.latents["video"], e.latents["audio"])
                for e in examples
            ]
        elif name == "ceiling":
            made = [ceiling(self.pipeline, example) for example in examples]
        else:
            how = sampler(self.guidance, self.steps, variant)
            made = make(self.pipeline, examples, mode, *how, self.shift, self.seed, variant != "cut")
        seconds = (time.perf_counter() - start) / len(examples)
        heard = self.recogniser.transcribe(torch.from_numpy(np.stack([m.waveform for m in made])))
        for example, clip, text in zip(examples, made, heard):
            row = self._row(mode, example, clip, text) | {"seconds": round(seconds, 2)}
            if example.index < self.show:
                row["clip"] = f"clips/{name}-{example.index}.mp4"
                write_clip(self.out / row["clip"], clip)
            yield row

    def _row(self, mode: str, example: Example, made: GeneratedClip, heard: str) -> dict:
        clip, index = example.clip, example.index
        task = conditioning.MODES.get(mode)  # None: a baseline
        lengths = len(example.latents["mask"]), len(example.latents["audio"])
        anew = conditioning.example_span(mode if task else "continuation", *lengths)
        seam_frame, n_a = conditioning.video_frames(anew.video.start), anew.audio.start
        first = seam_frame if task and task.anew == "rest" else 0
        row = {"index": index, "motion": clip.motion, "said": clip.transcript, "heard": heard}
        row |= measure(made.frames, made.waveform, first)
        if task is None or task.audio != "all":
            row |= {"words": len(words(clip.transcript)), "errors": word_errors(clip.transcript, heard)}
            own = measure_pitch(clip.waveform)
            wanted = measure_pitch(example.given.waveform) if mode == "reference-voice" else own
            row["pitch_error"] = pitch_error(row["pitch"], wanted)
        if mode == "reference-voice":
            row["own_voice_error"] = pitch_error(row["pitch"], own)
        if task is None or task.video != "all":
            row["amplitude_ratio"] = row["amplitude"] / amplitude(measure_aperture(clip.frames)[first:])
            distances = [face.distance(made.frames) for face in self.faces]
            others = distances[:index] + distances[index + 1 :]
            row |= {"face_distance": distances[index], "other_face_distance": float(np.mean(others))}
            row["face_known"] = distances[index] < min(others)
        if task is None or task.anew:
            row["seam_picture"] = picture_seam(made.frames, seam_frame)
            row["seam_latent"] = picture_seam(made.frames, seam_frame, TEMPORAL)
            row["seam_mel"] = mel_seam(latent_to_mel(made.audio).numpy(), n_a)
        if task and task.anew:
            video, audio = conditioning.masks(mode, *lengths, anew)
            row["known_difference"] = max(
                float((made.video - example.latents["video"])[:, video].abs().max()),
                float((made.audio - example.latents["audio"])[audio].abs().max()),
            )
        return row

    @property
    def faces(self) -> list[Face]:
        """The face that opens each clip."""
        if not self._faces:
            clips = (self.theatre.clip(i) for i in range(self.clips))
            self._faces += [Face(clip.frames[0], clip.face_mask[0]) for clip in clips]
        return self._faces

    def example(self, index: int) -> Example:
        """Clip number `index` of the theatre."""
        if index not in self._examples:
            self._examples[index] = Example.make(self.theatre, index, self.pipeline.vae.get())
        return self._examples[index]

    def _batches(self, done: set[int]) -> Iterator[list[int]]:
        missing = [i for i in range(self.clips) if i not in done]
        for start in range(0, len(missing), self.batch):
            yield missing[start : start + self.batch]


class Results:
    """A jsonl file that grows by whole lines, from several processes too; the first says what it is about.

    Raises:
        UserError: the file is about something else.
    """

    def __init__(self, path: Path, about: dict):
        path.parent.mkdir(parents=True, exist_ok=True)
        found, self.rows = read_lines(path) if path.exists() else (None, [])
        if found not in (None, about):
            changed = [k for k in about if found.get(k) != about[k]]
            raise UserError(
                f"{path} was measured with another {', '.join(changed)}; choose another --out or delete it"
            )
        self.file = path.open("a+b")
        self.file.seek(0)
        self.file.truncate(self.file.read().rfind(b"\n") + 1)  # a line that was cut short
        if found is None:
            self._write(about)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self._write(row)

    def _write(self, row: dict) -> None:
        self.file.write(json.dumps(row).encode() + b"\n")
        self.file.flush()


def read_lines(path: Path) -> tuple[dict | None, list[dict]]:
    """The first line of a results file and the others; a last line that was cut short is left out."""
    values = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        values.append(json.loads(line))
    return (values[0], values[1:]) if values else (None, [])


def _split(name: str) -> tuple[str, str]:
    """ "audio-driven-cut" -> ("audio-driven", "cut"); a run without a variant has ""."""
    for mode in VARIANTS:
        if name.startswith(f"{mode}-"):
            return mode, name.removeprefix(f"{mode}-")
    return name, ""


def fingerprint(model: DualBranchDiT) -> str:
    """Twelve hexadecimal digits that tell models apart, whatever their files are called."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def write_clip(path: Path, made: GeneratedClip) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = torch.from_numpy(np.ascontiguousarray(made.waveform))
    files.write_mp4(path, torch.from_numpy(made.frames), conditioning.FPS, sound, SAMPLE_RATE)


def measure_folder(
    folder: Path, recogniser: Recogniser | None = None, people: Instruments | None = None
) -> list[dict]:
    """A row of measures for each mp4 of a folder, in order of name, whoever made it.

    With a `recogniser` the clips are taken for the theatre's puppets, and those that show one also get
    `metrics.measure` and the words heard; with `people` those that show none get `people.measure_person`.
    Without either, lips and words are not measured. A jsonl file beside the clips with the fields `file` and
    `transcript` adds what is said (of puppets words are counted where the recogniser knows all of them), its
    field `voice`, another file of the folder, whose voice it should be.

    Raises:
        UserError: no mp4 there; a clip without audio or too short; a jsonl that is none or names no clip.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of mp4 files")
    paths = sorted(folder.glob("*.mp4"))
    if not paths:
        raise UserError(f"{folder}: there is no mp4 in it; choose the folder the clips lie in")
    notes, rows = _notes(folder, {file.name for file in paths}), []
    for file in paths:
        video = files.read_video(file, fps=conditioning.FPS)
        if video.audio is None:
            raise UserError(f"{file}: has no audio; choose clips of a speaking person")
        if len(video.frames) < conditioning.FPS // 2:
            raise UserError(
                f"{file}: has {counted(len(video.frames), 'frame')} at 16 fps; use clips of 0.5 s and more"
            )
        frames, waveform = video.frames.numpy(), prepare_audio(*video.audio)
        row = {"file": file.name, **measure_any(frames, waveform.numpy())}
        note = notes.get(file.name, {})
        if "transcript" in note:
            row["said"] = note["transcript"]
        if people is not None:
            row |= _person(people, frames, waveform.numpy(), note, folder)
        if recogniser is not None:
            row["puppet"] = shows_puppet(frames)
        if recogniser is not None and row["puppet"]:
            row |= measure(frames, waveform.numpy())
            row["heard"] = recogniser.transcribe(waveform[None])[0]
            if is_known(row.get("said", "")):
                row |= {"words": len(words(row["said"])), "errors": word_errors(row["said"], row["heard"])}
        rows.append(row)
    return rows


def _person(
    people: Instruments, frames: np.ndarray, waveform: np.ndarray, note: dict[str, str], folder: Path
) -> dict:
    if people.names and shows_puppet(frames):
        reason = "a drawn puppet, for which there is --puppets"
        return {"not_measured": {key: reason for key in people.names}}
    voice = None
    if "voice" in note and people.embed is not None:
        voice = prepare_audio(*files.read_audio(folder / note["voice"])).numpy()
    return measure_person(frames, waveform, people, note.get("transcript"), voice)


def _notes(folder: Path, names: set[str]) -> dict[str, dict[str, str]]:
    """What the jsonl of a folder says of its clips: "transcript", "voice" where given."""
    lists = sorted(folder.glob("*.jsonl"))
    if len(lists) > 1:
        raise UserError(f"{folder}: holds {len(lists)} jsonl files; leave the one with the transcripts there")
    notes: dict[str, dict[str, str]] = {}
    for file in lists:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                note = {"transcript": str(row["transcript"])}
                if "voice" in row:
                    note["voice"] = str(row["voice"])
                notes[Path(row["file"]).name] = note
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f'{file}, line {number}: expected {{"file": ..., "transcript": ...}}, '
                    f"found {type(error).__name__}: {error}"
                ) from error
        if not names & notes.keys():
            raise UserError(f"{file}: names none of the {len(names)} clips beside it; write such as a.mp4")
    for note in notes.values():
        if "voice" in note and not (folder / note["voice"]).is_file():
            raise UserError(
                f"{folder / note['voice']}: there is no such recording; correct `voice` in the jsonl"
            )
    return notes
