"""The figures of preferences by hand, and the datums they come from."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crucible_train import wiring
from crucible_train.data.preference_tables import RenderedPreference, Side
from crucible_train.preference.datums import mismatched, rewarded_datum, side_datum
from crucible_train.preference.measuring import (
    Batch,
    PreferenceSet,
    measure,
    measure_reference,
    preference_metrics,
    read_measured,
    write_measured,
)
from crucible_train.preference.reference import ReferenceLogprobs, ReferenceTable, write_reference
from crucible_train.types import DPO, KTO, ORPO, BradleyTerry, SimPO


def side(tokens: list[int], num_prompt: int = 2) -> Side:
    weights = np.ones(len(tokens), np.float32)
    weights[:num_prompt] = 0
    return Side(np.array(tokens, np.int32), weights)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


PAIR = RenderedPreference(side([1, 2, 3, 4]), side([1, 2, 5]), 0)
LONE = RenderedPreference(None, side([1, 6, 7, 8, 9]), 1)
REFERENCE = ReferenceLogprobs(floats(-2, -2), floats(-3), floats(-1))
LOGPROBS = [floats(0, -1, -2), floats(0, -4)]


def test_a_sides_datum_predicts_its_completion() -> None:
    found = side_datum(
        side([1, 2, 3, 4]), 0.5, number=-1, pair=7, reference_S=floats(-2, -3), reference_point=0.25
    ).loss_fn_inputs
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "target_tokens": [2, 3, 4],
        "weights": [0.0, 0.5, 0.5],
        "side": [-1.0] * 3,
        "pair": [7] * 3,
        "reference_logprobs": [0.0, -2.0, -3.0],
        "reference_point": [0.25] * 3,
    }


def test_a_rewarded_side_ends_with_its_answer() -> None:
    """What the chat format writes behind the answer is not read; the weight of the last id is that of the pair."""
    answer = Side(np.array([1, 2, 3, 4, 5], np.int32), floats(0, 0, 1, 1, 0))
    found = rewarded_datum(answer, 0.25)
    assert found.model_input.to_ints() == [1, 2, 3, 4]
    assert found.loss_fn_inputs["weights"].tolist() == [0, 0, 0, 0.25]


def test_the_figures_of_a_reward_model_by_hand() -> None:
    """Rewards 2 and 0.5, then -1 and -1: margins 1.5 and 0, losses log(1 + e^-1.5) and log 2."""
    loss, twice = BradleyTerry(), [PAIR, RenderedPreference(PAIR.chosen, PAIR.rejected, 1)]
    batch = Batch(PreferenceSet(twice, None), range(2))
    datums = batch.datums(loss, None)
    assert [datum.model_input.to_ints() for datum in datums] == [[1, 2, 3, 4], [1, 2, 5]] * 2
    assert [datum.loss_fn_inputs["weights"].tolist()[-1] for datum in datums] == [0.5] * 4
    rewards_D = [floats(0, 0, 0, 2), floats(0, 0, 0.5), floats(0, 0, 0, -1), floats(0, 0, -1)]
    losses = wiring.losses_by_preference(loss, datums, rewards_D)
    assert losses == pytest.approx([math.log1p(math.exp(-1.5)), math.log(2)])
    first, second = batch.measured(loss, rewards_D, None, losses)
    assert (first.margin, first.accuracy, first.chosen_reward, first.rejected_reward) == (1.5, 1.0, 2.0, 0.5)
    assert (second.margin, second.accuracy, second.loss) == (0.0, 0.5, pytest.approx(math.log(2)))
    assert (first.num_tokens, first.chosen_logprob, first.rejected_logprob, first.kl) == (3, None, None, None)
    assert preference_metrics("eval", [first, second])["eval/accuracy"] == 0.75
    assert "eval/kl" not in preference_metrics("eval", [first])


def test_mismatched_completions_stand_behind_the_prompts_of_others() -> None:
    """Chosen and rejected completions take turns, and none is longer than what was rendered."""
    found = [mismatched([PAIR, LONE], index).tokens_T.tolist() for index in range(2)]
    assert found == [[1, 2, 7, 8, 9], [1, 6, 5]]
    assert mismatched([PAIR, PAIR], 0).tokens_T.tolist() == [1, 2, 3, 4]
    assert mismatched([PAIR, PAIR], 0).weights_T.tolist() == [0, 0, 1, 1]


def test_dpo_figures_by_hand() -> None:
    """beta = 1/2. Chosen: -3 against -4, reward 1/2; rejected: -4 against -3, reward -1/2; the margin is 1.

    d = 1, 0 and -1 over the three tokens: d^2 / 2 is 1/2, 0 and 1/2, of which the mean is 1/3.
    """
    batch = Batch(PreferenceSet([PAIR], [REFERENCE]), [0])
    (found,) = batch.measured(DPO(beta=0.5), LOGPROBS, None)
    assert (found.accuracy, found.margin, found.num_tokens) == (1.0, 1.0, 3)
    assert (found.chosen_reward, found.rejected_reward) == (0.5, -0.5)
    assert (found.chosen_logprob, found.rejected_logprob) == (-3.0, -4.0)
    assert found.kl == pytest.approx(1 / 3)
    assert preference_metrics("train", [found])["train/margin"] == 1.0
    assert "train/loss" not in preference_metrics("train", [found])


@pytest.mark.parametrize("loss", [ORPO(beta=0.5), SimPO(beta=0.5)])
def test_without_a_reference_rewards_are_means(loss: Any) -> None:
    """Means -1.5 and -4, times 1/2."""
    (found,) = Batch(PreferenceSet([PAIR], None), [0]).measured(loss, LOGPROBS, None)
    assert (found.chosen_reward, found.rejected_reward, found.kl) == (-0.75, -2.0, None)
    assert "eval/kl" not in preference_metrics("eval", [found])


def test_an_unwanted_completion_is_measured_from_the_reference_point() -> None:
    """beta = 1, z = 1/2; -6 against -5: reward -1, on the wanted side of z by -(-1 - 1/2) = 3/2."""
    reference = ReferenceLogprobs(None, floats(-1, -2, -2), floats(0))
    batch = Batch(PreferenceSet([LONE], [reference]), [0])
    (found,) = batch.measured(KTO(beta=1.0), [floats(-1, -2, -2, -2)], 0.5)
    assert (found.margin, found.accuracy, found.chosen_reward) == (1.5, 1.0, None)


def test_the_reference_measures_itself_without_a_model() -> None:
    held_out = PreferenceSet([PAIR, PAIR], [REFERENCE, REFERENCE])
    found = measure_reference(held_out, DPO(), wiring.losses_by_preference)
    assert [one.accuracy for one in found] == [0.5, 0.5]
    assert [one.loss for one in found] == pytest.approx([math.log(2)] * 2)
    metrics = preference_metrics("eval", found)
    assert (metrics["eval/margin"], metrics["eval/kl"]) == (0, 0)


class Client:
    """Gives each sequence the same log-probability a token, and notes what it was asked."""

    def __init__(self, logprob: float) -> None:
        self.logprob, self.asked = logprob, []

    async def forward(self, datums: Any, loss: Any) -> Any:
        self.asked.append([datum.model_input.to_ints() for datum in datums])
        logprobs = [datum.loss_fn_inputs["weights"].to_numpy() * 0 + self.logprob for datum in datums]
        return SimpleNamespace(logprobs_D=[x.astype(np.float32) for x in logprobs], loss=0.0)


def test_the_reference_point_is_how_much_likelier_others_completions_became() -> None:
    """-1/2 a token; one token against -1 is 1/2 likelier, another against 0 is 1/2 less: 0, and never below."""
    one = ReferenceLogprobs(floats(-1, -1), floats(-1), floats(-1, -1))
    client = Client(-0.5)
    batch = Batch(PreferenceSet([PAIR, PAIR], [one, one]), [0, 1])
    point = asyncio.run(batch.reference_point(client, KTO()))  # type: ignore[arg-type]
    assert client.asked == [[[1, 2, 3], [1, 2]]] or point == pytest.approx(0.75)
    low = ReferenceLogprobs(floats(0, 0), floats(0), floats(0, 0))
    batch = Batch(PreferenceSet([PAIR], [low]), [0])
    assert asyncio.run(batch.reference_point(client, KTO())) == 0.0  # type: ignore[arg-type]
    assert asyncio.run(batch.reference_point(client, DPO())) is None  # type: ignore[arg-type]


def test_measuring_gives_each_preference_its_loss() -> None:
    """Margin 0 of equal log-probabilities and sizes: of SimPO -log s(-gamma), with gamma 0 ln 2."""
    even = RenderedPreference(side([1, 2, 3]), side([1, 2, 4]), 0)
    found = asyncio.run(
        measure(Client(-1.0), PreferenceSet([even] * 40, None), SimPO(gamma=0.0), wiring.losses_by_preference)  # type: ignore[arg-type]
    )
    assert [one.row for one in found] == list(range(40))
    assert [one.loss for one in found] == pytest.approx([math.log(2)] * 40)


def test_what_was_measured_is_kept_with_its_step(tmp_path: Any) -> None:
    found = measure_reference(PreferenceSet([PAIR], [REFERENCE]), DPO(), wiring.losses_by_preference)
    write_measured(tmp_path / "kept.json", 4, found)
    assert read_measured(tmp_path / "kept.json", 4) == found
    assert read_measured(tmp_path / "kept.json", 5) is None


def test_the_reference_is_kept_bit_by_bit(tmp_path: Any) -> None:
    rows = [REFERENCE, ReferenceLogprobs(None, floats(-0.1, -1e-30), None)]
    write_reference(tmp_path / "kept.arrow", rows)
    table = ReferenceTable(tmp_path / "kept.arrow")
    for row, found in zip(rows, (table[index] for index in range(2)), strict=True):
        for name in ("chosen", "rejected", "mismatched"):
            one, other = getattr(row, name), getattr(found, name)
            assert (one is None) == (other is None)
            assert one is None or one.tobytes() == other.tobytes()
