"""A judge says the same whatever serves its model."""

import asyncio

import pytest

from crucible_train.judges import ComparisonRenderer, LabelJudge
from crucible_train.renderers import get_renderer
from crucible_train.types import Message


def test_a_judge_behind_llama_cpp_says_what_the_engine_says(local_client, llama_cpp_client, smollm2_tokenizer):
    comparing = ComparisonRenderer(get_renderer("smollm2", smollm2_tokenizer))
    asked, pairs = [Message("user", "2 + 2?")], [(Message("assistant", "4"), Message("assistant", "five"))]

    def judged(client, **options):
        [found] = asyncio.run(LabelJudge(client, comparing, **options).judge(asked, pairs))
        return [getattr(side, name) for side in (found.first, found.second) for name in ("a", "b", "tie")]

    here = judged(local_client(None).sampling_client())
    assert judged(llama_cpp_client, alone=False) == pytest.approx(here, abs=2e-3)
