"""Secrets in the options of an environment are refused, however deep they stand."""

from typing import Any

import pytest

from crucible_train.errors import ConfigError
from crucible_train.recipes.distill import DistillConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.rl.config import EnvConfig
from crucible_train.stages.distill.preflight import check as check_distill
from crucible_train.stages.rl import preflight

URL = "https://me:hunter2@example.org/rows.jsonl"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dataset": URL}, "env.options.dataset"),
        ({"files": ["a.jsonl", URL]}, "env.options.files[1]"),
        ({"server": {"headers": ["a", "Bearer abcdef123456"]}}, "env.options.server.headers[1]"),
    ],
)
@pytest.mark.parametrize(("check", "recipe"), [(preflight.check, RLConfig), (check_distill, DistillConfig)])
def test_a_secret_is_found_at_any_depth(options: dict[str, Any], field: str, check: Any, recipe: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check(recipe(env=EnvConfig(options=options)))
    assert any(problem.startswith(f"{field}: ") for problem in caught.value.problems)
    assert "hunter2" not in str(caught.value)
    assert "abcdef123456" not in str(caught.value)
