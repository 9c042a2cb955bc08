"""The variants of the cross-modal interaction, one row each (docs/model.md sections 4 and 5).

"aligned" is our own: the paper's, with both directions aligned in true time and a phase. "symmetric",
"global" and "unmasked" are what the paper compares its design with: for `train ablations`, no weights file
has them.
A new variant is a name in `config.Variant`, a row of `VARIANTS` and what the row names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .alignment import (
    PHASES,
    Alignment,
    align_global,
    align_paper,
    align_released,
    align_symmetric,
    align_true_time,
)
from .config import Config, Variant
from .face_mask import NoFaceMask, PaperFaceMask, ReleasedFaceMask


@dataclass(frozen=True)
class InteractionVariant:
    """What tells one variant of the interaction from another.

    `align`: the alignment of T latent frames and L mel frames with the config's `window`;
    `face_mask`: how the face mask is predicted;
    `before_blocks`: the interaction of a layer comes before its blocks, not after them;
    `residual`: the output projection takes `H + attention`, with the face mask applied after it; without,
    A2V projects `M * attention` and V2A the attention alone;
    `zero_init`: output projections start at zero, so that the branches begin independent of each other;
    `reference_mel_clean`: reference mel tokens take time 0, not the time of the audio target;
    `phases`: places of a mel frame within its latent frame with a learned vector each in V2A; 0: none.
    """

    align: Callable[[int, int, int], Alignment]
    face_mask: type[ReleasedFaceMask] | type[PaperFaceMask] | type[NoFaceMask]
    before_blocks: bool
    residual: bool
    zero_init: bool
    reference_mel_clean: bool
    phases: int = 0


_PAPER = InteractionVariant(
    align=align_paper,
    face_mask=PaperFaceMask,
    before_blocks=True,
    residual=True,
    zero_init=True,
    reference_mel_clean=True,
)

VARIANTS: Mapping[Variant, InteractionVariant] = {
    "released": InteractionVariant(
        align=align_released,
        face_mask=ReleasedFaceMask,
        before_blocks=False,
        residual=False,
        zero_init=False,
        reference_mel_clean=False,
    ),
    "paper": _PAPER,
    "aligned": replace(_PAPER, align=align_true_time, phases=PHASES),
    "symmetric": replace(_PAPER, align=align_symmetric),
    "global": replace(_PAPER, align=align_global),
    "unmasked": replace(_PAPER, face_mask=NoFaceMask),
}


def align(config: Config, frames: int, mels: int) -> Alignment:
    """The alignment of a config's variant for T latent frames and L mel frames.

    Raises:
        ValueError: fewer than one latent frame or mel frame.
    """
    if frames < 1 or mels < 1:
        raise ValueError(
            f"cannot align {frames} latent frames with {mels} mel frames; both must be at least 1"
        )
    return VARIANTS[config.variant].align(frames, mels, config.window)
