"""How long to wait before a service is asked again."""

import secrets

FIRST_S = 0.5
LONGEST_S = 60.0
_PARTS = 1 << 16


class Backoff:
    """Twice as long after every failure, from half a second up to a minute; a random half of it is left out."""

    def __init__(self) -> None:
        """Nothing has failed."""
        self._num_failures = 0

    def reset(self) -> None:
        """Something was taken."""
        self._num_failures = 0

    def next_s(self, retry_after_s: float | None) -> float:
        """Seconds to wait after one more failure, at least what the service asked for."""
        longest = min(LONGEST_S, FIRST_S * (1 << self._num_failures))
        self._num_failures = min(self._num_failures + 1, 16)
        jittered = longest * (0.5 + 0.5 * secrets.randbelow(_PARTS) / _PARTS)
        return max(jittered, retry_after_s or 0.0)
