"""The sampling client: requests of bounded number, put in the server's dialect."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from crucible_train.adapters.openai_compatible import llama_cpp, sglang
from crucible_train.adapters.openai_compatible.answers import Choice, Completion
from crucible_train.adapters.openai_compatible.asking import complete
from crucible_train.adapters.openai_compatible.probe import Server, find_server
from crucible_train.adapters.openai_compatible.reading import read_samples, read_text
from crucible_train.adapters.openai_compatible.text import exact_text
from crucible_train.adapters.openai_compatible.transport import Transport
from crucible_train.adapters.served import all_of, is_unchanged, likeliest, prompt_ids, sample_seed
from crucible_train.config.server import ServerConfig
from crucible_train.errors import ConfigError, ServerError
from crucible_train.ports import Tokenizer
from crucible_train.types import ModelInput, SamplingParams, TokensWithLogprobs

_GREEDY_ONE = SamplingParams(1, temperature=0.0)


@dataclass(slots=True, eq=False)
class _Link:
    """What belongs to one event loop: the places that requests wait for."""

    loop: asyncio.AbstractEventLoop
    finding: asyncio.Lock = field(default_factory=asyncio.Lock)
    places: asyncio.Semaphore | None = None


class OpenAICompatibleSampler:
    """Samples from the model of a server. ``tokenizer`` must be the server's own.

    The server is asked once what it is; ``report`` gets the line that says so. How far a seed decides is the server's
    business: vLLM and llama.cpp draw from the request's own generator, but logits may differ by rounding with what else
    is in the batch; SGLang heeds it in its deterministic mode only.

    Args:
        config: where the server is and how it is asked.
        tokenizer: turns ids into text and back, for stop texts and for servers that take text only.
        report: takes one line on what was found.
        sleep: waits between tries.

    Raises:
        ConfigError: the environment variable of the key is not set, or holds what no header can.
    """

    def __init__(
        self,
        config: ServerConfig,
        tokenizer: Tokenizer,
        report: Callable[[str], None],
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        """Ask nothing yet."""
        self._config = config
        self._tokenizer = tokenizer
        self._report = report
        self._transport = Transport(config, _key(config.api_key_env), sleep)
        self._server: Server | None = None
        self._link: _Link | None = None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer it was given."""
        return self._tokenizer

    async def sample(
        self, prompt: ModelInput, num_samples: int, params: SamplingParams
    ) -> Sequence[TokensWithLogprobs]:
        """Write ``num_samples`` continuations of ``prompt``.

        Raises:
            InputError: the prompt or the parameters cannot be put to this server.
            ServerError: the server gives no answer that can be used.
        """
        ids = prompt_ids(prompt, self._tokenizer)
        if num_samples == 0:
            return []
        server, link = await self._found()
        dialect = server.dialect
        if dialect.takes_ids and not server.has_raw_logprobs and not is_unchanged(params):
            raise ConfigError(
                f"temperature: {dialect.name} as started gives log-probabilities after temperature and filters; sample "
                "with temperature 1, top_p 1, top_k 0 and min_p 0, or start it so that it returns the model's own"
            )
        body: dict[str, Any] = {
            "prompt": ids if dialect.takes_ids else exact_text(self._tokenizer, ids)
        } | dialect.fields(params)
        if dialect.takes_n:
            body |= {"n": num_samples, "seed": sample_seed(params, 0)}
            return read_samples(await self._ask(link, body), num_samples, params, dialect, self._tokenizer)

        async def one(index: int) -> TokensWithLogprobs:
            completion = await self._ask(link, body | {"seed": sample_seed(params, index)})
            if dialect.takes_ids:
                return read_samples(completion, 1, params, dialect, self._tokenizer)[0]
            mode = self._config.text_answers
            assert mode != "refuse"
            return read_text(completion, len(ids), params, dialect, self._tokenizer, mode)

        return await all_of(one(index) for index in range(num_samples))

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        """The log-probability of each token given those before it; None for the first.

        Raises:
            ConfigError: this server scores no prompts.
            ServerError: the server gives no answer that can be used.
        """
        ids = prompt_ids(model_input, self._tokenizer)
        server, link = await self._found()
        scoring = _scoring(server)
        if scoring == "forced":
            return [None, *await all_of(self._score(link, ids[:end], ids[end]) for end in range(1, len(ids)))]
        more = {"prompt_logprobs": 0} if scoring == "prompt_logprobs" else {"echo": True}
        choice = await self._read(server, link, ids, more)
        if scoring == "prompt_logprobs":
            rows = choice.prompt_logprobs or []
            pairs = zip(ids, rows, strict=False)
            found: list[float | None] = [row[token].logprob if row and token in row else None for token, row in pairs]
        else:
            found = list(choice.logprobs.token_logprobs if choice.logprobs else [])[: len(ids)]
        if len(found) != len(ids) or None in found[1:]:
            raise ServerError(f"{server.dialect.name} did not give the log-probability of every token of a prompt")
        return [None, *found[1:]]

    async def next_logprobs(self, prompt: ModelInput, tokens: Sequence[int]) -> Sequence[float]:
        """The log-probability of each of some tokens as the one after ``prompt``.

        Raises:
            ConfigError: this server scores no prompts.
            ServerError: the server gives no answer that can be used.
        """
        server, link = await self._found()
        inputs = [prompt_ids(prompt.append_ints([token]), self._tokenizer) for token in tokens]
        if _scoring(server) == "forced":
            return await all_of(self._score(link, before, token) for *before, token in inputs)
        return await all_of(self._last(ids) for ids in inputs)

    async def _last(self, ids: Sequence[int]) -> float:
        last = (await self.compute_logprobs(ModelInput.from_ints(ids)))[-1]
        assert last is not None
        return last

    async def top_logprobs(self, model_input: ModelInput, k: int) -> Sequence[Sequence[tuple[int, float]] | None]:
        """The ``k`` most likely tokens at each position given those before it, as (id, log-probability).

        vLLM refuses a ``k`` above what it was started with (``--max-logprobs``, 20 by default).

        Raises:
            ConfigError: this server scores no prompts.
            ServerError: the server gives no answer that can be used.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, not {k}")
        ids = prompt_ids(model_input, self._tokenizer)
        server, link = await self._found()
        rows: Sequence[Iterable[tuple[int, float]] | None]
        match _scoring(server):
            case "forced":
                rows = [None, *await all_of(self._top(link, ids[:end], k) for end in range(1, len(ids)))]
            case "echo":
                assert link.places is not None
                async with link.places:
                    rows = await sglang.top(self._transport, ids, k)
            case "prompt_logprobs":
                told = (await self._read(server, link, ids, {"prompt_logprobs": k})).prompt_logprobs or []
                rows = [None if row is None else [(t, each.logprob) for t, each in row.items()] for row in told]
        return likeliest(rows, len(ids), min(k, self._tokenizer.vocab_size), server.dialect.name)

    async def _top(self, link: _Link, before: list[int], k: int) -> list[tuple[int, float]]:
        assert link.places is not None
        async with link.places:
            return await llama_cpp.top(self._transport, before, k, self._tokenizer.vocab_size)

    async def _read(self, server: Server, link: _Link, ids: list[int], more: dict[str, Any]) -> Choice:
        """What is told of a prompt after which one token is written."""
        body = {"prompt": ids, "seed": 0} | server.dialect.fields(_GREEDY_ONE) | more
        return (await self._ask(link, body)).choices[0]

    async def _score(self, link: _Link, before: list[int], token: int) -> float:
        assert link.places is not None
        async with link.places:
            return await llama_cpp.score(self._transport, before, token, self._tokenizer.vocab_size)

    async def _ask(self, link: _Link, body: dict[str, Any]) -> Completion:
        assert link.places is not None
        assert self._server is not None
        async with link.places:
            body = {"model": self._server.model} | body
            return await complete(self._transport, self._server.dialect, body, self._tokenizer.vocab_size)

    async def _found(self) -> tuple[Server, _Link]:
        """The server, asked on first use, and the places of this event loop."""
        loop = asyncio.get_running_loop()
        if self._link is None or self._link.loop is not loop:
            self._link = _Link(loop)
        link = self._link
        async with link.finding:
            if self._server is None:
                self._server = await find_server(self._transport, self._config, self._tokenizer)
                self._report(self._server.described())
            if link.places is None:
                is_serial = self._server.dialect.is_serial
                link.places = asyncio.Semaphore(1 if is_serial else self._config.max_concurrency)
        return self._server, link


def _scoring(server: Server) -> Literal["prompt_logprobs", "echo", "forced"]:
    """How the log-probabilities of a prompt are had."""
    scoring = server.dialect.scoring
    if scoring is None:
        raise ConfigError(f"server: {server.dialect.name} gives no log-probabilities of a prompt")
    return scoring


def _key(variable: str) -> str | None:
    if not variable:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"api_key_env: the environment variable {variable} is not set")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"api_key_env: the environment variable {variable} does not hold a key")
    return key
