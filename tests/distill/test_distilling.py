"""The recipe on tiny models: every way to learn brings the student to its teacher; resuming changes nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crucible_train.distill.lessons import lesson
from crucible_train.distill.pairs import Pair
from crucible_train.distill.teacher import Teachers
from crucible_train.errors import ConfigError, Interrupted
from crucible_train.types import Datum, Divergence, TensorData
from tests.distill.classroom import HINT, Asked, Trial, answers, config_of, engine, teacher_of
from tests.rl.conftest import outcome_of, rows_of

Make = Callable[..., Trial]
WAYS: dict[str, dict[str, Any]] = {
    "reverse_kl": {"lesson.objective": "reverse_kl", "train.num_generations": 8},
    "reverse_kl, discounted": {
        "lesson.objective": "reverse_kl",
        "train.num_generations": 8,
        "lesson.discount": 0.5,
    },
    "divergence": {},
    "divergence, forward": {"lesson.beta": 0.0},
    "divergence, between, hotter": {"lesson.beta": 0.5, "lesson.temperature": 1.5},
    "divergence, half by the teacher": {"lesson.student_share": 0.5},
    "divergence, mixed with its words": {"lesson.student_share": 0.0, "lesson.beta": 0.0, "lesson.alpha": 0.7},
    "top_k": {"lesson.objective": "top_k", "lesson.top_k": 10},
    "top_k, mixed with its words": {
        "lesson.objective": "top_k",
        "lesson.top_k": 10,
        "lesson.student_share": 0.0,
        "lesson.alpha": 0.7,
    },
    "cross_entropy": {
        "lesson.objective": "cross_entropy",
        "lesson.student_share": 0.0,
        "train.num_generations": 8,
    },
}


def alone(client: Any, before: tuple[int, ...] = (), num_turns: int = 1) -> Callable[[Any], Teachers]:
    return lambda _student: Teachers(teacher_of(client, before, num_turns=num_turns), {})


async def divergence(client: Any, teachers: Teachers) -> float:
    """KL(student || teacher), nats a token, exactly, over answers of the student."""
    teacher = teachers.other
    pairs = await answers(client.sampling_client(), teacher, Asked())
    num = sum(pair.num_trained for pair in pairs)
    found = await lesson(config_of({}).lesson, teacher, pairs, num)
    return (await client.forward(found.datums_D, Divergence(teacher=teacher.client))).metrics["divergence"]


def test_the_two_are_far_apart_at_first(student_model: Any, teacher_client: Any, tmp_path: Any) -> None:
    client = engine(student_model, tmp_path)
    for before in ((), HINT):
        assert asyncio.run(divergence(client, alone(teacher_client, before)(client))) > 0.5
    asyncio.run(client.close())


@pytest.mark.parametrize("way", WAYS)
def test_the_student_comes_near_its_teacher_who_reads_more(trial: Make, teacher_client: Any, way: str) -> None:
    """The exact divergence is under 0.15 nats a token in the end, from more than 0.5."""
    one = trial(alone(teacher_client, HINT), WAYS[way], measure=divergence)
    one.run()
    assert one.measured < 0.15
    rows = rows_of(one.run_dir)
    assert rows[-1]["train/teacher_kl"] < rows[1]["train/teacher_kl"] / 2


def test_the_student_comes_near_a_teacher_who_reads_the_same(trial: Make, teacher_client: Any) -> None:
    one = trial(alone(teacher_client), {"lesson.beta": 0.0}, measure=divergence)
    one.run()
    assert one.measured < 0.25


@pytest.mark.parametrize("objective", ["reverse_kl", "divergence", "top_k"])
def test_with_itself_as_teacher_the_gradient_is_zero(trial: Make, objective: str) -> None:
    """To rounding; with all ten ids told, since the ten likeliest of more would be a distribution of their own."""
    fields = {"lesson.objective": objective, "train.max_steps": 1}
    if objective == "top_k":
        fields["lesson.top_k"] = 10
    one = trial(lambda client: Teachers(teacher_of(client), {}), fields)
    one.run()
    row = rows_of(one.run_dir)[-1]
    assert row["optim/grad_norm"] < 1e-5
    assert abs(row["train/teacher_kl"]) < 1e-5


def test_the_start_teaches_the_adapter(trial: Make) -> None:
    """The model before training, which reads more, is the base of the adapter that learns from it."""

    def teach(client: Any) -> Teachers:
        return Teachers(teacher_of(client.sampling_client(with_adapter=False), HINT), {})

    fields = {"peft.use_peft": True, "peft.lora_r": 8, "train.max_steps": 100}
    one = trial(teach, fields, measure=divergence)
    one.run()
    rows = rows_of(one.run_dir)
    assert one.measured < rows[1]["train/teacher_kl"] / 3


def test_each_problem_is_taught_by_the_teacher_of_its_tag(trial: Make, teacher_client: Any, other_client: Any) -> None:
    """Symbols below four by one teacher, the others by another: the student answers each as its teacher would."""
    teachers = Teachers(teacher_of(teacher_client), {"high": teacher_of(other_client, name="teachers.high")})

    async def first_tokens(client: Any, _: Teachers) -> list[list[float]]:
        found = []
        for index in range(8):
            prompt = (await (await Asked().train(index).make_envs(1))[0].initial_turn()).prompt
            teacher = teachers.of(Asked().train(index).tags)
            asked = [one.top_logprobs(prompt.append_ints([0]), 10) for one in (client, teacher.client)]
            mine, its = [dict(table[-1]) for table in await asyncio.gather(*asked)]
            found.append([abs(np.exp(mine[token]) - np.exp(its[token])) for token in range(10)])
        return found

    one = trial(lambda _: teachers, {}, measure=first_tokens)
    one.run()
    assert np.mean(one.measured) < 0.02
    row = rows_of(one.run_dir)[-1]
    assert row["train/teacher_kl"] < 0.25
    assert {"train/kl_teacher", "train/kl_teachers.high"} <= set(row)


def test_episodes_of_several_turns_are_one_sequence_after_another_prompt(
    teacher_client: Any, student_model: Any, tmp_path: Any
) -> None:
    client = engine(student_model, tmp_path)

    async def act() -> None:
        teacher = teacher_of(teacher_client, HINT, num_turns=3)
        pairs = await answers(client, teacher, Asked(num_turns=3), 8)
        for pair in pairs:
            num = len(HINT)
            assert pair.teacher_U[:num].tolist() == list(HINT)
            np.testing.assert_array_equal(pair.teacher_U[num:], pair.student_T)
            np.testing.assert_array_equal(pair.place_T[pair.is_trained_T], np.flatnonzero(pair.is_trained_T) + num)
        assert max(pair.num_trained for pair in pairs) >= 3  # more than the two tokens of one turn
        await client.close()

    asyncio.run(act())


@pytest.mark.parametrize("mode", ["synchronous", "off_policy"])
def test_a_run_that_was_stopped_ends_as_an_undisturbed_one(trial: Make, teacher_client: Any, mode: str) -> None:
    fields = {"train.max_steps": 8, "schedule.mode": mode, "lesson.student_share": 0.5}
    teach = alone(teacher_client, HINT)

    def stopping(client: Any) -> Teachers:
        """The eighth step is stopped when it is to be trained on."""
        learn, steps = client.forward_backward, []

        async def learn_until(*given: Any) -> Any:
            steps.append(given)
            if len(steps) == 8:
                raise Interrupted(2)
            return await learn(*given)

        client.forward_backward = learn_until
        return teach(client)

    whole = trial(teach, fields, "whole")
    whole.run()
    with pytest.raises(Interrupted):
        trial(stopping, fields, "stopped").run()
    again = trial(teach, fields, "stopped")
    assert again.run().num_steps == 8
    assert outcome_of(again.run_dir) == outcome_of(whole.run_dir)


def test_a_teacher_of_other_problems_is_refused(trial: Make, teacher_client: Any) -> None:
    teacher = teacher_of(teacher_client)
    teacher.reader.problems.name = "other"
    with pytest.raises(ConfigError, match="it is asked 'other 0' where the student is asked 'ask 0'"):
        trial(lambda _: Teachers(teacher, {}), {"train.max_steps": 1}).run()


def test_the_advantage_is_the_gradient_of_the_divergence_on_average(
    student_model: Any, teacher_client: Any, tmp_path: Any
) -> None:
    """Many answers: the mean of reverse_kl's gradient comes to that of the exact reverse divergence."""
    client = engine(student_model, tmp_path)

    async def act() -> None:
        teacher = teacher_of(teacher_client)
        pairs = await answers(client, teacher, Asked(), 64)
        num = sum(pair.num_trained for pair in pairs)
        grads = {}
        for objective in ("reverse_kl", "divergence"):
            made = await lesson(config_of({"lesson.objective": objective}).lesson, teacher, pairs, num)
            await client.forward_backward(made.datums_D, made.loss)
            grads[objective] = np.concatenate([p.grad.numpy().ravel().copy() for _, p in client._parameters])
            client._clear_gradients()
        cosine = np.dot(*grads.values()) / np.prod([np.linalg.norm(one) for one in grads.values()])
        assert cosine > 0.5
        await client.close()

    asyncio.run(act())


def test_what_both_read_stands_at_the_same_place() -> None:
    """A datum of a teacher that reads more: each position's logits are those of the same next token on both sides."""

    async def act() -> None:
        teacher = teacher_of(None, HINT)
        pair = Pair(
            np.array([1, 2, 3, 4], np.int32),
            np.array([9, 9, 1, 2, 3, 4], np.int32),
            np.array([-1, -1, 0, 1]),
            np.array([-1, -1, -1, -1, 0, 1]),
            np.zeros(4, np.float32),
            0.0,
        )
        found = await lesson(config_of({}).lesson, teacher, [pair], 2)
        (datum,) = found.datums_D
        assert isinstance(datum, Datum)
        assert datum.loss_fn_inputs["teacher_positions"].tolist()[1:] == [3, 4]
        assert datum.loss_fn_inputs["target_tokens"].tolist() == [2, 3, 4]
        assert datum.loss_fn_inputs["weights"] == TensorData([0.0, 0.5, 0.5], "float32")
        assert datum.teacher_input is not None
        assert datum.teacher_input.to_ints() == [9, 9, 1, 2, 3]

    asyncio.run(act())
