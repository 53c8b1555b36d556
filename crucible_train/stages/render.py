"""From conversations to tokens and weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_train import terminal
from crucible_train.data.render_rows import RendererSpec
from crucible_train.data.rendering import render
from crucible_train.ports import Tokenizer
from crucible_train.recipes.sft import SFTConfig
from crucible_train.renderers import FastTokenizer, renderer_name
from crucible_train.stages.base import Stage, in_thread


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
    code = ("data", "renderers", "types", "seeds")
    libraries = ("tokenizers",)

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Render with the model's own format or the one that is asked for."""
        spec = renderer_spec(self.config, inputs["model"])
        await in_thread(render, inputs["conversations"], spec, self.config.data, self.config.seed, folder)


def renderer_spec(config: SFTConfig, model_dir: Path, tokenizer: Tokenizer | None = None) -> RendererSpec:
    """Which renderer a configuration means for a model; ``tokenizer`` is the model's, where it is loaded already."""
    wanted = config.model if config.data.renderer == "auto" else config.data.renderer
    name = renderer_name(wanted, tokenizer or FastTokenizer.from_folder(model_dir))
    return RendererSpec(name, config.data.renderer_options, model_dir)


def report(summary: Mapping[str, Any], *, is_cached: bool) -> None:
    """Say what was rendered."""
    train, held_out = summary["train"], summary["validation"]
    bad = f"; {summary['num_bad_rows']} bad rows" if summary["num_bad_rows"] else ""
    line = (
        f"{train['num_examples']:,} examples to train and {held_out['num_examples']:,} held out, "
        f"by {summary['renderer']}; {train['num_tokens']:,} tokens, {train['num_trained_tokens']:,} trained, "
        f"longest {train['max_tokens']:,}{bad}"
    )
    terminal.field("rendered", line + (" [cached]" if is_cached else ""))
