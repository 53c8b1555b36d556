"""How gpt-oss is told of its tools: JSON schemas as TypeScript-like types, as ``openai-harmony`` 0.0.8 writes them.

# Tools¶¶## functions¶¶namespace functions {¶¶
// DESCRIPTION¶
type NAME = (_: {¶
// DESCRIPTION OF PARAMETER¶
city: string,¶
unit?: "celsius" | "fahrenheit", // default: celsius¶
}) => any;¶¶
} // namespace functions
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crucible_train.errors import RenderError

NAMESPACE = "functions"
_TYPES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}
_INTEGERS = range(-(2**63), 2**64)


def declarations(tools: Sequence[Mapping[str, Any]]) -> str:
    """The section of a developer message that declares the tools.

    Raises:
        RenderError: a declaration is not an OpenAI-style function; the text names its index.
    """
    types = "\n".join(line for index, tool in enumerate(tools) for line in _declaration(tool, f"tools[{index}]"))
    return f"# Tools\n\n## {NAMESPACE}\n\nnamespace {NAMESPACE} {{\n\n{types}\n}} // namespace {NAMESPACE}"


def _declaration(tool: Mapping[str, Any], where: str) -> Iterator[str]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RenderError(f"{where}: a declared tool must have a function with a name")
    description, schema = function.get("description") or "", function.get("parameters")
    if not isinstance(description, str):
        raise RenderError(f"{where}: function.description must be text, not {type(description).__name__}")
    if not isinstance(schema, Mapping | None):
        raise RenderError(f"{where}: function.parameters must be a JSON schema, not {type(schema).__name__}")
    try:
        json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RenderError(f"{where}: function.parameters: not JSON: {error}") from error
    yield from (f"// {line}" for line in _lines(description))
    taken = "" if schema is None else f"_: {_type(schema, '')}"
    yield f"type {function['name']} = ({taken}) => any;\n"


def _type(schema: Any, indent: str) -> str:
    """A schema as a type; ``indent`` stands before the lines of its members."""
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(variants := schema.get("oneOf"), list):
        return "".join(f"\n{indent} | {_variant(variant, indent)}" for variant in variants)
    kind = schema.get("type")
    if isinstance(kind, list):
        named = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(named) or "any"
    if kind == "object":
        return "".join(_object(schema, indent))
    if kind == "array":
        return f"{_type(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string" and _is_enum(schema):
        return " | ".join(f'"{value}"' for value in schema["enum"] if isinstance(value, str)) or "string"
    return _TYPES.get(kind, "any") if isinstance(kind, str) else "any"


def _variant(schema: Any, indent: str) -> str:
    """One of several types, with what is said of it behind it."""
    comments = [_text(schema, "description"), _default(schema, bare_enum=False)]
    return _nullable(schema, f"{indent}   ") + _comment(*comments)


def _object(schema: Mapping[str, Any], indent: str) -> Iterator[str]:
    if (text := _text(schema, "description")) is not None:
        yield f"{indent}// {text}\n"
    yield "{\n"
    members, required = schema.get("properties"), schema.get("required")
    for name, member in members.items() if isinstance(members, Mapping) else ():
        mark = "" if isinstance(required, list) and name in required else "?"
        if (title := _text(member, "title")) is not None:
            yield f"{indent}// {title}\n{indent}//\n"
        has_variants = isinstance(member, Mapping) and "oneOf" in member
        if not has_variants and (text := _text(member, "description")) is not None:
            yield f"{indent}// {text}\n"
        if isinstance(examples := _get(member, "examples"), list) and examples:
            yield f"{indent}// Examples:\n"
            yield from (f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str))
        if isinstance(_get(member, "oneOf"), list):
            yield from _member_of_variants(f"{name}{mark}", member, indent)
            continue
        default = None if has_variants else _default(member, bare_enum=True)
        yield f"{indent}{name}{mark}: {_nullable(member, f'{indent}    ')},{_comment(default)}\n"
    yield f"{indent}}}"


def _member_of_variants(name: str, member: Mapping[str, Any], indent: str) -> Iterator[str]:
    """A member of one of several types. What is said of it and of its first type is said once."""
    variants, said = member["oneOf"], _text(member, "description")
    is_said = said is not None and (not variants or _text(variants[0], "description") != said)
    if is_said:
        yield f"{indent}// {said}\n"
    if (default := _default(member, bare_enum=True)) is not None:
        yield f"{indent}// {default}\n"
    yield f"{indent}{name}:\n"
    for place, variant in enumerate(variants):
        text = None if place == 0 and is_said else _text(variant, "description")
        comment = _comment(text if text != said else None, _default(variant, bare_enum=True))
        yield f"{indent} | {_nullable(variant, f'{indent}   ')}{comment}\n"
    yield f"{indent},\n"


def _comment(*parts: str | None) -> str:
    said = [part for part in parts if part is not None]
    return f" // {' '.join(said)}" if said else ""


def _nullable(schema: Any, indent: str) -> str:
    written = _type(schema, indent)
    return f"{written} | null" if _get(schema, "nullable") is True and "null" not in written else written


def _default(schema: Any, *, bare_enum: bool) -> str | None:
    """The comment that tells a default; one of an enumeration's stands without quotes where ``bare_enum`` says so."""
    if not isinstance(schema, Mapping) or "default" not in schema:
        return None
    value = schema["default"]
    if isinstance(value, str) and not _is_enum(schema):
        return f'default: "{value}"'
    return f"default: {value if isinstance(value, str) and bare_enum else _json(value)}"


def _is_enum(schema: Mapping[str, Any]) -> bool:
    return isinstance(values := schema.get("enum"), list) and bool(values)


def _get(schema: Any, key: str) -> Any:
    return schema.get(key) if isinstance(schema, Mapping) else None


def _text(schema: Any, key: str) -> str | None:
    return value if isinstance(value := _get(schema, key), str) else None


def _lines(text: str) -> Sequence[str]:
    """The lines of a text, as Rust divides them: at line feeds alone, less a carriage return before one."""
    lines = text.split("\n")
    ended = [line.removesuffix("\r") for line in lines[:-1]]
    return [*ended, lines[-1]] if lines[-1] else ended


def _json(value: Any) -> str:
    """Compact JSON with numbers as Rust writes them."""
    match value:
        case Mapping():
            return "{" + ",".join(f"{_json(key)}:{_json(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_json, value)) + "]"
        case bool() | None | str():
            return json.dumps(value, ensure_ascii=False)
        case int() if value in _INTEGERS:
            return str(value)
        case _:
            return _float(float(value))


def _float(value: float) -> str:
    written = re.fullmatch(r"(-?)(\d)(?:\.(\d+))?e([+-]\d+)", repr(value))
    if written is None:
        return repr(value)
    sign, first, rest, exponent = written.groups(default="")
    if int(exponent) == -5:
        return f"{sign}0.0000{first}{rest}"
    return f"{sign}{first}{f'.{rest}' if rest else ''}e{int(exponent)}"
