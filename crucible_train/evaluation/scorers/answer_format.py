"""Whether an answer ends as the references do."""

import re

# GSM8K's form: the last line is "#### 1,234".
FINAL_ANSWER = re.compile(r"^####[ \t]*(-?[$]?[\d,]*\.?\d+)[ \t]*$", re.MULTILINE)


def has_final_answer(text: str) -> bool:
    """Whether the last line of a text is ``#### number``, and no line before it is."""
    found = list(FINAL_ANSWER.finditer(text.strip()))
    return len(found) == 1 and found[0].end() == len(text.strip())


def answer_format(answer: str, reference: str) -> float:  # noqa: ARG001 - all scorers have one signature
    """1 where the answer ends with exactly one line ``#### number``."""
    return float(has_final_answer(answer))
