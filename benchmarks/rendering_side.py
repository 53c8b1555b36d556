"""One side of the rendering benchmark, in the Python it belongs to: conversations in, ids, weights and seconds out.

Reads a JSON object from standard input: ``side``, ``renderer``, ``tokenizer`` (folder), ``newline_id``,
``conversations``. Writes one to standard output: seconds, tokens, and a digest of all ids.
"""

import hashlib
import importlib.util
import json
import lzma
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NUM_WARM_UP = 64
NUM_TOGETHER = 512
_TEMPLATES = {"qwen3": "qwen3_training.jinja", "qwen3_instruct": "qwen3_instruct_2507_training.jinja"}
Rendered = list[tuple[Sequence[int], Sequence[float]]]


def main() -> None:
    task = json.load(sys.stdin)
    render = SIDES[task["side"]](Path(task["tokenizer"]), task["renderer"])
    conversations = task["conversations"]
    render(conversations[:NUM_WARM_UP])
    cpu_s, started = _cpu_s(), time.perf_counter()
    rendered = render(conversations)
    wall_s, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
    ids = hashlib.sha256()
    for tokens, _ in rendered:
        end = len(tokens) - (tokens[-1] == task["newline_id"])  # which some leave away after the last stop
        ids.update(json.dumps([int(token) for token in tokens[:end]]).encode())
    print(
        json.dumps(
            {
                "wall_s": wall_s,
                "cpu_s": cpu_s,
                "num_tokens": sum(len(tokens) for tokens, _ in rendered),
                "num_trained": sum(sum(map(bool, weights)) for _, weights in rendered),
                "ids": ids.hexdigest()[:16],
            }
        )
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _ours(folder: Path, name: str, *, together: bool) -> Callable[[list[Any]], Rendered]:
    from crucible_train.renderers import FastTokenizer, get_renderer

    renderer = get_renderer(name, FastTokenizer.from_folder(folder))

    def one_by_one(conversations: list[Any]) -> Rendered:
        made = [renderer.build_supervised_example(c["messages"], tools=c["tools"]) for c in conversations]
        return [(ids.to_array(), weights) for ids, weights in made]

    def many(conversations: list[Any]) -> Rendered:
        found: Rendered = []
        for start in range(0, len(conversations), NUM_TOGETHER):
            batch = [(c["messages"], c["tools"]) for c in conversations[start : start + NUM_TOGETHER]]
            for examples in renderer.build_many(batch):
                assert not isinstance(examples, Exception)
                [(ids, weights)] = examples
                found.append((ids.to_array(), weights))
        return found

    return many if together else one_by_one


def _transformers(folder: Path, name: str, *, together: bool) -> Callable[[list[Any]], Rendered]:
    """TRL's template of the same model with its output marked, which is how transformers gives weights."""
    package = importlib.util.find_spec("trl")
    assert package is not None
    assert package.origin is not None
    templates = Path(package.origin).parent / "chat_templates"
    options: dict[str, Any] = {
        "chat_template": (templates / _TEMPLATES[name]).read_text(),
        "return_dict": True,
        "return_assistant_tokens_mask": True,
    }
    tokenizer = _hf_tokenizer(folder)

    def one_by_one(conversations: list[Any]) -> Rendered:
        made = [tokenizer.apply_chat_template(c["messages"], tools=c["tools"], **options) for c in conversations]
        return [(one["input_ids"], one["assistant_masks"]) for one in made]

    def many(conversations: list[Any]) -> Rendered:
        found: Rendered = []
        for start in range(0, len(conversations), NUM_TOGETHER):
            batch = [c["messages"] for c in conversations[start : start + NUM_TOGETHER]]
            made = tokenizer.apply_chat_template(batch, **options)
            found += zip(made["input_ids"], made["assistant_masks"], strict=True)
        return found

    return many if together else one_by_one


def _tinker_cookbook(folder: Path, name: str) -> Callable[[list[Any]], Rendered]:
    from tinker_cookbook.renderers import ToolCall, TrainOnWhat, get_renderer

    renderer = get_renderer(name, _hf_tokenizer(folder))

    def message(given: dict[str, Any]) -> dict[str, Any]:
        calls = [ToolCall.model_validate(call) for call in given.get("tool_calls", ())]
        return given | ({"tool_calls": calls} if calls else {})

    def render(conversations: list[Any]) -> Rendered:
        found: Rendered = []
        for conversation in conversations:
            messages = [message(given) for given in conversation["messages"]]
            ids, weights = renderer.build_supervised_example(messages, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
            found.append((ids.to_ints(), weights.tolist()))
        return found

    return render


def _renderers(folder: Path, name: str) -> Callable[[list[Any]], Rendered]:
    from renderers import Qwen3RendererConfig, build_training_sample, create_renderer

    assert name == "qwen3", "it has no renderer for the Instruct models"
    renderer = create_renderer(_hf_tokenizer(folder), Qwen3RendererConfig())

    def render(conversations: list[Any]) -> Rendered:
        made = [build_training_sample(renderer, c["messages"], tools=c["tools"]) for c in conversations]
        return [(sample.token_ids, sample.loss_mask) for sample in made]

    return render


def _hf_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    definition = lzma.decompress((folder / "tokenizer.json.xz").read_bytes()).decode()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(definition),
        eos_token=config["eos_token"],
        pad_token=config["pad_token"],
    )


SIDES: dict[str, Callable[[Path, str], Callable[[list[Any]], Rendered]]] = {
    "ours": lambda folder, name: _ours(folder, name, together=True),
    "ours_one_by_one": lambda folder, name: _ours(folder, name, together=False),
    "transformers": lambda folder, name: _transformers(folder, name, together=False),
    "transformers_in_batches": lambda folder, name: _transformers(folder, name, together=True),
    "tinker_cookbook": _tinker_cookbook,
    "renderers": _renderers,
}

if __name__ == "__main__":
    main()
