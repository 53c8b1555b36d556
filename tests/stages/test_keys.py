"""A stage's key: the fields it reads, its inputs, its code, and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import crucible_train
from crucible_train.config.fields import members, tree_of
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import base
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import NoteDate
from crucible_train.stages.evaluate import Evaluate
from crucible_train.stages.package import Package
from crucible_train.stages.prepare_data import PrepareData
from crucible_train.stages.prepare_model import PrepareModel
from crucible_train.stages.render import Render
from crucible_train.stages.sft_answers import AnswerRows
from crucible_train.stages.train import Train
from crucible_train.stages.win_rate import CompareAnswers
from crucible_train.types import ArtifactRef, Hardware

HARDWARE = Hardware("cpu", "float32", 1, "CPU")
CLASSES = (PrepareModel, PrepareData, NoteDate, Render, Evaluate, Train, AnswerRows, CompareAnswers, Package)
LEAVES = tree_of(SFTConfig).leaves
SOURCE_DIGEST = base.source_digest
OTHER: Mapping[str, Any] = {
    "eval.greater_is_better": True,
    "checkpoint.resume_from_checkpoint": "never",  # a path decides, and has a test of its own
    "win_rate.judge_url": "http://localhost:1",
    "win_rate.judge_api_key_env": "OTHER",
}
_JUDGED = {"win_rate.num_prompts": 9, "win_rate.judge": "named"}
# what must stand beside a field that is another
BESIDE: Mapping[str, Mapping[str, Any]] = {
    "win_rate.judge": {"win_rate.num_prompts": 9},
    "win_rate.judge_renderer": _JUDGED,
    "win_rate.judge_url": _JUDGED,
    "win_rate.judge_served_name": _JUDGED | {"win_rate.judge_url": "http://localhost"},
    "win_rate.judge_api_key_env": _JUDGED | {"win_rate.judge_url": "http://localhost"},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


def _stages(config: SFTConfig, source: Path) -> list[Stage[SFTConfig]]:
    return [
        PrepareModel(config, source),
        PrepareData(config),
        NoteDate(config),
        Render(config),
        Evaluate(config, HARDWARE),
        Train(config, HARDWARE, Path()),
        AnswerRows(config, HARDWARE),
        CompareAnswers(config, HARDWARE),
        Package(config, HARDWARE, Path("run")),
    ]


def _keys(config: SFTConfig, source: Path) -> dict[str, str]:
    return {stage.name: stage.key({}) for stage in _stages(config, source)}


def _other(path: str, rows: Path) -> Any:  # noqa: C901 - a table of types
    """A valid value of the field that is not its default."""
    if path == "dataset":
        return str(rows)
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
        case _:
            return "3" if str in members(leaf.annotation) else 3


def _with(changes: Mapping[str, Any]) -> SFTConfig:
    values: dict[str, Any] = {}
    for path, value in changes.items():
        place = values
        *sections, name = path.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return SFTConfig.model_validate(values)


def _reads(stage: type[Stage[Any]], path: str) -> bool:
    return any(path == read or path.startswith(read + ".") for read in stage.reads)


@pytest.mark.parametrize("path", LEAVES)
def test_a_field_changes_the_keys_of_the_stages_that_read_it_and_no_other(path: str, rows: Path) -> None:
    beside = BESIDE.get(path, {})
    before, after = _keys(_with(beside), rows), _keys(_with({**beside, path: _other(path, rows)}), rows)
    assert {name for name in before if before[name] != after[name]} == {
        stage.name for stage in CLASSES if _reads(stage, path)
    }


def test_a_checkpoint_to_start_from_is_part_of_the_key_by_its_content(rows: Path, tmp_path: Path) -> None:
    keys = []
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
        keys.append(_keys(_with({"checkpoint.resume_from_checkpoint": str(tmp_path / name)}), rows)["train"])
    assert keys[0] == keys[1] != keys[2]
    assert _keys(SFTConfig(), rows)["train"] not in keys


def test_how_answers_are_written_matters_to_training_only_where_it_writes_some(rows: Path) -> None:
    def key(num_step_samples: int, max_new_tokens: int) -> str:
        changes = {"eval.num_step_samples": num_step_samples, "eval.max_new_tokens": max_new_tokens}
        return _keys(_with(changes), rows)["train"]

    assert key(0, 8) == key(0, 9)
    assert key(1, 8) != key(1, 9)


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("train.learning_rate", {"train", "package"}),
        ("peft.lora_r", {"evaluate", "train", "package"}),
        ("data.max_length", {"render", "package"}),
        ("data.train_on", {"render", "package"}),
        ("data.format", {"prepare_data", "package"}),
        ("seed", {"render", "evaluate", "train", "answer_rows", "win_rate", "package"}),
        ("eval.max_new_tokens", {"evaluate", "answer_rows", "package"}),
        ("win_rate.num_prompts", {"answer_rows", "package"}),
        ("win_rate.judge", {"win_rate", "package"}),
        ("report_to", set()),
        ("cache_dir", set()),
    ],
)
def test_who_reads_what(path: str, stages: set[str]) -> None:
    assert {stage.name for stage in CLASSES if _reads(stage, path)} == stages


@pytest.mark.parametrize("stage", CLASSES, ids=lambda stage: stage.name)
def test_a_stage_sees_the_default_of_every_field_it_does_not_declare(stage: type[Stage[Any]], rows: Path) -> None:
    config = _with({path: _other(path, rows) for path in LEAVES})
    seen = base.restricted(config, (*stage.reads, *stage.uses))
    declared = (*stage.reads, *stage.uses)
    for path, leaf in LEAVES.items():
        value: Any = seen
        for name in path.split("."):
            value = getattr(value, name)
        is_declared = any(path == start or path.startswith(start + ".") for start in declared)
        assert (value != leaf.default) is is_declared, path


@pytest.mark.parametrize("stage", CLASSES, ids=lambda stage: stage.name)
def test_every_field_a_stage_declares_exists(stage: type[Stage[Any]]) -> None:
    known = {*LEAVES, *tree_of(SFTConfig).branches}
    assert set(stage.reads) | set(stage.uses) <= known


@pytest.mark.parametrize("stage", CLASSES, ids=lambda stage: stage.name)
def test_all_code_that_a_stage_names_exists(stage: type[Stage[Any]]) -> None:
    root = Path(crucible_train.__file__).parent
    for name in stage.code:
        place = root / name.replace(".", "/")
        assert place.with_suffix(".py").is_file() or any(place.rglob("*.py")), name


def test_every_field_but_the_places_is_read_by_a_stage() -> None:
    unread = {path for path in LEAVES if not any(_reads(stage, path) for stage in CLASSES)}
    trackers = {path for path in LEAVES if path == "report_to" or path.startswith("tracking.")}
    assert unread == trackers | {"cache_dir"}


class _Copy(Stage[SFTConfig]):
    """Copies nothing.

    It is here to be described.
    """

    name = "copy"
    version = 3
    reads = ("seed", "train.learning_rate")

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        raise NotImplementedError


def _key(stage: Stage[Any], **inputs: str) -> str:
    refs = {name: ArtifactRef(uri="x", sha256=digit * 64, kind="k", size=1) for name, digit in inputs.items()}
    return stage.key(refs)


@pytest.fixture(autouse=True)
def _test_files_have_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "source_digest", lambda code: SOURCE_DIGEST(tuple(c for c in code if c != __name__)))


def test_inputs_change_the_key_by_name_and_content() -> None:
    stage = _Copy(SFTConfig())
    assert (
        len({_key(stage), _key(stage, a="1"), _key(stage, b="1"), _key(stage, a="2"), _key(stage, a="1", b="1")}) == 5
    )


def test_where_an_input_lies_does_not_change_the_key() -> None:
    stage = _Copy(SFTConfig())
    here, there = (ArtifactRef(uri=uri, sha256="1" * 64, kind="k", size=1) for uri in ("here", "there"))
    assert stage.key({"a": here}) == stage.key({"a": there})


def test_version_code_and_libraries_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {_key(_Copy(SFTConfig()))}
    for name, value in (("version", 4), ("code", ("types",)), ("libraries", ("numpy",)), ("name", "other")):
        with monkeypatch.context() as patch:
            patch.setattr(_Copy, name, value)
            found.add(_key(_Copy(SFTConfig())))
    assert len(found) == 5


def test_changed_source_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack" / "inner").mkdir(parents=True)
    (tmp_path / "__init__.py").write_text("")
    for name in ("module.py", "pack/one.py", "pack/inner/two.py", "other.py"):
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(base.crucible_train, "__file__", str(tmp_path / "__init__.py"))

    def now() -> str:
        SOURCE_DIGEST.cache_clear()
        return SOURCE_DIGEST(("module", "pack"))

    first = now()
    (tmp_path / "other.py").write_text("a = 2\n")
    assert now() == first
    (tmp_path / "pack" / "inner" / "two.py").write_text("a = 2\n")
    second = now()
    assert second != first
    (tmp_path / "pack" / "inner" / "two.py").rename(tmp_path / "pack" / "inner" / "three.py")
    assert now() not in (first, second)
    SOURCE_DIGEST.cache_clear()


def test_a_stage_describes_what_it_reads() -> None:
    description = _Copy.describe(SFTConfig)
    assert (description.name, description.version, description.summary) == ("copy", 3, "Copies nothing.")
    assert description.schema.keys() == {"seed", "train.learning_rate"}
    assert description.schema["seed"] == {"description": LEAVES["seed"].description, "default": 0}


@pytest.mark.parametrize("stage", CLASSES, ids=lambda stage: stage.name)
def test_every_stage_says_what_it_is(stage: type[Stage[Any]]) -> None:
    description = stage.describe(SFTConfig)
    assert description.summary.endswith(".")
    assert description.schema.keys() == {path for path in LEAVES if _reads(stage, path)}
    assert all(field["description"] for field in description.schema.values())
