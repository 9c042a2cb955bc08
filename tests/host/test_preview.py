"""Live previews of the embedded model look like the image."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

PUPPET = Path(__file__).parents[2] / "web" / "puppets" / "woman.png"


def test_the_preview_of_a_puppets_latent_has_its_colours(host):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    nodes = importlib.import_module(f"{host.__name__}.nodes.embedded")
    vae = nodes.HostVAE(*nodes.read_vae(nodes.embedded.folder() / "vae"))
    image = nodes.read_image(PUPPET)[None].float() / 255
    form = nodes.EmbeddedFormat()
    latent = form.process_in(vae.encode(image))
    method, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        previewer = latent_preview.get_previewer(torch.device("cpu"), form)
        preview = np.asarray(previewer.decode_latent_to_preview(latent)) / 255
    finally:
        args.preview_method = method
    small = torch.nn.functional.avg_pool2d(image.movedim(-1, 1), 4)[0].movedim(0, -1).numpy()
    assert preview.shape == small.shape == (32, 32, 3)
    assert np.corrcoef(preview.ravel(), small.ravel())[0, 1] > 0.8


class Queue:
    """The host's queue while one prompt runs."""

    def __init__(self, extra: dict):
        self.extra = extra

    def get_current_queue_volatile(self) -> tuple[list, list]:
        return [(0, "id", {}, self.extra, [], {})], []


@pytest.mark.parametrize(
    ("said", "extra", "shown"),
    [
        ([], {}, True),
        ([], {"preview_method": "default"}, True),
        ([], {"preview_method": "none"}, False),
        (["--preview-method", "none"], {}, False),
    ],
)
def test_previews_are_on_unless_someone_chose_none(host, monkeypatch, said, extra, shown):
    import latent_preview
    import server

    module = importlib.import_module(f"{host.__name__}.nodes.preview")
    queue = SimpleNamespace(prompt_queue=Queue(extra))
    monkeypatch.setattr(server.PromptServer, "instance", queue, raising=False)
    monkeypatch.setattr("sys.argv", ["main.py", *said])
    asked = []
    monkeypatch.setattr(
        latent_preview, "prepare_callback", lambda *_: asked.append(latent_preview.args.preview_method)
    )
    module.preview_callback(None, 1)
    assert (asked == [latent_preview.LatentPreviewMethod.Latent2RGB]) == shown
    assert latent_preview.args.preview_method == latent_preview.LatentPreviewMethod.NoPreviews
