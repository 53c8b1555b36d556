"""Tags, and the end of a run directory."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from crucible_train import files, terminal
from crucible_train.errors import ConfigError, RunError
from crucible_train.report.conversations import visible
from crucible_train.runs.reading import TAGS, TRACKING, Run, find_run

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,63}")


def tag(run: Run, tags: Sequence[str]) -> None:
    """Add tags to a run.

    Raises:
        ConfigError: a tag is no word, or the run's tags cannot be read.
    """
    wrong = [one for one in tags if not _TAG.fullmatch(one)]
    if wrong:
        raise ConfigError(f"tag {wrong[0]!r}: letters, digits and . _ : / = + - in one word of at most 64, please")
    _write(run, {*_tags(run), *tags})


def untag(run: Run, tags: Sequence[str]) -> None:
    """Take tags from a run.

    Raises:
        ConfigError: the run does not have a tag, or its tags cannot be read.
    """
    standing = _tags(run)
    missing = [one for one in tags if one not in standing]
    if missing:
        raise ConfigError(f"{run.run_id}: it has no tag {missing[0]!r}; its tags are {' '.join(standing) or 'none'}")
    _write(run, set(standing) - set(tags))


def delete(names: Sequence[str], folder: Path, *, is_sure: bool) -> None:
    """Delete run directories that lie in ``folder``, after a question unless ``is_sure``: all of them or none.

    What an earlier deletion could not finish goes too when the run is named again.

    Raises:
        ConfigError: one is no run, is at work, is a link or lies elsewhere, or there is nobody to ask.
        RunError: not all of one could be deleted.
    """
    remains = {path for name in names for path in _remains(name, folder)}
    there = [name for name in names if _is_there(name, folder) or not _remains(name, folder)]
    runs = list({run.path: run for run in (_to_delete(name, folder) for name in there)}.values())
    if runs and not is_sure:
        if not sys.stdin.isatty():
            raise ConfigError("--yes: there is no terminal to ask at, so say this to delete without a question")
        if not _agrees(runs):
            terminal.say("nothing was deleted")
            return
    for path in sorted(remains):
        _delete(path, files.remove)
    for run in runs:
        _delete(run.path, files.discard)


def _delete(path: Path, remove: Callable[[Path], None]) -> None:
    try:
        remove(path)
    except OSError as error:
        again = "once that is mended, delete it again"
        raise RunError(f"{path}: not all of it could be deleted: {error}; {again}") from error
    terminal.field("deleted", str(path))


def _remains(name: str, folder: Path) -> list[Path]:
    """What an earlier deletion has left of a run."""
    own = Path(name).name
    return files.discarded(folder / own) if own else []


def _is_there(name: str, folder: Path) -> bool:
    return any(path.is_dir() or path.is_symlink() for path in (folder / name, Path(name).expanduser()))


def _to_delete(name: str, folder: Path) -> Run:
    """The run that is meant, by its path without links.

    Raises:
        ConfigError: it may not be deleted.
    """
    inside, path = folder / name, Path(name).expanduser()
    found = inside if inside.is_dir() or inside.is_symlink() else path
    if found.is_symlink():
        raise ConfigError(f"{found}: it is a link, and only a run directory itself is deleted")
    found = find_run(name, folder).path.resolve()
    if found.parent != folder.resolve():
        raise ConfigError(f"{found}: it does not lie in {folder}; say --folder {found.parent} if it should go")
    if files.is_held(found):
        raise ConfigError(f"{found}: a process works in it; stop that first")
    if files.is_held(found / TRACKING):
        raise ConfigError(f"{found}: it is being sent to a tracker; wait for that, or end that process first")
    return Run(found)


def _agrees(runs: Sequence[Run]) -> bool:
    for run in runs:
        terminal.say(visible(f"{run.path}  {run.status}  {' '.join(run.tags)}".rstrip()))
    what = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
    try:
        return input(f"Delete {what} with models and checkpoints? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _tags(run: Run) -> list[str]:
    if (run.path / TAGS).exists() and not isinstance(files.read_json(run.path / TAGS), list):
        raise ConfigError(f"{run.path / TAGS}: it holds no list of tags; delete it to begin anew")
    return run.tags


def _write(run: Run, tags: set[str]) -> None:
    files.write_json(run.path / TAGS, sorted(tags))
    terminal.field("tags", f"{run.run_id}: {' '.join(sorted(tags)) or 'none'}")
