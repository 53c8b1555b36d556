"""A server that answers as vLLM documents (or SGLang, where they differ), over a toy model; and fails when told to."""

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from tests.model_servers.asgi import body_of, headers_of

EOS = 2


def toy_logprobs(context: Sequence[int], vocab_size: int) -> np.ndarray:
    """What the toy model thinks comes next: a pure function of the last four ids."""
    return _drawn(np.asarray(context[-4:], np.uint16).tobytes(), vocab_size)


@lru_cache(maxsize=64)
def _drawn(context: bytes, vocab_size: int) -> np.ndarray:
    draws = np.random.Generator(np.random.Philox(key=int.from_bytes(context, "little")))
    return log_softmax(draws.standard_normal(vocab_size) * 3)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def kept(logits: np.ndarray, body: dict[str, Any]) -> np.ndarray:
    """Logits after temperature and filters, -inf where a token is dropped."""
    scaled = logits / body["temperature"]
    scaled = np.where(scaled < scaled.max() + np.log(max(body["min_p"], 1e-300)), -np.inf, scaled)
    if body["top_k"] > 0:
        scaled = np.where(scaled < np.sort(scaled)[-body["top_k"]], -np.inf, scaled)
    order = np.argsort(-scaled, kind="stable")
    probabilities = np.exp(log_softmax(scaled))[order]
    beyond = order[probabilities.cumsum() - probabilities >= body["top_p"]]
    scaled[beyond] = -np.inf
    return scaled


@dataclass
class Fault:
    """What happens to a request instead of its answer: ``status``, ``hang``, ``cut``, ``garbage`` or ``shape``."""

    kind: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "planted"}}'


class StubServer:
    """The ASGI application. ``requests`` holds the bodies it was sent."""

    def __init__(self, decode: Callable[[Sequence[int]], str], vocab_size: int, kind: str = "vllm") -> None:
        self.decode, self.vocab_size, self.kind = decode, vocab_size, kind
        self.key: str | None = None
        self.is_processed = False  # log-probabilities after temperature and filters
        self.returns_ids = True
        self.most_told = vocab_size  # of the likeliest tokens at a position
        self.models = [{"id": "toy", "owned_by": kind}]
        self.faults: deque[Fault] = deque()
        self.requests: list[dict[str, Any]] = []
        self.tries = 0
        self.num_left = 0
        self.under_way = self.most_under_way = 0
        self.edit: Callable[[dict[str, Any]], Any] = lambda answer: answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = await body_of(receive)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self._answer(scope, raw, receive, send)
        finally:
            self.under_way -= 1

    async def _answer(self, scope: Any, raw: bytes, receive: Any, send: Any) -> None:
        headers = headers_of(scope)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            sent = headers.get("authorization")
            return await _send(send, 401, {"error": {"message": f"wrong key: {sent}", "code": 401}})
        if scope["path"] == "/v1/models":
            return await _send(send, 200, {"object": "list", "data": self.models})
        if scope["path"] == "/generate" and self.kind == "sglang":
            self.requests.append(json.loads(raw))
            return await _send(send, 200, self.generate(self.requests[-1]))
        if scope["path"] != "/v1/completions":
            return await _send(send, 404, {"detail": "Not Found"})
        self.tries += 1
        body = json.loads(raw)
        if body.get("max_tokens", 0) > 1 and self.faults:
            return await self._fail(self.faults.popleft(), receive, send)
        self.requests.append(body)
        status, answer = self.complete(body)
        return await _send(send, status, self.edit(answer) if body.get("max_tokens", 0) > 1 else answer)

    async def _fail(self, fault: Fault, receive: Any, send: Any) -> None:
        if fault.kind == "hang":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.num_left += 1
        elif fault.kind == "cut":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            await send({"type": "http.response.body", "body": b'{"choices": ['})
        elif fault.kind == "garbage":
            await _send(send, 200, "<html>a proxy's page</html>")
        elif fault.kind == "shape":
            await _send(send, 200, {"choices": "none"})
        else:
            await _send(send, fault.status, fault.body, fault.headers)

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["model"] not in [model["id"] for model in self.models]:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        prompt = body["prompt"]
        if not isinstance(prompt, list):
            return 400, {"error": {"message": "this test sends ids", "code": 400}}
        if max(prompt) >= self.vocab_size:
            return 400, {"error": {"message": f"Token id {max(prompt)} is out of vocabulary", "code": 400}}
        choices = [self._choice(body, prompt, index) for index in range(body.get("n", 1))]
        count = sum(choice.pop("count") for choice in choices)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count}
        return 200, {"id": "cmpl-1", "object": "text_completion", "model": "toy", "choices": choices, "usage": usage}

    def _choice(self, body: dict[str, Any], prompt: list[int], index: int) -> dict[str, Any]:
        draws = np.random.Generator(np.random.Philox(key=body["seed"] + index))
        ids: list[int] = []
        logprobs: list[float] = []
        reason = "length"
        while len(ids) < body["max_tokens"] and reason == "length":
            raw = toy_logprobs([*prompt, *ids], self.vocab_size)
            logits = raw if body["temperature"] == 0 else kept(raw, body)
            noise = 0 if body["temperature"] == 0 else draws.gumbel(size=self.vocab_size)
            token = int((logits + noise).argmax())
            ids.append(token)
            logprobs.append(float((log_softmax(logits) if self.is_processed else raw)[token]))
            stops = [*body["stop_token_ids"], *([] if body["ignore_eos"] else [EOS])]
            if self.kind == "sglang" and body["ignore_eos"]:
                stops = []
            if token in stops or any(stop in self.decode(ids) for stop in body["stop"]):
                reason = "stop"
        includes_stop = body.get("include_stop_str_in_output") or body.get("no_stop_trim")
        text = self.decode(ids) if includes_stop else self.decode(ids[: -1 if reason == "stop" else None])
        scored = list(logprobs)
        is_scored = body.get("echo") or body.get("prompt_logprobs") is not None
        scores = [None, *(self._score(prompt, place) for place in range(1, len(prompt) if is_scored else 1))]
        if body.get("echo"):
            scored = [*scores, *logprobs]  # type: ignore[list-item]
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": reason, "count": len(ids)}
        choice["token_ids"] = ids if body.get("return_token_ids") and self.returns_ids else None
        choice["logprobs"] = {"token_logprobs": scored, "tokens": [self.decode([token]) for token in ids]}
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = [None, *(self._told(prompt, n, body) for n in range(1, len(prompt)))]
        return choice

    def _told(self, prompt: list[int], place: int, body: dict[str, Any]) -> dict[str, Any]:
        """The token that stands there, first, and the likeliest ones, with their ranks."""
        scores = toy_logprobs(prompt[:place], self.vocab_size)
        tokens = dict.fromkeys([prompt[place], *self._likeliest(scores, body["prompt_logprobs"])])
        return {
            str(token): {
                "logprob": float(scores[token]),
                "rank": int((scores >= scores[token]).sum()),
                "decoded_token": self.decode([token]),
            }
            for token in tokens
        }

    def _likeliest(self, scores: np.ndarray, num: int) -> list[int]:
        return [int(token) for token in np.argsort(-scores, kind="stable")[: min(num, self.most_told)]]

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """SGLang's own answer, as far as it tells of a prompt."""
        ids = body["input_ids"]
        assert body["return_logprob"]
        assert body["logprob_start_len"] == 0
        top: list[list[tuple[float, int, None]] | None] = [None]
        for place in range(1, len(ids)):
            scores = toy_logprobs(ids[:place], self.vocab_size)
            top.append(
                [(float(scores[token]), token, None) for token in self._likeliest(scores, body["top_logprobs_num"])]
            )
        return {"text": "x", "meta_info": {"prompt_tokens": len(ids), "input_top_logprobs": top}}

    def _score(self, prompt: list[int], place: int) -> float:
        return float(toy_logprobs(prompt[:place], self.vocab_size)[prompt[place]])


async def _send(send: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    pairs = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    pairs += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": data})
