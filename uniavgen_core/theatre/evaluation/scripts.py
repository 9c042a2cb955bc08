"""Scripts of many sentences, spoken by held-out faces and measured part by part and at their seams."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...conditioning import FPS, mel_frames, video_frames
from ...long_speech import Folder, Part, decode_audio, digest, speak
from ...media import files
from ...media.mel import SAMPLE_RATE, latent_to_mel
from ...media.vae import TEMPORAL
from ...pipeline import Pipeline, Request, Weights
from ...script import Script, Speaker, prepare
from ..clips import Theatre
from ..voices import sentence
from .metrics import Face, interval, mean, measure, median, mel_seam, picture_seam, ratio
from .recogniser import Recogniser, word_errors, words
from .runs import Results, fingerprint

LETTERS = range(20, 27)  # of a sentence: it takes a whole part
Progress = Callable[[int, int], None]


def lines_of(person: int, sentences: int) -> list[str]:
    """Held-out sentences for a person, each as long as a part."""
    rng, lines = np.random.default_rng([2026, person]), []
    while len(lines) < sentences:
        text = sentence(rng, is_held_out=True)
        if len(text) in LETTERS:
            lines.append(text)
    return lines


def run(
    weights: Weights,
    recogniser: Recogniser,
    out: Path,
    people: list[int],
    sentences: int = 8,
    preset: str | None = None,
    on_part: Progress = lambda done, count: None,
) -> dict:
    """Measures those of `people` that are missing in `out`, keeps their clips, and sums all up.

    Raises:
        UserError: `out` holds another evaluation.
    """
    pipeline, theatre = Pipeline.load(weights, keep=True), Theatre(0, "held-out")
    defaults = pipeline.defaults
    about = {"model": fingerprint(pipeline.model.get()), "sentences": sentences, "steps": defaults.steps}
    about |= {
        "preset": preset,
        "shift": defaults.shift,
        "s_v": defaults.guidance.s_v,
        "s_a": defaults.guidance.s_a,
    }
    with Results(out / "scripts.jsonl", about) as lines, torch.inference_mode():
        for person in people:
            if person in {row["person"] for row in lines.rows}:
                continue
            clip = theatre.clip(person)
            picture = out / "people" / f"{person}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(clip.frames[0]).save(picture)
            request = Request(
                "joint",
                str(out / f"{person}.mp4"),
                "",
                clip.caption,
                image=str(picture),
                short_side=theatre.size[1],
                seed=person,
                preset=preset,
            )
            script = prepare(request, "\n".join(lines_of(person, sentences)), weights)
            parts = _parts(pipeline, script, out / "parts", digest(about, person), on_part)
            face = Face(clip.frames[0], clip.face_mask[0])
            lines.add({"person": person, **_measured(pipeline, recogniser, script, parts, face)})
        return summary(lines.rows)


def _parts(pipeline: Pipeline, script: Script, folder: Path, key: str, on_part: Progress) -> list[Part]:
    store = Folder(folder)
    store.check()
    speaker = Speaker(pipeline, script, is_embedded=True)
    return list(
        speak(
            script.lines,
            script.longest,
            script.completed.seed,
            speaker.image,
            speaker.make,
            store,
            key,
            keep_voice=pipeline.defaults.keep_voice,
            tail=pipeline.defaults.tail,
            on_part=lambda index, count, known: on_part(index, count),
        )
    )


def _measured(
    pipeline: Pipeline, recogniser: Recogniser, script: Script, parts: list[Part], face: Face
) -> dict:
    video, audio = torch.cat([part.video for part in parts], 2), torch.cat([part.audio for part in parts], 1)
    with pipeline.vae.used() as vae:
        frames = torch.cat([files.to_uint8(piece[0]) for piece in vae.decode_stream([video])])
    waveform = decode_audio(pipeline.decode_audio, audio)
    files.write_mp4(script.completed.request.out, frames, FPS, waveform, SAMPLE_RATE)
    pictures, wave = frames.numpy(), waveform.numpy()
    edges = [0, *(video_frames(latents) for latents in accumulate(part.video.shape[2] for part in parts))]
    rows = []
    for line, (start, end) in zip(script.lines, pairwise(edges)):
        shown, heard = pictures[start:end], wave[start * 1500 : end * 1500]
        measured = measure(shown, heard)
        text = recogniser.transcribe(torch.from_numpy(heard)[None])[0]
        row = {name: measured[name] for name in ("sync", "lag", "amplitude", "pitch")}
        row |= {"said": line.text, "heard": text, "words": len(words(line.text))}
        rows.append(row | {"errors": word_errors(line.text, text), "face_distance": face.distance(shown)})
    mel = latent_to_mel(audio)[0].numpy()
    inner = edges[1:-1]
    return {
        "parts": rows,
        "seconds": len(pictures) / FPS,
        "seam_picture": [picture_seam(pictures, edge) for edge in inner],
        "seam_latent": [picture_seam(pictures, edge, TEMPORAL) for edge in inner],
        "seam_mel": [mel_seam(mel, mel_frames(edge)) for edge in inner],
    }


def summary(rows: list[dict]) -> dict:
    """Each measure as (value, low, high), 95 % bootstrap over people.

    "word_error_first", "sync_first": of first parts, which are joint clips; "..._later": of all others.
    "pitch_drift": |f0 of the last part / of the first - 1|; "face_first", "face_last": colour distance to the
    reference face, "face_drift": its growth. Seams: the median over a clip's seams, in its own median step.
    """
    found = {"people": len(rows), "seconds": [round(row["seconds"], 2) for row in rows]}
    if not rows:
        return found

    def over(values: list, statistic) -> list[float]:
        return [round(x, 3) for x in interval(np.array(values, np.float64), statistic)]

    def errors(parts: list[dict]) -> list[int]:
        return [sum(part["errors"] for part in parts), sum(part["words"] for part in parts)]

    def sync(parts: list[dict]) -> float:
        return float(np.mean([part["sync"] for part in parts]))

    for name, part in {"first": slice(1), "later": slice(1, None), "last": slice(-1, None)}.items():
        found[f"word_error_{name}"] = over([errors(row["parts"][part]) for row in rows], ratio)
        found[f"sync_{name}"] = over([sync(row["parts"][part]) for row in rows], mean)
    for name in ("seam_picture", "seam_latent", "seam_mel"):
        found[name] = over([np.median(row[name]) for row in rows], median)
    ends = [(row["parts"][0], row["parts"][-1]) for row in rows]
    voiced = [abs(b["pitch"] / a["pitch"] - 1) for a, b in ends if a["pitch"] and b["pitch"]]
    if voiced:
        found["pitch_drift"] = over(voiced, median)
    found["face_first"] = over([a["face_distance"] for a, _ in ends], mean)
    found["face_last"] = over([b["face_distance"] for _, b in ends], mean)
    found["face_drift"] = over([b["face_distance"] - a["face_distance"] for a, b in ends], mean)
    return found
