"""Sampled ids as stretches of text and control tokens, up to the stop, and never half a character."""

from collections.abc import Generator, Iterable, Sequence

from crucible_train.ports import Tokenizer
from crucible_train.renderers.answers import Ending, Termination

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# A chat model's tokenizer often names the end of a turn as its end of text; the model can write the other one as well.
_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")


def stretches(
    token_ids: Iterable[int],
    stops: Sequence[int] | Sequence[str],
    tokenizer: Tokenizer,
    ending: Ending,
    *,
    at_once: bool,
) -> Generator[tuple[str, bool], None, None]:
    """Yield stretches (text, whether it is a control token's name) before the first stop; fill in ``ending``.

    With ``at_once`` text comes in one stretch up to the next control token, otherwise as soon as it can be shown. No id
    is taken after the one that ends the answer.
    """
    names = {id_: name for name, id_ in tokenizer.control_tokens.items()}
    ends_of_text = {tokenizer.control_tokens.get(name or "") for name in (tokenizer.eos_token, *_ENDS_OF_TEXT)}
    text = _Text(tokenizer, [stop for stop in stops if isinstance(stop, str)])
    for token in token_ids:
        if token not in names and token not in stops:
            text.add(token)
            if at_once:
                continue
            if shown := text.take():
                yield shown, False
            if text.is_stopped:
                ending.termination = Termination.STOP_SEQUENCE
                return
            continue
        if shown := text.take_all():
            yield shown, False
        if text.is_stopped or token in stops or token in ends_of_text:
            is_stop = text.is_stopped or token in stops
            ending.termination = Termination.STOP_SEQUENCE if is_stop else Termination.END_OF_TEXT
            ending.stop = None if text.is_stopped else names.get(token)
            return
        yield names[token], True
    if shown := text.take_all():
        yield shown, False
    if text.is_stopped:
        ending.termination = Termination.STOP_SEQUENCE


class _Text:
    """Ids of text that arrive one by one, decoded as soon as whole characters are there."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        self._start = self._read = 0
        self._held = ""

    def add(self, token: int) -> None:
        self._ids.append(token)

    def take(self) -> str:
        """What can be shown: no half character, nothing that may be the beginning of a stop."""
        shown = self._until_stop(self._decoded(is_last=False))
        num_held = max((n for stop in self._stops for n in range(1, len(stop)) if shown.endswith(stop[:n])), default=0)
        if self.is_stopped or not num_held:
            return shown
        self._held = shown[len(shown) - num_held :]
        return shown[: len(shown) - num_held]

    def take_all(self) -> str:
        """The rest; a new text begins after it."""
        shown = self._until_stop(self._decoded(is_last=True))
        self._ids, self._start, self._read = [], 0, 0
        return shown

    def _decoded(self, *, is_last: bool) -> str:
        """What is new since the last call, decoded beside the ids before it, on which its spaces may depend."""
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        now = self._tokenizer.decode(self._ids[self._start :])
        if not is_last and now.endswith(_UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _until_stop(self, new: str) -> str:
        if self.is_stopped:
            return ""
        text, self._held = self._held + new, ""
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        self.is_stopped = bool(places)
        return text[: min(places)] if places else text
