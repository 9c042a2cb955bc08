"""What is said, as symbol ids of the speech vocabulary (docs/model.md section 9, "Speech text")."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError

LANGUAGES = ("en", "zh")
FILLER = -1
MIN_LENGTH = 10

_SPACE = (" ", " ")
_CHINESE_MARKS = str.maketrans({";": ",", "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'"})


@cache
def load_vocabulary() -> dict[str, int]:
    """The 2545 symbols of F5-TTS's Emilia ZH/EN vocabulary and their ids; id 0 is the space."""
    path = Path(__file__).parents[1] / "data" / "speech_vocab.txt"
    symbols = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    return {symbol: index for index, symbol in enumerate(symbols)}


def symbol_ids(text: str, language: str = "en", reference_text: str = "") -> list[int]:
    """Ids of what the model is to say (docs/model.md sections 3 "Empty text" and 9).

    With a reference voice its transcript comes first, then a space, then `text`. Symbols that the
    vocabulary lacks become 0; fewer than 10 ids are padded with -1.

    Raises:
        UserError: blank text, no symbol the model knows, a language other than "en" and "zh", or
            Chinese without the packages jieba and pypinyin.
    """
    spoken = _ids(text, language, "the text to say")
    return _padded(_reference_ids(language, reference_text) + spoken)


def null_symbol_ids(language: str = "en", reference_text: str = "") -> list[int]:
    """Ids of the null speech text: a space, or the reference's transcript and one (docs/model.md section 3).

    Raises:
        UserError: as `symbol_ids`, for the transcript.
    """
    ids = _reference_ids(language, reference_text)
    return _padded(ids or [load_vocabulary()[" "]])


def unknown_symbols(text: str, language: str = "en") -> list[str]:
    """The distinct characters of `text` that the model cannot say, in order of appearance.

    Raises:
        UserError: a language other than "en" and "zh", or Chinese without jieba and pypinyin.
    """
    vocabulary = load_vocabulary()
    unknown = [c for c, symbol in _symbols(text, language) if symbol not in vocabulary and not c.isspace()]
    return list(dict.fromkeys(unknown))


def spoken_words(text: str, language: str = "en") -> list[str]:
    """The words of a text as symbols: English words as they stand, Chinese syllables in pinyin.

    Raises:
        UserError: as `unknown_symbols`.
    """
    return "".join(symbol for _, symbol in _symbols(text, language)).split()


def _padded(ids: list[int]) -> list[int]:
    return ids + [FILLER] * (MIN_LENGTH - len(ids))


def _reference_ids(language: str, text: str) -> list[int]:
    if not text:
        _check_language(language)
        return []
    return [*_ids(text, language, "the transcript of the reference voice"), load_vocabulary()[" "]]


def _ids(text: str, language: str, name: str) -> list[int]:
    _check_language(language)
    if not text.strip():
        raise UserError(f"{name} is empty; write at least one word")
    vocabulary = load_vocabulary()
    pairs = _symbols(text, language)
    if not any(symbol in vocabulary for character, symbol in pairs if not character.isspace()):
        raise UserError(
            f"the model knows no character of {name} ({text[:20]!r}) in language {language!r}; "
            "write English with 'en' or Chinese with 'zh'"
        )
    return [vocabulary.get(symbol, 0) for _, symbol in pairs]


def _check_language(language: str) -> None:
    if language not in LANGUAGES:
        raise UserError(f'language is {language!r}, expected "en" or "zh"')


def _symbols(text: str, language: str) -> list[tuple[str, str]]:
    """Pairs of a character and the symbol it is said as."""
    _check_language(language)
    return [(c, c) for c in text] if language == "en" else _chinese_symbols(text)


def _chinese_symbols(text: str) -> list[tuple[str, str]]:
    cut, pinyin = _chinese_tools()
    pairs: list[tuple[str, str]] = []
    for word in cut(text.translate(_CHINESE_MARKS)):
        if word.isascii():
            if len(word) > 1 and pairs and pairs[-1][1] not in (" ", ":", "'", '"'):
                pairs.append(_SPACE)
            pairs += zip(word, word)
            continue
        if all(0x800 <= ord(c) <= 0xFFFF for c in word):  # three bytes each in UTF-8
            syllables = pinyin(word)
        else:
            syllables = [pinyin(c)[0] if _is_chinese(c) else c for c in word]
        for character, syllable in zip(word, syllables, strict=True):
            if _is_chinese(character):
                pairs.append(_SPACE)
            pairs.append((character, syllable))
    return pairs


def _is_chinese(character: str) -> bool:
    return "\u3100" <= character <= "\u9fff"


@cache
def _chinese_tools() -> tuple[Callable[[str], Iterable[str]], Callable[[str], list[str]]]:
    """jieba's word cutter, and a function from a word to one syllable per character."""
    try:
        import jieba
        from pypinyin import Style, lazy_pinyin
    except ImportError as error:
        raise UserError(
            f"Chinese speech needs the package {error.name}, which is not installed; "
            "run `pip install jieba pypinyin`"
        ) from error
    jieba.setLogLevel(logging.CRITICAL)

    def pinyin(word: str) -> list[str]:
        # a run of characters without pinyin stays one entry per character
        errors: Any = list
        return lazy_pinyin(word, style=Style.TONE3, tone_sandhi=True, errors=errors)

    return jieba.Tokenizer().cut, pinyin
