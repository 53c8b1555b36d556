"""The engine's pass of each loss beside plain autograd, and the passes it shares."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest
import torch

from crucible_train.errors import TrainingError
from crucible_train.losses import loss_function
from crucible_train.types import (
    CISPO,
    DRO,
    GSPO,
    PPO,
    AdamParams,
    CrossEntropy,
    CustomLoss,
    Datum,
    ImportanceSampling,
    Loss,
    ModelInput,
    TensorData,
)

LOSSES = [
    ImportanceSampling(),
    PPO(),
    CISPO(clip_low=0.5, clip_high=2.0),
    DRO(beta=0.3),
    GSPO(clip_low=0.9, clip_high=1.3),
    PPO(kl_coef=0.2),
    GSPO(clip_low=0.9, clip_high=1.3, kl_coef=0.2, kl_estimator="k1"),
]


def group(num: int = 6, prompt_length: int = 20, seed: int = 0, **dropped: Any) -> list[Datum]:
    """Answers to one prompt, as a rollout gives them."""
    draw = np.random.default_rng(seed)
    prompt = draw.integers(0, 61, prompt_length)
    datums = []
    for _ in range(num):
        tokens = np.concatenate([prompt, draw.integers(0, 61, int(draw.integers(3, 9)))])
        is_action = np.arange(1, tokens.size) >= prompt_length
        values = {
            "logprobs": draw.normal(-4, 0.5, tokens.size - 1) * is_action,
            "advantages": draw.normal(0, 1) * is_action,
            "reference_logprobs": draw.normal(-4, 0.5, tokens.size - 1) * is_action,
            "weights": is_action * 0.5,
        }
        inputs = {name: TensorData(value, "float32") for name, value in values.items() if name not in dropped}
        inputs["target_tokens"] = TensorData(tokens[1:], "int64")
        datums.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return datums


def as_custom(loss: Loss) -> CustomLoss:
    """The same loss over whole datums, one at a time, by autograd alone: no stream, no chunk."""

    def function(logprobs_D: Any, inputs_D: Any) -> Any:
        total = torch.zeros(())
        for logprobs, inputs in zip(logprobs_D, inputs_D, strict=True):
            counts = inputs["weights"] != 0
            some = {k: v[counts] for k, v in inputs.items() if k != "target_tokens"}
            zeros = torch.zeros(int(counts.sum()), dtype=torch.long)
            each = loss_function(loss).per_position(loss, logprobs[counts], some, zeros)
            total = total + (each * some["weights"]).sum()
        return total, {}

    return CustomLoss(function)


@pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__} {loss.kl_coef}")
@pytest.mark.parametrize("micro_batch_tokens", [32, 4096])
def test_a_pass_equals_autograd(engine, loss: Loss, rank: int | None, micro_batch_tokens: int) -> None:
    ours, plain = (engine(rank=rank, micro_batch_tokens=micro_batch_tokens) for _ in range(2))

    async def act() -> None:
        for step in range(2):
            datums = group(seed=step)
            found = await ours.forward_backward(datums, loss)
            expected = await plain.forward_backward(datums, as_custom(loss))
            assert found.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6)
            assert (await ours.forward(datums, loss)).loss == pytest.approx(found.loss, rel=1e-5, abs=1e-6)
            for x, y in zip(found.logprobs_D, expected.logprobs_D, strict=True):
                np.testing.assert_allclose(x, y, atol=1e-5)
            one = await ours.optim_step(AdamParams(learning_rate=1e-2))
            other = await plain.optim_step(AdamParams(learning_rate=1e-2))
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        after = [(await client.forward(group(seed=9), CrossEntropy())).loss for client in (ours, plain)]
        assert after[0] == pytest.approx(after[1], rel=1e-4)

    asyncio.run(act())


def test_without_weights_the_positions_with_an_advantage_count_once(engine) -> None:
    client = engine()

    async def act() -> None:
        bare = group(weights=None)
        ones = [
            Datum(
                d.model_input,
                {**d.loss_fn_inputs, "weights": TensorData(d.loss_fn_inputs["advantages"].to_numpy() != 0, "float32")},
            )
            for d in bare
        ]
        assert (await client.forward(bare, PPO())).loss == (await client.forward(ones, PPO())).loss

    asyncio.run(act())


def test_the_ratio_of_a_sequence_runs_over_its_mask_whatever_the_weights(engine) -> None:
    """A position that counts for the ratio alone is computed, and its own loss is weighed with nothing."""
    client = engine()

    async def act() -> None:
        (datum,) = group(num=1)
        mask = (datum.loss_fn_inputs["weights"].to_numpy() != 0).astype(np.float32)
        weights = mask.copy()
        weights[np.flatnonzero(mask)[0]] = 0.0
        inputs = {
            **datum.loss_fn_inputs,
            "weights": TensorData(weights, "float32"),
            "sequence_ratio_mask": TensorData(mask, "float32"),
        }
        found = await client.forward([Datum(datum.model_input, inputs)], GSPO(clip_low=0.0, clip_high=math.inf))
        logprobs = (await client.forward([datum], CrossEntropy())).logprobs_D[0]
        sampled, advantages = (datum.loss_fn_inputs[k].to_numpy() for k in ("logprobs", "advantages"))
        ratio = np.exp((logprobs - sampled)[mask != 0].mean())
        assert found.loss == pytest.approx(float(-(ratio * advantages * weights).sum()), rel=1e-5)

    asyncio.run(act())


def test_without_its_adapter_a_model_is_its_base(engine) -> None:
    tuned, base = engine(rank=4), engine(rank=4)

    async def act() -> None:
        for step in range(2):
            await tuned.forward_backward(group(seed=step), ImportanceSampling())
            await tuned.optim_step(AdamParams(learning_rate=0.05))
        expected = (await base.forward(group(), CrossEntropy())).logprobs_D
        found = (await tuned.forward(group(), CrossEntropy(), with_adapter=False)).logprobs_D
        moved = (await tuned.forward(group(), CrossEntropy())).logprobs_D
        for x, y, z in zip(expected, found, moved, strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.abs(x - z).max() > 1e-3
        # it trains on as if nothing had been asked
        await tuned.forward_backward(group(seed=5), ImportanceSampling())
        assert (await tuned.optim_step(AdamParams(learning_rate=0.05)))["grad_norm"] > 0

    asyncio.run(act())


def test_a_model_without_an_adapter_has_none_to_switch_off(engine) -> None:
    with pytest.raises(TrainingError, match="no adapter"):
        asyncio.run(engine().forward(group(), CrossEntropy(), with_adapter=False))


@pytest.mark.parametrize("missing", ["target_tokens", "logprobs", "advantages"])
def test_a_missing_input_is_named(engine, missing: str) -> None:
    datums = [Datum(d.model_input, {k: v for k, v in d.loss_fn_inputs.items() if k != missing}) for d in group()]
    with pytest.raises(TrainingError, match=f"datum 0 has no '{missing}'"):
        asyncio.run(engine().forward_backward(datums, PPO()))


def test_a_reference_that_some_datums_lack_is_named(engine) -> None:
    datums = [*group(num=1), *group(num=1, reference_logprobs=None)]
    with pytest.raises(TrainingError, match="only one of them has 'reference_logprobs'"):
        asyncio.run(engine().forward_backward(datums, PPO()))
