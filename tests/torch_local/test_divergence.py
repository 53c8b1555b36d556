"""Divergences of whole distributions beside plain torch, and soft targets."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from crucible_train.adapters.torch_local import divergence_head
from crucible_train.adapters.torch_local.divergence_head import DivergenceHead, Rows
from crucible_train.adapters.torch_local.loss_head import Head
from crucible_train.errors import TrainingError
from crucible_train.losses import loss_function
from crucible_train.types import AdamParams, CrossEntropy, Datum, Divergence, ImportanceSampling, ModelInput, TensorData

NUM, VOCAB, WIDTH, OTHER = 29, 23, 11, 7
LOSSES = [
    Divergence(teacher=None),
    Divergence(teacher=None, beta=0.0),
    Divergence(teacher=None, beta=0.3),
    Divergence(teacher=None, temperature=2.0),
    Divergence(teacher=None, beta=0.0, temperature=0.5, cross_entropy_coef=0.7),
    Divergence(teacher=None, beta=0.8, temperature=3.0, cross_entropy_coef=0.2),
    Divergence(teacher=None, cross_entropy_coef=1.5),
]


def plain(
    loss: Divergence, student: Tensor, teacher: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss by torch's own functions, and the divergence in it."""
    q, p = (F.log_softmax(x / loss.temperature, 1) for x in (student, teacher))
    if loss.beta == 1:
        each = F.kl_div(p, q, log_target=True, reduction="none").sum(1)
    elif loss.beta == 0:
        each = F.kl_div(q, p, log_target=True, reduction="none").sum(1)
    else:
        m = torch.log(loss.beta * p.exp() + (1 - loss.beta) * q.exp())
        to_p, to_q = (F.kl_div(m, x, log_target=True, reduction="none").sum(1) for x in (p, q))
        each = loss.beta * to_p + (1 - loss.beta) * to_q
    hard = F.cross_entropy(student, targets, reduction="none")
    divergence = (each * weights).sum()
    return divergence + loss.cross_entropy_coef * (hard * weights).sum(), divergence


class Given:
    """Hidden states, heads and targets."""

    def __init__(self, vocab: int = VOCAB, softcap: float | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(NUM, WIDTH, generator=draw, requires_grad=True)
        self.head = Head(
            weight := nn.Parameter(torch.randn(VOCAB, WIDTH, generator=draw)), weight.data, softcap=softcap
        )
        self.taught = torch.randn(NUM, OTHER, generator=draw)
        other = torch.randn(vocab, OTHER, generator=draw)
        self.other = Head(other, other)
        self.targets = torch.randint(0, VOCAB, (NUM,), generator=draw)
        self.weights = torch.rand(NUM, generator=draw)

    def pass_of(self, loss: Divergence) -> DivergenceHead:
        return DivergenceHead(loss, loss_function(loss), self.targets, self.weights)

    def rows(self) -> tuple[Rows, Rows]:
        return Rows(self.hidden, self.head), Rows(self.taught, self.other)

    def reference(self, loss: Divergence, size: int = VOCAB) -> tuple[Tensor, Tensor, list[Tensor]]:
        hidden, weight = (x.detach().double().requires_grad_() for x in (self.hidden, self.head.weight))
        logits = hidden @ weight.T
        if self.head.softcap is not None:
            logits = self.head.softcap * torch.tanh(logits / self.head.softcap)
        teachers = self.taught.double() @ self.other.weight.double().T
        value, divergence = plain(loss, logits[:, :size], teachers[:, :size], self.targets, self.weights.double())
        value.backward()
        return value.detach(), divergence.detach(), [hidden.grad, weight.grad]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk_rows", [1, 5, 1000])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: f"{x.beta} {x.temperature} {x.cross_entropy_coef}")
def test_value_and_gradients_equal_plain_torch(
    loss: Divergence, chunk_rows: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence_head, "MAX_CHUNK_BYTES", chunk_rows * VOCAB * 4 * 6)
    given = Given(softcap=softcap)
    one = given.pass_of(loss)
    value, logprobs = one.value(*given.rows())
    value.backward()
    value = value.detach()
    expected, divergence, gradients = given.reference(loss)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert one.divergence == pytest.approx(float(divergence), rel=1e-5)
    for found, wanted in zip((given.hidden.grad, given.head.weight.grad), gradients, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        again, told = given.pass_of(loss).value(*given.rows())
    assert float(again) == pytest.approx(float(value), rel=1e-6)
    torch.testing.assert_close(told, logprobs)
    logits = (given.hidden @ given.head.weight.T).detach()
    if softcap is None:
        torch.testing.assert_close(logprobs, F.log_softmax(logits, 1)[torch.arange(NUM), given.targets])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: f"{x.beta} {x.temperature} {x.cross_entropy_coef}")
def test_the_gradient_is_that_of_finite_differences(loss: Divergence) -> None:
    given = Given()
    value, _ = given.pass_of(loss).value(*given.rows())
    value.backward()
    draw = torch.Generator().manual_seed(1)
    direction = torch.randn(NUM, WIDTH, generator=draw)
    step = 1e-2
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = Rows(given.hidden.detach() + sign * step * direction, given.head)
            sides.append(float(given.pass_of(loss).value(moved, given.rows()[1])[0]))
    slope = (sides[0] - sides[1]) / (2 * step)
    assert float((given.hidden.grad * direction).sum()) == pytest.approx(slope, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("vocab", [VOCAB - 4, VOCAB + 4])
def test_ids_that_one_of_them_lacks_are_left_out(vocab: int) -> None:
    given = Given(vocab)
    given.targets = given.targets % (VOCAB - 4)
    loss = Divergence(teacher=None, cross_entropy_coef=0.5)
    value, _ = given.pass_of(loss).value(*given.rows())
    value.backward()
    value = value.detach()
    expected, _, gradients = given.reference(loss, min(vocab, VOCAB))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(given.hidden.grad.double(), gradients[0], rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("values", [{"beta": 1.1}, {"beta": -0.1}, {"temperature": 0.0}, {"cross_entropy_coef": -1.0}])
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"beta must lie|out of its range"):
        Divergence(teacher=None, **values)


# On the engine -------------------------------------------------------------------------------------------------------


def group(seed: int = 0, num: int = 4, **more: Any) -> list[Datum]:
    """Answers to one prompt; every second position counts for something else."""
    draw = np.random.default_rng(seed)
    prompt = draw.integers(0, 61, 20)
    found = []
    for _ in range(num):
        tokens = np.concatenate([prompt, draw.integers(0, 61, int(draw.integers(3, 9)))])
        weights = np.where(np.arange(1, tokens.size) >= 20, draw.uniform(0.5, 1, tokens.size - 1), 0)
        inputs = {"target_tokens": TensorData(tokens[1:], "int64"), "weights": TensorData(weights, "float32")}
        found.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return found


def gradients(client: Any) -> np.ndarray:
    found = np.concatenate([parameter.grad.numpy().ravel().copy() for _, parameter in client._parameters])
    client._clear_gradients()
    return found


async def trained(client: Any) -> Any:
    for step in range(2):
        await client.forward_backward(group(step), CrossEntropy())
        await client.optim_step(AdamParams(learning_rate=0.05))
    return client


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("who", ["itself", "another engine", "the base"])
def test_with_the_student_as_teacher_the_gradient_is_zero(engine: Callable[..., Any], who: str, beta: float) -> None:
    client = engine(rank=2)
    teachers = {"itself": lambda: client, "another engine": lambda: engine(rank=2)}
    teachers["the base"] = lambda: client.sampling_client(with_adapter=False)
    teacher = teachers[who]()

    async def act() -> None:
        found = await client.forward_backward(group(), Divergence(teacher=teacher, beta=beta))
        assert abs(found.loss) < 1e-5
        assert np.abs(gradients(client)).max() < 1e-5
        await client.forward_backward(group(), CrossEntropy())
        assert np.abs(gradients(client)).max() > 0.1

    asyncio.run(act())


@pytest.mark.parametrize("micro_batch_tokens", [32, 4096])
def test_a_pass_equals_plain_models(
    engine: Callable[..., Any], model_folder: Callable[[str], Path], micro_batch_tokens: int
) -> None:
    """Loss and gradient beside transformers' own logits of both; the teacher reads more than the student."""
    student, teacher = engine("llama, untied", micro_batch_tokens=micro_batch_tokens), engine("qwen3")
    before = np.arange(5, 22)
    datums = []
    for datum in group():
        tokens = datum.model_input.to_array()
        places = np.arange(tokens.size) + before.size
        inputs = {**datum.loss_fn_inputs, "teacher_positions": TensorData(places, "int64")}
        datums.append(Datum(datum.model_input, inputs, ModelInput.from_ints(np.concatenate([before, tokens]))))
    loss = Divergence(teacher=teacher.sampling_client(), beta=0.3, temperature=1.5, cross_entropy_coef=0.1)
    found = asyncio.run(student.forward_backward(datums, loss))
    mine = gradients(student)
    plain_student, plain_teacher = (
        AutoModelForCausalLM.from_pretrained(model_folder(name)) for name in ("llama, untied", "qwen3")
    )
    total = torch.zeros(())
    for datum in datums:
        logits = plain_student(torch.from_numpy(datum.model_input.to_array().astype(np.int64))[None]).logits[0]
        with torch.no_grad():
            read = torch.from_numpy(datum.teacher_input.to_array().astype(np.int64))
            taught = plain_teacher(read[None]).logits[0, before.size :]
        inputs = {k: torch.from_numpy(v.to_numpy()) for k, v in datum.loss_fn_inputs.items()}
        total = total + plain(loss, logits, taught, inputs["target_tokens"], inputs["weights"])[0]
    total.backward()
    assert found.loss == pytest.approx(float(total.detach()), rel=1e-4)
    named = dict(plain_student.named_parameters())
    expected = np.concatenate([named[name].grad.numpy().ravel() for name, _ in student._parameters])
    np.testing.assert_allclose(mine, expected, atol=1e-4)
    assert 0 < found.metrics["divergence"] < found.loss


def test_the_base_is_sampled_scored_and_taught_by_beside_the_adapter(engine: Callable[..., Any]) -> None:
    client, fresh = engine(rank=2), engine(rank=2)
    whole = group()[0].model_input

    async def act() -> None:
        await trained(client)
        base = client.sampling_client(with_adapter=False)
        mine, its, first = await asyncio.gather(*(one.compute_logprobs(whole) for one in (client, base, fresh)))
        np.testing.assert_allclose(its[1:], first[1:], atol=1e-6)
        assert np.abs(np.array(mine[1:]) - np.array(its[1:])).max() > 1e-2
        again = await asyncio.gather(client.compute_logprobs(whole), base.top_logprobs(whole, 2))
        assert again[0] == mine
        assert again[1] == await fresh.top_logprobs(whole, 2)
        by_base, by_fresh = [await client.forward(group(), Divergence(teacher=one)) for one in (base, fresh)]
        assert by_base.loss == pytest.approx(by_fresh.loss, rel=1e-5)
        assert by_base.loss > 0.1

    asyncio.run(act())


def test_what_cannot_teach_is_refused(engine: Callable[..., Any]) -> None:
    client = engine()
    with pytest.raises(TrainingError, match="no adapter"):
        client.sampling_client(with_adapter=False)
    with pytest.raises(TrainingError, match="needs a teacher of this engine, not str"):
        asyncio.run(client.forward(group(), Divergence(teacher="a server")))
    datum = group()[0]
    inputs = {**datum.loss_fn_inputs, "teacher_positions": TensorData(np.full(datum.num_tokens, 99), "int64")}
    with pytest.raises(TrainingError, match="a position of teacher_positions is none of"):
        asyncio.run(client.forward([Datum(datum.model_input, inputs)], Divergence(teacher=client)))


# Soft targets --------------------------------------------------------------------------------------------------------


def soft(datum: Datum, num: int, seed: int) -> Datum:
    draw = np.random.default_rng(seed)
    counts = datum.loss_fn_inputs["weights"].to_numpy()[:, None] != 0
    inputs = {
        "target_tokens": TensorData(draw.integers(0, 61, (datum.num_tokens, num)), "int64"),
        "weights": TensorData(draw.uniform(0, 1, (datum.num_tokens, num)) * counts, "float32"),
    }
    return Datum(datum.model_input, inputs)


@pytest.mark.parametrize("rank", [None, 2])
def test_soft_targets_are_as_many_hard_ones(engine: Callable[..., Any], rank: int | None) -> None:
    """Datums with one, three and five targets a position, beside one datum for each of their columns."""
    client = engine(rank=rank)
    plain_one, three, five = group(num=3)
    mixed = [plain_one, soft(three, 3, 1), soft(five, 5, 2)]
    split = [plain_one]
    for datum in mixed[1:]:
        tables = {name: tensor.to_numpy() for name, tensor in datum.loss_fn_inputs.items()}
        split += [
            Datum(datum.model_input, {name: TensorData.from_numpy(table[:, k]) for name, table in tables.items()})
            for k in range(tables["weights"].shape[1])
        ]

    async def act() -> None:
        found = await client.forward_backward(mixed, CrossEntropy())
        mine = gradients(client)
        expected = await client.forward_backward(split, CrossEntropy())
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        np.testing.assert_allclose(mine, gradients(client), atol=1e-4)
        assert [x.shape for x in found.logprobs_D] == [d.loss_fn_inputs["target_tokens"].shape for d in mixed]
        np.testing.assert_allclose(found.logprobs_D[1].T, np.stack(expected.logprobs_D[1:4]), atol=1e-5)
        np.testing.assert_array_equal(found.logprobs_D[1] == 0, mixed[1].loss_fn_inputs["weights"].to_numpy() == 0)

    asyncio.run(act())


def test_several_targets_are_for_losses_that_take_them(engine: Callable[..., Any]) -> None:
    datum = soft(group()[0], 2, 0)
    zeros = TensorData(np.zeros(datum.num_tokens), "float32")
    policy = Datum(datum.model_input, {**datum.loss_fn_inputs, "logprobs": zeros, "advantages": zeros})
    with pytest.raises(TrainingError, match=r"target_tokens must have shape \(N,\), not"):
        asyncio.run(engine().forward([policy], ImportanceSampling()))
    one = Datum(datum.model_input, {**datum.loss_fn_inputs, "weights": zeros})
    with pytest.raises(TrainingError, match="target_tokens have shape"):
        asyncio.run(engine().forward([one], CrossEntropy()))
