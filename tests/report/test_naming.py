"""A model has a name that people can read."""

import pytest

from crucible_train.report.naming import shown_model

DIGEST = "93cdde20" + 56 * "a"


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("./models/trees", "./models/trees"),
        (f"/home/me/.cache/crucible_train/trees/{DIGEST}", "merged model 93cdde20"),
        (f"C:\\cache\\trees\\{DIGEST}", "merged model 93cdde20"),
        (f"/home/me/{DIGEST}", f"/home/me/{DIGEST}"),
    ],
)
def test_a_model_that_a_chain_has_merged_is_named_by_a_few_digits_and_any_other_as_it_was_given(
    model: str, shown: str
) -> None:
    assert shown_model(model) == shown
