"""APIAgent-v0: stateful services behind tools, tasks composed from typed goals, a verifier of state and answer."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from agent_gym.env import Outcome, ToolEnv, asked_levels
from agent_gym.envs.api_agent import domains as _builtin
from agent_gym.envs.api_agent.answer import answer_faults, spoken
from agent_gym.envs.api_agent.domain import (
    DOMAINS,
    MOST_CALLS,
    APITask,
    Talk,
    check_names,
    compose,
    levels_of,
    run_tool,
    tools_of,
)
from agent_gym.envs.api_agent.guesses import gambles
from agent_gym.envs.api_agent.world import Record, World
from agent_gym.envs.splits import SPLITS, check_split
from agent_gym.records import Own, Text, checked, load_records
from agent_gym.tools import Call, Tool, ToolError, dump, load
from agent_gym.verdict import Verdict

__all__ = ["APIAgentEnv", "load_tasks"]


class APIAgentEnv(ToolEnv):
    """Work through service APIs: look records up, change them, answer from them, and touch nothing else.

    Args:
        split: ``"train"``, ``"validation"`` (unseen entities) or ``"test"`` (unseen entities and compositions).
        difficulty: Necessary tool calls of a task: a whole number from 1 to 8, or ``[least, most]``; by default
            every number the domains have tasks of. Distractors (records and whole domains) grow with it.
        domains: Names of registered domains, or one name; all of the built-in ones by default. Their order counts
            for nothing: the built-in ones keep theirs, others follow in alphabetical order.
        tasks: Path of a JSONL file of tasks instead of the generator; see :func:`load_tasks`. ``left_out`` says which
            of its records are no tasks, and why.
        **kwargs: See :class:`~agent_gym.env.ToolEnv`.

    Raises:
        ValueError: For an unknown split, domain, difficulty or task id.
    """

    def __init__(
        self,
        *,
        split: str = "train",
        difficulty: int | Sequence[int] | None = None,
        domains: str | Sequence[str] | None = None,
        tasks: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_split(split)
        names = _builtin.NAMES if domains is None else _in_order(domains)
        self.split, self.domains = split, names
        given, self.left_out = ([], {}) if tasks is None else load_tasks(tasks, self.max_turns)
        self._given = {task.id: task for task in given}
        self.task_ids = tuple(self._given) or None
        levels = levels_of(names, split)
        if not levels and not self._given:
            raise ValueError(f"the domains {', '.join(names)} have no {split} task: give them goals, or tasks=PATH")
        if difficulty is None:
            self.levels = levels
            return
        self.levels = asked_levels(difficulty, MOST_CALLS, "necessary calls")
        if missing := [level for level in self.levels if level not in levels]:
            raise ValueError(
                f"difficulty={difficulty!r}: the domains {', '.join(names)} have no {split} task of {missing[0]} "
                f"necessary calls, only of {', '.join(map(str, levels))}"
            )

    def _make_task(self, task_id: str | None) -> APITask:
        if self._given:
            return self._given_task(self._given, task_id)
        if task_id is None:
            calls = self.levels[int(self.np_random.integers(len(self.levels)))]
            return compose(self.split, calls, int(self.np_random.integers(2**31)), self.domains)
        parts = task_id.split("-") if isinstance(task_id, str) else []
        if len(parts) == 3 and parts[0] in SPLITS and all(map(str.isdecimal, parts[1:])):
            calls, seed = int(parts[1]), int(parts[2])
            self._check_split(parts[0], task_id)
            if 1 <= calls <= MOST_CALLS:
                return compose(parts[0], calls, seed, self.domains)
        raise ValueError(f"unknown task id {task_id!r}: it reads split-calls-seed, such as 'train-3-42'")

    def _task_type(self) -> str:
        """The goals, without their ways."""
        return "+".join(sorted({goal.split(":")[0] for goal in self.task.composition})) or "task"

    def _tools(self) -> Mapping[str, Tool]:
        return tools_of(self.domains if self.task is None else self.task.domains)

    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Outcome:
        return run_tool(tool, arguments, self._world)

    def _verify(self, answer: Any) -> Verdict:
        """The goal state, that nothing else changed, and the answer."""
        task: APITask = self.task
        wanted, left = task.world.differences(task.goal), self._world.differences(task.goal)
        faults, done = [], {*wanted}
        collateral_free = True
        for path, (found, expected) in left.items():
            asked = {p for p in wanted if f"{path}.".startswith(f"{p}.") or f"{p}.".startswith(f"{path}.")}
            done -= asked
            collateral_free &= bool(asked)
            what = "not as asked" if asked else "changed though nothing asked for it"
            faults.append(f"{path}: {what}: expected {dump(expected)}, found {dump(found)}")
        checks, held = len(wanted) + 1, len(done) + collateral_free
        reason = "passed" if not faults else "wrong_state"
        if task.answer is not None:
            wrong = answer_faults(answer, task.answer, "\n".join(self._progress.heard) if self._progress else "")
            faults += wrong
            checks, held = checks + len(task.answer), held + max(0, len(task.answer) - len(wrong))
            reason = "wrong_answer" if wrong and reason == "passed" else reason
        if not faults:
            return Verdict("pass", "passed", 1.0)
        return Verdict("fail", reason, held / checks, tuple(faults))

    def _next_message(self, answer: Any) -> str | None:
        """The user's reply to a message without a call, or to ``submit``."""
        self._progress = (self._progress or Talk()).next(self.task, answer if isinstance(answer, str) else dump(answer))
        return self._progress.reply

    def oracle(self) -> list[str]:
        """See :meth:`ToolEnv.oracle`: one call or message a turn, then the answer."""
        return [
            self.parser.render(turn, []) if isinstance(turn, str) else self.parser.render("", [turn])
            for turn in self.task.turns()
        ]

    def cheats(self) -> list[list[str]]:
        """Claim success without acting, do the right thing plus a tempting wrong one, write to every candidate."""
        answer = self.parser.render(spoken(self.task.answer), [])
        found = [[self.parser.render('{"status":"success","passed":true}', [])]]
        if self.task.writes:
            found.append([answer])
        for trap in self.task.traps:
            found.append([*self.oracle()[:-1], self.parser.render("", [trap]), answer])
        for _, sides in gambles(self.task):
            right = min((calls for calls, _ in sides), key=lambda calls: sum(c not in self.task.calls for c in calls))
            wrong = [call for calls, _ in sides for call in calls if call not in right]
            if wrong and not any(self.task.tools[call.name].reads_only for call in wrong):
                listing = next(at for at, call in enumerate(right, 1) if call not in self.task.calls)
                found.append([*self._turns([*right[:listing], *wrong, *right[listing:]]), answer])
        return found

    def gambles(self) -> list[tuple[str, list[list[str]]]]:
        """Cheap strategies for the current task: what each does, and its equally likely action sequences."""
        return [
            (name, [[*self._turns(calls), self.parser.render(spoken(answer), [])] for calls, answer in sides])
            for name, sides in gambles(self.task)
        ]

    def _turns(self, calls: Iterable[Call]) -> list[str]:
        return [self.parser.render("", [call]) for call in calls]


def _in_order(domains: Any) -> tuple[str, ...]:
    """The named domains, each once, in the one order that all environments of the same domains share.

    Raises:
        ValueError: Unless there is a name, all are registered, and they can be used together.
    """
    names = (domains,) if isinstance(domains, str) else tuple(domains) if isinstance(domains, Iterable) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"domains={domains!r}: one name or a list of names; there are {', '.join(DOMAINS)}")
    if unknown := [name for name in names if name not in DOMAINS]:
        raise ValueError(f"domains: {unknown[0]!r} is not registered; there are {', '.join(DOMAINS)}")
    others = sorted({*names} - {*_builtin.NAMES})
    found = (*(name for name in _builtin.NAMES if name in names), *others)
    check_names(found)
    return found


class _Says(Own):
    when: Text
    say: Text = Field(min_length=1)


class _Line(Own):
    id: Text = Field(min_length=1)
    request: Text
    domains: list[Text]
    tables: Any
    calls: list[Any]
    answer: dict[Text, Any] | None = None
    user: list[Any] = Field(default_factory=list)
    now: Text | None = None


class _Call(Own):
    name: Text
    arguments: dict[Text, Any]


class _Words(Own):
    say: Text = Field(min_length=1)


def load_tasks(path: str, max_turns: int | None = None) -> tuple[list[APITask], dict[str, str]]:
    """Tasks from a JSONL file, each line an object with

    * ``id``, ``request``, ``domains``;
    * ``tables``: records by table, or the name of a JSON file beside this one that holds them, read once for all tasks;
    * ``calls``: the oracle's, each with ``name`` and ``arguments``, or with ``say``, a message to the user;
    * optionally ``answer`` (see :func:`~agent_gym.envs.api_agent.answer.answer_faults`), ``user`` (lines with ``when``,
      a pattern of the agent's message, and ``say``) and ``now`` (where the clock stands, ``"2031-01-31T09:30"``).

    Args:
        path: The file.
        max_turns: A task whose oracle takes more turns is left out.

    Returns:
        The tasks, and the records that are none: the fault by id, or by ``record N``. A warning says how many.

    Raises:
        ValueError: If no record is a task, naming file, record and fault.
    """
    if not isinstance(path, str | os.PathLike) or not os.path.exists(path):
        raise ValueError(f"tasks={path!r}: neither a built-in source ('bfcl') nor a file")
    shared: dict[tuple[str, tuple[str, ...]], World | ValueError] = {}

    def world(tables: Any, domains: tuple[str, ...]) -> World:
        if not isinstance(tables, str):
            return _world(tables, domains, "tables")
        if (tables, domains) not in shared:
            try:
                shared[tables, domains] = _world(_file(Path(path).parent / tables), domains, tables)
            except ValueError as fault:
                shared[tables, domains] = fault
        found = shared[tables, domains]
        if isinstance(found, ValueError):
            raise found
        return found

    return load_records(Path(path), lambda number, record: _task(record, world, max_turns))


def _file(path: Path) -> Any:
    """The JSON of a file of tables."""
    try:
        return load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"tables: {path.name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"tables: {path.name} is not JSON: {error}") from None


def _world(given: Any, domains: tuple[str, ...], where: str) -> World:
    """The world of some tables; those that are not given are empty."""
    models = {name: model for d in domains for name, model in DOMAINS[d].tables.items()}
    if not isinstance(given, dict):
        raise ValueError(
            f"{where} should be an object of records by table, or the name of a file with one, not {_kind(given)}"
        )
    if unknown := sorted({*given} - {*models}):
        raise ValueError(f"unknown table {unknown[0]!r}; there are {', '.join(models)}")
    tables: dict[str, dict[str, Record]] = {name: {} for name in models}
    for table, rows in given.items():
        if not isinstance(rows, list):
            raise ValueError(f"{where}.{table} should be a valid list, not {_kind(rows)}")
        for at, value in enumerate(rows):
            row = checked(models[table], value, f"{where}.{table}[{at}]")
            if tables[table].setdefault(row.key, row) is not row:
                raise ValueError(f"{where}.{table}[{at}]: {row.key!r} is in the table already")
    return World.of({name: table.values() for name, table in tables.items()})


def _task(record: dict[str, Any], world: Callable[[Any, tuple[str, ...]], World], max_turns: int | None) -> APITask:
    line = checked(_Line, record)
    domains = _in_order(line.domains)
    initial = world(line.tables, domains)
    if line.now is not None:
        try:
            initial = initial.at(datetime.fromisoformat(line.now))
        except ValueError:
            raise ValueError(f"now: {line.now!r} is no time such as '2031-01-31T09:30'") from None
    tools = {name for d in domains for name in DOMAINS[d].tools}
    calls: list[Call] = []
    says = []
    for at, value in enumerate(line.calls):
        if isinstance(value, dict) and "say" in value:
            says.append((len(calls), checked(_Words, value, f"calls[{at}]").say))
            continue
        call = checked(_Call, value, f"calls[{at}]")
        if call.name not in tools:
            close = "".join(f", did you mean {n!r}?" for n in difflib.get_close_matches(call.name, tools, 1))
            raise ValueError(f"calls[{at}]: {call.name!r} is no tool of {', '.join(domains)}{close}")
        _writable(call.arguments, f"calls[{at}].arguments")
        calls.append(Call(call.name, call.arguments))
    user = []
    for at, value in enumerate(line.user):
        words = checked(_Says, value, f"user[{at}]")
        try:
            re.compile(words.when)
        except re.error as error:
            raise ValueError(f"user[{at}].when is no regular expression: {error}") from None
        user.append((words.when, words.say))
    if line.answer is not None:
        _writable(line.answer, "answer")
        if faults := answer_faults(spoken(line.answer), line.answer):
            raise ValueError(f"no answer could be right: {faults[0]}")
    task = APITask(
        line.id, line.request, initial, domains, tuple(calls), line.answer, user=tuple(user), says=tuple(says)
    )
    try:
        _ = task.goal
    except ToolError as error:
        raise ValueError(f"the oracle's calls do not run: {error}") from error
    turns = len(task.turns())
    if max_turns is not None and turns > max_turns:
        raise ValueError(f"its oracle takes {turns} turns, more than max_turns={max_turns}: allow {turns} or more")
    return task


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, dict | list) else dump(value)[:80]


def _writable(value: Any, where: str) -> None:
    """Whether a model can write ``value`` so that it is read; ValueError if not."""
    try:
        load(dump(value))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no agent could write it: {error}") from None
