"""Environments, verifiers and replays on other machines, through Ray (extra ``ray``).

Whatever runs in a worker here is a function of its arguments, so that it can run again: when a worker or its node dies,
another one takes its place and what it was at runs once more, from the same snapshot. The answer that arrives counts,
and only one does.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from typing import Any

import gymnasium as gym

from agent_gym.env import tool_env
from agent_gym.replay import plain_kwargs
from agent_gym.verdict import InfraError

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise ImportError("agent_gym.remote needs Ray: pip install 'agent-gym[ray]'") from error

__all__ = ["RayEnvs", "RayExecutor", "shared_executor"]

ATTEMPTS = 5
"""Workers that one call may lose before it is given up."""


class _Worker:
    """An actor."""

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)


class RayExecutor(Executor):
    """An executor whose workers are Ray actors, for ``counterfactuals(workers=)``, ``sandbox.Pool(executor=)`` and
    :class:`RayEnvs`.

    A worker has one call at a time. A call whose worker dies runs again in another one, so what is submitted must be
    fit to run twice. Ray is started on this machine, unless ``ray.init`` was called before.

    Args:
        workers: How many, spread over the nodes.
        **options: Of ``ray.remote``, such as ``num_cpus``. By default a worker reserves nothing, so that one that died
            finds another node, however full.

    Attributes:
        replaced: How many workers have died and were replaced.
    """

    def __init__(self, workers: int, **options: Any) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers={workers!r}: must be a whole number of 1 or more")
        self.workers, self.replaced = workers, 0
        self._kind = ray.remote(**{"num_cpus": 0, "scheduling_strategy": "SPREAD", **options})(_Worker)
        self._all = [self._kind.remote() for _ in range(workers)]
        ray.get([worker.run.remote(os.getpid, (), {}) for worker in self._all])  # one that cannot start says so now
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="agent_gym ray")

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function in a worker, as soon as one is free, and wait for what it returns.

        Raises:
            Exception: What the function raised.
            InfraError: Every worker that tried died.
        """
        last: Exception | None = None
        for _ in range(ATTEMPTS):
            worker = self._idle.get()
            try:
                return ray.get(worker.run.remote(function, args, kwargs))
            except RayTaskError:
                raise
            except RayError as error:
                last, worker = error, self._replacement(worker)
            finally:
                self._idle.put(worker)
        name = getattr(function, "__name__", function)
        raise InfraError(f"{ATTEMPTS} workers in a row died at {name}: {last}") from last

    def _replacement(self, dead: Any) -> Any:
        ray.kill(dead)  # it may only be out of reach
        with self._lock:
            self.replaced += 1
            self._all.remove(dead)
            self._all.append(self._kind.remote())
            return self._all[-1]

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(self.run, function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._all:
            ray.kill(worker)


@cache
def shared_executor(workers: int) -> RayExecutor:
    """The executor of so many workers that whatever runs in this process shares."""
    return RayExecutor(workers)


class RayEnvs(Sequence[gym.Env]):
    """Environments that think elsewhere: their worlds, tools and verifiers are in Ray actors.

    Whoever plays sees ordinary environments: ``reset``, ``step``, ``agent_gym.snapshot``, ``restore``, wrappers. The
    state of an episode stays here. ``step`` sends it with the action to whichever worker is free, which plays the step
    in an environment of its own and sends the new state back; so no episode is lost with a worker, and a step that was
    played twice is charged once. Any number of threads may step different environments at a time.

    Args:
        envs: Made alike by ``gym.make``. Each plays remotely from now on; its wrappers stay here.
        executor: The workers.

    Attributes:
        workers: How many can play at a time.
    """

    def __init__(self, envs: Sequence[gym.Env], executor: RayExecutor) -> None:
        self.envs, self.executor = list(envs), executor
        for env in self.envs:
            base: Any = tool_env(env)
            if base.spec is None or base.spec != self.envs[0].unwrapped.spec:
                raise ValueError(
                    "RayEnvs needs environments made alike by gym.make, so that each worker can make its own"
                )
            base.reset, base.step = partial(self._play, base, "reset"), partial(self._play, base, "step")
        self.workers = executor.workers
        if self.envs:
            spec = replace(base.spec, kwargs=plain_kwargs(base.spec.kwargs))
            self._made = ray.put((spec, base.token_counter, base.parser))

    def __len__(self) -> int:
        return len(self.envs)

    def __getitem__(self, at: Any) -> Any:
        return self.envs[at]

    def _play(self, base: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        # a reference in a list is fetched by the worker, once, and not with every call
        outcome, state = self.executor.run(_played, [self._made], base.get_state(), method, args, kwargs)
        base.set_state(state)
        return outcome


_bases: dict[str, Any] = {}  # of a worker, by what they are made of


def _played(made: list[Any], state: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Play on from a state, in a worker.

    Returns:
        What the method returned, and the state after it.
    """
    key = made[0].hex()
    if key not in _bases:
        spec, token_counter, parser = ray.get(made[0])
        base = tool_env(gym.make(spec))
        base.token_counter, base.parser = token_counter, parser
        _bases[key] = base
    base = _bases[key]
    base.set_state(state)
    return getattr(base, method)(*args, **kwargs), base.get_state()
