"""A judge compares what was answered before and after training: real models that say what their weights make them."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from crucible_train import files
from crucible_train.config.command import parse_command
from crucible_train.journal import read_events
from crucible_train.recipes.dpo import DPOConfig
from crucible_train.report.win_rate import gather_win_rate, win_rate_lines
from crucible_train.stages.answers import read_answers
from crucible_train.stages.dpo.answers import AnswerPreferences
from crucible_train.stages.dpo.prepare_data import PreparePreferences
from crucible_train.stages.dpo.render import RenderPreferences
from crucible_train.stages.tracked import note_results
from crucible_train.stages.win_rate import CompareAnswers, report
from crucible_train.types import Hardware

HARDWARE = Hardware("cpu", "float32", 1, "CPU")


def config(*words: str) -> DPOConfig:
    given = ["engine.num_threads=1", "eval.max_new_tokens=4", "win_rate.num_prompts=4", *words]
    found: DPOConfig = parse_command(DPOConfig, given, "dpo").config
    return found


def always(word: str, tiny_model: Path, folder: Path) -> Path:
    """A model that begins to write the same word whatever it reads: nothing of its input reaches its head."""
    import torch
    from transformers import AutoModelForCausalLM

    from crucible_train.renderers import FastTokenizer

    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=False)
    token, *_ = FastTokenizer.from_folder(tiny_model).encode(word)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                weight.zero_()
        model.get_input_embeddings().weight.fill_(1.0)
        model.get_output_embeddings().weight[token] = 1.0
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """A model and preferences, two of each prompt, of which twelve are held out."""
    place = tmp_path_factory.mktemp("inputs")
    rows = [
        {"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": wrong}
        for i in range(12)
        for wrong in ("No.", f"No, {i}.")
    ]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = config(f"dataset={place / 'pairs.jsonl'}", "data.eval_split=0.5")
    found = {"model": tiny_model}
    for name, stage in {"conversations": PreparePreferences(given), "rendered": RenderPreferences(given)}.items():
        (place / name).mkdir()
        asyncio.run(stage.run(found, place / name))
        found[name] = place / name
    return found


@pytest.fixture
def answered(inputs: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """What the model answers, and the same with other words, as if another had."""
    found = inputs | {f"answers_{side}": tmp_path / f"answers_{side}" for side in ("before", "after")}
    for side in ("before", "after"):
        found[f"answers_{side}"].mkdir()
    asyncio.run(AnswerPreferences(config(), HARDWARE).run(inputs, found["answers_before"]))
    rows = files.read_json_lines(found["answers_before"] / "results.jsonl")
    text = "".join(json.dumps(row | {"text": f"number {row['row']}"}) + "\n" for row in rows)
    (found["answers_after"] / "results.jsonl").write_text(text)
    return found


def compared(answered: dict[str, Path], folder: Path, *words: str) -> dict[str, object]:
    folder.mkdir()
    asyncio.run(CompareAnswers(config(*words), HARDWARE).run(answered, folder))
    return dict(files.read_json(folder / "summary.json"))


def test_every_prompt_is_answered_once_and_greedily(inputs: dict[str, Path], answered: dict[str, Path]) -> None:
    asked, given = read_answers(answered["answers_before"])
    assert len({question.messages for question in asked}) == len(asked) == len(given) == 4
    assert all(question.text.startswith("What is") for question in asked)
    assert [one.row for one in given] == [question.row for question in asked]
    assert {one.num_tokens for one in given} == {4}
    many = AnswerPreferences(config("win_rate.num_prompts=99"), HARDWARE).questions(inputs)
    assert list(many)[:4] == asked
    assert len(many) == len({question.messages for question in many}) < 12


def test_a_judge_that_always_says_the_first_finds_ties_and_is_told_of(
    answered: dict[str, Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = always("A", tiny_model, tmp_path / "judge")
    found = compared(answered | {"judge": judge}, tmp_path / "found", f"win_rate.judge={judge}")
    assert (found["num"], found["verdict"], found["num_same"]) == (4, "no clear difference", 0)
    assert [found[name]["value"] for name in ("win_rate", "wins", "ties", "losses")] == [0.5, 0, 1, 0]  # type: ignore[index]
    position = found["position"]
    assert position["bias"] > 0.4  # type: ignore[index]
    assert position["flip_share"] == 1  # type: ignore[index]
    assert found["metrics"]["eval/position_flips"] == 1  # type: ignore[index]
    facts = gather_win_rate(tmp_path / "found")
    assert facts is not None
    assert facts.caveat is not None
    assert facts.counts == {"won": 0, "tied": 4, "lost": 0}
    assert {match.verdict for match in facts.shown} == {"tie"}
    assert facts.shown[0].after.startswith("number ")
    text = "\n".join(win_rate_lines(facts))
    assert "0 won, 4 tied, 0 lost" in text
    assert "little can be read from these figures" in text
    report(found, is_cached=False)
    assert "the verdict flips with the order in 100%" in capsys.readouterr().out


def test_a_judge_that_always_says_tie_is_not_said_to_heed_the_order(
    answered: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    judge = always("Tie", tiny_model, tmp_path / "judge")
    found = compared(answered | {"judge": judge}, tmp_path / "found", f"win_rate.judge={judge}")
    assert found["ties"]["value"] == 1  # type: ignore[index]
    assert found["position"] == {"num": 4, "bias": pytest.approx(0, abs=1e-6), "flip_share": 0}
    facts = gather_win_rate(tmp_path / "found")
    assert facts is not None
    assert facts.caveat is None


def test_a_reward_model_judges_by_its_numbers(answered: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    judge = shutil.copytree(tiny_model, tmp_path / "judge")
    save_file({"weight": torch.linspace(-40, 40, 16)}, judge / "scalar_head.safetensors")
    found = compared(answered | {"judge": judge}, tmp_path / "found", f"win_rate.judge={judge}")
    turned = answered | {"answers_before": answered["answers_after"], "answers_after": answered["answers_before"]}
    other = compared(turned | {"judge": judge}, tmp_path / "turned", f"win_rate.judge={judge}")
    assert found["position"] == {"num": 4, "bias": 0, "flip_share": 0}
    assert found["wins"]["value"] == other["losses"]["value"] != found["losses"]["value"]  # type: ignore[index]
    assert found["win_rate"]["value"] == pytest.approx(1 - other["win_rate"]["value"])  # type: ignore[index]


def test_the_model_before_training_judges_where_none_is_named(answered: dict[str, Path], tmp_path: Path) -> None:
    found = compared(answered, tmp_path / "found")
    assert found["judge"] == "the model before training"
    rows = files.read_json_lines(tmp_path / "found" / "results.jsonl")
    assert [row["kind"] for row in rows] == ["match"] * 4
    _, given = read_answers(answered["answers_before"])
    assert [row["answers"]["y"] for row in rows] == [one.text for one in given]


def test_where_nothing_is_held_out_nothing_is_compared(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rendered").mkdir()
    given = config(f"dataset={inputs['conversations']}", "data.eval_split=0")
    asyncio.run(RenderPreferences(given).run(inputs, tmp_path / "rendered"))
    (tmp_path / "answers").mkdir()
    asyncio.run(
        AnswerPreferences(given, HARDWARE).run(inputs | {"rendered": tmp_path / "rendered"}, tmp_path / "answers")
    )
    sides = {"answers_before": tmp_path / "answers", "answers_after": tmp_path / "answers"}
    found = compared(inputs | sides, tmp_path / "found")
    assert found == {"num": 0, "metrics": {}, "judge": "the model before training"}
    report(found, is_cached=True)
    assert "no held-out prompt was there to be answered [cached]" in capsys.readouterr().out
    assert "no held-out prompt" in "\n".join(win_rate_lines(gather_win_rate(tmp_path / "found")))


def test_trackers_get_the_figures_at_the_last_step(tmp_path: Path) -> None:
    figures = {"eval/win_rate": 0.75, "eval/ties": 0.5}
    (tmp_path / "eval").mkdir()
    files.write_json(tmp_path / "eval" / "summary.json", {"compared": [], "win_rate": {"num": 4, "metrics": figures}})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 6}\n')
    for _ in range(2):
        note_results(tmp_path, "none")
    [event] = [event for event in read_events(tmp_path) if event["event"] == "metrics"]
    assert (event["values"], event["step"]) == (figures, 6)
