"""The model beside the naive oracle, in one process on the same weights and inputs: time, memory, difference.

At released width with few layers, on a CPU in float32. One joint MA-CFG step, full and null pass: the model's
is its second, which has what a run keeps; the oracle keeps nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import atomic, oracle
from .bench import SPEECH_SYMBOLS, Size
from .conditioning import condition
from .errors import UserError
from .model.config import RELEASED, Config
from .model.dit import DualBranchDiT
from .model.inputs import TextConditioning
from .sampling.defaults import Guidance
from .sampling.guidance import GuidedModel, RunPasses, one_by_one

TIME, STEPS = 900.0, 2


class Point(NamedTuple):
    """One comparison: so many takes of a square clip."""

    frames: int = 9
    side: int = 192
    takes: int = 1


SWEEPS = {
    "frames": [Point(frames=n) for n in (5, 9, 17, 33)],
    "side": [Point(side=n) for n in (128, 192, 256, 384)],
    "takes": [Point(takes=n) for n in (1, 2, 4)],
}
"""What is varied, around the same middle."""


def few_layers(layers: int) -> Config:
    """The released size with so many layers, of which every other one interacts.

    Raises:
        UserError: fewer than one layer, or more than the release has.
    """
    if not 1 <= layers <= RELEASED.layers:
        raise UserError(f"{layers} layers cannot be compared; use 1 to {RELEASED.layers}, such as 2")
    return replace(RELEASED, layers=layers, interaction_layers=tuple(range(0, layers, 2)))


def random_model(config: Config, seed: int = 0) -> DualBranchDiT:
    """With every weight random, and features of order one."""
    model = DualBranchDiT(config, device="meta").to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("weight") and "norm" in name:
            weight.fill_(1.0)
        else:
            weight.normal_(std=0.02 if weight.ndim > 1 else 0.1, generator=generator)
    return model


class Inputs:
    """Random inputs of one point, and the step by both."""

    def __init__(self, config: Config, point: Point):
        size = Size(point.side, point.side, point.frames)
        size.check()
        frames, rows, columns = size.latent
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.config, self.guidance = config, Guidance(skip_layers=())
        self.video = normal(point.takes, config.video_channels, frames, rows, columns)
        self.audio = normal(point.takes, size.mels, config.audio_channels)
        self.image = normal(1, config.video_channels, 1, rows, columns)
        self.caption, self.speech = (
            normal(1, 40, config.caption_dim),
            normal(1, SPEECH_SYMBOLS, config.speech_dim),
        )
        self.null = torch.zeros_like(self.caption), normal(1, 10, config.speech_dim)

    def model_step(
        self, model: DualBranchDiT, run_passes: RunPasses = one_by_one
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """A step of all takes at once."""
        takes = len(self.video)
        positive, negative = (
            TextConditioning(caption.expand(takes, -1, -1), speech.expand(takes, -1, -1))
            for caption, speech in ((self.caption, self.speech), self.null)
        )
        image = self.image.expand(takes, -1, -1, -1, -1)
        task = condition("joint", image, None, self.video.shape[2], self.audio.shape[1])
        guided = GuidedModel(model, task, positive, negative, self.guidance, run_passes=run_passes)

        def step() -> tuple[Tensor, Tensor]:
            velocity = guided(self.video, self.audio, torch.full((takes,), TIME), 0, STEPS)
            return velocity.video, velocity.audio

        return step

    def oracle_step(self, state: oracle.State) -> tuple[Tensor, Tensor]:
        """A step of one take after the other."""
        takes = [self._oracle_take(state, video, audio) for video, audio in zip(self.video, self.audio)]
        video, audio = zip(*takes)
        return torch.stack(video), torch.stack(audio)

    def _oracle_take(self, state: oracle.State, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        image = self.image[0]
        video = torch.cat((image, video[:, 1:]), dim=1)  # the reference image opens a joint clip
        clip = oracle.Clip(video, audio, TIME, self.caption[0], self.speech[0], image, n_v=1)
        full = oracle.forward(state, self.config, clip)
        caption, speech = self.null
        null = replace(clip, caption=caption[0], speech=speech[0], a2v=False, v2a=False)
        null = oracle.forward(state, self.config, null)
        scales = self.guidance.s_v, self.guidance.s_a
        video, audio = (b + s * (a - b) for a, b, s in zip(full[:2], null[:2], scales))
        return video, audio


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 3)


def _peak(work: Callable[[], object]) -> float:
    with oracle.PeakBytes() as peak:
        work()
    return round(peak.peak / 1e6, 1)


def measure(model: DualBranchDiT, point: Point) -> dict:
    """Seconds and peak MB of tensors made in a step by both, and how far their velocities differ."""
    inputs, state = Inputs(model.config, point), dict(model.state_dict())
    row: dict = point._asdict()
    with torch.inference_mode():
        step = inputs.model_step(model)
        step()  # what a run keeps
        row["seconds"], row["oracle_seconds"] = _seconds(step), _seconds(lambda: inputs.oracle_step(state))
        row["mb"], row["oracle_mb"] = _peak(step), _peak(lambda: inputs.oracle_step(state))
        pairs = zip(step(), inputs.oracle_step(state))
        row["differs"] = max(oracle.relative_error(a, b) for a, b in pairs)
    return row


def compare(
    folder: Path,
    layers: int = 2,
    sweeps: dict[str, list[Point]] = SWEEPS,
    config: Config | None = None,
    on_point: Callable[[dict], None] = lambda row: None,
) -> dict:
    """Measures all points: `compare.json` after each, `compare.svg` at the end; goes on where it was stopped.

    Raises:
        UserError: matplotlib is missing, or `folder` holds a comparison of other sizes.
    """
    config = config or few_layers(layers)
    file = folder / "compare.json"
    folder.mkdir(parents=True, exist_ok=True)
    done: dict = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": []}
    about = {"layers": config.layers, "video_dim": config.video_dim, "threads": torch.get_num_threads()}
    if done["rows"] and done["about"] != about:
        raise UserError(f"{file}: a comparison with {done['about']}, not {about}; choose another folder")
    done["about"] = about
    there = {Point(row["frames"], row["side"], row["takes"]) for row in done["rows"]}
    todo = [point for point in dict.fromkeys(chain(*sweeps.values())) if point not in there]
    model = random_model(config) if todo else None
    for point in todo:
        assert model is not None
        row = measure(model, point)
        done["rows"].append(row)
        atomic.write_text(file, json.dumps(done, indent=1))
        on_point(row)
    draw(done["rows"], sweeps, folder / "compare.svg")
    return done


def draw(rows: list[dict], sweeps: dict[str, list[Point]], path: Path) -> None:
    """Seconds above, memory below, over each of the sweeps.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the plot needs matplotlib: pip install 'uniavgen[train]'") from error
    by_point = {Point(row["frames"], row["side"], row["takes"]): row for row in rows}
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, len(sweeps), squeeze=False)
    for column, (name, points) in enumerate(sweeps.items()):
        found = [by_point[point] for point in points]
        for line, (value, unit) in enumerate((("seconds", "s a step"), ("mb", "MB"))):
            axis = axes[line][column]
            values = [row[name] for row in found]
            axis.plot(values, [row[f"oracle_{value}"] for row in found], "o--", label="written naively")
            axis.plot(values, [row[value] for row in found], "o-", label="this model")
            axis.set_xticks(values)
            axis.set_ylim(bottom=0)
            axis.set_ylabel(unit)
            axis.set_xlabel({"side": "pixels a side"}.get(name, name))
    axes[0][0].legend()
    with atomic.replacing(path, ".svg") as part:
        figure.savefig(part)
