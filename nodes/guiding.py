"""MA-CFG as a GUIDER, its schedule as SIGMAS, and both with Euler on one node (SPEC section 7)."""

from __future__ import annotations

from dataclasses import replace

import comfy.conds
import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..uniavgen_core.errors import UserError
from ..uniavgen_core.model.cache import Cache
from ..uniavgen_core.model.inputs import ActiveParts
from ..uniavgen_core.sampling.guidance import Guidance
from ..uniavgen_core.sampling.sampler import schedule
from .host_model import TASK_NODES, FaceMasks, UniAVGen, check_latent_shapes
from .types import CATEGORY

MAX_LAYER = 29


class MACFGGuider(comfy.samplers.CFGGuider):
    """Full and null pass as `Guidance` says, for any sampler.

    What stays the same between the steps of a run is computed once and dropped when the run ends, however
    it ends. Known frames come back exactly as they were given.
    """

    def __init__(self, model, guidance: Guidance, face_masks: FaceMasks | None = None):
        if not isinstance(model.model, UniAVGen):
            raise UserError(
                f"model is a {type(model.model).__name__}, expected UniAVGen; use UniAVGen Load Model"
            )
        super().__init__(model)
        self.guidance, self.face_masks = guidance.for_layers(model.model.core_config.layers), face_masks
        self.caches: dict[tuple[str, int], Cache] = {}

    def set_conds(self, positive, negative):
        for side, conditioning, null in (("positive", positive, False), ("negative", negative, True)):
            if not conditioning or any("uniavgen_null" not in options for _, options in conditioning):
                raise UserError(
                    f"{side} does not come from {TASK_NODES}; connect the {side} output of one of them"
                )
            if any(options["uniavgen_null"] != null for _, options in conditioning):
                raise UserError("positive and negative are not in their places; swap the two connections")
        super().set_conds(positive, negative)

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        streams = latent_image.unbind() if latent_image.is_nested else [latent_image]
        check_latent_shapes([x.shape for x in streams], self.model_patcher.model.core_config)
        if not all(x.isfinite().all() for x in streams):
            raise UserError(
                "the latent holds values that are not numbers; make it again with a UniAVGen task node"
            )
        if denoise_mask is not None:
            _check_masks(denoise_mask)
        try:
            sampled = super().sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        finally:
            self.caches = {}
        return _with_known(sampled, latent_image, denoise_mask)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        full = self._denoised("positive", x, timestep, model_options, face_masks=self.face_masks)
        if self.guidance.needs_null:
            sigmas = model_options["transformer_options"]["sample_sigmas"]
            interacts = self.guidance.null_interacts(_step(sigmas, timestep), len(sigmas) - 1)
            null = self._denoised(
                "negative",
                x,
                timestep,
                model_options,
                active=ActiveParts(interacts, interacts, self.guidance.skip_layers),
            )
            full = null + self._scale(x) * (full - null)
        if not full.isfinite().all():
            raise UserError(
                f"the model's output is not finite at sigma {float(timestep[0]):.4f}; use bf16 or fp32 "
                "weights (fp16 can overflow) and lower the strength of LoRAs"
            )
        return full

    def _denoised(self, side: str, x: Tensor, timestep: Tensor, model_options: dict, **changes) -> Tensor:
        conds = []
        for i, cond in enumerate(self.conds[side]):
            # hooks may change the weights between the steps
            cache = None if cond.get("hooks") else self.caches.setdefault((side, i), Cache())
            run = replace(cond["model_conds"]["run"].cond, cache=cache, **changes)
            conds.append(
                {**cond, "model_conds": {**cond["model_conds"], "run": comfy.conds.CONDConstant(run)}}
            )
        return comfy.samplers.calc_cond_batch(self.inner_model, [conds], x, timestep, model_options)[0]

    def _scale(self, x: Tensor) -> Tensor:
        """s_v over the video part of the pack, s_a over the audio part, `[N]`."""
        video, audio = (shape[1:].numel() for shape in self.inner_model.latent_shapes)
        scales = x.new_tensor((self.guidance.s_v, self.guidance.s_a))
        return scales.repeat_interleave(torch.tensor((video, audio), device=x.device))


def _check_masks(mask: Tensor | NestedTensor) -> None:
    """The host resizes masks; these dimensions it can."""
    masks = mask.unbind() if mask.is_nested else [mask]
    if len(masks) > 2 or masks[0].ndim < 2:
        found = ", ".join(str(list(x.shape)) for x in masks)
        raise UserError(
            f"the noise mask is {found}, expected video [B, 1, T, h, w] and audio [B, 1, L]; redraw it"
        )
    if len(masks) == 2 and masks[1].ndim != 3:
        raise UserError(
            f"the noise mask of the audio is {list(masks[1].shape)}, expected [B, 1, L]; reshape it"
        )


def _step(sigmas: Tensor, timestep: Tensor) -> int:
    """The step of the schedule that `timestep` lies in, from 0."""
    done = int((sigmas[:-1] >= timestep[0].to(sigmas) * (1 - 1e-6)).sum()) - 1
    return max(done, 0)


def _with_known(sampled: NestedTensor, given: NestedTensor, mask: Tensor | NestedTensor | None):
    if mask is None:
        return sampled
    masks = mask.unbind() if mask.is_nested else [mask]
    streams = []
    for i, (x, clean) in enumerate(zip(sampled.unbind(), given.unbind())):
        if i < len(masks):
            generate = comfy.sampler_helpers.prepare_mask(masks[i], clean.shape, x.device)
            x = torch.where(generate == 0, clean.to(x), x)
        streams.append(x)
    return NestedTensor(streams)


def sample(guider: MACFGGuider, latent: dict, sigmas: Tensor, seed: int) -> dict:
    """One run with Euler steps: LATENT -> LATENT, with the host's previews and progress."""
    samples = latent["samples"]
    noise = comfy.sample.prepare_noise(samples, seed)
    sampled = guider.sample(
        noise,
        samples,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": sampled.to(comfy.model_management.intermediate_device())}


def guidance(s_v: float, s_a: float, interval: float, skip_layer: int) -> Guidance:
    return Guidance(s_v, s_a, interval, () if skip_layer < 0 else (skip_layer,))


def _sliders() -> list:
    return [
        io.Float.Input(
            "s_v",
            default=3.0,
            min=0.0,
            max=10.0,
            step=0.1,
            display_mode=io.NumberDisplay.slider,
            tooltip="How strongly the picture follows words, caption and sound. Too low: lips drift; too "
            "high: stiff or burnt. With s_v and s_a both 1 there is no null pass: half the time.",
        ),
        io.Float.Input(
            "s_a",
            default=2.0,
            min=0.0,
            max=10.0,
            step=0.1,
            display_mode=io.NumberDisplay.slider,
            tooltip="How strongly the sound follows words and picture. Too low: mumbled; too high: harsh.",
        ),
    ]


def _details() -> list:
    return [
        io.Float.Input(
            "interval",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the steps, from the first, in which the null pass is without interaction, so "
            "that the scales amplify the exchange between sound and picture (MA-CFG). 0: plain CFG.",
        ),
        io.Int.Input(
            "skip_layer",
            default=11,
            min=-1,
            max=MAX_LAYER,
            advanced=True,
            tooltip="Layer that the null pass leaves out, -1: none. The released model was tuned with 11; a "
            "model too small for 11 leaves out none.",
        ),
    ]


def _shift() -> io.Input:
    return io.Float.Input(
        "shift",
        default=5.0,
        min=0.1,
        max=100.0,
        step=0.1,
        advanced=True,
        tooltip="Higher spends more of the steps on layout and motion, lower on detail.",
    )


def _steps() -> io.Input:
    return io.Int.Input(
        "steps",
        default=50,
        min=1,
        max=1000,
        tooltip="Time grows with the steps: two passes each. 50 is the release's; 25 shows where it goes.",
    )


def _model_and_texts() -> list:
    return [
        io.Model.Input("model", tooltip="From UniAVGen Load Model, LoRAs and compile included."),
        io.Conditioning.Input("positive", tooltip="From a UniAVGen task node."),
        io.Conditioning.Input("negative", tooltip="From the same task node."),
    ]


def _run(scales: list, seed_tooltip: str) -> list:
    """What a node that samples asks for, around its `scales`."""
    return [
        *_model_and_texts(),
        io.Latent.Input("latent", tooltip="From the same task node."),
        *scales,
        io.Int.Input(
            "seed",
            default=2025,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip=seed_tooltip,
        ),
        _steps(),
        *_details(),
        _shift(),
    ]


class Guider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenGuider",
            display_name="UniAVGen MA-CFG Guider",
            category=CATEGORY,
            description="Modality-aware guidance for Sampler Custom Advanced: one null pass serves sound and "
            "picture, each with its own scale.",
            inputs=[*_model_and_texts(), *_sliders(), *_details()],
            outputs=[io.Guider.Output(tooltip="For Sampler Custom Advanced.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, s_v, s_a, interval, skip_layer) -> io.NodeOutput:
        guider = MACFGGuider(model, guidance(s_v, s_a, interval, skip_layer))
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)


class Scheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenScheduler",
            display_name="UniAVGen Scheduler",
            category=CATEGORY,
            description="The schedule the model was tuned with: evenly spaced times, shifted.",
            inputs=[_steps(), _shift()],
            outputs=[io.Sigmas.Output(tooltip="For Sampler Custom Advanced.")],
        )

    @classmethod
    def execute(cls, steps: int, shift: float) -> io.NodeOutput:
        return io.NodeOutput(schedule(steps, shift) / 1000)


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenSampler",
            display_name="UniAVGen Sampler",
            category=CATEGORY,
            description="Guider, schedule and Euler steps on one node. Turning a slider and queueing again "
            "repeats only this and what follows; the encoders stay cached.",
            inputs=_run(_sliders(), "The same seed gives the same clip."),
            outputs=[io.Latent.Output(display_name="latent", tooltip="For UniAVGen Split.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent, s_v, s_a, seed, steps, interval, skip_layer, shift
    ) -> io.NodeOutput:
        guider = MACFGGuider(model, guidance(s_v, s_a, interval, skip_layer))
        guider.set_conds(positive, negative)
        return io.NodeOutput(sample(guider, latent, schedule(steps, shift) / 1000, seed))


class GuidanceGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenGuidanceGrid",
            display_name="UniAVGen Guidance Grid",
            category=CATEGORY,
            description="The sampler for every pair of s_v and s_a, all from one seed: a list of latents "
            "with labels, for Split, VAE Decode and UniAVGen Compare. Takes as many runs as there are pairs.",
            inputs=_run(
                [
                    io.String.Input("s_v", default="1, 3, 5", tooltip="Scales of the picture, one a column."),
                    io.String.Input("s_a", default="1, 2, 4", tooltip="Scales of the sound, one a row."),
                ],
                "The same for all, so that only the scales differ.",
            ),
            outputs=[
                io.Latent.Output(display_name="latents", is_output_list=True, tooltip="Row by row."),
                io.String.Output(display_name="labels", is_output_list=True, tooltip="For UniAVGen Compare."),
                io.Int.Output(display_name="columns", tooltip="For UniAVGen Compare."),
            ],
        )

    @classmethod
    def validate_inputs(cls, s_v: str | None, s_a: str | None) -> bool | str:
        for name, text in (("s_v", s_v), ("s_a", s_a)):
            if text is not None and not _scales(text):
                return f"{name} is {text!r}, expected numbers from 0 to 10 with commas, such as 1, 3, 5"
        return True

    @classmethod
    def execute(
        cls, model, positive, negative, latent, s_v, s_a, seed, steps, interval, skip_layer, shift
    ) -> io.NodeOutput:
        across, down = _scales(s_v), _scales(s_a)
        for name, text, scales in (("s_v", s_v, across), ("s_a", s_a, down)):
            if not scales:
                raise UserError(
                    f"{name} is {text!r}, expected numbers from 0 to 10 with commas, such as 1, 3, 5"
                )
        latents, labels = [], []
        for a in down:
            for v in across:
                guider = MACFGGuider(model, guidance(v, a, interval, skip_layer))
                guider.set_conds(positive, negative)
                latents.append(sample(guider, latent, schedule(steps, shift) / 1000, seed))
                labels.append(f"s_v {v:g}   s_a {a:g}")
        return io.NodeOutput(latents, labels, len(across))


def _scales(text: str) -> list[float]:
    """Numbers with commas; empty where the text is anything else."""
    try:
        scales = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        return []
    return scales if all(0 <= scale <= 10 for scale in scales) else []


NODES = [Guider, Scheduler, Sampler, GuidanceGrid]
