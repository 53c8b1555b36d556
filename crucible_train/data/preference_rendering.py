"""From preferences on disk to tokens and weights on disk."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_train import files
from crucible_train.config.sections import PreferenceDataConfig
from crucible_train.data.batching import split
from crucible_train.data.preference_preparation import PAIRS
from crucible_train.data.preference_tables import Preferences, RenderedPreference, Side, write_rendered
from crucible_train.data.preparation import HELD_OUT, QUARANTINE, SUMMARY
from crucible_train.data.render_rows import RendererSpec, has_picture, why_not_trained
from crucible_train.data.rendering import TRAIN, VALIDATION
from crucible_train.data.rows import BadRow, Quarantine, Reason
from crucible_train.errors import RenderError
from crucible_train.renderers import Renderer, TrainOnWhat
from crucible_train.renderers.base import Example
from crucible_train.types import Message, Preference

_ROWS_AT_ONCE = 256
_Found = Sequence[Example] | RenderError


def render(
    preferences: Path, spec: RendererSpec, config: PreferenceDataConfig, seed: int, folder: Path
) -> Mapping[str, Any]:
    """Split and render the preferences of a folder into ``folder``; what was made.

    Rows of one prompt are all trained or all held out. What a completion's assistant says is trained, and no more.

    Raises:
        DataError: a row is bad and the configuration says stop, or no row is left to train on.
    """
    quarantine = Quarantine(config.on_bad_row)
    renderer = spec.make()
    summary: dict[str, Any] = {"renderer": spec.name, "renderer_options": dict(renderer.options)}
    summary["tokenizer_sha256"] = renderer.tokenizer.sha256
    for name, (source, rows) in _parts(preferences, config, seed).items():
        totals = _Totals()
        rendered = _rendered(renderer, source, rows, config.max_length, spec.max_positions(), quarantine)
        num = write_rendered(folder / name, map(totals.added, rendered))
        is_named = name == VALIDATION and isinstance(config.eval_split, str)
        quarantine.settle(
            num, "data.eval_split" if is_named else "dataset", may_be_empty=name == VALIDATION and not is_named
        )
        summary[name.removesuffix(".arrow")] = {"num_examples": num} | totals.facts()
    quarantine.close(folder / QUARANTINE)
    summary |= {"num_bad_rows": len(quarantine.rows), "bad_rows": quarantine.counts()}
    files.write_json(folder / SUMMARY, summary)
    return summary


def _parts(
    folder: Path, config: PreferenceDataConfig, seed: int
) -> Mapping[str, tuple[Preferences, npt.NDArray[np.int64]]]:
    """What is trained and what is held out: a table and the rows of it."""
    all_of = Preferences(folder / PAIRS)
    if isinstance(config.eval_split, str):
        held_out = Preferences(folder / HELD_OUT)
        return {TRAIN: (all_of, np.arange(len(all_of))), VALIDATION: (held_out, np.arange(len(held_out)))}
    numbers: dict[tuple[str, str | None], int] = {}
    prompt_of_row = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in all_of.prompts()], np.int64)
    train, validation = split(len(numbers), config.eval_split, seed)
    chosen = {TRAIN: train, VALIDATION: validation}
    return {name: (all_of, np.flatnonzero(np.isin(prompt_of_row, prompts))) for name, prompts in chosen.items()}


@dataclass(slots=True)
class _Totals:
    """Counts of one part. Tokens of a prompt are counted once a pair, as they are computed."""

    num_sequences: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    max_tokens: int = 0

    def added(self, rendered: RenderedPreference) -> RenderedPreference:
        sides = [side for _, side in rendered.sides]
        self.num_sequences += len(sides)
        prompt = min(side.num_prompt for side in sides)
        self.num_tokens += prompt + sum(side.tokens_T.size - prompt for side in sides)
        self.num_trained_tokens += sum(int(np.count_nonzero(side.weights_T)) for side in sides)
        self.max_tokens = max(self.max_tokens, *(int(side.tokens_T.size) for side in sides))
        return rendered

    def facts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


def _rendered(
    renderer: Renderer,
    source: Preferences,
    rows: npt.NDArray[np.int64],
    max_length: int,
    max_positions: float,
    quarantine: Quarantine,
) -> Iterator[RenderedPreference]:
    """The preferences that can be trained on; the others are set aside."""
    for start in range(0, rows.size, _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE].tolist()
        read = [source[row] for row in some]
        found = iter(renderer.build_many([one for each in read for one in _dialogues(each)], TrainOnWhat.CUSTOMIZED))
        for row, preference in zip(some, read, strict=True):
            sides = {name: next(found) for name in _names(preference)}
            problem = _problem(preference, sides, max_length, max_positions)
            if problem is not None:
                quarantine.add(BadRow(source.where(row), *problem))
                continue
            made = {name: Side(one[0][0].to_array(), one[0][1]) for name, one in sides.items()}  # type: ignore[index]
            yield RenderedPreference(made.get("chosen"), made.get("rejected"), row)


def _names(preference: Preference) -> list[str]:
    return [name for name in ("chosen", "rejected") if getattr(preference, name) is not None]


def _dialogues(preference: Preference) -> Iterator[tuple[Sequence[Message], Sequence[Mapping[str, Any]] | None]]:
    """The conversation of each side, with what is trained marked."""
    for name in _names(preference):
        completion = getattr(preference, name)
        before = [replace(message, trainable=False) for message in preference.prompt]
        behind = [replace(message, trainable=message.role == "assistant") for message in completion]
        yield [*before, *behind], preference.tools or None


def _problem(
    preference: Preference, sides: Mapping[str, _Found], max_length: int, max_positions: float
) -> tuple[Reason, str] | None:
    """Why a preference cannot be trained, if it cannot."""
    for name, found in sides.items():
        problem = has_picture((*preference.prompt, *(getattr(preference, name)))) or why_not_trained(
            found, max_length, max_positions
        )
        if problem is None and not isinstance(found, RenderError) and len(found) != 1:
            problem = Reason.NOT_RENDERABLE, f"it becomes {len(found)} sequences, since earlier turns are written anew"
        if problem is not None:
            return problem[0], f"{name}: {problem[1]}"
    tokens = [found[0][0].to_array() for found in sides.values() if not isinstance(found, RenderError)]
    if len(tokens) == 2 and np.array_equal(tokens[0], tokens[1]):
        return Reason.EQUAL_SIDES, "both completions are the same tokens"
    return None
