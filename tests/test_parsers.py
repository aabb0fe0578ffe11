import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_play import turn

from agent_gym import PARSERS, Call, Turn
from agent_gym.tools import MOST_NESTED, dump, load

HERMES, OPENAI = PARSERS["hermes"], PARSERS["openai"]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = text.filter(bool)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(st.builds(Call, names, st.dictionaries(text, values, max_size=3)), max_size=4)
tags = st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name": "a", "arguments": {}}', '"', "{", "}", "\\u", "\ud800", "NaN"]
)


@pytest.mark.parametrize("parser", PARSERS.values(), ids=list(PARSERS))
@given(st.lists(tags | st.text(max_size=5), max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_parse_accepts_every_string(parser, action):
    parsed = parser.parse(action)
    assert isinstance(parsed, Turn)
    for one in parsed.calls:
        assert isinstance(one.arguments, dict)
        assert one.name or one.error
        dump(one.arguments).encode()  # what was read can be written


@pytest.mark.parametrize("parser", PARSERS.values(), ids=list(PARSERS))
@given(calls.filter(bool), st.data())
@settings(max_examples=300, deadline=None)
def test_near_misses_never_raise(parser, written, data):
    action = parser.render("text", written)
    at = data.draw(st.integers(0, len(action)))
    cut = data.draw(st.integers(0, 3))
    parser.parse(action[:at] + data.draw(st.text(max_size=2)) + action[at + cut :])
    parser.parse(action[:at])


@given(text.filter(lambda t: "<tool_call>" not in t), calls)
@settings(max_examples=300, deadline=None)
def test_hermes_round_trip(words, written):
    assert HERMES.parse(HERMES.render(words, written)) == Turn(words.strip(), tuple(written))


@given(text, calls)
@settings(max_examples=300, deadline=None)
def test_openai_round_trip(words, written):
    parsed = OPENAI.parse(OPENAI.render(words, written))
    assert parsed.text == words.strip()
    assert [(c.name, c.arguments) for c in parsed.calls] == [(c.name, c.arguments) for c in written]
    assert [c.id for c in parsed.calls] == [f"call_{i}" for i in range(len(written))]


def test_hermes_keeps_tags_inside_strings():
    written = Call("note", {"text": 'say <tool_call>{"a": 1}</tool_call> {twice}'})
    assert HERMES.parse(HERMES.render("", [written])).calls == (written,)


@pytest.mark.parametrize(
    ("action", "words", "found"),
    [
        ("just words", "just words", []),
        ("  padded \n", "padded", []),
        ("", "", []),
        ('a <tool_call>{"name":"f","arguments":{"x":1}}</tool_call> b', "a  b", [("f", {"x": 1})]),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', "", [("f", {"x": 1})]),
        ('<tool_call>{"name":"f","arguments":"{\\"x\\": 1}"}</tool_call>', "", [("f", {"x": 1})]),
        ('<tool_call>{"name":"f","arguments":""}</tool_call>', "", [("f", {})]),
        ('<tool_call>{"name":"f","arguments":null}</tool_call>', "", [("f", {})]),
        ('<tool_call>{"name":"f"}</tool_call>', "", [("f", {})]),
        ('<tool_call>{"name":"f"}<tool_call>{"name":"g"}</tool_call>', "", [("f", {}), ("g", {})]),
        ('<tool_call>{"name":"f"}</tool_call><tool_call>{"name":"g"}', "", [("f", {}), ("g", {})]),
        ('<tool_call>{"name":"f","arguments":{"x":"}{{\\"}"}}</tool_call>', "", [("f", {"x": '}{{"}'})]),
        ("a </tool_call> b", "a </tool_call> b", []),
    ],
)
def test_hermes_variants(action, words, found):
    parsed = HERMES.parse(action)
    assert parsed.text == words
    assert [(c.name, c.arguments, c.error) for c in parsed.calls] == [(n, a, None) for n, a in found]


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("<tool_call>{</tool_call>", "not valid JSON"),
        ("<tool_call>[]</tool_call>", "must be a JSON object"),
        ('<tool_call>{"arguments": {}}</tool_call>', '"name"'),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "not list"),
        ('<tool_call>{"name": "f", "arguments": "no"}</tool_call>', "not valid JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "NaN"),
        ('<tool_call>{"name": "f", "arguments": {"x": 1e400}}</tool_call>', "1e400 is too large"),
        ('<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', "surrogates"),
    ],
)
def test_hermes_says_what_is_wrong(action, says):
    (one,) = HERMES.parse(action).calls
    assert says in one.error


@pytest.mark.parametrize(
    ("message", "words", "found"),
    [
        ({"content": "hello"}, "hello", []),
        ({"content": None}, "", []),
        ({"content": None, "tool_calls": []}, "", []),
        (
            {"content": " go ", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
            "go",
            [("f", {"x": 1}, "c1")],
        ),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}, "", [("f", {"x": 1}, None)]),
        ({"tool_calls": {"function": {"name": "f"}}}, "", [("f", {}, None)]),
        (
            {"tool_calls": [{"id": 7, "function": {"name": "f"}}, {"id": "b", "function": {"name": "g"}}]},
            "",
            [("f", {}, None), ("g", {}, "b")],
        ),
    ],
)
def test_openai_variants(message, words, found):
    parsed = OPENAI.parse(json.dumps(message))
    assert parsed.text == words
    assert [(c.name, c.arguments, c.id) for c in parsed.calls] == found
    assert all(c.error is None for c in parsed.calls)


@pytest.mark.parametrize("calls", [["f"], [{}], [{"function": "f"}], "f", 5, [{"function": {"name": ""}}]])
def test_openai_says_what_is_wrong(calls):
    (one,) = OPENAI.parse(json.dumps({"tool_calls": calls})).calls
    assert "needs a" in one.error


@pytest.mark.parametrize("answer", ["plain", "[1, 2]", "42", '{"status": "open"}', '"quoted"'])
def test_openai_answers_without_calls(answer):
    assert OPENAI.parse(answer) == Turn(answer)


def test_nesting_is_bounded():
    deepest = "[" * MOST_NESTED + "]" * MOST_NESTED
    assert dump(load(deepest)) == deepest
    for depth in (MOST_NESTED + 1, 5_000, 100_000):
        with pytest.raises(ValueError, match=f"nested more than {MOST_NESTED} deep"):
            load("[" * depth + "]" * depth)
    assert len(load("[" + "[]," * 500 + "[]]")) == 501


def test_helper_writes_hermes():
    assert HERMES.parse(turn(("f", {"x": 1}), text="go")) == Turn("go", (Call("f", {"x": 1}),))
