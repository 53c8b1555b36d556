"""How answers are scored."""

import gzip
import json
from pathlib import Path

import pytest

from crucible_train.errors import ConfigError
from crucible_train.evaluation.scorers import SCORERS, choose_scorers

SAMPLE = Path(__file__).parents[2] / "crucible_train" / "assets" / "gsm8k" / "sample.jsonl.gz"


@pytest.mark.parametrize(
    ("answer", "format_is_kept", "number"),
    [
        ("2 + 2 = 4\n#### 4", 1, "4"),
        ("#### 4", 1, "4"),
        ("x\n#### 4  \n\n", 1, "4"),
        ("x\n####4", 1, "4"),
        ("x\n#### 1,234", 1, "1234"),
        ("x\n#### $4.50", 1, "4.5"),
        ("x\n#### -3", 1, "-3"),
        ("x\n#### .5", 1, "0.50"),
        ("x\n#### 4.0", 1, "4"),
        ("4", 0, None),
        ("#### four", 0, None),
        ("#### 4 apples", 0, None),
        ("so #### 4", 0, None),
        ("### 4", 0, None),
        ("####\n4", 0, None),  # the number is to stand in the line
        ("####", 0, None),
        ("", 0, None),
        ("#### 4\nthat is it", 0, "4"),
        ("#### 4\n#### 5", 0, "4"),  # the first counts, but there must be one
        ("#### 4\nQuestion: next\n#### 5", 0, "4"),
    ],
)
def test_the_last_line_and_its_number(answer, format_is_kept, number):
    assert SCORERS["answer_format"](answer, "") == format_is_kept
    right = SCORERS["final_answer"]
    if number is None:
        assert right(answer, "#### 4") == 0
    else:
        assert right(answer, f"because\n#### {number}") == 1
        assert right(answer, "#### 999999") == 0


def test_a_reference_without_a_number_is_never_met():
    assert SCORERS["final_answer"]("#### 4", "4") == 0
    assert SCORERS["final_answer"]("nothing", "nothing") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "contained"),
    [
        ("Paris", "Paris", 1, 1),
        (" Paris\n", "Paris ", 1, 1),
        ("paris", "Paris", 0, 0),
        ("It is Paris.", "Paris", 0, 1),
        ("Par is", "Paris", 0, 0),
    ],
)
def test_equality_and_containment(answer, reference, exact, contained):
    assert SCORERS["exact_match"](answer, reference) == exact
    assert SCORERS["contains"](answer, reference) == contained


def test_every_reference_of_the_built_in_sample_scores_full_marks_on_itself():
    rows = [json.loads(line) for line in gzip.decompress(SAMPLE.read_bytes()).splitlines()]
    references = [row["answer"] if "answer" in row else row["messages"][-1]["content"] for row in rows]
    assert len(references) > 100
    for reference in references:
        assert [scorer(reference, reference) for scorer in SCORERS.values()] == [1.0] * len(SCORERS)
    assert list(choose_scorers(["auto"], references)) == ["answer_format", "final_answer"]


@pytest.mark.parametrize(
    ("names", "references", "chosen"),
    [
        (["auto"], ["x\n#### 1", "y\n#### 2"], ["answer_format", "final_answer"]),
        (["auto"], ["x\n#### 1", "y"], ["exact_match"]),
        (["auto"], [], ["exact_match"]),
        (["contains", "auto", "contains"], ["y"], ["contains", "exact_match"]),
        ([], ["y"], []),
    ],
)
def test_auto_takes_the_scorers_that_fit_the_references(names, references, chosen):
    assert list(choose_scorers(names, references)) == chosen


def test_an_unknown_scorer_is_answered_with_those_known():
    with pytest.raises(
        ConfigError, match=r"eval\.scorers: 'exact' is unknown; known are auto, answer_format, contains"
    ):
        choose_scorers(["exact"], [])
