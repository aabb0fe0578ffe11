"""The database as an immutable value: shared content, and the rows that differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from agent_gym.envs.sql_agent.database import Database, Delta, Key, Result, Row, Session, session

__all__ = ["World"]

_MASK = (1 << 128) - 1


def _digest(key: Key, row: Row | None) -> int:
    if row is None:
        return 0
    return int.from_bytes(blake2b(repr((key, row)).encode("utf-8", "replace"), digest_size=16).digest(), "big")


class World:
    """A database and the rows that were changed since. A snapshot of it is a reference.

    The hash is that of the shared content and a sum, modulo 2**128, of the digests of the rows that differ: a function
    of the content alone, updated by one subtraction and one addition a changed row.

    Args:
        database: The shared content.
        writable: Whether the task may change it.
        delta: By place, a row of ``database`` and what stands there now; None where there is none.
    """

    __slots__ = ("_sum", "database", "delta", "writable")

    def __init__(
        self, database: Database, writable: bool = False, delta: Delta | None = None, _sum: int | None = None
    ) -> None:
        self.database, self.writable = database, writable
        self.delta: Delta = delta or {}
        if _sum is None:
            _sum = sum(_digest(key, row) - _digest(key, base) for key, (base, row) in self.delta.items()) & _MASK
        self._sum = _sum

    @property
    def hash(self) -> str:
        """32 hexadecimal digits; that of the file or rows where nothing is changed."""
        if not self._sum:
            return self.database.key
        return blake2b(f"{self.database.key}{self._sum:032x}".encode(), digest_size=16).hexdigest()

    def apply(self, delta: Mapping[Key, tuple[Row | None, Row | None]]) -> World:
        """The world after a statement that changed rows (before, after), by place."""
        rows, total = dict(self.delta), self._sum
        for key, (before, after) in delta.items():
            base = rows[key][0] if key in rows else before
            old, new = _digest(key, before), _digest(key, after)
            total += new - old
            if new == _digest(key, base):
                rows.pop(key, None)
            else:
                rows[key] = (base, after)
        return World(self.database, self.writable, rows, total & _MASK)

    def __reduce__(self) -> tuple[Any, ...]:
        return World, (self.database, self.writable, dict(self.delta), self._sum)

    @property
    def session(self) -> Session:
        """This thread's connection to the shared content."""
        return session(self.database, self.writable)

    def run(self, query: str, **options: Any) -> Result:
        """One statement on this world, which it does not change; see :meth:`Session.run`."""
        return self.session.run(query, self.delta, **options)
