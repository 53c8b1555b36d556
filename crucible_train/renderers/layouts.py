"""What a format writes round plain text, encoded once.

Most conversations are plain: every message is a role and a text. What is written round the texts then depends on the
roles alone, so it is listed once for conversations of these roles, and all others are filled in: text is encoded, and
put between ids that are known.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crucible_train.errors import RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers.pieces import MAX_HEADER, Kind, Piece, control_id, differ, runs_of
from crucible_train.types import EncodedTextChunk, Message, ModelInput

Rendered = tuple[ModelInput, npt.NDArray[np.float32]]
_PLAIN_KEYS = {"role", "content"}


class Plain(NamedTuple):
    """A conversation of roles and texts only."""

    roles: tuple[str, ...]
    texts: list[str]


class Slot(NamedTuple):
    """Where a message's text stands.

    Attributes:
        message: its index.
        before: what is encoded together with it and stands before it.
        after: the same, and after it.
        header: the ids with which all of that must begin, for the weights to fall on whole tokens.
        share: the place of its number of tokens among the layout's.
    """

    message: int
    before: str
    after: str
    header: bytes
    share: int


class Layout:
    """The ids round the texts of a conversation, and the weights of all.

    Attributes:
        slots: where the texts stand.
        fixed: the ids before each of them, and after the last.
        nums: how many tokens of one weight follow each other; nought where a text's number is to be added.
        weights: the weight of each such stretch.
    """

    def __init__(
        self, slots: Sequence[Slot], fixed: Sequence[npt.NDArray[np.int32]], shares: Sequence[tuple[int, float]]
    ) -> None:
        """Take all of it."""
        self.slots = slots
        self.fixed = fixed
        self.nums = [num for num, _ in shares]
        self.weights = [weight for _, weight in shares]


def plain(messages: object, marks: Sequence[str]) -> Plain | None:
    """The roles and texts of a conversation that has nothing else, and whose texts hold no mark.

    Nor does one begin or end in white space, or is empty.
    """
    if type(messages) is not list and type(messages) is not tuple:
        return None
    roles: list[str] = []
    texts: list[str] = []
    for message in messages:
        role, text = _role_and_text(message)
        if type(role) is not str or type(text) is not str or not text or text[0].isspace() or text[-1].isspace():
            return None
        roles.append(role)
        texts.append(text)
    if any(mark in text for mark in marks for text in texts):
        return None
    return Plain(tuple(roles), texts)


def _role_and_text(message: object) -> tuple[object, object]:
    """All there is in a message; None and None where there is more."""
    if type(message) is dict:
        return (message["role"], message["content"]) if message.keys() == _PLAIN_KEYS else (None, None)
    if type(message) is not Message or message.tool_calls or message.tool_call_id is not None:
        return None, None
    return (message.role, message.content) if message.name is None and message.trainable is None else (None, None)


def probe(roles: Iterable[str]) -> list[Message]:
    """A conversation of these roles whose texts are found again in what is written."""
    return [Message(role, _sign(index)) for index, role in enumerate(roles)]


def layout_of(
    pieces: Iterable[Piece], trained: frozenset[int], num_messages: int, tokenizer: Tokenizer
) -> Layout | None:
    """The layout of a probe's pieces; None where they do not show every text once as it is, or nothing is trained."""
    drawing = _Drawing(trained, num_messages, tokenizer)
    if not all(drawing.add(text, run) for text, run in runs_of(pieces)) or not drawing.is_complete:
        return None
    return Layout(drawing.slots, [np.array(ids, np.int32) for ids in drawing.fixed], drawing.shares)


class _Drawing:
    """A layout that is being made out of runs of pieces."""

    def __init__(self, trained: frozenset[int], num_messages: int, tokenizer: Tokenizer) -> None:
        self.slots: list[Slot] = []
        self.fixed: list[list[int]] = [[]]
        self.shares: list[tuple[int, float]] = [(0, 0.0)]
        self._trained = trained
        self._tokenizer = tokenizer
        self._signs = [_sign(index) for index in range(num_messages)]
        self._missing = {sign: index for index, sign in enumerate(self._signs)}
        self._is_trained = False

    @property
    def is_complete(self) -> bool:
        """Whether every text has its place, and a token that is always there is trained."""
        return self._is_trained and not self._missing

    def add(self, text: str | None, run: Sequence[Piece]) -> bool:
        """Add a run of pieces; whether a layout can hold it."""
        first, last = run[0], run[-1]
        if text is None:
            if first.kind is not Kind.CONTROL:
                return False
            self._add_fixed([control_id(first.text, self._tokenizer)], self._weight(first))
            return True
        num_header = next((place for place, piece in enumerate(run) if differ(piece, first)), 0)
        if any(differ(piece, last) for piece in run[num_header:]):
            return False  # texts of more than two owners
        header = self._tokenizer.encode("".join([piece.text for piece in run[:num_header]])) if num_header else ()
        places = [place for place, piece in enumerate(run) if any(sign in piece.text for sign in self._signs)]
        if places:
            return places[0] >= num_header and len(places) == 1 and self._add_slot(run, places[0], header)
        ids = self._tokenizer.encode(text)
        self._add_fixed(ids[: len(header)], self._weight(first))
        self._add_fixed(ids[len(header) :], self._weight(last))
        return list(ids[: len(header)]) == list(header)

    def _add_slot(self, run: Sequence[Piece], place: int, header: Sequence[int]) -> bool:
        """Add a run in which a message's text stands, after the ids of a header or of nothing."""
        before, after = ("".join([piece.text for piece in some]) for some in (run[:place], run[place + 1 :]))
        index = self._missing.pop(run[place].text, None)
        if index is None or len(before) > MAX_HEADER:
            return False
        weights = self._weight(run[0]), self._weight(run[-1])
        must_begin = np.array(header if weights[0] != weights[1] else (), np.int32).tobytes()
        self._count(len(header), weights[0])
        self._count(-len(header), weights[1])
        self.slots.append(Slot(index, before, after, must_begin, len(self.shares) - 1))
        self.fixed.append([])
        return True

    def _add_fixed(self, ids: Sequence[int], weight: float) -> None:
        self.fixed[-1] += ids
        self._count(len(ids), weight)
        self._is_trained = self._is_trained or bool(ids and weight)

    def _count(self, num: int, weight: float) -> None:
        """Count tokens in, together with those of the same weight before them."""
        if self.shares[-1][1] == weight:
            self.shares[-1] = (self.shares[-1][0] + num, weight)
        else:
            self.shares.append((num, weight))

    def _weight(self, piece: Piece) -> float:
        return 1.0 if piece.is_output and piece.message in self._trained else 0.0


def filled(
    dialogues: Sequence[tuple[object, object]],
    marks: Sequence[str],
    layout_for: Callable[[tuple[str, ...]], Layout | None],
    tokenizer: Tokenizer,
) -> list[Rendered | None]:
    """Conversations with their tools, filled into the layouts of their roles; None for any that is not plain.

    None also for one that has tools, whose texts hold a mark, or whose roles have no layout.
    """
    made: list[Rendered | None] = [None] * len(dialogues)
    places: list[int] = []
    laid: list[tuple[Layout, Sequence[str]]] = []
    for place, (messages, tools) in enumerate(dialogues):
        found = plain(messages, marks) if tools is None else None
        layout = None if found is None else layout_for(found.roles)
        if found is not None and layout is not None:
            places.append(place)
            laid.append((layout, found.texts))
    for place, example in zip(places, _filled(laid, tokenizer), strict=True):
        made[place] = example
    return made


def _filled(laid: Sequence[tuple[Layout, Sequence[str]]], tokenizer: Tokenizer) -> list[Rendered | None]:
    """Conversations with their weights; None where texts cannot be encoded, or a token joins a header and its text."""
    if not laid:
        return []
    asked = [f"{slot.before}{texts[slot.message]}{slot.after}" for layout, texts in laid for slot in layout.slots]
    try:
        encoded = tokenizer.encode_batch(asked)
    except RenderError:
        return [None] * len(laid)
    parts: list[npt.NDArray[np.int32]] = []
    nums: list[int] = []
    weights: list[float] = []
    ends: list[int] = []
    end = place = 0
    for layout, _ in laid:
        own = layout.nums.copy()
        is_whole = True
        for slot, before in zip(layout.slots, layout.fixed, strict=False):
            ids = encoded[place]
            place += 1
            own[slot.share] += len(ids)
            if slot.header and ids[: len(slot.header) // 4].tobytes() != slot.header:
                is_whole = False
            parts += (before, ids)
        parts.append(layout.fixed[-1])
        nums += own
        weights += layout.weights
        end += sum(own)
        ends.append(end if is_whole else -end)
    ids_T = np.concatenate(parts)
    weights_T = np.repeat(np.array(weights, np.float32), nums)
    made: list[Rendered | None] = []
    start = 0
    for end in ends:
        if end > 0:
            chunk = EncodedTextChunk.trusted(ids_T[start:end])
            made.append((ModelInput((chunk,)), weights_T[start:end]))
        else:
            made.append(None)
        start = abs(end)
    return made


def _sign(index: int) -> str:
    return f"\ue000{index}\ue001"
