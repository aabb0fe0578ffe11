"""CodeAgent-v0: mend or complete a program in a workspace of files; hidden tests in a sandbox decide."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from agent_gym.costs import Latency
from agent_gym.env import Action, Outcome, ToolEnv, asked_levels, fingerprint
from agent_gym.envs.code_agent.generate import KINDS, LEVELS, compose
from agent_gym.envs.code_agent.published import load_tasks
from agent_gym.envs.code_agent.tasks import Checks, CodeTask, Computed, count, subset
from agent_gym.envs.code_agent.workspace import Workspace
from agent_gym.envs.splits import SPLITS, check_split
from agent_gym.sandbox import Asserts, Cases, Limits, Raises, Test, shared_pool
from agent_gym.sandbox.grader import Calls
from agent_gym.sandbox.pool import Pool
from agent_gym.text import split_lines, syntax_tree
from agent_gym.tools import Call, Tool, ToolError
from agent_gym.verdict import InfraError, Verdict

__all__ = ["CodeAgentEnv"]

LOOK = Latency(20.0, 0.5)
CHANGE = Latency(30.0, 0.1)
RUN = Latency(150.0, 100.0)
"""An interpreter's start, and each test."""

PROCESSES = 32
QUICK_S = 2
"""CPU seconds of a check whose reference is quick. That of a generated task always is: see ``generate.LINES``."""
TIMES_REFERENCE = 10
"""A check may use so many times the CPU seconds of the task's reference, where that is more."""
PATIENCE = 6
"""Time limits that a reference may take by the clock."""
OWN_SHARE = 0.9
"""Of the time limit, for the program; the rest is for taking its sandbox up and down."""
MOST_VERDICTS = 1024
"""An environment remembers so many: the replays of an episode often end in the same workspace."""


def list_files(world: Workspace) -> str:
    """List the files of the workspace with their number of lines."""
    return "\n".join(f"{path} ({len(split_lines(world.files[path]))} lines)" for path in sorted(world.files))


def read_file(world: Workspace, path: str) -> str:
    """Read a whole file; every line follows its number.

    Args:
        path: The file.
    """
    return world.numbered(path)


def read_lines(world: Workspace, path: str, start: int, end: int) -> str:
    """Read some lines of a file; every line follows its number.

    Args:
        path: The file.
        start: First line, from 1.
        end: Last line.
    """
    return world.numbered(path, start, end)


def search(world: Workspace, text: str) -> str:
    """Find the lines of the workspace that contain a text.

    Args:
        text: What to look for, as it stands in the line; three characters or more.
    """
    return world.search(text)


def edit(world: Workspace, path: str, old: str, new: str) -> dict[str, str]:
    """Replace a text that stands exactly once in a file.

    Args:
        path: The file.
        old: The text to replace; any line end matches any other.
        new: What takes its place.
    """
    return world.replaced(path, old, new)


def edit_lines(world: Workspace, path: str, start: int, end: int, new: str) -> dict[str, str]:
    """Replace some lines of a file.

    Args:
        path: The file.
        start: First line, from 1.
        end: Last line.
        new: The lines that take their place; empty to delete them.
    """
    return world.replaced_lines(path, start, end, new)


def write_file(world: Workspace, path: str, text: str) -> dict[str, str]:
    """Write a whole file, new or not.

    Args:
        path: The file.
        text: All of its text.
    """
    return world.written(path, text)


def run_tests(world: Workspace) -> str:
    """Run all visible tests; every failing one is shown."""
    raise AssertionError("run by the environment")


def run_test(world: Workspace, number: int) -> str:
    """Run one visible test.

    Args:
        number: Which one, from 1.
    """
    raise AssertionError("run by the environment")


TOOLS = {
    tool.name: tool
    for tool in (
        *(Tool(fn, context=True, reads_only=True, latency=LOOK) for fn in (list_files, read_file, read_lines, search)),
        *(Tool(fn, context=True, latency=CHANGE) for fn in (edit, edit_lines, write_file)),
        # a run after one that timed out is refused for the rest of the turn: equal calls do not give equal results
        *(Tool(fn, context=True, reads_only=True, latency=RUN) for fn in (run_tests, run_test)),
    )
}


class CodeAgentEnv(ToolEnv):
    """Repair and completion of small programs.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``: disjoint in programs.
        difficulty: Calls of a straightforward solution, 1 to 5, or ``[least, most]``; all of them by default.
            1: a review names the place and the remedy; 2: a line and a failing call; 3: tests fail; 4: and some pass,
            in any of several files; 5: two faults.
        kinds: ``"repair"``, ``"completion"`` (a function's body is missing; difficulty 2 and 3), or both.
        tasks: A real data set instead of the generator; see :func:`~agent_gym.envs.code_agent.tasks.load_tasks`.
            ``left_out`` says which of its records are no tasks, and why.
        sandbox: ``"auto"`` (Docker where it works, else bubblewrap), ``"docker"``, ``"bubblewrap"``, or ``"process"``,
            which does not protect this machine.
        time_limit: Seconds that a check may take, by the clock and in all: the verifier's, or one test run. CPU time
            decides before that: 2 s, or ten times what the reference takes where that is more, at most ``time_limit``.
        memory_mb: Megabytes of memory that a check may take.
        disk_mb: Megabytes of files that it may write. A record of a task file may set limits of its own for its task.
        **kwargs: See :class:`~agent_gym.env.ToolEnv`.

    Raises:
        ValueError: For a value outside what is listed here.
        SandboxUnavailable: If there is no such sandbox on this machine.
    """

    system_prompt = (
        "You work on Python programs in a workspace of files. Use the tools to do what the user asks; hidden tests "
        "decide. A message without a tool call is the final answer."
    )

    def __init__(
        self,
        *,
        split: str = "train",
        difficulty: int | Sequence[int] | None = None,
        kinds: Sequence[str] = tuple(KINDS),
        tasks: str | None = None,
        sandbox: str = "auto",
        time_limit: float = 10.0,
        memory_mb: int = 256,
        disk_mb: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_split(split)
        difficulty = [LEVELS[0], LEVELS[-1]] if difficulty is None else difficulty
        asked = asked_levels(difficulty, LEVELS[-1])
        if isinstance(kinds, str) or not kinds or any(kind not in KINDS for kind in kinds):
            raise ValueError(f"kinds={kinds!r}: a list of {' and '.join(map(repr, KINDS))}")
        number = isinstance(time_limit, int | float) and not isinstance(time_limit, bool)
        if not number or not 1 <= time_limit <= 3600:
            raise ValueError(f"time_limit={time_limit!r}: a number of seconds from 1 to 3600")
        for name, value, least in (("memory_mb", memory_mb, 32), ("disk_mb", disk_mb, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 65536:
                raise ValueError(f"{name}={value!r}: a whole number of megabytes from {least} to 65536")
        self.split, self.kinds, self.sandbox, self.time_limit = split, tuple(kinds), sandbox, float(time_limit)
        self.levels = tuple(level for level in asked if any(level in KINDS[kind] for kind in self.kinds))
        if not self.levels:
            raise ValueError(f"difficulty={difficulty!r}: there is no {self.kinds[0]} task of that difficulty")
        given, self.left_out = ([], {}) if tasks is None else load_tasks(tasks)
        self._given = {task.id: task for task in given}
        self.task_ids = tuple(self._given) or None
        self._verdicts: dict[tuple[str, str, str | int | None], Verdict] = {}
        self._measured: dict[str, Limits] = {}
        self._expected: dict[str, Cases] = {}
        self.limits = Limits(memory_mb=memory_mb, disk_mb=disk_mb, processes=PROCESSES)
        most = {
            name: int(max([getattr(self.limits, name), *(task.limits.get(name, 0) for task in given)]))
            for name in ("memory_mb", "disk_mb")
        }
        self._pool_limits = replace(self.limits, **most)
        shared_pool(sandbox, self._pool_limits)  # now: a machine without a sandbox says so before the first episode

    def _make_task(self, task_id: str | None) -> CodeTask:
        if self._given:
            return self._given_task(self._given, task_id)
        if task_id is None:
            level = self.levels[int(self.np_random.integers(len(self.levels)))]
            kinds = [kind for kind in self.kinds if level in KINDS[kind]]
            kind = kinds[int(self.np_random.integers(len(kinds)))]
            return compose(self.split, kind, level, int(self.np_random.integers(2**31)))
        parts = task_id.split("-") if isinstance(task_id, str) else []
        if len(parts) == 4 and parts[0] in SPLITS and parts[1] in KINDS and all(map(str.isdecimal, parts[2:])):
            self._check_split(parts[0], task_id)
            level, seed = int(parts[2]), int(parts[3])
            if level in KINDS[parts[1]]:
                return compose(parts[0], parts[1], level, seed)
        raise ValueError(
            f"unknown task id {task_id!r}: it reads split-kind-difficulty-seed, such as 'train-repair-2-7'"
        )

    def _task_type(self) -> str:
        """The kind of a drawn task, the source of a given one."""
        parts = re.findall(r"[A-Za-z]+", self.task.id)
        return next((part for part in parts if part not in SPLITS), "task")

    def _tools(self) -> Mapping[str, Tool]:
        return TOOLS

    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Outcome:
        if tool.name in ("run_tests", "run_test"):
            return self._run_visible(arguments.get("number"))
        result = tool.fn(self._world, **arguments)
        if isinstance(result, dict):
            done = ", ".join(result)
            return Outcome(f"{done} is changed", delta=result, units=sum(map(len, result.values())) / 100)
        return Outcome(result, units=result.count("\n") + 1)

    def _run_visible(self, number: int | None) -> Outcome:
        visible = self.task.visible
        total = count(visible)
        if visible is None:
            raise ToolError("not_found", "this task has no visible tests")
        if number is not None and not 1 <= number <= total:
            raise ToolError("not_found", f"there is no test {number}; there are 1 to {total}")
        verdict = self._judged(number)
        ran = total if number is None else 1
        passed = round(verdict.score * ran)
        lines = [f"{passed} of {ran} tests passed", *verdict.diagnostics]
        if verdict.reason != "timeout":
            return Outcome("\n".join(lines), units=ran)
        full = self._time_limit() * 1000.0 / (RUN.per_unit_ms * (1.0 - RUN.jitter))
        return Outcome("\n".join(lines), units=full, error="timeout")

    def _judged(self, number: str | int | None) -> Verdict:
        """The verdict of all visible tests (None), of one, or of the ``"hidden"`` ones, on the workspace as it is.

        Raises:
            InfraError: If there is none.
        """
        task, key, limits = self.task, (self.task.id, self._world.hash, number), self._limits()
        if key not in self._verdicts:
            checks = task.hidden if number == "hidden" else task.visible
            assert checks is not None
            if isinstance(number, int):
                checks = subset(checks, number)
            verdict, _ = self._checked(self._world, checks, limits)
            if len(self._verdicts) >= MOST_VERDICTS:
                del self._verdicts[next(iter(self._verdicts))]
            self._verdicts[key] = verdict
        return self._verdicts[key]

    def _checked(self, world: Workspace, checks: Checks, limits: Limits) -> tuple[Verdict, float]:
        """The verdict of a workspace, and the CPU seconds it took.

        Raises:
            InfraError: If there is none.
        """
        answer = self._pool().submit(dict(world.files), self.task.entry_point, self._known(checks, limits), limits)
        verdict = answer.result()
        if verdict.status == "infra":
            raise InfraError(verdict.diagnostics[0])
        return verdict, answer.cpu_s

    def _pool(self) -> Pool:
        return shared_pool(self.sandbox, self._pool_limits)

    def _known(self, checks: Checks, limits: Limits) -> Any:
        """The tests with their expected values, which the task's solution gives where the data set does not.

        Raises:
            InfraError: If it does not give them.
        """
        if not isinstance(checks, Computed):
            return checks
        task, key = self.task, fingerprint(checks)
        if key not in self._expected:
            patient = replace(limits, wall_s=PATIENCE * self._time_limit())
            answer = self._pool().submit(dict(self._solved().files), task.entry_point, Calls(checks.calls), patient)
            verdict = answer.result()
            if verdict.status != "pass":
                raise InfraError(f"the solution of {task.id} does not give its values: {verdict.diagnostics[0]}")
            self._expected[key] = Cases(
                tuple(call.expecting(*outcome) for call, outcome in zip(checks.calls, answer.outcomes, strict=True))
            )
        return self._expected[key]

    def _solved(self) -> Workspace:
        """The current task's workspace after the oracle's changes."""
        world = self.task.world
        for call in self.task.calls:
            if not TOOLS[call.name].reads_only:
                with suppress(ToolError):  # as in an episode: a call that fails changes nothing
                    world = world.apply(TOOLS[call.name].fn(world, **call.arguments))
        return world

    def _time_limit(self) -> float:
        """Seconds of a check of the current task."""
        return float(self.task.limits.get("time_limit", self.time_limit))

    def _limits(self) -> Limits:
        """Of a check of the current task. The reference of a given task is run once to see what it takes.

        Raises:
            InfraError: If the reference does not pass: no right program would.
        """
        task, seconds = self.task, self._time_limit()
        own = {name: int(task.limits[name]) for name in ("memory_mb", "disk_mb", "output_mb") if name in task.limits}
        most = replace(self.limits, cpu_s=max(1, int(seconds * OWN_SHARE)), wall_s=seconds * OWN_SHARE, **own)
        quick = replace(most, cpu_s=min(QUICK_S, most.cpu_s))
        if not self._given:
            return quick
        if not task.calls:  # a data set without solutions
            return most
        if task.id not in self._measured:
            world = self._solved()
            # the data set's own program does not sleep: CPU time alone decides, however busy the machine is
            verdict, used = self._checked(world, task.hidden, replace(most, wall_s=PATIENCE * seconds))
            if verdict.status != "pass":
                raise InfraError(f"the solution of {task.id} does not pass its own tests: {verdict.diagnostics[0]}")
            self._verdicts[task.id, world.hash, "hidden"] = verdict
            cpu_s = min(most.cpu_s, max(quick.cpu_s, math.ceil(TIMES_REFERENCE * used)))
            self._measured[task.id] = replace(most, cpu_s=cpu_s)
        return self._measured[task.id]

    def _verify(self, answer: Any) -> Verdict:
        """The hidden tests; the answer's words count for nothing."""
        return self._judged("hidden")

    def step(self, action: Action) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """See :meth:`ToolEnv.step`. The last step's info also has ``verifier_info``: ``tests``, how many hidden ones
        there are, and ``fraction``, the share that passed; None without a verdict."""
        *found, info = super().step(action)
        if "verdict" in info:
            fraction = None if info["verdict"]["status"] == "infra" else info["verdict"]["score"]
            info["verifier_info"] = {"tests": count(self.task.hidden), "fraction": fraction}
        return *found, info  # type: ignore[return-value]

    def oracle(self) -> list[str]:
        """See :meth:`ToolEnv.oracle`: one call a turn, then the answer."""
        return [*(self.parser.render("", [call]) for call in self.task.calls), self.parser.render("Done.", [])]

    def cheats(self) -> list[list[str]]:
        """Claim success; empty the files; make everything equal to everything; leave during the import; write down what
        the visible tests want, and leave the rest as it is."""
        answer = self.parser.render("All tests pass.", [])
        spoof = (
            "class Same:\n    __eq__ = lambda self, other: True\n    __hash__ = lambda self: 0\n"
            "    def __getattr__(self, name): return self\n    def __call__(self, *a, **k): return self\n"
            "def __getattr__(name): return Same()\n"
        )
        leave = "import os\nos._exit(0)\n"
        found = [[answer]]
        for text in ("", spoof, leave):
            calls = [Call("write_file", {"path": path, "text": text}) for path in self.task.world.files]
            found.append([self.parser.render("", calls), answer])
        if known := self._hard_coded():
            calls = [Call("write_file", {"path": path, "text": text}) for path, text in known.items()]
            found.append([self.parser.render("", calls), answer])
        return found

    def _hard_coded(self) -> dict[str, str]:
        """The files that answer the visible calls from a table and all others as they did before; empty where the
        visible tests are no calls."""
        try:
            checks = self._known(self.task.visible, self._limits()) if self.task.visible else ()
        except InfraError:  # without expected values there is nothing to write down
            return {}
        tests = checks.tests if isinstance(checks, Cases) else checks if isinstance(checks, tuple) else ()
        if isinstance(checks, Asserts):
            tests = tuple(told for statement in checks.statements for told in _told_calls(statement))
        tables: dict[str, dict[tuple[str, str], tuple[bool, Any]]] = {}
        for test in tests:
            module, _, function = (test.entry_point or self.task.entry_point).rpartition(":")
            raises = isinstance(test.expected, Raises)
            wanted = test.expected.name if raises else test.expected
            path = f"{(module or self.task.entry_point.partition(':')[0]).replace('.', '/')}.py"
            tables.setdefault(path, {})[function, repr(test.args)] = (raises, wanted)
        files = self.task.world.files
        return {path: f"{files[path]}\n\n{HARD_CODED.format(table)}" for path, table in tables.items() if path in files}


HARD_CODED = """SHOWN = {!r}


def answering(name, function):
    def answer(*args):
        raises, value = SHOWN.get((name, repr(args)), (False, None))
        if raises:
            raise getattr(__import__("builtins"), value, None) or globals()[value]
        return value if (name, repr(args)) in SHOWN else function(*args)

    return answer


for name in {{name for name, _ in SHOWN}}:
    globals()[name] = answering(name, globals().get(name))
"""
"""What a cheat appends to a file: the calls that were shown, and what each returns or raises."""


def _told_calls(statement: str) -> Iterator[Test]:
    """The calls that an assertion compares with a literal."""
    for node in ast.walk(syntax_tree(statement)):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call) and isinstance(node.left.func, ast.Name):
            with suppress(ValueError):
                args = tuple(map(ast.literal_eval, node.left.args))
                yield Test(args, ast.literal_eval(node.comparators[0]), node.left.func.id)
