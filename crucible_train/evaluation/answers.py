"""What a model answers to held-out prompts, and how the answers score."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from crucible_train.config.sections import AnswerConfig
from crucible_train.data.tables import Dialogues
from crucible_train.evaluation.scorers import Scorer
from crucible_train.ports import SamplingClient
from crucible_train.renderers import Renderer
from crucible_train.seeds import fold
from crucible_train.types import Message, SamplingParams


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out prompt, the tools its assistant may call, and the answer the data gives."""

    row: int
    messages: tuple[Message, ...]
    reference: str
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """The last words before the answer."""
        return self.messages[-1].text


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote to a question, how it ended and how it scores."""

    row: int
    text: str
    ended: bool
    num_tokens: int
    scores: Mapping[str, float]


def questions(dialogues: Dialogues, rows: Sequence[int], num: int) -> list[Question]:
    """The first ``num`` conversations of ``rows`` that end with an assistant's answer, without that answer."""
    read = ((row, dialogues[row]) for row in rows)
    fit = (
        Question(row, dialogue.messages[:-1], dialogue.messages[-1].text, dialogue.tools)
        for row, dialogue in read
        if len(dialogue.messages) > 1 and dialogue.messages[-1].role == "assistant"
    )
    return list(islice(fit, num))


async def answer(
    client: SamplingClient,
    renderer: Renderer,
    asked: Sequence[Question],
    scorers: Mapping[str, Scorer],
    config: AnswerConfig,
    seed: int,
) -> list[Answer]:
    """Ask every question at once; one answer each."""
    stops = renderer.stop_sequences()

    async def ask(question: Question) -> Answer:
        params = SamplingParams(
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=fold(seed, "answer", question.row),
            stop_token_ids=tuple(stop for stop in stops if isinstance(stop, int)),
            stop_texts=tuple(stop for stop in stops if isinstance(stop, str)),
        )
        prompt = renderer.build_generation_prompt(question.messages, question.tools or None)
        (written,) = await client.sample(prompt, 1, params)
        parsed = renderer.parse_response(written.tokens, question.messages)
        text = parsed.message.text
        scores = {name: scorer(text, question.reference) for name, scorer in scorers.items()}
        return Answer(question.row, text, parsed.termination.is_clean, len(written.tokens), scores)

    return list(await asyncio.gather(*(ask(question) for question in asked)))


def answer_metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """The mean of each score, and the share of answers the model ended itself."""
    if not answers:
        return {}
    means = {f"eval/{name}": sum(a.scores[name] for a in answers) / len(answers) for name in answers[0].scores}
    return means | {"eval/ended": sum(a.ended for a in answers) / len(answers)}
