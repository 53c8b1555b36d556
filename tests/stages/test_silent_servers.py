"""A server that is needed later and does not answer yet is a note before the run, not an error."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_train.config.command import parse_command
from crucible_train.errors import ConfigError
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.recipes.post_train import PostTrainConfig
from crucible_train.stages import preflight
from crucible_train.stages.distill.preflight import check as check_distill
from crucible_train.stages.dpo.preflight import check as check_dpo
from crucible_train.stages.post_train import check as check_chain


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


@pytest.mark.parametrize("host", ["judge..local", "x" * 64 + ".local"])
def test_a_name_that_cannot_be_looked_up_is_noted(
    host: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("teacher.kind=server", f"teacher.server.base_url=http://{host}", "lesson.objective=reverse_kl")
    assert "nothing answers at" in _noted(check_distill, DistillConfig, capsys, f"model={tiny_model}", *words)


@pytest.mark.parametrize("port", ["PORT", "99999", "0", "-1"])
def test_an_address_without_a_sound_port_is_refused(port: str) -> None:
    words = ["teacher.kind=server", f"teacher.server.base_url=http://127.0.0.1:{port}"]
    with pytest.raises(ConfigError, match=r"teacher\.server\.base_url.*http or https address"):
        parse_command(DistillConfig, words, "x")


def test_a_name_server_that_never_answers_holds_nothing_up(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "_CONNECT_S", 0.2)
    may_answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: may_answer.wait(60) and [])
    words = ("teacher.kind=server", "teacher.server.base_url=http://teacher", "lesson.objective=reverse_kl")
    try:
        said = _noted(check_distill, DistillConfig, capsys, f"model={tiny_model}", *words)
    finally:
        may_answer.set()
    assert "nothing answers at http://teacher (not within 0.2 s)" in said


def test_a_chain_names_the_section_and_tells_each_note_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rate = ("win_rate.num_prompts=4", f"win_rate.judge={tiny_model}", "win_rate.judge_url=http://judge..local")
    words = [f"{method}.{word}" for method in ("sft", "dpo") for word in rate]
    said = _noted(check_chain, PostTrainConfig, capsys, f"model={tiny_model}", "stages=[dpo,evaluate,dpo]", *words)
    assert said.count("nothing answers") == 1
    assert "note dpo.win_rate.judge_url: nothing answers" in said
