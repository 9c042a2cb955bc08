"""UniAVGen: sound and picture of a talking person made together. Knows nothing of ComfyUI."""

__version__ = "0.1.0"
