"""What each kind of server understands, and how a request is put to it.

Every value is always sent: a server's own defaults (llama.cpp's top_k of 40, a model's generation_config.json) would
change the distribution unasked.

    vllm          ids in, ids and log-probabilities out; ``prompt_logprobs`` scores a prompt
    sglang        the same; ``echo`` scores a prompt, its own /generate tells the likeliest tokens by id
    llama.cpp     the same, over its own /completion, as /v1/completions drops ids; stops are cut here; a prompt is
                  scored by forcing its tokens, a request each
    transformers  text in and out, one request at a time; no log-probabilities
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crucible_train.errors import ConfigError
from crucible_train.types import SamplingParams

Fields = Callable[[SamplingParams], dict[str, Any]]

# vLLM raises a temperature below this, and above 0, to it.
_VLLM_MIN_TEMPERATURE = 0.01


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server is asked.

    Attributes:
        name: of the server.
        fields: the JSON of sampling parameters, less the prompt, the seed and the number of samples.
        takes_ids: whether prompts are ids; else text.
        takes_n: whether one request asks for several samples.
        is_serial: one request at a time: its seed is the server's and not the request's.
        path: where samples are asked for.
        scoring: how the log-probabilities of a prompt are had; None where they are not.
    """

    name: Literal["vllm", "sglang", "llama.cpp", "transformers"]
    fields: Fields
    takes_ids: bool = True
    takes_n: bool = False
    is_serial: bool = False
    path: str = "/v1/completions"
    scoring: Literal["prompt_logprobs", "echo", "forced"] | None = None

    def described(self) -> str:
        """What the server can do, for a log line."""
        answers = "token ids with log-probabilities" if self.takes_ids else "text without log-probabilities"
        scoring = {
            "prompt_logprobs": "prompts are scored in one request",
            "echo": "prompts are scored in one request",
            "forced": "a prompt is scored at a request a token",
            None: "prompts cannot be scored",
        }[self.scoring]
        return f"{self.name}: {answers}; {scoring}" + ("; one request at a time" if self.is_serial else "")


def _neutral(params: SamplingParams) -> dict[str, Any]:
    return {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stream": False,
    }


def _stops(params: SamplingParams) -> dict[str, Any]:
    """Stop where asked and nowhere else."""
    stops = {"stop": list(params.stop_texts), "stop_token_ids": list(params.stop_token_ids)}
    return stops | {"ignore_eos": True, "skip_special_tokens": False, "return_token_ids": True}


def _vllm(params: SamplingParams) -> dict[str, Any]:
    if 0 < params.temperature < _VLLM_MIN_TEMPERATURE:
        raise ConfigError(f"temperature: vllm takes 0, or {_VLLM_MIN_TEMPERATURE} and more, not {params.temperature:g}")
    own = {"top_k": params.top_k, "repetition_penalty": 1.0, "logprobs": 0}
    own |= {"include_stop_str_in_output": True, "spaces_between_special_tokens": False, "add_special_tokens": False}
    return _neutral(params) | _stops(params) | own


def _sglang(params: SamplingParams) -> dict[str, Any]:
    # told to ignore its end token, it ignores stop_token_ids as well; an end that was not asked for is found out later
    own: dict[str, Any] = {"ignore_eos": not params.stop_token_ids, "no_stop_trim": True}
    own |= {"top_k": params.top_k or -1, "repetition_penalty": 1.0, "logprobs": 0}
    return _neutral(params) | _stops(params) | own


def _llama_cpp(params: SamplingParams) -> dict[str, Any]:
    # its own order has the temperature last, after tokens were dropped; these four alone, so nothing else acts
    own: dict[str, Any] = {"samplers": ["temperature", "top_k", "top_p", "min_p"], "top_k": params.top_k}
    own |= {"mirostat": 0, "dynatemp_range": 0.0}
    own |= {"n_predict": params.max_tokens, "n_probs": 1, "return_tokens": True, "cache_prompt": True}
    return _neutral(params) | own


def _transformers(params: SamplingParams) -> dict[str, Any]:
    if not params.stop_token_ids:
        raise ConfigError("stop_token_ids: transformers serve stops at its own end token unless others are named")
    generation: dict[str, Any] = {
        "do_sample": params.temperature > 0,
        "eos_token_id": list(params.stop_token_ids),
        "max_new_tokens": params.max_tokens,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
    }
    if params.temperature > 0:
        generation |= {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
        generation |= {"min_p": params.min_p, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
    if params.stop_texts:
        generation["stop_strings"] = list(params.stop_texts)
    return {"generation_config": json.dumps(generation), "max_tokens": params.max_tokens}


DIALECTS: Mapping[str, Dialect] = {
    "vllm": Dialect("vllm", _vllm, takes_n=True, scoring="prompt_logprobs"),
    "sglang": Dialect("sglang", _sglang, scoring="echo"),
    "llama.cpp": Dialect("llama.cpp", _llama_cpp, path="/completion", scoring="forced"),
    "transformers": Dialect("transformers", _transformers, takes_ids=False, is_serial=True),
}
