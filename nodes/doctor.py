"""What to paste into an issue."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui

from ..uniavgen_core.doctor import report
from ..uniavgen_core.errors import UserError
from ..uniavgen_core.weights.identify import KINDS, identify
from .loading import MODEL_FOLDER, VOCODER_FOLDER, listed, located
from .types import CATEGORY

FOLDERS = {"model": MODEL_FOLDER, "vae": "vae", "text_encoder": "text_encoders", "vocoder": VOCODER_FOLDER}


def found_files() -> dict[str, Path | None]:
    """The first file of each part in the host's folders."""
    found: dict[str, Path | None] = {}
    for part, folder in FOLDERS.items():
        found[part] = next((path for path in _files(folder) if _is(path, part)), None)
    return found


def _files(folder: str) -> list[Path]:
    paths = [located(folder, name) for name in listed(folder)]
    return [path for path in paths if path is not None]


def _is(path: Path, part: str) -> bool:
    try:
        return KINDS.get(identify(path).kind) == part
    except (UserError, OSError):
        return False


class Doctor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenDoctor",
            display_name="UniAVGen Doctor",
            search_aliases=["diagnose", "bug report", "system info", "uniavgen check", "memory"],
            category=CATEGORY,
            description="A report to paste into an issue: device, dtypes, attention kernels, files, accuracy "
            "on this device, expected memory and time.",
            inputs=[],
            outputs=[io.String.Output(display_name="report", tooltip="For Preview as Text or Save Text.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        return float("nan")  # looks again every time

    @classmethod
    def execute(cls) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        text = "\n".join((f"ComfyUI {_host_version()}", *report(device, found_files())))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _host_version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return f"in {folder_paths.base_path}"
    return __version__


NODES = [Doctor]
