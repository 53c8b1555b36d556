"""How gpt-oss is told of its tools: what is written for each kind of JSON schema."""

from typing import Any

import pytest

from crucible_train.renderers.gpt_oss_tools import declarations


def _type(schema: Any) -> str:
    """What a tool with these parameters takes."""
    [line] = declarations([{"function": {"name": "f", "parameters": schema}}]).split("\n\n")[3:-1]
    return line.removeprefix("type f = (").removesuffix(") => any;")


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        (None, ""),
        ({}, "_: any"),
        ({"type": "object"}, "_: {\n}"),
        ({"type": "object", "description": "All."}, "_: // All.\n{\n}"),
        ({"type": ["integer", "null"]}, "_: number | null"),
        ({"type": []}, "_: any"),
        ({"type": "null"}, "_: any"),
        ({"type": "array"}, "_: Array<any>"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}}, "_: boolean[][]"),
        ({"type": "string", "enum": ["a", 1]}, '_: "a"'),
        ({"type": "string", "enum": [1]}, "_: string"),
        (
            {"oneOf": [{"type": "string", "description": "D", "default": "x"}, {"type": "null", "nullable": True}]},
            '_: \n | string // D default: "x"\n | any | null',
        ),
    ],
)
def test_a_schema_is_a_type(schema: Any, written: str) -> None:
    assert _type(schema) == written


@pytest.mark.parametrize(
    ("member", "written"),
    [
        ({"type": "string"}, "k?: string,\n"),
        ({"type": "string", "nullable": True}, "k?: string | null,\n"),
        ({"type": ["string", "null"], "nullable": True}, "k?: string | null,\n"),
        (
            {"title": "T", "description": "D\nE", "examples": ["x", 1]},
            '// T\n//\n// D\nE\n// Examples:\n// - "x"\nk?: any,\n',
        ),
        ({"type": "string", "default": 'a"b'}, 'k?: string, // default: "a"b"\n'),
        ({"type": "string", "enum": ["a"], "default": "a"}, 'k?: "a", // default: a\n'),
        ({"type": "number", "default": 1e-5}, "k?: number, // default: 0.00001\n"),
        ({"type": "number", "default": -2.5e-7}, "k?: number, // default: -2.5e-7\n"),
        ({"type": "number", "default": 1e22}, "k?: number, // default: 1e22\n"),
        ({"type": "integer", "default": 2**64}, "k?: number, // default: 1.8446744073709552e19\n"),
        ({"default": None}, "k?: any, // default: null\n"),
        ({"default": {"a": [True, "é\n"]}}, 'k?: any, // default: {"a":[true,"é\\n"]}\n'),
        ({"type": "object", "properties": {"n": {}}, "required": ["n"]}, "k?: {\n    n: any,\n    },\n"),
        (
            {"description": "D", "default": 1, "oneOf": [{"type": "string", "description": "E"}, {"default": "x"}]},
            '// D\n// default: 1\nk?:\n | string\n | any // default: "x"\n,\n',
        ),
        (
            {"description": "D", "oneOf": [{"description": "D"}, {"description": "E", "enum": ["x"], "default": "x"}]},
            "k?:\n | any\n | any // E default: x\n,\n",
        ),
        (True, "k?: any,\n"),
    ],
)
def test_a_member_is_written_with_all_that_is_said_of_it(member: Any, written: str) -> None:
    assert _type({"type": "object", "properties": {"k": member}}) == f"_: {{\n{written}}}"


def test_a_description_is_a_comment_on_each_of_its_lines() -> None:
    text = declarations([{"name": "f", "description": "One\r\ntwo\rthree\n\nfour\n"}])
    assert "{\n\n// One\n// two\rthree\n// \n// four\ntype f = () => any;\n\n}" in text
