"""``--dry-run`` of learning from preferences: what is cached, what is compared, and what it will cost here."""

import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crucible_train import files, terminal, wiring
from crucible_train.config.overrides import to_yaml
from crucible_train.config.redaction import hide_secrets
from crucible_train.data.preference_tables import RenderedPreferences
from crucible_train.data.preparation import SUMMARY
from crucible_train.data.rendering import TRAIN
from crucible_train.errors import DataError
from crucible_train.loop.run import Cadence
from crucible_train.loop.training import schedule_of
from crucible_train.recipes.dpo import DPOConfig, check_paired, peak_rate, plan_of
from crucible_train.stages.chain import Chain
from crucible_train.stages.chat_format import with_noted_date
from crucible_train.stages.dpo import preflight, prepare_data
from crucible_train.stages.dpo import render as rendering
from crucible_train.stages.dpo.answers import AnswerPreferences
from crucible_train.stages.dpo.evaluate import EvaluateDPO
from crucible_train.stages.dpo.package import PackageDPO
from crucible_train.stages.dpo.prepare_data import PreparePreferences
from crucible_train.stages.dpo.reference import ReferencePass
from crucible_train.stages.dpo.render import RenderPreferences
from crucible_train.stages.dpo.train import TrainDPO
from crucible_train.stages.plan import (
    bad_rows_of,
    duration,
    made,
    rounded,
    show_bad_rows,
    show_samples,
    what_stops,
    without_stopping,
)
from crucible_train.stages.prepare_model import at_hand, description_of
from crucible_train.stages.run_directory import run_id
from crucible_train.stages.win_rate_plan import look_at_answers, look_for_judge, show_win_rate, written_at_once
from crucible_train.types import Hardware

_NUM_SHOWN = 1


def show_plan(config: DPOConfig) -> None:
    """Print the plan of a run. Nothing is trained and nothing is stored.

    Raises:
        CrucibleError: what would stop the run before its first step.
    """
    preflight.check(config)
    sys.stdout.write(hide_secrets(to_yaml(config)) + "\n")
    hardware = wiring.hardware(config.engine)
    terminal.field("machine", hardware.description)
    with TemporaryDirectory(prefix="crucible-plan-") as folder:
        bad_rows = _show(config, hardware, Path(folder))
    if problem := what_stops(bad_rows, config.data.on_bad_row):
        raise DataError(problem)


def _show(config: DPOConfig, hardware: Hardware, folder: Path) -> Sequence[Mapping[str, Any]]:
    """Print everything after the machine; the rows that are set aside."""
    source = at_hand(config.model)
    chain = Chain(config.cache_dir)
    config = _look(chain, config, hardware, source)
    lenient = without_stopping(config)
    refs, cache_dir = chain.refs, config.cache_dir
    found = made(PreparePreferences(lenient), {}, refs.get("conversations"), folder / "data", cache_dir)
    prepare_data.report(files.read_json(found / SUMMARY), is_cached="conversations" in refs)
    bad_rows = bad_rows_of(found)
    description = description_of(config.model, source)
    if description is None:
        terminal.field("rendered", "known once the model is here: the first run fetches and converts it")
        show_bad_rows(bad_rows)
        chain.show()
        return bad_rows
    inputs = {"model": description, "conversations": found}
    rendered = made(RenderPreferences(lenient), inputs, refs.get("rendered"), folder / "rendered", cache_dir)
    summary = files.read_json(rendered / SUMMARY)
    rendering.report(summary, is_cached="rendered" in refs)
    bad_rows += bad_rows_of(rendered)
    show_bad_rows(bad_rows)
    pairs = RenderedPreferences(rendered / TRAIN)
    check_paired(config, pairs)  # type: ignore[arg-type]
    sides = [side for one in itertools.islice(pairs, _NUM_SHOWN) for side in one.sides]
    kinds = ["chosen" if sign > 0 else "rejected" for sign, _ in sides]
    show_samples([side for _, side in sides], description, kinds)
    chain.show()
    num_prompts = len(AnswerPreferences(config, hardware).questions(inputs | {"rendered": rendered}))
    _show_cost(config, hardware, (len(pairs), num_prompts), summary, description, chain.to_run)
    return bad_rows


def _look(chain: Chain, config: DPOConfig, hardware: Hardware, source: Path | None) -> DPOConfig:
    """Follow the flow's chain as far as its outputs are known; the configuration with the date it writes."""
    chain.model(config, source)
    look_for_judge(chain, config)
    chain.stage("prepare data", "conversations", PreparePreferences(config), ())
    if chain.has(["model", "conversations"]):
        config = with_noted_date(config, chain.refs)
    chain.stage("render", "rendered", RenderPreferences(config), ["model", "conversations"])
    given = ["model", "conversations", "rendered"]
    if config.preference.needs_reference:
        chain.stage("reference", "reference", ReferencePass(config, hardware), ["model", "rendered"])
        given.append("reference")
    chain.stage("evaluate before", "before", EvaluateDPO(config, hardware), given)
    train = TrainDPO(config, hardware, Path())
    chain.stage("train", "trained", train, given)  # what was measured before is no part of its key
    chain.stage("evaluate after", "after", EvaluateDPO(config, hardware), [*given, "trained"])
    more: list[str] = []
    if config.win_rate.num_prompts:
        read = ["model", "conversations", "rendered"]
        more = look_at_answers(chain, config, hardware, AnswerPreferences(config, hardware), read)
    if chain.has(given):
        name = run_id(config, "dpo", config.dataset, train.key({key: chain.refs[key] for key in given}))
        package = PackageDPO(config, hardware, Path(name))
        chain.stage("package", "package", package, [*given, "before", "trained", "after", *more])
    else:
        chain.states.append(("package", "to run"))
    return config


def _show_cost(
    config: DPOConfig,
    hardware: Hardware,
    sizes: tuple[int, int],
    summary: Mapping[str, Any],
    description: Path,
    to_run: Collection[str],
) -> None:
    """Print steps, tokens, and the time and memory that the stages ``to_run`` should take.

    ``sizes`` says how many preferences are trained on, and how many prompts are answered for the win rate.
    """
    num_pairs, num_prompts = sizes
    plan, train, held_out = plan_of(config, num_pairs), summary["train"], summary["validation"]
    num_tokens = round(train["num_tokens"] / max(1, num_pairs) * min(plan.batch_size, num_pairs) * plan.num_steps)
    mean_length = round(train["num_tokens"] / max(1, train["num_sequences"]))
    found = wiring.estimate(
        description, config.peft, config.engine, hardware, mean_length, max(1, written_at_once(num_prompts))
    )
    rate = peak_rate(config, found.hidden_size)
    schedule_of(config.train, plan.num_steps, rate)
    terminal.field(
        "training",
        f"{plan.num_steps} steps of {plan.batch_size}, about {num_tokens:,} tokens, peak rate {rate:g}; "
        f"{found.num_trained_params / 1e6:,.1f} of {found.num_params / 1e6:,.1f} million weights",
    )
    writing = show_win_rate(config, num_prompts, found, to_run) if num_prompts else None
    if not to_run:
        terminal.field("estimate", "nothing to do: all of it is cached")
        return
    cadence = Cadence.of(config.eval.eval_steps, plan.num_steps)
    num_passes = sum(cadence.is_due(step + 1) for step in range(plan.num_steps)) if "train" in to_run else 0
    num_forward = num_passes * held_out["num_tokens"]
    if "reference" in to_run:
        num_forward += train["num_tokens"] + held_out["num_tokens"]
    seconds = num_forward / found.forward_tokens_per_second
    if "train" in to_run:
        seconds += num_tokens / found.train_tokens_per_second
        if config.preference.is_reward_model:  # a pass finds the rewards, and another their gradient
            seconds += num_tokens / found.forward_tokens_per_second
    terminal.field(
        "estimate",
        f"{duration(seconds)} of scoring, training and measuring, training at about "
        f"{rounded(found.train_tokens_per_second):,} tokens/s"
        + ("" if writing is None else f", up to {duration(writing)} of writing answers and the judge's time")
        + f"; {found.peak_bytes / 2**30:.1f} GiB of memory",
    )
