"""The cuts of byte-level tokenizers in plain ASCII text, by Python's own expressions.

ASCII only: there Python's expressions and the tokenizers' mean the same, and normalisation changes nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


class Cuts:
    """How a tokenizer cuts plain ASCII text into the words that it encodes apart.

    Args:
        splits: cut a text, one after the other.
    """

    def __init__(self, splits: Sequence[Split]) -> None:
        """Take the cuts."""
        self._first, *self._others = splits

    @classmethod
    def of(cls, pre_tokenizer: Mapping[str, Any] | None) -> "Cuts | None":
        """For a parsed pre-tokenizer; None where one of its cuts is not known here."""
        try:
            splits = _splits(pre_tokenizer)
        except (re.error, KeyError):  # an expression, or a property in it, that is not known here
            return None
        return cls(splits) if splits else None

    def __call__(self, text: str) -> list[str] | None:
        """The words of a plain ASCII text; None for any other."""
        if not text.isascii() or _NOT_PLAIN.search(text):
            return None
        words = self._first(text)
        for split in self._others:
            words = [part for word in words for part in split(word)]
        return words


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
