"""Writing: the tokens of transformers' generate, the trainer's log-probabilities, the draws of the distribution."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from crucible_train.adapters.torch_local import sampler
from crucible_train.adapters.torch_local.backend import LocalBackend
from crucible_train.adapters.torch_local.sampler import Sampler
from crucible_train.types import (
    AdamParams,
    CrossEntropy,
    Datum,
    ModelInput,
    SamplingParams,
    TokensWithLogprobs,
)

Engine = Callable[..., LocalBackend]
SHARED = np.random.default_rng(5).integers(1, 61, 20)
PROMPTS = [
    np.array([7]),
    np.array([9, 30, 12]),
    SHARED[:17],
    np.append(SHARED, [3, 4, 5]),
    np.append(SHARED, [3, 4, 5]),
    np.append(SHARED, 59),
    np.random.default_rng(6).integers(1, 61, 33),
]


def write(
    backend: LocalBackend,
    prompts: Sequence[Any],
    params: SamplingParams | Sequence[SamplingParams],
    num_samples: int = 1,
) -> list[list[TokensWithLogprobs]]:
    """Ask for all at the same moment."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params

    async def ask() -> list[Any]:
        asked = [backend.sample(ModelInput.from_ints(p), num_samples, q) for p, q in zip(prompts, each, strict=True)]
        return await asyncio.gather(*asked)

    return [list(answers) for answers in asyncio.run(ask())]


def generated(folder: Path, prompt: np.ndarray, num: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.from_numpy(prompt)[None].long()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num, do_sample=False)
    return out[0, prompt.size :].tolist()


@pytest.mark.parametrize("name", ["llama, untied", "qwen3"])
def test_greedy_is_generates(name: str, engine: Engine, model_folder: Callable[[str], Path]) -> None:
    """Stop tokens end rows at different times, so that some leave the batch while others go on."""
    expected = [generated(model_folder(name), prompt, 24) for prompt in PROMPTS]
    assert len(set(itertools.chain(*expected))) > 10
    stops = (expected[0][2], expected[3][9], expected[6][17])
    found = write(engine(name), PROMPTS, SamplingParams(24, temperature=0.0, stop_token_ids=stops))
    num_written = set()
    for (answer,), tokens in zip(found, expected, strict=True):
        cut = next((i + 1 for i, token in enumerate(tokens) if token in stops), None)
        assert list(answer.tokens) == tokens[:cut]
        assert answer.stop_reason == ("length" if cut is None else "stop")
        num_written.add(len(answer.tokens))
    assert len(num_written) > 2


def test_rows_of_different_limits_end_where_theirs_is(engine: Engine) -> None:
    """The longest prompt ends first and is too small a share of the rows to leave the batch."""
    backend = engine()
    prompts = [SHARED, *(np.array([token]) for token in range(1, 8))]
    limits = [SamplingParams(3, temperature=0.0), *[SamplingParams(22, temperature=0.0)] * 7]
    together = write(backend, prompts, limits)
    assert [len(answer.tokens) for (answer,) in together] == [3, *[22] * 7]
    for prompt, limit, answers in zip(prompts, limits, together, strict=True):
        assert write(backend, [prompt], limit)[0][0].tokens == answers[0].tokens


def test_the_memory_limit_lets_fewer_rows_in_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = engine("qwen3")
    params = SamplingParams(12, temperature=0.9, top_p=0.9, seed=4)
    whole = write(backend, PROMPTS, params, num_samples=2)
    num_rows: list[int] = []
    step = Sampler._step
    monkeypatch.setattr(Sampler, "_step", lambda self: (num_rows.append(len(self._rows)), step(self))[1])
    for limit, most in ((1, 1), (30_000, 4)):
        monkeypatch.setattr(sampler, "MAX_CACHE_BYTES", limit)
        num_rows.clear()
        cut = write(backend, PROMPTS, params, num_samples=2)
        assert max(num_rows) == most
        assert sum(num_rows) == 14 * 11
        assert [[a.tokens for a in answers] for answers in cut] == [[a.tokens for a in answers] for answers in whole]
        for one, other in zip(itertools.chain(*cut), itertools.chain(*whole), strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def written_logprobs(backend: LocalBackend, datum: Callable[..., Datum]) -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities of some answers as the sampler gives them, and as the trainer's forward pass does."""
    params = SamplingParams(9, temperature=0.8, top_p=0.95, seed=1)
    written = write(backend, PROMPTS, params, num_samples=2)
    datums, found = [], []
    for prompt, answers in zip(PROMPTS, written, strict=True):
        for answer in answers:
            tokens = np.append(prompt, answer.tokens)
            weights = np.zeros(tokens.size - 1)
            weights[prompt.size - 1 :] = 1.0
            datums.append(datum(tokens, weights))
            found.append(np.array(answer.logprobs))
    output = asyncio.run(backend.forward(datums, CrossEntropy()))
    expected = [logprobs[-one.size :] for one, logprobs in zip(found, output.logprobs_D, strict=True)]
    return np.concatenate(found), np.concatenate(expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [None, 3], ids=["full", "lora"])
def test_log_probabilities_are_the_trainers_whatever_the_weights_become(
    rank: int | None, precision: str, engine: Engine, datum: Callable[..., Datum]
) -> None:
    backend = engine(rank=rank, precision=precision)

    async def train(num: int) -> None:
        for _ in range(num):
            await backend.forward_backward([datum(prompt) for prompt in PROMPTS[1:]], CrossEntropy())
            await backend.optim_step(AdamParams(learning_rate=0.03))

    def look() -> np.ndarray:
        found, expected = written_logprobs(backend, datum)
        difference = np.abs(found - expected)
        assert difference.max() <= 1e-4 if precision == "float32" else difference.mean() <= 0.03
        return found

    first = look()
    saved = asyncio.run(backend.save_state("first"))
    asyncio.run(train(3))
    trained = look()
    asyncio.run(backend.load_state(saved))
    assert look().tolist() == first.tolist()
    assert np.abs(trained - first).mean() > 0.3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_sequence_is_scored_as_transformers_does(
    name: str, engine: Engine, model_folder: Callable[[str], Path]
) -> None:
    ids = torch.from_numpy(PROMPTS[-1])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model_folder(name))(ids[None]).logits[0]
    expected = torch.log_softmax(logits, 1)[:-1].gather(1, ids[1:, None]).squeeze(1)
    first, *found = asyncio.run(engine(name).compute_logprobs(ModelInput.from_ints(PROMPTS[-1])))
    assert first is None
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (3.0, 1.0), (2.0, 0.7), (0.5, 0.9), (1.0, 1e-6)])
def test_draws_follow_the_truncated_softmax(temperature: float, top_p: float, engine: Engine) -> None:
    num = 2000
    backend = engine()
    prompt = SHARED
    scored = [asyncio.run(backend.compute_logprobs(ModelInput.from_ints(np.append(prompt, v))))[-1] for v in range(61)]
    logprobs = np.array(scored)
    exact = np.exp(logprobs / temperature)
    exact /= exact.sum()
    order = np.argsort(-exact)
    before = np.cumsum(exact[order]) - exact[order]
    kept = order[before < top_p]
    exact = np.where(np.isin(np.arange(61), kept), exact, 0.0)
    exact /= exact.sum()
    ((*answers,),) = write(backend, [prompt], SamplingParams(1, temperature=temperature, top_p=top_p), num)
    counts = np.bincount([answer.tokens[0] for answer in answers], minlength=61)
    assert counts[exact == 0].sum() == 0
    # tokens that are expected fewer than five times are counted as one
    is_often = exact * num >= 5
    found = np.append(counts[is_often], counts[~is_often].sum())
    expected = np.append(exact[is_often], exact[~is_often].sum()) * num
    found, expected = found[expected > 0], expected[expected > 0]
    chi_square, freedom = ((found - expected) ** 2 / expected).sum(), len(found) - 1
    assert chi_square <= freedom + 4 * np.sqrt(2 * freedom)
    for answer in answers[:20]:
        assert answer.logprobs[0] == pytest.approx(logprobs[answer.tokens[0]], abs=1e-4)


def test_draws_of_successive_tokens_and_of_samples_are_independent(engine: Engine) -> None:
    ((*answers,),) = write(engine(), [SHARED], SamplingParams(6, temperature=50.0), 64)
    tokens = np.array([answer.tokens for answer in answers])
    assert len(np.unique(tokens)) > 50
    for left, right in itertools.combinations(range(6), 2):
        assert (tokens[:, left] == tokens[:, right]).mean() < 0.2
    assert len({tuple(row) for row in tokens}) == 64


def test_a_seed_gives_the_same_tokens_whatever_else_is_written(engine: Engine) -> None:
    backend = engine("qwen3")
    params = SamplingParams(10, temperature=1.5, seed=11)
    alone = [write(backend, [prompt], params, 2)[0] for prompt in PROMPTS]
    others = [SamplingParams(15, temperature=3.0, seed=n, stop_token_ids=(1, 2)) for n in range(5)]
    together = write(backend, [*PROMPTS, *PROMPTS[:5]], [*[params] * len(PROMPTS), *others], 2)
    for one, other in zip(alone, together, strict=False):
        assert [answer.tokens for answer in one] == [answer.tokens for answer in other]
    assert alone[3] == alone[4]
    assert alone[0][0].tokens != alone[0][1].tokens
    other_seed = write(backend, [PROMPTS[0]], SamplingParams(10, temperature=1.5, seed=12), 2)
    assert other_seed[0][0].tokens != alone[0][0].tokens


class Bytes:
    """A tokenizer, as far as the sampler needs one: each id is some bytes, of which not all are whole characters."""

    def __init__(self) -> None:
        self.table: dict[int, bytes] = {}

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.table.get(token, b".") for token in ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("stop", "pieces"),
    [
        ("####", [b"####"]),
        ("####", [b"a#", b"#", b"##b"]),
        ("€", [b"\xe2", b"\x82\xac"]),
        ("\U0001f600\U0001f601", [bytes([byte]) for byte in "\U0001f600\U0001f601".encode()]),
        ("stop", [b"s", b"t", b"o", b"p"]),
    ],
    ids=["one token", "several tokens", "a torn character", "a byte a token", "a letter a token"],
)
def test_a_stop_text_ends_the_answer_with_the_token_that_completes_it(
    stop: str, pieces: list[bytes], engine: Engine
) -> None:
    tokenizer = Bytes()
    backend = engine(tokenizer=tokenizer)
    params = SamplingParams(40, temperature=30.0, seed=2)
    tokens = write(backend, [SHARED], params)[0][0].tokens
    start = next(
        i
        for i in range(3, 40 - len(pieces))
        if len(set(tokens[i : i + len(pieces)])) == len(pieces)
        and not set(tokens[i : i + len(pieces)]) & set(tokens[:i])
    )
    tokenizer.table = dict(zip(tokens[start : start + len(pieces)], pieces, strict=True))
    stopping = SamplingParams(40, temperature=30.0, seed=2, stop_texts=("~", stop))
    answer = write(backend, [SHARED], stopping)[0][0]
    assert answer.tokens == tokens[: start + len(pieces)]
    assert answer.stop_reason == "stop"


def test_a_stop_token_ends_the_answer_and_is_part_of_it(engine: Engine) -> None:
    backend = engine()
    tokens = write(backend, [SHARED], SamplingParams(20, temperature=30.0))[0][0].tokens
    for params in (
        SamplingParams(20, temperature=30.0, stop_token_ids=(next(t for t in range(61) if t not in tokens), tokens[7])),
        SamplingParams(8, temperature=30.0, stop_token_ids=(tokens[7],)),
    ):
        answer = write(backend, [SHARED], params)[0][0]
        cut = tokens.index(tokens[7]) + 1
        assert answer.tokens == tokens[:cut]
        assert answer.stop_reason == "stop"
        assert len(answer.logprobs) == cut


@pytest.mark.parametrize("num", [1, 2, 17])
def test_max_tokens_is_the_number_written(num: int, engine: Engine) -> None:
    backend = engine()
    for (answer,) in write(backend, PROMPTS, SamplingParams(num)):
        assert len(answer.tokens) == len(answer.logprobs) == num
        assert answer.stop_reason == "length"


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        write(engine(), [np.zeros(0, np.int64)], SamplingParams(1))


def test_a_caller_that_leaves_ends_its_writing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Ctrl-C would wait for the last token of the longest answer."""
    backend = engine()
    num_rows: list[int] = []
    leave = threading.Event()
    has_left = threading.Event()
    step = Sampler._step

    def watched(self: Sampler) -> None:
        num_rows.append(len(self._rows))
        if len(num_rows) == 3:
            leave.set()
            assert has_left.wait(20)
        step(self)

    monkeypatch.setattr(Sampler, "_step", watched)

    async def act() -> Any:
        staying = asyncio.create_task(
            backend.sample(ModelInput.from_ints(SHARED), 2, SamplingParams(8, temperature=0.0))
        )
        leaving = asyncio.create_task(backend.sample(ModelInput.from_ints(SHARED), 3, SamplingParams(100)))
        await asyncio.to_thread(leave.wait, 20)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        has_left.set()
        return await asyncio.wait_for(staying, 20)

    assert [len(answer.tokens) for answer in asyncio.run(act())] == [8, 8]
    assert num_rows == [5, 5, 5, 2, 2, 2, 2]
