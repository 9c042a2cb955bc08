"""MA-CFG as a GUIDER, its schedule as SIGMAS, and both with Euler on one node (docs/model.md section 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import comfy.conds
import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..uniavgen_core.errors import UserError
from ..uniavgen_core.model.cache import Cache
from ..uniavgen_core.model.inputs import ActiveParts, Velocity
from ..uniavgen_core.sampling.defaults import DEFAULT_PRESET, PRESETS, Savings, find_preset
from ..uniavgen_core.sampling.guidance import Guidance
from ..uniavgen_core.sampling.passes import Passes
from ..uniavgen_core.sampling.sampler import schedule
from ..uniavgen_core.sampling.takes import clips_at_once, take_seed
from ..uniavgen_core.threads import fitting_threads
from . import cfg_functions
from .host_model import TASK_NODES, FaceMasks, UniAVGen, check_latent_shapes
from .preview import preview_callback
from .types import CATEGORY, JointLatent, check_one_take, clips, tell_running_node

MAX_LAYER = 29
# The host's samplers that add no noise and call the model once a step: the step cache is right for them.
CACHED_SAMPLERS = frozenset(
    f"sample_{name}"
    for name in (
        "euler",
        "euler_cfg_pp",
        "dpmpp_2m",
        "dpmpp_2m_cfg_pp",
        "lms",
        "ipndm",
        "ipndm_v",
        "deis",
        "res_multistep",
        "res_multistep_cfg_pp",
        "gradient_estimation",
        "gradient_estimation_cfg_pp",
    )
)
LAST_TIME = 0.999  # from the first to the last time of a schedule, before its shift and the 0 at its end


class MACFGGuider(comfy.samplers.CFGGuider):
    """Full and null pass as `Guidance` says, for any sampler.

    Both passes are handed to the host in one `calc_cond_batch`, each with its switches in its conditioning.
    The host runs them one after the other (they never share a batch, for they differ in what is run) or each
    on a device of its own. Its CFG functions run as `cfg_functions` says; CFG Override sets both scales.

    What stays the same between the steps of a run is computed once and dropped when the run ends, however
    it ends. Known frames come back exactly as they were given.

    A distilled model is told the scales and has no null pass.

    `savings`: passes that are left out, as `Passes` decides from the time of each call. So they are the same
    for a whole schedule and for its parts, but for the first call of a part, which runs both passes. The step
    cache is left out, and named, with samplers other than `CACHED_SAMPLERS`.

    The clips of a batch are sampled together as far as memory allows, but one by one where a clip could come
    out otherwise than alone: samplers other than Euler may draw noise or choose steps for a whole batch, and
    the step cache and other nodes' functions on the MODEL look at all of it.
    """

    def __init__(
        self,
        model,
        guidance: Guidance,
        face_masks: FaceMasks | None = None,
        savings: Savings = Savings(),  # noqa: B008 (frozen)
    ):
        if not isinstance(model.model, UniAVGen):
            raise UserError(
                f"model is a {type(model.model).__name__}, expected UniAVGen; use UniAVGen Load Model"
            )
        super().__init__(model)
        flow_shift(model.get_model_object("model_sampling"))
        self.guidance, self.face_masks = guidance.for_layers(model.model.core_config.layers), face_masks
        self.savings, self.passes = savings, None
        self.cfg = self._cfg = float(max(guidance.s_v, guidance.s_a))
        self.caches: dict[tuple[str, int], dict[torch.device, Cache]] = {}
        self.ignored: set[str] = set()

    def set_conds(self, positive, negative):
        for side, conditioning, null in (("positive", positive, False), ("negative", negative, True)):
            if not conditioning or any("uniavgen_null" not in options for _, options in conditioning):
                raise UserError(
                    f"{side} does not come from {TASK_NODES}; connect the {side} output of one of them"
                )
            if any(options["uniavgen_null"] != null for _, options in conditioning):
                raise UserError("positive and negative are not in their places; swap the two connections")
        super().set_conds(positive, negative)

    def sample(
        self,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        disable_pbar=False,
        seed=None,
    ):
        streams = latent_image.unbind() if latent_image.is_nested else [latent_image]
        check_latent_shapes([x.shape for x in streams], self.model_patcher.model.core_config)
        if not all(x.isfinite().all() for x in streams):
            raise UserError(
                "the latent holds values that are not numbers; make it again with a UniAVGen task node"
            )
        if denoise_mask is not None:
            _check_masks(denoise_mask, streams)
        self.ignored, self.passes = set(), None
        savings = self.savings
        if savings.cache and not _takes_cache(sampler):
            self.ignored.add(
                f"the step cache ({_sampler_name(sampler)} adds noise or has several calls a step)"
            )
            savings = replace(savings, cache=0.0)
        self._savings_now = savings
        patcher, count = self.model_patcher, len(streams[0])
        together = self._clips_at_once(streams, sampler)
        progress = None if callback is None else _Progress(callback, -(-count // together))
        parts: list[NestedTensor] = []
        runs = 0
        with fitting_threads(patcher.model, patcher.load_device):
            for start in range(0, count, together):
                part = slice(start, start + together)
                mask = denoise_mask
                if mask is not None and mask.is_nested:
                    mask = clips(mask, part)
                try:
                    made = super().sample(
                        clips(noise, part),
                        clips(latent_image, part),
                        sampler,
                        sigmas,
                        mask,
                        progress,
                        disable_pbar,
                        None if seed is None else take_seed(seed, start),
                    )
                finally:
                    passes, self.caches, self.passes = self.passes, {}, None
                runs += 0 if passes is None else passes.runs
                if progress is not None:
                    progress.finish_part()
                parts.append(made)
        notes = []
        if runs and savings != Savings():
            notes.append(f"{runs} passes of the model in {len(parts) * (len(sigmas) - 1)} steps")
        if self.ignored:
            notes.append(f"without effect on this model: {', '.join(sorted(self.ignored))}")
        if notes:
            tell_running_node("; ".join(notes))
        return _with_known(_joined(parts), latent_image, denoise_mask)

    def _clips_at_once(self, streams: list[Tensor], sampler) -> int:
        """How many clips of a batch run together; measured against the memory beside the whole model."""
        patcher, count = self.model_patcher, len(streams[0])
        plain = (
            isinstance(sampler, comfy.samplers.KSAMPLER)
            and sampler.sampler_function is comfy.k_diffusion.sampling.sample_euler
            and not (sampler.extra_options or sampler.inpaint_options)
        )
        options = patcher.model_options
        if (
            not plain
            or self._savings_now.cache
            or options.keys() != {"transformer_options"}
            or any(options["transformer_options"].values())
        ):
            return 1
        size = sum(x[0].numel() for x in streams)
        free = comfy.model_management.get_free_memory(patcher.load_device)
        weights = patcher.model_size() - patcher.loaded_size()
        return clips_at_once(count, free - weights, patcher.model.memory_required([1, 1, size]))

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        options = model_options["transformer_options"] | {"uniavgen_ignored": self.ignored}
        model_options = model_options | {"transformer_options": options}
        # CFG Override puts another number into self.cfg
        scales = (self.guidance.s_v, self.guidance.s_a) if self.cfg is self._cfg else (self.cfg, self.cfg)
        place = self._place(timestep, options["sample_sigmas"])
        interacts = self.guidance.null_interacts(*place)
        told = scales if self.inner_model.core_config.distilled else None
        if told is not None:
            scales = (1.0, 1.0)
        guided = scales != (1.0, 1.0) or model_options.get("disable_cfg1_optimization", False)
        positive = self._run("positive", face_masks=self.face_masks, scales=told)
        active = ActiveParts(interacts, interacts, self.guidance.skip_layers)
        negative = self._run("negative", active=active) if guided else None

        def run(full: bool, null: bool) -> list[Tensor]:
            conds = [positive if full else None, negative if null else None]
            if "sampler_calc_cond_batch_function" in model_options:
                args = {"conds": conds, "input": x, "sigma": timestep, "model": self.inner_model}
                return model_options["sampler_calc_cond_batch_function"](
                    args | {"model_options": model_options}
                )
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)

        if self.passes is None:
            self.passes = Passes(self._savings_now, positive[0]["model_conds"]["run"].cond.conditioned)
        if self._savings_now == Savings():
            passes = run(True, guided)
        else:
            passes = self._saved(self.passes, x, timestep, place, guided, interacts, run)
            negative = negative if len(passes) == 2 else None
            passes = [passes[0], passes[-1]]
        step = cfg_functions.Step(
            self.inner_model,
            x,
            timestep,
            model_options,
            positive,
            negative,
            scales,
            self.inner_model.latent_shapes,
            self.ignored,
        )
        denoised = step.denoised(*passes)
        if not denoised.isfinite().all():
            raise UserError(
                f"the model's output is not finite at sigma {float(timestep[0]):.4f}; use bf16 or fp32 "
                "weights (fp16 can overflow) and lower the strength of LoRAs"
            )
        return denoised

    def _run(self, side: str, **changes) -> list[dict]:
        """The conds of a side with the switches of their pass."""
        conds = []
        for i, cond in enumerate(self.conds[side]):
            # hooks may change the weights between the steps
            caches = None if cond.get("hooks") else self.caches.setdefault((side, i), {})
            run = replace(cond["model_conds"]["run"].cond, caches=caches, **changes)
            conds.append(
                {**cond, "model_conds": {**cond["model_conds"], "run": comfy.conds.CONDConstant(run)}}
            )
        return conds

    def _saved(
        self, passes: Passes, x, timestep, place: tuple[int, int], guided: bool, interacts: bool, run
    ) -> list[Tensor]:
        """The denoised packs of the full pass and, where the step is guided, of the null pass.

        Passes that are left out are made of earlier ones, as velocities.
        """
        sigma = timestep.to(x).clamp(min=1e-6).view(-1, *[1] * (x.ndim - 1))
        shapes = self.inner_model.latent_shapes

        def velocity(pack: Tensor) -> Velocity:
            video, audio = comfy.utils.unpack_latents(pack, shapes)
            return Velocity(video, audio.transpose(1, 2), {})

        here = velocity(x)
        needed = passes.needed(here.video, here.audio, timestep, *place, guided, interacts)
        denoised = run(*needed) if needed.full else [x, x]
        found = passes.completed(
            *(velocity((x - out) / sigma) if ran else None for out, ran in zip(denoised, needed))
        )
        packs = [
            comfy.utils.pack_latents([v.video, v.audio.transpose(1, 2)])[0] for v in found if v is not None
        ]
        return [x - pack * sigma for pack in packs]

    def _place(self, timestep: Tensor, sigmas: Tensor) -> tuple[int, int]:
        """The step of this call, from 0, and how many there are in the whole run.

        A part of a schedule (Split Sigmas) does not show how many steps there are, so there by the time of
        the step, as if the whole were evenly spaced under the shift of the MODEL, which is what UniAVGen
        Scheduler makes.
        """
        step, steps = _step(sigmas, timestep), len(sigmas) - 1
        if sigmas[0] > 0.999 and sigmas[-1] == 0:
            return step, steps
        shift = flow_shift(self.model_patcher.get_model_object("model_sampling"))
        even = sigmas.double() / (shift - (shift - 1) * sigmas.double())
        now = float(even[step])
        measured = step - 1 if step and step + 1 == steps else step  # the last step of a schedule is short
        width = max(float(even[measured] - even[measured + 1]), 1e-6)
        return round((1 - now) / width), round(LAST_TIME / width) + 1


def _takes_cache(sampler) -> bool:
    options = getattr(sampler, "extra_options", {})
    return _sampler_name(sampler) in CACHED_SAMPLERS and not options.get("s_churn")


def _sampler_name(sampler) -> str:
    return getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)


class _Progress:
    """The host's callback over a batch in parts: one bar, and at its end the latents of all parts."""

    def __init__(self, callback: Callable, parts: int):
        self.callback, self.parts = callback, parts
        self.done: list[NestedTensor] = []
        self.latest: tuple | None = None

    def __call__(self, step: int, x0: NestedTensor, x: NestedTensor, steps: int) -> None:
        self.latest = (step + len(self.done) * steps, x0, x, steps * self.parts)
        self.callback(*self.latest)

    def finish_part(self) -> None:
        if self.latest is None:
            return
        step, x0, x, steps = self.latest
        self.done.append(x0)
        if 1 < self.parts == len(self.done):
            self.callback(step, _joined(self.done), x, steps)


def _joined(parts: list[NestedTensor]) -> JointLatent:
    return JointLatent(torch.cat(streams) for streams in zip(*(part.unbind() for part in parts)))


def takes_noise(samples: NestedTensor, seed: int) -> NestedTensor:
    """Noise of a batch of joint latents: each clip has that of a clip alone, of the seed `take_seed` says."""
    if not samples.is_nested:
        return comfy.sample.prepare_noise(samples, seed)
    each = (slice(take, take + 1) for take in range(len(samples.unbind()[0])))
    return _joined(
        [
            comfy.sample.prepare_noise(clips(samples, one), take_seed(seed, take))
            for take, one in enumerate(each)
        ]
    )


def _check_masks(mask: Tensor | NestedTensor, streams: list[Tensor]) -> None:
    """The host resizes masks; these dimensions it can, lengths it must not."""
    masks = list(mask.unbind()) if mask.is_nested else [mask]
    if len(masks) > 2 or masks[0].ndim < 2:
        found = ", ".join(str(list(x.shape)) for x in masks)
        raise UserError(
            f"the noise mask is {found}, expected video [B, 1, T, h, w] and audio [B, 1, L]; redraw it"
        )
    if len(masks) == 2 and masks[1].ndim != 3:
        raise UserError(
            f"the noise mask of the audio is {list(masks[1].shape)}, expected [B, 1, L]; reshape it"
        )
    for name, drawn, stream in zip(("video", "audio"), masks, streams):
        if drawn.ndim == stream.ndim and drawn.shape[2] not in (1, stream.shape[2]):
            raise UserError(
                f"the noise mask of the {name} is {drawn.shape[2]} long, the latent {stream.shape[2]}; cut "
                " the latent before the task node or draw a mask for it (Set Latent Noise Mask)"
            )


def _step(sigmas: Tensor, timestep: Tensor) -> int:
    """The step of the schedule that `timestep` lies in, from 0."""
    done = int((sigmas[:-1] >= timestep[0].to(sigmas) * (1 - 1e-6)).sum()) - 1
    return max(done, 0)


def flow_shift(sampling) -> float:
    """The shift of a MODEL's sigmas, `s u / (1 + (s - 1) u)` at time u.

    Raises:
        UserError: a node has made another kind of model of it.
    """
    if isinstance(sampling, comfy.model_sampling.CONST):
        if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
            return float(sampling.shift)
        if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux):
            return math.exp(sampling.shift)
    raise UserError(
        "model went through a node that gives it other noise levels than a flow model has; leave out "
        "ModelSamplingDiscrete and the like, ModelSamplingSD3 is the one that sets the shift"
    )


def model_shift(model, shift: float) -> float:
    """The shift that a node such as ModelSamplingSD3 set on the MODEL, else `shift`; a change is told."""
    if model is None or "model_sampling" not in model.object_patches:
        return shift
    found = flow_shift(model.get_model_object("model_sampling"))
    if found != shift:
        tell_running_node(f"shift {found:g} of the MODEL in place of {shift:g}")
    return found


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
    return JointLatent(streams)


def sample(
    guider: MACFGGuider, latent: dict, sigmas: Tensor, seed: int, noise: NestedTensor | None = None
) -> dict:
    """One run with Euler steps: LATENT -> LATENT, with the host's previews and progress.

    `noise`: in place of that of the seed.
    """
    samples = latent["samples"]
    sampled = guider.sample(
        takes_noise(samples, seed) if noise is None else noise,
        samples,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=preview_callback(guider.model_patcher, len(sigmas) - 1),
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
            tooltip="How strongly the video follows text, caption and audio. Too low: lips drift; too high: "
            "stiff or oversaturated. With s_v and s_a both 1 there is no null pass: half the time.",
        ),
        io.Float.Input(
            "s_a",
            default=2.0,
            min=0.0,
            max=10.0,
            step=0.1,
            display_mode=io.NumberDisplay.slider,
            tooltip="How strongly the audio follows text and video. Too low: mumbled; too high: harsh.",
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
            "that the scales amplify the interaction of audio and video (MA-CFG). 0: plain CFG.",
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
        tooltip="Higher spends more of the steps on layout and motion, lower on detail. A shift that "
        "ModelSamplingSD3 set on the MODEL goes before this one.",
    )


def _steps() -> io.Input:
    return io.Int.Input(
        "steps",
        default=50,
        min=1,
        max=1000,
        tooltip="Time grows with the steps: two passes each. 50 is the release's; 25 shows where it goes.",
    )


def _preset() -> io.Input:
    return io.Combo.Input(
        "preset",
        options=list(PRESETS),
        default=DEFAULT_PRESET,
        optional=True,
        tooltip="Fewer passes of the model. exact: every pass of every step. standard: the null pass at "
        "every 2nd step, a quarter fewer passes. draft: three quarters of the steps, the null pass at every "
        "4th: half the passes.",
    )


def _savings() -> list:
    return [
        io.Int.Input(
            "reuse",
            default=1,
            min=1,
            max=100,
            optional=True,
            advanced=True,
            tooltip="The null pass runs at every so many steps only, its last effect serves the others. 1: "
            "at each step, 2: a quarter fewer passes. With any sampler.",
        ),
        io.Float.Input(
            "reuse_after",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Share of the steps, from the first, in which the null pass runs at each step whatever "
            "reuse says.",
        ),
        io.Float.Input(
            "null_until",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Share of the steps after which there is no null pass and no guidance. 1: guidance to "
            "the end.",
        ),
        io.Float.Input(
            "cache",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Steps are left out while video and audio are each expected to change by less than this, "
            "such as 0.1. 0: never. For samplers that add no noise and call the model once a step.",
        ),
    ]


def _model_and_texts(lazy: bool | None = None) -> list:
    model = "From UniAVGen Load Model, LoRAs and compile included."
    return [
        io.Model.Input("model", lazy=lazy, tooltip=model),
        io.Conditioning.Input("positive", lazy=lazy, tooltip="From a UniAVGen task node."),
        io.Conditioning.Input("negative", lazy=lazy, tooltip="From the same task node."),
    ]


def _run(scales: list, seed_tooltip: str, lazy: bool | None = None) -> list:
    """What a node that samples asks for, around its `scales`; `lazy`: its sockets wait for them."""
    return [
        *_model_and_texts(lazy),
        io.Latent.Input("latent", lazy=lazy, tooltip="From the same task node."),
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
            display_name="UniAVGen Guider",
            search_aliases=["ma-cfg", "modality cfg", "dual cfg", "guidance"],
            category=CATEGORY,
            description="Modality-aware guidance (MA-CFG) for Sampler Custom Advanced: one null pass serves "
            "video and audio, each with its own scale.",
            inputs=[*_model_and_texts(), *_sliders(), *_details(), *_savings()],
            outputs=[io.Guider.Output(tooltip="For Sampler Custom Advanced.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        s_v,
        s_a,
        interval,
        skip_layer,
        reuse=1,
        reuse_after=0.0,
        null_until=1.0,
        cache=0.0,
    ) -> io.NodeOutput:
        savings = Savings(reuse, reuse_after, null_until, cache)
        guider = MACFGGuider(model, guidance(s_v, s_a, interval, skip_layer), savings=savings)
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)


class Scheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenScheduler",
            display_name="UniAVGen Scheduler",
            search_aliases=["sigmas", "steps", "shift", "flow schedule"],
            category=CATEGORY,
            description="The schedule the model was tuned with: evenly spaced times, shifted.",
            inputs=[
                _steps(),
                _shift(),
                io.Model.Input(
                    "model", optional=True, tooltip="Takes the shift from a MODEL that ModelSamplingSD3 set."
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="For Sampler Custom Advanced.")],
        )

    @classmethod
    def execute(cls, steps: int, shift: float, model=None) -> io.NodeOutput:
        return io.NodeOutput(schedule(steps, model_shift(model, shift)) / 1000)


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenSampler",
            display_name="UniAVGen Sampler",
            search_aliases=["ksampler", "generate", "sample video and audio", "lip sync"],
            category=CATEGORY,
            description="Guider, schedule and Euler steps on one node. Turning a slider and queueing again "
            "repeats only this and what follows; the encoders stay cached.",
            inputs=[*_run(_sliders(), "The same seed gives the same clip."), _preset()],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For UniAVGen Split Video and Audio.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        s_v,
        s_a,
        seed,
        steps,
        interval,
        skip_layer,
        shift,
        preset=DEFAULT_PRESET,
    ) -> io.NodeOutput:
        chosen = find_preset(preset)
        guider = MACFGGuider(model, guidance(s_v, s_a, interval, skip_layer), savings=chosen.savings)
        guider.set_conds(positive, negative)
        sigmas = schedule(chosen.steps(steps), model_shift(model, shift)) / 1000
        return io.NodeOutput(sample(guider, latent, sigmas, seed))


class GuidanceGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenGuidanceGrid",
            display_name="UniAVGen Guidance Grid",
            search_aliases=["xy plot", "compare cfg", "grid"],
            category=CATEGORY,
            description="The sampler for every pair of s_v and s_a, all from one seed: a list of latents "
            "with labels, for Split, VAE Decode and UniAVGen Compare. Takes as many runs as there are pairs.",
            inputs=_run(
                [
                    io.String.Input("s_v", default="1, 3, 5", tooltip="Scales of the video, one a column."),
                    io.String.Input("s_a", default="1, 2, 4", tooltip="Scales of the audio, one a row."),
                ],
                "The same for all, so that only the scales differ.",
                lazy=True,
            ),
            outputs=[
                io.Latent.Output(display_name="latents", is_output_list=True, tooltip="Row by row."),
                io.String.Output(display_name="labels", is_output_list=True, tooltip="For UniAVGen Compare."),
                io.Int.Output(display_name="columns", tooltip="For UniAVGen Compare."),
            ],
        )

    @classmethod
    def check_lazy_status(cls, s_v: str, s_a: str, **inputs) -> list[str]:
        """Refuses wrong scales before the nodes above are run; `validate_inputs` would blame both fields."""
        for name, text in (("s_v", s_v), ("s_a", s_a)):
            _scales(name, text)
        return ["model", "positive", "negative", "latent"]

    @classmethod
    def execute(
        cls, model, positive, negative, latent, s_v, s_a, seed, steps, interval, skip_layer, shift
    ) -> io.NodeOutput:
        check_one_take(latent)
        across, down = _scales("s_v", s_v), _scales("s_a", s_a)
        latents, labels = [], []
        sigmas = schedule(steps, model_shift(model, shift)) / 1000
        for a in down:
            for v in across:
                guider = MACFGGuider(model, guidance(v, a, interval, skip_layer))
                guider.set_conds(positive, negative)
                latents.append(sample(guider, latent, sigmas, seed))
                labels.append(f"s_v {v:g}   s_a {a:g}")
        return io.NodeOutput(latents, labels, len(across))


def _scales(name: str, text: str) -> list[float]:
    """Numbers with commas; raises UserError where the text is anything else."""
    try:
        scales = [float(part) for part in text.split(",") if part.strip()]
    except (ValueError, AttributeError):
        scales = []
    if not scales or not all(0 <= scale <= 10 for scale in scales):
        raise UserError(f"{name} is {text!r}, expected numbers from 0 to 10 with commas, such as 1, 3, 5")
    return scales


NODES = [Guider, Scheduler, Sampler, GuidanceGrid]
