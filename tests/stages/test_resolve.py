"""A stage is run when its artifact is not there, or not sound, and by one process at a time."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crucible_train import wiring
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import base
from crucible_train.stages.base import EXTERNAL, Outcome, Stage, in_thread, open_artifact, peek, resolve
from crucible_train.types import ArtifactRef

ROOT = Path(__file__).parents[2]


class Count(Stage[SFTConfig]):
    """Writes how often it has run."""

    name = "count"
    reads = ("seed",)
    times: ClassVar[int] = 0

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        assert list(folder.iterdir()) == []
        type(self).times += 1
        (folder / "number.txt").write_text(f"{self.config.seed}\n")
        (folder / "inner").mkdir()
        (folder / "inner" / "inputs.txt").write_text(" ".join(["given:", *(p.read_text() for p in inputs.values())]))


@pytest.fixture(autouse=True)
def _stage_of_a_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Count, "times", 0)
    monkeypatch.setattr(base, "source_digest", lambda code: "0")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def made(cache: Path) -> Callable[..., Outcome]:
    return lambda seed=0, **inputs: asyncio.run(resolve(Count(SFTConfig(seed=seed)), inputs, str(cache)))


def _blobs(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "cas").rglob("*") if path.is_file())


def test_what_was_made_is_found(made: Callable[..., Outcome], cache: Path) -> None:
    first, second = made(), made()
    assert (first.is_cached, second.is_cached) == (False, True)
    assert first.ref == second.ref
    assert Count.times == 1
    folder = open_artifact(wiring.blob_store(str(cache)), second.ref)
    assert (folder / "number.txt").read_text() == "0\n"


def test_another_value_of_a_read_field_is_made(made: Callable[..., Outcome]) -> None:
    assert made(1).ref != made(2).ref
    assert Count.times == 2


def test_an_input_is_handed_over_as_a_path(made: Callable[..., Outcome], cache: Path, tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("what is given")
    ref = wiring.blob_store(str(cache)).put(tmp_path / "given.txt", "text")
    outside = ArtifactRef(uri=str(tmp_path / "given.txt"), sha256="2" * 64, kind=EXTERNAL, size=1)
    for given in (ref, outside):
        folder = open_artifact(wiring.blob_store(str(cache)), made(given=given).ref)
        assert (folder / "inner" / "inputs.txt").read_text() == "given: what is given"


def _delete(path: Path) -> None:
    path.unlink()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [_delete, _flip, _cut])
@pytest.mark.parametrize("which", range(3))
def test_harm_to_any_stored_file_is_noticed_and_mended(
    made: Callable[..., Outcome], cache: Path, capsys: pytest.CaptureFixture[str], harm: Any, which: int
) -> None:
    first = made()
    whole = {path: path.read_bytes() for path in _blobs(cache)}
    harm(list(whole)[which])
    again = made()
    assert again == Outcome(first.ref, is_cached=False)
    assert Count.times == 2
    assert {path: path.read_bytes() for path in _blobs(cache)} == whole
    assert made().is_cached


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"artifact": {}}', '{"artifact": 5}'])
def test_a_manifest_that_means_nothing_is_made_again(made: Callable[..., Outcome], cache: Path, text: str) -> None:
    made()
    (manifest,) = (cache / "manifests" / "count").iterdir()
    manifest.write_text(text)
    assert not made().is_cached
    assert made().is_cached


def test_a_manifest_tells_what_made_the_artifact(made: Callable[..., Outcome], cache: Path) -> None:
    made(7)
    (manifest,) = (cache / "manifests" / "count").iterdir()
    record = json.loads(manifest.read_text())
    assert record["identity"]["config"] == {"seed": 7}
    assert record["seconds"] >= 0


def test_peek_makes_nothing(made: Callable[..., Outcome], cache: Path) -> None:
    stage = Count(SFTConfig())
    assert peek(stage, {}, str(cache)) is None
    ref = made().ref
    assert peek(stage, {}, str(cache)) == ref
    assert Count.times == 1


class Fail(Stage[SFTConfig]):
    """Fails in the middle."""

    name = "fail"

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("no")


def test_a_stage_that_fails_leaves_no_artifact_and_no_files(cache: Path) -> None:
    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(resolve(Fail(SFTConfig()), {}, str(cache)))
    assert not list(cache.rglob("*.json"))
    assert not [path for path in (wiring.local_cache() / "work").rglob("*") if path.is_file()]


def test_what_a_killed_process_left_of_the_same_work_goes(made: Callable[..., Outcome], cache: Path) -> None:
    key = Count(SFTConfig()).key({})
    left = wiring.local_cache() / "work" / f"count-{key}" / "of-a-killed-process"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    made()
    assert not left.exists()


CLAIM = """
import asyncio, sys, time
from pathlib import Path
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import base

base.source_digest = lambda code: "0"

class Slow(base.Stage[SFTConfig]):
    name = "slow"
    async def run(self, inputs, folder):
        with open("runs.txt", "a") as file:
            file.write("run\\n")
        await asyncio.sleep(0.5)
        (folder / "a.txt").write_text("a")

async def main():
    return await base.resolve(Slow(SFTConfig()), {}, "cache")

print(asyncio.run(main()).is_cached)
"""


def test_two_processes_do_the_work_once_and_one_says_that_it_waits(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=60)[0].splitlines()[-1] for process in processes)
    assert said == ["False", "True"]
    assert (tmp_path / "runs.txt").read_text() == "run\n"


def test_waiting_for_another_process_can_be_cancelled(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def both() -> None:
        stage = Count(SFTConfig())
        async with base._alone(f"count/{stage.key({})}"):
            await asyncio.wait_for(resolve(stage, {}, str(cache)), timeout=0.3)

    with pytest.raises(TimeoutError):
        asyncio.run(both())
    assert Count.times == 0


def test_work_in_a_thread_gives_its_result_or_its_error() -> None:
    assert asyncio.run(in_thread(pow, 2, 5)) == 32
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(in_thread(int, "x"))


def test_work_in_a_thread_does_not_hold_up_a_request_to_stop() -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(60)
        has_ended.set()

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(in_thread(work), timeout=0.05))
    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(60)
