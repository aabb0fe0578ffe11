import json
import math
import pickle
import warnings

import gymnasium as gym
import pytest
from shop_play import call, make, play, turn, write_tasks

from agent_gym import CHANNELS, Delete, InfraError, Trajectory, counterfactuals, read_trajectories, restore, snapshot
from agent_gym.wrappers import RecordTrajectory, ScalarCost, WallClock

LIST = call("list_orders")


def test_scalar_cost_is_the_weighted_sum():
    plain, env = make(), ScalarCost(make(), {"tool_calls": 2.0, "latency_ms": 0.5})
    assert plain.reset(seed=1)[0] == env.reset(seed=1)[0]
    expected, info = plain.step(turn(("list_orders", {}), ("x", {})))[-1], None
    info = env.step(turn(("list_orders", {}), ("x", {})))[-1]
    assert type(info["cost"]) is float
    assert info["cost"] == 2.0 * 2 + 0.5 * expected["cost"]["latency_ms"]
    assert info["costs"] == expected["cost"]
    assert info["cost_total"] == expected["cost_total"]
    assert ScalarCost(make()).reset(seed=1)[1]["cost"] == 0.0


def test_scalar_cost_counts_calls_by_default():
    env = ScalarCost(make())
    env.reset(seed=1)
    assert env.step(turn(("list_orders", {}), ("list_orders", {})))[-1]["cost"] == 2.0
    with pytest.raises(ValueError, match=r"'calls'.*tool_calls"):
        ScalarCost(make(), {"calls": 1.0})


def test_wall_clock_adds_real_milliseconds():
    env = WallClock(make())
    env.reset(seed=1)
    info = env.step(LIST)[-1]
    assert 0.0 < info["wall_ms"] < 10_000.0
    assert set(info["cost"]) == set(CHANNELS)


def test_recording_belongs_to_the_snapshot(tmp_path):
    env = RecordTrajectory(make(tasks=write_tasks(tmp_path / "t")))
    env.reset(options={"task": "named"})
    env.step(call("get_order", order_id="O2001"))
    snap = snapshot(env)
    env.step(LIST)
    env.step("Given up.")
    restore(env, snap)
    env.step(call("refund_order", order_id="O2001"))
    env.step("Done.")
    lost, won = env.trajectories
    assert [one.reward for one in env.trajectories] == [0.0, 1.0]
    assert [step.tool_results[0]["name"] for step in won.steps[:2]] == ["get_order", "refund_order"]
    assert [step.tool_results[0]["name"] for step in lost.steps[:2]] == ["get_order", "list_orders"]
    assert won.steps[1].observation == lost.steps[1].observation == won.steps[0].tool_results[0]["content"]


def test_recording_is_not_changed_through_info():
    env = RecordTrajectory(make())
    env.reset(seed=0)
    for action in (call("get_orders", order_ids=["O1"]), "end"):
        info = env.step(action)[-1]
        before = env.last
        for result in info["tool_results"]:
            result["arguments"]["order_ids"].append("spoilt")
        info["cost"].clear()
    assert before.steps[0].tool_results[0]["arguments"] == {"order_ids": ["O1"]}
    assert set(before.steps[0].cost) == set(CHANNELS)


@pytest.mark.filterwarnings("ignore:.*The reward is a NaN value")  # Gymnasium's checker; that is what infra means
def test_infra_is_recorded_without_a_reward(monkeypatch):
    env = RecordTrajectory(make())

    def ill(answer):
        raise InfraError("ill")

    monkeypatch.setattr(env.unwrapped, "_verify", ill)
    one = play(env, None, ["Done."])
    assert one.reward is None
    assert one.verdict["status"] == "infra"
    assert Trajectory.from_json(one.to_json()) == one
    (found,) = counterfactuals(env, one, [Delete(0)])
    assert math.isnan(found.success_credit)


def test_appending_after_a_crash_drops_the_cut_line(tmp_path):
    path = tmp_path / "t.jsonl"
    play(RecordTrajectory(make(), path), None, ["a"], seed=1)
    play(RecordTrajectory(make(), path), None, ["b"], seed=2)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut, kept, dropped in (
        (first, 1, 0),
        (first + 1, 1, 1),
        (len(whole) - 5, 1, 1),
        (len(whole) - 1, 2, 0),
        (5, 0, 1),
    ):
        path.write_bytes(whole[:cut])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            play(RecordTrajectory(make(), path), None, ["c"], seed=3)
        assert sum("cut off" in str(one.message) for one in caught) == dropped
        assert [one.steps[0].action for one in read_trajectories(path)] == [*["a", "b"][:kept], "c"]


def test_unfinished_episodes_are_not_recorded():
    env = RecordTrajectory(make())
    assert env.last is None
    env.reset(seed=0)
    env.step(LIST)
    assert play(env, None, ["end"], seed=1).seed == 1
    assert [len(one.steps) for one in env.trajectories] == [1]


def test_wrappers_travel_in_the_spec_and_pickle(tmp_path):
    path = tmp_path / "t.jsonl"
    env = WallClock(ScalarCost(RecordTrajectory(make(), path), {"tool_calls": 3.0}))
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert str(again) == str(env)
    again.reset(seed=0)
    assert again.step(LIST)[-1]["cost"] == 3.0
    copied = pickle.loads(pickle.dumps(again))
    copied.step("end")
    again.step("end")
    assert [one.seed for one in read_trajectories(path)] == [0, 0]
    assert len(path.read_text().splitlines()) == 2
    assert json.loads(path.read_text().splitlines()[0])["task_id"]


def test_recording_needs_gym_make():
    with pytest.raises(ValueError, match=r"gym\.make"):
        RecordTrajectory(make().unwrapped.__class__(domains=["shop"]))
