import pickle

import gymnasium as gym
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_play import call, make, turn, write_tasks

from agent_gym import restore, snapshot, state_hash
from agent_gym.wrappers import RecordTrajectory, ScalarCost

SEED, STEPS = 12, 9


def stack() -> gym.Env:
    env = make(difficulty=6, budget={"tool_calls": 14, "latency_ms": 9000})
    return ScalarCost(RecordTrajectory(RecordEpisodeStatistics(TimeLimit(env, STEPS))), {"latency_ms": 0.5})


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
