"""What a run is expected to cost on this machine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """Speed and memory of one model, as found on a small copy of it.

    Attributes:
        hidden_size: the model's width.
        num_params: weights of the whole model.
        num_trained_params: those that are trained.
        train_tokens_per_second: tokens of a forward and backward pass.
        forward_tokens_per_second: tokens of a forward pass.
        write_step_s: seconds to write one token of every answer that is written at once.
        peak_bytes: most memory the process holds.
    """

    hidden_size: int
    num_params: int
    num_trained_params: int
    train_tokens_per_second: float
    forward_tokens_per_second: float
    write_step_s: float
    peak_bytes: int
