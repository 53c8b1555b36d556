"""Whether the number after ``####`` is right."""

from decimal import Decimal, InvalidOperation

from crucible_train.evaluation.scorers.answer_format import FINAL_ANSWER


def final_answer(answer: str, reference: str) -> float:
    """1 where the first ``#### number`` of the answer equals that of the reference, as numbers."""
    found, expected = _number(answer), _number(reference)
    return float(found is not None and found == expected)


def _number(text: str) -> Decimal | None:
    match = FINAL_ANSWER.search(text)
    if match is None:
        return None
    try:
        return Decimal(match.group(1).replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None
