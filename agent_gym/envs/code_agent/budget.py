"""Running library code in this process under a deterministic bound on the executed lines.

Only for the library's own programs and their mutants: nothing here is a sandbox.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from types import CodeType, FrameType, ModuleType
from typing import Any, Protocol

# ("value", value) | ("raised", name of the exception type) | ("endless",)
Outcome = tuple[Any, ...]

# Depth of calls at which a RecursionError is raised, the same whatever stack the caller stands on.
MAX_DEPTH = 150
# A local value longer than this (an int: more bits) ends a case as endless, before doubling fills the memory.
# The locals are looked at every few lines, as a value may be squared on each.
MAX_SIZE = 20_000
_LOOK_EVERY = 4
_MARK = "<program>/"


class CallLike(Protocol):
    """What a case has: see `agent_gym.envs.code_agent.inputs.Case`."""

    @property
    def entry_point(self) -> str: ...

    @property
    def args(self) -> tuple[Any, ...]: ...


class _Endless(BaseException):
    """Raised by the tracer; not an Exception, so that no except clause of a program stops it."""


class _Tracer:
    """Counts the lines and calls of program code, and the depth of its calls."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.depth = 0
        self.lines = 0

    def enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(_MARK):
            return None
        # Nothing is raised here: a generator that is thrown away is entered too, and an exception in it would be
        # ignored after it has ended the tracing, so that an endless loop would never end.
        self.depth += 1
        self.left -= 1
        return self.step

    def step(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "return":
            self.depth -= 1
        elif event == "line":
            self.left -= 1
            if self.depth > MAX_DEPTH:
                raise RecursionError
            self.lines += 1
            if self.left < 0 or (self.lines % _LOOK_EVERY == 0 and _too_large(frame.f_locals)):
                raise _Endless
        return self.step


def _too_large(variables: Mapping[str, Any]) -> bool:
    for value in variables.values():
        if isinstance(value, int):
            if value.bit_length() > MAX_SIZE:
                return True
        elif isinstance(value, str | list | tuple | dict | set) and len(value) > MAX_SIZE:
            return True
    return False


def _is_plain(value: Any, depth: int = 0) -> bool:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return True
    if depth > 50:  # a list that holds itself
        return False
    if kind in (list, tuple, set):
        return all(_is_plain(item, depth + 1) for item in value)
    if kind is dict:
        return all(_is_plain(key, depth + 1) and _is_plain(item, depth + 1) for key, item in value.items())
    return False


class _Program:
    """Fresh modules of one program; they are never in `sys.modules`."""

    def __init__(self, codes: Mapping[str, CodeType]) -> None:
        self.codes = codes
        self.modules: dict[str, ModuleType] = {}

    def import_module(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in self.codes:
            return builtins.__import__(name, *args, **kwargs)
        if name not in self.modules:
            module = ModuleType(name)
            module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self.import_module}
            self.modules[name] = module
            exec(self.codes[name], module.__dict__)
        return self.modules[name]


def _run_case(codes: Mapping[str, CodeType], case: CallLike, budget: int) -> Outcome:
    module_name, _, function_name = case.entry_point.partition(":")
    arguments = deepcopy(case.args)
    program = _Program(codes)
    tracer = _Tracer(budget)
    before = sys.gettrace()
    sys.settrace(tracer.enter)
    try:
        value = getattr(program.import_module(module_name), function_name)(*arguments)
    except _Endless:
        return ("endless",)
    except Exception as error:
        return ("raised", type(error).__name__)
    finally:
        sys.settrace(before)
    return ("value", value) if _is_plain(value) else ("raised", "TypeError")


def line_budget_run(files: Mapping[str, str], cases: Iterable[CallLike], budget: int = 20_000) -> list[Outcome]:
    """The outcome of every case on a program, each in fresh module namespaces and with deep copies of its arguments.

    Args:
        files: Path at the root of the workspace ("name.py") -> source text; they import each other by plain name.
        cases: The calls; "module:function" names a file without ".py" and a function of it.
        budget: Lines and calls of the program (its import included) that one case may execute.

    Returns:
        For each case, in order, one of

        * `("value", value)`: what the function returned;
        * `("raised", name)`: the name of the type of an exception, also of one raised on import (then for every
          case). A call depth of `MAX_DEPTH` is a `RecursionError`, and a returned value that is not plain data
          (None, bool, int, float, str, list, tuple, dict, set) a `TypeError`;
        * `("endless",)`: the budget was used up, or a local value grew beyond `MAX_SIZE`.
    """
    cases = list(cases)
    codes = {}
    for path, source in files.items():
        try:
            codes[path.removesuffix(".py")] = compile(source, _MARK + path, "exec")
        except (SyntaxError, ValueError) as error:
            return [("raised", type(error).__name__)] * len(cases)
    return [_run_case(codes, case, budget) for case in cases]
