"""From conversations to tokens and weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import terminal
from crucible_train.data.rendering import render
from crucible_train.data.rows import bad_rows
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages.base import Stage, in_thread
from crucible_train.stages.chat_format import renderer_spec


class Render(Stage[SFTConfig]):
    """Splits conversations into training and held-out ones and renders both."""

    name = "render"
    reads = (
        "seed",
        "model",
        "data.eval_split",
        "data.renderer",
        "data.renderer_options",
        "data.train_on",
        "data.max_length",
        "data.on_bad_row",
    )
    uses = ("data.num_workers",)
    code = ("data", "renderers", "types", "seeds", "stages.chat_format")
    libraries = ("tokenizers",)

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Render with the model's own format or the one that is asked for."""
        spec = await in_thread(renderer_spec, self.config, inputs["model"])
        await in_thread(render, inputs["conversations"], spec, self.config.data, self.config.seed, folder)


def report(summary: Mapping[str, Any], *, is_cached: bool) -> None:
    """Say what was rendered."""
    train, held_out = summary["train"], summary["validation"]
    bad = f"; {bad_rows(summary['num_bad_rows'])}" if summary["num_bad_rows"] else ""
    line = (
        f"{train['num_examples']:,} examples to train and {held_out['num_examples']:,} held out, "
        f"by {summary['renderer']}; {train['num_tokens']:,} tokens, {train['num_trained_tokens']:,} trained, "
        f"longest {train['max_tokens']:,}{bad}"
    )
    terminal.field("rendered", line + (" [cached]" if is_cached else ""))
