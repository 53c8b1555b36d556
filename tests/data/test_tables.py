"""Rendered examples on the disk: what goes in comes out, and is read without copying it."""

import numpy as np
import pytest

from crucible_train.data.conversations import Dialogue
from crucible_train.data.examples import Example, datum, normalised
from crucible_train.data.tables import Dialogues, Examples, StoredDialogue, write_dialogues, write_examples
from crucible_train.types import conversation


def examples(num: int, seed: int = 0) -> list[Example]:
    draw = np.random.default_rng(seed)
    made = []
    for row in range(num):
        size = int(draw.integers(1, 9))
        tokens = draw.integers(0, 2**31 - 1, size).astype(np.int32)
        made.append(Example(tokens, draw.random(size).astype(np.float32), row * 3, int(draw.integers(0, 99))))
    return made


def assert_equal(found: Example, expected: Example) -> None:
    np.testing.assert_array_equal(found.tokens_T, expected.tokens_T, strict=True)
    np.testing.assert_array_equal(found.weights_T, expected.weights_T, strict=True)
    assert (found.row, found.num_bytes) == (expected.row, expected.num_bytes)


@pytest.mark.parametrize("num", [0, 1, 1023, 1024, 1025, 2500])
def test_examples_come_back_equal_and_by_number_across_batches(num, tmp_path):
    made = examples(num)
    assert write_examples(tmp_path / "e.arrow", iter(made)) == num
    table = Examples(tmp_path / "e.arrow")
    assert len(table) == num
    for found, expected in zip(table, made, strict=True):
        assert_equal(found, expected)
    np.testing.assert_array_equal(table.num_tokens(), [e.tokens_T.size for e in made])
    for index in (-1, num):
        with pytest.raises(IndexError):
            table[index]


def test_the_same_examples_are_the_same_bytes(tmp_path):
    for name in "ab":
        write_examples(tmp_path / name, examples(1500))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tokens_and_weights_are_views_of_the_mapped_file_that_cannot_be_written(tmp_path):
    import pyarrow as pa

    write_examples(tmp_path / "e.arrow", examples(2000))
    before = pa.total_allocated_bytes()
    table = Examples(tmp_path / "e.arrow")
    kept = list(table)
    assert pa.total_allocated_bytes() - before < 1000
    assert not kept[0].tokens_T.flags.writeable
    assert not kept[0].weights_T.flags.owndata


def test_dialogues_come_back_equal_with_their_place(tmp_path):
    texts = ["", "é\u2028\x00\t", "𝄞" * 1000, '"\\']
    dialogues = [Dialogue(conversation([{"role": "user", "content": t}]), ({"name": t},) if t else ()) for t in texts]
    stored = [StoredDialogue.of(dialogue, f"f:{i}") for i, dialogue in enumerate(dialogues)]
    assert write_dialogues(tmp_path / "d.arrow", stored) == 4
    table = Dialogues(tmp_path / "d.arrow")
    assert [table[i] for i in range(4)] == dialogues
    assert [table.where(i) for i in range(4)] == ["f:0", "f:1", "f:2", "f:3"]


def test_nothing_is_left_of_a_table_whose_rows_end_in_an_error(tmp_path):
    def failing():
        yield examples(1)[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_examples(tmp_path / "e.arrow", failing())
    assert list(tmp_path.iterdir()) == []


def example(weights: list[float]) -> Example:
    return Example(np.arange(len(weights), dtype=np.int32) + 10, np.array(weights, np.float32), 0, 0)


def test_a_datum_predicts_each_token_from_those_before_it_with_that_tokens_weight():
    made = datum(example([0, 0.5, 1]), scale=2)
    assert made.model_input.to_ints() == [10, 11]
    assert made.loss_fn_inputs["target_tokens"].tolist() == [11, 12]
    assert made.loss_fn_inputs["weights"].tolist() == [1, 2]


def test_a_step_is_a_mean_over_tokens_or_over_examples_of_their_means():
    batch = [example([1, 1]), example([0, 1, 0, 1, 1])]  # 1 and 3 trained targets: the first token is no target
    weights = {
        kind: [d.loss_fn_inputs["weights"].tolist() for d in normalised(batch, kind)] for kind in ("token", "example")
    }
    assert weights["token"] == [[0.25], [0.25, 0, 0.25, 0.25]]
    np.testing.assert_allclose(weights["example"][0], [1 / 2])
    np.testing.assert_allclose(weights["example"][1], [1 / 6, 0, 1 / 6, 1 / 6])
