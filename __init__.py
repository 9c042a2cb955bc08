"""UniAVGen for ComfyUI: sound and picture of a talking person, made together."""

from .nodes import WEB_DIRECTORY, comfy_entrypoint

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
