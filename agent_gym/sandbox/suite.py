"""Runs unittest files in the submission's own process, where a submission could forge anything: the verdict is weak.

What is cheap to notice is noticed: unittest or the builtins patched, a result object whose ``==`` says yes to
everything, tests that vanish. The standard library is all this file needs.
"""

from __future__ import annotations

import builtins
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


def _fingerprint() -> dict[str, Any]:
    """What every name in the watched modules is bound to, down to the code of functions and the bodies of classes."""
    found: dict[str, Any] = {}
    for module in WATCHED:
        for name, value in vars(module).items():
            if name == "_" or isinstance(value, types.ModuleType):  # a submodule, imported later
                continue
            found[f"{module.__name__}.{name}"] = value
            members = vars(value).items() if isinstance(value, type) and value.__module__.startswith("unittest") else ()
            for key, member in (*members, ("", value)):
                if isinstance(member, types.FunctionType):
                    found[f"{module.__name__}.{name}.{key}"] = member
                    found[f"{module.__name__}.{name}.{key}()"] = (member.__code__, member.__defaults__)
    return found


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = before.keys() | after.keys()
    return sorted(name for name in names if before.get(name, names) is not after.get(name, names)
                  and not (name.endswith("()") and name in before and name in after
                           and all(a is b for a, b in zip(before[name], after[name], strict=True))))  # fmt: skip


class _Strict:
    """An ``assertEqual`` for results: plain data equals plain data only."""

    def __init__(self, loose: Callable[..., None], foreign: Callable[[type], bool]) -> None:
        self.loose, self.foreign = loose, foreign

    def __call__(self, first: Any, second: Any, msg: Any = None) -> None:
        plain = [type(side) in PLAIN for side in (first, second)]
        if plain[0] != plain[1] and self.foreign(type(second if plain[0] else first)):
            raise AssertionError(f"{type(first).__name__} is compared with {type(second).__name__}")
        self.loose(first, second, msg)


def run(load: Callable[[], Any], suites: list[str]) -> dict[str, str]:
    """Load the workspace, then run the test modules.

    Args:
        load: Writes the files and puts them on the path.
        suites: Names of test modules.

    Returns:
        Outcome by test id; ``"passed"`` for a pass.
    """
    before = _fingerprint()
    outcomes: dict[str, str] = {}

    class Result(unittest.TestResult):
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
    result = Result()
    tampered: list[str] = []
    for case in _cases(loaded):
        tampered = tampered or _differences(before, _fingerprint())
        case.assertEqual = case.assertEquals = _Strict(case.assertEqual, _is_foreign)  # type: ignore[assignment]
        case(result)
        tampered = tampered or _differences(before, _fingerprint())
    if tampered:
        return {name: f"{tampered[0]} was changed" for name in outcomes}
    return outcomes


def _is_foreign(kind: type) -> bool:
    """Whether a class comes from the workspace rather than from the standard library."""
    import sys

    path = getattr(sys.modules.get(kind.__module__), "__file__", "") or ""
    return "/work/" in path or kind.__module__ == "__main__"


def _cases(suites: list[Any]) -> list[Any]:
    found: list[Any] = []
    for suite in suites:
        found += _cases(list(suite)) if isinstance(suite, unittest.TestSuite) else [suite]
    return found
