"""The page, the summary and the charts of a run, laid out from planted facts."""

import re
from dataclasses import replace
from typing import Any

import pytest

from crucible_train.evaluation.comparison import compare, compare_ended
from crucible_train.report.charts import loss_chart, overlaid_chart, small_chart, svg
from crucible_train.report.facts import RunFacts
from crucible_train.report.page import page
from crucible_train.report.summary import summary


def records(num: int, nll: float, *, is_right: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"kind": "nll", "row": i, "nll": nll + i, "num_tokens": 10} for i in range(num)]
    scores = {"final_answer": float(is_right)}
    return found + [{"kind": "answer", "row": i, "scores": scores, "ended": is_right} for i in range(num)]


def facts(num: int = 8, **data: Any) -> RunFacts:
    """Of a run with ``num`` held-out examples."""
    before, after = records(num, 30.0, is_right=False), records(num, 20.0, is_right=True)
    part = {"num_examples": num, "num_tokens": 100, "num_trained_tokens": 50}
    return RunFacts(
        title="a run",
        config={"model": "m", "dataset": "d", "run_name": None, "peft": {"use_peft": True}, "report_to": ["console"]},
        changed={"train.max_steps": None, "peft.use_peft": False, "run_name": "null"},
        command="python -m flows.sft",
        compared=compare(before, after, 0),
        ended=compare_ended(before, after),
        samples=[],
        metrics=[{"step": step, "train/loss": 1.0 / step} for step in (1, 2)],
        timings=[],
        result={"num_steps": 2, "stopped_early": False, "published_step": 2},
        data={"source": "d", "format": "messages", "columns": ["messages"], "num_rows": 12} | data,
        rendered={"renderer": "smollm2", "train": part, "validation": part},
        bad_rows=[],
        num_bad_rows={},
        hardware="CPU",
        win_rate=None,
    )


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of the page's two-column and wider tables, tags taken out, by their first cell."""
    rows = (re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", text, re.S))
    plain = ([" ".join(re.sub(r"<[^>]*>", "", cell).split()) for cell in row] for row in rows)
    return {row[0]: row[1:] for row in plain if row}


def test_one_example_has_no_interval() -> None:
    one = facts(1)
    row = rows_of(page(one))["nll"]
    assert row == ["3", "2", "-1", "", "one example, no interval", "1"]
    assert "| nll | 3 | 2 | -1 | one example, no interval |" in summary(one)
    assert "[-1, -1]" not in page(one) + summary(one)


def test_several_examples_have_one() -> None:
    row = rows_of(page(facts()))["nll"]
    assert re.fullmatch(r"3\.35 \[3\.\d+, 3\.\d+\]", row[0])
    assert re.fullmatch(r"\[-1, -1\]", row[3])
    assert re.search(r"\| nll \| 3\.35 \| 2\.35 \| -1 \[-1, -1\] \| better \|", summary(facts()))


def test_how_many_answers_were_ended_is_in_the_table() -> None:
    row = rows_of(page(facts()))["ended"]
    assert [cell.partition(" ")[0] for cell in row[:3]] == ["0", "1", "+1"]
    assert "| ended | 0 | 1 |" in summary(facts())


def test_the_configuration_is_written_as_the_command_line_takes_it() -> None:
    rows = rows_of(page(facts()))
    assert rows["train.max_steps"] == ["null"]
    assert rows["run_name"] == ["null"]  # of everything; the changed one is a text, so quoted
    assert "<td>&#34;null&#34;</td>" in page(facts())
    assert rows["peft.use_peft"] == ["true"]
    assert "<td>peft.use_peft</td><td>false</td>" in page(facts())
    assert rows["report_to"] == ["[console]"]
    assert rows["model"] == ["m"]


def test_the_format_is_said_once_where_its_only_column_has_its_name() -> None:
    assert rows_of(page(facts()))["format"] == ["messages"]
    named = facts(format="prompt_completion", columns=["question", "answer"])
    assert rows_of(page(named))["format"] == ["prompt_completion (question, answer)"]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 23, 1000])
def test_steps_are_whole_numbers(num_steps: int) -> None:
    metrics = [{"step": step + 1, "train/loss": 1.0} for step in range(num_steps)]
    for figure in (loss_chart(metrics), small_chart(metrics, "train/loss", "loss")):
        figure.canvas.draw()
        ticks = figure.axes[0].get_xticks()
        assert len(ticks) >= 1
        assert all(float(tick).is_integer() for tick in ticks)


@pytest.mark.parametrize("name", ["eval/$x_{", "eval/$100$", "eval/^_$\\frac$"])
def test_a_metric_may_have_any_name(name: str) -> None:
    charts = [overlaid_chart([(0, [(1, 1.0), (2, 2.0)])], name, is_large=True)]
    charts.append(small_chart([{"step": 1, name: 1.0}], name, name))
    for chart in charts:
        assert f">{name}<" in svg(chart)


def test_how_busy_the_machine_was_is_drawn_where_it_was_measured() -> None:
    heading, curves = "The machine while it trained", ("processor, % of all cores", "memory of the run, GiB")
    assert heading not in page(facts())
    loads = [{"step": step, "system/memory_gib": 1.5, "system/cpu_percent": 50.0 + step} for step in (1, 2)]
    text = page(replace(facts(), timings=loads))
    assert [text.count(told) for told in (heading, *curves, "GPU")] == [1, 1, 1, 0]
    loads[1]["system/gpu_percent"] = 90.0
    assert page(replace(facts(), timings=loads)).count("GPU, % of the time") == 1
