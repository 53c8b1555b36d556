"""Metrics that wait to be sent, step by step, so that a call which is repeated sends nothing twice."""

from collections.abc import Mapping

Step = tuple[int, dict[str, float]]


class WaitingSteps:
    """The steps a service does not hold yet, oldest first.

    Args:
        last_step: the newest step the service holds; it and what is before it are not taken.
    """

    def __init__(self, last_step: int = -1) -> None:
        """Nothing waits."""
        self._opened_at = self.last_step = last_step
        self._held: set[str] = set()
        self._steps: dict[int, dict[str, float]] = {}

    def __len__(self) -> int:
        """Numbers that wait."""
        return sum(len(metrics) for metrics in self._steps.values())

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Wait with numbers of a step; those the service holds are left out."""
        if step < self.last_step or step == self._opened_at:
            return
        held = self._held if step == self.last_step else frozenset()
        new = {name: float(value) for name, value in metrics.items() if name not in held}
        if new:
            self._steps.setdefault(step, {}).update(new)

    def waiting(self) -> list[Step]:
        """What is to be sent."""
        return sorted(self._steps.items())

    def sent(self, step: int) -> None:
        """The service holds every step up to this one."""
        for held in [waiting for waiting in sorted(self._steps) if waiting <= step]:
            names = set(self._steps.pop(held))
            self._held = self._held | names if held == self.last_step else names
            self.last_step = held
        self.last_step = max(self.last_step, step)
