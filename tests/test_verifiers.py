"""The environments in verifiers, played through its command and its own endpoint against a server that plays the
oracle. Without the package verifiers these tests are skipped, unless AGENT_GYM_REQUIRE_VERIFIERS=1."""

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium as gym
import pytest
from adapters import SETS, adapter, playable
from shop_play import TASKS, write_tasks
from test_evaluation import serving

import agent_gym
from agent_gym.envs.api_agent import APIAgentEnv
from agent_gym.tasksets import open_set

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ours():
    return adapter("verifiers", "verifiers")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A file with four tasks."""
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", TASKS[:4])


def played(env, url, limit=None):
    """The episodes of an environment, played by the model behind a server."""
    import verifiers.v1 as vf

    ctx = vf.ModelContext(client=vf.EvalClientConfig(base_url=url.removeprefix("openai:m@")), model="m")

    async def run():
        async with env.serving():
            tasks = list(env.taskset if limit is None else env.taskset.take(limit))
            slots = [slot for task in tasks for slot in env.slots(task)]
            return await asyncio.gather(*(env.run_slot(slot, ctx) for slot in slots))

    return [episode.traces[0] for episode in asyncio.run(run())]


def rewards(traces):
    return [trace.reward for trace in traces]


# ---- the same episodes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env_id", "tasks", "kwargs"), SETS)
def test_episodes_are_those_of_the_environment(ours, tmp_path, env_id, tasks, kwargs):
    tasks = playable(env_id, tasks, tmp_path)
    direct = gym.make(env_id, tasks=tasks, **kwargs)
    with serving(open_set(tasks, env_id)) as (server, url):
        traces = played(ours.load_environment(env_id, tasks, **kwargs), url, limit=2)
    assert [trace.task.data.id for trace in traces] == list(direct.unwrapped.task_ids[:2])
    for trace in traces:
        request, first = direct.reset(options={"task": trace.task.data.id})
        for action in direct.unwrapped.oracle():
            reward, _, _, last = direct.step(action)[1:]
        assert (trace.ok, trace.reward, reward) == (True, 1.0, 1.0)
        assert trace.metrics == {"in_budget_success": 1.0, **last["cost_total"]}
        assert trace.info["agent_gym"] == {
            "task_id": trace.task.key, "task_hash": first["task_hash"], "turns": trace.num_turns,
            **{name: last[name] for name in ("state_hash", "cost_total", "budget_left", "verdict")},
        }  # fmt: skip
        assert trace.task.data.task_hash == first["task_hash"]
        assert (trace.num_branches, trace.messages[1].content) == (1, request)
    assert server.seen[0]["tools"] == direct.reset(options={"task": traces[0].task.data.id})[1]["tools"]


# ---- what models do --------------------------------------------------------------------------------------------------


def call(name, arguments="{}"):
    return {"id": "a", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_doing_nothing_fails_and_inventions_are_answered(ours, shop):
    with serving(open_set(shop, "APIAgent-v0")) as (server, url):
        server.oracle = {request: ["Done."] for request in server.oracle}
        assert rewards(played(ours.load_environment("APIAgent-v0", shop), url)) == [0.0] * 4
        odd = '<tool_call>{"name":"win","arguments":{}}</tool_call>'
        server.oracle = {request: [odd, "Done."] for request in server.oracle}
        (trace,) = played(ours.load_environment("APIAgent-v0", shop), url, limit=1)
    assert "there is no tool 'win'" in trace.messages[3].content
    assert (trace.reward, trace.metrics["tool_calls"], trace.num_branches) == (0.0, 1.0, 1)


def test_a_success_above_the_budget_is_none_in_the_budget(ours, shop):
    env = ours.load_environment("APIAgent-v0", shop, budget={"tool_calls": 1}, on_budget="record")
    with serving(open_set(shop, "APIAgent-v0")) as (_, url):
        traces = played(env, url)
    assert rewards(traces) == [1.0] * 4
    for trace in traces:
        assert trace.metrics["in_budget_success"] == float(trace.metrics["tool_calls"] <= 1)
    assert {trace.metrics["tool_calls"] for trace in traces} == {1.0, 3.0}


def test_a_limit_of_verifiers_is_a_failure(ours, shop):
    env = ours.load_environment("APIAgent-v0", shop)
    env._agent_specs["agent"].max_turns = env.config.agent.max_turns = 1
    with serving(open_set(shop, "APIAgent-v0")) as (_, url):
        (trace,) = played(env, url, limit=1)
    assert (trace.ok, trace.reward, trace.stop_condition) == (True, 0.0, "max_turns")
    assert trace.info["agent_gym"]["verdict"]["reason"] == "limit"


def test_no_verdict_is_an_error_and_no_reward(ours, shop, monkeypatch):
    judge = APIAgentEnv._verify

    def broken(env, answer):
        if env.task.id == "named":
            raise agent_gym.InfraError("the machinery failed")
        return judge(env, answer)

    monkeypatch.setattr(APIAgentEnv, "_verify", broken)
    with serving(open_set(shop, "APIAgent-v0")) as (_, url):
        traces = played(ours.load_environment("APIAgent-v0", shop), url)
    (lost,) = [trace for trace in traces if not trace.ok]
    assert (lost.task.key, lost.rewards, lost.last_error.type) == ("named", {}, "HarnessError")
    assert "the machinery failed" in lost.last_error.message
    assert [trace.reward for trace in traces if trace.ok] == [1.0] * 3


def test_a_dead_server_is_an_error_of_the_provider(ours, shop):
    with serving(open_set(shop, "APIAgent-v0")) as (_, url):
        pass
    (trace,) = played(ours.load_environment("APIAgent-v0", shop), url, limit=1)
    assert (trace.ok, trace.rewards, trace.last_error.type) == (False, {}, "ProviderError")


def test_environments_work_side_by_side(ours, shop, monkeypatch):
    together, step = threading.Barrier(4, timeout=30), APIAgentEnv.step

    def waits(env, action):
        together.wait()
        return step(env, action)

    monkeypatch.setattr(APIAgentEnv, "step", waits)
    with serving(open_set(shop, "APIAgent-v0")) as (server, url):
        server.oracle = {request: ["Done."] for request in server.oracle}
        assert rewards(played(ours.load_environment("APIAgent-v0", shop), url)) == [0.0] * 4


# ---- the command -----------------------------------------------------------------------------------------------------


def command(cwd, *arguments):
    """The exit status of ``vf-eval``, and what it printed."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "300", "PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    line = [sys.executable, "-c", "from verifiers.v1.cli.eval.main import main; main()", "agent-gym-verifiers"]
    done = subprocess.run([*line, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_the_command_plays_a_task_set(ours, shop, tmp_path):
    with serving(open_set(shop, "APIAgent-v0")) as (_, url):
        code, printed = command(
            tmp_path, "--env.taskset.env-id", "APIAgent-v0", "--env.taskset.tasks", shop,
            "--env.taskset.env-kwargs", '{"budget": {"tool_calls": 3}}', "-m", "m", "-n", "2",
            "--client.base-url", url.removeprefix("openai:m@"), "--no-push", "--no-rich",
        )  # fmt: skip
    assert code == 0, printed
    (file,) = tmp_path.glob("outputs/*/traces.jsonl")
    assert len(re.findall(r"reward=1\.000", printed)) == 2, printed
    for line in file.read_text().splitlines():
        assert json.loads(line)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("APIAgent-v0", "APIAgent-mini-v9"), "there is no task set 'APIAgent-mini-v9'; there are APIAgent-mini-v1"),
        (("SQL-v0", "APIAgent-mini-v1"), "the task set APIAgent-mini-v1 is of APIAgent-v0, not of SQL-v0"),
        (("Nothing-v0", "tasks.jsonl"), "Environment `Nothing` doesn't exist."),
        (("APIAgent-v0", ""), "nothing to play: give --env.taskset.env-id"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(ours, arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ours.load_environment(*arguments)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers", None)
    monkeypatch.delitem(sys.modules, "agent_gym.integrations.verifiers", raising=False)
    with pytest.raises(ImportError, match=re.escape("pip install 'agent-gym[verifiers]'")):
        importlib.import_module("agent_gym.integrations.verifiers")
