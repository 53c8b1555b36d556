"""The stages of learning from preferences: what decides which output, and whose reference is believed."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crucible_train import files, wiring
from crucible_train.config.command import parse_command
from crucible_train.data.rendering import TRAIN, VALIDATION
from crucible_train.errors import ArtifactError, CheckpointError, ConfigError
from crucible_train.preference.measuring import Measured, measure
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.stages.base import Stage
from crucible_train.stages.dpo import preflight
from crucible_train.stages.dpo.answers import AnswerPreferences
from crucible_train.stages.dpo.evaluate import EvaluateDPO
from crucible_train.stages.dpo.package import PackageDPO
from crucible_train.stages.dpo.prepare_data import PreparePreferences
from crucible_train.stages.dpo.reference import REFERENCE, ReferencePass, check_start, preference_set
from crucible_train.stages.dpo.render import RenderPreferences
from crucible_train.stages.dpo.train import TrainDPO
from crucible_train.stages.publishing import open_client
from crucible_train.stages.win_rate import CompareAnswers
from crucible_train.types import DPO, ArtifactRef, Hardware

HARDWARE = Hardware("cpu", "float32", 1, "CPU")


def config(*words: str) -> DPOConfig:
    found: DPOConfig = parse_command(DPOConfig, list(words), "dpo").config
    return found


def keys(*words: str) -> dict[str, str]:
    given = config(*words)
    stages: list[Stage[Any]] = [
        PreparePreferences(given),
        RenderPreferences(given),
        ReferencePass(given, HARDWARE),
        EvaluateDPO(given, HARDWARE),
        TrainDPO(given, HARDWARE, Path()),
        AnswerPreferences(given, HARDWARE),
        CompareAnswers(given, HARDWARE),
        PackageDPO(given, HARDWARE, Path("run")),
    ]
    return {stage.name.split("_")[0]: stage.key({}) for stage in stages}


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        ("preference.beta=0.3", "evaluate train package"),
        ("preference.loss_type=ipo", "evaluate train package"),
        ("preference.loss_type=bradley_terry", "evaluate train package"),
        ("preference.loss_type=kto", "reference evaluate train package"),  # it also reads mismatched completions
        ("train.learning_rate=1e-4", "train package"),
        ("peft.lora_r=4", "evaluate train package"),
        ("peft.use_peft=false", "reference evaluate train package"),
        ("data.max_length=99", "render package"),
        ("data.format=pairs", "prepare package"),
        ("model=other", "render reference evaluate train answer win package"),
        ("seed=1", "render evaluate train answer win package"),
        ("eval.eval_steps=3", "train package"),
        ("eval.max_new_tokens=9", "answer package"),
        ("win_rate.num_prompts=8", "answer package"),
        ("win_rate.num_prompts=8 win_rate.judge=other", "answer win package"),
        ("win_rate.num_prompts=8 win_rate.judge=other judge_url=http://localhost", "answer win package"),
        ("report_to=[]", ""),
    ],
)
def test_what_a_field_makes_anew(word: str, changed: str) -> None:
    before, after = keys(), keys(*word.split())
    assert {name for name in before if before[name] != after[name]} == set(changed.split())


def test_who_judges_makes_no_answer_anew() -> None:
    before, after = (keys("win_rate.num_prompts=8", *more) for more in ((), ("win_rate.judge=other",)))
    assert {name for name in before if before[name] != after[name]} == {"win", "package"}


def test_the_adapter_decides_only_what_the_trained_model_answers() -> None:
    trained = {"trained": ArtifactRef(uri="x", sha256="1" * 64, kind="k", size=1)}
    one, other = (AnswerPreferences(config(word), HARDWARE) for word in ("peft.lora_r=4", "peft.lora_r=8"))
    assert one.key({}) == other.key({})
    assert one.key(trained) != other.key(trained)


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Path) -> dict[str, Path]:
    """Prepared and rendered preferences, a model, and where it left its reference."""
    rows = [{"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": f"No, {i}."} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = config(f"dataset={tmp_path / 'pairs.jsonl'}", "engine.num_threads=1", "preference.loss_type=kto")
    found = {"model": tiny_model}
    stages = {"conversations": PreparePreferences(given), "rendered": RenderPreferences(given)}
    for name, stage in (stages | {"reference": ReferencePass(given, HARDWARE)}).items():
        (tmp_path / name).mkdir()
        asyncio.run(stage.run(found, tmp_path / name))
        found[name] = tmp_path / name
    return found


@pytest.mark.parametrize("word", ["peft.lora_r=4", "peft.use_peft=false"])
def test_the_reference_is_the_same_bit_by_bit_whenever_it_is_made(
    inputs: dict[str, Path], tmp_path: Path, word: str
) -> None:
    (tmp_path / "again").mkdir()
    given = config("engine.num_threads=1", "preference.loss_type=kto", word, "seed=7")
    asyncio.run(ReferencePass(given, HARDWARE).run(inputs, tmp_path / "again"))
    for name in (TRAIN, VALIDATION, REFERENCE):
        assert (tmp_path / "again" / name).read_bytes() == (inputs["reference"] / name).read_bytes()


@pytest.mark.parametrize("word", ["peft.use_peft=true", "peft.use_peft=false"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_divergence_from_the_reference_begins_at_zero(
    inputs: dict[str, Path], tmp_path: Path, word: str, precision: str
) -> None:
    given = config("engine.num_threads=1", f"engine.precision={precision}", word)
    hardware = replace(HARDWARE, precision=precision)
    (tmp_path / "own").mkdir()
    asyncio.run(ReferencePass(given, hardware).run(inputs, tmp_path / "own"))
    preferences = preference_set(inputs | {"reference": tmp_path / "own"}, TRAIN)

    async def act() -> list[Measured]:
        client = await open_client(given, inputs["model"], hardware, tmp_path / "unused")
        try:
            return await measure(client, preferences, DPO(), wiring.losses_by_preference)
        finally:
            await client.close()

    found = asyncio.run(act())
    assert [one.kl for one in found] == [0.0] * len(preferences)


def test_the_reference_of_another_model_or_of_other_preferences_is_not_believed(inputs: dict[str, Path]) -> None:
    assert len(preference_set(inputs, TRAIN)) + len(preference_set(inputs, VALIDATION)) == 12
    path = inputs["reference"] / REFERENCE
    kept = files.read_json(path)
    for name in ("model", "rendered"):
        files.write_json(path, kept | {f"{name}_sha256": "0" * 64})
        with pytest.raises(ArtifactError, match=f"it is of another {name}"):
            preference_set(inputs, TRAIN)


def test_a_checkpoint_that_was_trained_against_another_reference_is_refused(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    given = config(f"checkpoint.resume_from_checkpoint={start}")
    kept = files.read_json(inputs["reference"] / REFERENCE)
    files.write_json(start / REFERENCE, kept)
    check_start(given, inputs)
    files.write_json(start / REFERENCE, kept | {"model_sha256": "0" * 64})
    with pytest.raises(CheckpointError, match="its reference is another model"):
        check_start(given, inputs)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["data.format=labelled"], "sigmoid compares two completions, and labelled rows have one; take kto"),
        (["eval.metric_for_best_model=eval/nll"], "'eval/nll' is not measured; measured are eval/accuracy"),
        (
            ["loss_type=simpo", "metric_for_best_model=eval/kl", "checkpoint.load_best_model_at_end=true"],
            "'eval/kl' is not measured",
        ),
        (
            ["loss_type=bradley_terry", "metric_for_best_model=eval/chosen_logprob", "early_stopping_patience=1"],
            "'eval/chosen_logprob' is not measured; measured are eval/accuracy, eval/chosen_reward, eval/loss",
        ),
        (["dataset=NOWHERE.jsonl"], "dataset: .*NOWHERE"),
        (["dataset=ROWS"], r"no preference format has them"),
        (["dataset=s3://user:word@bucket/x.jsonl"], "it holds a secret"),
        (["num_prompts=4", "win_rate.judge=./nowhere"], "^win_rate.judge: ./nowhere: there is no such file or folder$"),
        (["num_prompts=4", "win_rate.judge=EMPTY"], "^win_rate.judge: .*: no config.json there"),
        (["num_prompts=4", "win_rate.judge=s3://user:word@bucket/x"], "win_rate.judge: .*: it holds a secret"),
        (["num_prompts=4", "data.eval_split=0"], "win_rate.num_prompts: data.eval_split is 0"),
        (["num_prompts=4", "win_rate.judge=EMPTY", "judge_renderer=unheard"], "win_rate.judge_renderer: 'unheard'"),
        (
            ["num_prompts=4", "judge=EMPTY", "judge_url=http://localhost", "judge_api_key_env=NO_SUCH_KEY"],
            "win_rate.judge_api_key_env: the environment variable NO_SUCH_KEY is not set",
        ),
        (["num_prompts=4", "loss_type=bradley_terry"], "win_rate.num_prompts: a reward model writes no answers"),
        (["win_rate.judge=smollm2-135m-instruct"], "num_prompts: must be 1 or more where a judge is named"),
        (["num_prompts=4", "judge_url=http://localhost"], "judge: a server's model needs the folder or hub id"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_run(words: list[str], text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "empty").mkdir()
    named = [word.replace("ROWS", str(tmp_path / "rows.jsonl")) for word in words]
    named = [word.replace("EMPTY", str(tmp_path / "empty")) for word in named]
    with pytest.raises(ConfigError, match=text):
        preflight.check(config(*named, f"cache_dir={tmp_path}", f"output_dir={tmp_path}"))


def test_the_defaults_pass(tmp_path: Path) -> None:
    preflight.check(config(f"cache_dir={tmp_path}", f"output_dir={tmp_path}"))
