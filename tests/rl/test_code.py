"""Programs that are to pass tests: what is taken for the program, what it earns, and that none of them hurts a run."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crucible_train import wiring
from crucible_train.errors import DataError, SandboxError
from crucible_train.rl.environment import StopReason
from crucible_train.rl.environments import problems
from crucible_train.rl.environments.code import program_of
from crucible_train.sandbox import Status, Verdict
from tests.rl.conftest import Scripted, play_group

CASES = {"function": "add", "cases": [{"args": [1, 2], "expected": 3}, {"args": [2, 2], "expected": 4}]}
EXCHANGES = [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "5 5\n", "stdout": "10"}]
RIGHT = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```"
READS = "```\na, b = map(int, input().split())\nprint(a + b)\n```"
ANSWERS = {
    "all pass": (RIGHT, 1.0),
    "half pass": ("```python\ndef add(a, b):\n    return a * b\n```", 0.5),
    "none pass": ("```python\ndef add(a, b):\n    return 'three'\n```", 0.0),
    "no function": ("```python\nx = 1\n```", 0.0),
    "does not parse": ("```python\ndef add(a, b:\n```", 0.0),
    "raises": ("```python\nraise SystemExit(0)\n```", 0.0),
    "never ends": ("```python\nwhile True: pass\n```", 0.0),
    "forges": ("```python\nprint('PASSED')\nimport os\nos._exit(0)\n```", 0.0),
    "not fenced": ("def add(a, b):\n    return a + b", 0.9),
    "no program": ("I would add them.", -0.1),
}


def made(tmp_path: Path, renderer: Any, row: dict[str, Any], **options: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{n}: add two numbers", **row} for n in range(3)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    given = {"dataset": str(path), "num_held_out": 1, "timeout_s": 2.0} | options
    try:
        return problems("code", given, renderer, 0, wiring.dataset_store()).train(0)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_program_earns(tmp_path: Path, smollm2: Any, name: str) -> None:
    text, reward = ANSWERS[name]
    problem = made(tmp_path, smollm2, {"tests": CASES})
    group = play_group(problem, Scripted(smollm2, lambda _: text), size=2)
    assert group is not None
    assert group.num_failed == 0
    assert group.rewards_G == pytest.approx((reward, reward))
    assert {one.reason for one in group.trajectories_G} == {StopReason.COMPLETED}


def test_half_of_the_tests_is_nothing_where_all_are_asked_for(tmp_path: Path, smollm2: Any) -> None:
    problem = made(tmp_path, smollm2, {"tests": json.dumps(CASES)}, partial_credit=False)
    for name, reward in (("half pass", 0.0), ("all pass", 1.0)):
        group = play_group(problem, Scripted(smollm2, lambda _, name=name: ANSWERS[name][0]), size=1)
        assert group is not None
        assert group.rewards_G == pytest.approx((reward,))


def test_what_is_read_and_written_is_compared(tmp_path: Path, smollm2: Any) -> None:
    problem = made(tmp_path, smollm2, {"exchanges": EXCHANGES})
    for text, reward in ((READS, 1.0), ("```\nprint(3)\n```", 0.5)):
        group = play_group(problem, Scripted(smollm2, lambda _, text=text: text), size=1)
        assert group is not None
        assert group.rewards_G == pytest.approx((reward,))


@pytest.mark.parametrize(
    "row",
    [{}, {"tests": "{"}, {"tests": {"function": "f"}}, {"tests": CASES | {"cases": []}}, {"exchanges": []}],
    ids=str,
)
def test_a_row_without_tests_is_named(tmp_path: Path, smollm2: Any, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*(tests|exchanges)"):
        made(tmp_path, smollm2, row)


def test_the_last_program_counts() -> None:
    assert program_of("```python\na\n```\nbetter:\n```py\nb\n```") == "b\n"
    assert program_of("c") == "c"


def test_the_sandbox_is_shared_by_all_problems_of_a_process(tmp_path: Path, smollm2: Any) -> None:
    first, second = (made(tmp_path, smollm2, {"tests": CASES}).make_env()._sandbox for _ in range(2))
    assert first is second


def test_each_exchange_has_the_time_to_itself(tmp_path: Path, smollm2: Any) -> None:
    problem = made(tmp_path, smollm2, {"exchanges": [{"stdin": "1 2", "stdout": "3"}] * 3}, timeout_s=20.0)
    seen = []

    async def judge(program: str, tests: Any, limits: Any) -> Any:
        seen.append((len(tests), limits.wall_s, limits.cpu_s))
        return Verdict(Status.OK, (True,), "")

    env = problem.make_env()
    env._sandbox = SimpleNamespace(passes=judge)
    assert asyncio.run(env.check_answer(READS)) == 1.0
    assert seen == [(3, 20.0, 20.0)]
