"""A trained adapter becomes a whole model, and a reward model stays one."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train import files, wiring
from crucible_train.config.sections import EngineConfig, PeftConfig
from crucible_train.judges import SCALAR_HEAD
from crucible_train.recipes.sft import SFTConfig
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.stages.merge import Merge
from crucible_train.stages.publishing import ADAPTER, MODEL
from crucible_train.types import AdamParams, BradleyTerry, Datum, Hardware, ModelInput

SEQUENCES = [ModelInput.from_ints([1, 2, 3, token]) for token in (4, 5, 6)]
PAIRS = [Datum(sequence, {}) for sequence in SEQUENCES[:2]]


def opened(folder: Path, state: Path, peft: PeftConfig, *, is_reward: bool) -> Any:
    make = wiring.reward_model if is_reward else wiring.training_client
    return make(folder, peft, EngineConfig(), Hardware("cpu", "float32", 1), state, name="tiny", seed=0)


def merged(tiny_model: Path, place: Path, state: Path) -> Path:
    """The model made of a saved adapter."""
    trained, package, folder = place / "trained", place / "package", place / "merged"
    for file in state.iterdir():
        files.copy_file(file, trained / ADAPTER / file.name)
    files.write_json(package / MODEL / RECORD_FILE, {})
    folder.mkdir()
    asyncio.run(Merge(SFTConfig()).run({"model": tiny_model, "trained": trained, "package": package}, folder))
    return folder


def test_a_reward_model_keeps_its_head(tiny_model: Path, tmp_path: Path) -> None:
    """The merged model, opened as a reward model, says what base, adapter and head did."""

    async def train() -> tuple[Path, list[float], list[float]]:
        model = opened(tiny_model, tmp_path / "state", PeftConfig(), is_reward=True)
        first = await model.compute_rewards(SEQUENCES)
        for _ in range(3):
            await model.forward_backward(PAIRS, BradleyTerry())
            await model.optim_step(AdamParams(learning_rate=0.05))
        state = Path((await model.save_state("s", with_optimizer=False)).uri)
        rewards = await model.compute_rewards(SEQUENCES)
        await model.close()
        return state, first, rewards

    state, first, expected = asyncio.run(train())
    folder = merged(tiny_model, tmp_path, state)
    assert (folder / SCALAR_HEAD).read_bytes() == (state / SCALAR_HEAD).read_bytes()

    async def judge() -> list[float]:
        model = opened(folder, tmp_path / "again", PeftConfig(use_peft=False), is_reward=True)
        rewards: list[float] = await model.compute_rewards(SEQUENCES)
        await model.close()
        return rewards

    assert asyncio.run(judge()) == pytest.approx(expected, abs=1e-4)
    assert np.abs(np.subtract(first, expected)).max() > 1e-2


def test_a_language_model_gets_no_head(tiny_model: Path, tmp_path: Path) -> None:
    async def save() -> Path:
        model = opened(tiny_model, tmp_path / "state", PeftConfig(), is_reward=False)
        state = Path((await model.save_state("s", with_optimizer=False)).uri)
        await model.close()
        return state

    assert not (merged(tiny_model, tmp_path, asyncio.run(save())) / SCALAR_HEAD).exists()
