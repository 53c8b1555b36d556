"""A student of a few thousand weights and teachers like it: the whole recipe runs on them, with the real engine."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaForCausalLM

from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.distill.pairs import Pair, first_prompt, pairs_of
from crucible_train.distill.teacher import Reader, Teacher, Teachers
from crucible_train.loop.run import TrainingRun
from crucible_train.loop.training import TrainingResult
from crucible_train.recipes.distill import DistillConfig, Surroundings, train
from crucible_train.rl.environment import StepResult, StopReason, Turn
from crucible_train.rl.problem_set import Problem
from crucible_train.types import Hardware, Message, ModelInput, TokensWithLogprobs
from tests.rl.toy import ASK, END, MODEL, NUM_SYMBOLS, symbol_of

FORMAT: Any = SimpleNamespace(stop_sequences=lambda: [END])
HINT = (3, 1, 4, 1, 5)
"""What a teacher that reads more reads first."""


class Ask:
    """Shown a symbol, it takes two tokens at most, and again as often as ``num_turns`` says."""

    def __init__(self, symbol: int, before: Sequence[int], num_turns: int) -> None:
        self._seen, self._left = [*before, symbol, ASK], num_turns

    async def initial_turn(self) -> Turn:
        return Turn(ModelInput.from_ints(self._seen), [END], max_tokens=2)

    async def step(self, action: TokensWithLogprobs) -> StepResult:
        self._left -= 1
        if not self._left:
            reason = StopReason.COMPLETED if action.tokens[-1] == END else StopReason.MAX_TOKENS
            return StepResult(0.0, reason=reason)
        self._seen += [*action.tokens, ASK]
        return StepResult(0.0, Turn(ModelInput.from_ints(self._seen), [END], 2))

    def transcript(self) -> Sequence[Message]:
        return [Message("user", "?")]

    async def close(self) -> None: ...


@dataclass
class Asked:
    """Problems of that kind, as somebody sees them who reads ``before`` first."""

    before: Sequence[int] = ()
    num_turns: int = 1
    num_train: int | None = None
    held_out: Sequence[Any] = ()
    name: str = "ask"

    def train(self, index: int) -> Problem:
        symbol = symbol_of(index)
        tag = "low" if symbol < NUM_SYMBOLS // 2 else "high"
        return Problem(f"{self.name} {index}", partial(Ask, symbol, self.before, self.num_turns), (tag,))


def make_model(folder: Path, seed: int, scale: float = 1.0) -> Path:
    """A model whose answers are far from uniform where ``scale`` is above 1."""
    if not folder.exists():
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(MODEL)
            for parameter in model.parameters():
                parameter.mul_(scale) if parameter.ndim > 1 else None
            model.save_pretrained(folder)
    return folder


def engine(model: Path, states: Path, rank: int | None = None) -> LocalBackend:
    lora = None if rank is None else Lora(rank, 2.0 * rank, 0.0, "all-linear")
    return LocalBackend(model, None, EngineSettings(Hardware("cpu", "float32", 1), states), lora)  # type: ignore[arg-type]


def config_of(fields: Mapping[str, Any]) -> DistillConfig:
    sections: dict[str, Any] = {
        "rollout": {"max_tokens": 2},
        "peft": {"use_peft": False},
        "train": {
            "learning_rate": 0.02,
            "max_steps": 60,
            "groups_per_batch": 8,
            "num_generations": 4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
        },
        "eval": {"eval_steps": 0, "metric_for_best_model": "train/teacher_kl"},
        "checkpoint": {"save_steps": 5, "save_minutes": 0.0},
        "lesson": {},
        "schedule": {},
        "seed": 1,
    }
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        (sections[section] if section else sections)[name] = value
    return DistillConfig.model_validate(sections)


@dataclass
class Trial:
    """One start of a run in ``run_dir``; ``teach`` makes the teachers, given the student."""

    model: Path
    run_dir: Path
    teach: Callable[[LocalBackend], Teachers]
    fields: Mapping[str, Any] = field(default_factory=dict)
    on_step: Callable[[int], None] = lambda step: None
    problems: Asked = field(default_factory=Asked)
    measure: Callable[[LocalBackend, Teachers], Any] | None = None
    measured: Any = None

    def run(self) -> TrainingResult:
        return asyncio.run(self.train())

    async def train(self) -> TrainingResult:
        config = config_of(self.fields)
        rank = config.peft.lora_r if config.peft.use_peft else None
        client = engine(self.model, self.run_dir / "checkpoints", rank)
        teachers = self.teach(client)
        run = TrainingRun(self.run_dir, client, _Watcher(self.on_step), config.checkpoint, lambda line: None)

        async def evaluate(step: int) -> Mapping[str, float]:
            return {}

        try:
            around = Surroundings(Reader(self.problems, FORMAT), teachers, evaluate)
            result = await train(config, client, around, run, {})
            run.metrics.finish("done")
            if self.measure is not None:
                self.measured = await self.measure(client, teachers)
        finally:
            run.metrics.finish("failed")
            await client.close()
        return result


@dataclass
class _Watcher:
    on_step: Callable[[int], None]

    def start(self, run: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.on_step(step)

    def log_text(self, name: str, text: str, step: int) -> None: ...

    def finish(self, status: str) -> None: ...


def teacher_of(client: Any, before: Sequence[int] = (), name: str = "teacher", num_turns: int = 1) -> Teacher:
    return Teacher(name, client, Reader(Asked(before, num_turns), FORMAT))


async def answers(writer: Any, teacher: Teacher, problems: Asked, num: int = 8) -> list[Pair]:
    """Answers of the student to the first problems, as both read them."""
    from crucible_train.rl.rollout_config import RolloutConfig
    from crucible_train.rl.rollouts import rollout_group

    found: list[Pair] = []
    for index in range(num):
        config = RolloutConfig(max_tokens=2, on_error="fail_fast")
        group = await rollout_group(problems.train(index), 2, writer, config, 100 + index, lambda: 0)
        assert group is not None
        read = await first_prompt(teacher.reader.problems.train(index))
        for one in group.trajectories_G:
            found += pairs_of(one, teacher, Reader(problems, FORMAT), read, by_teacher=False)
    return found
