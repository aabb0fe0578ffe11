"""What holds in every environment, for every format in which a model may write."""

import json
import math
import subprocess
import sys
from itertools import permutations

import gymnasium as gym
import pytest
from gymnasium.wrappers import TimeLimit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandbox_backends import require
from shop_play import REFUND, call, task, turn, write_tasks

import agent_gym
from agent_gym import CHANNELS, PARSERS, Call, metrics, tool_env
from agent_gym.costs import approximate_tokens
from agent_gym.env import SUBMIT, fingerprint
from agent_gym.formats import HermesParser, canonical_text
from agent_gym.wrappers import RecordTrajectory, ScalarCost

KINDS = {
    "APIAgent-v0": {},
    "CodeAgent-v0": {"sandbox": "bubblewrap"},
    "SQL-v0": {},
    "WebLite-v0": {},
}
ONE_CALL = {"APIAgent-v0": "get_order", "CodeAgent-v0": "list_files", "SQL-v0": "list_tables", "WebLite-v0": "look"}


def make(env_id, **kwargs):
    if env_id == "CodeAgent-v0":
        require("bubblewrap")
    return gym.make(env_id, disable_env_checker=True, **KINDS[env_id], **kwargs)


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


def test_hashes_are_the_same_in_another_process(env_id):
    env = make(env_id)
    code = (
        "import gymnasium as gym, agent_gym, json, sys\n"
        f"env = gym.make({env_id!r}, disable_env_checker=True, **{KINDS[env_id]!r})\n"
        "print(json.dumps(env.unwrapped.task_list(3, seed=1)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [tuple(one) for one in json.loads(found.stdout)] == env.unwrapped.task_list(3, seed=1)
    env.close()


def test_a_split_refuses_the_other_splits_tasks(env_id):
    train, test = make(env_id, split="train"), make(env_id, split="test")
    for own, other in ((train, test), (test, train)):
        _, info = other.reset(seed=1)
        with pytest.raises(ValueError, match=rf"split '{other.unwrapped.split}'.*'{own.unwrapped.split}'"):
            own.reset(options={"task": info["task_id"]})
    train.close()
    test.close()


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
