"""The groups of fields of distillation."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import model_validator

from crucible_train.config.base import Section, option
from crucible_train.config.server import ServerConfig
from crucible_train.config.tinker import TinkerConfig
from crucible_train.types import Message

WORKED_EXAMPLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "arithmetic": tuple((f"What is {a} + {b}?", f"{a} + {b} = {a + b}") for a, b in ((21, 4), (8, 23), (30, 5))),
}
"""Questions and answers by environment, which a teacher reads where nothing else is given. None is asked there."""


class TeacherConfig(Section):
    """Who teaches, and what it reads before the conversation that the student does not."""

    kind: Literal["start", "student", "model", "server", "tinker"] = option(
        "start",
        "the model before training; the model as it is trained; another local model; a model server; or the Tinker "
        "service",
    )
    model: str | None = option(None, "model only: a folder, a GGUF file, a hub id, or the built-in model's name")
    adapter: str | None = option(None, "model only: folder of an adapter of that model, such as a run's `model`")
    server: ServerConfig = option(ServerConfig(), "server only: where it is")
    tinker: TinkerConfig = option(TinkerConfig(), "tinker only: which model of the service")
    tokenizer: str | None = option(
        None, "server, tinker: folder with its model's tokenizer; null: it is the student's", advanced=True
    )
    renderer: str = option(
        "auto", "its chat format; auto takes its model's own, or without a folder of it the student's"
    )
    renderer_options: dict[str, str | int | float | bool | None] = option(
        {}, "options of that renderer, by name", advanced=True
    )
    before: list[dict[str, str]] | None = option(
        None,
        "messages that the teacher alone reads first, each with role and content; null: none, or worked examples of "
        "arithmetic where the teacher is the model itself",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "model") is (self.model is None):
            raise ValueError("model: kind=model needs one, and no other kind has any")
        if self.adapter is not None and self.kind != "model":
            raise ValueError(f"adapter: a teacher of kind {self.kind} has none")
        if (self.kind == "tinker") is not bool(self.tinker.model):
            raise ValueError("tinker.model: kind=tinker needs one, and no other kind has any")
        if self.tokenizer is not None and not self.is_served:
            raise ValueError(f"tokenizer: a teacher of kind {self.kind} brings its own")
        for number, message in enumerate(self.before or ()):
            if set(message) != {"role", "content"} or message["role"] not in ("system", "user", "assistant"):
                raise ValueError(f"before: message {number} needs role (system, user or assistant) and content")
        return self

    @property
    def is_served(self) -> bool:
        """Whether the teacher is asked over the network, and tells no more than it is asked."""
        return self.kind in ("server", "tinker")

    @property
    def is_itself(self) -> bool:
        """Whether the teacher is the model that is trained, before or while it is."""
        return self.kind in ("start", "student")

    def preface(self, environment: str) -> tuple[Message, ...]:
        """What it reads first."""
        if self.before is None and self.is_itself:
            pairs = WORKED_EXAMPLES.get(environment, ())
            return tuple(
                m for question, answer in pairs for m in (Message("user", question), Message("assistant", answer))
            )
        return tuple(Message(one["role"], one["content"]) for one in self.before or ())


class LessonConfig(Section):
    """Who answers, and what is learnt from each answer."""

    student_share: float = option(
        1.0, "share of problems that the student answers, in [0, 1]; the teacher answers the others", ge=0, le=1
    )
    objective: Literal["reverse_kl", "divergence", "top_k", "cross_entropy"] = option(
        "divergence",
        "the teacher's log-probability of each sampled token, as advantage; exact divergence over a vocabulary that "
        "a local teacher shares; cross entropy to its likeliest tokens; or to what it wrote",
    )
    beta: float = option(
        1.0, "divergence: 0 forward KL, 1 reverse KL, in between their mixture (GKD), in [0, 1]", ge=0, le=1
    )
    temperature: float = option(
        1.0, "divergence, top_k: of the teacher's distribution, and in divergence of both, above 0", gt=0
    )
    alpha: float = option(
        1.0,
        "divergence, top_k: weight of the teacher's distribution, in (0, 1]; the rest goes to the tokens it wrote",
        gt=0,
        le=1,
    )
    top_k: int = option(20, "top_k: how many of its likeliest tokens, 1 or more", ge=1)
    discount: float = option(
        0.0,
        "reverse_kl: how much of what comes after counts for a token, each token further by this, in [0, 1]",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.objective == "reverse_kl" and self.student_share != 1:
            raise ValueError("student_share: reverse_kl learns from the student's own answers alone: take 1")
        if self.objective == "cross_entropy" and self.student_share != 0:
            raise ValueError("student_share: cross_entropy learns from what the teacher wrote alone: take 0")
        if self.alpha != 1 and self.student_share != 0:
            raise ValueError("alpha: below 1 it mixes in what the teacher wrote: take student_share=0")
        readers = {
            "beta": ("divergence",),
            "temperature": ("divergence", "top_k"),
            "alpha": ("divergence", "top_k"),
            "top_k": ("top_k",),
            "discount": ("reverse_kl",),
        }
        for name, objectives in readers.items():
            if self.objective not in objectives and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: {self.objective} does not read it; it is for {' and '.join(objectives)}")
        return self
