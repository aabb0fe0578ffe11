"""Result files of ``agent-gym eval``, and the trajectories beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent_gym.evaluation.result import Outcome, read_result, unpack_trajectories
from agent_gym.view.episodes import episode

SHOWN = {"agent", "env_id", "tasks", "budget", "samples", "seed", "made", "aggregates"}
OF_EPISODE = {"sample", "oracle_cost", "difficulty", "task_type", "failure", "first_wrong_step", "redundant_calls"}
STATUS = {True: "passed", False: "failed", None: "no verdict"}


def read_entry(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A result file.

    Returns:
        What the tables and charts show, and an episode an outcome, without its steps where the trajectory file is not
        beside the result.

    Raises:
        ValueError: If the file is no result, or the trajectory file is not that of the result.
    """
    result = read_result(path)
    own: list[dict[str, Any]] = [{"steps": None} for _ in result.outcomes]
    trajectories = path.with_name(result.trajectories.file)
    if trajectories.exists():
        own = [episode(one) for one in unpack_trajectories(trajectories, result.trajectories.sha256)]
    if len(own) != len(result.outcomes):
        raise ValueError(f"{path} has {len(result.outcomes)} outcomes and {trajectories} has {len(own)} episodes")
    entry = {"file": path.name, **result.model_dump(mode="json", include=SHOWN)}
    return entry, [one | _of(outcome, result.budget) for one, outcome in zip(own, result.outcomes, strict=True)]


def _of(outcome: Outcome, budget: dict[str, float]) -> dict[str, Any]:
    return outcome.model_dump(mode="json", include=OF_EPISODE) | {
        "task_id": outcome.task_id, "status": STATUS[outcome.success], "reason": outcome.reason, "cost": outcome.cost,
        "over": any(outcome.cost[channel] > bound for channel, bound in budget.items()),
    }  # fmt: skip
