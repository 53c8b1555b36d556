"""The environment of the peers. They are never a dependency of ours: benchmarks run them in a Python of their own."""

import subprocess
import sys
from pathlib import Path

from benchmarks.record import ROOT

DEFAULT = ROOT / ".venv-peers" / "bin" / "python"
PACKAGES = ("torch==2.13.0", "transformers==5.23.0", "trl==1.16.0", "peft==0.21.2")
_MAKE = f"""\
  python3.11 -m venv {DEFAULT.parents[1].name}
  {DEFAULT.parents[1].name}/bin/pip install {" ".join(PACKAGES)}"""


def find(python: Path) -> Path:
    """The peers' interpreter.

    Raises:
        SystemExit: there is none, or it lacks TRL; the text says how to make it.
    """
    if not python.is_file():
        sys.exit(f"{python}: no Python of the peers there. Make one with\n{_MAKE}")
    found = subprocess.run([python, "-c", "import trl, peft"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        sys.exit(f"{python} lacks TRL or peft. Make an environment with\n{_MAKE}")
    return python
