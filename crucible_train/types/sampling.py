"""How to sample, and what sampling cost."""

from dataclasses import dataclass

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The values of one sampling request.

    Filters act in this order, each on what the one before left: temperature, top_k, top_p, min_p. Tokens as likely as
    the least likely one that a filter keeps are kept as well.

    Attributes:
        max_tokens: write at most this many tokens, 1 or more.
        temperature: 0 is greedy; 1 samples from the model's own distribution.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        seed: the same seed, prompt and parameters give the same tokens; in [0, 2**63).
        stop_token_ids: stop after writing one of these.
        stop_texts: stop once the text holds one of these; it is part of what is returned.
        top_k: keep this many of the most likely tokens; 0 keeps all.
        min_p: keep tokens at least this share as probable as the most likely one, in [0, 1].
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or more, not {self.max_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 or more, not {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1], not {self.min_p}")
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f"seed must lie in [0, 2**63), not {self.seed}")
        if "" in self.stop_texts:
            raise ValueError("a stop text must not be empty")


@dataclass(frozen=True, slots=True)
class SamplerStats:
    """What sampling has cost since the model was loaded.

    Attributes:
        prefilled_tokens: positions of prompts that were computed.
        reused_tokens: positions of prompts that were not, because another sample or an earlier request had them.
        sampled_tokens: tokens written.
        steps: passes that wrote one token a row.
        seconds: time at work, prompts included.
    """

    prefilled_tokens: int = 0
    reused_tokens: int = 0
    sampled_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
