"""The tokenizers that renderers are tested with. Llama's is fetched, not shipped: see ``fetch_llama3``."""

import json
import lzma
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from crucible_train.renderers import FastTokenizer

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "tokenizers"
LLAMA3 = ROOT / ".cache" / "llama3"
FOLDERS = {"smollm2": ROOT / "crucible_train" / "assets" / "smollm2", "llama3": LLAMA3}
# Tokenizers that differ from another one in the names of some added tokens only.
RENAMED = {
    "deepseek_v3_1": (
        "deepseek_v3",
        {128796: "<｜search▁begin｜>", 128797: "<｜search▁end｜>", 128798: "<think>", 128799: "</think>"},
    ),
    "kimi_k2_thinking": ("kimi_k2", {163606: "<think>", 163607: "</think>"}),
}


@cache
def load_tokenizer(name: str) -> FastTokenizer:
    if name == "llama3" and not LLAMA3.is_dir():
        pytest.skip("Llama's vocabulary is not shipped; `make llama-tokenizer` fetches it")
    if name not in RENAMED:
        return FastTokenizer.from_folder(FOLDERS.get(name, GOLDEN / name))
    base, names = RENAMED[name]
    definition = json.loads(lzma.decompress((GOLDEN / base / "tokenizer.json.xz").read_bytes()))
    for token in definition["added_tokens"]:
        token["content"] = names.get(token["id"], token["content"])
    return FastTokenizer(definition, json.loads((GOLDEN / base / "tokenizer_config.json").read_text()), name)


@pytest.fixture(scope="session")
def tokenizer_named() -> Callable[[str], FastTokenizer]:
    return load_tokenizer


@pytest.fixture(scope="session")
def smollm2() -> FastTokenizer:
    return load_tokenizer("smollm2")


@pytest.fixture(scope="session")
def qwen3() -> FastTokenizer:
    return load_tokenizer("qwen3")


KINDS = {
    "test_a_prompt_has_the_ids_of_the_reference": "prompts",
    "test_a_conversation_has_the_ids_of_the_reference": "conversations",
    "test_what_the_model_writes_is_what_is_trained": "spans",
    "test_each_answer_is_trained_once_in_its_own_context": "own context",
    "test_the_chosen_messages_alone_are_trained": "chosen",
    "test_what_a_format_cannot_express_is_refused": "refused",
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many reference renderings agree: families and variants by what was compared."""
    table: dict[str, Counter[str]] = {}
    num_failed = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            found = re.search(r"test_golden\.py::(\w+)\[(\w+/\w+)/", report.nodeid)
            if found is None or found[1] not in KINDS:
                continue
            counts = table.setdefault(found[2], Counter())
            counts[KINDS[found[1]]] += outcome == "passed"
            counts["failed"] += outcome == "failed"
            num_failed += outcome == "failed"
    if not table:
        return
    terminalreporter.section("reference renderings that agree")
    columns = [*KINDS.values(), *(["failed"] if num_failed else [])]
    terminalreporter.write_line(f"{'':32}" + "".join(f"{column:>15}" for column in columns))
    for variant, counts in sorted(table.items()):
        terminalreporter.write_line(f"{variant:32}" + "".join(f"{counts[column] or '':>15}" for column in columns))
    total: Counter[str] = sum(table.values(), Counter())
    terminalreporter.write_line(f"{'all':32}" + "".join(f"{total[column]:>15}" for column in columns))
