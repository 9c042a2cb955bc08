"""Progress of a network that reports none: a callback after each call of one of its modules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def called(module: nn.Module, then: Callable[[int], object]) -> Iterator[None]:
    """Within it, `then(count)` follows every call of the module."""
    counter = itertools.count(1)
    hook = module.register_forward_hook(lambda *_: (then(next(counter)), None)[1])
    try:
        yield
    finally:
        hook.remove()
