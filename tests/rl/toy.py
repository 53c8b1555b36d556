"""A task that a model of a few thousand weights learns in seconds: say the token that you were shown.

The whole recipe runs on it, with the real engine: rollouts, advantages, losses, checkpoints.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.loop.run import TrainingRun
from crucible_train.loop.training import TrainingResult
from crucible_train.recipes.rl import RLConfig, train
from crucible_train.rl.environment import EnvGroupBuilder, StepResult, StopReason, Turn
from crucible_train.rl.problem_set import Problem
from crucible_train.rl.update import Surroundings
from crucible_train.seeds import generator
from crucible_train.types import CrossEntropy, Datum, Hardware, Message, ModelInput, TokensWithLogprobs

NUM_SYMBOLS = 8
ASK, END = NUM_SYMBOLS, NUM_SYMBOLS + 1
MODEL = LlamaConfig(
    vocab_size=NUM_SYMBOLS + 2,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=END,
)


class Echo:
    """Shown a symbol, it rewards the answer that begins with it. With ``num_turns`` above 1 it asks again."""

    def __init__(self, symbol: int, judge: Callable[[int, Sequence[int]], float], num_turns: int) -> None:
        self._symbol, self._judge, self._left = symbol, judge, num_turns
        self._seen = [symbol, ASK]

    async def initial_turn(self) -> Turn:
        return Turn(ModelInput.from_ints(self._seen), [END], max_tokens=2)

    async def step(self, action: TokensWithLogprobs) -> StepResult:
        self._left -= 1
        reward = self._judge(self._symbol, action.tokens)
        if not self._left:
            return StepResult(reward, reason=StopReason.COMPLETED, reward_parts={"right": reward})
        self._seen += [*action.tokens, ASK]
        return StepResult(reward, Turn(ModelInput.from_ints(self._seen), [END], 2), reward_parts={"right": reward})

    def transcript(self) -> Sequence[Message]:
        return [Message("user", str(self._symbol))]

    async def close(self) -> None: ...


def is_right(symbol: int, tokens: Sequence[int]) -> float:
    return float(tokens[0] == symbol)


def symbol_of(index: int) -> int:
    """What problem ``index`` shows: all symbols, again and again, in another order each time."""
    return int(generator(0, "echo", index // NUM_SYMBOLS).permutation(NUM_SYMBOLS)[index % NUM_SYMBOLS])


@dataclass
class Echoes:
    """Problems of that kind without end."""

    judge: Callable[[int, Sequence[int]], float] = is_right
    num_turns: int = 1
    played: list[int] = field(default_factory=list)
    num_train: int | None = None
    held_out: Sequence[EnvGroupBuilder] = ()

    def train(self, index: int) -> Problem:
        self.played.append(index)
        symbol = symbol_of(index)
        tag = "low" if symbol < NUM_SYMBOLS // 2 else "high"
        return Problem(f"echo {index}", lambda: Echo(symbol, self.judge, self.num_turns), (tag,))


def make_model(folder: Path) -> Path:
    if not folder.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            LlamaForCausalLM(MODEL).save_pretrained(folder)
    return folder


def config_of(fields: Mapping[str, Any]) -> RLConfig:
    sections: dict[str, Any] = {
        "rollout": {"max_tokens": 2},
        "peft": {"use_peft": False},
        "train": {
            "learning_rate": 0.02,
            "max_steps": 40,
            "groups_per_batch": 8,
            "num_generations": 16,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
        },
        "eval": {"eval_steps": 0, "metric_for_best_model": "reward/mean"},
        "checkpoint": {"save_steps": 5, "save_minutes": 0.0},
        "algorithm": {"advantage": "group_normalised"},
        "schedule": {},
        "seed": 1,
    }
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        (sections[section] if section else sections)[name] = value
    return RLConfig.model_validate(sections)


@dataclass
class Trial:
    """One start of a run in ``run_dir``."""

    model: Path
    run_dir: Path
    fields: Mapping[str, Any] = field(default_factory=dict)
    problems: Echoes = field(default_factory=Echoes)
    on_step: Callable[[int], None] = lambda step: None
    shown: list[Any] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    wrap: Callable[[LocalBackend], Any] = lambda client: client

    def run(self) -> TrainingResult:
        return asyncio.run(self.train())

    async def train(self) -> TrainingResult:
        config = config_of(self.fields)
        peft = config.peft
        lora = Lora(peft.lora_r, peft.lora_alpha, peft.lora_dropout, "all-linear") if peft.use_peft else None
        settings = EngineSettings(Hardware("cpu", "float32", 1), self.run_dir / "checkpoints", seed=config.seed)
        client = LocalBackend(self.model, None, settings, lora)  # type: ignore[arg-type]
        run = TrainingRun(self.run_dir, client, _Watcher(self.on_step), config.checkpoint, self.reports.append)

        async def evaluate(step: int) -> Mapping[str, float]:
            return {}

        async def reference(datums: Sequence[Datum]) -> Sequence[np.ndarray]:
            return (await client.forward(datums, CrossEntropy(), with_adapter=False)).logprobs_D

        around = Surroundings(
            evaluate,
            reference,
            on_failure=lambda problem, error: self.failures.append(f"{problem}: {error}"),
            show=lambda step, groups: self.shown.append((step, groups)),
        )
        try:
            result = await train(config, self.wrap(client), self.problems, around, run, {})
            run.metrics.finish("done")
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


class Told:
    """A client that tells of every call before it is made; its sampler too."""

    def __init__(self, client: LocalBackend, tell: Callable[[str], None]) -> None:
        self._client, self._tell = client, tell

    def sampling_client(self) -> "Told":
        return self

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in ("sample", "forward", "forward_backward", "optim_step"):
            return method

        async def told(*args: Any, **kwargs: Any) -> Any:
            self._tell(name)
            return await method(*args, **kwargs)

        return told
