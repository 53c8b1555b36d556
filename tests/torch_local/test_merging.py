"""A merged model predicts what its base with the adapter does."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train.adapters.torch_local.merging import merge_adapter
from crucible_train.errors import ModelError
from crucible_train.types import AdamParams, CrossEntropy


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_merged_model_predicts_what_base_and_adapter_do(
    engine: Any, datum: Any, model_folder: Any, tmp_path: Path, name: str
) -> None:
    draw = np.random.default_rng(0)
    datums = [datum(draw.integers(0, 61, 12)) for _ in range(4)]
    tuned = engine(name, rank=3)

    async def train() -> Any:
        for _ in range(3):
            await tuned.forward_backward(datums, CrossEntropy())
            await tuned.optim_step(AdamParams(learning_rate=0.05))
        state = await tuned.save_state("trained", with_optimizer=False)
        return Path(state.uri), (await tuned.forward(datums, CrossEntropy())).logprobs_D

    state, expected = asyncio.run(train())
    merge_adapter(model_folder(name), state, tmp_path / "merged")
    merged = engine(name, folder=tmp_path / "merged")
    found = asyncio.run(merged.forward(datums, CrossEntropy())).logprobs_D
    plain = asyncio.run(engine(name).forward(datums, CrossEntropy())).logprobs_D
    for x, y, z in zip(found, expected, plain, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
        assert np.abs(y - z).max() > 1e-2


def test_a_folder_without_an_adapter_is_named(model_folder: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not be merged"):
        merge_adapter(model_folder("llama"), tmp_path, tmp_path / "merged")
