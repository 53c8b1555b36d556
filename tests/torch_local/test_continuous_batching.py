"""Requests join what is being written unless the weights may change in between; what is known is not read again."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible_train.adapters.torch_local import reading, sampler
from crucible_train.adapters.torch_local.backend import LocalBackend
from crucible_train.adapters.torch_local.sampler import Sampler
from crucible_train.types import AdamParams, CrossEntropy, Datum, ModelInput, SamplingParams

Engine = Callable[..., LocalBackend]
IDS = np.random.default_rng(7).integers(1, 61, 90)
GREEDY = SamplingParams(9, temperature=0.0)


def prompt(*parts: Any) -> ModelInput:
    return ModelInput.from_ints(np.concatenate(parts))


class Gate:
    """Holds the engine before given steps of its writing, and notes how many rows each step had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
        self.num_rows: list[int] = []
        self._closed = {number: threading.Event() for number in numbers}
        self._reached = threading.Event()
        step = Sampler._step

        def watched(own: Sampler) -> None:
            self.num_rows.append(len(own._rows))
            if (is_open := self._closed.get(len(self.num_rows))) is not None:
                self._reached.set()
                assert is_open.wait(20)
            step(own)

        monkeypatch.setattr(Sampler, "_step", watched)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 20)

    def open(self) -> None:
        """The first of those that are closed."""
        next(event for event in self._closed.values() if not event.is_set()).set()


def test_a_request_joins_what_is_being_written(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = engine()
    gate = Gate(monkeypatch, 3, 5)

    async def act() -> Any:
        first = asyncio.create_task(backend.sample(prompt(IDS[:30]), 2, GREEDY))
        await gate.reached()
        second = asyncio.create_task(backend.sample(prompt(IDS[40:60]), 1, GREEDY))
        scored = asyncio.create_task(backend.compute_logprobs(prompt(IDS[:10])))
        await asyncio.sleep(0)
        gate.open()
        assert len(await scored) == 10
        assert not second.done()
        gate.open()
        return await first, await second

    first, second = asyncio.run(act())
    assert gate.num_rows == [2, 2, 2, *[3] * 5, *[1] * 3]
    for answers, ids in ((first, IDS[:30]), (second, IDS[40:60])):
        expected = asyncio.run(engine().sample(prompt(ids), len(answers), GREEDY))
        assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]


VERBS: dict[str, Callable[[LocalBackend, Datum], Any]] = {
    "forward_backward": lambda backend, datum: backend.forward_backward([datum], CrossEntropy()),
    "forward": lambda backend, datum: backend.forward([datum], CrossEntropy()),
    "optim_step": lambda backend, datum: backend.optim_step(AdamParams(learning_rate=0.05)),
    "save_state": lambda backend, datum: backend.save_state("state"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_request_passes_a_call_that_was_made_before_it(
    verb: str, engine: Engine, datum: Callable[..., Datum], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while the engine is writing what was asked before that call."""
    backend = engine()
    asyncio.run(backend.forward_backward([datum(IDS)], CrossEntropy()))
    gate = Gate(monkeypatch, 3)

    async def act() -> Any:
        first = asyncio.create_task(backend.sample(prompt(IDS[:30]), 2, GREEDY))
        await gate.reached()
        joined = asyncio.create_task(backend.sample(prompt(IDS[:30]), 1, SamplingParams(7, 0.0)))
        await asyncio.sleep(0)
        called = asyncio.create_task(VERBS[verb](backend, datum(IDS)))
        await asyncio.sleep(0)
        late = asyncio.create_task(backend.sample(prompt(IDS[:30]), 1, GREEDY))
        await asyncio.sleep(0.01)
        gate.open()
        return [await task for task in (first, joined, called, late)]

    (first, *_), _, _, (late,) = asyncio.run(act())
    assert gate.num_rows == [2, 2, 2, *[3] * 5, 1, *[1] * 8]
    assert np.allclose(late.logprobs, first.logprobs, atol=1e-4) == (verb != "optim_step")


@pytest.mark.parametrize("where", ["read", "score", "_step"])
def test_whoever_waits_is_told_of_a_failure(where: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = engine()

    def failing(*_: Any) -> Any:
        raise ZeroDivisionError("on purpose")

    async def ask() -> Any:
        asked = (backend.sample(prompt(IDS[:30]), 2, GREEDY), backend.compute_logprobs(prompt(IDS[:9])))
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler if where == "_step" else sampler, where, failing)
        written, scored = asyncio.run(ask())
        assert isinstance(written, ZeroDivisionError)
        assert isinstance(scored, ZeroDivisionError) == (where == "score")
    written, scored = asyncio.run(ask())
    assert [len(answer.tokens) for answer in written] == [9, 9]
    assert len(scored) == 9


def test_the_event_loop_stays_free(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = engine()
    gate = Gate(monkeypatch, 2)

    async def act() -> None:
        task = asyncio.create_task(backend.sample(prompt(IDS[:30]), 2, GREEDY))
        await gate.reached()
        assert not task.done()
        gate.open()
        assert len(await task) == 2

    asyncio.run(act())


REQUEST = st.tuples(
    st.integers(0, 5),  # which prompt
    st.integers(1, 3),  # samples
    st.integers(1, 12),  # limit
    st.sampled_from([0.0, 1.0, 2.0]),
    st.integers(0, 4),  # how long it waits before it asks
)
MANY = [IDS[:1], IDS[:20], IDS[:47], np.append(IDS[:20], IDS[60:85]), IDS[50:], IDS[:48]]


@pytest.fixture
def one_by_one(engine: Engine) -> Callable[..., Any]:
    alone = engine("qwen3")
    answers: dict[Any, Any] = {}

    def ask(which: int, num: int, params: SamplingParams) -> Any:
        key = (which, num, params)
        if key not in answers:
            found = []
            for sample in range(num):
                alone._sampler.forget()
                found.append(asyncio.run(alone.sample(prompt(MANY[which]), sample + 1, params))[sample])
            answers[key] = found
        return answers[key]

    return ask


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(REQUEST, min_size=1, max_size=8), limit=st.sampled_from([20_000, 60_000, 1 << 29]))
def test_whenever_requests_come_they_are_answered_as_if_alone(
    requests: list[Any], limit: int, engine: Engine, one_by_one: Callable[..., Any]
) -> None:
    backend = engine("qwen3")

    async def ask(number: int, which: int, num: int, most: int, temperature: float, wait: int) -> Any:
        await asyncio.sleep(wait * 0.002)
        params = SamplingParams(most, temperature=temperature, seed=number % 2, stop_token_ids=(3, 5, 7, 11, 13))
        return which, num, params, await backend.sample(prompt(MANY[which]), num, params)

    async def act() -> Any:
        return await asyncio.gather(*(ask(number, *request) for number, request in enumerate(requests)))

    usual = sampler.MAX_CACHE_BYTES
    sampler.MAX_CACHE_BYTES = limit
    try:
        found = asyncio.run(act())
    finally:
        sampler.MAX_CACHE_BYTES = usual
        asyncio.run(backend.close())
    for which, num, params, answers in found:
        for answer, expected in zip(answers, one_by_one(which, num, params), strict=True):
            assert (answer.tokens, answer.stop_reason) == (expected.tokens, expected.stop_reason)
            np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=1e-4)


# What is known -------------------------------------------------------------------------------------------------------


def prefilled(backend: LocalBackend, call: Any) -> tuple[Any, int]:
    before = backend.sampler_stats().prefilled_tokens
    found = asyncio.run(call)
    return found, backend.sampler_stats().prefilled_tokens - before


@pytest.mark.parametrize(("num", "precision"), [(1, "float32"), (8, "float32"), (8, "bfloat16")])
def test_a_conversation_goes_on_from_what_is_known(num: int, precision: str, engine: Engine) -> None:
    backend, fresh = engine(precision=precision), engine(precision=precision)
    params = SamplingParams(24, temperature=1.0, seed=3)
    answers, read = prefilled(backend, backend.sample(prompt(IDS[:40]), num, params))
    assert read == 40
    for answer in answers:
        second = np.concatenate([IDS[:40], answer.tokens, IDS[50:60]])
        (found,), read = prefilled(backend, backend.sample(prompt(second), 1, GREEDY))
        assert read == 11  # the last token that was written was never read
        (expected,), read = prefilled(fresh, fresh.sample(prompt(second), 1, GREEDY))
        fresh._sampler.forget()
        assert read == 74
        if precision == "float32":
            assert found.tokens == expected.tokens
            np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
        third = np.concatenate([second, found.tokens, IDS[:30]])
        assert prefilled(backend, backend.sample(prompt(third), 1, GREEDY))[1] == 30 + 1 + 8


def test_samples_and_prompts_share_what_they_have_in_common(engine: Engine) -> None:
    backend = engine()

    async def act() -> None:
        await asyncio.gather(*(backend.sample(prompt(IDS[:40], [n, n + 1]), 4, GREEDY) for n in range(5)))

    _, read = prefilled(backend, act())
    assert read == 40 + 5 * 2
    assert backend.sampler_stats().reused_tokens == 20 * 42 - read
    assert prefilled(backend, backend.sample(prompt(IDS[:40], [2, 3]), 2, GREEDY))[1] == 0
    assert prefilled(backend, backend.sample(prompt(IDS[:31]), 1, GREEDY))[1] == 1
    assert prefilled(backend, backend.sample(prompt(IDS[:31]), 1, GREEDY))[1] == 0
    assert prefilled(backend, backend.sample(prompt(IDS[:31], [1, 2, 3]), 1, GREEDY))[1] == 3
    assert prefilled(backend, backend.sample(prompt([60], IDS[:31]), 1, GREEDY))[1] == 32


def test_a_prompt_is_read_the_same_in_pieces(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = engine("qwen3"), engine("qwen3")
    many = [prompt(IDS[:60], [n]) for n in range(6)] + [prompt(IDS[n:]) for n in range(4)]

    async def act(backend: LocalBackend) -> Any:
        return await asyncio.gather(*(backend.sample(one, 2, GREEDY) for one in many))

    expected, read = prefilled(whole, act(whole))
    assert read == 90 + 6 + 89 + 88 + 87
    monkeypatch.setattr(reading, "MAX_TOKENS", 70)
    found, read = prefilled(pieces, act(pieces))
    assert read == 90 + 6 + 89 + 88 + 87
    for one, other in zip(found, expected, strict=True):
        assert [answer.tokens for answer in one] == [answer.tokens for answer in other]


def test_nothing_is_known_once_the_weights_have_changed(engine: Engine, datum: Callable[..., Datum]) -> None:
    backend = engine(rank=2)

    async def look() -> Any:
        return await backend.sample(prompt(IDS[:40]), 2, SamplingParams(20, temperature=0.0))

    async def step() -> None:
        await backend.forward_backward([datum(IDS)], CrossEntropy())
        await backend.optim_step(AdamParams(learning_rate=0.05))

    saved = asyncio.run(backend.save_state("first"))
    first, read = prefilled(backend, look())
    assert read == 40
    assert prefilled(backend, look())[1] == 0
    asyncio.run(step())
    trained, read = prefilled(backend, look())
    assert read == 40
    assert trained != first
    asyncio.run(backend.load_state(saved))
    again, read = prefilled(backend, look())
    assert read == 40
    assert again == first


def test_no_more_is_kept_than_the_limit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_KNOWN_BYTES", 40_000)
    backend = engine()
    known = backend._sampler._known
    for start in range(12):
        asyncio.run(backend.sample(prompt(np.roll(IDS, start * 7)), 2, SamplingParams(20)))
        assert known.num_bytes <= 40_000
        assert known.num_bytes == sum(node.num_bytes for node in known._nodes)
    assert prefilled(backend, backend.sample(prompt(np.roll(IDS, 11 * 7)), 1, GREEDY))[1] == 0
    assert prefilled(backend, backend.sample(prompt(IDS), 1, GREEDY))[1] == 90


def test_what_was_done_is_counted(engine: Engine) -> None:
    backend = engine()
    asyncio.run(backend.sample(prompt(IDS[:40]), 3, GREEDY))
    stats = backend.sampler_stats()
    assert (stats.prefilled_tokens, stats.reused_tokens, stats.sampled_tokens, stats.steps) == (40, 80, 27, 8)
    assert stats.seconds > 0
