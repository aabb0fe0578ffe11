"""Elimination on episodes whose needless steps are known by construction."""

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_play import CUSTOMERS, REFUND, TABLES, TASKS, call, make, play, task, turn, write_tasks

import agent_gym
from agent_gym import CHANNELS, Delete, ToolCache, Trajectory, counterfactuals, eliminate, snapshot
from agent_gym.wrappers import RecordTrajectory

FIND, ORDERS, REFUNDED = (turn(one) for one in REFUND)
LOOK, SCAN, POLICY = call("get_order", order_id="O2001"), call("list_orders"), call("return_policy")
PEOPLE = call("list_customers")
SILVER, BASIC = (call("set_tier", customer_id="C1001", tier=tier) for tier in ("silver", "basic"))
OTHER_UP, OTHER_DOWN = (call("set_tier", customer_id="C1003", tier=tier) for tier in ("silver", "basic"))
TABLES = {
    **TABLES,
    "customers": [*CUSTOMERS, {"id": "C1003", "name": "Bo Ray", "email": "bo@mail.com", "tier": "basic"}],
}
PROMOTE = [("set_tier", {"customer_id": "C1001", "tier": "silver"})]
MINE = [
    {**one, "tables": TABLES} for one in (*TASKS, task("tier", "Set the tier of customer C1001 to silver.", PROMOTE))
]
BOUNDS = {"tool_calls": 4, "latency_ms": 400.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", MINE)


@pytest.fixture
def env(path):
    return RecordTrajectory(make(tasks=path, max_turns=64))


def kept(env, name, actions, bounds=BOUNDS, **kwargs):
    episode = play(env, name, [*actions, "Done."])
    assert episode.success
    found = eliminate(env, episode, bounds, **kwargs)
    check(env, episode, found)
    return found.kept


def check(env, episode, found):
    """What holds of every elimination."""
    units = sum(max(1, len(step.tool_results)) for step in episode.steps)
    assert found.replays <= 2 * units
    assert found.trajectory.success
    assert Trajectory.from_json(found.trajectory.to_json()) == found.trajectory
    whole = {unit if isinstance(unit, int) else unit[0] for unit in found.kept}
    assert len(found.trajectory.steps) == len(whole)
    for channel in CHANNELS:
        total = sum(step.cost[channel] for step in found.trajectory.steps)
        assert found.trajectory.cost_total[channel] == pytest.approx(total)
    # it is a valid episode: executed again without drift; and no step or call of it can go
    single = [
        Delete(t, call=n if len(step.tool_results) > 1 else None)
        for t, step in enumerate(found.trajectory.steps)
        for n in range(max(1, len(step.tool_results)))
    ]
    assert all(one.reward == 0.0 for one in counterfactuals(env, found.trajectory, single))


@pytest.mark.parametrize(
    ("name", "actions", "left"),
    [
        ("cascade", [FIND, ORDERS, REFUNDED], [0, 1, 2, 3]),
        ("cascade", [POLICY, FIND, ORDERS, REFUNDED, LOOK], [1, 2, 3, 5]),
        ("cascade", [FIND, FIND, ORDERS, ORDERS, REFUNDED], [0, 2, 4, 5]),  # of equal price the later goes
        ("cascade", [ORDERS, FIND, ORDERS, REFUNDED], [0, 3, 4]),  # a guess that was right
        ("cascade", [PEOPLE, FIND, ORDERS, REFUNDED], [1, 2, 3, 4]),  # the dear scan goes, the look-up stays
        ("cascade", [FIND, PEOPLE, ORDERS, SCAN, REFUNDED], [0, 2, 4, 5]),
        ("named", [LOOK, REFUNDED], [1, 2]),
        ("named", [REFUNDED, REFUNDED], [1, 2]),
        ("tier", [SILVER, SILVER, SILVER], [0, 3]),
        ("tier", [BASIC, SILVER], [1, 2]),
        ("tier", [SILVER, BASIC, SILVER], [2, 3]),
        ("tier", [OTHER_UP, SILVER, OTHER_DOWN], [1, 3]),  # a mistake and its repair, around the deed
        ("tier", [OTHER_UP, OTHER_DOWN, SILVER], [2, 3]),  # a detour
        ("tier", [OTHER_UP, LOOK, OTHER_DOWN, SCAN, SILVER], [4, 5]),
        ("tier", [OTHER_UP, OTHER_DOWN, OTHER_UP, OTHER_DOWN, SILVER], [4, 5]),
        ("tier", ["<tool_call>{", call("nothing"), SILVER], [2, 3]),
    ],
)  # fmt: skip
def test_known_episodes(env, name, actions, left):
    assert list(kept(env, name, actions)) == left


def test_calls_of_a_turn_go_one_by_one(env):
    both = turn(REFUND[0], ("return_policy", {}), ("get_product", {"product_id": "P3001"}))
    assert kept(env, "cascade", [both, ORDERS, REFUNDED]) == ((0, 0), 1, 2, 3)
    end = turn(("return_policy", {}), REFUND[2], ("submit", {"answer": None}))
    episode = play(env, "named", [end])
    found = eliminate(env, episode, BOUNDS)
    check(env, episode, found)
    assert found.kept == ((0, 1), (0, 2))
    assert len(found.trajectory.steps[0].tool_results) == 2


def test_one_call_of_a_turn_is_deleted(env):
    both = turn(REFUND[0], ("return_policy", {}), text="Two looks.")
    episode = play(env, "cascade", [both, ORDERS, REFUNDED, "Done."])
    needed, needless = counterfactuals(env, episode, [Delete(0, call=0), Delete(0, call=1)])
    assert (needed.success_credit, needless.success_credit) == (1.0, 0.0)
    assert needed.validity == ("ungrounded", "ungrounded", "executed")
    assert needless.validity == ("executed",) * 3
    assert needless.cost_credit["tool_calls"] == 1.0
    assert 0 < needless.cost_credit["output_tokens"] < episode.steps[0].cost["output_tokens"]
    for wrong in (Delete(0, call=2), Delete(0, call=-1), Delete(0, 2, call=0), Delete(3, call=0)):
        with pytest.raises(ValueError, match="does not fit"):
            counterfactuals(env, episode, [wrong])


def test_dearest_first_depends_on_the_bounds(env):
    """A scan shows what two look-ups show: which of them goes is a matter of price."""
    actions = [FIND, ORDERS, SCAN, REFUNDED]
    assert list(kept(env, "cascade", actions, {"latency_ms": 100})) == [0, 1, 3, 4]
    cheap_scan = {"output_tokens": 100}  # by the tokens it writes, the scan is the cheapest
    assert list(kept(env, "cascade", actions, cheap_scan)) == [2, 3, 4]


def test_snapshots_cache_and_the_running_episode(env):
    env.reset(seed=0, options={"task": "cascade"})
    snapshots = []
    for action in (POLICY, FIND, FIND, ORDERS, REFUNDED, "Done."):
        snapshots.append(snapshot(env))
        env.step(action)
    episode, recorded = env.last, len(env.trajectories)
    env.reset(seed=5)
    state, cache = env.unwrapped.get_state(), ToolCache()
    found = eliminate(env, episode, BOUNDS, snapshots=snapshots, cache=cache)
    assert found == eliminate(env, episode, BOUNDS)
    assert found.kept == (1, 3, 4, 5)
    assert cache.hits > 0
    assert (env.unwrapped.get_state(), len(env.trajectories)) == (state, recorded)


def test_only_some_units_are_tried(env):
    """Each once: the others stay, whatever they are worth."""
    episode = play(env, "cascade", [turn(REFUND[0], ("return_policy", {})), POLICY, SCAN, ORDERS, REFUNDED, "Done."])
    all_units = ((0, 0), (0, 1), 1, 2, 3, 4, 5)

    def left(*among):
        found = eliminate(env, episode, BOUNDS, among=among)
        assert found.replays == len(among)
        return found.kept

    assert left() == all_units
    assert left(1) == ((0, 0), (0, 1), 2, 3, 4, 5)
    assert left((0, 1), 2, 4) == ((0, 0), 1, 3, 4, 5)
    assert left(4) == all_units


def test_literal_elimination_keeps_the_deeds_alone(env):
    episode = play(env, "cascade", [FIND, ORDERS, REFUNDED, "Done."])
    assert eliminate(env, episode, BOUNDS, grounding=False).kept == (2, 3)


def test_what_cannot_be_eliminated_is_named(env):
    failed = play(env, "cascade", ["Done."])
    with pytest.raises(ValueError, match="passed"):
        eliminate(env, failed, BOUNDS)
    passed = play(env, "named", [REFUNDED, "Done."])
    for bounds in ({"calls": 1}, {"tool_calls": 0}, {"tool_calls": float("nan")}, {"tool_calls": "4"}):
        with pytest.raises(ValueError, match="bounds"):
            eliminate(env, passed, bounds)
    assert eliminate(env, passed, {}).kept == (0, 1)


NOISE = [POLICY, LOOK, SCAN, PEOPLE, FIND, ORDERS, "<tool_call>{", call("get_order", order_id="O9")]
SPANS = [
    [OTHER_UP, OTHER_DOWN],
    [OTHER_UP, LOOK, OTHER_DOWN],
    [SILVER, BASIC],
    [turn(("return_policy", {}), ("list_orders", {}))],
]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_noise_of_every_kind_goes(path, data):
    """Noise around a deed whose values stand in the request: just the deed is left."""
    env = RecordTrajectory(make(tasks=path, max_turns=64))
    actions = [REFUNDED]
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, len(actions)))
        more = data.draw(st.sampled_from([[one] for one in NOISE] + SPANS))
        actions[at:at] = more
    episode = play(env, "named", [*actions, "Done."])
    found = eliminate(env, episode, {channel: data.draw(st.floats(1, 1e4)) for channel in CHANNELS})
    check(env, episode, found)
    assert len(found.kept) == 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), env_id=st.sampled_from(["APIAgent-v0", "SQL-v0", "WebLite-v0"]), data=st.data())
def test_oracles_with_repeats_come_back(seed, env_id, data):
    env = RecordTrajectory(gym.make(env_id, disable_env_checker=True, max_turns=64))
    env.reset(seed=seed)
    base, actions = env.unwrapped, []
    for action in base.oracle():
        calls = base.read(action).calls
        reads = bool(calls) and all(c.name in base.tools and base.tools[c.name].reads_only for c in calls)
        actions += [action] * (1 + (reads and data.draw(st.booleans())))
    env.reset(seed=seed)
    for action in actions:
        env.step(action)
    found = eliminate(env, env.last, {"tool_calls": 4, "read_tokens": 400})
    check(env, env.last, found)
    assert len(found.kept) <= len(base.oracle())


def test_names_are_public():
    assert agent_gym.Elimination._fields == ("kept", "trajectory", "replays")
