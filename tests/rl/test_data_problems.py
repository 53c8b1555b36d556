"""Problems that stand on data sets: prompts of any form, and word problems with numbers."""

import asyncio
import json
from pathlib import Path

import pytest

from crucible_train import wiring
from crucible_train.errors import ConfigError, DataError
from crucible_train.renderers import get_renderer
from crucible_train.rl.environments import problems
from crucible_train.rl.environments.prompts import PromptOptions, Prompts
from crucible_train.rl.preference_reward import PreferenceModel, by_preference, preference_rewards
from crucible_train.rl.prompts import read_prompts
from crucible_train.types import Message
from tests.rl.conftest import Scripted, play, play_group

STORE = wiring.dataset_store()


def written(tmp_path: Path, rows, name="rows.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(tmp_path: Path, num: int = 12, name="rows.jsonl", start=0) -> str:
    numbers = range(start, start + num)
    return written(tmp_path, [{"prompt": f"say {n}", "completion": f"{n}"} for n in numbers], name)


def say_it(text: str) -> str:
    return text.rpartition("say ")[2].partition("<")[0]


def made(tmp_path, renderer, source=None, seed=0, **options):
    source = source if source is not None else pairs(tmp_path)
    return problems(
        "prompts", {"dataset": source, "num_held_out": 3, "scorer": "exact_match"} | options, renderer, seed, STORE
    )


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "texts", "reference"),
    [
        ({"prompt": "p", "completion": "c"}, ["p"], "c"),
        ({"question": "p", "answer": "c"}, ["p"], "c"),
        ({"prompt": "p"}, ["p"], None),
        ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]}, ["s", "p"], None),
        ({"problem": "p", "level": 3}, ["p"], None),
        ({"messages": [{"role": "user", "content": "p"}]}, ["p"], None),
        ({"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]}, ["p"], "c"),
        ({"instruction": "p", "input": "x", "output": "c"}, ["p\n\nx"], "c"),
    ],
)
def test_a_prompt_is_a_conversation_up_to_its_last_answer(tmp_path, row, texts, reference):
    [prompt] = read_prompts(STORE, written(tmp_path, [row]), {}, None)
    assert [message.text for message in prompt.messages] == texts
    assert prompt.reference == reference
    assert dict(prompt.values) == row
    assert prompt.where.endswith("rows.jsonl:1")


def test_columns_may_be_renamed_and_rows_left_unread(tmp_path):
    source = written(tmp_path, [{"q": "p", "a": "c"}] * 3)
    found = read_prompts(STORE, source, {"prompt": "q", "completion": "a"}, 2)
    assert [(prompt.messages[0].text, prompt.reference) for prompt in found] == [("p", "c")] * 2


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "holds no rows"),
        ([{"x": 1}], "the columns are x"),
        ([{"prompt": "p", "completion": "c"}, {"prompt": 3, "completion": "c"}], "rows.jsonl:2: prompt must be"),
        ([{"messages": [{"role": "assistant", "content": "c"}]}], "assistant"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, told):
    with pytest.raises(DataError, match=told):
        read_prompts(STORE, written(tmp_path, rows), {}, None)


def test_the_digest_tells_prompts_apart_and_not_their_answers(tmp_path):
    rows = [
        {"prompt": "p", "completion": "c"},
        {"prompt": "p", "completion": "d"},
        {"prompt": "q", "completion": "c"},
    ]
    first, second, third = read_prompts(STORE, written(tmp_path, rows), {}, None)
    assert first.digest == second.digest != third.digest


# Prompts --------------------------------------------------------------------------------------------------------------


def test_answers_are_judged_by_a_scorer(tmp_path, smollm2):
    prompts = made(tmp_path, smollm2)
    assert play(prompts.train(0).make_env(), Scripted(smollm2, say_it)).reward == 1.0
    wrong = play(prompts.train(0).make_env(), Scripted(smollm2, lambda text: "no"))
    assert (wrong.reward, wrong.transitions[0].reward_parts) == (0.0, {"correct": 0.0, "format": 1.0})


def test_the_built_in_sample_is_what_is_read_unless_another_is_named(smollm2):
    options = PromptOptions()
    assert problems("prompts", options, smollm2, 0, STORE).num_train == 136
    assert options.sources[0].endswith("sample.jsonl.gz")
    assert PromptOptions(dataset="a", held_out_dataset="b").sources == ("a", "b")


def test_problems_are_named_by_what_they_ask_and_parted_by_the_seed(tmp_path, smollm2):
    def names(prompts):
        return [one.problem for one in prompts.held_out], [prompts.train(i).problem for i in range(9)]

    first, again = names(made(tmp_path, smollm2)), names(made(tmp_path, smollm2))
    assert first == again
    assert len(set(first[0]) | set(first[1])) == 12
    assert names(made(tmp_path, smollm2, seed=1)) != first


def test_another_data_set_may_be_held_out(tmp_path, smollm2):
    other = pairs(tmp_path, 5, "other.jsonl", start=10)
    prompts = made(tmp_path, smollm2, held_out_dataset=other)
    assert len(prompts.held_out) == 5
    assert prompts.num_train == 10
    assert play(prompts.held_out[4].make_env(), Scripted(smollm2, lambda text: "14")).reward == 1.0


def half(prompt, text: str) -> float:
    """A reward function that a configuration can name."""
    return 0.5 if text == prompt.values["completion"] else 0.0


async def late(prompt, text: str) -> float:
    await asyncio.sleep(0)
    return 0.75


@pytest.mark.parametrize(("name", "reward"), [("half", 0.5), ("late", 0.75)])
def test_a_function_may_judge_instead(tmp_path, smollm2, name, reward):
    prompts = made(tmp_path, smollm2, reward=f"tests.rl.test_data_problems:{name}")
    assert play(prompts.train(0).make_env(), Scripted(smollm2, say_it)).reward == reward


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scorer": "exact"}, "env.options.scorer: 'exact' is unknown"),
        ({"reward": "nowhere.at_all:f"}, "env.options.reward: 'nowhere.at_all:f' cannot be found"),
        ({"reward": "tests.rl.test_data_problems.half"}, "not of the form module:function"),
        ({"reward": "tests.rl.test_data_problems:missing"}, "cannot be found"),
        ({"reward": "tests.rl.test_data_problems:STORE"}, "is not a function"),
        ({"num_held_out": 12}, "num_held_out: all of the 12"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, smollm2, options, told):
    with pytest.raises(ConfigError, match=told):
        made(tmp_path, smollm2, **options)


def test_a_scorer_needs_answers_to_compare_with(tmp_path, smollm2):
    source = written(tmp_path, [{"prompt": f"p{n}"} for n in range(9)])
    with pytest.raises(DataError, match=r"rows.jsonl:1: the row has no answer"):
        made(tmp_path, smollm2, source)
    assert made(tmp_path, smollm2, source, reward="tests.rl.test_data_problems:late").num_train == 6


def test_tools_of_a_row_are_declared(tmp_path, qwen3_tokenizer):
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    source = written(tmp_path, [{"prompt": f"say {n}", "completion": f"{n}", "tools": [tool]} for n in range(5)])
    renderer = get_renderer("qwen3_instruct", qwen3_tokenizer)
    client = Scripted(renderer, say_it)
    assert play(made(tmp_path, renderer, source).train(0).make_env(), client).reward == 1.0
    assert '"look_up"' in client.asked[0][0]


# GSM8K ----------------------------------------------------------------------------------------------------------------


def gsm8k(renderer, **options):
    return problems("gsm8k", options, renderer, 0, STORE)


def test_the_built_in_sample_is_parted_and_none_of_it_lost(smollm2):
    made = gsm8k(smollm2, num_held_out=50)
    assert (made.num_train, len(made.held_out)) == (150, 50)
    held_out = {one.problem for one in made.held_out}
    assert not held_out & {made.train(index).problem for index in range(300)}


def test_reference_answers_are_right_and_have_the_form(smollm2):
    for problem in gsm8k(smollm2).held_out:
        env = problem.make_env()
        assert env.check_answer(env._prompt.reference) == 1.0
        assert env.check_format(env._prompt.reference)
        assert env.check_answer("#### -123456") == 0.0


@pytest.mark.parametrize(
    ("form", "said", "correct", "has_format"),
    [
        ("hashes", "2 * 6 = 12\n#### 12", 1, 1),
        ("hashes", "#### $1,2", 0, 1),
        ("hashes", "12", 1, 0),
        ("hashes", "#### 11\n#### 12", 1, 0),
        ("hashes", "#### twelve", 0, 0),
        ("hashes", r"#### 3 \boxed{12}", 1, 0),
        ("boxed", r"so \boxed{12.0}", 1, 1),
        ("boxed", "#### 12", 1, 0),
        ("boxed", r"\boxed{} 12", 0, 0),
    ],
)
def test_word_problems_are_judged_by_number_and_form(tmp_path, smollm2, form, said, correct, has_format):
    rows = [{"question": f"{n} eggs, twice 6?", "answer": "It is 2 * 6.\n#### 12"} for n in range(4)]
    made = gsm8k(smollm2, dataset=written(tmp_path, rows), num_held_out=1, answer_form=form)
    client = Scripted(smollm2, lambda text: said)
    [transition] = play(made.train(0).make_env(), client).transitions
    assert transition.reward_parts == {"correct": correct, "format": has_format}
    assert ("####" if form == "hashes" else "boxed") in client.asked[0][0]


def test_an_answer_without_a_number_is_a_bad_row(tmp_path, smollm2):
    source = written(tmp_path, [{"question": "q", "answer": "#### 1"}, {"question": "r", "answer": "none"}])
    with pytest.raises(DataError, match=r"rows.jsonl:2: the answer comes to no number"):
        gsm8k(smollm2, dataset=source)


# Preferences ----------------------------------------------------------------------------------------------------------


class Longer:
    """Prefers the longer answer."""

    def __init__(self) -> None:
        self.asked = []

    async def compare(self, prompt, a, b):
        self.asked.append((prompt[-1].text, a.text, b.text))
        await asyncio.sleep(0)
        return float((len(a.text) > len(b.text)) - (len(a.text) < len(b.text)))


def group_of(tmp_path, smollm2, compare, answers, **options):
    left = iter(answers)
    made = Prompts(
        PromptOptions(dataset=pairs(tmp_path), num_held_out=3),
        smollm2,
        0,
        STORE,
        reward=lambda prompt, text: 0.0,
        group_reward=by_preference(compare, **options),
    )
    return play_group(made.train(0), Scripted(smollm2, lambda text: next(left)), len(answers))


def test_answers_are_compared_in_pairs_and_both_orders(tmp_path, smollm2):
    model = Longer()
    assert isinstance(model, PreferenceModel)
    group = group_of(tmp_path, smollm2, model, ["aaa", "a", "aa", "aa"])
    assert group is not None
    assert group.rewards_G == pytest.approx((1.0, -1.0, 0.0, 0.0))
    assert sum(group.group_rewards_G) == pytest.approx(0)
    assert len(model.asked) == 4 * 3
    assert all((text, b, a) in model.asked for text, a, b in model.asked)
    assert {asked for asked, _, _ in model.asked} == {group.trajectories_G[0].messages[-2].text}


def test_a_liking_for_a_place_cancels_out(tmp_path, smollm2):
    group = group_of(tmp_path, smollm2, lambda prompt, a, b: 0.5, ["x", "yy", "zzz"], scale=2.0)
    assert group is not None
    assert group.group_rewards_G == pytest.approx((0.0, 0.0, 0.0))
    group = group_of(tmp_path, smollm2, lambda prompt, a, b: 1.0 if a.text == "x" else -1.0, ["x", "y"], scale=2.0)
    assert group is not None
    assert group.group_rewards_G == pytest.approx((2.0, -2.0))


def test_one_answer_alone_is_worth_nothing(tmp_path, smollm2):
    group = group_of(tmp_path, smollm2, Longer(), ["x"])
    assert group is not None
    assert group.group_rewards_G == (0.0,)


def test_a_comparison_out_of_its_range_costs_the_group(tmp_path, smollm2):
    assert group_of(tmp_path, smollm2, lambda prompt, a, b: 2.0, ["x", "y"]) is None


def test_an_episode_without_an_answer_cannot_be_compared(smollm2):
    trajectory = play(problems("arithmetic", {}, smollm2, 0).train(0).make_env(), Scripted(smollm2, lambda text: "1"))
    cut = type(trajectory)(trajectory.transitions, trajectory.reason, trajectory.messages[:-1])
    with pytest.raises(ValueError, match="does not end with an answer"):
        asyncio.run(preference_rewards(Longer(), [Message("user", "?")], [trajectory, cut]))
