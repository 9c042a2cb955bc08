"""The release's download, one folder that holds every part (SPEC section 9)."""

from __future__ import annotations

from pathlib import Path

# part -> names that it has in the release, in ComfyUI's folders or in a diffusers folder, best first
NAMES = {
    "vae": ("Wan2.2_VAE.pth", "wan2.2_vae*.safetensors", "vae"),
    "text_encoder": ("models_t5_umt5-xxl*.pth", "umt5*xxl*.safetensors", "text_encoder"),
    "vocoder": ("code2wav_bigvgan_model", "*bigvgan*.safetensors", "vocoder"),
}


def find_parts(model: str | Path | None) -> dict[str, Path]:
    """Where `vae`, `text_encoder` and `vocoder` lie in the folder given as the model, where they are there.

    Only names are looked at; whether a file is what its name says is found when it is loaded.
    """
    folder = Path(model) if model else None
    if folder is None or not folder.is_dir():
        return {}
    found = {}
    for part, names in NAMES.items():
        paths = (path for name in names for path in sorted(folder.glob(name)))
        path = next(paths, None)
        if path is not None:
            found[part] = path
    return found
