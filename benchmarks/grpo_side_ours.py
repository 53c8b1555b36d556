"""Our side of the GRPO speed benchmark: the recipe over the local engine.

Options: ``precision``; ``answers``, a file with answers (prompt's place, ids) that are trained on instead of sampling.
"""

import asyncio
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.grpo_side import Stopwatch, arguments
from benchmarks.grpo_workload import Workload, reward
from crucible_train import wiring
from crucible_train.loop.run import TrainingRun
from crucible_train.ports import RunInfo, TrainingClient
from crucible_train.recipes.rl import RLConfig, train
from crucible_train.rl.environment import EnvGroupBuilder, StepResult, StopReason, Turn
from crucible_train.rl.problem_set import Problem
from crucible_train.rl.update import Surroundings
from crucible_train.types import Hardware, Message, ModelInput, SamplingParams, TokensWithLogprobs


class OneAnswer:
    """An episode of one answer."""

    def __init__(self, prompt: Sequence[int], end_ids: Sequence[int]) -> None:
        self._turn = Turn(ModelInput.from_ints(prompt), end_ids)

    async def initial_turn(self) -> Turn:
        return self._turn

    async def step(self, action: TokensWithLogprobs) -> StepResult:
        return StepResult(reward(action.tokens), reason=StopReason.COMPLETED)

    def transcript(self) -> Sequence[Message]:
        return []

    async def close(self) -> None: ...


class Prompts:
    """The problems, in the order of the workload."""

    num_train = None
    held_out: Sequence[EnvGroupBuilder] = ()

    def __init__(self, workload: Workload, end_ids: Sequence[int]) -> None:
        self._prompts, self._end_ids = workload.prompts, end_ids

    def train(self, index: int) -> Problem:
        return Problem(f"prompt {index}", lambda: OneAnswer(self._prompts[index], self._end_ids))


class Watch:
    """A logger that keeps the time."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()

    def start(self, run: RunInfo) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if not step:
            self.stopwatch = Stopwatch()
            return
        self.stopwatch.step_ended(
            loss=metrics["train/loss"],
            grad_norm=metrics["optim/grad_norm"],
            num_tokens=metrics["sample/num_tokens"],
            reward=metrics["reward/mean"],
            kl_v1=metrics["train/kl_v1"],
        )

    def log_text(self, name: str, text: str, step: int) -> None: ...

    def finish(self, status: str) -> None: ...

    def span(self, name: str, track: str) -> AbstractContextManager[None]:
        return self.stopwatch.sampling() if (name, track) == ("sample", "training") else nullcontext()


class Given:
    """The engine, but for its answers, which are given."""

    def __init__(self, client: TrainingClient, workload: Workload, path: Path) -> None:
        self._client = client
        self._left: dict[tuple[int, ...], Iterator[list[int]]] = {}
        answers = defaultdict(list)
        for place, tokens in json.loads(path.read_text(encoding="utf-8")):
            answers[tuple(workload.prompts[place])].append(tokens)
        self._left = {prompt: iter(found) for prompt, found in answers.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sampling_client(self) -> "Given":
        return self

    async def sample(self, prompt: ModelInput, num: int, _params: SamplingParams) -> Sequence[TokensWithLogprobs]:
        ids = prompt.to_ints()
        written = [next(self._left[tuple(ids)]) for _ in range(num)]
        scores = [
            await self._client.sampling_client().compute_logprobs(prompt.append_ints(tokens)) for tokens in written
        ]
        return [
            TokensWithLogprobs(tuple(tokens), tuple(found[len(ids) :]), "stop")
            for tokens, found in zip(written, scores, strict=True)
        ]


def config_of(workload: Workload) -> RLConfig:
    """TRL's defaults in our words: mean over tokens, advantages over the group's deviation, ratios to the sampler."""
    return RLConfig.model_validate(
        {
            "peft": {"use_peft": False},
            "rollout": {"max_tokens": workload.max_tokens, "temperature": 1.0, "on_error": "fail_fast"},
            "algorithm": {"advantage": "group_normalised", "remove_constant_groups": False},
            "train": {
                "learning_rate": workload.learning_rate,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "max_steps": len(workload.steps),
                "groups_per_batch": workload.groups_a_step,
                "num_generations": workload.group_size,
            },
            "eval": {"eval_steps": 0, "metric_for_best_model": "reward/mean"},
            "checkpoint": {"save_steps": 0, "save_minutes": 0.0},
            "seed": workload.seed,
        }
    )


async def main() -> None:
    workload, options = arguments()
    config = config_of(workload)
    end_ids = json.loads((Path(workload.model) / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    watch = Watch()

    async def evaluate(_step: int) -> Mapping[str, float]:
        return {}

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        client = wiring.training_client(
            Path(workload.model),
            config.peft,
            config.engine,
            Hardware("cpu", options["precision"], workload.num_threads),
            run_dir / "checkpoints",
            name="benchmark",
            seed=workload.seed,
        )
        trained: Any = Given(client, workload, Path(options["answers"])) if "answers" in options else client
        run = TrainingRun(run_dir, client, watch, config.checkpoint, lambda _line: None)  # type: ignore[arg-type]
        problems = Prompts(workload, [end_ids] if isinstance(end_ids, int) else end_ids)
        await train(config, trained, problems, Surroundings(evaluate, span=watch.span), run, {})
        run.metrics.finish("done")
        await client.close()
    watch.stopwatch.report()


if __name__ == "__main__":
    asyncio.run(main())
