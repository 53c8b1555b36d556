"""What every training adapter keeps."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train import wiring
from crucible_train.errors import CheckpointError, TrainingError
from crucible_train.ports import SamplingClient, Tokenizer, TrainingClient
from crucible_train.types import (
    AdamParams,
    CrossEntropy,
    CustomLoss,
    Datum,
    ModelInput,
    SamplingParams,
    TensorData,
)

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "full": {"rank": None},
    "lora with a head": {"rank": 2, "has_head": True},
    "full with a head": {"rank": None, "has_head": True},
}
WITH_DROPOUT = {"lora with dropout": {"rank": 2, "dropout": 0.3}}
ADAM = AdamParams(learning_rate=0.02, weight_decay=0.1, grad_clip_norm=1.0)
Make = Callable[..., TrainingClient]


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def make(request, local_client: Make) -> Make:
    """Clients of one kind over the same states."""
    return lambda **kind: local_client(**(request.param | kind))


@pytest.fixture(params=[*KINDS.values(), *WITH_DROPOUT.values()], ids=[*KINDS, *WITH_DROPOUT])
def make_any(request, local_client: Make) -> Make:
    """As ``make``, with adapters that draw random numbers while they train among the kinds."""
    return lambda: local_client(**request.param)


def batch(seed: int = 0, num: int = 5) -> list[Datum]:
    draw = np.random.default_rng(seed)
    return [datum(draw.integers(3, 40000, int(draw.integers(4, 30)))) for _ in range(num)]


def datum(tokens: np.ndarray, weights: Any = None) -> Datum:
    weights = np.linspace(0.5, 2, tokens.size - 1) if weights is None else weights
    inputs = {"target_tokens": TensorData(tokens[1:], "int64"), "weights": TensorData(weights, "float32")}
    return Datum(ModelInput.from_ints(tokens[:-1]), inputs)


async def steps(client: TrainingClient, num: int, seed: int = 0) -> list[Any]:
    """Train; everything that is reported, to the bit."""
    told: list[Any] = []
    for step in range(num):
        output = await client.forward_backward(batch(seed + step), CrossEntropy())
        told += [output.loss, *(x.tobytes() for x in output.logprobs_D), dict(await client.optim_step(ADAM))]
    return [*told, *await bits(client)]


async def bits(client: TrainingClient, datums: Sequence[Datum] | None = None) -> list[bytes]:
    """What the weights predict."""
    output = await client.forward(batch(99) if datums is None else datums, CrossEntropy())
    return [x.tobytes() for x in output.logprobs_D]


def test_losses_are_sums_over_tokens(make: Make) -> None:
    client = make()

    async def act() -> None:
        datums = batch()
        whole = await client.forward(datums, CrossEntropy())
        by_hand = -sum(
            float(d.loss_fn_inputs["weights"].to_numpy() @ x) for d, x in zip(datums, whole.logprobs_D, strict=True)
        )
        assert whole.loss == pytest.approx(by_hand, rel=1e-5)
        parts = [(await client.forward([d], CrossEntropy())).loss for d in datums]
        assert whole.loss == pytest.approx(sum(parts), rel=1e-5)
        assert (await client.forward(datums * 3, CrossEntropy())).loss == pytest.approx(3 * whole.loss, rel=1e-5)
        assert [x.shape for x in whole.logprobs_D] == [(d.num_tokens,) for d in datums]
        assert all(x.dtype == np.float32 for x in whole.logprobs_D)

    asyncio.run(act())


def test_positions_without_weight_have_log_probability_zero(make: Make) -> None:
    tokens, weights = np.arange(10, 20), np.zeros(9)
    weights[[3, 6]] = 1.0
    output = asyncio.run(make().forward([datum(tokens, weights), datum(tokens, np.zeros(9))], CrossEntropy()))
    assert np.flatnonzero(output.logprobs_D[0]).tolist() == [3, 6]
    assert not output.logprobs_D[1].any()


def test_gradients_gather_until_the_step_that_uses_and_clears_them(make: Make) -> None:
    whole, split = make(), make()

    async def act() -> None:
        for seed in range(3):
            datums = batch(seed, 6)
            await whole.forward_backward(datums, CrossEntropy())
            for part in (datums[:1], datums[1:4], datums[4:]):
                await split.forward_backward(part, CrossEntropy())
                await split.forward(batch(50), CrossEntropy())
            one, other = await whole.optim_step(ADAM), await split.optim_step(ADAM)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        for x, y in zip(*[(await c.forward(batch(9), CrossEntropy())).logprobs_D for c in (whole, split)], strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3)

    asyncio.run(act())


def test_the_norm_is_that_before_clipping(make: Make) -> None:
    client = make()

    async def norm(clip: float) -> float:
        await client.forward_backward(batch(), CrossEntropy())
        return (await client.optim_step(AdamParams(learning_rate=0.0, grad_clip_norm=clip)))["grad_norm"]

    if client.model_info().adapter == "full":
        assert asyncio.run(norm(1e-3)) == pytest.approx(asyncio.run(norm(0.0)), rel=1e-4)
    assert asyncio.run(norm(1e-3)) > 1e-2


def test_calls_take_effect_in_the_order_they_are_made(make_any: Make) -> None:
    ordered, hurried = make_any(), make_any()

    async def hurry() -> list[Any]:
        calls: list[Awaitable[Any]] = []
        for seed in range(3):
            calls.append(hurried.forward_backward(batch(seed), CrossEntropy()))
            calls.append(hurried.optim_step(ADAM))
            calls.append(hurried.forward(batch(99), CrossEntropy()))
        return await asyncio.gather(*calls)

    async def wait() -> list[Any]:
        found: list[Any] = []
        for seed in range(3):
            found.append(await ordered.forward_backward(batch(seed), CrossEntropy()))
            found.append(await ordered.optim_step(ADAM))
            found.append(await ordered.forward(batch(99), CrossEntropy()))
        return found

    for one, other in zip(asyncio.run(hurry()), asyncio.run(wait()), strict=True):
        if isinstance(one, dict):
            assert one == other
        else:
            assert one.loss == other.loss
            assert [x.tobytes() for x in one.logprobs_D] == [x.tobytes() for x in other.logprobs_D]


def test_a_prompt_is_answered_with_the_weights_of_the_moment_it_is_given(make: Make) -> None:
    client = make()
    sampling = wiring.conforming(client.sampling_client(), SamplingClient, "sampling client")
    prompt, params = ModelInput.from_ints(np.arange(5, 25)), SamplingParams(4, temperature=0.0)

    async def act() -> None:
        before = await sampling.sample(prompt, 2, params)
        early, _, _, late = await asyncio.gather(
            sampling.sample(prompt, 2, params),
            client.forward_backward(batch(), CrossEntropy()),
            client.optim_step(ADAM),
            sampling.sample(prompt, 2, params),
        )
        assert early == before
        assert late != before
        assert await sampling.sample(prompt, 2, params) == late

    asyncio.run(act())


def test_the_sampling_client_samples_the_current_weights(make: Make) -> None:
    client = make()
    sampling, tokens = client.sampling_client(), np.arange(5, 25)

    async def act() -> None:
        for seed in range(3):
            _, *scored = await sampling.compute_logprobs(ModelInput.from_ints(tokens))
            (expected,) = (await client.forward([datum(tokens)], CrossEntropy())).logprobs_D
            np.testing.assert_allclose(scored, expected, atol=1e-4)
            await steps(client, 1, seed)

    asyncio.run(act())


def test_a_state_is_restored_to_the_bit(make_any: Make) -> None:
    client, fresh = make_any(), make_any()

    async def act() -> None:
        await steps(client, 2)
        ref = await client.save_state("two")
        told = await steps(client, 3, seed=10)
        await client.load_state(ref)
        assert await steps(client, 3, seed=10) == told
        await fresh.load_state(ref)
        assert await steps(fresh, 3, seed=10) == told

    asyncio.run(act())


def test_saving_and_loading_leaves_no_trace(make_any: Make) -> None:
    plain, disturbed = make_any(), make_any()

    async def act() -> None:
        await steps(plain, 2)
        await steps(disturbed, 2)
        await disturbed.load_state(await disturbed.save_state("two"))
        assert await steps(disturbed, 2, seed=10) == await steps(plain, 2, seed=10)

    asyncio.run(act())


def test_a_state_is_that_of_the_call(make: Make) -> None:
    client = make()

    async def act() -> None:
        expected = await bits(client)
        ref, _, _ = await asyncio.gather(
            client.save_state("before"), client.forward_backward(batch(), CrossEntropy()), client.optim_step(ADAM)
        )
        assert await bits(client) != expected
        await client.load_state(ref)
        assert await bits(client) == expected

    asyncio.run(act())


def test_attachments_lie_beside_the_weights(make: Make) -> None:
    client = make()
    ref = asyncio.run(client.save_state("with", attachments={"loop.json": b"{}"}))
    assert (Path(ref.uri) / "loop.json").read_bytes() == b"{}"
    assert ref.size == sum(path.stat().st_size for path in Path(ref.uri).iterdir())


def test_weights_alone_are_restored_without_an_optimizer(make: Make) -> None:
    client = make()

    async def act() -> None:
        await steps(client, 2)
        whole = await client.save_state("whole")
        ref = await client.save_state("weights", with_optimizer=False)
        assert ref.size < whole.size
        expected = await bits(client)
        fresh = make()
        await fresh.load_state(ref)
        assert await bits(fresh) == expected

    asyncio.run(act())


def test_a_state_that_is_not_ours_is_refused_and_changes_nothing(make: Make) -> None:
    client = make()
    other = make(rank=3 if client.model_info().adapter == "full" else None)
    wider = make(rank=5)

    async def act() -> None:
        await steps(client, 1)
        before = await bits(client)
        own = await client.save_state("own")
        foreign = [await c.save_state(f"foreign-{n}") for n, c in enumerate((other, wider))]
        torn = await client.save_state("torn")
        weights = next(Path(torn.uri).glob("*model.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
        missing = own.model_copy(update={"uri": own.uri + "-missing"})
        renamed = own.model_copy(update={"sha256": "0" * 64})
        for ref in (*foreign, torn, missing, renamed):
            with pytest.raises(CheckpointError):
                await client.load_state(ref)
            assert await bits(client) == before, ref.uri

    asyncio.run(act())


def raising(*_: Any) -> Any:
    raise ZeroDivisionError("on purpose")


OUT_OF_VOCABULARY = datum(np.array([1, 2, 60000, 4]))
FAILING: dict[str, tuple[list[Datum], Any]] = {
    "a token the model lacks": ([*batch(5), OUT_OF_VOCABULARY], CrossEntropy()),
    "a loss that raises": (batch(5), CustomLoss(raising)),
    "no weights": ([*batch(5), Datum(ModelInput.from_ints([1, 2]), {})], CrossEntropy()),
    "a weight that is no number": ([datum(np.arange(9), np.full(8, np.nan))], CrossEntropy()),
    "an infinite weight": ([datum(np.arange(9), np.full(8, np.inf))], CrossEntropy()),
}


@pytest.mark.parametrize("reason", FAILING)
def test_a_failed_step_raises_and_leaves_the_weights(reason: str, make: Make) -> None:
    plain, client = make(), make()

    async def one_step(datums: list[Datum], loss: Any) -> None:
        await client.forward_backward(datums, loss)
        await client.optim_step(ADAM)

    async def act() -> None:
        await steps(plain, 1)
        await steps(client, 1)
        before = await bits(client)
        with pytest.raises(TrainingError):
            await one_step(*FAILING[reason])
        assert await bits(client) == before
        with pytest.raises(TrainingError, match="no gradient"):
            await client.optim_step(ADAM)
        assert await steps(client, 2, seed=10) == await steps(plain, 2, seed=10)

    asyncio.run(act())


def test_a_step_without_a_gradient_is_refused(make: Make) -> None:
    client = make()
    asyncio.run(client.forward(batch(), CrossEntropy()))
    with pytest.raises(TrainingError, match="no gradient"):
        asyncio.run(client.optim_step(ADAM))


def test_a_caller_that_leaves_takes_only_its_own_call_along(make: Make) -> None:
    client = make()

    async def act() -> None:
        first = asyncio.create_task(client.forward_backward(batch(0, 40), CrossEntropy()))
        second = asyncio.create_task(client.forward_backward(batch(1), CrossEntropy()))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert len((await first).logprobs_D) == 40
        await client.optim_step(ADAM)

    asyncio.run(act())


def test_what_is_trained_is_told(make: Make) -> None:
    client = make()
    info = client.model_info()
    assert (info.name, info.vocab_size, info.hidden_size, info.max_positions) == ("tiny", 49152, 16, 512)
    assert (info.precision, info.device, info.num_threads) == ("float32", "cpu", 1)
    assert info.adapter in ("lora", "full")
    if info.adapter == "full":
        assert info.num_trainable_params == info.num_params
    else:
        assert 0 < info.num_trainable_params < info.num_params / 10
    tokenizer = wiring.conforming(client.tokenizer(), Tokenizer, "tokenizer")
    assert tokenizer.decode(tokenizer.encode("plain text")) == "plain text"


def test_a_closed_client_refuses_instead_of_hanging(make: Make) -> None:
    client = make()

    async def act() -> None:
        pending = asyncio.create_task(client.forward(batch(), CrossEntropy()))
        await asyncio.sleep(0)
        await client.close()
        assert len((await pending).logprobs_D) == 5
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.wait_for(client.forward(batch(), CrossEntropy()), timeout=20)

    asyncio.run(act())
