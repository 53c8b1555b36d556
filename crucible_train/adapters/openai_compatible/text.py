"""Prompts as text, for servers that take no ids, and only where the text gives those ids again."""

import re
from collections.abc import Sequence
from functools import lru_cache

from crucible_train.errors import InputError
from crucible_train.ports import Tokenizer


def exact_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, in which a server finds the same ids: it takes the names of control tokens for those tokens.

    Raises:
        InputError: it would find others: a text holds a control token's name, say, or is cut within a character.
    """
    text = tokenizer.decode(ids)
    found = _as_a_server_reads(tokenizer, text)
    if found != list(ids):
        place = next((i for i, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b), min(len(ids), len(found)))
        raise InputError(
            f"a prompt of {len(ids)} tokens cannot be sent as text: read again, it differs from token {place} on; "
            "use a server that takes token ids"
        )
    return text


def _as_a_server_reads(tokenizer: Tokenizer, text: str) -> list[int]:
    controls = tokenizer.control_tokens
    ids: list[int] = []
    for part in _pattern(tuple(sorted(controls, key=len, reverse=True))).split(text):
        ids += [controls[part]] if part in controls else [int(token) for token in tokenizer.encode(part)]
    return ids


@lru_cache(maxsize=8)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Splits at names, longer ones first, and keeps them; without any, nothing is split."""
    return re.compile(f"({'|'.join(map(re.escape, names))})") if names else re.compile("(?!)")
