"""Which model judges, and what of a run it judges."""

from typing import Self

from pydantic import ValidationError, model_validator

from crucible_train.config.base import Section, option
from crucible_train.config.server import ServerConfig


class JudgeConfig(Section):
    """Which model says which of two answers is better."""

    judge: str | None = option(
        None,
        "folder or hub id of the preference model, or of its tokenizer; null: the model as it is before training",
        advanced=True,
    )
    judge_renderer: str = option("auto", "its chat format; auto takes its own", advanced=True)
    judge_url: str | None = option(
        None, "address of an OpenAI-compatible server that judge is asked at; null: here", advanced=True
    )
    judge_served_name: str = option("", "its name on that server; empty takes the only one", advanced=True)
    judge_api_key_env: str = option(
        "", "name of the environment variable that holds the server's key; empty: none", advanced=True
    )

    @property
    def judge_server(self) -> ServerConfig | None:
        """Where the judge is asked, if not in this process."""
        if self.judge_url is None:
            return None
        return ServerConfig(base_url=self.judge_url, model=self.judge_served_name, api_key_env=self.judge_api_key_env)

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if self.judge_url is not None and self.judge is None:
            raise ValueError("judge: a server's model needs the folder or hub id of its tokenizer")
        if self.judge_url is None and (self.judge_served_name or self.judge_api_key_env):
            raise ValueError("judge_url: a served name or a key is of no use without it")
        if self.judge is None and self.judge_renderer != "auto":
            raise ValueError("judge_renderer: the model before training judges in data.renderer")
        try:
            self.judge_server  # noqa: B018 - refuses an address that is none, and a key in place of its variable
        except ValidationError as error:
            words = "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
            raise ValueError(f"judge_url: {words}") from None
        return self


class WinRateConfig(JudgeConfig):
    """The trained model's answers beside those of the model before it, in the eyes of a judge."""

    num_prompts: int = option(
        0,
        "held-out prompts, as far as there are so many, that both models answer and the judge compares, 0 or more; 0 "
        "compares nothing",
        ge=0,
        advanced=True,
    )

    @model_validator(mode="after")
    def _check_use(self) -> Self:
        if self.judge is not None and not self.num_prompts:
            raise ValueError("num_prompts must be 1 or more where a judge is named")
        return self
