r"""Numbers in answers: finding the one that is meant, and comparing it exactly.

Everything here is plain text and exact fractions: it works in any thread, and on any text in a bounded time. Read are
``1,234``, ``1 234`` where it stands alone, ``-3.5``, ``−2``, ``$18.00``, ``3/4``, ``1 1/2``, ``\frac{3}{4}``, ``2e3``
and ``20%`` (as 20); units and full stops are passed over.
"""

import re
from fractions import Fraction

_LONGEST = 60  # characters of a number: one that is longer is no answer, and arithmetic on it might take long
_LARGEST_EXPONENT = 60
_NUM_READ = 20_000  # characters from the end of an answer: what it comes to stands there
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>(?:(?<![\w)\]}%])[-+])?(?:\\?[$€£¥]\s?-?)?)"
    r"(?:\\[dt]?frac\{(?P<top>[0-9]+)\}\{(?P<bottom>[0-9]+)\}"
    r"|(?P<mixed>[0-9]{1,9}) (?P<part>[0-9]{1,9})/(?P<whole>[0-9]{1,9})"
    rf"|(?P<upper>{_WHOLE})\s?/\s?(?P<lower>{_WHOLE})"
    rf"|(?P<plain>(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE](?P<exponent>[-+]?[0-9]+))?))"
)
_HASHES = re.compile(r"####(.*)")
_SAID = re.compile(r"\banswer\s{0,9}(?:is|:|=)", re.IGNORECASE)
_SPACED = re.compile(r"(?<=[0-9])[ \u00a0\u202f](?=[0-9]{3}(?![0-9/]))")
_BOXED = r"\boxed{"


def final_number(text: str) -> Fraction | None:
    r"""The number that an answer comes to, or None where there is none.

    It stands in the last ``\boxed{}``, or after the last ``####``, or after the last "answer is", or else it is the
    last number of all.
    """
    text = _plain(text)
    statement = stated(text)
    if statement is not None:
        return read_number(statement)
    if said := [*_SAID.finditer(text)]:
        found = _NUMBER.search(text, said[-1].end())
        if found is not None:
            return _value(found)
    numbers = [*_NUMBER.finditer(text)]
    return _value(numbers[-1]) if numbers else None


def stated(text: str) -> str | None:
    r"""What an answer marks as its result, in the last ``\boxed{}`` or after the last ``####``; None where nothing."""
    text = text[-_NUM_READ:]
    if (boxed := text.rfind(_BOXED)) >= 0:
        depth, start = 1, boxed + len(_BOXED)
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place]
    marked = _HASHES.findall(text)
    return str(marked[-1]) if marked else None


def read_number(text: str) -> Fraction | None:
    """The first number of a short text, behind its last ``=`` where it has one; None where there is none."""
    text = _SPACED.sub("", _plain(text).rpartition("=")[2])
    found = _NUMBER.search(text)
    return _value(found) if found is not None else None


def same_number(answer: str, reference: str) -> bool:
    """Whether an answer comes to the number of its reference, exactly."""
    found = final_number(answer)
    return found is not None and found == final_number(reference)


def _plain(text: str) -> str:
    return text[-_NUM_READ:].replace("\N{MINUS SIGN}", "-").replace("\\!", "").replace("{,}", ",")


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found[0]) > _LONGEST or abs(int(found["exponent"] or 0)) > _LARGEST_EXPONENT:
        return None
    parts = {name: text.replace(",", "") for name, text in found.groupdict().items() if text is not None}
    try:
        if "plain" in parts:
            value = Fraction(parts["plain"])
        elif "mixed" in parts:
            value = int(parts["mixed"]) + Fraction(int(parts["part"]), int(parts["whole"]))
        else:
            upper, lower = (
                parts.get(one, parts.get(other, "")) for one, other in (("top", "upper"), ("bottom", "lower"))
            )
            value = Fraction(int(upper), int(lower))
    except ZeroDivisionError:
        return None
    return -value if "-" in parts["sign"] else value
