"""``python -m flows.sft``, once: what it prints, what it leaves, and whether that is what it says it is."""

import asyncio
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run_dir(finished: Any) -> Path:
    return finished[0].run_dir


def test_console_is_short_and_plain_and_ends_with_the_report(finished: Any) -> None:
    place, ended = finished
    assert len(ended.out.splitlines()) <= 25
    assert "\x1b" not in ended.out
    assert ended.err == ""
    assert ended.out.splitlines()[-1].split() == ["report", f"runs/{place.run_dir.name}/report.html"]
    assert re.search(r"machine +CPU, 1 of \d+ cores, float32", ended.out)


def test_run_folder_holds_what_is_promised(run_dir: Path) -> None:
    names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*")}
    assert names >= {
        "config.json",
        "record.json",
        "metrics.jsonl",
        "checkpoints.jsonl",
        "checkpoints/step-00000016/manifest.json",
        "eval/results.jsonl",
        "eval/summary.json",
        "report.html",
        "model/adapter_model.safetensors",
        "model/adapter_config.json",
        "model/tokenizer.json",
        "model/README.md",
    }
    assert not [name for name in names if ".tmp-" in name]


def test_every_step_is_recorded_once(run_dir: Path) -> None:
    assert [record["step"] for record in _lines(run_dir / "metrics.jsonl")] == list(range(17))


def test_listed_checkpoints_are_sound(run_dir: Path) -> None:
    from crucible_train import checkpoints

    entries = _lines(run_dir / "checkpoints.jsonl")
    assert entries[-1]["step"] == 16
    for entry in entries:
        assert checkpoints.verify(run_dir / entry["path"]) == entry["sha256"]


def test_config_keeps_null_and_booleans(run_dir: Path) -> None:
    config = json.loads((run_dir / "config.json").read_text())
    assert config["run_name"] is None
    assert config["peft"]["use_peft"] is True
    assert config["eval"]["early_stopping_patience"] is None


def test_record_says_by_what_the_run_was_made(run_dir: Path) -> None:
    record = json.loads((run_dir / "record.json").read_text())
    last = _lines(run_dir / "metrics.jsonl")[-1]
    assert record["run_id"] == run_dir.name
    assert record["config"] == json.loads((run_dir / "config.json").read_text())
    assert set(record["artifacts"]) == {
        "model",
        "conversations",
        "rendered",
        "before",
        "trained",
        "after",
        "package",
    }
    assert record["packages"]["torch"]
    assert record["hardware"]["num_cores"]
    assert record["final_metrics"]["eval/nll"] == pytest.approx(last["eval/nll"])
    assert record["wall_time_s"] > 0


def test_preflight_knows_every_metric_that_is_measured(run_dir: Path) -> None:
    from crucible_train.stages.sft_preflight import HELD_OUT_METRICS, STEP_METRICS

    last = _lines(run_dir / "metrics.jsonl")[-1]
    assert set(last) - {"step"} == {*STEP_METRICS, *HELD_OUT_METRICS}


class _Loads(HTMLParser):
    """Gathers what a browser would fetch, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input", "col"})

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "srcset", "poster", "action") and tag != "a":
                self.urls.append(value or "")
            self.urls += re.findall(r"url\(([^)]*)\)", value or "")


def test_report_needs_nothing_but_itself(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    page = _Loads()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "script" not in page.tags
    assert [url for url in page.urls if not url.startswith(("#", "data:"))] == []
    assert not re.search(r"@import|url\(\s*['\"]?http", text)


def test_report_shows_the_numbers(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    compared = json.loads((run_dir / "eval" / "summary.json").read_text())["compared"]
    assert compared[0]["name"] == "nll"
    for row in compared:
        assert row["name"] in text
    assert f"{compared[0]['after']['value']:.4g}" in text
    assert "<svg" in text
    assert "What is" in text


def test_published_model_gives_the_published_nll(finished: Any) -> None:
    """With transformers and peft alone, over the held-out rows."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from crucible_train.renderers import TrainOnWhat, get_renderer

    place, _ = finished
    run_dir, config = place.run_dir, place.config()
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32), run_dir / "model"
    ).eval()
    renderer = get_renderer("chat_template", AutoTokenizer.from_pretrained(run_dir / "model"))
    conversations = _lines(Path(config.dataset))
    records = [record for record in _lines(run_dir / "eval" / "results.jsonl") if record["kind"] == "nll"]
    published = json.loads((run_dir / "eval" / "summary.json").read_text())
    for side in ("before", "after"):
        total = num_tokens = 0.0
        for record in (record for record in records if record["model"] == side):
            messages = conversations[record["row"]]["messages"]
            model_input, weights = renderer.build_supervised_example(
                messages, train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES
            )
            tokens = torch.tensor(model_input.to_ints())
            with torch.no_grad(), model.disable_adapter() if side == "before" else torch.no_grad():
                logits = model(input_ids=tokens[None]).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none").numpy()
            total += float(losses @ weights[1:])
            num_tokens += float(np.sum(weights[1:] > 0))
        assert total / num_tokens == pytest.approx(published[side]["metrics"]["eval/nll"], rel=1e-5)


def test_training_lowered_the_loss(run_dir: Path) -> None:
    summary = json.loads((run_dir / "eval" / "summary.json").read_text())
    (nll,) = (row for row in summary["compared"] if row["name"] == "nll")
    assert nll["difference"]["high"] < 0
    assert nll["verdict"] == "better"


def test_what_training_measured_of_the_published_weights_is_what_loading_them_measures(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crucible_train import wiring
    from crucible_train.stages.base import open_artifact
    from crucible_train.stages.evaluate import Evaluate
    from crucible_train.stages.layout import RESULTS
    from crucible_train.stages.train import MEASURED
    from crucible_train.types import ArtifactRef

    place, _ = finished
    monkeypatch.chdir(place.folder)
    config = place.config("eval.num_samples=0")
    refs = json.loads((place.run_dir / "record.json").read_text())["artifacts"]
    store = wiring.blob_store(config.cache_dir)
    names = ("model", "conversations", "rendered", "trained")
    inputs = {name: open_artifact(store, ArtifactRef(**refs[name])) for name in names}
    stage = Evaluate(config, wiring.hardware(config.engine))
    again = {**inputs, "trained": tmp_path / "trained"}
    shutil.copytree(inputs["trained"], again["trained"], ignore=shutil.ignore_patterns(MEASURED))
    (tmp_path / "anew").mkdir()
    asyncio.run(stage.run(again, tmp_path / "anew"))
    monkeypatch.delattr(wiring, "training_client")
    (tmp_path / "known").mkdir()
    asyncio.run(stage.run(inputs, tmp_path / "known"))
    assert (tmp_path / "known" / RESULTS).read_bytes() == (tmp_path / "anew" / RESULTS).read_bytes()
    assert len(_lines(tmp_path / "known" / RESULTS)) == 6
