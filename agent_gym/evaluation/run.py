"""An agent on a task set, to a result file. What has been played is kept, and an interrupted evaluation goes on."""

from __future__ import annotations

import json
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_gym.costs import check_budget
from agent_gym.evaluation.agents import Agent, Job
from agent_gym.evaluation.measure import measure, oracle_cost
from agent_gym.evaluation.result import (
    AgentCard,
    Outcome,
    Result,
    TasksCard,
    TrajectoriesCard,
    aggregate,
    pack_trajectories,
)
from agent_gym.files import write
from agent_gym.tasksets import TaskSet
from agent_gym.trajectory import Trajectory

__all__ = ["evaluate", "file_of"]

PACKAGES = ("agent-gym", "gymnasium", "numpy", "pydantic")
"""Whose versions a result file names, beside those of the agent."""


def file_of(name: str) -> str:
    """A name as a file may have it."""
    return re.sub(r"[^\w.@+-]+", "-", name).strip("-.") or "agent"


def evaluate(
    agent: Agent,
    tasks: TaskSet,
    out: Path,
    *,
    budget: Mapping[str, float],
    samples: int = 1,
    seed: int = 0,
    workers: int = 4,
    resume: bool = False,
    compress: bool = False,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Result:
    """Let an agent play every task of a set, and write the result file and the trajectory file beside it.

    Every finished episode is appended to ``OUT.journal``, which is removed at the end: an evaluation that was killed
    goes on where it was. Every episode's chance comes from the seed, the task and the sample alone.

    Args:
        agent: Who plays.
        tasks: What is played.
        out: The result file.
        budget: Bounds by channel, inclusive. They do not end an episode; what is above them is counted.
        samples: Episodes of each task.
        seed: Of the agent's chance and of the bootstrap.
        workers: Episodes side by side.
        resume: Go on with the journal of an interrupted evaluation.
        compress: Gzip the trajectory file.
        tell: Told of the number of finished episodes and of all, as they end.

    Raises:
        ValueError: If the agent or its endpoint fails, a task is not what was frozen or beyond its oracle here, a file
            cannot be written, or there is a journal that was not asked for, or of another evaluation.
    """
    bounds = check_budget(budget)
    env_kwargs = {**tasks.env_kwargs, "budget": bounds, "on_budget": "record", **agent.env_kwargs}
    card = AgentCard(name=agent.name, spec=agent.spec, settings=agent.settings)
    of = TasksCard(name=tasks.name, fingerprint=tasks.fingerprint, count=len(tasks.task_ids))
    head = {
        "agent": card.model_dump(), "env_id": tasks.env_id, "env_kwargs": env_kwargs, "tasks": of.model_dump(),
        "budget": bounds, "samples": samples, "seed": seed,
    }  # fmt: skip
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with _journal(out.with_name(f"{out.name}.journal"), head, resume) as journal:
        order = [(task_id, k) for task_id in tasks.task_ids for k in range(samples)]
        jobs = [Job(task_id, k, _draw(seed, task_id, k)) for task_id, k in order if (task_id, k) not in journal.kept]
        oracles = {task_id: outcome.oracle_cost for (task_id, _), (outcome, _) in journal.kept.items()}

        def done(env: gym.Env, job: Job, trajectory: Trajectory, usage: Mapping[str, int] | None) -> None:
            assert trajectory.task_hash is not None
            tasks.check(job.task_id, trajectory.task_hash)
            if job.task_id not in oracles:
                cost = oracle_cost(env, job.task_id)
                if tasks.drawn_with and not cost:  # a frozen set has only tasks that it passes
                    raise ValueError(f"the oracle does not pass {job.task_id} here: is the machine too busy for it?")
                oracles[job.task_id] = cost
            journal.append(measure(env, trajectory, job.sample, oracles[job.task_id], usage), trajectory)
            tell(len(journal.kept), len(order))

        def made() -> gym.Env:
            return gym.make(tasks.env_id, **env_kwargs)

        if jobs:
            agent.play(made, jobs, workers, done)
        outcomes, trajectories = zip(*(journal.kept[key] for key in order), strict=True)
        name = f"{out.name.removesuffix('.json')}.jsonl{'.gz' if compress else ''}"
        data = pack_trajectories(trajectories, name)
        result = Result(
            agent=card, env_id=tasks.env_id, env_kwargs=env_kwargs, tasks=of, budget=bounds, samples=samples, seed=seed,
            made=datetime.now(UTC).date().isoformat(), versions=_versions(agent.packages), outcomes=list(outcomes),
            aggregates=aggregate(outcomes, bounds, samples, seed),
            trajectories=TrajectoriesCard(file=name, sha256=sha256(data).hexdigest()),
        )  # fmt: skip
        with _writing(out):
            write(out.with_name(name), data)
            write(out, result.to_json().encode())
        journal.remove()
    return result


def _draw(seed: int, task_id: str, sample: int) -> int:
    return int.from_bytes(blake2b(repr((seed, task_id, sample)).encode(), digest_size=7).digest(), "big")


def _versions(more: tuple[str, ...]) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in (*PACKAGES, *more)}


@dataclass
class _Journal:
    """The finished episodes, in a file and here."""

    path: Path
    file: int
    kept: dict[tuple[str, int], tuple[Outcome, Trajectory]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def append(self, outcome: Outcome, trajectory: Trajectory) -> None:
        line = f'{{"outcome": {outcome.model_dump_json()}, "trajectory": {trajectory.to_json()}}}\n'
        with self.lock, _writing(self.path):
            self.write(line)
            self.kept[outcome.task_id, outcome.sample] = outcome, trajectory

    def write(self, line: str) -> None:
        left = line.encode()
        while left:  # a disk that fills up takes a part first, and then raises
            left = left[os.write(self.file, left) :]

    def remove(self) -> None:
        self.path.unlink()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """One sentence where a file cannot be written, on a full disk for one."""
    try:
        yield
    except OSError as error:
        why = f"{error.strerror}; the finished episodes are kept, and --resume goes on"
        raise ValueError(f"{path} cannot be written: {why}") from error


@contextmanager
def _journal(path: Path, head: dict[str, Any], resume: bool) -> Iterator[_Journal]:
    """The journal of an evaluation, new or as far as it came."""
    if path.exists() and not resume:
        raise ValueError(f"{path} is of an interrupted evaluation: --resume goes on with it; or delete it")
    with _writing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        os.truncate(file, whole)  # what was being written when it was killed
        journal, (first, *lines) = _Journal(path, file), data[:whole].splitlines() or [b""]
        if not first:
            with _writing(path):
                journal.write(json.dumps(head) + "\n")
        elif first != json.dumps(head).encode():
            raise ValueError(f"{path} is of an evaluation with other arguments: give the same again, or delete it")
        for line in lines:
            read = json.loads(line)
            outcome = Outcome.model_validate_json(json.dumps(read["outcome"]))
            trajectory = Trajectory.from_json(json.dumps(read["trajectory"]))
            journal.kept[outcome.task_id, outcome.sample] = outcome, trajectory
        yield journal
    finally:
        os.close(file)
