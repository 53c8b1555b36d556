"""What acts otherwise in a pass that gathers a gradient: the adapters' dropout, and recomputing activations.

A model's own dropout stays off: post-training is short, and its authors trained without it.
"""

import contextlib
from collections.abc import Iterator

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import PreTrainedModel

from crucible_train.errors import ModelError
from crucible_train.seeds import fold


class TrainingMode:
    """Turns on what belongs to training, for as long as a pass lasts."""

    def __init__(self, model: PreTrainedModel, seed: int, *, recompute: bool) -> None:
        """Find the parts that act.

        Args:
            model: with its adapters.
            seed: decides what dropout drops.
            recompute: keep each layer's input only, and compute the layer again in the backward pass.

        Raises:
            ModelError: the model cannot recompute.
        """
        if recompute:
            if not model.supports_gradient_checkpointing:
                raise ModelError(f"engine.activation_checkpointing: {type(model).__name__} does not support it")
            model.activation_checkpointing_enable({"use_reentrant": False})
        self._seed = seed
        self._dropouts = [
            dropout
            for module in model.modules()
            if isinstance(module, LoraLinear)
            for dropout in module.lora_dropout.values()
            if isinstance(dropout, nn.Dropout)
        ]
        self._acting: list[nn.Module] = list(self._dropouts)
        self._acting += [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]

    @contextlib.contextmanager
    def on(self, *purpose: int) -> Iterator[None]:
        """Train within; the numbers of ``purpose`` decide, with the seed, what dropout drops."""
        with contextlib.ExitStack() as stack:
            if self._dropouts:
                stack.enter_context(torch.random.fork_rng())
                torch.manual_seed(fold(self._seed, "dropout", *purpose))
            for module in self._acting:
                module.training = True
            stack.callback(self._off)
            yield

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within a pass, compute as outside of one: nothing is dropped where the model is its own teacher."""
        were_on = [module.training for module in self._acting]
        self._off()
        try:
            yield
        finally:
            for module, was_on in zip(self._acting, were_on, strict=True):
                module.training = was_on

    def _off(self) -> None:
        for module in self._acting:
            module.training = False
