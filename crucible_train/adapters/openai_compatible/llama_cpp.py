"""llama.cpp's own completions: what its answers lack is asked for once more.

A token that ends within a character is among the ids of an answer but has no log-probability there.
"""

from collections.abc import Sequence
from typing import Any

from crucible_train.adapters.openai_compatible.answers import (
    Choice,
    Completion,
    Logprobs,
    NativeCompletion,
    NativeToken,
    Usage,
    read,
)
from crucible_train.adapters.openai_compatible.dialects import DIALECTS
from crucible_train.adapters.openai_compatible.transport import Transport
from crucible_train.errors import ServerError
from crucible_train.types import SamplingParams

# Above any sum of logits: the token that has it is taken, while its log-probability is told as it was before.
_FORCING_BIAS = 1e4
_DIALECT = DIALECTS["llama.cpp"]
_REASONS = {"limit": "length", "eos": "stop", "word": "stop"}


async def complete(transport: Transport, body: dict[str, Any], vocab_size: int) -> Completion:
    """The answer to ``body``, every token with its log-probability."""
    native = read(NativeCompletion, await transport.post(_DIALECT.path, body))
    logprobs = aligned(native.tokens, native.completion_probabilities)
    for place, value in enumerate(logprobs):
        if value is None:
            before = [*body["prompt"], *native.tokens[:place]]
            logprobs[place] = await score(transport, before, native.tokens[place], vocab_size)
    choice = Choice(
        index=0,
        text="",
        finish_reason=_REASONS.get(native.stop_type),
        token_ids=native.tokens,
        logprobs=Logprobs(token_logprobs=logprobs),
    )
    usage = Usage(prompt_tokens=native.tokens_evaluated, completion_tokens=native.tokens_predicted)
    return Completion(choices=[choice], usage=usage)


async def score(transport: Transport, before: Sequence[int], token: int, vocab_size: int) -> float:
    """The log-probability of a token after others, which the server is made to write."""
    told = (await _force(transport, before, token, 1)).completion_probabilities
    if not told:  # the token ends within a character: all the others are looked up beside one that does not
        told = await _likeliest(transport, before, vocab_size, vocab_size)
    found = [each.logprob for each in told if each.id == token]
    if not found:
        raise ServerError(f"{_DIALECT.name} does not tell the log-probability of token {token}")
    return found[0]


async def top(transport: Transport, before: Sequence[int], k: int, vocab_size: int) -> list[tuple[int, float]]:
    """The ``k`` most likely tokens after others, as (id, log-probability), in any order."""
    return [(each.id, each.logprob) for each in await _likeliest(transport, before, k, vocab_size)]


async def _likeliest(transport: Transport, before: Sequence[int], num: int, vocab_size: int) -> list[NativeToken]:
    """What the server tells of the likeliest tokens beside the first that does not end within a character."""
    for token in range(vocab_size):
        written = (await _force(transport, before, token, num)).completion_probabilities
        if written:
            return written[0].top_logprobs
    return []


def aligned(tokens: Sequence[int], told: Sequence[NativeToken]) -> list[float | None]:
    """For each token what was told of it, where only one place is possible for what was told; else None."""
    early = _places(tokens, [each.id for each in told])
    late = [len(tokens) - 1 - place for place in _places(tokens[::-1], [each.id for each in told][::-1])][::-1]
    logprobs: list[float | None] = [None] * len(tokens)
    for each, first, last in zip(told, early, late, strict=True):
        if first == last:
            logprobs[first] = each.logprob
    return logprobs


def _places(tokens: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The first places where ``wanted`` stands in ``tokens``, in its order."""
    places, start = [], 0
    for token in wanted:
        if token not in tokens[start:]:
            raise ServerError(f"{_DIALECT.name} tells the log-probability of token {token}, which it did not write")
        start = list(tokens).index(token, start) + 1
        places.append(start - 1)
    return places


async def _force(transport: Transport, before: Sequence[int], token: int, num_told: int) -> NativeCompletion:
    body = {"prompt": list(before), "seed": 0, "logit_bias": [[token, _FORCING_BIAS]]}
    body |= _DIALECT.fields(SamplingParams(1, temperature=0.0)) | {"n_probs": num_told}
    return read(NativeCompletion, await transport.post(_DIALECT.path, body))
