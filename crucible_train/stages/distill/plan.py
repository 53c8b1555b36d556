"""``--dry-run`` of distillation: what is asked, who teaches, which stages are cached, what it takes."""

import asyncio
import sys
from functools import partial
from pathlib import Path

from crucible_train import terminal, wiring
from crucible_train.config.overrides import to_yaml
from crucible_train.config.redaction import hide_secrets
from crucible_train.loop.training import peak_rate
from crucible_train.recipes.distill import DistillConfig
from crucible_train.renderers import FastTokenizer
from crucible_train.stages.chain import Chain
from crucible_train.stages.chat_format import with_noted_date
from crucible_train.stages.distill import preflight
from crucible_train.stages.distill.evaluate import EvaluateDistill
from crucible_train.stages.distill.package import PackageDistill
from crucible_train.stages.distill.teachers import input_name, student_of, teacher_reader
from crucible_train.stages.distill.train import TrainDistill
from crucible_train.stages.prepare_model import at_hand, description_of
from crucible_train.stages.rl.cost import show_cost, show_problems
from crucible_train.stages.run_directory import run_id
from crucible_train.types import Hardware


def show_plan(config: DistillConfig) -> None:
    """Print the plan of a run. Nothing is sampled, trained or stored.

    Raises:
        CrucibleError: what would stop the run before its first step.
    """
    preflight.check(config)
    sys.stdout.write(hide_secrets(to_yaml(config)) + "\n")
    hardware = wiring.hardware(config.engine)
    terminal.field("machine", hardware.description)
    source = at_hand(config.model)
    chain = Chain(config.cache_dir)
    config = _look(chain, config, hardware, source)
    description = description_of(config.model, source)
    if description is None:
        terminal.field("problems", "known once the model is here: the first run fetches it")
        chain.show()
        return
    _show_views(config, description)
    chain.show()
    show_cost(
        config.train,
        config.peft,
        config.engine,
        hardware,
        config.rollout.max_tokens,
        description,
        partial(peak_rate, config.train, config.peft),
    )


def _show_views(config: DistillConfig, description: Path) -> None:
    """Print the first problems as the student sees them, and the first as each teacher that is here does."""
    tokenizer = FastTokenizer.from_folder(description)
    student = student_of(config, description, tokenizer)
    asyncio.run(show_problems(student.problems, tokenizer, 2))
    for name, teacher in config.teacher_configs.items():
        its = None if teacher.model is None else description_of(teacher.model, at_hand(teacher.model))
        if teacher.model is not None and its is None:
            terminal.field(name, "its model is fetched by the first run")
            continue
        reader, _, _ = teacher_reader(config, teacher, student, its)
        terminal.field(name, f"{teacher.kind}; it reads")
        asyncio.run(show_problems(reader.problems, reader.renderer.tokenizer, 1))


def _look(chain: Chain, config: DistillConfig, hardware: Hardware, source: Path | None) -> DistillConfig:
    """Follow the flow's chain as far as its outputs are known; the configuration with the date it writes."""
    chain.model(config, source)
    models = ["model"]
    for name, teacher in config.teacher_configs.items():
        if teacher.model is not None:
            of_teacher = config.model_copy(update={"model": teacher.model})
            chain.model(of_teacher, at_hand(teacher.model), input_name(name))
            models.append(input_name(name))
    if chain.has(["model"]):
        config = with_noted_date(config, chain.refs)
    chain.stage("evaluate before", "before", EvaluateDistill(config, hardware), models)
    train = TrainDistill(config, hardware, Path())
    chain.stage("train", "trained", train, models)  # what was measured before is no part of its key
    chain.stage("evaluate after", "after", EvaluateDistill(config, hardware), [*models, "trained"])
    if chain.has(models):
        key = train.key({name: chain.refs[name] for name in models})
        package = PackageDistill(config, hardware, Path(run_id(config, "distill", config.env.name, key)))
        chain.stage("package", "package", package, [*models, "before", "trained", "after"])
    else:
        chain.states.append(("package", "to run"))
    return config
