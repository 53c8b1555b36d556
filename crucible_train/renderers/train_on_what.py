"""Which messages of a conversation are trained."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NoReturn

from crucible_train.errors import ConfigError, RenderError
from crucible_train.types import Message


class TrainOnWhat(StrEnum):
    """Which messages of a conversation are trained. Headers never are, but with ``ALL_TOKENS``."""

    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    """The last message the assistant wrote."""
    LAST_ASSISTANT_TURN = "last_assistant_turn"
    """All the assistant wrote since the last message that is neither its own nor a tool's."""
    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    """All the assistant wrote."""
    ALL_MESSAGES = "all_messages"
    """What every speaker wrote."""
    ALL_TOKENS = "all_tokens"
    """Every token, headers and markers included."""
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    """What users and systems wrote."""
    CUSTOMIZED = "customized"
    """The messages whose ``trainable`` is true; every message must say."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ConfigError(f"train_on: {value!r} is unknown; known are {', '.join(cls)}")


def trained_messages(messages: Sequence[Message], mode: TrainOnWhat) -> frozenset[int]:
    """The indices of the messages that are trained.

    Raises:
        RenderError: ``trainable`` is missing where it is needed, or given where it would be passed over.
    """
    flags = [message.trainable for message in messages]
    if mode is TrainOnWhat.CUSTOMIZED:
        if None in flags:
            raise RenderError(f"message {flags.index(None)}: trainable is missing; train_on=customized needs it")
        return frozenset(index for index, flag in enumerate(flags) if flag)
    given = next((index for index, flag in enumerate(flags) if flag is not None), None)
    if given is not None:
        raise RenderError(f"message {given}: trainable is set, but train_on is {mode}; use train_on=customized")
    roles = [message.role for message in messages]
    assistants = [index for index, role in enumerate(roles) if role == "assistant"]
    match mode:
        case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
            return frozenset(range(len(messages)))
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            return frozenset(index for index, role in enumerate(roles) if role in {"user", "system"})
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            return frozenset(assistants)
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            return frozenset(assistants[-1:])
        case TrainOnWhat.LAST_ASSISTANT_TURN:
            last = assistants[-1] if assistants else 0
            start = max((i for i in range(last) if roles[i] not in {"assistant", "tool"}), default=-1)
            return frozenset(index for index in assistants if index > start)


def why_nothing_is_trained(messages: Sequence[Message], mode: TrainOnWhat) -> str:
    """The words for an error."""
    roles = ", ".join(message.role for message in messages)
    if not trained_messages(messages, mode):
        return f"no token is trained: train_on={mode} selects no message of [{roles}]"
    return (
        f"no token is trained: the messages that train_on={mode} selects of [{roles}] are empty here, or later turns "
        "changed how they are written; build_supervised_examples shows each in its own context"
    )
