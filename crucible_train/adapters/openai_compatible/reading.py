"""From a server's answer to tokens, held to what the port promises."""

from crucible_train.adapters.openai_compatible.answers import Choice, Completion
from crucible_train.adapters.openai_compatible.dialects import Dialect
from crucible_train.adapters.served import end_of, finished
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
        finished(tokens, logprobs, choice.finish_reason, params, dialect.name, tokenizer)
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
    if choice.finish_reason == "stop" and end_of(tokens, params, tokenizer.decode) is None:
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
    return finished(tokens[: params.max_tokens], None, choice.finish_reason, params, dialect.name, tokenizer)
