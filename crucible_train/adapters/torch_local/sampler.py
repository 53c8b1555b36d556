"""Writing with the weights that are being trained, no copy of them.

Every pass writes one token a row. Between passes finished rows leave and requests that wait enter, as far as the memory
for keys and values goes. Samples of one prompt share it, and what is already known of a prompt is not computed again.

Axes: B rows, P prompts, V vocabulary, X hidden width.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crucible_train.adapters.torch_local.cache import Prompt, RowCache, is_shared
from crucible_train.adapters.torch_local.choosing import Choices, Logits
from crucible_train.adapters.torch_local.inbox import Inbox
from crucible_train.adapters.torch_local.known import CACHE_DTYPE, KnownSequences, Node, Place, joined
from crucible_train.adapters.torch_local.loading import EngineModel
from crucible_train.adapters.torch_local.reading import read
from crucible_train.adapters.torch_local.scoring import ScoreRequest, score
from crucible_train.adapters.torch_local.stream import MIN_SHARED_TOKENS, Ints
from crucible_train.types import SamplerStats, SamplingParams, TokensWithLogprobs

# Keys and values of the rows being written, were all of them to reach their limits.
MAX_CACHE_BYTES = 512 << 20
# Those of sequences that are kept in case one goes on from them.
MAX_KNOWN_BYTES = 128 << 20
# A pass over more rows is hardly faster a row.
MAX_ROWS = 128


@dataclass(frozen=True, slots=True, eq=False)
class SampleRequest:
    """One answer that is asked for: the ``sample``-th to a prompt."""

    prompt_N: Ints
    sample: int
    params: SamplingParams
    future: Future[TokensWithLogprobs] = field(default_factory=Future)


Request = SampleRequest | ScoreRequest


@dataclass(slots=True, eq=False)
class _Row:
    """One answer that is being written.

    Attributes:
        request: what was asked for.
        node: its prompt, in the tree of what is known.
        columns: how many positions of the table it needs at its limit.
        uniform: a number in [0, 1) for each token.
        decode: gives the text of tokens.
        stops: the ids that end it.
        tokens: what is written.
        logprobs: of each token.
    """

    request: SampleRequest
    node: Node
    columns: int
    uniform: np.ndarray
    decode: Callable[[Sequence[int]], str]
    stops: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def stop_reason(self) -> Literal["stop", "length"] | None:
        """Why nothing more is written, or None."""
        if self.tokens and (self.tokens[-1] in self.stops or self._holds_stop_text()):
            return "stop"
        return "length" if len(self.tokens) >= self.request.params.max_tokens else None

    def _holds_stop_text(self) -> bool:
        """Whether the last tokens hold a stop text; a token is a byte of text at least, a character four at most."""
        stops = self.request.params.stop_texts
        if not stops:
            return False
        text = self.decode(self.tokens[-4 * max(map(len, stops)) - 1 :])
        return any(stop in text for stop in stops)


class Sampler:
    """Serves requests, in the engine's thread."""

    def __init__(self, model: EngineModel, decode: Callable[[Sequence[int]], str]) -> None:
        """``decode`` gives the text of tokens, for stop texts."""
        self._model = model
        self._decode = decode
        self._known = KnownSequences(MAX_KNOWN_BYTES)
        self._logits = Logits(model.head)
        self._waiting: deque[SampleRequest] = deque()
        self._entering: list[SampleRequest] = []
        self._rows: list[_Row] = []
        self._cache = self._new_cache()
        self._choices: Choices | None = None
        self._last_tick = 0.0
        self.stats = SamplerStats()

    def forget(self) -> None:
        """Drop all keys and values: they are those of other weights, or training needs the memory."""
        self._known.forget()
        self._logits = Logits(self._model.head)

    @torch.no_grad()
    def serve(self, inbox: Inbox[Request]) -> None:
        """Answer what is left in the inbox, until it is closed and all is answered, or nothing is left to do."""
        self._last_tick = time.perf_counter()
        scores: list[ScoreRequest] = []
        try:
            while self._rows or self._waiting or not inbox.close_if_empty():
                asked = inbox.take()
                scores = [request for request in asked if isinstance(request, ScoreRequest)]
                self._waiting.extend(request for request in asked if isinstance(request, SampleRequest))
                if scores:
                    score(self._model, scores)
                self._let_go()
                self._admit()
                if self._rows:
                    self._step()
        except BaseException as error:  # noqa: BLE001 - whoever waits for an answer gets it
            inbox.close()
            self._fail(error, [*scores, *inbox.take()])
        finally:
            self._cache = self._new_cache()
            self._known.shrink()
            self._tick()

    def _fail(self, error: BaseException, asked: Sequence[Request]) -> None:
        rows = [row.request for row in self._rows]
        requests: list[Request] = [*rows, *self._entering, *self._waiting, *asked]
        for some in (self._rows, self._entering, self._waiting):
            some.clear()
        self._known.forget()
        for request in requests:
            if not request.future.done() and request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)

    # Rows come and go -----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let requests that wait enter, in their order, as far as memory goes, and write the first token of each."""
        prompts: dict[bytes, list[SampleRequest]] = {}
        while self._waiting and self._fits(prompts):
            request = self._waiting.popleft()
            self._entering.append(request)
            prompts.setdefault(request.prompt_N.tobytes(), []).append(request)
        if not prompts:
            return
        groups = list(prompts.values())
        nodes, num_computed = read(self._model, self._known, [requests[0].prompt_N for requests in groups])
        num_asked = sum(request.prompt_N.size for requests in groups for request in requests)
        self._count(prefilled_tokens=num_computed, reused_tokens=num_asked - num_computed)
        first = len(self._rows)
        for requests, node in zip(groups, nodes, strict=True):
            self._known.use(node, len(requests))
            self._cache.enter(Prompt(joined(Place(node, node.end)), node.end), len(requests))
            own = 0 if is_shared(node.end, len(requests)) else node.end
            self._rows += [self._row(request, node, own) for request in requests]
        self._entering.clear()
        self._known.shrink()
        hidden_PX = torch.stack([node.hidden_X for node in nodes if node.hidden_X is not None])
        repeats = torch.tensor([len(requests) for requests in groups], device=hidden_PX.device)
        rows = self._rows[first:]
        choices = Choices.of([row.request.params for row in rows], hidden_PX.device)
        # each row overwrites its logits
        self._choose(rows, choices, self._logits.of(hidden_PX).repeat_interleave(repeats, dim=0))
        self._choices = None
        self._let_go()

    def _row(self, request: SampleRequest, node: Node, own: int) -> _Row:
        params = request.params
        draws = np.random.Generator(np.random.Philox(key=[params.seed, request.sample]))
        uniform = draws.random(params.max_tokens)
        return _Row(request, node, own + params.max_tokens, uniform, self._decode, frozenset(params.stop_token_ids))

    def _fits(self, entering: dict[bytes, list[SampleRequest]]) -> bool:
        """Whether one more request fits, were all rows to reach their limits."""
        request = self._waiting[0]
        num = len(self._rows) + sum(map(len, entering.values())) + 1
        if num == 1:
            return True
        if num > MAX_ROWS:
            return False
        groups = dict(entering)
        key = request.prompt_N.tobytes()
        groups[key] = [*groups.get(key, []), request]
        columns, shared = max((row.columns for row in self._rows), default=0), self._cache.num_shared
        for requests in groups.values():
            length, most = requests[0].prompt_N.size, max(request.params.max_tokens for request in requests)
            if is_shared(length, len(requests)):
                shared += length
                length = 0
            columns = max(columns, length + most)
        return (num * columns + shared) * self._position_bytes() <= MAX_CACHE_BYTES

    def _position_bytes(self) -> int:
        config = self._model.causal.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(config.num_hidden_layers * 2 * heads * width * CACHE_DTYPE.itemsize)

    def _let_go(self) -> None:
        """Answer finished rows and drop them, and those whose caller has gone."""
        self._tick()  # whoever is answered may look at the counts
        self._waiting = deque(request for request in self._waiting if not request.future.cancelled())
        before = len(self._rows)
        for index in reversed(range(before)):
            row = self._rows[index]
            reason = row.stop_reason
            if reason is None and not row.request.future.cancelled():
                continue
            self._keep(index)
            self._known.use(row.node, -1)
            self._cache.leave(index)
            self._rows[index] = self._rows[-1]
            self._rows.pop()
            if reason is not None and row.request.future.set_running_or_notify_cancel():
                answer = TokensWithLogprobs(tuple(row.tokens), tuple(row.logprobs), reason)
                row.request.future.set_result(answer)
        if len(self._rows) < before:
            self._choices = None
            self._known.shrink()

    def _keep(self, index: int) -> None:
        """Keep the keys and values of what a row has written: a later prompt may go on from there."""
        row = self._rows[index]
        num = len(row.tokens) - 1  # the last token was never read
        if num >= MIN_SHARED_TOKENS and self._model.joins_segments:
            layers = self._cache.written(index, row.node.end)
            self._known.add(Place(row.node, row.node.end), np.array(row.tokens[:num], np.int64), layers)

    # Passes ---------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Write one token a row."""
        device = self._model.causal.device
        cache, rows = self._cache, self._rows
        tokens = torch.tensor([[row.tokens[-1]] for row in rows], device=device)
        cache.begin_step()
        with self._model.attention.using(cache):
            output = self._model.decoder(
                input_ids=tokens,
                position_ids=cache.positions[:, None].to(device),
                past_key_values=cache,
                use_cache=True,
            )
        cache.end_step()
        if self._choices is None:
            self._choices = Choices.of([row.request.params for row in rows], device)
        self._choose(rows, self._choices, self._logits.of(output.last_hidden_state[:, -1]))
        self._count(steps=1)

    def _choose(self, rows: Sequence[_Row], choices: Choices, logits_BV: Tensor) -> None:
        """Write one token a row and its log-probability at temperature 1."""
        uniform_B = torch.tensor([row.uniform[len(row.tokens)] for row in rows], dtype=torch.float64)
        tokens, logprobs = choices.draw(logits_BV, uniform_B.to(logits_BV.device))
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
        self._count(sampled_tokens=len(rows))

    def _new_cache(self) -> RowCache:
        return RowCache(CACHE_DTYPE, self._model.causal.device)

    def _tick(self) -> None:
        """Count the time since the last tick."""
        now = time.perf_counter()
        self._count(seconds=now - self._last_tick)
        self._last_tick = now

    def _count(self, **more: float) -> None:
        stats = self.stats
        self.stats = replace(stats, **{name: getattr(stats, name) + value for name, value in more.items()})
