"""Tools: what is declared, how calls are checked, what a model is told when one goes wrong."""

import asyncio
import json
import threading
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from crucible_train.errors import ConfigError, Interrupted
from crucible_train.rl.tools import Tool, by_name


def weather(
    place: str, days: Annotated[int, Field(ge=1, le=7)] = 1, unit: Literal["C", "F"] = "C"
) -> dict[str, object]:
    """Tell the weather.

    Of any place.

    Args:
        place: a town,
            or a village
        days (int): how many days
        unit: of the temperature

    Returns:
        the weather
    """
    return {"place": place, "days": days, "unit": unit}


def call(function, arguments, **limits) -> str:
    return asyncio.run(
        Tool.of(function, **limits).call(arguments if isinstance(arguments, str) else json.dumps(arguments))
    )


def test_the_declaration_comes_from_signature_and_docstring():
    assert Tool.of(weather).declaration == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather.\n\nOf any place.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "a town, or a village"},
                    "days": {
                        "type": "integer",
                        "default": 1,
                        "minimum": 1,
                        "maximum": 7,
                        "description": "how many days",
                    },
                    "unit": {
                        "type": "string",
                        "enum": ["C", "F"],
                        "default": "C",
                        "description": "of the temperature",
                    },
                },
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    }


def test_a_call_gives_the_result_as_text():
    assert json.loads(call(weather, {"place": "Bonn"})) == {"place": "Bonn", "days": 1, "unit": "C"}
    assert json.loads(call(weather, {"place": "Bonn", "days": "3"}))["days"] == 3

    def plain() -> str:
        return "as it is"

    assert call(plain, {}) == "as it is"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "place: Field required"),
        ({"place": "Bonn", "days": 9}, "days: Input should be less than or equal to 7"),
        ({"place": "Bonn", "town": 1}, "town: Extra inputs are not permitted"),
        ({"place": 3}, "place: Input should be a valid string"),
        ("not JSON", "arguments: Invalid JSON"),
        ("[1]", "arguments: "),
    ],
)
def test_wrong_arguments_are_told_to_the_model(arguments, told):
    assert call(weather, arguments).startswith(f"error: {told}")


def test_what_a_tool_raises_is_told_to_the_model():
    def broken(x: int) -> int:
        return 1 // x

    assert call(broken, {"x": 0}) == "error: ZeroDivisionError: integer division or modulo by zero"
    assert call(broken, {"x": 1}) == "1"


def test_coroutines_are_awaited_and_others_do_not_hold_the_loop():
    async def soon(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert call(soon, {"x": 1}) == "2"
    assert call(where, {}) == "false"


def test_a_call_that_takes_too_long_is_given_up():
    async def never() -> None:
        await asyncio.Event().wait()

    assert call(never, {}, timeout_s=0.01) == "error: never took longer than 0.01 s"

    async def own() -> None:
        raise TimeoutError("of its own")

    assert call(own, {}) == "error: TimeoutError: of its own"


def test_a_long_result_is_cut_off():
    def long() -> str:
        return "x" * 100

    assert call(long, {}, max_characters=10) == "x" * 10


def test_a_stop_of_the_run_is_no_result():
    async def stopped() -> None:
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        call(stopped, {})


def test_what_cannot_be_declared_is_refused():
    def untyped(x):
        return x

    def positional(x: int, /) -> int:
        return x

    def many(*x: int) -> int:
        return len(x)

    for function in (untyped, positional, many):
        with pytest.raises(ConfigError, match=f"tool {function.__name__}: argument 'x'"):
            Tool.of(function)
    with pytest.raises(ConfigError, match="same name"):
        by_name([Tool.of(weather), Tool.of(weather)])


@settings(deadline=None)
@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_no_arguments_make_a_call_fail(arguments):
    assert isinstance(call(weather, arguments), str)
