"""Whether an answer is the reference."""


def exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal but for white space at their ends."""
    return float(answer.strip() == reference.strip())
