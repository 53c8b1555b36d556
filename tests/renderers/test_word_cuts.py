"""How tokenizers cut plain text, read by Python's own expressions."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.word_cuts import _PROPERTIES, Cuts, _in_ascii

NAMES = ("smollm2", "qwen3", "deepseek_v3", "kimi_k2", "gpt_oss", "llama3")
PLAIN = "".join(chr(code) for code in range(32, 127)) + "\t\n\r"


@pytest.mark.parametrize("name", NAMES)
def test_plain_text_is_cut_into_what_stays_whole(name: str, tokenizer_named: Callable[[str], FastTokenizer]) -> None:
    cuts = Cuts.of(tokenizer_named(name).definition["pre_tokenizer"])
    assert cuts is not None

    @given(text=st.text(st.sampled_from(PLAIN), max_size=30))
    @settings(max_examples=200, deadline=None)
    def check(text: str) -> None:
        words = cuts(text)
        assert words is not None
        assert "".join(words) == text
        assert [cuts(word) for word in words] == [[word] for word in words]  # so each can be encoded alone

    check()
    assert [cuts(text) for text in ("caf\u00e9", "a\x00b", "a\x1cb", "a\x0cb", "a\x7fb")] == [None] * 5


def test_the_properties_are_those_of_unicode() -> None:
    import unicodedata

    for name, inside in _PROPERTIES.items():
        if name == "Han":
            continue
        expected = {char for char in PLAIN if unicodedata.category(char).startswith(name)}
        assert {char for char in PLAIN if inside and re.fullmatch(f"[{inside}]", char)} == expected, name


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"\p{L}+", "[A-Za-z]+"),
        (r"[^\r\n\p{L}\p{N}]?", r"[^\r\nA-Za-z0-9]?"),
        (r"[\p{Han}]+|a", "(?!)+|a"),
        (r"[^\p{M}]", r"[\s\S]"),
        (r"[\p{Lu}\p{M}&&[^\p{Han}]]*", "[A-Z]*"),
        (r"\p{Lt}|\[\p{Nd}", r"(?!)|\[[0-9]"),
    ],
)
def test_expressions_are_read_as_they_mean_in_ascii(pattern: str, expected: str) -> None:
    assert _in_ascii(pattern) == expected


def test_an_expression_that_is_not_known_has_no_cuts() -> None:
    strange = {"type": "Split", "pattern": {"Regex": r"\p{Greek}+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    assert Cuts.of({"type": "Sequence", "pretokenizers": [strange, byte_level]}) is None
    assert Cuts.of({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}) is None
    assert Cuts.of(None) is None
