"""``--dry-run`` of reinforcement learning: it shows what would be done, and leaves nothing behind."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from crucible_train import terminal, wiring
from crucible_train.config.sections import EngineConfig, PeftConfig
from crucible_train.errors import ConfigError
from crucible_train.recipes.rl import RLConfig
from crucible_train.rl.config import EnvConfig, RLOptimConfig
from crucible_train.rl.rollout_config import RolloutConfig
from crucible_train.stages.rl.plan import show_plan
from crucible_train.types import Estimate


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RLConfig:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(terminal, "_console", None)
    return RLConfig(
        model=str(tiny_model),
        env=EnvConfig(options={"num_held_out": 4}),
        output_dir=str(tmp_path / "runs"),
        cache_dir=str(tmp_path / "cache"),
        report_to=[],
        rollout=RolloutConfig(max_tokens=4),
        peft=PeftConfig(lora_r=2),
        train=RLOptimConfig(max_steps=3, groups_per_batch=2, num_generations=2, learning_rate=1e-3),
        engine=EngineConfig(precision="float32", num_threads=1, device="cpu"),
    )


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Callable[[RLConfig], str]:
    def show(config: RLConfig) -> str:
        capsys.readouterr()
        show_plan(config)
        return capsys.readouterr().out

    return show


def test_a_plan_shows_everything_and_stores_nothing(
    config: RLConfig, plan: Callable[[RLConfig], str], tmp_path: Path
) -> None:
    text = plan(config)
    assert RLConfig.model_validate(yaml.safe_load(text[: text.index("\nmachine ")])) == config
    assert re.search(r"^problems   drawn without end, 4 held out$", text, re.M)
    assert re.search(r"^stages     prepare model    nothing to do: ", text, re.M)
    for stage in ("evaluate before", "train", "evaluate after", "package"):
        assert re.search(rf"^           {stage} +to run$", text, re.M), stage
    told = "3 steps of 2 problems x 2 answers of up to 4 tokens, peak rate 0.001; 0.0 of 0.8 million weights"
    assert re.search(rf"^training   {told}$", text, re.M)
    assert re.search(r"^estimate   up to \d+ min of writing answers .* GiB of memory$", text, re.M)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "runs").exists()


def test_problems_are_shown_as_the_model_sees_them(
    config: RLConfig, plan: Callable[[RLConfig], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "estimate", lambda *_: Estimate(16, 10**6, 10**5, 1234.0, 3e3, 0.5, 2**31))
    found = re.findall(r"^arithmetic: ([^,\n]+), (\d+) tokens:\n(.*?)\n\n", plan(config), re.M | re.S)
    assert len(found) == 2
    tokenizer = wiring.tokenizer(Path(config.model))
    for asked, num_tokens, prompt in found:
        assert prompt.startswith("<|im_start|>system\n")
        assert f"<|im_start|>user\nWhat is {asked}?<|im_end|>\n<|im_start|>assistant" in prompt
        words = re.split(r"(<\|im_start\|>|<\|im_end\|>)", prompt)
        shown = sum(1 if word.startswith("<|im") else len(tokenizer.encode(word)) for word in words)
        assert 0 <= int(num_tokens) - shown <= 1  # the newline at the end


def test_a_config_that_would_stop_the_run_stops_the_plan(config: RLConfig) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        show_plan(config.model_copy(update={"model": "./nowhere"}))
    with pytest.raises(ConfigError, match=r"env\.options\.num_shot: "):
        show_plan(config.model_copy(update={"env": EnvConfig(options={"num_shot": 1})}))
