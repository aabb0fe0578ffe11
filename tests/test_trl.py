"""The environments in TRL. Without the package trl these tests are skipped, unless AGENT_GYM_REQUIRE_TRL=1."""

import json
import os
import pickle
import re
import subprocess
import sys
from inspect import getmembers, isfunction
from pathlib import Path

import gymnasium as gym
import pytest
from adapters import adapter
from sandbox_backends import require

import agent_gym  # noqa: F401
from agent_gym import CHANNELS, state_hash
from agent_gym.tasksets import open_set
from agent_gym.verdict import InfraError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENVIRONMENTS = {"APIAgent-v0": {}, "CodeAgent-v0": {"sandbox": "bubblewrap"}, "SQL-v0": {}, "WebLite-v0": {}}


@pytest.fixture(scope="module")
def spec():
    return adapter("trl", "trl").spec


@pytest.fixture(scope="module")
def few(spec):
    """Eight tasks, of several domains."""
    return spec("APIAgent-v0", open_set("APIAgent-mini-v1").task_ids[:8], split="test", budget={"tool_calls": 6})


def tools_of(episode):
    """The methods that TRL offers to the model."""
    names = [name for name, _ in getmembers(type(episode), isfunction) if name != "reset" and not name.startswith("_")]
    return {name: getattr(episode, name) for name in names}


def message(*calls, content=""):
    """An assistant's message, as TRL parses it."""
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": content, **({"tool_calls": made} if made else {})}


def conversation(episode, row, turns):
    """What TRL makes of the turns that a model writes: it calls the methods, and knows the names it offered."""
    episode.reset(**row)
    tools, messages = tools_of(episode), []
    for turn in turns:
        messages.append(turn)
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            try:
                content = tools[function["name"]](**function["arguments"])
            except Exception as error:
                content = str({"error": str(error)})
            messages.append({"role": "tool", "name": function["name"], "content": content})
    return messages


def played(env, row, turns):
    """The same turns in the environment: what the tools said, the reward, the last info."""
    env.reset(options={"task": row["task_id"]})
    said, reward, info = [], 0.0, {}
    for turn in turns:
        _, reward, terminated, truncated, info = env.step(turn)
        said += [one["content"] for one in info["tool_results"]]
        if terminated or truncated:
            break
    return said, reward, info


def measured(reward, messages, row):
    """The reward of a conversation, and what is logged beside it."""
    metrics, columns = {}, {}
    (value,) = reward(
        completions=[messages], log_metric=metrics.__setitem__, log_extra=columns.__setitem__,
        prompts=[row["prompt"]], **{name: [row[name]] for name in row if name != "prompt"},
    )  # fmt: skip
    return value, metrics, columns


def oracle(env, row):
    """The oracle's turns as messages."""
    env.reset(options={"task": row["task_id"]})
    base = env.unwrapped
    turns = [base.read(action) for action in base.oracle()]
    return [message(*((call.name, dict(call.arguments)) for call in turn.calls), content=turn.text) for turn in turns]


# ---- the same episodes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_an_episode_is_the_environments_own(spec, env_id):
    if env_id == "CodeAgent-v0":
        require("bubblewrap")
    ids = open_set(f"{env_id[:-3]}-mini-v1").task_ids[::8]
    kwargs = {"split": "test", **ENVIRONMENTS[env_id]}
    made = spec(env_id, ids, **kwargs)
    episode, (reward,) = pickle.loads(pickle.dumps((made.environment_factory, made.reward_funcs)))
    episode = episode()
    env = gym.make(env_id, **kwargs)
    rewards = []
    for row in made.train_dataset:
        for turns in (oracle(env, row), [message(content="Done.")]):
            messages = conversation(episode, row, turns)
            said, earned, info = played(env, row, turns)
            assert [one["content"] for one in messages if one["role"] == "tool"] == said
            assert state_hash(episode._env) == info["state_hash"]
            value, metrics, columns = measured(reward, messages, row)
            assert value == earned
            assert {channel: metrics[f"costs/{channel}"] for channel in CHANNELS} == info["cost_total"]
            assert {channel: columns[channel] for channel in CHANNELS} == {
                channel: [spent] for channel, spent in info["cost_total"].items()
            }
            assert columns["verdict"] == [info["verdict"]["reason"]]
            assert state_hash(reward._env) == info["state_hash"]
            rewards.append(value)
    assert set(rewards) == {0.0, 1.0}


def test_a_turn_is_charged_whole(few):
    """Its words, its reasoning, and several calls, of which TRL runs each for itself."""
    row, env = few.train_dataset[1], gym.make("APIAgent-v0", split="test", budget={"tool_calls": 6})
    turns = oracle(env, row)
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for turn in turns[:-1] for call in turn["tool_calls"]
    ]
    thoughtful = {**message(*calls[:2], content="I look it up."), "reasoning_content": "Two at once."}
    turns = [thoughtful, message(*calls[2:]), turns[-1]]
    messages = conversation(few.environment_factory(), row, turns)
    said, earned, info = played(env, row, turns)
    value, metrics, _ = measured(few.reward_funcs[0], messages, row)
    assert value == earned == 1.0
    assert [one["content"] for one in messages if one["role"] == "tool"] == said
    assert {channel: metrics[f"costs/{channel}"] for channel in CHANNELS} == info["cost_total"]


def test_calls_that_cannot_be_are_charged_as_the_environment_does(few):
    """An invented tool, a tool of another task, a wrong argument: TRL answers the first, the environment the rest."""
    row, env = few.train_dataset[0], gym.make("APIAgent-v0", split="test", budget={"tool_calls": 6})
    _, info = env.reset(options={"task": row["task_id"]})
    own = {tool["function"]["name"] for tool in info["tools"]}
    foreign = next(name for name in tools_of(few.environment_factory()) if name not in own)
    turns = [
        message(("no_such_tool", {})),
        message((foreign, {"x": 1})),
        message(("submit", {"wrong": 1})),
        message(content="<tool_call>{</tool_call>"),
    ]
    messages = conversation(few.environment_factory(), row, turns)
    said, earned, info = played(env, row, turns)
    told = [one["content"] for one in messages if one["role"] == "tool"]
    assert "no_such_tool" in told[0]
    assert told[1:] == said[1:3]
    assert f"there is no tool '{foreign}'" in told[1]
    assert "submit: argument 'wrong'" in told[2]
    value, metrics, columns = measured(few.reward_funcs[0], messages, row)
    assert (value, earned, columns["verdict"]) == (0.0, 0.0, ["unanswered"])
    assert {channel: metrics[f"costs/{channel}"] for channel in CHANNELS} == info["cost_total"]


def test_nothing_counts_after_the_end(few):
    row, env = few.train_dataset[0], gym.make("APIAgent-v0", split="test", budget={"tool_calls": 6})
    episode, (reward,) = few.environment_factory(), few.reward_funcs
    read = ("return_policy", {}) if "return_policy" in tools_of(episode) else next(iter(tools_of(episode)))
    early = [message(("submit", {"answer": "x"})), *oracle(env, row)]
    messages = conversation(episode, row, early)
    assert {"the episode is over" in one["content"] for one in messages[2:] if one["role"] == "tool"} == {True}
    _, earned, info = played(env, row, early)
    value, metrics, columns = measured(reward, messages, row)
    assert value == earned == 0.0
    assert metrics["costs/tool_calls"] == info["cost_total"]["tool_calls"] == 1.0

    dear = [*[message(read)] * 7, message(content="Done.")]
    messages = conversation(episode, row, dear)
    assert "the budget was used up" in messages[13]["content"]
    _, earned, info = played(env, row, dear)
    value, metrics, columns = measured(reward, messages, row)
    assert (value, columns["verdict"]) == (earned, ["budget"])
    assert metrics["costs/tool_calls"] == info["cost_total"]["tool_calls"] == 7.0


def test_a_reward_may_ask_for_the_budget_too(spec):
    row, env = None, gym.make("APIAgent-v0", split="test")
    ids = open_set("APIAgent-mini-v1").task_ids[1:2]
    kwargs = {"split": "test", "budget": {"tool_calls": 1}, "on_budget": "record"}
    for name, worth in (("success", 1.0), ("in_budget_success", 0.0)):
        made = spec("APIAgent-v0", ids, reward=name, **kwargs)
        row = made.train_dataset[0]
        messages = conversation(made.environment_factory(), row, oracle(env, row))
        assert made.reward_funcs[0].__name__ == name
        assert measured(made.reward_funcs[0], messages, row)[0] == worth
    enough = spec("APIAgent-v0", ids, reward="in_budget_success", **{**kwargs, "budget": {"tool_calls": 9}})
    assert measured(enough.reward_funcs[0], messages, row)[0] == 1.0


def test_no_verdict_is_no_reward(few, monkeypatch):
    row, (reward,) = few.train_dataset[0], few.reward_funcs
    turns = oracle(gym.make("APIAgent-v0", split="test"), row)
    sound = conversation(few.environment_factory(), row, turns)

    def fails(*_):
        raise InfraError("the machine is gone")

    with monkeypatch.context() as patch:
        episode = few.environment_factory()
        patch.setattr(type(episode._env.unwrapped), "_execute", fails)
        broken = conversation(episode, row, turns)
    metrics, columns = {}, {}
    rewards = reward([sound, broken], [row["task_id"]] * 2, metrics.__setitem__, columns.__setitem__)
    assert rewards == [1.0, None]
    assert (metrics["infra"], columns["verdict"]) == (0.5, ["passed", "infra"])
    assert metrics["costs/tool_calls"] == columns["tool_calls"][0]  # of those that were judged
    with monkeypatch.context() as patch:
        patch.setattr(type(episode._env.unwrapped), "_execute", fails)
        assert reward([sound], [row["task_id"]]) == [None]


# ---- the tools -------------------------------------------------------------------------------------------------------


def kinds(entry):
    """The JSON types that a schema takes, in either spelling of null."""
    own = entry.get("type", [])
    return {*([own] if isinstance(own, str) else own)} | ({"null"} if entry.get("nullable") else set())


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_methods_have_the_schemas_of_the_tools(spec, env_id):
    from transformers.utils import get_json_schema

    if env_id == "CodeAgent-v0":
        require("bubblewrap")
    kwargs = {"split": "test", **ENVIRONMENTS[env_id]}
    ids = open_set(f"{env_id[:-3]}-mini-v1").task_ids[:3]
    methods, env, offered = (
        tools_of(spec(env_id, ids, **kwargs).environment_factory()),
        gym.make(env_id, **kwargs),
        set(),
    )
    for task_id in ids:
        for tool in env.reset(options={"task": task_id})[1]["tools"]:
            wanted, offered = tool["function"], offered | {tool["function"]["name"]}
            made = get_json_schema(methods[wanted["name"]])["function"]
            assert (made["name"], made["description"]) == (wanted["name"], wanted["description"])
            assert made["parameters"].get("required", []) == wanted["parameters"]["required"]
            entries = made["parameters"]["properties"]
            assert list(entries) == list(wanted["parameters"]["properties"])
            for name, entry in wanted["parameters"]["properties"].items():
                assert entries[name]["description"] == entry["description"]
                assert kinds(entries[name]) == kinds(entry)
                assert [entries[name].get(key) for key in ("enum", "items")] == [
                    entry.get(key) for key in ("enum", "items")
                ]
    assert set(methods) == offered  # the union, and nothing else


def test_a_template_that_trl_knows_shows_the_tools_and_reads_the_calls(few):
    from trl.chat_template_utils import add_response_schema, parse_response, qwen3_chat_template

    from agent_gym.lm.tiny import tokenizer

    row, methods = few.train_dataset[1], tools_of(few.environment_factory())
    words = tokenizer([few.environment_factory.args[2]])
    words.chat_template = qwen3_chat_template
    words.add_tokens(["<|im_start|>", "<|im_end|>", "<think>", "</think>"])
    add_response_schema(words)
    offered = list(methods.values())
    prompt = words.apply_chat_template(row["prompt"], tools=offered, add_generation_prompt=True, return_dict=False)
    shown = words.decode(prompt)
    assert all(f'"name": "{name}", "description"' in shown for name in methods)
    assert row["prompt"][1]["content"] in shown
    env = gym.make("APIAgent-v0", split="test", budget={"tool_calls": 6})
    turns = oracle(env, row)
    whole = words.apply_chat_template([*row["prompt"], turns[0]], tools=offered, tokenize=False)
    written = whole.rpartition("<|im_start|>assistant\n")[2].rpartition("\n")[0]
    read = parse_response(words, words(written)["input_ids"], prefix=prompt, tools=offered)
    messages = conversation(few.environment_factory(), row, [read, *turns[1:]])
    assert measured(few.reward_funcs[0], messages, row)[0] == played(env, row, turns)[1] == 1.0


def test_a_schema_becomes_an_annotation(spec):
    from transformers.utils import get_json_schema

    from agent_gym.integrations.trl import _method

    entries = {
        "pairs": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        "either": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        "named": {"$ref": "#/$defs/Kind"},
        "fixed": {"const": "a"},
        "open": {"type": "object", "properties": {"x": {"type": "integer"}}},
        "rest": {},
    }
    schema = {"properties": entries, "required": ["pairs"], "$defs": {"Kind": {"enum": ["a", "b"], "type": "string"}}}
    made = get_json_schema(_method({"name": "f", "description": "Does\n it.", "parameters": schema}))["function"]
    assert made["description"] == "Does it."
    assert made["parameters"]["required"] == ["pairs"]
    found = made["parameters"]["properties"]
    assert found["pairs"]["items"] == {"type": "array", "items": {"type": "number"}}
    assert (found["either"]["type"], found["either"]["nullable"]) == ("array", True)
    assert found["named"]["enum"] == ["a", "b"]
    assert found["fixed"]["enum"] == ["a"]
    assert (found["open"]["type"], "type" in found["rest"]) == ("object", False)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kwargs", "said"),
    [
        (
            ("APIAgent-v0", "APIAgent-nope-v1"),
            {},
            "there is no task set 'APIAgent-nope-v1'; there are APIAgent-mini-v1",
        ),
        (("SQL-v0", "APIAgent-mini-v1"), {}, "the task set APIAgent-mini-v1 is of APIAgent-v0, not of SQL-v0"),
        (("Nope-v0", ["a"]), {}, "Nope"),
        (("CartPole-v1", ["a"]), {}, "CartPoleEnv is not an environment of agent_gym"),
        (("APIAgent-v0", []), {}, "tasks=[]: give a task set's name, or the ids of one task or more in a list"),
        (("APIAgent-v0", 5), {}, "tasks=5: give a task set's name"),
        (("APIAgent-v0", ["nope"]), {}, "'nope'"),
        (("APIAgent-v0", ["train-1-1"]), {"colour": 1}, "has no keyword argument 'colour'"),
        (("APIAgent-v0", ["train-1-1"]), {"reward": "score"}, "choose one of 'success', 'in_budget_success'"),
        (("APIAgent-v0", ["train-1-1"]), {"latency": "wall"}, "latency='wall'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(spec, arguments, kwargs, said):
    with pytest.raises((ValueError, TypeError, gym.error.Error)) as found:
        spec(*arguments, **kwargs)
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["reset", "get_reward", "_hidden"])
def test_a_tool_that_trl_would_not_see_is_refused(spec, name):
    from agent_gym.integrations.trl import _episode_class

    with pytest.raises(ValueError, match=f"the tool '{name}'"):
        _episode_class(json.dumps({name: {"name": name, "description": "x", "parameters": {}}}))


def test_without_trl_the_extra_is_named():
    code = "import sys; sys.modules['trl'] = None; import agent_gym.integrations.trl"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: agent_gym.integrations.trl needs TRL: pip install 'agent-gym[trl]'"
    )


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_trains(spec, tmp_path):
    """As written: a minute of one core."""
    (code,) = (block[2] for block in FENCE.finditer(PAGE) if block[2].startswith("# grpo_shop.py"))
    (tmp_path / "grpo_shop.py").write_text(code, encoding="utf-8")
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        [sys.executable, "grpo_shop.py"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pattern = r"^(before|after): success ([\d.]+), tool calls ([\d.]+), output tokens ([\d.]+)$"
    (first, *before), (last, *after) = re.findall(pattern, done.stdout, re.MULTILINE)
    assert (first, last) == ("before", "after")
    (success, calls, tokens), (better, fewer, shorter) = map(float, before), map(float, after)
    assert better > success + 0.2
    assert fewer < calls
    assert shorter < tokens
    assert "'costs/latency_ms'" in done.stdout
    assert "'rewards/success/mean'" in done.stdout
