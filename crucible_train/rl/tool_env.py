"""Episodes in which the model may call tools before it answers."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from crucible_train.renderers import ParsedResponse, Renderer
from crucible_train.rl.environment import StopReason
from crucible_train.rl.message_env import MessageEnv, Reply
from crucible_train.rl.tool_syntax import Call, syntax_for
from crucible_train.rl.tools import Tool, by_name
from crucible_train.types import Message


class ToolEnv(MessageEnv):
    """An ``Env`` with tools. An answer that calls none is the last, and is judged.

    Args:
        renderer: the model's chat format.
        tools: what may be called.
        tool_syntax: ``native``: as the format does; ``lines``: as lines of text; ``auto``: native where there is such.
    """

    def __init__(
        self, renderer: Renderer, tools: Sequence[Tool], *, tool_syntax: Literal["auto", "native", "lines"] = "auto"
    ) -> None:
        """Find out how tools are called."""
        self.syntax = syntax_for(renderer, tools, tool_syntax)
        super().__init__(renderer, self.syntax.declarations(tools))
        self.tools = by_name(tools)
        self.num_tool_calls = 0
        self._limit: int | None = None

    @abstractmethod
    async def judge(self, answer: ParsedResponse) -> Reply:
        """Judge the last answer; its reason is why the episode ends."""

    def limit_tool_calls(self, limit: int | None) -> None:
        """Run at most this many in the episode; None lifts the limit."""
        self._limit = limit

    async def reply(self, answer: ParsedResponse) -> Reply:
        """Run what is called, one after the other; or judge."""
        calls = self.syntax.calls(answer, self.tools)
        if not calls:
            return await self.judge(answer)
        if self._limit is not None and self.num_tool_calls + len(calls) > self._limit:
            judged = await self.judge(answer)
            return Reply(judged.reward, (), StopReason.MAX_TOOL_CALLS, judged.reward_parts, judged.metrics)
        answered = [(call, await self._answered(call)) for call in calls]
        self.num_tool_calls += len(calls)
        num_failed = sum(result.startswith("error: ") for _, result in answered)
        metrics = {"tool_calls": float(len(calls)), "failed_tool_calls": float(num_failed)}
        return Reply(messages=self.syntax.results(answered), metrics=metrics)

    async def _answered(self, call: Call) -> str:
        if isinstance(call, str):
            return f"error: {call}"
        if (tool := self.tools.get(call.name)) is None:
            return f"error: there is no tool {call.name!r}; there are {', '.join(self.tools)}"
        return await tool.call(call.arguments)

    def with_instructions(self, text: str) -> Message:
        """A user's message that begins with how tools are called, where the format does not say so itself."""
        told = self.syntax.instructions([*self.tools.values()])
        return Message("user", f"{told}\n\n{text}" if told else text)
