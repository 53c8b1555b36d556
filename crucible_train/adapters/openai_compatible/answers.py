"""What servers answer, checked. Fields that nothing here reads are left aside."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crucible_train.errors import ServerError

T = TypeVar("T", bound=BaseModel)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class TokenLogprob(_Answer):
    """A token and its log-probability, as llama.cpp and vLLM's prompt log-probabilities write them."""

    id: int | None = None
    logprob: float


class Logprobs(_Answer):
    """Log-probabilities of the tokens of an answer: a list of numbers, or in llama.cpp's form a list of tokens."""

    token_logprobs: list[float | None] | None = None
    content: list[TokenLogprob] | None = None


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
