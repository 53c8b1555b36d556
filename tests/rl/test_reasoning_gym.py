"""Tasks of reasoning-gym, with the library and with one that stands in for it."""

import sys
from types import ModuleType

import pytest

from crucible_train.errors import ConfigError
from crucible_train.rl.environments import problems
from tests.rl.conftest import Scripted, play


class Task:
    """Twice a number; the scorer raises on what it cannot read, as many do."""

    def __init__(self, seed: int, size: int, low: int = 0) -> None:
        if low < 0:
            raise AssertionError("low must be 0 or more")
        self.seed, self.size, self.low = seed, size, low

    def __getitem__(self, index: int):
        assert 0 <= index < self.size
        return {"question": f"twice {index + self.low}?", "answer": str(2 * (index + self.low)), "metadata": {}}

    def score_answer(self, answer, entry) -> float:
        return 1.0 if int(answer) == int(entry["answer"]) else 0.25


@pytest.fixture
def stand_in(monkeypatch):
    library, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    library.create_dataset = lambda name, **options: Task(**options)
    factory.DATASETS = {"twice": None, "thrice": None}
    monkeypatch.setitem(sys.modules, "reasoning_gym", library)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)


def made(renderer, seed=0, **options):
    return problems("reasoning_gym", {"task": "twice", "num_held_out": 5} | options, renderer, seed)


@pytest.mark.parametrize(
    ("said", "correct", "has_format"),
    [
        ("It is <answer>{}</answer>.", 1.0, 1),
        ("It is <answer> {} \n</answer>.", 1.0, 1),
        ("{}", 1.0, 0),
        ("<answer>0</answer> or <answer>{}</answer>", 1.0, 0),
        ("<answer>{}", 1.0, 0),
        ("<answer>-1</answer>", 0.25, 1),
        ("<answer>what?</answer>", 0.0, 1),
        ("", 0.0, 0),
    ],
)
def test_the_scorer_of_the_task_judges_what_is_marked(stand_in, smollm2, said, correct, has_format):
    def rule(text: str) -> str:
        number = int(text.rpartition("twice ")[2].partition("?")[0])
        return said.replace("{}", str(2 * number))

    client = Scripted(smollm2, rule)
    [transition] = play(made(smollm2, task_options={"low": 1}).train(0).make_env(), client).transitions
    assert transition.reward_parts == {"correct": correct, "format": has_format}


def test_problems_follow_from_the_seed_and_are_parted(stand_in, smollm2):
    def names(problem_set):
        return [one.problem for one in problem_set.held_out], [problem_set.train(i).problem for i in range(50)]

    held_out, trained = names(made(smollm2, num_problems=20))
    assert (held_out, trained) == names(made(smollm2, num_problems=20))
    assert not set(held_out) & set(trained)
    assert len(set(held_out)) == 5
    assert names(made(smollm2, seed=1, num_problems=20)) != (held_out, trained)
    assert made(smollm2).train(0).tags == ("reasoning_gym", "reasoning_gym/twice")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "twise"}, "env.options.task: 'twise' is unknown; did you mean twice"),
        ({"task": "zzzzzzzz"}, "there are 2, such as chain_sum"),
        ({"task_options": {"hi": 1}}, "env.options.task_options: twice: .*'hi'"),
        ({"task_options": {"low": -1}}, "low must be 0 or more"),
        ({"task_options": {"seed": 1}}, "task_options: twice: .*'seed'"),
    ],
)
def test_what_the_library_does_not_know_is_refused(stand_in, smollm2, options, told):
    with pytest.raises(ConfigError, match=told):
        made(smollm2, **options)


def test_a_library_that_is_not_there_is_named_with_the_command(monkeypatch, smollm2):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'crucible-train\[rl-tasks\]'"):
        made(smollm2)


@pytest.mark.parametrize("task", ["chain_sum", "spell_backward", "simple_equations"])
def test_a_task_of_the_library_is_played(task, smollm2):
    pytest.importorskip("reasoning_gym", reason="an optional library")
    found = made(smollm2, task=task)
    env = found.train(3).make_env()
    assert found.train(3).problem == made(smollm2, task=task).train(3).problem
    right = env._entry["answer"]
    assert play(env, Scripted(smollm2, lambda text: f"<answer>{right}</answer>")).reward == 1.0
    other = found.train(3).make_env()
    assert play(other, Scripted(smollm2, lambda text: "<answer>no answer</answer>")).reward < 0.5
