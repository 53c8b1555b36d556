"""How to sample."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The values of one sampling request.

    Attributes:
        max_tokens: write at most this many tokens, 1 or more.
        temperature: 0 is greedy; 1 samples from the model's own distribution.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        seed: the same seed, prompt and parameters give the same tokens.
        stop_token_ids: stop after writing one of these.
        stop_texts: stop once the text holds one of these; it is part of what is returned.
        top_k: keep this many of the most likely tokens; 0 keeps all.
        min_p: keep tokens at least this share as likely as the most likely one, in [0, 1].
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
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 or more, not {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1], not {self.min_p}")
        if "" in self.stop_texts:
            raise ValueError("a stop text must not be empty")
