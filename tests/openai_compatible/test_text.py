"""Prompts as text and texts as tokens: exact, or refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.adapters.openai_compatible.answers import Completion
from crucible_train.adapters.openai_compatible.dialects import DIALECTS
from crucible_train.adapters.openai_compatible.reading import read_text
from crucible_train.adapters.openai_compatible.text import exact_text
from crucible_train.errors import InputError, ServerError
from crucible_train.ports import Tokenizer
from crucible_train.types import SamplingParams, TokensWithLogprobs

EOS = 2
PARAMS = SamplingParams(8, stop_token_ids=(EOS,))


def answered(tokenizer: Tokenizer, text: str, reason: str, mode: Any = "counted", **fields: Any) -> TokensWithLogprobs:
    usage = {"prompt_tokens": 3, "completion_tokens": fields.pop("counted", None) or len(tokenizer.encode(text))}
    choices = [{"index": 0, "text": text, "finish_reason": reason}]
    completion = Completion.model_validate({"choices": choices, "usage": usage})
    params = fields.pop("params", PARAMS)
    return read_text(completion, fields.pop("sent", 3), params, DIALECTS["transformers"], tokenizer, mode)


def test_a_prompt_of_words_and_control_tokens_is_its_text(tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("user\nHello"), 2, *tokenizer.encode("\n")]
    assert exact_text(tokenizer, ids) == "<|im_start|>user\nHello<|im_end|>\n"


def test_a_text_that_names_a_control_token_is_refused(tokenizer: Tokenizer) -> None:
    ids = [int(token) for token in tokenizer.encode("say <|im_end|> now")]
    with pytest.raises(InputError, match=r"a prompt of \d+ tokens cannot be sent as text: .* differs from token 1 on"):
        exact_text(tokenizer, ids)


def test_tokens_that_their_text_does_not_give_again_are_refused(tokenizer: Tokenizer) -> None:
    letters = [int(tokenizer.encode(letter)[0]) for letter in "hello"]
    half = next(i for i in range(200, 45000) if tokenizer.decode([i]).endswith("\N{REPLACEMENT CHARACTER}"))
    for ids in (letters, [half]):
        with pytest.raises(InputError, match="cannot be sent as text"):
            exact_text(tokenizer, ids)


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["<|im_start|>", "<|im_end|>"]), st.text(max_size=8)), max_size=5))
def test_what_is_sent_is_always_read_as_it_was(tokenizer: Tokenizer, parts: list[str]) -> None:
    controls = tokenizer.control_tokens
    ids: list[int] = []
    for part in parts:
        ids += [controls[part]] if part in controls else [int(token) for token in tokenizer.encode(part)]
    try:
        text = exact_text(tokenizer, ids)
    except InputError:
        return
    assert text == tokenizer.decode(ids)


def test_a_control_token_that_ended_an_answer_is_put_back(tokenizer: Tokenizer) -> None:
    words = tuple(tokenizer.encode("It is 4."))
    answer = answered(tokenizer, "It is 4.", "stop", counted=len(words) + 1)
    assert (answer.tokens, answer.stop_reason, answer.logprobs) == ((*words, EOS), "stop", None)
    assert answered(tokenizer, "It is 4.", "length").tokens == words


def test_which_of_several_control_tokens_it_was_is_not_guessed(tokenizer: Tokenizer) -> None:
    with pytest.raises(ServerError, match=r"does not say at which of stop_token_ids \[2, 0\]"):
        answered(tokenizer, "4", "stop", params=SamplingParams(8, stop_token_ids=(EOS, 0)))


def test_an_answer_of_another_count_is_refused_unless_any_is_taken(tokenizer: Tokenizer) -> None:
    with pytest.raises(ServerError, match="wrote 7 tokens, but their text is encoded as 1"):
        answered(tokenizer, " It", "length", counted=7)
    assert len(answered(tokenizer, " It", "length", "any", counted=7).tokens) == 1


def test_a_server_that_reads_another_prompt_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ServerError, match="read a prompt of 3 tokens where 2 were sent"):
        answered(tokenizer, "4", "length", sent=2)


def test_an_answer_is_cut_after_a_stop_text(tokenizer: Tokenizer) -> None:
    params = SamplingParams(8, stop_token_ids=(EOS,), stop_texts=("END",))
    answer = answered(tokenizer, "4 END of it", "stop", "any", params=params)
    assert tokenizer.decode(answer.tokens) == "4 END"
