"""UniAVGen: audio and video of a talking person, generated jointly. Knows nothing of ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .model.config import RELEASED, Config

if TYPE_CHECKING:
    from .model.dit import DualBranchDiT

__version__ = "0.1.0"
__all__ = ["RELEASED", "Config", "DualBranchDiT"]


def __getattr__(name: str):
    """`DualBranchDiT` brings torch along, so it is imported when asked for: `uniavgen --help` needs none."""
    if name != "DualBranchDiT":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .model.dit import DualBranchDiT

    return DualBranchDiT
