"""What a computation keeps in memory, tensor by tensor; on the meta device without computing it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


class Allocations(TorchDispatchMode):
    """Within it, the bytes of all tensors that operators make and that are still alive.

    Tensors that were there before are not counted, nor is what a kernel uses inside. On the meta device the
    same counts come out without memory or arithmetic, as long as the code looks at no values.

    Attributes:
        alive: bytes now.
        peak: the most there were at once.
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for given in _tensors((*args, *kwargs.values())):
            self._known.setdefault(given.untyped_storage(), 0)
        made = func(*args, **kwargs)
        for tensor in _tensors((made,)):
            self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """In the place of an attention that keeps nothing but its result, which the meta device has not."""
    return torch.empty_like(q)
