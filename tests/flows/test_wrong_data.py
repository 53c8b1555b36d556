"""Wrong input that only the run can find: it fails in our own words, and is the user's to mend (exit status 2)."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.errors import InputError

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
FLIPPED = '{"messages": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]}\n'
UNKNOWN_ROLE = '{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


def _rows(*lines: str) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        path = folder / "own.jsonl"
        path.write_text("".join(lines))
        return [f"dataset={path}"]

    return write


CASES: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "not JSON": (
        _rows(GOOD, "{'messages': 1}\n", GOOD),
        [r".*own.jsonl:2:2: broken JSON: .*", r"1 of 3 rows is bad; mend it, or .*data.on_bad_row=quarantine"],
    ),
    "wrong order of roles": (
        _rows(GOOD, FLIPPED),
        [r".*own.jsonl:2: message 0: role order: the assistant speaks before any user", r"1 of 2 rows is bad; .*"],
    ),
    "unknown role": (
        _rows(UNKNOWN_ROLE, GOOD),
        [r".*own.jsonl:1: message 0: role 'usr' is unknown; did you mean 'user'\?", r"1 of 2 rows is bad; .*"],
    ),
    "no row left": (
        lambda folder: [*_rows("[]\n", "5\n")(folder), "data.on_bad_row=quarantine"],
        [r"dataset: .*none of its 2 rows can be used \(unreadable 2\); the first: .*own.jsonl:1: .*"],
    ),
    "every row too long": (
        lambda folder: ["data.max_length=4", "data.on_bad_row=quarantine"],
        [r"dataset: .*none of its 18 rows can be used \(too_long 18\); the first: .*51 tokens are more than .*"],
    ),
    "adapter on modules that are not there": (
        lambda folder: ["peft.lora_target_modules=[nothing]"],
        [r"peft.lora_target_modules: .*nothing.*"],
    ),
    "no such model on the hub either": (
        lambda folder: ["model=nobody-has-this"],
        [r"model: nobody-has-this: not a folder here, and the hub does not give it either: .*"],
    ),
    "no such data on the hub either": (
        lambda folder: ["dataset=nobody/has-this"],
        [r"dataset: nobody/has-this: not a file here, and the hub does not give it either: .*"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_fails_the_run(case: str, finished: Any, run_flow: Callable[[Any], Any], tmp_path: Path) -> None:
    place = finished[0].copy(tmp_path)
    words, lines = CASES[case]
    run = run_flow(place.config(*words(tmp_path)))
    assert run.state.name == "Failed"
    error = asyncio.run(run.state.aresult(raise_on_failure=False))
    assert isinstance(error, InputError), repr(error)
    assert error.exit_status == 2
    assert run.state.message == str(error)
    assert run.tasks[-1][1] == "Failed"
    found = str(error).splitlines()
    assert len(found) == len(lines), found
    for line, pattern in zip(found, lines, strict=True):
        assert re.fullmatch(pattern, line), line


def test_bad_rows_are_set_aside_and_counted_in_the_report(
    finished: Any, run_flow: Callable[[Any], Any], tmp_path: Path
) -> None:
    place = finished[0].copy(tmp_path)
    rows = Path(place.config().dataset).read_text()
    (tmp_path / "own.jsonl").write_text("{\n" + FLIPPED + rows)
    changes = ("data.on_bad_row=quarantine", "train.max_steps=1", "eval.num_samples=0")
    run = run_flow(place.config(f"dataset={tmp_path / 'own.jsonl'}", *changes))
    assert run.state.is_completed()
    assert "2 bad rows" in run.printed
    aside = [json.loads(line) for line in (place.run_dir / "quarantine.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in aside] == ["unreadable", "not_a_conversation"]
    assert "own.jsonl:2" in (place.run_dir / "report.html").read_text()
