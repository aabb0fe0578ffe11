"""Metrics over trajectories: pure functions, so that a table can be computed again from the files alone.

An episode without a verdict (``infra``: our machinery failed) is no evidence about the agent. Every function here
leaves it out, and ``infra_count`` says how many there were: report both. A mean of nothing is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from agent_gym.costs import CHANNELS
from agent_gym.tools import Call, dump as canonical
from agent_gym.trajectory import Trajectory

__all__ = [
    "bootstrap_interval", "call_sequence", "distinct_call_sequences", "in_budget_success", "infra_count", "mean_cost",
    "pareto_auc", "pareto_front", "pass_at_k", "success_rate", "violation_rate", "wilson_interval",
]  # fmt: skip

Point = tuple[float, float]


def _judged(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    return [trajectory for trajectory in trajectories if trajectory.reward is not None]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def infra_count(trajectories: Iterable[Trajectory]) -> int:
    """Number of episodes without a verdict, which every other function leaves out."""
    return sum(trajectory.reward is None for trajectory in trajectories)


def success_rate(trajectories: Iterable[Trajectory]) -> float:
    """Share of episodes that passed, in [0, 1] (success@1)."""
    return _mean([trajectory.success for trajectory in _judged(trajectories)])


def mean_cost(trajectories: Iterable[Trajectory], channel: str) -> float:
    """Mean total of a channel an episode, in the channel's unit: calls, tokens or milliseconds.

    Raises:
        ValueError: For an unknown channel.
    """
    _check_channel(channel)
    return _mean([trajectory.cost_total[channel] for trajectory in _judged(trajectories)])


def violation_rate(
    trajectories: Iterable[Trajectory], budget: Mapping[str, float], channel: str | None = None
) -> float:
    """Share of episodes that spent more than the budget, in [0, 1].

    Args:
        trajectories: Episodes.
        budget: Inclusive upper bound by channel: a total equal to it is no violation.
        channel: Look at this channel alone; by default an episode violates when any channel does.

    Raises:
        ValueError: For an unknown channel, or a ``channel`` without a bound.
    """
    for name in budget:
        _check_channel(name)
    if channel is not None:
        _check_channel(channel)
        if channel not in budget:
            raise ValueError(f"the budget has no bound for {channel!r}; it has {', '.join(budget) or 'none at all'}")
        budget = {channel: budget[channel]}
    return _mean([trajectory.violates(dict(budget)) for trajectory in _judged(trajectories)])


def in_budget_success(trajectories: Iterable[Trajectory], budget: Mapping[str, float]) -> float:
    """Share of episodes that passed and spent no more than the budget on any channel, in [0, 1]."""
    for name in budget:
        _check_channel(name)
    return _mean([one.success and not one.violates(dict(budget)) for one in _judged(trajectories)])


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of ``k`` samples passes: the unbiased estimate from ``n`` samples of one task, ``c``
    of which passed, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, "Evaluating Large Language Models Trained on Code").

    Raises:
        ValueError: Unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): needs 1 <= k <= n and 0 <= c <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point beats, by rising cost.

    Args:
        points: ``(cost, success)`` pairs; less cost and more success are better.
    """
    front: list[Point] = []
    for cost, success in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or success > front[-1][1]:
            front.append((float(cost), float(success)))
    return front


def pareto_auc(points: Iterable[Point], bound: float) -> float:
    """Area under the best success that is to be had for at most a given cost, over costs from 0 to ``bound``,
    divided by ``bound``: in [0, 1] for successes in [0, 1].

    The curve is a staircase, without interpolation: between two points nobody has shown a policy. It is the
    hypervolume of the front against the reference point ``(bound, 0)`` (Zitzler & Thiele 1999), normalised.

    Args:
        points: ``(cost, success)`` pairs.
        bound: Cost at which the curve ends, in the unit of the costs.

    Raises:
        ValueError: If ``bound`` is not positive.
    """
    if not bound > 0:
        raise ValueError(f"pareto_auc(bound={bound}): the bound must be more than 0")
    front = [point for point in pareto_front(points) if point[0] < bound]
    ends = [max(0.0, cost) for cost, _ in front[1:]] + [float(bound)]
    return sum(success * (end - max(0.0, cost)) for (cost, success), end in zip(front, ends, strict=False)) / float(
        bound
    )


def call_sequence(trajectory: Trajectory) -> tuple[str, ...]:
    """The executed calls in order, each in one normal spelling (name, then arguments as JSON with sorted keys)."""
    return tuple(
        canonical(Call(result["name"], result["arguments"]))
        for step in trajectory.steps
        for result in step.tool_results
    )


def distinct_call_sequences(trajectories: Iterable[Trajectory]) -> int:
    """Number of different call sequences: how diverse the ways are, whatever words stand around the calls."""
    return len({call_sequence(trajectory) for trajectory in _judged(trajectories)})


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over tasks (Efron 1979).

    Tasks are the unit that is drawn: average several episodes of one task first.

    Args:
        values: One value a task, shape ``(tasks,)``, all finite.
        seed: Seed of the resampling.
        level: Coverage, in (0, 1).
        resamples: Number of bootstrap samples.

    Raises:
        ValueError: If there are no values, one is not finite, or ``level`` is outside (0, 1).
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"bootstrap_interval needs finite values of shape (tasks,), not of shape {array.shape}")
    tail = _tail(level)
    draws = np.random.default_rng(seed).integers(array.size, size=(resamples, array.size))
    low, high = np.quantile(array[draws].mean(axis=1), [tail, 1.0 - tail])
    return float(low), float(high)


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a success probability (Wilson 1927): sensible for few episodes and for rates near 0 and 1.

    Args:
        successes: Episodes that passed.
        n: Episodes; with none, the interval is (0, 1).
        level: Coverage, in (0, 1).

    Raises:
        ValueError: Unless 0 <= successes <= n, or if ``level`` is outside (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson_interval(successes={successes}, n={n}): needs 0 <= successes <= n")
    z = NormalDist().inv_cdf(1.0 - _tail(level))
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, z * z
    centre, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a share between 0 and 1, such as 0.95")
    return (1.0 - level) / 2.0


def _check_channel(channel: str) -> None:
    if channel not in CHANNELS:
        raise ValueError(f"unknown channel {channel!r}; the channels are {', '.join(CHANNELS)}")
