"""The table of modes: what each needs, conditions and leaves to be generated (docs/model.md section 6).

This is all that a mode is: `conditioning` turns a row and its inputs into a `Task`, and the command line, the
nodes, training and evaluation read the same row. Needs no torch, so that `--help` can list the modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NOTHING, FIRST, ALL, OUTSIDE = "nothing", "first", "all", "outside"


@dataclass(frozen=True)
class Mode:
    """One row of the table.

    `needs`, `allows`: inputs by the names of `pipeline.Request`.
    `video`, `audio`: which latent frames and mel frames are conditioned, that is, hold clean data: nothing,
    the first (the reference image opens the clip), all, or those outside the span that is made anew.
    `anew`: what that span is: the rest after the beginning of a clip, or a range of it.
    `length`: which input decides how long the clip is; where it is not "frames", `frames` is a maximum.
    `normalised`: the audio has its peak at 0.999146 before its mel is taken.
    `v2a_off`: variants that leave V2A out of the full pass. A direction all of whose targets are conditioned
    changes nothing and is never computed: A2V in dubbing, V2A in audio-driven.
    """

    name: str
    about: str
    needs: tuple[str, ...]
    video: Literal["first", "all", "outside"]
    audio: Literal["nothing", "all", "outside"]
    allows: tuple[str, ...] = ()
    length: Literal["frames", "video", "audio"] = "frames"
    anew: Literal["rest", "range"] | None = None
    normalised: bool = False
    v2a_off: tuple[str, ...] = ()

    @property
    def takes_video(self) -> bool:
        """Whether it starts from a video, not from a single image."""
        return "video" in self.needs


_VOICE = ("voice", "voice_text")

MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            "joint",
            "video and audio together, from a reference image",
            needs=("image",),
            allows=("frames",),
            video=FIRST,
            audio=NOTHING,
        ),
        Mode(
            "reference-voice",
            "as joint, spoken in the voice of a recording",
            needs=("image", *_VOICE),
            allows=("frames",),
            video=FIRST,
            audio=NOTHING,
            v2a_off=("released",),
        ),
        Mode(
            "continuation",
            "goes on from the beginning of a video with audio",
            needs=("video",),
            allows=("frames", "prefix_frames", *_VOICE),
            video=OUTSIDE,
            audio=OUTSIDE,
            anew="rest",
        ),
        Mode(
            "dubbing",
            "speech for a finished video",
            needs=("video",),
            allows=("frames", "image", *_VOICE),
            video=ALL,
            audio=NOTHING,
            length="video",
        ),
        Mode(
            "audio-driven",
            "a video for finished speech, from a reference image",
            needs=("image", "audio"),
            allows=("frames",),
            video=FIRST,
            audio=ALL,
            length="audio",
            normalised=True,
        ),
        Mode(
            "edit",
            "a time range of a video with audio made anew, in video, audio or both",
            needs=("video", "edit_start", "edit_end"),
            allows=("edit",),
            video=OUTSIDE,
            audio=OUTSIDE,
            length="video",
            anew="range",
        ),
    )
}
