"""Runs unittest files and pytest functions in the submission's own process, where it could forge anything: the verdict
is weak.

What is cheap to notice is noticed: unittest or the builtins patched, a result object whose ``==`` says yes to
everything, tests that vanish. Every comparison that stands in a test file is rewritten in its syntax tree, so that
plain data equals plain data only. The standard library is all this file needs.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.abc
import importlib.util
import inspect
import io
import itertools
import operator
import pathlib
import re
import sys
import tempfile
import types
import unittest
import unittest.case
import unittest.loader
import unittest.result
import unittest.suite
import weakref
from collections import UserDict, UserList, UserString, deque
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

__all__ = ["run"]

PYTEST = types.ModuleType("pytest")
"""A stand-in with what test functions use most: the sandbox holds the standard library alone."""
WATCHED = (builtins, PYTEST, unittest, unittest.case, unittest.loader, unittest.result, unittest.suite)
PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))


def _fingerprint() -> dict[tuple[str, ...], Any]:
    """What every name in the watched modules is bound to, down to the code of functions and the bodies of classes."""
    found: dict[tuple[str, ...], Any] = {}
    for module in WATCHED:
        found["sys.modules", module.__name__] = sys.modules.get(module.__name__)
        for name, value in vars(module).items():
            place = (module.__name__, name)
            found[place] = value
            known = isinstance(value, type) and (module is PYTEST or value.__module__.startswith("unittest"))
            members = vars(value).items() if known else ()
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
    "assertEqual assertEquals assertAlmostEqual assertAlmostEquals assertSequenceEqual assertListEqual "
    "assertTupleEqual assertSetEqual assertDictEqual assertCountEqual assertMultiLineEqual assertIn assertLess "
    "assertLessEqual assertGreater assertGreaterEqual"
).split()

EQUALITY, ORDER = ("__eq__", "__ne__"), ("__lt__", "__le__", "__gt__", "__ge__")
DIFFERENCE = ("__sub__", "__rsub__")
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


def _difference(first: Any, second: Any) -> Any:
    """``first - second``, as in ``abs(f(1) - 1) < 1e-9``: a number that an object of the workspace gives for what lies
    between it and plain data is worth nothing."""
    found = first - second
    if type(found) in PLAIN and _is_spoofed(first, second, DIFFERENCE):
        raise AssertionError(f"{type(second).__name__} is taken from {type(first).__name__}")
    return found


COMPARED = {"__compared__": Compared, "__chained__": _chained, "__difference__": _difference}
"""What the rewritten files call, among the builtins, where a change is noticed."""


class _Rewriter(ast.NodeTransformer):
    """``a == b`` becomes ``__compared__(a) == __compared__(b)``, and ``a - b`` becomes ``__difference__(a, b)``."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return self._call("__difference__", node.left, node.right) if isinstance(node.op, ast.Sub) else node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        operands, names = [node.left, *node.comparators], [type(op).__name__ for op in node.ops]
        if not any(name in ("Is", "IsNot") for name in names):
            node.left = self._call("__compared__", node.left)
            node.comparators = [self._call("__compared__", operand) for operand in node.comparators]
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
        items, others = _items(one), _items(other)
        if items is None or others is None or (id(one), id(other)) in seen:
            continue
        seen.add((id(one), id(other)))
        if all(isinstance(side, list | tuple | deque) for side in (one, other)):
            pairs += zip(items, others, strict=False)
        elif _liars(items, methods) != _liars(others, methods):
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
    spaces = {base: type.__dict__["__dict__"].__get__(base) for base in mro}
    bringing = (next((base for base in mro if name in spaces[base]), object) for name in methods)
    return any(base in DELEGATES for base in mro) or any(map(_is_foreign, bringing))


def run(load: Callable[[], Any], files: dict[str, str], ids: list[str], skipped: list[str]) -> dict[str, str]:
    """Load the workspace, then run the test modules.

    Args:
        load: Writes the files and puts them on the path.
        files: The test files by path.
        ids: The tests that are to run, as ``module.Class.method`` or ``module.function``. All those of unittest run,
            and of the functions those that are named.
        skipped: Ids of tests that are left out.

    Returns:
        Outcome by test id; ``"passed"`` for a pass.
    """
    vars(builtins).update(COMPARED)
    sys.modules["pytest"] = PYTEST
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
    suites = list(dict.fromkeys(_module_of(name, tests) for name in ids))
    loaded = [unittest.defaultTestLoader.loadTestsFromName(name) for name in suites]
    cases = [case for case in _cases(loaded) if case.id() not in skipped]
    known = {case.id() for case in cases}
    functions = [_Function(name, _module_of(name, tests)) for name in ids if name not in known and name not in skipped]
    for case in cases:
        if _is_foreign_case(case, tests):
            tampered.append(f"a base class of {case.id()}")
        for name in STRICT:
            if hasattr(case, name):
                setattr(case, name, _Strict(name, getattr(case, name)))
    cases += [function for function in functions if function.is_there()]
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
    if not type.__dict__["__flags__"].__get__(kind) & HEAP_TYPE or kind is Approx:
        return False
    name = type.__dict__["__name__"].__get__(kind)
    module = sys.modules.get(kind.__module__) if isinstance(kind.__module__, str) else None
    path = getattr(module, "__file__", "") or ""
    own = getattr(module, name, None) is not kind or "/workspace/" in path or kind.__module__ == "__main__"
    return own or kind.__module__ == "unittest.mock"  # its ANY is equal to everything


def _module_of(name: str, tests: list[str]) -> str:
    """The test module that a test is in."""
    of = (test for test in sorted(tests, key=len, reverse=True) if name.startswith(f"{test}."))
    return next(of, name.rpartition(".")[0].rpartition(".")[0])


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


# ---- pytest's functions --------------------------------------------------------------------------------------------


class _Function(unittest.TestCase):
    """A test function, or a method of a class that is no ``TestCase``: each set of parameters in turn.

    Args:
        name: Its id.
        module: The module that it is in, imported.
    """

    def __init__(self, name: str, module: str) -> None:
        super().__init__("runTest")
        self._name, self._module = name, sys.modules.get(module)
        self._path = name.removeprefix(f"{module}.").split(".")

    def id(self) -> str:
        return self._name

    def is_there(self) -> bool:
        """Whether the module has it."""
        return callable(self._found())

    def _found(self) -> Any:
        found: Any = self._module
        for part in self._path:
            found = getattr(found, part, None)
        return None if isinstance(found, type) else found

    def runTest(self) -> None:
        function = self._found()
        owner = getattr(self._module, self._path[0])
        both = (owner,) if owner is function else (owner, function)
        marks = [mark for one in both for mark in getattr(one, "__marks__", ())]
        for name, args, kwargs in marks:
            if name == "skip" or (name == "skipif" and args and args[0]):
                raise unittest.SkipTest(str(kwargs.get("reason", "")))
        sets = [_parameters(*args[:2]) for name, args, _ in marks if name == "parametrize"]
        for chosen in itertools.product(*sets):
            values = {key: value for one in chosen for key, value in one.items()}
            try:
                self._once(function, owner, values)
            except AssertionError as error:
                error.args = (f"{error}{f' with {values!r:.200}' if values else ''}",)
                raise

    def _once(self, function: Any, owner: Any, values: dict[str, Any]) -> None:
        with contextlib.ExitStack() as stack:
            bound: Any = function
            if owner is not function:
                instance = owner()
                bound = getattr(instance, self._path[-1])
                for name, then in (("setup_method", _at_once), ("teardown_method", stack.callback)):
                    if hasattr(instance, name):
                        method: Any = getattr(instance, name)
                        then(method, *[bound][: len(inspect.signature(method).parameters)])
            made: dict[str, Any] = dict(values)
            everywhere = [n for n, f in vars(self._module).items() if getattr(f, "__fixture__", {}).get("autouse")]
            for name in (*everywhere, *inspect.signature(bound).parameters):
                self._fixture(name, made, stack)
            bound(**{name: made[name] for name in inspect.signature(bound).parameters})

    def _fixture(self, name: str, made: dict[str, Any], stack: contextlib.ExitStack) -> None:
        """Make a fixture, and what it asks for, once a test."""
        if name in made:
            return
        function: Any = getattr(self._module, name, None)
        if not hasattr(function, "__fixture__"):
            if name not in FIXTURES:
                raise LookupError(f"there is no fixture {name!r}; built in are {', '.join(FIXTURES)}")
            made[name] = stack.enter_context(FIXTURES[name]())
            return
        asked = list(inspect.signature(function).parameters)
        for other in asked:
            self._fixture(other, made, stack)
        arguments = {other: made[other] for other in asked}
        if inspect.isgeneratorfunction(function):
            made[name] = stack.enter_context(contextlib.contextmanager(function)(**arguments))
        else:
            made[name] = function(**arguments)


def _at_once(function: Any, *args: Any) -> Any:
    return function(*args)


def _parameters(names: Any, sets: Any) -> list[dict[str, Any]]:
    """The sets of values of ``@pytest.mark.parametrize``."""
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    found = []
    for values in sets:
        values = values.values if isinstance(values, _Set) else values if len(keys) > 1 else (values,)
        found.append(dict(zip(keys, values, strict=True)))
    return found


class _Set:
    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values


@contextlib.contextmanager
def _tmp_path() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


class _Captured:
    def __init__(self, out: io.StringIO, err: io.StringIO) -> None:
        self._streams = (out, err)

    def readouterr(self) -> Any:
        texts = [stream.getvalue() for stream in self._streams]
        for stream in self._streams:
            stream.seek(0)
            stream.truncate()
        return types.SimpleNamespace(out=texts[0], err=texts[1])


@contextlib.contextmanager
def _capsys() -> Iterator[_Captured]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield _Captured(out, err)


FIXTURES: dict[str, Any] = {"tmp_path": _tmp_path, "capsys": _capsys}


class Raises:
    """``pytest.raises``: as a context, or with the function to call."""

    value: Any = None

    def __init__(self, expected: Any, match: str | None = None) -> None:
        self.expected, self.pattern = expected, match

    def __enter__(self) -> Raises:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if kind is None:
            raise AssertionError(f"{self.expected!r} was not raised")
        if not issubclass(kind, self.expected):
            return False
        self.value, self.type = error, kind
        if self.pattern is not None:
            self.match(self.pattern)
        return True

    def match(self, pattern: str) -> bool:
        if not re.search(pattern, str(self.value)):
            raise AssertionError(f"{str(self.value)!r} does not match {pattern!r}")
        return True


def _raises(expected: Any, function: Any = None, *args: Any, match: str | None = None, **kwargs: Any) -> Raises:
    context = Raises(expected, match)
    if function is not None:
        with context:
            function(*args, **kwargs)
    return context


class Approx:
    """``pytest.approx``: equal to numbers, and lists, tuples and dicts of numbers, that are near."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None) -> None:
        self.expected, self.rel, self.abs = expected, rel, abs

    def __repr__(self) -> str:
        return f"approx({self.expected!r})"

    def __eq__(self, found: Any) -> bool:
        expected = self.expected
        if isinstance(expected, dict):
            return isinstance(found, dict) and found.keys() == expected.keys() and all(
                self._near(found[key], value) for key, value in expected.items()
            )  # fmt: skip
        if isinstance(expected, list | tuple):
            return isinstance(found, list | tuple) and len(found) == len(expected) and all(
                map(self._near, found, expected)
            )  # fmt: skip
        return self._near(found, expected)

    def _near(self, found: Any, expected: Any) -> bool:
        if _is_foreign(type(found)):
            return False
        if isinstance(expected, str | None) or isinstance(found, str | None) or found == expected:
            return bool(found == expected)
        if self.rel is None and self.abs is not None:
            return bool(abs(found - expected) <= self.abs)
        rel, least = 1e-6 if self.rel is None else self.rel, 1e-12 if self.abs is None else self.abs
        return bool(abs(found - expected) <= max(rel * abs(expected), least) < float("inf"))


class _Mark:
    def __getattr__(self, name: str) -> Any:
        def mark(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and not kwargs and name != "parametrize" and callable(args[0]):
                return args[0] if name != "skip" else mark()(args[0])
            if "argvalues" in kwargs:
                args = (kwargs.get("argnames", args[0] if args else ""), kwargs["argvalues"])

            def put(function: Any) -> Any:
                function.__marks__ = [*getattr(function, "__marks__", ()), (name, args, kwargs)]
                return function

            return put

        return mark


def _fixture(function: Any = None, **options: Any) -> Any:
    def put(function: Any) -> Any:
        function.__fixture__ = options
        return function

    return put if function is None else put(function)


def _fail(reason: str = "", pytrace: bool = True) -> None:
    raise AssertionError(reason)


def _skip(reason: str = "") -> None:
    raise unittest.SkipTest(reason)


vars(PYTEST).update(
    raises=_raises, approx=Approx, mark=_Mark(), fixture=_fixture, param=lambda *values, **_: _Set(values), fail=_fail,
    skip=_skip,
)  # fmt: skip
