"""UniAVGen: sound and picture of a talking person made together. Knows nothing of ComfyUI."""

from .config import RELEASED, Config
from .model import DualBranchDiT

__version__ = "0.1.0"
__all__ = ["RELEASED", "Config", "DualBranchDiT"]
