"""What the configurations of all flows have in common.

Each flow declares these fields itself, in the order in which its users read them; here stands what code that serves
every flow may count on.
"""

from typing import TYPE_CHECKING

from crucible_train.config.base import Section
from crucible_train.config.judge import WinRateConfig
from crucible_train.config.sections import (
    AnswerConfig,
    ChatFormatConfig,
    CheckpointConfig,
    EngineConfig,
    PeftConfig,
    TrackingConfig,
)


class RunConfig(Section):
    """One run: a model, where it comes from and goes to, and how it is computed."""

    if TYPE_CHECKING:
        model: str
        output_dir: str
        run_name: str | None
        seed: int
        report_to: list[str]
        cache_dir: str
        data: ChatFormatConfig
        peft: PeftConfig
        engine: EngineConfig
        checkpoint: CheckpointConfig
        tracking: TrackingConfig


class JudgedConfig(RunConfig):
    """A run whose model can be put beside the one before it."""

    if TYPE_CHECKING:
        eval: AnswerConfig
        win_rate: WinRateConfig
