"""The words of the embedded model and of the clips it was trained on, and how a text is cut into them."""

from __future__ import annotations

import re
from pathlib import Path

VOCABULARY = sorted(
    (Path(__file__).parent / "data" / "theatre_words.txt").read_text(encoding="utf-8").split()
)
"""The 72 words that were trained, "I" and small letters."""


def words(text: str) -> list[str]:
    """The words of an English text in the vocabulary's spelling, punctuation left out."""
    return ["I" if word in ("i", "I") else word.lower() for word in re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)]
