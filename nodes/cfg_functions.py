"""The host's CFG functions on a joint latent.

Nodes such as Adaptive Projected Guidance and samplers such as euler_cfg_pp put functions on a MODEL that run
before, in place of and after the mix of the full and the null pass. The host shows them a joint latent as its
flat pack `[B, 1, N]` and one scale; here there are two scales, and most functions take norms over channels or
spectra over pictures, which a pack has not. So:

- `sampler_cfg_function` and the nodes in `PER_STREAM` run once for the video `[B, 48, T, h, w]` with s_v and
  once for the audio `[B, 80, L]` with s_a: each stream is guided as a model of its own would be.
- All others (those of samplers, those that run the model once more, unknown ones) see the pack once, with the
  larger of the two scales as `cond_scale`. cond is the full pass, uncond the null pass of MA-CFG.
- Those in `IGNORED` have no meaning here; they are left out and named.

Functions before the mix run only where there is a null pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.utils
from torch import Tensor

from ..uniavgen_core.sampling.guidance import mix

PER_STREAM = frozenset(
    (
        "CFGNorm",
        "CFGZeroStar",
        "EpsilonScaling",
        "FreSca",
        "LatentApplyOperationCFG",
        "Mahiro",
        "TCFG",
        "TemporalScoreRescaling",
    )
)
U_NET = "it replaces the attention of a U-Net"
FRAMES_IN_A_BATCH = "it changes the scale over a batch of frames, a clip is one latent"
IGNORED = {
    "LTXVSpatioTemporalGuidance": "it changes the attention of LTX",
    "PerpNeg": "it needs a third text",
    "PerturbedAttentionGuidance": U_NET,
    "SelfAttentionGuidance": U_NET,
    "VideoLinearCFGGuidance": FRAMES_IN_A_BATCH,
    "VideoTriangleCFGGuidance": FRAMES_IN_A_BATCH,
}

Function = Callable[[dict[str, Any]], Any]


def owner(function: Function) -> str:
    """The node class or the sampler that a function was defined in."""
    return getattr(function, "__qualname__", type(function).__qualname__).partition(".")[0]


def without_effect(function: Function, reason: str = "") -> str:
    """What is said of a function that is left out."""
    return f"{owner(function)} ({IGNORED.get(owner(function), reason)})"


@dataclass
class Step:
    """One mix of two passes: `cond` and `uncond` are lists of conds, the passes' denoised packs `[B, 1, N]`.

    `scales`: s_v and s_a. `shapes`: of the streams in the pack. `ignored` collects what was left out.
    """

    model: Any
    x: Tensor
    sigma: Tensor
    model_options: dict
    cond: list
    uncond: list | None
    scales: tuple[float, float]
    shapes: list
    ignored: set[str] = field(default_factory=set)

    def denoised(self, full: Tensor, null: Tensor) -> Tensor:
        """All functions of `model_options` around `null + s (full - null)`."""
        if self.uncond is not None:
            for function in self._known("sampler_pre_cfg_function"):
                full, null = self._before(function, full, null)
        mixed = self._mixed(full, null)
        for function in self._known("sampler_post_cfg_function"):
            mixed = self._after(function, mixed, full, null)
        return mixed

    def _known(self, kind: str) -> list[Function]:
        return [function for function in self.model_options.get(kind, []) if not self._is_ignored(function)]

    def _is_ignored(self, function: Function) -> bool:
        if owner(function) in IGNORED:
            self.ignored.add(without_effect(function))
        return owner(function) in IGNORED

    def _streams(self, *packs: Tensor) -> list[tuple]:
        """`(scale, *tensors)` for the video and for the audio."""
        unpacked = (comfy.utils.unpack_latents(pack, self.shapes) for pack in packs)
        return list(zip(self.scales, *unpacked))

    def _shared(self, x: Tensor, scale: float) -> dict:
        return {
            "input": x,
            "cond_scale": scale,
            "sigma": self.sigma,
            "model": self.model,
            "model_options": self.model_options,
        }

    def _before(self, function: Function, full: Tensor, null: Tensor) -> list[Tensor]:
        def run(scale: float, x: Tensor, cond: Tensor, uncond: Tensor) -> list[Tensor]:
            passes = {"conds": [self.cond, self.uncond], "conds_out": [cond, uncond]}
            return function(self._shared(x, scale) | passes | {"timestep": self.sigma})[:2]

        if owner(function) not in PER_STREAM:
            return run(max(self.scales), self.x, full, null)
        streams = [run(*stream) for stream in self._streams(self.x, full, null)]
        return [comfy.utils.pack_latents(list(parts))[0] for parts in zip(*streams)]

    def _mixed(self, full: Tensor, null: Tensor) -> Tensor:
        function = self.model_options.get("sampler_cfg_function")
        if function is not None and self._is_ignored(function):
            function = None
        if self.uncond is None and function is None:
            return full

        def run(scale: float, x: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
            if function is None:
                return mix(uncond, cond, scale)
            passes = {
                "cond": x - cond,
                "uncond": x - uncond,
                "cond_denoised": cond,
                "uncond_denoised": uncond,
                "input_cond": self.cond,
                "input_uncond": self.uncond,
                "timestep": self.sigma,
            }
            return x - function(self._shared(x, scale) | passes)

        return comfy.utils.pack_latents([run(*s) for s in self._streams(self.x, full, null)])[0]

    def _after(self, function: Function, mixed: Tensor, full: Tensor, null: Tensor) -> Tensor:
        def run(scale: float, x: Tensor, denoised: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
            passes = {"denoised": denoised, "cond_denoised": cond, "uncond_denoised": uncond}
            return function(self._shared(x, scale) | passes | {"cond": self.cond, "uncond": self.uncond})

        if owner(function) not in PER_STREAM:
            return run(max(self.scales), self.x, mixed, full, null)
        streams = [run(*stream) for stream in self._streams(self.x, mixed, full, null)]
        return comfy.utils.pack_latents(streams)[0]
