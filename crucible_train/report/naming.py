"""What things are called where people read of them."""

import re

_MERGED = re.compile(r"[/\\]trees[/\\]([0-9a-f]{8})[0-9a-f]{56}[/\\]?$")


def shown_model(model: str) -> str:
    """A model as it was configured; one that a chain has merged, a folder of the cache, by digits of its digest."""
    found = _MERGED.search(model)
    return f"merged model {found[1]}" if found else model
