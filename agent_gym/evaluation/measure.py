"""What one episode says of its agent: cost beside the oracle's, calls that were for nothing, where it went wrong."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym

import agent_gym
from agent_gym import tasksets
from agent_gym.costs import CHANNELS
from agent_gym.env import tool_env
from agent_gym.evaluation.result import Outcome
from agent_gym.metrics import failure_kind
from agent_gym.tasksets import level
from agent_gym.tools import Call
from agent_gym.trajectory import Trajectory

__all__ = ["first_wrong_step", "measure", "oracle_cost", "redundant_calls"]

WAYS_BACK = {"WebLite-v0": Call("go_to", {"path": "/"})}
"""What may be needed before the oracle's steps can be taken in a state that others have left."""


def oracle_cost(env: gym.Env, task_id: str) -> dict[str, float]:
    """What the oracle spends on a task, by channel; empty where it does not pass.

    Args:
        env: With ``on_budget="record"``.
        task_id: The task.
    """
    env.reset(options={"task": task_id})
    return tasksets.oracle_cost(env) or {}


def redundant_calls(env: gym.Env, trajectory: Trajectory, prices: Mapping[str, float]) -> int | None:
    """Calls of a success that :func:`agent_gym.eliminate` removes; None of another episode.

    Args:
        env: Made as the recorded one was.
        trajectory: The episode.
        prices: What a unit of each channel is divided by; a channel of 0 has no price.
    """
    if not trajectory.success:
        return None
    left = agent_gym.eliminate(env, trajectory, {name: cost for name, cost in prices.items() if cost > 0})
    return int(trajectory.cost_total["tool_calls"] - left.trajectory.cost_total["tool_calls"])


def first_wrong_step(env: gym.Env, trajectory: Trajectory) -> int | None:
    """The first step of a failure, from 0, after which no end of the oracle's solution passes any more.

    An end is its steps from some point on, down to the last alone; in WebLite-v0 it may begin with the way back to the
    first page. A step that ended the episode is such a step. The steps are searched by halving, which finds the first
    one unless a later step mends what an earlier one broke.

    Args:
        env: Made as the recorded one was.
        trajectory: The episode.

    Returns:
        None of a success, of an episode without a verdict or a step, where the oracle does not pass, and where it still
        would at the end of an episode that was ended from outside.
    """
    if trajectory.success or trajectory.reward is None or not trajectory.steps:
        return None
    env.reset(seed=trajectory.seed, options={"task": trajectory.task_id})
    base = tool_env(env)
    solution = base.oracle()
    ends = [solution[at:] for at in range(len(solution))]
    if base.spec is not None and base.spec.id in WAYS_BACK:
        back = base.parser.render("", [WAYS_BACK[base.spec.id]])
        ends += [[back, *end] for end in ends[:-1]]
    snapshots = [agent_gym.snapshot(env)]
    if not _saved(env, snapshots[0], ends[:1]):
        return None
    agent_gym.restore(env, snapshots[0])
    over = False
    for step in trajectory.steps:
        *_, terminated, truncated, _ = env.step(step.action)
        over = terminated or truncated
        snapshots.append(agent_gym.snapshot(env))
    low, high = 0, len(trajectory.steps)
    if not over and _saved(env, snapshots[high], ends):  # it was ended from outside: for its length
        return None
    while high - low > 1:  # from the state before step low it can be saved, before step high it cannot
        middle = (low + high) // 2
        low, high = (middle, high) if _saved(env, snapshots[middle], ends) else (low, middle)
    return low


def _saved(env: gym.Env, state: agent_gym.Snapshot, ends: list[list[str]]) -> bool:
    """Whether one of the ends passes from a state on."""
    for end in ends:
        agent_gym.restore(env, state)
        if _passes(env, end):
            return True
    return False


def _passes(env: gym.Env, actions: list[str]) -> bool:
    for action in actions:
        *_, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return info["verdict"]["status"] == "pass"
    return False


def measure(
    env: gym.Env,
    trajectory: Trajectory,
    sample: int,
    oracle: Mapping[str, float],
    usage: Mapping[str, int] | None,
) -> Outcome:
    """The outcome of an episode.

    Args:
        env: Made as the recorded one was; its episode is lost.
        trajectory: The episode.
        sample: Its number among those of its task.
        oracle: What the oracle spends on the task.
        usage: Tokens by the model's own count.
    """
    assert trajectory.task_hash is not None
    assert trajectory.verdict is not None
    _, info = env.reset(options={"task": trajectory.task_id})
    wrong = first_wrong_step(env, trajectory)
    return Outcome(
        task_id=trajectory.task_id,
        task_hash=trajectory.task_hash,
        sample=sample,
        success=None if trajectory.reward is None else trajectory.success,
        reason=trajectory.verdict["reason"],
        cost=dict(trajectory.cost_total),
        oracle_cost=dict(oracle),
        difficulty=level(trajectory.task_id),
        task_type=info["task_type"],
        turns=len(trajectory.steps),
        redundant_calls=redundant_calls(env, trajectory, oracle or dict.fromkeys(CHANNELS, 1.0)),
        failure=failure_kind(trajectory, wrong),
        first_wrong_step=wrong,
        usage=dict(usage) if usage else None,
    )
