"""The loggers: one that fails is dropped with a line, and the console is quiet and plain where nobody watches."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_train.adapters.loggers.console import ConsoleLogger, duration
from crucible_train.adapters.loggers.multiplex import MultiplexLogger
from crucible_train.ports import RunInfo


def run_info(num_steps: int = 16, first_step: int = 0) -> RunInfo:
    return RunInfo("run", Path("nowhere"), {}, num_steps, first_step)


class Recorder:
    """Keeps what it is told, and fails in one verb from its ``after``-th call on."""

    def __init__(self, fails_in: str = "", after: int = 1) -> None:
        self.told: list[str] = []
        self._fails_in, self._after = fails_in, after

    def __getattr__(self, verb: str):
        def call(*_):
            self.told.append(verb)
            if verb == self._fails_in and self.told.count(verb) >= self._after:
                raise ConnectionError(f"no {verb}")

        return call


def report(logger: MultiplexLogger) -> None:
    logger.start(run_info())
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": 1.0}, step)
    logger.log_text("sample", "x", 3)
    logger.finish("done")


ALL = ["start", "log_metrics", "log_metrics", "log_metrics", "log_text", "finish"]


@pytest.mark.parametrize(
    ("fails_in", "after", "heard"),
    [("start", 1, 1), ("log_metrics", 1, 2), ("log_metrics", 3, 4), ("log_text", 1, 5), ("finish", 1, 6)],
)
def test_a_logger_that_fails_is_reported_once_and_dropped_and_the_others_hear_everything(fails_in, after, heard):
    first, failing, last = Recorder(), Recorder(fails_in, after), Recorder()
    lines: list[str] = []
    logger = MultiplexLogger({"first": first, "wandb": failing, "last": last}, lines.append)
    report(logger)
    assert lines == [f"logger wandb is dropped: ConnectionError: no {fails_in}"]
    assert first.told == last.told == ALL
    assert failing.told == ALL[:heard]
    assert list(logger.names) == ["first", "last"]


def test_every_failing_logger_is_reported_by_its_own_name():
    lines: list[str] = []
    report(MultiplexLogger({"a": Recorder("log_metrics"), "b": Recorder("log_metrics")}, lines.append))
    assert [line.split()[1] for line in lines] == ["a", "b"]


def test_the_user_who_stops_the_run_is_not_taken_for_a_failing_logger():
    class Stopped(Recorder):
        def log_metrics(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report(MultiplexLogger({"a": Stopped()}, pytest.fail))


def train(logger: ConsoleLogger, num_steps: int, eval_every: int = 0, first_step: int = 0) -> None:
    logger.start(run_info(num_steps, first_step))
    for step in range(first_step + 1, num_steps + 1):
        metrics = {"train/loss": 2.0 / step, "optim/learning_rate": 1e-4, "perf/tokens_per_second": 1234.5}
        if eval_every and step % eval_every == 0:
            metrics |= {"eval/nll": 1.25, "eval/perplexity": 3.5}
        logger.log_metrics(metrics, step)
    logger.finish("done")


def test_sixteen_steps_with_four_evaluations_are_twelve_plain_lines(capsys):
    train(ConsoleLogger(), 16, eval_every=4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert re.fullmatch(r"  step  2/16  loss 1\.000  lr 1\.00e-04  123[45] tokens/s  \d:\d\d left", lines[0])
    assert lines[2] == "  evaluation at step 4: nll 1.25  perplexity 3.5"
    assert re.fullmatch(r"  step 16/16  loss 0\.125 .* 0:00 left", lines[-2])
    assert not any("\x1b" in line or "\r" in line for line in lines)


@pytest.mark.parametrize("num_steps", [1, 7, 8, 9, 100, 12345])
def test_a_run_of_any_length_has_at_most_eight_lines_and_shows_its_last_step(num_steps, capsys):
    train(ConsoleLogger(), num_steps)
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 8
    assert lines[-1].strip().startswith(f"step {num_steps}/{num_steps} ")


def test_what_is_measured_before_the_first_step_is_not_shown_as_progress(capsys):
    logger = ConsoleLogger()
    logger.start(run_info())
    logger.log_metrics({"eval/nll": 2.0}, 0)
    assert capsys.readouterr().out == ""


def test_a_loss_without_a_learning_rate_is_shown(capsys):
    logger = ConsoleLogger()
    logger.start(run_info(num_steps=1))
    logger.log_metrics({"train/loss": 0.5}, 1)
    assert re.fullmatch(r"  step 1/1  loss 0\.500  0 tokens/s  0:00 left\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (3600, "1 h 00 min"), (7384, "2 h 03 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


PROGRAM = """
from pathlib import Path
from crucible_train.adapters.loggers.console import ConsoleLogger
from crucible_train.ports import RunInfo
logger = ConsoleLogger()
logger.start(RunInfo("run", Path("x"), {}, 16, 0))
for step in range(1, 17):
    logger.log_metrics({"train/loss": 1.0, "perf/tokens_per_second": 99.0}, step)
    if step == 8:
        logger.log_metrics({"eval/nll": 1.5}, step)
logger.finish("done")
print("after")
"""


def test_on_a_terminal_the_bar_goes_away_and_leaves_evaluations_and_what_follows():
    main, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        try:
            while block := os.read(main, 4096):
                shown += block
        except OSError:  # the other end is closed
            pass
        os.close(main)
    assert process.returncode == 0
    assert b"step " in shown
    assert b"99 tokens/s" in shown
    assert b"\x1b[?25h" in shown  # the cursor is given back
    assert shown.count(b"evaluation at step 8: nll 1.5") == 1
    assert shown.rstrip().endswith(b"after")
