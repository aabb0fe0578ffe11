"""Trajectories as frozen dataclasses, and their files: one JSON object a line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent_gym.costs import CHANNELS
from agent_gym.files import replacing

__all__ = ["Group", "Step", "Trajectory", "read_trajectories", "write_trajectories"]


@dataclass(frozen=True, slots=True)
class Step:
    """One assistant turn.

    Args:
        observation: The text the action answered (not the one it caused).
        action: The assistant turn, verbatim: text, or the message as a dict.
        cost: What this step cost, by channel.
        tool_results: One entry a call, as in ``info["tool_results"]``.
        state_hash: World state after the step.
        terminated: Whether the step ended the episode by answering or by an absorbing failure.
        truncated: Whether a budget or the turn limit ended it.
        action_ids: Sampled token ids, when a model wrote the action.
        logprobs: Their log-probabilities under the sampling policy.
    """

    observation: str
    action: str | Mapping[str, Any]
    cost: dict[str, float]
    tool_results: list[dict[str, Any]]
    state_hash: str
    terminated: bool = False
    truncated: bool = False
    action_ids: list[int] | None = None
    logprobs: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A cluster of tasks or trajectories: its name and the features it was assigned by."""

    name: str
    features: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode and where it came from; together they are enough to replay it.

    Args:
        task_id: The task, as ``reset(options={"task": task_id})`` takes it.
        env_id: Gymnasium id.
        env_kwargs: Keyword arguments of ``gym.make``.
        seed: Seed of the reset, if one was given.
        steps: The turns in order.
        reward: Final reward; None where there was no verdict: ours failed (``infra``), or a wrapper cut the episode.
        verdict: ``Verdict.to_dict()``, or None where the episode was cut before there was one.
        cost_total: Totals by channel.
        group: Optional cluster.
        task_hash: The task's fingerprint, which replay checks; None in files from before there was one.
    """

    task_id: str
    env_id: str
    env_kwargs: dict[str, Any]
    seed: int | None
    steps: tuple[Step, ...]
    reward: float | None
    verdict: dict[str, Any] | None
    cost_total: dict[str, float]
    group: Group | None = None
    task_hash: str | None = None

    @property
    def success(self) -> bool:
        """Whether the verifier passed it."""
        return bool(self.verdict and self.verdict["status"] == "pass")

    def violates(self, budget: dict[str, float]) -> bool:
        """Whether any channel's total is above its bound; channels without a bound cannot be."""
        return any(self.cost_total[channel] > budget[channel] for channel in CHANNELS if channel in budget)

    def to_json(self) -> str:
        """One line of strict JSON."""
        data = asdict(self)
        line = json.dumps(data, ensure_ascii=False, allow_nan=False)
        try:
            line.encode()
        except UnicodeEncodeError:  # a model may write half a surrogate pair, and a file must still hold it
            line = json.dumps(data, allow_nan=False)
        return line

    @classmethod
    def from_json(cls, line: str | bytes) -> Trajectory:
        """The trajectory that ``to_json`` wrote. A channel that a file does not have yet was not charged: 0.

        Raises:
            ValueError: If the line is not a trajectory; the sentence says what is missing or wrong.
        """
        try:
            data = json.loads(line.decode() if isinstance(line, bytes) else line)
            for costs in (data["cost_total"], *(step["cost"] for step in data["steps"])):
                costs.update({channel: costs.get(channel, 0.0) for channel in CHANNELS})
            steps = tuple(Step(**step) for step in data.pop("steps"))
            group = data.pop("group", None)
            return cls(steps=steps, group=Group(**group) if group else None, **data)
        except KeyError as error:
            raise ValueError(f"not a trajectory: the key {error} is missing") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"not a trajectory: {error}") from error


def write_trajectories(path: str | Path, trajectories: Iterable[Trajectory]) -> None:
    """Write a trajectory file under a temporary name and rename it, so that a crash leaves the old one."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(trajectory.to_json() + "\n" for trajectory in trajectories)


def read_trajectories(path: str | Path) -> Iterator[Trajectory]:
    """Read a trajectory file. A truncated last line is reported as a warning and skipped.

    Raises:
        ValueError: If any earlier line is not a trajectory, naming file and line.
    """
    number, error = 0, None
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if error is not None:
                break
            try:
                trajectory = Trajectory.from_json(line)
            except ValueError as fault:
                error, number_of_error = fault, number
                continue
            yield trajectory
    if error is None:
        return
    if number_of_error != number:
        raise ValueError(f"{path}, line {number_of_error}: {error}")
    warnings.warn(f"{path}, line {number} is cut off and was skipped ({error})", stacklevel=2)
