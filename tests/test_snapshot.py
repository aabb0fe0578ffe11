import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import gymnasium as gym
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shop_play import call, make, turn, write_tasks

from agent_gym import restore, snapshot, state_hash
from agent_gym.wrappers import RecordTrajectory, ScalarCost

SEED, STEPS = 12, 9


def stack() -> gym.Env:
    env = make(difficulty=6, budget={"tool_calls": 14, "latency_ms": 9000})
    return ScalarCost(RecordTrajectory(RecordEpisodeStatistics(TimeLimit(env, STEPS))), {"latency_ms": 0.5})


def advance(env: gym.Env, actions: list[str]) -> list[str]:
    """What each action brings, as text; episodes that end are followed by the next one."""
    trail = []
    for action in actions:
        *found, info = env.step(action)
        if "episode" in info:
            info["episode"].pop("t")  # wall time
        trail.append(repr((*found, info, state_hash(env))))
        if found[2] or found[3]:
            trail.append(repr((env.get_wrapper_attr("last"), env.reset())))
    return trail


def resume(snap, actions: list[str]) -> list[str]:
    """The same in another process, in an environment that has played something else."""
    env = stack()
    env.reset(seed=99)
    env.step(call("list_orders"))
    restore(env, snap)
    return advance(env, actions)


@pytest.fixture(scope="module")
def elsewhere():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def _calls():
    env = stack()
    env.reset(seed=SEED)
    tables = env.unwrapped.task.world.tables
    customers, orders = st.sampled_from([*tables["customers"], "C0"]), st.sampled_from([*tables["orders"], "O0"])
    tiers = st.fixed_dictionaries({"customer_id": customers, "tier": st.sampled_from(["gold", "basic"])})
    one_order, tools = st.fixed_dictionaries({"order_id": orders}), ["get_order", "cancel_order", "refund_order"]
    return st.one_of(
        st.tuples(st.just("set_tier"), tiers),
        st.tuples(st.sampled_from(tools), one_order),
        st.tuples(st.just("cancel_orders"), st.fixed_dictionaries({"order_ids": st.lists(orders, max_size=3)})),
        st.tuples(st.just("customer_orders"), st.fixed_dictionaries({"customer_id": customers})),
        st.just(("list_customers", {})),
        st.just(("unknown", {"x": 1})),
    )


calls = _calls()
single, several = calls.map(turn), st.lists(calls, min_size=2, max_size=4).map(lambda many: turn(*many))
broken = st.sampled_from(["<tool_call>{", '<tool_call>{"name": "get_order"}', "<tool_call>5</tool_call>"])
final = st.sampled_from(["Done.", '{"status": "open"}', call("submit", answer={"status": "open"})])
actions = st.lists(st.one_of(single, single, single, several, broken, final), min_size=1, max_size=12)


@given(actions, st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_a_restore_everything_is_the_same(elsewhere, plan, data):
    """Snapshot anywhere, go on, restore (here, and in another process), go on again: byte for byte the same."""
    at = data.draw(st.integers(0, len(plan)))
    env = stack()
    env.reset(seed=SEED)
    advance(env, plan[:at])
    assert env.unwrapped.task.goal  # worked out when first asked for, and kept with the task
    snap = snapshot(env)
    taken = pickle.dumps(snap)
    rest = advance(env, plan[at:])
    restore(env, snap)
    assert advance(env, plan[at:]) == rest
    assert pickle.dumps(snap) == taken  # nothing that came after has changed it
    assert elsewhere.submit(resume, pickle.loads(taken), plan[at:]).result() == rest


@given(actions, st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_many_branches_from_one_snapshot(plan, extra):
    env = stack()
    env.reset(seed=SEED)
    snap = snapshot(env)
    first = advance(env, plan)
    restore(env, snap)
    advance(env, [call("list_orders")] * extra)
    restore(env, snap)
    assert advance(env, plan) == first


def test_wrapper_counters_come_back():
    env = stack()
    env.reset(seed=SEED)
    for _ in range(STEPS - 1):
        env.step(call("get_order", order_id="O0"))
    snap = snapshot(env)
    assert env.step("<tool_call>")[3] is True
    restore(env, snap)
    *_, truncated, info = env.step("<tool_call>")
    assert truncated
    assert info["episode"]["l"] == STEPS
    assert [len(one.steps) for one in env.get_wrapper_attr("trajectories")] == [STEPS, STEPS]


def test_snapshot_is_immutable():
    env = make()
    env.reset(seed=0)
    snap = snapshot(env)
    with pytest.raises(AttributeError):
        snap.env = ()
    assert isinstance(snap.env, tuple)


def test_other_wrappers_are_refused():
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"under the wrappers .*OrderEnforcing.*, this environment has \[\]"):
        restore(env.unwrapped, snapshot(env))
    with pytest.raises(ValueError, match="TimeLimit"):
        restore(env, snapshot(TimeLimit(env, 5)))


def test_restore_before_the_first_reset():
    env, fresh = make(), make()
    env.reset(seed=4)
    restore(fresh, snapshot(env))
    assert fresh.step(call("list_orders")) == env.step(call("list_orders"))
    assert fresh.reset() == env.reset()  # the random generator came along


def test_state_hash_does_not_know_the_path(tmp_path):
    env = make(tasks=write_tasks(tmp_path / "t"))
    writes = [call("set_tier", customer_id="C1001", tier="silver"), call("refund_order", order_id="O2001")]
    found = []
    for order in (
        writes,
        writes[::-1],
        [call("list_orders"), turn(*[("get_order", {"order_id": "O2001"})] * 2), *writes],
    ):
        _, info = env.reset(options={"task": "named"})
        for action in order:
            env.step(action)
        assert state_hash(env) != info["state_hash"]
        found.append(state_hash(env))
    assert len(set(found)) == 1
    env.reset(options={"task": "named"})
    start = state_hash(env)
    env.step(writes[0])
    env.step(call("set_tier", customer_id="C1001", tier="basic"))
    assert state_hash(env) == start


@given(
    st.lists(
        st.tuples(st.sampled_from(["O2001", "O2002", "O2003", "O9"]), st.sampled_from(["open", "sent", None])),
        max_size=8,
    )
)
@settings(max_examples=100, deadline=None)
def test_world_hash_is_of_the_content_alone(changes):
    """Puts and deletes in any order: the hash is that of a world built from the result."""
    from agent_gym.envs.api_agent.domains.shop import Order
    from agent_gym.envs.api_agent.world import World

    rows = [Order(id=f"O200{n}", customer="C1", item="Lamp", status="sent") for n in (1, 2, 3)]
    world, plain = World.of({"orders": rows}), {row.id: row for row in rows}
    for key, status in changes:
        row = None if status is None else Order(id=key, customer="C1", item="Lamp", status=status)
        world = world.apply({("orders", key): row})
        plain.pop(key, None)
        if row is not None:
            plain[key] = row
    built = World.of({"orders": plain.values()})
    assert world.hash == built.hash
    assert list(world.tables["orders"]) == list(built.tables["orders"])
    assert world.differences(built) == {}
    assert pickle.loads(pickle.dumps(world)).hash == world.hash


def test_transaction_sees_its_own_changes():
    from agent_gym import ToolError
    from agent_gym.envs.api_agent.domains.shop import Order
    from agent_gym.envs.api_agent.world import Transaction, World

    row = Order(id="O1", customer="C1", item="Lamp", status="sent")
    db = Transaction(World.of({"orders": [row]}))
    db.add("orders", row.model_copy(update={"id": "O0"}))
    assert [r.id for r in db.scan(Order, "orders")] == ["O0", "O1"]
    with pytest.raises(ToolError, match="already"):
        db.add("orders", row.model_copy(update={"id": "O0"}))
    db.update("orders", row, status="open")
    assert [r.id for r in db.find(Order, "orders", status="open")] == ["O1"]
    db.delete("orders", row)
    with pytest.raises(ToolError, match="there is no 'O1'"):
        db.get(Order, "orders", "O1")
    db.add("orders", row)
    assert db.get(Order, "orders", "O1") == row
