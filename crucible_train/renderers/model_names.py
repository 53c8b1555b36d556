"""Which renderer a model's published template is, by the model's name: one table.

A name is a hub id, a folder or a file. What counts is how its last part begins, so that a distilled or merged model,
which is called after another one further on in its name, is not mistaken for it. Words that follow, such as
``-Base``, ``-FP8`` or ``.Q4_K_M.gguf``, change nothing. A model that is not here has its own template rendered.
"""

import re

OWN_TEMPLATE = "chat_template"
_SIZE = r"\d+(?:\.\d+)?b(?:-a\d+b)?"
_MAKERS = r"(?:(?:meta-llama|meta|qwen|deepseek-ai|moonshotai|openai|huggingfacetb)-)*"
_TABLE = (
    (r"smollm2", "smollm2"),
    (r"llama-?3-\d+b-instruct", "llama3"),
    (r"llama-?3\.[13]-\d+b-instruct", "llama3_1"),  # 3.3 has 3.1's template
    (r"llama-?3\.2-\d+b-instruct", "llama3_2"),  # those with vision are named otherwise, and have a template of theirs
    (rf"qwen3-vl-{_SIZE}-instruct", "qwen3_vl_instruct"),
    (rf"qwen3-vl-{_SIZE}-thinking", "qwen3_vl"),
    (rf"qwen3-{_SIZE}-instruct", "qwen3_instruct"),
    (rf"qwen3-{_SIZE}-thinking", OWN_TEMPLATE),  # its prompt opens the reasoning, that of the hybrid models does not
    (rf"qwen3-{_SIZE}", "qwen3"),
    (r"deepseek-v3-0324", OWN_TEMPLATE),  # closes a single call, which the first release does not
    (r"deepseek-v3\.1-terminus", OWN_TEMPLATE),
    (r"deepseek-v3\.1", "deepseekv3_1"),
    (r"deepseek-v3", "deepseekv3"),
    (r"deepseek-r1-(?:0528|distill|zero)", OWN_TEMPLATE),  # 0528 does not open the reasoning in its prompt
    (r"deepseek-r1", "deepseek_r1"),
    (r"kimi-k2-instruct", "kimi_k2"),
    (r"kimi-k2-thinking", "kimi_k2_thinking"),
    (r"gpt-oss-\d+b", "gpt_oss_medium_reasoning"),  # the effort that its template takes where none is given
)
_MODELS = tuple((re.compile(rf"{_MAKERS}{name}(?![a-z0-9]|\.\d)"), renderer) for name, renderer in _TABLE)


def renderer_of_model(model: str) -> str | None:
    """The name of the renderer of a known model: of several that fit, the first in the table; None for others."""
    name = _last_part(model).lower().replace("_", "-")
    return next((renderer for pattern, renderer in _MODELS if pattern.match(name)), None)


def _last_part(model: str) -> str:
    """A model's own name in a hub id or a path, also where the hub's cache keeps it: ``models--OWNER--NAME``."""
    parts = [part for part in re.split(r"[/\\]", model) if part]
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2]
    return parts[-1] if parts else ""
