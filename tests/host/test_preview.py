"""Live previews of the embedded model look like the image."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
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
