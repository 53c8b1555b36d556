"""The tiny student, its teachers, and one thread."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import classroom


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def student_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classroom.make_model(tmp_path_factory.mktemp("models") / "student", 0)


@pytest.fixture(scope="session")
def teacher_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A teacher with strong opinions. It is never trained."""
    folder = tmp_path_factory.mktemp("models")
    client = classroom.engine(classroom.make_model(folder / "teacher", 1, 12.0), folder / "states", 1)
    yield client.sampling_client(with_adapter=False)
    asyncio.run(client.close())


@pytest.fixture(scope="session")
def other_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Another one, of other opinions."""
    folder = tmp_path_factory.mktemp("models")
    client = classroom.engine(classroom.make_model(folder / "teacher", 2, 12.0), folder / "states", 1)
    yield client.sampling_client(with_adapter=False)
    asyncio.run(client.close())


@pytest.fixture
def trial(student_model: Path, tmp_path: Path) -> Callable[..., classroom.Trial]:
    def make(teach: Any, fields: dict[str, Any] | None = None, name: str = "run", **more: Any) -> classroom.Trial:
        return classroom.Trial(student_model, tmp_path / name, teach, fields or {}, **more)

    return make
