"""The gate that every task passes before anyone trains on it: ``python -m agent_gym.gate --env-id APIAgent-v0``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

import agent_gym  # noqa: F401  (registers the environments)

__all__ = ["gate_task", "main"]

NO_OPS = 64


@dataclass(frozen=True)
class _Run:
    """One episode: what was shown and charged turn by turn, and the verdict, None where the episode did not end."""

    turns: tuple[Any, ...]
    verdict: dict[str, Any] | None

    @property
    def status(self) -> str:
        return self.verdict["status"] if self.verdict else "unfinished"

    def describe(self) -> str:
        """The outcome in a few words."""
        if self.verdict is None:
            return "the episode did not end"
        return ": ".join([self.status, self.verdict["reason"], *self.verdict["diagnostics"][:1]])


def _play(env: gym.Env, task_id: str, seed: int, actions: Sequence[str]) -> _Run:
    observation, info = env.reset(seed=seed, options={"task": task_id})
    turns: list[Any] = [(observation, info["state_hash"])]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        turns.append((observation, reward, terminated, truncated, dict(info["cost"]), info["state_hash"]))
        if terminated or truncated:
            return _Run(tuple(turns), info["verdict"])
    return _Run(tuple(turns), None)


def _oracle_faults(env: gym.Env, task_id: str, seed: int) -> Iterator[str]:
    env.reset(seed=seed, options={"task": task_id})
    base: Any = env.unwrapped
    actions = list(base.oracle())
    first, second = _play(env, task_id, seed, actions), _play(env, task_id, seed, actions)
    if first.status != "pass":
        yield f"oracle: {first.describe()}"
    if repr(first) != repr(second):
        at = next((t for t, (a, b) in enumerate(zip(first.turns, second.turns, strict=False)) if repr(a) != repr(b)), 0)
        yield f"repeat: two runs of the oracle differ at turn {at}"
    declared = re.fullmatch(r"(?:train|test)-(\d+)-\d+", task_id)
    turns = [len(base.read(action).calls) for action in actions]
    if declared and hasattr(base.task, "calls") and max(turns) <= 1 and sum(turns) != int(declared[1]):
        yield f"necessity: the oracle makes {sum(turns)} calls, declared are {declared[1]}"


def gate_task(env: gym.Env, task_id: str, seed: int) -> list[str]:
    """Check one task: the oracle passes and repeats itself, a no-op and every cheat fail, and the oracle makes as
    many calls as the id declares.

    Args:
        env: An environment of the suite.
        task_id: As ``reset(options={"task": task_id})`` takes it.
        seed: Seed of every reset.

    Returns:
        The faults, each starting with the name of the gate it broke; none for a sound task.
    """
    faults = list(_oracle_faults(env, task_id, seed))
    idle = _play(env, task_id, seed, [""] * NO_OPS)
    if idle.status != "fail":
        faults.append(f"no-op: {idle.describe()}")
    for number, actions in enumerate(env.unwrapped.cheats()):  # type: ignore[attr-defined]
        run = _play(env, task_id, seed, actions)
        if run.status not in ("fail", "unfinished"):
            faults.append(f"cheat: number {number}: {run.describe()}")
    return faults


def _tasks(env: gym.Env, n: int, seed: int) -> Iterator[tuple[str, int]]:
    """``n`` different tasks with their seeds: the listed ones where there is a list, else from successive seeds."""
    if listed := getattr(env.unwrapped, "task_ids", None):
        yield from ((task_id, seed) for task_id in list(listed)[:n])
        return
    seen: set[str] = set()
    for at in range(seed, seed + n):
        task_id = env.reset(seed=at)[1]["task_id"]
        if task_id not in seen:
            seen.add(task_id)
            yield task_id, at


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent_gym.gate", description="Check tasks before they are used.")
    parser.add_argument("--env-id", required=True, help="such as APIAgent-v0")
    parser.add_argument("--env-kwargs", default="{}", metavar="JSON", help='such as \'{"split":"test"}\'')
    parser.add_argument("--tasks", metavar="PATH_OR_NAME", help="a task source of the environment")
    parser.add_argument("--n", type=int, default=200, help="number of tasks (200)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (0)")
    return parser.parse_args(arguments)


def _make(options: argparse.Namespace) -> gym.Env:
    """The environment, after a first reset.

    Raises:
        ValueError: In one sentence, whatever is wrong with the options.
    """
    if options.n < 1 or options.seed < 0:
        raise ValueError("--n must be 1 or more and --seed 0 or more")
    try:
        kwargs = json.loads(options.env_kwargs)
    except ValueError as error:
        raise ValueError(f"--env-kwargs is not JSON: {error}") from None
    if not isinstance(kwargs, dict):
        raise ValueError(f"--env-kwargs must be a JSON object, not {type(kwargs).__name__}")
    if options.tasks is not None:
        kwargs["tasks"] = options.tasks
    try:
        env = gym.make(options.env_id, disable_env_checker=True, **kwargs)
        env.reset(seed=options.seed)
    except (gym.error.Error, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{options.env_id}: {' '.join(str(error).split()).split(' was raised from')[0]}") from error
    if not hasattr(env.unwrapped, "oracle"):
        env.close()
        raise ValueError(f"{options.env_id}: not an environment of this suite: it has no oracle")
    return env


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a gate broke, 2 for options that cannot be."""
    options = _arguments(arguments)
    try:
        env = _make(options)
    except ValueError as error:
        print(f"gate: {error}", file=sys.stderr)
        return 2
    broken: dict[str, list[str]] = {}
    count = 0
    for task_id, seed in _tasks(env, options.n, options.seed):
        if faults := gate_task(env, task_id, seed):
            broken[task_id] = faults
        count += 1
        if count % 10 == 0:
            print(f"\r{count} of {options.n} tasks, {len(broken)} broken", end="", file=sys.stderr)
    print(file=sys.stderr)
    env.close()
    gates = Counter(gate for faults in broken.values() for gate in {fault.split(":")[0] for fault in faults})
    print(f"{options.env_id} {options.env_kwargs}: {count} tasks, {count - len(broken)} sound, {len(broken)} broken")
    for gate in ("oracle", "repeat", "necessity", "no-op", "cheat"):
        print(f"  {gate:<10} {count - gates[gate]:>6} held {gates[gate]:>6} broken")
    for task_id, faults in broken.items():
        for fault in faults:
            print(f"{task_id}  {fault}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
