"""Our renderings beside those of tinker-cookbook and ``renderers``: equal, or different for a reason written here.

It needs a Python of the peers' own (``python -m benchmarks.rendering_speed --help`` says how to make it), found in
``.venv-renderers`` or named by CRUCIBLE_RENDERERS_PYTHON; without one these tests are skipped.
"""

import gzip
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from crucible_train.renderers import FastTokenizer, get_renderer

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "renderers"
PYTHON = Path(os.environ.get("CRUCIBLE_RENDERERS_PYTHON", ROOT / ".venv-renderers" / "bin" / "python"))
pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="the peers' packages are not installed")

# What is compared: golden variant -> our renderer, the peer's, its options.
TINKER = {
    "llama3/llama3": ("llama3", "llama3"),
    "qwen3/thinking": ("qwen3", "qwen3"),
    "qwen3/disable_thinking": ("qwen3_disable_thinking", "qwen3_disable_thinking"),
    "qwen3/instruct_2507": ("qwen3_instruct", "qwen3_instruct"),
    "deepseek_v3/v3_1": ("deepseekv3_1", "deepseekv3_disable_thinking"),
    "kimi_k2/thinking": ("kimi_k2_thinking", "kimi_k2"),
    "gpt_oss/no_sysprompt": ("gpt_oss_no_sysprompt", "gpt_oss_no_sysprompt"),
    "role_colon/qwen3_tokenizer": ("role_colon", "role_colon"),
}
RENDERERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama3/llama3_1": ("llama3_1", "Llama3RendererConfig", {"date_string": "26 Jul 2024"}),
    "qwen3/thinking": ("qwen3", "Qwen3RendererConfig", {}),
    "qwen3/disable_thinking": ("qwen3_disable_thinking", "Qwen3RendererConfig", {"enable_thinking": False}),
    "deepseek_v3/v3": ("deepseekv3", "DeepSeekV3RendererConfig", {}),
    "deepseek_v3/v3_thinking": ("deepseek_r1", "DeepSeekR1RendererConfig", {}),
    "kimi_k2/instruct": ("kimi_k2", "KimiK2RendererConfig", {}),
}

# Every known difference: package, variant, the cases (their names begin so), and why ours is right.
WHITE_SPACE = "the header's newline and one that opens the content are one token in the template's own ids"
KNOWN = (
    ("renderers", "llama3/llama3_1", ("tool_args_spacing",), "the template parses the arguments and writes them anew"),
    (
        "renderers",
        "qwen3/disable_thinking",
        (
            *("two_turns", "three_turns", "six_turns", "system_multi", "system_in_the_middle", "many_turns", "mixed_0"),
            *("empty_assistant_in_history", "ws_history", "partial_train", "tool_"),
        ),
        "the template takes the empty think block out of history; renderers keeps it, and says so",
    ),
    ("renderers", "deepseek_v3/v3", ("tool_",), "the first release's template does not close a single tool call"),
    ("renderers", "deepseek_v3/", ("system_in_the_middle",), "the template joins all system texts at the front"),
    (
        "renderers",
        "deepseek_v3/v3_thinking",
        ("tool_",),
        "the template opens no thinking after a tool's result, and closes parallel calls once",
    ),
    ("tinker_cookbook", "llama3/llama3", ("ws_",), "the template trims what is said"),
    ("tinker_cookbook", "qwen3/", ("ws_user_newlines", "ws_only", "ws_assistant_edges"), WHITE_SPACE),
    ("tinker_cookbook", "qwen3/", ("think_in_content_history",), "the template reads reasoning in earlier content"),
    ("tinker_cookbook", "qwen3/", ("tool_args", "mixed_00"), "the template writes arguments as they are given"),
    (
        "tinker_cookbook",
        "qwen3/",
        ("tool_parallel", "tool_then_new_turn"),
        "the template puts no newline before the first call of a message without text, nor escapes other alphabets",
    ),
    (
        "tinker_cookbook",
        "qwen3/",
        ("think_tool", "think_content_tool"),
        "the template keeps the reasoning of the current turn's calls",
    ),
    (
        "tinker_cookbook",
        "deepseek_v3/v3_1",
        ("two_systems", "system_in_the_middle"),
        "the template joins system texts at the front; tinker-cookbook refuses them",
    ),
    (
        "tinker_cookbook",
        "deepseek_v3/v3_1",
        ("empty_assistant", "tool_"),
        "the template ends every answer, also an empty one and one that calls tools",
    ),
    (
        "tinker_cookbook",
        "gpt_oss/",
        ("system", "two_systems", "developer", "unicode_system", "tools_declared", "think_system", "partial", "mixed"),
        "openai-harmony writes a developer message `# Instructions`, without two newlines more",
    ),
    (
        "tinker_cookbook",
        "gpt_oss/",
        ("tool_", "think_", "long_user", "many_turns", "empty_"),
        "openai-harmony drops the reasoning of finished turns and marks arguments with <|constrain|>json",
    ),
    ("tinker_cookbook", "kimi_k2/", ("think_in_content",), "a think block that an answer's text spells stays text"),
    (
        "tinker_cookbook",
        "role_colon/",
        ("user_only", "three_turns_open", "system_user_only", "mixed_01"),
        "it adds a literal <UNUSED> after a conversation that ends with a user",
    ),
)


def _cases() -> list[Any]:
    tables = {
        "tinker_cookbook": {variant: (*names, {}) for variant, names in TINKER.items()},
        "renderers": dict(RENDERERS),
    }
    return [
        pytest.param(package, variant, *names, id=f"{package}-{variant}")
        for package, table in tables.items()
        for variant, names in table.items()
    ]


def _same(ours: list[int], theirs: Any, newline: list[int]) -> bool:
    """Equal, but for a newline after the last stop, which some leave away."""
    return isinstance(theirs, list) and (ours == theirs or ours == theirs + newline or ours + newline == theirs)


@pytest.mark.parametrize(("package", "variant", "name", "their_name", "options"), _cases())
def test_renderings_are_those_of_the_peer_or_differ_as_is_known(
    package: str,
    variant: str,
    name: str,
    their_name: str,
    options: Mapping[str, Any],
    tokenizer_named: Callable[[str], FastTokenizer],
    tmp_path: Path,
) -> None:
    family, of_family = variant.split("/")
    lines = gzip.decompress((GOLDEN / f"{family}.jsonl.gz").read_bytes()).decode().splitlines()
    records = [
        record
        for record in map(json.loads, lines)
        # names of control tokens in a message: the peers make control tokens of them, which is the difference
        if record["variant"] == of_family and record["unsupported"] is None and "inject" not in record["tags"]
    ]
    tokenizer = tokenizer_named(records[0]["tokenizer"])
    tokenizer.to_folder(tmp_path / "tokenizer")
    task = {
        "package": package,
        "renderer": their_name,
        "tokenizer": str(tmp_path / "tokenizer"),
        "options": dict(options),
        "conversations": [{key: record[key] for key in ("messages", "tools", "generation_upto")} for record in records],
    }
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("peer_side.py")],
        input=json.dumps(task),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    renderer = get_renderer(name, tokenizer, **(options if "date_string" in options else {}))
    newline = list(tokenizer.encode("\n"))
    differing = set()
    for record, (whole, prompt) in zip(records, found, strict=True):
        messages, tools = record["messages"], record["tools"]
        ours, _ = renderer.build_supervised_example(messages, "all_tokens", tools=tools)
        our_prompt = renderer.build_generation_prompt(messages[: record["generation_upto"]], tools=tools)
        if not (_same(ours.to_ints(), whole, newline) and _same(our_prompt.to_ints(), prompt, [])):
            differing.add(record["id"].split("/")[-1])
    known = [cases for by, where, cases, _ in KNOWN if by == package and variant.startswith(where)]
    explained = {case for case in differing if any(case.startswith(cases) for cases in known)}
    assert differing == explained
    unneeded = [cases for cases in known if not any(case.startswith(cases) for case in differing)]
    assert not [cases for cases in unneeded if variant in {where for _, where, *_ in KNOWN}]
