"""What a conversation is made of.

Plain OpenAI-style dictionaries are accepted wherever messages are: ``Message.of`` reads ``role``, ``content`` (text
or a list of parts), ``reasoning_content`` (thinking), ``tool_calls``, ``tool_call_id``, ``name`` and ``trainable``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crucible_train.errors import RenderError

_THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")
# Fields that carry what was said, in a way no renderer here can express: refusing them beats losing them.
_PLAIN_KEYS = {"role", "content"}
_REFUSED_KEYS = ("function_call", "audio", "refusal")


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingPart:
    """Reasoning that precedes the answer."""

    thinking: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture: encoded bytes, a path, a ``data:`` URL or a Pillow image; None where only its place is told."""

    image: Any


Part = TextPart | ThinkingPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant makes. ``arguments`` is the JSON text as written: key order and spacing are kept."""

    name: str
    arguments: str
    id: str | None = None

    @classmethod
    def of(cls, value: "ToolCall | Mapping[str, Any]", where: str) -> "ToolCall":
        """Read an OpenAI-style call; ``where`` names the message in errors."""
        if isinstance(value, ToolCall):
            return value
        if not isinstance(value, Mapping):
            raise RenderError(f"{where}: a tool call must be an object, not {type(value).__name__}")
        function = value.get("function", value)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RenderError(f"{where}: a tool call has no function name")
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str):
            try:
                arguments = json.dumps(arguments, ensure_ascii=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise RenderError(f"{where}: tool_calls: the arguments cannot be written as JSON: {error}") from error
        call_id = value.get("id")
        if call_id is not None and not isinstance(call_id, str):
            raise RenderError(f"{where}: tool_calls: id must be text, not {type(call_id).__name__}")
        return cls(name=function["name"], arguments=arguments, id=call_id)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: who speaks: system, user, assistant, tool, or any role the template knows.
        content: text, or parts in order; None only beside tool calls, which some templates tell apart from empty text.
        tool_calls: the calls an assistant makes in this message.
        tool_call_id: which call a tool message answers.
        name: the speaker's or the tool's name, where the format has one.
        trainable: with ``TrainOnWhat.CUSTOMIZED`` only: whether this message is trained.
    """

    role: str
    content: str | tuple[Part, ...] | None = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    trainable: bool | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without knowing the conversation."""
        if not isinstance(self.role, str) or not self.role:
            raise RenderError(f"role must be a non-empty text, not {self.role!r}")
        if self.content is None and not self.tool_calls:
            raise RenderError("content is missing")
        if not isinstance(self.content, str | tuple | None):
            raise RenderError(f"content must be text or a tuple of parts, not {type(self.content).__name__}")

    @classmethod
    def of(cls, value: "Message | Mapping[str, Any]", index: int = 0) -> "Message":
        """Read an OpenAI-style dictionary; ``index`` is the message's place in its conversation, for errors.

        Fields that say nothing (``None``) and metadata such as a time stamp are passed over.

        Raises:
            RenderError: a field is missing or of the wrong type; the text names the message and the field.
        """
        if isinstance(value, Message):
            return value
        if type(value) is dict and value.keys() == _PLAIN_KEYS:
            role, content = value["role"], value["content"]
            if isinstance(role, str) and role and isinstance(content, str):
                return cls(role, content)
        where = f"message {index}"
        if not isinstance(value, Mapping):
            raise RenderError(f"{where} must be an object with role and content, not {type(value).__name__}")
        for field in _REFUSED_KEYS:
            if value.get(field) is not None:
                raise RenderError(f"{where}: field {field!r} cannot be rendered; use content and tool_calls")
        role = value.get("role")
        if not isinstance(role, str) or not role:
            raise RenderError(f"{where}: role is missing" if role is None else f"{where}: role must be text")
        calls = value.get("tool_calls") or ()
        if value.get("content") is None and not calls:
            raise RenderError(f"{where}: content is missing")
        if isinstance(calls, str) or not isinstance(calls, Sequence):
            raise RenderError(f"{where}: tool_calls must be a list")
        return cls(
            role=role,
            content=_content(value, where),
            tool_calls=tuple(ToolCall.of(call, where) for call in calls),
            tool_call_id=_optional_text(value, "tool_call_id", where),
            name=_optional_text(value, "name", where),
            trainable=_trainable(value, where),
        )

    @property
    def text(self) -> str:
        """The words of the message, without thinking.

        Raises:
            RenderError: the message holds an image.
        """
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        if any(isinstance(part, ImagePart) for part in self.content):
            raise RenderError("this message holds an image where only text can stand")
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def thinking(self) -> str | None:
        """The reasoning of the message, or None where it has none."""
        if self.content is None or isinstance(self.content, str):
            return None
        thoughts = [part.thinking for part in self.content if isinstance(part, ThinkingPart)]
        return "".join(thoughts) if thoughts else None

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI-style dictionary that ``Message.of`` reads back as this message."""
        result: dict[str, Any] = {"role": self.role}
        if self.content is None or isinstance(self.content, str):
            result["content"] = self.content
        else:
            result["content"] = [_part_to_dict(part) for part in self.content if not isinstance(part, ThinkingPart)]
            if self.thinking is not None:
                result["reasoning_content"] = self.thinking
                if all(isinstance(part, TextPart | ThinkingPart) for part in self.content):
                    result["content"] = self.text
        if self.tool_calls:
            result["tool_calls"] = [
                {
                    "type": "function",
                    **({"id": call.id} if call.id is not None else {}),
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        for field in ("tool_call_id", "name", "trainable"):
            if (value := getattr(self, field)) is not None:
                result[field] = value
        return result


Conversation = Sequence[Message]


def conversation(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Read a list of messages, OpenAI-style dictionaries or ours.

    Raises:
        RenderError: the list is empty or a message is malformed; the text names its index and field.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise RenderError(f"messages must be a list, not {type(messages).__name__}")
    if not messages:
        raise RenderError("the conversation has no messages")
    return tuple(Message.of(message, index) for index, message in enumerate(messages))


def _content(value: Mapping[str, Any], where: str) -> str | tuple[Part, ...] | None:
    content = value.get("content")
    thinking = next((value[key] for key in _THINKING_KEYS if value.get(key) is not None), None)
    if thinking is not None and not isinstance(thinking, str):
        raise RenderError(f"{where}: reasoning_content must be text")
    if content is None:
        return (ThinkingPart(thinking),) if thinking is not None else None
    if isinstance(content, str):
        if thinking is None:
            return content
        return (ThinkingPart(thinking), TextPart(content)) if content else (ThinkingPart(thinking),)
    if not isinstance(content, Sequence):
        raise RenderError(f"{where}: content must be text or a list of parts, not {type(content).__name__}")
    parts = tuple(_part(part, f"{where}: content[{i}]") for i, part in enumerate(content))
    return (ThinkingPart(thinking), *parts) if thinking is not None else parts


def _part(value: Any, where: str) -> Part:
    if isinstance(value, TextPart | ThinkingPart | ImagePart):
        return value
    if isinstance(value, str):
        return TextPart(value)
    if not isinstance(value, Mapping):
        raise RenderError(f"{where} must be an object, not {type(value).__name__}")
    kind = value.get("type", next((key for key in ("text", "image", "image_url") if key in value), None))
    if kind == "text" and isinstance(value.get("text"), str):
        return TextPart(value["text"])
    if kind == "thinking" and isinstance(value.get("thinking"), str):
        return ThinkingPart(value["thinking"])
    if kind in {"image", "image_url"}:
        given = value.get("image", value.get("image_url"))
        image = given.get("url") if isinstance(given, Mapping) else given
        if image is not None or (kind == "image" and given is None):
            return ImagePart(image)
    raise RenderError(f"{where} has unknown type {kind!r}; text, thinking and image are known")


def _part_to_dict(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case ThinkingPart(thinking):
            return {"type": "thinking", "thinking": thinking}
        case ImagePart(image):
            return {"type": "image"} if image is None else {"type": "image", "image": image}


def _optional_text(value: Mapping[str, Any], field: str, where: str) -> str | None:
    found = value.get(field)
    if found is not None and not isinstance(found, str):
        raise RenderError(f"{where}: {field} must be text, not {type(found).__name__}")
    return found


def _trainable(value: Mapping[str, Any], where: str) -> bool | None:
    found = value.get("trainable", value.get("weight"))
    if found is None:
        return None
    if found in (0, 1):
        return bool(found)
    raise RenderError(f"{where}: trainable must be true or false, not {found!r}")


__all__ = ["Conversation", "ImagePart", "Message", "Part", "TextPart", "ThinkingPart", "ToolCall", "conversation"]
