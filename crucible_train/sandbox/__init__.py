"""Untrusted programs, confined: code rewards run here. ``docs/sandbox.md`` says what each layer guarantees."""

from crucible_train.sandbox.limits import Limits, Result, Status
from crucible_train.sandbox.sandbox import Sandbox
from crucible_train.sandbox.verdicts import Call, Calls, Exchange, Verdict

__all__ = ["Call", "Calls", "Exchange", "Limits", "Result", "Sandbox", "Status", "Verdict"]
