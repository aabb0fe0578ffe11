"""The leaderboard's tasks: gated on all 200, and compared with the package's own checker."""

import json
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections import Counter

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import agent_gym
from agent_gym import Delete, Step, Swap, ToolCache, Trajectory, Truncate, counterfactuals, restore, snapshot

pytest.importorskip("bfcl_eval", reason="the tasks are in the package bfcl-eval")
pytest.importorskip("mpmath")

from agent_gym.envs.api_agent import APIAgentEnv, bfcl
from agent_gym.tools import Call, ToolError

SAMPLE = [f"multi_turn_base_{n}" for n in (0, 7, 42, 58, 91, 110, 133, 158, 173, 199)]


@pytest.fixture(scope="module")
def env():
    return gym.make("APIAgent-v0", tasks="bfcl")


def play(env, task_id, actions=None):
    """Observations, hashes, results and the last step's values; the oracle's episode by default."""
    observation, info = env.reset(options={"task": task_id})
    seen, results = [observation, info["state_hash"]], []
    reward = terminated = truncated = None
    for action in env.unwrapped.oracle() if actions is None else actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen += [observation, info["state_hash"], json.dumps(info["cost"])]
        results += info["tool_results"]
        if terminated or truncated:
            break
    return seen, results, reward, terminated, truncated, info


def record(env, task_id):
    observation, _ = env.reset(options={"task": task_id})
    steps = []
    for action in env.unwrapped.oracle():
        before = observation
        observation, reward, terminated, truncated, info = env.step(action)
        results, digest = info["tool_results"], info["state_hash"]
        steps.append(Step(before, action, info["cost"], results, digest, terminated, truncated))
    return Trajectory(
        task_id, "APIAgent-v0", {"tasks": "bfcl"}, None, tuple(steps), reward, info["verdict"], info["cost_total"]
    )


def render(env, name, /, **arguments):
    return env.unwrapped.parser.render("", [Call(name, arguments)])


# ---- the gate ----------------------------------------------------------------------------------------------------


def test_every_task_passes_its_gate(env):
    ids = env.unwrapped.task_ids
    assert ids == tuple(f"multi_turn_base_{n}" for n in range(200))
    for task_id in ids:
        seen, results, reward, terminated, _, info = play(env, task_id)
        assert (reward, terminated, info["verdict"]["status"]) == (1.0, True, "pass"), (task_id, info["verdict"])
        assert not any(result["error"] in ("invalid", "unknown_tool") for result in results), task_id
        assert play(env, task_id)[0] == seen, f"{task_id}: two runs differ"
        cheats = env.unwrapped.cheats()
        assert len(cheats) == 3
        for cheat in [*cheats, []]:
            _, _, reward, terminated, _, info = play(env, task_id, cheat or ["", "Done."])
            assert (reward, terminated, info["verdict"]["status"]) == (0.0, True, "fail"), (task_id, cheat)
            assert info["verdict"]["diagnostics"], (task_id, cheat)


def test_verdicts_are_those_of_the_packages_checker(env):
    """The ground truth, each with a random part of its calls left out: the same verdict from both."""
    checker = pytest.importorskip("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker").multi_turn_checker
    entries = {entry["id"]: entry for entry in bfcl._read("BFCL_v4_multi_turn_base.json")}
    rng, verdicts = random.Random(0), Counter()
    for task_id, entry in entries.items():
        task = bfcl._task(task_id)
        for attempt in range(3):
            share = (0.0, 0.1, 0.3)[attempt]
            kept = [[rng.random() >= share for _ in turn] for turn in task.truth]
            texts = [
                [t for t, k in zip(turn, keep, strict=True) if k] for turn, keep in zip(task.truth, kept, strict=True)
            ]
            theirs = checker(
                [[[text] for text in turn] for turn in texts],
                [list(turn) for turn in task.truth],
                entry,
                "multi_turn_base",
                f"agent_gym_{attempt}",
            )["valid"]
            turns = [[task._call(text) for text in turn] for turn in texts]
            env.reset(options={"task": task_id})
            _, _, reward, *_ = play(env, task_id, env.unwrapped._actions(turns))
            assert (reward == 1.0) == theirs, (task_id, texts)
            verdicts[theirs] += 1
    assert min(verdicts.values()) > 150, verdicts


def test_failing_turn_ends_the_episode_and_says_why(env):
    task_id = "multi_turn_base_0"
    env.reset(options={"task": task_id})
    *_, reward, terminated, truncated, info = play(env, task_id, [render(env, "cd", folder="document"), "Done."])
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["verdict"]["reason"] == "wrong_state"
    assert info["verdict"]["diagnostics"][0].startswith("user turn 1: GorillaFileSystem.root: expected ")
    with pytest.raises(RuntimeError):
        env.step("Done.")

    env.reset(options={"task": task_id})
    first = [env.unwrapped.parser.render("", [call]) for call in env.unwrapped.task.goals[0].calls]
    seen, _, _, terminated, _, info = play(env, task_id, [*first, "Done."])
    assert not terminated
    assert seen[-3] == env.unwrapped.task.questions[1]
    *_, info = play(env, task_id, [*first, "Done.", render(env, "pwd"), "Done."])
    assert info["verdict"]["reason"] == "missing_response"
    assert info["verdict"]["score"] == 0.25
    *_, info = play(env, task_id, ["I did it."])
    assert info["verdict"]["reason"] == "no_call"
    *_, info = play(env, task_id, [render(env, "no_such_tool"), "Done."])
    assert info["verdict"]["reason"] == "no_call"


def test_submit_ends_a_user_turn(env):
    env.reset(options={"task": "multi_turn_base_0"})
    submit = render(env, "submit", answer="Done.")
    actions = [submit if action == "Done." else action for action in env.unwrapped.oracle()]
    assert play(env, "multi_turn_base_0", actions)[2] == 1.0


# ---- arguments ---------------------------------------------------------------------------------------------------


def test_arguments_of_make():
    made = gym.make("agent_gym:APIAgent-v0", tasks="bfcl", split="train", budget={"tool_calls": 9})
    assert isinstance(made.unwrapped, bfcl.BFCLEnv)
    assert gym.make(gym.envs.registration.EnvSpec.from_json(made.spec.to_json())).unwrapped.budget["tool_calls"] == 9
    splits = [gym.make("APIAgent-v0", tasks="bfcl", split=s).reset(seed=1) for s in ("train", "validation", "test")]
    assert splits == splits[:1] * 3
    assert isinstance(gym.make("APIAgent-v0").unwrapped, APIAgentEnv)
    for wrong in ({"difficulty": 2}, {"domains": ["shop"]}, {"split": "dev"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            gym.make("APIAgent-v0", tasks="bfcl", **wrong)
    with pytest.raises(TypeError, match="colour"):
        gym.make("APIAgent-v0", tasks="bfcl", colour="red")
    with pytest.raises(ValueError, match="unknown task id"):
        made.reset(options={"task": "multi_turn_base_200"})


def test_tasks_are_drawn_from_the_seed(env):
    drawn = [env.reset(seed=seed)[1]["task_id"] for seed in range(20)]
    assert drawn == [env.reset(seed=seed)[1]["task_id"] for seed in range(20)]
    assert len(set(drawn)) > 10


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(bfcl, "find_spec", lambda name: None)
    for cached in (bfcl._package, bfcl._tasks):
        cached.cache_clear()
    with pytest.raises(ImportError, match=r"pip install --no-deps bfcl-eval, then pip install mpmath \(with") as caught:
        gym.make("APIAgent-v0", tasks="bfcl")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    bfcl._package.cache_clear()


# ---- tools -------------------------------------------------------------------------------------------------------


def test_schemas_are_json_schema(env):
    jsonschema_types = {"object", "array", "string", "integer", "number", "boolean"}

    def types(schema):
        if isinstance(schema, dict):
            if isinstance(schema.get("type"), str):
                yield schema["type"]
            for key, value in schema.items():
                if key != "type":
                    yield from types(value)

    for owner in bfcl.MODULES:
        for tool in bfcl._tools((owner,)).values():
            function = json.loads(tool.schema_json)["function"]
            assert set(function) == {"name", "description", "parameters"}
            assert set(types(function["parameters"])) <= jsonschema_types, tool
    _, info = env.reset(options={"task": "multi_turn_base_0"})
    names = [entry["function"]["name"] for entry in info["tools"]]
    assert {"cd", "grep", "post_tweet", "submit"} <= set(names)
    assert len(names) == len(set(names))


def test_read_only_tools(env):
    every = {name: tool for owner in bfcl.MODULES for name, tool in bfcl._tools((owner,)).items()}
    assert set(every) >= bfcl.READERS
    for task_id in env.unwrapped.task_ids:
        task = bfcl._task(task_id)
        world = task.world
        for call in (call for goal in task.goals for call in goal.calls):
            tool = every[call.name]
            service = world.services[tool.owner].call(call.name, call.arguments)[2]
            assert service is world.services[tool.owner] or not tool.reads_only, call
            world = world.apply({tool.owner: service})


def test_arguments_are_checked():
    tools = bfcl._tools(("GorillaFileSystem", "MathAPI", "TicketAPI"))
    for name, arguments, message in (
        ("cd", {}, "'folder' is missing"),
        ("cd", {"folder": "a", "colour": 1}, "unknown argument 'colour'"),
        ("cd", {"folder": 3}, "type string"),
        ("ls", {"a": 1}, "type boolean"),
        ("add", {"a": True, "b": 1}, "type number"),
        ("mean", {"numbers": [1, "2"]}, "type number"),
        ("power", {"base": 10, "exponent": 10**10}, "within 1000"),
    ):
        with pytest.raises(ToolError, match=message):
            tools[name].validate(arguments)
    assert tools["add"].validate({"a": 1, "b": 2.5}) == {"a": 1, "b": 2.5}
    assert tools["close_ticket"].validate({"ticket_id": "ticket_001"}) == {"ticket_id": "ticket_001"}


def test_exceptions_of_the_package_are_results(env):
    task_id = next(task.id for task in bfcl._tasks().values() if "MathAPI" in task.owners)
    env.reset(options={"task": task_id})
    start = agent_gym.state_hash(env)
    _, results, _, terminated, _, _ = play(env, task_id, [render(env, "power", base=0, exponent=-1)])
    assert not terminated
    assert results[0]["error"] == "failed"
    assert results[0]["content"].startswith("Error during execution: ")
    assert agent_gym.state_hash(env) == start


def test_the_calculator_leaves_no_precision_behind(env):
    import decimal

    import mpmath

    before = decimal.getcontext().prec, mpmath.mp.dps
    service = bfcl.Service.of(bfcl._class("MathAPI")())
    first = service.call("logarithm", {"value": 10, "base": 2, "precision": 40})
    service.call("square_root", {"number": 2, "precision": 77})
    assert first == service.call("logarithm", {"value": 10, "base": 2, "precision": 40})
    assert (decimal.getcontext().prec, mpmath.mp.dps) == before


def test_random_calls_never_raise_and_repeat(env):
    """Well-typed nonsense for every tool, so that the package's methods really run."""
    rng = random.Random(1)
    values = {
        "string": ["", ".", "a", "document", "final_report.pdf", "2024-13-45", "TSLA", "\U0001f600", "km", "JFK"],
        "integer": [0, -1, 1, 7, 10**18],
        "number": [0, -1.5, 2, 1e308],
        "boolean": [True, False],
        "array": [[], [1, 2], ["x"]],
        "object": [{}, {"status": "Open"}, {"priority": {"a": []}}],
    }
    executed = 0
    for task_id in SAMPLE * 3:
        env.reset(options={"task": task_id})
        actions = []
        for tool in env.unwrapped._tools().values():
            known, required = tool._schema["properties"], tool._schema.get("required", [])
            names = [name for name in known if name in required or rng.random() < 0.5]
            actions.append(render(env, tool.name, **{name: rng.choice(values[known[name]["type"]]) for name in names}))
        rng.shuffle(actions)
        first = play(env, task_id, actions)
        assert play(env, task_id, actions) == first
        json.dumps(first, allow_nan=True)
        env.reset(options={"task": task_id})
        for action in actions:
            before = agent_gym.state_hash(env)
            *_, info = env.step(action)
            for result in info["tool_results"]:
                assert info["state_hash"] == before or not env.unwrapped.tools[result["name"]].reads_only, result
        executed += sum(result["error"] in (None, "failed") for result in first[1])
    assert executed > 500


def test_folder_copied_into_itself(env):
    """The package lets an agent build a cycle; nothing may hang or crash on it."""
    task_id = "multi_turn_base_0"
    actions = [render(env, "cp", source="document", destination="document"), render(env, "find", path=".")]
    _, results, *_ = play(env, task_id, [*actions, "Done."])
    assert len(results) == 2
    world = env.unwrapped._world
    ring = world.services["GorillaFileSystem"].call("cd", {"folder": "document"})[2]
    ring = ring.call("mkdir", {"dir_name": "ring"})[2].call("cp", {"source": "ring", "destination": "ring"})[2]
    assert ring.call("find", {"path": "."})[:2] == ("Error during execution: maximum recursion depth exceeded", True)
    assert bfcl._brief(ring.instance.root)
    assert not bfcl._equal(ring.instance.root, pickle.loads(pickle.dumps(ring.instance.root)))


def test_numbers_have_no_longest():
    service = bfcl.Service.of(bfcl._class("TicketAPI")())
    service.instance.count = 10**5000
    assert bfcl.Service.of(service.instance).digest != service.digest
    assert bfcl._brief(service.instance.count) == "(int, too large to write out)"


def test_nesting_has_an_end(env):
    deep = [render(env, "mkdir", dir_name="d") + render(env, "cd", folder="d")] * 60
    _, results, _, terminated, truncated, info = play(env, "multi_turn_base_0", deep)
    assert not terminated
    assert not truncated
    assert "nested too deeply" in results[-1]["content"] or "nested too deeply" in results[-2]["content"]
    copy = pickle.loads(pickle.dumps(snapshot(env)))
    restore(env, copy)
    assert agent_gym.state_hash(env) == info["state_hash"]


# ---- worlds ------------------------------------------------------------------------------------------------------


def test_calls_leave_the_old_world_as_it_was(env):
    for task_id in SAMPLE:
        env.reset(options={"task": task_id})
        start = env.unwrapped._world
        before = {name: bfcl.Service.of(service.instance).digest for name, service in start.services.items()}
        play(env, task_id)
        assert env.unwrapped.task.world is start
        assert before == {name: bfcl.Service.of(service.instance).digest for name, service in start.services.items()}


def test_hash_is_of_the_state_not_of_the_path(env):
    task_id = "multi_turn_base_0"
    start = env.reset(options={"task": task_id})[1]["state_hash"]
    there = play(env, task_id, [render(env, "cd", folder="document")])[5]["state_hash"]
    back = play(env, task_id, [render(env, "cd", folder="document"), render(env, "cd", folder="..")])[5]["state_hash"]
    assert start == back != there  # the current directory is private, but decides what the next call does
    roundabout = [render(env, "cd", folder="document"), render(env, "ls"), render(env, "pwd")]
    assert play(env, task_id, roundabout)[5]["state_hash"] == there


CHILD = """
import pickle, sys
import gymnasium as gym, agent_gym
env = gym.make("APIAgent-v0", tasks="bfcl")
out = []
for snap, actions in pickle.load(sys.stdin.buffer):
    agent_gym.restore(env, snap)
    out.append([agent_gym.state_hash(env)])
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        out[-1].append((observation, reward, terminated, truncated, info))
sys.stdout.buffer.write(pickle.dumps(out))
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_snapshots_go_on_in_another_process(env, hash_seed):
    jobs, expected = [], []
    for task_id in SAMPLE:
        env.reset(options={"task": task_id})
        actions = env.unwrapped.oracle()
        middle = len(actions) // 2
        play(env, task_id, actions[:middle])
        snap = snapshot(env)
        jobs.append((snap, actions[middle:]))
        for _ in range(2):  # the second time from the restored snapshot
            rest = [agent_gym.state_hash(env)]
            rest += [env.step(action) for action in actions[middle:]]
            restore(env, snap)
            assert agent_gym.state_hash(env) == rest[0]
        expected.append(rest)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=pickle.dumps(jobs),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": "Pacific/Auckland"},
    )
    assert pickle.loads(done.stdout) == expected


def test_counterfactuals(env):
    for task_id in SAMPLE[:4]:
        trajectory = record(env, task_id)
        assert trajectory.success
        steps = range(len(trajectory.steps))
        interventions = [*map(Delete, steps), Truncate(0), Swap(0, "Done.")]
        cache = ToolCache()
        found = counterfactuals(env, trajectory, interventions, cache=cache)
        assert found == counterfactuals(env, trajectory, interventions)
        assert cache.hits > 0
        assert all(one.verdict is None or one.verdict["status"] in ("pass", "fail") for one in found)
        assert found[-1].reward == 0.0
        assert any(one.success_credit == 1.0 for one in found)


def test_counterfactuals_in_worker_processes(env):
    trajectory = record(env, SAMPLE[0])
    interventions = [Delete(0), Delete(2), Truncate(1)]
    assert counterfactuals(env, trajectory, interventions, workers=1) == counterfactuals(env, trajectory, interventions)


def test_vector_environment():
    options = {"shared_memory": False}
    envs = gym.make_vec("APIAgent-v0", 2, "async", vector_kwargs=options, tasks="bfcl")
    try:
        observations, _ = envs.reset(seed=[1, 2])
        alone = gym.make("APIAgent-v0", tasks="bfcl")
        assert list(observations) == [alone.reset(seed=seed)[0] for seed in (1, 2)]
        _, rewards, terminated, *_ = envs.step(("Done.", "Done."))
        assert rewards.tolist() == [0.0, 0.0]
        assert terminated.all()
    finally:
        envs.close()


def test_the_clock_stands_still():
    """The age check of the travel service asks for today's date."""
    instance = bfcl._class("TravelAPI")()
    instance._load_scenario({"user_first_name": "A", "user_last_name": "B"})
    service = bfcl.Service.of(instance)
    for born, of_age in (("2006-09-01", True), ("2006-09-02", False)):
        traveller = {"first_name": "A", "last_name": "B", "date_of_birth": born, "passport_number": "US1"}
        response, _, after = service.call("verify_traveler_information", traveller)
        assert json.loads(response)["verification_status"] is of_age
        assert after is service


def test_check_env():
    for made in (gym.make("APIAgent-v0", tasks="bfcl"), bfcl.BFCLEnv()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_env(made.unwrapped, skip_render_check=True)
        assert not [str(w.message) for w in caught], "check_env warns"
