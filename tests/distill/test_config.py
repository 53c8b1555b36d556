"""What a configuration of distillation may not say, and who it says teaches."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from crucible_train.errors import ConfigError
from crucible_train.recipes.distill import DistillConfig
from crucible_train.renderers import FastTokenizer, get_renderer
from crucible_train.rl.environments import problems
from crucible_train.stages.distill.preflight import check
from crucible_train.stages.distill.teachers import check_tags, peft_of
from crucible_train.stages.publishing import ADAPTER_CONFIG
from crucible_train.types import Message

HARD = {"objective": "cross_entropy", "student_share": 0.0}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lesson": {"objective": "reverse_kl", "student_share": 0.5}}, "student_share: reverse_kl learns from"),
        ({"lesson": {"objective": "cross_entropy"}}, "student_share: cross_entropy learns from"),
        ({"lesson": {"alpha": 0.5}}, "alpha: below 1 it mixes in"),
        ({"lesson": {"objective": "reverse_kl", "beta": 0.5}}, "beta: reverse_kl does not read it"),
        ({"lesson": {"top_k": 5}}, "top_k: divergence does not read it"),
        ({"lesson": {"discount": 0.5}}, "discount: divergence does not read it"),
        ({"lesson": {**HARD, "temperature": 2.0}}, "temperature: cross_entropy does not read it"),
        ({"teacher": {"kind": "model"}}, "model: kind=model needs one"),
        ({"teacher": {"model": "x"}}, "model: kind=model needs one"),
        ({"teacher": {"adapter": "x"}}, "adapter: a teacher of kind start has none"),
        ({"teacher": {"tokenizer": "x"}}, "tokenizer: a teacher of kind start brings its own"),
        ({"teacher": {"before": [{"role": "tool", "content": "x"}]}}, "before: message 0 needs role"),
        ({"env": {"name": "gsm8k"}}, "teacher: the model itself teaches nothing unless it reads more"),
        ({"teacher": {"before": []}}, "teacher: the model itself teaches nothing unless it reads more"),
        ({"teacher": {"kind": "server"}}, "teacher: a server does not tell whole distributions"),
        (
            {"teacher": {"kind": "tinker", "tinker": {"model": "Qwen/Qwen3-8B"}}},
            "teacher: the Tinker service does not tell whole distributions",
        ),
        ({"teacher": {"kind": "tinker"}}, "tinker.model: kind=tinker needs one"),
        ({"teacher": {"tinker": {"model": "x"}}}, "tinker.model: kind=tinker needs one"),
        ({"teachers": {"a": {"kind": "server"}}}, "teachers.a: a server does not tell whole distributions"),
        ({"teachers": {"a": {"kimd": "server"}}}, "teachers.a.kimd: Extra inputs are not permitted"),
        ({"lesson": {"objective": "reverse_kl"}, "rollout": {"temperature": 0.7}}, "rollout.temperature: reverse_kl"),
        ({"lesson": {"objective": "reverse_kl"}, "rollout": {"top_p": 0.9}}, "rollout.top_p: reverse_kl estimates"),
        ({"schedule": {"mode": "streamed"}}, "schedule.mode: streamed is for reinforcement learning"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        DistillConfig.model_validate(fields)
    assert said in str(raised.value)


def test_a_teacher_that_is_the_model_itself_reads_worked_examples_of_arithmetic() -> None:
    config = DistillConfig()
    read = config.teacher.preface("arithmetic")
    assert read[:2] == (Message("user", "What is 21 + 4?"), Message("assistant", "21 + 4 = 25"))
    long = {"before": [{"role": "system", "content": "Think hard."}]}
    assert DistillConfig.model_validate({"teacher": long}).teacher.preface("arithmetic") == (
        Message("system", "Think hard."),
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"teacher.kind": "model", "teacher.model": "/nowhere/model"}, "there is no such file or folder"),
        (
            {"teacher.kind": "model", "teacher.model": "TINY", "teacher.adapter": "/nowhere"},
            "there is no adapter there",
        ),
        ({"teacher.renderer": "nonesuch"}, "teacher.renderer: 'nonesuch' is unknown"),
        ({"teacher.renderer": "role_colon"}, "end with another token"),
        ({"eval.metric_for_best_model": "loss"}, "eval.metric_for_best_model: 'loss' is not measured"),
        (
            {"teacher.kind": "server", "teacher.tokenizer": "QWEN", "lesson.objective": "top_k"},
            "teacher: its tokenizer is not the student's",
        ),
        (
            {
                "teacher.kind": "tinker",
                "teacher.tinker.model": "Qwen/Qwen3-8B",
                "teacher.tokenizer": "QWEN",
                "lesson.objective": "top_k",
            },
            "teacher: its tokenizer is not the student's",
        ),
        (
            {"teacher.kind": "server", "lesson.objective": "top_k", "teacher.server.api_key_env": "NO_SUCH_KEY"},
            "the environment variable NO_SUCH_KEY is not set",
        ),
    ],
)
def test_what_can_be_seen_before_a_run_is_told_before_it(
    fields: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fields.get("teacher.kind") == "tinker":
        pytest.importorskip("tinker", reason="install the extra `tinker`")
        monkeypatch.setenv("TINKER_API_KEY", "tml-key")
    qwen = Path(__file__).parents[1] / "golden" / "tokenizers" / "qwen3"
    given: dict[str, Any] = {"model": str(tiny_model), "cache_dir": str(tmp_path), "output_dir": str(tmp_path)}
    for path, value in fields.items():
        *sections, name = path.split(".")
        place = given
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = {"TINY": str(tiny_model), "QWEN": str(qwen)}.get(value, value)
    if given.get("teacher", {}).get("tokenizer"):
        given["teacher"]["renderer"] = "qwen3_instruct"
    with pytest.raises(ConfigError) as raised:
        check(DistillConfig.model_validate(given))
    assert said in str(raised.value)


def test_a_sound_configuration_is_let_through(tiny_model: Path, tmp_path: Path) -> None:
    given = {"model": str(tiny_model), "cache_dir": str(tmp_path), "output_dir": str(tmp_path)}
    check(DistillConfig.model_validate(given))
    check(DistillConfig.model_validate(given | {"teacher": {"kind": "model", "model": str(tiny_model)}}))


@pytest.mark.parametrize("name", ["use_dora", "use_rslora", "rank_pattern", "modules_to_save", "bias"])
def test_an_adapter_that_is_more_than_plain_lora_is_refused(tmp_path: Path, name: str) -> None:
    """Read as plain LoRA it would be another model: rsLoRA's scale is alpha / sqrt(r)."""
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", "use_dora": False}
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(plain))
    assert peft_of(tmp_path, "teacher").lora_alpha == 8
    values = {"rank_pattern": {"q_proj": 8}, "modules_to_save": ["lm_head"], "bias": "all"}
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(plain | {name: values.get(name, True)}))
    with pytest.raises(ConfigError, match=rf"teacher\.adapter: .*{name} is set there"):
        peft_of(tmp_path, "teacher")


def test_a_teacher_of_a_tag_that_no_problem_has_is_refused() -> None:
    """A misspelt tag would leave all problems to the other teacher, and nobody would see it."""
    tokenizer = FastTokenizer.from_folder(Path("crucible_train/assets/smollm2"))
    asked = problems("arithmetic", {}, get_renderer("smollm2", tokenizer), 0)
    check_tags(["arithmetic"], asked)
    with pytest.raises(ConfigError, match=r"teachers\.arithmatic: none of .*; theirs are arithmetic"):
        check_tags(["arithmetic", "arithmatic"], asked)
