"""Exact snapshots through the wrapper stack, at a cost that does not depend on the size of the world."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

__all__ = ["Snapshot", "restore", "snapshot", "state_hash"]

_SCALARS = (bool, int, float, str, bytes, tuple, frozenset, type(None), np.bool_, np.number)
_CONTAINERS = (list, dict, set, deque, np.ndarray)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode at one moment. Immutable; pickles, so another process can restore it.

    Args:
        env: The innermost environment's state.
        wrappers: From the outermost in: the wrapper's class name and its counters.
        kind: The innermost environment's class name.
    """

    env: tuple[Any, ...]
    wrappers: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    kind: str


def _counters(wrapper: gym.Wrapper) -> tuple[tuple[str, Any], ...]:
    """A wrapper's own mutable state: its scalars, and shallow copies of its containers.

    A wrapper with state beyond that defines ``get_state`` (a value that nothing changes any more) and ``set_state``.
    """
    if hasattr(wrapper, "get_state"):
        return (("", wrapper.get_state()),)
    state: list[tuple[str, Any]] = []
    for name, value in vars(wrapper).items():
        if isinstance(value, _SCALARS):
            state.append((name, value))
        elif isinstance(value, _CONTAINERS):
            state.append((name, value.copy()))
    return tuple(state)


def snapshot(env: gym.Env) -> Snapshot:
    """Everything that decides what ``env`` does next: world, random generator, costs, turns, wrapper counters.

    Args:
        env: A ToolEnv, wrapped or not.

    Raises:
        TypeError: For an environment that is not of this suite.
        RuntimeError: Before the first reset.
    """
    wrappers = []
    base = _base(env, "snapshot")
    if base.task is None:
        raise RuntimeError("there is nothing to take a snapshot of: call reset() first")
    while isinstance(env, gym.Wrapper):
        wrappers.append((type(env).__name__, _counters(env)))
        env = env.env
    return Snapshot(base.get_state(), tuple(wrappers), type(base).__name__)


def _base(env: Any, function: str) -> Any:
    """The innermost environment, which has a state to take and to put back."""
    base = env.unwrapped if isinstance(env, gym.Env) else env
    if not hasattr(base, "get_state") or not hasattr(base, "set_state"):
        raise TypeError(f"{function} needs an environment of agent_gym, not {type(base).__name__}")
    return base


def restore(env: gym.Env, snap: Snapshot) -> None:
    """Put ``env`` back to ``snap``; from there on it behaves byte for byte as it did then.

    Args:
        env: An environment made by the same ``gym.make`` call as the one the snapshot was taken of, here or in
            another process.

    Raises:
        ValueError: If the snapshot is of another environment, or the wrapper stacks differ.
        TypeError: If ``env`` is not of this suite, or ``snap`` is no snapshot.
    """
    base = _base(env, "restore")
    if not isinstance(snap, Snapshot):
        raise TypeError(f"restore needs a Snapshot, as snapshot(env) gives it, not {type(snap).__name__}")
    if snap.kind != type(base).__name__:
        raise ValueError(f"the snapshot was taken of {snap.kind}, this environment is {type(base).__name__}")
    wrappers = []
    while isinstance(env, gym.Wrapper):
        wrappers.append(env)
        env = env.env
    names, taken = [type(wrapper).__name__ for wrapper in wrappers], [name for name, _ in snap.wrappers]
    if names != taken:
        raise ValueError(f"the snapshot was taken under the wrappers {taken}, this environment has {names}")
    for wrapper, (_, state) in zip(wrappers, snap.wrappers, strict=True):
        if hasattr(wrapper, "set_state"):
            wrapper.set_state(state[0][1])
            continue
        for name, value in state:
            setattr(wrapper, name, value.copy() if isinstance(value, _CONTAINERS) else value)
    base.set_state(snap.env)


def state_hash(env: gym.Env) -> str:
    """Hash of the world's content alone: equal for all histories that lead to the same state.

    Raises:
        TypeError: For an environment that is not of this suite.
    """
    return _base(env, "state_hash")._world.hash
