"""The engine's pass of each loss over preferences beside plain autograd, whatever the micro-batches."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from crucible_train.adapters.torch_local.stream import micro_batches, scored
from crucible_train.errors import TrainingError
from crucible_train.losses import LOSSES as TABLE
from crucible_train.losses import loss_function
from crucible_train.types import (
    DPO,
    IPO,
    KTO,
    ORPO,
    AdamParams,
    CrossEntropy,
    CustomLoss,
    Datum,
    ModelInput,
    PreferenceLoss,
    SimPO,
    TensorData,
)

LOSSES: list[PreferenceLoss] = [
    DPO(beta=0.3, label_smoothing=0.1),
    IPO(beta=0.5),
    KTO(beta=0.3, desirable_weight=1.5),
    ORPO(beta=0.4),
    SimPO(beta=2.0, gamma=0.5),
]


def pairs(num: int = 5, prompt_length: int = 20, seed: int = 0, **dropped: Any) -> list[Datum]:
    """Pairs in the order in which nothing helps: all chosen sides, then all rejected ones."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, 61, prompt_length + int(draw.integers(0, 5))) for _ in range(num)]
    datums = []
    for side in (1.0, -1.0):
        for pair, prompt in enumerate(prompts):
            tokens = np.concatenate([prompt, draw.integers(0, 61, int(draw.integers(3, 9)))])
            is_completion = np.arange(1, tokens.size) >= prompt.size
            ones = np.ones(tokens.size - 1)
            values = {
                "reference_logprobs": draw.normal(-4, 0.5, tokens.size - 1) * is_completion,
                "weights": is_completion / num,
                "side": side * ones,
                "reference_point": 0.3 * ones,
            }
            inputs = {name: TensorData(value, "float32") for name, value in values.items() if name not in dropped}
            inputs |= {
                "target_tokens": TensorData(tokens[1:], "int64"),
                "pair": TensorData(np.full(tokens.size - 1, pair), "int64"),
            }
            datums.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return datums


def as_custom(loss: PreferenceLoss) -> CustomLoss:
    """The same loss over whole datums by autograd alone: no stream, no chunk."""

    def function(logprobs_D: Any, inputs_D: Any) -> Any:
        counts_D = [inputs["weights"] != 0 for inputs in inputs_D]
        names = ("side", "pair", "reference_logprobs", "reference_point", "weights")
        some = {n: torch.cat([i[n][c].float() for i, c in zip(inputs_D, counts_D, strict=True)]) for n in names}
        logprobs = torch.cat([x[c] for x, c in zip(logprobs_D, counts_D, strict=True)])
        datum_S = torch.cat([torch.full((int(c.sum()),), i) for i, c in enumerate(counts_D)])
        return (loss_function(loss).per_position(loss, logprobs, some, datum_S) * some["weights"]).sum(), {}

    return CustomLoss(function)


@pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("micro_batch_tokens", [32, 4096])
def test_a_pass_equals_autograd(engine, loss: PreferenceLoss, rank: int | None, micro_batch_tokens: int) -> None:
    ours, plain = (engine(rank=rank, micro_batch_tokens=micro_batch_tokens) for _ in range(2))

    async def act() -> None:
        for step in range(2):
            datums = pairs(seed=step)
            found = await ours.forward_backward(datums, loss)
            expected = await plain.forward_backward(datums, as_custom(loss))
            assert found.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6)
            assert (await ours.forward(datums, loss)).loss == pytest.approx(found.loss, rel=1e-5, abs=1e-6)
            for x, y in zip(found.logprobs_D, expected.logprobs_D, strict=True):
                np.testing.assert_allclose(x, y, atol=5e-5)
            one = await ours.optim_step(AdamParams(learning_rate=1e-2))
            other = await plain.optim_step(AdamParams(learning_rate=1e-2))
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        after = [(await client.forward(pairs(seed=9), CrossEntropy())).loss for client in (ours, plain)]
        assert after[0] == pytest.approx(after[1], rel=1e-4)

    asyncio.run(act())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_model_that_cannot_join_sequences_gives_the_same(engine, loss: PreferenceLoss) -> None:
    joining, lone = engine(), engine()
    assert joining._model.joins_segments
    lone._model = replace(lone._model, joins_segments=False)

    async def act() -> None:
        found = [await client.forward_backward(pairs(), loss) for client in (joining, lone)]
        assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)
        norms = [(await client.optim_step(AdamParams()))["grad_norm"] for client in (joining, lone)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)

    asyncio.run(act())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_was_never_trained_equals_its_reference_to_the_bit(engine, precision: str) -> None:
    """The reference is a pass without a gradient, adapter off; a fresh adapter adds nothing. So KL begins at 0."""
    client, datums = engine(rank=2, precision=precision), pairs(num=8)

    async def act() -> None:
        reference = await client.forward(datums, CrossEntropy(), with_adapter=False)
        found = await client.forward_backward(datums, CrossEntropy())
        for x, y in zip(found.logprobs_D, reference.logprobs_D, strict=True):
            np.testing.assert_array_equal(x, y)

    asyncio.run(act())


@pytest.mark.parametrize("max_tokens", [1, 30, 60, 200, 4096])
def test_the_sides_of_a_pair_stand_in_one_stream_and_share_their_prompt(max_tokens: int) -> None:
    datums = pairs(num=8)
    items = [scored(index, datum, TABLE[DPO]) for index, datum in enumerate(datums)]
    streams = micro_batches(items, max_tokens)
    places = [set(np.unique(stream.datum_S).tolist()) for stream in streams]
    for pair in range(8):
        assert sum({pair, pair + 8} <= some for some in places) == 1
    assert sorted(i for some in places for i in some) == list(range(16))
    for stream, some in zip(streams, places, strict=True):
        assert stream.num_tokens <= max_tokens or len(some) == 2
    total = sum(item.tokens_N.size for item in items)
    assert sum(stream.num_tokens for stream in streams) <= total - 8 * 20


@pytest.mark.parametrize(
    ("missing", "text"),
    [("reference_logprobs", "has no 'reference_logprobs'"), ("side", "has no 'side'"), ("weights", "has no 'weights'")],
)
def test_a_missing_input_is_named(engine, missing: str, text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        asyncio.run(engine().forward_backward(pairs(**{missing: None}), DPO()))


def test_a_pair_with_one_side_fails_the_step(engine) -> None:
    with pytest.raises(TrainingError, match="pair 4 lacks its chosen or its rejected side"):
        asyncio.run(engine().forward_backward(pairs()[:-1], DPO()))


@pytest.mark.parametrize("numbers", [[0, 1], [-1, -1], [1 << 24, 1 << 24]])
def test_a_pair_has_one_number_that_float32_can_hold(numbers: list[int]) -> None:
    inputs = {name: TensorData([1.0, 1.0], "float32") for name in ("weights", "side", "reference_logprobs")}
    inputs |= {"target_tokens": TensorData([1, 2], "int64"), "pair": TensorData(numbers, "int64")}
    with pytest.raises(ValueError, match="datum 3: pair must be one number"):
        scored(3, Datum(ModelInput.from_ints([5, 6]), inputs), TABLE[DPO])
