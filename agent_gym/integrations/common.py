"""What several trainers want alike: an episode in numbers, and tasks as the rows of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_gym.env import tool_env
from agent_gym.evaluation.result import write
from agent_gym.messages import Message
from agent_gym.tools import dump
from agent_gym.verdict import InfraError
from agent_gym.wrappers import Messages

__all__ = ["check_verdict", "scalars", "write_rows"]


def check_verdict(info: Mapping[str, Any]) -> None:
    """See that an episode did not end for want of a verdict; for trainers that cannot leave such an episode out.

    Args:
        info: Of a step.

    Raises:
        InfraError: What runs the environment failed.
    """
    verdict = info.get("verdict")
    if verdict is not None and verdict["status"] == "infra":
        raise InfraError(f"an episode has no verdict: {'; '.join(verdict['diagnostics'])}")


def scalars(info: Mapping[str, Any]) -> dict[str, float]:
    """An episode in numbers, for a trainer's log.

    Args:
        info: Of its last step; without a verdict it did not succeed.

    Returns:
        ``success`` and ``in_budget_success`` (no total is above its bound), 0.0 or 1.0, and the totals by channel.
    """
    success = info.get("verdict", {}).get("status") == "pass"
    in_budget = success and min(info["budget_left"].values(), default=0.0) >= 0.0
    return {"success": float(success), "in_budget_success": float(in_budget), **info["cost_total"]}


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
    write(Path(path), "".join(f"{one}\n" for one in rows).encode())
