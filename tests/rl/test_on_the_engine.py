"""Episodes on the real engine and a tiny model with random weights."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crucible_train import wiring
from crucible_train.renderers import Renderer, get_renderer
from crucible_train.rl.environments import problems
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.rl.rollouts import rollout_group
from crucible_train.types import Hardware


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend

    settings = EngineSettings(Hardware("cpu", "float32", 1), tmp_path_factory.mktemp("states"), seed=3)
    backend = LocalBackend(tiny_model, wiring.tokenizer(tiny_model), settings, None, name="tiny")
    yield backend
    asyncio.run(backend.close())


@pytest.fixture(scope="module")
def renderer(engine) -> Renderer:
    return get_renderer("smollm2", engine.tokenizer())


def groups(engine, renderer, name, places, size=3, seed=0, **limits):
    made = problems(name, {}, renderer, 0)
    config = RolloutConfig(**{"max_tokens": 6, "on_error": "fail_fast"} | limits)

    async def play():
        client = engine.sampling_client()
        asked = (rollout_group(made.train(place), size, client, config, seed, lambda: 3) for place in places)
        return await asyncio.gather(*asked)

    return asyncio.run(play())


def tokens(group):
    return [[t.action.tokens for t in trajectory.transitions] for trajectory in group.trajectories_G]


def test_a_group_has_other_answers_for_each_sample_and_the_same_on_any_day(engine, renderer):
    [group] = groups(engine, renderer, "arithmetic", [0], temperature=1.5)
    [again] = groups(engine, renderer, "arithmetic", [0], temperature=1.5)
    [other] = groups(engine, renderer, "arithmetic", [0], temperature=1.5, seed=1)
    assert tokens(group) == tokens(again)
    assert tokens(group) != tokens(other)
    assert len({str(one) for one in tokens(group)}) == 3
    assert {t.policy_step for trajectory in group.trajectories_G for t in trajectory.transitions} == {3}


def test_what_else_is_played_does_not_matter(engine, renderer):
    crowded = groups(engine, renderer, "arithmetic", range(4), temperature=1.5)
    [alone] = groups(engine, renderer, "arithmetic", [2], temperature=1.5)
    assert tokens(crowded[2]) == tokens(alone)


def test_log_probabilities_are_those_of_the_prompt_that_was_seen(engine, renderer):
    [group] = groups(engine, renderer, "guess_the_number", [0], size=2, max_tokens=40, max_turns=2)
    for trajectory in group.trajectories_G:
        for transition in trajectory.transitions:
            whole = transition.prompt.append_ints(transition.action.tokens)
            scored = asyncio.run(engine.sampling_client().compute_logprobs(whole))
            np.testing.assert_allclose(transition.action.logprobs, scored[transition.prompt.length :], atol=1e-4)


def test_a_cancelled_group_leaves_the_engine_at_work(engine, renderer):
    made = problems("arithmetic", {}, renderer, 0)

    async def act():
        client = engine.sampling_client()
        leaving = asyncio.create_task(
            rollout_group(made.train(0), 3, client, RolloutConfig(max_tokens=200), 0, lambda: 0)
        )
        await asyncio.sleep(0.01)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await rollout_group(made.train(1), 2, client, RolloutConfig(max_tokens=4), 0, lambda: 0)

    group = asyncio.run(asyncio.wait_for(act(), 60))
    assert len(group.trajectories_G) == 2
