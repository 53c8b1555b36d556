"""What many formats refuse alike."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from crucible_train.errors import RenderError
from crucible_train.types import ImagePart, Message


def refuse_all_but_text(name: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> None:
    """Refuse tools, thinking and images.

    Raises:
        RenderError: one is there; the text names the message's index and field.
    """
    if tools:
        raise RenderError(f"{name} has no tools, but {len(tools)} are declared")
    for index, message in enumerate(messages):
        if message.tool_calls:
            raise RenderError(f"message {index}: tool_calls: {name} has no tool calls")
        if message.thinking is not None:
            raise RenderError(f"message {index}: reasoning_content: {name} has no thinking")
        refuse_images(name, index, message)


def refuse_images(name: str, index: int, message: Message) -> None:
    """Refuse a message that holds an image.

    Raises:
        RenderError: it does.
    """
    if isinstance(message.content, tuple) and any(isinstance(part, ImagePart) for part in message.content):
        raise RenderError(f"message {index}: content: {name} has no images")


def refuse_unknown_roles(name: str, messages: Sequence[Message], known: Collection[str]) -> None:
    """Refuse a speaker that the format has no place for.

    Raises:
        RenderError: there is one.
    """
    for index, message in enumerate(messages):
        if message.role not in known:
            raise RenderError(f"message {index}: role: {name} has no {message.role!r}; known are {', '.join(known)}")


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> None:
    """See that tools are a list of JSON objects.

    Raises:
        RenderError: they are not; the text names the tool's index.
    """
    if tools is None:
        return
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise RenderError(f"tools: must be a list of declarations, not {type(tools).__name__}")
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RenderError(f"tools[{number}]: must be an object, not {type(tool).__name__}")
        try:
            json.dumps(tool)
        except (TypeError, ValueError, RecursionError) as error:
            raise RenderError(f"tools[{number}]: not JSON: {error}") from error


def check_calls(messages: Sequence[Message]) -> None:
    """See that arguments are JSON objects, and that what tools say answers a call.

    Raises:
        RenderError: they are not, or it does not; the text names the message's index and field.
    """
    called: list[str | None] | None = None
    for index, message in enumerate(messages):
        for number, call in enumerate(message.tool_calls):
            try:
                arguments = json.loads(call.arguments)
            except (ValueError, RecursionError) as error:
                field = f"message {index}: tool_calls[{number}].function.arguments"
                raise RenderError(f"{field}: not JSON: {error}") from error
            if not isinstance(arguments, dict):
                field = f"message {index}: tool_calls[{number}].function.arguments"
                raise RenderError(f"{field}: must be a JSON object, not {type(arguments).__name__}")
        if message.tool_calls and message.role != "assistant":
            raise RenderError(f"message {index}: tool_calls: only the assistant calls tools, not {message.role!r}")
        if message.tool_calls:
            is_same_turn = index > 0 and messages[index - 1].role == "assistant"
            called = [*(called or () if is_same_turn else ()), *(call.id for call in message.tool_calls)]
        if message.role != "tool":
            continue
        if called is None:
            raise RenderError(f"message {index}: role: a tool's result, but no message before it calls a tool")
        known = [call_id for call_id in called if call_id is not None]
        if message.tool_call_id is not None and known and message.tool_call_id not in known:
            raise RenderError(
                f"message {index}: tool_call_id: {message.tool_call_id!r} is not one of {', '.join(known)}, "
                "which the last calls have"
            )


def refuse_lost_reasoning(name: str, messages: Sequence[Message], kept: Collection[int] = ()) -> None:
    """Refuse reasoning that a format would lose: of the current turn, or of anyone but the assistant.

    The assistant's reasoning before the last user message is left out by design. ``kept`` are the indices of the
    messages that are written with their reasoning.

    Raises:
        RenderError: some is lost; the text names the message's index and field.
    """
    turn = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    for index, message in enumerate(messages):
        if message.thinking and index not in kept and (index > turn or message.role != "assistant"):
            raise RenderError(f"message {index}: reasoning_content: {name} does not write it here, so it would be lost")


def is_json_object(text: str) -> bool:
    """Whether a text is what the arguments of a call must be."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
