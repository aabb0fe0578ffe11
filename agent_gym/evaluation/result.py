"""Result files: who played what, how it went, and what follows; the schema is published as result.schema.json.

``python -m agent_gym.evaluation.result`` writes the schema anew.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agent_gym import metrics
from agent_gym.costs import CHANNELS
from agent_gym.trajectory import Trajectory

__all__ = [
    "SCHEMA", "AgentCard", "Aggregates", "Outcome", "Result", "TasksCard", "TrajectoriesCard", "aggregate",
    "pack_trajectories", "read_result", "unpack_trajectories",
]  # fmt: skip

SCHEMA = Path(__file__).with_name("result.schema.json")
"""The published schema."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Interval = tuple[Number | None, Number | None, Number | None]
"""Mean, low and high; null where there is nothing to take the mean of."""


def _channels(costs: dict[str, float]) -> dict[str, float]:
    if unknown := [name for name in costs if name not in CHANNELS]:
        raise ValueError(f"unknown channel {unknown[0]!r}; the channels are {', '.join(CHANNELS)}")
    return costs


Costs = Annotated[dict[str, Annotated[Number, Field(ge=0)]], AfterValidator(_channels)]
"""By channel."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AgentCard(_Part):
    """Who played."""

    name: str = Field(description="as a table shows it")
    spec: str = Field(description="as --agent takes it")
    settings: dict[str, Any] = Field(description="what else decides how it plays")


class TasksCard(_Part):
    """What was played."""

    name: str
    fingerprint: str = Field(description="SHA-256 over the ids and content hashes of the tasks")
    count: int


class TrajectoriesCard(_Part):
    """The episodes, one JSON object a line, in the order of the outcomes; gzipped if the name ends in .gz."""

    file: str = Field(description="its name, beside this file")
    sha256: str


class Outcome(_Part):
    """One episode."""

    task_id: str
    task_hash: str
    sample: int = Field(ge=0)
    success: bool | None = Field(description="null: our machinery failed, and there is no verdict")
    reason: str = Field(description="the verifier's")
    cost: Costs
    oracle_cost: Costs = Field(description="empty where the task has no solution that passes")
    difficulty: int | None
    task_type: str
    turns: int
    redundant_calls: int | None = Field(description="calls of a success that elimination removes; else null")
    failure: str | None = Field(description="kind of the failure, one of agent_gym.metrics.FAILURES; else null")
    first_wrong_step: int | None = Field(
        description="of a failure: the first step, from 0, after which no end of the oracle's solution passes"
    )
    usage: dict[str, int] | None = Field(description="tokens by the count of the server or the model, if it has one")


class Aggregates(_Part):
    """What follows from the outcomes: means over tasks, each of the mean over its samples, with 95% bootstrap intervals
    over tasks. Episodes without a verdict are left out."""

    success: Interval
    pass_at_k: dict[str, Interval]
    cost: dict[str, Interval] = Field(description="mean total of an episode by channel")
    violation_rate: dict[str, Interval] = Field(description="by channel that the budget bounds")
    in_budget_success: Interval
    budget_curve: list[tuple[Number, Number | None, Number | None, Number | None]] = Field(
        description="multiple of the oracle's cost on every channel, success within it"
    )
    pareto_auc: Interval = Field(description="area under that curve from 1 to 4, over 3")
    redundant_call_rate: Interval = Field(description="calls that elimination removes, over all calls of successes")
    relative_cost: dict[str, Interval] = Field(description="cost of successes over the oracle's, by channel")
    failures: dict[str, int] = Field(description="episodes by kind of failure")


class Result(_Part):
    """An entry: an agent on a task set."""

    model_config = ConfigDict(title="agent-gym-result-v1", populate_by_name=True)

    form: Literal["agent-gym-result-v1"] = Field(default="agent-gym-result-v1", alias="schema")
    agent: AgentCard
    env_id: str
    env_kwargs: dict[str, Any] = Field(description="of gym.make")
    tasks: TasksCard
    budget: Costs
    samples: int = Field(ge=1)
    seed: int
    made: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")
    versions: dict[str, str]
    outcomes: list[Outcome]
    aggregates: Aggregates
    trajectories: TrajectoriesCard

    def to_json(self) -> str:
        """Strict JSON: a line for each outcome and each aggregate."""
        text = partial(json.dumps, ensure_ascii=False, allow_nan=False)
        data = self.model_dump(by_alias=True, mode="json")
        outcomes = ",\n".join(f"  {text(one)}" for one in data["outcomes"])
        aggregates = ",\n".join(f"  {text(name)}: {text(value)}" for name, value in data["aggregates"].items())
        parts = {name: text(value) for name, value in data.items()}
        parts |= {"outcomes": f"[\n{outcomes}\n ]", "aggregates": f"{{\n{aggregates}\n }}"}
        lines = ",\n".join(f" {text(name)}: {value}" for name, value in parts.items())
        return f"{{\n{lines}\n}}\n"


def _interval(values: Sequence[float]) -> tuple[Any, ...]:
    return tuple(value if math.isfinite(value) else None for value in values)


def aggregate(outcomes: Sequence[Outcome], budget: dict[str, float], samples: int, seed: int) -> Aggregates:
    """The aggregates of some outcomes.

    Args:
        outcomes: Those of one entry.
        budget: Its bounds.
        samples: Episodes of each task; pass@k is given for the powers of 2 up to it.
        seed: Of the bootstrap.
    """
    judged = [one for one in outcomes if one.success is not None]
    priced = [one for one in judged if one.oracle_cost]
    won = [one for one in judged if one.success]

    def mean(pairs: Iterable[tuple[str, float]]) -> tuple[Any, ...]:
        return _interval(metrics.mean_interval(metrics.task_means(pairs), seed))

    def within(one: Outcome, channels: Iterable[str]) -> bool:
        return all(one.cost[channel] <= budget[channel] for channel in channels)

    counts: dict[str, list[bool]] = {}
    calls: dict[str, list[float]] = {}
    for one in judged:
        counts.setdefault(one.task_id, []).append(bool(one.success))
        if one.redundant_calls is not None:
            sums = calls.setdefault(one.task_id, [0.0, 0.0])
            sums[0] += one.redundant_calls
            sums[1] += one.cost["tool_calls"]
    ks = [2**n for n in range(samples.bit_length())]
    at = {k: [metrics.pass_at_k(len(c), sum(c), k) for c in counts.values() if len(c) >= k] for k in ks}
    spent = [
        (one.task_id, bool(one.success), metrics.budget_multiple(one.cost, one.oracle_cost)) for one in priced
    ]  # fmt: skip
    relative = {
        channel: mean(
            (one.task_id, one.cost[channel] / one.oracle_cost[channel])
            for one in won if one.oracle_cost.get(channel)
        )
        for channel in CHANNELS
    }  # fmt: skip
    return Aggregates.model_validate(
        {
            "success": mean((one.task_id, one.success) for one in judged),
            "pass_at_k": {str(k): _interval(metrics.mean_interval(values, seed)) for k, values in at.items()},
            "cost": {channel: mean((one.task_id, one.cost[channel]) for one in judged) for channel in CHANNELS},
            "violation_rate": {
                channel: mean((one.task_id, not within(one, [channel])) for one in judged) for channel in budget
            },
            "in_budget_success": mean((one.task_id, one.success and within(one, budget)) for one in judged),
            "budget_curve": [(m, *_interval(values)) for m, *values in metrics.budget_curve(spent, seed)],
            "pareto_auc": _interval(metrics.budget_auc(spent, seed)),
            "redundant_call_rate": _interval(metrics.ratio_interval([(a, b) for a, b in calls.values()], seed)),
            "relative_cost": relative,
            "failures": dict(sorted(Counter(one.failure for one in judged if one.failure).items())),
        }
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def pack_trajectories(trajectories: Iterable[Trajectory], name: str) -> bytes:
    """The bytes of a trajectory file; gzipped, without a date, if the name ends in .gz."""
    data = "".join(one.to_json() + "\n" for one in trajectories).encode()
    return gzip.compress(data, mtime=0) if name.endswith(".gz") else data


def unpack_trajectories(path: Path, digest: str | None = None) -> list[Trajectory]:
    """The episodes of a trajectory file.

    Args:
        path: The file; gzipped if its name ends in .gz.
        digest: The SHA-256 that it has to have.

    Raises:
        ValueError: If it cannot be read, is another file, or a line is no trajectory; the sentence says which.
    """
    try:
        data = path.read_bytes()
        if digest not in (None, sha256(data).hexdigest()):
            raise ValueError(f"{path} is not the file that was recorded: its SHA-256 is another")
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            found.append(Trajectory.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return found


def read_result(path: Path) -> Result:
    """A result file.

    Raises:
        ValueError: If it cannot be read or is none; the sentence names the place and what would be right.
    """
    try:
        return Result.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        more = f" (and {error.error_count() - 1} more faults)" if error.error_count() > 1 else ""
        said = fault["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path} is no result file: {f'{place}: ' if place else ''}{said}{more}") from None


def schema() -> str:
    """The JSON schema of a result file, as it is published."""
    return (
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | Result.model_json_schema(), indent=1)
        + "\n"
    )


if __name__ == "__main__":
    SCHEMA.write_text(schema(), encoding="utf-8")
