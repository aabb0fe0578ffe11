import json
import math

import pytest
from shop_play import TASKS, call, make, play, turn, write_tasks

import agent_gym
from agent_gym import CHANNELS, InfraError, Unicode
from agent_gym.env import Outcome
from agent_gym.envs.api_agent import APIAgentEnv
from agent_gym.wrappers import RecordTrajectory

LIST = call("list_orders")
BROKEN = [
    call("no_such_tool", x=1),
    call("get_order"),
    call("get_order", order_id=5),
    call("get_order", order_id="O1", extra=1),
    call("set_tier", customer_id="C1001", tier="platinum"),
    call("get_order", order_id="O404404"),
    '<tool_call>{"name": "get_order", "arguments": {"order_id": "O1"}',
    "<tool_call>",
    "<tool_call></tool_call>",
    "<tool_call>[1, 2]</tool_call>",
    '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "get_order", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "get_order", "arguments": "{"}</tool_call>',
    '<tool_call>{"name": "get_order", "arguments": {"order_id": NaN}}</tool_call>',
    '<tool_call>{"name": "submit", "arguments": {"answer": Infinity}}</tool_call>',
    '<tool_call>{"name": "submit", "arguments": {"answer": 1e999}}</tool_call>',
    '<tool_call>{"name": "get_order", "arguments": {"order_id": "\\ud800"}}</tool_call>',
    '<tool_call>{"name": "get_order", "arguments": {"order_id": "\ud800"}}</tool_call>',
    '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "submit", "arguments": {"answer": ' + "[" * 300 + "]" * 300 + "}}</tool_call>",
    "<tool_call>" + "[" * 50_000 + "</tool_call>",
    '<tool_call>{"name": "submit", "arguments": {"answer": ' + '{"a":' * 20_000 + "</tool_call>",
    '<tool_call>{"name": "get_order", "arguments": {"order_id": ' + "9" * 4000 + "}}</tool_call>",
    '<tool_call>{"name": "get_order", "arguments": {"order_id": ' + "9" * 6000 + "}}</tool_call>",
    call("get_order", **{"x" * 40_000: 1}),
    call("y" * 60_000),
    LIST + " " * 1_000_000,
    "z" * 1_000_000,
]  # fmt: skip


# ---- the space ----


def test_space_holds_what_can_be_encoded():
    space = Unicode(8, seed=1)
    assert all(space.contains(space.sample()) for _ in range(300))
    assert "12345678" in space
    assert "" in space
    assert "123456789" not in space
    assert "\ud800" not in space
    assert 5 not in space
    assert Unicode(8) == Unicode(8) != Unicode(9)
    space.seed(4)
    first = [space.sample() for _ in range(5)]
    space.seed(4)
    assert first == [space.sample() for _ in range(5)]
    with pytest.raises(ValueError, match="max_length must be 1 or more"):
        Unicode(0)


# ---- info ----


def _check_info(info):
    for field in ("cost", "cost_total"):
        assert list(info[field]) == list(CHANNELS)
    for field in ("cost", "cost_total", "budget_left"):
        assert all(type(value) is float for value in info[field].values())
    assert list(info["budget_left"]) == ["latency_ms"]
    assert len(info["state_hash"]) == 32
    for result in info["tool_results"]:
        assert set(result) == {"id", "name", "arguments", "content", "error", "latency_ms"}
    json.dumps(info, allow_nan=False)


def _scramble(value):
    if isinstance(value, dict):
        for item in value.values():
            _scramble(item)
        value.clear()
    elif isinstance(value, list):
        for item in value:
            _scramble(item)
        value.append("spoilt")


def test_info_on_every_step_is_complete_and_nobody_elses():
    """Spoiling every info changes nothing in what follows."""
    actions = [LIST, "<tool_call>{", turn(("get_orders", {"order_ids": ["O1", "O2"]}), ("list_customers", {}))]
    plain, spoilt = make(budget={"latency_ms": 1e6}), make(budget={"latency_ms": 1e6})
    trails = []
    for env in (plain, spoilt):
        trail = []
        for _ in range(2):
            observation, info = env.reset(seed=11)
            assert [m["role"] for m in info["messages"]] == ["system", "user"]
            assert info["messages"][1]["content"] == observation
            assert info["tools"][-1]["function"]["name"] == "submit"
            assert info["cost"] == info["cost_total"] == dict.fromkeys(CHANNELS, 0.0)
            trail.append(json.dumps(info))
            _check_info(info)
            if env is spoilt:
                _scramble(info)
            total = dict.fromkeys(CHANNELS, 0.0)
            for action in [*actions, env.unwrapped.oracle()[0], "end"]:
                *rest, info = env.step(action)
                _check_info(info)
                for channel in CHANNELS:
                    total[channel] += info["cost"][channel]
                assert info["cost_total"] == pytest.approx(total)
                assert info["budget_left"]["latency_ms"] == pytest.approx(1e6 - total["latency_ms"])
                trail.append((*rest, json.dumps(info)))
                if env is spoilt:
                    _scramble(info)
            assert "verdict" in trail[-1][-1]
        trails.append(trail)
    assert trails[0] == trails[1]
    assert trails[0][: len(trails[0]) // 2] == trails[0][len(trails[0]) // 2 :]


# ---- budgets ----


def test_budget_equal_to_the_bound_is_within(tmp_path):
    env = make(tasks=write_tasks(tmp_path / "t"), budget={"tool_calls": 1})
    env.reset(options={"task": "named"})
    *_, truncated, info = env.step(call("refund_order", order_id="O2001"))
    assert not truncated
    assert info["budget_left"]["tool_calls"] == 0.0
    _, reward, terminated, truncated, info = env.step("Done.")
    assert (reward, terminated, truncated) == (1.0, True, False)


def test_call_above_the_budget_is_charged_but_not_executed(tmp_path):
    env = make(tasks=write_tasks(tmp_path / "t"), budget={"tool_calls": 1})
    _, start = env.reset(options={"task": "named"})
    two = turn(("get_order", {"order_id": "O2001"}), ("refund_order", {"order_id": "O2001"}))
    _, reward, terminated, truncated, info = env.step(two)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["cost"]["tool_calls"] == 2.0
    assert [(r["name"], r["error"]) for r in info["tool_results"]] == [("get_order", None), ("refund_order", "not_run")]
    assert info["state_hash"] == start["state_hash"]
    assert (info["verdict"]["status"], info["verdict"]["reason"]) == ("fail", "budget")
    assert info["verdict"]["diagnostics"]


def test_latency_budget_is_inclusive_and_the_late_call_has_no_effect(tmp_path):
    path, refund = write_tasks(tmp_path / "t"), call("refund_order", order_id="O2001")
    free = make(tasks=path)
    _, start = free.reset(options={"task": "named"})
    spent = free.step(refund)[-1]["cost"]["latency_ms"]
    for bound, over in ((spent, False), (spent - 0.001, True)):
        env = make(tasks=path, budget={"latency_ms": bound})
        env.reset(options={"task": "named"})
        *_, truncated, info = env.step(refund)
        assert truncated is over
        assert info["cost"]["latency_ms"] == spent
        assert (info["state_hash"] == start["state_hash"]) is over
        assert [r["error"] for r in info["tool_results"]] == ["not_run" if over else None]


def test_token_budget(tmp_path):
    action = call("refund_order", order_id="O2001")
    for bound, over in ((len(action), False), (len(action) - 1, True)):
        env = make(tasks=write_tasks(tmp_path / "t"), budget={"output_tokens": bound}, token_counter=len)
        _, start = env.reset(options={"task": "named"})
        *_, truncated, info = env.step(action)
        assert truncated is over
        assert info["cost"]["output_tokens"] == len(action)
        assert (info["state_hash"] == start["state_hash"]) is over


@pytest.mark.parametrize("channel", CHANNELS)
def test_zero_budget(channel):
    env = make(budget={channel: 0})
    env.reset(seed=0)
    observation, *_, truncated, info = env.step(LIST)
    assert truncated
    assert info["verdict"]["reason"] == "budget"
    assert observation == ""
    assert [r["error"] for r in info["tool_results"]] == ["not_run"]


def test_zero_calls_still_allow_an_answer():
    env = make(budget={"tool_calls": 0})
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step("No call at all.")
    assert (terminated, truncated) == (True, False)


def test_record_mode_only_reports():
    env = make(budget={"tool_calls": 1, "latency_ms": 0}, on_budget="record")
    env.reset(seed=0)
    for n in range(3):
        _, _, terminated, truncated, info = env.step(LIST)
        assert not terminated
        assert not truncated
        assert info["budget_left"]["tool_calls"] == -float(n)
        assert info["budget_left"]["latency_ms"] < 0


# ---- ends ----


def test_submit_ends_a_turn_of_several_calls(tmp_path):
    env = make(tasks=write_tasks(tmp_path / "t"))
    _, start = env.reset(options={"task": "question"})
    action = turn(
        ("get_order", {"order_id": "O2003"}),
        ("submit", {"answer": {"status": "sent"}}),
        ("refund_order", {"order_id": "O2001"}),
    )
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["cost"]["tool_calls"] == 2.0
    assert info["state_hash"] == start["state_hash"]
    env.reset(options={"task": "question"})
    _, reward, terminated, *_ = env.step(call("submit", answer='{"status": "sent"}'))
    assert (reward, terminated) == (1.0, True)


def test_unreadable_submit_does_not_end():
    env = make()
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(call("submit", answers="x"))
    assert not terminated
    assert not truncated
    assert info["tool_results"][0]["error"] == "invalid"


def test_turn_limit_truncates_with_sub_scores(tmp_path):
    env = make(tasks=write_tasks(tmp_path / "t"), max_turns=2)
    env.reset(options={"task": "named"})
    assert env.step(call("refund_order", order_id="O2001"))[3] is False
    _, reward, terminated, truncated, info = env.step(LIST)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["verdict"]["reason"] == "turn_limit"
    assert info["verdict"]["score"] == 1.0
    env.reset(options={"task": "named"})
    env.step(call("refund_order", order_id="O2001"))
    assert env.step("Done.")[1:4] == (1.0, True, False)


@pytest.mark.parametrize("action", BROKEN, ids=range(len(BROKEN)))
def test_invalid_call_costs_one_call_and_never_raises(action):
    env = make(render_mode="ansi")
    _, start = env.reset(seed=2)
    observation, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["cost"]["tool_calls"] == 1.0
    assert info["cost"]["latency_ms"] > 0.0
    (result,) = info["tool_results"]
    assert result["error"] is not None
    assert json.loads(result["content"])["message"] if len(result["content"]) < 10_000 else True
    assert observation in env.observation_space
    assert info["state_hash"] == start["state_hash"]
    json.dumps(info, allow_nan=True)
    env.step("Still alive.")


def test_observation_of_many_long_results_stays_in_its_space():
    env = make()
    env.reset(seed=2)
    observation, *_ = env.step(turn(*[("y" * 10_000, {})] * 6))
    assert observation in env.observation_space


def test_call_recorded_with_any_action_can_be_written():
    env = RecordTrajectory(make())
    for action in BROKEN:
        trajectory = play(env, None, [action, "end"])
        assert agent_gym.Trajectory.from_json(trajectory.to_json()) == trajectory


def test_infra_is_no_verdict():
    class Unlucky(APIAgentEnv):
        def _verify(self, answer):
            raise InfraError("the judge is ill")

    env = Unlucky(domains=["shop"])
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("Done.")
    assert terminated
    assert math.isnan(reward)
    assert info["verdict"]["status"] == info["verdict"]["reason"] == "infra"
    assert info["verdict"]["diagnostics"] == ["the judge is ill"]


def test_infra_in_a_tool_ends_the_episode_without_a_verdict():
    class Unlucky(APIAgentEnv):
        def _execute(self, tool, arguments) -> Outcome:
            raise InfraError("the service is ill")

    env = Unlucky(domains=["shop"])
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(LIST)
    assert (terminated, truncated) == (False, True)
    assert math.isnan(reward)
    assert info["verdict"]["status"] == "infra"
    with pytest.raises(RuntimeError, match="reset"):
        env.step(LIST)


# ---- faults of the caller ----


@pytest.mark.parametrize(
    ("kwargs", "error", "names", "remedy"),
    [
        ({"budgets": {}}, TypeError, "'budgets'", "no keyword argument"),
        ({"budget": {"tool_calls": -1}}, ValueError, "tool_calls", "0 or more"),
        ({"budget": {"tool_calls": math.nan}}, ValueError, "nan", "0 or more"),
        ({"budget": {"calls": 1}}, ValueError, "'calls'", "tool_calls"),
        ({"budget": 5}, ValueError, "budget=5", "tool_calls"),
        ({"on_budget": "stop"}, ValueError, "'stop'", "'truncate', 'record'"),
        ({"latency": "none"}, ValueError, "'none'", "'model', 'wall'"),
        ({"parser": "xml"}, ValueError, "'xml'", "'hermes', 'openai'"),
        ({"max_turns": 0}, ValueError, "max_turns=0", "1 or more"),
        ({"max_turns": 2.5}, ValueError, "2.5", "whole number"),
        ({"split": "dev"}, ValueError, "'dev'", "'validation' or 'test'"),
        ({"difficulty": 9}, ValueError, "9", "from 1 to 8"),
        ({"difficulty": 2.5}, ValueError, "2.5", "whole number"),
        ({"difficulty": "3"}, ValueError, "'3'", "whole number"),
        ({"difficulty": True}, ValueError, "True", "whole number"),
        ({"difficulty": [5, 2]}, ValueError, "5, 2", "least, most"),
        ({"domains": ["bank"]}, ValueError, "'bank'", "shop"),
        ({"domains": []}, ValueError, "domains", "shop"),
        ({"tasks": "/nowhere/tasks.jsonl"}, ValueError, "/nowhere/tasks.jsonl", "file"),
    ],
)
def test_wrong_arguments_are_named_with_a_remedy(kwargs, error, names, remedy):
    with pytest.raises(error) as caught:
        APIAgentEnv(**{"domains": ["shop"], **kwargs})
    assert names in str(caught.value)
    assert remedy in str(caught.value)


def test_wrong_use_is_named_with_a_remedy(tmp_path):
    env = APIAgentEnv(domains=["shop"])
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step"):
        env.step("x")
    with pytest.raises(ValueError, match="such as 'train-3-42'"):
        env.reset(options={"task": "train-9-1"})
    with pytest.raises(ValueError, match=r"'tusk'.*'task'"):
        env.reset(options={"tusk": 1})
    env.reset(seed=1)
    with pytest.raises(TypeError, match=r"text \(str\) or an assistant message \(dict\), not int"):
        env.step(5)
    env.step("Done.")
    with pytest.raises(RuntimeError, match="reset"):
        env.step("again")
    given = APIAgentEnv(tasks=write_tasks(tmp_path / "t"))
    with pytest.raises(ValueError, match=r"'nope'.*'cascade'"):
        given.reset(options={"task": "nope"})
    (tmp_path / "bad").write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match="bad, record 1: the key 'request' is missing; the file has no task"):
        APIAgentEnv(tasks=str(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"domains": ["bank"]}, "'bank'"),
        ({"tables": {"order": []}}, "unknown table 'order'; there are customers, orders, products"),
        ({"tables": {"orders": [{"id": "O1"}]}}, "customer"),
        ({"calls": [{"name": "fly", "arguments": {}}]}, "'fly'"),
        ({"calls": [{"name": "get_order", "arguments": {"order_id": "O404"}}]}, "there is no 'O404' in orders"),
        ({"id": "cascade"}, "the id 'cascade' is taken"),
    ],
)
def test_bad_task_is_named_and_left_out(tmp_path, changes, says):
    path = write_tasks(tmp_path / "t", [TASKS[0], {**TASKS[1], **changes}])
    with pytest.warns(UserWarning, match="t: 1 of 2 records were left out; record 2: ") as caught:
        env = APIAgentEnv(tasks=path)
    assert says in str(caught[0].message)
    assert env.task_ids == ("cascade",)
    (fault,) = env.left_out.values()
    assert says in fault
    with pytest.raises(ValueError, match="the file has no task"):
        APIAgentEnv(tasks=write_tasks(tmp_path / "empty", []))


# ---- the oracle, the clock ----


def test_oracle_passes_and_costs_the_difficulty():
    for difficulty in range(1, 7):  # what the shop alone has
        env = make(difficulty=difficulty)
        env.reset(seed=difficulty)
        for action in env.unwrapped.oracle():
            _, reward, terminated, _, info = env.step(action)
        assert (reward, terminated) == (1.0, True)
        assert info["cost_total"]["tool_calls"] == difficulty


def test_wall_latency_is_measured():
    env = make(latency="wall")
    env.reset(seed=0)
    info = env.step(LIST)[-1]
    assert 0.0 < info["cost"]["latency_ms"] < 300.0
