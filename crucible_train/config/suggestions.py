"""The name that was probably meant."""

from collections.abc import Iterable
from difflib import SequenceMatcher

from crucible_train.config.actions import FLAGS
from crucible_train.config.aliases import OTHER_NAMES
from crucible_train.config.fields import Leaf, Tree

_NEAR_ENOUGH = 0.74
_AS_NEAR = 0.03


def did_you_mean(key: str, section: str, tree: Tree) -> str:
    """``did you mean num_train_epochs?`` for an unknown ``key`` written in ``section``; empty if nothing is near."""
    path = key.replace("-", "_")
    name = path.rpartition(".")[2]
    scores = {_as_written(leaf, key, section, tree): _score(path, name, leaf) for leaf in tree.leaves.values()}
    scores |= {branch: likeness(path, branch) for branch in tree.branches if branch}
    for other in OTHER_NAMES.values():
        if other.known(tree):
            target = other.target(tree)
            scores[f"{other.name} ({target} here)" if target else other.name] = likeness(name, other.name) - _AS_NEAR
    if not section:
        scores |= {flag: likeness(path.lstrip("_"), flag.strip("-").replace("-", "_")) for flag in FLAGS}
    return _asked(scores)


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean num_shots?`` for a ``name`` that is not one of those ``known``; empty if nothing is near."""
    return _asked({one: likeness(name, one) for one in known})


def section_of_names(names: Iterable[str], tree: Tree) -> str:
    """``did you mean train?`` for an unknown section, judged by the ``names`` in it; empty where none is known."""
    votes: dict[str, int] = {}
    for name in names:
        for leaf in tree.named.get(name.replace("-", "_"), ()):
            votes[leaf.section] = votes.get(leaf.section, 0) + 1
    votes.pop("", None)
    return f"did you mean {max(votes, key=lambda section: votes[section])}?" if votes else ""


def likeness(first: str, second: str) -> float:
    """How alike two names are, from 0 to 1: by their letters, or by their words in any order."""
    first, second = first.lower(), second.lower()
    letters = SequenceMatcher(None, first.replace("_", ""), second.replace("_", "")).ratio()
    words, other_words = set(first.split("_")), set(second.split("_"))
    if words == other_words:
        return max(letters, 0.99)
    contained = words < other_words and len(first) > 3
    return max(letters, 0.75 + 0.2 * len(words) / len(other_words) + 0.02 * letters) if contained else letters


def _score(path: str, name: str, leaf: Leaf) -> float:
    if name == leaf.name:
        return 1.0
    return max(likeness(name, leaf.name), likeness(path, leaf.path) - _AS_NEAR)


def _as_written(leaf: Leaf, key: str, section: str, tree: Tree) -> str:
    """The leaf's name in the form the user writes: bare in its own section or where it is unique, else dotted."""
    if section:
        return leaf.name if leaf.section == section else leaf.path
    bare = "." not in key and tree.unique(leaf.name) is leaf
    return leaf.name if bare else leaf.path


def _asked(scores: dict[str, float]) -> str:
    near = _best(scores)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _best(scores: dict[str, float]) -> list[str]:
    best = max(scores.values(), default=0.0)
    if best < _NEAR_ENOUGH:
        return []
    near = [name for name, score in scores.items() if score >= best - _AS_NEAR / 2]
    return sorted(near, key=lambda name: -scores[name])[:2]
