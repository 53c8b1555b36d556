"""What is loaded with what: a script that only needs a name does not pay for torch or Prefect."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("crucible_train", "torch prefect transformers numpy pyarrow datasets"),
        ("crucible_train.recipes.sft", "torch prefect transformers datasets"),
        ("crucible_train.wiring", "torch prefect transformers datasets"),
        ("crucible_train.renderers", "torch prefect transformers datasets"),
        ("crucible_train.stages.preflight", "torch prefect transformers datasets"),
        ("crucible_train.stages.train", "torch prefect transformers datasets"),
        ("flows.command", "torch prefect transformers numpy"),
    ],
)
def test_importing_loads_no(module: str, absent: str) -> None:
    script = f"import sys, {module}; print(*(name for name in {absent.split()} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
