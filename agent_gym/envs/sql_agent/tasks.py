"""What a task of SQL-v0 is, and tasks from real data sets by path."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from agent_gym.envs.sql_agent.compare import same_rows
from agent_gym.envs.sql_agent.database import INSTRUCTIONS, Database, Result, Row
from agent_gym.envs.sql_agent.syntax import alternatives, ordered, reads_clock, statements
from agent_gym.envs.sql_agent.world import World
from agent_gym.records import Fault, Published, Text, checked, load_records
from agent_gym.tools import Call, ToolError
from agent_gym.verdict import InfraError

__all__ = ["SQLTask", "changed", "gold_order", "gold_result", "in_order", "load_tasks"]

MOST_ROWS = 50_000
"""Of a gold's result."""


@dataclass(frozen=True)
class SQLTask:
    """A question about a database, or a change to be made in it.

    Args:
        id: As ``reset(options={"task": id})`` takes it.
        request: The user's words.
        world: The visible database; writable where a change is asked for.
        golds: Queries of which each answers the question, or the statements that together make the change.
        refills: The same tables with other rows, on which a query, or the statements of a change, have to be right as
            well.
        calls: The oracle's, one a turn.
        value: Whether the request asks for a single value, so that the value itself is an answer too.
        wrong: Near misses: statements that must not pass.
    """

    id: str
    request: str
    world: World
    golds: tuple[str, ...]
    refills: tuple[Database, ...] = ()
    calls: tuple[Call, ...] = ()
    value: bool = False
    wrong: tuple[str, ...] = field(default=(), repr=False)

    @property
    def latency_seed(self) -> int:
        """See :class:`~agent_gym.env.Task`."""
        return int.from_bytes(blake2b(self.id.encode(), digest_size=4).digest(), "big")

    @property
    def writes(self) -> bool:
        """Whether a change is asked for."""
        return self.world.writable

    @cached_property
    def goals(self) -> tuple[World, ...]:
        """The worlds after the golds of a task that writes: the visible one, then those of the refills."""
        return tuple(changed(world, self.golds) for world in (self.world, *(World(d, True) for d in self.refills)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "goals"}


def changed(world: World, statements: Iterable[str], instructions: int = INSTRUCTIONS) -> World:
    """The world after statements; one that fails changes nothing."""
    for statement in statements:
        try:
            world = world.apply(world.run(statement, write=True, instructions=instructions).changes)
        except ToolError:
            continue
    return world


@lru_cache(maxsize=512)
def gold_result(database: Database, gold: str, instructions: int = INSTRUCTIONS) -> Result:
    """What a gold gives on a database.

    Raises:
        ToolError: If it does not run.
    """
    return World(database).run(gold, most_rows=MOST_ROWS, instructions=instructions)


def in_order(run: Callable[[str], Result], gold: str) -> tuple[Result, tuple[int, ...] | None]:
    """What a gold gives, and where it orders its rows, the number of each row's tie: equal for rows that its outer
    ORDER BY does not tell apart. A gold whose keys cannot be computed has no ties.

    Args:
        run: Runs a query.
        gold: The query.

    Raises:
        ToolError: If the gold does not run.
    """
    result = run(gold)
    order = ordered(gold, result.columns)
    if order is None:
        return result, None
    width, rows = len(result.columns), result.rows
    keys: list[Row] | None = None
    if all(0 <= n < width for n in order.columns):
        keys = [(*(row[n] for n in order.columns), None) for row in rows]
    for query in order.keyed:
        try:
            found = run(query).rows
        except ToolError:  # not in this spelling
            continue
        if Counter(row[:width] for row in found) == Counter(rows):  # else the keys make other rows of DISTINCT or LIMIT
            rows, keys = [row[:width] for row in found], [row[width:] for row in found]
        break
    ties = list(range(len(rows)))
    for n in range(1, len(rows) if keys else 0):
        (*before, above), (*after, rank) = keys[n - 1], keys[n]  # type: ignore[index]
        if (rank is not None and above == rank) or same_rows(tuple(before), tuple(after)):
            ties[n] = ties[n - 1]
    return replace(result, rows=rows), tuple(ties)


@lru_cache(maxsize=512)
def gold_order(
    database: Database, gold: str, instructions: int = INSTRUCTIONS
) -> tuple[Result, tuple[int, ...] | None]:
    """What a gold gives on a database, and the ties of its order, as :func:`in_order` has them.

    Raises:
        ToolError: If it does not run.
    """
    return in_order(lambda query: gold_result(database, query, instructions), gold)


def load_tasks(source: str, instructions: int = INSTRUCTIONS) -> tuple[list[SQLTask], dict[str, str]]:
    """Tasks of a real data set.

    Args:
        source: A folder in Spider's or BIRD's form (``dev.json`` or ``dev.jsonl``, ``database/DB/DB.sqlite`` or
            ``dev_databases/DB/DB.sqlite``; further files beside it are refills) or with defog's (``tasks.jsonl``,
            ``database/DB.db``), or its file of records. docs/sql_agent.md shows the forms.
        instructions: Bound of one query, golds included.

    Returns:
        The tasks, and the records that are none: the fault by id, or by ``record N``. A warning says how many.

    Raises:
        ValueError: If no record is a task, naming file, record and fault.
    """
    path = _records_file(source)
    databases: dict[str, tuple[Database, ...]] = {}

    def read(number: int, record: dict[str, Any]) -> SQLTask:
        name, golds, request, uses_now = _read(record)
        if name not in databases:
            databases[name] = _databases(path.parent, name)
        visible, *refills = databases[name]
        task_id, world = f"{name}-{number}", World(visible)
        reason, sound = _sound(world, golds, instructions)
        if uses_now or any(map(reads_clock, golds)):
            reason = "the gold depends on the clock"
        if reason:
            raise Fault(reason, task_id)
        return SQLTask(task_id, request, world, sound, tuple(refills), (Call("submit_sql", {"query": sound[0]}),))

    return load_records(path, read)


def _records_file(source: Any) -> Path:
    names = [f"{stem}.{ext}" for stem in ("tasks", "dev", "test", "train") for ext in ("jsonl", "json")]
    if isinstance(source, str | os.PathLike):
        for path in (source, *(os.path.join(source, name) for name in names)):
            if os.path.isfile(path):
                return Path(path)
    raise ValueError(f"tasks={source!r}: neither a file of records nor a folder with one of {', '.join(names)}")


class _Record(Published):
    question: Text
    uses_now: bool | None = None


class _Spider(_Record):
    """Spider (arXiv:1809.08887); BIRD (arXiv:2305.03111) says SQL for query, and adds evidence."""

    db_id: Text
    query: Text | None = None
    SQL: Text | None = None
    evidence: Text | None = None


class _Defog(_Record):
    """defog's sql-eval: alternatives by semicolon, sets of columns in braces."""

    db_name: Text
    query: Text
    instructions: Text | None = None
    full_instructions: Text | None = None


def _read(record: dict[str, Any]) -> tuple[str, tuple[str, ...], str, bool]:
    """Database, golds and request of a record of either form, and whether its gold is said to depend on the clock."""
    one: _Spider | _Defog
    if "db_id" in record:
        one = checked(_Spider, record)
        gold = one.query if one.SQL is None else one.SQL
        if gold is None:
            raise ValueError("the key 'query' is missing")
        name, notes, golds = one.db_id, one.evidence, statements(gold)[:1]
    elif "db_name" in record:
        one = checked(_Defog, record)
        name, notes = one.db_name, one.full_instructions or one.instructions
        golds = [query for gold in statements(one.query) for query in alternatives(gold)]
    else:
        raise ValueError("neither db_id nor db_name is there, so its form is not known")
    if not golds:
        raise ValueError("the gold query is empty")
    return name, tuple(golds), f"{one.question}\n{notes}" if notes else one.question, bool(one.uses_now)


_FOLDERS = ("database", "databases", "dev_databases", "train_databases", "test_database", "test_databases")


def _databases(folder: Path, name: str) -> tuple[Database, ...]:
    """A database, then those with other rows: the further files of its own folder."""
    tried = [folder / parent / f"{base}.{ext}"
             for parent in _FOLDERS for base in (f"{name}/{name}", name) for ext in ("sqlite", "db")]  # fmt: skip
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        raise ValueError(f"there is no database {name!r}, such as {tried[0]}")
    files = [path]
    if path.parent.name == name:
        files += sorted(other for other in path.parent.glob(f"*{path.suffix}") if other != path and other.is_file())
    found = tuple(Database(path=str(file)) for file in files)
    for database in found:
        _ = World(database).session  # a file that cannot be read says so now
    return found


def _sound(world: World, golds: tuple[str, ...], instructions: int) -> tuple[str, tuple[str, ...]]:
    """The golds that run and give rows, and what is wrong where there are none."""
    sound, reason = [], ""
    for gold in golds:
        try:
            result = gold_result(world.database, gold, instructions)
        except (ToolError, InfraError) as error:
            reason = reason or f"the gold fails: {error}"
            continue
        if result.more:
            reason = reason or f"the gold gives more than {MOST_ROWS} rows"
        elif result.rows:
            sound.append(gold)
        else:
            reason = reason or "the gold's result is empty"
    return ("", tuple(sound)) if sound else (reason, ())
