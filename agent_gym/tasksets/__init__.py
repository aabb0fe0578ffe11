"""Named, frozen task sets: lists of task ids with the hash of each task's content. docs/tasksets.md says more."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_gym.env import ToolEnv, tool_env

__all__ = ["SOURCES", "TaskSet", "level", "names", "of_set", "open_set", "oracle_cost", "tasks", "to_dataset"]

FOLDER = Path(__file__).parent
FORM = "agent-gym-tasks-v1"
NAME = re.compile(r"([A-Za-z]+)-[a-z]+-v\d+")
"""How a frozen set is named: its environment, its part, its version."""
SOURCES = {"humaneval": "CodeAgent-v0", "mbpp": "CodeAgent-v0", "bfcl": "APIAgent-v0"}
"""Real data that a package brings or fetches; other real data is named by its path."""
DRAWING = ("split", "difficulty", "domains", "kinds", "sites")
"""The arguments of environments that say which tasks are drawn."""


@dataclass(frozen=True)
class TaskSet:
    """Tasks that always are the same ones: ``gym.make(task_set.env_id, **task_set.env_kwargs)`` plays them.

    Args:
        name: Of a frozen set (``"SQL-test-v1"``), of a source, or the path of a file.
        env_id: Gymnasium id.
        task_ids: In their order.
        task_hashes: As ``info["task_hash"]`` gives them, one a task.
        drawn_with: Arguments of the environment that a frozen set's tasks were drawn with.
    """

    name: str
    env_id: str
    task_ids: tuple[str, ...]
    task_hashes: tuple[str, ...]
    drawn_with: Mapping[str, Any]

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Arguments of ``gym.make``."""
        return {"tasks": self.name}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the ids and hashes, in their order."""
        lines = "".join(f"{id} {digest}\n" for id, digest in zip(self.task_ids, self.task_hashes, strict=True))
        return sha256(lines.encode()).hexdigest()

    @cached_property
    def _hashes(self) -> dict[str, str]:
        """By id; asked at every reset."""
        return dict(zip(self.task_ids, self.task_hashes, strict=True))

    def check(self, task_id: str, task_hash: str) -> None:
        """See that a task is of this set, and still the one that was frozen.

        Raises:
            ValueError: If not.
        """
        if task_id not in self._hashes:
            raise ValueError(f"the task set {self.name} has no task {task_id!r}; its first is {self.task_ids[0]!r}")
        if task_hash != self._hashes[task_id]:
            raise ValueError(
                f"the task {task_id!r} of {self.name} has the content {task_hash} here, frozen was "
                f"{self._hashes[task_id]}: its generator has changed, so results on it would not compare; use the "
                f"version of agent-gym that froze the set, or a newer set "
                f"('agent-gym tasks {self.name} --check' names every changed task)"
            )

    def to_json(self) -> str:
        """What the file of a frozen set holds: one task a line."""
        head = {
            "schema": FORM, "name": self.name, "env_id": self.env_id, "drawn_with": self.drawn_with,
            "fingerprint": self.fingerprint, "tasks": self._hashes,
        }  # fmt: skip
        return json.dumps(head, indent=1) + "\n"


def names(env_id: str | None = None) -> list[str]:
    """The names of the frozen sets, of one environment or of all."""
    prefix = "" if env_id is None else env_id.rpartition("-")[0] + "-"
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem.startswith(prefix))


def open_set(name: str, env_id: str | None = None) -> TaskSet:
    """A task set by its name.

    Args:
        name: Of a frozen set, a name in :data:`SOURCES`, or the path of a file or folder of tasks.
        env_id: Whose tasks a path holds; may be left out for a name.

    Raises:
        ValueError: If there is no such set, it is of another environment, or its file is damaged.
    """
    if NAME.fullmatch(name):
        found = _frozen(name)
        if env_id not in (None, found.env_id):
            raise ValueError(f"the task set {name} is of {found.env_id}, not of {env_id}")
        return found
    env_id = env_id or SOURCES.get(name)
    if env_id is None:
        raise ValueError(
            f"tasks={name!r}: neither a frozen task set nor a source ({', '.join(SOURCES)}); for the path of a file, "
            f"such as sanitized-mbpp.json, say which environment's tasks it holds"
        )
    env = gym.make(env_id, tasks=name)
    given = getattr(env.unwrapped, "task_ids", None)
    listed = tool_env(env).task_list(len(given)) if given else []
    env.close()
    if not listed:
        raise ValueError(f"tasks={name!r}: {env_id} draws these without end, so there is no list of them")
    ids, hashes = zip(*listed, strict=True)
    return TaskSet(name, env_id, ids, hashes, {})


def _frozen(name: str) -> TaskSet:
    path = FOLDER / f"{name}.json"
    if not path.exists():
        near = names(f"{name.partition('-')[0]}-v0") or names()
        raise ValueError(f"there is no task set {name!r}; there are {', '.join(near)}")
    data = json.loads(path.read_text(encoding="utf-8"))
    found = TaskSet(name, data["env_id"], tuple(data["tasks"]), tuple(data["tasks"].values()), data["drawn_with"])
    if found.fingerprint != data["fingerprint"]:
        raise ValueError(f"the task set {name} is damaged: {path} does not have the fingerprint that stands in it")
    return found


def of_set(kind: Callable[..., ToolEnv], env_id: str, tasks: Any, kwargs: Mapping[str, Any]) -> ToolEnv:
    """An environment, of the tasks of a frozen set where ``tasks`` is the name of one.

    Args:
        kind: Makes the environment.
        env_id: Its Gymnasium id.
        tasks: The argument ``tasks``.
        kwargs: The other arguments.

    Raises:
        ValueError: If there is no such set, it is of another environment, or an argument asks for other tasks.
    """
    if not (isinstance(tasks, str) and NAME.fullmatch(tasks)):
        return kind(tasks=tasks, **kwargs)
    task_set = open_set(tasks, env_id)
    for argument in DRAWING:
        if argument in kwargs and kwargs[argument] != task_set.drawn_with.get(argument):
            raise ValueError(f"{argument}= belongs to the task generator; the tasks of {tasks} are fixed")
    env = kind(**{**task_set.drawn_with, **kwargs})
    env.task_set = task_set
    env.task_ids = task_set.task_ids  # type: ignore[attr-defined]
    return env


def level(task_id: str) -> int | None:
    """The difficulty that the id of a generated task declares; None for the task of a file."""
    found = re.fullmatch(r"(?:train|validation|test)(?:-[a-z]+)?-(\d+)-\d+", task_id)
    return int(found[1]) if found else None


def tasks(name: str, env_id: str | None = None) -> Iterator[dict[str, Any]]:
    """The tasks of a set, one by one; the oracle plays each for its cost.

    Args:
        name: As :func:`open_set` takes it.
        env_id: As there.

    Yields:
        ``task_id``, ``task_hash``, ``request``, ``messages`` (system and user), ``tools`` (JSON schemas),
        ``difficulty`` (None for the task of a file), ``task_type``, and ``oracle_cost`` by channel (None where the data
        has no solution that passes).

    Raises:
        ValueError: As :func:`open_set`, or for a task that is not what it was when the set was frozen.
    """
    task_set = open_set(name, env_id)
    env = gym.make(task_set.env_id, **task_set.env_kwargs)
    try:
        for task_id in task_set.task_ids:
            request, info = env.reset(options={"task": task_id})
            yield {
                "task_id": task_id, "task_hash": info["task_hash"], "request": request, "messages": info["messages"],
                "tools": info["tools"], "difficulty": level(task_id), "task_type": info["task_type"],
                "oracle_cost": oracle_cost(env),
            }  # fmt: skip
    finally:
        env.close()


def oracle_cost(env: gym.Env) -> dict[str, float] | None:
    """What the oracle spends on a task.

    Args:
        env: Just reset; its episode is played to the end.

    Returns:
        The costs by channel; None where the oracle does not pass.
    """
    for action in tool_env(env).oracle():
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return info["cost_total"] if info["verdict"]["status"] == "pass" else None
    return None


def to_dataset(name: str, env_id: str | None = None) -> Any:
    """The tasks of a set as a ``datasets.Dataset``: a row for what :func:`tasks` yields, ``tools`` as JSON.

    Args:
        name: As :func:`open_set` takes it.
        env_id: As there.

    Raises:
        ImportError: If the package datasets is missing.
    """
    try:
        from datasets import Dataset
    except ImportError:
        raise ImportError("to_dataset needs the package datasets: pip install 'agent-gym[datasets]'") from None
    return Dataset.from_list([{**task, "tools": json.dumps(task["tools"])} for task in tasks(name, env_id)])
