"""Weights that wait in ordinary memory or in their file and come to the device as they are used."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

AHEAD = 192_000_000  # bytes on the way at most: three of the released model's widest fp8 weights


class _Arrived(NamedTuple):
    weight: Tensor
    event: Any  # of CUDA: the copy is done; None where copying waits


class Stream:
    """Brings weights to `device`, each for one use.

    A network asks for them in much the same order in every pass. So what followed a weight the last time is
    fetched ahead of it, in a thread, until `ahead` bytes are on the way; a weight that was not foreseen is
    fetched at once, and what was fetched in vain is dropped. To a GPU they go through pinned memory on a CUDA
    stream of their own; on a CPU they are copied out of their file, which reads it from the disk beforehand.
    """

    def __init__(self, device: str | torch.device, ahead: int = AHEAD):
        self.device, self.ahead = torch.device(device), ahead
        self.foreseen = self.missed = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._weights: dict[Hashable, Tensor] = {}
        self._next: dict[Hashable, Hashable] = {}
        self._coming: dict[Hashable, Future[_Arrived]] = {}
        self._last: Hashable = None

    def take(self, key: Hashable, weight: Tensor) -> Tensor:
        """`weight` on the device; `key` tells it from the others."""
        self._weights[key] = weight
        future = self._coming.pop(key, None)
        if future is None:
            self.missed += 1
            self._forget()
            future = self._thread.submit(self._fetch, weight)
        else:
            self.foreseen += 1
        if self._last is not None:
            self._next[self._last] = key
        self._last = key
        self._fetch_ahead(key)
        arrived = future.result()
        if arrived.event is not None:
            using = torch.cuda.current_stream(self.device)
            using.wait_event(arrived.event)
            arrived.weight.record_stream(using)  # its memory is not given away before it was used
        return arrived.weight

    def close(self) -> None:
        """Drops what is on the way; `take` works again afterwards."""
        self._forget()
        self._last = None

    def _forget(self) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()

    def _fetch_ahead(self, key: Hashable) -> None:
        size = 0
        while (key := self._next.get(key)) is not None:
            size += self._weights[key].nbytes
            if size > self.ahead:
                return
            if key not in self._coming:
                self._coming[key] = self._thread.submit(self._fetch, self._weights[key])

    @torch.inference_mode()
    def _fetch(self, weight: Tensor) -> _Arrived:
        if self._copying is None:
            return _Arrived(weight.to(self.device, copy=True), None)
        pinned = weight.pin_memory()
        with torch.cuda.stream(self._copying):
            arrived = pinned.to(self.device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._copying)
        return _Arrived(arrived, event)


def spread(sizes: dict[str, int], room: int) -> set[str]:
    """The names of those that do not fit into `room` bytes, evenly among the others.

    A network uses its weights in their order, so that the copying is spread over the computing.
    """
    total = sum(sizes.values())
    if total <= room:
        return set()
    streamed, seen, kept = set(), 0, 0
    for name, size in sizes.items():
        seen += size
        if kept + size <= max(room, 0) * seen / total:
            kept += size
        else:
            streamed.add(name)
    return streamed
