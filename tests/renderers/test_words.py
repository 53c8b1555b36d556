"""Text encoded word by word has the ids of the tokenizer itself, whatever it says."""

import random
import re
import string
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.words import _PROPERTIES, Words, _in_ascii

NAMES = ("smollm2", "qwen3", "deepseek_v3", "kimi_k2", "gpt_oss", "llama3")
PLAIN = "".join(chr(code) for code in range(32, 127)) + "\t\n\r"
FRAGMENTS = st.sampled_from(
    ["'s", "'LL", " 'Re", "  ", "\n\n", "\r\n", " \n", "1234567", "CamelCase", "don't", "/*", "->", "<|im_end|>"]
)
TEXTS = st.lists(st.one_of(st.text(st.sampled_from(PLAIN), max_size=12), FRAGMENTS), max_size=10).map("".join)


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest, tokenizer_named: Callable[[str], FastTokenizer]) -> FastTokenizer:
    return tokenizer_named(request.param)


@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_words_have_the_ids_that_the_tokenizer_gives_their_text(tokenizer: FastTokenizer, text: str) -> None:
    [encoded] = tokenizer.encode_with_offsets([text])
    assert tokenizer.encode(text) == encoded.ids


def test_long_texts_have_the_same_ids(tokenizer: FastTokenizer) -> None:
    rng = random.Random(0)
    texts = [
        "".join(rng.choices(PLAIN, k=4000)),
        "".join(rng.choices(string.ascii_letters + " .,\n'", k=4000)),
        "x" * 5000,
    ]
    encoded = tokenizer.encode_with_offsets(texts)
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [found.ids for found in encoded]


def test_every_tokenizer_here_is_read_word_by_word(tokenizer: FastTokenizer) -> None:
    words = Words.of(tokenizer.definition | {"added_tokens": []})
    assert words is not None
    [plain, *others] = words.encode(["plain text", "caf\u00e9", "a\x00b", "a\x1cb", "a\x0cb", "a\x7fb"])
    assert plain is not None
    assert others == [None] * 5


def test_mixed_texts_come_back_in_their_order(qwen3: FastTokenizer) -> None:
    texts = ["one", "zw\u00f6lf", "three", "\u4e94", "one"]
    assert [ids.tolist() for ids in qwen3.encode_batch(texts)] == [qwen3.encode(text) for text in texts]


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


def test_cuts_that_are_not_known_are_left_to_the_tokenizer(smollm2: FastTokenizer) -> None:
    definition = smollm2.definition | {"added_tokens": []}
    for other in (
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {**definition["model"], "dropout": 0.1}},
    ):
        assert Words.of({**definition, **other}) is None
    strange = {"type": "Split", "pattern": {"Regex": r"\p{Greek}+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    sequence = {"type": "Sequence", "pretokenizers": [strange, byte_level]}
    assert Words.of({**definition, "pre_tokenizer": sequence}) is None
