"""Runs probes in one set-up, as the user it is started as, and prints what escaped as JSON.

    python tests/sandbox/host.py SETUP [PROBE ...]

``bare`` has no walls: there the probes named must escape, or they prove nothing elsewhere.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import probes_reach
import probes_resources
import probes_results
from world import World

from crucible_train.sandbox import Sandbox, probing
from crucible_train.sandbox.layers import Layers, installed

PROBES = probes_reach.PROBES | probes_resources.PROBES | probes_results.PROBES


def sandbox(setup: str) -> Sandbox:
    if setup in ("never", "always"):
        return Sandbox(namespaces=setup, concurrency=4)
    there = installed()
    fewer = {
        "bare": Layers(None, 0, False, False, {"landlock": "left out", "bwrap": "left out", "seccomp": "left out"}),
        "always without Landlock": there.without("landlock", "left out"),
        "never with Landlock 1": Layers(None, 1, there.seccomp, there.own_uid, {}),
    }[setup]
    with mock.patch.object(probing, "installed", return_value=fewer):
        namespaces = "always" if setup.startswith("always") else "never"
        return Sandbox(namespaces=namespaces, allow_unsandboxed=setup == "bare", concurrency=4)


async def _one(number: int, setup: str) -> list[str]:
    world = World(sandbox(setup))
    with world.stack, world.sandbox:
        return await PROBES[number](world)


def main() -> None:
    setup, *chosen = sys.argv[1:]
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a busy disk takes seconds for a flood
    own = tempfile.tempdir = tempfile.mkdtemp(prefix="sandbox-probes-", dir=in_memory)
    Path(own).chmod(0o755)
    try:
        numbers = [int(number) for number in chosen] or sorted(PROBES)
        escapes = {number: asyncio.run(_one(number, setup)) for number in numbers}
        layers = sandbox(setup).layers
        print(
            json.dumps({"layers": str(layers), "escapes": escapes, "left": [path.name for path in Path(own).iterdir()]})
        )
    finally:
        shutil.rmtree(own)


if __name__ == "__main__":
    main()
