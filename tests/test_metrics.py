import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gym import Group, Step, Trajectory, metrics


def made(status, calls=1.0, ms=10.0, names=(("f", {}),)):
    cost = {"tool_calls": calls, "output_tokens": 5.0, "latency_ms": ms}
    results = [{"name": name, "arguments": arguments, "content": ""} for name, arguments in names]
    reward = {"pass": 1.0, "fail": 0.0, "infra": None, "cut": None}[status]
    steps = (Step("", "", cost, results, ""),)
    verdict = None if status == "cut" else {"status": status}
    return Trajectory("t", "e", {}, 0, steps, reward, verdict, cost)


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


def test_an_episode_that_a_wrapper_cut_is_no_evidence_and_counted_apart():
    cut = [made("cut", 50, 500), made("cut", 1, 1)]
    assert (metrics.infra_count(EPISODES), metrics.cut_count(EPISODES)) == (1, 0)
    assert (metrics.infra_count([*EPISODES, *cut]), metrics.cut_count([*EPISODES, *cut])) == (1, 2)
    for figure in FIGURES.values():
        assert repr(figure([*EPISODES, *cut])) == repr(figure(EPISODES))


BUDGET = {"tool_calls": 3, "latency_ms": 50}
FIGURES = {
    "success_rate": metrics.success_rate,
    "mean_cost": lambda found: metrics.mean_cost(found, "tool_calls"),
    "violation_rate": lambda found: metrics.violation_rate(found, BUDGET),
    "violation_rate of a channel": lambda found: metrics.violation_rate(found, BUDGET, "tool_calls"),
    "in_budget_success": lambda found: metrics.in_budget_success(found, BUDGET),
    "distinct_n": lambda found: metrics.distinct_n(found, 1),
    "pass_at_k_intervals": lambda found: metrics.pass_at_k_intervals(found, seed=0),
    "success_by_group": lambda found: metrics.success_by_group(found, seed=0),
    "by_task": metrics.by_task,
    "distinct_call_sequences": metrics.distinct_call_sequences,
    "distinct_programs": metrics.distinct_programs,
}
NAN = math.nan
OF_NOTHING = {
    **dict.fromkeys(list(FIGURES)[:6], NAN), "pass_at_k_intervals": dict.fromkeys((1, 4, 8, 16), (NAN, NAN, NAN)),
    "success_by_group": {}, "by_task": {}, "distinct_call_sequences": 0, "distinct_programs": 0,
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("kinds", [(), ("infra",) * 3, ("cut",) * 2, ("infra", "cut")])
def test_figures_of_no_verdict_at_all(figure, kinds):
    assert repr(FIGURES[figure]([made(kind) for kind in kinds])) == repr(OF_NOTHING[figure])


@pytest.mark.filterwarnings("error")
def test_intervals_of_means_and_shares():
    assert repr(metrics.mean_interval([], seed=0)) == repr((NAN, NAN, NAN))
    assert repr(metrics.share_interval([])) == repr((NAN, 0.0, 1.0))
    assert metrics.mean_interval([1.0, 2.0], 3) == (1.5, *metrics.bootstrap_interval([1.0, 2.0], 3))
    assert metrics.share_interval([True, False, True]) == (2 / 3, *metrics.wilson_interval(2, 3))
    assert metrics.share_interval([True, False], level=0.5) == (0.5, *metrics.wilson_interval(1, 2, 0.5))


def test_a_bound_that_is_nan_is_refused():
    for job in (metrics.violation_rate, metrics.in_budget_success):
        with pytest.raises(ValueError, match="the budget's bound for 'latency_ms' is NaN"):
            job(EPISODES, {"tool_calls": 3, "latency_ms": NAN})
        assert job(EPISODES, {"tool_calls": math.inf}) in (0.0, 0.5)  # no bound


@pytest.mark.parametrize("number", [NAN, math.inf, -math.inf, np.float32("nan")])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_points_that_are_not_finite_are_refused(number, at, place):
    found = [(2, 0.5), (6, 1.0)]
    found.insert(place, (number, 0.4) if at == 0 else (4, number))
    for job in (metrics.pareto_front, lambda points: metrics.pareto_auc(points, 10)):
        with pytest.raises(ValueError, match=r"^the point \(cost, success\) = \(.*\) must be of finite numbers$"):
            job(iter(found))
    with pytest.raises(ValueError, match="the bound must be finite and more than 0"):
        metrics.pareto_auc([(2, 0.5)], number)


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


def sampled(task, passed, group=None, calls=(), ids=None, action="a b", env="e"):
    """An episode of one step on ``task``."""
    cost = {"tool_calls": 1.0, "output_tokens": 5.0, "latency_ms": 1.0}
    results = [{"name": name, "arguments": arguments, "content": ""} for name, arguments in calls]
    steps = (Step("", action, cost, results, "", action_ids=ids),)
    status = "pass" if passed else "fail"
    group = Group(group) if group else None
    return Trajectory(task, env, {}, 0, steps, float(passed), {"status": status}, cost, group)


TASKS = [sampled("t", i < 2) for i in range(4)] + [sampled("u", i < 4) for i in range(4)] + [sampled("v", False)]


def test_pass_at_k_intervals():
    """By enumeration: all pairs of a task's four episodes; the task with one episode counts for k = 1 only."""
    found = metrics.pass_at_k_intervals(TASKS, seed=0, ks=(1, 2, 8))
    pairs = np.mean([max(p) for p in itertools.combinations([1, 1, 0, 0], 2)])
    assert found[1][0] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert found[2][0] == pytest.approx((pairs + 1.0) / 2)
    assert found[2] == (found[2][0], *metrics.bootstrap_interval([pairs, 1.0], seed=0))
    assert all(math.isnan(x) for x in found[8])
    assert list(metrics.pass_at_k_intervals(TASKS, seed=0)) == [1, 4, 8, 16]
    assert metrics.pass_at_k_intervals([*TASKS, EPISODES[-1]], seed=0, ks=(1,))[1] == found[1]  # infra is no evidence


def test_tasks_of_two_environments_are_two():
    same = [sampled("t", True), sampled("t", False, env="other")]
    assert list(metrics.by_task(same)) == [("e", "t"), ("other", "t")]
    assert metrics.pass_at_k_intervals(same, seed=0, ks=(1, 2))[1][0] == 0.5


def test_success_by_group_is_a_mean_over_tasks():
    episodes = [sampled("t", True, "x") for _ in range(9)] + [sampled("u", False, "x"), sampled("w", True, "b")]
    found = metrics.success_by_group([*episodes, sampled("n", True)], seed=0)
    assert list(found) == ["b", "x"]
    assert found["x"][0] == 0.5
    assert found["b"] == (1.0, 1.0, 1.0)


def wrote(text, tool="write_file", argument="text"):
    return sampled("t", True, calls=[(tool, {argument: text})])


def test_programs_are_syntax_trees():
    one = wrote("def f(x):\n    return 'a' + x\n")
    same = wrote('# a comment\ndef f( x ):\n\n    return ("a" + x)')
    assert metrics.program(one) == metrics.program(same)
    assert metrics.program(one) != metrics.program(wrote("def f(y):\n    return 'a' + y\n"))  # names count
    assert metrics.program(wrote("    x = 1\n", "edit", "new")) == metrics.program(wrote("x=1", "edit", "new"))
    fragment = wrote("else:\n    x  =  1", "edit", "new")  # no program of its own
    assert metrics.program(fragment) == ("else: x = 1",)
    assert metrics.program(wrote("select  a\nfrom t", "run_sql", "query")) == ("select a from t",)
    assert metrics.program(wrote("x = 1", "send_mail", "subject")) == ()
    assert metrics.program(wrote(5)) == ()
    assert metrics.distinct_programs([one, same, fragment, sampled("t", True)]) == 2


def test_distinct_n():
    assert metrics.distinct_n([sampled("t", True, action="a b a b")], 1) == 0.5
    assert metrics.distinct_n([sampled("t", True, action="a b a b")], 2) == pytest.approx(2 / 3)
    ids = [sampled("t", True, ids=[1, 2, 3]), sampled("t", False, ids=[1, 2, 4])]
    assert metrics.distinct_n(ids, 2) == 0.75
    assert math.isnan(metrics.distinct_n(ids, 9))
    with pytest.raises(ValueError, match="n >= 1"):
        metrics.distinct_n(ids, 0)


# ---- several samples, several seeds, budgets in multiples of the oracle's cost ----


def test_samples_of_a_task_are_averaged_first():
    assert metrics.task_means([("a", 1), ("b", 0), ("a", 0), ("a", 0)]) == [1 / 3, 0.0]


ORACLE = {"tool_calls": 2.0, "output_tokens": 10.0, "read_tokens": 0.0, "latency_ms": 100.0}


def test_the_multiple_that_pays_for_an_episode_is_that_of_its_dearest_channel():
    cost = {"tool_calls": 3.0, "output_tokens": 10.0, "read_tokens": 0.0, "latency_ms": 400.0}
    assert metrics.budget_multiple(cost, ORACLE) == 4.0
    assert metrics.budget_multiple(cost, ORACLE, ("tool_calls", "output_tokens")) == 1.5
    assert metrics.budget_multiple(cost | {"read_tokens": 1.0}, ORACLE) == math.inf
    assert metrics.budget_multiple(ORACLE, ORACLE) == 1.0


def test_the_curve_over_budgets_and_its_area_by_hand():
    episodes = [("a", True, 1.0), ("a", True, 3.0), ("b", True, math.inf), ("c", False, 1.0), ("d", True, 0.5)]
    curve = {m: mean for m, mean, *_ in metrics.budget_curve(episodes, seed=0)}
    assert list(curve) == list(metrics.MULTIPLES)
    assert (curve[1.0], curve[2.75], curve[3.0], curve[4.0]) == (1.5 / 4, 1.5 / 4, 0.5, 0.5)
    mean, low, high = metrics.budget_auc(episodes, seed=0)
    assert mean == pytest.approx(((1 + 1 / 3) / 2 + 0 + 0 + 1) / 4)
    assert low < mean < high
    assert mean == pytest.approx(np.mean(list(curve.values())[:-1]), abs=0.03)  # the staircase from the left
    assert all(math.isnan(value) for value in metrics.budget_auc([], seed=0))


def test_a_ratio_of_sums_weighs_the_tasks_by_their_size():
    assert metrics.ratio_interval([(1, 2), (0, 8), (0, 0)], seed=0)[0] == 0.1
    assert metrics.ratio_interval([(1, 4)] * 5, seed=0) == (0.25, 0.25, 0.25)
    assert all(math.isnan(value) for value in metrics.ratio_interval([(0, 0)], seed=0))


def test_the_interquartile_mean_leaves_the_outer_quarters_out():
    assert metrics.interquartile_mean(np.array([0.0, 1, 2, 9, 3, 100, -50, 4])) == 2.5
    assert metrics.interquartile_mean(np.array([5.0])) == 5.0
    assert metrics.interquartile_mean(np.zeros((3, 8))).shape == (3,)


def test_the_stratified_interval_draws_the_runs_within_each_task():
    scores = np.tile(np.linspace(0, 1, 40), (5, 1))  # tasks differ, runs do not
    mean, low, high = metrics.stratified_interval(scores, seed=0, statistic=lambda x: x.mean(axis=-1))
    assert mean == low == high == pytest.approx(0.5)
    spread = np.tile(np.linspace(0, 1, 5)[:, None], (1, 40))  # runs differ, tasks do not
    _, low, high = metrics.stratified_interval(spread, seed=0, statistic=lambda x: x.mean(axis=-1))
    assert 0.4 < low < 0.5 < high < 0.6
    assert metrics.stratified_interval(spread, seed=0) == metrics.stratified_interval(spread, seed=0)
    for wrong in ([], [[]], [1.0], [[math.nan]]):
        with pytest.raises(ValueError, match=r"of shape \(runs, tasks\)"):
            metrics.stratified_interval(wrong, seed=0)


def covered(interval, truth, trials):
    """The share of the intervals that hold the truth."""
    return np.mean([low <= truth <= high for _, low, high in map(interval, range(trials))])


def test_the_intervals_cover_what_they_promise():
    """Synthetic agents: each task has its own success probability, two samples of each are seen."""

    def drawn(trial):
        draw = np.random.default_rng([7, trial])  # not the seed of the resampling
        return draw, draw.beta(1, 1, size=60)

    def success(trial):
        draw, chances = drawn(trial)
        return metrics.mean_interval(
            metrics.task_means((t, draw.random() < p) for t, p in enumerate(chances) for _ in range(2)), trial
        )

    def redundant(trial):
        draw, chances = drawn(trial)
        calls = draw.integers(1, 9, size=60)
        return metrics.ratio_interval([(draw.binomial(n, p), n) for n, p in zip(calls, chances, strict=True)], trial)

    def area(trial):
        draw, chances = drawn(trial)
        return metrics.budget_auc([(t, draw.random() < p, 1 + 3 * draw.random()) for t, p in enumerate(chances)], trial)

    assert 0.91 <= covered(success, 0.5, 300) <= 0.98
    assert 0.91 <= covered(redundant, 0.5, 300) <= 0.98
    assert 0.91 <= covered(area, 0.25, 300) <= 0.98


def test_the_stratified_interval_covers_the_mean_over_seeds():
    """The tasks are given; ten runs of them are seen, and the truth is their mean over all runs."""
    chances = np.random.default_rng(0).beta(2, 1, size=20)

    def seen(trial):
        scores = np.random.default_rng([7, trial]).random((10, 20)) < chances
        return metrics.stratified_interval(scores.astype(float), trial, statistic=lambda x: x.mean(axis=-1))

    assert 0.89 <= covered(seen, chances.mean(), 300) <= 0.98


# ---- kinds of failures ----


def failed(reason, errors=(None,), diagnostics=(), names=None, steps=3):
    results = [
        {"name": name, "arguments": {}, "content": "", "error": error}
        for name, error in zip(names or ["f"] * len(errors), errors, strict=True)
    ]
    cost = dict.fromkeys(("tool_calls", "output_tokens", "read_tokens", "latency_ms"), 1.0)
    played = (Step("", "", cost, results, ""), *[Step("", "", cost, [], "")] * (steps - 1))
    verdict = {"status": "fail", "reason": reason, "score": 0.0, "diagnostics": list(diagnostics)}
    return Trajectory("t", "e", {}, 0, played, 0.0, verdict, cost)


ASIDE = "orders.O1: changed though nothing asked for it: expected 1, found 2"


@pytest.mark.parametrize(
    ("episode", "first_wrong", "kind"),
    [
        (failed("turn_limit", ["invalid"]), 0, "no_answer"),
        (failed("context"), None, "no_answer"),
        (failed("wrong_state", ["invalid", "unknown_tool", None, None]), 0, "unreadable"),
        (failed("wrong_state", ["invalid", None, None], [ASIDE]), 0, "side_effect"),
        (failed("wrong_answer", ["invalid", "not_run"], names=["f", "f"]), 0, "unreadable"),
        (failed("wrong_answer", [None], names=["submit"]), 0, "no_attempt"),
        (failed("wrong_answer", []), 0, "no_attempt"),
        (failed("error"), 2, "broken"),
        (failed("memory"), 2, "broken"),
        (failed("wrong_state"), 2, "incomplete"),
        (failed("wrong_state"), None, "incomplete"),
        (failed("wrong_state"), 1, "wrong_change"),
        (failed("wrong_answer"), 1, "wrong_answer"),
        (failed("unfinished"), 1, "other"),
        (made("pass"), None, None),
        (made("infra"), None, None),
        (made("cut"), None, None),
    ],
)
def test_kinds_of_failures(episode, first_wrong, kind):
    assert metrics.failure_kind(episode, first_wrong) == kind
    assert kind is None or kind in metrics.FAILURES
