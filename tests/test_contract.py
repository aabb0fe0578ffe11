"""What holds in every environment, for every format in which a model may write."""

import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import permutations
from multiprocessing import get_context

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sandbox_backends import require
from shop_play import REFUND, call, task, turn, write_tasks
from shop_play import make as make_shop
from walks import WALKED, walk

import agent_gym
from agent_gym import (
    CHANNELS,
    PARSERS,
    Call,
    Delete,
    Drift,
    Perturb,
    Swap,
    ToolCache,
    Truncate,
    counterfactuals,
    metrics,
    restore,
    snapshot,
    tool_env,
)
from agent_gym.costs import approximate_tokens
from agent_gym.env import SUBMIT, fingerprint
from agent_gym.formats import HermesParser, canonical_text
from agent_gym.sandbox import SandboxUnavailable
from agent_gym.sandbox.backends import choose
from agent_gym.wrappers import RecordTrajectory, ScalarCost

KINDS = {
    "APIAgent-v0": {},
    "CodeAgent-v0": {"sandbox": "bubblewrap"},
    "SQL-v0": {},
    "WebLite-v0": {},
}
EASY = {
    "APIAgent-v0": {"domains": ["shop"]},
    "CodeAgent-v0": {"difficulty": 1},
    "SQL-v0": {"difficulty": 1},
    "WebLite-v0": {"difficulty": 1},
}
ONE_CALL = {"APIAgent-v0": "get_order", "CodeAgent-v0": "list_files", "SQL-v0": "list_tables", "WebLite-v0": "look"}
LOOK = {**ONE_CALL, "APIAgent-v0": "list_orders"}


def make(env_id, **kwargs):
    if env_id == "CodeAgent-v0":
        require("bubblewrap")
    return gym.make(env_id, disable_env_checker=True, **KINDS[env_id], **kwargs)


@pytest.fixture(scope="module")
def elsewhere():
    """Another process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module", params=KINDS)
def env_id(request):
    return request.param


def played(env, actions, seed=3):
    """The steps of an episode, and its last info."""
    env.reset(seed=seed)
    steps = []
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps, steps[-1][-1]


def shown(info):
    return [result for result in info["tool_results"] if result["error"] != "not_run"]


# ---- Gymnasium's contract ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_check_env_without_a_warning(env_id, wrapped):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = make(env_id, **EASY[env_id])
        check_env(env if wrapped else env.unwrapped, skip_render_check=env_id == "WebLite-v0")  # pictures need Chromium
    messages = [str(one.message) for one in caught]
    if wrapped:  # Gymnasium says this of any wrapped environment
        messages = [m for m in messages if "is different from the unwrapped version" not in m]
    assert messages == []


def test_random_text_is_a_legal_action(env_id):
    env = make(env_id, **EASY[env_id])
    env.action_space.seed(3)
    env.reset(seed=3)
    for _ in range(50 if env_id != "CodeAgent-v0" else 5):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert set(info["cost"]) == set(CHANNELS)
        if terminated or truncated:
            env.reset()
    env.close()


def in_step(vector, env_id, mode):
    """Environments side by side: observations, rewards, flags and nested infos equal those of single ones."""
    look = call(LOOK[env_id])
    singles = [make(env_id, **EASY[env_id]) for _ in range(vector.num_envs)]
    rest = [look] * (len(singles) - 2)
    try:
        seeds = list(range(5, 5 + len(singles)))
        observations, infos = vector.reset(seed=seeds)
        starts = [env.reset(seed=seed) for env, seed in zip(singles, seeds, strict=True)]
        assert observations in vector.observation_space
        assert tuple(observations) == tuple(o for o, _ in starts)
        assert list(infos["task_id"]) == [i["task_id"] for _, i in starts]
        done = [False] * len(singles)
        for actions in ([look, "The end. ✓", *rest], [turn((LOOK[env_id], {}), (LOOK[env_id], {})), look, *rest]):
            if mode is AutoresetMode.DISABLED and any(done):
                observations, _ = vector.reset(options={"reset_mask": np.array(done)})
                assert observations[1] == singles[1].reset()[0]
                done = [False] * len(singles)
            observations, rewards, terminated, truncated, infos = vector.step(actions)
            for index, env in enumerate(singles):
                if done[index]:  # next-step mode spends this step on the reset
                    observation, info = env.reset()
                    reward, ended = 0.0, False
                    assert infos["task_id"][index] == info["task_id"]
                else:
                    observation, reward, ended, _, info = env.step(actions[index])
                    assert ended == (actions[index] == "The end. ✓")
                    if ended and mode is AutoresetMode.SAME_STEP:
                        assert infos["final_obs"][index] == observation
                        assert infos["final_info"]["verdict"]["reason"][index] == info["verdict"]["reason"]
                        assert infos["final_info"]["cost_total"]["output_tokens"][index] == 3.0
                        observation, info = env.reset()
                    elif ended:
                        assert infos["verdict"]["status"][index] == info["verdict"]["status"] == "fail"
                assert observations[index] == observation
                assert rewards[index] == reward
                assert (terminated[index], truncated[index]) == (ended, False)
                assert infos["state_hash"][index] == info["state_hash"]
                for channel in CHANNELS:
                    assert infos["cost"][channel][index] == info["cost"][channel]
                assert info["budget_left"] == infos["budget_left"] == {}
                assert list(infos["tool_results"][index]) == info["tool_results"]
                done[index] = ended and mode is not AutoresetMode.SAME_STEP
        observations, *_ = vector.step(vector.action_space.sample())
        assert observations in vector.observation_space
    finally:
        vector.close()
        for env in singles:
            env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_vector_environments_play_as_single_ones(env_id, kind, mode):
    make(env_id).close()
    kwargs = {"vectorization_mode": kind, "vector_kwargs": {"autoreset_mode": mode}, **KINDS[env_id], **EASY[env_id]}
    in_step(gym.make_vec(env_id, num_envs=2, **kwargs), env_id, mode)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("shared", [True, False])
def test_vector_environments_in_fresh_processes(shared, mode):
    vector = AsyncVectorEnv([make_shop] * 2, shared_memory=shared, autoreset_mode=mode, context="spawn")
    in_step(vector, "APIAgent-v0", mode)


SPELLED = {
    "APIAgent-v0": {"budget": {"tool_calls": 3}, "difficulty": [1, 2]},
    "CodeAgent-v0": {"split": "test", "difficulty": [2, 3], "kinds": ["completion"], "time_limit": 4.5},
    "SQL-v0": {"split": "test", "difficulty": [2, 3], "kinds": ["query"], "instructions": 5000},
    "WebLite-v0": {"split": "test", "difficulty": [2, 3], "sites": ["mail"]},
}


def test_spec_round_trip(env_id):
    env = make(env_id, **SPELLED[env_id])
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.spec.kwargs == env.spec.kwargs
    for name in {"budget", "time_limit", "instructions"} & set(SPELLED[env_id]):
        assert getattr(again.unwrapped, name) == getattr(env.unwrapped, name) == SPELLED[env_id][name]
    assert again.reset(seed=4) == env.reset(seed=4)
    assert again.step(call(LOOK[env_id])) == env.step(call(LOOK[env_id]))
    env.close()
    again.close()


def test_render_shows_the_last_turn(env_id):
    env = make(env_id, render_mode="ansi")
    observation, _ = env.reset(seed=0)
    assert env.render() == observation
    look = call(LOOK[env_id])
    answered = env.step(look)[0]
    assert env.render() == f"{look}\n{answered}"
    env.close()


# ---- nothing a model writes makes a step fail -------------------------------------------------------------------

PIECES = """<tool_call> </tool_call> <think> </think> <function= <parameter= > </parameter> </function> <|python_tag|>
[TOOL_CALLS] [ARGS] {"name":" " ","arguments": ","parameters": { } [ ] : , ; \\ \\u \\ud800 \ud800 \udfff \x00 NaN 1e999
-0.0 999999999999999999999999 null true ``` ```sql ```json SELECT VALUES( ' -- submit submit_sql run_sql look search"""
pieces = st.sampled_from([*PIECES.split(), "\n", "\x0b", "\u2028", "```sql\n", "```json\n"])
deep = st.builds(
    lambda c, n, end: c * n + end * n, st.sampled_from("[({<"), st.integers(60, 1200), st.sampled_from("])}> ")
)
runs = st.builds(lambda c, n: c * n, st.sampled_from("ax[{(\"'\\`<\ud800\x00\n\u2028é"), st.integers(1, 40_000))
scraps = st.lists(pieces | deep | st.text(st.characters(), max_size=8) | runs, max_size=8).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | scraps.filter(lambda t: len(t) < 9000),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(scraps.filter(lambda t: len(t) < 50), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def actions(draw, env):
    """Text of any kind, calls of real tools with odd arguments in any format, and messages."""
    tools = {**env.unwrapped.tools, "submit": SUBMIT, "nothing": SUBMIT}
    written = []
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(tools)))
        known = st.fixed_dictionaries({}, optional=dict.fromkeys((*tools[name].parameters, "extra"), values))
        written.append((name, draw(known)))
    text = draw(scraps)
    kind = draw(st.sampled_from(["text", "message", *PARSERS]))
    if kind == "text":
        return text
    entries = [
        {"id": str(n), "function": {"name": name, "arguments": given}} for n, (name, given) in enumerate(written)
    ]
    if kind == "message":
        return {
            "role": "assistant",
            "content": draw(st.sampled_from([text, None, [{"type": "text", "text": text}]])),
            "tool_calls": entries,
        }
    rendered = PARSERS[kind].render(text, [Call(name, given) for name, given in written])
    at = draw(st.integers(0, len(rendered)))
    return draw(st.sampled_from([rendered, rendered[:at], rendered[:at] + draw(pieces) + rendered[at:]]))


@pytest.mark.parametrize("parser", PARSERS)
def test_no_action_makes_a_step_raise(env_id, parser):
    env = make(env_id, parser=parser, max_turns=64, render_mode="ansi")
    env.reset(seed=0)

    @settings(
        max_examples=60 if env_id != "CodeAgent-v0" else 25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def any_action(data):
        env.reset(seed=data.draw(st.integers(0, 5)))
        before = env.unwrapped.cost_total
        action = data.draw(actions(env))
        turn_ = env.unwrapped.read(action)
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert math.isfinite(reward)
        json.dumps(info, allow_nan=False)
        assert len(info["tool_results"]) == len(turn_.calls)
        assert info["cost"]["read_tokens"] == sum(approximate_tokens(r["content"]) for r in shown(info))
        assert info["cost"]["output_tokens"] == approximate_tokens(canonical_text(turn_))
        assert info["cost_total"] == {k: round(before[k] + info["cost"][k], 3) for k in CHANNELS}
        assert env.render()

    any_action()
    env.close()


# ---- one turn, whatever the format ------------------------------------------------------------------------------


def test_every_format_plays_the_oracle_at_the_same_cost(env_id):
    found = {}
    for parser in PARSERS:
        env = make(env_id, parser=parser)
        for seed in range(4):
            env.reset(seed=seed)
            _, info = played(env, env.unwrapped.oracle(), seed)
            assert info["verdict"]["status"] == "pass", (parser, seed, info["verdict"])
            found.setdefault(seed, []).append(info["cost_total"])
        env.close()
    for totals in found.values():
        assert all(total == totals[0] for total in totals)
        assert totals[0]["output_tokens"] > 0


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda text, bad: f"<think>I could {bad} or not.</think>\n{text}",
        lambda text, bad: f"I could {bad}, but no.</think>{text}",
        lambda text, bad: f"<think></think>{text}<think>{bad}",
    ],
    ids=["closed", "prefilled", "unclosed"],
)
def test_reasoning_is_set_apart(env_id, parser, wrap):
    """The oracle passes with reasoning around every turn, and no call rehearsed in it runs."""
    env = make(env_id, parser=parser)
    bad = HermesParser().render("", [Call("submit", {"answer": "x"})]) + PARSERS[parser].render(
        "", [Call("submit", {})]
    )
    env.reset(seed=1)
    plain = env.unwrapped.oracle()
    _, base = played(env, plain, 1)
    steps, info = played(env, [wrap(action, bad) for action in plain], 1)
    assert len(steps) == len(plain)
    assert info["verdict"]["status"] == "pass"
    for channel in ("tool_calls", "read_tokens", "latency_ms"):
        assert info["cost_total"][channel] == base["cost_total"][channel]
    assert info["cost_total"]["output_tokens"] > base["cost_total"]["output_tokens"] + len(plain) * len(bad) / 5
    env.reset(seed=1)
    *_, terminated, _, info = env.step(f"<think>{plain[0]} {bad}")
    assert terminated  # nothing follows: an empty answer
    assert info["tool_results"] == []
    env.close()


def test_reasoning_in_a_message():
    env = make("APIAgent-v0", domains=["shop"])
    env.reset(seed=1)
    message = {"role": "assistant", "content": f"<think>{call('submit', answer=1)}</think>", "reasoning_content": "so"}
    message["tool_calls"] = [{"id": "a", "type": "function", "function": {"name": "list_orders", "arguments": "{}"}}]
    *_, info = env.step(message)
    assert [(r["id"], r["name"], r["error"]) for r in info["tool_results"]] == [("a", "list_orders", None)]
    without = {**message, "content": None, "reasoning_content": None}
    env.reset(seed=1)
    assert env.step(without)[-1]["cost"]["output_tokens"] < info["cost"]["output_tokens"] - 10


@pytest.mark.parametrize("parser", PARSERS)
def test_what_is_read_is_written_again(env_id, parser):
    env = make(env_id, parser=parser)
    env.reset(seed=1)
    calls = HermesParser().render("", [Call(ONE_CALL[env_id], {}), Call("nothing", {"x": "</think>"})])
    turn_ = make(env_id).unwrapped
    turn_.reset(seed=1)
    for action in (
        f"<think>a</think>b{calls}", f"a</think>{calls}", f"{calls}<think>a", calls, "b",
        {"content": "b", "reasoning_content": "a", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"content": "<think>a</think>b"},
    ):  # fmt: skip
        read = turn_.read(action)
        again = env.unwrapped.read(env.unwrapped.write(read))
        assert again.text == read.text
        assert [(c.name, c.arguments) for c in again.calls] == [(c.name, c.arguments) for c in read.calls]
        assert again.reasoning.replace("</think>", "") == read.reasoning.replace("</think>", "")
    env.close()
    turn_.close()


def test_other_tags_and_none():
    env = make("APIAgent-v0", domains=["shop"], reasoning=["[R]", "[/R]"])
    env.reset(seed=1)
    assert env.step(f"[R]{call('submit')}[/R]{call('list_orders')}")[-1]["cost"]["tool_calls"] == 1.0
    assert env.step(f"<think>{call('list_orders')}</think>")[-1]["cost"]["tool_calls"] == 1.0
    env = make("APIAgent-v0", domains=["shop"], reasoning=None)
    env.reset(seed=1)
    assert env.step(f"<think>{call('submit')}")[2]


@pytest.mark.parametrize(("parser", "writer"), list(permutations(PARSERS, 2)))
def test_a_call_in_another_format_is_no_answer(env_id, parser, writer):
    env = make(env_id, parser=parser)
    env.reset(seed=1)
    written = PARSERS[writer].render(
        "", [Call(ONE_CALL[env_id], {"order_id": "O1"} if env_id == "APIAgent-v0" else {})]
    )
    observation, _, terminated, truncated, info = env.step(written)
    assert not terminated
    assert not truncated
    assert info["cost"]["tool_calls"] == 1.0
    assert info["tool_results"][0]["error"] == "invalid"
    assert any(words in observation for words in (writer, "not valid JSON", "this is JSON"))
    env.close()


def test_an_answer_in_a_fence_is_read():
    for wrap in ("```json\n{}\n```", "Here it is:\n```\n{}\n```\nBye.", "```json\n{}"):
        env = make("APIAgent-v0", difficulty=2)
        passed = 0
        for seed in range(12):
            env.reset(seed=seed)
            *looks, answer = env.unwrapped.oracle()
            _, info = played(env, [*looks, wrap.replace("{}", answer)], seed)
            passed += info["verdict"]["status"] == "pass"
        assert passed == 12


def test_messages_are_actions(env_id):
    """The oracle's calls as chat messages: each call has one result with its id, ends included."""
    env = make(env_id)
    env.reset(seed=2)
    oracle = [env.unwrapped.read(action) for action in env.unwrapped.oracle()]
    calls = [one for step in oracle for one in step.calls]
    entries = [
        {"id": f"c{n}", "type": "function", "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments))}}
        for n, c in enumerate([*calls, Call("submit", {"answer": oracle[-1].text}), Call("submit", {})])
    ]
    *_, info = env.step({"role": "assistant", "content": None, "tool_calls": entries})
    assert info["verdict"]["status"] == "pass"
    assert [r["id"] for r in info["tool_results"]] == [e["id"] for e in entries]
    assert info["tool_results"][-1]["error"] == "not_run"
    assert "final answer" in info["tool_results"][-1]["content"]
    env.close()


def test_content_of_a_message():
    env = make("APIAgent-v0", domains=["shop"])
    env.reset(seed=1)
    parts = [{"type": "text", "text": "Let me see. "}, {"type": "text", "text": call("list_orders")}]
    assert env.step({"role": "assistant", "content": parts})[-1]["tool_results"][0]["name"] == "list_orders"
    *_, info = env.step({"role": "assistant", "content": call("list_orders"), "output_tokens": 77})
    assert info["cost"]["output_tokens"] == 77.0
    for wrong in (5, None, [1], {"content": {1, 2}}, {"content": "x", "output_tokens": -1}):
        with pytest.raises(TypeError, match=r"action|message|count"):
            env.step(wrong)
    nested = json.loads('{"a":' * 80 + "1" + "}" * 80)
    for odd in (float("nan"), nested, "\ud800"):
        entry = {"id": "x", "function": {"name": "submit", "arguments": {"answer": odd}}}
        _, _, terminated, _, info = env.step({"content": "", "tool_calls": [entry]})
        assert not terminated
        assert info["tool_results"][0]["error"] == "invalid"


@pytest.mark.parametrize("text", ["The answer is", call("list_orders"), f"<think>hm{call('list_orders')}", ""])
def test_a_turn_that_was_cut_is_invalid_and_costs(text):
    env = make("APIAgent-v0", domains=["shop"])
    env.reset(seed=1)
    message = {"role": "assistant", "content": text, "finish_reason": "length"}
    observation, reward, terminated, truncated, info = env.step(message)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert "cut before its end" in observation
    assert [r["error"] for r in info["tool_results"]] == ["invalid"]
    assert info["cost"]["tool_calls"] == 1.0
    assert info["cost"]["output_tokens"] >= approximate_tokens(text)
    *_, info = env.step({**message, "output_tokens": 48})
    assert info["cost"]["output_tokens"] == 48.0
    *_, whole = env.step({**message, "content": call("list_orders"), "finish_reason": "stop"})
    assert whole["tool_results"][0]["error"] is None
    env.close()


def test_ids_and_nulls_are_not_charged():
    env = make("APIAgent-v0", domains=["shop"], parser="openai")
    function = {"name": "list_orders", "arguments": "{}"}
    bare = {"content": "", "tool_calls": [{"function": function}]}
    full = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [{"id": "call_" + "x" * 90, "type": "function", "index": 0, "function": function}],
    }
    costs = []
    for message in (bare, full):
        for action in (message, json.dumps(message)):
            env.reset(seed=1)
            costs.append(env.step(action)[-1]["cost"])
    hermes = make("APIAgent-v0", domains=["shop"])
    hermes.reset(seed=1)
    costs.append(hermes.step(call("list_orders"))[-1]["cost"])
    assert all(cost == costs[0] for cost in costs)


def test_a_message_is_recorded_and_replayed():
    env = RecordTrajectory(make("APIAgent-v0", domains=["shop"]))
    env.reset(seed=1)
    entry = {"id": "a", "type": "function", "function": {"name": "list_orders", "arguments": "{}"}}
    env.step({"role": "assistant", "content": "<think>hm</think>", "tool_calls": [entry, {**entry, "id": "b"}]})
    env.step("Done.")
    trajectory = agent_gym.Trajectory.from_json(env.last.to_json())
    assert trajectory == env.last
    assert trajectory.steps[0].action["tool_calls"][0] == entry
    (found,) = agent_gym.counterfactuals(env, trajectory, [agent_gym.Delete(0)])
    assert found.cost["tool_calls"] == 0.0
    assert metrics.distinct_n([trajectory], 1) > 0


# ---- costs ------------------------------------------------------------------------------------------------------


def test_what_is_shown_is_read(env_id):
    """Errors and results are charged alike, at what is shown of them."""
    env = make(env_id, on_budget="record", budget={"read_tokens": 0}, token_counter=len)
    env.reset(seed=0)
    _, info = played(env, [turn((ONE_CALL[env_id], {"nothing": 1}), ("no_such_tool", {"x": "y" * 5000}))], 0)
    assert info["cost"]["read_tokens"] == sum(len(r["content"]) for r in info["tool_results"]) > 50
    assert info["budget_left"] == {"read_tokens": -info["cost"]["read_tokens"]}
    looks = env.unwrapped.oracle()[:1]
    *_, info = env.step(looks[0])
    assert info["cost"]["read_tokens"] == sum(len(r["content"]) for r in shown(info))
    assert info["cost"]["output_tokens"] == len(looks[0])
    env.close()


def test_cut_text_is_charged_as_shown(tmp_path):
    one = task("long", "Refund order O2001.", REFUND[2:])
    orders = [{**order, "item": "y" * 40_000} for order in one["tables"]["orders"]]
    path = write_tasks(tmp_path / "t", [{**one, "tables": {**one["tables"], "orders": orders}}])
    env = make("APIAgent-v0", tasks=path, token_counter=len)
    env.reset(seed=0)
    observation, *_, info = env.step(call("get_order", order_id="O2001"))
    assert observation.endswith("... (cut)")
    assert info["cost"]["read_tokens"] == len(observation) == 32_768


def test_errors_are_short_and_whole(env_id):
    env = make(env_id)
    env.reset(seed=0)
    long = "y" * 60_000
    for action in (
        call(long),
        call(ONE_CALL[env_id], **{long: 1}),
        call(ONE_CALL[env_id], order_id=long),
        call("submit", x=long),
    ):
        _, _, terminated, _, info = env.step(action)
        assert not terminated
        message = json.loads(info["tool_results"][0]["content"])["message"]
        assert 10 < len(message) <= 1000
    env.close()


def test_read_budget_takes_the_result_back():
    env = make("APIAgent-v0", domains=["shop"], budget={"read_tokens": 10})
    _, start = env.reset(seed=0)
    observation, _, _, truncated, info = env.step(turn(("list_orders", {}), ("list_orders", {})))
    assert truncated
    assert observation == ""
    assert info["verdict"]["reason"] == "budget"
    assert [r["error"] for r in info["tool_results"]] == ["not_run", "not_run"]
    assert info["cost"]["tool_calls"] == 1.0
    assert info["cost"]["read_tokens"] > 10
    assert info["state_hash"] == start["state_hash"]


def test_calls_of_a_turn_are_capped(env_id):
    env = make(env_id, max_turns=3)
    env.reset(seed=0)
    oracle = env.unwrapped.read(env.unwrapped.oracle()[0])
    many = env.unwrapped.write(agent_gym.Turn("", (Call("nothing"),) * 16 + oracle.calls * 9))
    *_, terminated, truncated, info = env.step(many)
    assert not terminated
    assert not truncated
    assert [r["error"] for r in info["tool_results"][16:]] == ["refused"] * (9 * len(oracle.calls))
    assert info["cost"]["tool_calls"] == len(info["tool_results"])
    env.close()
    env = make(env_id, max_calls=1)
    env.reset(seed=0)
    *_, terminated, _, info = env.step(turn(("nothing", {}), ("submit", {"answer": 1})))
    assert not terminated
    assert info["tool_results"][1]["error"] == "refused"
    env.close()


def test_infinite_bounds_bound_nothing(env_id, tmp_path):
    env = RecordTrajectory(make(env_id, budget={"tool_calls": math.inf, "latency_ms": 1e6}), tmp_path / "t.jsonl")
    _, info = env.reset(seed=0)
    json.dumps(info, allow_nan=False)
    assert list(info["budget_left"]) == ["latency_ms"]
    for action in env.unwrapped.oracle():
        *_, info = env.step(action)
        json.dumps(info, allow_nan=False)
    assert env.last.env_kwargs["budget"] == {"latency_ms": 1e6}
    assert list(agent_gym.read_trajectories(tmp_path / "t.jsonl")) == [env.last]
    env.close()


def test_an_episode_cut_by_a_wrapper_has_no_verdict(tmp_path):
    for cut in (
        lambda: gym.make("APIAgent-v0", domains=["shop"], max_episode_steps=1),
        lambda: TimeLimit(gym.make("APIAgent-v0", domains=["shop"]), 1),
    ):
        env = RecordTrajectory(cut(), tmp_path / "t.jsonl")
        env.reset(seed=0)
        *_, truncated, info = env.step(call("list_orders"))
        assert truncated
        assert "verdict" not in info
        assert (env.last.reward, env.last.verdict) == (None, None)
        assert agent_gym.Trajectory.from_json(env.last.to_json()) == env.last
        assert math.isnan(metrics.success_rate([env.last]))


def test_files_from_before_the_fourth_channel_are_read():
    env = RecordTrajectory(make("APIAgent-v0", domains=["shop"]))
    played(env, [call("list_orders"), "Done."], 0)
    data = json.loads(env.last.to_json())
    for costs in (data["cost_total"], *(step["cost"] for step in data["steps"])):
        del costs["read_tokens"]
    del data["task_hash"]
    old = agent_gym.Trajectory.from_json(json.dumps(data))
    assert old.cost_total["read_tokens"] == 0.0
    assert old.task_hash is None
    assert metrics.mean_cost([old], "tool_calls") == 1.0


# ---- tasks ------------------------------------------------------------------------------------------------------

_UNSTRICT = {"default", "patternProperties", "oneOf", "allOf", "not", "if"}


def _check_strict(schema, path):
    assert not _UNSTRICT & schema.keys(), path
    assert {"type", "anyOf", "$ref", "enum", "const"} & schema.keys(), path
    if "properties" in schema or schema.get("type") == "object":
        assert schema["additionalProperties"] is False, path
        assert sorted(schema["required"]) == sorted(schema["properties"]), path
    for name, entry in schema.get("properties", {}).items():
        _check_strict(entry, f"{path}.{name}")
    for entry in [
        *schema.get("anyOf", ()),
        *schema.get("$defs", {}).values(),
        *([schema["items"]] if "items" in schema else ()),
    ]:
        _check_strict(entry, f"{path}[]")


def test_schemas_are_strict(env_id):
    env = make(env_id)
    for tool in (*env.unwrapped.tools.values(), SUBMIT):
        function = json.loads(tool.schema_json)["function"]
        _check_strict(function["parameters"], tool.name)
        assert tool.description
    env.close()


def test_tools_before_reset(env_id):
    env = make(env_id)
    before = dict(env.unwrapped.tools)
    assert ONE_CALL[env_id] in before
    env.reset(seed=0)
    assert set(env.unwrapped.tools) <= set(before)
    env.close()


def test_tasks_are_listed_with_their_hashes(env_id):
    env = make(env_id, difficulty=1 if env_id != "APIAgent-v0" else 2)
    _, info = env.reset(seed=5)
    state = env.unwrapped.get_state()
    listed = env.unwrapped.task_list(4, seed=3)
    assert env.unwrapped.get_state() == state
    assert len({id for id, _ in listed}) == 4
    assert (info["task_id"], info["task_hash"]) in listed
    assert listed == make(env_id, difficulty=1 if env_id != "APIAgent-v0" else 2).unwrapped.task_list(4, seed=3)
    for id, digest in listed:
        _, info = env.reset(options={"task": id})
        assert info["task_hash"] == digest == fingerprint(env.unwrapped.task)
        assert len(digest) == 32
    assert len({digest for _, digest in listed}) == 4
    env.close()


PROGRAM = """
import gymnasium as gym, agent_gym, hashlib, json, sys
found = {}
for env_id, kwargs in json.loads(sys.argv[1]).items():
    trail = []
    for split in ("train", "validation", "test"):
        env = gym.make(env_id, disable_env_checker=True, split=split, **kwargs)
        for seed in range(3):
            trail.append(env.reset(seed=seed))
            trail += [env.step(action) for action in env.unwrapped.oracle()]
        env.close()
    found[env_id] = env.unwrapped.task_list(3, seed=1), hashlib.sha256(repr(trail).encode()).hexdigest()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def everywhere():
    """The oracle's episodes as other processes play them: a digest and a list of tasks each."""
    kinds = dict(KINDS)
    try:
        choose("bubblewrap")
    except SandboxUnavailable:
        del kinds["CodeAgent-v0"]
    command = [sys.executable, "-c", PROGRAM, json.dumps(kinds)]
    started = [
        subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True)
        for seed in ("1", "77")
    ]
    return [json.loads(process.communicate()[0]) for process in started]


def test_same_seed_same_bytes_in_every_process(env_id, everywhere):
    env = make(env_id, split="test")
    listed = [list(one) for one in env.unwrapped.task_list(3, seed=1)]
    env.close()
    assert [found[env_id][0] for found in everywhere] == [listed] * 2
    assert len({found[env_id][1] for found in everywhere}) == 1


def test_seed_decides_the_task_and_the_stream_goes_on(env_id):
    a, b = make(env_id, **EASY[env_id]), make(env_id, **EASY[env_id])
    first = [a.reset(seed=5)[1]["task_id"], *(a.reset()[1]["task_id"] for _ in range(4))]
    second = [b.reset(seed=5)[1]["task_id"], *(b.reset()[1]["task_id"] for _ in range(4))]
    assert first == second
    assert len(set(first)) > 1
    assert a.reset(options={"task": first[2]})[0] == b.reset(seed=99, options={"task": first[2]})[0]
    a.close()
    b.close()


TYPES = {
    "APIAgent-v0": ({"domains": ["shop"], "difficulty": 1}, {"shop.refund", "shop.cancel", "shop.order_status"}),
    "CodeAgent-v0": ({"difficulty": 2}, {"repair", "completion"}),
    "SQL-v0": ({"difficulty": 1}, {"table", "change"}),
    "WebLite-v0": ({"sites": ["mail"], "difficulty": 2}, {"mail.delete", "mail.store"}),
}


def test_tasks_tell_their_type(env_id):
    """Of what a task asks for, and not of how hard it is."""
    kwargs, expected = TYPES[env_id]
    env = make(env_id, **kwargs)
    infos = [env.reset(seed=seed)[1] for seed in range(60 if env_id != "CodeAgent-v0" else 8)]
    found = {info["task_type"] for info in infos}
    assert expected <= found
    assert not any(character.isdigit() or character == ":" for kind in found for character in kind)
    if env_id == "CodeAgent-v0":
        assert all(info["task_type"] == info["task_id"].split("-")[1] for info in infos)
    assert env.reset(options={"task": infos[1]["task_id"]})[1]["task_type"] == infos[1]["task_type"]
    env.close()


UNKNOWN = ["x", "train-0-1", "train-9-1", "dev-1-1", "train-1", "train-1-x", 5]


def test_unknown_task_ids(env_id):
    env, names, says = make(env_id), UNKNOWN, r"it reads split-(calls|difficulty)-seed, such as"
    if env_id == "CodeAgent-v0":
        names = ["train-repair-9-1", "train-poetry-1-1", "dev-repair-1-1", "train-completion-1-4", *UNKNOWN]
        says = "it reads split-kind-difficulty-seed"
    for name in names:
        with pytest.raises(ValueError, match=says):
            env.reset(options={"task": name})
    env.reset(seed=0)
    env.close()


def test_a_split_refuses_the_other_splits_tasks(env_id):
    envs = [make(env_id, split=split) for split in ("train", "validation", "test")]
    for own, other in itertools.permutations(envs, 2):
        _, info = other.reset(seed=1)
        with pytest.raises(ValueError, match=rf"split '{other.unwrapped.split}'.*'{own.unwrapped.split}'"):
            own.reset(options={"task": info["task_id"]})
    for env in envs:
        env.close()


def test_domains_decide_the_task_and_its_hash():
    one, two = make("APIAgent-v0", domains=["shop"]), make("APIAgent-v0", domains=["shop", "mail"])
    ids = [f"train-2-{seed}" for seed in range(20)]
    pairs = [[env.reset(options={"task": id})[1]["task_hash"] for id in ids] for env in (one, two)]
    assert any(a != b for a, b in zip(*pairs, strict=True))
    recorded = RecordTrajectory(one)
    for id in ids:
        _, info = two.reset(options={"task": id})
        recorded.reset(options={"task": id})
        recorded.step("Done.")
        if recorded.last.task_hash != info["task_hash"]:
            with pytest.raises(agent_gym.Drift, match=f"{id}.*{info['task_hash']}.*{recorded.last.task_hash}"):
                agent_gym.counterfactuals(two, recorded.last, [agent_gym.Delete(0)])


def test_hash_sees_every_part_of_a_task(tmp_path):
    base = task("a", "Refund order O2001.", REFUND[2:])
    variants = [
        base,
        {**base, "request": "Refund O2001."},
        {**base, "answer": {"x": 1}},
        {**base, "calls": []},
        {**base, "tables": {**base["tables"], "products": []}},
        {**base, "domains": ["shop", "mail"]},
    ]
    hashes = []
    for one in variants:
        env = make("APIAgent-v0", tasks=write_tasks(tmp_path / "t", [one]))
        hashes.append(env.reset(seed=0)[1]["task_hash"])
    assert len(set(hashes)) == len(variants)
    renamed = make("APIAgent-v0", tasks=write_tasks(tmp_path / "t", [{**base, "id": "b"}]))
    assert renamed.reset(seed=0)[1]["task_hash"] == hashes[0]


# ---- snapshots --------------------------------------------------------------------------------------------------

EXAMPLES = {"APIAgent-v0": 40, "CodeAgent-v0": 6, "SQL-v0": 25, "WebLite-v0": 25}
REPLAYED = {"APIAgent-v0": 30, "CodeAgent-v0": 2, "SQL-v0": 10, "WebLite-v0": 10}


def stack(env_id):
    env = make(env_id, **WALKED[env_id], budget={"tool_calls": 14, "latency_ms": 9000}, max_turns=12)
    return ScalarCost(RecordTrajectory(RecordEpisodeStatistics(TimeLimit(env, 9))), {"latency_ms": 0.5})


def resumed(env_id, snap, seed, steps):
    """Goes on from a snapshot in an environment that has played something else."""
    env = stack(env_id)
    env.reset(seed=99)
    env.step(call(LOOK[env_id]))
    restore(env, snap)
    return walk(env, seed, steps)


def test_after_a_restore_everything_is_the_same(env_id, elsewhere):
    """Snapshot anywhere, go on, restore (here, after something else, and in another process), go on again: byte for
    byte the same, also when the episode ends on the way and the next one begins."""
    env = stack(env_id)

    @settings(max_examples=EXAMPLES[env_id], deadline=None)
    @given(seed=st.integers(0, 10**6), before=st.integers(0, 8), after=st.integers(1, 8), aside=st.integers(0, 2))
    @example(seed=3584, before=0, after=2, aside=0)  # ends the first episode, so that its goal is asked for
    def anywhere(seed, before, after, aside):
        env.reset(seed=seed)
        walk(env, seed, before)
        if env_id in ("APIAgent-v0", "WebLite-v0"):
            assert env.unwrapped.task.goal  # worked out when first asked for, and kept with the task
        snap = snapshot(env)
        taken = pickle.dumps(snap)
        rest = walk(env, seed + 1, after)
        restore(env, snap)
        walk(env, seed + 2, aside)
        restore(env, snap)
        assert walk(env, seed + 1, after) == rest
        assert pickle.dumps(snap) == taken  # nothing that came after has changed it
        assert elsewhere.submit(resumed, env_id, pickle.loads(taken), seed + 1, after).result() == rest

    anywhere()
    env.close()


# ---- recorded episodes and their replay -------------------------------------------------------------------------

NEEDLESS = {**LOOK, "CodeAgent-v0": "run_tests"}


@pytest.mark.parametrize("stack", ["record", "record over scalar", "scalar over record"])
def test_recorded_episode_replays(env_id, stack, tmp_path):
    kwargs = {**EASY[env_id], "difficulty": (2, 3)}
    base = make(env_id, budget={"tool_calls": 9}, token_counter=len, **kwargs)
    path = tmp_path / "t.jsonl"
    env = RecordTrajectory(ScalarCost(base) if stack == "record over scalar" else base, path)
    played = ScalarCost(env) if stack == "scalar over record" else env
    observation, info = played.reset(seed=3)
    observations, infos = [observation], []
    for action in base.unwrapped.oracle():
        observation, reward, *_, info = played.step(action)
        observations.append(observation)
        infos.append(info)
    (one,) = env.trajectories
    assert one is env.last
    assert (one.env_id, one.seed, one.reward, reward) == (env_id, 3, 1.0, 1.0)
    kwargs = {**KINDS[env_id], **kwargs, "difficulty": [2, 3], "budget": {"tool_calls": 9}}
    assert one.env_kwargs == kwargs
    assert [step.observation for step in one.steps] == observations[:-1]
    assert [step.state_hash for step in one.steps] == [info["state_hash"] for info in infos]
    assert [step.terminated for step in one.steps] == [False] * (len(infos) - 1) + [True]
    assert one.cost_total == infos[-1]["cost_total"]
    assert sum(step.cost["output_tokens"] for step in one.steps) == one.cost_total["output_tokens"]
    assert one.verdict == infos[-1]["verdict"]
    assert list(agent_gym.read_trajectories(path)) == [one]
    agent_gym.write_trajectories(tmp_path / "again.jsonl", [one])
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    (found,) = counterfactuals(env, one, [Delete(len(one.steps) - 1)])
    assert found.reward == 0.0
    assert env.trajectories == [one]  # replays are not recorded
    assert len(list(agent_gym.read_trajectories(path))) == 1
    env.close()


@pytest.fixture(scope="module")
def needless(env_id):
    """The oracle's episode behind two needless calls, the snapshots before its steps, and all that can be asked."""
    env = RecordTrajectory(make(env_id, **WALKED[env_id]))
    env.reset(seed=2)
    oracle, kept = env.unwrapped.oracle(), []
    for action in [call(NEEDLESS[env_id])] * 2 + oracle:
        kept.append(snapshot(env))
        env.step(action)
    count = len(env.last.steps)
    wanted = [Delete(0, length=2), *(cut(t) for cut in (Delete, Truncate) for t in range(count))]
    yield env, env.last, kept, [*wanted, Swap(0, call("unknown")), Perturb(0, str.lower)]
    env.close()


def test_needless_steps_cost_and_bring_nothing(needless):
    env, base, _, _ = needless
    (both,) = counterfactuals(env, base, [Delete(0, length=2)])
    assert both.base is base
    assert base.reward == both.reward == 1.0
    assert both.success_credit == 0.0
    assert both.validity == ("executed",) * (len(base.steps) - 2)
    for name, credit in both.cost_credit.items():
        assert credit == pytest.approx(base.steps[0].cost[name] + base.steps[1].cost[name])
    assert both.cost_credit["tool_calls"] == 2.0
    assert both.cost_credit["latency_ms"] > 0.0


def test_replays_do_not_depend_on_how_they_are_made(needless, elsewhere):
    """With kept snapshots, with a cache (empty, full and too small) and in another process."""
    env, base, kept, wanted = needless
    for grounding in (True, False):
        plain = counterfactuals(env, base, wanted, grounding=grounding)
        cache = ToolCache()
        for options in (
            {"snapshots": kept}, {"cache": cache}, {"cache": cache}, {"cache": ToolCache(size=1)},
            {"workers": elsewhere}, {"workers": elsewhere, "cache": ToolCache()},
        ):  # fmt: skip
            assert counterfactuals(env, base, wanted, grounding=grounding, **options) == plain
        assert cache.hits > 0


def test_any_episode_is_replayed_without_drift(env_id):
    env = RecordTrajectory(make(env_id, **WALKED[env_id]))

    @settings(max_examples=REPLAYED[env_id], deadline=None)
    @given(seed=st.integers(0, 10**6), steps=st.integers(1, 5), grounding=st.booleans())
    def any_episode(seed, steps, grounding):
        env.reset(seed=seed)
        env.trajectories.clear()
        walk(env, seed, steps)
        if not env.trajectories:
            env.step("Done.")
        base = env.trajectories[0]
        wanted = [cut(t) for cut in (Delete, Truncate) for t in range(len(base.steps))]
        wanted += [Swap(0, call(LOOK[env_id])), Perturb(0, str.lower)]
        plain = counterfactuals(env, base, wanted, grounding=grounding)
        cache = ToolCache()
        assert counterfactuals(env, base, wanted, grounding=grounding, cache=cache) == plain
        misses = cache.misses
        assert counterfactuals(env, base, wanted, grounding=grounding, cache=cache) == plain
        assert cache.misses - misses <= misses  # errors alone are asked again

    any_episode()
    env.close()


def test_tampering_is_drift(needless):
    env, base, _, _ = needless
    last = len(base.steps) - 1

    def tampered(t, **changes):
        return replace(base, steps=(*base.steps[:t], replace(base.steps[t], **changes), *base.steps[t + 1 :]))

    for other, says in (
        (tampered(1, observation="something else"), "step 1: the environment showed"),
        (tampered(last, state_hash="0" * 32), f"step {last}: state"),
        (tampered(0, action=call("unknown")), "step "),
        (tampered(1, cost={**base.steps[1].cost, "latency_ms": 1.0}), "step 1: latency_ms"),
        (replace(base, steps=(*base.steps, base.steps[-1])), f"step {last + 1}: the episode ended"),
    ):
        with pytest.raises(Drift, match=says):
            counterfactuals(env, other, [Delete(0)])


# ---- faults of the caller ---------------------------------------------------------------------------------------


def test_foreign_environments_and_snapshots_are_named():
    cart, api, sql = gym.make("CartPole-v1"), make("APIAgent-v0"), make("SQL-v0")
    for use in (
        agent_gym.snapshot,
        ScalarCost,
        RecordTrajectory,
        tool_env,
        agent_gym.state_hash,
        lambda env: agent_gym.restore(env, None),
    ):
        with pytest.raises(TypeError, match="CartPoleEnv"):
            use(cart)
    with pytest.raises(RuntimeError, match="reset"):
        agent_gym.snapshot(api)
    api.reset(seed=0)
    sql.reset(seed=0)
    with pytest.raises(ValueError, match=r"APIAgentEnv.*SQLEnv"):
        agent_gym.restore(sql, agent_gym.snapshot(api))
    with pytest.raises(TypeError, match=r"Snapshot.*not str"):
        agent_gym.restore(api, "x")
    assert tool_env(ScalarCost(api)) is api.unwrapped


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"token_counter": "gpt2"}, ValueError, "'gpt2'"),
        ({"token_counter": lambda text: None}, ValueError, "returned None"),
        ({"token_counter": lambda text: -1}, ValueError, "returned -1"),
        ({"reasoning": "<think>"}, ValueError, "opening and the closing"),
        ({"reasoning": ["a", "a"]}, ValueError, "opening and the closing"),
        ({"max_calls": 0}, ValueError, "max_calls=0"),
        ({"parser": object()}, TypeError, "parse and render"),
        ({"parser": HermesParser}, TypeError, "parse and render"),
        ({"parser": "xml"}, ValueError, "qwen3_coder"),
    ],
)
def test_wrong_arguments_are_named(env_id, kwargs, error, says):
    with pytest.raises(error, match=says):
        make(env_id, **kwargs)


def test_a_parser_object_is_taken():
    env = RecordTrajectory(make("APIAgent-v0", domains=["shop"], parser=PARSERS["llama3"]))
    env.reset(seed=0)
    env.step('{"name": "list_orders", "parameters": {}}')
    env.step("Done.")
    assert env.last.steps[0].tool_results[0]["name"] == "list_orders"
    assert "parser" not in env.last.env_kwargs
    (found,) = agent_gym.counterfactuals(env, env.last, [agent_gym.Delete(0)], workers=1)
    assert found.cost["tool_calls"] == 0.0


def test_options_and_paths(tmp_path):
    env = make("APIAgent-v0")
    with pytest.raises(ValueError, match="options is a dict"):
        env.unwrapped.reset(options="train-1-1")
    for path, says in ((tmp_path / "nope" / "a", "no folder"), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=says):
            RecordTrajectory(env, path)


@pytest.mark.parametrize("parser", PARSERS)
def test_a_call_that_cannot_be_read_stays_so_when_written_again(parser):
    env = make("APIAgent-v0", domains=["shop"], parser=parser)
    env.reset(seed=1)
    bad = Call("list_orders", error="bad", written='{"name": "list_orders", "arguments": [}')
    turn_ = env.unwrapped.read(env.unwrapped.write(agent_gym.Turn("", (bad, Call("return_policy")))))
    assert [bool(one.error) for one in turn_.calls] == [True, False]
    *_, info = env.step(env.unwrapped.write(turn_))
    assert [result["error"] for result in info["tool_results"]] == ["invalid", None]


def test_calls_after_one_that_ran_out_of_time_wait_for_the_next_turn():
    env = make("SQL-v0", instructions=1000)
    env.reset(seed=1)
    loop = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n"
    slow, quick = ("run_sql", {"query": loop}), ("list_tables", {})
    *_, info = env.step(turn(quick, slow, slow, quick))
    assert [result["error"] for result in info["tool_results"]] == [None, "timeout", "refused", "refused"]
    assert info["cost"]["tool_calls"] == 4.0
    *_, info = env.step(turn(quick))
    assert info["tool_results"][0]["error"] is None
