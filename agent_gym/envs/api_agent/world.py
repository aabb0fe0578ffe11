"""The services' state: immutable tables of frozen records, hashed incrementally."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from agent_gym.tools import ToolError

__all__ = ["Record", "Transaction", "World"]

Delta = Mapping[tuple[str, str], "Record | None"]


class Record(BaseModel):
    """One row of a service. Subclass it with typed fields; the first field is the primary key.

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


def _digest(table: str, record: Record) -> int:
    data = b"%b\0%b" % (table.encode(), record.__pydantic_serializer__.to_json(record))
    return int.from_bytes(blake2b(data, digest_size=16).digest(), "big")


class World:
    """Tables of records. A change makes a new world that shares every untouched table with the old one.

    The hash is the sum of the records' digests modulo 2**128: a function of the content alone, updated by one
    subtraction and one addition a changed record (Bellare & Micciancio 1997, incremental hashing).

    Args:
        tables: Records by key, by table; each table sorted by key, so that listings do not depend on history.
    """

    __slots__ = ("_sum", "tables")

    def __init__(self, tables: Mapping[str, Table], _sum: int | None = None) -> None:
        self.tables = tables
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
        return f"{self._sum:032x}"

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
        return World(tables, total & _MASK)

    def differences(self, other: World) -> dict[str, tuple[Any, Any]]:
        """Where two worlds differ: ``{"orders.O1234.status": (here, there)}``; None stands for a missing record."""
        found: dict[str, tuple[Any, Any]] = {}
        if self._sum == other._sum:
            return found
        for name in sorted({*self.tables, *other.tables}):
            here, there = self.tables.get(name, {}), other.tables.get(name, {})
            if here is there:
                continue
            for key in sorted({*here, *there}):
                a, b = here.get(key), there.get(key)
                if a is b or a == b:
                    continue
                if a is None or b is None:
                    found[f"{name}.{key}"] = (a and a.model_dump(mode="json"), b and b.model_dump(mode="json"))
                    continue
                fields = {**type(a).model_fields, **type(b).model_fields}
                pairs = ((f, getattr(a, f, None), getattr(b, f, None)) for f in fields)
                found.update({f"{name}.{key}.{f}": (x, y) for f, x, y in pairs if x != y})
        return found

    def __getstate__(self) -> tuple[Any, int]:
        return self.tables, self._sum

    def __setstate__(self, state: tuple[Any, int]) -> None:
        self.tables, self._sum = state


class Transaction:
    """What a tool sees of the world. Changes take effect together when the tool returns, and not at all when it
    raises. ``rows`` counts the records it touched, which is what its latency is charged by.
    """

    __slots__ = ("changes", "rows", "world")

    def __init__(self, world: World) -> None:
        self.world, self.rows = world, 0
        self.changes: dict[tuple[str, str], Record | None] = {}

    def _rows(self, table: str) -> Mapping[str, Record]:
        """A table with this transaction's own changes."""
        rows = self.world.tables[table]
        own = {key: record for (name, key), record in self.changes.items() if name == table}
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
        return record  # type: ignore[return-value]

    def scan(self, model: type[R], table: str) -> list[R]:
        """Every record, by key: long and slow."""
        rows = self._rows(table)
        self.rows += len(rows)
        return list(rows.values())  # type: ignore[arg-type]

    def find(self, model: type[R], table: str, **equal: Any) -> list[R]:
        """The records whose fields have the given values, by key, through an index: only they are charged."""
        matches = self._rows(table).values()
        for name, value in equal.items():
            matches = [row for row in matches if getattr(row, name) == value]  # type: ignore[assignment]
        self.rows += len(matches) + 1
        return list(matches)  # type: ignore[arg-type]

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
