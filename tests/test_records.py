"""Files of tasks: every record is checked when it is loaded; one that is no task is told and left out."""

import json
import math
import pickle
import random
import re
import sqlite3
import warnings

import gymnasium as gym
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from shop_play import TASKS as SHOP
from shop_play import call, turn

import agent_gym
from agent_gym.envs.api_agent import Domain, Draft, Record, ToolError, Transaction, register_domain
from agent_gym.envs.api_agent.domain import DOMAINS, _tool_tables
from agent_gym.envs.api_agent.env import load_tasks as load_api
from agent_gym.envs.code_agent import load_tasks as load_code
from agent_gym.envs.sql_agent import load_tasks as load_sql
from agent_gym.gate import gate_task
from agent_gym.records import load_records

CODE = {
    "id": "double", "request": "Mend double.", "files": {"a.py": "def double(x):\n    return x\n"},
    "entry_point": "a:double", "checker": "cases", "solution": {"a.py": "def double(x):\n    return 2 * x\n"},
    "visible": [{"args": [1], "expected": 2}], "hidden": [{"args": [3], "expected": 6}],
}  # fmt: skip
ASSERTS = {
    **{key: CODE[key] for key in ("request", "files", "entry_point", "solution")},
    "id": "asserted", "checker": "asserts", "names": ["double"], "hidden": ["assert double(3) == 6"],
}  # fmt: skip
UNITTEST = {
    **{key: CODE[key] for key in ("request", "files", "solution")},
    "id": "tested", "checker": "unittest", "hidden": ["a_test.T.test"],
    "test_files": {"a_test.py": "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        pass\n"},
}  # fmt: skip
PYTEST = {**UNITTEST, "id": "pytested", "checker": "pytest", "hidden": ["a_test.py::test_a", "a_test.py::K::test_b[1]"],
          "test_files": {"a_test.py": "def test_a(): pass\nclass K:\n    def test_b(self): pass\n"}}  # fmt: skip
STDIN = {
    **{key: CODE[key] for key in ("request", "files")}, "id": "printed", "checker": "stdin",
    "hidden": [{"input": "3\n", "output": "6"}], "solution": {"a.py": "print(2 * int(input()))\n"},
}  # fmt: skip
MBPP = {"task_id": 7, "prompt": "Double it.", "code": "def double(x):\n  return x * 2", "test_imports": [],
        "test_list": ["assert double(2) == 4"], "difficulty": "easy"}  # fmt: skip
HUMAN = {"task_id": "Own/1", "prompt": "def half(x):\n", "entry_point": "half", "split": "test",
         "canonical_solution": "    return x // 2\n", "test": "def check(c):\n    assert c(5) == 2\n"}  # fmt: skip
FIX = {**HUMAN, "task_id": "Fix/1", "buggy_solution": "    return x / 2\n", "bug_type": "operator"}
PLUS = {"task_id": "Own/2", "prompt": "def half(x):\n", "entry_point": "half",
        "canonical_solution": "    return x // 2\n",
        "base_input": [[4]], "plus_input": [[5], [-3]], "atol": 0, "contract": "\n    assert x"}  # fmt: skip
LIVE = {"question_id": "abc1", "question_content": "Double it.", "starter_code": "", "difficulty": "easy",
        "public_test_cases": '[{"input": "1\\n", "output": "2", "testtype": "stdin"}]', "private_test_cases": "[]",
        "metadata": "{}"}  # fmt: skip
EXERCISE = {"slug": "twice", "instructions": "Double it.", "solution_files": {"a.py": "x = 1\n"}, "level": 3,
            "test_files": UNITTEST["test_files"], "reference": {"a.py": "x = 2\n"}, "editor_files": {}}  # fmt: skip
SPIDER = {"db_id": "small", "question": "Who?", "query": "SELECT name FROM person", "query_toks": ["SELECT"]}
BIRD = {"db_id": "small", "question": "Who?", "SQL": "SELECT name FROM person", "evidence": "", "difficulty": "simple"}
DEFOG = {"db_name": "small", "question": "Who?", "query": "SELECT {name, id} FROM person", "idx": 3}
API = SHOP[2]


def spell(record):
    return record if isinstance(record, bytes) else json.dumps(record).encode()


def write(folder, *records, name="tasks.jsonl"):
    """A file of JSON lines, and the database of the SQL records beside it; bytes are lines as they are."""
    (folder / "database").mkdir(exist_ok=True)
    with sqlite3.connect(folder / "database" / "small.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS person (id INTEGER PRIMARY KEY, name TEXT)")
        db.execute("INSERT INTO person (name) VALUES ('Ann')")
    (folder / name).write_bytes(b"".join(spell(record) + b"\n" for record in records))
    return str(folder / name)


def load_with_fault(load, tmp_path, good, bad):
    """The fault of ``bad``, which stands between two sound records."""
    first, last = good, {**good, **({"id": "last"} if "id" in good else {"task_id": 8} if "task_id" in good else {})}
    path = write(tmp_path, first, bad, last)
    with pytest.warns(UserWarning, match="1 of 3 records were left out") as caught:
        tasks, left_out = load(path)
    assert len(tasks) == 2
    ((name, fault),) = left_out.items()
    assert [str(one.message) for one in caught] == [f"{path}: 1 of 3 records were left out; record 2: {fault}"]
    own = bad.get("id") if isinstance(bad, dict) else None
    assert name == (own if isinstance(own, str) and own and own != good.get("id") else "record 2")
    assert not any(word in fault for word in ("KeyError", "TypeError", "Traceback", "pydantic", "object at 0x"))
    return fault


# ---- the file ------------------------------------------------------------------------------------------------------

LOADERS = {"code": (load_code, CODE), "api": (load_api, API), "sql": (load_sql, SPIDER)}


@pytest.fixture(params=LOADERS)
def loader(request):
    return LOADERS[request.param]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"[1, 2]", "a record is a JSON object, not list"),
        (b"5", "a record is a JSON object, not 5"),
        (b'"text"', 'a record is a JSON object, not "text"'),
        (b"null", "a record is a JSON object, not null"),
        (b'{"id": ', "not JSON: "),
        (b"{'id': 1}", "not JSON: "),
        (b'{"id": "\xff\xfe"}', "not UTF-8 text"),
        (b"\x89PNG\x00\x01", "not UTF-8 text"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply to be read"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
        (b'{"id": "x", "id": "y"}', "the key 'id' stands twice in one object"),
    ],
)
def test_a_line_that_is_no_record_is_left_out(loader, tmp_path, line, says):
    load, good = loader
    assert says in load_with_fault(load, tmp_path, good, line)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_list_as_a_line_does_not_make_the_file_a_list(loader, tmp_path, place):
    load, good = loader
    records = [good, {**good, **({"id": "other"} if "id" in good else {})}]
    records.insert(place, [1])
    with pytest.warns(UserWarning, match=f"1 of 3 records were left out; record {place + 1}: a record is a JSON"):
        tasks, _ = load(write(tmp_path, *records))
    assert len(tasks) == 2


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85"])
def test_lines_end_at_line_ends_alone(loader, tmp_path, odd):
    load, good = loader
    key = "question" if "question" in good else "request"
    text = f"One{odd}two?"
    record = {**good, key: text}
    for end in ("\n", "\r\n", "\r"):
        lines = [json.dumps({**record, **extra}, ensure_ascii=False) for extra in ({}, {"id": "b"})][
            : 1 + ("id" in good)
        ]
        raw = end.join(lines).encode()  # what JSON must escape is escaped, the rest stands as it is
        tasks, left_out = load(write(tmp_path, raw))
        assert (len(tasks), left_out) == (len(lines), {})
        assert tasks[0].request == text


def test_blank_lines_a_byte_order_mark_and_a_json_list(loader, tmp_path):
    load, good = loader
    expected = load(write(tmp_path, good))[0][0].id
    for raw in (
        b"\n\n" + spell(good) + b"\n  \n", b"\xef\xbb\xbf" + spell(good), b"[" + spell(good) + b"]",
        b"\xef\xbb\xbf\n[\n" + json.dumps(good, indent=1).encode() + b"\n]\n", b"[\n" + spell(good) + b"\n]",
    ):  # fmt: skip
        tasks, left_out = load(write(tmp_path, raw, name="tasks.json"))
        assert ([task.id for task in tasks], left_out) == ([expected], {})


def test_a_file_without_a_task_is_refused(loader, tmp_path):
    load, _ = loader
    for raw, says in (
        (b"", r"tasks\.jsonl: the file has no task"),
        (b"[]", r"tasks\.jsonl: the file has no task"),
        (b"5\n6", r"tasks\.jsonl, record 1: a record is a JSON object, not 5; the file has no task"),
        (b"\x00\xff\xfe binary \n\x80", r"tasks\.jsonl, record 1: not UTF-8 text; the file has no task"),
        (b"[\n{}\n,,]", r"tasks\.jsonl: not JSON: .*line 3"),
    ):
        with pytest.raises(ValueError, match=says):
            load(write(tmp_path, raw))


def test_a_source_that_is_no_file_is_refused(loader, tmp_path, monkeypatch):
    load, good = loader
    for source in ("nowhere.jsonl", "", "x" * 5000, "a\0b", json.dumps(good), 5, True, [5], None, b"tasks", 1.5):
        with pytest.raises(ValueError, match=r"^tasks=.*: neither .* nor a"):
            load(source)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory|neither a file of records nor a folder with"):
        load(str(tmp_path / "folder"))
    path = write(tmp_path, good)
    assert len(load(tmp_path / "tasks.jsonl")[0]) == 1

    def locked(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", locked)
    with pytest.raises(ValueError, match=r"tasks\.jsonl cannot be read: Permission denied"):
        load(path)


def test_the_three_environments_agree(tmp_path):
    for env_id, good, kwargs in (
        ("CodeAgent-v0", CODE, {"sandbox": "process"}),
        ("APIAgent-v0", API, {}),
        ("SQL-v0", SPIDER, {}),
    ):
        with pytest.warns(UserWarning, match="1 of 2 records were left out; record 2: "):
            env = gym.make(env_id, disable_env_checker=True, tasks=write(tmp_path, good, ["bad"]), **kwargs)
        assert env.unwrapped.left_out == {"record 2": "a record is a JSON object, not list"}
        assert len(env.unwrapped.task_ids) == 1
        env.reset(seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sound = gym.make(env_id, disable_env_checker=True, tasks=write(tmp_path, good), **kwargs)
            made = gym.make(env_id, disable_env_checker=True, **kwargs)
        assert sound.unwrapped.left_out == made.unwrapped.left_out == {}
        with pytest.raises(ValueError, match=r"^tasks='': neither"):
            gym.make(env_id, disable_env_checker=True, tasks="", **kwargs)


def test_every_fault_of_a_file_is_kept(tmp_path):
    bad = [{**CODE, "id": name, "hidden": []} for name in ("a", "b")]
    with pytest.warns(UserWarning, match=r"5 of 6 records were left out; record 1: a record is"):
        tasks, left_out = load_code(write(tmp_path, 5, *bad, CODE, bad[0], {**CODE, "id": ["x"]}))
    assert [task.id for task in tasks] == ["double"]
    assert list(left_out) == ["record 1", "a", "b", "record 5", "record 6"]


# ---- CodeAgent's own form ------------------------------------------------------------------------------------------

WITHOUT = object()


def changed(record, /, **changes):
    return {key: value for key, value in {**record, **changes}.items() if value is not WITHOUT}


@pytest.mark.parametrize("good", [CODE, ASSERTS, UNITTEST, PYTEST, STDIN], ids=lambda good: good["checker"])
def test_sound_records_of_our_own(tmp_path, good):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_code(write(tmp_path, good))[0][0].id == good["id"]
        assert load_code(write(tmp_path, {**good, "visible": None}))[0][0].visible is None
        assert load_code(write(tmp_path, {**good, "visible": []}))[0][0].visible is None


@pytest.mark.parametrize("good", [CODE, ASSERTS, UNITTEST, PYTEST, STDIN], ids=lambda good: good["checker"])
def test_every_key_of_our_own_is_checked(tmp_path, good):
    for key in good:
        if key not in ("checker", "visible"):
            fault = load_with_fault(load_code, tmp_path, good, changed({**good, "id": "bad"}, **{key: WITHOUT}))
            assert fault == f"the key {key!r} is missing"
        for wrong in (5, True, [5], {"a": 5}, "?" if not isinstance(good[key], str) else 1.5):
            if key == "id" or wrong != good[key]:
                bad = changed(good, **({"id": wrong} if key == "id" else {"id": "bad", key: wrong}))
                assert key in load_with_fault(load_code, tmp_path, good, bad)


@pytest.mark.parametrize(
    ("good", "changes", "says"),
    [
        (CODE, {"kwargs": {}}, "the key 'kwargs' is unknown (known are id, request, files, "),
        (CODE, {"hiden": []}, "the key 'hiden' is unknown, did you mean 'hidden'? (known are "),
        (CODE, {"hidden": WITHOUT, "hiden": []}, "the key 'hiden' is unknown, did you mean 'hidden'?"),
        (CODE, {"names": ["double"]}, "the key 'names' is unknown"),
        (ASSERTS, {"test_files": {}}, "the key 'test_files' is unknown"),
        (UNITTEST, {"setup": ""}, "the key 'setup' is unknown"),
        (CODE, {"id": ""}, "id: String should have at least 1 character"),
        (CODE, {"hidden": []}, "hidden: List should have at least 1 item after validation, not 0"),
        (ASSERTS, {"hidden": []}, "hidden: List should have at least 1 item after validation, not 0"),
        (UNITTEST, {"hidden": []}, "hidden: List should have at least 1 item after validation, not 0"),
        (CODE, {"hidden": [[3]]}, "hidden[0] is a JSON object, not list"),
        (CODE, {"hidden": [{"args": [3], "expect": 6}]}, "hidden[0]: the key 'expect' is unknown, did you mean 'exp"),
        (CODE, {"visible": [{"args": [3], "kwargs": {}}]}, "visible[0]: the key 'kwargs' is unknown"),
        (CODE, {"hidden": [*CODE["hidden"], {"args": [3]}]}, "hidden[1] needs one of the keys 'expected' and 'raises'"),
        (CODE, {"hidden": [{"args": [3], "expected": 1, "raises": "E"}]}, "needs one of the keys"),
        (CODE, {"hidden": [{"args": [3], "raises": None}]}, "hidden[0].raises should be a valid string"),
        (CODE, {"hidden": [{"expected": 6}]}, "hidden[0]: the key 'args' is missing"),
        (CODE, {"hidden": [{"args": 3, "expected": 6}]}, "hidden[0].args should be a list"),
        (CODE, {"hidden": [{"args": {"x": 3}, "expected": 6}]}, "hidden[0].args should be a list"),
        (CODE, {"hidden": [{"args": "(3,)", "expected": 6}]}, "hidden[0].args should be a list"),
        (CODE, {"hidden": [{"args": [3], "expected": 6, "python": 1}]}, "hidden[0].python should be a valid boolean"),
        (CODE, {"hidden": [{"args": [3], "expected": 6, "entry_point": 1}]}, "hidden[0].entry_point should be"),
        (CODE, {"hidden": [{"args": "(3", "expected": "6", "python": True}]}, "hidden[0].args should be a string that"),
        (CODE, {"hidden": [{"args": "f(3)", "expected": "6", "python": True}]}, "hidden[0].args should be a string"),
        (CODE, {"hidden": [{"args": "3", "expected": "6", "python": True}]}, "hidden[0].args should be a list"),
        (CODE, {"hidden": [{"args": "(3,)", "expected": 6, "python": True}]}, "hidden[0].expected should be a string"),
        (CODE, {"hidden": [{"args": "(3,)", "expected": "{[1]}", "python": True}]}, "hidden[0].expected should be a"),
        (CODE, {"hidden": [{"args": "(3,)", "expected": "-" * 9999 + "1", "python": True}]}, "hidden[0].expected sho"),
        (CODE, {"hidden": [{"args": "(3,)", "expected": "...", "python": True}]}, "hidden[0].expected must be plain"),
        (CODE, {"hidden": [{"args": "([...],)", "expected": "1", "python": True}]}, "hidden[0].args must be plain"),
        (CODE, {"hidden": [{"args": [3], "expected": math.nan}]}, "hidden[0].expected is NaN: a number must be finite"),
        (CODE, {"visible": [{"args": [3], "expected": [{"a": [-math.inf]}]}]}, "visible[0].expected[0].a[0] is -Inf"),
        (CODE, {"hidden": [{"args": [math.inf], "expected": 1}]}, "hidden[0].args[0] is Infinity: a number must be"),
        (CODE, {"hidden": [{"args": [3], "expected": "x" * (1 << 20)}]}, "hidden[0].expected does not fit through"),
        (CODE, {"visible": [{"args": [3], "expected": [0] * 300_000}]}, "visible[0].expected does not fit through"),
        (CODE, {"hidden": [{"args": [3], "expected": 1, "atol": -1}]}, "hidden[0].atol should be greater than"),
        (CODE, {"hidden": [{"args": [3], "expected": 1, "atol": math.inf}]}, "hidden[0].atol is Infinity"),
        (CODE, {"rtol": "1e-6"}, "rtol should be a valid number"),
        (CODE, {"lists": 1}, "lists should be a valid boolean"),
        (CODE, {"limits": {"time_limit": 0.5}}, "limits.time_limit should be greater than or equal to 1"),
        (CODE, {"limits": {"memory_mb": 1.5}}, "limits.memory_mb should be a valid integer"),
        (CODE, {"limits": {"output_mb": 65}}, "limits.output_mb should be less than or equal to 64"),
        (CODE, {"limits": {"memory": 100}}, "limits: the key 'memory' is unknown"),
        (ASSERTS, {"hidden": ["assert double(lambda: 1) == 2"]}, "hands double a function, not plain data"),
        (ASSERTS, {"hidden": ["assert double([print]) == 2"]}, "hands double a function, not plain data"),
        (ASSERTS, {"visible": ["assert double(x=g) == 2"], "setup": "def g(): pass"}, "hands double a function"),
        (ASSERTS, {"atol": 0.1}, "the key 'atol' is unknown"),
        (STDIN, {"hidden": [{"input": "3"}]}, "hidden[0]: the key 'output' is missing"),
        (STDIN, {"hidden": [{"input": 3, "output": "6"}]}, "hidden[0].input should be a valid string"),
        (PYTEST, {"hidden": []}, "hidden: List should have at least 1 item"),
        (CODE, {"files": {}}, "files: Dictionary should have at least 1 item"),
        (CODE, {"files": {"/etc/a.py": "x = 1\n"}}, "'/etc/a.py' is not a relative path"),
        (CODE, {"files": {**CODE["files"], "../b.py": ""}}, "'../b.py' is not a relative path"),
        (CODE, {"solution": {"../a.py": "x = 1\n"}}, "the solution cannot be written: '../a.py' is not a relative"),
        (CODE, {"solution": {"a.py": "#" * 300_000}}, "the solution cannot be written: a.py would have"),
        (CODE, {"solution": {"a.py/b.py": ""}}, "the solution cannot be written"),
        (CODE, {"request": "\ud800"}, "request: 'utf-8' codec can't encode"),
        (CODE, {"files": {"a.py": "\ud800"}}, "files.a.py: 'utf-8' codec can't encode"),
        (CODE, {"entry_point": "double", "files": {**CODE["files"], "b.py": ""}}, "it reads 'module:function'"),
        (ASSERTS, {"hidden": ["assert double(3 == 6"]}, "is not Python"),
        (ASSERTS, {"visible": ["return 1"]}, "does not compile"),
        (ASSERTS, {"setup": "import ("}, "is not Python"),
        (ASSERTS, {"hidden": ["assert " + "(" * 300 + "1" + ")" * 300]}, "is not Python"),
        (ASSERTS, {"hidden": [5]}, "hidden[0] should be a valid string, not 5"),
        (UNITTEST, {"test_files": {"/a_test.py": ""}}, "'/a_test.py' is not a relative path"),
    ],
)  # fmt: skip
def test_a_fault_of_our_own_form_is_named(tmp_path, good, changes, says):
    bad = changed({**good, "id": "bad"}, **changes)
    assert says in load_with_fault(load_code, tmp_path, good, bad)


def nested(value, depth):
    for _ in range(depth):
        value = [value]
    return value


def test_an_expected_value_too_deep_for_the_channel(tmp_path):
    for depth in (401, 600):
        bad = {**CODE, "id": "bad", "hidden": [{"args": [3], "expected": nested(1, depth)}]}
        fault = load_with_fault(load_code, tmp_path, CODE, bad)
        assert (
            fault
            == "hidden[0].expected does not fit through the sandbox's channel: nested more than 400 deep, or a cycle"
        )
    deep = {**CODE, "hidden": [{"args": [3], "expected": nested("\ud800", 390)}]}
    assert load_code(write(tmp_path, deep))[0][0].hidden[0].expected == nested("\ud800", 390)


def test_integers_of_many_digits(tmp_path):
    hidden = [{"args": [10**4290], "expected": 10**4290}, {"args": "(7,)", "expected": hex(7**9999), "python": True}]
    (task,), _ = load_code(write(tmp_path, {**CODE, "hidden": hidden}))
    assert [test.expected for test in task.hidden] == [10**4290, 7**9999]


def test_a_record_says_how_its_cases_compare_and_what_a_check_may_take(tmp_path):
    hidden = [{"args": [3], "expected": 6.0}, {"args": [3], "expected": 6.0, "rtol": 0.0, "lists": False}]
    limits = {"time_limit": 30, "memory_mb": 512, "disk_mb": 4, "output_mb": 2}
    record = {**CODE, "hidden": hidden, "atol": 1e-3, "rtol": 0.25, "lists": True, "limits": limits}
    (task,), _ = load_code(write(tmp_path, record))
    assert [(test.atol, test.rtol, test.lists) for test in task.hidden] == [(1e-3, 0.25, True), (1e-3, 0.0, False)]
    assert dict(task.limits) == limits
    large = {**CODE, "hidden": [{"args": [3], "expected": "x" * (1 << 20)}], "limits": {"output_mb": 2}}
    assert len(load_code(write(tmp_path, large))[0]) == 1


def test_python_literals_and_raises(tmp_path):
    hidden = [
        {"args": "({1, 2}, b'a')", "expected": "(1, {2: 3j})", "python": True},
        {"args": "[1]", "raises": "ValueError", "python": True, "entry_point": "other"},
        {"args": [1], "expected": None},
    ]
    (task,), _ = load_code(write(tmp_path, {**CODE, "hidden": hidden}))
    assert task.hidden[0].args == ({1, 2}, b"a")
    assert task.hidden[0].expected == (1, {2: 3j})
    assert (task.hidden[1].expected.name, task.hidden[1].entry_point) == ("ValueError", "other")
    assert task.hidden[2].expected is None


# ---- published forms -----------------------------------------------------------------------------------------------

PUBLISHED = {
    "mbpp": (load_code, MBPP, {"test_imports", "difficulty"}), "humaneval": (load_code, HUMAN, {"split"}),
    "humanevalfix": (load_code, FIX, {"bug_type", "split"}), "spider": (load_sql, SPIDER, {"query_toks"}),
    "evalplus": (load_code, PLUS, {"plus_input", "atol", "contract"}),
    "livecodebench": (load_code, LIVE, {"starter_code", "metadata", "difficulty"}),
    "exercism": (load_code, EXERCISE, {"editor_files", "level"}), "defog": (load_sql, DEFOG, {"idx"}),
    "bird": (load_sql, BIRD, {"evidence", "difficulty"}),
}  # fmt: skip


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_records_may_hold_more_and_what_is_read_is_checked(tmp_path, form):
    load, good, optional = PUBLISHED[form]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks, left_out = load(write(tmp_path, {**good, "more": [1], "expect": 5, "none": math.nan}))
    assert (len(tasks), left_out) == (1, {})
    read = {"mbpp": MBPP, "humaneval": HUMAN, "humanevalfix": FIX}.get(form, good).keys() - {
        "difficulty", "split", "bug_type", "level", "query_toks", "idx", "contract", "atol"
    }  # fmt: skip
    for key in read:
        for wrong in ({"a": 5}, [5], 1.5, True):
            path = write(tmp_path, good, {**good, key: wrong})
            with pytest.warns(UserWarning, match="1 of 2 records were left out; record 2: ") as caught:
                assert len(load(path)[0]) == 1
            assert key in str(caught[0].message)
        if key not in optional:
            path = write(tmp_path, good, changed(good, **{key: WITHOUT}))
            with pytest.warns(UserWarning, match="1 of 2 records were left out; record 2: "):
                load(path)


@pytest.mark.parametrize(
    ("load", "bad", "says"),
    [
        (load_code, {**MBPP, "code": "def double(x:"}, "code is not Python: "),
        (load_code, {**MBPP, "code": "double = 1"}, "no function of the code occurs in the tests"),
        (load_code, {**MBPP, "test_list": []}, "test_list: List should have at least 1 item"),
        (load_code, {**MBPP, "test_list": ["assert double("]}, "is not Python"),
        (load_code, {**HUMAN, "test": "def check(c:"}, "is not Python"),
        (load_code, {**EXERCISE, "test_files": {"a_test.py": "class ("}}, "a_test.py is not Python"),
        (load_code, {**EXERCISE, "test_files": {"a_test.py": "x = 1"}}, "tests: there are none"),
        (load_code, {"question": 1}, "none of the keys checker, "),
        (load_code, {**PLUS, "base_input": []}, "base_input: List should have at least 1 item"),
        (load_code, {**LIVE, "public_test_cases": "[]"}, "tests: there are none"),
        (load_code, {**LIVE, "private_test_cases": "!"}, "private_test_cases is neither JSON nor compressed JSON"),
        (
            load_code,
            {**LIVE, "public_test_cases": '[{"input": "1", "output": "2", "testtype": "functional"}]'},
            "metadata has no 'func_name'",
        ),
        (load_sql, {**SPIDER, "uses_now": "yes"}, "uses_now should be a valid boolean"),
        (load_sql, {**DEFOG, "query": 5}, "query should be a valid string, not 5"),
    ],
)  # fmt: skip
def test_a_fault_of_a_published_form_is_named(tmp_path, load, bad, says):
    good = SPIDER if load is load_sql else MBPP
    with pytest.warns(UserWarning, match="1 of 2 records were left out") as caught:
        load(write(tmp_path, good, bad))
    assert says in str(caught[0].message)


# ---- APIAgent's form -----------------------------------------------------------------------------------------------

CALL = {"name": "get_order", "arguments": {"order_id": "O2003"}}
ORDER = {"id": "O1", "customer": "C1001", "item": "Vase", "status": "sent"}


def test_every_key_of_a_shop_task_is_checked(tmp_path):
    for key in API:
        if key != "answer":
            bad = changed({**API, "id": "bad"}, **{key: WITHOUT})
            assert load_with_fault(load_api, tmp_path, API, bad) == f"the key {key!r} is missing"
        for wrong in (5, True, [5], "?" if not isinstance(API[key], str) else {"a": 5}):
            bad = changed(API, **({"id": wrong} if key == "id" else {"id": "bad", key: wrong}))
            assert key in load_with_fault(load_api, tmp_path, API, bad)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"traps": []}, "the key 'traps' is unknown (known are id, request, domains, tables, calls, answer, user, "),
        ({"outputs": ["sent"]}, "the key 'outputs' is unknown"),
        ({"anwser": {}}, "the key 'anwser' is unknown, did you mean 'answer'?"),
        ({"answer": [1, 2]}, "answer should be a valid dictionary, not list"),
        ({"answer": {"a": math.nan}}, "answer.a is NaN: a number must be finite"),
        ({"answer": {"a": [{"b": math.inf}]}}, "answer.a[0].b is Infinity: a number must be finite"),
        ({"calls": [{"name": "get_order", "arguments": {"order_id": math.nan}}]}, "calls[0].arguments.order_id is NaN"),
        ({"answer": "sent"}, 'answer should be a valid dictionary, not "sent"'),
        ({"answer": {"a": nested(1, 70)}}, "answer: no agent could write it: nested more than"),
        ({"answer": {"a": nested(1, 800)}}, "answer: no agent could write it: "),
        ({"answer": {"a": "\ud800"}}, "answer: no agent could write it: "),
        ({"domains": []}, "domains=[]: one name or a list of names; there are shop, "),
        ({"domains": [["shop"]]}, "domains[0] should be a valid string"),
        ({"domains": ["bank"]}, "'bank' is not registered; there are shop"),
        ({"tables": {"order": []}}, "unknown table 'order'; there are customers, orders, products"),
        ({"tables": {"orders": {}}}, "tables.orders should be a valid list, not dict"),
        ({"tables": {"orders": [5]}}, "tables.orders[0] is a JSON object, not 5"),
        ({"tables": {"orders": [ORDER, {**ORDER, "id": 5}]}}, "tables.orders[1].id should be a valid string, not 5"),
        ({"tables": {"orders": [{**ORDER, "color": "red"}]}}, "tables.orders[0]: the key 'color' is unknown"),
        ({"tables": {"orders": [{**ORDER, "status": "lost"}]}}, "tables.orders[0].status should be 'open', 'sent'"),
        ({"tables": {"orders": [ORDER, ORDER]}}, "tables.orders[1]: 'O1' is in the table already"),
        ({"calls": [5]}, "calls[0] is a JSON object, not 5"),
        ({"calls": [{"arguments": {}}]}, "calls[0]: the key 'name' is missing"),
        ({"calls": [{"name": "get_order"}]}, "calls[0]: the key 'arguments' is missing"),
        ({"calls": [CALL, {**CALL, "id": "1"}]}, "calls[1]: the key 'id' is unknown (known are name, arguments)"),
        ({"calls": [{"name": "get_oder", "arguments": {}}]}, "calls[0]: 'get_oder' is no tool of shop, did you mean '"),
        ({"calls": [{"name": "submit", "arguments": {}}]}, "calls[0]: 'submit' is no tool of shop"),
        ({"calls": [{"name": "get_order", "arguments": "O1"}]}, "calls[0].arguments should be a valid dictionary"),
        ({"calls": [{"name": "get_order", "arguments": {}}]}, "the oracle's calls do not run: get_order: argument"),
        ({"calls": [{"name": "get_order", "arguments": {"order_id": "O9"}}]}, "do not run: there is no 'O9' in orders"),
        ({"calls": [{"name": "get_order", "arguments": {"order_id": nested(1, 90)}}]}, "calls[0].arguments: no agent"),
    ],
)  # fmt: skip
def test_a_fault_of_a_shop_task_is_named(tmp_path, changes, says):
    assert says in load_with_fault(load_api, tmp_path, API, changed({**API, "id": "bad"}, **changes))


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [CODE, ASSERTS, UNITTEST, PYTEST, STDIN, MBPP, HUMAN, FIX, PLUS, LIVE, EXERCISE, SPIDER, BIRD, DEFOG, API]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | ANY_TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
        max_leaves=8,
    ),
    st.integers(0, 2**32),
)
@example(PLUS, ")", 1)  # for the name of the function
def test_whatever_a_record_holds_it_is_a_task_or_left_out(tmp_path, good, value, seed):
    """Some place of a sound record is overwritten with any JSON, or taken out."""
    record, rng = json.loads(json.dumps(good)), random.Random(seed)
    place = record
    while True:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if not (isinstance(place[key], dict | list) and place[key]) or rng.random() < 0.4:
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = value
    env_id, load = ("APIAgent-v0", load_api) if good is API else (None, load_code)
    if good in (SPIDER, BIRD, DEFOG):
        env_id, load = "SQL-v0", load_sql
    path, fault = write(tmp_path, record), None
    try:
        (task,), left_out = load(path)
    except ValueError as error:
        fault = str(error)
    if fault is not None:
        assert fault.startswith(f"{path}, record 1: ")
        assert fault.endswith("; the file has no task")
        assert "\n" not in fault
        return
    assert left_out == {}
    if env_id:
        gate_task(gym.make(env_id, disable_env_checker=True, tasks=path), task.id, 0)  # nothing raises in mid-episode


def test_load_records_keeps_a_readers_own_mistakes_visible(tmp_path):
    """Only ValueError says that a record is no task."""
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ZeroDivisionError):
        load_records(path, lambda number, record: 1 / 0)


# ---- what a task of APIAgent may hold ------------------------------------------------------------------------------


class Item(BaseModel):
    name: str
    count: int


class Case(Record):
    id: str
    items: list[Item]
    address: dict[str, str]
    opened: str = ""


def _cases() -> Domain:
    """A domain with nested records, a clock, a tool by schema, and a table and a tool that the shop has too."""
    cases = Domain("cases", cases=Case, orders=Case)

    @cases.tool(reads_only=True)
    def get_order(db: Transaction, order_id: str) -> Case:
        """Read one case."""
        return db.get(Case, "cases", order_id)

    @cases.tool()
    def open_case(db: Transaction, case_id: str) -> Case:
        """Write down when the case was opened."""
        return db.update("cases", db.get(Case, "cases", case_id), opened=db.now.isoformat())

    @cases.tool(
        schema={
            "type": "function",
            "function": {
                "name": "set_item",
                "description": "Set an item of a case.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "case_id": {"type": "string", "pattern": "^K[0-9]+$"},
                        "item": {
                            "type": "object",
                            "properties": {"name": {"type": "string"}, "count": {"type": "integer", "minimum": 0}},
                            "required": ["name", "count"],
                            "additionalProperties": False,
                        },
                        "how": {"enum": ["add", "set"]},
                    },
                    "required": ["case_id", "item"],
                },
            },
        }
    )
    def anything(db, case_id, item, how="set"):
        found = db.get(Case, "cases", case_id)
        for one in found.items:
            if one.name == item["name"]:
                one.count = item["count"] + (one.count if how == "add" else 0)
                return item
        raise ToolError("not_found", "no such item")

    return cases


@pytest.fixture
def cases(monkeypatch):
    monkeypatch.setitem(DOMAINS, "cases", _cases())
    yield DOMAINS["cases"]
    _tool_tables.pop(("cases",), None)


CASES = {"cases": [{"id": "K1", "items": [{"name": "Cup", "count": 2}], "address": {"city": "Rome", "zip": "1"}}]}
SET = {"name": "set_item", "arguments": {"case_id": "K1", "item": {"name": "Cup", "count": 5}}}


def case(**changes):
    return {"id": "c", "request": "Set it.", "domains": ["cases"], "tables": CASES, "calls": [SET], **changes}


def judged(env, *actions, task=None):
    env.reset(seed=0, options={"task": task} if task else None)
    for action in actions:
        _, _, terminated, truncated, info = env.step(action)
    assert terminated or truncated
    return info["verdict"]


def test_nested_records_and_tools_by_schema(cases, tmp_path):
    env = gym.make("APIAgent-v0", tasks=write(tmp_path, case()))
    assert gate_task(env, "c", 0) == []
    assert judged(env, *env.unwrapped.oracle())["status"] == "pass"
    wrong = judged(env, call("set_item", case_id="K1", item={"name": "Cup", "count": 6}), "Done.")
    assert wrong["diagnostics"] == ["cases.K1.items.0.count: not as asked: expected 5, found 6"]
    assert judged(env, "Done.")["diagnostics"] == ["cases.K1.items.0.count: not as asked: expected 5, found 2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"item": {"name": "Cup", "count": 5}}, "'case_id' is a required property"),
        ({"case_id": "x", "item": {"name": "Cup", "count": 5}}, "argument 'case_id': 'x' does not match"),
        ({"case_id": "K1", "item": {"name": "Cup"}}, "argument 'item': 'count' is a required property"),
        ({"case_id": "K1", "item": {"name": "Cup", "count": "5"}},
         "argument 'item.count': '5' is not of type 'integer'"),
        ({"case_id": "K1", "item": {"name": "Cup", "count": True}}, "argument 'item.count': True is not of type"),
        ({"case_id": "K1", "item": {"name": "Cup", "count": -1}},
         "argument 'item.count': -1 is less than the minimum of 0"),
        ({"case_id": "K1", "item": {"name": "Cup", "count": 1, "x": 1}},
         "argument 'item': Additional properties are not allowed ('x'"),
        ({"case_id": "K1", "item": {"name": "Cup", "count": 1}, "how": "sub"}, "argument 'how': 'sub' is not one of"),
        ({"case_id": "K1", "item": {"name": "Cup", "count": 1}, "why": 1},
         "Additional properties are not allowed ('why'"),
    ],
)  # fmt: skip
def test_arguments_are_checked_by_the_schema(cases, tmp_path, arguments, says):
    env = gym.make("APIAgent-v0", tasks=write(tmp_path, case()))
    _, info = env.reset()
    assert info["tools"][2]["function"]["parameters"]["required"] == ["case_id", "item"]
    *_, info = env.step(turn(("set_item", arguments)))
    (result,) = info["tool_results"]
    assert result["error"] == "invalid"
    assert says in json.loads(result["content"])["message"]
    *_, info = env.step(turn(("set_item", {**SET["arguments"], "how": None})))
    assert info["tool_results"][0]["error"] is None  # null leaves an optional argument out


def test_what_is_no_schema_is_refused():
    domain = Domain("refusing")
    for parameters, says in (
        ({"type": "object", "properties": {"a": {"oneOf": []}}}, "parameters.properties.a.oneOf: []"),
        (
            {"type": "object", "properties": {"a": {"type": "text"}}},
            "parameters.properties.a.type: 'text' is not valid",
        ),
        ({"type": "array"}, "needs a name and parameters of the type 'object'"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            domain.tool(schema={"name": "f", "parameters": parameters})(lambda db: None)


def test_names_are_unique_among_the_chosen_domains_only(cases, tmp_path):
    path = write(tmp_path, case(), {**case(), "id": "both", "domains": ["shop", "cases"]})
    with pytest.warns(UserWarning, match="1 of 2 records were left out"):
        env = gym.make("APIAgent-v0", tasks=path)
    said = "domains: 'shop' and 'cases' both have a table 'orders': choose one of them"
    assert env.unwrapped.left_out == {"both": said}
    with pytest.raises(ValueError, match=said):
        gym.make("APIAgent-v0", domains=["cases", "shop"])
    with pytest.raises(ValueError, match="the name is taken"):
        register_domain(Domain("cases"))


def test_the_clock_stands_where_the_task_says(cases, tmp_path):
    opened = [{"name": "open_case", "arguments": {"case_id": "K1"}}]
    path = write(
        tmp_path,
        case(calls=opened, now="2024-05-15T15:00:00"),
        case(id="later", calls=opened, now="2024-05-16"),
        case(id="none", calls=opened),
        case(id="bad", calls=opened, now="noon"),
    )
    with pytest.warns(UserWarning, match="1 of 4"):
        env = gym.make("APIAgent-v0", tasks=path)
    assert env.unwrapped.left_out == {"bad": "now: 'noon' is no time such as '2031-01-31T09:30'"}
    hashes = set()
    for task, stamp in (
        ("c", "2024-05-15T15:00:00"),
        ("later", "2024-05-16T00:00:00"),
        ("none", "2031-01-01T00:00:00"),
    ):
        hashes.add(env.reset(options={"task": task})[1]["state_hash"])
        snap = agent_gym.snapshot(env)
        observation = env.step(call("open_case", case_id="K1"))[0]
        assert json.loads(observation)["opened"] == stamp
        agent_gym.restore(env, pickle.loads(pickle.dumps(snap)))
        assert env.step(call("open_case", case_id="K1"))[0] == observation
        assert env.step("Done.")[1] == 1.0
    assert len(hashes) == 3  # so that no cached result of another time is taken


def test_tables_of_a_file_are_read_once_and_shared(tmp_path, monkeypatch):
    rows = [{"id": f"O{n}", "customer": "C1", "item": "Vase", "status": "sent"} for n in range(100)]
    (tmp_path / "shop.json").write_text(json.dumps({"orders": rows}))
    read = [{"name": "get_order", "arguments": {"order_id": "O7"}}]
    cancelled = [{"name": "set_tier", "arguments": {"customer_id": "C1", "tier": "gold"}}]
    tasks = [{**API, "id": f"t{n}", "tables": "shop.json", "calls": read} for n in range(20)]
    path = write(tmp_path, *tasks, {**API, "id": "bad", "tables": "shop.json", "calls": cancelled})
    made = []
    monkeypatch.setattr("agent_gym.envs.api_agent.env.load", lambda text: made.append(text) or json.loads(text))
    with pytest.warns(UserWarning, match="1 of 21"):
        env = gym.make("APIAgent-v0", tasks=path)
    assert sum(len(text) > 1000 for text in made) == 1
    worlds = [env.unwrapped._make_task(f"t{n}").world for n in range(20)]
    assert all(world.tables is worlds[0].tables for world in worlds)
    assert gate_task(env, "t3", 0) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "tables: shared.json cannot be read: No such file"),
        ("{", "tables: shared.json is not JSON: "),
        ("[]", "shared.json should be an object of records by table, or the name of a file with one, not list"),
        ('{"orders": {}}', "shared.json.orders should be a valid list, not dict"),
        ('{"orders": [{"id": 5}]}', "shared.json.orders[0].id should be a valid string, not 5"),
        ('{"order": []}', "unknown table 'order'; there are customers, orders, products"),
    ],
)
def test_a_fault_of_shared_tables_is_named(tmp_path, content, says):
    if content is not None:
        (tmp_path / "shared.json").write_text(content)
    fault = load_with_fault(load_api, tmp_path, API, {**API, "id": "bad", "tables": "shared.json"})
    assert says in fault


ANSWERS = [
    ({"contains": ["54.04", "Vase"]}, ["$54.04 for the vase.", "vase, 54.04"], ["54.04", "154.04 vase", "54.041 Vase"]),
    ({"contains": ["1000"]}, ["1,000 in all", "$1000."], ["11,000", "1000.5", "100"]),
    ({"status": {"contains": ["sent"]}}, ['{"status": "It was Sent."}'], ['{"status": "absent"}', "Sent.", "{}"]),
    (
        {"n": 1, "note": {"any": True}},
        ['{"n": 1, "note": [5]}', '{"n": 1, "note": null}'],
        ['{"n": 1}', '{"n": true, "note": 1}'],
    ),
    (
        {"deep": [{"a": {"any": True}, "b": 2.0}]},
        ['{"deep": [{"a": 1, "b": 2}]}'],
        ['{"deep": [{"b": 2.0}]}', '{"deep": []}'],
    ),
    (
        {"_x": 1, "model_config": "a", "model_dump": None, "__config__": [True]},
        ['{"_x": 1, "model_config": "a", "model_dump": null, "__config__": [true]}'],
        ['{"_x": 1, "model_config": "a", "model_dump": null, "__config__": [1]}', '{"_x": 1}'],
    ),
    ({"n": 3}, ['{"n": 3}'], ['{"n": 3.0}', '{"n": "3"}', '{"n": 3, "m": 1}', "3", "[3]"]),
    (
        {"x": 3.0},
        ['{"x": 3}', '{"x": 3.0}', '```json\n{"x": 3.0}\n```'],
        ['{"x": true}', '{"x": "3.0"}', '{"x": null}'],
    ),
]


@pytest.mark.parametrize(("expected", "right", "wrong"), ANSWERS)
def test_an_answer_may_contain_text_or_leave_fields_free(tmp_path, expected, right, wrong):
    env = gym.make("APIAgent-v0", tasks=write(tmp_path, {**API, "answer": expected}))
    env.reset(seed=0)
    assert judged(env, *env.unwrapped.oracle())["status"] == "pass"
    for answer in right:
        assert judged(env, answer)["status"] == "pass", answer
        assert judged(env, call("submit", answer=answer))["status"] == "pass"
    for answer in wrong:
        verdict = judged(env, answer)
        assert (verdict["status"], verdict["reason"]) == ("fail", "wrong_answer"), answer
        assert verdict["diagnostics"]


def test_a_user_who_replies(tmp_path):
    user = [{"when": "which order", "say": "Order O2003."}, {"when": "anything else", "say": "No, thanks."}]
    calls = [{"say": "Which order do you mean?"}, *API["calls"]]
    task = {**API, "request": "Where is it?", "user": user, "calls": calls, "answer": {"contains": ["sent"]}}
    env = gym.make("APIAgent-v0", tasks=write(tmp_path, task))
    assert gate_task(env, API["id"], 0) == []
    env.reset(seed=0)
    observation, reward, terminated, *_ = env.step("Which order is it?")
    assert (observation, reward, terminated) == ("Order O2003.", 0.0, False)
    snap = agent_gym.snapshot(env)
    env.step(turn(("get_order", {"order_id": "O2003"})))
    observation, _, terminated, *_ = env.step("It was sent. Anything else?")
    assert (observation, terminated) == ("No, thanks.", False)
    assert env.step("Anything else?")[1:3] == (1.0, True)  # each line is said once; all that was told counts
    agent_gym.restore(env, pickle.loads(pickle.dumps(snap)))
    assert env.step("Which order is it?")[1:3] == (0.0, True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"user": [{"when": "(", "say": "a"}]}, "user[0].when is no regular expression: "),
        ({"user": [{"when": "a"}]}, "user[0]: the key 'say' is missing"),
        ({"user": {"when": "a", "say": "b"}}, "user should be a valid list"),
        ({"calls": [{"say": "Hello?"}, CALL]}, "the user has no reply to the oracle's 'Hello?'"),
        ({"calls": [{"say": ""}, CALL]}, "calls[0].say"),
    ],
)
def test_a_fault_of_a_conversation_is_named(tmp_path, changes, says):
    assert says in load_with_fault(load_api, tmp_path, API, {**API, "id": "bad", **changes})


def test_a_domain_may_have_a_user_in_python(cases, tmp_path):
    @cases.user
    def answer(task, message, said):
        return f"{task.id} {len(said)}: go on" if message.endswith("?") and len(said) < 2 else None

    env = gym.make("APIAgent-v0", tasks=write(tmp_path, case()))
    assert gate_task(env, "c", 0) == []
    env.reset(seed=0)
    assert [env.step(f"{n}?")[0] for n in range(2)] == ["c 0: go on", "c 1: go on"]
    assert env.step("2?")[2] is True


def test_a_task_whose_oracle_is_too_long_is_left_out(tmp_path):
    path = write(tmp_path, *SHOP[:2])
    with pytest.warns(UserWarning, match="1 of 2"):
        env = gym.make("APIAgent-v0", tasks=path, max_turns=3)
    assert env.unwrapped.left_out == {"cascade": "its oracle takes 4 turns, more than max_turns=3: allow 4 or more"}
    with pytest.raises(
        ValueError, match="its oracle takes 4 turns, more than max_turns=1: allow 4 or more; the file has"
    ):
        gym.make("APIAgent-v0", tasks=path, max_turns=1)


def test_a_draft_keeps_the_words_of_the_forms():
    for key in ("any", "contains"):
        with pytest.raises(ValueError, match="choose another key"):
            Draft(random.Random(0), "train").expect(key, 1)
