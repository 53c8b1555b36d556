"""In which precision a model's matrix products are computed."""

from collections.abc import Callable

import torch
from torch import Tensor


class Precision:
    """In which precision matrix products are computed, and the weights in that precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        """float32 or bfloat16."""
        self.dtype = dtype
        self._shadows: list[tuple[Tensor, Tensor]] = []
        self._followers: list[Callable[[], None]] = []

    @property
    def is_mixed(self) -> bool:
        """Whether products are computed in less than float32."""
        return self.dtype != torch.float32

    def compute(self, parameter: Tensor) -> Tensor:
        """The weight as the matrix products read it.

        A frozen weight is moved to the precision for good; a trained one keeps its float32 values and gets a shadow.
        """
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(self.dtype)
            return parameter.data
        if not self.is_mixed:
            return parameter.data
        for known, shadow in self._shadows:
            if known is parameter:
                return shadow
        shadow = parameter.data.to(self.dtype)
        self._shadows.append((parameter, shadow))
        return shadow

    def when_refreshed(self, follow: Callable[[], None]) -> None:
        """Have ``follow`` called whenever trained weights have changed."""
        self._followers.append(follow)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy trained weights into their shadows; to be called after they change."""
        for parameter, shadow in self._shadows:
            shadow.copy_(parameter)
        for follow in self._followers:
            follow()
