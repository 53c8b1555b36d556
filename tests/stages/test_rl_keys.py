"""The stages of reinforcement learning: each one's key holds the fields it reads, and no other."""

import ast
import importlib
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import crucible_train
from crucible_train.config.fields import members, tree_of
from crucible_train.errors import CrucibleError
from crucible_train.recipes.rl import RLConfig
from crucible_train.stages.base import Stage
from crucible_train.stages.rl.evaluate import EvaluateRL
from crucible_train.stages.rl.package import PackageRL
from crucible_train.stages.rl.train import TrainRL
from crucible_train.types import ArtifactRef, Hardware

HARDWARE = Hardware("cpu", "float32", 1, "CPU")
CLASSES: tuple[type[Stage[RLConfig]], ...] = (EvaluateRL, TrainRL, PackageRL)
LEAVES = tree_of(RLConfig).leaves
SAMPLING = {f"rollout.{name}" for name in ("temperature", "top_p", "top_k", "min_p")}
OTHER: Mapping[str, Any] = {
    "env.name": "calculator",
    "env.options": {"num_held_out": 3},
    "schedule.mode": "off_policy",
    "algorithm.clip_low": 0.5,
    "checkpoint.resume_from_checkpoint": "never",
}
# what must stand beside a field that is another
BESIDE: Mapping[str, Mapping[str, Any]] = {
    "algorithm.clip_low": {"algorithm.loss": "ppo"},
    "algorithm.clip_high": {"algorithm.loss": "ppo"},
    "eval.temperature": {"eval.num_step_problems": 0},
}


def _keys(config: RLConfig) -> dict[str, str]:
    stages = (EvaluateRL(config, HARDWARE), TrainRL(config, HARDWARE, Path()), PackageRL(config, HARDWARE, Path("run")))
    return {stage.name: stage.key({}) for stage in stages}


def _other(path: str) -> Any:  # noqa: C901 - a table of types
    """A valid value of the field that is not its default."""
    if path in OTHER:
        return OTHER[path]
    leaf = LEAVES[path]
    for kind in members(leaf.annotation):
        if get_origin(kind) is Literal:
            return next(word for word in get_args(kind) if word != leaf.default)
    match leaf.default:
        case bool():
            return not leaf.default
        case int():
            return leaf.default + 1
        case float():
            return leaf.default / 2 if leaf.default else 0.5
        case str():
            return "other"
        case list():
            return ["other"]
        case dict():
            return {"other": "value"}
        case _ if bool in members(leaf.annotation):
            return True
        case _:
            return "3" if str in members(leaf.annotation) else 3


def _with(changes: Mapping[str, Any]) -> RLConfig:
    values = RLConfig().model_dump()
    for path, value in changes.items():
        place = values
        *sections, name = path.split(".")
        for section in sections:
            place = place[section]
        place[name] = value
    return RLConfig.model_validate(values)


def _reads(stage: type[Stage[Any]], path: str) -> bool:
    return any(path == read or path.startswith(read + ".") for read in stage.reads)


@pytest.mark.parametrize("path", LEAVES)
def test_a_field_changes_the_keys_of_the_stages_that_read_it_and_no_other(path: str) -> None:
    beside = BESIDE.get(path, {})
    before, after = _keys(_with(beside)), _keys(_with({**beside, path: _other(path)}))
    assert {name for name in before if before[name] != after[name]} == {
        stage.name for stage in CLASSES if _reads(stage, path)
    }


def test_how_held_out_problems_are_answered_matters_to_training_only_where_it_plays_some() -> None:
    def key(num_step_problems: int, temperature: float) -> str:
        changes = {"eval.num_step_problems": num_step_problems, "eval.temperature": temperature}
        return _keys(_with(changes))["train_rl"]

    assert key(0, 0.0) == key(0, 0.5)
    assert key(1, 0.0) != key(1, 0.5)


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("env.name", {"evaluate_rl", "train_rl", "package_rl"}),
        ("seed", {"evaluate_rl", "train_rl", "package_rl"}),
        ("rollout.max_tokens", {"evaluate_rl", "train_rl", "package_rl"}),
        ("rollout.top_k", {"train_rl", "package_rl"}),
        ("eval.temperature", {"evaluate_rl", "package_rl"}),
        ("train.learning_rate", {"train_rl", "package_rl"}),
        ("algorithm.loss", {"train_rl", "package_rl"}),
        ("report_to", set()),
        ("cache_dir", set()),
    ],
)
def test_who_reads_what(path: str, stages: set[str]) -> None:
    assert {stage.name for stage in CLASSES if _reads(stage, path)} == stages


def test_every_field_but_the_places_is_read_by_a_stage() -> None:
    unread = {path for path in LEAVES if not any(_reads(stage, path) for stage in CLASSES)}
    trackers = {path for path in LEAVES if path == "report_to" or path.startswith("tracking.")}
    assert unread == trackers | {"cache_dir"}


def test_evaluation_reads_all_of_rollouts_but_their_sampling() -> None:
    rollout = {path for path in LEAVES if path.startswith("rollout.")}
    assert {path for path in rollout if not _reads(EvaluateRL, path)} == SAMPLING


@pytest.mark.parametrize("stage", CLASSES, ids=lambda stage: stage.name)
def test_every_field_and_all_code_a_stage_declares_exists(stage: type[Stage[Any]]) -> None:
    assert set(stage.reads) | set(stage.uses) <= {*LEAVES, *tree_of(RLConfig).branches}
    root = Path(crucible_train.__file__).parent
    for name in stage.code:
        place = root / name.replace(".", "/")
        assert place.with_suffix(".py").is_file() or any(place.rglob("*.py")), name
    description = stage.describe(RLConfig)
    assert description.summary.endswith(".")
    assert all(field["description"] for field in description.schema.values())


def test_what_was_measured_before_does_not_decide_the_training() -> None:
    train = TrainRL(RLConfig(), HARDWARE, Path())
    model, before = (ArtifactRef(uri="x", sha256=digit * 64, kind="k", size=1) for digit in "12")
    assert train.key({"model": model}) == train.key({"model": model, "before": before})
    assert train.key({"model": model}) != train.key({"model": before})


def test_a_data_set_of_the_environment_decides_by_its_content(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    config = _with({"env.name": "gsm8k", "env.options": {"dataset": str(rows)}})
    with pytest.raises(CrucibleError, match="there is no such file"):
        _keys(config)
    found = []
    for text in ("1", "2", "1"):
        rows.write_text('{"question": "a", "answer": "#### ' + text + '"}\n')
        found.append(_keys(config))
    assert found[0] == found[2]
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"evaluate_rl", "train_rl"}


def test_a_reward_function_decides_by_the_files_it_is_named_and_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    written, named = tmp_path / "reward_written.py", tmp_path / "reward_named.py"
    named.write_text("from reward_written import judge\n")
    config = _with({"env.name": "prompts", "env.options": {"reward": "reward_named:judge"}})
    found = []
    for text in ("1.0", "0.5", "1.0"):
        written.write_text(f"def judge(prompt, text):\n    return {text}\n")
        found.append(_keys(config))
    named.write_text("from reward_written import judge  # again\n")
    found.append(_keys(config))
    for name in ("reward_named", "reward_written"):
        monkeypatch.delitem(sys.modules, name)
    assert found[0] == found[2]
    for other in (found[1], found[3]):
        assert {name for name in found[0] if found[0][name] != other[name]} == {"evaluate_rl", "train_rl"}


def test_the_version_of_an_environments_library_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("crucible_train.rl.environments.reasoning_gym")
    found = []
    for number in ("1", "2"):
        monkeypatch.setattr(module, "version", lambda name, number=number: f"{name} {number}")
        found.append(_keys(_with({"env.name": "reasoning_gym"})))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"evaluate_rl", "train_rl"}


@pytest.mark.parametrize("stage", [EvaluateRL, TrainRL])
def test_the_libraries_that_make_problems_and_tokens_are_in_the_key(stage: type[Stage[Any]]) -> None:
    assert {"torch", "transformers", "numpy", "tokenizers", "jinja2", "pyarrow"} <= set(stage.libraries)


# What problems and rewards import and no key holds, and why it decides nothing.
EXEMPT: Mapping[str, str] = {
    "crucible_train": "the version's number",
    "adapters.hub": "fetches files, whose digests are in the key",
    "adapters.reasons": "words of errors",
    "config.base": "declares fields, whose values are in the key",
    "config.complaints": "words of errors",
    "config.fields": "finds fields, whose values are in the key",
    "config.gathering": "words of errors; the values that come out are in the key",
    "config.redaction": "keeps secrets out of what is shown",
    "config.sources": "words of errors",
    "config.suggestions": "words of errors",
    "errors": "kinds of errors",
    "files": "moves bytes, and makes digests of them",
    "ports": "interfaces",
    "rl.update": "in the key itself; it takes steps, and what it calls is in the code of training",
    "terminal": "shows lines",
}


def _modules() -> dict[str, Path]:
    root = Path(crucible_train.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        words = path.relative_to(root).with_suffix("").parts
        found[".".join(words[:-1] if words[-1] == "__init__" else words) or "crucible_train"] = path
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """The modules of crucible_train that one imports, wherever in its text."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{one}" for one in names] + [str(node.module)]
        ours = (one.removeprefix("crucible_train.") for one in names if one.split(".")[0] == "crucible_train")
        found |= {one for one in ours if one in MODULES}
    return found


def _is_part(name: str, of: Any) -> bool:
    return any(name == whole or name.startswith(f"{whole}.") for whole in of)


@pytest.mark.parametrize("stage", [EvaluateRL, TrainRL])
def test_all_code_that_makes_problems_and_rewards_is_in_the_key_or_exempt(stage: type[Stage[Any]]) -> None:
    waiting = {name for name in MODULES if _is_part(name, ("rl", "adapters.row_store"))}
    seen: set[str] = set()
    while waiting:
        seen |= waiting
        walked = (name for name in waiting if not _is_part(name, EXEMPT))
        waiting = set(chain.from_iterable(map(_imports, walked))) - seen
    assert len(seen) > 60
    assert sorted(name for name in seen if not _is_part(name, (*stage.code, *EXEMPT))) == []
