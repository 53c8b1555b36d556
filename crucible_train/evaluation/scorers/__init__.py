"""How a generated answer is scored against a reference: one function a file, one signature, one table.

A scorer gets the answer and the reference and returns a share from 0 to 1.
"""

from collections.abc import Callable, Mapping, Sequence

from crucible_train.errors import ConfigError
from crucible_train.evaluation.scorers.answer_format import answer_format, has_final_answer
from crucible_train.evaluation.scorers.contains import contains
from crucible_train.evaluation.scorers.exact_match import exact_match
from crucible_train.evaluation.scorers.final_answer import final_answer

Scorer = Callable[[str, str], float]

SCORERS: Mapping[str, Scorer] = {
    "answer_format": answer_format,
    "contains": contains,
    "exact_match": exact_match,
    "final_answer": final_answer,
}


def choose_scorers(names: Sequence[str], references: Sequence[str]) -> dict[str, Scorer]:
    """The scorers of a configuration; ``auto`` takes those that fit what the references look like.

    Raises:
        ConfigError: a name is unknown.
    """
    chosen: list[str] = []
    for name in names:
        if name == "auto":
            fits = bool(references) and all(has_final_answer(reference) for reference in references)
            chosen += ["answer_format", "final_answer"] if fits else ["exact_match"]
        elif name in SCORERS:
            chosen.append(name)
        else:
            raise ConfigError(f"eval.scorers: {name!r} is unknown; known are auto, {', '.join(SCORERS)}")
    return {name: SCORERS[name] for name in dict.fromkeys(chosen)}
