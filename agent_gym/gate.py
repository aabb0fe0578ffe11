"""The gate that every task passes before anyone trains on it: ``python -m agent_gym.gate --env-id APIAgent-v0``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agent_gym import ToolEnv
from agent_gym.tools import Call

__all__ = ["blind_passes", "check_task", "gate_task", "main"]

NO_OPS = 64
GUESS_BOUND = 0.25
"""A guess in the place of look-ups has to pass less often than this."""
BLIND_BOUND = 0.05
"""The share of a run's tasks that an answer which looked at nothing may pass, in a run of enough tasks to tell."""
BLIND_TASKS = 100


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
    turns = [len(base.read(action).calls) for action in actions]
    number = _declared(task_id)
    if number is not None and hasattr(base.task, "calls") and max(turns) <= 1 and sum(turns) != number:
        yield f"necessity: the oracle makes {sum(turns)} calls, declared are {number}"


def _declared(task_id: str) -> int | None:
    """The number of necessary calls that an id declares."""
    found = re.fullmatch(r"(?:train|test)(?:-[a-z]+)?-(\d+)-\d+", task_id)
    return int(found[1]) if found else None


def _answer(base: Any) -> str | None:
    """The final answer of the oracle, as text; None where there is none to be had by telling."""
    turn = base.read(list(base.oracle())[-1])
    last = turn.calls[-1].arguments.get("answer") if turn.calls else turn.text
    return last if isinstance(last, str | None) else json.dumps(last)


def _tell(env: gym.Env, task_id: str, seed: int, answer: str) -> _Run:
    """An episode of one turn: an answer, and nothing looked at."""
    parser = env.unwrapped.parser  # type: ignore[attr-defined]
    return _play(env, task_id, seed, [parser.render("", [Call("submit", {"answer": answer})])])


def _values(answer: str) -> list[str]:
    """What an answer says: the values of a JSON object, or the whole."""
    with suppress(ValueError):
        value = json.loads(answer)
        if isinstance(value, dict):
            return [one if isinstance(one, str) else json.dumps(one) for one in value.values()]
    return [answer]


def _guesses(env: gym.Env, task_id: str, seed: int) -> Iterator[str]:
    """What the cheap strategies of the environment pass too often with."""
    base: Any = env.unwrapped
    for name, sides in base.gambles():
        times = Counter(map(tuple, sides))
        passed = sum(n for side, n in times.items() if _play(env, task_id, seed, side).status == "pass")
        if passed >= GUESS_BOUND * len(sides):
            yield f"{name} passes {passed} of {len(sides)} times, with fewer calls than the oracle"


def check_task(env: gym.Env, task_id: str, seed: int) -> tuple[list[str], list[str]]:
    """:func:`gate_task`'s faults, and remarks that break no gate: those of the environment's own ``remarks()``, and
    the cheap ways through a task that does not declare how many calls it takes."""
    faults = list(_oracle_faults(env, task_id, seed))
    idle = _play(env, task_id, seed, [""] * NO_OPS)
    if idle.status != "fail":
        faults.append(f"no-op: {idle.describe()}")
    base: Any = env.unwrapped
    for number, actions in enumerate(base.cheats()):
        run = _play(env, task_id, seed, actions)
        if run.status not in ("fail", "unfinished"):
            faults.append(f"cheat: number {number}: {run.describe()}")
    answer, request = _answer(base), base.task.request
    if answer and all(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", request) for value in _values(answer)):
        run = _tell(env, task_id, seed, answer)
        if run.status == "pass":
            faults.append(f"cheat: the answer stands in the request: {answer[:80]}")
    remarks = list(base.remarks())
    guesses = list(_guesses(env, task_id, seed))
    if _declared(task_id) is None:
        return faults, remarks + guesses
    return faults + [f"guess: {guess}" for guess in guesses], remarks


def gate_task(env: gym.Env, task_id: str, seed: int) -> list[str]:
    """Check one task: the oracle passes and repeats itself, a no-op and every cheat fail, a guess seldom passes, and
    the oracle makes as many calls as the id declares.

    Args:
        env: An environment of the suite.
        task_id: As ``reset(options={"task": task_id})`` takes it.
        seed: Seed of every reset.

    Returns:
        The faults, each starting with the name of the gate it broke; none for a sound task.
    """
    return check_task(env, task_id, seed)[0]


def blind_passes(env: gym.Env, answers: Sequence[tuple[str, int, str, str]]) -> list[str]:
    """The tasks that pass with the most frequent answer of the other tasks, nothing looked at.

    Args:
        env: An environment of the suite.
        answers: Task id, seed, type and the oracle's answer of each task. Where answers are JSON objects, the most
            frequent value of each key counts, whatever the type; else the most frequent answer of the type.
    """
    parts = [_parts(answer, kind) for *_, kind, answer in answers]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for entries in parts:
        for place, value in entries.items():
            counts.setdefault(place, Counter())[value] += 1
    passed = []
    for (task_id, seed, *_), entries in zip(answers, parts, strict=True):
        others = {place: counts[place] - Counter([own]) for place, own in entries.items()}
        if not all(others.values()):
            continue
        guess = {place: max(sorted(other), key=other.__getitem__) for place, other in others.items()}
        (kind, _), text = next(iter(guess.items()))
        said = text if kind else "{" + ",".join(f"{json.dumps(key)}:{value}" for (_, key), value in guess.items()) + "}"
        if _tell(env, task_id, seed, said).status == "pass":
            passed.append(task_id)
    return passed


def _parts(answer: str, kind: str) -> dict[tuple[str, str], str]:
    """The values of a JSON object, as JSON, by key; any other answer as it is, by the type of its task."""
    with suppress(ValueError):
        value = json.loads(answer)
        if isinstance(value, dict) and value:
            return {("", key): json.dumps(one) for key, one in value.items()}
    return {(kind, ""): answer}


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
    remarked: dict[str, list[str]] = {}
    answers = []
    count = 0
    base: Any = env.unwrapped
    for task_id, seed in _tasks(env, options.n, options.seed):
        faults, remarks = check_task(env, task_id, seed)
        if faults:
            broken[task_id] = faults
        if remarks:
            remarked[task_id] = remarks
        _, info = env.reset(seed=seed, options={"task": task_id})
        if answer := _answer(base):
            answers.append((task_id, seed, info["task_type"], answer))
        count += 1
        if count % 10 == 0:
            print(f"\r{count} of {options.n} tasks, {len(broken)} broken", end="", file=sys.stderr)
    print(file=sys.stderr)
    blind = blind_passes(env, answers)
    guessed = type(base).gambles is not ToolEnv.gambles
    env.close()
    gates = Counter(gate for faults in broken.values() for gate in {fault.split(":")[0] for fault in faults})
    print(f"{options.env_id} {options.env_kwargs}: {count} tasks, {count - len(broken)} sound, {len(broken)} broken")
    for gate in ("oracle", "repeat", "necessity", "no-op", "cheat", *(["guess"] if guessed else [])):
        print(f"  {gate:<10} {count - gates[gate]:>6} held {gates[gate]:>6} broken")
    too_blind = count >= BLIND_TASKS and len(blind) > BLIND_BOUND * count
    if answers:
        bound = f", more than {BLIND_BOUND:.0%}: {', '.join(blind[:5])} ..." if too_blind else ""
        print(f"  {'blind':<10} {len(blind):>6} pass with the most frequent answer of the others{bound}")
    if remarked:
        print(f"  {'remarks':<10} {len(remarked):>6} tasks")
    for task_id, faults in broken.items():
        for fault in faults:
            print(f"{task_id}  {fault}")
    for task_id, remarks in remarked.items():
        for remark in remarks:
            print(f"{task_id}  remark: {remark}")
    return 1 if broken or too_blind else 0


if __name__ == "__main__":
    sys.exit(main())
