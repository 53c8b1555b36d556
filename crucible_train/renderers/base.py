"""The engine that all chat formats share.

A family is a small class: it lists the pieces of a conversation and says how an answer reads. Building prompts and
examples, weights, splitting where a template rewrites history, finding the stop: all of that is here, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from crucible_train.errors import RenderError
from crucible_train.ports import Tokenizer
from crucible_train.renderers.answers import AnswerReader, Delta, Ending, ParsedResponse, Termination
from crucible_train.renderers.checks import check_tools, refuse_all_but_text
from crucible_train.renderers.jobs import Job, refuse_lone_surrogates
from crucible_train.renderers.layouts import Layout, filled, layout_of, probe
from crucible_train.renderers.pieces import BREAK, Asks, EncodedPieces, Piece, control_id, encode_pieces
from crucible_train.renderers.stretches import stretches
from crucible_train.renderers.train_on_what import TrainOnWhat, trained_messages, why_nothing_is_trained
from crucible_train.types import Message, ModelInput, conversation

T = TypeVar("T")
Messages = Sequence[Message | Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
_MAX_LAYOUTS = 1024
_NUM_TOGETHER = 64  # enough to share a call; more only keep the garbage collector busy
Example = tuple[ModelInput, npt.NDArray[np.float32]]
"""Ids, and a weight for each of them: equal lengths, unshifted."""


class Renderer(ABC):
    """A chat format bound to a tokenizer.

    A family sets ``name``, ``stop_tokens`` and the ``reader`` of its answers, lists pieces in ``conversation_pieces``
    and ``prompt_pieces``, and refuses in ``check`` what it cannot express.
    """

    name: ClassVar[str]
    stop_tokens: ClassVar[Sequence[str]] = ()
    reader: ClassVar[type[AnswerReader]] = AnswerReader
    extends_history: ClassVar[bool] = True
    """Whether a conversation's ids always begin with the ids of each of its own prompts."""
    date_option: ClassVar[str | None] = None
    """The option that says which date the format writes, where it writes today's unless it is told another."""
    verbatim: ClassVar[Sequence[str] | None] = None
    """That plain text stands in each message as it is given and decides nothing else, unless it holds one of these.

    It need not hold of texts that are empty or begin or end in white space. None says nothing; then every text is
    looked at. A class that looks at texts in another way than its parent says so here.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Bind the format to a tokenizer. Families take their options as further keywords."""
        self.tokenizer = tokenizer
        self._layouts: dict[tuple[bool, TrainOnWhat, tuple[str, ...]], Layout | None] = {}

    @property
    def options(self) -> Mapping[str, Any]:
        """The options this renderer was made with: with the name, all that is needed to make it again on any day."""
        return {}

    # What a family declares ------------------------------------------------------------------------------------------

    @abstractmethod
    def conversation_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The pieces of a whole conversation."""

    @abstractmethod
    def prompt_pieces(self, messages: Sequence[Message], tools: Tools, role: str) -> Iterable[Piece]:
        """The pieces after which the model writes the next message: the conversation so far and an open header."""

    def turn_pieces(self, messages: Sequence[Message], tools: Tools) -> Iterable[Piece]:
        """The pieces of a conversation whose last message is to be trained as the model writes it after its prompt.

        The default is the conversation as it stands; a format in which that does not begin with the prompt overrides
        it. ``build_supervised_examples`` is made of these.
        """
        return self.conversation_pieces(messages, tools)

    def extends(self, messages: Sequence[Message]) -> bool:
        """Whether this conversation's ids begin with the ids of each of its own prompts."""
        return self.extends_history

    def prefill_pieces(self, prefill: str) -> Iterable[Piece]:
        """The pieces of an answer's beginning, which follow the open header."""
        yield Piece(prefill)

    def check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse what the format cannot express; the default refuses all but plain text.

        Raises:
            RenderError: content would be lost; the text names the message's index and field.
        """
        refuse_all_but_text(self.name, messages, tools)

    def prepared(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages once what they only name, such as a picture, is at hand; the default has nothing to fetch.

        Raises:
            RenderError: it cannot be had; the text names the message's index and field.
        """
        return messages

    def check_whole(self, messages: Sequence[Message]) -> None:
        """Refuse also, in the same way, what only the whole conversation as one example would lose."""
        return

    def reader_after(self, messages: Sequence[Message]) -> AnswerReader:
        """The reader of an answer to these messages, or to any where there are none."""
        return self.reader()

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
        pieces = [*self.prompt_pieces(read, tools, role)]
        if prefill:
            pieces += [BREAK, *self.prefill_pieces(prefill)]
        [encoded] = self._answered(encode_pieces([pieces], self.tokenizer), read)
        return encoded.model_input()

    def build_supervised_example(
        self,
        messages: Messages,
        train_on_what: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        tools: Tools = None,
    ) -> Example:
        """The whole conversation as one example: ids and a float32 weight for each, of equal length, unshifted.

        Where the template rewrites history, earlier turns stand here as the last turn's prompt shows them, with the
        stop that history has; use ``build_supervised_examples`` to train every turn as it is really written, in the
        context it will really see.

        Raises:
            RenderError: the format cannot express the conversation, or no token of it is trained.
        """
        mode = TrainOnWhat(train_on_what)
        [made] = self._filled([(messages, tools)], mode, is_whole=True)
        if made is not None:
            return made
        read = self._read(messages, tools)
        self.check_whole(read)
        trained = trained_messages(read, mode)
        return self._answered(self._example(read, trained, mode, tools), read)

    def build_supervised_examples(
        self,
        messages: Messages,
        train_on_what: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        tools: Tools = None,
    ) -> Sequence[Example]:
        """As few examples as show every trained message after the very ids the model will see before writing it.

        Raises:
            RenderError: the format cannot express the conversation, or no token of it is trained.
        """
        mode = TrainOnWhat(train_on_what)
        [made] = self._filled([(messages, tools)], mode, is_whole=False)
        if made is not None:
            return [made]
        read = self._read(messages, tools)
        trained = trained_messages(read, mode)
        return self._answered(self._examples(read, trained, mode, tools), read)

    def build_many(
        self,
        dialogues: Iterable[tuple[Messages, Tools]],
        train_on_what: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    ) -> list[Sequence[Example] | RenderError]:
        """``build_supervised_examples`` of many conversations, with their text encoded together: much faster."""
        mode = TrainOnWhat(train_on_what)
        results: list[Sequence[Example] | RenderError] = []
        rest = iter(dialogues)
        while some := list(islice(rest, _NUM_TOGETHER)):
            made = self._filled(some, mode, is_whole=False)
            others = [dialogue for dialogue, example in zip(some, made, strict=True) if example is None]
            looked_at = iter(self._build_together(others, mode))
            results += [[example] if example is not None else next(looked_at) for example in made]
        return results

    def _filled(
        self, dialogues: Sequence[tuple[Messages, Tools]], mode: TrainOnWhat, *, is_whole: bool
    ) -> list[Example | None]:
        """Plain conversations that are one example, filled into their layouts; None for any other."""
        if self.verbatim is None:
            return [None] * len(dialogues)
        return filled(
            dialogues, self.verbatim, lambda roles: self._layout(roles, mode, is_whole=is_whole), self.tokenizer
        )

    def _layout(self, roles: tuple[str, ...], mode: TrainOnWhat, *, is_whole: bool) -> Layout | None:
        key = (is_whole, mode, roles)
        layouts = self._layouts
        if key not in layouts:
            if len(layouts) > _MAX_LAYOUTS:
                self._layouts = layouts = {}
            layouts[key] = self._new_layout(roles, mode, is_whole=is_whole)
        return layouts[key]

    def _new_layout(self, roles: tuple[str, ...], mode: TrainOnWhat, *, is_whole: bool) -> Layout | None:
        """The layout of plain conversations of these roles, where they are one example; what is refused has none."""
        try:
            read = self._read(probe(roles), None)
            trained = trained_messages(read, mode)
            if is_whole:
                self.check_whole(read)
        except RenderError:
            return None
        if mode is TrainOnWhat.ALL_TOKENS:
            return None
        if self.extends(read):
            return layout_of(self.conversation_pieces(read, None), trained, len(read), self.tokenizer)
        if is_whole or trained != {len(read) - 1}:
            return None
        return layout_of(self.turn_pieces(read, None), trained, len(read), self.tokenizer)

    def _build_together(
        self, dialogues: Sequence[tuple[Messages, Tools]], mode: TrainOnWhat
    ) -> list[Sequence[Example] | RenderError]:
        jobs = [self._job(messages, tools, mode) for messages, tools in dialogues]
        while waiting := [job for job in jobs if job.result is None]:
            asked = [text for job in waiting for text in job.asked]
            try:
                ids = iter(self.tokenizer.encode_batch(asked))
            except RenderError:  # one of them is not Unicode: each on its own then
                for job in waiting:
                    job.finish_alone(self._encode)
                break
            for job in waiting:
                job.go_on([next(ids) for _ in job.asked])
        return [job.result for job in jobs if job.result is not None]

    def _job(self, messages: Messages, tools: Tools, mode: TrainOnWhat) -> Job[Sequence[Example]]:
        try:
            read = self._read(messages, tools)
            return Job(read, self._examples(read, trained_messages(read, mode), mode, tools))
        except RenderError as error:
            return Job((), error)

    def _encode(self, texts: Sequence[str], messages: Sequence[Message]) -> Sequence[npt.NDArray[np.int32]]:
        try:
            return self.tokenizer.encode_batch(texts)
        except RenderError:
            refuse_lone_surrogates(messages)
            raise

    def _answered(self, work: Asks[T], messages: Sequence[Message]) -> T:
        """The result of work that is given what it asks for."""
        try:
            texts = next(work)
            while True:
                texts = work.send(self._encode(texts, messages))
        except StopIteration as done:
            result: T = done.value
            return result

    def _example(
        self, read: Sequence[Message], trained: frozenset[int], mode: TrainOnWhat, tools: Tools
    ) -> Asks[Example]:
        """The whole conversation, trained where a message and all before it stand as they do when it ends there."""
        looked_at = sorted(trained) if not self.extends(read) and mode is not TrainOnWhat.ALL_TOKENS else []
        pieces = [self.conversation_pieces(read[: index + 1], tools) for index in looked_at]
        whole, *alone = yield from encode_pieces([self.conversation_pieces(read, tools), *pieces], self.tokenizer)
        for index, encoded in zip(looked_at, alone, strict=True):
            if not self._stands(index, whole, encoded):
                trained = trained - {index}
        weights = _weights(whole, trained, mode)
        if not weights.any():
            raise RenderError(why_nothing_is_trained(read, mode))
        return whole.model_input(), weights

    def _stands(self, index: int, whole: EncodedPieces, alone: EncodedPieces) -> bool:
        """Whether a message stands in a conversation as it does when it ends there; the token it stops with may differ.

        Some formats have one stop for what the model writes and another for what stands in history.
        """
        end = alone.output_end(index)
        if not end or whole.begins_with(alone, end):
            return bool(end)
        is_stop = int(alone.ids_T[end - 1]) in self.stop_sequences()
        return is_stop and whole.output_end(index) == end and whole.begins_with(alone, end - 1)

    def _examples(
        self, read: Sequence[Message], trained: frozenset[int], mode: TrainOnWhat, tools: Tools
    ) -> Asks[Sequence[Example]]:
        """As few examples as show every trained message in its own context."""
        if mode is TrainOnWhat.ALL_TOKENS or self.extends(read):
            [whole] = yield from encode_pieces([self.conversation_pieces(read, tools)], self.tokenizer)
            if mode is TrainOnWhat.ALL_TOKENS:
                self.check_whole(read)
                return [(whole.model_input(), _weights(whole, trained, mode))]
            alone = dict.fromkeys(trained, whole)
        else:
            order = sorted(trained)
            pieces = [self.turn_pieces(read[: index + 1], tools) for index in order]
            alone = dict(zip(order, (yield from encode_pieces(pieces, self.tokenizer)), strict=True))
        merged = [index for index in sorted(trained) if index in alone[index].merged]
        apart_pieces = [self._pieces_apart(index, read, tools) for index in merged]
        apart = (yield from encode_pieces(apart_pieces, self.tokenizer)) if merged else []
        shared: list[tuple[EncodedPieces, set[int]]] = []
        for index in sorted(trained - set(merged), reverse=True):
            end = alone[index].output_end(index)
            if end and shared and shared[-1][0].begins_with(alone[index], end):
                shared[-1][1].add(index)
            elif end:
                shared.append((alone[index], {index}))
        examples = [
            *((encoded.model_input(), _weights(encoded, frozenset(kept), mode)) for encoded, kept in reversed(shared)),
            *(
                (encoded.model_input(), _weights(encoded, frozenset({index}), mode))
                for index, encoded in zip(merged, apart, strict=True)
            ),
        ]
        if not any(weights.any() for _, weights in examples):
            raise RenderError(why_nothing_is_trained(read, mode))
        return examples

    def _pieces_apart(self, index: int, messages: Sequence[Message], tools: Tools) -> Sequence[Piece]:
        """What leads to message ``index`` and what it then says, encoded apart, as a sampler would see them.

        This is for a message whose first characters share a token with its header in the template's own ids.
        """
        pieces = list(self.turn_pieces(messages[: index + 1], tools))
        said = [place for place, piece in enumerate(pieces) if piece.message == index and piece.is_output]
        start, end = said[0], said[-1] + 1
        return [*pieces[:start], BREAK, *pieces[start:end]]

    def parse_response(self, token_ids: Sequence[int], messages: Messages = ()) -> ParsedResponse:
        """Read sampled ids: what stands before the first stop is the answer, what follows it is passed over.

        Args:
            token_ids: what was sampled.
            messages: what it answers; needed only where not every prompt of a format ends alike.
        """
        *_, parsed = self._parse(token_ids, messages, at_once=True)
        assert isinstance(parsed, ParsedResponse)
        return parsed

    def parse_stream(self, token_ids: Iterable[int], messages: Messages = ()) -> Iterator[Delta | ParsedResponse]:
        """Yield the answer as it is written, up to its stop and never half a character; at the end, the answer parsed.

        No id is taken after the one that ends the answer.
        """
        yield from self._parse(token_ids, messages, at_once=False)

    def _parse(
        self, token_ids: Iterable[int], messages: Messages, *, at_once: bool
    ) -> Iterator[Delta | ParsedResponse]:
        reader, ending = self.reader_after(conversation(messages) if messages else ()), Ending()
        for text, is_control in stretches(token_ids, self.stop_sequences(), self.tokenizer, ending, at_once=at_once):
            yield from reader.control(text) if is_control else reader.text(text)
        yield from reader.finish(ending)
        termination = Termination.MALFORMED if reader.is_malformed else ending.termination
        yield ParsedResponse(reader.message(), termination, tuple(reader.unparsed))

    def _read(self, messages: Messages, tools: Tools) -> Sequence[Message]:
        """The messages, once it is known that they can be expressed."""
        read = conversation(messages)
        check_tools(tools)
        self.check(read, tools)
        return self.prepared(read)


def _weights(encoded: EncodedPieces, trained: frozenset[int], mode: TrainOnWhat) -> npt.NDArray[np.float32]:
    return encoded.all_weights() if mode is TrainOnWhat.ALL_TOKENS else encoded.weights(trained)
