"""Encoding text word by word, out of a dictionary of the words seen before.

Byte-level BPE tokenizers cut a text into words by regular expressions and merge within each word only, so the ids of a
word never depend on its neighbours. Most of a tokenizer's work is done again and again on the same words; a dictionary
does it once. A word here is what stands between two spaces, with the space before it: all the expressions known here
begin a new word at a space that follows anything but white space, and none looks back across it. So such a word can be
encoded alone, by the tokenizer itself, whatever else it holds; words after white space are encoded with what is before.
A new word of plain ASCII, such as a number, is often made of smaller ones that are known.
"""

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crucible_train.renderers.word_cuts import Cuts

_MAX_WORDS = 1 << 17
_MAX_WORD_LENGTH = 64
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHER = r"[^\r\n\p{L}\p{N}]?"
_CASES = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")
_CASES_BUT_HAN = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]")
_ANY_SPACE = r"\s+"
# In none of these does a space follow anything but white space, and only the white space of ``\s+(?!\S)`` looks ahead.
_ALTERNATIVES = frozenset(
    [
        _ANY_SPACE,
        r"\s+(?!\S)",
        r"\s*[\r\n]+",
        r"\s*[\r\n]",
        _CONTRACTIONS,
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
        *(r"\p{N}", r"\p{N}{1,3}", r" ?\p{N}+", r"\d", r"[0-9]", r"\d+"),
        *(
            _OTHER + r"\p{L}+",
            r" ?\p{L}+",
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
            r"[\p{Han}]+",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        ),
        *(
            f"{_OTHER}{upper}{first}{lower}{then}{suffix}"
            for upper, lower in (_CASES, _CASES_BUT_HAN)
            for first, then in (("*", "+"), ("+", "*"))
            for suffix in ("", f"{_CONTRACTIONS}?")
        ),
        *(
            r" ?[^\s\p{L}\p{N}]+",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r" ?[\p{P}\p{S}]+[\r\n]*",
        ),
        '[!"#' r"$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
    ]
)
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

Encode = Callable[[list[str]], Iterable[Sequence[int]]]


class Words:
    """The words a tokenizer has seen, with their ids.

    Args:
        encode: the tokenizer's own ids of texts.
        cuts: how it cuts plain text, where that is known.
    """

    def __init__(self, encode: Encode, cuts: Cuts | None = None) -> None:
        """Begin with no words."""
        self._encode = encode
        # int32, side by side: joining them joins the ids. Words are without their space, or with one where they open a
        # text, and end in anything but white space, so another may follow. What does not is in a dictionary of its own.
        self._words: dict[str, bytes] = {}
        self._others: dict[str, bytes] = {}
        self._cuts = cuts
        self._atoms: dict[str, bytes] = {}  # by what the tokenizer itself cuts plain text into

    @classmethod
    def of(cls, definition: Mapping[str, Any], encode: Encode) -> Self | None:
        """For a parsed ``tokenizer.json``; None where it is not byte-level BPE, or cuts in a way not known here."""
        model = definition["model"]
        if definition.get("added_tokens"):  # ordinary words that are looked for in the whole text
            return None
        if model.get("type") != "BPE" or model.get("dropout") or not _keeps_spaces(definition.get("normalizer")):
            return None
        pre_tokenizer = definition.get("pre_tokenizer")
        return cls(encode, Cuts.of(pre_tokenizer)) if _begins_words_at_spaces(pre_tokenizer) else None

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The ids of texts."""
        made: list[bytes] = []
        known = self._words.__getitem__
        late: list[tuple[int, list[bytes], list[tuple[int, str]]]] = []
        for text in texts:
            words = text.split(" ")
            words[0] = f" {words[0]}"
            try:
                made.append(b"".join(map(known, words)))
            except KeyError:
                late.append((len(made), *self._parts(words)))
                made.append(b"")
        if late:
            found = self._learn({part for _, _, unknown in late for _, part in unknown})
            for number, parts, unknown in late:
                for place, part in unknown:
                    parts[place] = found[part]
                made[number] = b"".join(parts)
        return [np.frombuffer(ids, np.int32) for ids in made]

    def _parts(self, words: Sequence[str]) -> tuple[list[bytes], list[tuple[int, str]]]:
        """The ids of a text cut at its spaces, as far as they are known, and the parts yet to be encoded, by place."""
        parts: list[bytes] = list(map(self._words.get, words, repeat(b"")))
        unknown: list[tuple[int, str]] = []
        place, num = -1, len(words)
        with suppress(ValueError):  # no more
            while True:
                first = place = parts.index(b"", place + 1)
                part = f" {words[place]}" if place else words[0][1:]
                while not _ends_a_word(part) and place + 1 < num:
                    place += 1
                    part = f"{part} {words[place]}"
                    parts[place] = b""
                if (ids := self._others.get(part)) is not None:
                    parts[first] = ids
                elif part:
                    unknown.append((first, part))
        return parts, unknown

    def _learn(self, parts: Collection[str]) -> Mapping[str, bytes]:
        """The ids of these parts of texts, known from now on."""
        found = self._encode_parts(list(parts))
        words, others = self._words, self._others  # another thread may put new ones in their place meanwhile
        if len(words) > _MAX_WORDS:
            self._words = words = {}
        if len(others) > _MAX_WORDS:
            self._others = others = {}
        for part, ids in found.items():
            if len(part) <= _MAX_WORD_LENGTH:
                if " " in part[1:] or not _ends_a_word(part):
                    others[part] = ids
                else:
                    words[part[1:] if part[0] == " " else f" {part}"] = ids
        return found

    def _encode_parts(self, parts: Sequence[str]) -> dict[str, bytes]:
        """The ids of parts: joined from those of what the tokenizer cuts them into, else the tokenizer's own."""
        atoms, cut, whole = self._atoms, dict[str, list[str]](), list[str]()
        for part in parts:
            if (words := self._cuts(part) if self._cuts is not None else None) is None:
                whole.append(part)
            else:
                cut[part] = words
        new = [atom for atom in dict.fromkeys(chain.from_iterable(cut.values())) if atom not in atoms]
        asked = [*new, *whole]
        made = {text: array("i", ids).tobytes() for text, ids in zip(asked, self._encode(asked), strict=True)}
        found = {part: made[part] for part in whole}
        for part, words in cut.items():
            found[part] = b"".join([made[atom] if atom in made else atoms[atom] for atom in words])
        if len(atoms) > _MAX_WORDS:
            self._atoms = atoms = {}
        atoms.update((atom, made[atom]) for atom in new if len(atom) <= _MAX_WORD_LENGTH)
        return found


def _ends_a_word(text: str) -> bool:
    """Whether a space that follows begins a new word."""
    return bool(text) and not text[-1].isspace()


def _keeps_spaces(normalizer: Mapping[str, Any] | None) -> bool:
    """Whether normalising word by word gives what normalising all of them together does."""
    if normalizer is None or normalizer["type"] == "NFC":
        return True
    return normalizer["type"] == "Sequence" and all(map(_keeps_spaces, normalizer["normalizers"]))


def _begins_words_at_spaces(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether a space after anything but white space always begins a word, as far as the cuts are known here."""
    if pre_tokenizer is None:
        return False
    *parts, last = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    cuts: list[list[str]] = [_alternatives(_BYTE_LEVEL)] if last.get("use_regex", True) else []
    for part in parts:
        match part:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                cuts.append(_alternatives(pattern))
            case {"type": "Digits"}:
                cuts.append([r"\p{N}"])
            case _:
                return False
    # What no alternative matches stays together, so there must be one for every space.
    return any(_ANY_SPACE in cut for cut in cuts) and all(_ALTERNATIVES.issuperset(cut) for cut in cuts)


def _alternatives(pattern: str) -> list[str]:
    """The alternatives of an expression, with its line ends as escapes."""
    found, depth, is_class, place = [""], 0, False, 0
    pattern = pattern.replace("\r", "\\r").replace("\n", "\\n")
    while place < len(pattern):
        char = pattern[place : place + 2] if pattern[place] == "\\" else pattern[place]
        place += len(char)
        if char == "|" and not depth and not is_class:
            found.append("")
            continue
        found[-1] += char
        if is_class:
            is_class = char != "]"
        elif char == "[":
            is_class = True
        else:
            depth += (char == "(") - (char == ")")
    return found
