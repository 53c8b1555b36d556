"""What a sandboxed program may use, and how a run of it ended."""

from dataclasses import dataclass, fields
from enum import StrEnum

from crucible_train.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use.

    Attributes:
        wall_s: seconds on the clock, from the moment the program starts.
        cpu_s: seconds of processor time, all threads together, rounded up to whole seconds.
        memory_bytes: address space of the process.
        output_bytes: standard output and standard error together.
        value_bytes: the JSON of one returned value.
        file_bytes: one file.
        folder_bytes: all files of its folder together. One that has lost its name while it is open or mapped counts
            only where we are root and may trace: docs/sandbox.md says what bounds those elsewhere.
        num_files: files and folders in its folder; they may be nested 32 deep.
        num_open: open descriptors.
        num_threads: threads; there is always exactly one process.
    """

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 20
    value_bytes: int = 64 << 10
    file_bytes: int = 8 << 20
    folder_bytes: int = 64 << 20
    num_files: int = 1000
    num_open: int = 64
    num_threads: int = 32

    def __post_init__(self) -> None:
        """Refuse what would mean no limit, or no run."""
        wrong = [field.name for field in fields(self) if not getattr(self, field.name) > 0]
        if wrong:
            raise ConfigError([f"Limits.{name} must be above 0, not {getattr(self, name)}" for name in wrong])


class Status(StrEnum):
    """How a run ended. Everything but ``OK`` is an answer of the program too, never a fault of the harness."""

    OK = "ok"
    ERROR = "error"  # an exception, or an exit status that is not 0
    TIMEOUT = "timeout"  # of wall_s or of cpu_s
    MEMORY = "memory"
    OUTPUT = "output"  # more than output_bytes, or more results than fit the calls
    FILES = "files"  # more than num_files or folder_bytes
    KILLED = "killed"  # by a signal, such as a segmentation fault
    MALFORMED = "malformed"  # lines on the channel that the launcher would not have written


@dataclass(frozen=True, slots=True)
class Result:
    """One run of a program.

    Attributes:
        status: how it ended.
        stdout: what it wrote, undecodable bytes escaped, cut at ``output_bytes``.
        stderr: the same for standard error.
        exit_code: its exit status; None if a signal ended it.
        signal: the signal that ended it; None if it exited.
        exception: the class name of the exception it ended with, as the program reports it.
        duration_s: seconds on the clock, without starting the interpreter.
    """

    status: Status
    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    exception: str | None
    duration_s: float
