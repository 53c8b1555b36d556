"""What all formats refuse alike, and what is shared between answers."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from crucible_train.errors import RenderError
from crucible_train.renderers import FastTokenizer, get_renderer, words

CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
NESTED: dict[str, Any] = {}
for _ in range(100_000):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        (5, "tools: must be a list"),
        ({"a": 1}, "tools: must be a list"),
        (["x"], r"tools\[0\]: must be an object"),
        ([{"a": {1}}], r"tools\[0\]: not JSON"),
        ([NESTED], r"tools\[0\]: not JSON"),
    ],
    ids=["number", "object", "text", "set", "nested"],
)
@pytest.mark.parametrize("name", ["qwen3", "kimi_k2"])
def test_tools_are_objects(
    name: str, tools: Any, problem: str, tokenizer_named: Callable[[str], FastTokenizer]
) -> None:
    renderer = get_renderer(name, tokenizer_named(name))
    with pytest.raises(RenderError, match=problem):
        renderer.build_generation_prompt([{"role": "user", "content": "x"}], tools=tools)


def test_a_call_id_is_text_and_arguments_are_json(qwen3: FastTokenizer) -> None:
    renderer = get_renderer("qwen3", qwen3)
    for call, problem in (
        (CALL | {"id": 0}, "id must be text"),
        ({"function": {"name": "f", "arguments": {"a": {1}}}}, "cannot be written as JSON"),
    ):
        bad = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        with pytest.raises(RenderError, match=f"message 1: tool_calls: .*{problem}"):
            renderer.build_supervised_example(bad)


def test_results_answer_calls_of_messages_that_follow_each_other(qwen3: FastTokenizer) -> None:
    messages = [
        {"role": "user", "content": "x"},
        *({"role": "assistant", "content": None, "tool_calls": [CALL | {"id": name}]} for name in "ab"),
        *({"role": "tool", "content": name, "tool_call_id": name} for name in "ab"),
    ]
    assert get_renderer("qwen3", qwen3).build_generation_prompt(messages).length > 0


def test_a_token_that_two_speakers_share_is_not_trained(tokenizer_named: Callable[[str], FastTokenizer]) -> None:
    tokenizer = tokenizer_named("deepseek_v3_1")
    renderer = get_renderer("deepseekv3_1", tokenizer)
    messages = [{"role": "system", "content": "You are Dee"}, {"role": "assistant", "content": "per thoughts? Hi!"}]
    [(ids, weights)] = renderer.build_supervised_examples(messages)
    prompt = renderer.build_generation_prompt(messages[:1]).to_ints()
    assert ids.to_ints()[: len(prompt)] == prompt
    assert not weights[: len(prompt)].any()
    assert weights[len(prompt) :].all()


def test_blanks_and_tags_among_the_added_tokens_are_ordinary_text(smollm2: FastTokenizer) -> None:
    definition = smollm2.definition
    texts = ("\n\n", "<b>", "<think>")
    added = [{"id": 49152 + place, "content": text, "special": False} for place, text in enumerate(texts)]
    definition["model"]["vocab"].update({token["content"]: token["id"] for token in added})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition["added_tokens"] = [*definition["added_tokens"], *(token | flags for token in added)]
    tokenizer = FastTokenizer(definition, {"eos_token": "<|im_end|>"}, "blanks")
    assert "<think>" in tokenizer.control_tokens
    assert not {"\n\n", "<b>"} & set(tokenizer.control_tokens)
    ids = tokenizer.encode("a\n\n<b>")
    assert [id_ for id_ in ids if id_ >= 49152] == [49152, 49153]
    assert tokenizer.decode(ids) == "a\n\n<b>"


def test_what_is_remembered_cannot_be_written_to(qwen3: FastTokenizer) -> None:
    for text in ("\u00e9", "plain"):
        with pytest.raises(ValueError, match="read-only"):
            qwen3.encode_batch([text])[0][0] = 7


def test_words_are_learned_by_many_threads_at_once(qwen3: FastTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MAX_WORDS", 100)
    shared = qwen3._words
    assert shared is not None
    monkeypatch.setattr(shared, "_words", {})
    failed: list[Exception] = []

    def learn(start: int) -> None:
        try:
            for number in range(start, start + 400):
                shared.encode([f"word{number} and{number % 7} more{number % 50}"])
        except Exception as error:  # noqa: BLE001 - the test looks at it
            failed.append(error)

    threads = [threading.Thread(target=learn, args=(start,)) for start in range(0, 400, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
