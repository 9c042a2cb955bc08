"""What a forward and a run cost: FLOPs by torch's counter, time and peak memory by measurement.

"Naive" is what docs/model.md section 10 calls so: two dense passes per step (the null one without its skipped
layer), V2A projecting every gathered context, A2V every gathered window, time embedded per token, and
nothing kept between steps.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from . import conditioning
from .errors import UserError
from .model.config import Config
from .model.dit import DualBranchDiT
from .model.inputs import TextConditioning, Velocity
from .model.variants import align
from .pipeline import Pipeline, Weights
from .sampling.defaults import Guidance
from .sampling.guidance import GuidedModel

T = TypeVar("T")

SPEECH_SYMBOLS = 80


class Size(NamedTuple):
    """A clip: pixels wide and high, video frames (4n + 1)."""

    width: int = 1280
    height: int = 736
    frames: int = 81

    @property
    def latent(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        return conditioning.latent_frames(self.frames), self.height // 16, self.width // 16

    @property
    def mels(self) -> int:
        return conditioning.mel_frames(self.frames)

    def check(self) -> None:
        """Raises UserError for sizes the VAE and the patches cannot cut evenly."""
        conditioning.latent_frames(self.frames)
        if min(self.width, self.height) < 32 or self.width % 32 or self.height % 32:
            raise UserError(f"{self.width}x{self.height} pixels; width and height must be multiples of 32")


def naive_forward_flops(
    config: Config, size: Size, layers: int | None = None, blocks: int | None = None
) -> int:
    """One dense forward of joint generation, matmuls only; `layers` and `blocks` of interaction are run."""
    c = config
    layers = c.layers if layers is None else layers
    blocks = len(c.interaction_layers) if blocks is None else blocks
    frames, height, width = size.latent
    spatial = -(-height // c.patch[0]) * -(-width // c.patch[1])
    video, audio = (frames + 1) * spatial, size.mels
    d, a = c.video_dim, c.audio_dim

    def branch(tokens: int, dim: int, ffn: int, text: int) -> int:
        projections = 6 * tokens * dim * dim + 2 * text * dim * dim
        attention = 2 * tokens * tokens * dim + 2 * tokens * text * dim
        return 2 * (projections + attention + 2 * tokens * dim * ffn)

    window = align(c, frames, audio).window.shape[1]
    a2v = 2 * (2 * frames * spatial * d * d + 2 * frames * window * a * d + 2 * frames * spatial * window * d)
    v2a = 2 * (2 * audio * a * a + 2 * audio * spatial * d * a + 2 * audio * spatial * a)
    mask = 2 * frames * spatial * d

    def time_embedding(tokens: int, dim: int) -> int:
        return 2 * tokens * (c.freq_dim * dim + 7 * dim * dim)

    patch = c.video_channels * c.patch[0] * c.patch[1]
    ends = 2 * (
        2 * video * patch * d  # patch embedding and head
        + audio * (2 * c.audio_channels * a + a * a)
        + c.caption_length * (c.caption_dim * d + d * d)
        + SPEECH_SYMBOLS * (c.speech_dim * a + 4 * c.speech_layers * c.speech_dim**2)
    )
    return (
        layers
        * (branch(video, d, c.video_ffn, c.caption_length) + branch(audio, a, c.audio_ffn, SPEECH_SYMBOLS))
        + blocks * (a2v + v2a + mask)
        + time_embedding(video, d)
        + time_embedding(audio, a)
        + ends
    )


def naive_step_flops(config: Config, size: Size, guidance: Guidance) -> int:
    """Full and null pass of one step; the skipped layers take their interaction with them."""
    skipped = set(guidance.skip_layers)
    blocks = len(set(config.interaction_layers) - skipped)
    full = naive_forward_flops(config, size)
    return full + naive_forward_flops(config, size, config.layers - len(skipped), blocks)


def _guided(config: Config, mode: str, size: Size, guidance: Guidance) -> GuidedModel:
    """A model and a task of the given sizes without data, on the meta device."""
    model = DualBranchDiT(config, device="meta", dtype=torch.bfloat16)
    frames, height, width = size.latent

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta")

    given = frames if conditioning.MODES[mode].takes_video else 1
    video = empty(config.video_channels, given, height, width)
    task = conditioning.condition(mode, video, None, frames, size.mels)
    texts = TextConditioning(
        empty(config.caption_length, config.caption_dim), empty(SPEECH_SYMBOLS, config.speech_dim)
    )
    return GuidedModel(model, task, texts, texts, guidance)


def run_flops(
    config: Config, mode: str, size: Size, steps: int, guidance: Guidance | None = None
) -> list[int]:
    """FLOPs of every step of a run, counted on the meta device.

    Only steps that differ are counted: in either part of the run the first, which computes what is kept,
    and the second, which stands for all that follow.
    """
    guidance = guidance or Guidance()
    velocity = _guided(config, mode, size, guidance)
    latents = velocity.task.clean_video, velocity.task.clean_audio
    outside = min(int(guidance.interval * steps), steps)
    counts: list[int] = []
    for step in range(steps):
        if step in (0, 1, outside, outside + 1):
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                velocity(*latents, torch.empty(1, device="meta"), step, steps)
            counts.append(counter.get_total_flops())
        else:
            counts.append(counts[-1])
    return counts


def flops_report(config: Config, size: Size | None = None, steps: int = 50) -> dict:
    """A joint step inside and outside the MA-CFG interval and whole runs, against naive.

    A step is one in the middle of its part of the run; the runs count everything.

    Raises:
        UserError: fewer than 8 steps, too few for both parts to have a middle.
    """
    if steps < 8:
        raise UserError(f"{steps} steps are too few to tell the parts of a run apart; use at least 8")
    size, guidance = size or Size(), Guidance()
    naive = naive_step_flops(config, size, guidance)
    joint = run_flops(config, "joint", size, steps, guidance)
    dubbing = run_flops(config, "dubbing", size, steps, guidance)

    def row(counted: int, naive: int) -> dict:
        return {
            "tflop": round(counted / 1e12, 2),
            "naive_tflop": round(naive / 1e12, 2),
            "ratio_to_naive": round(counted / naive, 5),
        }

    return {
        "size": {**size._asdict(), "steps": steps},
        "joint_step": row(joint[1], naive),
        "joint_step_outside_interval": row(joint[-1], naive),
        "joint_run": row(sum(joint), steps * naive),
        "dubbing_run": row(sum(dubbing), steps * naive),
    }


def stage_report(weights: Weights, size: Size) -> dict:
    """Seconds and peak memory of every stage of a joint clip, and of one full and one null pass.

    Forwards are timed twice, the first one computing what a run keeps. Memory is the GPU's; on a CPU it
    is the peak of the process so far.
    """
    weights.check()
    pipeline = Pipeline.load(weights, keep=True)
    device = pipeline.device
    on_gpu = device.type == "cuda"
    report: dict = {"size": size._asdict(), "device": str(device), "embedded": weights.embedded}

    def measured(name: str, work: Callable[[], T]) -> T:
        if on_gpu:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        result = work()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else _peak_rss()
        report[name] = {"seconds": round(seconds, 4), "peak_gb": round(peak / 1e9, 3)}
        return result

    frames = size.latent[0]
    with torch.inference_mode():
        measured("load_caption_encoder", pipeline.text_encoder.get)
        caption, _ = measured("caption", lambda: pipeline.encode_captions(["a person talks"]))
        null_caption, _ = pipeline.encode_captions([""])
        measured("load_vae", pipeline.vae.get)
        image = torch.zeros(1, size.height, size.width, 3, dtype=torch.uint8)
        image = measured("vae_encode_image", lambda: pipeline.encode_frames(image))
        model = measured("load_model", pipeline.model.get)
        speech, _ = measured("speech", lambda: pipeline.encode_speech([[0] * SPEECH_SYMBOLS]))
        task = conditioning.condition("joint", image, None, frames, size.mels)
        texts = TextConditioning(caption, speech), TextConditioning(null_caption, speech)
        latents = task.noise(0)
        skip = () if model.config.layers <= 11 else (11,)
        for name, guidance, step in (
            ("no_guidance", Guidance.none(), 0),
            ("ma_cfg", Guidance(skip_layers=skip), 0),
            ("cfg", Guidance(skip_layers=skip), 1),
        ):
            velocity = GuidedModel(model, task, *texts, guidance)

            def forward(velocity: GuidedModel = velocity, step: int = step) -> Velocity:
                return velocity(*latents, torch.full((1,), 900.0, device=device), step, 2)

            measured(f"first_step_{name}", forward)
            measured(f"step_{name}", forward)
            with FlopCounterMode(display=False) as counter:
                forward()
            report[f"step_{name}"]["tflop"] = counter.get_total_flops() / 1e12
        measured("vae_decode", lambda: pipeline.decode_video(latents[0]))
        pipeline.vocoder.get()
        measured("vocoder", lambda: pipeline.decode_audio(latents[1]))
    return report


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
