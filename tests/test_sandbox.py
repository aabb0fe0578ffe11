"""The public calls of agent_gym.sandbox, the pool and its journal, and the data that crosses the wall."""

import asyncio
import contextlib
import http.server
import json
import math
import os
import re
import shutil
import socketserver
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_backends import require

from agent_gym.sandbox import (
    Asserts,
    Limits,
    Pool,
    Raises,
    SandboxUnavailable,
    Scripts,
    Suite,
    Test,
    backends,
    check,
    grader,
    owned,
    rootfs,
    seccomp,
    shared_pool,
    wire,
)
from agent_gym.sandbox import __main__ as command
from agent_gym.sandbox import pool as pool_module
from agent_gym.sandbox.backends import Bubblewrap, Docker, Lost, Process, choose
from agent_gym.sandbox.errors import NotInstalled
from agent_gym.sandbox.grader import Cases, Request, same

LIMITS = Limits(cpu_s=2, wall_s=20, memory_mb=128, disk_mb=8, processes=16)
PLUS_ONE = "def f(x):\n    return x + 1\n"
TESTS = [((1,), 2), ((2,), 3)]


@pytest.fixture(scope="module", params=["bubblewrap", "docker", "process"])
def pool(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        require(request.param)
        with Pool(request.param, slots=1, limits=LIMITS) as found:
            yield found


@pytest.fixture(scope="module")
def quick():
    """A backend for what does not depend on the backend."""
    require("bubblewrap")
    return "bubblewrap"


# ---- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason", "score"),
    [
        (PLUS_ONE, "passed", 1.0),
        ("def f(x): return 2", "wrong_answer", 0.5),
        ("def f(x): return x / 0", "error", 0.0),
        ("def f(x:", "error", 0.0),
        ("def f(x):\n    if x == 2:\n        while True: pass\n    return 2", "timeout", 0.5),
        ("def f(x): return [0] * 10**9", "memory", 0.0),
        ("def f(x): return 'a' * 10**7", "output_limit", 0.0),
    ],
)
def test_reasons(pool, source, reason, score):
    verdict = pool.check(source, "f", TESTS)
    assert (verdict.reason, verdict.score, verdict.trust) == (reason, score, "strong")
    assert verdict.status == ("pass" if reason == "passed" else "fail")
    assert bool(verdict.diagnostics) == (reason != "passed")


def test_what_ended_the_run_is_the_reason_whatever_failed_before(pool):
    source = "def f(x):\n    while x == 2: pass\n    return 0\n"
    verdict = pool.check(source, "f", [((1,), 2), ((3,), 0), ((2,), 3)])
    assert (verdict.reason, verdict.score) == ("timeout", 1 / 3)
    assert verdict.diagnostics == ("no answer within the time limit", "f(1): expected 2, found 0")


def test_a_loop_and_a_sleep_are_told_in_the_same_words(pool):
    limits = Limits(cpu_s=1, wall_s=1.5, memory_mb=128, disk_mb=8, processes=16)
    loop, sleep = (pool.check(f"import time\ndef f(x): {body}", "f", TESTS, limits)
                   for body in ("\n    while True: pass", "time.sleep(99)"))  # fmt: skip
    assert loop == sleep


def test_an_answer_knows_the_cpu_time_of_its_run(pool):
    source = "import time\ndef f(x):\n    while time.process_time() < {}: pass\n    return x + 1\n"
    quick, slow = (pool.submit(source.format(seconds), "f", TESTS) for seconds in (0, 0.6))
    assert quick.result() == slow.result()
    assert 0.0 < quick.cpu_s < 0.6 <= slow.cpu_s


def test_a_program_that_ends_its_run_by_force_does_not_win_the_time_of_a_new_one(monkeypatch, pool):
    grade, runs = pool_module.grade, []

    def counted(sandbox, request):
        runs.append(request is not pool_module.CONTROL)
        return grade(sandbox, request)

    monkeypatch.setattr(pool_module, "grade", counted)
    source = "import os, time\ndef f(x):\n    time.sleep(1.6)\n    os.kill(os.getpid(), 9)\n"
    limits = Limits(cpu_s=2, wall_s=2.0, memory_mb=128, disk_mb=8, processes=16)
    assert pool.check(source, "f", TESTS, limits).reason == "timeout"
    assert sum(runs) <= 2


def test_diagnostics_name_call_expectation_and_finding(pool):
    (line,) = pool.check("def f(x, y): return x", "f", [Test((1,), 2, kwargs={"y": "a"})]).diagnostics
    assert line == "f(1, y='a'): expected 2, found 1"
    (line,) = pool.check("def f(x): return x == 1", "f", [((1,), 1)]).diagnostics
    assert line == "f(1): expected 1, found True"
    (line,) = pool.check("def f(x):\n    return {}[x]", "f", [((1,), 1)]).diagnostics
    assert line == "f(1): expected 1, raised KeyError: 1 (solution.py, line 2)"
    (line,) = pool.check("class I(int): pass\ndef f(x): return I(x)", "f", [((1,), 1)]).diagnostics
    assert line == "f(1): expected 1, found <I>"


def test_of_many_faults_ten_are_described(pool):
    verdict = pool.check("def f(x): return -1", "f", [((n,), n) for n in range(30)])
    assert (len(verdict.diagnostics), verdict.score) == (10, 0.0)


def test_raises(pool):
    source = "def f(x):\n    if x: raise ValueError('no')\n    raise KeyError"
    assert pool.check(source, "f", [((1,), Raises("ValueError")), ((0,), Raises("KeyError"))]).status == "pass"
    verdict = pool.check(source, "f", [((1,), Raises("KeyError"))])
    assert (verdict.reason, verdict.diagnostics) == (
        "wrong_answer", ("f(1): expected a KeyError, raised ValueError: no (solution.py, line 2)",),
    )  # fmt: skip


def test_several_files_and_entry_points(pool):
    files = {"a.py": "from b.c import g\ndef f(x): return g(x)\ndef h(x): return x", "b/c.py": "def g(x): return x + 1"}
    tests = [Test((1,), 2), Test((1,), 1, entry_point="h"), Test((1,), 2, entry_point="b.c:g")]
    assert pool.check(files, "a:f", tests).status == "pass"
    assert pool.check(files, "a:f", [*tests, Test((1,), 1, entry_point="missing")]).reason == "error"


def test_asserts(pool):
    body = Asserts(("assert f(2) == k", "assert isinstance(f(2), int)", "try:\n    f('a')\n    assert False\n"
                    "except TypeError:\n    pass"), ("f",), setup="k = 3")  # fmt: skip
    assert pool.check(PLUS_ONE, "f", body).status == "pass"
    verdict = pool.check("def f(x): return 3", "f", body)
    assert (verdict.reason, round(verdict.score, 2)) == ("wrong_answer", 0.67)
    verdict = pool.check(PLUS_ONE, "f", Asserts(("assert f(1) == 2", "f(print)"), ("f",)))
    assert verdict.status == "infra"
    assert "f(print): NotPlain: the test calls f with something that is not plain data" in verdict.diagnostics[0]
    assert pool.check(PLUS_ONE, "f", TESTS).status == "pass"


SUITE = Suite(
    {"test_f.py": "import unittest\nfrom solution import f\nclass T(unittest.TestCase):\n"
     "    def test_a(self): self.assertEqual(f(1), 2)\n    def test_b(self): self.assertEqual(f(2), 3)\n"},
    ("test_f.T.test_a", "test_f.T.test_b"),
)  # fmt: skip


def test_suite_is_weak_and_wants_exactly_its_tests(pool):
    verdict = pool.check(PLUS_ONE, "", SUITE)
    assert (verdict.status, verdict.trust) == ("pass", "weak")
    assert pool.check("def f(x): return 2", "", SUITE).score == 0.5
    missing = Suite(SUITE.files, (*SUITE.ids, "test_f.T.test_c"))
    assert pool.check(PLUS_ONE, "", missing).diagnostics == ("test_f.T.test_c: 'did not run'",)
    skipped = {
        "test_f.py": SUITE.files["test_f.py"].replace("    def test_b", "    @unittest.skip('')\n    def test_b")
    }
    assert pool.check(PLUS_ONE, "", Suite(skipped, SUITE.ids)).score == 0.5
    assert pool.check(PLUS_ONE, "", Suite(skipped, SUITE.ids[:1])).status == "pass"
    extra = pool.check(PLUS_ONE, "", Suite(SUITE.files, SUITE.ids[:1]))
    assert (extra.status, extra.score) == ("fail", 0.0)


def test_a_result_that_makes_a_test_call_with_no_plain_data_is_a_wrong_answer(pool):
    body = Asserts(("assert f(f(1) - f(1)) == 1",), ("f",))
    verdict = pool.check("def f(x): return float('inf')", "f", body)
    assert (verdict.reason, verdict.score) == ("wrong_answer", 0.0)


@pytest.mark.parametrize(
    "outcomes",
    [{"unittest.loader._FailedTest.x": ""}, {"unittest.loader._FailedTest.x": []}, {"test_f.T.test_a": 1}, 7],
)
def test_forged_outcomes_are_a_verdict_too(quick, outcomes):
    forger = f"""
import json, os, socket, struct, sys
frame = sys._getframe()
while not isinstance(frame.f_locals.get("message"), dict): frame = frame.f_back
data = json.dumps({{"nonce": frame.f_locals["message"]["nonce"], "outcomes": {outcomes!r}}}).encode()
socket.socket(fileno=3).send(struct.pack(">I", len(data)) + data)
os._exit(0)
"""
    verdict = check(forger, "", SUITE, quick, LIMITS)
    assert (verdict.status, verdict.reason, verdict.score) == ("fail", "error", 0.0)


def test_suite_honest_comparisons():
    require("bubblewrap")
    source = """
import collections, enum
P = collections.namedtuple('P', 'a b')
class N(enum.IntEnum):
    ONE = 1
class V:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return isinstance(other, V) and self.n == other.n
"""
    tests = """
import unittest
from solution import *
class Base(unittest.TestCase): pass
class T(Base):
    def test_a(self):
        self.assertEqual(P(1, 2), (1, 2)); self.assertEqual(N.ONE, 1)
        self.assertEqual(V(1), V(1)); self.assertNotEqual(V(1), V(2)); self.assertEqual({1: 2}.keys(), {1})
        self.assertEqual([V(1)], [V(1)]); self.assertIn(V(1), [V(2), V(1)])
"""
    verdict = check(source, "", Suite({"test_v.py": tests}, ("test_v.T.test_a",)), "bubblewrap", LIMITS)
    assert verdict.status == "pass", verdict


EQUAL_TO_ALL = """
class E:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __hash__(self): return hash(1)
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
KEPT = []
"""
SPOOFED = [
    "assert f(1) == 1", "assert 1 == f(1)", "assert not f(1) != 1", "assert f(1) == 1 == f(1)", "assert f(1) in [1, 2]",
    "assert f(1) in {1: 2}", "assert 1 in [f(1)]", "assert not f(1) not in (1, 2)", "assert f(1) == 1 is not None",
    "assert [[f(1)]] == [[1]]", "assert {f(1)} == {1}", "assert {'a': f(1)} == {'a': 1}", "assert {f(1): 2} == {1: 2}",
    "assert 0 < f(1) < 2", "assert f(1) >= 1", "right = f(1) == 1; self.assertTrue(right)",
    "assert all(a == b for a, b in zip([f(1)], [1]))", "self.assertTrue(f(1) == 1)", "self.assertFalse(f(1) != 1)",
    "self.assertIs(f(1) == 1, True)", "self.assertLess(f(1), 2)", "self.assertEqual({f(1)}, {1})",
    "assert abs(f(1) - 1) < 1e-9", "gap = 1 - f(1); self.assertTrue(-1e-9 < gap < 1e-9)",
    "self.assertIn(f(1), [1])", "self.assertIn(1, [f(1)])", "self.assertTrue(any(f(1) == n for n in range(3)))",
]  # fmt: skip


def statements(*found, head=""):
    """A suite with one test a statement."""
    body = "".join(f"    def test_{at}(self):\n        {one}\n" for at, one in enumerate(found))
    text = f"import unittest\nfrom solution import *\n{head}\nclass T(unittest.TestCase):\n{body}"
    return Suite({"test_v.py": text}, tuple(f"test_v.T.test_{at}" for at in range(len(found))))


@pytest.mark.parametrize(
    "spoof",
    ["return E()", "import weakref; KEPT.append(E()); return weakref.proxy(KEPT[0])",
     "from unittest.mock import ANY; return ANY",
     "from collections import UserList; x = UserList(); x.data = E(); return x"],
)  # fmt: skip
def test_an_object_equal_to_everything_equals_no_plain_data_in_a_suite(spoof):
    require("bubblewrap")
    verdict = check(f"{EQUAL_TO_ALL}def f(x):\n    {spoof}\n", "", statements(*SPOOFED), "bubblewrap", LIMITS)
    assert (verdict.status, verdict.score) == ("fail", 0.0)
    assert check("def f(x): return x", "", statements(*SPOOFED), "bubblewrap", LIMITS).status == "pass"


def test_comparisons_of_a_suite_keep_their_meaning():
    require("bubblewrap")
    source = """
import collections, enum, functools
P = collections.namedtuple('P', 'a b')
class N(enum.IntEnum):
    ONE = 1
@functools.total_ordering
class V:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return isinstance(other, V) and self.n == other.n
    def __lt__(self, other): return self.n < other.n
    def __hash__(self): return hash(self.n)
    def __sub__(self, other): return V(self.n - other) if isinstance(other, int) else self.n - other.n
class Bag:
    def __init__(self, *items): self.items = items
    def __contains__(self, item): return item in self.items
    def __iter__(self): return iter(self.items)
"""
    found = [
        "assert P(1, 2) == (1, 2)", "assert N.ONE == 1 and N.ONE < 2", "assert V(1) == V(1) != V(2)",
        "assert V(1) < V(2) <= V(2)",
        "assert V(3) - 1 == V(2) and V(3) - V(1) == 2 and 3.0 - 1 == 2",
        "assert V(1) != 1 and not V(1) == 1", "assert V(1) in {V(1)} and V(1) in [V(1)]",
        "assert 3 in Bag(3) and 4 not in Bag(3)", "assert {1: 2}.keys() == {1}",
        "assert 'a' in 'abc' and 1 in range(3)",
        "assert collections.Counter('aab') == {'a': 2, 'b': 1}", "assert collections.OrderedDict(a=1) == {'a': 1}",
        "assert 1 < 2 < 3 and not 1 < 3 < 2", "x = []; assert x is x == [] and x is not [] != [1]",
        "assert 1 == 1.0 == True",
        "assert [n for n in range(9) if n % 2 == 0] == [0, 2, 4, 6, 8]", "assert sorted([V(2), V(1)])[0] == V(1)",
        "y = []; y.append(y); self.assertTrue(y in [y])", "assert float('nan') != float('nan')",
        "self.assertEqual(collections.deque([V(1)]), collections.deque([V(1)]))",
    ]  # fmt: skip
    verdict = check(source, "", statements(*found, head="import collections"), "bubblewrap", LIMITS)
    assert verdict.status == "pass", verdict


def test_suite_fixtures_run_and_an_import_error_is_told():
    require("bubblewrap")
    tests = (
        "import unittest\nfrom unittest.mock import patch\nfrom solution import f\n"
        "made = []\ndef setUpModule(): made.append(1)\n"
        "class T(unittest.IsolatedAsyncioTestCase):\n    @classmethod\n    def setUpClass(cls): made.append(2)\n"
        "    def setUp(self): self.x = 1\n    async def test_a(self): self.assertEqual([f(self.x), *made], [2, 1, 2])\n"
    )
    suite = Suite({"test_f.py": tests}, ("test_f.T.test_a",))
    assert check(PLUS_ONE, "", suite, "bubblewrap", LIMITS).status == "pass"
    verdict = check("def g(x): return x", "", suite, "bubblewrap", LIMITS)
    assert verdict.reason == "error"
    assert "cannot import name 'f'" in verdict.diagnostics[0]


def test_async(pool):
    async def both():
        return await asyncio.gather(*(pool.acheck(f"def f(x): return {n}", "f", [((1,), 1)]) for n in range(3)))

    assert [verdict.status for verdict in asyncio.run(both())] == ["fail", "pass", "fail"]


def test_nobody_can_cancel_what_others_may_wait_for(quick):
    async def impatient(pool):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(
                pool.acheck("import time\ndef f(x):\n    time.sleep(1)\n    return x", "f", [((1,), 1)]), 0.2
            )
        return await pool.acheck(PLUS_ONE, "f", TESTS)

    with Pool(quick, slots=1, limits=LIMITS) as pool:
        assert asyncio.run(impatient(pool)).status == "pass"


def test_module_level_check_shares_a_pool(quick):
    assert check(PLUS_ONE, "f", TESTS, backend=quick, limits=LIMITS).status == "pass"
    assert shared_pool(quick, LIMITS) is shared_pool(quick, LIMITS)
    assert shared_pool(quick, LIMITS) is not shared_pool(quick, Limits())


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("cpu_s", 0), ("cpu_s", 1.5), ("cpu_s", True), ("wall_s", 0.0), ("wall_s", math.nan), ("wall_s", "1"),
     ("memory_mb", -1), ("memory_mb", 10**6), ("disk_mb", None), ("processes", 2.0)],
)  # fmt: skip
def test_limits_are_validated(field, value):
    with pytest.raises(ValueError, match=rf"Limits\.{field} must be a (whole )?number above 0, not"):
        Limits(**{field: value})


@pytest.mark.parametrize(
    ("source", "entry", "tests", "message"),
    [
        ({"../a.py": ""}, "a:f", TESTS, "'../a.py' is not a relative path inside the workspace"),
        ({"/a.py": ""}, "a:f", TESTS, "not a relative path"),
        ({"a/../../b.py": ""}, "a:f", TESTS, "not a relative path"),
        ({"a//b.py": ""}, "a:f", TESTS, "not a relative path"),
        ({"a\0.py": ""}, "a:f", TESTS, "not a relative path"),
        ({"": ""}, "a:f", TESTS, "not a relative path"),
        ({".": ""}, "a:f", TESTS, "not a relative path"),
        ({}, "a:f", TESTS, "no source"),
        ({"a.py": b"x"}, "a:f", TESTS, "must be text, not bytes"),
        ({"a.py": "", "b.py": ""}, "f", TESTS, "with several files it reads 'module:function'"),
        (PLUS_ONE, "f", [], "tests: there are none"),
        (
            PLUS_ONE,
            "f",
            [((1,), 2), (1, 2)],
            r"test 2: must be \(args, expected\) with a tuple of arguments, not \(1, 2\)",
        ),
        (PLUS_ONE, "f", [((1,),)], r"test 1: must be \(args, expected\)"),
        (PLUS_ONE, "f", [1], r"test 1: must be \(args, expected\)"),
        (PLUS_ONE, "f", Asserts((), ("f",)), "tests: there are none"),
        (PLUS_ONE, "f", Suite({}, ()), "tests: there are none"),
        (PLUS_ONE, "f", Asserts(("assert f(",), ("f",)), "does not compile"),
        (PLUS_ONE, "f", [((1,), math.nan)], "test 1: expected must be plain data without NaN, not nan"),
        (PLUS_ONE, "f", [((1,), 1), ((math.nan,), 1)], "test 2: args must be plain data"),
        (PLUS_ONE, "f", [((1,), [{1: math.nan}])], "without NaN"),
        (PLUS_ONE, "f", [((print,), 1)], "test 1: args must be plain data"),
        (PLUS_ONE, "f", [((1,), type("I", (int,), {})(2))], "must be plain data"),
        (PLUS_ONE, "f", [Test((1,), 1, kwargs={"a": object()})], "test 1: kwargs must be plain data"),
        (PLUS_ONE, "f", [((1 << (1 << 27),), 1)], "more than 16777216 bytes"),
    ],
)
def test_requests_are_validated(quick, source, entry, tests, message):
    with pytest.raises(ValueError, match=message):
        check(source, entry, tests, backend=quick, limits=LIMITS)


def test_pool_arguments_are_validated(quick):
    with pytest.raises(ValueError, match="'podman': choose 'auto', 'docker', 'bubblewrap', 'process'"):
        Pool("podman")
    with pytest.raises(ValueError, match="slots=0"):
        Pool(quick, slots=0)
    with pytest.raises(ValueError, match="pending=True"):
        Pool(quick, pending=True)
    with pytest.raises(ValueError, match="is for the Docker backend"):
        Pool(quick, runtime="runsc")
    with (
        Pool(quick, slots=1, limits=LIMITS) as pool,
        pytest.raises(ValueError, match="memory_mb=512 is above the pool's 128"),
    ):
        pool.submit(PLUS_ONE, "f", TESTS, Limits())


# ---- which backend -------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Sets which backends can be had."""

    def use(*names: str) -> None:
        for kind in (Docker, Bubblewrap, Process):

            def look(kind=kind):
                name = kind.__name__.lower()
                if name not in names:
                    raise NotInstalled(f"no {name}")

            monkeypatch.setattr(kind, "check", look)
        choose.cache_clear()

    yield use
    choose.cache_clear()


def test_auto_takes_docker_then_bubblewrap_then_refuses(installed):
    installed("docker", "bubblewrap", "process")
    assert choose("auto") is Docker
    installed("bubblewrap", "process")
    assert choose("auto") is Bubblewrap
    installed("process")
    with pytest.raises(SandboxUnavailable) as refusal:
        Pool("auto")
    assert str(refusal.value) == (
        "no sandbox for untrusted code: install Docker or bubblewrap (no docker; no bubblewrap), "
        "or ask by name for sandbox='process', which does not protect this machine"
    )


def test_what_works_is_not_tried_again(quick, monkeypatch):
    choose.cache_clear()
    assert choose(quick) is Bubblewrap
    monkeypatch.setattr(Bubblewrap, "check", None)  # cannot be called
    assert choose(quick) is Bubblewrap


def refuse(monkeypatch, reason):
    def look():
        raise reason

    monkeypatch.setattr(Docker, "check", look)
    choose.cache_clear()


def test_auto_says_why_it_passes_docker_by_once_and_an_explicit_docker_is_no_other(quick, monkeypatch):
    refuse(monkeypatch, SandboxUnavailable("no bind mounts"))
    with pytest.warns(UserWarning, match="^sandbox='auto' takes bubblewrap: no bind mounts$") as heard:
        assert [choose("auto"), choose("auto")] == [Bubblewrap, Bubblewrap]
    assert len(heard) == 1
    with pytest.raises(SandboxUnavailable, match="no bind mounts"):
        Pool("docker")
    choose.cache_clear()


def test_auto_is_silent_where_docker_was_never_set_up(quick, monkeypatch):
    refuse(monkeypatch, NotInstalled("no daemon"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("auto") is Bubblewrap
    choose.cache_clear()


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    with pytest.raises(NotInstalled, match="apt install bubblewrap"):
        Bubblewrap.check()
    monkeypatch.setitem(sys.modules, "docker", None)
    backends._docker.cache_clear()
    with pytest.raises(NotInstalled, match="pip install"):
        Docker.check()
    backends._docker.cache_clear()
    monkeypatch.setattr(seccomp.ctypes, "CDLL", mock.Mock(side_effect=OSError))
    seccomp.bpf.cache_clear()
    with pytest.raises(SandboxUnavailable, match="apt install libseccomp2"):
        seccomp.bpf()


@pytest.fixture
def daemon(monkeypatch, tmp_path):
    """Makes DOCKER_HOST name a daemon that answers as it is told to: a body by path, for the rest status 403, and not
    at all to what is None."""
    pytest.importorskip("docker")
    monkeypatch.setattr(backends, "TRIAL_S", 0.5)
    folder, ended, servers = tempfile.mkdtemp(), threading.Event(), []

    def start(replies):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                name = next((name for name in replies if name in self.path), "")
                if replies.get(name, "") is None:
                    ended.wait()
                text = json.dumps(replies.get(name, {"message": "the proxy forbids it"})).encode()
                self.send_response(200 if name else 403)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_DELETE = do_GET

            def address_string(self):
                return "a client"

            def log_message(self, *what):
                pass

        server = socketserver.ThreadingUnixStreamServer(f"{folder}/socket", Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/socket")

    choose.cache_clear()
    backends._docker.cache_clear()
    yield start
    ended.set()
    for server in servers:
        server.shutdown()
        server.server_close()
    shutil.rmtree(folder)
    choose.cache_clear()
    backends._docker.cache_clear()


UP = {"/version": {"ApiVersion": "1.41"}, "/_ping": "OK"}
OURS = {"/images/json": [{"Id": "ours"}], "/images/ours/json": {"Id": "ours"}}


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ({"/version": None}, "the Docker daemon does not answer: .*timed out"),
        (UP, "sandbox='docker' does not work here: the proxy forbids it"),
        ({**UP, "/images/json": []}, "sandbox='docker' does not work here: the proxy forbids it"),
        (
            {**UP, "/images/json": [], "/images/load": ""},
            "the daemon loaded .*, not the image ours",
        ),
        ({**UP, **OURS}, "sandbox='docker' does not work here: no container: the proxy forbids it"),
        ({**UP, **OURS, "/containers/create": None}, "sandbox='docker' does not work here: .*timed out"),
    ],
    ids=["hangs", "pings only", "takes no image", "loads another", "makes no container", "hangs later"],
)
def test_a_daemon_that_answers_and_cannot_work_is_passed_by(daemon, monkeypatch, replies, reason):
    monkeypatch.setattr(Bubblewrap, "check", lambda: None)  # on a busy machine half a second is too short for its trial
    monkeypatch.setattr(backends, "image_id", lambda: "ours")
    monkeypatch.setattr(backends, "image_tar", lambda: ("ours", b""))
    daemon(replies)
    with pytest.raises(SandboxUnavailable, match=reason):
        choose("docker")
    with pytest.warns(UserWarning, match=f"^sandbox='auto' takes bubblewrap: {reason}"):
        assert choose("auto") is Bubblewrap


def test_a_daemon_that_is_not_there(monkeypatch):
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    backends._docker.cache_clear()
    with pytest.raises(SandboxUnavailable, match="daemon does not answer") as refusal:
        Docker.check()
    assert not isinstance(refusal.value, NotInstalled)  # somebody has named it
    backends._docker.cache_clear()


def test_a_daemon_that_does_not_see_our_files(tmp_path):
    """As through a mounted socket, or with a private TMPDIR: here, with a folder that only the caller sees."""
    require("docker")
    require("bubblewrap")
    private = tempfile.mkdtemp()
    script = f"mount --make-rprivate / && mount -t tmpfs none {private} && exec env TMPDIR={private} "
    script += f"{sys.executable} -m agent_gym.sandbox check"
    run = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=300)
    os.rmdir(private)
    if "unshare" in run.stderr or "mount" in run.stderr:
        pytest.skip(f"no file system of one's own can be had: {run.stderr}")
    docker, *others = run.stdout.splitlines()
    assert docker.startswith("docker: sandbox='docker' does not work here: no container: invalid mount config")
    assert docker.endswith(f"; the daemon must see this process's {private} (TMPDIR names another folder)")
    assert others == ["bubblewrap: works", "process: works", "auto: takes bubblewrap, because docker does not work"]


def test_a_container_that_does_not_reach_us_says_so_before_its_time_is_up(monkeypatch):
    require("docker")
    listen = Docker._listen

    def unreachable(listener, folder):
        listen(listener, folder)
        os.unlink(f"{folder}/control")

    monkeypatch.setattr(Docker, "_listen", staticmethod(unreachable))
    monkeypatch.setattr(backends, "TRIAL_S", 600.0)
    with pytest.raises(SandboxUnavailable, match="the container ended before it connected to this process: FileNotF"):
        Docker.check()


def test_a_container_that_says_nothing_is_not_waited_for(monkeypatch):
    require("docker")
    monkeypatch.setattr(backends, "ZYGOTE", "-cimport time; time.sleep(600)")
    monkeypatch.setattr(backends, "TRIAL_S", 2.0)
    with pytest.raises(SandboxUnavailable, match="the container has not connected to this process within 2 s"):
        Docker.check()
    assert backends._docker().api.timeout == backends.START_S


@pytest.mark.parametrize("name", ["bubblewrap", "docker"])
def test_a_sandbox_that_starts_but_runs_nothing_does_not_work(monkeypatch, name):
    require(name)
    kind, config = backends.BACKENDS[name], backends.BACKENDS[name]._config
    monkeypatch.setattr(kind, "_config", lambda self: {**config(self), "filter": "AAAAAAAAAAA="})  # no such instruction
    with pytest.raises(SandboxUnavailable, match=f"{name}' does not work here: the run could not be enclosed: OSError"):
        kind.check()


def test_a_trial_that_is_killed_is_tried_again(quick, monkeypatch):
    launch, deaths = Bubblewrap._launch, []

    def mortal(self):
        control = launch(self)
        if len(deaths) < backends.TRIALS - 1:
            deaths.append(control.close())
            raise Lost("killed")
        return control

    monkeypatch.setattr(Bubblewrap, "_launch", mortal)
    Bubblewrap.check()
    assert len(deaths) == backends.TRIALS - 1


def test_a_deep_temporary_folder_will_do(monkeypatch, tmp_path):
    require("docker")
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    for folder in (deep, *deep.parents[:4]):
        folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    Docker.check()
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize("answers", [[None], [409, 500, None], [409, 404], [ConnectionError()]], ids=str)
def test_a_container_is_removed_until_it_is_gone(answers):
    docker = pytest.importorskip("docker")
    kinds = {404: docker.errors.NotFound, 409: docker.errors.APIError, 500: docker.errors.APIError}
    sandbox = mock.Mock()
    sandbox.container.remove.side_effect = [kinds[a]("no") if isinstance(a, int) else a for a in answers]
    Docker._stop(sandbox)
    assert sandbox.container.remove.call_count == len(answers)


def test_uids_differ_and_stay_where_every_daemon_has_them():
    place, none = Docker._place, mock.Mock()
    drawn = [place(none)["uid"] for _ in range(backends.UIDS + 1)]
    assert sorted(drawn[1:]) == list(range(20_000, 60_000))
    assert drawn[0] == drawn[-1]


def test_forks_draw_uids_of_their_own():
    drawn = {Docker._place(mock.Mock())["uid"]}
    for _ in range(5):
        theirs, ours = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(ours, str(Docker._place(mock.Mock())["uid"]).encode())
            os._exit(0)
        os.close(ours)
        os.waitpid(pid, 0)
        with open(theirs) as file:
            drawn.add(int(file.read()))
    assert len(drawn) > 3  # by chance, two may be the same


def test_a_fork_talks_to_the_daemon_on_connections_of_its_own():
    require("docker")
    backends._docker()
    pid = os.fork()
    if pid == 0:
        os._exit(backends._docker.cache_info().currsize)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert backends._docker.cache_info().currsize == 1


# ---- folders that cannot be had --------------------------------------------------------------------------------------


@pytest.fixture
def unbuilt():
    """Nothing is remembered of what was found out or built."""

    def forget():
        rootfs.rootfs.cache_clear()
        choose.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.parametrize("where", ["/proc", "/dev/null", "{}/file", "{}/file/deeper"])
@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("backend", ["auto", "bubblewrap", "docker"])
def test_a_cache_folder_that_cannot_be_made_is_named_with_its_remedy(
    monkeypatch, unbuilt, tmp_path, where, variable, backend
):
    require("bubblewrap" if backend == "auto" else backend)
    choose.cache_clear()
    rootfs.rootfs.cache_clear()
    (tmp_path / "file").touch()
    folder = where.format(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, folder)
    folder += "/.cache/agent_gym" if variable == "HOME" else "/agent_gym"
    with pytest.raises(SandboxUnavailable) as refusal:
        Pool(backend)
    assert f"the sandbox cannot keep its files in {folder} (" in str(refusal.value)
    assert "): set XDG_CACHE_HOME to a folder that can be written" in str(refusal.value)


FULL = "[Errno 28] No space left on device: 'there'"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "there"), shutil.Error([("here", "there", FULL)] * 99)]
)
def test_a_cache_folder_that_takes_no_files_is_named(monkeypatch, unbuilt, tmp_path, error):
    require("bubblewrap")
    choose.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rootfs, "_build", mock.Mock(side_effect=error))
    rootfs.rootfs.cache_clear()
    with pytest.raises(SandboxUnavailable) as refusal:
        Pool("bubblewrap")
    assert str(refusal.value) == (
        f"the sandbox cannot keep its files in {tmp_path}/agent_gym ({FULL}): "
        "set XDG_CACHE_HOME to a folder that can be written"
    )
    assert list((tmp_path / "agent_gym").iterdir()) == []


def test_no_home_at_all(monkeypatch, unbuilt):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError("Could not determine home directory.")))
    with pytest.raises(SandboxUnavailable, match="has no home folder to keep its files in: set XDG_CACHE_HOME"):
        rootfs.rootfs()


def test_a_relative_cache_folder_will_do(monkeypatch, unbuilt, tmp_path):
    require("bubblewrap")
    choose.cache_clear()
    built = rootfs.rootfs()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    (tmp_path / "cache" / "agent_gym").mkdir(parents=True)
    (tmp_path / "cache" / "agent_gym" / built.name).symlink_to(built)
    rootfs.rootfs.cache_clear()
    assert check(PLUS_ONE, "f", TESTS, backend="bubblewrap", limits=LIMITS).status == "pass"
    assert rootfs.rootfs() == tmp_path / "cache" / "agent_gym" / built.name


def test_no_temporary_folder_at_all(monkeypatch, unbuilt):
    require("bubblewrap")
    choose.cache_clear()
    monkeypatch.setattr(
        tempfile, "gettempdir", mock.Mock(side_effect=FileNotFoundError("No usable temporary directory"))
    )
    with pytest.raises(SandboxUnavailable, match="no folder for temporary files: set TMPDIR to a folder that can be"):
        Pool("bubblewrap")


def test_process_says_what_it_does_not_protect_from():
    choose.cache_clear()
    with pytest.warns(UserWarning, match="use it for code you trust"):
        Pool("process").close()


# ---- the pool ------------------------------------------------------------------------------------------------------


def sleeper(number: int, seconds: float = 0.4) -> tuple[str, str, Any]:
    return f"import time\ndef f(x):\n    time.sleep({seconds})\n    return {number}", "f", [((1,), number)]


def test_a_request_in_flight_is_run_once(quick):
    with Pool(quick, slots=2, limits=LIMITS) as pool:
        first, again = pool.submit(*sleeper(1)), pool.submit(*sleeper(1))
        assert first is again
        assert first.result().status == "pass"
        assert pool.submit(*sleeper(1)) is not first


def test_slots_work_side_by_side(quick, monkeypatch):
    grade, both = pool_module.grade, threading.Barrier(2)

    def meet(sandbox, request):
        both.wait(120)  # a slot that came alone would break it
        return grade(sandbox, request)

    monkeypatch.setattr(pool_module, "grade", meet)
    with Pool(quick, slots=2, limits=LIMITS) as pool:
        futures = [pool.submit(*sleeper(n)) for n in range(2)]
        assert [future.result().status for future in futures] == ["pass", "pass"]


def test_a_full_queue_blocks_and_drains(quick):
    with Pool(quick, slots=1, pending=1, limits=LIMITS) as pool:
        futures, started = [], time.monotonic()
        for number in range(5):
            futures.append(pool.submit(*sleeper(number)))
        assert time.monotonic() - started > 0.8  # three of five had to be done for the last to be accepted
        assert [future.result().status for future in futures] == ["pass"] * 5


def test_close_answers_what_was_accepted_even_from_a_full_queue(quick):
    pool, futures = Pool(quick, slots=2, pending=1, limits=LIMITS), []
    feeder = threading.Thread(target=lambda: futures.extend(pool.submit(*sleeper(n, 0.2)) for n in range(6)))
    feeder.start()
    feeder.join()
    closer = threading.Thread(target=pool.close, daemon=True)
    closer.start()
    closer.join(300)
    assert not closer.is_alive()
    assert [future.result(0).status for future in futures] == ["pass"] * 6
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.submit(*sleeper(9))
    pool.close()


def test_what_no_sandbox_answers_is_infra(monkeypatch, quick):
    class Broken(Bubblewrap):
        def __init__(self, limits):
            raise Lost("no room")

    monkeypatch.setattr(pool_module, "BACKOFF_S", 0.001)
    pool = Pool(quick, slots=1, limits=LIMITS)
    pool.kind = Broken
    verdict = pool.check(PLUS_ONE, "f", TESTS)
    pool.close()
    assert (verdict.status, verdict.reason, verdict.diagnostics) == ("infra", "infra", ("no room",))
    assert math.isnan(verdict.reward)


def test_a_sandbox_that_raises_at_its_start_is_infra_too(monkeypatch, quick):
    class Broken(Bubblewrap):
        def _launch(self):
            raise RuntimeError("libseccomp is missing")

    monkeypatch.setattr(pool_module, "BACKOFF_S", 0.001)
    pool = Pool(quick, slots=1, limits=LIMITS)
    pool.kind = Broken
    assert "libseccomp is missing" in pool.check(PLUS_ONE, "f", TESTS).diagnostics[0]
    pool.close()


def test_a_sandbox_lost_once_is_no_fault_and_one_lost_always_is(monkeypatch, quick):
    grade, losses = pool_module.grade, []

    def fragile(sandbox, request):
        if request != pool_module.CONTROL and ("always" in request.files["solution.py"] or not losses):
            losses.append(1)
            raise Lost("gone")
        return grade(sandbox, request)

    monkeypatch.setattr(pool_module, "BACKOFF_S", 0.001)
    monkeypatch.setattr(pool_module, "grade", fragile)
    with Pool(quick, slots=1, limits=LIMITS) as pool:
        assert pool.check(PLUS_ONE, "f", TESTS).status == "pass"
        verdict = pool.check("# always\n" + PLUS_ONE, "f", TESTS)
        assert (verdict.reason, verdict.diagnostics) == (
            "error",
            ("the program, or the sandbox under it, is killed every time it runs",),
        )
        assert pool.check("# after\n" + PLUS_ONE, "f", TESTS).status == "pass"


def test_a_run_that_does_not_start_in_time_is_a_fault_of_the_machine(monkeypatch, quick):
    monkeypatch.setattr(pool_module, "BACKOFF_S", 0.001)
    with Pool(quick, slots=1, limits=LIMITS) as pool:
        assert pool.check(PLUS_ONE, "f", TESTS).status == "pass"
        monkeypatch.setattr(grader, "START_S", 0.0)
        verdict = pool.check("# late\n" + PLUS_ONE, "f", TESTS)
        assert verdict.status == "infra"
        assert verdict.diagnostics in (  # by what the run had been given until then
            ("the machine gave the run hardly any processor time",),
            ("the run did not start: no answer within the time limit",),
        )


def test_a_sandbox_that_is_mute_after_a_timeout_gives_no_verdict_and_no_second_timeout(monkeypatch, quick):
    class Mute(Bubblewrap):
        def end(self):
            raise Lost("it does not answer")

    grade, runs = pool_module.grade, []

    def counted(sandbox, request):
        runs.append(request is not pool_module.CONTROL)
        return grade(sandbox, request)

    monkeypatch.setattr(pool_module, "grade", counted)
    pool = Pool(quick, slots=1, limits=Limits(wall_s=1.0))
    pool.kind = Mute
    verdict = pool.check("import time\ndef f(x): time.sleep(99)", "f", TESTS)
    pool.close()
    assert (verdict.status, verdict.diagnostics, runs) == ("infra", ("it does not answer",), [True])


# ---- the journal ---------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_journal_answers_again_without_running(tmp_path, quick, monkeypatch):
    path = tmp_path / "journal"
    with Pool(quick, slots=1, limits=LIMITS, journal=path) as pool:
        first = pool.check("def f(x): return '\ud800'", "f", [((1,), {2: b"a"})])
    assert [next(iter(entry)) for entry in lines(path)] == ["accepted", "answered"]
    monkeypatch.setattr(pool_module, "grade", None)  # cannot be called
    with Pool(quick, slots=1, limits=LIMITS, journal=path) as pool:
        assert pool.recover() == {}
        assert pool.check("def f(x): return '\ud800'", "f", [((1,), {2: b"a"})]) == first
    assert len(lines(path)) == 2


@pytest.mark.parametrize(
    "tests",
    [TESTS, [Test((1,), Raises("TypeError"), "g", {"a": 1})], Asserts(("assert f(1) == 2",), ("f",), "a = 1"), SUITE],
)
def test_journal_recovers_what_was_accepted(tmp_path, quick, tests):
    path = tmp_path / "journal"
    source = PLUS_ONE + "\ndef g(x): pass\n"
    with Pool(quick, slots=1, limits=LIMITS, journal=path) as pool:
        pool.check(source, "f", tests)
    accepted, answered = path.read_bytes().splitlines(keepends=True)
    for cut in (b"", answered[:20]):  # the crash came before the answer, or in the middle of its line
        path.write_bytes(accepted + cut)
        with Pool(quick, slots=1, limits=LIMITS, journal=path) as pool:
            ((key, future),) = pool.recover().items()
            assert future.result().status == "pass"
            assert pool.recover() == {}
        assert [entry.get("accepted", entry.get("answered")) for entry in lines(path)] == [key] * 3
    with Pool(quick, slots=1, limits=LIMITS, journal=path) as pool:
        assert pool.recover() == {}


def test_a_file_that_is_no_journal_is_refused(tmp_path, quick):
    for text in ("hello\n", "[]\n", '{"accepted": "a"}\n', '{"answered": "a", "verdict": {"status": "pass"}}\n'):
        (tmp_path / "journal").write_text(text)
        with pytest.raises(ValueError, match="line 1: not a line of a journal"):
            Pool(quick, journal=tmp_path / "journal")
        assert (tmp_path / "journal").read_text() == text


def test_the_key_tells_requests_apart():
    def key(expected: Any, source: str = PLUS_ONE, limits: Limits = LIMITS) -> str:
        return Request.of(source, "f", Cases((Test((1,), expected),)), limits).key

    keys = [
        key(1),
        key(True),
        key(1.0),
        key((1,)),
        key([1]),
        key(Raises("E")),
        key("E"),
        key(1, "x"),
        key(1, limits=Limits()),
    ]
    assert len(set(keys)) == len(keys)
    assert key({1: [2]}) == key({1: [2]})


# ---- the image and the command line ----------------------------------------------------------------------------------


def test_image_is_the_same_bytes_every_time_and_holds_no_packages(tmp_path):
    require("bubblewrap")
    identity, data = rootfs.image_tar()
    assert rootfs.image_tar() == (identity, data)
    assert rootfs.image_id() == identity
    with tarfile.open(fileobj=BytesIO(data)) as image:
        layer = image.extractfile("layer.tar").read()
    with tarfile.open(fileobj=BytesIO(layer)) as tree:
        names = tree.getnames()
        assert {(entry.mtime, entry.uid, entry.gid) for entry in tree} == {(0, 0, 0)}
    assert rootfs.ZYGOTE[1:] in names
    assert [name for name in names if "site-packages" in name or "dist-packages" in name or name.endswith("/sh")] == []
    again = tmp_path / "root"
    again.mkdir()
    rootfs._build(again)
    assert rootfs._layer(again) == layer


def test_an_image_of_other_bytes_is_refused(monkeypatch):
    class Images:
        def list(self, **options):
            return []

        def load(self, data):
            return [type("Image", (), {"id": "sha256:other"})]

    monkeypatch.setattr(backends, "_docker", lambda: type("Client", (), {"images": Images()}))
    monkeypatch.setattr(backends, "image_id", lambda: "sha256:ours")
    monkeypatch.setattr(backends, "image_tar", lambda: ("sha256:ours", b""))
    with pytest.raises(RuntimeError, match=r"the daemon loaded \['sha256:other'\], not the image sha256:ours"):
        backends.docker_image()


def test_commands(tmp_path, capsys):
    require("bubblewrap")
    run = subprocess.run(
        [sys.executable, "-m", "agent_gym.sandbox", "check"], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    docker, *others, auto = run.stdout.splitlines()
    assert others == ["bubblewrap: works", "process: works"]
    assert docker.startswith("docker: ")
    if docker == "docker: works":
        assert auto == "auto: takes docker, because it works and comes first"
    else:
        assert auto == "auto: takes bubblewrap, because docker does not work"
    boot, namespace, pid, _ = owned.owner().split(".")
    left = (
        Path(tempfile.gettempdir()) / f"agent_gym-{boot}.{namespace}.{pid}.1-left"
    )  # an earlier process of our number
    left.mkdir()
    assert command.main(["reap"]) == 0
    assert re.search("control groups and folders removed: [1-9]", capsys.readouterr().out)
    assert not left.exists()
    assert command.main(["build", "--output", str(tmp_path / "image.tar")]) == 0
    assert rootfs.image_id() in capsys.readouterr().out
    assert (tmp_path / "image.tar").read_bytes() == rootfs.image_tar()[1]


def test_check_where_nothing_works(monkeypatch, capsys):
    for kind in (Docker, Bubblewrap, Process):
        reason = SandboxUnavailable(f"{kind.__name__} is broken")
        monkeypatch.setattr(kind, "check", mock.Mock(side_effect=reason))
    assert command.main(["check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "docker: Docker is broken",
        "bubblewrap: Bubblewrap is broken",
        "process: Process is broken",
        "auto: takes nothing, because neither docker nor bubblewrap works",
    ]


def test_build_without_a_daemon_says_so(monkeypatch, capsys):
    def absent():
        raise SandboxUnavailable("the Docker daemon does not answer")

    monkeypatch.setattr(command, "docker_image", absent)
    assert command.main(["build"]) == 1
    assert capsys.readouterr().err == "the Docker daemon does not answer\n"


# ---- the wire ------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # half a surrogate pair too
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | TEXT | st.binary(max_size=8)
KEYS = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=5
)
VALUES = st.recursive(
    KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.sets(KEYS, max_size=4)
    | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from("iucfbolpdtsz"),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
TOKENS = st.lists(
    JSON | st.tuples(st.sampled_from("iucfbolpdtszq"), JSON).map(list)
    | st.tuples(st.sampled_from("ltszd"), st.integers(0, 4)).map(list)
    | st.tuples(st.sampled_from("iucfbolpdtsz"), JSON, JSON).map(list), max_size=8,
)  # fmt: skip
PLAIN = {bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None), wire.Foreign}


def parts(value: Any) -> list[Any]:
    found, stack = [], [value]
    while stack:
        found.append(stack.pop())
        if isinstance(found[-1], dict):
            stack += [*found[-1].keys(), *found[-1].values()]
        elif isinstance(found[-1], list | tuple | set | frozenset):
            stack += found[-1]
    return found


def over_the_wall(value: Any) -> Any:
    return wire.decode(wire.unpack(BytesIO(wire.pack(wire.encode(value))).read))


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_plain_data_survives(value):
    found = over_the_wall(value)
    assert repr(found) == repr(value) or found == value or any(part != part for part in parts(value))
    has_nan = any(part != part for part in parts(value))
    assert same(found, value) != has_nan
    assert [type(part) for part in parts([found])].count(wire.Foreign) == 0


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES)
def test_same_is_stricter_than_equality(one, other):
    assert same(one, other) == same(other, one)
    if same(one, other):
        assert one == other
        assert type(one) is type(other)


@settings(max_examples=600, deadline=None)
@given(TOKENS | JSON, st.booleans())
def test_hostile_tokens_decode_to_plain_data_or_are_refused(tokens, exact):
    try:
        value = wire.decode(tokens, exact)
    except wire.Malformed as error:
        str(error)
        return
    assert {type(part) for part in parts(value)} <= PLAIN - (set() if exact else {wire.Foreign})
    repr(value)


@pytest.mark.parametrize(
    "tokens",
    [[["o"]], [["i"]], [["p", "!!"]], [["p", ""], 1], [["i", "g"]], [["x", 0]], [["x", 0, 5]], [["l", 0, ["a"]]],
     [n * ((1 << 61) - 1) for n in range(1000)] + [["s", 1000]], [["l", 0]] + [["t", 1]] * 500, [["o", [[]]]]],
)  # fmt: skip
def test_malformed(tokens):
    with pytest.raises(wire.Malformed):
        wire.decode(tokens)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'"\\ud', b"9" * 5000, b""])
def test_not_json(body):
    with pytest.raises(wire.Malformed):
        wire.unpack(BytesIO(len(body).to_bytes(4, "big") + body).read)


def test_caps():
    with pytest.raises(wire.TooLarge):
        wire.unpack(BytesIO(b"\xff\xff\xff\xff").read, 100)
    for value in ("a" * 2000, [0] * 2000, b"a" * 2000, 1 << 15_000, {n: n for n in range(500)}):
        with pytest.raises(wire.TooLarge):
            wire.encode(value, 1000)
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(wire.TooLarge, match="deep, or a cycle"):
        wire.encode(cycle)


def test_hostile_tokens_take_no_time():  # seconds; minutes, were it quadratic
    started = time.monotonic()
    for tokens in ([0] * 300_000, [["l", 0]] * 130_000, [n << 40 for n in range(100_000)] + [["s", 100_000]],
                   [0, ["t", 1]] * 50_000 + [["z", 50_000]], [["u", "a" * 10**6]] + [["t", 1]] * 390):  # fmt: skip
        with contextlib.suppress(wire.Malformed):
            wire.decode(tokens)
    assert time.monotonic() - started < 100


# ---- what tests may ask --------------------------------------------------------------------------------------------

RICH = """
import datetime, decimal, fractions
def sort_colors(x): x.sort()
def swap(rows): rows.reverse(); rows[0].append(9)
def grow(d): d["new"] = {"z": 1}; d["old"].add(3)
def identity(x): return x
def up_to(n): yield from range(n)
def endless():
    n = 0
    while True:
        yield n
        n += 1
def pairs(a, b): return zip(a, b)
def breaks():
    yield 1
    raise KeyError("x")
def both(n): return up_to(n), range(n)
def keys(d): return d.keys()
def third(a): return a / 3
def tomorrow(day): return day + datetime.timedelta(days=1)
def total(items): return sum(items)
"""
RICH_NAMES = tuple("sort_colors swap grow identity up_to endless pairs breaks both keys third tomorrow total".split())
RICH_STATEMENTS = (
    "x = [2, 0, 1]; sort_colors(x); assert x == [0, 1, 2]",
    "a, b = [1], [2]; rows = [a, b]; swap(rows); assert rows == [[2, 9], [1]] and rows[0] is b and b == [2, 9]",
    "d = {'old': {1}}; grow(d); assert d == {'old': {1, 3}, 'new': {'z': 1}}",
    "x = [1]; assert identity(x) is x and identity((x,))[0] == x",
    "assert list(up_to(3)) == [0, 1, 2]", "it = endless(); assert [next(it), next(it)] == [0, 1]",
    "import types; assert isinstance(up_to(1), types.GeneratorType)",
    "assert dict(pairs('ab', [1, 2])) == {'a': 1, 'b': 2}", "a, b = both(2); assert list(a) == list(b) == [0, 1]",
    "it = breaks(); assert next(it) == 1\ntry:\n    next(it); assert False\nexcept KeyError:\n    pass",
    "assert both(3)[1] == range(3)", "assert keys({'a': 1}) == {'a'} and sorted(keys({'b': 1, 'a': 2})) == ['a', 'b']",
    "from fractions import Fraction\nassert third(Fraction(1, 2)) == Fraction(1, 6)",
    "from decimal import Decimal\nassert third(Decimal(1)) == Decimal(1) / 3",
    "from datetime import date, datetime\nassert tomorrow(date(2020, 1, 31)) == date(2020, 2, 1)\n"
    "assert tomorrow(datetime(2020, 1, 31, 5)) == datetime(2020, 2, 1, 5)",
    "assert total(n for n in range(4)) == 6 and total(iter([1, 2])) == 3 and total({1: 2}.values()) == 2",
)  # fmt: skip


def test_asserts_see_what_a_right_program_gives_and_changes(quick):
    body = Asserts(RICH_STATEMENTS, RICH_NAMES)
    verdict = check(RICH, "solution:identity", body, quick, LIMITS)
    assert verdict.status == "pass", verdict
    wrong = RICH.replace("x.sort()", "x.reverse()").replace("range(n)", "range(n - 1)").replace("a / 3", "a / 2")
    assert check(wrong, "solution:identity", body, quick, LIMITS).score == 1 - 6 / len(RICH_STATEMENTS)


@pytest.mark.parametrize(
    "statement", ["f(print)", "f(lambda: 1)", "f(object())", "f(nowhere)", "f(float('nan'))", "1 / 0"]
)
def test_a_test_that_fails_whatever_the_program_is_gives_no_verdict(quick, statement):
    verdict = check(PLUS_ONE, "f", Asserts(("assert f(1) == 2", statement), ("f",)), quick, LIMITS)
    assert (verdict.status, verdict.reason) == ("infra", "infra")
    assert f"the test itself fails: {statement}" in verdict.diagnostics[0]
    verdict = check(PLUS_ONE, "f", Asserts(("assert f(1) == 2",), ("f",), "import nowhere"), quick, LIMITS)
    assert verdict.status == "infra"


@pytest.mark.parametrize(
    ("source", "reason"),
    [("def f():\n    while True: yield 'a' * 10**5", "output_limit"), ("def f(): return range(10**15)", "wrong_answer"),
     ("import decimal\ndef f(): return decimal.Decimal('1e99999999')", "wrong_answer"),
     ("def f():\n    while True: pass\n    yield 1", "timeout"),
     ("import os\ndef f():\n    os._exit(0)\n    yield 1", "error")],
)  # fmt: skip
def test_what_a_test_goes_through_is_bounded(quick, source, reason):
    statement = "int(f())" if "Decimal" in source else "assert sum(map(len, f())) == 3"
    assert check(source, "f", Asserts((statement,), ("f",)), quick, LIMITS).reason == reason


def test_long_integers_and_large_results(quick):
    assert check("def f(n): return 7**n", "f", [((200_000,), 7**200_000)], quick, LIMITS).status == "pass"
    verdict = check("def f(n): return 7**n + 1", "f", [((200_000,), 7**200_000)], quick, LIMITS)
    assert verdict.reason == "wrong_answer"
    large = [((), "x" * (3 << 20))]
    source = "def f(): return 'x' * (3 << 20)"
    assert check(source, "f", large, quick, LIMITS).reason == "output_limit"
    limits = Limits(cpu_s=10, wall_s=60, memory_mb=512, output_mb=4)
    assert check(source, "f", large, quick, limits).status == "pass"
    with pytest.raises(ValueError, match="output_mb must be at most 64"):
        Limits(output_mb=65)


def test_tolerance_and_lists(quick):
    source = "def f(): return [1, 0.1 + 0.2, {'a': (1e6, 2.0)}]\n"
    source += "def g(n): return (i for i in range(n)), {1: 2}.values()\n"
    near = [1, 0.3, {"a": (1e6 + 1e-4, 2.0)}]
    tests = [
        (Test((), near, rtol=1e-9), True), (Test((), near), False), (Test((), near, atol=1e-3), True),
        (Test((), near, atol=1e-6), False), (Test((), [1.0, *near[1:]], rtol=1e-9), False),
        (Test((), [2, *near[1:]], atol=5.0), False), (Test((), [True, *near[1:]], rtol=1e-9, compare="equal"), True),
        (Test((2,), [[0, 1], [2]], "g", lists=True), True), (Test((2,), ([0, 1], [2]), "g", lists=True), True),
        (Test((2,), [[0, 1], [2]], "g"), False), (Test((2,), [[1, 0], [2]], "g", lists=True), False),
    ]  # fmt: skip
    for test, right in tests:
        assert (check(source, "f", [test], quick, LIMITS).status == "pass") == right, test


@pytest.mark.parametrize(
    ("source", "reason"),
    [("print(int(input()) + int(input()))", "passed"),
     ("import sys\nsys.stdout.write(str(sum(map(int, sys.stdin))))", "passed"),
     ("import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())", "passed"),
     ("if __name__ == '__main__':\n    print(sum(map(int, open(0).read().split())), ' ')\n    exit()", "passed"),
     ("print('3.0')", "wrong_answer"), ("print(3)\nprint()\nprint(4)", "wrong_answer"), ("pass", "wrong_answer"),
     ("print(int(input()) + int(input()))\nexit(3)", "error"), ("1 / 0", "error"), ("while True: pass", "timeout"),
     ("x = [0] * 10**9", "memory"), ("print('x' * 10**7)", "output_limit"), ("def f(:", "error"),
     ("import os\nos.close(0); os._exit(0)", "wrong_answer"), ("import sys\nsys.exit('no')", "error"),
     ("import socket\nsocket.socket(fileno=3).send(b'x')", "error")],
)  # fmt: skip
def test_scripts(quick, source, reason):
    body = Scripts((("1\n2\n", "3\n"), ("-5\n9", "4")))
    verdict = check(source, "solution:", body, quick, LIMITS)
    assert (verdict.reason, verdict.trust) == (reason, "strong")


def test_what_a_script_prints_may_be_near_and_runs_share_nothing(quick):
    body = Scripts((("", "0.3333333 1e3 yes"), ("", "0.3333333 1000.0 yes")), rtol=1e-6)
    assert check("print(1 / 3, 1000, 'yes')", "solution:", body, quick, LIMITS).status == "pass"
    assert check("print(1 / 3, 1001, 'yes')", "solution:", body, quick, LIMITS).status == "fail"
    counts = "import builtins\nbuiltins.n = getattr(builtins, 'n', 0) + 1\nprint(builtins.n)"
    assert check(counts, "solution:", Scripts((("", "1"), ("", "1"))), quick, LIMITS).status == "pass"


PYTEST = """
import pytest
from solution import f, g
@pytest.fixture
def two():
    yield 2
@pytest.mark.parametrize("x, y", [(1, 2), pytest.param(2, 3, id="a")])
def test_a(x, y): assert f(x) == y
def test_b(two): assert f(two) == pytest.approx(3.0000000001)
def test_c():
    with pytest.raises(ValueError, match="no") as raised: g()
    assert raised.value.args == ("no",)
class TestK:
    def setup_method(self): self.n = 1
    def test_d(self, tmp_path, capsys):
        print("x")
        assert capsys.readouterr().out == "x\\n" and tmp_path.exists()
        assert [0.1 + 0.2, f(self.n)] == pytest.approx([0.3, 2])
"""


@pytest.mark.parametrize(
    ("source", "score"),
    [("def f(x): return x + 1\ndef g(): raise ValueError('no')", 1.0),
     ("def f(x): return 2\ndef g(): raise KeyError('no')", 0.25),
     (f"{EQUAL_TO_ALL}def f(x): return E()\ndef g(): pass", 0.0),
     ("import pytest\npytest.raises = pytest.approx = lambda *a, **k: 1\ndef f(x): return 1\ng = f", 0.0),
     ("import pytest\npytest.approx.__eq__ = lambda *a: True\ndef f(x): return 1\ng = f", 0.0)],
)  # fmt: skip
def test_pytest_functions(source, score):
    require("bubblewrap")
    ids = tuple(f"test_p.{name}" for name in ("test_a", "test_b", "test_c", "TestK.test_d"))
    verdict = check(source, "", Suite({"test_p.py": PYTEST}, ids), "bubblewrap", LIMITS)
    assert (verdict.score, verdict.trust) == (score, "weak"), verdict
    assert check(source, "", Suite({"test_p.py": PYTEST}, ("test_p.test_z",)), "bubblewrap", LIMITS).score == 0.0


def test_time_zones_and_the_user_are_known():
    require("bubblewrap")
    source = (
        "import datetime, getpass, os, pwd, zoneinfo\ndef f(*day):\n    zone = zoneinfo.ZoneInfo('Europe/Berlin')\n"
        "    return str(datetime.datetime(*day, tzinfo=zone).utcoffset()), getpass.getuser(), "
        "pwd.getpwuid(os.getuid()).pw_name"
    )
    tests = [((2020, 7, 1), ("2:00:00", "nobody", "nobody")), ((2020, 1, 1), ("1:00:00", "nobody", "nobody"))]
    assert check(source, "f", tests, "bubblewrap", LIMITS).status == "pass"


def test_a_run_without_processor_time_is_repeated_and_no_fault_of_the_program(monkeypatch, quick):
    limits, starts = Limits(cpu_s=60, wall_s=2.0), []
    start = backends.Sandbox.start
    monkeypatch.setattr(backends.Sandbox, "start", lambda self, asked: starts.append(asked) or start(self, asked))
    monkeypatch.setattr("agent_gym.sandbox.grader.STARVED", 2.0)  # whatever a run has had, it was hardly anything
    with Pool(quick, slots=1, limits=limits) as pool:
        verdict = pool.check("def f(x):\n    while True: pass", "f", TESTS)
        assert verdict.status == "infra"
        assert verdict.diagnostics == ("the machine gave the run hardly any processor time",)
        assert starts.count(limits) >= 2
        sleeps = pool.check("import time\ndef f(x): time.sleep(99)", "f", TESTS)
        assert (sleeps.status, sleeps.reason) == ("fail", "timeout")
