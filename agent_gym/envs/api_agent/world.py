"""The services' state: immutable tables of frozen records, hashed incrementally."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from agent_gym.tools import ToolError

__all__ = ["Record", "Transaction", "World"]

Delta = Mapping[tuple[str, str], "Record | None"]


class Record(BaseModel):
    """One row of a service. Subclass it with typed fields; the first field is the primary key, a string. A field may
    hold lists, dicts with text for keys and models of pydantic's, nested as deep as you like.

    Strings that name an entity must come from the draft (``g.id``, ``g.person`` ...), so that splits stay disjoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def key(self) -> str:
        """Value of the first field."""
        return getattr(self, next(iter(self.__pydantic_fields__)))


R = TypeVar("R", bound=Record)
Table = dict[str, Record]
_MASK = (1 << 128) - 1
_NESTED = (list, tuple, dict, set, BaseModel)
NOW = datetime(2031, 1, 1)
"""Where the clock stands unless a task says otherwise."""


def _spelled(record: Record) -> bytes:
    """A record as JSON, the same for equal content: the order of a dict's keys counts for nothing."""
    data = record.__pydantic_serializer__.to_json(record)
    if data.find(b"{", 1) < 0:  # no object in it
        return data
    return json.dumps(json.loads(data), sort_keys=True).encode()


def _digest(table: str, record: Record) -> int:
    data = b"%b\0%b" % (table.encode(), _spelled(record))
    return int.from_bytes(blake2b(data, digest_size=16).digest(), "big")


def _unlike(path: str, here: Any, there: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Where two values of JSON differ. Lists of unequal length differ as a whole, and so does what only one has."""
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(here, dict) and isinstance(there, dict):
        for key in sorted({*here, *there}):
            if (key in here) != (key in there):
                yield f"{path}.{key}", (here.get(key), there.get(key))
            else:
                pairs.append((key, here[key], there[key]))
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        pairs = [(str(at), a, b) for at, (a, b) in enumerate(zip(here, there, strict=True))]
    elif type(here) is not type(there) or here != there:
        yield path, (here, there)
    for part, a, b in pairs:
        yield from _unlike(f"{path}.{part}", a, b)


class World:
    """Tables of records. A change makes a new world that shares every untouched table with the old one.

    The hash is the sum of the records' digests modulo 2**128: a function of the content alone, updated by one
    subtraction and one addition a changed record (Bellare & Micciancio 1997, incremental hashing).

    Args:
        tables: Records by key, by table; each table sorted by key, so that listings do not depend on history.
        now: Where the clock stands.
    """

    __slots__ = ("_sum", "now", "tables")

    def __init__(self, tables: Mapping[str, Table], _sum: int | None = None, now: datetime = NOW) -> None:
        self.tables, self.now = tables, now
        if _sum is None:
            _sum = sum(_digest(name, record) for name, table in tables.items() for record in table.values()) & _MASK
        self._sum = _sum

    @classmethod
    def of(cls, records: Mapping[str, Iterable[Record]]) -> World:
        """A world of the given records by table."""
        return cls({name: {r.key: r for r in sorted(rows, key=lambda r: r.key)} for name, rows in records.items()})

    @property
    def hash(self) -> str:
        """32 hexadecimal digits."""
        if self.now == NOW:
            return f"{self._sum:032x}"
        return blake2b(f"{self._sum:032x}{self.now.isoformat()}".encode(), digest_size=16).hexdigest()

    def at(self, now: datetime) -> World:
        """The same tables at another time."""
        return World(self.tables, self._sum, now)

    def apply(self, delta: Delta) -> World:
        """The world with the given records put, or deleted where the value is None."""
        tables, total = dict(self.tables), self._sum
        for name in {name for name, _ in delta}:
            table = dict(tables[name])
            grown = False
            for (of, key), record in delta.items():
                if of != name:
                    continue
                if key in table:
                    total -= _digest(name, table[key])
                if record is None:
                    table.pop(key, None)
                else:
                    grown |= key not in table
                    table[key] = record
                    total += _digest(name, record)
            tables[name] = dict(sorted(table.items())) if grown else table
        return World(tables, total & _MASK, self.now)

    def differences(self, other: World) -> dict[str, tuple[Any, Any]]:
        """Where two worlds differ: ``{"orders.O1234.status": (here, there)}``; None stands for what is missing.

        Records are compared, never hashes: records whose digests add up to a wanted sum can be searched for.
        """
        found: dict[str, tuple[Any, Any]] = {}
        for name in sorted({*self.tables, *other.tables}):
            here, there = self.tables.get(name, {}), other.tables.get(name, {})
            if here is there:
                continue
            for key in sorted(key for key in {**here, **there} if here.get(key) is not there.get(key)):
                a, b = here.get(key), there.get(key)
                if a and b and _spelled(a) == _spelled(b):
                    continue
                pair = (a and a.model_dump(mode="json"), b and b.model_dump(mode="json"))
                found.update(_unlike(f"{name}.{key}", *pair))
        return found

    def __getstate__(self) -> tuple[Any, int, datetime]:
        return self.tables, self._sum, self.now

    def __setstate__(self, state: tuple[Any, int, datetime]) -> None:
        self.tables, self._sum, self.now = state


class Transaction:
    """What a tool sees of the world. Changes take effect together when the tool returns, and not at all when it
    raises. A list, dict or model inside a record that it got may be changed in place: that is a change like one by
    :meth:`update`. ``rows`` counts the records it touched, which is what its latency is charged by.
    """

    __slots__ = ("_lent", "changes", "rows", "world")

    def __init__(self, world: World) -> None:
        self.world, self.rows = world, 0
        self.changes: dict[tuple[str, str], Record | None] = {}
        self._lent: dict[tuple[str, str], Record] = {}  # copies of records that could be changed in place

    @property
    def now(self) -> datetime:
        """The time, which stands still: a task's ``now``, or 2031-01-01 00:00."""
        return self.world.now

    @property
    def delta(self) -> Delta:
        """All changes, those in place too."""
        in_place = {at: copy for at, copy in self._lent.items() if copy != self.world.tables[at[0]][at[1]]}
        return {**in_place, **self.changes}

    def _own(self, table: str, record: Any) -> Any:
        """A record as the tool may have it: one that could be changed in place as this transaction's only copy."""
        at = (table, record.key)
        if at in self.changes or not any(isinstance(v, _NESTED) for v in vars(record).values()):
            return record
        if at not in self._lent:
            self._lent[at] = record.model_copy(deep=True)
        return self._lent[at]

    def _rows(self, table: str) -> Mapping[str, Record]:
        """A table with this transaction's own changes."""
        rows = self.world.tables[table]
        own = {key: record for (name, key), record in (*self._lent.items(), *self.changes.items()) if name == table}
        if not own:
            return rows
        return {key: record for key, record in sorted({**rows, **own}.items()) if record is not None}

    def get(self, model: type[R], table: str, key: str) -> R:
        """One record by key.

        Raises:
            ToolError: ``not_found``.
        """
        self.rows += 1
        record = self.changes.get((table, key), self.world.tables[table].get(key))
        if record is None:
            raise ToolError("not_found", f"there is no {key!r} in {table}")
        return self._own(table, record)

    def scan(self, model: type[R], table: str) -> list[R]:
        """Every record, by key: long and slow."""
        rows = self._rows(table)
        self.rows += len(rows)
        return [self._own(table, row) for row in rows.values()]

    def find(self, model: type[R], table: str, **equal: Any) -> list[R]:
        """The records whose fields have the given values, by key, through an index: only they are charged."""
        matches = self._rows(table).values()
        for name, value in equal.items():
            matches = [row for row in matches if getattr(row, name) == value]  # type: ignore[assignment]
        self.rows += len(matches) + 1
        return [self._own(table, row) for row in matches]

    def add(self, table: str, record: R) -> R:
        """A new record.

        Raises:
            ToolError: ``conflict`` if the key is taken.
        """
        if record.key in self._rows(table):
            raise ToolError("conflict", f"{record.key!r} is already in {table}")
        self.rows += 1
        self.changes[table, record.key] = record
        return record

    def update(self, table: str, record: R, **changes: Any) -> R:
        """The record with some fields changed. Values are trusted: tools validated them."""
        changed = record.model_copy(update=changes)
        self.changes[table, record.key] = changed
        return changed

    def delete(self, table: str, record: Record) -> None:
        """Remove a record; nothing brings it back."""
        self.changes[table, record.key] = None


def new_key(prefix: str, *content: Any) -> str:
    """Key of a record that a tool creates: a hash of its content, so that the order of writes leaves no trace."""
    digest = blake2b("\0".join(map(str, content)).encode(), digest_size=4).digest()
    return f"{prefix}{int.from_bytes(digest, 'big') % 90000 + 10000}"
