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
from pathlib import Path
from typing import Any

from agent_gym.envs.sql_agent.syntax import CLOCK, compiled, tokens
from agent_gym.tools import ToolError, dump
from agent_gym.verdict import InfraError

__all__ = ["INSTRUCTIONS", "Database", "Delta", "QueryError", "Result", "Row", "cut", "session", "shown", "spelled"]

Row = tuple[Any, ...]
Key = tuple[str, int]
"""A row's place: its table and its rowid."""
Delta = Mapping[Key, tuple[Row | None, Row | None]]
"""Rows before and after, by place; None where there is none."""

INSTRUCTIONS = 10_000_000
"""Of SQLite's virtual machine, for one query."""
TICK = 100
"""Instructions are counted in so many: the unit of a query's latency. The clock is looked at as often."""
MOST_SECONDS = 2.0
"""Of this thread's processor time, for one query: instructions on long values are slow. What it stops reads like what
the count stops, and costs the same. Nothing looks at the clock within an instruction, along a stretch of program that
never jumps back, nor while SQLite compiles: the bounds below keep each of these to a second or two."""
MOST_SQL = 20_000
"""Characters of one query."""
MOST_LENGTH = 120_000
"""Bytes of one value or row that a query makes: ``instr`` and ``replace`` take a time that is its square."""
MOST_PATTERN = 200
"""Bytes of a pattern of LIKE or GLOB."""
MOST_TRIMMED = 100
"""Characters that a ``trim`` takes away."""
MOST_ARGUMENTS = 40
"""Of one function."""
MOST_CALLS = 50
"""Of functions, LIKE and GLOB included, in one compiled query: all of them may stand on one stretch."""
MOST_PROGRAM = 5_400
"""Instructions in one compiled query."""
MOST_TABLES = 32
"""Named in the FROM clauses of one query: to plan a join takes a time that is the cube of its tables."""
MOST_COPIES = 4096
"""Of common table expressions, which SQLite makes while it compiles."""
MOST_HEAP = 1 << 28
"""Bytes of SQLite's memory in this process. What a query sorts, and what it becomes while it is compiled, is bounded by
nothing else, and either takes seconds for each gigabyte."""
MOST_CACHE = 512
"""Kilobytes of a database file's pages that a connection keeps."""
MOST_RESULT = 16_000_000
"""Characters and bytes of a result, and of the rows in which a world differs from its database."""
MOST_CHANGED = 50_000
"""Rows in which a world differs from its database."""
MOST_MESSAGE = 300
"""Characters of an error's message: SQLite puts values into some."""
MOST_OPEN = 24
NOW = "2025-01-01 00:00:00"
"""What the clock shows."""

FUNCTIONS = frozenset(
    """abs avg cast ceil ceiling char coalesce count cume_dist current_date current_time current_timestamp date
    datetime degrees dense_rank exp first_value floor format glob group_concat hex ifnull iif instr json json_array
    json_array_length json_each json_extract json_group_array json_group_object json_insert json_object
    json_quote json_remove json_replace json_set json_tree json_type json_valid julianday lag last_value lead length
    like ln log log10 log2 lower ltrim max min mod nth_value ntile nullif percent_rank pi pow power printf quote
    radians rank replace round row_number rtrim sign sin cos tan asin acos atan atan2 sqrt strftime string_agg substr
    substring sum time total trim trunc typeof unicode unixepoch upper zeroblob -> ->>""".split()
)
"""What a query may call: everything that depends on its arguments alone and touches nothing else."""
TABLE_FUNCTIONS = ("json_each", "json_tree")
LOG = "agent_gym_log"
HIDDEN = (LOG, "sqlite_", "pragma_")
"""How the names begin of what is there beside the database's own tables: the catalogue first of all. The tools show the
schema, table by table, and have their price."""

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


def cut(text: str, most: int = MOST_MESSAGE) -> str:
    """The text, its end left out where it has more than ``most`` characters."""
    mark = "... (cut)"
    return text if len(text) <= most else text[: most - len(mark)] + mark


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class QueryError(ToolError):
    """What came of a query that failed.

    Args:
        kind: One of ``KINDS``; ``sql`` comes with SQLite's message.
        message: One sentence; what is longer than ``MOST_MESSAGE`` characters is cut.
        units: Work done until then, in hundreds of instructions.
    """

    KINDS = ("sql", "not_permitted", "timeout", "memory", "too_long")

    def __init__(self, kind: str, message: str, units: float = 0.0) -> None:
        super().__init__(kind, cut(message))
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
        self._named: frozenset[str] = frozenset()
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
        self._own = frozenset(map(str.lower, self.tables))
        self._readable = frozenset((*self.tables, *TABLE_FUNCTIONS))
        self._registered = False
        db.execute("PRAGMA trusted_schema=OFF")
        if self.writable:
            self._watch({name for name, kind, _ in listed if kind == "table"})
        self._columns: dict[str, tuple[str, ...]] = {}
        _replace_functions(db)
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
            name = str(first).lower()  # where rows are counted, it is spelled as in the query
            if second or schema or name not in self._named:  # else it may be that of a query of a WITH clause
                self._reads |= name in self._own
            if not second and first not in self._readable:
                return not name.startswith(HIDDEN)
            return schema != "temp" and first in self._readable
        if action == sqlite3.SQLITE_FUNCTION:
            return str(second).lower() in FUNCTIONS
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
        if time.thread_time() > self._until:
            self._ticks = max(self._ticks, self._most + 1)
        return int(self._ticks > self._most)

    @contextmanager
    def _free(self) -> Iterator[sqlite3.Connection]:
        mode, self._mode = self._mode, "free"
        try:
            yield self._db
        except sqlite3.DatabaseError as error:
            raise InfraError(f"the database cannot be read: {error}") from None
        except MemoryError:
            raise InfraError(f"SQLite's memory is used up: {MOST_HEAP} bytes in this process") from None
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

    def describe(self, table: str) -> tuple[list[Row], list[Row]]:
        """A table's columns (name, type, whether part of the primary key), and its foreign keys (column, table and
        column it refers to; None for the primary key).
        """
        with self._free() as db:
            columns = db.execute("SELECT name, type, pk > 0 FROM pragma_table_info(?)", (table,)).fetchall()
            keys = db.execute('SELECT "from", "table", "to" FROM pragma_foreign_key_list(?)', (table,)).fetchall()
        return columns, keys

    def _register(self) -> None:
        """Use every table-valued function once: the first use looks to the authorizer like a change of the schema."""
        with self._free() as db:
            for function in TABLE_FUNCTIONS:
                db.execute(f"SELECT * FROM {function}('[]')").fetchall()
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
            try:
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
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
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
        words, self._named = _check(query)
        if not self._registered and re.search("json_", query, re.IGNORECASE):
            self._register()
        self._move(delta)
        if write:
            with self._free() as db:
                db.execute("BEGIN")
        # a change that is only explained would name the tables that refer to its own
        self._mode = "explain" if words[0].lower() == "explain" else "write" if write else "read"
        self._denied, self._reads = "", False
        self._ticks, self._most, self._until = 0, instructions // TICK, time.thread_time() + MOST_SECONDS
        changes: dict[Key, tuple[Row | None, Row | None]] = {}
        try:
            self._check_calls(query, words)
            columns, rows, more = self._fetch(query, most_rows)
            units = self._units
            if write:
                changes = self._changes(delta)
        finally:
            self._mode = "free"
            if write and self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return Result(columns, rows, more, units, changes, self._reads)

    def _check_calls(self, query: str, words: Sequence[str]) -> None:
        """Refuse a program that calls functions in many places: it may pass them all before the clock is looked at.

        They are counted in what SQLite compiles, which can hold a call more often than the query does.
        """
        lower = [word.lower() for word in words]
        calls = sum(word.strip('"`[]') in FUNCTIONS for word in lower)
        if self._mode == "explain" or not calls or (calls <= MOST_CALLS and lower.count("select") < 2):
            return
        program = self._answered("EXPLAIN " + query, MOST_PROGRAM)[1]
        self._ticks = 0
        if sum(row[1] in ("Function", "PureFunc") for row in program) > MOST_CALLS:
            raise QueryError("too_long", f"the query calls functions in more than {MOST_CALLS} places")

    def _fetch(self, query: str, most_rows: int) -> tuple[tuple[str, ...], list[Row], bool]:
        columns, rows = self._answered(query, most_rows + 1)
        return columns, rows[:most_rows], len(rows) > most_rows

    def _answered(self, query: str, most_rows: int) -> tuple[tuple[str, ...], list[Row]]:
        cursor = self._db.cursor()
        rows: list[Row] = []
        size = 0
        try:
            cursor.execute(query)
            columns = tuple(entry[0] for entry in cursor.description or ())
            while len(rows) < most_rows and (row := cursor.fetchone()) is not None:
                rows.append(row)
                size += _size(row)
                if size > MOST_RESULT:
                    raise MemoryError
        except (sqlite3.Error, sqlite3.Warning, UnicodeError) as error:
            raise self._explained(error) from None
        except MemoryError:  # where that is depends on the process, so the price does not
            message = "the query was stopped: it needs too much memory, or is too long when it is compiled"
            raise QueryError("memory", message, float(self._most)) from None
        finally:
            cursor.close()
        return columns, rows

    def _changes(self, delta: Delta) -> dict[Key, tuple[Row | None, Row | None]]:
        """Rows before and after, of the places in the log; the transaction is undone in between."""
        with self._free() as db:
            keys = db.execute(f"SELECT DISTINCT place, row FROM temp.{LOG} ORDER BY place, row").fetchall()
            after: dict[Key, Row | None] = {}
            size = sum(_size(row or ()) for _, row in delta.values())
            for key in keys:
                after[key] = self._row(key)
                size += _size(after[key] or ())
                if size > MOST_RESULT or len(after) + len(delta) > MOST_CHANGED:
                    raise QueryError("memory", "the statement was undone: it changes too many rows", float(self._most))
            db.execute("ROLLBACK")
            return {key: (self._row(key), row) for key, row in after.items()}

    def _explained(self, error: Exception) -> Exception:
        text = str(error)
        if self._ticks > self._most:
            return QueryError("timeout", f"the query was stopped after {self._most * TICK} instructions", self._units)
        if self._denied:
            action, _, name = self._denied.partition(" ")
            why = " is not allowed here"
            if action == "PRAGMA" or name.lower().startswith(HIDDEN):
                why += ": the tools list_tables and describe_table show what the database has"
            elif action in ("INSERT", "UPDATE", "DELETE") and self._mode == "read":
                why = ": this task only reads"
            return QueryError("not_permitted", self._denied + why, self._units)
        if "disk image is malformed" in text or "not a database" in text or "disk I/O" in text:
            return InfraError(f"the database cannot be read: {text}")
        if text == "user-defined function raised exception":
            text = f"a function has arguments that it does not take here: {_REFUSED}"
        return QueryError("sql", text, self._units)


def _size(row: Row) -> int:
    return sum(len(value) for value in row if isinstance(value, str | bytes))


def _check(query: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """The query's words and the names of its WITH clauses, if it is none of those whose work no instruction count can
    bound.

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
    tables, copies, named = compiled(query)
    if copies > MOST_COPIES:
        raise QueryError("too_long", "the query uses its common table expressions inside each other too often")
    if tables > MOST_TABLES:
        raise QueryError("too_long", f"the query names {tables} tables; at most {MOST_TABLES} are allowed")
    return words, named


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
        db.execute(f"PRAGMA cache_size={-MOST_CACHE}")
        if db.execute("PRAGMA hard_heap_limit").fetchone()[0] == 0:
            db.execute(f"PRAGMA hard_heap_limit={MOST_HEAP}")
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{database.path}: not a SQLite database that can be read: {error}") from None
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    _limit(db)
    return db


def _limit(db: sqlite3.Connection) -> None:
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, MOST_LENGTH),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 5 * MOST_SQL),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MOST_PATTERN),
        (sqlite3.SQLITE_LIMIT_FUNCTION_ARG, MOST_ARGUMENTS),
        (sqlite3.SQLITE_LIMIT_VDBE_OP, MOST_PROGRAM),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        db.setlimit(limit, value)


_REFUSED = f"more than {MOST_TRIMMED} characters to trim, a precision of %c, or a date that is none"


def _replace_functions(db: sqlite3.Connection) -> None:
    """Let the clock stand still at ``NOW``, in UTC, for every function that looks at it, and keep long work from some.

    The rest is done by the same function of another connection.
    """

    def original(name: str, given: Sequence[Any]) -> Any:
        if not hasattr(_local, "other"):
            _local.other = sqlite3.connect(":memory:")
            _limit(_local.other)
        return _local.other.execute(f"SELECT {name}({', '.join('?' * len(given))})", given).fetchone()[0]

    def frozen(name: str, at: int) -> Any:
        def call(*arguments: Any) -> Any:
            given = list(arguments)
            if len(given) <= at:
                given[at:] = ["now"]
            given = [NOW if str(value).strip().lower() == "now" else value for value in given]
            return original(name, [value for value in given if str(value).strip().lower() not in ("localtime", "utc")])

        return call

    def trimmed(name: str) -> Any:
        def call(text: Any, characters: Any) -> Any:
            if isinstance(characters, str | bytes) and len(characters) > MOST_TRIMMED:
                raise ValueError
            return original(name, (text, characters))

        return call

    def formatted(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            # a character is repeated as often as its precision says, whatever the length of the result may be
            if arguments and any("." in one for one in re.findall(r"%[^a-km-zA-Z%]*c", str(arguments[0]))):
                raise ValueError
            return original(name, arguments)

        return call

    for name in CLOCK:
        if name.startswith("current_"):
            part = {"current_date": NOW[:10], "current_time": NOW[11:]}.get(name, NOW)
            db.create_function(name, 0, lambda part=part: part, deterministic=True)
        else:
            db.create_function(name, -1, frozen(name, int(name == "strftime")), deterministic=True)
    for name in ("trim", "ltrim", "rtrim"):
        db.create_function(name, 2, trimmed(name), deterministic=True)
    for name in ("printf", "format"):
        db.create_function(name, -1, formatted(name), deterministic=True)


def session(database: Database, writable: bool = False) -> Session:
    """This thread's connection to a database; the least recently used of many is closed.

    Raises:
        ValueError: As :class:`Session`.
    """
    if getattr(_local, "process", None) != os.getpid():  # a connection must not cross a fork
        _local.process, _local.open = os.getpid(), {}
        vars(_local).pop("other", None)
    key = (database.key, writable)
    found = _local.open.pop(key, None) or Session(database, writable)
    _local.open[key] = found
    if len(_local.open) > MOST_OPEN:
        del _local.open[next(iter(_local.open))]
    return found


def spelled(row: Row) -> str:
    """A row in one line of JSON, not longer than a message may be."""
    return cut(dump([shown(value) for value in row]))
