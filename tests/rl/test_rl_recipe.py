"""The recipe on a real engine: it learns a toy task, the same way every time, and each option leaves its mark."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from crucible_train.errors import ConfigError, RolloutError
from crucible_train.rl.update import Surroundings
from crucible_train.seeds import fold
from tests.rl import toy
from tests.rl.conftest import outcome_of, rows_of

SHORT = {"train.max_steps": 3, "train.groups_per_batch": 4, "train.num_generations": 16}
TINY = SHORT | {"train.num_generations": 4}
LORA = {"peft.use_peft": True, "train.learning_rate": 0.05}
CHANCE = 1 / toy.MODEL.vocab_size


@pytest.fixture(scope="module")
def learnt(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run directory of a run with these fields; each is made once. Not to be written to."""
    known: dict[str, Path] = {}

    def find(fields: Mapping[str, Any] | None = None) -> Path:
        key = repr(sorted((fields or {}).items()))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("learnt") / "run"
            toy.Trial(toy_model, known[key], fields or {}).run()
        return known[key]

    return find


def last_reward(run_dir: Path, num_steps: int = 8) -> float:
    return float(np.mean([row["reward/mean"] for row in rows_of(run_dir)[-num_steps:]]))


def column(run_dir: Path, name: str) -> list[float]:
    """A metric of every step that has it; those without an optimizer step have none of training."""
    return [row[name] for row in rows_of(run_dir) if name in row]


def test_it_learns_the_task(learnt: Any) -> None:
    rewards = column(learnt(), "reward/mean")
    assert len(rewards) == 40
    assert rewards[0] < 2 * CHANCE
    assert last_reward(learnt()) > 0.95
    assert column(learnt(), "sample/frac_all_good")[-1] > 0.5


@pytest.mark.parametrize("seed", [2])
def test_it_learns_with_other_seeds_along_other_curves(seed: int, learnt: Any) -> None:
    assert last_reward(learnt({"seed": seed})) > 0.95
    assert column(learnt({"seed": seed}), "reward/mean") != column(learnt(), "reward/mean")


def wrong_sign(symbol: int, tokens: Sequence[int]) -> float:
    return -toy.is_right(symbol, tokens)


def shuffled(symbol: int, tokens: Sequence[int]) -> float:
    """Right is another symbol at each answer, whatever was shown."""
    return toy.is_right(fold(0, symbol, *map(str, tokens)) % toy.NUM_SYMBOLS, tokens)


@pytest.mark.parametrize("judge", [wrong_sign, shuffled])
def test_with_a_reward_that_is_none_it_does_not_learn(judge: Any, trial: Any) -> None:
    right: list[float] = []

    def judged(symbol: int, tokens: Sequence[int]) -> float:
        right.append(toy.is_right(symbol, tokens))
        return judge(symbol, tokens)

    trial(problems=toy.Echoes(judged)).run()
    assert np.mean(right[-8 * 128 :]) < 0.25


@pytest.mark.parametrize(
    "fields",
    [{}, {"schedule.mode": "off_policy"}, {"schedule.mode": "streamed", "algorithm.normalisation": "sequence"}],
    ids=["synchronous", "off_policy", "streamed"],
)
def test_the_same_seed_gives_the_same_curve_and_the_same_weights(fields: dict[str, Any], trial: Any) -> None:
    for name in ("one", "two"):
        trial(SHORT | fields, name).run()
    one, two, other = (trial({}, name).run_dir for name in ("one", "two", "other"))
    assert outcome_of(one) == outcome_of(two)
    trial(SHORT | fields | {"seed": 2}, "other").run()
    assert outcome_of(other)["metrics"] != outcome_of(one)["metrics"]


FEW = {"train.max_steps": 24}
WAYS: dict[str, dict[str, Any]] = {
    "importance_sampling": {},
    "ppo": {"algorithm.loss": "ppo"},
    "cispo": {"algorithm.loss": "cispo"},
    "dro": {"algorithm.loss": "dro"},
    "gspo": {"algorithm.loss": "gspo"},
    "off policy": {"schedule.mode": "off_policy"},
    "two batches off policy": {"schedule.mode": "off_policy", "schedule.max_steps_off_policy": 2},
    "off policy, truncated weights": {"schedule.mode": "off_policy", "algorithm.max_importance_weight": 2.0},
    "streamed": {"schedule.mode": "streamed", "algorithm.normalisation": "sequence"},
    "constant": {"algorithm.normalisation": "constant"},
    "substeps": {"algorithm.num_substeps": 2, "algorithm.loss": "ppo"},
    "group_mean": {"algorithm.advantage": "group_mean"},
    "rloo": {"algorithm.advantage": "rloo"},
    "batch_mean": {"algorithm.advantage": "batch_mean"},
    "single answers": {
        "algorithm.advantage": "batch_mean",
        "train.num_generations": 1,
        "train.groups_per_batch": 128,
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_every_loss_schedule_and_estimator_learns(way: str, learnt: Any) -> None:
    """In fewer steps than the task needs, but well above the 0.1 of chance."""
    assert last_reward(learnt(FEW | WAYS[way]), 4) > 0.4


def test_on_policy_sampler_and_trainer_agree(learnt: Any) -> None:
    """To rounding in float32: |mean difference| <= 1e-5, and a root of the mean square of 1e-4 at most."""
    assert len(column(learnt(), "train/kl_v1")) > 30
    assert max(map(abs, column(learnt(), "train/kl_v1"))) <= 1e-5
    assert max(column(learnt(), "train/kl_v2")) <= 1e-8 / 2
    assert set(column(learnt(), "sample/staleness")) == {0.0}


def test_ppo_on_policy_clips_nothing_and_ends_where_importance_sampling_does(learnt: Any) -> None:
    ppo, plain = learnt(FEW | WAYS["ppo"]), learnt(FEW)
    assert set(column(ppo, "train/clip_fraction")) == {0.0}
    assert column(ppo, "reward/mean") == column(plain, "reward/mean")
    assert "train/clip_fraction" not in rows_of(plain)[0]


@pytest.mark.parametrize("ahead", [1, 2])
def test_off_policy_answers_are_as_old_as_is_allowed(ahead: int, learnt: Any) -> None:
    run_dir = learnt(FEW | WAYS["off policy" if ahead == 1 else "two batches off policy"])
    assert column(run_dir, "sample/staleness") == [min(step, ahead) for step in range(24)]
    assert max(column(run_dir, "train/kl_v2")) > 1e-4


def test_truncated_weights_leave_the_measured_divergence_that_of_the_sampler(learnt: Any) -> None:
    plain, truncated = learnt(FEW | WAYS["off policy"]), learnt(FEW | WAYS["off policy, truncated weights"])
    assert column(plain, "train/kl_v2")[1] == pytest.approx(column(truncated, "train/kl_v2")[1], rel=1e-3)
    assert column(truncated, "train/kl_v2")[1] > 1e-4
    assert column(plain, "optim/grad_norm")[5] != column(truncated, "optim/grad_norm")[5]


def calls_of(trial: Any, fields: dict[str, Any], **hooks: Any) -> tuple[Any, Counter[str]]:
    """A run, and how often its client was asked for what."""
    calls: Counter[str] = Counter()
    made = trial(fields, wrap=lambda client: toy.Told(client, lambda name: calls.update([name])), **hooks)
    made.run()
    return made, calls


def test_substeps_are_optimizer_steps_of_their_own(trial: Any) -> None:
    made, calls = calls_of(trial, SHORT | {"algorithm.num_substeps": 2, "algorithm.loss": "ppo"})
    assert calls["optim_step"] == calls["forward_backward"] == 6
    assert all(len(groups) == 4 for _, groups in made.shown), "the groups of all substeps are shown"
    steps = {one.policy_step for _, groups in made.shown for g in groups for t in g.group.trajectories_G
             for one in t.transitions}  # fmt: skip
    assert steps == {0, 2, 4}, "answers know how many optimizer steps their weights had taken"
    assert max(map(abs, column(made.run_dir, "train/kl_v1"))) > 1e-5, "the second is off the policy that sampled"


def test_streamed_parts_are_one_optimizer_step(trial: Any) -> None:
    fields = SHORT | {"schedule.mode": "streamed", "algorithm.normalisation": "sequence", "schedule.num_minibatches": 2}
    made, calls = calls_of(trial, fields | {"algorithm.remove_constant_groups": False})
    assert (calls["forward_backward"], calls["optim_step"]) == (6, 3)
    plain = SHORT | {"algorithm.normalisation": "sequence", "algorithm.remove_constant_groups": False}
    whole = trial(plain, "whole")
    whole.run()
    for name in ("train/loss", "optim/grad_norm", "train/entropy"):
        assert column(made.run_dir, name) == pytest.approx(column(whole.run_dir, name), rel=1e-3, abs=1e-6)


def test_the_divergence_of_each_update_can_be_measured(trial: Any) -> None:
    made, calls = calls_of(trial, SHORT | {"algorithm.measure_post_kl": True})
    assert calls["forward"] == 3
    assert min(column(made.run_dir, "train/post_kl_v2")) > 1e-7
    assert "train/post_kl_v1" in rows_of(made.run_dir)[0]
    plain, calls = calls_of(trial, SHORT, name="plain")
    assert calls["forward"] == 0
    assert outcome_of(plain.run_dir)["weights"] == outcome_of(made.run_dir)["weights"]


@pytest.mark.parametrize("place", ["advantage", "loss"])
def test_a_penalty_keeps_the_policy_near_the_reference(place: str, trial: Any) -> None:
    """The reference is the adapter switched off: no divergence at first, then less than without a penalty."""
    fields = LORA | {"train.learning_rate": 0.1, "train.max_steps": 16, "train.num_generations": 8}
    ends = {}
    for coef in (1e-6, 30.0):
        made = trial(fields | {"algorithm.kl_coef": coef, "algorithm.kl_in": place}, f"with {coef}")
        made.run()
        away = column(made.run_dir, "train/kl_reference")
        assert abs(away[0]) <= 1e-5
        ends[coef] = np.mean(np.abs(away[-4:]))
    assert ends[30.0] < 0.6 * ends[1e-6]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("place", ["advantage", "loss"])
def test_the_estimate_of_the_divergence_can_be_chosen(place: str, estimator: str, trial: Any) -> None:
    fields = SHORT | LORA | {"algorithm.kl_coef": 0.5, "algorithm.kl_in": place}
    weights = []
    for name, chosen in (("chosen", estimator), ("null", None)):
        made = trial(fields | {"algorithm.kl_estimator": chosen}, name)
        made.run()
        weights.append(outcome_of(made.run_dir)["weights"])
    default = "k1" if place == "advantage" else "k3"
    assert (weights[0] == weights[1]) == (estimator == default)


def test_a_penalty_without_a_reference_is_refused(trial: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "Surroundings", lambda evaluate, _reference, **rest: Surroundings(evaluate, **rest))
    with pytest.raises(ConfigError, match=r"algorithm\.kl_coef: there is no reference"):
        trial(SHORT | LORA | {"algorithm.kl_coef": 0.1}).run()


def rarely(symbol: int, tokens: Sequence[int]) -> float:
    """Only one symbol can be answered at all: groups of the others are rewarded alike."""
    return toy.is_right(symbol, tokens) if symbol == 0 else 0.0


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_more_problems_are_played_for_groups_that_were_left_out(rounds: int, trial: Any) -> None:
    fields = SHORT | {"train.max_steps": 2, "algorithm.max_resampling_rounds": rounds}
    made = trial(fields, problems=toy.Echoes(rarely))
    made.run()
    num_groups = column(made.run_dir, "sample/num_groups")
    if rounds == 0:
        assert num_groups == [4, 4]
    else:
        assert all(4 < found <= 4 * (1 + rounds) for found in num_groups)
    names = [one.group.problem for _, groups in made.shown for one in groups]
    assert names == [f"echo {index}" for index in range(len(names))], "in order, none twice"
    trained = [sum(one.is_trained for one in groups) for _, groups in made.shown]
    assert trained == column(made.run_dir, "train/num_groups")


def test_resampling_ends_where_enough_groups_teach(trial: Any) -> None:
    made = trial(SHORT | {"train.num_generations": 32, "algorithm.max_resampling_rounds": 5})
    made.run()
    for num_groups, num_trained in zip(
        column(made.run_dir, "sample/num_groups"), column(made.run_dir, "train/num_groups"), strict=True
    ):
        assert num_trained == 4
        assert num_groups < 4 * 3


def test_overlong_answers_are_trained_away(trial: Any) -> None:
    """Every answer is right; one that is cut off after two tokens loses 1, so that answers end."""
    fields = {"train.max_steps": 12, "train.groups_per_batch": 4, "algorithm.overlong_buffer_tokens": 1}
    made = trial(fields, problems=toy.Echoes(lambda _symbol, _tokens: 1.0))
    made.run()
    lengths = column(made.run_dir, "sample/answer_tokens")
    assert lengths[0] > 1.8
    assert lengths[-1] < 1.4
    assert set(column(made.run_dir, "reward/mean")) == {1.0}, "what is reported is the reward itself"


def test_masked_answers_are_not_trained_on(trial: Any) -> None:
    """With an answer of one token at most, only those that are the stop alone are complete.

    A sequence of the two tokens that are shown and one that is answered has two positions.
    """
    made, _ = calls_of(trial, SHORT | {"rollout.max_tokens": 1, "algorithm.mask_truncated": True})
    trained = [t for _, groups in made.shown for one in groups if one.is_trained for t in one.group.trajectories_G]
    complete = [one for one in trained if one.transitions[0].action.stop_reason == "stop"]
    assert 0 < len(complete) < len(trained)
    assert column(made.run_dir, "progress/num_tokens")[-1] == 2 * len(complete)


def test_turns_that_extend_one_another_are_one_datum(trial: Any) -> None:
    made = trial(SHORT | {"algorithm.remove_constant_groups": False}, problems=toy.Echoes(num_turns=3))
    made.run()
    first = rows_of(made.run_dir)[0]
    turns = [one.transitions for _, groups in made.shown[:1] for g in groups for one in g.group.trajectories_G]
    assert first["sample/num_turns"] == np.mean([len(one) for one in turns])
    whole = sum(one[-1].prompt.length + len(one[-1].action.tokens) - 1 for one in turns)
    assert first["progress/num_tokens"] == whole
    assert max(map(abs, column(made.run_dir, "train/kl_v1"))) <= 1e-5


class Broken(toy.Echo):
    async def step(self, action: Any) -> Any:
        raise RuntimeError("the environment breaks")


class Fragile(toy.Echoes):
    """Environments fail: ``broken`` says for a problem's number which of its episodes."""

    def __init__(self, broken: Callable[[int], Sequence[int]]) -> None:
        super().__init__()
        self.broken = broken

    def train(self, index: int) -> Any:
        made, count = super().train(index), iter(range(1000))
        symbol, broken = toy.symbol_of(index), self.broken(index)

        def make() -> toy.Echo:
            kind = Broken if next(count) in broken else toy.Echo
            return kind(symbol, toy.is_right, 1)

        return toy.Problem(made.problem, make, made.tags)


def test_an_episode_that_fails_is_left_out_and_the_run_goes_on(trial: Any) -> None:
    made = trial(TINY, problems=Fragile(lambda index: [1] if index % 4 == 2 else []))
    made.run()
    assert column(made.run_dir, "sample/num_failed") == [1, 1, 1]
    assert [[len(one.group.trajectories_G) for one in groups] for _, groups in made.shown] == [[4, 4, 3, 4]] * 3
    assert made.failures == [
        f"echo {index}: echo {index}, sample 1, turn 1: RuntimeError: the environment breaks" for index in (2, 6, 10)
    ]


@pytest.mark.parametrize("mode", ["synchronous", "off_policy", "streamed"])
def test_a_group_that_is_given_up_is_missing_and_the_run_goes_on(mode: str, trial: Any) -> None:
    fields = TINY | {"schedule.mode": mode, "algorithm.normalisation": "sequence"}
    made = trial(fields, problems=Fragile(lambda index: range(4) if index in (1, 4, 5, 6, 7) else []))
    made.run()
    shown = [[one.group.problem for one in groups] for _, groups in made.shown]
    assert shown == [["echo 0", "echo 2", "echo 3"], [], [f"echo {index}" for index in range(8, 12)]]
    rows = rows_of(made.run_dir)
    assert [row["sample/num_groups"] for row in rows] == [3, 0, 4]
    assert "reward/mean" not in rows[1]
    assert "optim/grad_norm" not in rows[1]
    assert made.problems.played == [*range(12)]


def test_a_failure_stops_the_run_where_none_may_be(trial: Any) -> None:
    failing = trial(TINY | {"rollout.on_error": "fail_fast"}, problems=Fragile(lambda index: [2] if index == 5 else []))
    with pytest.raises(RolloutError, match="echo 5, sample 2, turn 1: RuntimeError: the environment breaks"):
        failing.run()
    assert failing.reports == ["saved at step 1"]


def test_an_episode_that_fails_is_tried_again(trial: Any) -> None:
    made = trial(TINY | {"rollout.on_error": "retry"}, problems=Fragile(lambda index: [0, 3]))
    made.run()
    assert column(made.run_dir, "sample/num_failed") == [0, 0, 0]
    assert all(len(one.group.trajectories_G) == 4 for _, groups in made.shown for one in groups)
    assert len(made.failures) == 2 * 12


@pytest.mark.parametrize("mode", ["synchronous", "off_policy", "streamed"])
def test_a_step_on_which_all_groups_are_alike_takes_no_optimizer_step(mode: str, trial: Any) -> None:
    """Problems 4 to 7 make the second step, on which every answer is worth 1."""

    class Easy(toy.Echoes):
        def train(self, index: int) -> Any:
            self.judge = (lambda _symbol, _tokens: 1.0) if index // 4 == 1 else toy.is_right
            return super().train(index)

    fields = SHORT | {"schedule.mode": mode, "algorithm.normalisation": "sequence"}
    made, calls = calls_of(trial, fields, problems=Easy())
    assert calls["optim_step"] == 2
    rows = rows_of(made.run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert (rows[1]["train/num_groups"], rows[1]["sample/frac_all_good"], rows[1]["reward/mean"]) == (0, 1, 1)
    assert ["optim/grad_norm" in row for row in rows] == [True, False, True]


def test_answers_that_are_malformed_are_rewarded_as_such_and_trained_on(trial: Any) -> None:
    """The stop at once is no answer: it costs 1, and goes away."""

    def judge(_symbol: int, tokens: Sequence[int]) -> float:
        return -1.0 if tokens[0] == toy.END else 0.0

    made = trial({"train.max_steps": 12, "train.groups_per_batch": 4}, problems=toy.Echoes(judge))
    made.run()
    rewards = column(made.run_dir, "reward/mean")
    assert np.mean(rewards[:3]) < -0.05
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) / 2


def test_tags_and_parts_are_measured(learnt: Any) -> None:
    first = rows_of(learnt())[0]
    assert first["reward/right"] == first["reward/mean"]
    assert (first["reward/mean_low"] + first["reward/mean_high"]) / 2 == pytest.approx(first["reward/mean"])


def test_every_step_is_timed_apart_from_what_is_the_same_in_every_run(trial: Any) -> None:
    made = trial(SHORT)
    made.run()
    timings = (made.run_dir / "timings.jsonl").read_text()
    for name in ("time/step_s", "time/sample_s", "time/train_s", "perf/sampled_tokens_per_second",
                 "perf/tokens_per_second"):  # fmt: skip
        assert timings.count(name) == 3
        assert name not in rows_of(made.run_dir)[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"schedule.mode": "streamed"},
            "algorithm.normalisation: with schedule.mode=streamed give",
        ),
        (
            {"schedule.mode": "streamed", "algorithm.normalisation": "sequence", "algorithm.num_substeps": 2},
            "streamed goes with neither",
        ),
        ({"algorithm.num_substeps": 9}, "algorithm.num_substeps: there are more than train.groups_per_batch"),
        ({"train.num_generations": 1}, "train.num_generations: one answer has no baseline"),
        ({"algorithm.overlong_buffer_tokens": 3}, "algorithm.overlong_buffer_tokens: it is longer"),
        ({"algorithm.clip_low": 0.5}, "clip_low: importance_sampling does not clip"),
        ({"algorithm.loss": "ppo", "algorithm.clip_low": 1.5}, "clip_low: 0 <= clip_low <= clip_high"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        toy.config_of(fields)


@pytest.mark.parametrize("loss", ["ppo", "cispo", "gspo"])
def test_bounds_of_the_ratio_leave_their_mark(loss: str, trial: Any) -> None:
    """Two batches off policy; bounds so narrow that nearly all is beyond."""
    fields = SHORT | {"train.max_steps": 4, "schedule.mode": "off_policy", "schedule.max_steps_off_policy": 2}
    shares = []
    for name, bounds in (("narrow", (0.9999, 1.0001)), ("wide", (0.0, 1e9))):
        chosen = {"algorithm.loss": loss, "algorithm.clip_low": bounds[0], "algorithm.clip_high": bounds[1]}
        made = trial(fields | chosen, name)
        made.run()
        shares.append(column(made.run_dir, "train/clip_fraction")[-1])
    assert shares[0] > 0.2
    assert shares[1] == 0.0


def test_dro_beta_leaves_its_mark(trial: Any) -> None:
    fields = SHORT | {"schedule.mode": "off_policy", "algorithm.loss": "dro"}
    weights = []
    for beta in (0.0, 5.0):
        made = trial(fields | {"algorithm.dro_beta": beta}, f"beta {beta}")
        made.run()
        weights.append(outcome_of(made.run_dir)["weights"])
    assert weights[0] != weights[1]


def test_it_can_be_run_within_a_loop(trial: Any) -> None:
    """And leaves no task behind."""
    made = trial(SHORT | {"schedule.mode": "off_policy"})

    async def run() -> set[Any]:
        await made.train()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()


def test_a_baseline_over_the_batch_is_not_cut_by_substeps(trial: Any) -> None:
    """With one answer a problem and a substep each, a mean over the substep alone would leave nothing to learn."""
    fields = {"algorithm.advantage": "batch_mean", "train.num_generations": 1, "algorithm.num_substeps": 4}
    judged = toy.Echoes(judge=lambda symbol, _tokens: float(symbol % 2))
    made, calls = calls_of(trial, SHORT | {"train.groups_per_batch": 4} | fields, problems=judged)
    assert calls["optim_step"] > 0
    for _, groups in made.shown:
        rewards = np.array([one.group.rewards_G[0] for one in groups])
        expected = rewards - rewards.mean() if len(set(rewards.tolist())) > 1 else 0 * rewards
        np.testing.assert_allclose([one.advantages_G[0] for one in groups], expected)


def test_truncated_weights_leave_the_bounds_of_later_substeps_their_effect(trial: Any) -> None:
    fields = {
        "algorithm.loss": "ppo",
        "algorithm.clip_low": 0.999,
        "algorithm.clip_high": 1.001,
        "algorithm.max_importance_weight": 2.0,
        "algorithm.num_substeps": 4,
        "train.groups_per_batch": 4,
    }
    made = trial(SHORT | fields)
    made.run()
    assert max(column(made.run_dir, "train/clip_fraction")) > 0.05


def test_with_a_penalty_groups_that_are_rewarded_alike_are_kept(trial: Any) -> None:
    fields = {"algorithm.kl_coef": 1.0, "algorithm.kl_in": "loss", "peft.use_peft": True}
    made, calls = calls_of(trial, SHORT | fields, problems=toy.Echoes(judge=lambda _symbol, _tokens: 1.0))
    assert calls["optim_step"] == calls["forward_backward"] == 3
    assert set(column(made.run_dir, "train/num_groups")) == {float(len(made.shown[0][1]))}


def test_staleness_counts_the_substeps_before(trial: Any) -> None:
    """Four substeps of one batch: answers are 0, 1, 2 and 3 steps old when they are trained on, 1.5 in the mean."""
    fields = {"algorithm.num_substeps": 4, "train.groups_per_batch": 4, "algorithm.loss": "ppo"}
    made = trial(SHORT | fields)
    made.run()
    assert column(made.run_dir, "sample/staleness") == [1.5, 1.5, 1.5]


def test_a_problem_that_cannot_be_made_stops_the_run_at_once(trial: Any) -> None:
    class Broken(toy.Echoes):
        def train(self, index: int) -> Any:
            if index == 7:
                raise RuntimeError("no such problem")
            return super().train(index)

    for mode in ("synchronous", "streamed"):
        fields = {"schedule.mode": mode, "algorithm.normalisation": "sequence", "train.groups_per_batch": 8}
        with pytest.raises(RuntimeError, match="no such problem"):
            trial(SHORT | fields, mode, problems=Broken()).run()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rollout.temperature": 0.0}, "rollout.temperature"),
        (
            {"algorithm.loss": "ppo", "algorithm.clip_high": 1.1, "algorithm.max_importance_weight": 2.0},
            "algorithm.max_importance_weight",
        ),
    ],
    ids=str,
)
def test_what_could_never_learn_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(field)):
        toy.config_of(fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"schedule.max_steps_off_policy": 3}, "schedule.max_steps_off_policy"),
        ({"schedule.num_minibatches": 2}, "schedule.num_minibatches"),
        ({"algorithm.dro_beta": 0.1}, "algorithm.dro_beta"),
        ({"algorithm.kl_in": "loss"}, "algorithm.kl_in"),
        ({"algorithm.kl_estimator": "k3"}, "algorithm.kl_estimator"),
        ({"algorithm.overlong_penalty": 0.5}, "algorithm.overlong_penalty"),
        ({"rollout.num_tries": 5}, "rollout.num_tries"),
        ({"rollout.on_error": "retry", "rollout.min_group_share": 0.9}, "rollout.min_group_share"),
    ],
    ids=str,
)
def test_an_option_without_effect_is_told(fields: dict[str, Any], field: str) -> None:
    (note,) = toy.config_of(fields).notes
    assert note.startswith(f"{field} has no effect, since ")


def test_a_bent_distribution_is_told() -> None:
    assert toy.config_of({}).notes == ()
    (note,) = toy.config_of({"rollout.temperature": 0.7, "rollout.top_k": 20}).notes
    assert note.startswith("rollout.temperature, rollout.top_k: ")
