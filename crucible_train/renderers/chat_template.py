"""Any Hugging Face chat template, made safe.

The template is run as its model's users run it; the ids are those of its text. What differs is what the text of a
message may do: an added token's name inside a message is broken by a mark before the template runs, so only the
template's own markers become control tokens, and the mark is taken out again before the text is encoded.

Which tokens a speaker writes is found by rendering prefixes: what ``messages[:k+1]`` has beyond the prompt for message
``k`` is that message's output.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Any

from crucible_train.errors import ConfigError, RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers.base import Renderer, Tools
from crucible_train.renderers.checks import refuse_images
from crucible_train.renderers.jinja import TemplateFailure, compile_template
from crucible_train.renderers.pieces import NO_MESSAGE, Kind, Piece
from crucible_train.types import ImagePart, Message, TextPart, ThinkingPart

# Private-use characters; the first that no message contains marks broken names.
_MARKS = tuple(chr(code) for code in range(0xE000, 0xE020))

THINK, END_THINK = "<think>", "</think>"


def _unmarked(text: str, mark: str) -> str:
    """Rendered text without the mark, also where the template has written it as an escape."""
    return text.replace(mark, "").replace(repr(mark)[1:-1], "")


def _as_given(message: Message) -> dict[str, Any]:
    """The message as templates take it: most know content that is one text only."""
    given = message.to_dict()
    if isinstance(message.content, tuple) and not any(isinstance(part, ImagePart) for part in message.content):
        given["content"] = message.text
    return given


class ChatTemplate(Renderer):
    """A model's own Jinja template.

    Args:
        tokenizer: the model's tokenizer.
        template: a template to use instead of the tokenizer's own.
        now: the moment ``strftime_now`` tells, as ISO 8601; the one at which the renderer is made if it is not given.
        **variables: whatever else the template reads.
    """

    name = "chat_template"
    extends_history = False  # a template may rewrite earlier turns; each conversation is looked at

    def __init__(
        self, tokenizer: Tokenizer, template: str | None = None, now: str | None = None, **variables: Any
    ) -> None:
        """Compile the template.

        Raises:
            ConfigError: there is none, or it is not a template.
        """
        super().__init__(tokenizer)
        source = template or tokenizer.chat_template
        if source is None:
            raise ConfigError(f"data.renderer: {tokenizer.name} has no chat template; give renderer_options.template")
        if now is None and "strftime_now" in str(source):
            now = datetime.now().isoformat(timespec="seconds")
        self._given = {"template": template, "now": now} | variables
        self._variables = variables
        self._template = compile_template(source, now)
        names = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._controls = re.compile("|".join(re.escape(name) for name in names)) if names else re.compile(r"(?!)")

    @property
    def options(self) -> Mapping[str, Any]:
        """The options that were given."""
        return {key: value for key, value in self._given.items() if value is not None}

    @property
    def date_option(self) -> str | None:  # type: ignore[override]
        """``now``, where the template asks for the time."""
        return "now" if "now" in self.options else None

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse images, whose markers only a family with an image processor can expand, and tools that would be lost.

        Reasoning may be left out, as the reference does: most templates drop that of earlier turns, and some all of it.
        """
        for index, message in enumerate(messages):
            refuse_images(self.name, index, message)
        if tools and self._is_same((messages, tools), (messages, None)):
            raise RenderError(f"this chat template does not write tools, but {len(tools)} are declared")
        for index, message in enumerate(messages):
            if message.tool_calls:
                silent = replace(message, tool_calls=(), content=message.content or "")
                calling = replace(silent, tool_calls=message.tool_calls)
                before, after = messages[:index], messages[index + 1 :]
                if self._is_same(([*before, calling, *after], tools), ([*before, silent, *after], tools)):
                    raise RenderError(f"message {index}: tool_calls: this chat template does not write them")

    def prepared(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, with the block that opens an answer's text as reasoning, where the template reads it so.

        Otherwise such a block is words, as any other marker is.
        """
        read = list(messages)
        for index, message in enumerate(messages):
            if message.role == "assistant" and isinstance(message.content, str):
                read[index] = self._with_reasoning(messages[:index], message)
        return read

    def _with_reasoning(self, before: Sequence[Message], message: Message) -> Message:
        opened = message.text.lstrip()
        if not opened.startswith(THINK) or END_THINK not in opened:
            return message
        block, _, text = opened.removeprefix(THINK).partition(END_THINK)
        reasoning, text = block.strip("\n"), text.lstrip("\n")
        silent = replace(message, content=text)
        thinking = replace(message, content=(ThinkingPart(reasoning), TextPart(text)))
        is_read = self._is_same(([*before, message], None), ([*before, thinking], None))
        is_lost = bool(reasoning) and self._is_same(([*before, silent], None), ([*before, thinking], None))
        return thinking if is_read and not is_lost else message

    @cached_property
    def stop_tokens(self) -> Sequence[str]:  # type: ignore[override]
        """The control token that closes an assistant message in this template, else the end of text."""
        probe = (Message("user", "x"), Message("assistant", "y"))
        try:
            prompt, whole = self._render(probe[:1], None, prompt_for="assistant"), self._render(probe, None)
        except RenderError:
            prompt, whole = "", ""
        closing = self._controls.findall(whole[len(prompt) :]) if whole.startswith(prompt) else []
        eos = self.tokenizer.eos_token
        return closing[-1:] or ([eos] if eos is not None else [])

    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The template's text, cut at control tokens and at the ends of what each message writes."""
        mark = self._mark(messages, tools)
        marked = [self._break_names(_as_given(message), mark) for message in messages]
        declared = self._break_names(tools, mark)
        whole = self._run(marked, declared, prompt=False)
        cuts = list(self._outputs(marked, declared, whole, mark))
        yield from self._pieces(whole, cuts, mark)

    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The template's text with its generation prompt.

        Raises:
            RenderError: another role than the assistant is to speak, which a template cannot express.
        """
        if role != "assistant":
            raise RenderError(f"chat_template can only prompt the assistant, not {role!r}")
        mark = self._mark(messages, tools)
        marked = [self._break_names(_as_given(message), mark) for message in messages]
        yield from self._pieces(self._run(marked, self._break_names(tools, mark), prompt=True), [], mark)

    def _is_same(self, left: tuple[Sequence[Message], Tools], right: tuple[Sequence[Message], Tools]) -> bool:
        try:
            return self._render(*left) == self._render(*right)
        except RenderError:  # one of them is refused, so what differs is looked at
            return False

    def _render(self, messages: Sequence[Message], tools: Tools, prompt_for: str | None = None) -> str:
        return self._run([_as_given(message) for message in messages], tools, prompt=prompt_for is not None)

    def _run(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, prompt: bool) -> str:
        for message in messages:
            if isinstance(message, dict):
                message.pop("trainable", None)
        tokens = {"bos_token": self.tokenizer.bos_token or "", "eos_token": self.tokenizer.eos_token or ""}
        try:
            return self._template(
                messages=messages, tools=tools, add_generation_prompt=prompt, **(tokens | self._variables)
            )
        except TemplateFailure as error:
            raise RenderError(f"the chat template refuses this conversation: {error}") from error

    def _outputs(
        self, marked: Sequence[dict[str, Any]], tools: Any, whole: str, mark: str
    ) -> Iterator[tuple[int, int, int]]:
        """For each message whose output stands unchanged in ``whole``: its index and half-open range of characters."""
        begin = 0
        for index, message in enumerate(marked):
            try:
                until_here = self._run(marked[: index + 1], tools, prompt=False)
                if message["role"] == "assistant":
                    start = len(prompt := self._run(marked[:index], tools, prompt=True))
                    matches = until_here.startswith(prompt)
                else:
                    # No prompt leads to what others write, so a sign that stands nowhere else shows where it begins.
                    signed = [*marked[:index], message | {"content": mark * 2}]
                    header, sign, closing = self._run(signed, tools, prompt=False).partition(mark * 2)
                    start = len(header)
                    matches = bool(sign) and until_here.startswith(header) and until_here.endswith(closing)
            except RenderError:  # the template needs a whole conversation; this message alone cannot be placed
                continue
            closings = list(self._controls.finditer(until_here, start)) if matches else []
            end = closings[-1].end() if closings else len(until_here)
            if matches and start >= begin and whole.startswith(until_here[:end]):
                yield index, start, end
                begin = end

    def _pieces(self, text: str, outputs: Sequence[tuple[int, int, int]], mark: str) -> Iterator[Piece]:
        """Cut rendered text into pieces: control tokens, and ordinary text with its marks taken out."""
        cuts = sorted({0, len(text), *(start for _, start, _ in outputs), *(end for _, _, end in outputs)})
        owners = {start: (index, end) for index, start, end in outputs}
        owner, owner_end = NO_MESSAGE, 0
        for start, end in pairwise(cuts):
            if start in owners:
                owner, owner_end = owners[start]
            is_output = start < owner_end
            position = start
            for control in self._controls.finditer(text, start, end):
                yield Piece(
                    _unmarked(text[position : control.start()], mark),
                    Kind.TEXT,
                    owner,
                    is_output,
                )
                yield Piece(control.group(), Kind.CONTROL, owner, is_output)
                position = control.end()
            yield Piece(_unmarked(text[position:end], mark), Kind.TEXT, owner, is_output)

    def _mark(self, messages: Sequence[Message], tools: Tools) -> str:
        everything = repr([message.to_dict() for message in messages]) + repr(tools)
        free = next((mark for mark in _MARKS if mark not in everything and repr(mark)[1:-1] not in everything), None)
        if free is None:
            raise RenderError("the conversation uses every private character that could mark a forged token")
        return free

    def _break_names(self, value: Any, mark: str) -> Any:
        """The value with every control token's name in its texts broken by ``mark``; keys and roles are texts too."""
        if isinstance(value, str):
            return self._controls.sub(lambda found: found.group()[:1] + mark + found.group()[1:], value)
        if isinstance(value, Mapping):
            return {self._break_names(key, mark): self._break_names(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._break_names(item, mark) for item in value]
        return value
