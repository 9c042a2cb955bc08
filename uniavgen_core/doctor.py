"""What a user pastes into an issue: device, kernels, files, parity of the golden cases, expected cost."""

from __future__ import annotations

import importlib.util
import platform
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from . import __version__
from .conditioning import mel_frames
from .errors import UserError
from .memory import Clip, by_layers, guided_on_meta, model_memory, plan
from .model.config import RELEASED, Config
from .model.layers import sdpa
from .sampling.defaults import SamplingDefaults
from .verify import GOLDEN, verify
from .weights.inspect import inspect

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "av", "comfy-kitchen")
ATTENTION_PACKAGES = ("sageattention", "flash_attn", "xformers")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# largest relative error of the golden cases that a dtype gives where it works: above it something is wrong
EXPECTED = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 2e-2, "fp8": 2e-1}
CLIPS = (Clip("joint", 832, 480, 81, mel_frames(81)), Clip("joint", 1280, 736, 81, mel_frames(81)))
SHARE = 0.55  # of the measured matmul speed that a step reaches


def report(
    device: str | torch.device, files: Mapping[str, str | Path | None], limit: int | None = None
) -> Iterator[str]:
    """The lines of the report; `files`: the parts (model, vae, text_encoder, vocoder) that are there.

    `limit`: bytes for the plan of `memory`; without it there is none. Nothing is secret but the paths.
    """
    device = torch.device(device)
    yield from ("UniAVGen doctor", "")
    yield from _software()
    yield ""
    yield from _device(device)
    yield from _attention(device)
    yield ""
    yield from _files(files)
    yield ""
    yield "golden cases on this device (largest relative error):"
    yield from _parity(device)
    yield ""
    yield "expected for the released model, 5 s (81 frames), 50 steps:"
    yield from _cost(device, files, limit)


def _software() -> Iterator[str]:
    yield f"uniavgen {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device(device: torch.device) -> Iterator[str]:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        yield (
            f"device {device}: {properties.name}, compute {properties.major}.{properties.minor}, "
            f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free, CUDA {torch.version.cuda or torch.version.hip}"
        )
    else:
        capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
        yield f"device {device}: {torch.get_num_threads()} threads, {capability}"
    rates = {name: _matmul_rate(device, dtype) for name, dtype in DTYPES.items()}
    yield "matmul: " + ", ".join(
        f"{name} {rate / 1e12:.2f} TFLOP/s" if rate else f"{name} not possible"
        for name, rate in rates.items()
    )


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of a square product; None where the device cannot."""
    size, repeats = (8192, 10) if device.type == "cuda" else (768, 2)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        a = torch.ones(size, size, device=device, dtype=dtype)
        torch.mm(a, a)
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, a)
        wait()
    except (RuntimeError, TypeError):
        return None
    return repeats * 2 * size**3 / max(time.perf_counter() - start, 1e-9)


def _attention(device: torch.device) -> Iterator[str]:
    working = []
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q = torch.zeros(1, 2, 64, 128, device=device, dtype=dtype)
    for name, backend in (
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("math", SDPBackend.MATH),
    ):
        try:
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(q, q, q)
            working.append(name)
        except RuntimeError:
            continue
    packages = [name for name in ATTENTION_PACKAGES if importlib.util.find_spec(name)]
    yield f"attention kernels of torch: {', '.join(working)}; installed: {', '.join(packages) or 'none'}"


def _files(files: Mapping[str, str | Path | None]) -> Iterator[str]:
    for part, path in files.items():
        if path is None:
            yield f"{part:12} none"
            continue
        try:
            found = inspect(path)
        except UserError as error:
            yield f"{part:12} {error}"
            continue
        dtypes = ", ".join(f"{code} {count / 1e6:.0f} M" for code, count in found["dtypes"].items())
        yield f"{part:12} {path}: {found['what']}, {found['bytes'] / 1e9:.2f} GB ({dtypes})"


def _parity(device: torch.device) -> Iterator[str]:
    golden = sorted(GOLDEN.glob("*.safetensors"))
    for name, expected in EXPECTED.items():
        dtype = DTYPES.get(name, torch.bfloat16)
        try:
            cases = [case for file in golden for case in verify(file, device, dtype, fp8=name == "fp8")]
        except (RuntimeError, TypeError) as error:
            yield f"{name:5} not possible: {str(error).splitlines()[0]}"
            continue
        worst = max(cases, key=lambda case: case.error)
        verdict = "ok" if worst.error <= expected else f"TOO LARGE, expected at most {expected:g}"
        yield f"{name:5} {worst.error:.1e} of {len(cases)} cases ({worst.name})  {verdict}"


def _cost(device: torch.device, files: Mapping[str, str | Path | None], limit: int | None) -> Iterator[str]:
    defaults = SamplingDefaults()
    rate = _matmul_rate(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    for clip in CLIPS:
        peak, _ = model_memory(RELEASED, clip, defaults.guidance, torch.bfloat16)
        minutes = run_flops(RELEASED, clip) / (SHARE * rate) / 60 if rate else float("nan")
        yield (
            f"{clip.width}x{clip.height}: weights 14.1 GB (bf16) or 7.2 GB (fp8) and {peak / 1e9:.1f} GB "
            f"while sampling; about {minutes:.0f} minutes"
        )
    wanted = ("model", "vae", "text_encoder")
    if limit is None or not all(files.get(part) for part in wanted):
        return
    for clip in CLIPS:
        try:
            made = plan(files, clip, defaults.guidance, limit, device.type)
        except UserError as error:
            yield f"{clip.width}x{clip.height}: {error}"
        else:
            yield from (f"{clip.width}x{clip.height} {line}" for line in made.lines())


def run_flops(config: Config, clip: Clip, steps: int = SamplingDefaults.steps) -> int:
    """FLOPs of a guided run, counted on the meta device."""

    def count(c: Config) -> tuple[int, int]:
        guided = guided_on_meta(c, clip, SamplingDefaults().guidance, torch.bfloat16, sdpa)
        latents: tuple[Tensor, Tensor] = guided.task.clean_video, guided.task.clean_audio
        counts = []
        for step in (0, 1, 1):  # the first computes what is kept
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                guided(*latents, torch.empty(1, device="meta"), step, 2)
            counts.append(counter.get_total_flops())
        return counts[2], counts[0] - counts[2]

    each, first = by_layers(config, count)
    return steps * each + max(first, 0)
