"""The training loop, on Hugging Face accelerate: one CPU or many GPUs (docs/model.md section 8).

A run's folder holds `recipe.json` and one folder per stage with `log.jsonl` (one object a step),
`checkpoint.pt` (replaced whole; a run that was killed goes on from it exactly), `clips/` and, when the
stage is done, `model.safetensors`: the moving average of the weights, with which the next stage starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..atomic import replacing, write_text
from ..errors import UserError
from ..media import FPS, files
from ..media.caption import CaptionEncoder, load_caption_encoder
from ..media.mel import SAMPLE_RATE
from ..media.vae import WanVAE
from ..media.vocoder import GriffinLim, Vocoder
from ..model.dit import DualBranchDiT
from ..model.inputs import TextConditioning
from ..pipeline import Pipeline
from ..sampling.guidance import Guidance
from ..weights.checkpoint import load_model
from ..weights.convert import save_checkpoint
from . import cast_ops
from .data import Batches, Latents, one_clip
from .initialise import initialise, other_interaction
from .objective import Batch, Objective, compile_blocks, conditions, recompute_blocks
from .recipe import Recipe, Schedule, read_recipe
from .resident import ResidentBatches, ResidentClips

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Preview = Callable[[Objective, Path], None]
"""Writes clips of the model as it is into a new folder."""


@dataclass(frozen=True)
class Run:
    """How a run is carried out; none of it changes what is learnt.

    `micro_batch`: samples a process works on at once, all of its share by default. `workers`: processes
    that read ahead. `preview_every` needs a `preview`. `compile`: blocks go through torch.compile.
    """

    save_every: int = 500
    preview_every: int = 2000
    micro_batch: int | None = None
    workers: int = 0
    compile: bool = False


class MovingAverage:
    """Exponential moving average of parameters; its decay grows from 0.1 to `decay` in the first steps."""

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for value, parameter in zip(self.values, self.parameters):
            value.lerp_(parameter.detach(), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the average inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, parameter in zip(self.values, self.parameters):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def make_accelerator():
    """Accelerate's view of the processes and devices of this run.

    Raises:
        UserError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise UserError(
            "training needs accelerate, which is not installed: pip install accelerate"
        ) from error
    # A step trains only what its task uses: in dubbing, for example, the video head has no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # Unless it is told so, accelerate takes the processes that torchrun starts on a CPU for unrelated ones.
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[unused])


def train(
    recipe: Recipe,
    latents: Latents,
    out: str | Path,
    start: str | Path | None = None,
    caption: str | Path | CaptionEncoder | None = None,
    run: Run | None = None,
    preview: Preview | None = None,
    speech: Latents | None = None,
) -> Path:
    """Train all stages of a recipe, or go on with what was begun in `out`; the trained model's file.

    `start`: weights to begin with instead of new ones; of another variant, see `other_interaction`.
    `caption`: a caption encoder (or its folder) to be trained with the model from the first stage with video
    on; it is saved beside each stage's model. `speech`: clips without video, for the tasks of the audio
    branch alone.

    Raises:
        UserError: another recipe was begun in `out`, or clips, weights and recipe do not fit together.
    """
    accelerator, out = make_accelerator(), Path(out)
    run = run or Run()
    _claim(accelerator, out, recipe)
    resident = None
    for stage in recipe.stages:
        folder = out / stage.name
        done = folder / "model.safetensors"
        if not done.exists():
            model = _model(recipe, start)
            encoder = load_caption_encoder(caption) if isinstance(caption, str | Path) else caption
            objective = Objective(model, encoder, DTYPES[recipe.dtype], stage.seam)
            _fit_check(model, latents, encoder)
            for name, parameter in objective.named_parameters():
                parameter.requires_grad_(stage.trains(name))
            if recipe.recompute:
                recompute_blocks(model)
            if run.compile:
                compile_blocks(model)
            shown = None if stage.audio_alone else preview
            share = (stage, recipe.seed, accelerator.process_index, accelerator.num_processes)
            if recipe.resident:
                resident = resident or _resident(accelerator.device, latents, speech, encoder)
                batches = ResidentBatches(*resident, *share)
            else:
                batches = Batches(latents, *share, with_states=encoder is None, speech=speech)
            state = fit(accelerator, objective, stage, batches, folder, recipe, run, shown)
            if accelerator.is_main_process:
                _export(state, model, encoder, folder)
            accelerator.wait_for_everyone()
            accelerator.free_memory()
        start = done
        if caption is not None:
            caption = folder / "caption_encoder"
    return done


def fit(
    accelerator,
    objective: nn.Module,
    stage: Schedule,
    batches: torch.utils.data.Dataset,
    folder: Path,
    recipe: Recipe,
    run: Run,
    preview: Preview | None = None,
    trained_only: bool = False,
) -> dict[str, Tensor]:
    """One stage: trains the parameters that require a gradient, from the folder's checkpoint if there is one.

    Step s gives `batches[s]` to the objective; of the recipe the moving average, gradient norm and weight
    decay are used.

    Returns the moving average by name (on the main process), with the frozen parameters
    unless `trained_only` is set.

    Raises:
        UserError: see `Batches`; a loss that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = _optimizers(objective, stage, recipe)
    scales = [[group.pop("scale") for group in x.param_groups] for x in optimizers]
    objective, *optimizers = accelerator.prepare(objective, *optimizers)
    plain = tuple(x.optimizer for x in optimizers)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    average = MovingAverage(parameters, recipe.ema)
    first = _resume(folder, objective, plain, average)
    log = _open_log(folder / "log.jsonl", first) if accelerator.is_main_process else None
    sharded = "FSDP" in str(accelerator.distributed_type)

    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=range(first, stage.steps), num_workers=run.workers
    )
    for step, batch in enumerate(loader, first):
        begin = time.perf_counter()
        for optimizer, own in zip(optimizers, scales, strict=True):
            for group, scale in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = scale * stage.rate(step)
            optimizer.zero_grad()
        weights = stage.loss_weights(step)
        losses = _accumulate(accelerator, objective, batch.to(accelerator.device), weights, run)
        norm = accelerator.clip_grad_norm_(parameters, recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
        average.update(step)
        values = accelerator.reduce(torch.stack(list(losses.values())), "mean").tolist()
        if log:
            entry = {"stage": stage.name, "step": step} | batch.about() | dict(zip(losses, values)) | weights
            entry["rate"] = stage.rate(step)
            entry |= {"gradient_norm": float(norm), "seconds": round(time.perf_counter() - begin, 3)}
            log.write(json.dumps(entry) + "\n")
            log.flush()
        if not all(map(torch.isfinite, torch.tensor(values))):
            raise UserError(f"{stage.name}: the loss is not finite at step {step}; lower the learning rate")
        last = step + 1 == stage.steps
        if (step + 1) % run.save_every == 0 or last:
            _save(accelerator, folder, step + 1, objective, plain, average)
        if preview and ((step + 1) % run.preview_every == 0 or last):
            if accelerator.is_main_process and not sharded:
                with average.applied():
                    preview(accelerator.unwrap_model(objective), folder / "clips" / f"{step + 1:07d}")
            accelerator.wait_for_everyone()
    if log:
        log.close()
    with average.applied():
        return _full_state(objective, trained_only=trained_only)


def _optimizers(objective: nn.Module, stage: Schedule, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon where the stage gives it matrices; a group's `scale` is its rate in units of the
    stage's.

    Raises:
        UserError: a torch without Muon.
    """
    adamw: dict[tuple[float, bool], list[nn.Parameter]] = {}
    muon: dict[float, list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = stage.muon_scale(name)
        if scale is not None and parameter.ndim == 2:
            muon.setdefault(scale, []).append(parameter)
        else:
            adamw.setdefault((stage.scale(name), parameter.ndim > 1), []).append(parameter)
    groups = [
        {"params": params, "weight_decay": recipe.weight_decay if decays else 0.0, "scale": scale}
        for (scale, decays), params in sorted(adamw.items(), key=lambda group: (group[0][0], not group[0][1]))
    ]
    rate = stage.learning_rate
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999))]
    if muon:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"stage {stage.name!r} trains with Muon, which torch {torch.__version__} lacks; install "
                "torch 2.9 or later, or take muon_rate out of the recipe"
            )
        optimizers.append(
            torch.optim.Muon(
                [{"params": params, "scale": scale} for scale, params in muon.items()],
                lr=rate,
                weight_decay=recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def _accumulate(
    accelerator, objective, batch: Batch, weights: dict[str, float], run: Run
) -> dict[str, Tensor]:
    """Gradients of one step, in micro-batches; the mean losses of this process."""
    parts = batch.split(run.micro_batch or len(batch))
    total: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        with accelerator.no_sync(objective) if i + 1 < len(parts) else nullcontext():
            losses = objective(part, **weights)
            share = len(part) / len(batch)
            if losses["loss"].requires_grad:  # a null pass may reach nothing that is trained
                accelerator.backward(losses["loss"] * share)
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach() * share
    # Every parameter takes part in every step, so that the optimizer's state never depends on who came first.
    for parameter in objective.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return total


def _full_state(objective: nn.Module, trained_only: bool = True) -> dict[str, Tensor]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    state = get_model_state_dict(objective, options=options)
    return {name: value.clone() for name, value in cast(dict[str, Tensor], state).items()}


def _save(accelerator, folder: Path, step: int, objective, optimizers, average: MovingAverage) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state = {"step": step, "model": _full_state(objective)}
    state["optimizer"] = get_optimizer_state_dict(objective, optimizers, options=options)
    with average.applied():
        state["average"] = _full_state(objective)
    if accelerator.is_main_process:
        with replacing(folder / "checkpoint.pt") as part:
            torch.save(state, part)
    accelerator.wait_for_everyone()


def _resume(folder: Path, objective, optimizers, average: MovingAverage) -> int:
    """Load the folder's checkpoint; the next step's number."""
    file = folder / "checkpoint.pt"
    if not file.exists():
        return 0
    state = torch.load(file, map_location="cpu", weights_only=True)
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
    set_model_state_dict(objective, state["average"], options=options)
    average.values = [p.detach().clone() for p in average.parameters]
    set_model_state_dict(objective, state["model"], options=options)
    set_optimizer_state_dict(objective, optimizers, state["optimizer"], options=options)
    return state["step"]


def _open_log(file: Path, first: int):
    """The log, cut back to the steps before `first`."""
    lines = file.read_text().splitlines()[:first] if file.exists() else []
    file.write_text("".join(line + "\n" for line in lines))
    return file.open("a")


def _claim(accelerator, out: Path, recipe: Recipe) -> None:
    file = out / "recipe.json"
    text = json.dumps(recipe.to_dict(), indent=2)
    if file.exists() and read_recipe(file) != recipe:
        raise UserError(f"{out} holds a run of another recipe; choose another folder")
    accelerator.wait_for_everyone()  # none may read what the first is writing
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    accelerator.wait_for_everyone()


def _model(recipe: Recipe, start: str | Path | None) -> DualBranchDiT:
    model = DualBranchDiT(recipe.config, cast_ops)
    if start is None:
        return initialise(model, recipe.seed)
    weights = load_model(start, dtype=torch.float32)
    if weights.config == recipe.config:
        model.load_state_dict(weights.state_dict())
    elif replace(weights.config, variant=recipe.config.variant) == recipe.config:
        other_interaction(initialise(model, recipe.seed), weights)
    else:
        raise UserError(f"{start} has other sizes than the recipe; put its config (uniavgen inspect) there")
    return model


def _resident(
    device: torch.device, latents: Latents, speech: Latents | None, encoder: CaptionEncoder | None
) -> tuple[ResidentClips, ResidentClips | None]:
    if encoder is not None:
        raise UserError(
            "resident clips hold caption states, so no caption encoder can be trained with them; prepare the "
            "clips with --text-encoder, or take `resident` out of the recipe"
        )
    return ResidentClips(latents, device), None if speech is None else ResidentClips(speech, device)


def _fit_check(model: DualBranchDiT, latents: Latents, encoder: CaptionEncoder | None) -> None:
    item, config = latents[0], model.config
    width = encoder.dim if encoder else config.caption_dim
    if encoder is None and latents.null_caption is not None:
        width = latents.null_caption.shape[-1]
    found = (item.video.shape[0], item.audio.shape[1], width)
    wanted = (config.video_channels, config.audio_channels, config.caption_dim)
    if found != wanted:
        raise UserError(
            f"clips and texts have {found} channels (video, audio, caption), the recipe's model {wanted}; "
            "prepare the clips with the encoders of this model or change the recipe"
        )


def _export(state: dict[str, Tensor], model: DualBranchDiT, encoder, folder: Path) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}

    if encoder is not None:
        encoder.model.load_state_dict(part("caption_model."), strict=False)
        encoder.save(folder / "caption_encoder")
    save_checkpoint(folder / "model.safetensors", part("model.").items(), model.config, "fp32")


def clip_preview(
    latents: Latents,
    indices: list[int],
    vae: WanVAE,
    vocoder: Vocoder | GriffinLim,
    modes: tuple[str, ...] = ("joint",),
    steps: int = 16,
) -> Preview:
    """Samples these clips in these tasks without guidance and writes them as `clip-mode.mp4`."""

    @torch.no_grad()
    def preview(objective: Objective, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pipeline = Pipeline.of(objective.model, vae, None, vocoder)
        for index in indices:
            for mode in modes:
                batch = one_clip(latents, index, mode).to(pipeline.device)
                texts = TextConditioning(
                    objective.caption_states(batch).float(),
                    objective.speech_features(batch.speech, batch.speech_lengths),
                )
                task = conditions(batch, pipeline.config.variant, pipeline.config.patch)
                made = pipeline.sample(task, texts, texts, Guidance.none(), steps, 1.0, seed=index)
                frames, waveform = pipeline.decode_video(made.video), pipeline.decode_audio(made.audio)[0]
                files.write_mp4(folder / f"{index}-{mode}.mp4", frames, FPS, waveform, SAMPLE_RATE)

    return preview
