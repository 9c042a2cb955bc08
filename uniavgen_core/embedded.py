"""The embedded model: small trained parts that ship with the package and need no download.

A puppet model, trained on drawn faces that say the words of `VOCABULARY`; its card
is `embedded_model/README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch

from .errors import UserError
from .media import caption, vae, vocoder
from .media.caption import CaptionEncoder
from .media.vae import WanVAE
from .media.vocoder import GriffinLim, Vocoder
from .model.config import Config
from .model.dit import DualBranchDiT
from .sampling.defaults import Guidance, SamplingDefaults
from .vocabulary import VOCABULARY, words
from .weights import checkpoint

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE / "embedded_model"
PARTS = ("model.safetensors", "vae", "caption_encoder", "settings.json")
FRAMES, SHORT_SIDE = 33, 128
NOTICE = "a small puppet model, trained on synthetic drawn faces and 72 words; not the 7 B model"


def folder() -> Path:
    """Where the parts are.

    Raises:
        UserError: one of them is missing.
    """
    for part in PARTS:
        if not (FOLDER / part).exists():
            raise UserError(
                f"{FOLDER / part}: this part of the embedded model is missing; install the whole package "
                "again, or give the weights of another model"
            )
    return FOLDER


def model_file() -> Path:
    """The `DualBranchDiT`, as `checkpoint.load_model` reads it; half precision."""
    return folder() / "model.safetensors"


def config() -> Config:
    """The sizes of the model."""
    return checkpoint.read_checkpoint(model_file()).config()


def settings() -> SamplingDefaults:
    """How the embedded model is run by default.

    Raises:
        UserError: `settings.json` is damaged.
    """
    file = folder() / "settings.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        skip = () if values["skip_layer"] < 0 else (values["skip_layer"],)
        guidance = Guidance(values["s_v"], values["s_a"], values["interval"], skip)
        return SamplingDefaults(
            guidance,
            values["steps"],
            values["shift"],
            FRAMES,
            SHORT_SIDE,
            keep_voice="noise",  # words are understood less with a given voice
            tail=1,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error!r}); install the package again") from error


def load_model(
    device: str | torch.device = "cpu", dtype: torch.dtype | None = None, streamed: Collection[str] = ()
) -> DualBranchDiT:
    """The model, float32 unless another `dtype` is asked for; `streamed`: as `checkpoint.load_model`."""
    return checkpoint.load_model(model_file(), device, dtype or torch.float32, streamed=streamed)


def load_vae(device: str | torch.device = "cpu") -> WanVAE:
    """The VAE, float32."""
    return WanVAE(vae.load_vae(folder() / "vae").model.to(device))


def load_caption_encoder(device: str | torch.device = "cpu") -> CaptionEncoder:
    """The caption encoder, float32; it learnt captions in small letters and reads all others so."""
    from tokenizers.normalizers import Lowercase

    encoder = caption.load_caption_encoder(folder() / "caption_encoder", device)
    encoder.tokenizer.backend_tokenizer.normalizer = Lowercase()
    return encoder


def load_vocoder(device: str | torch.device = "cpu") -> Vocoder | GriffinLim:
    """The trained vocoder where there is one, else Griffin-Lim."""
    path = folder() / "vocoder"
    return vocoder.load_vocoder(path, device) if path.exists() else GriffinLim().to(device)


def plain(text: str) -> str:
    """English as the model learnt it: words in small letters, nothing between them but a space.

    A text without any word stays as it is.
    """
    return " ".join(words(text)) or text


def warnings(text: str) -> list[str]:
    """A line that names the words of a text that are not in the vocabulary; none if all are."""
    unknown = [word for word in dict.fromkeys(words(text)) if word not in VOCABULARY]
    if not unknown:
        return []
    return [f"the puppet never learnt to say {', '.join(unknown)}; these words will be unintelligible"]
