"""The entry points: whether this Python can run a command at all, looked at before anything else is imported.

Nothing but the standard library is imported here, and nothing is written here that an older Python could not read.
"""

import importlib.util
import sys

OLDEST = (3, 11)
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "gguf",
    "datasets",
    "fsspec",
    "numpy",
    "pyarrow",
    "pydantic",
    "yaml",
    "jinja2",
    "filelock",
    "httpx",
    "rich",
    "matplotlib",
    "psutil",
    "prefect",
    "fastapi",
)
"""What ``pyproject.toml`` asks for, by the names they are imported by."""


def sft() -> None:
    """What ``python -m flows.sft`` and ``crucible-sft`` run."""
    _complain_of_what_is_missing()
    from flows.command import sft as run  # noqa: PLC0415 - only now is it known that it can be imported

    run()


def rl() -> None:
    """What ``python -m flows.rl`` and ``crucible-rl`` run."""
    _complain_of_what_is_missing()
    from flows.command import rl as run  # noqa: PLC0415 - only now is it known that it can be imported

    run()


def distill() -> None:
    """What ``python -m flows.distill`` and ``crucible-distill`` run."""
    _complain_of_what_is_missing()
    from flows.command import distill as run  # noqa: PLC0415 - only now is it known that it can be imported

    run()


def dpo() -> None:
    """What ``python -m flows.dpo`` and ``crucible-dpo`` run."""
    _complain_of_what_is_missing()
    from flows.command import dpo as run  # noqa: PLC0415 - only now is it known that it can be imported

    run()


def post_train() -> None:
    """What ``python -m flows.post_train`` and ``crucible-post_train`` run."""
    _complain_of_what_is_missing()
    from flows.command import post_train as run  # noqa: PLC0415 - only now is it known that it can be imported

    run()


def _complain_of_what_is_missing() -> None:
    problem = what_is_missing()
    if problem:
        sys.stderr.write(f"error: {problem}\n")
        sys.exit(2)


def what_is_missing() -> str:
    """What keeps this Python from running a command, in one line; empty where nothing does."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if sys.version_info < OLDEST:
        what = "is {}.{}, and {}.{} or later is needed".format(*sys.version_info[:2], *OLDEST)
    elif missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"lacks the package {missing[0]}{more}"
    else:
        return ""
    advice = 'run "source .venv/bin/activate" first; "make sft" makes .venv where there is none'
    return f"this Python ({sys.executable}) {what}; {advice}"
