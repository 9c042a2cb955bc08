"""Takes: several clips of one task that differ in their noise alone; each can be made again by itself."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

MAX_TAKES = 64


def take_seed(seed: int, take: int) -> int:
    """The seed of take `take` (from 0): `seed + take`, as a generator takes it (64 bits).

    The clip that is made alone with this seed is this take.
    """
    return (seed + take) % 2**64


def clips_at_once(clips: int, free: float, one: float) -> int:
    """How many of so many clips are sampled together: as many as fit into `free` bytes, at least one.

    `one`: bytes that a pass over one clip takes. Half as much again is kept free.
    """
    return max(1, min(clips, int(free / (1.5 * one))))


def take_paths(out: str | Path, takes: int) -> list[Path]:
    """out.mp4, out-2.mp4, out-3.mp4, ...

    Raises:
        UserError: fewer than one or more than `MAX_TAKES`.
    """
    if not 1 <= takes <= MAX_TAKES:
        raise UserError(f"--takes is {takes}; use 1 to {MAX_TAKES}")
    path = Path(out)
    return [path, *(path.with_name(f"{path.stem}-{take}{path.suffix}") for take in range(2, takes + 1))]
