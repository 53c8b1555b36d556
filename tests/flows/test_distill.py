"""The flow of distillation on the tiny model: what it leaves behind, and what a second run finds."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crucible_train import wiring
from crucible_train.config.command import parse_command
from crucible_train.recipes.distill import DistillConfig
from crucible_train.stages.distill.plan import show_plan
from tests.model_servers.running import running
from tests.model_servers.stub import StubServer
from tests.model_servers.tinker_stub import BASE, KEY, TinkerStub


def words_of(tiny_model: Path, folder: Path, *changes: str) -> list[str]:
    return [
        f"model={tiny_model}",
        f"cache_dir={folder / 'cache'}",
        "report_to=[console]",
        f"output_dir={folder / 'runs'}",
        "env.options.num_held_out=4",
        "rollout.max_tokens=4",
        "train.max_steps=2",
        "train.groups_per_batch=2",
        "train.learning_rate=1e-2",
        "eval.num_step_problems=2",
        "engine.precision=float32",
        "engine.num_threads=1",
        *changes,
    ]


def config_of(tiny_model: Path, folder: Path, *changes: str) -> DistillConfig:
    return parse_command(DistillConfig, words_of(tiny_model, folder, *changes), "distill").config


def test_a_run_is_measured_packaged_and_found_again(
    tiny_model: Path, tmp_path: Path, run_flow: Callable[..., Any], capsys: Any
) -> None:
    config = config_of(tiny_model, tmp_path)
    first = run_flow(config)
    assert first.state.is_completed(), first.printed
    names = ["prepare model", "evaluate before", "train", "evaluate after", "package"]
    assert [name for name, _ in first.tasks] == names
    run_dir = Path(asyncio.run(first.state.aresult()))
    left = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert {"config.json", "record.json", "metrics.jsonl", "report.html", "divergence.png", "eval/summary.json"} <= left
    assert any(name.endswith("adapter_model.safetensors") for name in left)
    page = (run_dir / "report.html").read_text()
    assert "the model before training with more to read" in page
    assert "teacher_kl" in page
    summary = json.loads((run_dir / "eval" / "summary.json").read_text())
    assert "eval/teacher_kl" in summary["before"]["metrics"]
    assert {row["name"] for row in summary["compared"]} >= {"reward", "correct", "teacher_kl"}
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert steps[1]["train/teacher_kl"] > 0

    second = run_flow(config)
    assert dict(second.tasks).keys() == set(names)
    assert {state for name, state in second.tasks} == {"Cached"}
    assert "nothing was changed" in second.printed
    show_plan(config)
    assert capsys.readouterr().out.count(" cached") == 4


def test_another_model_teaches(tiny_model: Path, tmp_path: Path, run_flow: Callable[..., Any]) -> None:
    """A second model, and for one kind of sums a third teacher; what was sampled is all that is compared."""
    words = ["teacher.kind=model", f"teacher.model={tiny_model}", "lesson.objective=reverse_kl", "train.max_steps=1"]
    others = json.dumps({"arithmetic/-": {"kind": "start", "before": [{"role": "user", "content": "5 - 3?"}]}})
    config = config_of(tiny_model, tmp_path, *words, "env.options.operations=[+, -]", f"teachers={others}")
    done = run_flow(config)
    assert done.state.is_completed(), done.printed
    assert [name for name, _ in done.tasks][:2] == ["prepare model", "prepare model"]
    run_dir = Path(asyncio.run(done.state.aresult()))
    row = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert any(name.startswith("train/kl_") for name in row)


@contextmanager
def toy_server(tiny_model: Path) -> Iterator[tuple[str, StubServer]]:
    """A toy model with the tiny model's tokenizer, behind a server that answers as vLLM documents."""
    tokenizer = wiring.tokenizer(tiny_model)
    stub = StubServer(tokenizer.decode, tokenizer.vocab_size)
    with running(stub) as url:
        yield url, stub


@pytest.mark.parametrize(("objective", "asked"), [("reverse_kl", 0), ("top_k", 20)])
def test_a_model_server_teaches(
    objective: str, asked: int, tiny_model: Path, tmp_path: Path, run_flow: Callable[..., Any]
) -> None:
    with toy_server(tiny_model) as (url, stub):
        words = ["teacher.kind=server", f"teacher.server.base_url={url}", f"lesson.objective={objective}"]
        config = config_of(tiny_model, tmp_path, *words)
        first = run_flow(config)
        assert first.state.is_completed(), first.printed
        assert "toy at vllm" in first.printed
        assert {body["prompt_logprobs"] for body in stub.requests if "prompt_logprobs" in body} == {0, asked}
        run_dir = Path(asyncio.run(first.state.aresult()))
        steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == [0, 1, 2]
        assert all(step["train/teacher_kl"] > 1 for step in steps[1:])  # the toy model's opinions are its own
        assert f"taught by {url}" in (run_dir / "model" / "README.md").read_text()
        num_requests = len(stub.requests)
        second = run_flow(config)
        assert {state for _, state in second.tasks} == {"Cached"}
        assert len(stub.requests) == num_requests


def test_a_model_server_that_is_down_is_one_line(
    tiny_model: Path, tmp_path: Path, start: Callable[..., Any], server: str
) -> None:
    words = ["teacher.kind=server", "teacher.server.base_url=http://127.0.0.1:9", "teacher.server.max_retries=1"]
    given = words_of(tiny_model, tmp_path, *words, "lesson.objective=reverse_kl")
    ended = start(tuple(given), module="flows.distill", PREFECT_API_URL=server).end()
    assert ended.status == 1
    assert re.fullmatch(
        r"error: .*http://127\.0\.0\.1:9/v1/models: the connection failed: .* \(2 tries\)\n", ended.err
    ), ended.err


def test_the_tinker_service_teaches(
    tiny_model: Path, tmp_path: Path, run_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tinker", reason="install the extra `tinker`")
    tokenizer = wiring.tokenizer(tiny_model)
    stub = TinkerStub(tokenizer.decode, tokenizer.vocab_size)
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    with running(stub) as url:
        words = ["teacher.kind=tinker", f"teacher.tinker.base_url={url}", f"teacher.tinker.model={BASE}"]
        config = config_of(tiny_model, tmp_path, *words, "lesson.objective=top_k", "lesson.top_k=5")
        first = run_flow(config)
        assert first.state.is_completed(), first.printed
        assert f"{BASE} of {url}, whose tokenizer is taken to be" in first.printed
        run_dir = Path(asyncio.run(first.state.aresult()))
        assert f"taught by {BASE}" in (run_dir / "model" / "README.md").read_text()
        left = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
        assert left == []
        num_calls = len(stub.asked)
        second = run_flow(config)
        assert {state for _, state in second.tasks} == {"Cached"}
        assert len(stub.asked) == num_calls


def test_a_preference_model_judges_the_answers_while_a_teacher_teaches(
    tiny_model: Path, tmp_path: Path, rows: Path, run_flow: Callable[..., Any]
) -> None:
    """Rewards are measured, not trained: the judge is the model before training, and the lesson is the teacher's."""
    options = json.dumps({"dataset": str(rows), "num_held_out": 2, "against": "group"})
    before = json.dumps([{"role": "user", "content": "5 - 3?"}, {"role": "assistant", "content": "2"}])
    words = ["env.name=preference", f"env.options={options}", f"teacher.before={before}", "eval.num_step_problems=1"]
    done = run_flow(config_of(tiny_model, tmp_path, *words))
    assert done.state.is_completed(), done.printed
    run_dir = Path(asyncio.run(done.state.aresult()))
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(step["train/teacher_kl"] > 0 for step in steps[1:])
    assert all(step["reward/std"] > 0 for step in steps[1:])  # answers of one group are told apart by the judge alone
    assert all("eval/preferred" in step for step in steps[1:])
    summary = json.loads((run_dir / "eval" / "summary.json").read_text())
    assert {row["name"] for row in summary["compared"]} >= {"reward", "preferred", "teacher_kl"}
