"""Answers in two tokenisations and two chat formats, stretch by stretch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_train.distill.alignment import NONE, encoded_ends, stretches, text_ends
from crucible_train.distill.lessons import discounted, log_ratios
from crucible_train.distill.pairs import pairs_of
from crucible_train.distill.teacher import Reader, Teacher, check_objective, prefaced
from crucible_train.errors import ConfigError
from crucible_train.renderers import FastTokenizer, Renderer, get_renderer
from crucible_train.rl.environment import StopReason, Trajectory, Transition
from crucible_train.types import Message, ModelInput, TokensWithLogprobs

ROOT = Path(__file__).parents[2]
TEXTS = ["12 + 7 = 19", "  An answer,\n\nwith  spaces.", "naïve café 東京 🙂🙂 ok", "x"]


@pytest.fixture(scope="module")
def smollm2() -> Renderer:
    return get_renderer("smollm2", FastTokenizer.from_folder(ROOT / "crucible_train" / "assets" / "smollm2"))


@pytest.fixture(scope="module")
def qwen3() -> Renderer:
    folder = ROOT / "tests" / "golden" / "tokenizers" / "qwen3"
    return get_renderer("qwen3_instruct", FastTokenizer.from_folder(folder))


def test_stretches_lie_between_shared_boundaries_by_hand() -> None:
    """Ends 4 7 10 12 and 4 7 8 10 12: the third stretch is one token on the left, two on the right."""
    left, right = stretches([4, 7, 10, 12], [4, 7, 8, 10, 12])
    assert left.tolist() == [0, 1, 2, 3]
    assert right.tolist() == [0, 1, 2, 2, 3]


def test_a_token_within_a_character_belongs_to_the_stretch_that_ends_it() -> None:
    left, right = stretches([1, NONE, NONE, 2, 5], [2, 5])
    assert left.tolist() == [0, 0, 0, 0, 1]
    assert right.tolist() == [0, 1]
    assert stretches([3], [2])[0].tolist() == [NONE]


@pytest.mark.parametrize("text", TEXTS)
def test_both_sides_of_a_stretch_are_the_same_text(smollm2: Renderer, qwen3: Renderer, text: str) -> None:
    ids = smollm2.tokenizer.encode(text)
    found, left_ends = text_ends(ids, smollm2.tokenizer)
    others, right_ends = encoded_ends(text, qwen3.tokenizer)
    left, right = stretches(left_ends, right_ends)
    assert found == text
    assert left.max() == right.max() >= (1 if len(text) > 1 else 0)
    assert NONE not in left
    assert NONE not in right
    for number in range(int(left.max()) + 1):
        mine = smollm2.tokenizer.decode([i for i, n in zip(ids, left, strict=True) if n == number])
        its = qwen3.tokenizer.decode([i for i, n in zip(others, right, strict=True) if n == number])
        assert mine == its


class Spaced:
    """Ids of words; the space before the first of a text is dropped, as SentencePiece's decoders do."""

    def decode(self, ids: Any) -> str:
        return "".join((" hello", " world", " ,")[i] for i in ids).lstrip()


def test_ids_that_read_otherwise_by_themselves_end_where_the_whole_text_says() -> None:
    """Alone each word loses its space: "hello" and "world" would make "helloworld"."""
    assert text_ends([0, 1, 2], Spaced()) == ("hello world ,", [5, 11, 13])  # type: ignore[arg-type]


def test_what_a_teacher_reads_first_stands_behind_a_system_message(smollm2: Renderer) -> None:
    system, asked = Message("system", "Be brief."), Message("user", "Well?")
    shown = (Message("user", "2 + 2?"), Message("assistant", "4"))
    seen = prefaced(smollm2, shown)
    plain = smollm2.build_generation_prompt([system, *shown, asked]).to_ints()
    assert seen.build_generation_prompt([system, asked]).to_ints() == plain
    with pytest.raises(ConfigError, match=r"teacher\.before: it begins with a system message"):
        prefaced(smollm2, (system,)).build_generation_prompt([system, asked])


def episode(renderer: Renderer, text: str, *, is_cut_off: bool = False) -> Trajectory:
    prompt = renderer.build_generation_prompt([Message("user", "Well?")])
    stop = [] if is_cut_off else [int(renderer.stop_sequences()[0])]
    ids = [*renderer.tokenizer.encode(text), *stop]
    action = TokensWithLogprobs(tuple(ids), tuple(-0.5 for _ in ids), "length" if is_cut_off else "stop")
    reason = StopReason.MAX_TOKENS if is_cut_off else StopReason.COMPLETED
    return Trajectory((Transition(prompt, action, 0.0, 0),), reason)


def pair_of(student: Renderer, teacher: Renderer, text: str, *, by_teacher: bool = False, **more: Any) -> Any:
    writer, other = (teacher, student) if by_teacher else (student, teacher)
    read = other.build_generation_prompt([Message("user", "Well?")]).to_array()
    shares = student.tokenizer.sha256 == teacher.tokenizer.sha256
    taught = Teacher("teacher", None, Reader(None, teacher), shares, type(student) is type(teacher))  # type: ignore[arg-type]
    trajectory = episode(writer, text, **more)
    [pair] = pairs_of(trajectory, taught, Reader(None, student), read, by_teacher=by_teacher)  # type: ignore[arg-type]
    return pair


@pytest.mark.parametrize("by_teacher", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_is_what_the_other_would_have_written(
    smollm2: Renderer, qwen3: Renderer, text: str, by_teacher: bool
) -> None:
    """The other one's prompt, the text in its ids, and its own end."""
    pair = pair_of(smollm2, qwen3, text, by_teacher=by_teacher)
    for renderer, ids in ((smollm2, pair.student_T), (qwen3, pair.teacher_U)):
        prompt = renderer.build_generation_prompt([Message("user", "Well?")]).to_ints()
        assert ids.tolist() == [*prompt, *renderer.tokenizer.encode(text), renderer.stop_sequences()[0]]
    assert pair.stretch_T[-1] == pair.stretch_U[-1] == pair.stretch_T.max()
    assert pair.num_trained == len(smollm2.tokenizer.encode(text)) + 1


def test_the_ratio_of_a_stretch_is_of_sums(smollm2: Renderer, qwen3: Renderer) -> None:
    """Every token of the student has log-probability -0.5, of the teacher -0.1."""
    pair = pair_of(smollm2, qwen3, "12 + 7 = 19")
    ratio_T, total = log_ratios(pair, np.full(pair.teacher_U.size, -0.1, np.float32))
    for place in np.flatnonzero(pair.is_trained_T):
        number = pair.stretch_T[place]
        expected = 0.5 * (pair.stretch_T == number).sum() - 0.1 * (pair.stretch_U == number).sum()
        assert ratio_T[place] == pytest.approx(expected, abs=1e-6)
    inside = pair.stretch_U != NONE
    assert total == pytest.approx(0.5 * pair.num_trained - 0.1 * inside.sum(), abs=1e-5)
    assert not ratio_T[~pair.is_trained_T].any()


def test_the_last_stretch_of_an_answer_that_was_cut_off_is_left_out(smollm2: Renderer, qwen3: Renderer) -> None:
    whole, cut = (pair_of(smollm2, qwen3, "Paris is nice", is_cut_off=cut) for cut in (False, True))
    assert cut.num_trained == whole.num_trained - 2  # the end, and the last word


def test_control_tokens_are_no_text(smollm2: Renderer, qwen3: Renderer) -> None:
    trajectory = episode(smollm2, "a b")
    start = smollm2.tokenizer.control_tokens["<|im_start|>"]
    first = trajectory.transitions[0]
    action = TokensWithLogprobs((start, *first.action.tokens), (-0.5, *first.action.logprobs), "stop")
    odd = Trajectory((Transition(first.prompt, action, 0.0, 0),), StopReason.COMPLETED)
    read = qwen3.build_generation_prompt([Message("user", "Well?")]).to_array()
    taught = Teacher("teacher", None, Reader(None, qwen3), False, False)  # type: ignore[arg-type]
    [pair] = pairs_of(odd, taught, Reader(None, smollm2), read, by_teacher=False)  # type: ignore[arg-type]
    assert pair.num_trained == 0


def test_a_discount_counts_what_comes_after_by_hand() -> None:
    """Stretches 1, 2 (two tokens), 4 with discount 0.5: 1 + 0.5 (2 + 0.5 * 4) = 3, then 2 + 2 = 4, then 4."""
    ratios = np.array([0, 1, 2, 2, 4], np.float32)
    found = discounted(ratios, np.array([NONE, 0, 1, 1, 2]), 0.5)
    assert found.tolist() == [0, 3, 4, 4, 4]
    assert discounted(ratios, np.array([NONE, 0, 1, 1, 2]), 0.0) is ratios


def test_a_teacher_that_reads_more_has_the_same_format(smollm2: Renderer) -> None:
    before = [Message("user", "1?"), Message("assistant", "1.")]
    seen = prefaced(smollm2, before)
    asked = [Message("user", "2?")]
    assert seen.build_generation_prompt(asked) == smollm2.build_generation_prompt([*before, *asked])
    assert seen.stop_sequences() == smollm2.stop_sequences()
    assert prefaced(smollm2, ()) is smollm2


def check(student: Renderer, teacher: Renderer, objective: str) -> None:
    shares = student.tokenizer.sha256 == teacher.tokenizer.sha256
    taught = Teacher("teacher", None, Reader(None, teacher), shares, type(student) is type(teacher))  # type: ignore[arg-type]
    check_objective(taught, Reader(None, student), objective)  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", ["divergence", "top_k"])
def test_distributions_over_other_tokens_are_refused(smollm2: Renderer, qwen3: Renderer, objective: str) -> None:
    with pytest.raises(ConfigError, match="teacher: its tokenizer is not the student's"):
        check(smollm2, qwen3, objective)
    role_colon = get_renderer("role_colon", smollm2.tokenizer)
    with pytest.raises(ConfigError, match=r"end with another token|only where a token ends"):
        check(smollm2, role_colon, objective)


@pytest.mark.parametrize("objective", ["reverse_kl", "cross_entropy"])
def test_texts_are_compared_where_a_token_ends_them(smollm2: Renderer, qwen3: Renderer, objective: str) -> None:
    check(smollm2, qwen3, objective)
    with pytest.raises(ConfigError, match="only where a token ends each answer"):
        check(smollm2, get_renderer("role_colon", qwen3.tokenizer), objective)


def test_another_format_is_for_episodes_of_one_answer(smollm2: Renderer, qwen3: Renderer) -> None:
    one = episode(smollm2, "a")
    two = Trajectory(one.transitions * 2, StopReason.COMPLETED)
    taught = Teacher("teacher", None, Reader(None, qwen3), False, False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="supported for episodes of one answer"):
        pairs_of(two, taught, Reader(None, smollm2), np.arange(3, dtype=np.int32), by_teacher=False)  # type: ignore[arg-type]


def test_a_history_that_is_rewritten_is_refused(smollm2: Renderer) -> None:
    """The second prompt does not begin with the first: where more stands before it cannot be told."""
    one = episode(smollm2, "a").transitions[0]
    other = Transition(ModelInput.from_ints([5, 6, 7]), one.action, 0.0, 0)
    trajectory = Trajectory((one, other), StopReason.COMPLETED)
    taught = Teacher("teacher", None, Reader(None, smollm2))  # type: ignore[arg-type]
    same = pairs_of(trajectory, taught, Reader(None, smollm2), one.prompt.to_array(), by_teacher=False)  # type: ignore[arg-type]
    assert [pair.student_T.tolist() for pair in same] == [pair.teacher_U.tolist() for pair in same]
    with pytest.raises(ConfigError, match="rewrites what was said"):
        pairs_of(trajectory, taught, Reader(None, smollm2), np.arange(9, dtype=np.int32), by_teacher=False)  # type: ignore[arg-type]
