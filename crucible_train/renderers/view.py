"""A rendered conversation token by token, for people to look at."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from crucible_train.ports import Tokenizer
from crucible_train.renderers.base import Example

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class ShownToken(NamedTuple):
    """What one token says, or several that only together are a character, or the same control token many times over.

    ``text`` is one token's name however often it stands there.
    """

    text: str
    ids: tuple[int, ...]
    is_trained: bool
    is_control: bool


def shown_tokens(example: Example, tokenizer: Tokenizer) -> list[ShownToken]:
    """The tokens of an example in order: every id is in one of them."""
    model_input, weights = example
    names = {number: name for name, number in tokenizer.control_tokens.items()}
    weighed = zip(model_input.to_array().tolist(), (weights > 0).tolist(), strict=True)
    shown: list[ShownToken] = []
    for (name, is_trained), group in groupby(weighed, key=lambda pair: (names.get(pair[0]), pair[1])):
        ids = [number for number, _ in group]
        if name is not None:
            shown.append(ShownToken(name, tuple(ids), is_trained, is_control=True))
        else:
            shown += [ShownToken(text, some, is_trained, is_control=False) for text, some in _texts(ids, tokenizer)]
    return shown


def _texts(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What each id adds to the text, whole characters only; an id is decoded beside the ones before it."""
    start = told = 0
    for end in range(1, len(ids) + 1):
        now = tokenizer.decode(ids[start:end])
        if now.endswith(_UNFINISHED) and end < len(ids):
            continue
        yield now[len(tokenizer.decode(ids[start:told])) :], tuple(ids[told:end])
        start, told = told, end
