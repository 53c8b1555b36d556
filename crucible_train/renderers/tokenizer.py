"""A tokenizer whose ordinary text can never become a control token.

Hugging Face tokenizers look for added tokens (``<|im_end|>``, ``<think>`` ...) in every text they encode, so a user who
writes one forges a turn. Here a second tokenizer without added tokens encodes text, and control tokens are reached by
name only.
"""

import json
import lzma
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.pre_tokenizers import ByteLevel

from crucible_train import files
from crucible_train.errors import ModelError, RenderError
from crucible_train.ports import Encoded, Tokenizer
from crucible_train.renderers.words import Words

DEFINITION_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# What of the added tokens that are not called special is markup all the same.
_MARKUP = re.compile(r"<[|｜].*[|｜]>|</?(?:think|tool_\w+|tools|function\w*|parameter\w*|answer|reasoning)>")
# Headers and the like: what is said again and again.
_MAX_KNOWN_LENGTH = 64
_MAX_KNOWN = 16384


class FastTokenizer:
    """A Hugging Face ``tokenizer.json`` behind the tokenizer port.

    Args:
        definition: the parsed ``tokenizer.json``.
        config: the parsed ``tokenizer_config.json``: bos_token, eos_token, chat_template.
        name: a path or an id, for messages.
        written: the definition as JSON text, where that is at hand.
    """

    def __init__(
        self, definition: Mapping[str, Any], config: Mapping[str, Any], name: str, written: str | None = None
    ) -> None:
        """Build the Rust tokenizer that encodes ordinary text."""
        self._definition = written or json.dumps(definition)  # a parsed vocabulary is ten times as large
        self.config = dict(config)
        self.name = name
        added, model = definition.get("added_tokens", ()), definition["model"]
        self._control = {token["content"]: int(token["id"]) for token in added if _is_control(token, model)}
        self._control_ids = frozenset(self._control.values())
        plain_added = [token for token in added if not _is_control(token, model)]
        own = {"added_tokens": plain_added, "post_processor": None, "truncation": None, "padding": None}
        plain = {**definition, **own}
        self._plain = RustTokenizer.from_str(json.dumps(plain))
        self._may_write_controls = _may_write(self._control, model)
        self._words = None if self._may_write_controls else Words.of(plain, self._encode_plain)
        self._known: dict[str, npt.NDArray[np.int32]] = {}
        self._adds_up = not plain_added and (definition.get("decoder") or {}).get("type") == "ByteLevel"

    @staticmethod
    def from_folder(folder: Path) -> "FastTokenizer":
        """Read ``tokenizer.json`` (or ``tokenizer.json.xz``) and what stands beside it.

        While the files are unchanged, a process has one object for them: a large vocabulary takes seconds to build,
        and every stage of a run asks for it.

        Raises:
            ModelError: there is no such file, or it is not a tokenizer.
        """
        written = _read_text(folder / DEFINITION_FILE)
        if written is None:
            raise ModelError(f"{folder}: no {DEFINITION_FILE}; a fast tokenizer is needed")
        template = folder / TEMPLATE_FILE
        template_text = template.read_text(encoding="utf-8") if template.is_file() else None
        return _built(folder.resolve(), written, _read_text(folder / CONFIG_FILE), template_text)

    def to_folder(self, folder: Path) -> None:
        """Write the tokenizer so that transformers, or ``from_folder``, reads it back."""
        files.write_text(folder / DEFINITION_FILE, json.dumps(self.definition, ensure_ascii=False))
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        files.write_json(folder / CONFIG_FILE, config)
        if self.chat_template is not None:
            files.write_text(folder / TEMPLATE_FILE, self.chat_template)

    @property
    def definition(self) -> dict[str, Any]:
        """The parsed ``tokenizer.json``."""
        return dict(json.loads(self._definition))

    @cached_property
    def _decoder(self) -> RustTokenizer:
        """The Rust tokenizer that decodes everything."""
        return RustTokenizer.from_str(self._definition)

    @cached_property
    def sha256(self) -> str:
        """The digest of the definition."""
        return files.sha256_json([self.definition, self.chat_template, self.bos_token, self.eos_token])

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return 1 + max(self._decoder.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def num_bytes(self) -> npt.NDArray[np.int32] | None:
        """How many bytes of text each id stands for, none for a control token; None where that depends on others."""
        if not self._adds_up:
            return None
        alphabet = frozenset(ByteLevel.alphabet())
        vocab = self._plain.get_vocab(with_added_tokens=False)
        sizes = np.zeros(1 + max(*vocab.values(), *self._control_ids, -1), np.int32)
        for word, id_ in vocab.items():
            sizes[id_] = len(word) if alphabet.issuperset(word) else len(word.encode())
        sizes[list(self._control_ids)] = 0
        return sizes

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Every added token and its id."""
        return self._control

    @property
    def bos_token(self) -> str | None:
        """The token that opens a text."""
        return _token_text(self.config.get("bos_token"))

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return _token_text(self.config.get("eos_token"))

    @property
    def chat_template(self) -> str | None:
        """The model's own template; of several named ones, ``default``."""
        template = self.config.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}
        if isinstance(template, Mapping):
            template = template.get("default")
        return template

    def encode(self, text: str) -> Sequence[int]:
        """The ids of ordinary text."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """The ids of ordinary texts, encoded together on all cores. Short texts are remembered.

        Raises:
            RenderError: a text holds half of a surrogate pair.
        """
        known = self._known
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if not new:
            return [known[text] for text in texts]
        made = dict(zip(new, self._encode_new(new), strict=True))
        found = [made[text] if text in made else known[text] for text in texts]
        if len(known) > _MAX_KNOWN:
            self._known = known = {}
        known.update((text, ids) for text, ids in made.items() if len(text) <= _MAX_KNOWN_LENGTH)
        return found

    def _encode_new(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        if self._may_write_controls:
            return [_fixed(found.ids) for found in self.encode_with_offsets(texts)]
        if self._words is None:
            return [_fixed(ids) for ids in self._encode_plain(texts)]
        try:
            return self._words.encode(texts)
        except RenderError:  # which names a word: say where it stands in its text
            for text in texts:
                refuse_lone_surrogate(text, "text")
            raise

    def _encode_plain(self, texts: Sequence[str]) -> Iterator[Sequence[int]]:
        return (found.ids for found in self._in_rust(self._plain.encode_batch_fast, texts))

    def encode_with_offsets(self, texts: Sequence[str]) -> Sequence[Encoded]:
        """The ids of ordinary texts, and the characters each id came from.

        Raises:
            RenderError: a text holds half of a surrogate pair.
        """
        return [
            Encoded(found.ids, found.offsets)
            if self._control_ids.isdisjoint(found.ids)
            else self._encode_around_forgery(text, found)
            for text, found in zip(texts, self._in_rust(self._plain.encode_batch, texts), strict=True)
        ]

    def _in_rust(self, encode: Callable[..., Any], texts: Sequence[str]) -> Any:
        try:
            return encode(texts, add_special_tokens=False)
        except TypeError:  # the Rust library's only word for a text that is not Unicode
            for text in texts:
                refuse_lone_surrogate(text, "text")
            raise

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control tokens appear by their names."""
        return self._decoder.decode(list(ids), skip_special_tokens=False)

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> Sequence[str]:
        """The texts of several sequences of ids, decoded together on all cores."""
        return list(self._decoder.decode_batch([list(some) for some in ids], skip_special_tokens=False))

    def _encode_around_forgery(self, text: str, found: Any) -> Encoded:
        """Encode a text whose words are control tokens of the vocabulary itself, by cutting each such word in two.

        Only vocabularies that hold their control tokens as ordinary pieces (Unigram) ever come here.
        """
        start, end = next(span for id_, span in zip(found.ids, found.offsets, strict=True) if id_ in self._control_ids)
        cut = (start + end) // 2
        if not start < cut < end:
            raise ModelError(f"{self.name}: the ordinary text {text[start:end]!r} is a control token of one character")
        left, right = self.encode_with_offsets([text[:cut], text[cut:]])
        return Encoded(
            [*left.ids, *right.ids],
            [*left.offsets, *((begin + cut, stop + cut) for begin, stop in right.offsets)],
        )


def _fixed(ids: Sequence[int]) -> npt.NDArray[np.int32]:
    """An array that is remembered, so nobody may write to it."""
    array = np.array(ids, np.int32)
    array.setflags(write=False)
    return array


def _is_control(token: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether an added token is a marker. Some vocabularies have ordinary words among them, too: blanks, HTML tags."""
    vocab = model.get("vocab")
    is_word = isinstance(vocab, Mapping) and token["content"] in vocab
    return bool(token.get("special")) or not is_word or _MARKUP.fullmatch(token["content"]) is not None


def refuse_lone_surrogate(text: str, where: str) -> None:
    """Refuse a text with half of a surrogate pair, as a JSON file can hold: it is no character and has no bytes.

    Raises:
        RenderError: it has one; the text begins with ``where``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start + 1} is {text[error.start]!a}, half of a surrogate pair"
        raise RenderError(f"{where}: {half}, which cannot be encoded") from error


def _may_write(control: Mapping[str, int], model: Mapping[str, Any]) -> bool:
    """Whether a model without added tokens can still write a control token, since it is one of its own words.

    A BPE model writes what a merge makes, single symbols, and whole words it knows where it is told to look for those.
    """
    vocab = model.get("vocab")
    if model.get("type") != "BPE" or not isinstance(vocab, Mapping) or model.get("unk_token") is not None:
        return True
    own = [name for name in control if name in vocab]
    if not own or model.get("ignore_merges"):
        return bool(own)
    made = {merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge) for merge in model["merges"]}
    return any(name in made or len(name) == 1 for name in own)


@lru_cache(maxsize=4)  # of a student, its teacher, a judge
def _built(folder: Path, written: str, config_text: str | None, template: str | None) -> FastTokenizer:
    """The tokenizer of these texts, which were read from this folder."""
    definition = _parsed(written, folder / DEFINITION_FILE)
    config = {} if config_text is None else _parsed(config_text, folder / CONFIG_FILE)
    if template is not None:
        config["chat_template"] = template
    try:
        return FastTokenizer(definition, config, str(folder), written)
    except Exception as error:  # the Rust library raises bare Exception
        raise ModelError(f"{folder / DEFINITION_FILE}: not a tokenizer: {error}") from error


_wrapped: WeakKeyDictionary[Any, tuple[Any, FastTokenizer]] = WeakKeyDictionary()


def as_tokenizer(tokenizer: Any) -> Tokenizer:
    """Accept our tokenizers, those of transformers (fast) and bare ``tokenizers.Tokenizer`` objects.

    Raises:
        ModelError: it is none of these.
    """
    # ours first: a protocol's isinstance reads every property, and some of ours take long to make
    if isinstance(tokenizer, (FastTokenizer, Tokenizer)):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, RustTokenizer):
        raise ModelError(f"a fast tokenizer is needed, not {type(tokenizer).__name__}")
    config = {key: getattr(tokenizer, key, None) for key in ("bos_token", "eos_token", "chat_template")}
    state = (backend.get_vocab_size(with_added_tokens=True), config)  # what users change on a tokenizer they hold
    try:
        known_state, known = _wrapped[tokenizer]
        if known_state == state:
            return known
    except (KeyError, TypeError):  # not seen before, or an object without weak references
        pass
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    wrapped = FastTokenizer(json.loads(backend.to_str()), config, name)
    with suppress(TypeError):
        _wrapped[tokenizer] = (state, wrapped)
    return wrapped


def _read_text(path: Path) -> str | None:
    """The text of a file that may be compressed; None where there is none."""
    packed = path.with_name(path.name + ".xz")
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
        return lzma.decompress(packed.read_bytes()).decode() if packed.is_file() else None
    except (ValueError, lzma.LZMAError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:  # TypeError: JSON, but not an object
        raise ModelError(f"{path}: not readable as JSON: {error}") from error


def _token_text(token: Any) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return None if token is None else str(token)
