"""Held-out prompts, the answers a model gives, and how well it predicts held-out text."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from crucible_train.config.sections import EvalConfig
from crucible_train.data.conversations import Dialogue
from crucible_train.data.examples import Example
from crucible_train.data.tables import Dialogues, StoredDialogue, write_dialogues
from crucible_train.evaluation.answers import Answer, Question, answer, answer_metrics, questions
from crucible_train.evaluation.nll import ExampleNll, measure_nll, nll_metrics
from crucible_train.evaluation.scorers import SCORERS
from crucible_train.ports import StepOutput
from crucible_train.renderers import FastTokenizer, get_renderer
from crucible_train.types import Message, TokensWithLogprobs, conversation

ASSETS = Path(__file__).parents[2] / "crucible_train" / "assets" / "smollm2"
TOOLS = ({"type": "function", "function": {"name": "f"}},)


@pytest.fixture(scope="module")
def tokenizer():
    return FastTokenizer.from_folder(ASSETS)


@pytest.fixture
def dialogues(tmp_path) -> Dialogues:
    talks = [
        ["q0", "a0"],
        ["asked only"],
        ["q2", "a2", "q2 again", "a2 again"],
        ["q3", "a3", "unanswered"],
        ["q4", "a4"],
    ]
    rows = [
        Dialogue(conversation([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(talk)]))
        for talk in talks
    ]
    rows[4] = Dialogue(rows[4].messages, TOOLS)
    write_dialogues(tmp_path / "d", [StoredDialogue.of(dialogue, "f") for dialogue in rows])
    return Dialogues(tmp_path / "d")


def test_questions_are_the_first_conversations_that_end_with_an_answer_without_it(dialogues):
    found = questions(dialogues, [4, 3, 2, 1, 0], 2)
    assert [(q.row, q.text, q.reference, q.tools) for q in found] == [
        (4, "q4", "a4", TOOLS),
        (2, "q2 again", "a2 again", ()),
    ]
    assert [message.text for message in found[1].messages] == ["q2", "a2", "q2 again"]
    assert questions(dialogues, range(5), 0) == []
    assert len(questions(dialogues, range(5), 99)) == 3


def test_no_more_rows_are_read_than_questions_need(dialogues):
    assert len(questions(dialogues, iter([0, 10**9]), 1)) == 1


class Scripted:
    """Answers each prompt by a rule, and keeps what it was asked."""

    def __init__(self, tokenizer, rule) -> None:
        self.asked = []
        self._tokenizer, self._rule = tokenizer, rule

    async def sample(self, prompt, num_samples, params):
        text = self._tokenizer.decode(prompt.to_ints())
        self.asked.append((text, num_samples, params))
        ids = [*self._tokenizer.encode(self._rule(text)), *params.stop_token_ids[:1]][: params.max_tokens]
        return [TokensWithLogprobs(tuple(ids), None, "stop")]


def ask(tokenizer, asked, rule, config=EvalConfig(), seed=0, renderer="smollm2", **options):
    client = Scripted(tokenizer, rule)
    chosen = {name: SCORERS[name] for name in ("exact_match", "contains")}
    renderer = get_renderer(renderer, tokenizer, **options)
    return asyncio.run(answer(client, renderer, asked, chosen, config, seed)), client.asked


def question(row: int, text: str, reference: str, tools=()) -> Question:
    return Question(row, (Message("user", text),), reference, tools)


def test_answers_are_scored_against_their_own_references_in_the_order_of_the_questions(tokenizer):
    asked = [question(7, "one", "yes"), question(3, "two", "no")]
    found, _ = ask(tokenizer, asked, lambda prompt: "yes" if "one" in prompt else "yes or no")
    assert [(a.row, a.text, a.scores) for a in found] == [
        (7, "yes", {"exact_match": 1, "contains": 1}),
        (3, "yes or no", {"exact_match": 0, "contains": 1}),
    ]
    assert [a.ended for a in found] == [True, True]
    assert found[0].num_tokens == len(tokenizer.encode("yes")) + 1


def test_an_answer_that_was_cut_off_has_not_ended(tokenizer):
    found, _ = ask(tokenizer, [question(0, "q", "r")], lambda _: "word " * 50, EvalConfig(max_new_tokens=10))
    assert not found[0].ended
    assert found[0].num_tokens == 10


def test_the_prompt_is_the_models_format_and_the_settings_are_the_configurations(tokenizer):
    config = EvalConfig(max_new_tokens=17, temperature=0.5, top_p=0.25)
    _, ((prompt, num_samples, params),) = ask(tokenizer, [question(0, "q", "r")], lambda _: "x", config)
    assert prompt.endswith("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n")
    assert num_samples == 1
    assert (params.max_tokens, params.temperature, params.top_p) == (17, 0.5, 0.25)
    assert params.stop_token_ids == (tokenizer.control_tokens["<|im_end|>"],)


def test_a_question_has_its_own_seed_whatever_else_is_asked(tokenizer):
    several = [question(row, f"q{row}", "r") for row in range(4)]

    def seeds(asked, seed):
        return {text: params.seed for text, _, params in ask(tokenizer, asked, lambda _: "x", seed=seed)[1]}

    together = seeds(several, 0)
    assert len(set(together.values())) == 4
    assert together == seeds(several[::-1], 0)
    assert seeds(several[2:3], 0).items() <= together.items()
    assert not set(seeds(several, 1).values()) & set(together.values())


def test_the_tools_of_a_conversation_stand_in_the_prompt(tokenizer):
    template = "{% if tools %}{{ tools[0].function.name }} {% endif %}{{ messages[0].content }};"
    asked = [question(0, "q", "r", TOOLS), question(1, "q", "r")]
    _, told = ask(tokenizer, asked, lambda _: "x", renderer="chat_template", template=template)
    assert [prompt for prompt, *_ in told] == ["f q;", "q;"]


def test_the_figures_are_means_over_answers():
    found = [Answer(row, "", row > 0, 1, {"contains": score}) for row, score in enumerate([1.0, 0.5, 0.0, 0.5])]
    assert answer_metrics(found) == {"eval/contains": 0.5, "eval/ended": 0.75}
    assert answer_metrics([]) == {}


class Forward:
    """A model whose log-probability of a token is minus a hundredth of its id; counts its passes."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    async def forward(self, datums, loss):
        self.passes.append(len(datums))
        logprobs = [-datum.loss_fn_inputs["target_tokens"].to_numpy().astype(np.float32) / 100 for datum in datums]
        return StepOutput(0.0, logprobs, {})


def test_every_trained_token_counts_once_whatever_its_weight_and_no_other():
    example = Example(np.array([9, 1, 2, 3, 4], np.int32), np.array([1, 0, 0.5, 1, 0], np.float32), 6, 12)
    (found,) = asyncio.run(measure_nll(Forward(), [example]))
    assert (found.row, found.num_tokens, found.num_bytes) == (6, 2, 12)
    assert found.nll == pytest.approx((2 + 3) / 100)


def test_examples_are_measured_in_order_in_passes_of_bounded_size():
    many = [Example(np.array([0, row], np.int32), np.ones(2, np.float32), row, 1) for row in range(150)]
    client = Forward()
    found = asyncio.run(measure_nll(client, many))
    assert [e.row for e in found] == list(range(150))
    assert sum(client.passes) == 150
    assert max(client.passes) <= 64
    assert asyncio.run(measure_nll(client, [])) == []


def test_the_three_figures_worked_out_by_hand():
    found = nll_metrics([ExampleNll(0, 3.0, 2, 5), ExampleNll(1, 1.0, 6, 3)])
    assert found["eval/nll"] == pytest.approx(0.5)
    assert found["eval/perplexity"] == pytest.approx(math.exp(0.5))
    assert found["eval/bits_per_byte"] == pytest.approx(4 / math.log(2) / 8)


def test_a_hopeless_model_has_a_finite_perplexity():
    assert math.isfinite(nll_metrics([ExampleNll(0, 1e6, 1, 1)])["eval/perplexity"])
