"""Linear layers whose weight stays as its file holds it and is made ready each time it is used.

fp8 and int8 weights are dequantised there; a weight with a `Stream` comes to the device there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .files import FP8, TensorFiles
from .streaming import Stream
from .write import MODEL_LINEAR, Entry, encode

BLOCK = 1 << 18  # weights that are dequantised at a time, so that what is computed on the way is small


def dequantised(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`(stored * scale)` `[out, in]` in `dtype`, multiplied in float32, a few rows at a time.

    `scale`: one number, or one for each row `[out, 1]`.
    """
    out = torch.empty(stored.shape, dtype=dtype, device=stored.device)
    rows = max(1, BLOCK // stored.shape[1])
    scales = scale.expand(len(stored), 1).split(rows) if scale.ndim else [scale] * -(-len(stored) // rows)
    for part, source, factor in zip(out.split(rows), stored.split(rows), scales):
        part.copy_(_float32(source).mul_(factor))
    return out


def _float32(stored: Tensor) -> Tensor:
    """A new float32 tensor; on a CPU fp8 takes the way over float16, whose conversion is vectorised."""
    if stored.dtype != torch.float8_e4m3fn or stored.device.type != "cpu":
        return stored.to(torch.float32)
    # sign, exponent and mantissa at float16's places: its exponent counts from 15 and not from 7, hence 2^8.
    # The two NaN of float8 would become 480; files with them are refused when they are written.
    bits = stored.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(-(1 << 14) - 1)
    return bits.view(torch.float16).to(torch.float32).mul_(256.0)


class Fp8Linear(nn.Module):
    """`nn.Linear` with a weight as its file holds it `[out, in]`; equal to its dequantised self.

    fp8 takes half the memory of bf16; only the layer at work exists in `dtype`.

    Args:
        stored: fp8, int8 or any float.
        scale: float32, one number or one for each row `[out, 1]`; None: the weight is no quantised one.
        dtype: of `weight`.
        stream: brings the weight to the device when it is used; without one it is there.
    """

    quantised: Tensor
    scale: Tensor | None

    def __init__(
        self,
        stored: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
        stream: Stream | None = None,
    ):
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.dtype, self.stream = dtype, stream
        # In a tuple, so that it stays where it is when the module moves.
        self._waiting: tuple[Tensor, ...] = (stored,)
        if stream is None:
            self._waiting = ()
            self.register_buffer("quantised", stored)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """Shape and dtype of the weight without its values, which transformers asks for; see `ready`."""
        return torch.empty(self.out_features, self.in_features, dtype=self.dtype, device="meta")

    def ready(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype` on the device, as it is in `self.dtype`."""
        stored = self.quantised if self.stream is None else self.stream.take(self, self._waiting[0])
        if self.scale is None:
            return stored.to(self.dtype).to(dtype)
        return dequantised(stored, self.scale, self.dtype).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """In the dtype of `x`."""
        return F.linear(x, self.ready(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def use_fp8(model: nn.Module) -> None:
    """Gives a model the weights that its fp8 file would have."""
    for name, tensor in list(model.state_dict().items()):
        if MODEL_LINEAR.fullmatch(name):
            path = name.removesuffix(".weight")
            parent, _, child = path.rpartition(".")
            layer = cast(nn.Linear, model.get_submodule(path))
            (_, stored), (_, scale) = encode([(name, tensor)], {name: Entry(tuple(tensor.shape), FP8)})
            bias = None if layer.bias is None else layer.bias.detach()
            setattr(model.get_submodule(parent), child, Fp8Linear(stored, scale, bias, tensor.dtype))


def load_tensors(
    module: nn.Module,
    files: TensorFiles,
    names: Mapping[str, str],
    device: str | torch.device,
    dtype: torch.dtype,
    keep_fp8: bool = False,
    streamed: Collection[str] = (),
) -> None:
    """Give a module made on the meta device its tensors, one at a time.

    `names`: the module's names -> the stored ones. With `keep_fp8` linear layers that are stored in fp8 or
    int8 become `Fp8Linear`; the linear weights named in `streamed` become such of one `Stream`; everything
    else takes `dtype`.
    """
    state = {}
    stream = Stream(device) if streamed else None
    for name, stored in names.items():
        path, _, leaf = name.rpartition(".")
        layer = module.get_submodule(path)
        kept = name in streamed or (keep_fp8 and leaf == "weight" and files.quantised(stored))
        if kept and isinstance(layer, nn.Linear):
            bias = f"{path}.bias"
            parent, _, child = path.rpartition(".")
            weight = files.stored_tensor(files.tensors[stored])
            made = Fp8Linear(
                weight if name in streamed else weight.to(device),
                files.scale(stored).to(device) if files.quantised(stored) else None,
                None if layer.bias is None else files.tensor(names[bias], device, dtype),
                dtype,
                stream if name in streamed else None,
            )
            setattr(module.get_submodule(parent), child, made)
            state |= {f"{path}.{n}": value for n, value in made.named_buffers()}
        else:
            state[name] = files.tensor(stored, device, dtype)
    module.load_state_dict(state, strict=False, assign=True)  # `names` decides what is given
