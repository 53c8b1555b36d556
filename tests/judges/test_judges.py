"""Judges: by hand, by rule, and on the engine."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train.adapters.torch_local import scoring
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.errors import ConfigError
from crucible_train.judges import Belief, Comparison, Judge, Judgement, LabelJudge, RewardJudge, judged, position_bias
from crucible_train.judges.by_reward import reward_input
from crucible_train.renderers import FastTokenizer
from crucible_train.types import AdamParams, CrossEntropy, Datum, Hardware, ModelInput, TensorData
from tests.judges.conftest import Labels, asked, said

ALWAYS_A = (0.0, -math.inf, -math.inf)


def ask(judge, *pairs):
    return list(asyncio.run(judged(judge, asked("q"), [(said(a), said(b)) for a, b in pairs])))


def test_labels_by_hand(comparing):
    """With "x" first: logits log 6, log 3, log 1 -> p = 0.6, 0.3, 0.1: score 0.3.

    With "x" second: log 1, log 2, log 1 -> p(A) = 1/4, p(B) = 1/2: x is B, so score 0.25. The mean is 0.275, half the
    difference 0.025. A constant in all three changes nothing.
    """

    def rule(a, b):
        return np.log([6, 3, 1]) - 20 if a == "x" else np.log([1, 2, 1])

    client = Labels(comparing, rule)
    [found] = ask(LabelJudge(client, comparing), ("x", "y"))
    assert found.score == pytest.approx(0.275)
    assert found.bias == pytest.approx(0.025)
    assert found.tie == pytest.approx(0.175)
    assert (found.first.verdict, found.second.verdict, found.verdict, found.flips) == ("A", "A", "A", False)
    assert len(client.texts) == 6
    assert len(set(client.texts)) == 2
    assert asyncio.run(LabelJudge(client, comparing).compare(asked("q"), said("x"), said("y"))) == found.score
    assert asyncio.run(LabelJudge(client, comparing).compare(asked("q"), said("y"), said("x"))) == -found.score


def test_a_judge_that_always_says_a_has_bias_1_and_score_0(comparing):
    rule = lambda a, b: (-0.0, -1000.0, -1000.0)  # noqa: E731
    found = ask(LabelJudge(Labels(comparing, rule), comparing), ("x", "y"), ("u", "v"))
    assert [one.score for one in found] == [0, 0]
    assert [one.verdict for one in found] == ["Tie", "Tie"]
    bias = position_bias(found)
    assert (bias.num, bias.bias, bias.flip_share) == (2, 1.0, 1.0)
    assert ask(lambda prompt, a, b: 1.0, ("x", "y")) == [Judgement(Belief(1, 0), Belief(0, 1))]
    assert position_bias([]).num == 0


def test_a_tie_is_a_win_of_neither(comparing):
    def rule(a, b):
        return (
            (math.log(0.3), math.log(0.1), math.log(0.6)) if a == "x" else (math.log(0.1), math.log(0.3), math.log(0.6))
        )

    [found] = ask(LabelJudge(Labels(comparing, rule), comparing), ("x", "y"))
    assert found.verdict == "Tie"
    assert found.score == pytest.approx(0.2)
    assert Belief.of_score(0.0).verdict == "Tie"
    assert Belief(0.4, 0.4, 0.2).verdict == "Tie"
    assert Belief(0.3, 0.3, 0.4).of_swapped().verdict == "Tie"


PARTS = st.tuples(*[st.floats(0, 1)] * 3).filter(lambda parts: sum(parts) > 1e-3)
BELIEFS = PARTS.map(lambda parts: Belief(*(part / sum(parts) for part in parts)))


@settings(deadline=None)
@given(BELIEFS, BELIEFS)
def test_swapping_the_answers_turns_the_judgement_round(first, second):
    found, turned = Judgement(first, second), Judgement(second.of_swapped(), first.of_swapped())
    assert turned.score == -found.score
    assert turned.bias == found.bias
    assert turned.flips == found.flips
    assert turned.verdict == {"A": "B", "B": "A", "Tie": "Tie"}[found.verdict]
    assert -1 <= found.score <= 1
    assert -1 <= found.bias <= 1
    if found.verdict == "B":
        assert found.score < 0
        assert max(first.tie, second.tie) < 0.5


@settings(deadline=None)
@given(st.lists(st.floats(-700, 0), min_size=3, max_size=3))
def test_any_log_probabilities_are_normalised_over_the_labels(comparing, logprobs):
    [found] = ask(LabelJudge(Labels(comparing, lambda a, b: logprobs), comparing), ("x", "y"))
    assert found.score == 0  # it looks at no answer
    assert found.first == found.second.of_swapped()
    expected = np.exp(np.array(logprobs) - np.logaddexp.reduce(logprobs))
    assert [found.first.a, found.first.b, found.first.tie] == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_label_without_a_log_probability_is_refused(comparing):
    with pytest.raises(ConfigError, match="gives the labels"):
        ask(LabelJudge(Labels(comparing, lambda a, b: ALWAYS_A), comparing), ("x", "y"))


@pytest.mark.parametrize("score", [1.01, -2.0, math.nan])
def test_scores_out_of_range_are_refused(score):
    with pytest.raises(ValueError, match="not between -1 and 1"):
        ask(lambda prompt, a, b: score, ("x", "y"))
    with pytest.raises(ValueError, match="not probabilities"):
        Belief(0.5, 0.6, 0.0)


# Rewards --------------------------------------------------------------------------------------------------------------


class ByLength:
    """Worth is the number of tokens."""

    def __init__(self):
        self.lengths = []

    async def compute_rewards(self, model_inputs):
        self.lengths.append([one.length for one in model_inputs])
        return [float(one.length) for one in model_inputs]


def test_rewards_compare_by_bradley_terry_and_each_answer_is_read_once(smollm2):
    """Two tokens apart: p = sigmoid(2), so the score is tanh(1)."""
    model = ByLength()
    judge = RewardJudge(model, smollm2)
    assert isinstance(judge, Judge)
    found = ask(judge, (" a a a", " a"), (" a", " a a a"), (" a", " a"))
    assert [one.score for one in found] == pytest.approx([math.tanh(1), -math.tanh(1), 0.0])
    assert {one.bias for one in found} == {0.0}
    assert [one.verdict for one in found] == ["A", "B", "Tie"]
    assert len(model.lengths[0]) == 2


def test_a_reward_is_read_where_the_answer_ends(smollm2):
    ids = reward_input(smollm2, asked("q"), said("yes")).to_ints()
    assert smollm2.tokenizer.decode(ids).endswith("yes<|im_end|>")


# The engine -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def backend(tiny_model, tmp_path):
    settings = EngineSettings(Hardware("cpu", "float32", 1), tmp_path)
    made = LocalBackend(tiny_model, FastTokenizer.from_folder(tiny_model), settings, None)
    yield made
    asyncio.run(made.close())


def test_on_the_engine_scores_are_the_models_and_depend_on_nothing_beside(comparing, backend):
    judge = LabelJudge(backend.sampling_client(), comparing)
    pairs = [("four", "five"), ("four", "six"), ("five", "six")]
    together = ask(judge, *pairs)
    for (a, b), found in zip(pairs, together, strict=True):
        prompt = comparing.judging_prompt(asked("q"), said(a), said(b))
        logprobs = [
            asyncio.run(backend.compute_logprobs(prompt.append_ints([token])))[-1]
            for token in comparing.label_ids.values()
        ]
        shares = np.exp(logprobs) / np.exp(logprobs).sum()
        assert [found.first.a, found.first.b, found.first.tie] == pytest.approx(shares.tolist(), abs=1e-5)

    async def beside():
        texts = [(said(a), said(b)) for a, b in pairs]
        return await asyncio.gather(*(judged(judge, asked("q"), texts) for _ in range(3)))

    assert [list(one) for one in asyncio.run(beside())] == [together] * 3


def test_a_group_reads_what_its_prompts_share_once(comparing, backend, monkeypatch):
    """Six prompts of three labels each: the labels cost nothing, and the common beginning is computed once."""
    computed, scored = [], []
    hidden = scoring._hidden

    def counted(model, stream, rows_S):
        computed.append(stream.num_tokens)
        scored.append(len(rows_S))
        return hidden(model, stream, rows_S)

    monkeypatch.setattr(scoring, "_hidden", counted)
    answers = ["the first answer", "the second", "third"]
    pairs = [(answers[0], answers[1]), (answers[0], answers[2]), (answers[1], answers[2])]
    ask(LabelJudge(backend.sampling_client(), comparing), *pairs)
    prompts = [comparing.judging_prompt(asked("q"), said(x), said(y)) for a, b in pairs for x, y in ((a, b), (b, a))]
    alone = sum(prompt.length for prompt in prompts)
    assert sum(computed) < alone / 2
    assert sum(scored) < alone / 2 + 3 * len(prompts)


@pytest.mark.parametrize("label", ["A", "Tie"])
def test_examples_teach_what_the_judge_reads(comparing, backend, label):
    """Trained on nothing but ties it finds ties; on the first answer whatever it is, it has that bias."""

    def datum(example):
        ids, weights_T = example
        tokens = ids.to_array()
        inputs = {"target_tokens": TensorData(tokens[1:].astype(np.int64), "int64")}
        return Datum(ModelInput.from_ints(tokens[:-1]), inputs | {"weights": TensorData(weights_T[1:], "float32")})

    conversations = [comparing.conversation(Comparison(asked("q"), said(f"{n}"), said("x"), label)) for n in range(3)]
    datums = [datum(comparing._example(conversation)) for conversation in conversations]

    async def train():
        for _ in range(12):
            await backend.forward_backward(datums, CrossEntropy())
            await backend.optim_step(AdamParams(learning_rate=2e-2))

    asyncio.run(train())
    [found] = ask(LabelJudge(backend.sampling_client(), comparing), ("7", "8"))
    assert found.verdict == "Tie"
    if label == "Tie":
        assert found.tie > 0.9
    else:
        assert found.bias > 0.9
        assert found.flips
