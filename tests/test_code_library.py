"""The library of programs for code repair, its inputs, the bounded runs and the mutations."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_gym.envs.code_agent.inputs import (
    MAX_REPR,
    TEST_PROGRAMS,
    VALIDATION_PROGRAMS,
    Case,
    draw_cases,
    entry_points,
    files,
    programs,
)
from agent_gym.envs.code_agent.mutate import OPERATORS, Mutant, line_budget_run, mutants, same

SEVERAL_FILES = [name for name in programs() if len(files(name)) > 1]


def functions(source: str) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def call(entry_point: str, *args: Any) -> Any:
    """The value of a library function, which must not raise."""
    module = entry_point.split(":")[0]
    program = next(name for name in programs() if module + ".py" in files(name))
    (outcome,) = line_budget_run(files(program), [Case(entry_point, args)])
    assert outcome[0] == "value", (entry_point, args, outcome)
    return outcome[1]


def raises(entry_point: str, *args: Any) -> str:
    """The name of the exception that a library function raises."""
    module = entry_point.split(":")[0]
    program = next(name for name in programs() if module + ".py" in files(name))
    (outcome,) = line_budget_run(files(program), [Case(entry_point, args)])
    assert outcome[0] == "raised", (entry_point, args, outcome)
    return outcome[1]


# The library ---------------------------------------------------------------------------------------------------------


def test_size_and_split() -> None:
    assert len(programs()) >= 66
    assert programs() == tuple(sorted(programs()))
    assert len(SEVERAL_FILES) >= 10
    assert len(set(TEST_PROGRAMS)) == len(TEST_PROGRAMS) == len(programs()) // 4
    assert len(set(VALIDATION_PROGRAMS)) == len(VALIDATION_PROGRAMS) <= (len(programs()) - len(TEST_PROGRAMS)) // 7
    assert {*TEST_PROGRAMS, *VALIDATION_PROGRAMS} < set(programs())
    assert not {*TEST_PROGRAMS} & {*VALIDATION_PROGRAMS}
    assert len(set(TEST_PROGRAMS) & set(SEVERAL_FILES)) >= 3
    assert set(VALIDATION_PROGRAMS) & set(SEVERAL_FILES)


def test_file_names() -> None:
    paths = [path for name in programs() for path in files(name)]
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert re.fullmatch(r"[a-z][a-z0-9_]*\.py", path)
        assert path[:-3] not in sys.stdlib_module_names
    with pytest.raises(KeyError):
        files("no such program")


@pytest.mark.parametrize("program", programs())
def test_source_style(program: str) -> None:
    found = [node for source in files(program).values() for node in functions(source)]
    assert 2 <= len(found) <= (10 if program in SEVERAL_FILES else 6)
    for path, source in files(program).items():
        assert 10 <= source.count("\n") <= 90
        tree = ast.parse(source)
        assert ast.get_docstring(tree)
        assert not [
            node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.Global | ast.AsyncFunctionDef)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module == "typing" or f"{node.module}.py" in files(program), path
            elif isinstance(node, ast.Import):
                assert [alias.name for alias in node.names] == ["heapq"]
        for node in functions(source):
            assert ast.get_docstring(node), node.name
            assert node.returns is not None
            assert all(arg.annotation for arg in node.args.args)
    names = {f"{path[:-3]}:{node.name}" for path, source in files(program).items() for node in functions(source)}
    assert set(entry_points(program)) == {name for name in names if not name.split(":")[1].startswith("_")}


def test_no_function_twice() -> None:
    bodies = Counter()
    for name in programs():
        for source in files(name).values():
            for node in functions(source):
                bodies["\n".join(ast.unparse(statement) for statement in node.body[1:])] += 1
    assert max(bodies.values()) == 1


@pytest.mark.parametrize("program", programs())
def test_cases(program: str) -> None:
    count = 30 * len(entry_points(program))
    cases = draw_cases(program, np.random.default_rng(5), count)
    assert cases == draw_cases(program, np.random.default_rng(5), count)
    assert len(cases) == count
    assert all(len(repr(case.args)) <= MAX_REPR for case in cases)
    shown = repr(cases)
    outcomes = line_budget_run(files(program), cases)
    assert repr(cases) == shown  # the runs got copies
    for entry_point in entry_points(program):
        own = [
            (case, outcome) for case, outcome in zip(cases, outcomes, strict=True) if case.entry_point == entry_point
        ]
        assert len(own) == 30
        assert sum(outcome[0] == "value" for _, outcome in own) >= 15, entry_point
        assert len({repr(case.args) for case, _ in own}) >= 5, entry_point
        assert len({repr(outcome) for _, outcome in own}) >= 2, entry_point
        # A program breaks only in the ways that its docstrings tell.
        source = files(program)[entry_point.split(":")[0] + ".py"]
        for case, outcome in own:
            assert outcome[0] != "endless", case
            if outcome[0] == "raised":
                assert any(outcome[1] in text for text in files(program).values()), (case, outcome, source)


def test_few_cases_touch_all_functions() -> None:
    for program in programs():
        cases = draw_cases(program, np.random.default_rng(1), len(entry_points(program)))
        assert {case.entry_point for case in cases} == set(entry_points(program))
    assert draw_cases("roman", np.random.default_rng(1), 0) == []


# Some functions against what they are ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.text("abc ", max_size=12), st.text("aXz!é", max_size=6), st.integers(-60, 60))
def test_codes_round_trip(text: str, odd: str, shift: int) -> None:
    assert call("run_length:decode", call("run_length:encode", text)) == text
    assert call("ciphers:caesar", call("ciphers:caesar", text, shift), -shift) == text
    assert call("ciphers:vigenere", call("ciphers:vigenere", text, "key", False), "key", True) == text
    assert call("ciphers:atbash", call("ciphers:atbash", odd)) == odd
    assert call("query_text:decode_percent", call("query_text:encode_percent", odd)) == odd
    assert call("csv_lines:parse_line", call("csv_lines:format_line", [text, odd, 'a,"b"'])) == [text, odd, 'a,"b"']


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3999), st.integers(2, 36), st.integers(0, 10**6), st.integers(-(10**6), 10**6))
def test_numbers_round_trip(number: int, base: int, natural: int, whole: int) -> None:
    assert call("roman:from_roman", call("roman:to_roman", number)) == number
    assert int(call("number_bases:to_base", whole, base), base) == whole
    assert call("number_bases:from_base", call("number_bases:to_base", whole, base), base) == whole
    assert call("bit_tricks:from_gray", call("bit_tricks:gray_code", natural)) == natural
    assert call("bit_tricks:popcount", natural) == natural.bit_count()
    assert call("durations:parse_duration", call("durations:format_duration", natural)) == natural
    assert call("money:parse_amount", call("money:format_amount", whole)) == whole
    assert call("net_addresses:to_number", call("net_addresses:to_address", natural)) == natural
    product = 1
    for prime, exponent in call("prime_numbers:factorize", number):
        product *= prime**exponent
    assert product == number


@settings(max_examples=25, deadline=None)
@given(st.dates(), st.integers(0, 400))
def test_dates(date: Any, count: int) -> None:
    day = (date.year, date.month, date.day)
    assert call("dates:day_number", *day) == date.toordinal()
    assert call("dates:weekday", *day) == date.strftime("%A")
    if date.year < 9990:
        later = type(date).fromordinal(date.toordinal() + count)
        assert call("dates:add_days", *day, count) == (later.year, later.month, later.day)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-20, 20), max_size=10), st.lists(st.integers(-20, 20), max_size=10), st.integers(-20, 20))
def test_lists(first: list[int], second: list[int], target: int) -> None:
    import bisect
    import statistics

    assert call("merge_queues:merge_sorted", sorted(first), sorted(second)) == sorted(first + second)
    assert call("binary_search:lower_bound", sorted(first), target) == bisect.bisect_left(sorted(first), target)
    assert call("sparse_vectors:to_dense", call("sparse_vectors:from_dense", first), len(first)) == first
    merged = call("intervals:merge", [(start, start + 3) for start in first])
    assert all(merged[i][1] < merged[i + 1][0] for i in range(len(merged) - 1))
    assert {x for a, b in merged for x in range(a, b + 1)} == {x for start in first for x in range(start, start + 4)}
    pages = [abs(page) + 1 for page in first]
    assert call("page_ranges:parse_pages", call("page_ranges:format_pages", pages)) == sorted(set(pages))
    if first:
        assert call("summary_stats:median", first) == statistics.median(first)
    if len(second) > 1:
        assert call("summary_stats:variance", second) == pytest.approx(statistics.variance(second))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 2000), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_structures(order: list[int], cents: int, first: str, second: str) -> None:
    inverse = call("permutations:inverse", order)
    assert [order[i] for i in inverse] == sorted(order)
    following = call("permutations:next_permutation", order)
    assert call("permutations:rank", following or [0] * 0) == (call("permutations:rank", order) + 1 if following else 0)
    assert sum(call("money:split_amount", cents, [1, 2, 4])) == cents
    assert call("edit_distance:distance", first, second) == call("edit_distance:distance", second, first)
    assert call("edit_distance:distance", first, first + second) == len(second)
    assert call("prefix_tree:words_in", call("prefix_tree:build_tree", [first, second])) == sorted({first, second})


def test_documented_values() -> None:
    assert call("evaluation:calculate", "2*(3+x) - -4/2", {"x": 5}) == 18
    assert call("postfix:evaluate_postfix", call("postfix:to_postfix", "2 * ( 3 + 4 ) - 8 / 2")) == 10
    assert call("exact_fractions:decimal_text", 1, 6) == "0.1(6)"
    assert call("commands:expand", "2(FL)3R") == "FLFLRRR"
    assert call("truth:classify", "a | !a") == "always"
    assert call("bowling:score", [10] * 12) == 300
    assert call("bowling:score", [9, 1] * 10 + [9]) == 190
    assert call("poker:describe", ["AH", "2C", "3D", "4S", "5S"]) == "straight"
    assert call("life:step", [".#.", ".#.", ".#."]) == ["...", "###", "..."]
    assert call("spiral:spiral_order", call("spiral:spiral_square", 4)) == list(range(1, 17))
    assert call("check_digits:luhn_valid", "79927398713") is True
    assert call("check_digits:isbn10_valid", "0-306-40615-2") is True
    assert call("check_digits:ean13_check_digit", "400638133393") == 1
    assert call("chess_moves:knight_distance", "a1", "h8") == 6
    assert call("change_making:count_ways", [1, 2, 5], 10) == 10
    assert call("partitions:number_partitions", 10, 10) == 42
    assert len(call("partitions:set_partitions", [1, 2, 3, 4])) == 15
    assert raises("bank:withdraw", {"ann": 5}, "bob", 1) == "KeyError"
    assert raises("task_order:order", {"a": ["b"], "b": ["a"]}) == "ValueError"
    assert raises("seat_map:book", ["..."], "9A") == "IndexError"


# Bounded runs and comparison -----------------------------------------------------------------------------------------


def outcomes_of(source: str, *args: Any, budget: int = 20_000) -> Any:
    (outcome,) = line_budget_run({"m.py": source}, [Case("m:f", args)], budget)
    return outcome


def test_outcomes() -> None:
    assert outcomes_of("def f(x):\n    return x + 1\n", 2) == ("value", 3)
    assert outcomes_of("def f():\n    raise KeyError(1)\n") == ("raised", "KeyError")
    assert outcomes_of("def f():\n    while True:\n        pass\n") == ("endless",)
    assert outcomes_of("def f():\n    return sum(1 for _ in iter(int, 1))\n") == ("endless",)
    assert outcomes_of("def f():\n    text = 'ab'\n    while True:\n        text += text\n", budget=10**6) == (
        "endless",
    )
    assert outcomes_of("def f():\n    n = 3\n    while True:\n        n *= n\n", budget=10**6) == ("endless",)
    assert outcomes_of("def f():\n    return f()\n") == ("raised", "RecursionError")
    assert outcomes_of("def f():\n    return print\n") == ("raised", "TypeError")
    assert outcomes_of("def f():\n    x = []\n    x.append(x)\n    return x\n") == ("raised", "TypeError")
    assert outcomes_of("import nowhere\n") == ("raised", "ModuleNotFoundError")
    assert outcomes_of("def g(): pass\n") == ("raised", "AttributeError")
    assert outcomes_of("def f(:\n") == ("raised", "SyntaxError")


def test_endless_loop_around_a_dropped_generator() -> None:
    # A generator that any() leaves is entered once more to be closed; the bound must survive that.
    source = "def f(n):\n    x = [1] * n\n    while True:\n        any(v for v in x)\n"
    for size in (1, 2, 3):
        for budget in range(40, 60):
            assert outcomes_of(source, size, budget=budget) == ("endless",)


def test_runs_leave_no_traces() -> None:
    def tracer(frame: Any, event: str, arg: Any) -> None:
        return None

    before = set(sys.modules)
    cases = draw_cases("calculator", np.random.default_rng(0), 18)
    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        line_budget_run(files("calculator"), cases)
        kept = sys.gettrace()
    finally:
        sys.settrace(previous)
    assert kept is tracer
    assert set(sys.modules) == before
    data = [3]
    source = "seen = []\n\ndef f(x):\n    x.append(1)\n    seen.append(1)\n    return seen\n"
    assert line_budget_run({"m.py": source}, [Case("m:f", (data,))] * 2) == [("value", [1])] * 2
    assert data == [3]


def test_same() -> None:
    assert same(("value", {"a": 1, "b": [2, (3.0, None)]}), ("value", {"b": [2, (3.0, None)], "a": 1}))
    assert same(("endless",), ("endless",))
    assert same(("value", {1, 2}), ("value", {2, 1}))
    for a, b in [
        (1, True),
        (1, 1.0),
        ([1], (1,)),
        ({1: 0}, {True: 0}),
        ({1}, {1.0}),
        ([], {}),
        ("a", "b"),
        ([1], [1, 1]),
    ]:
        assert not same(a, b)
    nan = float("nan")
    assert not same(nan, nan)
    assert not same([nan], [nan])
    assert not same(("raised", "KeyError"), ("raised", "ValueError"))


# Mutations -----------------------------------------------------------------------------------------------------------


def docstrings_and_notes(source: str) -> list[str]:
    """What mutations must not touch."""
    kept = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.Module):
            kept.append(repr(ast.get_docstring(node, clean=False)))
        if isinstance(node, ast.FunctionDef):
            kept += [ast.unparse(arg.annotation) for arg in node.args.args if arg.annotation]
            kept += [ast.unparse(node.returns)] if node.returns else []
        if isinstance(node, ast.Import | ast.ImportFrom):
            kept.append(ast.unparse(node))
    return sorted(kept)


def check_mutant(source: str, mutant: Mutant) -> None:
    assert mutant.operator in OPERATORS
    assert mutant.source != source
    # The text before differs in one place, found by its line.
    lines = source.splitlines(keepends=True)
    start = sum(len(line) for line in lines[: mutant.line - 1])
    places = [start + match.start() for match in re.finditer(re.escape(mutant.before), source[start:])]
    changed = [source[:at] + mutant.after + source[at + len(mutant.before) :] for at in places]
    assert mutant.source in changed, mutant
    assert places[changed.index(mutant.source)] < start + len(lines[mutant.line - 1]), mutant
    (function,) = [node for node in functions(source) if node.name == mutant.function]
    assert function.lineno <= mutant.line <= (function.end_lineno or 0)


@pytest.mark.parametrize("program", programs())
def test_mutants_of_library(program: str) -> None:
    for source in files(program).values():
        found = mutants(source)
        assert found == mutants(source)
        assert len({mutant.source for mutant in found}) == len(found) >= 8
        kept = docstrings_and_notes(source)
        for mutant in found:
            check_mutant(source, mutant)
        for mutant in found[::5]:
            assert docstrings_and_notes(mutant.source) == kept


def test_every_operator_occurs() -> None:
    found = Counter(m.operator for name in programs() for source in files(name).values() for m in mutants(source))
    assert set(found) == set(OPERATORS)
    assert min(found.values()) >= 15


def test_formatting_is_kept() -> None:
    source = (
        'def f(é: int = 1, b: int = 2) -> int:\n    """Doc 1 < 2."""\n'
        '    s = "ü"; t = (é   <  b)  # é < b\n    if not t and s:\n        return g( é,b )\n'
        "    else:\n        b  +=  1\n"
        "    return b\n\n\ndef g(x: int, y: int) -> int:\n    return x-y"
    )
    found = mutants(source)
    for mutant in found:
        check_mutant(source, mutant)
        ast.parse(mutant.source)
    seen = {(m.operator, m.before, m.after) for m in found}
    assert ("comparison-boundary", "é   <  b", "é   <=  b") in seen
    assert ("swapped-arguments", "g( é,b )", "g( b,é )") in seen
    assert ("augmented-assignment", "b  +=  1", "b  -=  1") in seen
    assert ("missing-not", "not t", "t") in seen
    assert ("arithmetic-operator", "x-y", "x+y") in seen
    assert ("missing-return", "return x-y", "x-y") in seen
    assert ("dropped-else", "\n    else:\n        b  +=  1", "") in seen
    with pytest.raises(SyntaxError):
        mutants("def f(:\n")


@pytest.mark.parametrize("program", programs())
def test_enough_mutants_are_killed(program: str) -> None:
    cases = draw_cases(program, np.random.default_rng(11), 24)
    originals = files(program)
    expected = line_budget_run(originals, cases)
    every = [(path, mutant) for path, source in originals.items() for mutant in mutants(source)]
    rng = np.random.default_rng(12)
    killed = tried = 0
    for index in rng.permutation(len(every)):
        path, mutant = every[int(index)]
        outcomes = line_budget_run({**originals, path: mutant.source}, cases, 5_000)
        killed += not all(same(a, b) for a, b in zip(expected, outcomes, strict=True))
        tried += 1
        if killed >= 8:
            break
    assert killed >= 8, f"{killed} of {tried} mutants are killed"
    assert tried <= 40, f"only {killed} of {tried} mutants are killed"
