"""Text encoded word by word has the ids of the tokenizer itself, whatever it says."""

import random
import string
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.errors import RenderError
from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.words import Words

NAMES = ("smollm2", "qwen3", "deepseek_v3", "kimi_k2", "gpt_oss", "llama3")
PLAIN = "".join(chr(code) for code in range(32, 127)) + "\t\n\r"
# White space of every kind, marks that join what is before them, half-known characters.
UNUSUAL = "\x00\x0b\x0c\x1c\x1f\x7f\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff\u0301\u0308\u00a8\u017f\u00e9\u3042"
FRAGMENTS = st.sampled_from(
    [
        *("'s", "'LL", " 'Re", "  ", "\n\n", "\r\n", " \n", "1234567", "CamelCase", "don't", "/*", "->", "<|im_end|>"),
        *(
            " ",
            " a",
            "a ",
            " \u0301",
            "'\u017f",
            "\u00a8 ",
            "\xa0 ",
            " \u3000",
            "/ ",
            "! ",
            "5 ",
            "\n ",
            "\u1100\u1161",
        ),
    ]
)
TEXTS = st.lists(
    st.one_of(st.text(st.sampled_from(PLAIN + UNUSUAL), max_size=12), FRAGMENTS, st.text(max_size=4)), max_size=10
).map("".join)


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest, tokenizer_named: Callable[[str], FastTokenizer]) -> FastTokenizer:
    return tokenizer_named(request.param)


def _encoded(texts: list[str]) -> list[Sequence[int]]:
    return [[len(text)] for text in texts]


@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_words_have_the_ids_that_the_tokenizer_gives_their_text(tokenizer: FastTokenizer, texts: list[str]) -> None:
    encoded = tokenizer.encode_with_offsets(texts)
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [found.ids for found in encoded]


def test_every_pair_of_ends_is_cut_alike_at_a_space(tokenizer: FastTokenizer) -> None:
    characters = [*PLAIN, *UNUSUAL]
    texts = [f"a{left} {right}b {right}" for left in characters for right in characters]
    encoded = tokenizer.encode_with_offsets(texts)
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [found.ids for found in encoded]


def test_long_texts_have_the_same_ids(tokenizer: FastTokenizer) -> None:
    rng = random.Random(0)
    texts = [
        "".join(rng.choices(PLAIN, k=4000)),
        "".join(rng.choices(PLAIN + UNUSUAL + " " * 20, k=4000)),
        "".join(rng.choices(string.ascii_letters + " .,\n'", k=4000)),
        "x" * 5000,
    ]
    encoded = tokenizer.encode_with_offsets(texts)
    for _ in range(2):  # the second time out of the dictionary
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [found.ids for found in encoded]


def test_every_tokenizer_here_is_read_word_by_word(tokenizer: FastTokenizer) -> None:
    assert Words.of(tokenizer.definition | {"added_tokens": []}, _encoded) is not None


def test_a_word_is_encoded_once() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> list[Sequence[int]]:
        asked.extend(texts)
        return _encoded(texts)

    words = Words(encode)
    for _ in range(2):
        [ids] = words.encode(["one two one  three\n four two one\n"])
        assert ids.tolist() == [len(part) for part in ("one", " two", " one", "  three\n four", " two", " one\n")]
    assert sorted(asked) == sorted(["one", " two", " one", "  three\n four", " one\n"])


def test_mixed_texts_come_back_in_their_order(qwen3: FastTokenizer) -> None:
    texts = ["one", "zw\u00f6lf", "three", "", "\u4e94", "one"]
    assert [ids.tolist() for ids in qwen3.encode_batch(texts)] == [qwen3.encode(text) for text in texts]


def test_half_a_character_is_named_by_its_place_in_the_text(qwen3: FastTokenizer) -> None:
    with pytest.raises(RenderError, match="character 9 is"):
        qwen3.encode_batch(["fine", "one two \ud800 three"])
    assert qwen3.decode(qwen3.encode("one two three")) == "one two three"


def test_cuts_that_are_not_known_are_left_to_the_tokenizer(smollm2: FastTokenizer) -> None:
    definition = smollm2.definition | {"added_tokens": []}
    for other in (
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFKC"}},
        {"model": {**definition["model"], "dropout": 0.1}},
        {"added_tokens": [{"id": 5, "content": "word"}]},
    ):
        assert Words.of({**definition, **other}, _encoded) is None


@pytest.mark.parametrize(
    "pattern",
    [
        r"\p{Greek}+|\s+",  # not known
        r"\p{L}+ ?|\s+",  # a space follows a word
        r"\p{N}{1,3}",  # what is not a number stays together, spaces and all
    ],
)
def test_expressions_that_may_join_words_are_left_to_the_tokenizer(pattern: str, smollm2: FastTokenizer) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    definition = smollm2.definition | {"added_tokens": []}
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    assert Words.of(definition, _encoded) is None
