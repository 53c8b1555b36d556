"""What a chain refuses, and what it gives to each of its methods."""

import pytest

from crucible_train.config.command import parse_command
from crucible_train.errors import ConfigError
from crucible_train.recipes.post_train import PostTrainConfig, chained

PROG = "python -m flows.post_train"


def parsed(*words: str) -> PostTrainConfig:
    config: PostTrainConfig = parse_command(PostTrainConfig, words, PROG).config
    return config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages=[evaluate]"], "stages: evaluate alone trains nothing; name one of sft, dpo, distill, rl too"),
        (["stages=[]"], "stages: "),
        (["stages=[grpo]"], "stages[0]: "),
        (["sft.model=other"], "sft.model: give model instead: the whole chain shares it"),
        (["rl.seed=3"], "rl.seed: give seed instead: the whole chain shares it"),
        (["dpo.tracking.project=p"], "dpo.tracking: give tracking instead: the whole chain shares it"),
        (["dpo.preference.loss_type=bradley_terry"], "dpo.preference.loss_type: bradley_terry makes a reward model"),
    ],
)
def test_a_chain_that_cannot_be_run_is_refused_by_the_name_of_its_field(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(*words)
    (problem,) = refused.value.problems
    assert message in problem


def test_a_reward_model_may_be_what_a_chain_ends_with() -> None:
    assert parsed("stages=[sft, dpo]", "dpo.preference.loss_type=bradley_terry").stages == ["sft", "dpo"]


def test_each_method_has_what_the_chain_shares_and_its_own_section() -> None:
    config = parsed("model=one", "seed=7", "run_name=mine", "dpo.preference.beta=0.3", "stages=[dpo, dpo]")
    first, second = (chained(config, "dpo", number, model) for number, model in ((1, "one"), (2, "two")))
    assert (first.model, second.model) == ("one", "two")
    assert (first.run_name, second.run_name) == ("mine-1-dpo", "mine-2-dpo")
    assert first.seed == second.seed == 7
    assert first.preference.beta == second.preference.beta == 0.3
