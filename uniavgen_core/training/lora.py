"""LoRA fine-tuning: low-rank updates of attention and feed-forward matrices.

Files are peft-style for ComfyUI's own LoRA loaders: `diffusion_model.<module>.lora_A.weight` `[rank, in]`,
`.lora_B.weight` `[out, rank]` and `.alpha`; the update of a weight is `alpha / rank * B A`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.dit import DualBranchDiT
from ..weights.checkpoint import load_model
from ..weights.write import save_tensors
from .cast_ops import Linear
from .data import Batches, Latents
from .loop import DTYPES, Preview, Run, fit, make_accelerator
from .objective import Objective, recompute_blocks
from .recipe import GROUPS, Recipe, Stage, group_of

PREFIX = "diffusion_model."


class LowRank(nn.Module):
    """A frozen linear layer plus `alpha / rank * B A`; A and B are float32, B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        device = base.weight.device
        self.lora_A = Linear(base.in_features, rank, bias=False, device=device)
        self.lora_B = Linear(rank, base.out_features, bias=False, device=device)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


def add_lora(
    model: DualBranchDiT, rank: int, alpha: float, groups: tuple[str, ...] = GROUPS, seed: int = 0
) -> DualBranchDiT:
    """Freeze the model and put a `LowRank` around q, k, v, o and the feed-forward layers of `groups`.

    Raises:
        UserError: a group that is none of video, audio, a2v, v2a, or a rank below 1.
    """
    unknown = [group for group in groups if group not in GROUPS]
    if unknown or not groups:
        raise UserError(f"LoRA groups are {list(groups)}; choose from {', '.join(GROUPS)}")
    if rank < 1 or not alpha > 0:
        raise UserError(
            f"LoRA rank is {rank} and alpha {alpha}; use a rank of at least 1 and a positive alpha"
        )
    model.requires_grad_(False)
    target = re.compile(r"\w*blocks\.\d+\.((self_attn|cross_attn)\.)?([qkvo]|ffn\.[02])")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name, layer in list(model.named_modules()):
            if target.fullmatch(name) and group_of(name) in groups:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, LowRank(cast(nn.Linear, layer), rank, alpha))
    return model


def save_lora(state: dict[str, Tensor], path: Path, alpha: float) -> None:
    """Write the low-rank matrices of a model's state dict, whole or not at all."""
    low_rank = {name: value for name, value in state.items() if ".lora_" in name}
    tensors = {PREFIX + name: value.float() for name, value in low_rank.items()}
    for name in low_rank:
        module, _, leaf = name.partition(".lora_")
        if leaf == "A.weight":
            tensors[f"{PREFIX}{module}.alpha"] = torch.tensor(float(alpha))
    save_tensors(tensors, path, {"format": "pt"})


def train_lora(
    base: str | Path,
    latents: Latents,
    out: str | Path,
    stage: Stage,
    rank: int = 16,
    alpha: float | None = None,
    groups: tuple[str, ...] = GROUPS,
    seed: int = 0,
    dtype: str = "bf16",
    recompute: bool = True,
    run: Run | None = None,
    preview: Preview | None = None,
) -> Path:
    """Fine-tune a checkpoint (kept in `dtype`) and write `lora.safetensors` in the folder `out`.

    `alpha` defaults to the rank. A run that was stopped goes on from its last checkpoint.

    Raises:
        UserError: as `add_lora` and `fit`.
    """
    accelerator, out = make_accelerator(), Path(out)
    model = load_model(base, dtype=DTYPES[dtype])
    alpha = rank if alpha is None else alpha
    add_lora(model, rank, alpha, groups, seed)
    if recompute:
        recompute_blocks(model)
    recipe = Recipe(model.config, (stage,), seed, ema=1 - 10 / max(20, stage.steps), weight_decay=0.0)
    objective = Objective(model, None, DTYPES[dtype])
    batches = Batches(latents, stage, seed, accelerator.process_index, accelerator.num_processes)
    state = fit(accelerator, objective, stage, batches, out, recipe, run or Run(), preview, trained_only=True)
    if accelerator.is_main_process:
        trained = {name.removeprefix("model."): value for name, value in state.items()}
        save_lora(trained, out / "lora.safetensors", alpha)
    accelerator.wait_for_everyone()
    return out / "lora.safetensors"
