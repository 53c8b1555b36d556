"""Groups of trajectories come back from a checkpoint as they went, to the bit."""

import copy
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_train import files
from crucible_train.errors import CheckpointError
from crucible_train.rl.environment import StopReason, Trajectory, TrajectoryGroup, Transition
from crucible_train.rl.group_json import group_from_json, group_to_json
from crucible_train.types import Message, ModelInput, TextPart, ThinkingPart, TokensWithLogprobs, ToolCall

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SINGLE = st.floats(-100, 0, width=32)
NAMED = st.dictionaries(st.text(max_size=5), FLOATS, max_size=2)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WORDS = TEXT.filter(bool)
MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT),
    st.builds(lambda a, b: Message("assistant", (ThinkingPart(a), TextPart(b))), WORDS, WORDS),
    st.builds(lambda a: Message("assistant", "", (ToolCall("add", f'{{"x": {a}}}', "id"),)), st.integers()),
    st.builds(lambda a: Message("tool", a, tool_call_id="id", name="add"), TEXT),
)


@st.composite
def transitions(draw: st.DrawFn) -> Transition:
    logprobs = draw(st.one_of(st.none(), st.lists(SINGLE, max_size=4)))
    size = draw(st.integers(0, 4)) if logprobs is None else len(logprobs)
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size))
    action = TokensWithLogprobs(
        tuple(tokens), None if logprobs is None else tuple(logprobs), draw(st.sampled_from(["stop", "length"]))
    )
    prompt = ModelInput.from_ints(draw(st.lists(st.integers(0, 2**31 - 1), max_size=5)))
    return Transition(prompt, action, draw(FLOATS), draw(st.integers(0, 10**9)), draw(NAMED), draw(NAMED))


TRAJECTORIES = st.builds(
    Trajectory,
    st.lists(transitions(), max_size=3).map(tuple),
    st.sampled_from(StopReason),
    st.lists(MESSAGES, max_size=3).map(tuple),
    st.one_of(st.none(), TEXT),
)


@st.composite
def groups(draw: st.DrawFn) -> TrajectoryGroup:
    trajectories = draw(st.lists(TRAJECTORIES, max_size=3))
    extra = draw(st.lists(FLOATS, min_size=len(trajectories), max_size=len(trajectories)))
    texts = st.lists(TEXT, max_size=2).map(tuple)
    return TrajectoryGroup(
        draw(TEXT), tuple(trajectories), tuple(extra), draw(texts), draw(st.integers(0, 9)), draw(texts)
    )


@given(groups())
def test_a_group_comes_back_as_it_went(made: TrajectoryGroup):
    text = files.canonical_json(group_to_json(made))
    found = group_from_json(files.parse_json(text))
    assert found == made
    assert files.canonical_json(group_to_json(found)) == text  # -0.0 too, which equals 0.0


@given(st.lists(st.floats(-100, 0, width=32), min_size=1, max_size=20))
def test_what_a_sampler_said_comes_back_to_the_bit(values: list[float]):
    logprobs = tuple(np.asarray(values, np.float32).tolist())
    action = TokensWithLogprobs((1,) * len(logprobs), logprobs, "stop")
    one = Trajectory((Transition(ModelInput.from_ints([1]), action, 0.1, 3),), StopReason.COMPLETED)
    made = TrajectoryGroup("p", (one,), (0.0,))
    found = group_from_json(files.parse_json(files.canonical_json(group_to_json(made))))
    back = found.trajectories_G[0].transitions[0].action.logprobs
    assert [struct.pack("d", value) for value in back] == [struct.pack("d", value) for value in logprobs]


def damaged():
    action = TokensWithLogprobs((1,), (-1.0,), "stop")
    one = Trajectory(
        (Transition(ModelInput.from_ints([1]), action, 0.1, 3),), StopReason.COMPLETED, (Message("user", "?"),)
    )
    sound = group_to_json(TrajectoryGroup("p", (one,), (0.0,)))
    assert group_from_json(sound).problem == "p"

    def without(path: str, **changes):
        found = copy.deepcopy(sound)
        place = found
        *before, last = path.split(".")
        for name in before:
            place = place[int(name) if name.isdigit() else name]
        if "to" in changes:
            place[last] = changes["to"]
        else:
            del place[last]
        return found

    yield None
    yield []
    yield without("problem")
    yield without("trajectories", to=3)
    yield without("group_rewards", to=[0.0, 0.0])
    yield without("trajectories.0.reason", to="no such reason")
    yield without("trajectories.0.transitions.0.tokens")
    yield without("trajectories.0.transitions.0.tokens", to=[1, 2])
    yield without("trajectories.0.transitions.0.prompt", to=[-1])
    yield without("trajectories.0.messages.0.role")


@pytest.mark.parametrize("value", [*damaged()])
def test_what_is_no_group_is_refused(value):
    with pytest.raises(CheckpointError, match="the checkpoint's rollouts cannot be read"):
        group_from_json(value)
