"""What is said becomes the symbols the model was trained on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uniavgen_core.errors import UserError
from uniavgen_core.media.speech import load_vocabulary, null_symbol_ids, symbol_ids, unknown_symbols
from uniavgen_core.verify import GOLDEN

CASES = json.loads((GOLDEN / "text_cases.json").read_text(encoding="utf-8"))
MIDDLE = "\u4e2d"  # zhong1
HELLO = "\u4f60\u597d"  # ni3 hao3, said ni2 hao3

any_text = st.text(st.characters(codec=None), max_size=30)
near_chinese = st.text(
    st.one_of(
        st.characters(min_codepoint=0x3000, max_codepoint=0x30FF),
        st.characters(min_codepoint=0x3400, max_codepoint=0x9FFF),
        st.sampled_from("abcXYZ019 .,;:'\"!?-\u201c\u2018\u2026\u2014\uff0c\uff01\U000200b7\xe9\n"),
    ),
    max_size=30,
)


@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
def test_golden_texts_give_the_golden_ids(case):
    assert symbol_ids(case["text"], case["lang"], case["ref_text"]) == case["ids"]
    if "neg_ids" in case:
        assert null_symbol_ids(case["lang"], case["ref_text"]) == case["neg_ids"]


def test_the_vocabulary_has_2545_symbols_and_starts_with_a_space():
    vocabulary = load_vocabulary()
    assert sorted(vocabulary.values()) == list(range(2545))
    assert vocabulary[" "] == 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_null_text_is_one_space(language):
    assert null_symbol_ids(language) == [0] + [-1] * 9


@settings(max_examples=150, deadline=None)
@given(st.one_of(any_text, near_chinese), st.one_of(st.just(""), near_chinese), st.sampled_from(["en", "zh"]))
@example("\udc80 a", "", "zh")
@example("\r\n" + MIDDLE, "\r", "zh")
def test_any_text_gives_ids_of_the_vocabulary_or_a_user_error(text, reference, language):
    try:
        ids = symbol_ids(text, language, reference)
    except UserError:
        return
    assert len(ids) >= 10
    assert all(-1 <= i < 2545 for i in ids)
    assert -1 not in ids[: len(ids) - ids.count(-1)]
    if reference:
        assert ids[: len(null := [i for i in null_symbol_ids(language, reference) if i >= 0])] == null


@settings(max_examples=100, deadline=None)
@given(near_chinese, near_chinese.filter(bool))
def test_reference_and_text_join_as_one_text_with_a_space_between(text, reference):
    try:
        joined = symbol_ids(text, "zh", reference)
    except UserError:
        return
    assert joined == symbol_ids(f"{reference} {text}", "zh")


@settings(max_examples=100, deadline=None)
@given(
    st.text(
        st.sampled_from("\u2026\u2014\uff0c\uff01\u3002\u3001\u300a\uff5e\u3007\u4dc0\u3400\ufffd"),
        max_size=12,
    )
)
def test_runs_of_marks_keep_characters_and_syllables_paired(marks):
    zhong = load_vocabulary()["zhong1"]
    ids = symbol_ids(f"{MIDDLE}{marks}{MIDDLE}", "zh")
    ids = ids[: len(ids) - ids.count(-1)]
    spaced = sum("\u3100" <= mark <= "\u9fff" for mark in marks)
    assert ids[:2] == [0, zhong]
    assert ids[-2:] == [0, zhong]
    assert len(ids) == 4 + len(marks) + spaced


def test_a_character_the_model_cannot_say_is_named_once():
    assert unknown_symbols("na\xefve \U0001f600 caf\xe9 \U0001f600\n\u6771", "en") == ["\U0001f600", "\u6771"]
    assert unknown_symbols(f"{HELLO} ok\uff1b", "zh") == ["\uff1b"]


@pytest.mark.parametrize("text", ["", "  \n\t", "\u3000"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_blank_text_is_refused(text, language):
    with pytest.raises(UserError, match="the text to say is empty"):
        symbol_ids(text, language)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_text_of_unknown_symbols_only_is_refused(language):
    with pytest.raises(UserError, match="knows no character of the text to say"):
        symbol_ids("\U0001f600 \U0001f601", language)
    with pytest.raises(UserError, match="transcript of the reference voice"):
        symbol_ids("hello", language, "\U0001f600 \U0001f601")


def test_chinese_marked_as_english_is_refused_with_the_way_out():
    with pytest.raises(UserError, match="Chinese with 'zh'"):
        symbol_ids("\u6771\u4eac", "en")


@pytest.mark.parametrize(
    "call", [symbol_ids, unknown_symbols, lambda text, language: null_symbol_ids(language)]
)
def test_an_unknown_language_is_answered_with_the_known_ones(call):
    with pytest.raises(UserError, match='\'fr\', expected "en" or "zh"'):
        call("Bonjour", "fr")


def run_python(code: str) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("package", ["jieba", "pypinyin"])
def test_chinese_without_its_packages_says_what_to_install(package):
    done = run_python(
        f"import sys; sys.modules[{package!r}] = None\n"
        "from uniavgen_core.media.speech import symbol_ids\n"
        "symbol_ids('hello')\n"
        "symbol_ids('\\u4f60\\u597d', 'zh')"
    )
    assert f"UserError: Chinese speech needs the package {package}" in done.stderr
    assert "pip install jieba pypinyin" in done.stderr


def test_chinese_prints_no_loading_messages():
    done = run_python("from uniavgen_core.media.speech import symbol_ids; symbol_ids('\\u4f60\\u597d', 'zh')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
