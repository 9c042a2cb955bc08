"""How long a text takes to say: a length in frames proposed for a text, and texts too long for a clip.

One pace serves both models. Real speech: English at 150 words a minute is 15 letters a second, pauses
included; Mandarin 4 to 5 syllables a second (Pellegrino, Coupe and Marsico, Language 87, 2011, count 6.2
syllables of English and 5.2 of Mandarin without pauses). The synthetic theatre, 160 recordings: 0.08 s and
1/14.8 s a letter, of which 95 % last at most 0.43 s longer, so that `ROOM` holds them.
"""

from __future__ import annotations

from math import ceil

from .conditioning import FPS, MAX_FRAMES, MIN_FRAMES, frames_for_audio
from .media.mel import SAMPLE_RATE

LETTERS_PER_SECOND = 15.0
CHARACTERS_PER_SECOND = 4.0
ROOM = 0.5  # seconds around the speech
HASTE = 1.3  # how many times faster than that speech is still understood


def speech_seconds(text: str) -> float:
    """Seconds that a text takes at an easy pace, counted by letters, signs and single spaces."""
    signs = " ".join(text.split())
    chinese = sum("\u3100" <= sign <= "\u9fff" for sign in signs)
    return (len(signs) - chinese) / LETTERS_PER_SECOND + chinese / CHARACTERS_PER_SECOND


def frames_for_text(text: str) -> int:
    """The smallest clip, `4n + 1` frames at 16 fps, that gives a text `ROOM`; at most `MAX_FRAMES`."""
    frames = frames_for_audio(ceil((speech_seconds(text) + ROOM) * SAMPLE_RATE))
    return min(max(frames, MIN_FRAMES), MAX_FRAMES)


def too_long(text: str, frames: int, fixed: bool = False) -> str | None:
    """A line for a text that cannot be said within a clip of so many frames, None where it can.

    `fixed`: the length comes from a recording or a video, so that only the text can give way.
    """
    needed, lasts = speech_seconds(text), frames / FPS
    if needed <= HASTE * lasts:
        return None
    proposed = frames_for_text(text)
    longer = "" if fixed else f"give it {proposed} frames ({proposed / FPS:.2f} s) or "
    return (
        f"the text takes about {needed:.1f} s to say but the clip lasts {lasts:.2f} s, so words will be "
        f"rushed or left out; {longer}shorten the text"
    )
