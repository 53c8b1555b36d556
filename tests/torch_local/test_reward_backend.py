"""A reward model: the Bradley-Terry loss by hand and by finite differences, what it learns, and what it keeps."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from crucible_train import wiring
from crucible_train.adapters.torch_local.backend import EngineSettings
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.adapters.torch_local.reward_backend import RewardBackend
from crucible_train.errors import CheckpointError, TrainingError
from crucible_train.judges import SCALAR_HEAD, RewardModel
from crucible_train.losses.bradley_terry import per_pair
from crucible_train.ports import TrainingClient
from crucible_train.types import AdamParams, BradleyTerry, Datum, Hardware, ModelInput, TensorData


@pytest.fixture
def reward_model(model_folder, tmp_path):
    made = []

    def make(rank=None, adapter=None, folder=None, dropout=0.0, max_tokens=0):
        lora = None if rank is None else Lora(rank, 2.0 * rank, dropout, "all-linear")
        settings = EngineSettings(Hardware("cpu", "float32", 1), tmp_path / "states", max_tokens)
        made.append(RewardBackend(folder or model_folder("llama"), None, settings, lora, adapter))
        return made[-1]

    yield make
    for backend in made:
        asyncio.run(backend.close())


def sequence(tokens, weight=None):
    weights = {} if weight is None else {"weights": TensorData(np.full(len(tokens), weight), "float32")}
    return Datum(ModelInput.from_ints(np.asarray(tokens)), weights)


def pairs(num, seed=0, length=12):
    """One prompt a pair; the chosen answer holds more tokens below 30 than the rejected one."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        prompt = draw.integers(0, 60, length)
        found += [sequence(np.append(prompt, draw.integers(low, low + 30, 6))) for low in (0, 30)]
    return found


def test_the_loss_by_hand():
    """-log sigmoid(2 - 1) = log(1 + e^-1); at equal rewards log 2; its slope there is -1/2."""
    chosen = torch.tensor([2.0, 0.5], requires_grad=True)
    loss = per_pair(chosen, torch.tensor([1.0, 0.5]))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log(2)])
    loss.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-1 / (1 + math.e), -0.5])


def test_a_pass_sums_over_pairs_and_tells_rewards(reward_model):
    """With rewards r: loss = w1 log(1 + e^-(r0 - r1)) + log(1 + e^-(r2 - r3)); w1 = 3 stands with the chosen one."""
    backend = reward_model()
    assert isinstance(wiring.conforming(backend, TrainingClient, "x"), RewardModel)
    datums = pairs(2)
    datums[0] = sequence(datums[0].model_input.to_ints(), 3.0)
    output = asyncio.run(backend.forward(datums, BradleyTerry()))
    rewards = [float(found[-1]) for found in output.logprobs_D]
    assert all(not found[:-1].any() for found in output.logprobs_D)
    assert rewards == pytest.approx(
        asyncio.run(backend.compute_rewards([datum.model_input for datum in datums])), abs=1e-6
    )
    margins = [rewards[0] - rewards[1], rewards[2] - rewards[3]]
    expected = 3 * math.log1p(math.exp(-margins[0])) + math.log1p(math.exp(-margins[1]))
    assert output.loss == pytest.approx(expected, abs=1e-5)
    assert output.metrics["accuracy"] == sum(margin > 0 for margin in margins) / 2
    assert output.metrics["margin"] == pytest.approx(sum(margins) / 2, abs=1e-6)


def test_a_reward_is_the_head_times_the_last_hidden_state_of_transformers(reward_model, model_folder):
    backend = reward_model()
    tokens = torch.arange(5, 25)
    plain = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    with torch.no_grad():
        hidden = plain(input_ids=tokens[None], output_hidden_states=True).hidden_states[-1][0, -1]
    [found] = asyncio.run(backend.compute_rewards([ModelInput.from_ints(tokens.numpy())]))
    assert found == pytest.approx(float(hidden @ backend._head.detach()), abs=1e-5)


@pytest.mark.parametrize("max_tokens", [0, 20])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_gradient_is_that_of_the_loss(reward_model, rank, max_tokens):
    backend = reward_model(rank, max_tokens=max_tokens)
    with torch.no_grad():
        for _, parameter in backend._parameters[:-1]:
            if rank is not None:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    datums = pairs(3)

    def loss():
        backend._model.precision.refresh()  # the weights were changed by hand
        return asyncio.run(backend.forward(datums, BradleyTerry())).loss

    expected = loss()
    assert asyncio.run(backend.forward_backward(datums, BradleyTerry())).loss == pytest.approx(expected, abs=1e-6)
    for name, parameter in [backend._parameters[0], backend._parameters[-2], backend._parameters[-1]]:
        direction = parameter.grad / parameter.grad.norm()
        slope = float((parameter.grad * direction).sum())
        step = 1e-2
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = loss()
            parameter.add_(direction, alpha=-2 * step)
            below = loss()
            parameter.add_(direction, alpha=step)
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=2e-2), name


def test_dropout_drops_the_same_in_both_passes(reward_model):
    """The slope of the loss belongs to the rewards that the second pass gives: they are the same but for rounding."""
    backend = reward_model(2, dropout=0.5)
    with torch.no_grad():
        for _, parameter in backend._parameters[:-1]:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    seen = []
    streamed = backend._streamed

    def watched(tokens_D):
        for stream, rewards_S in streamed(tokens_D):
            seen.append(rewards_S.detach().clone())
            yield stream, rewards_S

    backend._streamed = watched
    asyncio.run(backend.forward_backward(pairs(2), BradleyTerry()))
    assert torch.allclose(seen[0], seen[1], atol=1e-5)
    asyncio.run(backend.forward(pairs(2), BradleyTerry()))
    assert not torch.allclose(seen[0], seen[2], atol=1e-2)


@pytest.mark.parametrize("rank", [None, 4])
def test_it_learns_to_tell_held_out_pairs_apart(reward_model, rank):
    backend = reward_model(rank)
    held_out = pairs(64, seed=99)

    async def accuracy():
        return (await backend.forward(held_out, BradleyTerry())).metrics["accuracy"]

    async def train():
        before = await accuracy()
        for step in range(40):
            await backend.forward_backward(pairs(16, seed=step), BradleyTerry())
            await backend.optim_step(AdamParams(learning_rate=1e-2))
        return before, await accuracy()

    before, after = asyncio.run(train())
    assert before < 0.8
    assert after > 0.9


@pytest.mark.parametrize("rank", [None, 2])
def test_a_state_is_restored_to_the_bit_head_and_moments_included(reward_model, rank):
    backend, other = reward_model(rank), reward_model(rank)
    adam = AdamParams(learning_rate=1e-2)

    async def step(client, seed):
        output = await client.forward_backward(pairs(4, seed=seed), BradleyTerry())
        await client.optim_step(adam)
        return output.loss

    async def run():
        for seed in range(3):
            await step(backend, seed)
        saving = asyncio.create_task(backend.save_state("s", attachments={"note.json": b"{}"}))
        await asyncio.sleep(0)
        losses = [await step(backend, 3)]  # training goes on while the state is written
        ref = await saving
        losses.append(await step(backend, 4))
        await other.load_state(ref)
        assert [await step(other, 3), await step(other, 4)] == losses
        await backend.load_state(ref)
        assert [await step(backend, 3), await step(backend, 4)] == losses
        return Path(ref.uri)

    folder = asyncio.run(run())
    assert torch.equal(backend._head, other._head)
    assert (folder / "note.json").read_bytes() == b"{}"
    assert list(load_file(folder / SCALAR_HEAD)) == ["weight"]


@pytest.mark.parametrize("rank", [None, 2])
def test_a_saved_model_begins_with_its_head(reward_model, rank):
    backend = reward_model(rank)
    sequences = [datum.model_input for datum in pairs(2)]

    async def train():
        await backend.forward_backward(pairs(4), BradleyTerry())
        await backend.optim_step(AdamParams(learning_rate=1e-2))
        return await backend.save_state("s", with_optimizer=False)

    folder = Path(asyncio.run(train()).uri)
    again = reward_model(rank, folder) if rank is not None else reward_model(folder=folder)
    assert asyncio.run(again.compute_rewards(sequences)) == asyncio.run(backend.compute_rewards(sequences))


def test_a_state_of_another_model_changes_nothing_the_head_included(reward_model, tmp_path):
    """Its head would fit, but its weights do not; and where the weights fit, a head of another width does not."""
    backend, other = reward_model(2), reward_model(3)
    sequences = [datum.model_input for datum in pairs(2)]

    async def run():
        await other.forward_backward(pairs(4), BradleyTerry())
        await other.optim_step(AdamParams(learning_rate=1e-2))
        before = await backend.compute_rewards(sequences)
        with pytest.raises(CheckpointError):
            await backend.load_state(await other.save_state("foreign"))
        assert await backend.compute_rewards(sequences) == before
        save_file({"weight": torch.ones(1)}, tmp_path / SCALAR_HEAD)
        with pytest.raises(CheckpointError, match=r"not the scalar head of this model: \(1,\) in place of"):
            backend._restore(tmp_path)
        assert await backend.compute_rewards(sequences) == before

    asyncio.run(run())


def test_what_is_wrong_is_told(reward_model, tmp_path):
    backend = reward_model()
    with pytest.raises(TrainingError, match="datums must come in pairs"):
        asyncio.run(backend.forward_backward(pairs(2)[:3], BradleyTerry()))
    with pytest.raises(ValueError, match="out of range"):
        asyncio.run(backend.compute_rewards([ModelInput.from_ints([10**6])]))
    ref = asyncio.run(backend.save_state("s"))
    (Path(ref.uri) / SCALAR_HEAD).write_bytes(b"x")
    with pytest.raises(CheckpointError):
        asyncio.run(backend.load_state(ref))
    with pytest.raises(CheckpointError, match="not the scalar head of this model"):
        backend._read_head(tmp_path)
