"""The environments as SkyRL plays them, through skyrl-gym's own registry. Without the package skyrl-gym these tests are
skipped, unless AGENT_GYM_REQUIRE_SKYRL=1."""

import importlib.util
import json
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from adapters import adapter, sample
from sandbox_backends import require
from shop_play import call, turn

import agent_gym

ROOT = Path(__file__).parents[1]
KWARGS = {
    "APIAgent-v0": {"budget": {"tool_calls": 20, "latency_ms": 5000}},
    "SQL-v0": {"tasks": "SQL-mini-v1"},
    "WebLite-v0": {},
    "CodeAgent-v0": {"sandbox": "bubblewrap"},
}


@pytest.fixture
def skyrl():
    """The adapter; what a test registers is forgotten after it."""
    ours = adapter("skyrl", "skyrl_gym")
    import skyrl_gym

    before = set(skyrl_gym.registry)
    yield ours
    for name in set(skyrl_gym.registry) - before:
        skyrl_gym.envs.deregister(name)


def begun(name, **extras):
    """An environment as SkyRL's generator makes it, and its first messages."""
    import skyrl_gym

    env = skyrl_gym.make(name, env_config={}, extras=extras)
    return env, *env.init([{"role": "user", "content": "the data set's"}])


@pytest.mark.parametrize("env_id", KWARGS)
def test_the_same_episodes_as_through_gym_make(skyrl, env_id, tmp_path):
    if env_id == "WebLite-v0":
        pytest.importorskip("selectolax")
    if env_id == "CodeAgent-v0":
        require("bubblewrap")
    skyrl.register(env_id, **KWARGS[env_id])
    skyrl.write_dataset(tmp_path / "train.jsonl", env_id, 2)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len({row["task"] for row in rows}) == 2
    direct = gym.make(env_id, **KWARGS[env_id])
    for row in rows:
        prompt, env_class = row.pop("prompt"), row.pop("env_class")
        _, told = direct.reset(options={"task": row["task"]})
        env, chat, info = begun(env_class, **row)
        assert chat == prompt
        assert [one["role"] for one in chat] == ["system", "user"]
        assert chat[1] == told["messages"][1]
        assert {name: info[name] for name in told} == told  # task_hash and state_hash among them
        assert info["task_hash"] == row["task_hash"]
        invented = call("invented", x=1)
        for action in [invented, *direct.unwrapped.oracle()]:
            text, reward, terminated, truncated, told = direct.step(action)
            found = env.step(action)
            assert (found["reward"], found["done"]) == (reward, terminated or truncated)
            assert found["metadata"] == {**told, "text": text}  # costs, hashes, results, verdict
            if found["done"]:
                assert found["observations"] == []
            else:
                (heard,) = found["observations"]
                assert heard["role"] == "user"
                for result in told["tool_results"]:
                    assert f"<tool_response>\n{result['content']}\n</tool_response>" in heard["content"]
            if action == invented:
                assert "there is no tool 'invented'" in heard["content"]
        metrics = env.get_metrics()
        assert (found["reward"], metrics["success"]) == (1.0, 1.0)
        assert {name: metrics[name] for name in told["cost_total"]} == told["cost_total"]
        env.close()
    direct.close()


def test_a_seed_draws_the_task(skyrl):
    skyrl.register("APIAgent-v0", "shop", domains=["shop"])
    _, told = gym.make("APIAgent-v0", domains=["shop"]).reset(seed=5)
    _, _, info = begun("shop", seed=5)
    assert (info["task_id"], info["task_hash"]) == (told["task_id"], told["task_hash"])


@pytest.mark.parametrize(("bound", "in_budget"), [(1, 0.0), (9, 1.0)])
def test_metrics(skyrl, bound, in_budget):
    from skyrl_gym.metrics import aggregate_for_environment

    skyrl.register("APIAgent-v0", domains=["shop"], budget={"tool_calls": bound}, on_budget="record")
    env, *_ = begun("APIAgent-v0", seed=1)
    assert env.get_metrics()["success"] == 0.0  # SkyRL may find the prompt too long, and play no turn
    oracle = env.env.unwrapped.oracle()
    for action in oracle:
        found = env.step(action)
    whole = env.get_metrics()
    assert whole == {
        "success": 1.0, "in_budget_success": in_budget, "turns": float(len(oracle)), **found["metadata"]["cost_total"]
    }  # fmt: skip
    lost, *_ = begun("APIAgent-v0", seed=1)
    lost.step("Done.")
    mean = aggregate_for_environment("APIAgent-v0", [whole, lost.get_metrics()])
    assert (mean["success"], mean["in_budget_success"]) == (0.5, in_budget / 2)


def test_skyrls_turn_limit_holds_unless_the_environment_has_its_own(skyrl):
    skyrl.register("APIAgent-v0")
    skyrl.register("APIAgent-v0", "own", max_turns=3)
    look = turn(("list_customers", {}))
    for name, turns in (("APIAgent-v0", 2), ("own", 3)):
        env, *_ = begun(name, seed=1, max_turns=2)
        done = [env.step(look)["done"] for _ in range(turns)]
        assert done == [False] * (turns - 1) + [True]
        assert env.get_metrics()["success"] == 0.0


def test_there_is_no_reward_without_a_verdict(skyrl, monkeypatch):
    skyrl.register("APIAgent-v0")
    env, *_ = begun("APIAgent-v0", seed=1)

    def broken(answer):
        raise agent_gym.InfraError("the machinery failed")

    monkeypatch.setattr(env.env.unwrapped, "_verify", broken)
    with pytest.raises(agent_gym.InfraError, match="the machinery failed"):
        env.step("Done.")


def test_mistakes_are_told(skyrl, tmp_path):
    import skyrl_gym

    for env_id, kwargs, error, says in (
        ("APIAgent-v1", {}, gym.error.Error, "`v1` for environment `APIAgent` doesn't exist"),
        ("SQL-v0", {"tasks": "SQL-mini-v9"}, ValueError, "SQL-mini-v9"),
        ("SQL-v0", {"dificulty": 1}, TypeError, "has no keyword argument 'dificulty'"),
    ):
        with pytest.raises(error, match=says):
            skyrl.register(env_id, **kwargs)
    skyrl.register("APIAgent-v0", domains=["shop"])
    with pytest.raises(skyrl_gym.error.RegistrationError, match="already registered"):
        skyrl.register("APIAgent-v0")
    for extras in ({}, {"task": "a", "seed": 1}):
        with pytest.raises(ValueError, match="needs task, the id of a task, or seed, which draws one"):
            begun("APIAgent-v0", **extras)
    with pytest.raises(ValueError, match="unknown task id 'nope'"):
        begun("APIAgent-v0", task="nope")
    with pytest.raises(ValueError, match="register the environment with the arguments"):
        begun("APIAgent-v0", seed=1, task_hash="0" * 32)
    with pytest.raises(ValueError, match=r"train\.csv: the data set is written as JSON lines"):
        skyrl.write_dataset(tmp_path / "train.csv", "APIAgent-v0", 1)
    with pytest.raises(skyrl_gym.error.Error, match="nope"):
        skyrl.write_dataset(tmp_path / "train.jsonl", "nope", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skyrl_gym", None)
    monkeypatch.delitem(sys.modules, "agent_gym.integrations.skyrl", raising=False)
    with pytest.raises(ImportError, match=r"needs skyrl-gym: pip install 'agent-gym\[skyrl\]'"):
        importlib.import_module("agent_gym.integrations.skyrl")


def test_the_sample_of_the_page_prints_what_it_shows(skyrl, tmp_path):
    done, shown = sample("skyrl.md", tmp_path)
    assert done.stdout == shown, done.stderr
