"""A server that speaks the Tinker service's API as its SDK calls it, over the toy model; and fails when told to."""

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.model_servers.asgi import body_of, headers_of
from tests.model_servers.stub import StubServer

BASE = "Toy/Base"
SAVED = "tinker://toy-run/sampler_weights/000010"
KEY = "tml-0123456789abcdefCANARY"
PLAIN: dict[str, dict[str, str]] = {
    "client/config": {},
    "client/dynamic_config": {},
    "create_session": {"type": "create_session", "session_id": "session"},
    "session_heartbeat": {"type": "session_heartbeat"},
    "sessions/session/finish": {},
    "telemetry": {"status": "accepted"},
}


class TinkerStub:
    """The ASGI application. ``asked`` holds the sampling requests, ``calls`` the path of every call."""

    def __init__(self, decode: Callable[[Sequence[int]], str], vocab_size: int) -> None:
        self.toy = StubServer(decode, vocab_size)
        self.toy.is_processed = True  # nothing promises log-probabilities before temperature and filters
        self.base = BASE
        self.asked: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.refusals: deque[tuple[int, str]] = deque()  # what sampling requests are answered with instead
        self.failures: deque[tuple[str, str]] = deque()  # how results fail: the error and whose it is
        self.edit: Callable[[Any], Any] = lambda answer: answer
        self._results: dict[str, Any] = {}
        self._waited: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = await body_of(receive)
        self.calls.append(path := scope["path"].removeprefix("/api/v1/"))
        headers = headers_of(scope)
        status, answer = self._answer(path, headers, json.loads(raw or b"{}"))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        kind = b"application/x-protobuf" if isinstance(answer, bytes) else b"application/json"
        pairs = [(b"content-type", kind), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": data})

    def _answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        if headers.get("x-api-key") != KEY:
            return 401, {"detail": f"Invalid API key: {headers.get('x-api-key')}"}
        if path in PLAIN:
            return 200, PLAIN[path]
        match path:
            case "samplers/sampler":
                return 200, {"sampler_id": "sampler", "base_model": self.base, "model_path": None}
            case "create_sampling_session":
                if (body.get("base_model"), body.get("model_path")) not in ((self.base, None), (None, SAVED)):
                    named = body.get("base_model") or body.get("model_path")
                    return 400, {"detail": f"Model {named} is not supported"}
                return 200, {"type": "create_sampling_session", "sampling_session_id": "sampler"}
            case "asample":
                return self._taken(body)
            case "retrieve_future":
                return self._result(body["request_id"])
        return 404, {"detail": "Not Found"}

    def _taken(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.refusals:
            status, text = self.refusals.popleft()
            return status, {"detail": text}
        self.asked.append(body)
        request_id = f"request-{len(self.asked)}"
        self._results[request_id] = body
        ids = [f"{request_id}-{number}" for number in range(body["num_samples"])]
        return 200, {"request_id": request_id, "sample_sequence_ids": ids}

    def _result(self, request_id: str) -> tuple[int, Any]:
        if request_id not in self._waited and len(self._waited) < 2:
            self._waited.add(request_id)  # the first results are waited for
            return 200, {"type": "try_again", "request_id": request_id, "queue_state": "active"}
        if self.failures:
            error, category = self.failures.popleft()
            return 200, {"error": error, "category": category}
        return 200, self.edit(self._sampled(self._results[request_id])).SerializeToString()

    def _sampled(self, body: dict[str, Any]) -> Any:
        from tinker.proto import tinker_public_pb2 as messages

        prompt = [token for chunk in body["prompt"]["chunks"] for token in chunk["tokens"]]
        answer = messages.SampleResponse()
        for index in range(body["num_samples"]):
            choice = self.toy._choice(_as_vllm(body["sampling_params"]), prompt, index)
            reasons = {"stop": messages.STOP_REASON_STOP, "length": messages.STOP_REASON_LENGTH}
            answer.sequences.add(
                stop_reason=reasons[choice["finish_reason"]],
                tokens=np.array(choice["token_ids"], np.int32).tobytes(),
                logprobs=np.array(choice["logprobs"]["token_logprobs"], np.float32).tobytes(),
            )
        k = body.get("topk_prompt_logprobs") or 0
        if body.get("prompt_logprobs"):
            scores = [np.nan, *(self.toy._score(prompt, place) for place in range(1, len(prompt)))]
            answer.prompt_logprobs = np.array(scores, np.float32).tobytes()
        if k:
            self._tell_likeliest(answer.topk_prompt_logprobs, prompt, k)
        return answer

    def _tell_likeliest(self, table: Any, prompt: list[int], k: int) -> None:
        from tests.model_servers.stub import toy_logprobs

        ids, scores = np.zeros((len(prompt), k), np.int32), np.full((len(prompt), k), -99999.0, np.float32)
        for place in range(1, len(prompt)):
            row = toy_logprobs(prompt[:place], self.toy.vocab_size)
            best = self.toy._likeliest(row, k)
            ids[place, : len(best)], scores[place, : len(best)] = best, row[best]
        table.length, table.k = ids.shape
        table.token_ids, table.logprobs = ids.tobytes(), scores.tobytes()


def _as_vllm(params: dict[str, Any]) -> dict[str, Any]:
    """What the toy model reads."""
    stop = params.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    return {
        "seed": params["seed"] if params.get("seed") is not None else 0,
        "max_tokens": params["max_tokens"],
        "temperature": params["temperature"],
        "top_p": params["top_p"],
        "top_k": params["top_k"],
        "min_p": 0.0,
        "stop_token_ids": [one for one in stop if isinstance(one, int)],
        "stop": [one for one in stop if isinstance(one, str)],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "return_token_ids": True,
    }
