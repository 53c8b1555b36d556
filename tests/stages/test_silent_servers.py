"""A server that is needed later and does not answer yet is a note before the run, not an error."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.config.command import parse_command
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages.distill.preflight import check as check_distill
from crucible_train.stages.dpo.preflight import check as check_dpo


def _noted(check: Callable[[Any], None], kind: Any, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    check(parse_command(kind, list(words), "x").config)
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("check", "kind", "words", "field", "needed"),
    [
        (
            check_dpo,
            DPOConfig,
            ("win_rate.num_prompts=4", "win_rate.judge={model}", "win_rate.judge_url={url}"),
            "win_rate.judge_url",
            "answers are judged, after training",
        ),
        (
            check_distill,
            DistillConfig,
            ("teacher.kind=server", "teacher.server.base_url={url}", "lesson.objective=reverse_kl"),
            "teacher.server.base_url",
            "the student is first taught",
        ),
    ],
    ids=["judge", "teacher"],
)
def test_silence_is_noted_until_somebody_listens(
    check: Any,
    kind: Any,
    words: tuple[str, ...],
    field: str,
    needed: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # nobody else gets the port
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        given = [f"model={tiny_model}", *(word.format(model=tiny_model, url=url) for word in words)]
        silent = f"note {field}: nothing answers at {url} (Connection refused); it must when {needed}"
        assert silent in _noted(check, kind, capsys, *given)
        listener.listen()
        assert field not in _noted(check, kind, capsys, *given)


def test_behind_a_proxy_nothing_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    words = ("teacher.kind=server", "teacher.server.base_url=http://127.0.0.1:9", "lesson.objective=reverse_kl")
    assert "nothing answers" not in _noted(check_distill, DistillConfig, capsys, f"model={tiny_model}", *words)
