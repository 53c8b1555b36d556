"""Whether an answer holds the reference."""


def contains(answer: str, reference: str) -> float:
    """1 where the reference, without white space at its ends, stands somewhere in the answer."""
    return float(reference.strip() in answer)
