"""The engine that all chat formats share.

A family is a small class: it lists the pieces of a conversation and reads an answer back. Building prompts and
examples, weights, splitting where a template rewrites history, finding the stop: all of that is here, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from crucible_train.errors import ConfigError, RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers.pieces import (
    BREAK,
    EncodedPieces,
    Piece,
    control_id,
    encode_pieces,
    longest_common_prefix,
    output_spans,
)
from crucible_train.renderers.tokenizer import refuse_lone_surrogate
from crucible_train.types import ImagePart, Message, ModelInput, conversation

Messages = Sequence[Message | Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


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


class Termination(StrEnum):
    """How an answer ended."""

    STOP_SEQUENCE = "stop_sequence"
    """With the stop that ends a turn in this format."""
    END_OF_TEXT = "end_of_text"
    """With the tokenizer's end of text, not the format's stop."""
    MALFORMED = "malformed"
    """With neither (cut off), or with markup that could not be read."""

    @property
    def is_clean(self) -> bool:
        """Whether the model ended the answer itself."""
        return self is not Termination.MALFORMED


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """An answer read back.

    ``unparsed_tool_calls`` keeps, as written, what looks like a call but cannot be read as one.
    """

    message: Message
    termination: Termination
    unparsed_tool_calls: tuple[str, ...] = ()


class Renderer(ABC):
    """A chat format bound to a tokenizer.

    A family sets ``name`` and ``stop_tokens``, lists pieces in ``conversation_pieces`` and ``prompt_pieces``, refuses
    in ``check`` what it cannot express, and may override ``parse_text``.
    """

    name: ClassVar[str]
    stop_tokens: ClassVar[Sequence[str]] = ()
    extends_history: ClassVar[bool] = True
    """Whether a conversation's ids always begin with the ids of each of its own prompts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Bind the format to a tokenizer. Families take their options as further keywords."""
        self.tokenizer = tokenizer

    @property
    def options(self) -> Mapping[str, Any]:
        """The options this renderer was made with: with the name, all that is needed to make it again."""
        return {}

    # What a family declares ------------------------------------------------------------------------------------------

    @abstractmethod
    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The pieces of a whole conversation."""

    @abstractmethod
    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The pieces after which the model writes the next message: the conversation so far and an open header."""

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse what the format cannot express; the default refuses all but plain text.

        Raises:
            RenderError: content would be lost; the text names the message's index and field.
        """
        refuse_all_but_text(self.name, messages, tools)

    def parse_text(self, text: str) -> ParsedResponse:
        """Read the text of an answer, its stop removed. The default takes all of it as content."""
        return ParsedResponse(Message("assistant", text), Termination.STOP_SEQUENCE)

    def stop_sequences(self) -> Sequence[int] | Sequence[str]:
        """What ends an answer: token ids, or texts where the format has no token for it.

        Raises:
            ModelError: the tokenizer lacks a token that the format needs.
        """
        return [control_id(name, self.tokenizer) for name in self.stop_tokens]

    # What follows from it --------------------------------------------------------------------------------------------

    def build_generation_prompt(
        self, messages: Messages, tools: Tools = None, role: str = "assistant", prefill: str | None = None
    ) -> ModelInput:
        """The ids after which the model writes the next message.

        Args:
            messages: the conversation so far.
            tools: OpenAI-style declarations.
            role: who speaks next.
            prefill: the beginning of the answer, put into the model's mouth.

        Raises:
            RenderError: the format cannot express the conversation.
        """
        read = self._read(messages, tools)
        ids = encode_pieces(self.prompt_pieces(read, tools, role), self.tokenizer).ids_T
        if prefill:
            ids = np.concatenate([ids, np.array(self.tokenizer.encode(prefill), np.int32)])
        return ModelInput.from_ints(ids)

    def build_supervised_example(
        self,
        messages: Messages,
        train_on_what: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        tools: Tools = None,
    ) -> tuple[ModelInput, npt.NDArray[np.float32]]:
        """The whole conversation as one example: ids and a float32 weight for each, of equal length, unshifted.

        Where the template rewrites history, earlier turns stand here as the last turn's prompt shows them; use
        ``build_supervised_examples`` to train every turn in the context it will really see.

        Raises:
            RenderError: the format cannot express the conversation, or no token of it is trained.
        """
        mode = TrainOnWhat(train_on_what)
        read = self._read(messages, tools)
        trained = trained_messages(read, mode)
        encoded = self._encode(read, tools)
        if not self.extends_history and mode is not TrainOnWhat.ALL_TOKENS:
            trained = frozenset(index for index in trained if self._is_unchanged(index, encoded, read, tools))
        weights = _weights(encoded, trained, mode)
        if not weights.any():
            raise RenderError(_why_nothing_is_trained(read, mode))
        return ModelInput.from_ints(encoded.ids_T), weights

    def build_supervised_examples(
        self,
        messages: Messages,
        train_on_what: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        tools: Tools = None,
    ) -> Sequence[tuple[ModelInput, npt.NDArray[np.float32]]]:
        """As few examples as show every trained message after the very ids the model will see before writing it.

        Raises:
            RenderError: the format cannot express the conversation, or no token of it is trained.
        """
        mode = TrainOnWhat(train_on_what)
        read = self._read(messages, tools)
        trained = trained_messages(read, mode)
        whole = self._encode(read, tools)
        if mode is TrainOnWhat.ALL_TOKENS:
            return [(ModelInput.from_ints(whole.ids_T), _weights(whole, trained, mode))]
        shared: list[tuple[EncodedPieces, set[int]]] = []
        apart: list[EncodedPieces] = []
        for index in sorted(trained, reverse=True):
            alone = whole if self.extends_history else self._encode(read[: index + 1], tools)
            spans = output_spans(alone, index)
            if index in alone.merged:
                apart.append(self._encode_apart(index, read, tools))
            elif spans and shared and _begins_with(shared[-1][0], alone, spans[-1][1]):
                shared[-1][1].add(index)
            elif spans:
                shared.append((alone, {index}))
        examples = [
            *((encoded.ids_T, _weights(encoded, frozenset(kept), mode)) for encoded, kept in reversed(shared)),
            *((encoded.ids_T, encoded.is_output_T.astype(np.float32)) for encoded in reversed(apart)),
        ]
        if not any(weights.any() for _, weights in examples):
            raise RenderError(_why_nothing_is_trained(read, mode))
        return [(ModelInput.from_ints(ids), weights) for ids, weights in examples]

    def _encode(self, messages: Sequence[Message], tools: Tools) -> EncodedPieces:
        return encode_pieces(self.conversation_pieces(messages, tools), self.tokenizer)

    def _is_unchanged(self, index: int, whole: EncodedPieces, messages: Sequence[Message], tools: Tools) -> bool:
        """Whether message ``index`` and all before it stand in the whole conversation as they do when it ends there."""
        alone = whole if index == len(messages) - 1 else self._encode(messages[: index + 1], tools)
        spans = output_spans(alone, index)
        return bool(spans) and _begins_with(whole, alone, spans[-1][1])

    def _encode_apart(self, index: int, messages: Sequence[Message], tools: Tools) -> EncodedPieces:
        """What leads to message ``index`` and what it then says, encoded apart, as a sampler would see them.

        This is for a message whose first characters share a token with its header in the template's own ids.
        """
        pieces = list(self.conversation_pieces(messages[: index + 1], tools))
        said = [place for place, piece in enumerate(pieces) if piece.message == index and piece.is_output]
        start, end = said[0], said[-1] + 1
        encoded = encode_pieces([*pieces[:start], BREAK, *pieces[start:end]], self.tokenizer)
        is_said = encoded.is_output_T & (encoded.message_T == index)
        return EncodedPieces(encoded.ids_T, encoded.message_T, is_said)

    def parse_response(self, token_ids: Sequence[int]) -> ParsedResponse:
        """Read sampled ids: what stands before the first stop is the answer, what follows it is passed over."""
        text, termination = self._until_stop(token_ids)
        parsed = self.parse_text(text)
        if parsed.termination is Termination.MALFORMED:
            termination = Termination.MALFORMED
        return ParsedResponse(parsed.message, termination, parsed.unparsed_tool_calls)

    def parse_stream(self, token_ids: Iterable[int]) -> Iterator[str | ParsedResponse]:
        """Yield the answer as it is written, up to its stop and never half a character; at the end, the answer parsed.

        No id is taken after the one that ends the answer.
        """
        stop_texts = [stop for stop in self.stop_sequences() if isinstance(stop, str)]
        seen: list[int] = []
        shown = ""
        for token in token_ids:
            seen.append(token)
            text, termination = self._until_stop(seen)
            if termination is not Termination.MALFORMED:
                break
            text = text[: len(text) - _num_held_back(text, stop_texts)]
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and text.startswith(shown) and text != shown:
                yield text[len(shown) :]
                shown = text
        text, _ = self._until_stop(seen)
        if text.startswith(shown) and text != shown:
            yield text[len(shown) :]
        yield self.parse_response(seen)

    def _read(self, messages: Messages, tools: Tools) -> tuple[Message, ...]:
        """The messages, once it is known that they can be expressed."""
        read = conversation(messages)
        for index, message in enumerate(read):
            for field, value in message.to_dict().items():
                for text in _texts(value):
                    refuse_lone_surrogate(text, f"message {index}: {field}")
        for text in _texts(tools):
            refuse_lone_surrogate(text, "tools")
        self.check(read, tools)
        return read

    def _until_stop(self, token_ids: Sequence[int]) -> tuple[str, Termination]:
        """The text before the first stop, and how it ended."""
        ids, stops = list(token_ids), self.stop_sequences()
        end_of_text = self.tokenizer.control_tokens.get(self.tokenizer.eos_token or "")
        end = next((place for place, token in enumerate(ids) if token in stops or token == end_of_text), len(ids))
        text = self.tokenizer.decode(ids[:end])
        places = [place for stop in stops if isinstance(stop, str) and (place := text.find(stop)) >= 0]
        if places:
            return text[: min(places)], Termination.STOP_SEQUENCE
        if end == len(ids):
            return text, Termination.MALFORMED
        return text, Termination.STOP_SEQUENCE if ids[end] in stops else Termination.END_OF_TEXT


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


def refuse_all_but_text(name: str, messages: Sequence[Message], tools: Tools) -> None:
    """Refuse tools, thinking and images.

    Raises:
        RenderError: one is there; the text names the message's index and field.
    """
    if tools:
        raise RenderError(f"{name} has no tools, but {len(tools)} are declared")
    for index, message in enumerate(messages):
        if message.tool_calls:
            raise RenderError(f"message {index}: tool_calls: {name} has no tool calls")
        if message.thinking is not None:
            raise RenderError(f"message {index}: reasoning_content: {name} has no thinking")
        refuse_images(name, index, message)


def refuse_images(name: str, index: int, message: Message) -> None:
    """Refuse a message that holds an image.

    Raises:
        RenderError: it does.
    """
    if isinstance(message.content, tuple) and any(isinstance(part, ImagePart) for part in message.content):
        raise RenderError(f"message {index}: content: {name} has no images")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _num_held_back(text: str, stop_texts: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of a stop."""
    return max((num for stop in stop_texts for num in range(1, len(stop)) if text.endswith(stop[:num])), default=0)


def _weights(encoded: EncodedPieces, trained: frozenset[int], mode: TrainOnWhat) -> npt.NDArray[np.float32]:
    if mode is TrainOnWhat.ALL_TOKENS:
        weights = np.ones(len(encoded), np.float32)
        weights[:1] = 0.0  # nothing stands before the first token, so nothing predicts it
        return weights
    is_trained = np.isin(encoded.message_T, np.array(sorted(trained), np.int32)) & encoded.is_output_T
    return is_trained.astype(np.float32)


def _begins_with(whole: EncodedPieces, alone: EncodedPieces, end: int) -> bool:
    return whole is alone or longest_common_prefix(alone.ids_T[:end], whole.ids_T) == end


def _why_nothing_is_trained(messages: Sequence[Message], mode: TrainOnWhat) -> str:
    roles = ", ".join(message.role for message in messages)
    if not trained_messages(messages, mode):
        return f"no token is trained: train_on={mode} selects no message of [{roles}]"
    return (
        f"no token is trained: the messages that train_on={mode} selects of [{roles}] are empty here, or later turns "
        "changed how they are written; build_supervised_examples shows each in its own context"
    )
