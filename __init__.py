"""UniAVGen for ComfyUI: audio and video of a talking person, generated jointly."""

from .nodes import WEB_DIRECTORY, comfy_entrypoint

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
