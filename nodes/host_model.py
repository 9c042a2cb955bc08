"""The core's model as a MODEL of the host.

Latents are joint: `NestedTensor((video [B, 48, T, h, w], audio [B, 80, L]))` with a nested noise mask
(1: generate, 0: conditioned). The host's samplers see them packed, `[B, 1, N]`. Video latents are raw outside
the sampler and normalised inside (Wan2.2); audio latents are always normalised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..uniavgen_core.conditioning import MELS_PER_SECOND, mel_frames
from ..uniavgen_core.errors import UserError, counted
from ..uniavgen_core.model.cache import Cache
from ..uniavgen_core.model.config import Config
from ..uniavgen_core.model.dit import DualBranchDiT
from ..uniavgen_core.model.inputs import ActiveParts, Conditioned, References, Speaker, TextConditioning
from ..uniavgen_core.model.layers import uncompiled
from ..uniavgen_core.modes import MODES
from ..uniavgen_core.who_speaks import speaker
from .cfg_functions import owner, without_effect

TASK_NODES = "a UniAVGen task node (Joint, Reference Voice, Continuation, Dubbing, Audio-Driven, Edit)"
# With it BaseModel.memory_required says 2.75 GB a pass, 5.5 GB a step, for 81 frames of 1280x736 in bf16;
# counted for a step (`memory.model_memory`): 2.4 GB in joint, 6.3 GB in dubbing, 4.1 of them kept keys.
MEMORY_USAGE_FACTOR = 0.035


class FaceMasks(dict):
    """Collects what the interaction layers take for the face: block -> `[B, T, tokens of a frame]`."""


@dataclass(frozen=True, eq=False)
class Pass:
    """How one forward runs. An object of its own: the host compares and batches only equal ones.

    `caches`: one for each device, for the host may run the passes on several. `scales`: s_v and s_a, which a
    distilled model is told.
    """

    conditioned: Conditioned
    active: ActiveParts
    caches: dict[torch.device, Cache] | None = None
    face_masks: FaceMasks | None = None
    scales: tuple[float, float] | None = None
    speaker: Speaker | None = None


class HostDiT(DualBranchDiT):
    """`DualBranchDiT` with the call of the host's diffusion models; tensor names stay the checkpoint's."""

    def __init__(self, config: Config, dtype: Any = None, device: Any = None, operations: Any = None):
        super().__init__(config, ops=operations, device=device, dtype=dtype)
        self._dtype = dtype
        # nodes leave what a latent has beyond this as it is; neither stream has more
        self.in_channels = max(config.video_channels, config.audio_channels)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @uncompiled
    def forward(self, x, timestep, context=None, control=None, transformer_options={}, **conds):  # noqa: B006
        """`x`: video `[B, 48, T, h, w]` and audio `[B, 80, L]`; returns both velocities in those shapes.

        Wrappers (EasyCache) see copies that they may write into, the audio as `[B, 1, 80, L]`: they cut
        streams to the channels of the video.
        """
        video, audio = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._velocity,
            self,
            comfy.patcher_extension.get_all_wrappers(
                comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
            ),
        ).execute([x[0].clone(), x[1][:, None].clone()], timestep, context, transformer_options, **conds)
        return [video, audio[:, 0]]

    @uncompiled
    def _velocity(
        self,
        x: list[Tensor],
        timestep: Tensor,
        context: Tensor,
        transformer_options: dict,
        speech: Tensor,
        reference_image: Tensor,
        run: Pass,
        reference_mel: Tensor | None = None,
    ) -> list[Tensor]:
        video, audio = x[0], x[1][:, 0]
        out = super().forward(
            video,
            audio.transpose(1, 2),
            timestep,
            TextConditioning(context, speech),
            References(reference_image, reference_mel),
            run.conditioned,
            self._active(run.active, transformer_options),
            None if run.caches is None else run.caches.setdefault(video.device, Cache()),
            attention=_host_attention(transformer_options),
            audio_attention=attention_pytorch,  # quantised attention garbles the audio branch
            on_layer=partial(transformer_options.__setitem__, "block_index"),
            scales=None if run.scales is None else timestep.new_tensor([run.scales]).expand(len(timestep), 2),
            speaker=run.speaker,
        )
        if run.face_masks is not None:
            run.face_masks.update(out.face_masks)
        return [out.video, out.audio.transpose(1, 2)[:, None]]

    def _active(self, active: ActiveParts, transformer_options: dict) -> ActiveParts:
        """Less what Modality Guidance and Skip Layer Guidance leave out.

        Patches of anything else have no effect and are added to `uniavgen_ignored`.
        """
        layers: list[int] = []
        patches = [(n, f) for n, found in transformer_options.get("patches", {}).items() for f in found]
        for kind, replaced in transformer_options.get("patches_replace", {}).items():
            for place, patch in replaced.items():
                name = owner(patch)
                if kind == "dit" and place[0] == "double_block" and name.startswith("SkipLayerGuidance"):
                    layers.append(place[1])
                elif not name.startswith("SkipLayerGuidance"):
                    patches.append((kind, patch))
        ignored = {without_effect(patch, f"it patches {kind}") for kind, patch in patches}
        inside = tuple(layer for layer in layers if layer < self.config.layers)
        if layers and not inside:
            ignored.add(f"SkipLayerGuidance (the model has the layers 0 to {self.config.layers - 1})")
        transformer_options.get("uniavgen_ignored", set()).update(ignored)
        return ActiveParts(
            active.a2v and transformer_options.get("a2v_cross_attn", True),
            active.v2a and transformer_options.get("v2a_cross_attn", True),
            (*active.skip_layers, *inside),
        )


def _host_attention(transformer_options: dict) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        return optimized_attention(q, k, v, heads, mask=mask, transformer_options=transformer_options)

    return attention


class HostConfig(comfy.supported_models_base.BASE):
    """What the host wants to know of the model; `core` is the core's config."""

    unet_config = {}  # noqa: RUF012
    unet_extra_config = {}  # noqa: RUF012
    latent_format = comfy.latent_formats.Wan22
    sampling_settings = {"shift": 5.0}  # noqa: RUF012
    memory_usage_factor = MEMORY_USAGE_FACTOR
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]  # noqa: RUF012

    def __init__(self, core: Config):
        super().__init__({"config": core})


class UniAVGen(comfy.model_base.BaseModel):
    """`DualBranchDiT` for the host's samplers: velocity prediction, model time `1000 * sigma`."""

    def __init__(self, model_config: HostConfig, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostDiT)

    @property
    def core_config(self) -> Config:
        return self.diffusion_model.config

    def process_latent_in(self, latent):
        return self._video_part(latent, self.latent_format.process_in)

    def process_latent_out(self, latent):
        return self._video_part(latent, self.latent_format.process_out)

    def _video_part(self, latent, convert: Callable[[Tensor], Tensor]):
        if latent.is_nested:
            video, *rest = latent.unbind()
            return NestedTensor([convert(video), *rest])
        if latent.ndim == 5:
            return convert(latent)
        if latent.ndim == 3 and latent.shape[1] == 1 and self.latent_shapes and len(self.latent_shapes) > 1:
            video, *rest = comfy.utils.unpack_latents(latent, self.latent_shapes)
            return comfy.utils.pack_latents([convert(video), *rest])[0]
        return latent

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        return latent_image

    def map_context_window_to_modalities(self, primary_indices, latent_shapes, dim):
        raise UserError(
            "context windows cannot be used with UniAVGen: nobody knows which words belong to which window; "
            "make the clip in parts with UniAVGen Continuation"
        )

    def extra_conds(self, **kwargs):
        """Everything the task nodes put into CONDITIONING, checked against the latent and the model."""
        shapes, config, device = kwargs["latent_shapes"], self.core_config, kwargs["device"]
        side = kwargs["prompt_type"]
        check_latent_shapes(shapes, config)
        if "uniavgen_speech" not in kwargs:
            raise UserError(
                f"{side} does not come from {TASK_NODES}; connect the {side} output of one of them"
            )
        out = super().extra_conds(**kwargs)
        out["c_crossattn"] = comfy.conds.CONDRegular(self._caption(kwargs["cross_attn"], side).to(device))
        speech, image = kwargs["uniavgen_speech"], kwargs["uniavgen_reference_image"]
        if speech.shape[-1] != config.speech_dim:
            raise UserError(
                f"the speech features are {speech.shape[-1]} wide, this MODEL takes {config.speech_dim}; "
                "encode the speech with the speech encoder of the same loader"
            )
        if image.shape[3:] != shapes[0][3:]:
            raise UserError(
                f"the reference image has latent size {tuple(image.shape[3:])} but the latent has "
                f"{tuple(shapes[0][3:])}; take positive, negative and latent from one task node"
            )
        out["speech"] = comfy.conds.CONDRegular(speech.to(device))
        out["reference_image"] = comfy.conds.CONDRegular(self.latent_format.process_in(image.to(device)))
        if kwargs["uniavgen_reference_mel"] is not None:
            out["reference_mel"] = comfy.conds.CONDRegular(kwargs["uniavgen_reference_mel"].to(device))
        out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        v2a = kwargs["uniavgen_null"] or config.variant not in MODES[kwargs["uniavgen_mode"]].v2a_off
        speaks = None
        if "uniavgen_who_speaks" in kwargs:
            mask, how = kwargs["uniavgen_who_speaks"]
            speaks = speaker(mask, how, tuple(shapes[0][2:]), config.patch)
        run = Pass(_conditioned(kwargs.get("denoise_mask"), shapes), ActiveParts(v2a=v2a), speaker=speaks)
        out["run"] = comfy.conds.CONDConstant(run)
        return out

    def _caption(self, caption: Tensor, side: str) -> Tensor:
        length, dim = self.core_config.caption_length, self.core_config.caption_dim
        if caption.shape[-1] != dim:
            raise UserError(
                f"{side} is encoded {caption.shape[-1]} wide, this MODEL takes {dim}; encode the caption "
                "with umT5-xxl (CLIPLoader, type wan), for the embedded model with its own CLIP"
            )
        if caption.shape[1] > length and caption[:, length:].any():
            logging.warning(
                "UniAVGen: the caption has %d tokens, the model reads the first %d", caption.shape[1], length
            )
        caption = caption[:, :length]
        return F.pad(caption, (0, 0, 0, length - caption.shape[1]))


def check_latent_shapes(shapes: list, config: Config) -> None:
    """Raises UserError unless they are those of a joint latent of this model."""
    found = ", ".join(str(list(shape)) for shape in shapes)
    if (
        len(shapes) != 2
        or len(shapes[0]) != 5
        or len(shapes[1]) != 3
        or shapes[0][1] != config.video_channels
        or shapes[1][1] != config.audio_channels
        or 0 in (*shapes[0], *shapes[1])
    ):
        raise UserError(
            f"the latent is {found}, expected video [B, {config.video_channels}, T, h, w] and audio "
            f"[B, {config.audio_channels}, L]; take the latent from {TASK_NODES}"
        )
    frames, wanted = 4 * shapes[0][2] - 3, mel_frames(4 * shapes[0][2] - 3)
    if abs(shapes[1][2] - wanted) >= MELS_PER_SECOND // 4:  # a latent frame
        raise UserError(
            f"the latent is {found}: {counted(shapes[0][2], 'latent frame')} ({counted(frames, 'frame')}) "
            f"go with {wanted} mel frames, not with {shapes[1][2]}; cut both streams to the same length"
        )
    if shapes[0][0] != shapes[1][0]:
        raise UserError(
            f"the latent is {found}: {counted(shapes[0][0], 'video')} but "
            f"{counted(shapes[1][0], 'audio clip')}; make as many"
        )


def _conditioned(mask: Tensor | None, shapes: list) -> Conditioned:
    """Which latent frames and mel frames are conditioned, from a packed mask (0: conditioned)."""
    if mask is None:
        return Conditioned.none(shapes[0][2], shapes[1][2])
    video, audio = comfy.utils.unpack_latents(mask.cpu(), shapes)
    streams = (("video", video.movedim(2, 0)), ("audio", audio.movedim(2, 0)))
    conditioned = []
    for name, stream in streams:
        low, high = stream.flatten(1).aminmax(dim=1)
        between = stream[(stream != 0) & (stream != 1)]
        if len(between):
            raise UserError(
                f"the noise mask of the {name} holds {float(between[0]):g}, expected 0 (known, kept as it "
                "is) or 1 (generated) over whole frames; the model knows no strengths between, so set the "
                "mask to 0 or 1 (Threshold Mask)"
            )
        if not torch.equal(low, high):
            raise UserError(
                f"the noise mask of the {name} is 0 in one part of a frame or of the batch and 1 in another, "
                "expected the same over whole frames; draw masks that cover whole frames"
            )
        conditioned.append(low == 0)
    return Conditioned(*conditioned)


def build_patcher(
    state_dict: dict[str, Tensor],
    config: Config,
    weight_dtype: torch.dtype | None = None,
    fast_fp8: bool = False,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from tensors under the checkpoint's names; the dict is used up, names are not checked."""
    host = HostConfig(config)
    host.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    supported = host.supported_inference_dtypes
    stored = None if host.quant_config is not None else comfy.utils.weight_dtype(state_dict)
    dtype = weight_dtype or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state_dict),
        supported_dtypes=list(supported),
        weight_dtype=stored,
    )
    quantised = host.quant_config is not None
    manual_cast = comfy.model_management.unet_manual_cast(
        None if quantised else dtype, load_device, supported
    )
    host.set_inference_dtype(dtype, manual_cast, device=load_device)
    host.optimizations["fp8"] = fast_fp8
    if not quantised:
        operations = comfy.ops.pick_operations(dtype, manual_cast, fp8_optimizations=fast_fp8)
        # the time embedding runs in float32 whatever the weights are, so layers must cast
        if operations is comfy.ops.disable_weight_init:
            operations = comfy.ops.manual_cast
        host.custom_operations = operations
    model = UniAVGen(host)
    patcher_class = (
        comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    )
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=patcher.is_dynamic())
    return patcher
