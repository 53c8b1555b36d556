"""What every tokenizer keeps: text comes back, and no text becomes a control token."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from crucible_train import wiring
from crucible_train.ports import Tokenizer
from crucible_train.renderers.tokenizer import FastTokenizer, as_tokenizer

ASSETS = Path(__file__).parents[2] / "crucible_train" / "assets" / "smollm2"
QUICK = settings(max_examples=150, deadline=None, derandomize=True)


def byte_level() -> RustTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(["<|im_start|>", "<|im_end|>", "a control token"])
    rust.add_tokens(["<think>"])
    return rust


def byte_fallback() -> RustTokenizer:
    """In the manner of Llama's first tokenizers: spaces are letters, and what is no letter falls back to bytes."""
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh<>|/s"]
    rust = RustTokenizer(
        models.BPE({letter: n for n, letter in enumerate(letters)}, [], unk_token="<unk>", byte_fallback=True)
    )
    rust.normalizer = normalizers.Replace(" ", "▁")
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    rust.add_special_tokens(["<unk>", "<s>", "</s>"])
    return rust


def of_transformers() -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    return as_tokenizer(PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|im_end|>"))


MADE = {
    "smollm2": lambda: FastTokenizer.from_folder(ASSETS),
    "bare": lambda: as_tokenizer(byte_level()),
    "transformers": of_transformers,
    "byte fallback": lambda: as_tokenizer(byte_fallback()),
}


@pytest.fixture(scope="module", params=MADE)
def tokenizer(request) -> Tokenizer:
    return wiring.conforming(MADE[request.param](), Tokenizer, request.param)


# SmolLM2's vocabulary lacks the bytes of a few control characters and of planes without characters.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn", "Co", "Cc"]) | st.sampled_from("\n\t\r")


def texts(tokenizer: Tokenizer):
    """Any text, with the names of control tokens strewn in."""
    names = st.sampled_from(sorted(tokenizer.control_tokens))
    return st.lists(names | st.text(CHARACTERS, max_size=12), max_size=6).map("".join)


@QUICK
@given(data=st.data())
def test_text_comes_back_and_is_never_a_control_token(tokenizer, data):
    text = data.draw(texts(tokenizer))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids).isdisjoint(tokenizer.control_tokens.values())
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@QUICK
@given(data=st.data())
def test_a_batch_is_each_text_alone_with_ranges_that_cover_it_in_order(tokenizer, data):
    batch = data.draw(st.lists(texts(tokenizer), max_size=4))
    encoded = tokenizer.encode_with_offsets(batch)
    assert [list(found.ids) for found in encoded] == [list(tokenizer.encode(text)) for text in batch]
    for text, found in zip(batch, encoded, strict=True):
        assert len(found.ids) == len(found.offsets)
        ends = [0, *(end for _, end in found.offsets)]
        assert all(start <= end for start, end in found.offsets)
        assert ends == sorted(ends)
        assert ends[-1] == len(text)


@QUICK
@given(data=st.data())
def test_a_batch_of_ids_is_decoded_as_each_alone(tokenizer, data):
    batch = data.draw(st.lists(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=6), max_size=4))
    assert list(tokenizer.decode_batch(batch)) == [tokenizer.decode(ids) for ids in batch]


def test_every_control_token_is_reached_by_name_and_shown_by_name(tokenizer):
    assert tokenizer.control_tokens
    for name, number in tokenizer.control_tokens.items():
        assert tokenizer.decode([number]) == name
        assert 0 <= number < tokenizer.vocab_size


def test_nothing_is_added_at_either_end(tokenizer):
    assert list(tokenizer.encode("")) == []
    a, b = tokenizer.encode("abc"), tokenizer.encode("abc\nabc")
    assert list(b[: len(a)]) == list(a)


def test_what_ends_a_text_is_a_control_token(tokenizer):
    assert tokenizer.eos_token is None or tokenizer.eos_token in tokenizer.control_tokens


def test_the_digest_is_of_what_decides_the_ids():
    base, again = as_tokenizer(byte_level()), as_tokenizer(byte_level())
    assert base.sha256 == again.sha256
    more = byte_level()
    more.add_tokens(["</think>"])
    unlike = [as_tokenizer(more), as_tokenizer(byte_fallback()), of_transformers()]
    assert len({base.sha256, *(other.sha256 for other in unlike)}) == 4
