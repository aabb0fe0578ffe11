"""Databases by content, and the one connection a process keeps for each, on which a query may do little and not for
long.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

from agent_gym.envs.sql_agent.syntax import CLOCK, tokens
from agent_gym.tools import ToolError, dump
from agent_gym.verdict import InfraError

__all__ = ["INSTRUCTIONS", "Database", "Delta", "QueryError", "Result", "Row", "session", "shown"]

Row = tuple[Any, ...]
Key = tuple[str, int]
"""A row's place: its table and its rowid."""
Delta = Mapping[Key, tuple[Row | None, Row | None]]
"""Rows before and after, by place; None where there is none."""

INSTRUCTIONS = 10_000_000
"""Of SQLite's virtual machine, for one query."""
TICK = 100
"""Instructions are counted in so many: the unit of a query's latency."""
MOST_SQL = 20_000
"""Characters of one query."""
MOST_LENGTH = 200_000
"""Bytes of one value or row that a query makes."""
MOST_EXPANSION = 4096
"""Copies of common table expressions: SQLite makes them while it compiles, where nothing counts instructions."""
MOST_HEAP = 1 << 30
"""Bytes of SQLite's memory in this process: a net below the limits above, not one of them."""
MOST_SECONDS = 10.0
"""A net as well: instructions on long values are slow. What it stops reads like what the count stops."""
MOST_OPEN = 24
NOW = "2025-01-01 00:00:00"
"""What the clock shows."""

FUNCTIONS = frozenset(
    """abs avg cast ceil ceiling char coalesce count cume_dist current_date current_time current_timestamp date
    datetime degrees dense_rank exp first_value floor format glob group_concat hex ifnull iif instr json json_array
    json_array_length json_each json_extract json_group_array json_group_object json_insert json_object json_patch
    json_quote json_remove json_replace json_set json_tree json_type json_valid julianday lag last_value lead length
    like ln log log10 log2 lower ltrim max min mod nth_value ntile nullif percent_rank pi pow power printf quote
    radians rank replace round row_number rtrim sign sin cos tan asin acos atan atan2 sqrt strftime string_agg substr
    substring sum time total trim trunc typeof unicode unixepoch upper zeroblob -> ->>""".split()
)
"""What a query may call: everything that depends on its arguments alone and touches nothing else."""
PRAGMAS = ("foreign_key_list", "index_info", "index_list", "table_info", "table_list", "table_xinfo")
CATALOGUE = frozenset(["sqlite_master", "sqlite_schema", "json_each", "json_tree", *(f"pragma_{p}" for p in PRAGMAS)])
LOG = "agent_gym_log"

_NAMES = {
    value: name.removeprefix("SQLITE_").replace("_", " ")
    for name, value in vars(sqlite3).items()
    if name.removeprefix("SQLITE_").split("_")[0] in
    ("CREATE", "DROP", "ALTER", "ATTACH", "DETACH", "PRAGMA", "TRANSACTION", "SAVEPOINT", "REINDEX", "ANALYZE",
     "INSERT", "UPDATE", "DELETE", "READ", "FUNCTION")
    and isinstance(value, int)
}  # fmt: skip


class Database:
    """Where a database's content comes from: an immutable value that pickles without it or with little of it.

    Args:
        ddl: Statements that make the tables.
        rows: Rows by table, in order.
        path: Of a SQLite file instead.

    Raises:
        ValueError: If the file is missing or is no SQLite database.
    """

    __slots__ = ("ddl", "key", "path", "rows")

    def __init__(
        self, ddl: Sequence[str] = (), rows: Mapping[str, Sequence[Row]] | None = None, path: str | None = None
    ) -> None:
        self.ddl, self.path = tuple(ddl), path
        self.rows = {table: tuple(map(tuple, entries)) for table, entries in (rows or {}).items()}
        if path is None:
            self.key = blake2b(repr((self.ddl, self.rows)).encode(), digest_size=16).hexdigest()
            return
        if not os.path.isfile(path):
            raise ValueError(f"{path}: there is no such database file")
        status = os.stat(path)
        self.key = _file_key(path, status.st_size, status.st_mtime_ns)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            return Database, (self.ddl, self.rows)
        return _reopened, (self.path, self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Database) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Database({self.path or self.key!r})"


def _reopened(path: str, key: str) -> Database:
    database = Database(path=path)
    if database.key != key:
        raise ValueError(f"{path}: the database has changed since the snapshot was taken")
    return database


@lru_cache(maxsize=4096)
def _file_key(path: str, size: int, changed: int) -> str:
    """Hash of a file's bytes; size and time of change tell when it has to be read again."""
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Result:
    """What a query gave.

    Args:
        columns: Their names; none for a statement that is no query.
        rows: The first of them.
        more: Whether there are more.
        units: Work in hundreds of instructions.
        changes: Rows changed by the statement, before and after.
        reads: Whether it looked into any table.
    """

    columns: tuple[str, ...]
    rows: list[Row]
    more: bool
    units: float
    changes: Delta
    reads: bool = True


def shown(value: Any) -> Any:
    """A value as JSON has it; bytes as SQL's literal."""
    return f"x'{value.hex()}'" if isinstance(value, bytes) else value


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class QueryError(ToolError):
    """What came of a query that failed.

    Args:
        kind: ``sql`` with SQLite's message; ``not_permitted``; ``timeout``; ``memory``; ``too_long``.
        message: One sentence.
        units: Work done until then, in hundreds of instructions.
    """

    def __init__(self, kind: str, message: str, units: float = 0.0) -> None:
        super().__init__(kind, message)
        self.units = units


_local = threading.local()
"""Connections, by thread."""


class Session:
    """One connection to one database, at one of its worlds at a time. Use :func:`session`.

    Args:
        database: Its content.
        writable: Whether worlds differ from it: a file is then copied into memory, once.

    Raises:
        ValueError: If the file is no SQLite database, or has tables that cannot be written here.
    """

    def __init__(self, database: Database, writable: bool) -> None:
        self.database, self.writable = database, writable
        self._mode, self._denied, self._reads = "free", "", False
        self._ticks, self._most, self._until = 0, 0, 0.0
        self._at: Delta = {}
        self._db = _open(database, writable)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{database.path}: not a SQLite database that can be read: {error}") from None

    def _prepare(self) -> None:
        db = self._db
        listed = db.execute(
            "SELECT name, type, sql FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' "
            "ESCAPE '\\' ORDER BY rowid"
        ).fetchall()
        self.tables = tuple(name for name, _, _ in listed)
        self._readable = frozenset(self.tables) | CATALOGUE
        self._registered = False
        db.execute("PRAGMA trusted_schema=OFF")
        if self.writable:
            self._watch({name for name, kind, _ in listed if kind == "table"})
        self._columns: dict[str, tuple[str, ...]] = {}
        _freeze_clock(db)
        db.set_authorizer(self._authorize)
        db.set_progress_handler(self._tick, TICK)

    def _watch(self, tables: set[str]) -> None:
        """Let every change leave the place of its row in a log: only then is a delta as small as the change."""
        db = self._db
        odd = [name for name, kind, wr in db.execute("SELECT name, type, wr FROM pragma_table_list WHERE schema='main'")
               if name in tables and (kind != "table" or wr)]  # fmt: skip
        if odd:
            raise ValueError(f"{self.database.path}: {odd[0]} has no rowid or is virtual, so it cannot be written here")
        if found := db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchone():
            raise ValueError(f"{self.database.path}: it has the trigger {found[0]}, so it cannot be written here")
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("PRAGMA recursive_triggers=ON")  # or REPLACE deletes without a trace
        db.execute(f"CREATE TEMP TABLE {LOG} (place TEXT, row INTEGER)")
        for number, table in enumerate(sorted(tables)):
            place, on = "'" + table.replace("'", "''") + "'", f"main.{_quoted(table)}"
            for event, sides in (("INSERT", ["NEW"]), ("UPDATE", ["OLD", "NEW"]), ("DELETE", ["OLD"])):
                adds = " ".join(f"INSERT INTO {LOG} VALUES ({place}, {side}.rowid);" for side in sides)
                db.execute(f"CREATE TEMP TRIGGER {LOG}_{number}_{event} AFTER {event} ON {on} BEGIN {adds} END")

    # ---- what SQLite asks --------------------------------------------------------------------------------------------

    def _authorize(self, action: int, first: Any, second: Any, schema: Any, source: Any) -> int:
        if self._mode == "free" or self._allowed(action, first, second, schema, source):
            return sqlite3.SQLITE_OK
        if not self._denied:
            name = second if action == sqlite3.SQLITE_FUNCTION else first
            self._denied = " ".join(part for part in (_NAMES.get(action, ""), name) if part)
        return sqlite3.SQLITE_DENY

    def _allowed(self, action: int, first: Any, second: Any, schema: Any, source: Any) -> bool:
        if isinstance(source, str) and source.startswith(LOG):
            return True
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return True
        if action == sqlite3.SQLITE_READ:
            self._reads |= first in self.tables
            if not second and first not in self._readable:  # rows are counted: this may name a query of a WITH clause
                return not str(first).startswith((LOG, "sqlite_"))
            return schema != "temp" and first in self._readable
        if action == sqlite3.SQLITE_FUNCTION:
            return str(second).lower() in FUNCTIONS
        if action == sqlite3.SQLITE_PRAGMA:
            return str(first).lower() in PRAGMAS
        if action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE):
            return self._mode == "write" and schema == "main" and first in self.tables
        return False

    @property
    def _units(self) -> float:
        return float(min(self._ticks, self._most))

    def _tick(self) -> int:
        if self._mode == "free":
            return 0
        self._ticks += 1
        if self._ticks % 1000 == 0 and time.monotonic() > self._until:
            self._ticks = max(self._ticks, self._most + 1)
        return int(self._ticks > self._most)

    @contextmanager
    def _free(self) -> Iterator[sqlite3.Connection]:
        mode, self._mode = self._mode, "free"
        try:
            yield self._db
        except sqlite3.DatabaseError as error:
            raise InfraError(f"the database cannot be read: {error}") from None
        finally:
            self._mode = mode

    # ---- worlds ------------------------------------------------------------------------------------------------------

    def columns(self, table: str) -> tuple[str, ...]:
        """Names of a table's stored columns."""
        if table not in self._columns:
            with self._free() as db:
                rows = db.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0", (table,)).fetchall()
            self._columns[table] = tuple(name for (name,) in rows)
        return self._columns[table]

    def _register(self) -> None:
        """Use every table-valued function once: the first use looks to the authorizer like a change of the schema."""
        with self._free() as db:
            for table in ("json_each('[]')", "json_tree('[]')", *(f"pragma_{pragma}('')" for pragma in PRAGMAS)):
                db.execute(f"SELECT * FROM {table}").fetchall()
        self._registered = True

    def _row(self, key: Key) -> Row | None:
        names = ", ".join(map(_quoted, self.columns(key[0])))
        return self._db.execute(f"SELECT {names} FROM {_quoted(key[0])} WHERE rowid = ?", (key[1],)).fetchone()

    def _move(self, delta: Delta) -> None:
        """Make the connection's content that of the world with ``delta``, at the cost of the rows that differ."""
        if delta is self._at or not (delta or self._at):
            return
        wanted: dict[Key, Row | None] = {}
        for key in {*self._at, *delta}:
            base = (self._at.get(key) or delta[key])[0]
            row = delta[key][1] if key in delta else base
            if row is not (self._at[key][1] if key in self._at else base):
                wanted[key] = row
        with self._free() as db:
            db.execute("PRAGMA foreign_keys=OFF")
            db.execute("BEGIN")
            for table in {table for table, _ in wanted}:
                rows = [(at, row) for (where, at), row in wanted.items() if where == table]
                names = [_quoted(name) for name in ("rowid", *self.columns(table))]
                marks = ", ".join("?" * len(names))
                # all deletions come first: no two rows may collide on the way
                db.executemany(f"DELETE FROM {_quoted(table)} WHERE rowid = ?", [(at,) for at, _ in rows])
                db.executemany(
                    f"INSERT INTO {_quoted(table)} ({', '.join(names)}) VALUES ({marks})",
                    [(at, *row) for at, row in rows if row is not None],
                )
            db.execute(f"DELETE FROM temp.{LOG}")
            db.execute("COMMIT")
            db.execute("PRAGMA foreign_keys=ON")
        self._at = delta

    def run(
        self, query: str, delta: Delta, *, write: bool = False, most_rows: int = 100, instructions: int = INSTRUCTIONS
    ) -> Result:
        """Run one statement on the world with ``delta``; the connection's content is afterwards what it was before.

        Args:
            query: The statement.
            delta: The world, as rows that differ from the database.
            write: Whether it may change rows.
            most_rows: Rows fetched.
            instructions: Of SQLite's virtual machine.

        Raises:
            QueryError: If it fails.
            InfraError: If the database itself cannot be read.
        """
        _check(query)
        if not self._registered and re.search("json_|pragma_", query, re.IGNORECASE):
            self._register()
        self._move(delta)
        if write:
            with self._free() as db:
                db.execute("BEGIN")
        self._mode, self._denied, self._reads = "write" if write else "read", "", False
        self._ticks, self._most, self._until = 0, instructions // TICK, time.monotonic() + MOST_SECONDS
        changes: dict[Key, tuple[Row | None, Row | None]] = {}
        try:
            columns, rows, more = self._fetch(query, most_rows)
            units = self._units
            if write:
                with self._free() as db:
                    keys = db.execute(f"SELECT DISTINCT place, row FROM temp.{LOG} ORDER BY place, row").fetchall()
                    after = {key: self._row(key) for key in keys}
                    db.execute("ROLLBACK")
                    changes = {key: (self._row(key), row) for key, row in after.items()}
        finally:
            self._mode = "free"
            if write and self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return Result(columns, rows, more, units, changes, self._reads)

    def _fetch(self, query: str, most_rows: int) -> tuple[tuple[str, ...], list[Row], bool]:
        cursor = self._db.cursor()
        try:
            cursor.execute(query)
            rows = cursor.fetchmany(most_rows + 1)
            columns = tuple(entry[0] for entry in cursor.description or ())
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise self._explained(error) from None
        except MemoryError:
            raise QueryError("memory", "the query was stopped: it needs too much memory", self._units) from None
        finally:
            cursor.close()
        return columns, rows[:most_rows], len(rows) > most_rows

    def _explained(self, error: Exception) -> Exception:
        text = str(error)
        if self._ticks > self._most:
            return QueryError("timeout", f"the query was stopped after {self._most * TICK} instructions", self._units)
        if self._denied:
            writes = self._denied.startswith(("INSERT", "UPDATE", "DELETE"))
            why = ": this task only reads" if writes and self._mode == "read" else " is not allowed here"
            return QueryError("not_permitted", self._denied + why, self._units)
        if "disk image is malformed" in text or "not a database" in text or "disk I/O" in text:
            return InfraError(f"the database cannot be read: {text}")
        return QueryError("sql", text, self._units)


def _check(query: str) -> None:
    """Refuse what no instruction count can bound.

    Raises:
        QueryError: Saying which bound.
    """
    if len(query) > MOST_SQL:
        raise QueryError("too_long", f"the query is {len(query)} characters long; at most {MOST_SQL} are allowed")
    if "\0" in query:
        raise QueryError("sql", "the query contains a null character")
    words = tokens(query)
    if not words:
        raise QueryError("sql", "the query is empty")
    names = re.findall(
        r"(\w+)[\"\]`]?\s*(?:\([^()]*\)\s*)?\bAS\s+(?:NOT\s+)?(?:MATERIALIZED\s+)?\(", query, re.IGNORECASE
    )
    plain = [word.strip('"`[]').lower() for word in words]
    if prod(max(1, plain.count(name.lower()) - 1) for name in set(names)) > MOST_EXPANSION:
        raise QueryError("too_long", "the query uses its common table expressions inside each other too often")


def _open(database: Database, writable: bool) -> sqlite3.Connection:
    def connect(name: str, **kwargs: Any) -> sqlite3.Connection:
        # no statement cache: a statement's second run would be counted from where its first one ended
        return sqlite3.connect(name, isolation_level=None, cached_statements=0, check_same_thread=False, **kwargs)

    try:
        if database.path is None:
            db = connect(":memory:")
            db.execute("PRAGMA page_size=512")
            db.execute("BEGIN")
            for statement in database.ddl:
                db.execute(statement)
            for table, rows in database.rows.items():
                marks = ", ".join("?" * len(rows[0])) if rows else ""
                db.executemany(f"INSERT INTO {_quoted(table)} VALUES ({marks})", rows)
            db.execute("COMMIT")
        else:
            db = connect(f"{Path(database.path).resolve().as_uri()}?mode=ro&immutable=1", uri=True)
            if writable:
                file, db = db, connect(":memory:")
                file.backup(db)
                file.close()
        db.execute("PRAGMA temp_store=MEMORY")
        if db.execute("PRAGMA hard_heap_limit").fetchone()[0] == 0:
            db.execute(f"PRAGMA hard_heap_limit={MOST_HEAP}")
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{database.path}: not a SQLite database that can be read: {error}") from None
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, MOST_LENGTH),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 4 * MOST_SQL),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200),
        (sqlite3.SQLITE_LIMIT_VDBE_OP, 200_000),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        db.setlimit(limit, value)
    return db


def _freeze_clock(db: sqlite3.Connection) -> None:
    """Let the clock stand still at ``NOW``, in UTC, for every function that looks at it."""

    def frozen(name: str, at: int) -> Any:
        def call(*arguments: Any) -> Any:
            given = list(arguments)
            if len(given) <= at:
                given[at:] = ["now"]
            given = [NOW if str(value).strip().lower() == "now" else value for value in given]
            given = [value for value in given if str(value).strip().lower() not in ("localtime", "utc")]
            if not hasattr(_local, "clock"):
                _local.clock = sqlite3.connect(":memory:")
            return _local.clock.execute(f"SELECT {name}({', '.join('?' * len(given))})", given).fetchone()[0]

        return call

    for name in CLOCK:
        if name.startswith("current_"):
            part = {"current_date": NOW[:10], "current_time": NOW[11:]}.get(name, NOW)
            db.create_function(name, 0, lambda part=part: part, deterministic=True)
        else:
            db.create_function(name, -1, frozen(name, int(name == "strftime")), deterministic=True)


def session(database: Database, writable: bool = False) -> Session:
    """This thread's connection to a database; the least recently used of many is closed.

    Raises:
        ValueError: As :class:`Session`.
    """
    if getattr(_local, "process", None) != os.getpid():  # a connection must not cross a fork
        _local.process, _local.open = os.getpid(), {}
        vars(_local).pop("clock", None)
    key = (database.key, writable)
    found = _local.open.pop(key, None) or Session(database, writable)
    _local.open[key] = found
    if len(_local.open) > MOST_OPEN:
        del _local.open[next(iter(_local.open))]
    return found


def spelled(row: Row) -> str:
    """A row in one line of JSON."""
    return dump([shown(value) for value in row])
