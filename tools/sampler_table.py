"""ComfyUI samplers and step counts measured on the embedded model: sync, words and images of held-out clips.

    COMFYUI_PATH=... python tools/sampler_table.py OUT.jsonl --clips 8 --steps 8 16 25

Runs on the CPU in ComfyUI's environment with the packages of `uniavgen eval` in it. Each line of OUT.jsonl is
one clip; a run goes on where the last one stopped and prints the table of all lines at its end.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
PACK = "uniavgen_pack"
SAMPLERS = ("euler", "res_multistep", "dpmpp_2m", "uni_pc", "heun")
KEYS = ("amplitude", "face_distance", "contrast")
TWO_EVALUATIONS = {"heun", "dpm_2", "exp_heun_2_x0", "dpmpp_2s_ancestral", "dpmpp_sde", "seeds_2"}


def load_pack(comfy: Path) -> None:
    """The pack inside ComfyUI's modules, as its server imports it; on the CPU."""
    sys.path.insert(0, str(comfy))
    importlib.import_module("comfy.cli_args").args.cpu = True
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(ROOT)
    sys.modules[PACK] = pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)


def core(name: str):
    return importlib.import_module(f"{PACK}.uniavgen_core.{name}")


def node(name: str):
    return importlib.import_module(f"{PACK}.nodes.{name}")


class Table:
    """Joint clips of the held-out theatre, made by the guider under samplers of the host."""

    def __init__(self):
        embedded, pipeline = core("embedded"), core("pipeline")
        self.pipeline = pipeline.Pipeline.load(pipeline.Weights(), keep=True)
        self.recogniser = core("theatre.evaluation.recogniser").load_recogniser()
        self.theatre = core("theatre.clips").Theatre(0, "held-out")
        self.model = node("loading").parts_of(embedded.model_file(), puppet=True)[0]
        self.settings = embedded.settings()

    def rows(self, index: int, runs: list[tuple[str, int]]) -> Iterator[dict]:
        """What is measured on one clip, all runs from the same noise."""
        sampling = core("theatre.evaluation.sampling")
        example = sampling.Example.make(self.theatre, index, self.pipeline.vae.get())
        case = self._case(example)
        for sampler, steps in runs:
            video, audio = self._sampled(case, sampler, steps)
            made = sampling._decode(
                self.pipeline, [example], "joint", core("sampling.sampler").Sample(video, audio, {})
            )[0]
            heard = self.recogniser.transcribe(torch.from_numpy(made.waveform[None]))[0]
            recogniser, metrics = core("theatre.evaluation.recogniser"), core("theatre.evaluation.metrics")
            said = example.clip.transcript
            measured = metrics.measure(made.frames, made.waveform)
            yield {
                "index": index,
                "sampler": sampler,
                "steps": steps,
                "sync": measured["sync"],
                "amplitude": measured["amplitude"],
                "words": len(recogniser.words(said)),
                "errors": recogniser.word_errors(said, heard),
                "face_distance": metrics.Face(example.clip.frames[0], example.clip.face_mask[0]).distance(
                    made.frames
                ),
                "contrast": float(np.std(made.frames) / np.std(example.clip.frames)),
            }

    def _case(self, example) -> SimpleNamespace:
        sampling, nested = core("theatre.evaluation.sampling"), importlib.import_module("comfy.nested_tensor")
        config, raw = self.pipeline.config, self.model.model.latent_format.process_out
        batch = sampling._batch([example], "joint", 0)
        task = sampling.conditions(batch, config.variant, config.patch)
        task = replace(task, reference_image=raw(task.reference_image), clean_video=raw(task.clean_video))
        full, null = (sampling._texts(self.pipeline, [example], "joint", null) for null in (False, True))
        speech = node("types").EncodedSpeech(full.speech, null.speech, transcript=False)
        captions = ([[texts.caption, {}]] for texts in (full, null))
        positive, negative, latent = node("tasks").conditioned(task, "joint", *captions, speech).result
        noise = nested.NestedTensor((batch.video_noise, batch.audio_noise.transpose(1, 2)))
        return SimpleNamespace(positive=positive, negative=negative, latent=latent, noise=noise)

    def _sampled(self, case: SimpleNamespace, sampler: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised video `[1, 48, T, h, w]` and audio `[1, L, 80]`."""
        guider = node("guiding").MACFGGuider(self.model, self.settings.guidance)
        guider.set_conds(case.positive, case.negative)
        video, audio = guider.sample(
            case.noise,
            case.latent["samples"],
            importlib.import_module("comfy.samplers").sampler_object(sampler),
            core("sampling.sampler").schedule(steps, self.settings.shift) / 1000,
            denoise_mask=case.latent["noise_mask"],
            disable_pbar=True,
            seed=case.noise.tensors[0].numel(),
        ).unbind()
        return self.model.model.latent_format.process_in(video), audio.transpose(1, 2)


def table(rows: list[dict]) -> str:
    """Markdown, one line for each sampler and number of steps, with 95 % bootstrap intervals over clips."""
    metrics = core("theatre.evaluation.metrics")
    lines = [
        "| sampler | steps | passes | sync | words wrong | mouth opens | face distance | contrast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in dict.fromkeys((row["sampler"], row["steps"]) for row in rows):
        found = [row for row in rows if (row["sampler"], row["steps"]) == run]
        passes = run[1] * (4 if run[0] in TWO_EVALUATIONS else 2)
        wrong = np.array([(row["errors"], row["words"]) for row in found])
        numbers = {key: np.array([row[key] for row in found]) for key in ("sync", *KEYS)}
        values = [
            metrics.interval(numbers["sync"], metrics.mean),
            metrics.interval(wrong, metrics.ratio),
            *(metrics.interval(numbers[key], metrics.mean) for key in KEYS),
        ]
        cells = " | ".join("{:.2f} [{:.2f}, {:.2f}]".format(*value) for value in values)
        lines.append(f"| {run[0]} | {run[1]} | {passes} | {cells} |")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 25])
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    load_pack(Path(os.environ["COMFYUI_PATH"]))
    torch.set_num_threads(1)
    made = Table()
    done = {(row["index"], row["sampler"], row["steps"]) for row in rows}
    for index in range(options.clips):
        runs = [(s, n) for n in options.steps for s in options.samplers if (index, s, n) not in done]
        with options.out.open("a") as lines:
            for row in made.rows(index, runs) if runs else ():
                rows.append(row)
                lines.write(json.dumps(row) + "\n")
                lines.flush()
    print(table(rows))


if __name__ == "__main__":
    main()
