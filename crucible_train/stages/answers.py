"""A model's answers to held-out prompts, for a judge to put beside those of another."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from crucible_train import files, terminal
from crucible_train.config.run_config import JudgedConfig
from crucible_train.config.sections import ANSWER_FIELDS
from crucible_train.evaluation.answers import Answer, Question, answer
from crucible_train.stages.base import Stage
from crucible_train.stages.chat_format import renderer_of
from crucible_train.stages.layout import RESULTS
from crucible_train.stages.publishing import FROZEN, open_client
from crucible_train.stages.train import hardware_identity
from crucible_train.types import ArtifactRef, Hardware, conversation

ConfigT = TypeVar("ConfigT", bound=JudgedConfig)


class AnswerPrompts(Stage[ConfigT]):
    """Answers held-out prompts.

    The model before training is loaded frozen: its answers do not depend on how another is trained from it.
    """

    reads = (
        "seed",
        "model",
        "data.eval_split",
        "data.renderer",
        "data.renderer_options",
        *(f"eval.{name}" for name in ANSWER_FIELDS),
        "win_rate.num_prompts",
    )
    uses = ("engine", "peft")
    code = (
        "evaluation.answers",
        "data",
        "renderers",
        "types",
        "seeds",
        "stages.answers",
        "stages.chat_format",
        "stages.held_out",
        "stages.publishing",
        "adapters.torch_local",
    )
    libraries = ("torch", "transformers", "peft")

    def __init__(self, config: ConfigT, hardware: Hardware) -> None:
        """Answer on this hardware."""
        super().__init__(config)
        self._hardware = hardware

    def identity(self, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """Device and precision decide the bits of the output; the adapter's shape does where it is trained."""
        more: dict[str, Any] = {"hardware": hardware_identity(self._hardware)}
        if "trained" in inputs:
            more["peft"] = self.config.peft.model_dump()
        return super().identity(inputs) | more

    @abstractmethod
    def questions(self, inputs: Mapping[str, Path]) -> Sequence[Question]:
        """The prompts to answer, from ``conversations`` and ``rendered``."""

    async def run(self, inputs: Mapping[str, Path], folder: Path) -> None:
        """Have the model before training answer, or, where ``trained`` is among the inputs, the trained one."""
        asked = self.questions(inputs)
        answers = await self._answers(inputs, folder, asked) if asked else []
        rows = [_row(question, given) for question, given in zip(asked, answers, strict=True)]
        files.write_text(folder / RESULTS, "".join(json.dumps(row) + "\n" for row in rows))

    async def _answers(self, inputs: Mapping[str, Path], folder: Path, asked: Sequence[Question]) -> list[Answer]:
        config, trained = self.config, inputs.get("trained")
        if trained is None:
            config = config.model_copy(update={"peft": FROZEN})
        terminal.field("answering", f"{len(asked)} held-out prompts by the model {'after' if trained else 'before'}")
        client = await open_client(config, inputs["model"], self._hardware, folder / "unused", trained)
        try:
            renderer = renderer_of(config, inputs["model"], client.tokenizer())
            sampler = client.sampling_client(with_adapter=trained is not None)
            return await answer(sampler, renderer, asked, {}, config.eval, config.seed)
        finally:
            await client.close()


def read_answers(folder: Path) -> tuple[list[Question], list[Answer]]:
    """What was asked and what was answered."""
    rows = files.read_json_lines(folder / RESULTS)
    asked = [Question(row["row"], conversation(row["messages"]), "", tuple(row["tools"])) for row in rows]
    given = [Answer(row["row"], row["text"], row["ended"], row["num_tokens"], row["scores"]) for row in rows]
    return asked, given


def _row(question: Question, given: Answer) -> dict[str, Any]:
    messages = [message.to_dict() for message in question.messages]
    return {"kind": "answer", "messages": messages, "tools": [dict(tool) for tool in question.tools], **asdict(given)}
