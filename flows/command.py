"""What every command does round its flow: read the configuration, start a server where none is, run, end rightly.

Nothing heavy is imported before the configuration is known to be right.
"""

import asyncio
import atexit
import logging
import os
import pkgutil
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from crucible_train import terminal
from crucible_train.config.command import Command, parse_command
from crucible_train.errors import ConfigError, CrucibleError, Interrupted
from flows.prefect_server import TemporaryServer, configured_api_url

# The terminal shows our own lines; Prefect's, and our logger's, go to the run's page.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "crucible_train",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


@dataclass(frozen=True, slots=True)
class Program:
    """What a command is made of, each as module:name, so that nothing is imported before it is needed.

    Attributes:
        entry: the flow.
        config_type: its configuration.
        check: looks at a configuration before anything is run.
        show_plan: what ``--dry-run`` prints.
    """

    entry: str
    config_type: str
    check: str
    show_plan: str

    @property
    def module(self) -> str:
        """What ``python -m`` is given."""
        return self.entry.partition(":")[0]


SFT = Program(
    "flows.sft:sft",
    "crucible_train.recipes.sft:SFTConfig",
    "crucible_train.stages.sft_preflight:check",
    "crucible_train.stages.plan:show_plan",
)
RL = Program(
    "flows.rl:rl",
    "crucible_train.recipes.rl:RLConfig",
    "crucible_train.stages.rl.preflight:check",
    "crucible_train.stages.rl.plan:show_plan",
)
DISTILL = Program(
    "flows.distill:distill",
    "crucible_train.recipes.distill:DistillConfig",
    "crucible_train.stages.distill.preflight:check",
    "crucible_train.stages.distill.plan:show_plan",
)
DPO = Program(
    "flows.dpo:dpo",
    "crucible_train.recipes.dpo:DPOConfig",
    "crucible_train.stages.dpo.preflight:check",
    "crucible_train.stages.dpo.plan:show_plan",
)


POST_TRAIN = Program(
    "flows.post_train:post_train",
    "crucible_train.recipes.post_train:PostTrainConfig",
    "crucible_train.stages.post_train:check",
    "crucible_train.stages.post_train_plan:show_plan",
)


PROGRAMS = {"sft": SFT, "rl": RL, "dpo": DPO, "distill": DISTILL, "post_train": POST_TRAIN}


def run_command(program: Program, argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program's flow with the configuration that ``argv`` gives, and end the process."""
    words = list(sys.argv[1:] if argv is None else argv)
    _forget_main()
    for number in (signal.SIGINT, signal.SIGTERM):  # nothing to save yet, and imports swallow what a handler raises
        signal.signal(number, lambda number, _frame: os._exit(128 + number))
    server: TemporaryServer | None = None
    try:
        command = parse_command(pkgutil.resolve_name(program.config_type), words, f"python -m {program.module}")
        for note in command.notes:
            terminal.field("note", note)
        if command.action == "run":
            for key, value in QUIET.items():
                os.environ.setdefault(key, value)
            if configured_api_url() is None:
                server = TemporaryServer()
            status = _run(program, command.config, server)
        else:
            status = _answer(program, command)
    except Interrupted as stop:
        again = shlex.join(["python", "-m", program.module, *words])
        terminal.field("stopped", f"what was done is saved; to go on, run the same command again:\n{again}")
        status = stop.exit_status
    except CrucibleError as error:
        _complain(error)
        status = error.exit_status
    except Exception as error:  # noqa: BLE001 - a fault of ours: shown whole
        traceback.print_exception(error)
        status = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end(server, status)


def _forget_main() -> None:
    """Keep multiprocessing from importing this command, and Prefect with it, again in every process it starts."""
    main = sys.modules["__main__"]
    main.__spec__ = None
    main.__dict__.pop("__file__", None)


def sft() -> NoReturn:
    """Supervised fine-tuning."""
    run_command(SFT)


def rl() -> NoReturn:
    """Reinforcement learning."""
    run_command(RL)


def distill() -> NoReturn:
    """Distillation."""
    run_command(DISTILL)


def dpo() -> NoReturn:
    """Learning from preferences."""
    run_command(DPO)


def post_train() -> NoReturn:
    """A chain of methods."""
    run_command(POST_TRAIN)


def _answer(program: Program, command: Command[Any]) -> int:
    """Print what was asked for instead of a run."""
    if command.action == "dry_run":
        pkgutil.resolve_name(program.show_plan)(command.config)
    else:
        sys.stdout.write(command.text + "\n")
    return 0


def _run(program: Program, config: Any, server: TemporaryServer | None) -> int:
    pkgutil.resolve_name(program.check)(config)
    if server is not None:
        os.environ["PREFECT_API_URL"] = server.api_url
    flow = pkgutil.resolve_name(program.entry)
    logging.getLogger("crucible_train").setLevel(logging.INFO)
    logging.raiseExceptions = False
    # Prefect imports these at the first call: better while the server still starts
    import fastapi.encoders  # noqa: F401, PLC0415
    import prefect.flow_engine  # noqa: PLC0415
    import prefect.task_engine  # noqa: F401, PLC0415
    from prefect.exceptions import TerminationSignal  # noqa: PLC0415

    if server is not None:
        server.wait_until_ready()

    async def outcome() -> Any:
        state = await flow(config, return_state=True)
        return await state.aresult(raise_on_failure=False)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # the flow's body replaces both
    try:
        result = asyncio.run(outcome())
    except TerminationSignal as stop:
        raise Interrupted(int(stop.signal)) from stop
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT) from None
    if isinstance(result, BaseException):
        raise result
    return 0


def _complain(error: CrucibleError) -> None:
    lines = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
    for line in lines:
        sys.stderr.write(f"error: {line}\n")


def _end(server: TemporaryServer | None, status: int) -> NoReturn:
    """Send what Prefect still holds, let the server write it, and end without taking torch apart (0.7 s)."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker  # noqa: PLC0415
        from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

        EventsWorker.drain_all(timeout=5)
        APILogWorker.drain_all(timeout=5)
    if server is not None:
        server.stop()
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():  # of work that was left behind
            child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # noqa: SLF001 - os._exit skips them, and torch's engine thread must not hold us
    os._exit(status)
