"""The recipe on a tiny model: it learns what is preferred, and a run that was stopped ends as if it had not been."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from crucible_train import wiring
from crucible_train.adapters.torch_local.backend import EngineSettings, LocalBackend
from crucible_train.adapters.torch_local.loading import Lora
from crucible_train.adapters.torch_local.reward_backend import RewardBackend
from crucible_train.data.preference_tables import RenderedPreference, Side
from crucible_train.errors import ConfigError
from crucible_train.judges import SCALAR_HEAD
from crucible_train.loop.run import TrainingRun
from crucible_train.loop.training import TrainingResult
from crucible_train.preference.measuring import PreferenceSet, measure, preference_metrics
from crucible_train.preference.reference import computed
from crucible_train.recipes.dpo import DPOConfig, peak_rate, train
from crucible_train.types import Hardware
from tests.conftest import ROOT

VOCAB = 64
ALL = ("sigmoid", "ipo", "kto", "orpo", "simpo", "bradley_terry")


def pairs(num: int, seed: int, *, is_lone: bool = False) -> list[RenderedPreference]:
    """After any prompt eight tokens are preferred to eight others."""
    draw = np.random.default_rng(seed)

    def side(prompt: np.ndarray, first: int) -> Side:
        completion = draw.integers(first, first + 8, int(draw.integers(3, 7)))
        tokens = np.concatenate([prompt, completion]).astype(np.int32)
        weights = np.ones(tokens.size, np.float32)
        weights[: prompt.size] = 0
        return Side(tokens, weights)

    found = []
    for row in range(num):
        prompt = draw.integers(1, VOCAB, int(draw.integers(4, 20)))
        chosen, rejected = side(prompt, 1), side(prompt, 9)
        lone = (chosen, None) if row % 2 else (None, rejected)
        found.append(RenderedPreference(*(lone if is_lone else (chosen, rejected)), row))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = LlamaForCausalLM(config)
        for parameter in made.parameters():  # so that an adapter's small changes move what is predicted
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
        made.save_pretrained(folder)
    return folder


class Stopped(Exception):
    """Comes in the middle of a step."""


@dataclass
class Trial:
    """One start of a run."""

    model: Path
    run_dir: Path
    fields: Mapping[str, Any]
    train_on: list[RenderedPreference] = field(default_factory=lambda: pairs(48, 0))
    held_out: list[RenderedPreference] = field(default_factory=lambda: pairs(40, 1))
    stop_after: int | None = None
    is_killed: bool = False
    evaluations: dict[int, Mapping[str, float]] = field(default_factory=dict)
    reports: list[str] = field(default_factory=list)

    def run(self) -> TrainingResult:
        return asyncio.run(self._run())

    def config(self) -> DPOConfig:
        sections: dict[str, Any] = {
            "preference": {},
            "peft": {"lora_r": 8, "lora_alpha": 32.0},
            "train": {"learning_rate": 0.02, "max_steps": 24, "per_device_train_batch_size": 8},
            "eval": {"eval_steps": 12},
            "checkpoint": {"save_steps": 4, "save_minutes": 0.0},
            "seed": 1,
        }
        for path, value in self.fields.items():
            section, name = path.split(".")
            sections[section][name] = value
        return DPOConfig.model_validate(sections)

    def client(self, config: DPOConfig, folder: Path) -> LocalBackend:
        lora = Lora(config.peft.lora_r, config.peft.lora_alpha, 0.0, "all-linear") if config.peft.use_peft else None
        settings = EngineSettings(Hardware("cpu", "float32", 1), folder, 128, seed=config.seed)
        made = RewardBackend if config.preference.is_reward_model else LocalBackend
        return made(self.model, None, settings, lora)  # type: ignore[arg-type]

    async def reference(self, config: DPOConfig, preferences: list[RenderedPreference]) -> PreferenceSet:
        if not config.preference.needs_reference:
            return PreferenceSet(preferences, None)
        scorer = self.client(config.model_copy(update={"peft": DPOConfig().peft}), self.run_dir / "unused")
        with_mismatched = config.preference.needs_mismatched
        rows = [row async for row in computed(scorer, preferences, with_mismatched=with_mismatched)]
        await scorer.close()
        return PreferenceSet(preferences, rows)

    async def _run(self) -> TrainingResult:
        config = self.config()
        train_on, held_out = await self.reference(config, self.train_on), await self.reference(config, self.held_out)
        client = self.client(config, self.run_dir / "checkpoints")
        run = TrainingRun(self.run_dir, client, Silent(), config.checkpoint, self.reports.append)  # type: ignore[arg-type]

        if self.stop_after is not None:
            _stop(client, self.stop_after, is_killed=self.is_killed)

        async def evaluate(step: int) -> Mapping[str, float]:
            found = await measure(client, held_out, config.preference.loss(), wiring.losses_by_preference)
            self.evaluations[step] = preference_metrics("eval", found)
            return self.evaluations[step]

        try:
            first = await evaluate(0)
            result = await train(config, client, train_on, evaluate, run, first)
            run.metrics.finish("done")
        finally:
            run.metrics.finish("failed")
            await client.close()
        return result


def _stop(client: LocalBackend, num_steps: int, *, is_killed: bool) -> None:
    """Have the client fail, or the process end, after so many optimizer steps, when the next gradient is there."""
    take, num_taken = client.optim_step, 0

    async def step(adam: Any) -> Any:
        nonlocal num_taken
        if num_taken == num_steps and is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if num_taken == num_steps:
            raise Stopped
        num_taken += 1
        return await take(adam)

    client.optim_step = step  # type: ignore[method-assign]


class Silent:
    """A logger that tells nobody."""

    def start(self, run: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_text(self, name: str, text: str, step: int) -> None: ...

    def finish(self, status: str) -> None: ...


@pytest.fixture
def trial(model: Path, tmp_path: Path) -> Callable[..., Trial]:
    def make(fields: Mapping[str, Any] | None = None, name: str = "run", **more: Any) -> Trial:
        return Trial(model, tmp_path / name, fields or {}, **more)

    return make


@pytest.mark.parametrize("use_peft", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("loss_type", ALL)
def test_held_out_preferences_are_learned(trial: Callable[..., Trial], loss_type: str, use_peft: bool) -> None:
    """Accuracy on pairs of prompts never seen goes from about 0.5 to above 0.9, and the loss falls."""
    one = trial({"preference.loss_type": loss_type, "peft.use_peft": use_peft})
    one.run()
    before, after = one.evaluations[0], one.evaluations[24]
    assert 0.2 < before["eval/accuracy"] < 0.8
    assert after["eval/accuracy"] > 0.9
    assert after["eval/loss"] < before["eval/loss"]
    assert after["eval/margin"] > before["eval/margin"]
    if loss_type in ("sigmoid", "ipo", "kto"):
        assert before["eval/margin"] == pytest.approx(0, abs=1e-4)
        assert after["eval/kl"] > 1e-3


@pytest.mark.parametrize(("use_peft", "bound"), [(True, 0.8), (False, 0.9)], ids=["lora", "full"])
def test_wanted_and_unwanted_completions_alone_are_learned(
    trial: Callable[..., Trial], use_peft: bool, bound: float
) -> None:
    """A small adapter levels off at about 0.9 here, whatever the rate, the steps and beta; all weights do not."""
    lone = {"train_on": pairs(64, 0, is_lone=True), "held_out": pairs(40, 1, is_lone=True)}
    one = trial({"preference.loss_type": "kto", "train.max_steps": 32, "peft.use_peft": use_peft}, **lone)
    one.run()
    assert one.evaluations[0]["eval/accuracy"] == pytest.approx(0.5, abs=0.1)
    assert one.evaluations[32]["eval/chosen_reward"] > one.evaluations[32]["eval/rejected_reward"] + 0.1
    assert one.evaluations[32]["eval/accuracy"] > bound


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "orpo", "simpo", "bradley_terry"])
def test_a_completion_alone_is_refused_where_two_are_compared(trial: Callable[..., Trial], loss_type: str) -> None:
    one = trial({"preference.loss_type": loss_type}, train_on=pairs(8, 0, is_lone=True), held_out=pairs(8, 1))
    with pytest.raises(ConfigError, match=f"{loss_type} compares two completions, and 8 of 8 stand alone; take kto"):
        one.run()


def test_the_first_step_finds_the_reference(trial: Callable[..., Trial], logged: Callable[[Path], Any]) -> None:
    """Before any update the policy is the reference: the loss is ln 2 and every reward 0, but for rounding."""
    one = trial({"train.max_steps": 1})
    one.run()
    first = logged(one.run_dir)[1]
    assert first["train/loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["train/margin"] == pytest.approx(0, abs=1e-5)
    assert first["train/kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "kto", "simpo", "bradley_terry"])
@pytest.mark.parametrize("use_peft", [True, False], ids=["lora", "full"])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    trial: Callable[..., Trial], outcome: Callable[[Path], Any], loss_type: str, use_peft: bool
) -> None:
    """The reference is found anew by the run that goes on, and is the same bit by bit, as are weights and metrics."""
    fields = {"preference.loss_type": loss_type, "peft.use_peft": use_peft, "train.max_steps": 12}
    whole = trial(fields, "whole")
    whole.run()
    stopped = trial(fields, "stopped", stop_after=7)
    with pytest.raises(Stopped):
        stopped.run()
    again = trial(fields, "stopped")
    again.run()
    assert any("goes on from step" in line for line in again.reports)
    assert outcome(again.run_dir) == outcome(whole.run_dir)


@pytest.mark.parametrize("use_peft", [True, False], ids=["lora", "full"])
def test_a_reward_model_whose_training_was_killed_is_the_same(
    trial: Callable[..., Trial], outcome: Callable[[Path], Any], model: Path, use_peft: bool
) -> None:
    """SIGKILL in the eighth step, the last state that of the fourth: head, weights and moments end bit by bit equal."""
    fields = {"preference.loss_type": "bradley_terry", "peft.use_peft": use_peft, "train.max_steps": 12}
    whole = trial(fields, "whole")
    whole.run()
    again = trial(fields, "killed")
    program = (
        "import sys\nfrom pathlib import Path\nfrom tests.recipes.test_dpo import Trial\n"
        f"Trial(Path(sys.argv[1]), Path(sys.argv[2]), {fields!r}, stop_after=7, is_killed=True).run()\n"
    )
    words = [sys.executable, "-c", program, str(model), str(again.run_dir)]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    again.run()
    assert any("goes on from step 4" in line for line in again.reports), again.reports
    assert outcome(again.run_dir) == outcome(whole.run_dir)
    assert SCALAR_HEAD in outcome(again.run_dir)["files"]


def test_the_reference_does_not_depend_on_what_is_trained(trial: Callable[..., Trial]) -> None:
    one = trial()
    found = []
    for _ in range(2):
        made = asyncio.run(one.reference(one.config(), one.train_on))
        assert made.references is not None
        found.append(b"".join(row.chosen.tobytes() + row.rejected.tobytes() for row in made.references))  # type: ignore[union-attr]
    assert found[0] == found[1]


def test_the_default_rate_is_a_tenth_of_the_supervised_one() -> None:
    """2e-4 at 4096 wide for an adapter: 2e-5; a tenth of that for all weights."""
    assert peak_rate(DPOConfig(), 4096) == 2e-5
    assert peak_rate(DPOConfig.model_validate({"peft": {"use_peft": False}}), 4096) == 2e-6
    assert peak_rate(DPOConfig.model_validate({"train": {"learning_rate": 3e-3}}), 4096) == 3e-3
    assert peak_rate(DPOConfig.model_validate({"preference": {"loss_type": "bradley_terry"}}), 4096) == 2e-4


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"label_smoothing": 0.1, "loss_type": "ipo"},
            "label_smoothing: ipo does not read it; remove it, or take sigmoid",
        ),
        ({"simpo_gamma": 0.5}, "simpo_gamma: sigmoid does not read it"),
        ({"desirable_weight": 2.0, "loss_type": "orpo"}, "desirable_weight: orpo does not read it"),
        ({"beta": 0.1, "loss_type": "bradley_terry"}, "beta: bradley_terry does not read it; remove it"),
    ],
)
def test_a_field_that_the_loss_does_not_read_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DPOConfig.model_validate({"preference": fields})
