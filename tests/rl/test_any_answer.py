"""Whatever a model writes is judged, never an error."""

import asyncio
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_train import wiring
from crucible_train.renderers import FastTokenizer, Renderer, get_renderer
from crucible_train.rl.environments import problems
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.types import TokensWithLogprobs
from tests.rl.conftest import TOKENIZERS

KINDS = ["arithmetic", "gsm8k", "prompts", "guess_the_number", "calculator, lines", "calculator, native"]


@cache
def renderer_of(kind: str) -> Renderer:
    name, tokenizer = ("qwen3_instruct", "qwen3") if kind.endswith("native") else ("smollm2", "smollm2")
    return get_renderer(name, FastTokenizer.from_folder(TOKENIZERS[tokenizer]))


@cache
def problems_of(kind: str) -> ProblemSet:
    return problems(kind.partition(",")[0], {}, renderer_of(kind), 0, wiring.dataset_store())


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    alphabet='0123456789+-*/().# calc:{}"\n\\boxedanswer', max_size=60
)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=TEXTS, index=st.integers(0, 1000), ends=st.booleans(), ids=st.lists(st.integers(0, 49_000), max_size=12))
def test_any_answer_is_judged(kind, text, index, ends, ids):
    renderer = renderer_of(kind)
    written = [*map(int, renderer.tokenizer.encode(text)), *ids]
    if ends:
        written.append(renderer.stop_sequences()[0])

    async def play():
        env = problems_of(kind).train(index).make_env()
        first = await env.initial_turn()
        result = await env.step(TokensWithLogprobs(tuple(written), None, "stop" if ends else "length"))
        assert env.transcript()
        await env.close()
        return first, result

    first, result = asyncio.run(play())
    assert -1 <= result.reward <= 1
    if result.next_turn is not None and ends:
        seen = first.prompt.to_ints() + written
        assert result.next_turn.prompt.to_ints()[: len(seen)] == seen
