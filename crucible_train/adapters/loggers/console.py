"""The run on the terminal: a live bar, or plain lines where there is no terminal."""

import time
from collections.abc import Mapping

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crucible_train import terminal
from crucible_train.adapters.loggers.base import QuietLogger
from crucible_train.ports import Opened, RunInfo, RunStatus

_NUM_PLAIN_LINES = 8


class ConsoleLogger(QuietLogger):
    """Shows step, loss or reward, tokens a second and time left; an evaluation gets a line of its own."""

    def __init__(self) -> None:
        """Nothing is shown before the run starts."""
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._num_steps = 0
        self._first_step = 0
        self._started = 0.0

    def start(self, run: RunInfo) -> Opened:
        """Begin to show."""
        self._num_steps, self._first_step = run.num_steps, run.first_step
        self._started = time.monotonic()
        if not terminal.console().is_terminal:
            return Opened()
        self._progress = Progress(
            TextColumn("  step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figure]}  {task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=terminal.console(),
            transient=True,
        )
        self._task = self._progress.add_task("", total=run.num_steps, completed=run.first_step, figure="", speed="")
        self._progress.start()
        return Opened()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Show a step."""
        if "train/loss" in metrics or ("reward/mean" in metrics and step > 0):
            self._show_step(metrics, step)
        if any(name.startswith("eval/") for name in metrics):
            self._show_evaluation(metrics, step)

    def finish(self, status: RunStatus) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _show_step(self, metrics: Mapping[str, float], step: int) -> None:
        figure, speed = _figure(metrics), _speed(metrics)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, figure=figure, speed=speed)
            return
        every = max(1, -(-self._num_steps // _NUM_PLAIN_LINES))
        if step % every == 0 or step == self._num_steps:
            left = (time.monotonic() - self._started) / max(1, step - self._first_step) * (self._num_steps - step)
            rate = f"  lr {metrics['optim/learning_rate']:.2e}" if "optim/learning_rate" in metrics else ""
            terminal.say(
                f"  step {step:>{len(str(self._num_steps))}}/{self._num_steps}  {figure}{rate}  "
                f"{speed}  {duration(left)} left"
            )

    def _show_evaluation(self, metrics: Mapping[str, float], step: int) -> None:
        shown = [
            f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items() if name.startswith("eval/")
        ]
        if step > 0:
            terminal.say(f"  evaluation at step {step}: " + "  ".join(shown))


def _figure(metrics: Mapping[str, float]) -> str:
    """What a step is judged by: its reward where there is one, else its loss."""
    if "reward/mean" in metrics:
        mixed = metrics.get("sample/frac_mixed", 0.0)
        return f"reward {metrics['reward/mean']:.3f}  groups that teach {mixed:.0%}"
    return f"loss {metrics['train/loss']:.3f}"


def _speed(metrics: Mapping[str, float]) -> str:
    if "perf/sampled_tokens_per_second" in metrics:
        return f"{metrics['perf/sampled_tokens_per_second']:.0f} tokens/s sampled"
    return f"{metrics.get('perf/tokens_per_second', 0):.0f} tokens/s"


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
