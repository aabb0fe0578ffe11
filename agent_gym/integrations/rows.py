"""Tasks as the rows of a data set, for the trainers that want a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_gym.env import tool_env
from agent_gym.files import write
from agent_gym.messages import Message
from agent_gym.tools import dump
from agent_gym.wrappers import Messages

__all__ = ["write_rows"]


def write_rows(
    path: str | Path,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    n: int,
    seed: int,
    row: Callable[[list[Message], str, str], dict[str, Any]],
) -> None:
    """Write tasks as JSON lines, which the package datasets knows by the name's end.

    Args:
        path: Ends with ``.jsonl``.
        env_id: Gymnasium id.
        env_kwargs: Of ``gym.make``.
        n: How many tasks: the first of a set, or as the seeds from ``seed`` on draw them; see ``task_list``.
        seed: The first seed.
        row: Makes a row of a task's first messages, with the tools in words, its id and its fingerprint.

    Raises:
        ValueError: If the path ends otherwise.
    """
    if Path(path).suffix != ".jsonl":
        raise ValueError(f"{path}: the data set is written as JSON lines, to a file whose name ends with .jsonl")
    env = Messages(gym.make(env_id, **env_kwargs), native=False)
    try:
        rows = [
            dump(row(env.reset(options={"task": task})[0], task, task_hash))
            for task, task_hash in tool_env(env).task_list(n, seed)
        ]
    finally:
        env.close()
    write(path, "".join(f"{one}\n" for one in rows))
