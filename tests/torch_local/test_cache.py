"""The table of rows being written: each step's attention is that of the whole sequence, whoever comes and goes."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crucible_train.adapters.torch_local import cache as cache_module
from crucible_train.adapters.torch_local.attention import Scores, attend_causally
from crucible_train.adapters.torch_local.cache import Prompt, RowCache, is_shared

KEY_HEADS, HEADS, WIDTH = 2, 4, 8
SCORES = {
    "plain": Scores(0.3),
    "window": Scores(0.3, window=5),
    "softcap": Scores(0.3, softcap=2.0),
    "sinks": Scores(0.3, sinks_H=torch.linspace(-1, 1, HEADS)),
    "all": Scores(0.3, window=40, softcap=2.0, sinks_H=torch.linspace(-1, 1, HEADS)),
}


@dataclass
class Sequence:
    """Keys and values of a row, kept beside the table."""

    keys: Tensor
    values: Tensor


def entered(cache: RowCache, length: int, num: int) -> list[Sequence]:
    keys, values = torch.randn(2, KEY_HEADS, length, WIDTH)
    cache.enter(Prompt([(keys, values)], length), num)
    return [Sequence(keys, values) for _ in range(num)]


def assert_a_step_is_right(cache: RowCache, rows: list[Sequence], scores: Scores) -> None:
    query = torch.randn(len(rows), HEADS, 1, WIDTH)
    key, value = torch.randn(2, len(rows), KEY_HEADS, 1, WIDTH)
    assert cache.positions.tolist() == [row.keys.shape[1] for row in rows]
    cache.begin_step()
    found = cache.attend(query, *cache.update(key, value, 0), scores)
    cache.end_step()
    for index, row in enumerate(rows):
        row.keys, row.values = torch.cat([row.keys, key[index]], 1), torch.cat([row.values, value[index]], 1)
        expected = attend_causally(query[index : index + 1], row.keys[None], row.values[None], scores)
        torch.testing.assert_close(found[index : index + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_rows_that_share_a_prompt_and_rows_that_do_not(scores: Scores) -> None:
    torch.manual_seed(0)
    cache = RowCache(torch.float32, torch.device("cpu"))
    rows = entered(cache, 70, 3) + entered(cache, 9, 1) + entered(cache, 33, 5) + entered(cache, 4, 2)
    assert is_shared(70, 3)
    assert not is_shared(4, 2)
    assert cache.num_shared == 70 + 33
    for step in range(40):
        assert_a_step_is_right(cache, rows, scores)
        if step in (3, 4, 30):
            gone = step % len(rows)
            cache.leave(gone)
            rows[gone] = rows[-1]
            rows.pop()
        if step == 8:
            rows += entered(cache, 70, 4)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whoever_comes_and_goes(data: st.DataObject) -> None:
    torch.manual_seed(1)
    cache = RowCache(torch.float32, torch.device("cpu"))
    rows: list[Sequence] = []
    for _ in range(data.draw(st.integers(1, 12))):
        if not rows or data.draw(st.booleans()):
            rows += entered(cache, data.draw(st.integers(1, 90)), data.draw(st.integers(1, 4)))
        for _ in range(data.draw(st.integers(0, 2))):
            if len(rows) > 1:
                gone = data.draw(st.integers(0, len(rows) - 1))
                cache.leave(gone)
                rows[gone] = rows[-1]
                rows.pop()
        assert_a_step_is_right(cache, rows, SCORES["plain"])


def test_what_a_row_wrote_is_given_back() -> None:
    torch.manual_seed(2)
    cache = RowCache(torch.float32, torch.device("cpu"))
    rows = entered(cache, 50, 4) + entered(cache, 10, 1)
    for _ in range(3):
        assert_a_step_is_right(cache, rows, SCORES["plain"])
    for index, start in ((1, 50), (4, 10), (4, 7), (2, 52)):
        ((keys, values),) = cache.written(index, start)
        torch.testing.assert_close(keys, rows[index].keys[:, start:])
        torch.testing.assert_close(values, rows[index].values[:, start:])


def test_the_table_holds_no_copy_of_a_shared_prompt() -> None:
    cache = RowCache(torch.float32, torch.device("cpu"))
    entered(cache, 1000, 8)
    cache.begin_step()
    ((keys, _),) = cache._tables
    assert keys.shape[2] <= cache_module._COLUMNS
