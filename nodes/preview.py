"""Live previews while a sampler of the pack runs."""

from __future__ import annotations

import sys
from collections.abc import Callable

import latent_preview
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from server import PromptServer


def preview_callback(model: ModelPatcher, steps: int) -> Callable:
    """The host's callback. Where nobody chose a preview method it shows the latent's own colours."""
    method = args.preview_method
    if method == LatentPreviewMethod.NoPreviews and not _chosen():
        args.preview_method = LatentPreviewMethod.Latent2RGB
    try:
        return latent_preview.prepare_callback(model, steps)
    finally:
        args.preview_method = method


def _chosen() -> bool:
    """Whether the command line or the page says how to preview."""
    if any(word.startswith("--preview-method") for word in sys.argv):
        return True
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return any(extra.get("preview_method") not in (None, "default") for _, _, _, extra, *_ in running)
