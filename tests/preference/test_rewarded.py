"""What a reward model is trained on is what it judges, in every chat format."""

import json
from pathlib import Path

import pytest

from crucible_train.adapters.row_store.store import RowStore
from crucible_train.config.sections import PreferenceDataConfig
from crucible_train.data.preference_preparation import prepare
from crucible_train.data.preference_rendering import render
from crucible_train.data.preference_tables import RenderedPreferences
from crucible_train.data.render_rows import RendererSpec
from crucible_train.data.rendering import TRAIN
from crucible_train.judges import reward_input
from crucible_train.preference.datums import rewarded_datum
from crucible_train.types import Message
from tests.conftest import ROOT

SMOLLM2, GOLDEN = ROOT / "crucible_train" / "assets" / "smollm2", ROOT / "tests" / "golden" / "tokenizers"
FORMATS = [
    ("smollm2", SMOLLM2),
    ("role_colon", SMOLLM2),
    ("qwen3", GOLDEN / "qwen3"),
    ("qwen3_instruct", GOLDEN / "qwen3"),
    ("deepseekv3", GOLDEN / "deepseek_v3"),
    ("kimi_k2", GOLDEN / "kimi_k2"),
]
PROMPTS = [
    [{"role": "user", "content": "2 + 2?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "2 + 2?"},
    ],
]


@pytest.mark.parametrize(("name", "folder"), FORMATS, ids=[name for name, _ in FORMATS])
def test_what_is_trained_is_what_is_judged(name: str, folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "chosen": "It is 4.", "rejected": "5\n"} for prompt in PROMPTS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, spec = PreferenceDataConfig(eval_split=0.0), RendererSpec(name, {}, folder)
    prepare(RowStore(), str(tmp_path / "pairs.jsonl"), config, tmp_path)
    render(tmp_path, spec, config, 0, tmp_path / "rendered")
    rendered, renderer = RenderedPreferences(tmp_path / "rendered" / TRAIN), spec.make()
    assert len(rendered) == 2
    for row in rendered:
        asked = [Message.of(message) for message in PROMPTS[row.row]]
        for number, side in row.sides:
            answer = Message("assistant", rows[row.row]["chosen" if number > 0 else "rejected"])
            judged = reward_input(renderer, asked, answer).to_ints()
            assert rewarded_datum(side, 1.0).model_input.to_ints() == judged
