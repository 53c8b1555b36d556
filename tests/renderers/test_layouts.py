"""Plain conversations that are filled into a layout are those that are listed piece by piece, to the bit."""

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.errors import RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers import FastTokenizer, Renderer, TrainOnWhat, get_renderer, list_renderers
from crucible_train.renderers.base import Example, Tools
from crucible_train.renderers.layouts import Layout, layout_of, plain, probe
from crucible_train.renderers.pieces import Kind, Piece
from crucible_train.renderers.smollm2 import SmolLM2
from crucible_train.types import Message

TOKENIZERS = {"qwen3": "qwen3", "deep": "deepseek_v3", "kimi": "kimi_k2", "gpt": "gpt_oss"}
RENAMED = {"deepseekv3_1": "deepseek_v3_1", "deepseekv3_1_thinking": "deepseek_v3_1", "deepseek_r1": "deepseek_v3_1"}
WORDS = st.sampled_from(
    [
        *(
            "a",
            "\n",
            " ",
            "\n\n",
            "it's",
            "<think>",
            "</think>",
            "<|im_end|>",
            "\u00e9",
            "\u3000",
            "12",
            "User:",
            "!",
            "\x00",
        ),
        *("\u0301", "\ue000", "\ue0000\ue001", "{{ x }}", '"', "\\n", "assistant", "\ud800"),
    ]
)
TEXTS = st.lists(WORDS, max_size=5).map("".join)
ROLES = st.sampled_from(["user", "assistant", "user", "assistant", "system", "tool", "developer", "critic"])
CONVERSATIONS = st.lists(st.builds(Message, ROLES, TEXTS), min_size=1, max_size=5)


def _tokenizer_of(name: str) -> str:
    kind = next((tokenizer for begin, tokenizer in TOKENIZERS.items() if name.startswith(begin)), "smollm2")
    return {"kimi_k2_thinking": "kimi_k2_thinking"}.get(name, RENAMED.get(name, kind))


NAMES = [name for name in list_renderers() if name != "chat_template"]


@pytest.fixture(scope="module", params=NAMES)
def renderer(request: pytest.FixtureRequest, tokenizer_named: Callable[[str], FastTokenizer]) -> Renderer:
    name = request.param
    return get_renderer(name, tokenizer_named("llama3" if name.startswith("llama") else _tokenizer_of(name)))


def _looking(renderer: Renderer) -> Renderer:
    """The same renderer, which lists the pieces of every conversation."""
    other = copy.copy(renderer)
    other.verbatim = None  # type: ignore[misc]
    return other


def _found(render: Callable[[], Sequence[Example]]) -> list[tuple[list[int], list[float]]] | str:
    try:
        made = render()
    except RenderError as error:
        return str(error)
    assert all(ids.to_array().dtype == np.int32 and weights.dtype == np.float32 for ids, weights in made)
    return [(ids.to_ints(), weights.tolist()) for ids, weights in made]


@given(messages=CONVERSATIONS, mode=st.sampled_from(TrainOnWhat))
@settings(max_examples=60, deadline=None)
def test_an_example_is_the_one_that_is_listed_piece_by_piece(
    renderer: Renderer, messages: list[Message], mode: TrainOnWhat
) -> None:
    looking = _looking(renderer)
    found, expected = (
        _found(lambda one=one: [one.build_supervised_example(messages, mode)]) for one in (renderer, looking)
    )
    assert found == expected
    found, expected = (
        _found(lambda one=one: one.build_supervised_examples(messages, mode)) for one in (renderer, looking)
    )
    assert found == expected


@given(dialogues=st.lists(CONVERSATIONS, max_size=6), mode=st.sampled_from(TrainOnWhat))
@settings(max_examples=20, deadline=None)
def test_many_are_each_of_them(renderer: Renderer, dialogues: list[list[Message]], mode: TrainOnWhat) -> None:
    made = renderer.build_many([(messages, None) for messages in dialogues], mode)
    found = [str(one) if isinstance(one, RenderError) else _found(lambda one=one: one) for one in made]
    looking = _looking(renderer)
    assert found == [
        _found(lambda messages=messages: looking.build_supervised_examples(messages, mode)) for messages in dialogues
    ]


def test_ordinary_conversations_have_a_layout(renderer: Renderer) -> None:
    layout = renderer._layout(("user", "assistant"), TrainOnWhat.ALL_ASSISTANT_MESSAGES, is_whole=False)
    assert layout is not None


def test_dictionaries_are_read_as_messages(qwen3: FastTokenizer) -> None:
    renderer = get_renderer("qwen3", qwen3)
    given = [{"role": "user", "content": "Ho?"}, {"role": "assistant", "content": "Ha."}]
    messages = [Message("user", "Ho?"), Message("assistant", "Ha.")]
    assert plain(given, ()) == plain(messages, ()) == (("user", "assistant"), ["Ho?", "Ha."])
    [(ids, weights)], [(others, other_weights)] = (renderer.build_supervised_examples(m) for m in (given, messages))
    assert ids == others
    assert weights.tolist() == other_weights.tolist()


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": ""},
        {"role": "user", "content": " a"},
        {"role": "user", "content": "a\u3000"},
        {"role": "user", "content": "a </mark> b"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "user", "content": "a", "name": "b"},
        {"role": ["user"], "content": "a"},
        {"role": "user"},
        Message("user", "a", name="b"),
        Message("user", "a", trainable=True),
        Message("tool", "a", tool_call_id="1"),
        "user",
    ],
)
def test_what_is_not_plain_is_looked_at(message: object) -> None:
    assert plain([message], ("</mark>",)) is None


class _Shouting(SmolLM2):
    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        for piece in super().conversation_pieces(messages, tools):
            yield piece._replace(text=f"{piece.text}!") if piece.is_output and piece.kind is Kind.TEXT else piece


def test_texts_that_do_not_stand_as_they_are_have_no_layout(smollm2: FastTokenizer) -> None:
    assert _Shouting(smollm2)._layout(("user", "assistant"), TrainOnWhat.ALL_ASSISTANT_MESSAGES, is_whole=False) is None
    [(ids, _)] = _Shouting(smollm2).build_supervised_examples([Message("user", "Ho"), Message("assistant", "Ha")])
    assert "Ha!" in smollm2.decode(ids.to_ints())


def _layout(pieces: Sequence[Piece], tokenizer: Tokenizer, num: int = 1) -> Layout | None:
    return layout_of(pieces, frozenset({0}), num, tokenizer)


def test_a_text_must_stand_once(smollm2: FastTokenizer) -> None:
    [sign] = [message.text for message in probe(["assistant"])]
    text = Piece(sign, Kind.TEXT, 0, True)
    end = Piece("<|im_end|>", Kind.CONTROL, 0, True)
    assert _layout([text, end], smollm2) is not None
    assert _layout([text, end, text, end], smollm2) is None
    assert _layout([text, text, end], smollm2) is None
    assert _layout([end], smollm2) is None
    assert _layout([text, end], smollm2, num=2) is None
    assert _layout([Piece(f'"{sign}"', Kind.TEXT, 0, True), end], smollm2) is None
    assert _layout([text, Piece("\n")], smollm2) is None  # nothing that is always trained
