"""Sizes of the model (docs/model.md sections 1 and 2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Variant = Literal["released", "paper", "aligned", "symmetric", "global", "unmasked"]


@dataclass(frozen=True)
class Config:
    """Every number that decides the shape of `DualBranchDiT`; defaults are the released 7.1 B model.

    `variant` chooses the cross-modal interaction: "released" (docs/model.md section 4), "paper" or "aligned"
    (section 5); the others are for `train ablations` alone, see `variants`. `window` is the paper's w: latent
    frames of audio context on either side. `distilled`: the model is told the guidance scales and gives the
    guided velocity in one pass (docs/fewer-passes.md).

    Raises:
        ValueError: sizes that cannot be split into heads, rotary pairs or layers.
    """

    variant: Variant = "released"
    video_dim: int = 3072
    video_heads: int = 24
    video_ffn: int = 14336
    audio_dim: int = 1536
    audio_heads: int = 12
    audio_ffn: int = 8960
    layers: int = 30
    interaction_layers: tuple[int, ...] = tuple(range(0, 30, 2))
    freq_dim: int = 256
    caption_dim: int = 4096
    caption_length: int = 512
    speech_vocab: int = 2545
    speech_dim: int = 512
    speech_layers: int = 4
    video_channels: int = 48
    audio_channels: int = 80
    patch: tuple[int, int] = (2, 2)
    window: int = 1
    eps: float = 1e-6
    distilled: bool = False

    def __post_init__(self):
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant is {self.variant!r}, expected one of {', '.join(get_args(Variant))}")
        for branch, dim, heads in (
            ("video", self.video_dim, self.video_heads),
            ("audio", self.audio_dim, self.audio_heads),
        ):
            if dim % (2 * heads):
                raise ValueError(
                    f"{branch}_dim {dim} does not split into {heads} heads of an even width (rotary pairs)"
                )
        if self.video_dim // self.video_heads != self.audio_dim // self.audio_heads:
            raise ValueError(
                f"head widths differ: video {self.video_dim // self.video_heads}, "
                f"audio {self.audio_dim // self.audio_heads}; the interaction needs them equal"
            )
        wrong = [i for i in self.interaction_layers if not 0 <= i < self.layers]
        if wrong:
            raise ValueError(f"interaction layers {wrong} lie outside 0..{self.layers - 1}")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim {self.freq_dim} is odd; cosine and sine take half each")

    @property
    def head_dim(self) -> int:
        """Width of one attention head, equal in both branches."""
        return self.video_dim // self.video_heads

    def to_dict(self) -> dict:
        """Plain JSON-ready values; `Config.from_dict` reads them back."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return values if self.distilled else {k: v for k, v in values.items() if k != "distilled"}

    @classmethod
    def from_dict(cls, values: dict) -> Config:
        """The inverse of `to_dict`."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)


RELEASED = Config()
"""The public checkpoint `MCG-NJU/UniAVGen`: 2036 tensors, 7,056,424,223 parameters."""

TINY = Config(
    video_dim=96,
    video_heads=4,
    video_ffn=192,
    audio_dim=48,
    audio_heads=2,
    audio_ffn=96,
    layers=4,
    interaction_layers=(0, 2),
    freq_dim=32,
    caption_dim=64,
    caption_length=64,
    speech_dim=32,
    speech_layers=2,
)
"""The released layout at a size that runs anywhere in seconds; for random weights and tests."""
