"""Encoding plain ASCII text word by word, out of a dictionary of the words seen before.

Byte-level BPE tokenizers cut a text into words by regular expressions and merge within each word only, so the ids of a
word never depend on its neighbours. Most of a tokenizer's work is done again and again on the same words; a dictionary
does it once. ASCII only: there Python's expressions and the tokenizers' mean the same, and normalisation changes
nothing. Text with any other character is the tokenizer's own to encode.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as RustTokenizer

_MAX_WORDS = 1 << 17
_MAX_WORD_LENGTH = 64
_NOT_PLAIN = re.compile(r"[^\t\n\r -~]")
# Unicode's properties among the plain ASCII characters, as the inside of a character class.
_PROPERTIES = {
    "L": "A-Za-z",
    "Lu": "A-Z",
    "Ll": "a-z",
    "Lt": "",
    "Lm": "",
    "Lo": "",
    "M": "",
    "N": "0-9",
    "Nd": "0-9",
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
    "S": r"$+<->\^`|~",
    "Han": "",
}
_NOT_HAN = r"&&[^\p{Han}]"
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PROPERTY = re.compile(r"\\p\{(\w+)\}")

Split = Callable[[str], list[str]]


class Words:
    """The words a tokenizer has seen, with their ids.

    Args:
        splits: cut a text into words, one after the other.
        bare: the tokenizer without normalisation and without cuts.
    """

    def __init__(self, splits: Sequence[Split], bare: RustTokenizer) -> None:
        """Begin with no words."""
        self._first, *self._others = splits
        self._bare = bare
        self._ids: dict[str, bytes] = {}  # int32, side by side: joining them joins the ids

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> Self | None:
        """For a parsed ``tokenizer.json``; None where it is not byte-level BPE, or cuts in a way not known here."""
        model = definition["model"]
        if definition.get("added_tokens"):  # ordinary words that are looked for in the whole text
            return None
        if model.get("type") != "BPE" or model.get("dropout") or not _keeps_ascii(definition.get("normalizer")):
            return None
        try:
            splits = _splits(definition.get("pre_tokenizer"))
        except (re.error, KeyError):  # an expression, or a property in it, that is not known here
            return None
        if not splits:
            return None
        pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        own: dict[str, Any] = {
            "added_tokens": [],
            "normalizer": None,
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        bare = RustTokenizer.from_str(json.dumps({**definition, **own, "pre_tokenizer": pre_tokenizer}))
        return cls(splits, bare)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32] | None]:
        """The ids of every plain ASCII text; None for any other."""
        found: list[npt.NDArray[np.int32] | None] = []
        known = self._ids.__getitem__
        unknown: list[tuple[int, list[str]]] = []
        for text in texts:
            if not text.isascii() or _NOT_PLAIN.search(text):
                found.append(None)
                continue
            words = self._first(text)
            for split in self._others:
                words = [part for word in words for part in split(word)]
            try:
                found.append(np.frombuffer(b"".join(map(known, words)), np.int32))
            except KeyError:
                unknown.append((len(found), words))
                found.append(None)
        if unknown:
            known = self._learn({word for _, words in unknown for word in words}).__getitem__
            for place, words in unknown:
                found[place] = np.frombuffer(b"".join(map(known, words)), np.int32)
        return found

    def _learn(self, words: set[str]) -> Mapping[str, bytes]:
        """The ids of these words, known from now on."""
        ids = self._ids  # another thread may put a new dictionary in its place meanwhile
        new = [word for word in words if word not in ids]
        made = zip(new, self._bare.encode_batch_fast(new), strict=True)
        found = {word: np.array(encoded.ids, np.int32).tobytes() for word, encoded in made}
        found.update((word, ids[word]) for word in words if word not in found)
        if len(ids) > _MAX_WORDS:
            self._ids = ids = {}
        ids.update((word, found[word]) for word in new if len(word) <= _MAX_WORD_LENGTH)
        return found


def _keeps_ascii(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None or normalizer["type"] in {"NFC", "NFKC", "NFD", "NFKD"}:
        return True
    return normalizer["type"] == "Sequence" and all(map(_keeps_ascii, normalizer["normalizers"]))


def _splits(pre_tokenizer: Mapping[str, Any] | None) -> list[Split] | None:
    """The cuts a pre-tokenizer makes in plain ASCII text; None where they are not known or bytes are not its units."""
    if pre_tokenizer is None:
        return None
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    splits: list[Split] = []
    for number, part in enumerate(parts):
        match part:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                splits.append(_isolating(pattern))
            case {"type": "Digits", "individual_digits": bool(individual)}:
                splits.append(_isolating("[0-9]" if individual else "[0-9]+"))
            case {"type": "ByteLevel", "add_prefix_space": False} if number == len(parts) - 1:
                if part.get("use_regex", True):
                    splits.append(_isolating(_BYTE_LEVEL))
                return splits
            case _:
                return None
    return None


def _isolating(pattern: str) -> Split:
    """Cut so that every match is a word, and so is what stands between two matches."""
    plain = _in_ascii(pattern)
    return re.compile(f"{plain}|(?:(?!{plain})[\\s\\S])+").findall


def _in_ascii(pattern: str) -> str:
    """The expression as it reads on plain ASCII text, without Unicode's properties."""
    pattern = pattern.replace(_NOT_HAN, "")
    made, place, is_class, class_start = "", 0, False, 0
    while place < len(pattern):
        found = _PROPERTY.match(pattern, place)
        if found is not None:
            inside = _PROPERTIES[found[1]]
            made += inside if is_class else f"[{inside}]" if inside else "(?!)"
            place = found.end()
            continue
        if pattern[place] == "\\":
            made += pattern[place : place + 2]
            place += 2
            continue
        if pattern[place] == "[" and not is_class:
            is_class, class_start = True, len(made)
        elif pattern[place] == "]" and is_class:
            is_class = False
            if made[class_start:] in {"[", "[^"}:  # a class of no character, or of all
                made = made[:class_start] + ("(?!)" if made[class_start:] == "[" else r"[\s\S]")
                place += 1
                continue
        made += pattern[place]
        place += 1
    return made
