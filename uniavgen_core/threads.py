"""Small models on a CPU run in one thread.

OpenMP threads spin while they wait for each other at the end of every operation. The embedded model has
thousands of small ones: on two busy cores a pass took 0.28 s of CPU time in one thread and 4.8 s in
two (2.4 s and 32 s by the clock), for the second thread was rarely there when the first had finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 100_000_000  # parameters; the released parts have ten times as many, the embedded ones a tenth


@contextmanager
def fitting_threads(module: nn.Module, device: torch.device) -> Iterator[None]:
    """One thread inside the `with` where `module` is small and runs on the CPU."""
    threads = torch.get_num_threads()
    small = device.type == "cpu" and sum(p.numel() for p in module.parameters()) < SMALL
    torch.set_num_threads(1 if small else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
