"""How the released model is sampled by default (docs/model.md section 7). Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UserError


@dataclass(frozen=True)
class Guidance:
    """How the full and the null pass are mixed: `u = null + s (full - null)`, `s_v` video, `s_a` audio.

    During the first `interval` of the steps the null pass has no interaction, so that the scales amplify
    exactly the exchange between audio and video (MA-CFG); after it, plain CFG. Every null pass leaves
    out `skip_layers`. With both scales 1 there is no null pass.
    """

    s_v: float = 3.0
    s_a: float = 2.0
    interval: float = 0.5
    skip_layers: tuple[int, ...] = (11,)

    @classmethod
    def none(cls) -> Guidance:
        """No guidance: one pass a step."""
        return cls(1.0, 1.0)

    @property
    def needs_null(self) -> bool:
        return (self.s_v, self.s_a) != (1.0, 1.0)

    def for_layers(self, layers: int) -> Guidance:
        """For a model of so many layers, of which one too small for the default skip layer skips none.

        Raises:
            UserError: another skip layer that the model does not have.
        """
        outside = [layer for layer in self.skip_layers if not 0 <= layer < layers]
        if not outside:
            return self
        if self.skip_layers == Guidance.skip_layers:
            return replace(self, skip_layers=())
        raise UserError(f"skip layer {outside[0]} does not exist; the model has layers 0..{layers - 1}")

    def null_interacts(self, step: int, steps: int) -> bool:
        """Whether the null pass of a step (from 0) keeps the interaction on."""
        return step >= int(self.interval * steps)


@dataclass(frozen=True)
class Savings:
    """Which passes of a run are left out and replaced by earlier ones, see `passes.Passes`; by default none.

    `reuse`: the null pass runs at every so many steps only, the difference full - null of its last run serves
    the others; in the first `reuse_after` (a share of the steps) it runs at each. From `null_until` (another
    share) on there is no null pass and no guidance. `cache`: the largest expected relative change of the
    velocity, of video and audio each, at which a step takes over the last one whole; 0: never.

    Raises:
        UserError: a value out of range.
    """

    reuse: int = 1
    reuse_after: float = 0.0
    null_until: float = 1.0
    cache: float = 0.0

    def __post_init__(self):
        if self.reuse < 1:
            raise UserError(f"the null pass is to be reused for {self.reuse} steps; use 1 (off) or more")
        for name in ("reuse_after", "null_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a share of the steps, 0 to 1")
        if not 0 <= self.cache <= 1:
            raise UserError(f"the step cache's limit is {self.cache}; use 0 (off) to 1, such as 0.1")


@dataclass(frozen=True)
class Preset:
    """A named price: `share` of the steps that are asked for, and the savings on them."""

    share: float
    savings: Savings

    def steps(self, asked: int) -> int:
        """Of the steps that are asked for; a number that is none stays, for the schedule to refuse."""
        return max(1, round(self.share * asked)) if asked > 0 else asked


PRESETS = {
    "draft": Preset(0.75, Savings(reuse=4, reuse_after=0.2)),
    "standard": Preset(1.0, Savings(reuse=2)),
    "exact": Preset(1.0, Savings()),
}
"""From the fastest to the slowest; "exact" runs every pass. More in docs/fewer-passes.md."""
DEFAULT_PRESET = "exact"


def find_preset(name: str | None) -> Preset:
    """The preset of a name, for None the default.

    Raises:
        UserError: there is none of that name.
    """
    preset = PRESETS.get(DEFAULT_PRESET if name is None else name)
    if preset is None:
        raise UserError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return preset


@dataclass(frozen=True)
class SamplingDefaults:
    """How a model is sampled unless someone says otherwise; the defaults are those of the released one.

    `frames` (4n + 1 at 16 fps) and `short_side` in pixels are what the model was made for. Of a script
    (`long_speech`): `keep_voice`, how all parts get one voice where none is given, by the first part
    as the reference voice of the others or by one mean of the audio noise in all; `tail`, how many latent
    frames of the part before open a part.
    """

    guidance: Guidance = Guidance()
    steps: int = 50
    shift: float = 5.0
    frames: int = 81
    short_side: int = 736
    seed: int = 2025
    keep_voice: Literal["reference", "noise"] = "reference"
    tail: int = 3
