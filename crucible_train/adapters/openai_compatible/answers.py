"""What servers answer, checked. Fields that nothing here reads are left aside."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crucible_train.errors import ServerError

T = TypeVar("T", bound=BaseModel)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class TokenLogprob(_Answer):
    """The log-probability of a token."""

    logprob: float


class Logprobs(_Answer):
    """Log-probabilities of the tokens of an answer."""

    token_logprobs: list[float | None]


class Choice(_Answer):
    """One sample."""

    index: int
    text: str
    finish_reason: str | None
    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: list[dict[int, TokenLogprob] | None] | None = None


class Usage(_Answer):
    """How many tokens the server counted."""

    prompt_tokens: int
    completion_tokens: int = 0


class Completion(_Answer):
    """The answer of ``/v1/completions``."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None


class NativeToken(_Answer):
    """A token of llama.cpp, with the likeliest ones where it was written."""

    id: int
    logprob: float
    top_logprobs: list["NativeToken"] = []


class NativeCompletion(_Answer):
    """The answer of llama.cpp's own ``/completion``.

    ``tokens`` are all that were written; ``completion_probabilities`` lacks those that end within a character.
    """

    tokens: list[int]
    completion_probabilities: list[NativeToken] = []
    stop_type: str
    tokens_predicted: int
    tokens_evaluated: int


class ScoredPrompt(_Answer):
    """What SGLang tells of a prompt: at each position log-probability, id and text of the likeliest tokens."""

    input_top_logprobs: list[list[tuple[float, int, str | None]] | None]


class NativeGeneration(_Answer):
    """The answer of SGLang's own ``/generate``."""

    meta_info: ScoredPrompt


class Model(_Answer):
    """One entry of ``/v1/models``."""

    id: str
    owned_by: str | None = None


class Models(_Answer):
    """The answer of ``/v1/models``."""

    data: list[Model]


def read(kind: type[T], value: Any) -> T:
    """The value as what it should be.

    Raises:
        ServerError: it is something else.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ServerError(f"the server's {kind.__name__.lower()} cannot be read: {where}: {first['msg']}") from None
