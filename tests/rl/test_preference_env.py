"""Prompts whose answers a preference model judges."""

import asyncio
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from crucible_train import wiring
from crucible_train.config.sections import PeftConfig
from crucible_train.errors import ConfigError, DataError, ModelError
from crucible_train.judges import SCALAR_HEAD, RewardJudge
from crucible_train.recipes.rl import RLConfig
from crucible_train.renderers import get_renderer
from crucible_train.rl.environments import problems
from crucible_train.stages.rl.evaluate import EvaluateRL
from crucible_train.stages.rl.problems import opened, sources
from crucible_train.types import Hardware, Message
from tests.rl.conftest import Scripted, play, play_group

HARDWARE = Hardware("cpu", "float32", 1, "CPU")


def rows(tmp_path: Path, num: int = 6, **row: str) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {n}"} | row) + "\n" for n in range(num)), encoding="utf-8")
    return str(path)


def longer(prompt, a, b):
    return float((len(a.text) > len(b.text)) - (len(a.text) < len(b.text)))


def made(renderer, source, judge=longer, **options):
    return problems(
        "preference", {"dataset": source, "num_held_out": 2} | options, renderer, 0, wiring.dataset_store(), judge
    )


def test_a_group_is_judged_among_itself_and_held_out_prompts_beside_the_data(tmp_path, smollm2):
    found = made(smollm2, rows(tmp_path, completion="xx"), scale=0.5)
    left = iter(["aaa", "a", "aa"])
    group = play_group(found.train(0), Scripted(smollm2, lambda text: next(left)), 3)
    assert group is not None
    assert group.rewards_G == pytest.approx((0.5, -0.5, 0.0))
    assert dict(group.trajectories_G[0].transitions[0].reward_parts) == {"format": 1.0}
    [transition] = play(found.held_out[0].make_env(), Scripted(smollm2, lambda text: "aaa")).transitions
    assert (transition.reward, dict(transition.reward_parts)) == (0.5, {"preferred": 1.0, "format": 1.0})
    assert dict(transition.metrics) == {"position_bias": 0.0, "position_flips": 0.0}
    assert play_group(found.held_out[0], Scripted(smollm2, lambda text: "a"), 1).rewards_G == (-0.5,)


def test_training_too_may_be_judged_beside_the_data(tmp_path, smollm2):
    found = made(smollm2, rows(tmp_path, completion="xx"), against="reference")
    left = iter(["aaa", "a", "aa"])
    group = play_group(found.train(0), Scripted(smollm2, lambda text: next(left)), 3)
    assert group.rewards_G == (1.0, -1.0, 0.0)
    assert group.group_rewards_G == (0.0, 0.0, 0.0)


def test_a_judge_that_says_a_rewards_nothing_and_is_told_of(tmp_path, smollm2):
    found = made(smollm2, rows(tmp_path, completion="xx"), lambda prompt, a, b: 1.0, against="reference")
    [transition] = play(found.train(0).make_env(), Scripted(smollm2, lambda text: "aaa")).transitions
    assert transition.reward == 0.0
    assert dict(transition.metrics) == {"position_bias": 1.0, "position_flips": 1.0}


def test_an_answer_that_is_cut_off_costs(tmp_path, smollm2):
    found = made(smollm2, rows(tmp_path, completion="x"), against="reference", format_coef=0.25)
    client = Scripted(smollm2, lambda text: "one two three four")
    assert play(found.train(0).make_env(), client, max_tokens=2).reward == pytest.approx(0.75)


def test_what_cannot_be_done_is_refused(tmp_path, smollm2):
    alone = rows(tmp_path)
    with pytest.raises(DataError, match="no answer to be judged beside"):
        made(smollm2, alone)
    with pytest.raises(DataError, match="no answer to be judged beside"):
        made(smollm2, alone, num_held_out=0, against="reference")
    assert made(smollm2, alone, num_held_out=0).num_train == 6
    with pytest.raises(ConfigError, match="has no judge"):
        asyncio.run(made(smollm2, alone, None, num_held_out=0).train(0).group_reward(two_answers()))


def two_answers():
    from crucible_train.rl.environment import StopReason, Trajectory

    return [Trajectory((), StopReason.COMPLETED, (Message("user", "q"), Message("assistant", text))) for text in "ab"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"judge_url": "http://127.0.0.1:1"}, "judge: a server's model needs"),
        ({"judge": "m", "judge_url": "ftp://x"}, "judge_url: base_url must be the http or https address"),
        ({"judge": "m", "judge_url": "http://h", "judge_api_key_env": "sk-1"}, "name of an environment variable"),
        ({"judge_served_name": "m"}, "judge_url: a served name"),
        ({"judge_renderer": "qwen3"}, "judge_renderer: the model before training"),
        ({"against": "all"}, "against"),
    ],
)
def test_options_that_contradict_each_other_are_refused(smollm2, options, told):
    with pytest.raises(ConfigError, match=told):
        problems("preference", options, smollm2, 0, wiring.dataset_store(), longer)


# In the stages --------------------------------------------------------------------------------------------------------


def config_of(source: str, model: Path, **options) -> RLConfig:
    return RLConfig.model_validate(
        {
            "model": str(model),
            "env": {"name": "preference", "options": {"dataset": source, "num_held_out": 2} | options},
            "rollout": {"max_tokens": 4, "on_error": "fail_fast"},
            "peft": {"use_peft": False},
            "engine": {"num_threads": 1, "precision": "float32", "device": "cpu"},
        }
    )


@pytest.mark.parametrize("named", [False, True])
def test_a_stage_measures_with_the_model_before_training_or_a_named_one(tmp_path, tiny_model, capsys, named):
    source, folder = rows(tmp_path, completion="xx"), tmp_path / "out"
    folder.mkdir()
    options = {"judge": str(tiny_model), "judge_renderer": "smollm2"} if named else {}
    config = config_of(source, tiny_model, **options)
    asyncio.run(EvaluateRL(config, HARDWARE).run({"model": tiny_model}, folder))
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(-1 < line["parts"]["preferred"] < 1 and line["parts"]["preferred"] != 0 for line in lines)
    assert "2 pairs in both orders: position bias" in capsys.readouterr().out
    again = tmp_path / "again"
    again.mkdir()
    asyncio.run(EvaluateRL(config, HARDWARE).run({"model": tiny_model}, again))
    assert (again / "results.jsonl").read_bytes() == (folder / "results.jsonl").read_bytes()


def test_a_judge_with_a_scalar_head_gives_rewards(tmp_path, tiny_model):
    """Its score is tanh of half the difference of rewards, the same in both orders."""
    judge = shutil.copytree(tiny_model, tmp_path / "judge")
    head = np.linspace(-1, 1, 16, dtype=np.float32)
    save_file({"weight": head}, judge / SCALAR_HEAD)
    source, folder = rows(tmp_path, completion="xx"), tmp_path / "out"
    folder.mkdir()
    config = config_of(source, tiny_model, judge=str(judge), judge_renderer="smollm2")
    asyncio.run(EvaluateRL(config, HARDWARE).run({"model": tiny_model}, folder))
    line = json.loads((folder / "results.jsonl").read_text().splitlines()[0])
    *asked, answer = [Message.of(message) for message in line["messages"]]

    async def expected():
        tokenizer = wiring.tokenizer(judge)
        settings = (PeftConfig(use_peft=False), config.engine, HARDWARE, tmp_path)
        model = wiring.reward_model(judge, *settings, name="judge", seed=0)
        try:
            both = await RewardJudge(model, get_renderer("smollm2", tokenizer)).rewards(
                asked, [answer, Message("assistant", "xx")]
            )
        finally:
            await model.close()
        return math.tanh((both[0] - both[1]) / 2)

    assert line["parts"]["preferred"] == pytest.approx(asyncio.run(expected()), abs=1e-5)
    assert line["parts"]["preferred"] != 0


def test_nothing_is_loaded_before_an_answer_is_judged(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(wiring, "training_client", None)
    config = config_of(rows(tmp_path, completion="xx"), tiny_model)

    async def look():
        async with opened(config, tiny_model, wiring.tokenizer(tiny_model), HARDWARE) as found:
            return len(found.held_out)

    assert asyncio.run(look()) == 2


def test_the_judge_decides_the_key(tmp_path, tiny_model):
    source = rows(tmp_path, completion="xx")
    judge = shutil.copytree(tiny_model, tmp_path / "judge")

    def key(**options):
        return EvaluateRL(config_of(source, tiny_model, **options), HARDWARE).key({})

    before = key(judge=str(judge))
    assert before == key(judge=str(judge)) != key()
    (judge / "config.json").write_text((judge / "config.json").read_text() + "\n")
    assert key(judge=str(judge)) != before
    server = {"judge": str(judge), "judge_url": "http://127.0.0.1:1/v1"}
    assert key(**server) != key(**server | {"judge_url": "http://127.0.0.1:2"})
    assert sources(config_of(source, tiny_model, **server))[-1].endswith(" http://127.0.0.1:1 ")


def test_a_judge_must_be_a_model_folder(tmp_path, tiny_model):
    source = rows(tmp_path, completion="xx")
    with pytest.raises(ModelError, match="no such file or folder"):
        sources(config_of(source, tiny_model, judge=str(tmp_path / "none")))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"x")
    with pytest.raises(ConfigError, match="folder or hub id of a transformers model"):
        sources(config_of(source, tiny_model, judge=str(gguf)))
