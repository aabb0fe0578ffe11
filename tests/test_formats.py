import gc
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_play import turn

from agent_gym import PARSERS, Call, Turn, register_parser
from agent_gym.formats import HermesParser, canonical_text, foreign_format, set_apart
from agent_gym.text import fenced, split_lines, syntax_tree
from agent_gym.tools import MOST_NESTED, dump, load

HERMES, OPENAI = PARSERS["hermes"], PARSERS["openai"]
QWEN, LLAMA, MISTRAL = PARSERS["qwen3_coder"], PARSERS["llama3"], PARSERS["mistral"]
THINK = ("<think>", "</think>")

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = text.filter(bool)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(st.builds(Call, names, st.dictionaries(text, values, max_size=3)), max_size=4)
tags = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        '{"name": "a", "arguments": {}}',
        '"',
        "{",
        "}",
        "\\u",
        "\ud800",
        "NaN",
        "<function=a>",
        "<parameter=b>",
        "</parameter>",
        "</function>",
        "<|python_tag|>",
        '{"name": "a", "parameters": {',
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "[",
        "]",
        ";",
        "\n",
        "<think>",
        "</think>",
        "&#60;",
        "&amp;",
        "```",
    ]
)
marked = st.lists(tags | st.text(max_size=5), max_size=12).map("".join)
clean = marked.map(lambda t: t.encode("utf-8", "ignore").decode())


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


@pytest.mark.parametrize("parser", PARSERS.values(), ids=list(PARSERS))
@given(text | clean, calls | st.lists(st.builds(Call, names, st.dictionaries(text, clean, max_size=2)), max_size=2))
@settings(max_examples=300, deadline=None)
def test_round_trip(parser, words, written):
    """Any text and any calls come back, whatever tags stand in them."""
    parsed = parser.parse(parser.render(words, written))
    assert parsed.text == words.strip()
    assert [(c.name, c.arguments, c.error) for c in parsed.calls] == [(c.name, c.arguments, None) for c in written]
    assert dump([c.arguments for c in parsed.calls]) == dump([c.arguments for c in written])  # 1 is not True
    if parser is OPENAI:
        assert [c.id for c in parsed.calls] == [f"call_{i}" for i in range(len(written))]


@given(clean.filter(lambda t: not foreign_format(t, HERMES)), calls)
@settings(max_examples=300, deadline=None)
def test_one_count_for_every_format(words, written):
    renderings = {canonical_text(parser.parse(parser.render(words, written))) for parser in PARSERS.values()}
    assert len(renderings) == 1


@pytest.mark.parametrize("parser", PARSERS.values(), ids=list(PARSERS))
@given(marked)
@settings(max_examples=200, deadline=None)
def test_reasoning_is_a_partition(parser, action):
    thought, said = set_apart(action, THINK)
    assert len(thought) + len(said) == len(action)
    assert set_apart(action, None) == ("", action)
    parser.parse(said)


def test_reasoning_is_set_apart():
    call_ = HERMES.render("", [Call("submit", {"answer": "</think>5"})])
    for action, thought, said in (
        ("plain", "", "plain"),
        ("<think>a</think>b", "<think>a</think>", "b"),
        ("a</think>b", "a</think>", "b"),  # a chat template opened it
        ("<think>abc", "<think>abc", ""),
        ("x<think>a</think>b<think>c", "<think>a</think><think>c", "xb"),
        ("<think>a<think>b</think>c", "<think>a<think>b</think>", "c"),
        (f"<think>{call_}</think>b", f"<think>{call_}</think>", "b"),
        (f"{call_}</think>b", f"{call_}</think>", "b"),
        (call_, "", call_),  # a tag inside the arguments is data
        (f"why</think>{call_}", "why</think>", call_),
        (f"{QWEN.render('', [Call('f', {'x': '<think>'})])}", "", QWEN.render("", [Call("f", {"x": "<think>"})])),
        (LLAMA.render("", [Call("f", {}), Call("f", {"x": "</think>"})]), "", None),
        (MISTRAL.render("", [Call("f", {"x": "</think>"})]), "", None),
    ):
        assert set_apart(action, THINK) == (thought, action if said is None else said)
    assert set_apart("[T]a[/T]b", ("[T]", "[/T]")) == ("[T]a[/T]", "b")


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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ([{"type": "image_url", "image_url": {}}, {"type": "output_text", "text": "c"}, "d"], "cd"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "e"}], "e"),
        ([], ""),
        (5, ""),
    ],
)
def test_openai_parts(content, words):
    parsed = OPENAI.parse(json.dumps({"role": "assistant", "content": content}))
    assert parsed == Turn(words)
    assert parsed.reasoning == ("hm" if words == "e" else "")


@pytest.mark.parametrize(
    ("parser", "action", "words", "found"),
    [
        (
            QWEN,
            "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
            "",
            [("f", {"x": 1})],
        ),
        (QWEN, "go <function=f><parameter=x>a b</parameter></function> on", "go on", [("f", {"x": "a b"})]),
        (
            QWEN,
            "<function=f>\n<parameter=x>\nfor a in b:\n    pass\n</parameter>\n</function>",
            "",
            [("f", {"x": "for a in b:\n    pass"})],
        ),
        (
            QWEN,
            "<tool_call>\n<function=f>\n</function>\n</tool_call>\n<tool_call>\n<function=g>",
            "",
            [("f", {}), ("g", {})],
        ),
        (QWEN, "<tool_call><function=f><parameter=x>\n[1, 2", "", [("f", {"x": "[1, 2"})]),
        (LLAMA, '{"name": "f", "parameters": {"x": 1}}', "", [("f", {"x": 1})]),
        (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"x": 1}}', "", [("f", {"x": 1})]),
        (
            LLAMA,
            '{"type": "function", "name": "f", "parameters": {}}; {"name": "g", "arguments": {}}',
            "",
            [("f", {}), ("g", {})],
        ),
        (LLAMA, '{"status": "open"}', '{"status": "open"}', []),
        (LLAMA, '{"name": "Ana", "city": "Rome"}', '{"name": "Ana", "city": "Rome"}', []),
        (LLAMA, "{curly} words", "{curly} words", []),
        (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}, "id": "a1"}]', "", [("f", {"x": 1})]),
        (MISTRAL, 'go[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]b2[ARGS]{}', "go", [("f", {"x": 1}), ("g", {})]),
        (HERMES, '<tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call>', "", [("f", {"x": 1})]),
        (
            HERMES,
            '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call> ok',
            "ok",
            [("f", {"x": "</tool_call>"})],
        ),
    ],
)
def test_what_models_write(parser, action, words, found):
    parsed = parser.parse(action)
    assert parsed.text == words
    assert [(c.name, c.arguments, c.error) for c in parsed.calls] == [(n, a, None) for n, a in found]


def test_ids_of_calls():
    assert MISTRAL.parse('[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "a1"}]').calls[0].id == "a1"
    assert MISTRAL.parse("[TOOL_CALLS]f[CALL_ID]b2[ARGS]{}").calls[0].id == "b2"


@pytest.mark.parametrize(
    ("parser", "action", "says"),
    [
        (HERMES, '<tool_call>{"name": "submit", "answer": "5"}</tool_call>', 'unknown key "answer"'),
        (HERMES, '<tool_call>{"name": "f", "arguments": {}, "parameters": {}}</tool_call>', "not both"),
        (HERMES, '<tool_call>{"name": "f"}} </tool_call>', "more text after the object"),
        (HERMES, "<tool_call>\n<function=f></function></tool_call>", "Qwen3-Coder's form"),
        (QWEN, '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "this is JSON"),
        (QWEN, "<function=f>x = 1</function>", "expected <parameter=key>"),
        (LLAMA, '<|python_tag|>{"name": "f", "parameters": {', "not valid JSON"),
        (LLAMA, '{"name": "f", "parameters": {"x": ', "not valid JSON"),
        (LLAMA, '<|python_tag|>print("x")', "not valid JSON"),
        (MISTRAL, "[TOOL_CALLS]f[ARGS]{", "not valid JSON"),
        (MISTRAL, "[TOOL_CALLS][]", "empty"),
        (OPENAI, '{"tool_calls": [{"function": {"name": "submit", "answer": "5"}}]}', 'unknown key "answer"'),
    ],
)
def test_what_cannot_be_read_says_why(parser, action, says):
    (one,) = parser.parse(action).calls
    assert says in one.error
    assert one.written


@pytest.mark.parametrize("reader", PARSERS)
@pytest.mark.parametrize("writer", PARSERS)
def test_a_call_in_another_format_is_recognised(reader, writer):
    written = PARSERS[writer].render("", [Call("f", {"x": 1})])
    if reader == writer:
        assert foreign_format(PARSERS[reader].parse("Done.").text, PARSERS[reader]) is None
    else:
        turn = PARSERS[reader].parse(written)
        assert foreign_format(turn.text, PARSERS[reader]) or turn.calls[0].error


@pytest.mark.parametrize(
    "answer", ["Done.", "42", '{"item": "x"}', '{"name": "Ana"}', "```json\n{}\n```", "SELECT 1", "[1]"]
)
def test_answers_are_no_calls(answer):
    assert not any(foreign_format(answer, parser) for parser in PARSERS.values())


def test_a_fenced_call_is_no_answer():
    assert foreign_format('```json\n{"name": "f", "arguments": {}}\n```', HERMES) == "llama3"


def test_a_parser_of_ones_own_is_registered_once():
    parser = HermesParser()
    try:
        assert register_parser("mine", parser) is register_parser("mine", parser)
        with pytest.raises(ValueError, match=r"'mine'.*taken"):
            register_parser("mine", HermesParser())
        with pytest.raises(TypeError, match="parse and render"):
            register_parser("other", object())
    finally:
        del PARSERS["mine"]


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


# ---- lines, fences, and time -----------------------------------------------------------------------------------


@given(st.text(st.sampled_from("a\n\r\x0b\x0c\x1c\x85\u2028\u2029")))
def test_lines_end_as_pythons_do(words):
    lines = split_lines(words)

    assert "".join(split_lines(words, keepends=True)) == words
    assert [line.rstrip("\r\n") for line in split_lines(words, keepends=True)] == lines
    assert [line.decode() for line in words.encode().splitlines()] == lines


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```json\n{}\n```", "{}"),
        ("The answer:\n```json\n{}\n```\nBye.", "{}"),
        ("It is ```{}```.", "{}"),
        ("```sql\nSELECT 1", "SELECT 1"),
        ("```SELECT 1```", "SELECT 1"),
        ("```json {}```", "{}"),
        ("``` \r\nx\r\n```", "x"),
        ("no fence ", "no fence"),
        ("```a```b```c```", "```a```b```c```"),
        ('{"a": "```"}', '{"a": "```"}'),
    ],
)
def test_fenced(text, found):
    assert fenced(text) == found


LONG = 65_536
"""The longest action. A quadratic pattern takes minutes for it, a linear one a moment."""


@pytest.mark.parametrize(
    "piece",
    [
        "```" + "\n" * LONG + "x",
        "<tool_call>" * (LONG // 11),
        "<tool_call>{" * (LONG // 12),
        '<tool_call>{"a":"' * (LONG // 17),
        "<function=" * (LONG // 10),
        "<function=a>" * (LONG // 12),
        "<parameter=a>" * (LONG // 13),
        "[TOOL_CALLS]" * (LONG // 12),
        "<function=a><parameter=b>" * (LONG // 25),
        "<function=a>" + "<parameter=b>" * (LONG // 13),
        "<|python_tag|>" * (LONG // 14),
        "<think>" * (LONG // 7),
        "</think>" * (LONG // 8),
        "<think></think>" * (LONG // 15),
        "&amp;" * (LONG // 5),
        "&" + "amp;" * (LONG // 4),
        "{" * LONG,
        "[" * LONG,
        " " * LONG + "<",
        "<tool_call>" + " " * LONG,
        "<tool_call>" + "\\" * LONG,
        '{"a":' * (LONG // 5),
        ";" * LONG,
        '{"name":"' + "a" * LONG,
        "{" + " " * LONG + '"name',
        "[TOOL_CALLS]" + "a" * LONG,
        "`" * LONG,
        "\r" * LONG,
        "<" * LONG,
        "<parameter=a></parameter>" * (LONG // 25),
        "```\n" * (LONG // 4),
        "<tool_call>\n" * (LONG // 12),
        "</tool_call>" * (LONG // 12),
    ],
    ids=lambda text: f"{text[:14]!r}...{text[-6:]!r}",
)
def test_time_is_linear_in_the_text(piece):
    started = time.process_time()
    for words in (piece, f"{piece}</think>", f"{piece}<think>"):
        _, said = set_apart(words, THINK)
        fenced(said)
        split_lines(said)
        for parser in PARSERS.values():
            parser.parse(said)
            foreign_format(said, parser)
    assert time.process_time() - started < 10


def test_many_threads_read_python_at_once():
    """What CPython itself does not do when the collector runs Python in between: ast.parse fails here at once."""
    source = "def f(x):\n" + "".join(f"    y{i} = [a for a in range({i}) if a % 2] if x else -{i}\n" for i in range(60))

    def collected(phase, info):
        sum(range(100))

    before = gc.get_threshold()
    interval = sys.getswitchinterval()
    gc.callbacks.append(collected)
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            trees = list(threads.map(lambda _: syntax_tree(source), range(100)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
    assert {len(tree.body[0].body) for tree in trees} == {60}
