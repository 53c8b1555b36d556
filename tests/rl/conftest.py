"""A policy that answers by a rule, and what is shared by the tests of environments."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train import checkpoints
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.renderers import FastTokenizer, Renderer, get_renderer
from crucible_train.rl.environment import Trajectory, TrajectoryGroup
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.rl.rollouts import rollout, rollout_group
from crucible_train.types import (
    Datum,
    Hardware,
    ImportanceSampling,
    Loss,
    ModelInput,
    SamplingParams,
    TokensWithLogprobs,
)
from tests.rl import toy

ROOT = Path(__file__).parents[2]
TOKENIZERS = {
    "smollm2": ROOT / "crucible_train" / "assets" / "smollm2",
    "qwen3": ROOT / "tests" / "golden" / "tokenizers" / "qwen3",
}


@pytest.fixture(scope="session")
def smollm2() -> Renderer:
    return get_renderer("smollm2", FastTokenizer.from_folder(TOKENIZERS["smollm2"]))


@pytest.fixture(scope="session")
def qwen3_tokenizer() -> FastTokenizer:
    return FastTokenizer.from_folder(TOKENIZERS["qwen3"])


class Scripted:
    """Answers each prompt's text by a rule, ends with the stop, and keeps what it was asked.

    An answer may be text, in which control tokens are written by their names, or ids.
    """

    def __init__(self, renderer: Renderer, rule: Callable[[str], str | Sequence[int]]) -> None:
        self.asked: list[tuple[str, SamplingParams]] = []
        self.prompts: list[ModelInput] = []
        self._renderer, self._rule = renderer, rule

    async def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> Any:
        text = self._renderer.tokenizer.decode(prompt.to_ints())
        self.asked.append((text, params))
        self.prompts.append(prompt)
        await asyncio.sleep(0)
        said = self._rule(text)
        ids = self.encode(said) if isinstance(said, str) else list(said)
        ids += params.stop_token_ids[:1]
        reason = "stop" if len(ids) <= params.max_tokens else "length"
        ids = ids[: params.max_tokens]
        return [TokensWithLogprobs(tuple(ids), tuple(-1.0 for _ in ids), reason)] * num_samples

    def encode(self, text: str) -> list[int]:
        controls = self._renderer.tokenizer.control_tokens
        ids: list[int] = []
        while text:
            found = (
                min((text.find(name), name) for name in controls if name in text)
                if any(name in text for name in controls)
                else (len(text), "")
            )
            place, name = found
            ids += [int(one) for one in self._renderer.tokenizer.encode(text[:place])] if place else []
            ids += [controls[name]] if name else []
            text = text[place + len(name) :]
        return ids

    async def compute_logprobs(self, model_input: ModelInput) -> Sequence[float | None]:
        return [None] + [-1.0] * (model_input.length - 1)


@pytest.fixture
def scripted() -> Callable[..., Scripted]:
    return Scripted


def play(env: Any, client: Any, seed: int = 0, policy_step: Callable[[], int] = lambda: 0, **limits: Any) -> Trajectory:
    """One episode, of which nothing may fail."""
    config = RolloutConfig(**{"on_error": "fail_fast"} | limits)
    return asyncio.run(rollout(env, client, config, seed, policy_step))


def play_group(
    builder: Any, client: Any, size: int = 4, seed: int = 0, on_failure: Any = None, **limits: Any
) -> TrajectoryGroup | None:
    config = RolloutConfig(**limits)
    return asyncio.run(rollout_group(builder, size, client, config, seed, lambda: 0, on_failure=on_failure))


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of ``toy``. Not to be written to."""
    return toy.make_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture
def trial(toy_model: Path, tmp_path: Path) -> Callable[..., toy.Trial]:
    """One start of the run in the test's folder; fields of the configuration by their paths."""

    def make(fields: dict[str, Any] | None = None, name: str = "run", **hooks: Any) -> toy.Trial:
        return toy.Trial(toy_model, tmp_path / name, fields or {}, **hooks)

    return make


@pytest.fixture(scope="session")
def engine(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBackend]:
    """The toy's engine, all of whose weights are trained. No optimizer step is to be taken on it."""
    settings = EngineSettings(Hardware("cpu", "float32", 1), tmp_path_factory.mktemp("states"))
    client = LocalBackend(toy_model, None, settings, None)  # type: ignore[arg-type]
    yield client
    asyncio.run(client.close())


@pytest.fixture
def gradient_of(engine: LocalBackend) -> Iterator[Callable[..., tuple[float, np.ndarray]]]:
    """The loss of datums, and the gradient of all weights; at most so many tokens at once."""
    settings = engine._settings

    def find(datums: Sequence[Datum], loss: Loss = ImportanceSampling(), max_tokens: int = 0) -> Any:
        engine._settings = replace(settings, micro_batch_tokens=max_tokens)
        output = asyncio.run(engine.forward_backward(datums, loss))
        found = np.concatenate([parameter.grad.numpy().ravel().copy() for _, parameter in engine._parameters])
        engine._clear_gradients()
        return output.loss, found

    yield find
    engine._settings = settings


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def outcome_of(run_dir: Path) -> dict[str, Any]:
    """What two runs must have in common: metrics, the last checkpoint's weights and optimizer."""
    folder = checkpoints.CheckpointFolder(run_dir)
    last = folder.path / checkpoints.checkpoint_name(folder.steps()[-1])
    checkpoints.verify(last)
    assert not list(run_dir.rglob(".tmp-*"))
    kept = json.loads((last / checkpoints.MANIFEST).read_text())["files"]
    weights = {name: entry for name, entry in kept.items() if name.endswith(".safetensors")}
    return {"step": folder.steps()[-1], "metrics": (run_dir / "metrics.jsonl").read_bytes(), "weights": weights}
