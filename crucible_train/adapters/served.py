"""What the adapters of model servers share: what is put to one, and what of its answer is believed."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from crucible_train.errors import InputError, ServerError
from crucible_train.ports import Tokenizer
from crucible_train.seeds import fold
from crucible_train.types import ModelInput, SamplingParams, TokensWithLogprobs

T = TypeVar("T")


def prompt_ids(prompt: ModelInput, tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt.

    Raises:
        InputError: it holds images, nothing at all, or an id that the model does not have.
    """
    if not prompt.is_text:
        raise InputError("a prompt with images cannot be sent to a server")
    ids = prompt.to_ints()
    if not ids:
        raise InputError("a prompt must hold at least one token")
    if max(ids) >= (size := tokenizer.vocab_size):
        raise InputError(f"token {max(ids)} of the prompt is out of range: {tokenizer.name} has {size}")
    return ids


def is_unchanged(params: SamplingParams) -> bool:
    """Whether tokens are drawn from the model's own distribution."""
    return (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)


def sample_seed(params: SamplingParams, index: int) -> int:
    """31 bits, which every server takes; no two seeds are near, as a server adds the sample's index to it."""
    return fold(params.seed, "sample", index) & 0x7FFF_FFFF


def finished(
    tokens: list[int],
    logprobs: list[float] | None,
    finish_reason: str | None,
    params: SamplingParams,
    name: str,
    tokenizer: Tokenizer,
) -> TokensWithLogprobs:
    """A sample, cut after what stops it.

    Args:
        tokens: the ids that were written.
        logprobs: of each; None where they are not known.
        finish_reason: why the server says that it stopped.
        params: what was asked for.
        name: what the server is called in messages.
        tokenizer: that of its model.

    Raises:
        ServerError: it is not what was asked for.
    """
    if len(tokens) > params.max_tokens:
        raise ServerError(f"{name} wrote {len(tokens)} tokens where {params.max_tokens} were allowed")
    if tokens and not 0 <= min(tokens) <= max(tokens) < tokenizer.vocab_size:
        raise ServerError(f"{name} wrote a token that {tokenizer.name} does not have: is it the same model?")
    end = end_of(tokens, params, tokenizer.decode)
    if end is not None:
        return TokensWithLogprobs(tuple(tokens[:end]), None if logprobs is None else tuple(logprobs[:end]), "stop")
    if finish_reason == "length":
        return TokensWithLogprobs(tuple(tokens), None if logprobs is None else tuple(logprobs), "length")
    if finish_reason == "stop":
        last = f" at token {tokens[-1]}" if tokens else ""
        raise ServerError(f"{name} stopped{last}, which no stop token or text asks for: add it to them")
    raise ServerError(f"{name} did not finish an answer: {finish_reason}")


def end_of(tokens: Sequence[int], params: SamplingParams, decode: Callable[[Sequence[int]], str]) -> int | None:
    """How many tokens there are up to the first that stops, itself included; None where none does."""
    ends = [place + 1 for place, token in enumerate(tokens) if token in params.stop_token_ids][:1]
    if params.stop_texts and any(stop in decode(tokens) for stop in params.stop_texts):
        # a token is a byte of text at least, a character four at most
        width = 4 * max(map(len, params.stop_texts)) + 1
        for end in range(1, len(tokens) + 1):
            text = decode(tokens[max(0, end - width) : end])
            if any(stop in text for stop in params.stop_texts):
                ends.append(end)
                break
    return min(ends, default=None)


def likeliest(
    rows: Sequence[Iterable[tuple[int, float]] | None], length: int, k: int, name: str
) -> list[list[tuple[int, float]] | None]:
    """Of what was told at each position of a prompt the ``k`` most likely tokens, the lowest id first among equals.

    Raises:
        ServerError: fewer were told.
    """
    found = [sorted(dict(row or ()).items(), key=lambda pair: (-pair[1], pair[0]))[:k] for row in rows]
    if len(found) != length or any(len(pairs) < k for pairs in found[1:]):
        raise ServerError(f"{name} did not give the {k} most likely tokens at every position of a prompt")
    return [None, *found[1:]]


async def all_of(some: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; where one fails or the caller leaves, the others are cancelled first."""
    tasks = [asyncio.create_task(each) for each in some]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
