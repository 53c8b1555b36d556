"""The tokenizer gives the ids of transformers' own, but that text stays text."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from crucible_train.errors import ModelError, RenderError
from crucible_train.renderers import FastTokenizer, as_tokenizer

# SmolLM2's vocabulary has no token for the bytes of these six control characters and of planes 4 to 11, which are
# unassigned; transformers drops them too.
LACKING = "\x04\x06\x13\x14\x16\x1d"
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=LACKING, max_codepoint=0x3FFFF), max_size=30)
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "<think>", "</tool_call>", "<|vision_start|>"]
MIXED = st.lists(ANY | st.sampled_from([*CONTROLS, "<|im_", "|>", "  ", "\n\n", "12345", "日本", "🙂"]), max_size=6)
NAMES = ("smollm2", "qwen3")
MANY = settings(max_examples=80, deadline=None)


@pytest.fixture(scope="session", params=NAMES)
def pair(
    request: pytest.FixtureRequest, tokenizer_named: Callable[[str], FastTokenizer]
) -> tuple[FastTokenizer, PreTrainedTokenizerFast]:
    ours = tokenizer_named(request.param)
    return ours, PreTrainedTokenizerFast(tokenizer_object=RustTokenizer.from_str(json.dumps(ours.definition)))


@pytest.fixture(scope="session")
def splitting(smollm2: FastTokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=RustTokenizer.from_str(json.dumps(smollm2.definition)))


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """The definition of a tokenizer of three words."""
    inner = RustTokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    inner.add_special_tokens(["<end>"])
    return dict(json.loads(inner.to_str()))


@given(text=MIXED.map("".join))
@MANY
def test_text_without_a_marker_has_the_ids_of_transformers(
    pair: tuple[FastTokenizer, PreTrainedTokenizerFast], text: str
) -> None:
    ours, theirs = pair
    for name in ours.control_tokens:
        text = text.replace(name, "")
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), clean_up_tokenization_spaces=False)


@given(text=MIXED.map("".join))
@MANY
def test_smollm2_splits_markers_as_transformers_does_when_asked(
    smollm2: FastTokenizer, splitting: PreTrainedTokenizerFast, text: str
) -> None:
    assert smollm2.encode(text) == splitting.encode(text, add_special_tokens=False, split_special_tokens=True)


@given(texts=st.lists(MIXED.map("".join), max_size=4))
@MANY
def test_no_text_gives_a_control_token_and_all_of_it_comes_back(smollm2: FastTokenizer, texts: list[str]) -> None:
    encoded = smollm2.encode_with_offsets(texts)
    assert [found.ids for found in encoded] == [smollm2.encode(text) for text in texts]
    for text, found in zip(texts, encoded, strict=True):
        assert not set(found.ids) & set(smollm2.control_tokens.values())
        assert smollm2.decode(found.ids) == text
        assert len(found.ids) == len(found.offsets)
        covered = {place for start, end in found.offsets for place in range(start, end)}
        assert covered == set(range(len(text)))


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_every_control_token_is_ordinary_text(
    name: str, tokenizer_named: Callable[[str], FastTokenizer]
) -> None:
    tokenizer = tokenizer_named(name)
    special = set(tokenizer.control_tokens.values())
    assert len(special) > 10
    for control, token in tokenizer.control_tokens.items():
        assert not set(tokenizer.encode(f"a {control}{control}")) & special
        assert tokenizer.decode(tokenizer.encode(control)) == control
        assert tokenizer.decode([token]) == control


@given(digits=st.text("0123456789", min_size=1, max_size=12))
@MANY
def test_smollm2_reads_numbers_digit_by_digit(smollm2: FastTokenizer, digits: str) -> None:
    assert [smollm2.decode([token]) for token in smollm2.encode(f"a{digits}b")] == ["a", *digits, "b"]


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("qwen3", "Hello, world!", [9707, 11, 1879, 0]),
        ("smollm2", "user\n", [4093, 198]),
        ("smollm2", "Those are markers.", [14359, 359, 11610, 30]),
    ],
)
def test_known_ids(name: str, text: str, ids: list[int], tokenizer_named: Callable[[str], FastTokenizer]) -> None:
    assert tokenizer_named(name).encode(text) == ids


def test_qwen3_composes_unicode_and_says_where_each_token_came_from(qwen3: FastTokenizer) -> None:
    [found] = qwen3.encode_with_offsets(["e\u0301tude"])
    assert qwen3.decode(found.ids) == "étude"
    assert found.offsets[-1][1] == len("e\u0301tude")


def test_half_a_surrogate_pair_is_named(smollm2: FastTokenizer) -> None:
    with pytest.raises(RenderError) as raised:
        smollm2.encode_with_offsets(["fine", "not \ud83d fine"])
    assert str(raised.value) == r"text: character 5 is '\ud83d', half of a surrogate pair, which cannot be encoded"


def test_a_control_token_that_the_vocabulary_itself_spells_is_cut_in_two() -> None:
    pieces = [("<unk>", 0.0), *((char, -5.0) for char in "a</s>"), ("</s>", -1.0)]
    inner = RustTokenizer(models.Unigram(pieces, unk_id=0))
    inner.add_special_tokens(["</s>"])
    assert inner.encode("a</s>a").tokens == ["a", "</s>", "a"]
    [found] = as_tokenizer(inner).encode_with_offsets(["a</s>a</s>"])
    assert [inner.id_to_token(token) for token in found.ids] == list("a</s>a</s>")
    assert found.offsets == [(place, place + 1) for place in range(10)]


def test_a_vocabulary_with_gaps_is_as_large_as_its_highest_id() -> None:
    inner = RustTokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    assert as_tokenizer(inner).vocab_size == 10


def test_what_smollm2_has_no_token_for_is_dropped_as_transformers_does(
    smollm2: FastTokenizer, splitting: PreTrainedTokenizerFast
) -> None:
    text = f"a{LACKING}b\U00040000"
    assert smollm2.encode(text) == splitting.encode(text, add_special_tokens=False)
    assert smollm2.decode(smollm2.encode(text)).startswith("ab")


def test_smollm2_is_as_large_as_its_model(smollm2: FastTokenizer) -> None:
    assert smollm2.vocab_size == 49152


def test_transformers_reads_what_is_written_and_so_do_we(smollm2: FastTokenizer, tmp_path: Path) -> None:
    smollm2.to_folder(tmp_path)
    again = FastTokenizer.from_folder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    said = [{"role": "user", "content": "It costs 1250 €."}]
    assert (again.sha256, again.chat_template) == (smollm2.sha256, smollm2.chat_template)
    assert (theirs.bos_token, theirs.eos_token) == (smollm2.bos_token, smollm2.eos_token)
    assert theirs.apply_chat_template(said, tokenize=False) == again.decode(
        theirs.apply_chat_template(said, return_dict=False)
    )
    assert theirs.encode("1250 €", add_special_tokens=False) == again.encode("1250 €")


def test_what_decides_ids_decides_the_digest(small: dict[str, Any]) -> None:
    config = {"eos_token": "<end>", "chat_template": "T"}
    base = FastTokenizer(small, config, "here").sha256
    others = [
        (small, config | {"eos_token": "b"}),
        (small, config | {"bos_token": "b"}),
        (small, config | {"chat_template": "x"}),
        (small | {"added_tokens": []}, config),
    ]
    assert FastTokenizer(small, config | {"model_max_length": 1}, "there").sha256 == base
    assert len({base, *(FastTokenizer(*other, "here").sha256 for other in others)}) == 5


@pytest.mark.parametrize(
    ("config", "template", "eos"),
    [
        ({"chat_template": "T", "eos_token": {"content": "<end>"}}, "T", "<end>"),
        ({"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]}, "D", None),
        ({"chat_template": [{"name": "rag", "template": "R"}]}, None, None),
        ({}, None, None),
    ],
)
def test_a_configuration_is_read_in_all_its_forms(
    config: dict[str, object], template: str | None, eos: str | None, small: dict[str, Any]
) -> None:
    tokenizer = FastTokenizer(small, config, "x")
    assert (tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token) == (template, eos, None)


def test_a_template_file_comes_before_the_configuration(small: dict[str, Any], tmp_path: Path) -> None:
    FastTokenizer(small, {"chat_template": "theirs"}, "x").to_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("mine", encoding="utf-8")
    assert FastTokenizer.from_folder(tmp_path).chat_template == "mine"


def test_a_folder_is_built_again_only_when_a_file_of_it_changed(small: dict[str, Any], tmp_path: Path) -> None:
    def read() -> FastTokenizer:
        return FastTokenizer.from_folder(tmp_path)

    (tmp_path / "tokenizer.json").write_text(json.dumps(small))
    seen = [read()]
    assert read() is seen[0]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    seen.append(read())
    (tmp_path / "chat_template.jinja").write_text("mine")
    seen.append(read())
    (tmp_path / "tokenizer.json").write_text(json.dumps(small | {"added_tokens": []}))
    seen.append(read())
    assert len({id(one) for one in seen}) == 4
    assert [one.eos_token for one in seen] == [None, "a", "a", "a"]
    assert [one.chat_template for one in seen] == [None, None, "mine", "mine"]
    assert read() is seen[-1]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("other.txt", b"", r"no tokenizer\.json; a fast tokenizer is needed"),
        ("tokenizer.json", b"{", r"tokenizer\.json: not readable as JSON"),
        ("tokenizer.json", b"[1]", r"tokenizer\.json: not readable as JSON"),
        ("tokenizer.json", b"\xff\xfe", r"tokenizer\.json: not readable as JSON"),
        ("tokenizer.json", b"{}", r"tokenizer\.json: not a tokenizer"),
        ("tokenizer.json.xz", b"not xz", r"tokenizer\.json: not readable as JSON"),
        ("tokenizer.json.xz", lzma.compress(b"{}")[:-4], r"tokenizer\.json: not readable as JSON"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(name: str, content: bytes, error: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=error):
        FastTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["smollm2", "qwen3", "deepseek_v3", "kimi_k2", "gpt_oss", "llama3"])
def test_the_bytes_of_ids_are_those_of_their_text(name: str, tokenizer_named: Callable[[str], FastTokenizer]) -> None:
    tokenizer = tokenizer_named(name)
    sizes = tokenizer.num_bytes
    assert sizes is not None
    for text in ("plain  words\n12345", "\u00e9\u4e94 \U0001f642\u200b\x00", "", "<|im_end|>"):
        assert int(sizes[tokenizer.encode(text)].sum()) == len(text.encode())
    assert not sizes[list(tokenizer.control_tokens.values())].any()


def test_bytes_that_depend_on_other_ids_are_not_told(smollm2: FastTokenizer) -> None:
    definition = smollm2.definition
    decoder = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    assert FastTokenizer(definition | {"decoder": decoder}, {}, "other").num_bytes is None
    word = definition["added_tokens"][0] | {"id": 49152, "content": "the", "special": False}
    definition["added_tokens"].append(word)
    assert FastTokenizer(definition, {}, "words").num_bytes is None
