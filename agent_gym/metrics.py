"""Metrics over trajectories: pure functions, so that a table can be computed again from the files alone.

An episode without a verdict is no evidence about the agent: our machinery failed (``infra``), or a wrapper such as
TimeLimit cut it. Every function here leaves it out; ``infra_count`` and ``cut_count`` say how many there were: report
all three. A mean of nothing is NaN.
"""

from __future__ import annotations

import ast
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from agent_gym.costs import CHANNELS
from agent_gym.text import syntax_tree
from agent_gym.tools import Call, canonical, dump
from agent_gym.trajectory import Trajectory

__all__ = [
    "CODE_ARGUMENTS", "FAILURES", "MULTIPLES", "bootstrap_interval", "budget_auc", "budget_curve", "budget_multiple",
    "by_task", "call_sequence", "cut_count", "distinct_call_sequences", "distinct_n", "distinct_programs",
    "failure_kind", "in_budget_success", "infra_count", "interquartile_mean", "mean_cost", "mean_interval",
    "pareto_auc", "pareto_front", "pass_at_k", "pass_at_k_intervals", "program", "ratio_interval", "share_interval",
    "stratified_interval", "success_by_group", "success_rate", "task_means", "violation_rate", "wilson_interval",
]  # fmt: skip

Point = tuple[float, float]
Interval = tuple[float, float, float]

MULTIPLES = tuple(1 + n / 4 for n in range(13))
"""Of the oracle's cost: 1 to 4."""

FAILURES = {
    "no_answer": "the turns, the budget or the model's context ran out before the final answer",
    "unreadable": "at least half of its calls could not be read, or named no tool or wrong arguments",
    "no_attempt": "it answered without a call",
    "broken": "what it handed in does not run: an error, too much time, memory or output",
    "side_effect": "something was changed that nothing asked for",
    "incomplete": "up to its last step all could still be done, and then it ended the episode",
    "wrong_change": "an earlier step left a state from which the oracle's steps do not pass any more",
    "wrong_answer": "the state is as asked, or none is asked for, and what it handed in is wrong",
    "other": "the verifier's reason is none of these",
}
"""Kinds of failures, in the order in which they are decided; see :func:`failure_kind`."""

CODE_ARGUMENTS = {
    "edit": "new", "edit_lines": "new", "write_file": "text", "run_sql": "query", "submit_sql": "query",
}  # fmt: skip
"""The argument of a tool that holds code."""


def _judged(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    return [trajectory for trajectory in trajectories if trajectory.reward is not None]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def infra_count(trajectories: Iterable[Trajectory]) -> int:
    """Number of episodes that our machinery left without a verdict."""
    return sum(trajectory.reward is None and trajectory.verdict is not None for trajectory in trajectories)


def cut_count(trajectories: Iterable[Trajectory]) -> int:
    """Number of episodes that a wrapper, such as TimeLimit, cut before there was a verdict."""
    return sum(trajectory.reward is None and trajectory.verdict is None for trajectory in trajectories)


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
        ValueError: For an unknown channel, a bound that is NaN, or a ``channel`` without a bound.
    """
    _check_budget(budget)
    if channel is not None:
        _check_channel(channel)
        if channel not in budget:
            raise ValueError(f"the budget has no bound for {channel!r}; it has {', '.join(budget) or 'none at all'}")
        budget = {channel: budget[channel]}
    return _mean([trajectory.violates(dict(budget)) for trajectory in _judged(trajectories)])


def in_budget_success(trajectories: Iterable[Trajectory], budget: Mapping[str, float]) -> float:
    """Share of episodes that passed and spent no more than the budget on any channel, in [0, 1].

    Raises:
        ValueError: For an unknown channel, or a bound that is NaN.
    """
    _check_budget(budget)
    return _mean([one.success and not one.violates(dict(budget)) for one in _judged(trajectories)])


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of ``k`` samples of a task passes, from ``n`` samples of which ``c`` passed.

    The unbiased estimate 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374).

    Raises:
        ValueError: Unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): needs 1 <= k <= n and 0 <= c <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def by_task(trajectories: Iterable[Trajectory]) -> dict[tuple[str, str], list[Trajectory]]:
    """The episodes of each task, by environment and task id, in the order in which the tasks first occur."""
    tasks: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in _judged(trajectories):
        tasks.setdefault((trajectory.env_id, trajectory.task_id), []).append(trajectory)
    return tasks


def pass_at_k_intervals(
    trajectories: Iterable[Trajectory], seed: int, ks: Sequence[int] = (1, 4, 8, 16), level: float = 0.95
) -> dict[int, Interval]:
    """Mean over tasks of the unbiased pass@k, with its bootstrap interval over tasks, by k.

    Args:
        trajectories: Several episodes of each task. A task with fewer than k judged ones is left out of pass@k.
        seed: Seed of the resampling.
        ks: Numbers of samples.
        level: Coverage, in (0, 1).

    Returns:
        ``(mean, low, high)`` by k; three NaN where no task has enough episodes.
    """
    counts = [(len(own), sum(t.success for t in own)) for own in by_task(trajectories).values()]
    return {k: mean_interval([pass_at_k(n, c, k) for n, c in counts if n >= k], seed, level) for k in ks}


def success_by_group(trajectories: Iterable[Trajectory], seed: int, level: float = 0.95) -> dict[str, Interval]:
    """Success of each group: the mean over its tasks of the task's success rate, with its interval over tasks.

    Args:
        trajectories: Episodes; those without a group are left out.
        seed: Seed of the resampling.
        level: Coverage, in (0, 1).

    Returns:
        ``(mean, low, high)`` by the group's name, in alphabetical order.
    """
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in _judged(trajectories):
        if trajectory.group is not None:
            groups.setdefault(trajectory.group.name, []).append(trajectory)
    return {
        name: mean_interval([_mean([t.success for t in own]) for own in by_task(groups[name]).values()], seed, level)
        for name in sorted(groups)
    }


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point beats, by rising cost.

    Args:
        points: ``(cost, success)`` pairs; less cost and more success are better.

    Raises:
        ValueError: If a number is not finite.
    """
    points = list(points)
    for point in points:
        if not all(map(math.isfinite, point)):
            raise ValueError(f"the point (cost, success) = {tuple(map(float, point))} must be of finite numbers")
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
        ValueError: If ``bound`` is not positive, or a number is not finite.
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"pareto_auc(bound={bound}): the bound must be finite and more than 0")
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
        if result.get("error") != "not_run"
    )


def distinct_call_sequences(trajectories: Iterable[Trajectory]) -> int:
    """Number of different call sequences: how diverse the ways are, whatever words stand around the calls."""
    return len({call_sequence(trajectory) for trajectory in _judged(trajectories)})


def program(trajectory: Trajectory) -> tuple[str, ...]:
    """The code of each call that holds some (see ``CODE_ARGUMENTS``), in order, in one normal form.

    Python becomes its syntax tree: comments, blanks, quotes, brackets and line numbers do not count, names do. What is
    not Python on its own (SQL, a fragment of a statement) becomes its text with single blanks.
    """
    pieces = []
    for step in trajectory.steps:
        for result in step.tool_results:
            if result.get("error") == "not_run":
                continue
            text = result["arguments"].get(CODE_ARGUMENTS.get(result["name"], ""))
            if isinstance(text, str):
                pieces.append(_normal(text))
    return tuple(pieces)


def _normal(code: str) -> str:
    try:
        return ast.dump(syntax_tree(textwrap.dedent(code).strip()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # what a model writes may well be none of it
        return " ".join(code.split())


def distinct_programs(trajectories: Iterable[Trajectory]) -> int:
    """Number of different programs (syntax trees) among the episodes that wrote code."""
    return len({program(trajectory) for trajectory in _judged(trajectories)} - {()})


def distinct_n(trajectories: Iterable[Trajectory], n: int) -> float:
    """Share of different n-grams among all n-grams of the actions (Li et al. 2016, arXiv:1510.03055), in [0, 1].

    N-grams are of the sampled token ids, or of the words where there are no ids, and do not cross turns.

    Raises:
        ValueError: If ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"distinct_n(n={n}): needs n >= 1")
    grams: list[tuple[object, ...]] = []
    for trajectory in _judged(trajectories):
        for step in trajectory.steps:
            words = step.action if isinstance(step.action, str) else dump(step.action)
            tokens: Sequence[object] = words.split() if step.action_ids is None else step.action_ids
            grams += [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


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


def mean_interval(values: Sequence[float], seed: int, level: float = 0.95) -> Interval:
    """``(mean, low, high)`` with the interval of :func:`bootstrap_interval`; three NaN where there are no values."""
    return (_mean(values), *bootstrap_interval(values, seed, level)) if len(values) else (math.nan, math.nan, math.nan)


def share_interval(hits: Sequence[bool], level: float = 0.95) -> Interval:
    """``(share, low, high)`` of the episodes that are true, with the interval of :func:`wilson_interval`.

    Of no episodes the share is NaN, and the interval (0, 1).
    """
    return (_mean(hits), *wilson_interval(sum(hits), len(hits), level))


def ratio_interval(parts: Sequence[tuple[float, float]], seed: int, level: float = 0.95) -> Interval:
    """``(ratio, low, high)`` of two sums over tasks, with the percentile bootstrap interval over tasks.

    Args:
        parts: Numerator and denominator of each task; a task whose denominator is 0 says nothing.
        seed: Seed of the resampling.
        level: Coverage, in (0, 1).

    Returns:
        Three NaN where no denominator is above 0.
    """
    array = np.array([part for part in parts if part[1] > 0], dtype=float)
    if not len(array):
        return math.nan, math.nan, math.nan
    sums = array[np.random.default_rng(seed).integers(len(array), size=(2000, len(array)))].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [_tail(level), 1.0 - _tail(level)])
    return float(array[:, 0].sum() / array[:, 1].sum()), float(low), float(high)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half, over the last axis: the lowest and the highest quarter, rounded down, are left out."""
    cut = values.shape[-1] // 4
    return np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)


def stratified_interval(
    scores: Sequence[Sequence[float]] | np.ndarray,
    seed: int,
    level: float = 0.95,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
) -> Interval:
    """``(statistic, low, high)`` of several runs, with the stratified bootstrap interval (Agarwal et al. 2021,
    arXiv:2108.13264): runs are drawn within each task, and all scores are aggregated together.

    Args:
        scores: One row a run (a seed), one column a task, all finite.
        seed: Seed of the resampling.
        level: Coverage, in (0, 1).
        statistic: Of the scores along the last axis; the interquartile mean by default.

    Raises:
        ValueError: Unless ``scores`` is a table of finite numbers.
    """
    array = np.asarray(scores, dtype=float)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"stratified_interval needs finite scores of shape (runs, tasks), not of shape {array.shape}")
    drawn = np.random.default_rng(seed).integers(len(array), size=(2000, *array.shape))
    sampled = np.take_along_axis(np.broadcast_to(array, drawn.shape), drawn, axis=1).reshape(len(drawn), -1)
    low, high = np.quantile(statistic(sampled), [_tail(level), 1.0 - _tail(level)])
    return float(statistic(array.reshape(-1))), float(low), float(high)


def task_means(values: Iterable[tuple[object, float]]) -> list[float]:
    """The mean of each task's values.

    Args:
        values: ``(task, value)`` of each episode.

    Returns:
        One value a task, in the order in which the tasks first occur.
    """
    tasks: dict[object, list[float]] = {}
    for task, value in values:
        tasks.setdefault(task, []).append(value)
    return [_mean(own) for own in tasks.values()]


def budget_multiple(
    cost: Mapping[str, float], oracle_cost: Mapping[str, float], channels: Sequence[str] = CHANNELS
) -> float:
    """The smallest multiple of the oracle's cost that an episode's cost is within, on every one of the channels.

    Infinite where the oracle spends nothing on a channel and the episode something.
    """
    return max(
        cost[channel] / oracle_cost[channel] if oracle_cost[channel] else math.inf if cost[channel] else 0.0
        for channel in channels
    )


def budget_curve(
    episodes: Sequence[tuple[object, bool, float]], seed: int, level: float = 0.95
) -> list[tuple[float, float, float, float]]:
    """Success within each multiple of the oracle's cost.

    Args:
        episodes: Task, success and :func:`budget_multiple` of each.
        seed: Seed of the resampling.
        level: Coverage, in (0, 1).

    Returns:
        ``(multiple, mean, low, high)`` for each of :data:`MULTIPLES`: the mean over tasks, the interval over tasks.
    """
    within = ((m, task_means((task, ok and spent <= m) for task, ok, spent in episodes)) for m in MULTIPLES)
    return [(m, *mean_interval(values, seed, level)) for m, values in within]


def budget_auc(episodes: Sequence[tuple[object, bool, float]], seed: int, level: float = 0.95) -> Interval:
    """Area under the success over the budget, from 1 to 4 times the oracle's cost, divided by 3: in [0, 1].

    It is exact, not a sum over the points of :func:`budget_curve`: a success counts for the share of the budgets that
    it is within. Arguments as there.
    """
    least, most = MULTIPLES[0], MULTIPLES[-1]
    shares = ((task, ok * (most - min(max(spent, least), most)) / (most - least)) for task, ok, spent in episodes)
    return mean_interval(task_means(shares), seed, level)


def failure_kind(trajectory: Trajectory, first_wrong: int | None = None) -> str | None:
    """What kind of failure an episode is: the first of :data:`FAILURES` that fits; None of a success and without a
    verdict.

    Args:
        trajectory: The episode. Its verdict's reason and diagnostics and the errors of its calls are read.
        first_wrong: The first step after which no end of the oracle's solution passes any more, where that is known.
    """
    verdict = trajectory.verdict
    if trajectory.success or trajectory.reward is None or verdict is None:
        return None
    ran = [one for step in trajectory.steps for one in step.tool_results if one["error"] != "not_run"]
    calls = [one["error"] for one in ran if one["name"] != "submit"]
    if verdict["reason"] in ("turn_limit", "budget", "context"):
        return "no_answer"
    if calls and 2 * sum(error in ("invalid", "unknown_tool") for error in calls) >= len(calls):
        return "unreadable"
    if not calls:
        return "no_attempt"
    if verdict["reason"] in ("error", "timeout", "memory", "output_limit"):
        return "broken"
    if any("nothing asked for" in line for line in verdict["diagnostics"]):
        return "side_effect"
    if verdict["reason"] == "wrong_state":
        return "wrong_change" if first_wrong is not None and first_wrong < len(trajectory.steps) - 1 else "incomplete"
    return "wrong_answer" if verdict["reason"] == "wrong_answer" else "other"


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a share between 0 and 1, such as 0.95")
    return (1.0 - level) / 2.0


def _check_channel(channel: str) -> None:
    if channel not in CHANNELS:
        raise ValueError(f"unknown channel {channel!r}; the channels are {', '.join(CHANNELS)}")


def _check_budget(budget: Mapping[str, float]) -> None:
    for channel, bound in budget.items():
        _check_channel(channel)
        if math.isnan(bound):
            raise ValueError(f"the budget's bound for {channel!r} is NaN: it must be a number")
