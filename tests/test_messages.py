"""Messages: chats that an API takes and chat templates render, whatever is played."""

import json
import pickle
import re
from contextlib import closing
from functools import cache

import gymnasium as gym
import pytest

pytest.importorskip("transformers", reason="the chat templates need the extra 'train'")

from chat_templates import CASES, needed, tokenizer
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_backends import require
from shop_play import call, make, turn
from walks import WALKED, walk

from agent_gym import PARSERS, Call, Delete, counterfactuals, eliminate, restore, snapshot, state_hash, tool_env
from agent_gym.spaces import Conversation
from agent_gym.wrappers import Messages, RecordTrajectory, ScalarCost, WallClock

NATIVE = ["Qwen2.5", "Qwen3", "Hermes-3", "Devstral", "Nemotron"]  # they show calls, any number in a turn
WORDS = sorted({*CASES} - {"Gemma-2"})  # which has no system role
LIST = call("list_orders")


def check_native(messages):
    """What OpenAI's API refuses, and no more: see the reference of chat completions."""
    json.dumps(messages, allow_nan=False).encode()
    ids = set()
    assert [one["role"] for one in messages[:2]] == ["system", "user"]
    rest = list(messages)
    while rest:
        one = rest.pop(0)
        assert isinstance(one["content"], str)
        assert one["role"] in ("system", "user", "assistant")  # a result stands behind its call alone
        assert set(one) - {"role", "content"} <= ({"tool_calls"} if one["role"] == "assistant" else set())
        if "tool_calls" not in one:
            continue
        assert one["tool_calls"]
        for asked in one["tool_calls"]:
            assert set(asked) == {"id", "type", "function"}
            assert asked["type"] == "function"
            assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", asked["function"]["name"])
            assert isinstance(json.loads(asked["function"]["arguments"]), dict)
            assert asked["id"] not in ids
            assert 1 <= len(asked["id"]) <= 40
            ids.add(asked["id"])
        answers, rest = rest[: len(one["tool_calls"])], rest[len(one["tool_calls"]) :]
        assert [set(answer) for answer in answers] == [{"role", "tool_call_id", "content"}] * len(one["tool_calls"])
        assert [(answer["role"], answer["tool_call_id"]) for answer in answers] == [
            ("tool", asked["id"]) for asked in one["tool_calls"]
        ]
        assert all(isinstance(answer["content"], str) for answer in answers)


def check_words(messages):
    """System, user, and from there assistant and user in turns."""
    json.dumps(messages).encode()
    assert all(set(one) == {"role", "content"} and isinstance(one["content"], str) for one in messages)
    roles = [one["role"] for one in messages]
    assert roles == ["system", *(["user", "assistant"] * len(roles))[: len(roles) - 1]]


@cache
def template(name):
    return tokenizer(CASES[name])


def render(tokenizer, messages, tools=None):
    opens = messages[-1]["role"] != "assistant"
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=opens)


# ---- any episode -----------------------------------------------------------------------------------------------------

words = st.text(max_size=12) | st.sampled_from(["Done.", "", "<think>hm</think>So.", "<think>", "<tool_call>", "</s>"])
NAMES = ["list_orders", "get_order", "submit", "invented", "", "not a name", "n" * 65, "é"]
names = st.sampled_from(["list_orders", "get_order", "invented"]) | st.sampled_from(NAMES)
arguments = st.dictionaries(st.sampled_from(["order_id", "answer", "x"]), words | st.none() | st.integers(), max_size=2)
calls = st.lists(st.tuples(names, arguments), min_size=1, max_size=4)
ids = st.sampled_from(["call_1", "call_1", "call00000", "call00001", "", "i" * 41, "é", None, 5])


@st.composite
def entries(draw):
    """Of ``tool_calls``, most of them as they should be."""
    name, given = draw(st.tuples(names, arguments))
    spelled = draw(st.sampled_from([json.dumps(given), given, "{broken", "[1]", None]))
    whole = {"id": draw(ids), "type": "function", "function": {"name": name, "arguments": spelled}}
    return draw(st.sampled_from([whole] * 6 + [{"id": "call_1"}, "no call", {"function": 1}]))


messages = st.builds(
    lambda content, calls, more: {"role": "assistant", "content": content, "tool_calls": calls, **more},
    words | st.none() | st.lists(st.builds(lambda text: {"type": "text", "text": text}, words), max_size=2),
    st.lists(entries(), min_size=1, max_size=3),
    st.sampled_from(
        [{}, {}, {}, {}, {}, {"reasoning_content": "hm"}, {"finish_reason": "length"}, {"output_tokens": 3}]
    ),
)
written = st.one_of(
    st.builds(lambda text, made: ("write", text, made), words, calls),
    st.builds(lambda text, made, end: ("cut", text, made, end), words, calls, st.integers(1, 30)),
)
played_on = st.lists(st.one_of(written, messages, messages, st.just(f"{LIST}<tool_call>{{")), min_size=2, max_size=5)
turns = st.builds(lambda most, last: [*most, *last], played_on, st.lists(words, max_size=1))  # an answer ends it all
settings_of = st.fixed_dictionaries(
    {
        "parser": st.sampled_from([*PARSERS]),
        "budget": st.sampled_from([{}, {}, {}, {"tool_calls": 4}, {"output_tokens": 90}, {"read_tokens": 300}]),
        "max_calls": st.sampled_from([2, 16]),
        "max_turns": st.sampled_from([4, 16]),
    }
)


def action_of(one, parser):
    """A drawn turn in the format that is read."""
    if not isinstance(one, tuple):
        return one
    action = PARSERS[parser].render(one[1], [Call(name, given) for name, given in one[2]])
    return action if one[0] == "write" else action[: -one[3]]


@pytest.mark.parametrize("native", [True, False])
def test_any_episode_is_a_chat_that_an_api_takes_and_templates_render(native):
    check = check_native if native else check_words
    rendered = ["Qwen3", "Devstral"] if native else ["Llama-2", "Gemma-3", "Mistral-Small"]

    @settings(max_examples=60)
    @given(kwargs=settings_of, seed=st.integers(0, 99), played=turns)
    def any_episode(kwargs, seed, played):
        env = RecordTrajectory(Messages(make(**kwargs), native))
        observation, info = env.reset(seed=seed)
        chats, snaps, done = [observation], [snapshot(env)], False
        for one in played:
            if done:
                break
            action = action_of(one, kwargs["parser"])
            *_, terminated, truncated, info = step = env.step(action)
            check(step[0])
            assert step[0][: len(chats[-1])] == chats[-1]  # nothing that was said changes
            said, *heard = step[0][len(chats[-1]) :]
            assert said["role"] == "assistant"
            if isinstance(action, str) and not native:
                assert said["content"] == action
            for result in info["tool_results"]:
                assert any(result["content"] in one["content"] for one in heard)
            done = terminated or truncated
            assert heard or done
            chats.append(step[0])
            snaps.append(snapshot(env))
        assert env.observation_space.contains(chats[-1])
        for name in rendered:
            text = render(template(name), chats[-1])
            assert "list_orders" in text or not any("list_orders" in str(one["content"]) for one in chats[-1])
        last = env.get_wrapper_attr("last")
        again = RecordTrajectory(Messages(make(**kwargs), native))
        for at, snap in enumerate(pickle.loads(pickle.dumps(snaps))):
            for other in (env, again):
                restore(other, snap)
                assert other.get_wrapper_attr("messages") == chats[at]
                for one, chat in zip(played[at:], chats[at + 1 :], strict=False):
                    assert other.step(action_of(one, kwargs["parser"]))[0] == chat
                if last is not None:
                    assert other.get_wrapper_attr("last") == last

    any_episode()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("env_id", WALKED)
def test_walks_in_every_environment(env_id, native):
    kwargs = WALKED[env_id]
    if env_id == "CodeAgent-v0":
        require("bubblewrap")
        kwargs = {**kwargs, "sandbox": "bubblewrap"}
    plain, env = gym.make(env_id, **kwargs), Messages(gym.make(env_id, **kwargs), native)
    with closing(plain), closing(env):
        text, told = plain.reset(seed=7)
        chat, info = env.reset(seed=7)
        assert info == {**told, "text": text}
        snaps = []
        for number in range(5):
            snaps.append((snapshot(env), env.messages, walk(env, number, 1)))
            (check_native if native else check_words)(env.messages)
            walk(plain, number, 1)
            assert state_hash(env) == state_hash(plain)
            assert tool_env(env).cost_total == tool_env(plain).cost_total
        assert max(len(chat) for _, chat, _ in snaps) > 3
        for number, (snap, chat, trail) in enumerate(snaps):
            restore(env, snap)
            assert env.messages == chat
            assert walk(env, number, 1) == trail  # observations, costs, hashes


# ---- templates -------------------------------------------------------------------------------------------------------

TURNS = [
    LIST,
    turn(("invented", {"x": "qqq"}), ("get_order", {"order_id": "O0"}), text="Look."),
    "<tool_call>{",
    call("get_order"),
    "Done.",
]


def played(native, **kwargs):
    """A chat with a bit of everything, and its tools."""
    env = Messages(make(**kwargs), native)
    _, info = env.reset(seed=3)
    for action in TURNS:
        chat, *_ = env.step(action)
    return chat, info["tools"]


@pytest.mark.parametrize("name", WORDS)
def test_every_template_renders_words(name):
    chat, _ = played(native=False)
    for end in range(2, len(chat), 2):  # where the assistant is to speak
        text = render(template(name), chat[:end])
        for one in chat[:end]:
            assert all(line in text for line in one["content"].split("\n"))


@pytest.mark.parametrize("name", NATIVE)
def test_templates_that_know_tools_render_calls_and_results(name):
    chat, tools = played(native=True)
    for end in range(2, len(chat) + 1):
        shown = render(template(name), chat[:end], tools)
    for word in ("invented", "qqq", "unknown_tool", "O0", "not valid JSON", "Field required", "Done."):
        assert word in shown


@pytest.mark.parametrize(("package", "native"), [
    ("qwen3", True), ("qwen3", False), ("llama3_1", False), ("gemma3", False), ("deepseek_v3", False),
])  # fmt: skip
def test_published_templates(package, native):
    chat, tools = played(native)
    shown = render(needed(package), chat, tools if native else None)
    for word in ("invented", "qqq", "unknown_tool", "O0", "not valid JSON", "Field required", "Done."):
        assert word in shown


# ---- what a chat holds -----------------------------------------------------------------------------------------------


def test_a_turn_and_its_results():
    env = Messages(make())
    chat, info = env.reset(seed=3)
    assert chat == info["messages"]
    two = turn(("return_policy", {}), ("invented", {}), text="I look.")
    chat, *_, info = env.step(f"<think>Which?</think>{two}")
    asked, first, second = chat[2:]
    assert asked["content"] == "I look."
    assert [one["function"] for one in asked["tool_calls"]] == [
        {"name": "return_policy", "arguments": "{}"}, {"name": "invented", "arguments": "{}"}
    ]  # fmt: skip
    assert [first["content"], second["content"]] == [one["content"] for one in info["tool_results"]]
    assert info["text"] == f"{first['content']}\n{second['content']}"


def test_ids_are_kept_where_an_api_takes_them():
    env = Messages(make())
    env.reset(seed=3)

    def ids(*given):
        function = {"name": "return_policy", "arguments": "{}"}
        calls = [{"id": id, "type": "function", "function": function} for id in given]
        chat, *_ = env.step({"role": "assistant", "content": None, "tool_calls": calls})
        check_native(chat)
        return [one["id"] for one in chat[-1 - len(given)]["tool_calls"]]

    assert ids("mine", "call00001") == ["mine", "call00001"]
    assert ids("mine", None, "x" * 41) == ["call00002", "call00003", "call00004"]


def test_calls_that_the_budget_stops_are_answered():
    env = Messages(make(budget={"tool_calls": 1}))
    env.reset(seed=3)
    chat, *_, truncated, info = env.step(turn(("return_policy", {}), ("return_policy", {}), ("return_policy", {})))
    assert truncated
    check_native(chat)
    assert ["not_run" in one["content"] for one in chat[-3:]] == [False, True, True]
    assert info["text"] == chat[-3]["content"]


def test_what_the_user_says_next_is_in_it():
    pytest.importorskip("bfcl_eval")
    pytest.importorskip("mpmath")
    for native, check in ((True, check_native), (False, check_words)):
        env = Messages(gym.make("APIAgent-v0", tasks="bfcl"), native)
        chat, _ = env.reset(seed=0)
        for action in tool_env(env).oracle():
            chat, _, terminated, _, info = env.step(action)
            check(chat)
            assert info["text"].split("\n")[-1] in chat[-1]["content"] or terminated
        assert terminated
        assert sum(one["role"] == "user" and "tool_response" not in one["content"] for one in chat) > 1


@pytest.mark.parametrize("parser", PARSERS)
def test_the_words_teach_the_format_that_is_read(parser):
    env = Messages(make(parser=parser), native=False)
    chat, info = env.reset(seed=0)
    (form,) = re.findall(r"Write a call as (.*?); its result\n", chat[0]["content"], re.DOTALL)
    (one,) = tool_env(env).read(form).calls
    assert (one.name, one.arguments) == ("NAME", {"PARAMETER": "VALUE"})
    for tool in info["tools"]:
        assert tool["function"]["description"] in chat[0]["content"]


def test_a_message_in_words_is_in_the_format_that_is_read():
    for parser in PARSERS:
        env = Messages(make(parser=parser), native=False)
        env.reset(seed=0)
        asked = {"id": "a", "type": "function", "function": {"name": "return_policy", "arguments": "{}"}}
        chat, *_ = env.step({"role": "assistant", "content": "So.", "tool_calls": [asked]})
        check_words(chat)
        assert tool_env(env).read(chat[-2]["content"]).calls[0].name == "return_policy"
        assert chat[-1]["content"].startswith("<tool_response>\n")


def test_a_chat_is_the_readers_own():
    env = Messages(make())
    chat, info = env.reset(seed=3)
    before = json.dumps(chat)
    info["messages"][0]["content"] = chat[1]["content"] = "spoilt"
    after, *_ = env.step(LIST)
    assert json.dumps(after[:2]) == before
    snap, kept = snapshot(env), json.dumps(after)
    after[2]["tool_calls"][0]["function"]["name"] = "spoilt"
    env.messages[2]["tool_calls"].clear()
    env.step(LIST)
    restore(env, snap)
    assert json.dumps(env.messages) == kept


# ---- with others -----------------------------------------------------------------------------------------------------


def test_check_env():
    check_env(Messages(make()), skip_render_check=True)


def test_recorders_and_replays_see_the_text():
    """Inside and outside of a recorder."""
    plain = RecordTrajectory(make())
    plain.reset(seed=3)
    oracle = plain.unwrapped.oracle()
    for action in (LIST, *oracle):
        plain.step(action)
    shorter = eliminate(plain, plain.last, {"tool_calls": 1.0})
    for env in (
        RecordTrajectory(Messages(make())), Messages(RecordTrajectory(make())),
        WallClock(ScalarCost(Messages(TimeLimit(RecordTrajectory(make()), 50), native=False))),
    ):  # fmt: skip
        env.reset(seed=3)
        for action in (LIST, *oracle[:1]):
            env.step(action)
        chat = env.get_wrapper_attr("messages")
        (less,) = counterfactuals(env, plain.last, [Delete(0)])
        assert less.reward == 1.0
        assert eliminate(env, plain.last, {"tool_calls": 1.0}) == shorter
        assert env.get_wrapper_attr("messages") == chat  # as if nothing had happened
        for action in oracle[1:]:
            env.step(action)
        assert env.get_wrapper_attr("last") == plain.last


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_vector_environments(kind, mode):
    more = {"shared_memory": False} if kind == "async" else {}
    envs = gym.make_vec(
        "APIAgent-v0", num_envs=2, vectorization_mode=kind, wrappers=[Messages], domains=["shop"],
        vector_kwargs={"autoreset_mode": mode, **more},
    )  # fmt: skip
    singles = [Messages(make()) for _ in range(2)]
    with closing(envs):
        chats, _ = envs.reset(seed=[1, 2])
        assert list(chats) == [env.reset(seed=seed)[0] for seed, env in enumerate(singles, 1)]
        assert chats in envs.observation_space
        chats, *_, info = envs.step([LIST, "Done."])
        expected = [env.step(action)[0] for env, action in zip(singles, [LIST, "Done."], strict=True)]
        if mode is AutoresetMode.SAME_STEP:
            assert info["final_obs"][1] == expected[1]
            expected[1] = singles[1].reset()[0]
        assert list(chats) == expected


def test_shared_memory_is_refused():
    with pytest.raises(ValueError, match="shared_memory=False"):
        gym.make_vec("APIAgent-v0", num_envs=2, vectorization_mode="async", wrappers=[Messages])


def test_it_travels_in_the_spec():
    env = Messages(make(), native=False)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert str(again) == str(env)
    assert again.reset(seed=1) == env.reset(seed=1)


def test_wrong_environments_are_named():
    with pytest.raises(TypeError, match="CartPoleEnv is not an environment of agent_gym"):
        Messages(gym.make("CartPole-v1"))
    with pytest.raises(TypeError, match=r"shows text, not Conversation\(\)"):
        Messages(Messages(make()))
    env = Messages(make())
    env.reset(seed=0)
    with pytest.raises(TypeError, match="an action is text"):
        env.step(5)
    assert len(env.messages) == 2


def test_the_space():
    space = Conversation(seed=1)
    sample = space.sample()
    assert sample in space
    assert sample == Conversation(seed=1).sample()
    assert space == Conversation()
    for wrong in ("text", [{"role": "user"}], [{"role": "boss", "content": ""}], [{"role": "user", "content": None}]):
        assert wrong not in space
