"""Who teaches, and which teacher teaches what."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

from crucible_train.errors import ConfigError
from crucible_train.ports import SamplingClient
from crucible_train.renderers import Renderer
from crucible_train.rl.problem_set import ProblemSet
from crucible_train.types import Message, ModelInput


@dataclass(frozen=True, slots=True)
class Reader:
    """How one of the two sees a problem: its problems, the same by number, and its chat format."""

    problems: ProblemSet
    renderer: Renderer

    @property
    def stop(self) -> int | None:
        """The id that ends an answer; None where a text does."""
        first = self.renderer.stop_sequences()[0]
        return first if isinstance(first, int) else None


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model that teaches.

    Attributes:
        name: the field of the configuration, for messages.
        client: scores, and writes where the teacher answers.
        reader: how it sees the problems.
        shares_ids: whether its tokenizer is the student's.
        shares_format: whether it reads conversations in the student's chat format, whatever stands before them.
    """

    name: str
    client: SamplingClient
    reader: Reader
    shares_ids: bool = True
    shares_format: bool = True


@dataclass(frozen=True, slots=True)
class Teachers:
    """A teacher by the tag of the problem, and one for all others."""

    other: Teacher
    by_tag: Mapping[str, Teacher]

    def of(self, tags: Sequence[str]) -> Teacher:
        """The teacher of a problem: that of its first tag that has one."""
        return next((self.by_tag[tag] for tag in tags if tag in self.by_tag), self.other)

    @property
    def all(self) -> tuple[Teacher, ...]:
        """Every one, once."""
        return (self.other, *self.by_tag.values())


def prefaced(renderer: Renderer, before: Sequence[Message]) -> Renderer:
    """The same chat format, whose prompts begin with these messages, a system message of its own before them."""
    if not before:
        return renderer

    def joined(messages: Sequence[Message]) -> list[Message]:
        """What the teacher reads.

        Raises:
            ConfigError: there would be two system messages.
        """
        num = 1 if messages and messages[0].role == "system" else 0
        if num and before[0].role == "system":
            raise ConfigError("teacher.before: it begins with a system message, and the environment gives one, too")
        return [*messages[:num], *before, *messages[num:]]

    def build_generation_prompt(self: Any, messages: Any, *args: Any, **kwargs: Any) -> ModelInput:
        return type(renderer).build_generation_prompt(self, joined(messages), *args, **kwargs)

    made = copy(renderer)
    made.__class__ = cast(
        "type[Renderer]",
        type(type(renderer).__name__, (type(renderer),), {"build_generation_prompt": build_generation_prompt}),
    )
    return made


def check_objective(teacher: Teacher, student: Reader, objective: str) -> None:
    """See that the teacher can teach in this way.

    Raises:
        ConfigError: its tokens are other than the student's, and the objective compares token by token.
    """
    if objective in ("divergence", "top_k"):
        if not teacher.shares_ids:
            raise ConfigError(
                f"{teacher.name}: its tokenizer is not the student's, so its distribution is one over other tokens; "
                "take lesson.objective=reverse_kl, which compares stretches of text, or cross_entropy"
            )
        if teacher.reader.stop != student.stop:
            raise ConfigError(
                f"{teacher.name}: answers end with another token in its chat format, so distributions cannot be "
                "compared; take lesson.objective=reverse_kl or cross_entropy, or the student's renderer"
            )
    if not teacher.shares_format and None in (teacher.reader.stop, student.stop):
        raise ConfigError(f"{teacher.name}: chat formats that differ are matched only where a token ends each answer")
