"""fp8 in memory: a linear layer whose weight stays float8 and is dequantised each time it is used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .files import TensorFiles


class Fp8Linear(nn.Module):
    """`nn.Linear` with a float8 weight `[out, in]` and one float32 scale; equal to its dequantised self.

    Half the memory of bf16; only the layer at work exists in `dtype`.
    """

    quantised: Tensor
    scale: Tensor

    def __init__(self, quantised: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.out_features, self.in_features = quantised.shape
        self.dtype = dtype
        self.register_buffer("quantised", quantised)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight in `dtype`, made anew."""
        return (self.quantised.float() * self.scale).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """In the dtype of `x`."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def load_tensors(
    module: nn.Module,
    files: TensorFiles,
    names: Mapping[str, str],
    device: str | torch.device,
    dtype: torch.dtype,
    keep_fp8: bool = False,
) -> None:
    """Give a module made on the meta device its tensors, one at a time.

    `names`: the module's names -> the stored ones. With `keep_fp8` linear layers that are stored in float8
    become `Fp8Linear`; everything else takes `dtype`.
    """
    state = {}
    for name, stored in names.items():
        path, _, leaf = name.rpartition(".")
        layer = module.get_submodule(path)
        fp8 = keep_fp8 and leaf == "weight" and files.tensors[stored].dtype.startswith("F8")
        if fp8 and isinstance(layer, nn.Linear):
            bias = f"{path}.bias"
            parent, _, child = path.rpartition(".")
            kept = Fp8Linear(
                files.stored_tensor(files.tensors[stored]).to(device),
                files.scale(stored).to(device),
                None if layer.bias is None else files.tensor(names[bias], device, dtype),
                dtype,
            )
            setattr(module.get_submodule(parent), child, kept)
            state |= {f"{path}.quantised": kept.quantised, f"{path}.scale": kept.scale}
        else:
            state[name] = files.tensor(stored, device, dtype)
    module.load_state_dict(state, strict=False, assign=True)  # `names` decides what is given
