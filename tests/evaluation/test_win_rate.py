"""One model's answers beside another's."""

import asyncio
import json

import pytest

from crucible_train.config.sections import EvalConfig
from crucible_train.evaluation.answers import Answer, Question
from crucible_train.evaluation.statistics import rate_interval
from crucible_train.evaluation.win_rate import Player, compare_answers, play, read_judgement, win_rate
from crucible_train.renderers import FastTokenizer, get_renderer
from crucible_train.types import Message, TokensWithLogprobs
from tests.conftest import ROOT

QUESTIONS = [Question(row, (Message("user", f"question {row}"),), "") for row in range(8)]


def answers(*texts):
    return [Answer(row, text, True, 1, {}) for row, text in enumerate(texts)]


def matched(judge, x, y):
    return asyncio.run(compare_answers(judge, QUESTIONS[: len(x)], answers(*x), answers(*y)))


def longer(prompt, a, b):
    return float((len(a.text) > len(b.text)) - (len(a.text) < len(b.text)))


def test_figures_by_hand():
    """3 wins, 2 ties, 1 loss of 6: the win rate is 4/6; Wilson's interval of 4 hits in 6 trials."""
    matches = matched(longer, ["aa", "aa", "aa", "a", "a", "a"], ["a", "a", "a", "a", "a", "aa"])
    found = win_rate(matches, 0)
    assert found.num == 6
    assert found.win_rate == rate_interval(4, 6)
    assert found.win_rate.value == pytest.approx(2 / 3)
    assert (found.wins, found.ties, found.losses) == (rate_interval(3, 6), rate_interval(2, 6), rate_interval(1, 6))
    assert found.score.value == pytest.approx(2 / 6)
    assert found.score.low < found.score.value < found.score.high
    assert (found.position.bias, found.position.flip_share) == (0.0, 0.0)
    assert not found.is_clear
    assert sum(found.metrics()[f"eval/{name}"] for name in ("wins", "ties", "losses")) == pytest.approx(1)


def test_ties_count_half_for_either_side():
    tied = win_rate(matched(longer, ["a"] * 5, ["b"] * 5), 0)
    assert tied.win_rate.value == 0.5
    assert (tied.wins.value, tied.ties.value, tied.losses.value) == (0, 1, 0)
    odd = win_rate(matched(longer, ["aa", "a", "a"], ["a", "a", "aa"]), 0)
    assert odd.win_rate.value == 0.5
    turned = win_rate(matched(longer, ["a", "a", "aaa"], ["aa", "a", "aa"]), 0)
    assert turned.win_rate.value == 0.5


def test_a_judge_that_always_says_a_finds_ties_and_is_told_of():
    matches = matched(lambda prompt, a, b: 1.0, ["x"] * 6, ["y"] * 6)
    found = win_rate(matches, 0)
    assert (found.ties.value, found.losses.value, found.win_rate.value) == (1, 0, 0.5)
    assert (found.position.bias, found.position.flip_share) == (1.0, 1.0)


def test_a_clear_win_is_told():
    assert win_rate(matched(longer, ["aa"] * 8, ["a"] * 8), 0).is_clear
    assert not win_rate(matched(longer, ["aa"] * 2, ["a"] * 2), 0).is_clear


def test_both_orders_are_asked_and_records_hold_what_was_said():
    seen = []

    async def judge(prompt, a, b):
        seen.append((prompt[0].text, a.text, b.text))
        return 0.5 if a.text == "x" else 0.25

    [match] = matched(judge, ["x"], ["y"])
    assert sorted(seen) == [("question 0", "x", "y"), ("question 0", "y", "x")]
    row = json.loads(json.dumps(match.to_json()))
    assert read_judgement(row) == match.judgement
    assert row == {
        "kind": "match",
        "row": 0,
        "messages": [{"role": "user", "content": "question 0"}],
        "answers": {"x": "x", "y": "y"},
        "verdict": "tie",
        "score": 0.125,
        "x_first": {"a": 0.75, "b": 0.25, "tie": 0.0},
        "y_first": {"a": 0.375, "b": 0.625, "tie": 0.0},
    }


def test_answers_must_be_to_the_same_questions():
    with pytest.raises(ValueError, match="not to the same questions"):
        matched(longer, ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one prompt"):
        win_rate([], 0)


class Says:
    """Answers every prompt with one text."""

    def __init__(self, renderer, text):
        self.ids = [int(one) for one in renderer.tokenizer.encode(text)]

    async def sample(self, prompt, num_samples, params):
        ids = (*self.ids, params.stop_token_ids[0])
        return [TokensWithLogprobs(ids, tuple(-1.0 for _ in ids), "stop")] * num_samples


def test_both_models_answer_every_question():
    renderer = get_renderer("smollm2", FastTokenizer.from_folder(ROOT / "crucible_train" / "assets" / "smollm2"))
    x, y = (Player(Says(renderer, text), renderer) for text in ("a long answer", "short"))
    matches = asyncio.run(play(x, y, longer, QUESTIONS, EvalConfig(), 0))
    assert [(match.x.text, match.y.text) for match in matches] == [("a long answer", "short")] * 8
    assert win_rate(matches, 0).wins.value == 1
