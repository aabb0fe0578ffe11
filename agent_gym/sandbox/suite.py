"""Runs unittest files in the submission's own process, where a submission could forge anything: the verdict is weak.

What is cheap to notice is noticed: unittest or the builtins patched, a result object whose ``==`` says yes to
everything, tests that vanish. The standard library is all this file needs.
"""

from __future__ import annotations

import builtins
import sys
import types
import unittest
import unittest.case
import unittest.loader
import unittest.result
import unittest.suite
from collections.abc import Callable
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
    "assertEqual assertEquals assertAlmostEqual assertSequenceEqual assertListEqual assertTupleEqual assertSetEqual "
    "assertDictEqual assertCountEqual assertMultiLineEqual assertIn"
).split()


class _Strict:
    """An assertion of equality in which plain data equals plain data only."""

    def __init__(self, name: str, loose: Callable[..., None]) -> None:
        self.name, self.loose = name, loose

    def __call__(self, first: Any, second: Any, *args: Any, **kwargs: Any) -> None:
        if self.name == "assertIn":
            if type(second) in PLAIN and type(second) not in (str, bytes):
                for item in second:
                    _refuse_liars(first, item)
        else:
            _refuse_liars(first, second)
        self.loose(first, second, *args, **kwargs)


def _refuse_liars(first: Any, second: Any) -> None:
    """Fail where an object of the workspace with an ``==`` of its own stands against one that has none of that kind."""
    pairs = [(first, second, 0)]
    while pairs:
        one, other, depth = pairs.pop()
        plain = [type(side) in PLAIN for side in (one, other)]
        if not all(plain) and _lies(type(one)) != _lies(type(other)):
            raise AssertionError(f"{type(one).__name__} is compared with {type(other).__name__}")
        if all(plain) and depth < 50:  # a cycle's end
            if all(isinstance(side, list | tuple) for side in (one, other)):
                pairs += [(*pair, depth + 1) for pair in zip(one, other, strict=False)]
            elif type(one) is type(other) is dict:
                pairs += [(value, other[key], depth + 1) for key, value in one.items() if key in other]


def _lies(kind: type) -> bool:
    """Whether a class of the workspace brings its own ``==``."""
    mro = type.__dict__["__mro__"].__get__(kind)
    return _is_foreign(next(base for base in mro if "__eq__" in type.__dict__["__dict__"].__get__(base)))


def run(load: Callable[[], Any], suites: list[str], files: list[str], skipped: list[str]) -> dict[str, str]:
    """Load the workspace, then run the test modules.

    Args:
        load: Writes the files and puts them on the path.
        suites: Names of test modules.
        files: Paths of the test files.
        skipped: Ids of tests that are left out.

    Returns:
        Outcome by test id; ``"passed"`` for a pass.
    """
    before = _fingerprint()
    tests = [path.removesuffix(".py").replace("/", ".") for path in files]
    outcomes: dict[str, str] = {}

    tampered: list[str] = []

    def look() -> None:
        tampered.extend(_differences(before, _fingerprint()))

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
