"""``--dry-run``: the plan says what a run would do, and nothing is left behind."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from crucible_train import terminal, wiring
from crucible_train.config.sections import DataConfig, EngineConfig, EvalConfig, OptimConfig, PeftConfig
from crucible_train.errors import ConfigError, DataError
from crucible_train.recipes.sft import SFTConfig
from crucible_train.stages import run_directory
from crucible_train.stages.base import Stage, resolve
from crucible_train.stages.evaluate import Evaluate
from crucible_train.stages.package import Package
from crucible_train.stages.plan import show_plan
from crucible_train.stages.prepare_data import PrepareData
from crucible_train.stages.prepare_model import external
from crucible_train.stages.render import Render
from crucible_train.stages.train import Train
from crucible_train.types import ArtifactRef, Estimate

STAGES = ["prepare model", "prepare data", "render", "evaluate before", "train", "evaluate after", "package"]


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
        data=DataConfig(eval_split=0.25),
        peft=PeftConfig(lora_r=2),
        train=OptimConfig(per_device_train_batch_size=4, learning_rate=1e-3),
        engine=EngineConfig(precision="float32", num_threads=1, device="cpu"),
        eval=EvalConfig(num_samples=2, max_new_tokens=4),
    )


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Callable[[SFTConfig], str]:
    def show(config: SFTConfig) -> str:
        capsys.readouterr()
        show_plan(config)
        return capsys.readouterr().out

    return show


def states(text: str) -> dict[str, str]:
    """What the plan says of each stage."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("stages "))
    return {line[11:27].strip(): line[28:] for line in lines[first : first + len(STAGES)]}


def changed(config: SFTConfig, section: str, **values: object) -> SFTConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def run_stages(config: SFTConfig) -> None:
    """What the flow does, without Prefect."""
    hardware = wiring.hardware(config.engine)

    def make(stage: Stage[SFTConfig], inputs: Mapping[str, ArtifactRef], *names: str) -> ArtifactRef:
        return asyncio.run(resolve(stage, {name: inputs[name] for name in names}, config.cache_dir)).ref

    refs = {"model": external(Path(config.model))}
    refs["conversations"] = make(PrepareData(config), refs)
    refs["rendered"] = make(Render(config), refs, "model", "conversations")
    refs["before"] = make(Evaluate(config, hardware), refs, "model", "conversations", "rendered")
    inputs = ("model", "conversations", "rendered", "before")
    key = Train(config, hardware, Path()).key({name: refs[name] for name in inputs})
    run_dir = run_directory.place(config, run_directory.run_id(config, "sft", config.dataset, key))
    run_directory.begin(run_dir, config)
    refs["trained"] = make(Train(config, hardware, run_dir), refs, *inputs)
    refs["after"] = make(Evaluate(config, hardware), refs, "model", "conversations", "rendered", "trained")
    make(Package(config, hardware, run_dir), refs, *inputs, "trained", "after")


def assert_samples_show_what_is_trained(text: str, config: SFTConfig) -> None:
    """Three samples, each with its answer and the token that ends it between the marks, and nothing else."""
    tokenizer = wiring.tokenizer(Path(config.model))
    found = re.findall(r"^sample (\d), (\d+) tokens; trained is ⟦this⟧\n(.*?\n)\n(?=sample|stages)", text, re.M | re.S)
    assert [number for number, _, _ in found] == ["1", "2", "3"]
    questions = set()
    for _, num_tokens, sample in found:
        (trained,) = re.findall(r"⟦(.*?)⟧", sample, re.S)
        first = int(re.search(r"What is (\d+) plus", sample).group(1))
        questions.add(first)
        assert trained == f"{first} + {first + 1} = {2 * first + 1}\n#### {2 * first + 1}<|im_end|>"
        plain = sample.replace("⟦", "").replace("⟧", "")
        assert plain.startswith("<|im_start|>system\n")
        assert f"<|im_start|>user\nWhat is {first} plus {first + 1}?<|im_end|>\n<|im_start|>assistant\n⟦" in sample
        words = re.split(r"(<\|im_start\|>|<\|im_end\|>)", plain)
        assert sum(1 if w.startswith("<|im") else len(tokenizer.encode(w)) for w in words) == int(num_tokens)
    assert len(questions) == 3


def test_a_plan_shows_everything_and_stores_nothing(
    config: SFTConfig, plan: Callable[[SFTConfig], str], tmp_path: Path
) -> None:
    text = plan(config)
    resolved = yaml.safe_load(text[: text.index("\nmachine ")])
    assert SFTConfig.model_validate(resolved) == config
    assert "float32 (as asked)" in text
    assert list(states(text)) == STAGES
    assert states(text)["prepare model"] == f"nothing to do: {config.model}"
    assert {states(text)[name] for name in STAGES[1:]} == {"to run"}
    assert not re.search(r"^bad row", text, re.M)
    assert "5 steps of 4" in text
    assert re.search(r"peak rate 0\.001; 0\.0 of 0\.8 million weights$", text, re.M)
    assert re.search(
        r"^estimate   \d+ s of training and measuring at about [\d,]+ tokens/s, .* GiB of memory$", text, re.M
    )
    assert_samples_show_what_is_trained(text, config)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "runs").exists()


def test_every_bad_row_is_shown_before_the_plan_fails(
    config: SFTConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = Path(config.dataset)
    lines = rows.read_text().splitlines()
    lines[2] = '{"messages": [{"role": "user", "content": "broken'
    lines[9] = json.dumps({"messages": [{"role": "assistant", "content": "a first word"}]})
    lines[20] = json.dumps({"messages": [{"role": "user", "content": "no answer"}]})
    rows.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"bad rows would stop the run; mend them, or set data.on_bad_row=quarantine"):
        show_plan(config)
    text = capsys.readouterr().out
    told = "\n".join(re.findall(r"^bad row +(\S+): \S", text, re.M))
    assert f"{rows}:3" in told
    assert f"{rows}:21" in told
    assert re.search(r"^training   \d+ steps of 4", text, re.M)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "runs").exists()


def test_only_the_first_bad_rows_are_shown_and_the_rest_is_counted(
    config: SFTConfig, plan: Callable[[SFTConfig], str]
) -> None:
    rows = Path(config.dataset)
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(["{", *lines[:9], *["not json"] * 7]) + "\n")
    text = plan(changed(config, "data", on_bad_row="quarantine"))
    assert len(re.findall(r"^bad row ", text, re.M)) == 5
    assert "           and 3 more\n" in text


def test_a_config_that_would_stop_the_run_stops_the_plan(config: SFTConfig) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        show_plan(config.model_copy(update={"model": "./nowhere"}))


def test_one_bad_row_is_one(config: SFTConfig, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Path(config.dataset)
    rows.write_text("{\n" + rows.read_text())
    with pytest.raises(DataError, match=r"^1 bad row would stop the run; mend it, or set data"):
        show_plan(config)
    assert "messages, 2 messages each; 1 bad row\n" in capsys.readouterr().out


def test_one_empty_line_follows_each_sample(config: SFTConfig, plan: Callable[[SFTConfig], str]) -> None:
    for renderer in ("auto", "role_colon"):  # one format ends with a newline, the other does not
        text = plan(changed(config, "data", renderer=renderer))
        after = text[text.index("\nsample 1") :]
        assert len(re.findall(r"\S\n\n(?=sample|stages)", after)) == 3
        assert "\n\n\n" not in after[: after.index("\nstages")]


def test_the_estimate_is_of_what_is_still_to_run(
    config: SFTConfig, plan: Callable[[SFTConfig], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = Estimate(16, 10**6, 10**5, 1234.0, 3e3, 0.5, 2**31)
    monkeypatch.setattr(wiring, "estimate", lambda *_: speeds)
    assert "s of training and measuring at about 1,200 tokens/s, up to 4 s of writing answers; 2.0 GiB" in plan(config)
    run_stages(config)
    text = plan(changed(config, "eval", max_new_tokens=2))
    assert states(text)["train"] == "cached"
    assert re.search(r"^estimate   \d s of measuring, up to 2 s of writing", text, re.M)
    assert "estimate   nothing to do but the report\n" in plan(config.model_copy(update={"output_dir": "elsewhere"}))


def test_what_was_run_is_cached_and_the_rest_is_not(
    config: SFTConfig, plan: Callable[[SFTConfig], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stages(config)
    with monkeypatch.context() as nothing_to_measure:
        nothing_to_measure.delattr(wiring, "estimate")
        text = plan(config)
    assert {states(text)[name] for name in STAGES[1:]} == {"cached"}
    assert text.endswith("estimate   nothing to do: all of it is cached\n")
    (metrics,) = (tmp_path / "runs").glob("*/metrics.jsonl")
    *_, last = (json.loads(line) for line in metrics.read_text().splitlines() if "progress/num_tokens" in line)
    assert f"{last['step']} steps of 4, {last['progress/num_tokens']:,} tokens" in text

    faster = states(plan(changed(config, "train", learning_rate=2e-3)))
    assert [faster[name] for name in STAGES[1:]] == ["cached", "cached", "cached", "to run", "to run", "to run"]
    assert len(list((tmp_path / "runs").iterdir())) == 1
