"""Run in the peers' Python: renders conversations with tinker-cookbook or ``renderers``.

Reads a JSON object from standard input (``package``, ``renderer``, ``tokenizer``, ``options``, ``conversations``) and
writes a list to standard output: for each conversation the ids of the whole and of the prompt, or the error's name.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerFast

Render = Callable[[list[dict[str, Any]], Any, bool], list[int]]


def main() -> None:
    task = json.load(sys.stdin)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(task["tokenizer"])
    render = {"tinker_cookbook": tinker_cookbook, "renderers": renderers}[task["package"]](
        task["renderer"], tokenizer, task["options"]
    )
    found = []
    for conversation in task["conversations"]:
        messages, tools = conversation["messages"], conversation["tools"]
        whole, prompt = messages, messages[: conversation["generation_upto"]]
        found.append([outcome(render, whole, tools, False), outcome(render, prompt, tools, True)])
    print(json.dumps(found))


def outcome(render: Render, messages: list[dict[str, Any]], tools: Any, is_prompt: bool) -> Any:
    try:
        return [int(id_) for id_ in render(messages, tools, is_prompt)]
    except Exception as error:  # noqa: BLE001 - how a peer fails is what is compared
        return type(error).__name__


def renderers(name: str, tokenizer: Any, options: dict[str, Any]) -> Render:
    from renderers import configs, create_renderer

    renderer = create_renderer(tokenizer, getattr(configs, name)(**options))

    def render(messages: list[dict[str, Any]], tools: Any, is_prompt: bool) -> list[int]:
        ids: list[int] = renderer.render_ids(messages, tools=tools, add_generation_prompt=is_prompt)
        return ids

    return render


def tinker_cookbook(name: str, tokenizer: Any, options: dict[str, Any]) -> Render:
    from tinker_cookbook.renderers import TextPart, ThinkingPart, ToolCall, TrainOnWhat, get_renderer

    renderer = get_renderer(name, tokenizer)

    def converted(message: dict[str, Any]) -> dict[str, Any]:
        message = dict(message)
        reasoning = message.pop("reasoning_content", None)
        message["content"] = message.get("content") or ""
        if reasoning is not None:
            words = [TextPart(type="text", text=message["content"])] if message["content"] else []
            message["content"] = [ThinkingPart(type="thinking", thinking=reasoning), *words]
        if message.get("tool_calls"):
            message["tool_calls"] = [ToolCall.model_validate(call) for call in message["tool_calls"]]
        return message

    def render(messages: list[dict[str, Any]], tools: Any, is_prompt: bool) -> list[int]:
        given = [converted(message) for message in messages]
        if tools:
            system = ""
            if given and given[0]["role"] == "system":
                system, given = given[0]["content"], given[1:]
            given = [
                *renderer.create_conversation_prefix_with_tools([tool["function"] for tool in tools], system),
                *given,
            ]
        if is_prompt:
            ids: list[int] = renderer.build_generation_prompt(given).to_ints()
        else:
            ids = renderer.build_supervised_example(given, TrainOnWhat.ALL_TOKENS)[0].to_ints()
        return ids

    return render


if __name__ == "__main__":
    main()
