"""What a server is and whether it keeps what its kind promises, asked once."""

from collections.abc import Mapping
from dataclasses import dataclass

from crucible_train.adapters.openai_compatible.answers import Model, Models, read
from crucible_train.adapters.openai_compatible.asking import complete
from crucible_train.adapters.openai_compatible.dialects import DIALECTS, Dialect
from crucible_train.adapters.openai_compatible.reading import ids_and_logprobs
from crucible_train.adapters.openai_compatible.transport import Refused, Transport
from crucible_train.config.server import ServerConfig
from crucible_train.errors import ConfigError
from crucible_train.ports import Tokenizer
from crucible_train.types import SamplingParams

_OWNERS: Mapping[str, str] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
_MAX_DIFFERENCE = 0.02


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was asked.

    Attributes:
        dialect: how it is asked.
        model: the model's name there.
        has_raw_logprobs: whether log-probabilities are the model's own at any temperature; else only at temperature 1
            with every token kept.
    """

    dialect: Dialect
    model: str
    has_raw_logprobs: bool

    def described(self) -> str:
        """What it is and can do, in one line."""
        note = "" if self.has_raw_logprobs else "; its log-probabilities are the model's own at temperature 1 only"
        return f"{self.model} at {self.dialect.described()}{note}"


async def find_server(transport: Transport, config: ServerConfig, tokenizer: Tokenizer) -> Server:
    """Ask which kind of server and model there is, and sample two tokens to see that it keeps its kind's promises.

    Raises:
        ConfigError: it is of no kind that is known, or lacks what is needed.
        ServerError: it does not answer.
    """
    models = [] if config.model and config.server != "auto" else await _models(transport)
    model = config.model or _only(models)
    kind = config.server
    if kind == "auto":
        owners = {_OWNERS.get(each.owned_by or "") for each in models} - {None}
        kind = owners.pop() if len(owners) == 1 else await _by_its_refusal(transport, model)  # type: ignore[assignment]
    dialect = DIALECTS[kind]
    if not dialect.takes_ids:
        if config.text_answers == "refuse":
            raise ConfigError(
                f"server: {dialect.name} returns text without token ids or log-probabilities, which is no use for "
                "training; to evaluate with it set text_answers to counted or any"
            )
        return Server(dialect, model, has_raw_logprobs=False)
    return Server(dialect, model, await _has_raw_logprobs(transport, dialect, model, tokenizer))


async def _models(transport: Transport) -> list[Model]:
    try:
        return read(Models, await transport.get("/v1/models")).data
    except Refused as error:
        if error.status in (401, 403):
            raise
        return []  # some servers have no list


def _only(models: list[Model]) -> str:
    if len(models) == 1:
        return models[0].id
    names = ", ".join(model.id for model in models[:10]) or "none"
    raise ConfigError(f"model: the server does not serve exactly one, so name it; it lists {names}")


async def _by_its_refusal(transport: Transport, model: str) -> str:
    """``transformers serve`` names no owner, but is alone in refusing fields it does not know, in these words."""
    try:
        await transport.post("/v1/completions", {"model": model, "prompt": ".", "max_tokens": 1, "crucible_probe": 1})
    except Refused as error:
        if error.status == 422 and "Unexpected fields in the request" in str(error):
            return "transformers"
    raise ConfigError(f"server: the server does not say what it is; name its kind: {', '.join(DIALECTS)}")


async def _has_raw_logprobs(transport: Transport, dialect: Dialect, model: str, tokenizer: Tokenizer) -> bool:
    """Whether the most likely token has the same log-probability at temperature 0 and at 2 with it alone kept."""
    prompt = [int(token) for token in tokenizer.encode("The")]
    found = []
    for params in (SamplingParams(1, temperature=0.0), SamplingParams(1, temperature=2.0, top_k=1)):
        body = {"model": model, "prompt": prompt, "seed": 0} | dialect.fields(params)
        completion = await complete(transport, dialect, body, tokenizer.vocab_size)
        (token, *_), (logprob, *_) = ids_and_logprobs(completion.choices[0], dialect)
        found.append((token, logprob))
    (greedy, raw), (kept, scaled) = found
    return greedy == kept and abs(raw - scaled) <= _MAX_DIFFERENCE
