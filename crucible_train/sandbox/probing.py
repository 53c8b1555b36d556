"""Which layers work on this machine: found by running a program in them, once a process."""

from functools import cache
from threading import Event
from typing import Literal

from crucible_train.errors import SandboxError
from crucible_train.sandbox.execution import Job, execute
from crucible_train.sandbox.layers import Layers, installed
from crucible_train.sandbox.limits import Limits, Status

Namespaces = Literal["auto", "never", "always"]
_TRIAL = Job("import heapq, json, socket, threading\nprint('works')")


@cache
def working(namespaces: Namespaces) -> Layers:
    """The layers in which a trial program works; those that fail it are left out, with what they said.

    Raises:
        SandboxError: ``"always"`` is asked and bubblewrap does not work, or not even the bare launcher does.
    """
    layers = installed()
    if namespaces == "never":
        layers = layers.without("bwrap", "namespaces are switched off")
    if not layers.confines:
        layers = layers.without("own_uid", "only inside a sandbox")
    while (problem := _trial(layers)) is not None:
        blamed = _blamed(layers, problem)
        if blamed is None:
            raise SandboxError(f"no program can be started in a process of its own: {problem}")
        layers = layers.without(blamed, f"{blamed} does not work here ({problem})")
    if namespaces == "always" and layers.bwrap is None:
        raise SandboxError(f"namespaces are asked for, but {layers.why_not['bwrap']}")
    return layers


def _trial(layers: Layers) -> str | None:
    """What goes wrong in these layers, None if nothing does."""
    try:
        result = execute(layers, (), _TRIAL, Limits(wall_s=30.0), Event()).result
    except SandboxError as problem:
        return str(problem)
    works = result.status is Status.OK and result.stdout == "works\n"
    return None if works else f"a trial run ended as {result.status}: {result.stderr.strip()[-200:]}"


def _blamed(layers: Layers, problem: str) -> str | None:
    """The layer to do without: the one the launcher names, else the outermost."""
    there = {"bwrap": layers.bwrap, "landlock": layers.landlock, "seccomp": layers.seccomp, "own_uid": layers.own_uid}
    named = {
        "landlock": "landlock",
        "seccomp": "seccomp",
        "no_new_privs": "seccomp",
        "Operation not permitted": "own_uid",
    }
    for word, layer in named.items():
        if word in problem and there[layer] and "bwrap:" not in problem:
            return layer
    return next((layer for layer, is_there in there.items() if is_there), None)
