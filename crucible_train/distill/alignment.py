"""Two tokenisations of one text: the stretches between boundaries that both have.

    student   | What| is| 12| +| 7|
    teacher   | What| is| 1|2| +| 7|        five stretches; the third is one token here and two there

The log-probability of a stretch is the sum over its tokens, in both; a token by itself has no counterpart.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crucible_train.ports import Tokenizer

Ints = npt.NDArray[np.int64]
NONE = -1
"""The stretch of a token that belongs to none."""
_BROKEN = "\N{REPLACEMENT CHARACTER}"


def text_ends(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """The text of sampled ids, and for each id where in it that id ends: ``NONE`` within a character."""
    text, ends, start = "", [], 0
    for place in range(len(ids)):
        piece = tokenizer.decode(ids[start : place + 1])
        if _BROKEN in piece and place + 1 < len(ids):
            ends.append(NONE)
            continue
        text += piece
        ends.append(len(text))
        start = place + 1
    whole = tokenizer.decode(ids)
    return (text, ends) if text == whole else (whole, _ends_within(whole, ids, tokenizer))


def _ends_within(whole: str, ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where each id ends, for a tokenizer whose ids read otherwise by themselves, such as one that drops a first space.

    An id ends where the text of all ids up to it does, if the whole text begins with that.
    """
    starts = (tokenizer.decode(ids[: place + 1]) for place in range(len(ids)))
    return [len(text) if whole.startswith(text) and _BROKEN not in text else NONE for text in starts]


def encoded_ends(text: str, tokenizer: Tokenizer) -> tuple[Sequence[int], list[int]]:
    """The ids of a text, and for each where in it that id ends: ``NONE`` within a character."""
    [encoded] = tokenizer.encode_with_offsets([text])
    starts = [*(begin for begin, _ in encoded.offsets[1:]), len(text)]
    ends = [end if start >= end else NONE for (_, end), start in zip(encoded.offsets, starts, strict=False)]
    return encoded.ids, ends


def stretches(left_ends: Sequence[int], right_ends: Sequence[int]) -> tuple[Ints, Ints]:
    """The number of the stretch that each token on the left, and on the right, belongs to."""
    shared = sorted(set(left_ends) & set(right_ends) - {NONE})
    return _numbers(left_ends, shared), _numbers(right_ends, shared)


def _numbers(ends: Sequence[int], shared: Sequence[int]) -> Ints:
    """A token belongs to the stretch that the first boundary at or after its end closes."""
    found = np.full(len(ends), NONE, np.int64)
    following = NONE
    for place in reversed(range(len(ends))):
        following = ends[place] if ends[place] != NONE else following
        number = int(np.searchsorted(shared, following)) if following != NONE else len(shared)
        found[place] = number if number < len(shared) else NONE
    return found
