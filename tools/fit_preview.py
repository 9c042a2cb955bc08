"""Fits the colours of live previews to the embedded VAE: `python tools/fit_preview.py` (needs espeak-ng).

Normalised latents -> mean colours of 4 x 4 parts of their pixels, by least squares on clips of the theatre.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from uniavgen_core import embedded  # noqa: E402
from uniavgen_core.theatre.clips import Theatre  # noqa: E402

FILE = embedded.FOLDER / "preview.json"
CLIPS = 24
PARTS = 4  # along each side of a latent's 16 pixels


def samples(split: str, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents `[N, 48]` and the colours in -1..1 that they stand for, `[N, 3 PARTS^2]`, channels first."""
    vae, theatre = embedded.load_vae(), Theatre(split=split, frames=17)
    latents, colours = [], []
    for index in range(clips):
        frames = torch.from_numpy(theatre.clip(index).frames).float() / 127.5 - 1
        with torch.no_grad():
            latent = vae.encode(frames.permute(3, 0, 1, 2)[None])[0]  # [48, T, h, w]
        side = 16 // PARTS
        pooled = torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2), side)  # [F, 3, H, W]
        groups = torch.stack([group.mean(0) for group in (pooled[:1], *pooled[1:].split(4))])
        parts = torch.nn.functional.pixel_unshuffle(groups, PARTS)  # [T, 3 PARTS^2, h, w]
        latents.append(latent.permute(1, 2, 3, 0).reshape(-1, latent.shape[0]))
        colours.append(parts.permute(0, 2, 3, 1).reshape(-1, parts.shape[1]))
    return torch.cat(latents).double().numpy(), torch.cat(colours).double().numpy()


def explained(factors: np.ndarray, bias: np.ndarray, latents: np.ndarray, colours: np.ndarray) -> float:
    rest = colours - latents @ factors - bias
    return float(1 - rest.var(0).sum() / colours.var(0).sum())


def main() -> None:
    latents, colours = samples("train", CLIPS)
    solved = np.linalg.lstsq(np.c_[latents, np.ones(len(latents))], colours, rcond=None)[0].round(4)
    factors, bias = solved[:-1], solved[-1]
    share = explained(factors, bias, *samples("held-out", 6))
    print(f"{share:.3f} of the colour of held-out clips is explained")
    FILE.write_text(
        json.dumps({"parts": PARTS, "factors": factors.tolist(), "bias": bias.tolist()}) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
