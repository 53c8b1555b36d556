"""Every error this package raises on purpose, and the exit status each one means.

    CrucibleError
    ├── InputError            2   what the user gave is wrong; the message names it and says what to do
    │   ├── ConfigError           a field of the configuration, or an adapter that is missing
    │   ├── DataError             a file, a line, a row
    │   ├── ModelError            a model or tokenizer that cannot be used
    │   └── RenderError           a conversation the renderer cannot express; names the message
    ├── RunError              1   the run failed while it worked
    │   ├── TrainingError         a step that produced no usable update
    │   ├── RolloutError          an episode that failed where the configuration tolerates none
    │   ├── CheckpointError       no checkpoint can be trusted
    │   ├── ArtifactError         a stored blob is missing or is not what its digest says
    │   ├── SandboxError          untrusted code cannot be confined here, or its sandbox did not start
    │   └── ServerError           a model server gives no answer, or one that cannot be used
    └── Interrupted       130/143  a person or the system asked the run to stop; it was saved

Each class also derives from the built-in error it refines, so ``except ValueError`` works as expected.
The command line prints an error's text and nothing else: no traceback reaches a user for any of these.
"""

from collections.abc import Sequence


class CrucibleError(Exception):
    """The common base. ``exit_status`` is what a command ends with when it meets this error."""

    exit_status = 1


class InputError(CrucibleError, ValueError):
    """What the user gave is wrong."""

    exit_status = 2


class ConfigError(InputError):
    """One or several fields of a configuration are wrong. ``problems`` holds one line for each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        """Keep every problem, so that all of them are reported at once."""
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(InputError):
    """A file, a line or a row cannot be used."""


class ModelError(InputError):
    """A model or a tokenizer cannot be found, read or used."""


class RenderError(InputError):
    """A conversation cannot be expressed in this format. The text names the message's index and field."""


class RunError(CrucibleError, RuntimeError):
    """The run failed while it worked."""


class TrainingError(RunError):
    """A training step failed; the weights are those of the step before."""


class RolloutError(RunError):
    """An episode failed, and the configuration tolerates none that does."""


class CheckpointError(RunError):
    """No checkpoint can be trusted."""


class SandboxError(RunError):
    """Untrusted code cannot be confined on this machine, or the sandbox itself failed; never what the code did."""


class ArtifactError(RunError):
    """A stored artifact is missing or damaged."""


class ServerError(RunError):
    """A model server gives no answer, or one that cannot be used."""


class Interrupted(CrucibleError):
    """The run was asked to stop; what was done is saved.

    Args:
        signal_number: 2 for Ctrl-C, 15 for a polite kill.
        resume_hint: what to tell the user about going on.
    """

    def __init__(self, signal_number: int, resume_hint: str = "") -> None:
        """Derive the exit status from the signal, as shells do."""
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number
        super().__init__(resume_hint)
