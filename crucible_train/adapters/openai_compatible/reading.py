"""From a server's answer to tokens, held to what the port promises."""

from collections.abc import Callable, Iterable, Sequence

from crucible_train.adapters.openai_compatible.answers import Choice, Completion
from crucible_train.adapters.openai_compatible.dialects import Dialect
from crucible_train.errors import ServerError
from crucible_train.ports import Tokenizer
from crucible_train.types import SamplingParams, TokensWithLogprobs


def read_samples(
    completion: Completion, num: int, params: SamplingParams, dialect: Dialect, tokenizer: Tokenizer
) -> list[TokensWithLogprobs]:
    """The samples of an answer that holds token ids.

    Raises:
        ServerError: it is not what was asked for.
    """
    choices = sorted(completion.choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(num)):
        raise ServerError(f"{dialect.name} answered with {len(choices)} samples where {num} were asked for")
    written = [ids_and_logprobs(choice, dialect) for choice in choices]
    counted = sum(len(tokens) for tokens, _ in written)
    if completion.usage is not None and completion.usage.completion_tokens != counted:
        raise ServerError(
            f"{dialect.name} counts {completion.usage.completion_tokens} tokens but returned {counted} ids"
        )
    return [
        _finished(tokens, logprobs, choice.finish_reason, params, dialect, tokenizer)
        for choice, (tokens, logprobs) in zip(choices, written, strict=True)
    ]


def ids_and_logprobs(choice: Choice, dialect: Dialect) -> tuple[list[int], list[float]]:
    """The ids that were sampled and the log-probability of each.

    Raises:
        ServerError: they are missing, or not as many of one as of the other.
    """
    if not choice.token_ids:
        raise ServerError(f"{dialect.name} returned no token ids: a server this old cannot be sampled from")
    logprobs = [value for value in (choice.logprobs.token_logprobs if choice.logprobs else []) if value is not None]
    if len(logprobs) != len(choice.token_ids):
        raise ServerError(
            f"{dialect.name} returned {len(choice.token_ids)} tokens but {len(logprobs)} log-probabilities"
        )
    return choice.token_ids, logprobs


def likeliest(
    rows: Sequence[Iterable[tuple[int, float]] | None], length: int, k: int, dialect: Dialect
) -> list[list[tuple[int, float]] | None]:
    """Of what was told at each position of a prompt the ``k`` most likely tokens, the lowest id first among equals.

    Raises:
        ServerError: fewer were told.
    """
    found = [sorted(dict(row or ()).items(), key=lambda pair: (-pair[1], pair[0]))[:k] for row in rows]
    if len(found) != length or any(len(pairs) < k for pairs in found[1:]):
        raise ServerError(f"{dialect.name} did not give the {k} most likely tokens at every position of a prompt")
    return [None, *found[1:]]


def read_text(
    completion: Completion,
    prompt_length: int,
    params: SamplingParams,
    dialect: Dialect,
    tokenizer: Tokenizer,
    mode: str,
) -> TokensWithLogprobs:
    """The one sample of an answer that is text: its ids are those the text is encoded to.

    ``mode`` is as in ``ServerConfig.text_answers``.

    Raises:
        ServerError: the server read another prompt than was sent, or wrote other tokens than the text gives.
    """
    (choice, *_), usage = completion.choices, completion.usage
    if usage is None or usage.prompt_tokens != prompt_length:
        read = "unknown" if usage is None else usage.prompt_tokens
        raise ServerError(f"{dialect.name} read a prompt of {read} tokens where {prompt_length} were sent")
    tokens = [int(token) for token in tokenizer.encode(choice.text)]
    if choice.finish_reason == "stop" and _end(tokens, params, tokenizer.decode) is None:
        # control tokens are left out of the text
        ends = [token for token in params.stop_token_ids if token in tokenizer.control_tokens.values()]
        if len(ends) != 1:
            raise ServerError(f"{dialect.name} stopped, but its text does not say at which of stop_token_ids {ends}")
        tokens += ends
    if mode == "counted" and len(tokens) != usage.completion_tokens:
        raise ServerError(
            f"{dialect.name} wrote {usage.completion_tokens} tokens, but their text is encoded as {len(tokens)}: "
            "which they were cannot be known; text_answers=any takes them all the same"
        )
    return _finished(tokens[: params.max_tokens], None, choice.finish_reason, params, dialect, tokenizer)


def _finished(
    tokens: list[int],
    logprobs: list[float] | None,
    finish_reason: str | None,
    params: SamplingParams,
    dialect: Dialect,
    tokenizer: Tokenizer,
) -> TokensWithLogprobs:
    if len(tokens) > params.max_tokens:
        raise ServerError(f"{dialect.name} wrote {len(tokens)} tokens where {params.max_tokens} were allowed")
    if tokens and not 0 <= min(tokens) <= max(tokens) < tokenizer.vocab_size:
        raise ServerError(f"{dialect.name} wrote a token that {tokenizer.name} does not have: is it the same model?")
    end = _end(tokens, params, tokenizer.decode)
    if end is not None:
        return TokensWithLogprobs(tuple(tokens[:end]), None if logprobs is None else tuple(logprobs[:end]), "stop")
    if finish_reason == "length":
        return TokensWithLogprobs(tuple(tokens), None if logprobs is None else tuple(logprobs), "length")
    if finish_reason == "stop":
        last = f" at token {tokens[-1]}" if tokens else ""
        raise ServerError(f"{dialect.name} stopped{last}, which no stop token or text asks for: add it to them")
    raise ServerError(f"{dialect.name} did not finish an answer: {finish_reason}")


def _end(tokens: Sequence[int], params: SamplingParams, decode: Callable[[Sequence[int]], str]) -> int | None:
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
