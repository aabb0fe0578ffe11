import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gym import Step, Trajectory, metrics


def made(status, calls=1.0, ms=10.0, names=(("f", {}),)):
    cost = {"tool_calls": calls, "output_tokens": 5.0, "latency_ms": ms}
    results = [{"name": name, "arguments": arguments, "content": ""} for name, arguments in names]
    reward = {"pass": 1.0, "fail": 0.0, "infra": None}[status]
    steps = (Step("", "", cost, results, ""),)
    return Trajectory("t", "e", {}, 0, steps, reward, {"status": status}, cost)


EPISODES = [made("pass", 2, 10), made("pass", 4, 30), made("fail", 6, 50), made("fail", 1, 90), made("infra", 99, 999)]


def test_rates_leave_infra_out():
    assert metrics.infra_count(EPISODES) == 1
    assert metrics.success_rate(EPISODES) == 0.5
    assert metrics.mean_cost(EPISODES, "tool_calls") == 13 / 4
    assert metrics.mean_cost(EPISODES, "latency_ms") == 45.0
    assert metrics.violation_rate(EPISODES, {"tool_calls": 4}) == 0.25  # a total equal to the bound is within
    assert metrics.violation_rate(EPISODES, {"tool_calls": 3, "latency_ms": 50}) == 0.75
    assert metrics.violation_rate(EPISODES, {"tool_calls": 3, "latency_ms": 50}, "latency_ms") == 0.25
    assert metrics.in_budget_success(EPISODES, {"tool_calls": 3}) == 0.25
    assert metrics.in_budget_success(EPISODES, {}) == 0.5
    assert math.isnan(metrics.success_rate([EPISODES[-1]]))


def test_unknown_channels_are_named():
    for job in (
        lambda: metrics.mean_cost(EPISODES, "calls"),
        lambda: metrics.violation_rate(EPISODES, {"calls": 1}),
        lambda: metrics.in_budget_success(EPISODES, {"calls": 1}),
    ):
        with pytest.raises(ValueError, match="'calls'; the channels are tool_calls"):
            job()
    with pytest.raises(ValueError, match="no bound for 'latency_ms'"):
        metrics.violation_rate(EPISODES, {"tool_calls": 1}, "latency_ms")


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert metrics.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 6, 1), (5, -1, 1), (5, 1, 0), (0, 0, 1)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match="1 <= k <= n"):
        metrics.pass_at_k(n, c, k)


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8)


@given(points)
def test_pareto_front_is_what_nothing_beats(found):
    beaten = {p for p in found for q in found if q != p and q[0] <= p[0] and q[1] >= p[1]}
    assert metrics.pareto_front(found) == sorted(set(found) - beaten)


@given(points)
def test_pareto_auc_is_the_mean_of_the_best_success(found):
    """On whole costs the staircase is a sum over unit steps."""
    best = [max((s for c, s in found if c <= at), default=0) for at in range(8)]
    assert metrics.pareto_auc(found, 8) == pytest.approx(sum(best) / 8)


def test_pareto_auc_by_hand():
    assert metrics.pareto_auc([(2, 0.5), (6, 1.0), (4, 0.4)], 10) == pytest.approx((4 * 0.5 + 4 * 1.0) / 10)
    assert metrics.pareto_auc([], 10) == 0.0
    assert metrics.pareto_auc([(0, 1.0)], 10) == 1.0
    with pytest.raises(ValueError, match="more than 0"):
        metrics.pareto_auc([], 0)


def test_call_sequences_are_normalised():
    same = [made("pass", names=[("f", {"a": 1, "b": 2})]), made("fail", names=[("f", {"b": 2, "a": 1})])]
    other = [made("pass", names=[("f", {"a": 1})]), made("pass", names=[("f", {"a": 1}), ("g", {})])]
    assert metrics.call_sequence(same[0]) == metrics.call_sequence(same[1])
    assert metrics.distinct_call_sequences(same) == 1
    assert metrics.distinct_call_sequences([*same, *other]) == 3
    assert metrics.distinct_call_sequences([made("infra")]) == 0


def test_bootstrap_interval():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    low, high = metrics.bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert (low, high) == metrics.bootstrap_interval(values, seed=1)
    assert (low, high) != metrics.bootstrap_interval(values, seed=2)
    inner = metrics.bootstrap_interval(values, seed=1, level=0.5)
    assert low < inner[0] < inner[1] < high
    assert metrics.bootstrap_interval([3.0], seed=0) == (3.0, 3.0)
    for bad in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="finite values of shape"):
            metrics.bootstrap_interval(bad, seed=0)


def test_wilson_interval():
    assert metrics.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert metrics.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert metrics.wilson_interval(10, 10)[1] == 1.0
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    for successes, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="0 <= successes <= n"):
            metrics.wilson_interval(successes, n)
    with pytest.raises(ValueError, match="between 0 and 1"):
        metrics.wilson_interval(1, 2, level=95)
