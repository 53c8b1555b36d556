"""Rules of the house that a reviewer would otherwise have to remember."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible_train.config.base import Section
from crucible_train.config.fields import tree_of
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.recipes.rl import RLConfig
from crucible_train.recipes.sft import SFTConfig

ROOT = Path(__file__).parents[2]
PACKAGES = ("crucible_train", "tasks", "flows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# these write into folders that files.py then makes durable
WRITERS = {
    "crucible_train/files.py",
    "crucible_train/adapters/torch_local/state.py",
    "crucible_train/adapters/torch_local/conversion.py",
    "crucible_train/sandbox/inside/launcher.py",  # into a folder that lives as long as the process
}
PICKLES = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})
VAGUE = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
MAX_LINES = 400
CONFIGURATIONS: tuple[type[Section], ...] = (SFTConfig, RLConfig, DPOConfig)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _calls(path: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call: the node, what it is called on, and the name that is called."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node, ast.unparse(node.func.value), node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node, "", node.func.id


def _opens_for_writing(call: ast.Call, on: str) -> bool:
    """Whether a mode that writes is given, or one that is not written out."""
    placed = call.args[1:2] if on in ("", "io", "gzip") else call.args
    given = [*placed, *(keyword.value for keyword in call.keywords)]
    texts = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    is_hidden = any(k.arg == "mode" and not isinstance(k.value, ast.Constant) for k in call.keywords) or (
        on == "" and len(call.args) > 1 and not isinstance(call.args[1], ast.Constant)
    )
    return is_hidden or any(re.fullmatch("[rwxabt+]+", text) and set(text) & set("wxa+") for text in texts)


def _writes(path: Path) -> list[str]:
    found = []
    for call, on, name in _calls(path):
        is_array = on in ("torch", "np", "numpy", "safetensors.torch") and name in ("save", "savez", "save_file")
        is_text = name in ("write_text", "write_bytes") and on != "files"
        if is_array or is_text or name in ("touch", "tofile") or (on, name) == ("json", "dump"):
            found.append(f"line {call.lineno}: {name}")
        elif name == "open" and _opens_for_writing(call, on):
            found.append(f"line {call.lineno}: open")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_only_files_py_writes_files(path: Path) -> None:
    if _name(path) not in WRITERS:
        assert _writes(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='r+')",
        "open(path, mode)",
        "filesystem.open(path, 'wb')",
        "path.write_text('')",
        "np.save(path, x)",
        "json.dump(x, f)",
    ],
)
def test_a_write_is_seen(line: str, tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text(line)
    assert _writes(tmp_path / "source.py")


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_is_unpickled(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.partition(".")[0] for name in names} & PICKLES
    for call, on, name in _calls(path):
        if (on, name) == ("torch", "load"):
            assert any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)
        assert not (name == "load" and any(keyword.arg == "allow_pickle" for keyword in call.keywords))
        trust = [keyword.value for keyword in call.keywords if keyword.arg == "trust_remote_code"]
        assert all(getattr(value, "value", None) is False for value in trust)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_file_is_named_for_what_it_holds_and_can_be_read_in_one_go(path: Path) -> None:
    assert not set(Path(_name(path)).with_suffix("").parts) & VAGUE
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("config_type", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_every_field_of_the_configuration_is_described_and_read(config_type: type[Section]) -> None:
    """Read somewhere outside the configuration itself, as an attribute."""
    read = {
        node.attr
        for path in SOURCES
        if "crucible_train/config" not in _name(path)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute)
    }
    leaves = tree_of(config_type).leaves.values()
    assert {leaf.name for leaf in leaves} - read == set()
    assert [leaf.path for leaf in leaves if not leaf.description] == []


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_the_core_knows_no_orchestrator(path: Path) -> None:
    if not _name(path).startswith("crucible_train/"):
        return
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.partition(".")[0] for name in names} & {"prefect", "tasks", "flows"}
