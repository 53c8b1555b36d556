"""What is loaded with what: a script that only needs a name does not pay for torch or Prefect."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flows import start
from flows.command import PROGRAMS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("crucible_train", "torch prefect transformers numpy pyarrow datasets"),
        ("crucible_train.recipes.sft", "torch prefect transformers datasets"),
        ("crucible_train.wiring", "torch prefect transformers datasets"),
        ("crucible_train.renderers", "torch prefect transformers datasets"),
        ("crucible_train.stages.sft_preflight", "torch prefect transformers datasets"),
        ("crucible_train.stages.rl.preflight", "torch prefect transformers datasets"),
        ("crucible_train.recipes.dpo", "torch prefect transformers datasets"),
        ("crucible_train.stages.dpo.preflight", "torch prefect transformers datasets"),
        ("crucible_train.stages.train", "torch prefect transformers datasets"),
        ("flows.command", "torch prefect transformers numpy"),
        ("flows.start", "rich pydantic yaml"),
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


def test_a_python_without_the_packages_is_told_so_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "flows.sft", "seed=1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: this Python ({sys.executable}) lacks the package torch and ")
    assert "source .venv/bin/activate" in line
    assert "make sft" in line


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "OLDEST", (3, 99))
    assert re.search(r"is 3\.\d+, and 3\.99 or later is needed; ", start.what_is_missing())


def test_a_python_that_has_everything_lacks_nothing() -> None:
    assert start.what_is_missing() == ""


def test_every_package_that_is_asked_for_is_looked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w-]+", requirement).group() for requirement in project["dependencies"]]
    assert list(start.PACKAGES) == [{"pyyaml": "yaml"}.get(name, name) for name in names]
    assert project["scripts"] == {f"crucible-{flow}": f"flows.start:{flow}" for flow in PROGRAMS}
