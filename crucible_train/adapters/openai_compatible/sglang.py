"""SGLang's own ``/generate``: its ``/v1/completions`` names the likeliest tokens by text, which several may share."""

from collections.abc import Sequence

from crucible_train.adapters.openai_compatible.answers import NativeGeneration, read
from crucible_train.adapters.openai_compatible.transport import Transport

_PATH = "/generate"


async def top(transport: Transport, ids: Sequence[int], k: int) -> list[list[tuple[int, float]] | None]:
    """The ``k`` most likely tokens at each position, as (id, log-probability), in any order; None where none are."""
    body = {"input_ids": list(ids), "sampling_params": {"max_new_tokens": 1, "temperature": 0.0}, "stream": False}
    body |= {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": k, "return_text_in_logprobs": False}
    rows = read(NativeGeneration, await transport.post(_PATH, body)).meta_info.input_top_logprobs
    return [None if row is None else [(token, logprob) for logprob, token, *_ in row] for row in rows]
