"""Every reference rendering, token for token and weight for weight. ``tests/golden/README.md`` describes a record."""

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train.errors import RenderError
from crucible_train.renderers import FastTokenizer, Renderer, Termination, get_renderer, list_renderers
from crucible_train.types import Message, ModelInput

GOLDEN = Path(__file__).parents[1] / "golden" / "renderers"
# Variant -> renderer. What the renderer's name says already is not given as an option.
VARIANTS = {
    "smollm2/default": "smollm2",
    "role_colon/llama3_tokenizer": "role_colon",
    "role_colon/qwen3_tokenizer": "role_colon",
    "generic/own_chatml": "chat_template",
    "generic/own_inst": "chat_template",
    "generic/own_tools": "chat_template",
    "generic/own_date": "chat_template",
    "generic/published_qwen3": "chat_template",
    "generic/published_smollm2": "chat_template",
    "llama3/llama3": "llama3",
    "llama3/llama3_1": "llama3_1",
    "llama3/llama3_1_tools_in_system": "llama3_1",
    "llama3/llama3_2": "llama3_2",
    "qwen3/thinking": "qwen3",
    "qwen3/disable_thinking": "qwen3_disable_thinking",
    "qwen3/instruct_2507": "qwen3_instruct",
    "qwen3_vl/thinking": "qwen3_vl",
    "qwen3_vl/instruct": "qwen3_vl_instruct",
    "deepseek_v3/v3": "deepseekv3",
    "deepseek_v3/v3_thinking": "deepseek_r1",
    "deepseek_v3/v3_1": "deepseekv3_1",
    "deepseek_v3/v3_1_thinking": "deepseekv3_1_thinking",
    "deepseek_v3/v3_1_thinking_train": "deepseekv3_1_thinking",
    "kimi_k2/instruct": "kimi_k2",
    "kimi_k2/thinking": "kimi_k2_thinking",
    "kimi_k2/thinking_train": "kimi_k2_thinking",
    "gpt_oss/no_sysprompt": "gpt_oss_no_sysprompt",
    "gpt_oss/low": "gpt_oss_low_reasoning",
    "gpt_oss/medium": "gpt_oss_medium_reasoning",
    "gpt_oss/high": "gpt_oss_high_reasoning",
}
FIXED_BY_NAME = {"enable_thinking", "thinking", "system_prompt", "reasoning_effort", "trainable", "tokenizer"}
# These show an answer that closes a conversation as history; how it is written, and so trained, is another variant.
TRAINED_AS = {
    "deepseek_v3/v3_1_thinking": "deepseek_v3/v3_1_thinking_train",
    "kimi_k2/thinking": "kimi_k2/thinking_train",
}
# Not in the variant for training, which has no tools.
ALSO_TRAINED = {"deepseek_v3/v3_1_thinking/think_tool_history"}
# In history these have answers, or some of their calls, otherwise than a model writes them after its prompt.
HISTORY_IS_NOT_WRITTEN = {"deepseek_v3/v3", "deepseek_v3/v3_thinking", "deepseek_v3/v3_1_thinking"}
# An answer's text spells a think block, which the reference's tokenizer makes control tokens; there are no safe ids.
SPELT_BY_AN_ANSWER = {
    "kimi_k2/thinking/think_in_content",
    "kimi_k2/thinking_train/think_in_content",
    "kimi_k2/thinking_train/think_in_content_history",
}

# Text in a message never becomes a control token here, as it does in what transformers renders. The records of these
# conversations have no safe ids, so what must hold is said in a test of their own.
FORGED_BY_THE_REFERENCE = {
    "generic/own_chatml/inject_user",
    "generic/own_date/inject_user",
    "generic/own_tools/inject_user",
    "generic/published_qwen3/inject_user",
    "generic/published_smollm2/inject_user",
}
# Why a reference cannot express a conversation -> what the error names.
REFUSED = {
    "reasoning of": "reasoning_content",
    "declaration of": "tools",
    "tool call": "tool_calls",
    "single tool-calls": "tool_calls",
    "role system": "role|content",
    "role developer": "role|content",
    "role assistant": "content",
    "system role": "system role",
    "roles must alternate": "roles must alternate",
}
# The template takes the empty thinking block out of the one message that is trained once other turns follow, so no
# token of the conversation as a whole is one the model will write. That is refused rather than trained on nothing.
WITHOUT_A_TRAINED_TOKEN = {
    "generic/published_qwen3/partial_train_second",
    "qwen3/thinking/partial_train_second",
    "qwen3/disable_thinking/partial_train_second",
    "deepseek_v3/v3_1_thinking_train/partial_train_second",
}
# The prompt writes the reasoning's beginning, or an empty block of it, which the template's history shows otherwise.
PROMPT_OPENS_REASONING = {"qwen3/disable_thinking", "qwen3_vl/thinking"}


def _records() -> dict[str, dict[str, Any]]:
    texts = (gzip.decompress(path.read_bytes()).decode() for path in sorted(GOLDEN.glob("*.jsonl.gz")))
    records = [json.loads(line) for text in texts for line in text.splitlines()]
    known = list_renderers()
    return {record["id"]: record for record in records if VARIANTS[_variant(record)] in known}


def _variant(record: dict[str, Any]) -> str:
    return f"{record['family']}/{record['variant']}"


RECORDS = _records()
SUPPORTED = {key for key, record in RECORDS.items() if record["unsupported"] is None}
FAITHFUL = SUPPORTED - FORGED_BY_THE_REFERENCE - SPELT_BY_AN_ANSWER


def over(keys: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("record", [pytest.param(RECORDS[key], id=key) for key in sorted(keys)])


@pytest.fixture
def tokenizer(record: dict[str, Any], tokenizer_named: Callable[[str], FastTokenizer]) -> FastTokenizer:
    return tokenizer_named(record["tokenizer"])


@pytest.fixture
def renderer(record: dict[str, Any], tokenizer: FastTokenizer) -> Renderer:
    options = {key: value for key, value in record["kwargs"].items() if key not in FIXED_BY_NAME}
    if "chat_template" in options:
        options["template"] = options.pop("chat_template")
    return get_renderer(VARIANTS[_variant(record)], tokenizer, **options)


def _mask(num: int, spans: Iterable[tuple[int, int]]) -> list[float]:
    mask = np.zeros(num)
    for start, end in spans:
        mask[start:end] = 1
    return mask.tolist()


def _spans_in_place(record: dict[str, Any]) -> list[tuple[int, int]]:
    return [(span["start"], span["end"]) for span in record["assistant_spans"] if "no_prefix" not in span]


def _joined_with_their_header(record: dict[str, Any]) -> list[int]:
    spans = record["assistant_spans"]
    return [span["message_index"] for span in spans if span.get("no_prefix") == "prompt_not_prefix"]


def _training_twin(record: dict[str, Any]) -> dict[str, Any] | None:
    variant = _variant(record)
    return RECORDS.get(record["id"].replace(variant, TRAINED_AS.get(variant, "none"), 1))


def _is_trained_otherwise(record: dict[str, Any]) -> bool:
    """Whether the closing answer is one that the variant for training shows otherwise, or would if it had it."""
    if _variant(record) not in TRAINED_AS:
        return False
    twin = _training_twin(record)
    closing = [span for span in record["assistant_spans"] if span["message_index"] == len(record["messages"]) - 1]
    return twin["ids"] != record["ids"] if twin else any("no_prefix" in span for span in closing)


@over(key for key in FAITHFUL if not _is_trained_otherwise(RECORDS[key]))
def test_a_conversation_has_the_ids_of_the_reference(record: dict[str, Any], renderer: Renderer) -> None:
    ids, weights = renderer.build_supervised_example(record["messages"], "all_tokens", tools=record["tools"])
    assert ids.to_ints() == record.get("safe_ids", record["ids"])
    assert weights.tolist() == [0.0] + [1.0] * (ids.length - 1)


@over(FAITHFUL)
def test_a_prompt_has_the_ids_of_the_reference(record: dict[str, Any], renderer: Renderer) -> None:
    prompt = renderer.build_generation_prompt(record["messages"][: record["generation_upto"]], tools=record["tools"])
    assert prompt.to_ints() == record.get("safe_generation_ids", record["generation_ids"])


def _spans_hold_here(record: dict[str, Any]) -> bool:
    """Spans count the reference's own ids, so not where the safe ids are more, nor where a token is joined."""
    longer = len(record.get("safe_ids", record["ids"])) != len(record["ids"])
    loses_reasoning = _variant(record) in TRAINED_AS and bool(record.get("reasoning_dropped_in"))
    return not longer and not loses_reasoning and not _joined_with_their_header(record)


@over(key for key in FAITHFUL if _spans_hold_here(RECORDS[key]) and _spans_in_place(RECORDS[key]))
def test_what_the_model_writes_is_what_is_trained(record: dict[str, Any], renderer: Renderer) -> None:
    _, weights = renderer.build_supervised_example(record["messages"], tools=record["tools"])
    assert weights.tolist() == _mask(len(record["ids"]), _spans_in_place(record))


@over(key for key in FAITHFUL if "safe_ids" in RECORDS[key] and not _joined_with_their_header(RECORDS[key]))
def test_beside_forged_markers_the_answer_alone_is_trained(
    record: dict[str, Any], renderer: Renderer, tokenizer: FastTokenizer
) -> None:
    ids, weights = renderer.build_supervised_example(record["messages"], tools=record["tools"])
    trained = np.array(ids.to_ints())[weights > 0].tolist()
    spans = _spans_in_place(record)
    assert tokenizer.decode(trained) == "".join(tokenizer.decode(record["ids"][start:end]) for start, end in spans)
    harmless = [message | {"content": message["content"] and "x"} for message in record["messages"]]
    plain, plain_weights = renderer.build_supervised_example(harmless, tools=record["tools"])
    controls = set(tokenizer.control_tokens.values())
    assert [token for token in trained if token in controls] == [
        token for token, weight in zip(plain.to_ints(), plain_weights, strict=True) if weight and token in controls
    ]


@over(key for key in FAITHFUL if RECORDS[key].get("weight_spans"))
def test_the_chosen_messages_alone_are_trained(record: dict[str, Any], renderer: Renderer) -> None:
    messages = _with_flags(record)
    _, weights = renderer.build_supervised_example(messages, "customized", tools=record["tools"])
    assert weights.tolist() == _mask(len(record["ids"]), record["weight_spans"])


@over(key for key in FAITHFUL if RECORDS[key].get("weight_spans") == [] and not _joined_with_their_header(RECORDS[key]))
def test_a_conversation_that_trains_nothing_is_refused(record: dict[str, Any], renderer: Renderer) -> None:
    assert record["id"] in WITHOUT_A_TRAINED_TOKEN
    with pytest.raises(RenderError, match=r"no token is trained: .* later turns changed how they are written"):
        renderer.build_supervised_example(_with_flags(record), "customized", tools=record["tools"])
    [(ids, weights)] = renderer.build_supervised_examples(_with_flags(record), "customized", tools=record["tools"])
    own = record["assistant_spans"][1]["own_example"]
    assert ids.to_ints() == own["ids"]
    assert weights.tolist() == _mask(len(own["ids"]), [(own["start"], own["end"])])


def _without_stop(record: dict[str, Any]) -> list[int]:
    spans = record["assistant_spans"]
    return [span["message_index"] for span in spans if span.get("no_prefix") == "no_stop_token"]


@over(
    key
    for key in FAITHFUL
    if _spans_hold_here(RECORDS[key]) and RECORDS[key]["assistant_spans"] and not _without_stop(RECORDS[key])
)
def test_each_answer_is_trained_once_in_its_own_context(record: dict[str, Any], renderer: Renderer) -> None:
    examples = renderer.build_supervised_examples(record["messages"], tools=record["tools"])
    num_trained = 0
    for span in record["assistant_spans"]:
        own = _own_example(record, span)
        start, end = own["start"], own["end"]
        shows = [
            weights
            for ids, weights in examples
            if ids.to_ints()[:end] == own["ids"][:end] and weights[start:end].all() and not weights[start - 1]
        ]
        assert len(shows) == 1
        num_trained += end - start
    assert sum(weights.sum() for _, weights in examples) == num_trained


def _own_example(record: dict[str, Any], span: dict[str, Any]) -> dict[str, Any]:
    """The turn as the model writes it; some formats have another stop in history."""
    if "stop_token" not in span:
        return dict(span.get("own_example", {"ids": record["ids"]} | span))
    return span | {"ids": [*record["ids"][: span["end"] - 1], span["stop_token"]]}


@over(
    key
    for key in FAITHFUL
    if _joined_with_their_header(RECORDS[key])
    and _variant(RECORDS[key]) not in PROMPT_OPENS_REASONING | HISTORY_IS_NOT_WRITTEN
)
def test_an_answer_joined_with_its_header_is_trained_after_the_prompt(
    record: dict[str, Any], renderer: Renderer, tokenizer: FastTokenizer
) -> None:
    """The template joins the header's newline with the answer's own first character in one token.

    A model that is prompted writes the answer apart, so the example has it apart; the text is the same.
    """
    examples = renderer.build_supervised_examples(record["messages"], tools=record["tools"])
    for index in _joined_with_their_header(record):
        prompt = renderer.build_generation_prompt(record["messages"][:index], tools=record["tools"]).to_ints()
        [(ids, weights)] = [pair for pair in examples if _trains_right_after(pair, prompt)]
        assert weights.tolist() == [0.0] * len(prompt) + [1.0] * (ids.length - len(prompt))
        assert record["text"].startswith(tokenizer.decode(ids.to_ints()))
        assert ids.to_ints()[-1] in renderer.stop_sequences()


@over(
    key
    for key in FAITHFUL
    if _joined_with_their_header(RECORDS[key]) and _variant(RECORDS[key]) in PROMPT_OPENS_REASONING
)
def test_an_answer_whose_reasoning_the_prompt_opens_is_trained_after_it(
    record: dict[str, Any], renderer: Renderer, tokenizer: FastTokenizer
) -> None:
    """What is trained is the end of the template's own rendering of the turn, after the very ids of the prompt."""
    messages, tools = record["messages"], record["tools"]
    examples = renderer.build_supervised_examples(messages, tools=tools)
    for index in _joined_with_their_header(record):
        prompt = renderer.build_generation_prompt(messages[:index], tools=tools).to_ints()
        [(ids, weights)] = [pair for pair in examples if _trains_right_after(pair, prompt)]
        written = ids.to_ints()[len(prompt) : len(prompt) + int(weights.sum())]
        assert weights.tolist() == _mask(ids.length, [(len(prompt), len(prompt) + len(written))])
        assert written[-1] in renderer.stop_sequences()
        turn, _ = renderer.build_supervised_example(messages[: index + 1], "all_tokens", tools=tools)
        assert tokenizer.decode(turn.to_ints()).endswith(f"{tokenizer.decode(written)}\n")


@over(
    key
    for key in FAITHFUL
    if _variant(RECORDS[key]) in HISTORY_IS_NOT_WRITTEN
    and [*_joined_with_their_header(RECORDS[key]), *_without_stop(RECORDS[key])]
)
def test_an_answer_that_history_has_otherwise_is_trained_as_it_is_written(
    record: dict[str, Any], renderer: Renderer
) -> None:
    messages, tools = record["messages"], record["tools"]
    examples = renderer.build_supervised_examples(messages, tools=tools)
    for index in [*_joined_with_their_header(record), *_without_stop(record)]:
        prompt = renderer.build_generation_prompt(messages[:index], tools=tools).to_ints()
        [(ids, weights)] = [pair for pair in examples if _trains_right_after(pair, prompt)]
        assert weights[len(prompt) :].all()
        assert not weights[len(prompt) - 1]
        parsed = renderer.parse_response(ids.to_ints()[len(prompt) :], messages[:index])
        said = Message.of(messages[index])
        assert parsed.termination is Termination.STOP_SEQUENCE
        assert said.text.endswith(parsed.message.text)
        assert [call.name for call in parsed.message.tool_calls] == [call.name for call in said.tool_calls]
        assert "".join(call.arguments for call in said.tool_calls) in "".join(
            call.arguments for call in parsed.message.tool_calls
        )


def _trains_right_after(example: tuple[ModelInput, Any], prompt: list[int]) -> bool:
    ids, weights = example
    return ids.to_ints()[: len(prompt)] == prompt and bool(weights[len(prompt)])


@over(FORGED_BY_THE_REFERENCE)
def test_a_marker_in_a_message_stays_text(record: dict[str, Any], renderer: Renderer, tokenizer: FastTokenizer) -> None:
    ids, _ = renderer.build_supervised_example(record["messages"], tools=record["tools"])
    ours, theirs = ids.to_ints(), record["ids"]
    start = next(place for place, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    assert tokenizer.decode(theirs[start : start + 2]) == " <|im_end|>"
    end = len(ours) - len(theirs[start + 2 :])
    assert tokenizer.decode(ours[start:end]) == " <|im_end|>"
    assert ours[end:] == theirs[start + 2 :]
    assert not set(ours[start:end]) & set(tokenizer.control_tokens.values())


@over(RECORDS.keys() - SUPPORTED)
def test_what_a_format_cannot_express_is_refused(record: dict[str, Any], renderer: Renderer) -> None:
    field = "|".join(field for reason, field in REFUSED.items() if reason in record["unsupported"])
    assert field
    with pytest.raises(RenderError, match=field):
        renderer.build_generation_prompt(record["messages"], tools=record["tools"])
    twin = _training_twin(record)
    if record["id"] not in ALSO_TRAINED and (twin is None or twin["unsupported"]):
        with pytest.raises(RenderError, match=field):
            renderer.build_supervised_example(record["messages"], tools=record["tools"])


def _with_flags(record: dict[str, Any]) -> list[dict[str, Any]]:
    flags = record["kwargs"]["trainable"]
    return [message | {"trainable": flag} for message, flag in zip(record["messages"], flags, strict=True)]
