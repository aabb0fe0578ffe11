"""The grader: it alone knows the expected values, and it believes nothing that comes out of a sandbox."""

from __future__ import annotations

import builtins
import contextlib
import json
import math
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import PurePosixPath
from secrets import token_hex
from types import TracebackType
from typing import Any

from agent_gym.sandbox import wire
from agent_gym.sandbox.backends import Killed, Limits, Lost, Sandbox
from agent_gym.sandbox.errors import Starved
from agent_gym.text import split_lines
from agent_gym.verdict import Verdict

__all__ = ["Asserts", "Calls", "Cases", "Meter", "Raises", "Request", "Scripts", "Session", "Suite", "Test", "grade",
           "same"]  # fmt: skip

ARGUMENT_BYTES = 1 << 24
MOST_BYTES = 1 << 26
"""Of an expected value: the most that one may let a call return."""
MOST_ITEMS = 1 << 17
"""Of an iterator that a test hands to the submission."""
START_S = 20.0
"""How long a run may take to be enclosed. Its own time begins after that: no code of the submission runs before."""
STARVED = 0.05
"""A run that could have run, but had less than this share of the time, has not shown what it can do."""
PATIENCE_S = 1.0
"""A run is not called starved before that: it has to be loaded first."""
DYING_S = 0.5
"""How long a run that has closed its channel may take to die of itself, so that its death explains it."""

TIMEOUT = "no answer within the time limit"
"""Of CPU time or of the clock: which of the two a loop meets first depends on what else the machine does."""

VERBS = {"load": "loaded", "call": "called", "next": "called", "finish": "finished", "unittest": "tested",
         "script": "run"}  # fmt: skip
SHOWN = 10
"""Most failing tests a verdict describes."""

SCRUBBED = ("conftest.py", "pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "sitecustomize.py",
            "usercustomize.py")  # fmt: skip
"""What a runner would read without being told to."""


@dataclass(frozen=True, slots=True)
class Raises:
    """An expected value: the call must raise an exception of exactly this class.

    Args:
        name: Name of the class, e.g. ``"ValueError"``: a builtin one's name means the builtin one.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Test:
    """One call and what it must return. Types count: ``1`` is neither ``True`` nor ``1.0``; NaN equals nothing.

    Args:
        args: Positional arguments, plain data.
        expected: The value, plain data, or :class:`Raises`.
        entry_point: The function, where it is not the request's.
        kwargs: Keyword arguments, plain data.
        atol: Floats may differ by so much,
        rtol: and by so much of the expected one; with neither, they are equal.
        lists: A generator, an iterator, a range or a view of a dict is taken as a list wherever it stands, and a tuple
            where it is the whole value.
        compare: ``"exact"``, or a looser rule of a published set: ``"equal"``, where ``1``, ``1.0`` and ``True`` are
            equal; ``"set"``, where order and number do not count either; ``"truth"``, where only being None or not
            does, and a bool is what it says.
    """

    __test__ = False  # pytest would take it for one of its own

    args: tuple[Any, ...]
    expected: Any
    entry_point: str | None = None
    kwargs: Mapping[str, Any] | None = None
    atol: float = 0.0
    rtol: float = 0.0
    lists: bool = False
    compare: str = "exact"

    def accepts(self, found: Any) -> bool:
        """Whether a value is the expected one."""
        expected = self.expected
        if self.compare == "truth":
            return _truth(found) == _truth(expected)
        if self.compare == "set":
            try:
                return set(found) == set(expected)
            except TypeError:
                return False
        if self.lists:
            found, expected = (list(one) if type(one) is tuple else one for one in (found, expected))
        return same(found, expected, self.atol, self.rtol, types=self.compare == "exact")

    def expecting(self, kind: str, value: Any) -> Test:
        """The test that wants an outcome of :class:`Calls` again."""
        if kind == "raised":
            return replace(self, expected=Raises(value))
        return replace(self, expected=_truth(value) if self.compare == "truth" else value)


def _truth(value: Any) -> bool:
    return value if type(value) is bool else value is not None


@dataclass(frozen=True)
class Cases:
    """Data-driven tests."""

    tests: tuple[Test, ...]

    @cached_property
    def spelled(self) -> str:
        """The tests as JSON, written once however often they are run.

        Raises:
            ValueError: For tests that are not plain data.
        """
        for number, test in enumerate(self.tests, start=1):
            for what, value in (("args", test.args), ("expected", test.expected), ("kwargs", test.kwargs or {})):
                if isinstance(value, Raises) and what == "expected":
                    continue
                limit = MOST_BYTES if what == "expected" else ARGUMENT_BYTES
                loose = what == "expected" and test.compare != "exact"
                if not same(wire.decode(wire.encode(value, limit)), value, types=not loose):
                    raise ValueError(f"test {number}: {what} must be plain data without NaN, not {_brief(value, 200)}")
        return json.dumps([_test_to_json(test) for test in self.tests])


@dataclass(frozen=True)
class Calls(Cases):
    """Calls whose values are asked for: what they return or raise is in :attr:`Meter.outcomes`."""


@dataclass(frozen=True, slots=True)
class Scripts:
    """Runs of a file as a program: each gets a text on its standard input and must print another.

    Lines are compared without the blanks around them, and numbers in them by their value.

    Args:
        tests: Pairs of input and output.
        atol: Numbers that are printed may differ by so much,
        rtol: and by so much of the expected one.
    """

    tests: tuple[tuple[str, str], ...]
    atol: float = 0.0
    rtol: float = 0.0


@dataclass(frozen=True, slots=True)
class Asserts:
    """Assert statements of a data set, run by the grader against a proxy of the submission.

    Args:
        statements: Each is one test.
        names: Functions of the submission that the statements call.
        setup: Runs first, e.g. imports and helpers.
    """

    statements: tuple[str, ...]
    names: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """unittest files, or pytest functions, that share the submission's process: their verdict is weak.

    Args:
        files: Test files by path; they replace the submission's of the same name.
        ids: Every test that must run and pass, as ``module.Class.method``, or ``module.function`` as pytest has it;
            no more and no fewer.
        skipped: Tests of the files that are not to run.
    """

    files: Mapping[str, str]
    ids: tuple[str, ...]
    skipped: tuple[str, ...] = ()


@dataclass(slots=True)
class Meter:
    """What a request has used: a program that ends its run by force does not win the time of a new one.

    Args:
        wall_s: Wall-clock seconds of all runs that were ended.
        cpu_s: CPU seconds of the last run.
        outcomes: Of :class:`Calls`, in the last run: ``("value", value)`` or ``("raised", name)``.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    outcomes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What to check, and how.

    Args:
        files: The submission, by path.
        entry_point: ``"module:function"``, the default of every test.
        body: The tests.
        limits: Bounds of the check; ``wall_s`` holds for all runs that share a meter.
        meter: Where the runs add up; None for a single one.
    """

    files: Mapping[str, str]
    entry_point: str
    body: Cases | Scripts | Asserts | Suite
    limits: Limits
    meter: Meter | None = field(default=None, compare=False)

    @classmethod
    def of(cls, source: str | Mapping[str, str], entry_point: str, body: Any, limits: Limits) -> Request:
        """A checked request.

        Raises:
            ValueError: For a path that leaves the workspace, tests that are not plain data, or none at all.
        """
        files = {"solution.py": source} if isinstance(source, str) else dict(source)
        if not files:
            raise ValueError("there is no source to check")
        for path, text in files.items():
            if not isinstance(text, str):
                raise ValueError(f"source: {path!r} must be text, not {type(text).__name__}")
            parts = PurePosixPath(path)
            if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\0" in path or str(parts) != path:
                raise ValueError(f"source: {path!r} is not a relative path inside the workspace")
        if entry_point and ":" not in entry_point:
            if len(files) > 1:
                raise ValueError(f"entry_point={entry_point!r}: with several files it reads 'module:function'")
            entry_point = f"{next(iter(files)).removesuffix('.py').replace('/', '.')}:{entry_point}"
        if not _parts_of(body):
            raise ValueError("tests: there are none")
        if isinstance(body, Cases):
            _ = body.spelled
        elif isinstance(body, Asserts):
            for code in (body.setup, *body.statements):
                try:
                    compile(code, "<test>", "exec")
                except SyntaxError as error:
                    raise ValueError(f"tests: {code!r:.200} does not compile: {error}") from None
        return cls(files, entry_point, body, limits)

    def to_json(self) -> dict[str, Any]:
        """A form that the journal keeps and :meth:`from_json` reads."""
        body: dict[str, Any]
        if isinstance(self.body, Cases):
            body = {"calls" if isinstance(self.body, Calls) else "cases": json.loads(self.body.spelled)}
        elif isinstance(self.body, Scripts):
            body = {"scripts": [[list(test) for test in self.body.tests], self.body.atol, self.body.rtol]}
        elif isinstance(self.body, Asserts):
            body = {"asserts": [list(self.body.statements), list(self.body.names), self.body.setup]}
        else:
            body = {"suite": [dict(self.body.files), list(self.body.ids), list(self.body.skipped)]}
        limits = [getattr(self.limits, name) for name in Limits.__slots__]  # type: ignore[attr-defined]
        return {"files": dict(self.files), "entry_point": self.entry_point, "body": body, "limits": limits}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """The inverse of :meth:`to_json`."""
        ((kind, value),) = data["body"].items()
        body: Any
        if kind in ("cases", "calls"):
            body = (Cases if kind == "cases" else Calls)(tuple(map(_test_from_json, value)))
        elif kind == "scripts":
            body = Scripts(tuple((given, wanted) for given, wanted in value[0]), *value[1:])
        elif kind == "asserts":
            body = Asserts(tuple(value[0]), tuple(value[1]), value[2])
        else:
            body = Suite(value[0], tuple(value[1]), tuple(value[2]))
        return cls(data["files"], data["entry_point"], body, Limits(*data["limits"]))

    @property
    def key(self) -> str:
        """The same for the same request: what makes asking twice harmless."""
        body, spelled = self.body, ""
        if isinstance(body, Cases):
            body, spelled = type(body)(()), body.spelled
        text = json.dumps(replace(self, body=body).to_json(), sort_keys=True, ensure_ascii=True)
        return blake2b((text + spelled).encode(), digest_size=16).hexdigest()


def _parts_of(body: Any) -> tuple[Any, ...]:
    """What each counts as one test."""
    if isinstance(body, Asserts):
        return body.statements
    return body.tests if isinstance(body, Cases | Scripts) else body.ids


def _test_to_json(test: Test) -> list[Any]:
    raises = isinstance(test.expected, Raises)
    expected = test.expected.name if raises else wire.encode(test.expected, MOST_BYTES)
    kwargs = wire.encode(dict(test.kwargs or {}), ARGUMENT_BYTES)
    rule = [test.atol, test.rtol, test.lists, test.compare]
    return [wire.encode(test.args, ARGUMENT_BYTES), raises, expected, test.entry_point, kwargs, rule]


def _test_from_json(data: list[Any]) -> Test:
    args, raises, expected, entry_point, kwargs, rule = data
    return Test(wire.decode(args), Raises(expected) if raises else wire.decode(expected), entry_point,
                wire.decode(kwargs) or None, *rule)  # fmt: skip


def same(found: Any, expected: Any, atol: float = 0.0, rtol: float = 0.0, types: bool = True) -> bool:
    """Equality of plain data: of types as well as of values, also inside containers and of their keys.

    Args:
        found: One.
        expected: The other.
        atol: Floats may differ by so much, where they are no keys,
        rtol: and by so much of the expected one.
        types: Otherwise numbers of equal value are equal whatever their type, and NaN equals NaN.
    """
    pairs = [(found, expected)]
    while pairs:
        one, other = pairs.pop()
        numbers = not types and isinstance(one, int | float | complex) and isinstance(other, int | float | complex)
        if not numbers and type(one) is not type(other):
            return False
        if isinstance(one, list | tuple):
            if len(one) != len(other):
                return False
            pairs.extend(zip(one, other, strict=True))
        elif isinstance(one, dict | set | frozenset):
            if len(one) != len(other):
                return False
            keys = {key: key for key in other}
            for key in one:
                if key not in keys:
                    return False
                pairs.append((key, keys[key]))
                if isinstance(one, dict):
                    pairs.append((one[key], other[key]))
        elif one != other and not _is_near(one, other, atol, rtol) and not (numbers and one != one and other != other):
            return False
    return True


def _is_near(one: Any, other: Any, atol: float, rtol: float) -> bool:
    """Whether two numbers, of which one is a float, are within the tolerance."""
    if not (atol or rtol) or not any(isinstance(number, float | complex) for number in (one, other)):
        return False
    try:
        return math.isfinite(abs(other)) and abs(one - other) <= atol + rtol * abs(other)
    except OverflowError:  # an integer that is no float
        return False


class Ended(BaseException):
    """The run is over, and that was the submission's doing. Not an Exception: no test code may swallow it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason, self.message = reason, message


class Forged(Ended):
    """The run has said what it was not asked: nothing that it said counts."""

    def __init__(self, message: str) -> None:
        super().__init__("error", message)


class Unjudged(Exception):
    """The tests themselves are at fault: there is no verdict on the submission."""


class Session:
    """One run in a sandbox, seen from the grader: questions with a fresh nonce, answers under a deadline.

    Args:
        sandbox: Idle.
        limits: Of this run.
        meter: What earlier runs of the same request have used; this one is added.

    Raises:
        Lost: Also from every method, when the sandbox itself is gone.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits, meter: Meter | None = None) -> None:
        self.sandbox, self.limits, self.meter = sandbox, limits, meter or Meter()
        self.answers = self.yielded = 0
        self.most_bytes = limits.output_mb << 20
        self.started = self.over = time.monotonic()
        self.deadline, self.half = self.started + START_S, 0.0
        self.channel = sandbox.start(limits)
        self.ended: Ended | None = None
        try:
            self.channel.setblocking(False)
            self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # no byte is out of sight
            first = wire.unpack(self._read, wire.REPLY_BYTES)
        except (Ended, ValueError) as error:
            raise Lost(f"the run did not start: {error.args[-1]}") from None
        if "fault" in first:  # nothing untrusted has run yet
            raise Lost(f"the run could not be enclosed: {first['fault']}")
        self.started = self.over = time.monotonic()
        self.deadline = self.started + limits.wall_s - self.meter.wall_s
        half = (self.deadline - self.started) / 2
        self.half = self.started + half if half >= PATIENCE_S else 0.0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Bury the run. A verdict that was reached stands even if the sandbox does not survive this."""
        self.channel.close()
        self.meter.wall_s += self.over - self.started
        if self.ended is None:
            try:
                self.meter.cpu_s = self.sandbox.end()["cpu_s"]
            except Lost:
                self.sandbox.worn = True

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """The run's reply.

        Raises:
            Ended: If there is none, or it is not one; from then on, to every question.
        """
        if self.ended is not None:
            raise self.ended
        with contextlib.suppress(OSError):
            if self.channel.recv(1, socket.MSG_PEEK):
                raise Forged("the program wrote to the grader's channel without being asked")
        nonce = token_hex(16)
        self._write(wire.pack({"do": do, "nonce": nonce, **fields}))
        try:
            reply = wire.unpack(self._read, self.most_bytes + 4096)
        except wire.TooLarge as error:
            raise Ended("output_limit", str(error)) from None
        except wire.Malformed as error:
            raise Forged(f"the program forged a reply: {error}") from None
        if not isinstance(reply, dict) or reply.get("nonce") != nonce:
            raise Forged("the program forged a reply")
        if "failed" in reply:
            fault = _Raised.of(reply["failed"])
            raise Ended(fault.reason, f"the program cannot be {VERBS[do]}: {fault}")
        return reply

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.channel.send(view) :]
            except BlockingIOError:
                self._wait(writing=True)
            except OSError:
                self._bury()

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self.channel.recv(min(count, 1 << 16))
            except BlockingIOError:
                self._wait()
                continue
            except OSError:
                part = b""
            if not part:
                self._bury()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _wait(self, writing: bool = False) -> None:
        """Until the channel is ready. The run's death is heard here too."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            self._end("timeout", TIMEOUT)
        control, channels = self.sandbox.control, [self.channel]
        waiting = [control] if writing else [control, *channels]
        before = max(0.0, self.half - time.monotonic()) or left
        readable, writable, _ = select.select(waiting, channels if writing else [], [], before)
        if not readable and not writable and before < left:
            self._look()
        if readable == [control] and not writable:
            self._bury()

    def _look(self) -> None:
        """At half time: a run that has had hardly any processor time is given up, so that there is time for another."""
        looked = self.sandbox.look()
        if "exited" in looked:
            self._end("exited", "")
        if self._is_starved(looked):
            self._end("starved", "")

    def _is_starved(self, looked: Mapping[str, Any]) -> bool:
        return looked["runnable"] and looked["cpu_s"] < STARVED * (time.monotonic() - self.started)

    def _bury(self) -> None:
        """The run has closed its channel or died: say why."""
        exited, _, _ = select.select([self.sandbox.control], [], [], DYING_S)  # its exit is said here, unasked
        self._end("exited" if exited else "error", "")

    def _end(self, reason: str, message: str) -> None:
        """Kill the run. What the kernel says of its end is better than what is known here."""
        self.ended = Ended(reason, message)
        self.over = time.monotonic()
        end = self.sandbox.end()
        status, self.meter.cpu_s = end["status"], end["cpu_s"]
        if reason == "starved" or (reason == "timeout" and not end["oom"] and self._is_starved(end)):
            raise Starved("the machine gave the run hardly any processor time")
        if end["oom"]:
            self.ended = Ended("memory", f"more than {self.limits.memory_mb} MB of memory")
        elif reason == "timeout":
            self.sandbox.worn = True  # after a timeout a sandbox is not used again
        elif status in (-signal.SIGKILL, -signal.SIGXCPU) and end["cpu_s"] > self.limits.cpu_s / 2:
            # the limit counts whole ticks, which on a busy machine are far more than the time used
            self.ended = Ended("timeout", TIMEOUT)
        elif status == -signal.SIGKILL and reason == "exited":
            raise Killed("something killed the run that was neither its limits nor this process")
        else:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            self.ended = Ended("error", f"the program ended before it answered ({how})")
        raise self.ended

    # ---- questions -----------------------------------------------------------------------------------------------

    def load(self, files: Mapping[str, str], modules: Sequence[str]) -> None:
        """Write the files and import the modules.

        Raises:
            Ended: If that fails.
        """
        self.ask("load", files=dict(files), modules=list(modules))

    def finish(self) -> None:
        """See that the run is still there after its last answer, and has said nothing since.

        Raises:
            Ended: If not.
        """
        self.ask("finish")

    def call(self, entry_point: str, args: Sequence[Any], kwargs: Mapping[str, Any], lists: bool = False) -> Outcome:
        """What a call returns or raises, as plain data; see :class:`Test` for ``lists``."""
        encoded = wire.encode(tuple(args), ARGUMENT_BYTES), wire.encode(dict(kwargs), ARGUMENT_BYTES)
        rule = "lists" if lists else ""
        return self._told(self.ask("call", entry_point=entry_point, args=encoded[0], kwargs=encoded[1], rule=rule,
                                   limit=self.most_bytes))  # fmt: skip

    def call_whole(self, entry_point: str, args: list[Any], kwargs: list[Any]) -> tuple[Outcome, Any]:
        """A call for a test that goes on with what it returns and with its arguments, all as tokens: the outcome, which
        may name values of the standard library and iterators, and what the lists, dicts and sets among the arguments
        hold after it, None where that is what they held."""
        reply = self.ask("call", entry_point=entry_point, args=args, kwargs=kwargs, rule="whole", limit=self.most_bytes)
        if "place" not in reply:
            return self._told(reply), reply.get("after")
        self.answers += 1
        return ("place", reply["place"]), reply.get("after")

    def next(self, handle: int) -> Outcome:
        """The next item of an iterator that a call returned, or ``("stop", None)``."""
        reply = self.ask("next", handle=handle, limit=self.most_bytes - self.yielded)
        self.yielded += len(json.dumps(reply))
        if self.yielded > self.most_bytes:
            raise Ended("output_limit", f"an iterator gives more than {self.most_bytes} bytes")
        return ("stop", None) if reply.get("stop") is True else self._told(reply)

    def _told(self, reply: dict[str, Any]) -> Outcome:
        self.answers += 1
        if "raised" in reply:
            return "raised", _Raised.of(reply["raised"])
        if "too_large" in reply:
            return "too_large", f"the result is too large: {reply['too_large']!r:.100}"
        return "value", reply.get("value")


Outcome = tuple[str, Any]
"""``("value", tokens)``, ``("raised", fault)`` or ``("too_large", text)``; where the arguments come back,
``("place", number)`` is one of their containers."""


@dataclass(frozen=True, slots=True)
class _Raised:
    """An exception in the submission, as it tells it."""

    names: tuple[str, ...]
    text: str
    place: str

    @classmethod
    def of(cls, data: Any) -> _Raised:
        try:
            names, text, place = data
            if type(names) is not list or not names or not all(type(part) is str for part in (*names, text, place)):
                raise TypeError
        except (TypeError, ValueError):
            raise Forged("the program forged a reply") from None
        return cls(tuple(name[:80] for name in names[:20]), text[:300], place[:120])

    @property
    def reason(self) -> str:
        return "memory" if "MemoryError" in self.names else "error"

    def __str__(self) -> str:
        what = f"{self.names[0]}: {self.text}" if self.text else self.names[0]
        return f"{what} ({self.place})" if self.place else what


def grade(sandbox: Sandbox, request: Request) -> Verdict:
    """Run one request in an idle sandbox.

    Raises:
        Lost: If the sandbox died under it: there is no verdict.
    """
    body = request.body
    by_kind: dict[type, Callable[..., Iterator[tuple[str, str]]]] = {
        Cases: _cases, Calls: _calls, Scripts: _scripts, Asserts: _asserts, Suite: _suite
    }  # fmt: skip
    count = len(_parts_of(body))
    passed, faults = 0, []
    with Session(sandbox, request.limits, request.meter) as session:
        try:
            for reason, message in by_kind[type(body)](session, request):
                passed += reason == "passed"
                if reason != "passed":
                    faults.append((reason, message))
            session.finish()
        except Ended as end:
            faults.insert(0, (end.reason, end.message))  # what ended the run is the reason, whatever failed before it
            if isinstance(end, Forged) or passed == count:
                passed = 0
        except Unjudged as fault:
            return Verdict("infra", "infra", 0.0, (_printable(str(fault)),))
    trust = {"trust": "weak"} if isinstance(body, Suite) else {}
    if passed == count and not faults:
        return Verdict("pass", "passed", 1.0, **trust)  # type: ignore[arg-type]
    lines = tuple(_printable(message) for _, message in faults[:SHOWN])
    return Verdict("fail", faults[0][0], min(passed, count) / count, lines, **trust)  # type: ignore[arg-type]


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _brief(value: Any, limit: int = 160) -> str:
    try:
        text = repr(value)
    except ValueError as error:  # an integer of so many digits is not written out
        return f"a {type(value).__name__} ({error})"[:limit]
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def _module(entry_point: str) -> str:
    return entry_point.partition(":")[0]


def _cases(session: Session, request: Request) -> Iterator[tuple[str, str]]:
    for test, call, (kind, value) in _called(session, request):
        raises = isinstance(test.expected, Raises)
        wanted = f"a {test.expected.name}" if raises else _brief(test.expected)
        if kind == "too_large":
            yield "output_limit", f"{call}: {value}"
        elif kind == "raised":
            right = raises and value.names[0] == test.expected.name
            reason = "wrong_answer" if raises and value.reason == "error" else value.reason
            yield ("passed", "") if right else (reason, f"{call}: expected {wanted}, raised {value}")
        elif kind == "malformed":
            yield "wrong_answer", f"{call}: expected {wanted}, found no plain data: {value}"
        elif not raises and test.accepts(value):
            yield "passed", ""
        else:
            yield "wrong_answer", f"{call}: expected {wanted}, found {_difference(value, test.expected)}"


def _calls(session: Session, request: Request) -> Iterator[tuple[str, str]]:
    outcomes: list[tuple[str, Any]] = []
    for test, call, (kind, value) in _called(session, request):
        if kind == "value" and test.compare != "truth" and any(isinstance(p, wire.Foreign) for p in _parts(value)):
            kind, value = "malformed", f"no plain data: {_brief(value)}"
        outcomes.append((kind, value.names[0] if kind == "raised" else value))
        session.meter.outcomes = tuple(outcomes)
        yield ("passed", "") if kind in ("value", "raised") else ("output_limit", f"{call}: {value}")


def _called(session: Session, request: Request) -> Iterator[tuple[Test, str, Outcome]]:
    """Each test, its call as text, and the outcome with its value decoded; ``("malformed", text)`` where it is none."""
    body: Any = request.body
    where = [test.entry_point or request.entry_point for test in body.tests]
    where = [name if ":" in name else f"{_module(request.entry_point)}:{name}" for name in where]
    session.load(request.files, list(dict.fromkeys(map(_module, where))))
    for test, entry_point in zip(body.tests, where, strict=True):
        kind, value = session.call(entry_point, test.args, test.kwargs or {}, test.lists)
        shown = ", ".join([*map(_brief, test.args), *(f"{k}={_brief(v)}" for k, v in (test.kwargs or {}).items())])
        if kind == "value":
            try:
                value = wire.decode(value)
            except wire.Malformed as error:
                kind, value = "malformed", str(error)
        yield test, f"{entry_point.partition(':')[2]}({shown})", (kind, value)


def _scripts(session: Session, request: Request) -> Iterator[tuple[str, str]]:
    body: Any = request.body
    session.load(request.files, [])
    path = f"{_module(request.entry_point).replace('.', '/')}.py"
    for given, wanted in body.tests:
        reply = session.ask("script", path=path, input=given, limit=session.most_bytes)
        session.answers += 1
        told: list[Any] = [reply.get(key) for key in ("output", "status", "cpu_s", "error")]
        if "too_large" in reply:
            yield "output_limit", f"for the input {_brief(given)}: {reply['too_large']!r:.100}"
            continue
        if list(map(type, told)) != [str, int, float, str]:
            raise Forged("the program forged a reply")
        output, status, cpu_s, error = told
        if status in (-signal.SIGKILL, -signal.SIGXCPU) and cpu_s > session.limits.cpu_s / 2:
            raise Ended("timeout", TIMEOUT)
        if status:
            reason = "memory" if error.startswith("MemoryError") else "error"
            how = error or (f"signal {-status}" if status < 0 else f"exit status {status}")
            yield reason, f"for the input {_brief(given)}: the program ended with {how}"
        elif not _prints_the_same(output, wanted, body.atol, body.rtol):
            yield "wrong_answer", f"for the input {_brief(given)}: expected {_brief(wanted)}, found {_brief(output)}"
        else:
            yield "passed", ""


def _prints_the_same(found: str, expected: str, atol: float, rtol: float) -> bool:
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (found, expected)]
    if len(lines[0]) != len(lines[1]):
        return False
    for one, other in zip(*lines, strict=True):
        words = one.split(), other.split()
        if one != other and (len(words[0]) != len(words[1]) or not all(
            _is_same_word(*pair, atol, rtol) for pair in zip(*words, strict=True)
        )):  # fmt: skip
            return False
    return True


def _is_same_word(found: str, expected: str, atol: float, rtol: float) -> bool:
    if found == expected:
        return True
    try:
        one, other = Decimal(found), Decimal(expected)
        return one == other or _is_near(float(one), float(other), atol, rtol)
    except (InvalidOperation, ValueError, OverflowError):
        return False


def _difference(found: Any, expected: Any) -> str:
    """The value found; where it prints like the one expected, the types that make the difference."""
    if _brief(found) != _brief(expected) or type(found) is type(expected):
        return _brief(found)
    return f"{_brief(found)} of type {type(found).__name__} instead of {type(expected).__name__}"


class RemoteError(Exception):
    """An exception of the submission that has no namesake among the builtin ones."""


class _Proxy:
    """A function of the submission, called from the grader. Plain data and values of the standard library go in and
    come out; an iterator that comes out asks the submission for each item; a list, dict or set that the submission
    changes is changed here too."""

    def __init__(self, session: Session, entry_point: str) -> None:
        self._session, self._entry_point = session, entry_point
        self.__name__ = entry_point.partition(":")[2]
        self._build = {**wire.BUILD, "iterator": self._items}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tokens = [wire.encode(value, ARGUMENT_BYTES, _handed) for value in (args, kwargs)]
        if any(["o", wire.Foreign.__name__] in part for part in tokens):  # an earlier result, handed on
            raise Ended("wrong_answer", f"{self.__name__}: the test goes on with a result that is not plain data")
        if any(map(_is_unplain, (args, kwargs))):
            raise NotPlain(f"the test calls {self.__name__} with something that is not plain data")
        outcome, after = self._session.call_whole(self._entry_point, *tokens)
        nodes = wire.containers((args, kwargs))
        if after is not None:
            self._change(nodes, after)
        if outcome[0] == "place":
            if type(outcome[1]) is not int or not 0 <= outcome[1] < len(nodes):
                raise Forged("the program forged a reply")
            return nodes[outcome[1]]
        return self._value(outcome)

    def _value(self, outcome: Outcome) -> Any:
        kind, value = outcome
        if kind == "too_large":
            raise Ended("output_limit", value)
        if kind == "raised":
            if value.reason == "memory":
                raise Ended("memory", str(value))
            known = getattr(builtins, value.names[0], None)
            usual = isinstance(known, type) and issubclass(known, Exception) and known is not AssertionError
            error = RemoteError(str(value))
            if usual and not issubclass(known, UnicodeError | ExceptionGroup | StopIteration | StopAsyncIteration):  # type: ignore[arg-type]
                error = known(value.text)  # type: ignore[misc]
            error.add_note("remote")
            raise error
        found = self._decoded(value)
        if any(part != part for part in _parts(found) if isinstance(part, float | complex)):
            raise Ended("wrong_answer", f"{self.__name__}: returned NaN")
        return found

    def _decoded(self, tokens: Any) -> Any:
        try:
            return wire.decode(tokens, exact=False, build=self._build)
        except wire.Malformed as error:
            raise Ended("wrong_answer", f"{self.__name__}: {error}") from None

    def _items(self, handle: int) -> Iterator[Any]:
        while (outcome := self._session.next(handle))[0] != "stop":
            yield self._value(outcome)

    def _change(self, nodes: list[Any], after: Any) -> None:
        """Put into the containers of the arguments what those of the submission hold now; see ``_Run._after``."""
        try:
            held = [
                [[nodes[part] if type(part) is int else self._decoded(part) for part in parts], self._decoded(keys)]
                for keys, parts in after
            ]
            for node, (parts, keys) in zip(nodes, held, strict=True):
                if type(node) is list:
                    node[:] = parts
                else:
                    node.clear()
                    node.update(zip(keys, parts, strict=True) if type(node) is dict else keys)
        except (TypeError, ValueError, IndexError):
            raise Forged("the program forged a reply") from None


class NotPlain(Exception):
    """A test hands the submission what cannot be sent."""


def _handed(item: Any) -> tuple[str, list[Any]] | None:
    """What a test may hand to the submission beside plain data."""
    if isinstance(item, Iterator):
        return "iterator", [list(islice(item, MOST_ITEMS))]
    return wire.describe(item)


def _parts(value: Any) -> Iterator[Any]:
    """Everything in a value that is no container."""
    stack = [value]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if type(item) in (dict, list, tuple, set, frozenset):
            if id(item) not in seen:  # one that the submission has put into itself
                seen.add(id(item))
                stack += [*item.keys(), *item.values()] if type(item) is dict else item
        else:
            yield item


def _is_unplain(value: Any) -> bool:
    plain = (bool, int, float, complex, str, bytes, type(None))
    return any(
        part != part if type(part) in plain else not isinstance(part, Iterator) and wire.describe(part) is None
        for part in _parts(value)
    )


def _asserts(session: Session, request: Request) -> Iterator[tuple[str, str]]:
    body: Any = request.body
    module = _module(request.entry_point)
    session.load(request.files, [module])
    proxies = {name: _Proxy(session, f"{module}:{name}") for name in body.names}
    for statement in body.statements:
        answers = session.answers
        namespace = {"__name__": "__tests__", "math": math, **proxies}
        try:
            exec(compile(body.setup, "<setup>", "exec"), namespace)
            namespace.update(proxies)
            exec(compile(statement, "<test>", "exec"), namespace)
            if session.ended is not None:  # a bare except in the test has caught it
                raise session.ended
        except Exception as error:
            remote = "remote" in getattr(error, "__notes__", ())
            told = _told(error)
            if session.answers == answers and session.ended is None:
                # no result of the submission is in it: the test would fail whatever the submission is
                raise Unjudged(f"the test itself fails: {statement.strip()[:200]}: {told}") from None
            yield "error" if remote else "wrong_answer", f"{statement.strip()[:200]}: {told}"
        else:
            yield "passed", ""


def _told(error: Exception) -> str:
    try:
        text = str(error)
    except ValueError:  # it holds an integer of very many digits
        text = ""
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def _suite(session: Session, request: Request) -> Iterator[tuple[str, str]]:
    body: Any = request.body
    files = {path: text for path, text in request.files.items() if not _is_scrubbed(path, body.files)}
    files |= body.files
    tests = {"tests": dict(body.files), "ids": list(body.ids), "skipped": list(body.skipped)}
    reply = session.ask("unittest", files=files, modules=[], **tests)
    outcomes = reply.get("outcomes")
    if not isinstance(outcomes, dict) or not all(type(text) is str for text in outcomes.values()):
        raise Forged("the program forged a reply")
    if failed := [text for name, text in outcomes.items() if name.startswith("unittest.loader._FailedTest.")]:
        raise Ended("error", f"the tests do not load: {split_lines(failed[0].strip() or 'no reason')[-1]:.500}")
    for name in body.ids:
        outcome = outcomes.get(name, "did not run")
        yield ("passed", "") if outcome == "passed" else ("wrong_answer", f"{name}: {outcome!r:.300}")
    others = {name: outcome for name, outcome in outcomes.items() if name not in body.ids}
    if extra := [name for name, outcome in others.items() if not outcome.startswith("skipped: ")]:
        raise Forged(f"{extra[0][:200]} ran, which is not one of the tests")


def _is_scrubbed(path: str, tests: Iterable[str]) -> bool:
    """Whether a file of the submission would change how the tests are run, or be imported in the place of one."""
    parts = PurePosixPath(path).parts
    stems = (*parts[:-1], parts[-1].partition(".")[0])
    for test in tests:
        module = PurePosixPath(test.removesuffix(".py")).parts
        if stems[: len(module)] == module or (len(stems) < len(module) and stems == module[: len(stems)]):
            return True
    return parts[-1] in SCRUBBED or parts[-1].endswith(".pth") or stems[0] in (*sys.stdlib_module_names, "pytest")
