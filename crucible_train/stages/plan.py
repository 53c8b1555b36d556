"""``--dry-run``: what a run would do, what of it is cached, what reaches the loss, and what it will cost here.

Nothing is trained and nothing is stored. Rows are read and rendered for real, so that every bad one is found.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from rich.text import Text

from crucible_train import files, terminal, wiring
from crucible_train.config.overrides import to_yaml
from crucible_train.config.redaction import hide_secrets
from crucible_train.data.examples import Example
from crucible_train.data.preference_tables import Side
from crucible_train.data.preparation import QUARANTINE, SUMMARY
from crucible_train.data.rendering import TRAIN
from crucible_train.data.rows import NEVER_STOPS
from crucible_train.data.rows import bad_rows as counted
from crucible_train.data.tables import Examples
from crucible_train.errors import DataError
from crucible_train.loop.run import Cadence
from crucible_train.loop.training import peak_rate, schedule_of
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.recipes.sft import SFTConfig, plan_of
from crucible_train.renderers import FastTokenizer
from crucible_train.renderers.view import shown_tokens
from crucible_train.report.conversations import coloured, colourless
from crucible_train.stages import prepare_data, sft_preflight
from crucible_train.stages import render as rendering
from crucible_train.stages.base import Stage, open_artifact
from crucible_train.stages.chain import Chain
from crucible_train.stages.chat_format import with_noted_date
from crucible_train.stages.evaluate import Evaluate
from crucible_train.stages.held_out import num_answered
from crucible_train.stages.package import Package
from crucible_train.stages.prepare_data import PrepareData
from crucible_train.stages.prepare_model import at_hand, description_of
from crucible_train.stages.render import Render
from crucible_train.stages.run_directory import run_id
from crucible_train.stages.sft_answers import AnswerRows
from crucible_train.stages.train import Train
from crucible_train.stages.win_rate_plan import look_at_answers, look_for_judge, show_win_rate, written_at_once
from crucible_train.types import ArtifactRef, Hardware, ModelInput

ConfigT = TypeVar("ConfigT", SFTConfig, DPOConfig)

_NUM_SAMPLES = 3
_MAX_SAMPLE_TOKENS = 400
_NUM_BAD_ROWS_SHOWN = 5


def show_plan(config: SFTConfig) -> None:
    """Print the plan of a run.

    Raises:
        CrucibleError: what would stop the run before its first step.
    """
    sft_preflight.check(config)
    sys.stdout.write(hide_secrets(to_yaml(config)) + "\n")
    hardware = wiring.hardware(config.engine)
    terminal.field("machine", hardware.description)
    with TemporaryDirectory(prefix="crucible-plan-") as folder:
        bad_rows = _show(config, hardware, Path(folder))
    if problem := what_stops(bad_rows, config.data.on_bad_row):
        raise DataError(problem)


def _show(config: SFTConfig, hardware: Hardware, folder: Path) -> Sequence[Mapping[str, Any]]:
    """Print everything after the machine; the bad rows."""
    source = at_hand(config.model)
    description = description_of(config.model, source)
    stages = Chain(config.cache_dir)
    config = _look(stages, config, hardware, source)
    lenient = without_stopping(config)
    conversations = made(PrepareData(lenient), {}, stages.refs.get("conversations"), folder / "data", config.cache_dir)
    summary = files.read_json(conversations / SUMMARY)
    prepare_data.report(summary, is_cached="conversations" in stages.refs)
    bad_rows = bad_rows_of(conversations)
    if description is None:
        terminal.field("rendered", "known once the model is here: the first run fetches and converts it")
        show_bad_rows(bad_rows)
        stages.show()
        return bad_rows
    inputs = {"model": description, "conversations": conversations}
    rendered = made(Render(lenient), inputs, stages.refs.get("rendered"), folder / "rendered", config.cache_dir)
    summary = files.read_json(rendered / SUMMARY)
    rendering.report(summary, is_cached="rendered" in stages.refs)
    bad_rows += bad_rows_of(rendered)
    show_bad_rows(bad_rows)
    examples = Examples(rendered / TRAIN)
    show_samples(list(itertools.islice(examples, _NUM_SAMPLES)), description)
    stages.show()
    num_prompts = len(AnswerRows(config, hardware).questions(inputs | {"rendered": rendered}))
    _show_cost(config, hardware, (examples, num_prompts), summary, description, stages.to_run)
    return bad_rows


def made(stage: Stage[Any], inputs: Mapping[str, Path], ref: ArtifactRef | None, folder: Path, cache_dir: str) -> Path:
    """The cached output of a stage, or a new one that is not kept."""
    if ref is not None:
        return open_artifact(wiring.blob_store(cache_dir), ref)
    folder.mkdir()
    asyncio.run(stage.run(inputs, folder))
    return folder


def _look(chain: Chain, config: SFTConfig, hardware: Hardware, source: Path | None) -> SFTConfig:
    """Follow the flow's chain as far as its outputs are known; the configuration with the date it writes."""
    chain.model(config, source)
    look_for_judge(chain, config)
    chain.stage("prepare data", "conversations", PrepareData(config), ())
    if chain.has(["model", "conversations"]):
        config = with_noted_date(config, chain.refs)
    chain.stage("render", "rendered", Render(config), ["model", "conversations"])
    given = ["model", "conversations", "rendered"]
    chain.stage("evaluate before", "before", Evaluate(config, hardware), given)
    train = Train(config, hardware, Path())
    chain.stage("train", "trained", train, given)  # what was measured before is no part of its key
    chain.stage("evaluate after", "after", Evaluate(config, hardware), [*given, "trained"])
    more: list[str] = []
    if config.win_rate.num_prompts:
        more = look_at_answers(chain, config, hardware, AnswerRows(config, hardware), given)
    if chain.has(given):
        name = run_id(config, "sft", config.dataset, train.key({key: chain.refs[key] for key in given}))
        package = Package(config, hardware, Path(name))
        chain.stage("package", "package", package, [*given, "before", "trained", "after", *more])
    else:
        chain.states.append(("package", "to run"))
    return config


def without_stopping(config: ConfigT) -> ConfigT:
    """The configuration in which every bad row is set aside, so that all of them are found."""
    return config.model_copy(update={"data": config.data.model_copy(update={"on_bad_row": "quarantine"})})


def what_stops(bad_rows: Sequence[Mapping[str, Any]], on_bad_row: str, section: str = "") -> str:
    """What there is to say of rows that would stop the run; nothing where none would."""
    num = sum(row["reason"] not in NEVER_STOPS for row in bad_rows)
    if not num or on_bad_row != "stop":
        return ""
    them = "it" if num == 1 else "them"
    return f"{counted(num)} would stop the run; mend {them}, or set {section}data.on_bad_row=quarantine"


def bad_rows_of(folder: Path) -> list[Mapping[str, Any]]:
    """What a stage set aside."""
    return [json.loads(line) for line in (folder / QUARANTINE).read_text(encoding="utf-8").splitlines()]


def show_bad_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the first of them."""
    for row in rows[:_NUM_BAD_ROWS_SHOWN]:
        terminal.field("bad row", f"{row['where']}: {row['problem']}")
    if len(rows) > _NUM_BAD_ROWS_SHOWN:
        terminal.field("", f"and {len(rows) - _NUM_BAD_ROWS_SHOWN} more")


def show_samples(examples: Sequence[Example | Side], tokenizer_dir: Path, kinds: Sequence[str] = ()) -> None:
    """Print examples, and of what kind each is, as the model sees them; what is trained is green, or in ⟦ ⟧."""
    tokenizer = FastTokenizer.from_folder(tokenizer_dir)
    has_colours = terminal.has_colours()
    terminal.say("")
    for number, example in enumerate(examples, 1):
        num_tokens = example.tokens_T.size
        kind = f"{kinds[number - 1]}, " if kinds else ""
        text = Text(f"sample {number}, {kind}{num_tokens} tokens; trained is ", style="bold")
        text.append("this" if has_colours else "⟦this⟧", style="green")
        text.append("\n")
        shown = ModelInput.from_ints(example.tokens_T[:_MAX_SAMPLE_TOKENS]), example.weights_T[:_MAX_SAMPLE_TOKENS]
        tokens = shown_tokens(shown, tokenizer)
        text.append(coloured(tokens) if has_colours else Text(colourless(tokens, marks_controls=False)))
        if num_tokens > _MAX_SAMPLE_TOKENS:
            text.append(f" … {num_tokens - _MAX_SAMPLE_TOKENS} more tokens", style="italic")
        if not text.plain.endswith("\n"):  # one empty line after each, whatever a format ends with
            text.append("\n")
        terminal.console().print(text, emoji=False)


def _show_cost(
    config: SFTConfig,
    hardware: Hardware,
    work_on: tuple[Examples, int],
    summary: Mapping[str, Any],
    description: Path,
    to_run: Collection[str],
) -> None:
    """Print steps, tokens, and the time and memory that the stages ``to_run`` should take.

    ``work_on`` holds what is trained on, and how many prompts are answered for the win rate.
    """
    examples, num_prompts = work_on
    plan = plan_of(config, len(examples))
    lengths = examples.num_tokens()
    num_tokens = sum(int(lengths[list(plan.batch(step))].sum()) for step in range(plan.num_steps))
    steps = f"{plan.num_steps} steps of {plan.batch_size}, {num_tokens:,} tokens"
    measured = [name for name in to_run if name.startswith("evaluate")]
    if "train" not in to_run and not measured and "win rate" not in to_run:
        terminal.field("training", steps)
        terminal.field("estimate", "nothing to do but the report" if to_run else "nothing to do: all of it is cached")
        return
    mean_length = round(summary["train"]["num_tokens"] / max(1, len(examples)))
    num_answers = num_answered(config.eval.num_samples, summary["validation"]["num_examples"])
    found = wiring.estimate(
        description,
        config.peft,
        config.engine,
        hardware,
        mean_length,
        max(1, num_answers, written_at_once(num_prompts)),
    )
    rate = peak_rate(config.train, config.peft, found.hidden_size)
    schedule_of(config.train, plan.num_steps, rate)
    terminal.field(
        "training",
        f"{steps}, peak rate {rate:g}; "
        f"{found.num_trained_params / 1e6:,.1f} of {found.num_params / 1e6:,.1f} million weights",
    )
    seconds, num_passes, work = 0.0, len(measured), "measuring"
    if "train" in to_run:
        cadence = Cadence.of(config.eval.eval_steps, plan.num_steps)
        num_passes += sum(cadence.is_due(step + 1) for step in range(plan.num_steps))
        seconds = num_tokens / found.train_tokens_per_second
        work = f"training and measuring at about {rounded(found.train_tokens_per_second):,} tokens/s"
    seconds += summary["validation"]["num_tokens"] * num_passes / found.forward_tokens_per_second
    writing = len(measured) * config.eval.max_new_tokens * found.write_step_s if num_answers else 0.0
    if num_prompts:
        writing += show_win_rate(config, num_prompts, found, to_run)
    terminal.field(
        "estimate",
        f"{duration(seconds)} of {work}, up to {duration(writing)} of writing answers; "
        f"{found.peak_bytes / 2**30:.1f} GiB of memory",
    )


def rounded(speed: float) -> int:
    """To two digits: a speed that was looked at for seconds is not known any better."""
    return round(float(f"{speed:.2g}"))


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
