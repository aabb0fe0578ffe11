"""Whether a result file is true: every number computed again, and a sample of its episodes replayed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_gym.evaluation.agents import OWN_COUNT
from agent_gym.evaluation.measure import measure, oracle_cost
from agent_gym.evaluation.result import Outcome, Result, aggregate, read_result, unpack_trajectories
from agent_gym.metrics import failure_kind
from agent_gym.tasksets import TaskSet, open_set
from agent_gym.trajectory import Trajectory

__all__ = ["check_result"]


def check_result(path: Path, replays: int = 20, seed: int = 0) -> list[str]:
    """The faults of a result file, a sentence each; none if it holds.

    The task set is the one of this installation. The trajectory file is the one that was recorded, with an episode for
    each task and sample; reasons, costs, turns and kinds of failures are those of the episodes; the aggregates are
    those of the outcomes. Of the episodes that are replayed, everything that the environment shows, charges and decides
    is what stands in the file, and so is the outcome, measured again. Episodes without a verdict are all replayed.

    Args:
        path: The result file.
        replays: Episodes to replay, drawn anew for each ``seed``; all of them if there are no more.
        seed: Of the draw. One that the author of the file could not know is best.

    Raises:
        ValueError: If a file cannot be read, or the result names a task set that is not here.
    """
    result = read_result(path)
    tasks = open_set(result.tasks.name, result.env_id)
    if faults := list(_claims(result, tasks)):
        return faults
    trajectories = unpack_trajectories(path.parent / Path(result.trajectories.file).name, result.trajectories.sha256)
    if len(trajectories) != len(result.outcomes):
        return [f"there are {len(trajectories)} episodes for {len(result.outcomes)} outcomes"]
    pairs = list(zip(result.outcomes, trajectories, strict=True))
    faults = [fault for outcome, trajectory in pairs for fault in _episode(result, outcome, trajectory)]
    lost = [pair for pair in pairs if pair[0].success is None]
    drawn = random.Random(seed).sample(pairs, min(replays, len(pairs)))
    with closing(gym.make(result.env_id, **result.env_kwargs)) as env:
        for outcome, trajectory in () if faults else [*drawn, *lost]:
            faults += [f"{_named(outcome)}: {fault}" for fault in _replay(env, outcome, trajectory)]
    return faults


def _named(outcome: Outcome) -> str:
    return f"{outcome.task_id}, sample {outcome.sample}"


def _claims(result: Result, tasks: TaskSet) -> Iterator[str]:
    """What the file says of itself: its tasks, its arguments, its aggregates."""
    if (tasks.fingerprint, len(tasks.task_ids)) != (result.tasks.fingerprint, result.tasks.count):
        yield f"tasks: {tasks.name} has the fingerprint {tasks.fingerprint} and {len(tasks.task_ids)} tasks here"
    expected = {**tasks.env_kwargs, "budget": result.budget, "on_budget": "record"}
    if {name: value for name, value in result.env_kwargs.items() if name != "parser"} != expected:
        yield f"env_kwargs: {json.dumps(expected)} and a parser, nothing else, not {json.dumps(result.env_kwargs)}"
    hashes = zip(tasks.task_ids, tasks.task_hashes, strict=True)
    wanted = [(id, digest, k) for id, digest in hashes for k in range(result.samples)]
    found = [(one.task_id, one.task_hash, one.sample) for one in result.outcomes]
    if found != wanted:
        each = f"one for each task and each of {result.samples} samples, in the order of the set"
        at = next(i for i, pair in enumerate(zip_longest(found, wanted)) if pair[0] != pair[1])
        yield f"outcomes: there must be {each}; number {at + 1} is not"
        return
    again = aggregate(result.outcomes, result.budget, result.samples, result.seed).model_dump(mode="json")
    for name, value in result.aggregates.model_dump(mode="json").items():
        if not _same(value, again[name]):
            yield f"aggregates.{name}: {json.dumps(value)} in the file, from its outcomes {json.dumps(again[name])}"


def _same(one: Any, other: Any) -> bool:
    """Equality up to the last digits, in which versions of NumPy may differ."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _episode(result: Result, outcome: Outcome, trajectory: Trajectory) -> Iterator[str]:
    """Where an outcome is not what its episode says, without the environment."""
    verdict = trajectory.verdict or {}
    said = {
        "task_id": trajectory.task_id, "task_hash": trajectory.task_hash,
        "success": None if trajectory.reward is None else trajectory.success, "reason": verdict.get("reason"),
        "cost": trajectory.cost_total, "turns": len(trajectory.steps),
        "failure": failure_kind(trajectory, outcome.first_wrong_step),
    }  # fmt: skip
    for name, value in said.items():
        if getattr(outcome, name) != value:
            yield f"{_named(outcome)}: {name} is {getattr(outcome, name)!r}, of its episode {value!r}"
    if (trajectory.env_id, trajectory.env_kwargs) != (result.env_id, result.env_kwargs):
        yield f"{_named(outcome)}: its episode was played in another environment: {trajectory.env_kwargs}"
    if any(isinstance(step.action, Mapping) and OWN_COUNT in step.action for step in trajectory.steps):
        yield f"{_named(outcome)}: a turn brings its own count of tokens"
    sums = {name: round(sum(step.cost[name] for step in trajectory.steps), 3) for name in outcome.cost}
    if not _same(sums, dict(outcome.cost)):
        yield f"{_named(outcome)}: its steps cost {sums}, not {outcome.cost}"


def _replay(env: gym.Env, outcome: Outcome, trajectory: Trajectory) -> Iterator[str]:
    """Where the environment does not repeat an episode, or the outcome is not what it says of it."""
    observation, info = env.reset(seed=trajectory.seed, options={"task": trajectory.task_id})
    over, total = False, info["cost_total"]
    for number, step in enumerate(trajectory.steps):
        if over:
            yield f"the episode was over before step {number}"
            return
        if observation != step.observation:
            yield f"before step {number} the environment shows another text than the file"
            return
        observation, _, terminated, truncated, info = env.step(step.action)
        over, total = terminated or truncated, info["cost_total"]
        found = (info["cost"], info["tool_results"], info["state_hash"], terminated, truncated)
        recorded = (step.cost, step.tool_results, step.state_hash, step.terminated, step.truncated)
        names = ("cost", "tool_results", "state_hash", "terminated", "truncated")
        for name, there, here in zip(names, recorded, found, strict=True):
            if json.loads(json.dumps(here)) != there:
                yield f"step {number}: {name} in the file is not what the environment gives"
                return
    if info.get("verdict", trajectory.verdict) != trajectory.verdict or total != trajectory.cost_total:
        yield "verdict or total costs in the file are not those of the environment"
    elif not over and outcome.reason != "context":
        yield "the episode does not end"
    elif outcome.reason == "context" and (over or outcome.success is not False):
        yield "the reason 'context' is for an episode that had not ended, and failed"
    else:
        again = measure(env, trajectory, outcome.sample, oracle_cost(env, outcome.task_id), outcome.usage)
        for name, value in again.model_dump().items():
            if not _same(value, getattr(outcome, name)):
                yield f"{name} is {getattr(outcome, name)!r}, measured again {value!r}"
