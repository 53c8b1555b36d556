"""A process that has imported everything and forks a child for each task: a start costs milliseconds, not seconds.

It reads one task a line, as JSON, and answers with two lines: the child's pid, and how it ended. Nothing is computed
here, so the child is as fresh as a new process.
"""

import ctypes
import errno
import gc
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pandas  # noqa: F401
import peft.utils.transformers_weight_conversion  # noqa: F401
import pyarrow.compute  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
import trial
from safetensors.numpy import save_file

from crucible_train import checkpoints, files
from crucible_train.metrics_file import MetricsFile

CHANGING_CALLS = ("fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir")
_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, -1


class Fault:
    """Strikes just before the ``at``-th call that changes the disk: kills the process, or makes that call fail."""

    def __init__(self, at: int, error: str | None, lasts: bool) -> None:
        self.num_calls = 0
        self._at, self._error, self._lasts = at, error, lasts
        self._lock = threading.Lock()
        for name in CHANGING_CALLS:
            setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.num_calls += 1
                is_struck = self.num_calls == self._at or (self._lasts and 0 < self._at < self.num_calls)
            if is_struck and self._error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            if is_struck:
                raise OSError(getattr(errno, str(self._error)), os.strerror(getattr(errno, str(self._error))))
            return call(*args, **kwargs)

        return watched


def make_world(task: dict[str, Any]) -> None:
    trial.make_world(Path(task["path"]))


def train(task: dict[str, Any]) -> Any:
    """A whole run; ``kill_after`` ends it when that step is logged and the checkpoint of that name is there."""
    run_dir = Path(task["run_dir"])

    def on_step(step: int) -> None:
        if "kill_after" in task and step == task["kill_after"][0]:
            while not (run_dir / "checkpoints" / task["kill_after"][1]).is_dir():
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)

    made = trial.Trial(Path(task["world"]), run_dir, task.get("fields", {}), on_step, reports=task["reports"])
    result = made.run()
    return {"num_steps": result.num_steps, "published_step": result.published_step}


def save(task: dict[str, Any]) -> Any:
    """What the engine's thread writes when it saves, and what follows: a new checkpoint, then the old one goes."""
    folder = checkpoints.CheckpointFolder(Path(task["run_dir"]))
    step = task["step"]

    def fill(temporary: Path) -> None:
        save_file({"weights": np.full(3000, step, np.float32)}, temporary / "adapter_model.safetensors")
        files.write_text(temporary / "loop.json", files.canonical_json({"step": step}))

    checkpoints.write_checkpoint(folder.path / checkpoints.checkpoint_name(step), fill)
    folder.prune(1, frozenset())


def write(task: dict[str, Any]) -> None:
    """One file, in several writes."""
    with files.atomic_open(Path(task["path"])) as file:
        for _ in range(3):
            file.write(task["text"].encode() * 10_000)


def create(task: dict[str, Any]) -> bool:
    """One new file."""
    return files.create_bytes(Path(task["path"]), task["text"].encode() * 10_000)


def log(task: dict[str, Any]) -> None:
    """A few steps into a run's metrics, and one more try after a failure."""
    metrics = MetricsFile(Path(task["run_dir"]))
    try:
        for step in range(50):
            metrics.log_metrics({"train/loss": step + 0.123456789, "time/step_s": 1.5}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        metrics.flush()


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "make_world": make_world,
    "train": train,
    "save": save,
    "write": write,
    "create": create,
    "log": log,
}


def child(task: dict[str, Any]) -> None:
    """Do the task and write what came of it beside the others' answers."""
    answer: dict[str, Any] = {"reports": []}
    output = os.open(task["answer"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if task.get("is_traced"):
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
        while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
            time.sleep(0.001)
    fault = Fault(task.get("at", 0), task.get("error"), task.get("lasts", False))
    if "max_file_bytes" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["max_file_bytes"], resource.RLIM_INFINITY))
    try:
        answer["value"] = TASKS[task["do"]](task | {"reports": answer["reports"]})
    except BaseException as error:  # noqa: BLE001 - the test that asked is told
        traceback.print_exc()
        answer["error"] = str(error)
        answer["kinds"] = [kind.__name__ for kind in type(error).__mro__]
    answer["num_calls"] = fault.num_calls
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(task["answer"]).write_text(json.dumps(answer))


def main() -> None:
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                child(task)
            finally:
                os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
