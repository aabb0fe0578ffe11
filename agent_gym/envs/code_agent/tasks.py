"""What a task of CodeAgent-v0 is, and our own form of it in a file."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from pydantic import Field

from agent_gym.envs.code_agent.workspace import Workspace
from agent_gym.records import Own, Text, checked
from agent_gym.sandbox import Asserts, Raises, Scripts, Suite, Test, same
from agent_gym.sandbox.grader import ARGUMENT_BYTES
from agent_gym.sandbox.wire import decode, encode
from agent_gym.text import syntax_tree
from agent_gym.tools import Call

__all__ = ["Checks", "CodeTask", "Computed", "check_arguments", "count", "only", "own_task", "parsed", "subset",
           "write_all"]  # fmt: skip


@dataclass(frozen=True)
class Computed:
    """Calls whose right values the task's solution gives. It runs in the sandbox when they are first needed.

    Args:
        calls: Tests without an expected value.
    """

    calls: tuple[Test, ...]


Checks = tuple[Test, ...] | Computed | Scripts | Asserts | Suite


@dataclass(frozen=True)
class CodeTask:
    """A workspace to be mended or completed, and the tests that decide.

    Args:
        id: As ``reset(options={"task": id})`` takes it.
        request: What the agent is asked.
        world: The files it starts with.
        entry_point: ``"module:function"``; the default of the tests.
        visible: Tests that the agent may run; None where there are none.
        hidden: Tests that decide. The sandbox never holds them, only their inputs.
        calls: The oracle's, one a turn; none where the data set has no solution.
        limits: Of a check, where they are not the environment's: ``time_limit`` in seconds, ``memory_mb``, ``disk_mb``
            and ``output_mb``.
    """

    id: str
    request: str
    world: Workspace
    entry_point: str
    visible: Checks | None
    hidden: Checks
    calls: tuple[Call, ...]
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def latency_seed(self) -> int:
        """See :class:`~agent_gym.env.Task`."""
        return int.from_bytes(blake2b(self.id.encode(), digest_size=4).digest(), "big")


def subset(checks: Checks, number: int) -> Checks:
    """Test ``number``, from 1, alone."""
    at = slice(number - 1, number)
    if isinstance(checks, Asserts):
        return replace(checks, statements=checks.statements[at])
    if isinstance(checks, Suite):
        return only(checks, checks.ids[at])
    if isinstance(checks, Scripts):
        return replace(checks, tests=checks.tests[at])
    return Computed(checks.calls[at]) if isinstance(checks, Computed) else checks[at]


def only(suite: Suite, ids: tuple[str, ...]) -> Suite:
    return replace(suite, ids=ids, skipped=(*suite.skipped, *(name for name in suite.ids if name not in ids)))


def count(checks: Checks | None) -> int:
    """How many tests there are."""
    if checks is None or isinstance(checks, tuple):
        return len(checks or ())
    if isinstance(checks, Asserts):
        return len(checks.statements)
    if isinstance(checks, Suite):
        return len(checks.ids)
    return len(checks.tests if isinstance(checks, Scripts) else checks.calls)


def write_all(files: Mapping[str, str], before: Mapping[str, str]) -> tuple[Call, ...]:
    return tuple(
        Call("write_file", {"path": path, "text": text}) for path, text in files.items() if before.get(path) != text
    )


class Bounds(Own):
    """``limits`` of a record."""

    time_limit: float | None = Field(None, ge=1.0, le=3600.0)
    memory_mb: int | None = Field(None, ge=32, le=65536)
    disk_mb: int | None = Field(None, ge=1, le=65536)
    output_mb: int | None = Field(None, ge=1, le=64)


class _Own(Own):
    id: Text = Field(min_length=1)
    request: Text
    files: dict[Text, Text] = Field(min_length=1)
    entry_point: Text = ""
    checker: Text
    visible: list[Any] | None = None
    hidden: list[Any] = Field(min_length=1)
    solution: dict[Text, Text]
    limits: Bounds | None = None


class _Cases(_Own):
    atol: float = Field(0.0, ge=0.0)
    rtol: float = Field(0.0, ge=0.0)
    lists: bool = False


class _Scripts(_Own):
    atol: float = Field(0.0, ge=0.0)
    rtol: float = Field(0.0, ge=0.0)


class _Statements(_Own):
    visible: list[Text] | None = None
    hidden: list[Text] = Field(min_length=1)


class _Asserts(_Statements):
    names: list[Text]
    setup: Text = ""


class _Suite(_Statements):
    test_files: dict[Text, Text]


CHECKERS: dict[str, type[_Own]] = {
    "cases": _Cases, "asserts": _Asserts, "unittest": _Suite, "pytest": _Suite, "stdin": _Scripts,
}  # fmt: skip


def own_task(record: dict[str, Any]) -> CodeTask:
    """The task of a record of our own form.

    Raises:
        ValueError: In one sentence, if it is none.
    """
    if record["checker"] not in list(CHECKERS):
        raise ValueError(f"checker {record['checker']!r}: choose {', '.join(map(repr, CHECKERS))}")
    own = checked(CHECKERS[record["checker"]], record)
    limits = own.limits.model_dump(exclude_none=True) if own.limits else {}
    hidden, visible = (_checks(own, name, limits.get("output_mb", 1)) for name in ("hidden", "visible"))
    entry_point = own.entry_point
    if isinstance(own, _Scripts) and not entry_point:
        entry_point = f"{next(iter(own.files)).removesuffix('.py').replace('/', '.')}:"
    assert hidden is not None
    return CodeTask(
        own.id, own.request, Workspace(own.files), entry_point, visible, hidden, write_all(own.solution, own.files),
        limits,
    )  # fmt: skip


def _checks(own: _Own, name: str, output_mb: int) -> Checks | None:
    """The ``hidden`` or the ``visible`` tests; None where there are none."""
    tests = getattr(own, name)
    if not tests:
        return None
    if isinstance(own, _Asserts):
        if not own.entry_point:
            raise ValueError("the key 'entry_point' is missing")
        return Asserts(tuple(tests), tuple(own.names), own.setup)
    if isinstance(own, _Suite):
        every = tuple(dict.fromkeys(map(_test_id, [*own.hidden, *(own.visible or ())])))
        return only(Suite(own.test_files, every), tuple(map(_test_id, tests)))
    if isinstance(own, _Scripts):
        pairs = [checked(_Script, test, f"{name}[{at}]") for at, test in enumerate(tests)]
        return Scripts(tuple((pair.input, pair.output) for pair in pairs), own.atol, own.rtol)
    assert isinstance(own, _Cases)
    return tuple(_case(test, f"{name}[{at}]", own, output_mb) for at, test in enumerate(tests))


def _test_id(name: str) -> str:
    """``test_a.py::Class::test[1-2]``, as pytest names a test, in the form ``test_a.Class.test``."""
    path, *parts = name.partition("[")[0].split("::")
    return ".".join([path.removesuffix(".py").replace("/", "."), *parts]) if parts else name


class _Script(Own):
    input: Text
    output: Text


class _Case(Own):
    args: Any
    expected: Any = None
    raises: Text = Field("", min_length=1)
    python: bool = False
    entry_point: Text | None = None
    atol: float | None = Field(None, ge=0.0)
    rtol: float | None = Field(None, ge=0.0)
    lists: bool | None = None


def _case(value: Any, where: str, own: _Cases, output_mb: int) -> Test:
    """``{"args": [...], "expected": ...}`` in JSON, or both as Python literals in strings with ``"python": true``."""
    case = checked(_Case, value, where)
    if ("expected" in case.model_fields_set) == ("raises" in case.model_fields_set):
        raise ValueError(f"{where} needs one of the keys 'expected' and 'raises'")
    if not own.entry_point and ":" not in (case.entry_point or ""):
        raise ValueError("the key 'entry_point' is missing")
    args, expected = case.args, case.expected
    if case.python:
        args = _literal(args, f"{where}.args")
        expected = None if case.raises else _literal(expected, f"{where}.expected")
    if not isinstance(args, list | tuple):
        raise ValueError(f"{where}.args should be a list, one entry a positional argument")
    for what, one, limit in (("args", args, ARGUMENT_BYTES), ("expected", expected, output_mb << 20)):
        try:
            plain = same(decode(encode(one, limit)), one)
        except ValueError as error:
            raise ValueError(f"{where}.{what} does not fit through the sandbox's channel: {error}") from None
        if not plain:
            raise ValueError(f"{where}.{what} must be plain data without NaN")
    atol, rtol, lists = (
        getattr(own if getattr(case, name) is None else case, name) for name in ("atol", "rtol", "lists")
    )
    return Test(
        tuple(args), Raises(case.raises) if case.raises else expected, case.entry_point, None, atol, rtol, lists
    )


def check_arguments(asserts: Asserts) -> None:
    """See that no statement hands a function to the submission: only data goes into the sandbox.

    Raises:
        ValueError: Naming the first that does.
    """
    defined = {
        node.name
        for code in (asserts.setup, *asserts.statements)
        for node in ast.walk(parsed(code, f"the test code {code!r:.80}"))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for statement in asserts.statements:
        tree = parsed(statement, f"the test code {statement!r:.80}")
        bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in asserts.names):
                continue
            left: list[ast.AST] = [*call.args, *(keyword.value for keyword in call.keywords)]
            while left:
                part = left.pop()
                if isinstance(part, ast.List | ast.Tuple | ast.Set | ast.Dict | ast.Starred):
                    left += ast.iter_child_nodes(part)
                name = part.id if isinstance(part, ast.Name) and part.id not in bound else ""
                if isinstance(part, ast.Lambda) or name in defined or callable(getattr(builtins, name, None)):
                    raise ValueError(f"the test {statement!r:.80} hands {call.func.id} a function, not plain data")


def _literal(text: Any, where: str) -> Any:
    try:
        return ast.literal_eval(syntax_tree(text.strip(), "eval") if isinstance(text, str) else text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{where} should be a string that holds a Python literal, not {text!r:.80}") from None


def parsed(code: str, what: str) -> ast.Module:
    try:
        return syntax_tree(code)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} is not Python: {error}") from None
