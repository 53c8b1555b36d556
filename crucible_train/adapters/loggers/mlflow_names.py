"""Names as MLflow's stores take them: two that would come out alike are told apart, and stay so when a run goes on."""

import re
from collections.abc import Iterable, Mapping, Sequence

from crucible_train import files

NAME = "crucible.name."
"""Before a key, in a tag that holds the name which has that key."""
MAX_KEY = 250

_NOT_IN_NAMES = re.compile(r"[^\w./ -]")
_OWN = ("mlflow.", "crucible.")
_MAX_ALTERED, _NUM_DIGITS = 200, 8


class Names:
    """The keys of a run's metrics and params.

    A key is its name with every character replaced that some store does not take. It belongs to the name that had it
    first; another name that comes out alike gets digits of its own. What is new in ``to_note`` must become tags of the
    run, or the run would give other keys when it goes on.

    Args:
        keys: those that the run has.
        tags: those that the run has.
    """

    def __init__(self, keys: Iterable[str] = (), tags: Mapping[str, str] | None = None) -> None:
        """Learn which names have which keys."""
        noted = {key.removeprefix(NAME): name for key, name in (tags or {}).items() if key.startswith(NAME)}
        self._owners = {key: key for key in keys} | noted
        self.to_note: dict[str, str] = {}

    def key(self, name: str) -> str:
        """The key of a name."""
        key = plain_key(name)
        is_long = len(name) > (MAX_KEY if key == name else _MAX_ALTERED)
        if is_long or self._owners.get(key, name) != name:
            digits = files.sha256_bytes(name.encode(errors="replace"))[:_NUM_DIGITS]
            return f"{key[: MAX_KEY - _NUM_DIGITS - 1]}-{digits}"
        if key not in self._owners:
            self._owners[key] = name
            if key != name:
                self.to_note[NAME + key] = name
        return key


def plain_key(name: str) -> str:
    """A name with only the characters that every MLflow store takes."""
    return _NOT_IN_NAMES.sub("_", name)[:MAX_KEY].strip() or "_"


def tag_keys(tags: Sequence[str]) -> list[str]:
    """The keys of what a person tagged a run with: none is one that MLflow or we ourselves read."""
    names = Names()
    keys = [names.key(tag) for tag in tags]
    return [f"tag.{key}"[:MAX_KEY] if key.startswith(_OWN) or key == "group" else key for key in keys]
