"""Programs that try to be paid for nothing, or to harm what runs next to them, and honest ones that look like it.

Each runs in both sandboxes, alone in its slot; right after it, in the same slot, a control program looks for anything
the case has left behind and must pass.
"""
# ruff: noqa: E501  # programs of one line each

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sandbox_backends import require

from agent_gym.sandbox import Asserts, Limits, Pool, Raises, SandboxUnavailable, Suite, Test, owned
from agent_gym.sandbox.backends import _docker

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers are x86_64's")

LIMITS = Limits(cpu_s=2, wall_s=30, memory_mb=256, disk_mb=16, processes=32)
BUSY = Limits(cpu_s=1, wall_s=12, memory_mb=256, disk_mb=16, processes=32)  # for what loops
SHORT = Limits(cpu_s=1, wall_s=2, memory_mb=256, disk_mb=16, processes=32)  # for what sleeps
LANES = 3
NEEDLE = "needle-7c0ffee5-" + "e5" * 20
"""An expected value that no program can guess."""

DAEMON = "agymdaemon"
"""What a program that stays behind calls its process."""

FAULTS = {"wrong_answer", "error", "timeout", "memory", "output_limit"}


@dataclass(frozen=True)
class Case:
    """A program, its tests, and every reason its verdict may have; ``{"passed"}`` for an honest one."""

    source: Any
    tests: Any
    reasons: frozenset[str]
    limits: Limits = LIMITS


CASES: dict[str, Case] = {}


def case(name: str, source: Any, *reasons: str, tests: Any = None, limits: Limits = LIMITS) -> None:
    """Register a case: of the function ``f``, which should return its argument plus one."""
    assert name not in CASES, name
    source = textwrap.dedent(source) if isinstance(source, str) else source
    tests = [((1,), 2), ((41,), 42)] if tests is None else tests
    CASES[name] = Case(source, tests, frozenset(reasons or FAULTS), limits)


def honest(name: str, source: str, expected: Any = 2, args: tuple[Any, ...] = (1,), limits: Limits = LIMITS) -> None:
    """Register a case that must pass."""
    case(name, source, "passed", tests=[(args, expected)], limits=limits)


# ---- leaving early -------------------------------------------------------------------------------------------------

for name, line in {
    "os_exit": "import os; os._exit(0)",
    "sys_exit": "import sys; sys.exit(0)",
    "system_exit": "raise SystemExit(0)",
    "keyboard_interrupt": "raise KeyboardInterrupt",
    "generator_exit": "raise GeneratorExit",
    "stop_iteration": "raise StopIteration(2)",
    "abort": "import os; os.abort()",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "sigkill_self": "import os; os.kill(os.getpid(), 9)",
    "sigterm_self": "import os; os.kill(os.getpid(), 15)",
    "kill_group": "import os; os.killpg(0, 9)",
    "kill_init": "import os; os.kill(1, 9); raise OSError",
    "interrupt_init": "import os, signal; signal.signal(2, signal.SIG_IGN); os.kill(1, 2); raise OSError",
    "execve": "import os, sys; os.execv(sys.executable, [sys.executable, '-c', ''])",
    "thread_exit": "import _thread; _thread.exit()",
    "interrupt_main": "import _thread; _thread.interrupt_main(); [0 for _ in range(10**6)]; raise OSError",
}.items():
    case(f"exit_in_call_{name}", f"def f(x):\n    {line}\n", "error", "wrong_answer")
    case(f"exit_in_import_{name}", f"{line}\ndef f(x):\n    raise OSError\n", "error", "wrong_answer")

case("exit_atexit", "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)", "error")
case("exit_excepthook", "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): return 1 / 0", "error")
case("exit_after_the_answer", """
    import os, threading
    def f(x):
        if x == 41:
            threading.Timer(0, os._exit, [0]).start()
        return x
    """)  # fmt: skip
case("exit_faulthandler", """
    import faulthandler, time
    def f(x):
        faulthandler.dump_traceback_later(0.2, exit=True)
        time.sleep(9)
    """, "error")  # fmt: skip
case(
    "sigstop_self", "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSTOP)\n", "timeout", limits=SHORT
)
case(
    "sigstop_everything",
    "import os\ndef f(x):\n    try: os.kill(-1, 19)\n    except OSError: pass\n    os.kill(os.getpid(), 19)\n",
    "timeout",
    limits=SHORT,
)
case("kill_everything", "import os\ndef f(x):\n    os.kill(-1, 9)\n    return None\n", "error", "wrong_answer")
case(
    "alarm_default_action",
    "import signal, time\ndef f(x):\n    signal.setitimer(0, .1)\n    time.sleep(1)\n    return x + 1",
    "error",
)
case("kill_then_right_answer", "import os\ndef f(x):\n    os.kill(os.getpid(), 9)\n    return x + 1\n", "error")
case("term_then_right_answer", "import signal\ndef f(x):\n    signal.raise_signal(15)\n    return x + 1\n", "error")
case("rlimits_of_init", """
    import resource
    def f(x):
        resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
        resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))
        raise OSError
    """, "error")  # fmt: skip

# ---- values that only look right -----------------------------------------------------------------------------------

EQUAL_TO_ALL = """
class E(object):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return hash(2)
"""
for name, (source, right) in {
    "object_equal_to_all": (EQUAL_TO_ALL + "def f(x): return E()", 2),
    "int_equal_to_all": (EQUAL_TO_ALL.replace("object", "int") + "def f(x): return E(3)", 2),
    "str_equal_to_all": (EQUAL_TO_ALL.replace("object", "str") + "def f(x): return E('b')", "a"),
    "list_equal_to_all": (EQUAL_TO_ALL.replace("object", "list") + "def f(x): return E([3])", [2]),
    "dict_equal_to_all": (EQUAL_TO_ALL.replace("object", "dict") + "def f(x): return E()", {"a": 1}),
    "item_equal_to_all": (EQUAL_TO_ALL + "def f(x): return [E()]", [2]),
    "key_equal_to_all": (EQUAL_TO_ALL + "def f(x): return {E(): 1}", {2: 1}),
    "member_equal_to_all": (EQUAL_TO_ALL + "def f(x): return {E()}", {2}),
    "int_subclass": ("class I(int): pass\ndef f(x): return I(x + 1)", 2),
    "bool_for_int": ("def f(x): return True", 1),
    "int_for_bool": ("def f(x): return 1", True),
    "float_for_int": ("def f(x): return 2.0", 2),
    "int_for_float": ("def f(x): return 2", 2.0),
    "complex_for_int": ("def f(x): return 2 + 0j", 2),
    "str_subclass": ("class S(str): pass\ndef f(x): return S('a')", "a"),
    "bytes_for_str": ("def f(x): return b'a'", "a"),
    "bytearray_for_bytes": ("def f(x): return bytearray(b'a')", b"a"),
    "tuple_for_list": ("def f(x): return (1,)", [1]),
    "nested_tuple_for_list": ("def f(x): return [(1,)]", [[1]]),
    "namedtuple_for_tuple": ("import collections\nP = collections.namedtuple('P', 'a')\ndef f(x): return P(1)", (1,)),
    "defaultdict_for_dict": ("import collections\ndef f(x): return collections.defaultdict(int, a=1)", {"a": 1}),
    "counter_for_dict": ("import collections\ndef f(x): return collections.Counter('a')", {"a": 1}),
    "ordereddict_for_dict": ("import collections\ndef f(x): return collections.OrderedDict(a=1)", {"a": 1}),
    "enum_for_int": ("import enum\nclass N(enum.IntEnum):\n    TWO = 2\ndef f(x): return N.TWO", 2),
    "frozenset_for_set": ("def f(x): return frozenset({1})", {1}),
    "bool_key_for_int": ("def f(x): return {True: 1}", {1: 1}),
    "bool_member_for_int": ("def f(x): return {True}", {1}),
    "float_member_in_tuple": ("def f(x): return {(1.0,)}", {(1,)}),
    "nan": ("def f(x): return float('nan')", 0.0),
    "nan_key": ("def f(x): return {float('nan'): 1}", {0.0: 1}),
    "none": ("def f(x): pass", False),
    "not_implemented": ("def f(x): return NotImplemented", None),
    "ellipsis": ("def f(x): return ...", None),
    "mock": ("from unittest.mock import ANY\ndef f(x): return ANY", 2),
    "any_in_a_list": ("from unittest.mock import ANY\ndef f(x): return [ANY, 2]", [1, 2]),
    "dict_keys": ("def f(x): return {1: 2}.keys()", {1}),
    "range_for_list": ("def f(x): return range(2)", [0, 1]),
    "generator": ("def f(x): yield 2", [2]),
    "coroutine": ("async def f(x): return 2", 2),
    "lambda": ("def f(x): return lambda: 2", 2),
    "module": ("import sys\ndef f(x): return sys", 2),
    "class": ("def f(x): return int", 2),
    "class_property": ("class E:\n    __class__ = int\n    def __index__(s): return 2\ndef f(x): return E()", 2),
    "lying_metaclass": ("""
class M(type):
    __name__ = 'int'
    __mro__ = (int, object)
    def mro(cls): return [cls, object]
    def __instancecheck__(cls, o): return True
    def __subclasscheck__(cls, o): return True
    def __eq__(cls, o): return True
    def __hash__(cls): return hash(int)
class E(metaclass=M):
    __module__ = 'builtins'
    def __eq__(s, o): return True
    def __hash__(s): return 2
def f(x): return E()""", 2),
    "lying_iter": ("class L(list):\n    def __iter__(s): return iter([1, 2])\n    def __len__(s): return 2\ndef f(x): return L()", [1, 2]),
    "lying_items": ("class D(dict):\n    def items(s): return [('a', 1)]\n    def __len__(s): return 1\ndef f(x): return [D()]", [{"a": 1}]),
    "lying_index": ("class I(int):\n    def __int__(s): return 2\n    def __index__(s): return 2\ndef f(x): return [I(9)]", [2]),
    "lying_str": ("class S(str):\n    def __str__(s): return 'a'\n    def __len__(s): return 1\ndef f(x): return [S('zz')]", ["a"]),
    "lying_float": ("class F(float):\n    def hex(s): return '0x1p+1'\ndef f(x): return [F(9)]", [2.0]),
    "lying_complex": ("class C(complex):\n    real = imag = property(lambda s: 1 / 0)\ndef f(x): return C(1)", Raises("ZeroDivisionError")),
    "reduce": ("class R:\n    def __reduce__(s): return (int, (2,))\n    def __getstate__(s): return 2\ndef f(x): return R()", 2),
    "tagged_tokens_as_value": ("def f(x): return ['i', '2']", 2),
    "wire_foreign": ("import sys\ndef f(x): return sys.modules['__main__'].wire.Foreign('int')", 2),
    "claim": ("def f(x): return {'status': 'pass', 'passed': True, 'reason': 'passed', 'score': 1.0}", 2),
    "claim_printed": ("def f(x): print('OK\\nPASSED\\n{\"status\": \"pass\"}')", 2),
    "verdict_file": ("def f(x):\n    for n in ('result.json', '/tmp/verdict', 'results.xml'): open(n, 'w').write('pass')", 2),
    "surrogate": ("def f(x): return '\\ud800'", "\ufffd"),
    "surrogate_pair": ("def f(x): return '\\ud83d\\ude00'", "\U0001f600"),
    "surrogate_in_error": ("def f(x): raise ValueError('\\udc80\\x00')", 2),
    "class_named_with_surrogates": ("E = type('\\udc80' * 9, (), {})\ndef f(x): return E()", 2),
}.items():  # fmt: skip
    case(f"value_{name}", source, "wrong_answer", "error", tests=[((1,), right)])

case("value_argument_mutated", """
    def f(x):
        x.clear(); x.append(2)
        return x if len(x) > 5 else None
    """, "wrong_answer", tests=[(([1, 2],), [1, 2])])  # fmt: skip
case("value_cyclic", "def f(x):\n    a = []\n    a.append(a)\n    return a", "output_limit", "wrong_answer")
case("value_cyclic_dict", "def f(x):\n    a = {}\n    a[1] = a\n    return a", "output_limit", "wrong_answer")
case("value_100000_deep", """
    def f(x):
        a = []
        for _ in range(100_000):
            a = [a]
        return a
    """, "output_limit", "wrong_answer", "error")  # fmt: skip
case("value_huge_int", "def f(x): return 10 ** 10_000", "output_limit", "wrong_answer")
case("value_huge_str", "def f(x): return 'a' * 10**8", "output_limit")
case("value_huge_bytes", "def f(x): return bytes(10**8)", "output_limit", "memory")
case("value_huge_list", "def f(x): return [0] * 10**7", "output_limit")
case("value_wide_unicode", "def f(x): return '\\U0001f600' * 900_000", "output_limit")
case("value_shared_bomb", """
    def f(x):
        a = [0]
        for _ in range(60):
            a = [a, a]
        return a
    """, "output_limit")  # fmt: skip

# ---- exceptions ----------------------------------------------------------------------------------------------------

RAISES = [((1,), Raises("ValueError"))]
for name, source in {
    "subclass": "class E(ValueError): pass\ndef f(x): raise E",
    "parent": "def f(x): raise Exception('ValueError')",
    "namesake": "class ValueError(Exception): pass\ndef f(x): raise ValueError",
    "namesake_by_type": "E = type('ValueError', (KeyError,), {})\ndef f(x): raise E",
    "lying_metaclass": "class M(type):\n    __name__ = 'ValueError'\nclass E(Exception, metaclass=M): pass\ndef f(x): raise E",
    "renamed": "class E(Exception): pass\nE.__name__ = E.__qualname__ = 'ValueError'; E.__module__ = 'builtins'\ndef f(x): raise E",
    "returned": "def f(x): return ValueError()",
    "name_returned": "def f(x): return 'ValueError'",
    "at_import": "def f(x): pass\nraise ValueError",
    "group": "def f(x): raise ExceptionGroup('ValueError', [ValueError()])",
    "from_the_encoder": "class S(list):\n    def __iter__(s): raise ValueError\ndef f(x): return S([1])",
    "not_raised": "def f(x): return 2",
}.items():  # fmt: skip
    case(f"raises_{name}", source, "wrong_answer", "error", tests=RAISES)
case("raises_missing_function", "x = 1", "error", tests=[((1,), Raises("AttributeError"))])
case(
    "raises_missing_module", "import sys\ndel sys.modules[__name__]\nf = 1", "error", tests=[((1,), Raises("KeyError"))]
)
case("raises_not_a_function", "f = 2", "error", tests=[((1,), Raises("TypeError"))])
for name, body in {
    "raises": "raise OSError",
    "loops": "\n        while True: pass",
    "returns_an_int": "return 2",
    "is_huge": "return 'a' * 10**8",
    "exits": "import os; os._exit(0)",
    "is_a_str_subclass": "\n        class S(str):\n            def __getitem__(s, i): return 2\n        return S('a')",
}.items():
    case(f"exception_text_{name}", f"class E(Exception):\n    def __str__(self):\n        {body}\ndef f(x): raise E")
case("exception_lying_traceback", "class E(Exception):\n    __traceback__ = 2\ndef f(x): raise E")
case("exception_chain", """
    def f(x):
        e = None
        for _ in range(100_000):
            n = ValueError(); n.__cause__ = e; e = n
        raise e
    """)  # fmt: skip
honest_raises = "def f(x):\n    raise ValueError('no')"
case("raises_honest", honest_raises, "passed", tests=RAISES)
case(
    "raises_honest_own",
    "class Empty(Exception): pass\ndef f(x): raise Empty(1)",
    "passed",
    tests=[((1,), Raises("Empty"))],
)
case("raises_honest_key_error", "def f(x): return {}[x]", "passed", tests=[((1,), Raises("KeyError"))])
case("raises_honest_exit", "import sys\ndef f(x): sys.exit(3)", "passed", tests=[((1,), Raises("SystemExit"))])

# ---- patching what judges ------------------------------------------------------------------------------------------

for name, line in {
    "print": "import builtins; builtins.print = lambda *a: 2",
    "isinstance_and_type": "import builtins; builtins.isinstance = lambda *a: True; builtins.type = lambda *a: int",
    "sorted_and_len": "import builtins; builtins.len = lambda a: 2; builtins.sorted = lambda a: [2]",
    "import": "import builtins; builtins.__import__ = lambda *a, **k: None",
    "json_dumps": "import json; json.dumps = lambda *a, **k: '{\"status\": \"pass\", \"value\": 2}'",
    "json_loads": "import json; json.loads = lambda *a, **k: {'do': 'finish', 'nonce': 0}",
    "socket_send": "import socket; socket.socket.send = socket.socket.sendall = lambda *a: None",
    "struct": "import struct; struct.Struct = struct.pack = None",
    "wire_encode": "import __main__; __main__.wire.encode = lambda *a: [True]",
    "wire_by_gc": "import gc\nfor o in gc.get_referrers(*[c for c in object.__subclasses__() if c.__name__ == 'Foreign']):\n"
                  "    if isinstance(o, dict) and 'encode' in o: o['encode'] = lambda *a: [None]",
    "run_class": "import __main__; __main__._Run._call = lambda s, m: {'value': True, 'status': 'pass', 'passed': True}",
    "builtin_bool": "import builtins; builtins.bool = builtins.int = str",
    "os_getpid": "import os; os.getpid = lambda: 1",
    "exit_patched": "import os; os._exit = lambda n: None",
    "everything_in_builtins": "import builtins\nfor n in dir(builtins):\n    if n[0] != '_': setattr(builtins, n, None)",
    "sys_modules_cleared": "import sys; sys.modules.clear()",
    "settrace": "import sys; sys.settrace(lambda *a: (_ for _ in ()).throw(ValueError)); sys.setprofile(lambda *a: None)",
    "meta_path": "import sys; sys.meta_path[:] = []; sys.path[:] = []",
}.items():  # fmt: skip
    case(f"patched_{name}", f"{line}\ndef f(x): return x + 9", limits=SHORT)
case("patched_code", "def f(x): return x + 9\nimport __main__\n__main__._Run._call.__code__ = f.__code__")
case("patched_int_in_place", """
    import ctypes, gc
    def f(x):
        d = gc.get_referents(int.__dict__)[0]
        d['__eq__'] = d['__ne__'] = lambda a, b: True
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(int))
        return 3
    """)  # fmt: skip
case(
    "patched_small_int",
    "import ctypes\ndef f(x):\n    ctypes.c_int.from_address(id(3) + 24).value = 9\n    return x + 3",
)

# ---- hunting for the expected value --------------------------------------------------------------------------------

HUNT = """
import re
def hunt(thing):
    found = re.search('needle-7c0ffee5-' + '[e5]{40}', thing if isinstance(thing, str) else repr(thing))
    return found and found.group()
"""
for name, source in {
    "gc": "import gc\ndef f(x):\n    gc.unfreeze()\n    for o in gc.get_objects():\n        if isinstance(o, (dict, list, tuple, set)):\n"
          "            try:\n                if hunt(repr(o)[:100_000]): return hunt(o)\n            except Exception: pass",
    "frames": "import sys\ndef f(x):\n    g = sys._getframe()\n    while g:\n        if hunt(str(g.f_locals) + str(g.f_globals)): return hunt(str(g.f_locals) + str(g.f_globals))\n"
              "        g = g.f_back",
    "environ": "import os\ndef f(x): return hunt(str(os.environ))",
    "argv": "import sys\ndef f(x): return hunt(str(sys.argv) + str(sys.orig_argv))",
    "files": "import os\ndef f(x):\n    for top in ('/tmp', '/sandbox', '/run', '/etc', '/dev/shm', '/proc/self', '/proc/1', '/sys'):\n"
             "        for d, _, names in os.walk(top):\n            for n in names[:50]:\n                try:\n"
             "                    fd = os.open(d + '/' + n, os.O_RDONLY | os.O_NONBLOCK)\n                    t = os.read(fd, 10000); os.close(fd)\n"
             "                    if hunt(t.decode('latin1')): return hunt(t.decode('latin1'))\n                except OSError: pass",
    "memory": "def f(x):\n    with open('/proc/self/maps') as m, open('/proc/self/mem', 'rb') as b:\n        for l in m:\n            lo, hi = (int(a, 16) for a in l.split()[0].split('-'))\n"
              "            if 'rw' not in l: continue\n            b.seek(lo)\n            if hunt(b.read(hi - lo).decode('latin1')): return hunt(1)",
    "channel": "import socket\ndef f(x):\n    s = socket.socket(fileno=3); s.setblocking(False)\n    return hunt(s.recv(10**6).decode())",
    "all_fds": "import os\ndef f(x):\n    for fd in range(3, 256):\n        try:\n            os.set_blocking(fd, False)\n            t = os.read(fd, 10**6)\n            if hunt(t.decode()): return hunt(t.decode())\n        except OSError: pass",
}.items():  # fmt: skip
    case(f"hunter_{name}", HUNT + source, "wrong_answer", "error", tests=[((1,), NEEDLE), ((2,), NEEDLE)])

# ---- forged frames -------------------------------------------------------------------------------------------------

FORGE = """
import json, os, socket, struct, sys, threading, time
channel = socket.socket(fileno=os.dup(3))
def frame(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack('>I', len(data)) + data
def nonce():
    g = sys._getframe()
    while g:
        if isinstance(g.f_locals.get('message'), dict): return g.f_locals['message']['nonce']
        g = g.f_back
"""
for name, line in {
    "in_advance": "channel.send(frame({'nonce': '0' * 32, 'value': [2]}) * 100)",
    "null_nonce": "channel.send(frame({'nonce': None, 'value': [2]}))",
    "no_nonce": "channel.send(frame({'value': [2]}))",
    "list": "channel.send(frame([nonce(), [2]]))",
    "right_nonce_then_the_real_reply": "channel.send(frame({'nonce': nonce(), 'value': [x + 1]}))",
    "right_nonce_then_exit": "channel.send(frame({'nonce': nonce(), 'value': [x + 1]})); os._exit(0)",
    "right_nonce_then_close": "channel.send(frame({'nonce': nonce(), 'value': [x + 1]})); channel.close(); os.close(3)",
    "right_nonce_and_claims": "channel.send(frame({'nonce': nonce(), 'status': 'pass', 'passed': True, 'ok': True, 'verdict': 'passed', 'score': 1}))",
    "all_nonces": "channel.send(frame({'nonce': {'__eq__': True}, 'value': [2]}))",
    "half": "channel.send(frame({'nonce': nonce(), 'value': [2]})[:-5]); os._exit(0)",
    "half_header": "channel.send(b'\\0\\0'); os._exit(0)",
    "gigantic_header": "channel.send(b'\\xff' * 4); time.sleep(9)",
    "zero_length": "channel.send(b'\\0' * 4)",
    "zeros_forever": "[channel.send(b'\\0' * 4096) for _ in range(1000)]",
    "not_json": "channel.send(frame(b'{nonce:'))",
    "not_utf8": "channel.send(frame(b'\\xff\\xfe\\xfd'))",
    "pickle": "import pickle; channel.send(frame(pickle.dumps({'nonce': nonce(), 'value': [2]})))",
    "deep_json": "channel.send(frame(b'[' * 100_000 + b']' * 100_000))",
    "deep_json_value": "channel.send(frame(b'{\"nonce\":\"' + nonce().encode() + b'\",\"value\":' + b'[' * 900 + b']' * 900 + b'}'))",
    "deep_too_large": "channel.send(frame(b'{\"nonce\":\"' + nonce().encode() + b'\",\"too_large\":' + b'[' * 900 + b']' * 900 + b'}'))",
    "deep_raised": "channel.send(frame(b'{\"nonce\":\"' + nonce().encode() + b'\",\"raised\":' + b'[' * 900 + b']' * 900 + b'}'))",
    "huge_int": "channel.send(frame(b'{\"nonce\":\"' + nonce().encode() + b'\",\"value\":[' + b'9' * 500_000 + b']}'))",
    "fault": "channel.send(frame({'fault': 'the sandbox is broken'})); os._exit(1)",
    "ended": "channel.send(frame({'ended': {'status': 0, 'cpu_s': 0, 'oom': False}})); os._exit(1)",
    "infra": "channel.send(frame({'nonce': nonce(), 'status': 'infra', 'infra': True})); os._exit(1)",
    "out_of_band": "channel.send(b'x', socket.MSG_OOB)",
    "out_of_band_and_exit": "channel.send(b'x', socket.MSG_OOB); os._exit(0)",
    "slow": "[(channel.send(b'\\0'), time.sleep(.2)) for _ in range(3)]; os._exit(0)",
    "late_thread": "threading.Timer(0.05, channel.send, [frame({'nonce': nonce(), 'value': [2]})]).start(); time.sleep(.2)",
}.items():  # fmt: skip
    case(f"forged_{name}", FORGE + f"def f(x):\n    {line}\n    return x + 1\n")

TOKENS = {
    "none": None, "empty": [], "number": 2, "object": {"2": 2}, "two": [2, 2], "float": [2.0], "nested": [[2]],
    "no_tag": [[]], "unknown_tag": [["q", 2]], "list_tag": [[["l"], 0]], "int_without_text": [["i"]], "nan": [["f", "nan"]],
    "int_of_list": [["i", ["2"]]], "int_of_int": [["i", 2]], "int_not_hex": [["i", "0x"]], "float_text": [["f", "two"]],
    "huge_hex": [["i", "f" * 900_000]], "long_padding": [["i", "0" * 900_000]], "str_of_list": [["u", [2]]],
    "foreign_without_name": [["o"]], "bad_base64": [["b", "!"]], "count_negative": [["l", -1]], "count_bool": [["l", True]],
    "count_huge": [["l", 10**300]], "count_float": [["l", 1.0]], "count_text": [["l", "1"]], "items_missing": [2, ["l", 2]],
    "unhashable_key": [["l", 0], 2, ["d", 1]], "unhashable_member": [["l", 0], ["s", 1]], "extra": [["l", 0, "a", "b"]],
    "many": [0] * 300_000, "marked": [["l", 0, 5]], "true": True, "text": "2", "subclass_of_two": [["i", "2", "I"]],
    "colliding": [n * ((1 << 61) - 1) for n in range(20_000)] + [["s", 20_000]],
    "deep": [["l", 0]] + [["l", 1]] * 100_000,
    "overflow": [["f", "0x1p+99999"]], "inf": [["f", "inf"]], "complex": [["c", "0x1p+1"]],
}  # fmt: skip
for name, tokens in TOKENS.items():
    value = "[n * ((1 << 61) - 1) for n in range(20_000)] + [['s', 20_000]]" if name == "colliding" else repr(tokens)
    value = "[['l', 0]] + [['l', 1]] * 60_000" if name == "deep" else value
    body = f"channel.send(frame({{'nonce': nonce(), 'value': {value}}})); os._exit(0)"
    case(
        f"tokens_{name}", FORGE + f"def f(x):\n    {body}\n", "wrong_answer", "error", tests=[((1,), 2)], limits=LIMITS
    )
RAISED = {"int": 5, "none": None, "empty": [], "names": [[1], "", ""], "no_names": [[], "", ""], "text": ["ValueError", "", ""],
          "object": {"a": 1, "b": 2, "c": 3}, "deep": [[["ValueError"]], "", ""], "place": [["ValueError"], "", 5]}  # fmt: skip
for name, value in RAISED.items():
    source = FORGE + f"def f(x):\n    channel.send(frame({{'nonce': nonce(), 'raised': {value!r}}})); os._exit(0)\n"
    case(f"raised_{name}", source, "error", "wrong_answer", tests=RAISES)

# ---- file descriptors ----------------------------------------------------------------------------------------------

for name, line in {
    "close_all": "os.closerange(0, 256)",
    "close_channel": "os.close(3)",
    "dup_over_channel": "a, b = os.pipe(); os.dup2(b, 3); time.sleep(.1)",
    "null_over_channel": "os.dup2(os.open('/dev/null', os.O_RDWR), 3)",
    "shutdown": "channel.shutdown(socket.SHUT_RDWR)",
    "shutdown_read": "channel.shutdown(socket.SHUT_RD)",
    "shutdown_write": "channel.shutdown(socket.SHUT_WR)",
    "nonblocking": "channel.setblocking(False)",
    "write_to_all": "[os.write(fd, b'passed') for fd in range(256) if fd > 2 and os.path.exists(f'/dev/fd/{fd}') or fd == 3]",
    "send_fds": "socket.send_fds(channel, [b'x'], [os.open('/dev/null', 0)] * 50)",
    "own_socketpair": "a, b = socket.socketpair(); os.dup2(a.fileno(), 3)",
    "tiny_buffers": "channel.setsockopt(1, 7, 1); channel.setsockopt(1, 8, 1)",
    "child_answers_too": "os.getpid = lambda: 0; os.fork()",
    "child_answers_instead": "me = os.getpid()\n    if os.fork(): os._exit(0)\n    os.getpid = lambda: me",
    "child_keeps_channel": "\n    if os.fork() == 0: time.sleep(30)\n    os._exit(0)",
    "child_keeps_half_a_frame": "channel.send(b'\\0\\0\\0')\n    if os.fork() == 0: time.sleep(30)\n    os._exit(0)",
    "peek_answer_and_reset": "n = nonce()\n    def g():\n        while True:\n            m = channel.recv(10**5, socket.MSG_PEEK)\n            if m and n not in m.decode(): break\n"
        "        channel.send(frame({'nonce': json.loads(m[4:])['nonce'], 'value': [42]})); channel.close(); os.close(3); time.sleep(9)\n"
        "    threading.Thread(target=g).start()\n    __import__('sys').modules['__main__']._Run._read = lambda s, n: time.sleep(9)",
    "lock_channel": "import fcntl; fcntl.fcntl(3, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK); fcntl.fcntl(3, fcntl.F_SETOWN, 1)",
}.items():  # fmt: skip
    case(f"fd_{name}", FORGE + f"def f(x):\n    {line}\n    return x + 3\n", limits=SHORT)

# ---- bombs ---------------------------------------------------------------------------------------------------------

for name, line in {
    "fork": "import os\n    while True: os.fork()",
    "fork_caught": "import os, time\n    while True:\n        try: os.fork()\n        except OSError: time.sleep(.01)",
    "fork_detached": "import os, time\n    while True:\n        try:\n            if os.fork() == 0: os.setsid()\n        except OSError: pass",
    "vfork_exec": "import os, sys\n    while True: os.posix_spawn(sys.executable, [sys.executable, '-c', 'import time; time.sleep(99)'], {})",
    "threads": "import threading, time\n    while True: threading.Thread(target=time.sleep, args=[99]).start()",
    "memory": "a = []\n    while True: a.append(bytearray(1 << 20))",
    "memory_in_children": "import os, time\n    for _ in range(6): os.fork()\n    a = bytearray(b'1') * (100 << 20)\n    time.sleep(99)",
    "memory_caught": "a = []\n    while True:\n        try: a.append(bytearray(1 << 20))\n        except BaseException: a.append(1)",
    "mmap": "import mmap\n    a = []\n    while True:\n        a.append(mmap.mmap(-1, 1 << 26)); a[-1].write(b'1' * (1 << 26))",
    "memory_shared": "import mmap, os, time\n    for _ in range(3): os.fork()\n    m = [mmap.mmap(-1, 1 << 26) for _ in range(4)]\n    [p.write(b'1' * (1 << 26)) for p in m]\n    time.sleep(99)",
    "string": "s = 'a'\n    while True: s += s",
    "int": "return 10 ** 10 ** 8",
    "file": "f = open('big', 'wb')\n    while True: f.write(b'1' * (1 << 20)); f.flush()",
    "file_shm": "import os\n    for n in range(99): open(f'/dev/shm/{n}', 'wb').write(b'1' * (1 << 20))",
    "files_everywhere": "import os\n    for n in range(10**6): open(f'/tmp/{n}', 'w').write('a' * 5000)",
    "inodes": "import os\n    for n in range(10**6): open(f'/tmp/{n}', 'w').close()",
    "inodes_shm": "import os\n    for n in range(10**6): os.mkdir(f'/dev/shm/{n}')",
    "links": "open('/tmp/a', 'w').close()\n    import os\n    for n in range(10**6): os.link('/tmp/a', f'/tmp/l{n}')",
    "sparse": "f = open('/tmp/sparse', 'wb'); f.truncate(1 << 50)",
    "deep_tree": "import os\n    os.chdir('/tmp')\n    for n in range(10**5): os.mkdir('d' * 200); os.chdir('d' * 200)",
    "deep_tree_and_answer": "import os\n    os.chdir('/tmp')\n    for n in range(3000): os.mkdir('d' * 200); os.chdir('d' * 200)\n    return 0",
    "unreadable_tree": "import os\n    os.makedirs('/tmp/a/b/c'); open('/tmp/a/b/c/d', 'w').close()\n    for p in ('/tmp/a/b/c', '/tmp/a/b', '/tmp/a'): os.chmod(p, 0)\n    return 0",
    "odd_names": "import os\n    for n in range(1, 256):\n        if n not in (46, 47): os.close(os.open(b'/tmp/' + bytes([n]) * 9, os.O_CREAT))\n    os.symlink('/', '/tmp/root'); os.mkfifo('/tmp/pipe')\n    return 0",
    "symlink_loops": "import os\n    os.symlink('loop', '/tmp/loop'); os.symlink('/tmp', '/tmp/tmp'); os.symlink('/sandbox', '/dev/shm/s')\n    return 0",
    "sockets_left": "import socket\n    s = socket.socket(socket.AF_UNIX); s.bind('/tmp/socket'); socket.socket(socket.AF_UNIX).bind('\\0agym')\n    return 0",
    "fds": "import os\n    while True: os.dup(3)",
    "pipes": "import os\n    a = []\n    while True:\n        r, w = os.pipe(); os.set_blocking(w, False); os.write(w, b'1' * 65536)",
    "stdout": "import sys\n    while True: sys.stdout.write('a' * 10**6); sys.stderr.write('b' * 10**6)",
    "recursion": "return f(x)",
    "recursion_unlimited": "import sys; sys.setrecursionlimit(10**9); return f(x) + 1",
    "cpu": "while True: pass",
    "cpu_in_c": "return sum(range(10**13))",
    "cpu_sort": "return sorted(range(10**9, 0, -1))",
    "cpu_in_children": "import os\n    for _ in range(4): os.fork()\n    while True: pass",
    "cpu_in_threads": "import threading\n    [threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start() for _ in range(8)]\n    return 0",
    "regex": "import re; return re.match('(a+)+$', 'a' * 60 + 'b')",
    "hash": "return {n * ((1 << 61) - 1): 1 for n in range(10**5)}",
    "timers": "import time, signal\n    signal.setitimer(0, 1e-6, 1e-6); time.sleep(9)",
    "decompression": "import zlib\n    return zlib.decompress(zlib.compress(bytes(1 << 27)) ) * 99",
}.items():  # fmt: skip
    sleepers = (
        "fork_caught",
        "fork_detached",
        "memory_in_children",
        "memory_caught",
        "memory_shared",
        "cpu_in_children",
        "stdout",
        "files_everywhere",
    )
    case(f"bomb_{name}", f"def f(x):\n    {line}\n", limits=SHORT if name in sleepers else BUSY)

# ---- timeouts swallowed --------------------------------------------------------------------------------------------

for name, source in {
    "handlers": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ndef f(x):\n    while True: pass",
    "blocked": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ndef f(x):\n    while True: pass",
    "base_exception": "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "rlimit_raised": "import resource\ntry: resource.setrlimit(resource.RLIMIT_CPU, (99, 99))\nexcept Exception: pass\ndef f(x):\n    while True: pass",
    "at_import": "while True: pass",
}.items():  # fmt: skip
    case(f"timeout_{name}", source, "timeout", limits=BUSY)
for name, line in {
    "sleep": "import time; time.sleep(10**6)",
    "input": "import os\n    r, w = os.pipe(); os.read(r, 1)",
    "lock": "import threading\n    a = threading.Lock(); a.acquire(); a.acquire()",
    "child": "import os, time\n    if os.fork() == 0: time.sleep(99)\n    os.wait()",
    "recv": "import socket\n    socket.socket(fileno=3).recv(1)",
    "sleep_refreshed": "import time\n    while True: time.sleep(.05)",
}.items():
    case(f"timeout_{name}", f"def f(x):\n    {line}\n", "timeout", limits=SHORT)
case("timeout_stdin", "def f(x): return input()", "error", "wrong_answer")

# ---- left behind ---------------------------------------------------------------------------------------------------

DETACH = f"""
import ctypes, os, signal, socket, time
def detach():
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        ctypes.CDLL(None).prctl(15, b'{DAEMON}')
        for n in range(1, 32):
            if n not in (9, 19): signal.signal(n, signal.SIG_IGN)
        return True
"""
for name, line in {
    "waits_and_writes": "\n        while True:\n            time.sleep(.02)\n            try: open('/tmp/from_the_past', 'w').write('a')\n            except OSError: pass",
    "holds_a_socket": "\n        s = socket.socket(socket.AF_UNIX); s.bind('\\0agym'); os.close(3); time.sleep(99)",
    "kills_the_next": "\n        while True:\n            for p in range(2, 3000):\n                try: os.getpid() != p and os.kill(p, 9)\n                except OSError: pass",
    "closed_all": "\n        os.closerange(0, 256); time.sleep(99)",
    "stopped": "\n        os.kill(os.getpid(), 19)",
    "many": "\n        for _ in range(3): os.fork()\n        time.sleep(99)",
}.items():  # fmt: skip
    case(f"daemon_{name}", DETACH + f"def f(x):\n    if detach(): {line}\n    time.sleep(.05)\n    return x + 9\n")
    right = DETACH + f"def f(x):\n    if x == 41 and detach(): {line}\n    return x + 1\n"
    if name != "kills_the_next":
        case(f"daemon_of_a_right_program_{name}", right, "passed")

# ---- the sandbox's walls: each returns what it got through; an honest [] ---------------------------------------------

WALL = """
import ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return result >= 0
def works(function, *arguments):
    try: function(*arguments)
    except Exception: return False
    return True
"""


def wall(name: str, source: str) -> None:
    """A program whose ``f`` names what it was able to do."""
    honest(f"wall_{name}", WALL + textwrap.dedent(source), [])


SYSCALLS = {
    "ptrace": (101, 0, 0, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "process_vm_writev": (311, 1, 0, 0, 0, 0, 0),
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, 0), "umount2": (166, b"/tmp", 2), "unshare_user": (272, 0x10000000),
    "unshare_all": (272, 0x7E020000), "unshare_files": (272, 0x400), "setns": (308, 3, 0), "chroot": (161, b"/tmp"),
    "pivot_root": (155, b"/tmp", b"/tmp"), "clone3": (435, bytes(88), 88), "clone_newuser": (56, 0x10000011, 0, 0, 0, 0),
    "setuid": (105, 0), "setgid": (106, 0), "setresuid": (117, 0, 0, 0), "setresgid": (119, 0, 0, 0), "setreuid": (113, 0, 0),
    "setgroups": (116, 0, 0), "setfsuid_absent": (126, 0, bytes(24)), "keyctl": (250, 0, -3, 1), "request_key": (249, b"user", b"a", 0, 0),
    "add_key": (248, b"user", b"a", b"b", 1, -3), "bpf": (321, 0, bytes(72), 72), "perf_event_open": (298, bytes(112), 0, -1, -1, 0),
    "io_uring_setup": (425, 1, bytes(120)), "userfaultfd": (323, 0), "memfd_create": (319, b"a", 0), "memfd_secret": (447, 0),
    "mknod": (133, b"/tmp/n", 0o20666, 0x103), "kexec_load": (246, 0, 0, 0, 0), "reboot": (169, 0xFEE1DEAD, 672274793, 0),
    "swapon": (167, b"/tmp", 0), "settimeofday": (164, bytes(16), 0), "clock_settime": (227, 0, bytes(16)), "adjtimex": (159, bytes(208)),
    "sethostname": (170, b"evil", 4), "setdomainname": (171, b"evil", 4), "personality": (135, 0x40000), "init_module": (175, bytes(8), 8, b""),
    "finit_module": (313, 3, b"", 0), "delete_module": (176, b"a", 0), "acct": (163, b"/tmp/a"), "quotactl": (179, 0, 0, 0, 0),
    "iopl": (172, 3), "ioperm": (173, 0, 1, 1), "syslog": (103, 3, bytes(100), 100), "open_by_handle_at": (304, 3, bytes(16), 0),
    "name_to_handle_at": (303, -100, b"/", bytes(200), bytes(8), 0), "fanotify_init": (300, 0, 0), "inotify_init": (253,),
    "landlock": (444, 0, 0, 1), "seccomp": (317, 2, 0, bytes(4)), "move_pages": (279, 0, 0, 0, 0, 0, 0), "mbind": (237, 0, 0, 0, 0, 0, 0),
    "shmget": (29, 0, 4096, 0o1666), "msgget": (68, 0, 0o1666), "semget": (64, 0, 1, 0o1666), "mq_open": (240, b"q", 0o102, 0o666, 0),
    "pidfd_getfd": (438, 3, 0, 0), "kcmp": (312, 1, 1, 0, 0, 0), "lookup_dcookie": (212, 0, bytes(9), 9), "vhangup": (153,),
    "fsopen": (430, b"tmpfs", 0), "open_tree": (428, -100, b"/", 1), "move_mount": (429, 3, b"", -100, b"/tmp", 4), "mount_setattr": (442, 3, b"", 0, 0, 0),
    "sched_setaffinity": (203, 0, 8, bytes(8)), "sched_setscheduler": (144, 0, 1, bytes(4)), "ioprio_set": (251, 1, 0, 0x2000), "nfsservctl": (180, 0, 0, 0),
    "modify_ldt": (154, 0, bytes(16), 16), "uselib": (134, b"/tmp/a"), "ustat": (136, 0, bytes(32)), "setxattr": (188, b"/tmp", b"user.a", b"b", 1, 0),
    "process_madvise": (440, 3, 0, 0, 0, 0), "mlock": (149, 0, 4096), "remap_file_pages": (216, 0, 0, 0, 0, 0), "sync": (162,),
}  # fmt: skip
wall("system_calls", f"CALLS = {SYSCALLS!r}\ndef f(x): return [name for name, c in CALLS.items() if call(*c)]")
wall("x32_calls", """
    def f(x):
        if (pid := os.fork()) == 0:
            os._exit(0 if call(0x40000000 + 101, 0, 0, 0, 0) else 1)
        return ['x32'] if os.waitpid(pid, 0)[1] == 0 else []
    """)  # fmt: skip
wall("network", """
    def f(x):
        through = []
        for family in range(50):
            for kind in (1, 2, 3, 5):
                if family != 1 and works(socket.socket, family, kind): through.append((family, kind))
                if family != 1 and works(socket.socketpair, family, kind): through.append((family, kind, 'pair'))
        return through
    """)  # fmt: skip
wall("names_and_connections", """
    def f(x):
        return [n for n in ('localhost', 'example.com', '8.8.8.8', '169.254.169.254', '::1')
                if works(socket.create_connection, (n, 80), .2) or works(socket.gethostbyname, n + '.')]
    """)  # fmt: skip
wall(
    "no_other_interface",
    "def f(x): return [n for n in os.listdir('/sys/class/net') if n != 'lo'] if os.path.isdir('/sys/class/net') else []",
)
wall("sockets_of_the_host", """
    def f(x):
        paths = ['/var/run/docker.sock', '/run/docker.sock', '/run/control', '/run/containerd/containerd.sock', '/dev/log',
                 '/run/systemd/private', '/run/dbus/system_bus_socket', '/tmp/.X11-unix/X0', '\\0/tmp/.X11-unix/X0',
                 '\\0/containerd-shim', '\\0docker']
        return [p for p in paths for kind in (1, 2, 5) if works(socket.socket(1, kind).connect, p)]
    """)  # fmt: skip
wall("proc_of_others", """
    def f(x):
        names = ('environ', 'mem', 'maps', 'root/etc/shadow', 'cwd', 'exe', 'fd/0', 'syscall', 'stack', 'auxv', 'pagemap')
        return [(p, n) for p in [1, 2, os.getppid()] for n in names if p != os.getpid() and works(open, f'/proc/{p}/{n}', 'rb')]
    """)  # fmt: skip
wall("proc_writes", """
    def f(x):
        paths = ('/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sys/vm/drop_caches',
                 '/proc/sys/kernel/ns_last_pid', '/proc/self/uid_map', '/proc/self/gid_map', '/proc/self/setgroups', '/proc/1/oom_score_adj',
                 '/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/pids/pids.max', '/sys/fs/cgroup/cgroup.procs',
                 '/sys/kernel/uevent_helper', '/proc/acpi/wakeup', '/proc/self/attr/current', '/proc/kcore', '/dev/mem', '/dev/kmsg', '/dev/sda',
                 '/dev/console', '/dev/fuse', '/dev/kvm', '/dev/vsock', '/dev/net/tun', '/dev/loop-control', '/dev/userfaultfd')
        return [p for p in paths if works(open, p, 'r+b', 0) and works(lambda: open(p, 'r+b', 0).write(b'1\\n'))]
    """)  # fmt: skip
wall("host_processes", """
    def f(x):
        me = {os.getpid(), os.getppid(), 1}
        seen = [p for p in (os.listdir('/proc') if os.path.isdir('/proc') else ()) if p.isdigit() and int(p) not in me]
        return seen + [p for p in range(2, 5000) if p not in me and works(os.kill, p, 0)]
    """)  # fmt: skip
wall("read_only_root", """
    def f(x):
        tops = ['/', '/python', '/python/bin', '/sandbox', '/etc', '/run', '/dev', '/sys', '/lib', '/proc', '/usr', '/var', '/root', '/home', '/dev/pts']
        got = [t for t in tops if works(open, t + '/new', 'w') or works(os.mkdir, t + '/new') or works(os.symlink, 'a', t + '/link')]
        for p in (sys.executable, '/sandbox/zygote.py', '/sandbox/wire.py', os.__file__, '/tmp/../sandbox/suite.py'):
            got += [(p, n) for n, t in {'open': lambda: open(p, 'r+b'), 'chmod': lambda: os.chmod(p, 0o777), 'unlink': lambda: os.unlink(p),
                    'utime': lambda: os.utime(p), 'rename': lambda: os.rename(p, p + '2'), 'truncate': lambda: os.truncate(p, 0)}.items() if works(t)]
        return got
    """)  # fmt: skip
wall("secrets_of_the_host", """
    def f(x):
        paths = ['/etc/shadow', '/etc/passwd', '/root', '/home', '/work', '/var', '/mnt', '/usr/bin', '/bin/sh', '/etc/hostname.real', '/boot',
                 '/python/lib/python%d.%d/site-packages' % sys.version_info[:2], '/proc/1/root', '/.dockerenv.real', '/host']
        return [p for p in paths if os.path.exists(p) and (os.path.isfile(p) or works(os.listdir, p) and os.listdir(p))]
    """)  # fmt: skip
wall("no_setuid_files", """
    def f(x):
        found = []
        for top, _, names in os.walk('/'):
            if top.startswith(('/proc', '/sys')): continue
            for n in names:
                mode = os.lstat(os.path.join(top, n)).st_mode
                if mode & 0o6000 and mode & 0o170000 == 0o100000: found.append(n)
        return found
    """)  # fmt: skip
wall("status", """
    def f(x):
        # prctl reports what /proc/self/status would: no_new_privs, seccomp, the bounding set; capget the rest
        wrong = []
        if libc.prctl(39, 0, 0, 0, 0) != 1: wrong.append('NoNewPrivs')
        if libc.prctl(21, 0, 0, 0, 0) != 2: wrong.append('Seccomp')
        wrong += [f'CapBnd {c}' for c in range(41) if c not in BOUND and libc.prctl(23, c, 0, 0, 0) == 1]
        data = ctypes.create_string_buffer(24)
        call(125, (ctypes.c_uint * 2)(0x20080522, 0), data)
        if any(data.raw): wrong.append('capabilities')
        wrong += [f'ambient {c}' for c in range(41) if libc.prctl(47, 1, c, 0, 0) == 1]
        if os.getuid() == 0 or os.geteuid() == 0 or os.getgid() == 0 or set(os.getgroups()) - {os.getgid(), 65534}: wrong.append('uid')
        if os.path.exists('/proc/self/status'):
            lines = dict(l.split(':', 1) for l in open('/proc/self/status'))
            wrong += [n for n in ('CapInh', 'CapPrm', 'CapEff', 'CapAmb') if int(lines[n], 16)]
        if os.uname().nodename != 'sandbox': wrong.append('hostname')
        return wrong
    BOUND = ()
    """)  # fmt: skip
wall("rlimits", """
    import resource
    def f(x):
        limits = {'CPU': 2, 'NPROC': 64, 'NOFILE': 256, 'CORE': 0, 'MEMLOCK': 0, 'MSGQUEUE': 0, 'FSIZE': 16 << 20}
        return [n for n, most in limits.items() if not 0 <= resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[1] <= most] + [
            n for n in limits if works(resource.setrlimit, getattr(resource, 'RLIMIT_' + n), (1 << 40, 1 << 40))]
    """)  # fmt: skip
wall("terminal", """
    import fcntl, termios
    def f(x):
        return [n for n in ('/dev/tty', '/dev/console', '/dev/tty0') if works(lambda: fcntl.ioctl(os.open(n, os.O_RDWR), termios.TIOCSTI, b'a'))]
    """)  # fmt: skip
wall(
    "environment",
    "def f(x): return [n for n in os.environ if n not in ('PYTHONHASHSEED', 'MALLOC_ARENA_MAX', 'LANG', 'PYTHONUTF8', 'HOME', 'PATH', 'HOSTNAME', 'LC_CTYPE', 'PWD')]",
)

# ---- sources -------------------------------------------------------------------------------------------------------

case("source_not_utf8", "# -*- coding: latin-1 -*-\ndef f(x): return '\udcff' + x", "error", "wrong_answer")
case("source_surrogate", "def f(x): return '\ud800'", "error", "wrong_answer")
case("source_nul", "def f(x): return x + 1\0", "error")
case("source_empty", "", "error")
case("source_syntax_error", "def f(x: return", "error")
case("source_deep_parentheses", "def f(x): return " + "(" * 5000 + "x" + ")" * 5000, "error", "memory")
case("source_deep_minus", "def f(x): return " + "-" * 100_000 + "x", "error", "memory")
case("source_deep_attributes", "def f(x): return x" + ".a" * 200_000, "error", "memory", "wrong_answer", "timeout")
case("source_compile_bomb", "def f(x): return x\ny = (1 << 40,) * (1 << 40)", "error", "memory", "timeout")
case("source_constant_folding", "def f(x): return x\ny = 'a' * 4096 * 4096 * 4096 * 4096", "error", "memory", "timeout")
case("source_of_20_MB", "x = 1\n" * 3_500_000 + "def f(x): return x", "error", "memory", "timeout", "wrong_answer")
case("source_long_line", "def f(x): return " + "+".join("1" * 200_000), "error", "memory", "wrong_answer", "timeout")
case("source_coding_unknown", "# coding: evil\ndef f(x): return x + 1", "error")
case("source_bom_and_tabs", "\ufeffdef f(x):\n\treturn x + 1\r\n", "passed")
case("source_not_a_module_name", {"a b.py": "def f(x): return x + 1"}, "passed")

# ---- assert statements run by the grader -----------------------------------------------------------------------------

ASSERTS = Asserts(("assert f(1) == 2", "assert f(41) == 42"), ("f",))
SWALLOWING = Asserts(
    ("try:\n    assert f(1) == 2\nexcept:\n    pass", "try:\n    f(1)\nexcept BaseException:\n    pass"), ("f",)
)
for name, source in {
    "equal_to_all": EQUAL_TO_ALL + "def f(x): return E()",
    "int_equal_to_all": EQUAL_TO_ALL.replace("object", "int") + "def f(x): return E(9)",
    "exit": "import os\ndef f(x): os._exit(0)",
    "assertion_error": "def f(x): raise AssertionError",
    "not_plain_data": "def f(x): raise ValueError('is not plain data')",
    "nan": "def f(x): return float('nan')",
    "patched": "import builtins\nbuiltins.AssertionError = Exception\ndef f(x): return 0",
    "any": "from unittest.mock import ANY\ndef f(x): return ANY",
    "unicode_error": "def f(x): raise UnicodeDecodeError('a', b'', 0, 1, 'b')",
    "group": "def f(x): raise ExceptionGroup('a', [ValueError()])",
}.items():
    case(f"asserts_{name}", source, "wrong_answer", "error", tests=ASSERTS)
case("asserts_honest", "def f(x): return x + 1", "passed", tests=ASSERTS)
case("asserts_swallow_an_exit", "import os\ndef f(x): os._exit(0)", "error", tests=SWALLOWING)
case(
    "asserts_swallow_a_forgery",
    FORGE + "def f(x):\n    channel.send(frame([2]) * 9)\n    return 2",
    "error",
    tests=SWALLOWING,
)

# ---- unittest files in the submission's own process ------------------------------------------------------------------

SUITE = Suite(
    {
        "test_f.py": textwrap.dedent("""
        import unittest
        from solution import f
        class T(unittest.TestCase):
            def test_a(self): self.assertEqual(f(1), 2)
            def test_b(self): self.assertEqual(f(41), 42)
            def test_c(self): self.assertAlmostEqual(f(2), 3)
            def test_d(self): self.assertEqual([f(3)], [4])
            def test_e(self): self.assertIn(f(4), [5])
        """)
    },
    tuple(f"test_f.T.test_{letter}" for letter in "abcde"),
)
WRONG = "\ndef f(x): return -1\n"
PASS_ALL = "class A(unittest.TestCase):\n    def __getattribute__(s, n): return (lambda *a, **k: None) if n.startswith('assert') else object.__getattribute__(s, n)\n"
for name, source in {
    "plain_wrong": WRONG,
    "assert_equal_patched": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None" + WRONG,
    "assert_method_code": "import unittest\nunittest.TestCase.assertEqual.__code__ = (lambda self, first, second, msg=None: None).__code__" + WRONG,
    "all_asserts_patched": "import unittest\nfor n in dir(unittest.TestCase):\n    if n.startswith('assert'): setattr(unittest.TestCase, n, lambda *a, **k: None)" + WRONG,
    "test_case_replaced": "import unittest\n" + PASS_ALL + "unittest.TestCase = unittest.case.TestCase = A" + WRONG,
    "module_replaced": "import sys, types, unittest\n" + PASS_ALL + "m = types.ModuleType('unittest'); m.__dict__.update(unittest.__dict__); m.TestCase = A\nsys.modules['unittest'] = m" + WRONG,
    "patched_in_the_call": "import unittest\ndef f(x):\n    unittest.TestCase._baseAssertEqual = lambda *a, **k: None\n    return -1",
    "patched_result": "import unittest\nunittest.TestResult.addFailure = unittest.TestResult.addSuccess = lambda *a: None" + WRONG,
    "patched_run": "import unittest\nunittest.TestCase.run = lambda s, r: r.addSuccess(s)" + WRONG,
    "patched_loader": "import unittest\nunittest.TestLoader.loadTestsFromName = lambda *a: unittest.TestSuite()" + WRONG,
    "patched_builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.AssertionError = type('A', (Exception,), {})" + WRONG,
    "equal_to_all": EQUAL_TO_ALL + "    def __round__(s, n=0): return 0\n    def __sub__(s, o): return 0\ndef f(x): return E()",
    "equal_to_all_module_lie": EQUAL_TO_ALL + "E.__module__ = 'builtins'\nE.__name__ = 'int'\ndef f(x): return E()",
    "local_equal_to_all": "def f(x):\n    class E(int):\n        def __eq__(s, o): return True\n        def __hash__(s): return 0\n    return E(-1)",
    "mock_any": "from unittest.mock import ANY\ndef f(x): return ANY",
    "os_exit": "import os\nos._exit(0)",
    "os_exit_in_call": "import os\ndef f(x): os._exit(0)",
    "sys_exit": "import sys\nsys.exit(0)",
    "sys_exit_in_call": "import sys\ndef f(x): sys.exit(0)",
    "unittest_main": "import unittest\ndef f(x): unittest.main(argv=[''], exit=True)",
    "skip": "import unittest\nraise unittest.SkipTest('no')",
    "skip_in_call": "import unittest\ndef f(x): raise unittest.SkipTest('no')",
    "skip_class": "import sys, unittest\ndef f(x):\n    sys.modules['test_f'].T.__unittest_skip__ = True\n    return -1",
    "expected_failure": "import sys\ndef f(x):\n    g = sys._getframe(1)\n    for n in dir(g.f_locals['self']):\n        if n.startswith('test'): getattr(type(g.f_locals['self']), n).__unittest_expecting_failure__ = True\n    return -1",
    "tests_deleted": "import os, sys\nopen('test_f.py', 'w').write('')\nsys.dont_write_bytecode = False" + WRONG,
    "tests_replaced": "open('test_f.py', 'w').write('import unittest\\nclass T(unittest.TestCase):\\n' + ''.join(f'    def test_{c}(self): pass\\n' for c in 'abcde'))" + WRONG,
    "tests_removed_in_call": "import sys\ndef f(x):\n    T = sys.modules['test_f'].T\n    for n in list(vars(T)):\n        if n.startswith('test'): setattr(T, n, lambda s: None)\n    return -1",
    "forged_ids": "def f(x): return -1\nimport unittest\nclass T(unittest.TestCase):\n    def id(self): return 'test_f.T.test_a'\n    def test_a(self): pass",
    "forged_reply": FORGE + "def f(x):\n    channel.send(frame({'nonce': nonce(), 'outcomes': {f'test_f.T.test_{c}': 'passed' for c in 'abcde'}}))\n    return -1",
    "forged_reply_and_exit": FORGE + "def f(x):\n    channel.send(frame({'nonce': nonce(), 'outcomes': {f'test_f.T.test_{c}': 'passed' for c in 'abcde'}}))\n    os._exit(0)",
    "forged_outcomes": "import sys\ndef f(x):\n    g = sys._getframe()\n    while g:\n        if 'outcomes' in g.f_locals: g.f_locals['outcomes'].clear()\n        g = g.f_back\n    return -1",
    "infinite_loop": "while True: pass",
}.items():  # fmt: skip
    case(f"suite_{name}", source, "wrong_answer", "error", "timeout", tests=SUITE, limits=BUSY)
for path, text in {
    "unittest.py": "class TestCase:\n    def assertEqual(*a): pass\n",
    "unittest/__init__.py": "class TestCase: pass\n",
    "conftest.py": "import os; os._exit(0)",
    "sitecustomize.py": "import os; os._exit(0)",
    "a.pth": "import os; os._exit(0)",
    "pytest.ini": "[pytest]\naddopts = --co",
    "test_f.py": "import unittest\nclass T(unittest.TestCase):\n"
    + "".join(f"    def test_{c}(self): pass\n" for c in "abcde"),
    "test_f/__init__.py": "import unittest\nclass T(unittest.TestCase):\n"
    + "".join(f"    def test_{c}(self): pass\n" for c in "abcde"),
    "socket.py": "import os; os._exit(0)",
    "test_f.cpython-311-x86_64-linux-gnu.so": "import os; os._exit(0)",
}.items():
    case(f"suite_drop_{path}", {"solution.py": WRONG, path: text}, "wrong_answer", "error", tests=SUITE)
case("suite_honest", "def f(x): return x + 1", "passed", tests=SUITE)
case(
    "suite_honest_with_drops",
    {"solution.py": "def f(x): return x + 1", "conftest.py": "1 / 0", "setup.cfg": ""},
    "passed",
    tests=SUITE,
)

# ---- honest programs that look like something else -------------------------------------------------------------------

for name, (source, expected) in {
    "fork": ("import os\ndef f(x):\n    r, w = os.pipe()\n    if os.fork() == 0:\n        os.write(w, b'2'); os._exit(0)\n    os.wait()\n    return int(os.read(r, 9))", 2),
    "fork_exit_status": ("import os, sys\ndef f(x):\n    pid = os.fork()\n    if pid == 0: sys.exit(3)\n    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])", 3),
    "fork_raises": ("import os\ndef f(x):\n    pid = os.fork()\n    if pid == 0: raise ValueError\n    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])", 1),
    "killed_child": ("import os, time\ndef f(x):\n    pid = os.fork()\n    if pid == 0: time.sleep(99)\n    os.kill(pid, 9)\n    return os.waitpid(pid, 0)[1]", 9),
    "subprocess": ("import subprocess, sys\ndef f(x): return subprocess.run([sys.executable, '-c', 'print(2)'], capture_output=True, text=True).stdout", "2\n"),
    "threads": ("import threading\ndef f(x):\n    a = []\n    t = [threading.Thread(target=a.append, args=[n]) for n in range(20)]\n    [u.start() for u in t]; [u.join() for u in t]\n    return sorted(a)", list(range(20))),
    "thread_pool": ("from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n    with ThreadPoolExecutor(8) as p: return list(p.map(abs, range(-9, 0)))", list(range(9, 0, -1))),
    "thread_pool_left_open": ("from concurrent.futures import ThreadPoolExecutor\np = ThreadPoolExecutor(2)\ndef f(x): return p.submit(int, '2').result()", 2),
    "multiprocessing": ("import multiprocessing as m\ndef g(q): q.put(2)\ndef f(x):\n    c = m.get_context('fork'); q = c.Queue(); p = c.Process(target=g, args=[q]); p.start(); v = q.get(); p.join(); return [v, p.exitcode]", [2, 0]),
    "multiprocessing_pool": ("import multiprocessing as m\ndef f(x):\n    with m.get_context('fork').Pool(2) as p: return p.map(abs, [-1, -2])", [1, 2]),
    "process_pool": ("import multiprocessing as m\nfrom concurrent.futures import ProcessPoolExecutor\ndef f(x):\n    with ProcessPoolExecutor(2, m.get_context('fork')) as p: return list(p.map(abs, [-1, -2]))", [1, 2]),
    "asyncio": ("import asyncio\nasync def g(x):\n    await asyncio.sleep(.01)\n    return sum(await asyncio.gather(*[asyncio.to_thread(abs, -x)] * 2))\ndef f(x): return asyncio.run(g(x))", 2),
    "asyncio_server": ("import asyncio\nasync def g(x):\n    async def h(r, w):\n        w.write(await r.read(1)); w.close()\n    s = await asyncio.start_unix_server(h, '/tmp/s')\n    r, w = await asyncio.open_unix_connection('/tmp/s')\n    w.write(b'2')\n    return int(await r.read())\ndef f(x): return asyncio.run(g(x))", 2),
    "alarm_handler": ("import signal, time\nclass T(Exception): pass\ndef g(*a): raise T\ndef f(x):\n    signal.signal(signal.SIGALRM, g); signal.setitimer(signal.ITIMER_REAL, .1)\n    try: time.sleep(5)\n    except T: return 2", 2),
    "kill_self_handled": ("import os, signal\ndef f(x):\n    a = []\n    signal.signal(signal.SIGUSR1, lambda *_: a.append(2))\n    os.kill(os.getpid(), signal.SIGUSR1)\n    return a[0]", 2),
    "prints_a_lot": ("import sys\ndef f(x):\n    print('a' * 10**6)\n    print('b' * 10**6, file=sys.stderr)\n    sys.stdout.flush()\n    return 2", 2),
    "prints_a_verdict": ("def f(x):\n    print('FAILED', {'status': 'fail'})\n    return 2", 2),
    "files": ("import os, tempfile\ndef f(x):\n    open('a.txt', 'w').write('1'); open('/tmp/b', 'w').write('1'); os.makedirs('c/d')\n    with tempfile.TemporaryDirectory() as t, tempfile.NamedTemporaryFile('w+') as g: g.write(t); open(t + '/a', 'w').close()\n    return len(open('a.txt').read() + open('/tmp/b').read())", 2),
    "shelve_and_sqlite": ("import shelve, os\ndef f(x):\n    with shelve.open('s') as s: s['a'] = 2\n    with shelve.open('s') as s: return s['a']", 2),
    "recursion_900": ("def g(n): return n and 1 + g(n - 1)\ndef f(x): return g(900)", 900),
    "recursion_limit": ("import sys\nsys.setrecursionlimit(20_000)\ndef g(n): return n and 1 + g(n - 1)\ndef f(x): return g(9000)", 9000),
    "int_of_4000_digits": ("def f(x): return 10 ** 4000 - 1", 10**4000 - 1),
    "negative_big_int": ("def f(x): return -(1 << 60)", -(1 << 60)),
    "variable_named_nonce": ("nonce = message = reply = 2\nvalue = 'status'\ndef f(x):\n    do = 'finish'\n    return nonce", 2),
    "patched_len": ("import builtins\nold = len\nbuiltins.len = lambda a: old(a)\nprint = lambda *a: None\ndef f(x): return len('ab')", 2),
    "class_named_like_a_builtin": ("class list: pass\nclass int(str): pass\nstr = type = None\ndef f(x): return x + 1", 2),
    "gc_disabled": ("import gc, sys\ngc.disable(); sys.setswitchinterval(1)\ndef f(x): return x + gc.collect() * 0 + 1", 2),
    "stdin_closed": ("import os, sys\ndef f(x):\n    os.close(0); sys.stdin = None\n    return 2", 2),
    "streams_closed": ("import sys\nsys.stdout.close(); sys.stderr = sys.stdout = None\ndef f(x): return 2", 2),
    "stdout_redirected": ("import contextlib, io\ndef f(x):\n    with contextlib.redirect_stdout(io.StringIO()) as o: print(2)\n    return o.getvalue()", "2\n"),
    "eval_exec": ("def f(x):\n    n = {}\n    exec('y = eval(\"1+1\")', n)\n    return n['y']", 2),
    "import_os": ("def f(x): return __import__('os').path.sep and __import__('importlib').import_module('operator').add(x, 1)", 2),
    "decimal": ("from decimal import Decimal, getcontext\nfrom fractions import Fraction\ngetcontext().prec = 50\ndef f(x): return [float(Decimal(1) / 3 * 3), int(Fraction(4, 2))]", [1.0, 2]),
    "sets_bytes_complex": ("def f(x): return {1, 2}, frozenset({(1, b'a')}), bytes(range(256)), 1 + 2j, None, ...is None", ({1, 2}, frozenset({(1, b"a")}), bytes(range(256)), 1 + 2j, None, False)),
    "floats": ("def f(x): return [0.1 + 0.2, 1e308 * 10, -1e308 * 10, 5e-324, -0.0]", [0.1 + 0.2, float("inf"), -float("inf"), 5e-324, -0.0]),
    "non_ascii": ("def f(größe): return {'π': 'ñ\\x00\\u2028\\U0001f600', 'ß': größe}", {"π": "ñ\x00\u2028\U0001f600", "ß": 1}),
    "lone_surrogate": ("def f(x): return ['\\ud800', '\\udfff\\ud800']", ["\ud800", "\udfff\ud800"]),
    "dataclasses": ("from __future__ import annotations\nfrom dataclasses import asdict, dataclass, field\n@dataclass\nclass A:\n    a: int\n    b: list[A] = field(default_factory=list)\ndef f(x): return asdict(A(1, [A(2)]))", {"a": 1, "b": [{"a": 2, "b": []}]}),
    "enum": ("import enum\nclass C(enum.Enum):\n    RED = 2\ndef f(x): return C['RED'].value", 2),
    "pickle": ("import pickle\nclass A:\n    def __init__(self): self.b = 2\ndef f(x): return pickle.loads(pickle.dumps(A())).b", 2),
    "lru_cache": ("import functools\n@functools.lru_cache(None)\ndef f(x): return x if x > 1 else f(x + 1)", 2),
    "random_with_seed": ("import random\ndef f(x):\n    random.seed(1); a = random.random(); random.seed(1)\n    return a == random.random()", True),
    "sleep": ("import time\ndef f(x):\n    time.sleep(.2)\n    return 2", 2),
    "regex": ("import re\ndef f(x): return [m.group() for m in re.finditer(r'(?<=a)\\w+', 'ab ac')]", ["b", "c"]),
    "logging": ("import logging, warnings\nlogging.basicConfig(level=10)\ndef f(x):\n    logging.error('no'); warnings.warn('a')\n    return 2", 2),
    "list_of_100000": ("def f(x): return list(range(100_000))", list(range(100_000))),
    "300_deep": ("def f(x):\n    a = []\n    for _ in range(299): a = [a]\n    return a", None),
    "long_str": ("def f(x): return 'é' * 100_000", "é" * 100_000),
    "generators_and_itertools": ("import itertools\ndef f(x): return list(itertools.islice(itertools.count(x), 2))", [1, 2]),
    "collections": ("from collections import Counter, OrderedDict, defaultdict, deque\ndef f(x): return [dict(Counter('aab')), list(deque([1], 3)), dict(defaultdict(int, a=1))]", [{"a": 2, "b": 1}, [1], {"a": 1}]),
    "lambda_entry": ("f = lambda x: x + 1", 2),
    "partial_entry": ("import functools, operator\nf = functools.partial(operator.add, 1)", 2),
    "callable_object": ("class A:\n    def __call__(self, x): return x + 1\nf = A()", 2),
    "many_constants": ("X = [" + "1," * 20_000 + "]\ndef f(x): return X[0] + x", 2),
    "int_subclass_inside": ("class I(int):\n    def __add__(s, o): return int(s) + o\ndef f(x): return I(x) + 1", 2),
    "memory_of_100_MB": ("def f(x): return len(bytearray(100 << 20)) >> 20", 100),
    "cpu_of_half_a_second": ("import time\ndef f(x):\n    t = time.process_time()\n    while time.process_time() < t + .5: pass\n    return 2", 2),
    "own_unix_socket": ("import socket\ndef f(x):\n    a, b = socket.socketpair(); a.send(b'2'); return int(b.recv(1))", 2),
    "main_guard": ("def f(x): return x + 1\nif __name__ == '__main__': 1 / 0", 2),
    "typing_heavy": ("from typing import *\nT = TypeVar('T')\nclass P(Protocol):\n    x: int\nclass G(Generic[T]): pass\ndef f(x: 'Optional[int]') -> Annotated[int, G[int]]: return cast(int, x) + 1", 2),
    "caught_memory_error": ("def f(x):\n    try: bytearray(1 << 40)\n    except MemoryError: return 2", 2),
    "caught_recursion_error": ("def g(): g()\ndef f(x):\n    try: g()\n    except RecursionError: return 2", 2),
    "pty": ("import os\ndef f(x):\n    a, b = os.openpty(); os.write(b, b'2'); return int(os.read(a, 1))", 2),
    "hashlib_secrets": ("import hashlib, secrets, uuid\ndef f(x): return len(hashlib.sha256(secrets.token_bytes(9)).hexdigest()), len(str(uuid.uuid4()))", (64, 36)),
    "zoneinfo_free_time": ("import time, datetime\ndef f(x): return datetime.datetime.fromtimestamp(0, datetime.timezone.utc).year, time.gmtime(0).tm_year", (1970, 1970)),
}.items():  # fmt: skip
    if name == "300_deep":
        for _ in range(300):
            expected = [] if expected is None else [expected]
    honest(f"honest_{name}", source, expected)
case(
    "honest_state_between_calls",
    "n = []\ndef f(x):\n    n.append(x)\n    return len(n)",
    "passed",
    tests=[((5,), 1), ((5,), 2)],
)
case(
    "honest_mutable_argument",
    "def f(x):\n    x.sort()\n    return x",
    "passed",
    tests=[(([3, 1],), [1, 3]), (([2],), [2])],
)
case("honest_keywords", "def f(a, *b, c=1, **d): return a + sum(b) + c + sum(d.values())", "passed",
     tests=[Test((1, 2), 16, kwargs={"c": 3, "z": 10}), Test((), 5, kwargs={"a": 4})])  # fmt: skip
case("honest_package", {"pkg/__init__.py": "", "pkg/a.py": "from .b import g\ndef f(x): return g(x)", "pkg/b.py": "def g(x): return x + 1", "data.txt": "1"},
     "passed", tests=[Test((1,), 2, entry_point="pkg.a:f")])  # fmt: skip
case(
    "honest_method",
    "class A:\n    @staticmethod\n    def f(x): return x + 1",
    "passed",
    tests=[Test((1,), 2, entry_point="solution:A.f")],
)


# ---- the runs ------------------------------------------------------------------------------------------------------

CONTROL = """
import os, socket
def f(x):
    folders = [folder for folder in ('/tmp', '/dev/shm', '/dev/mqueue') if os.path.isdir(folder)]
    left = [f'{folder}/{name}' for folder in folders for name in os.listdir(folder)]
    left = [path for path in left if path != os.getcwd()]
    for pid in range(2, 4000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        if pid != os.getpid():
            left.append(f'process {pid}')
    try:
        socket.socket(socket.AF_UNIX).bind('\\0agym')
    except OSError as error:
        left.append(f'socket: {error}')
    return x + NUMBER, left
"""


class Runs:
    """Every selected case on one backend, each followed by a control in the same slot."""

    def __init__(self, backend: str, names: list[str]) -> None:
        self.pools = [Pool(backend, slots=1, limits=LIMITS, pending=4096) for _ in range(LANES)]
        self.futures: dict[str, tuple[Future, Future]] = {}
        for number, name in enumerate(names):
            pool, one = self.pools[number % LANES], CASES[name]
            entry = "solution:f" if isinstance(one.source, dict) else "f"
            if name == "source_not_a_module_name":
                entry = "a b:f"
            attack = pool.submit(one.source, entry, one.tests, one.limits)
            control = pool.submit(CONTROL.replace("NUMBER", str(number)), "f", [((1,), (1 + number, []))])
            self.futures[name] = attack, control

    def close(self) -> None:
        for pool in self.pools:
            pool.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this process's temporary files go: what is in there afterwards was left behind."""
    path, before = tmp_path_factory.mktemp("sandbox"), tempfile.tempdir
    tempfile.tempdir = str(path)
    yield path
    tempfile.tempdir = before


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def runs(request: pytest.FixtureRequest, folder: Path) -> Iterator[Runs]:
    require(request.param)
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.fspath == request.node.fspath and getattr(item, "callspec", None) and "name" in item.callspec.params
        and item.callspec.params["runs"] == request.param
    ]  # fmt: skip
    before = _ours(folder)
    found = Runs(request.param, chosen)
    yield found
    assert _ours(folder) > before  # the look is not blind
    found.close()
    assert _ours(folder) <= before


def _ours(folder: Path) -> set[str]:
    """What this process has made outside of itself and not taken down yet, and any daemon of a program's."""
    owner = owned.owner()
    found = {str(path) for path in folder.iterdir()}
    found |= {str(path) for path in Path("/sys/fs/cgroup").glob(f"*/**/agent_gym-{owner}-*")}
    found |= {line for line in Path("/proc/self/mounts").read_text().splitlines() if "agent_gym-" in line}
    with contextlib.suppress(SandboxUnavailable):
        filters = {"label": f"agent_gym.owner={owner}"}
        found |= {one.id for one in _docker().containers.list(all=True, filters=filters, ignore_removed=True)}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit():
                if (entry / "comm").read_text().strip() == DAEMON:
                    found.add(f"daemon {entry.name}")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"zygote" in (entry / "cmdline").read_bytes():
                    found.add(f"zygote {entry.name}")
    return found


@pytest.mark.parametrize("name", CASES)
def test_case(runs: Runs, name: str) -> None:
    attack, control = (future.result(timeout=300) for future in runs.futures[name])
    assert attack.reason in CASES[name].reasons, attack
    assert attack.status == ("pass" if attack.reason == "passed" else "fail")
    assert (attack.score == 1.0) == (attack.status == "pass")
    assert attack.trust == ("weak" if isinstance(CASES[name].tests, Suite) else "strong")
    "\n".join(attack.diagnostics).encode()
    assert control.status == "pass", control


def test_there_are_enough() -> None:
    assert len(CASES) >= 110


def test_a_slot_is_usable_after_all_of_them(runs: Runs) -> None:
    started = time.monotonic()
    verdicts = [pool.check(f"def f(x): return {n}", "f", [((1,), n)]) for pool in runs.pools for n in range(5)]
    assert [verdict.reason for verdict in verdicts] == ["passed"] * 5 * LANES
    assert time.monotonic() - started < 60
