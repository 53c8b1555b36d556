"""The chat format of a run: it is settled once, travels with the model, and a mismatch is an error."""

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from crucible_train import terminal, wiring
from crucible_train.checkpoints import CheckpointFolder, checkpoint_name
from crucible_train.config.sections import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    OptimConfig,
    PeftConfig,
)
from crucible_train.errors import ConfigError, ModelError
from crucible_train.recipes.sft import SFTConfig
from crucible_train.renderers import FastTokenizer, RendererRecord, chat_template
from crucible_train.renderers.record import RECORD_FILE
from crucible_train.stages import sft_preflight
from crucible_train.stages.base import Stage, resolve
from crucible_train.stages.chat_format import check_start, renderer_record, settled, with_noted_date
from crucible_train.stages.evaluate import Evaluate
from crucible_train.stages.package import Package
from crucible_train.stages.plan import show_plan
from crucible_train.stages.prepare_data import PrepareData
from crucible_train.stages.prepare_model import external
from crucible_train.stages.render import Render
from crucible_train.stages.train import Train
from crucible_train.types import ArtifactRef

DATED = (
    "It is {{ strftime_now('%d %b %Y') }}.{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture
def config(tiny_model: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SFTConfig:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(terminal, "_console", None)
    return SFTConfig(
        model=str(tiny_model),
        dataset=str(rows_file),
        output_dir=str(tmp_path / "runs"),
        cache_dir=str(tmp_path / "cache"),
        report_to=[],
        data=DataConfig(eval_split=0.0),
        peft=PeftConfig(use_peft=False),
        train=OptimConfig(per_device_train_batch_size=4, learning_rate=1e-3, max_steps=2),
        engine=EngineConfig(precision="float32", num_threads=1, device="cpu"),
        eval=EvalConfig(num_samples=0),
        checkpoint=CheckpointConfig(save_steps=1),
    )


@pytest.fixture
def dated(config: SFTConfig, tmp_path: Path) -> SFTConfig:
    """A model whose template writes today's date."""
    model = tmp_path / "dated"
    shutil.copytree(config.model, model)
    (model / "chat_template.jinja").write_text(DATED)
    return config.model_copy(update={"model": str(model)})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the day."""

    def at(day: str) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.fromisoformat(f"{day}T10:00:00")

        monkeypatch.setattr(chat_template, "datetime", Clock)

    return at


def changed(config: SFTConfig, section: str, **values: object) -> SFTConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def given_refs(config: SFTConfig) -> dict[str, ArtifactRef]:
    conversations = asyncio.run(resolve(PrepareData(config), {}, config.cache_dir)).ref
    return {"model": external(Path(config.model)), "conversations": conversations}


def settle(config: SFTConfig) -> SFTConfig:
    return asyncio.run(settled(config, given_refs(config)))


def trained(config: SFTConfig, folder: Path) -> Path:
    """Run every stage; the run directory, and in ``folder`` what is published."""
    hardware = wiring.hardware(config.engine)
    inputs: dict[str, Path] = {"model": Path(config.model)}

    def make(name: str, stage: Stage[SFTConfig], given: Mapping[str, Path]) -> None:
        inputs[name] = folder / name
        inputs[name].mkdir(parents=True)
        asyncio.run(stage.run(given, inputs[name]))

    run_dir = folder / "run"
    make("conversations", PrepareData(config), {})
    make("rendered", Render(config), inputs)
    make("before", Evaluate(config, hardware), inputs)
    make("trained", Train(config, hardware, run_dir), inputs)
    make("after", Evaluate(config, hardware), inputs)
    make("package", Package(config, hardware, run_dir), inputs)
    return run_dir


def test_a_trained_model_brings_its_chat_format_along(
    dated: SFTConfig, tmp_path: Path, clock: Callable[[str], None]
) -> None:
    clock("2025-06-28")
    first = settle(dated)
    run_dir = trained(first, tmp_path / "first")
    published = tmp_path / "first" / "package" / "model"
    digest = FastTokenizer.from_folder(Path(dated.model)).sha256
    record = RendererRecord("chat_template", {"now": "2025-06-28T10:00:00"}, digest)
    assert json.loads((published / RECORD_FILE).read_text()) == {
        "name": "chat_template",
        "options": {"now": "2025-06-28T10:00:00"},
        "tokenizer_sha256": digest,
    }
    checkpoints = [run_dir / "checkpoints" / checkpoint_name(step) for step in CheckpointFolder(run_dir).steps()]
    assert len(checkpoints) == 2
    for checkpoint in checkpoints:
        assert RendererRecord.from_folder(checkpoint) == record

    clock("2026-01-01")
    second = dated.model_copy(update={"model": str(published)})
    sft_preflight.check(second)
    assert settle(second) == second
    assert renderer_record(second, published) == record
    trained(second, tmp_path / "second")
    summary = json.loads((tmp_path / "second" / "rendered" / "summary.json").read_text())
    assert (summary["renderer"], summary["renderer_options"]) == (record.name, record.options)
    again = tmp_path / "second" / "package" / "model"
    assert (again / RECORD_FILE).read_bytes() == (published / RECORD_FILE).read_bytes()

    for data, error in (
        ({"renderer": "smollm2"}, "data.renderer: 'smollm2' is asked for, but "),
        ({"renderer_options": {"now": "2026-01-01"}}, "data.renderer_options.now: '2026-01-01' is asked for, but "),
    ):
        other = changed(second, "data", **data)
        with pytest.raises(ConfigError) as raised:
            sft_preflight.check(other)
        assert [problem[: len(error)] for problem in raised.value.problems] == [error]
        assert "was trained with" in str(raised.value)
        with pytest.raises(ConfigError):
            settle(other)
    same = changed(second, "data", renderer="chat_template", renderer_options={"now": "2025-06-28T10:00:00"})
    assert settle(same) == same

    start = changed(first, "checkpoint", resume_from_checkpoint=str(checkpoints[-1]))
    assert settle(start) == start
    clock("2026-01-01")
    with pytest.raises(ConfigError, match=r"checkpoint\.resume_from_checkpoint: .* another chat format"):
        settle(changed(changed(start, "data", renderer_options={}), "data", renderer="smollm2"))


def test_another_tokenizer_beside_a_trained_model_is_an_error(config: SFTConfig, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(config.model, model)
    (model / RECORD_FILE).write_bytes(renderer_record(config, model).to_bytes())
    taken = config.model_copy(update={"model": str(model)})
    sft_preflight.check(taken)
    (model / "chat_template.jinja").write_text(DATED)
    with pytest.raises(ConfigError, match=r"its tokenizer has the digest .* but it was trained with"):
        sft_preflight.check(taken)
    with pytest.raises(ModelError, match="its tokenizer has the digest"):
        settle(taken)


def test_a_date_is_noted_once_for_the_same_rows(
    dated: SFTConfig, clock: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    clock("2025-06-28")
    first = settle(dated)
    assert first.data.renderer_options == {"now": "2025-06-28T10:00:00"}
    assert capsys.readouterr().out == "date       2025-06-28T10:00:00 is written by chat_template\n"
    clock("2025-06-29")
    assert settle(dated) == first
    assert with_noted_date(dated, given_refs(dated)) == first
    refs = given_refs(dated)
    assert Render(first).key(refs) != Render(dated).key(refs)
    sweep = dated.model_copy(update={"seed": 1, "peft": PeftConfig(use_peft=True)})
    assert settle(sweep).data.renderer_options == first.data.renderer_options
    with Path(dated.dataset).open("a") as rows:
        rows.write('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    assert settle(dated).data.renderer_options == {"now": "2025-06-29T10:00:00"}


@pytest.mark.parametrize("options", [{"now": "2024-07-26T00:00:00"}])
def test_a_date_that_is_given_is_taken(dated: SFTConfig, options: dict[str, Any], tmp_path: Path) -> None:
    given = changed(dated, "data", renderer_options=options)
    assert settle(given) == given
    assert not (tmp_path / "cache" / "manifests" / "note_date").exists()


def test_a_format_without_a_date_is_left_as_it_is(config: SFTConfig, tmp_path: Path) -> None:
    for renderer in ("auto", "smollm2", "llama3_1"):
        plain = changed(config, "data", renderer=renderer)
        assert settle(plain) == plain
    assert not (tmp_path / "cache" / "manifests" / "note_date").exists()


@pytest.mark.parametrize(
    ("renderer", "option"), [("llama3_2", "date_string"), ("gpt_oss_low_reasoning", "current_date")]
)
def test_every_format_that_writes_a_date_has_it_noted(config: SFTConfig, renderer: str, option: str) -> None:
    found = settle(changed(config, "data", renderer=renderer)).data.renderer_options
    assert list(found) == [option]
    assert found[option]


def test_a_plan_takes_the_noted_date_and_notes_none(
    dated: SFTConfig, clock: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clock("2025-06-28")
    show_plan(dated)
    assert "⟦0 + 1 = 1" in (text := capsys.readouterr().out)
    assert "It is 28 Jun 2025.<|im_start|>user What is 0 plus 1?" in text
    assert not (tmp_path / "cache").exists()
    settle(dated)
    clock("2025-06-29")
    capsys.readouterr()
    show_plan(dated)
    assert "It is 28 Jun 2025." in capsys.readouterr().out


def test_a_checkpoint_of_another_chat_format_is_refused_with_what_differs(tmp_path: Path) -> None:
    record = RendererRecord("llama3_2", {"date_string": "26 Jul 2024"}, "a" * 64)
    check_start(str(tmp_path), record)  # one of a time before there were records
    (tmp_path / RECORD_FILE).write_bytes(record.to_bytes())
    check_start(str(tmp_path), record)
    for other, said in (
        (replace(record, name="llama3_1"), "data.renderer 'llama3_1' for 'llama3_2'"),
        (
            replace(record, options={"date_string": "1 Jan 2026"}),
            "data.renderer_options {'date_string': '1 Jan 2026'} for {'date_string': '26 Jul 2024'}",
        ),
        (replace(record, tokenizer_sha256="b" * 64), "a tokenizer of digest 'bbbbbbbbbbbb' for 'aaaaaaaaaaaa'"),
    ):
        with pytest.raises(ConfigError) as raised:
            check_start(str(tmp_path), other)
        assert str(raised.value) == (
            f"checkpoint.resume_from_checkpoint: {tmp_path}: it was trained in another chat format, and this run has "
            f"{said}; give it the same, or begin a new run from that run's published model"
        )
