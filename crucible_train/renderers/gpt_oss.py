"""gpt-oss: the harmony format, as ``openai-harmony`` 0.0.8 writes it.

<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.¶Knowledge cutoff: 2024-06¶
Current date: DATE¶¶Reasoning: EFFORT¶¶# Valid channels: analysis, commentary, final. [...]<|end|>
<|start|>developer<|message|># Instructions¶¶SYSTEM¶¶# Tools¶¶DECLARATIONS<|end|>
<|start|>user<|message|>CONTENT<|end|>
<|start|>assistant<|channel|>analysis<|message|>THINKING<|end|>
<|start|>assistant<|channel|>commentary<|message|>CONTENT<|end|>
<|start|>assistant to=functions.NAME<|channel|>commentary <|constrain|>json<|message|>ARGUMENTS<|call|>
<|start|>functions.NAME to=assistant<|channel|>commentary<|message|>RESULT<|end|>
<|start|>assistant<|channel|>analysis<|message|>THINKING<|end|>
<|start|>assistant<|channel|>final<|message|>CONTENT<|return|>

All that follows the first ``<|start|>assistant`` of a message is trained. A system or developer message is a developer
message here, and an empty one is left out. A result's author is the tool whose call it answers, by its id, its name, or
as the only one that waits. The model writes ``<|return|>`` after a final answer, but ``<|end|>`` stands there once the
conversation goes on, and the thinking up to the last final answer is then left out. So a conversation does not extend
its prompts past a final answer; up to one, over any number of tool calls, it does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, ClassVar

from crucible_train.errors import ConfigError, RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers.base import Renderer, Tools
from crucible_train.renderers.checks import check_calls, refuse_images, refuse_unknown_roles
from crucible_train.renderers.gpt_oss_answers import GptOssReader
from crucible_train.renderers.gpt_oss_tools import NAMESPACE, declarations
from crucible_train.renderers.pieces import NO_MESSAGE, Kind, Piece
from crucible_train.types import Message, ToolCall

SYSTEM = (
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: {date}\n\n"
    "Reasoning: {effort}\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
SYSTEM_WITH_TOOLS = f"{SYSTEM}\nCalls to these tools must go to the commentary channel: '{NAMESPACE}'."
DEVELOPERS = ("system", "developer")
ROLES = (*DEVELOPERS, "user", "assistant", "tool")


class GptOssNoSysprompt(Renderer):
    """Without a system message, for prompts that say what they need themselves."""

    name: ClassVar[str] = "gpt_oss_no_sysprompt"
    stop_tokens = ("<|return|>", "<|call|>")
    reader = GptOssReader
    verbatim = ()
    extends_history = False

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse several calls in one message, since a turn ends with its call, and what no message can hold."""
        refuse_unknown_roles(self.name, messages, ROLES)
        check_calls(messages)
        for index, message in enumerate(messages):
            refuse_images(self.name, index, message)
            if len(message.tool_calls) > 1:
                raise RenderError(
                    f"message {index}: tool_calls: {self.name} has one call a message, not {len(message.tool_calls)}"
                )
            if message.thinking and message.role != "assistant":
                raise RenderError(f"message {index}: reasoning_content: in {self.name} only the assistant thinks")

    def extends(self, messages: Sequence[Message]) -> bool:
        """Whether nothing follows a final answer."""
        return not any(_is_final(message) for message in messages[:-1])

    def system_text(self, tools: Tools) -> str | None:
        """The system message, if there is one."""
        return None

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """Every message in its channels; a final answer that ends the conversation stands as the model writes it."""
        last = messages[-1]
        yield from self._told(messages[:-1] if _is_final(last) else messages, tools)
        if _is_final(last):
            yield from _assistant(len(messages) - 1, last, thinks=True, ends_with="<|return|>")

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The conversation and an open header; the assistant chooses the channel itself, others have no choice."""
        yield from self._told(messages, tools)
        match role:
            case "assistant":
                yield from _start("assistant", NO_MESSAGE)
            case "tool":
                yield from _header(_tool(_called(messages)), NO_MESSAGE, "commentary")
            case "user":
                yield from _header("user", NO_MESSAGE)
            case _ if role in DEVELOPERS:
                yield from _header("developer", NO_MESSAGE)
                yield Piece("# Instructions\n\n")
            case _:
                raise RenderError(f"role: {self.name} has no {role!r}; known are {', '.join(ROLES)}")

    def prefill_pieces(self, prefill: str) -> Iterable[Piece]:
        """The beginning of an answer is that of a final one."""
        yield from _channel("final", NO_MESSAGE, is_output=False)
        yield Piece(prefill)

    def _told(self, messages: Sequence[Message], tools: Tools) -> Iterator[Piece]:
        """Messages that others follow."""
        if (system := self.system_text(tools)) is not None:
            yield from _header("system", NO_MESSAGE)
            yield Piece(system)
            yield Piece("<|end|>", Kind.CONTROL)
        if tools and not (messages and messages[0].role in DEVELOPERS):
            yield from _developer(NO_MESSAGE, "", tools)
        last_final = max((index for index, message in enumerate(messages) if _is_final(message)), default=-1)
        for index, message in enumerate(messages):
            match message.role:
                case "assistant":
                    yield from _assistant(index, message, thinks=index > last_final, ends_with="<|end|>")
                case "tool":
                    called = message.name if message.name is not None else _called(messages[:index], message)
                    yield from _turn(_tool(called), index, message.text, channel="commentary")
                case "user":
                    yield from _turn("user", index, message.text)
                case _:
                    yield from _developer(index, message.text, tools if index == 0 else None)


class GptOss(GptOssNoSysprompt):
    """With a system message that tells the date and how much to think.

    Args:
        tokenizer: the model's tokenizer.
        current_date: the date of the system message, such as 2025-06-28. Where it is not given it is the day on which
            the renderer is made, as in the published template; give it for ids that are the same tomorrow.
    """

    effort: ClassVar[str]
    date_option = "current_date"

    def __init__(self, tokenizer: Tokenizer, *, current_date: str | None = None) -> None:
        """Fix the date.

        Raises:
            ConfigError: the date is not text.
        """
        super().__init__(tokenizer)
        if not isinstance(current_date, str | None):
            raise ConfigError(f"data.renderer_options.current_date: must be text (in quotes), not {current_date!r}")
        self._date = date.today().isoformat() if current_date is None else current_date

    @property
    def options(self) -> Mapping[str, Any]:
        """The date."""
        return {"current_date": self._date}

    def system_text(self, tools: Tools) -> str:
        """Who the model is, the date, the effort and the channels."""
        text = SYSTEM_WITH_TOOLS if tools else SYSTEM
        return text.format(date=self._date, effort=self.effort)


class GptOssLow(GptOss):
    """Low effort."""

    name = "gpt_oss_low_reasoning"
    effort = "low"


class GptOssMedium(GptOss):
    """Medium effort, the published template's default."""

    name = "gpt_oss_medium_reasoning"
    effort = "medium"


class GptOssHigh(GptOss):
    """High effort."""

    name = "gpt_oss_high_reasoning"
    effort = "high"


def _is_final(message: Message) -> bool:
    return message.role == "assistant" and not message.tool_calls


def _start(speaker: str, index: int, *, is_output: bool = False) -> Iterator[Piece]:
    yield Piece("<|start|>", Kind.CONTROL, index, is_output)
    yield Piece(speaker, Kind.TEXT, index, is_output)


def _channel(name: str, index: int, *, is_output: bool) -> Iterator[Piece]:
    yield Piece("<|channel|>", Kind.CONTROL, index, is_output)
    yield Piece(name, Kind.TEXT, index, is_output)
    yield Piece("<|message|>", Kind.CONTROL, index, is_output)


def _header(speaker: str, index: int, channel: str | None = None) -> Iterator[Piece]:
    yield from _start(speaker, index)
    if channel is not None:
        yield from _channel(channel, index, is_output=False)
    else:
        yield Piece("<|message|>", Kind.CONTROL, index)


def _turn(speaker: str, index: int, text: str, channel: str | None = None) -> Iterator[Piece]:
    yield from _header(speaker, index, channel)
    yield Piece(text, Kind.TEXT, index, is_output=True)
    yield Piece("<|end|>", Kind.CONTROL, index, is_output=True)


def _developer(index: int, instructions: str, tools: Tools) -> Iterator[Piece]:
    if not instructions and not tools:
        return
    yield from _header("developer", index)
    if instructions:
        yield Piece("# Instructions\n\n", Kind.TEXT, index)
        yield Piece(instructions, Kind.TEXT, index, is_output=True)
    if tools:
        yield Piece(("\n\n" if instructions else "") + declarations(tools), Kind.TEXT, index)
    yield Piece("<|end|>", Kind.CONTROL, index, is_output=bool(instructions))


def _assistant(index: int, message: Message, *, thinks: bool, ends_with: str) -> Iterator[Piece]:
    """One message in one or more channels. All of it is output but the first start, which the prompt has."""
    parts: list[list[Piece]] = []
    if thinks and message.thinking:
        parts.append([*_said("analysis", index, message.thinking), Piece("<|end|>", Kind.CONTROL, index, True)])
    if not message.tool_calls:
        parts.append([*_said("final", index, message.text), Piece(ends_with, Kind.CONTROL, index, True)])
    elif message.text:
        parts.append([*_said("commentary", index, message.text), Piece("<|end|>", Kind.CONTROL, index, True)])
    parts += [list(_call(index, call.name, call.arguments)) for call in message.tool_calls]
    for number, part in enumerate(parts):
        yield from _start("assistant", index, is_output=number > 0)
        yield from part


def _said(channel: str, index: int, text: str) -> Iterator[Piece]:
    yield from _channel(channel, index, is_output=True)
    yield Piece(text, Kind.TEXT, index, is_output=True)


def _call(index: int, name: str, arguments: str) -> Iterator[Piece]:
    yield Piece(f" to={NAMESPACE}.{name}", Kind.TEXT, index, is_output=True)
    yield Piece("<|channel|>", Kind.CONTROL, index, is_output=True)
    yield Piece("commentary ", Kind.TEXT, index, is_output=True)
    yield Piece("<|constrain|>", Kind.CONTROL, index, is_output=True)
    yield Piece("json", Kind.TEXT, index, is_output=True)
    yield Piece("<|message|>", Kind.CONTROL, index, is_output=True)
    yield Piece(arguments, Kind.TEXT, index, is_output=True)
    yield Piece("<|call|>", Kind.CONTROL, index, is_output=True)


def _tool(name: str) -> str:
    return f"{NAMESPACE}.{name} to=assistant"


def _called(messages: Sequence[Message], result: Message | None = None) -> str:
    """The tool that speaks after these messages: the one whose call a result names, or that waits for one.

    Where no call waits it is the last one called, as the template has it.
    """
    waiting: list[ToolCall] = []
    last: ToolCall | None = None
    for message in messages:
        if message.role == "tool":
            answered = _answered(waiting, message)
            waiting = [call for call in waiting if call is not answered]
        for call in message.tool_calls:
            waiting.append(call)
            last = call
    if last is None:
        raise RenderError("role: a tool is to speak, but no message calls one")
    if result is not None and result.tool_call_id is not None:
        calls = [call for message in messages for call in message.tool_calls if call.id == result.tool_call_id]
        if calls:
            return calls[-1].name
    if len(names := {call.name for call in waiting}) > 1:
        raise RenderError(
            f"message {len(messages)}: tool_call_id: missing, and calls of {', '.join(sorted(names))} wait for a result"
        )
    return waiting[0].name if waiting else last.name


def _answered(waiting: Sequence[ToolCall], result: Message) -> ToolCall | None:
    """The call that a result answers: by its id, by its tool's name, else the first one."""
    by_id = (call for call in waiting if call.id is not None and call.id == result.tool_call_id)
    by_name = (call for call in waiting if call.name == result.name)
    return next(by_id, None) or next(by_name, None) or next(iter(waiting), None)
