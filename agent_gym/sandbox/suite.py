"""Runs unittest files in the submission's own process, where a submission could forge anything: the verdict is weak.

What is cheap to notice is noticed: unittest or the builtins patched, a result object whose ``==`` says yes to
everything, tests that vanish. Every comparison that stands in a test file is rewritten in its syntax tree, so that plain
data equals plain data only. The standard library is all this file needs.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.util
import operator
import sys
import types
import unittest
import unittest.case
import unittest.loader
import unittest.result
import unittest.suite
import weakref
from collections import UserDict, UserList, UserString, deque
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

__all__ = ["run"]

WATCHED = (builtins, unittest, unittest.case, unittest.loader, unittest.result, unittest.suite)
PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))


def _fingerprint() -> dict[tuple[str, ...], Any]:
    """What every name in the watched modules is bound to, down to the code of functions and the bodies of classes."""
    found: dict[tuple[str, ...], Any] = {}
    for module in WATCHED:
        found["sys.modules", module.__name__] = sys.modules.get(module.__name__)
        for name, value in vars(module).items():
            place = (module.__name__, name)
            found[place] = value
            members = vars(value).items() if isinstance(value, type) and value.__module__.startswith("unittest") else ()
            for key, member in (*members, ("", value)):
                found[*place, key] = member
                if isinstance(member, types.FunctionType):
                    found[*place, key, "code"] = member.__code__
                    found[*place, key, "defaults"] = member.__defaults__
    return found


def _differences(before: dict[tuple[str, ...], Any], after: dict[tuple[str, ...], Any]) -> list[str]:
    """What was rebound or removed, and what was added to a class. A new name in a module is not: unittest itself loads
    some of its parts late."""
    changed = [place for place, value in before.items() if after.get(place, before) is not value]
    added = [place for place in after.keys() - before.keys() if place[:2] in before and place[2] not in NOTED]
    return sorted(".".join(place) for place in changed + added if place != ("builtins", "_"))


NOTED = ("_classSetupFailed", "tearDown_exceptions")  # what unittest notes on the class of a test
HEAP_TYPE = 1 << 9  # what a class statement makes

STRICT = (
    "assertEqual assertEquals assertAlmostEqual assertAlmostEquals assertSequenceEqual assertListEqual assertTupleEqual "
    "assertSetEqual assertDictEqual assertCountEqual assertMultiLineEqual assertIn assertLess assertLessEqual "
    "assertGreater assertGreaterEqual"
).split()

EQUALITY, ORDER = ("__eq__", "__ne__"), ("__lt__", "__le__", "__gt__", "__ge__")
DELEGATES = (weakref.ProxyType, weakref.CallableProxyType, types.MappingProxyType, UserDict, UserList, UserString)
"""These ask what they hold."""
CONTAINERS: tuple[Any, ...] = (list, tuple, deque, dict, set, frozenset, type({}.keys()))


class _Strict:
    """An assertion of equality or order in which plain data is compared with plain data only."""

    def __init__(self, name: str, loose: Callable[..., None]) -> None:
        self.name, self.loose = name, loose

    def __call__(self, first: Any, second: Any, *args: Any, **kwargs: Any) -> None:
        if self.name == "assertIn":
            if first in second and not Compared(first).is_in(second):
                raise AssertionError(f"{type(first).__name__} is compared with what is in a {type(second).__name__}")
        elif _is_spoofed(first, second, ORDER if "Less" in self.name or "Greater" in self.name else EQUALITY):
            raise AssertionError(f"{type(first).__name__} is compared with {type(second).__name__}")
        self.loose(first, second, *args, **kwargs)


class Compared:
    """An operand of a comparison in a test file. Plain data neither equals an object of the workspace that brings its
    own ``==``, nor is it less or greater than one that brings its own order."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: Any) -> Any:
        return False if _is_spoofed(self.value, other.value, EQUALITY) else self.value == other.value

    def __ne__(self, other: Any) -> Any:
        return True if _is_spoofed(self.value, other.value, EQUALITY) else self.value != other.value

    def _ordered(self, other: Any, compare: Callable[[Any, Any], Any]) -> Any:
        if _is_spoofed(self.value, other.value, ORDER):
            raise AssertionError(f"{type(self.value).__name__} is compared with {type(other.value).__name__}")
        return compare(self.value, other.value)

    def __lt__(self, other: Any) -> Any:
        return self._ordered(other, operator.lt)

    def __le__(self, other: Any) -> Any:
        return self._ordered(other, operator.le)

    def __gt__(self, other: Any) -> Any:
        return self._ordered(other, operator.gt)

    def __ge__(self, other: Any) -> Any:
        return self._ordered(other, operator.ge)

    def __contains__(self, item: Compared) -> bool:
        return item.is_in(self.value)

    def is_in(self, container: Any) -> bool:
        """``value in container``; in a container of Python's, for an item that equals it."""
        if self.value not in container:
            return False
        items = None if _is_foreign(type(container)) else _items(container)
        return items is None or any(item is self.value or Compared(item) == self for item in items)


def _chained(operators: Sequence[str], first: Any, *others: Callable[[], Any]) -> Any:
    """A chain of comparisons with an ``is`` in it, which asks for the operands themselves."""
    result: Any = True
    for name, other in zip(operators, others, strict=True):
        second = other()
        if name in ("Is", "IsNot"):
            result = (first is second) == (name == "Is")
        elif name in ("In", "NotIn"):
            result = Compared(first).is_in(second) == (name == "In")
        else:
            method = {"Eq": "eq", "NotEq": "ne", "Lt": "lt", "LtE": "le", "Gt": "gt", "GtE": "ge"}[name]
            result = getattr(operator, method)(Compared(first), Compared(second))
        if not result:
            break
        first = second
    return result


COMPARED = {"__compared__": Compared, "__chained__": _chained}
"""What the rewritten files call, among the builtins, where a change is noticed."""


class _Rewriter(ast.NodeTransformer):
    """``a == b`` becomes ``__compared__(a) == __compared__(b)``."""

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        operands, names = [node.left, *node.comparators], [type(op).__name__ for op in node.ops]
        if not any(name in ("Is", "IsNot") for name in names):
            node.left, *node.comparators = (self._call("__compared__", operand) for operand in operands)
            return node
        if len(names) == 1:
            return node  # an identity cannot be faked
        empty = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        later = [ast.Lambda(args=empty, body=operand) for operand in operands[1:]]
        listed = ast.Tuple(elts=[ast.Constant(value=name) for name in names], ctx=ast.Load())
        return self._call("__chained__", listed, operands[0], *later)

    @staticmethod
    def _call(name: str, *args: ast.expr) -> ast.Call:
        return ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=list(args), keywords=[])


class _Files(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the test files, rewritten before any of them, and so the submission, runs.

    Args:
        files: Text by path.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self.codes: dict[str, Any] = {}
        for path, text in files.items():
            try:
                tree = ast.fix_missing_locations(_Rewriter().visit(ast.parse(text)))
                self.codes[module_name(path)] = compile(tree, path, "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                continue  # whoever imports it is told why
        self.paths = {module_name(path): path for path in files}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.codes:
            return None
        return importlib.util.spec_from_file_location(fullname, self.paths[fullname], loader=self)

    def exec_module(self, module: types.ModuleType) -> None:
        exec(self.codes[module.__name__], module.__dict__)


def module_name(path: str) -> str:
    """As a test file is imported: ``"tests/test_a.py"`` is ``"tests.test_a"``."""
    return path.removesuffix(".py").replace("/", ".")


def _is_spoofed(first: Any, second: Any, methods: tuple[str, ...]) -> bool:
    """Whether, here or somewhere inside, an object of the workspace with methods of its own stands against one that has
    none of that kind."""
    pairs, seen = [(first, second)], set()
    while pairs:
        one, other = pairs.pop()
        if _lies(type(one), methods) != _lies(type(other), methods):
            return True
        parts = _items(one), _items(other)
        if None in parts or (id(one), id(other)) in seen:
            continue
        seen.add((id(one), id(other)))
        if all(isinstance(side, list | tuple | deque) for side in (one, other)):
            pairs += zip(*parts, strict=False)
        elif _liars(parts[0], methods) != _liars(parts[1], methods):
            return True
        elif isinstance(one, dict) and isinstance(other, dict):
            values = dict(dict.items(other))
            pairs += [(value, values[key]) for key, value in dict.items(one) if key in values]
    return False


def _items(container: Any) -> list[Any] | None:
    """What a container of Python's, or of a class derived from one, holds, whatever its ``__iter__`` says."""
    kind = next((kind for kind in CONTAINERS if isinstance(container, kind)), None)
    return None if kind is None else list(kind.__iter__(container))


def _liars(items: list[Any], methods: tuple[str, ...]) -> int:
    return sum(_lies(type(item), methods) for item in items)


def _lies(kind: type, methods: tuple[str, ...]) -> bool:
    """Whether a class of the workspace brings one of the methods itself, or asks something else."""
    if kind in PLAIN:
        return False
    mro = type.__dict__["__mro__"].__get__(kind)
    bringing = (next(base for base in mro if name in type.__dict__["__dict__"].__get__(base)) for name in methods)
    return any(base in DELEGATES for base in mro) or any(map(_is_foreign, bringing))


def run(load: Callable[[], Any], suites: list[str], files: dict[str, str], skipped: list[str]) -> dict[str, str]:
    """Load the workspace, then run the test modules.

    Args:
        load: Writes the files and puts them on the path.
        suites: Names of test modules.
        files: The test files by path.
        skipped: Ids of tests that are left out.

    Returns:
        Outcome by test id; ``"passed"`` for a pass.
    """
    vars(builtins).update(COMPARED)
    before = _fingerprint()
    tests = [module_name(path) for path in files]
    outcomes: dict[str, str] = {}

    tampered: list[str] = []

    def look() -> None:
        tampered.extend(_differences(before, _fingerprint()))
        shadowed = (name for module in tests for name in COMPARED if name in vars(sys.modules.get(module, ast)))
        tampered.extend(shadowed)

    class Result(unittest.TestResult):
        def startTest(self, test: unittest.TestCase) -> None:
            look()

        def stopTest(self, test: unittest.TestCase) -> None:
            look()

        def addSuccess(self, test: unittest.TestCase) -> None:
            outcomes.setdefault(test.id(), "passed")

        def addError(self, test: unittest.TestCase, err: Any) -> None:
            outcomes[test.id()] = f"{err[0].__name__}: {err[1]}"[:500]

        addFailure = addError

        def addSkip(self, test: unittest.TestCase, reason: str) -> None:
            outcomes[test.id()] = f"skipped: {reason}"[:500]

        def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
            if err is not None:
                self.addError(test, err)

        def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
            outcomes[test.id()] = "failed, as it says it should"

        def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
            outcomes[test.id()] = "passed, though it says it should not"

    load()
    sys.meta_path.insert(0, _Files(files))
    loaded = [unittest.defaultTestLoader.loadTestsFromName(name) for name in suites]
    cases = [case for case in _cases(loaded) if case.id() not in skipped]
    for case in cases:
        if _is_foreign_case(case, tests):
            tampered.append(f"a base class of {case.id()}")
        for name in STRICT:
            if hasattr(case, name):
                setattr(case, name, _Strict(name, getattr(case, name)))
    look()
    outcomes.update((case.id(), "") for case in cases if tampered)
    if not tampered:
        unittest.TestSuite(cases).run(Result())
        look()
    if tampered:
        return dict.fromkeys(outcomes, f"{tampered[0]} was changed")
    return outcomes


def _is_foreign(kind: type) -> bool:
    """Whether a class comes from the workspace rather than from the standard library, whatever it calls its module."""
    if not type.__dict__["__flags__"].__get__(kind) & HEAP_TYPE:
        return False
    name = type.__dict__["__name__"].__get__(kind)
    module = sys.modules.get(kind.__module__) if isinstance(kind.__module__, str) else None
    path = getattr(module, "__file__", "") or ""
    own = getattr(module, name, None) is not kind or "/workspace/" in path or kind.__module__ == "__main__"
    return own or kind.__module__ == "unittest.mock"  # its ANY is equal to everything


def _is_foreign_case(case: unittest.TestCase, tests: list[str]) -> bool:
    """Whether a test inherits from a class that neither unittest nor a test file has."""
    for base in type(case).__mro__:
        module = sys.modules.get(base.__module__)
        known = isinstance(module, types.ModuleType) and getattr(module, base.__name__, None) is base
        if not known or (_is_foreign(base) and base.__module__ not in tests):
            return True
    return False


def _cases(suites: list[Any]) -> list[Any]:
    found: list[Any] = []
    for suite in suites:
        found += _cases(list(suite)) if isinstance(suite, unittest.TestSuite) else [suite]
    return found
