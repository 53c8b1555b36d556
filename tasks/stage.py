"""One way to make a Prefect task of a stage.

The stage's own store decides whether there is anything to do: Prefect's cache would return a reference without asking
whether what it names is still there and sound. A task that found its artifact ends in the state ``Cached``.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed

from crucible_train.stages.base import Outcome
from crucible_train.types import ArtifactRef

P = ParamSpec("P")


def stage_task(
    name: str, run_name: str | None = None
) -> Callable[[Callable[P, Awaitable[Outcome]]], Callable[P, Awaitable[Outcome]]]:
    """Run the decorated coroutine function as a task of this name; callers get its outcome.

    ``run_name`` may name parameters in braces, where the task runs more than once in a flow.
    """

    def decorate(function: Callable[P, Awaitable[Outcome]]) -> Callable[P, Awaitable[Outcome]]:
        @task(name=name, task_run_name=run_name or name, persist_result=False, cache_policy=NO_CACHE)
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> State[ArtifactRef]:
            try:
                outcome = await function(*args, **kwargs)
            except asyncio.CancelledError:
                return Cancelled(message="stopped; what was done is saved")
            if outcome.is_cached:
                return Completed(name="Cached", message="found in the store", data=outcome.ref)
            return Completed(message=outcome.ref.uri, data=outcome.ref)

        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> Outcome:
            state: State[ArtifactRef] = await run(*args, return_state=True, **kwargs)  # type: ignore[misc]
            if state.is_cancelled():
                raise asyncio.CancelledError
            return Outcome(await state.aresult(), is_cached=state.name == "Cached")

        return call

    return decorate
