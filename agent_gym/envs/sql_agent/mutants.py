"""Wrong neighbours of a statement of the generator: one part of it changed, as a slip of its writer would."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise

__all__ = ["beside", "mutants"]

_WORD = re.compile(r"'[^']*'|[\w.]+|<=|>=|<>|\S")
_COMPARISONS = ("<", "<=", ">", ">=", "=", "<>")
_AGGREGATES = ("COUNT", "SUM", "AVG", "MIN", "MAX")
_SETS = ("UNION", "INTERSECT", "EXCEPT", "UNION ALL")
_DATE = re.compile(r"'(\d{4}-\d\d)-(\d\d)'")
_END = {"WHERE": ("GROUP", "HAVING", "ORDER", "LIMIT", *_SETS), "HAVING": ("ORDER", "LIMIT"), "ORDER": ("LIMIT",),
        "GROUP": ("HAVING", "ORDER", "LIMIT"), "LIMIT": (), "ON": ("JOIN", "WHERE", "GROUP", *_SETS)}  # fmt: skip


def beside(literal: str) -> list[str]:
    """The nearest values of a number, a money amount or a date, one on each side."""
    if found := _DATE.fullmatch(literal):
        return [f"'{found[1]}-{min(28, max(1, int(found[2]) + step)):02d}'" for step in (-1, 1)]
    step = 0.25 if "." in literal else 1
    return [str(type(step)(literal) + sign * step) for sign in (-1, 1)]


def mutants(sql: str, tables: Mapping[str, Sequence[str]], nullable: Collection[str]) -> list[str]:
    """The statement with one part changed: a comparison, an aggregate, a kind or condition of a join, a condition left
    out, AND for OR, DISTINCT, the order, the limit, a set operation, a value, a column.

    What the schema makes the same as the statement is left out: outer joins that keep the row that refers, as it
    refers to one always; counts of a column without missing values; DISTINCT where rows differ anyhow.

    Args:
        sql: A statement of the generator.
        tables: Columns by table.
        nullable: Columns in which a value may be missing, as ``table.column``.
    """
    words = _WORD.findall(sql)
    found = (" ".join(one) for one in _mutants(words, tables, nullable))
    return list(dict.fromkeys(one for one in found if one != " ".join(words)))


def _mutants(words: list[str], tables: Mapping[str, Sequence[str]], nullable: Collection[str]) -> Iterator[list[str]]:
    def swapped(at: int, *instead: str) -> list[str]:
        return [*words[:at], *instead, *words[at + 1 :]]

    where = words.index("WHERE") if "WHERE" in words else len(words)
    joining = {n for at, word in enumerate(words) if word == "ON" for n in range(at, _ends(words, at, _END["ON"]))}
    several = not {*_SETS}.isdisjoint(words)
    columns = {table: [*names] for table, names in tables.items() if table in words}
    for at, word in enumerate(words):
        before = words[at - 1] if at else ""
        after = words[at + 1] if at + 1 < len(words) else ""
        plain = at not in joining or several  # where a join is all that a part of a set has
        if word in _COMPARISONS and plain and not (words[0] == "UPDATE" and at < where):
            extreme = {"MAX": ">=", "MIN": "<="}.get(words[at + 3] if after == "(" else "")  # which is the same as =
            yield from (swapped(at, sign) for sign in _COMPARISONS if sign not in (word, extreme))
        elif word in _AGGREGATES and after == "(":
            if words[at + 2] == "*":
                every = [f"{table}.{name}" for table, names in columns.items() for name in names if name != "id"]
                yield from (swapped(at + 2, one) for one in every if one in nullable)
                yield from (swapped(at + 2, "DISTINCT", one) for one in every)
            else:
                yield from (swapped(at, other) for other in _AGGREGATES if other != word)
                yield [*words[:at], "COUNT", "(", "*", ")", *words[at + 4 :]]
                if word in ("SUM", "AVG"):
                    yield swapped(at + 1, "(", "DISTINCT")
        elif word == "SELECT" and at == 0 and after not in _AGGREGATES and not several and "GROUP" not in words:
            yield swapped(at, "SELECT", "DISTINCT")
        elif word in _END:
            end = _ends(words, at, _END[word])
            if word != "ON":
                yield words[:at] + words[end:]
            if word in ("WHERE", "HAVING"):
                yield from _conditions(words, at, end)
            if word == "ORDER":
                yield (
                    words[: end - 1] + words[end:] if words[end - 1] == "DESC" else [*words[:end], "DESC", *words[end:]]
                )
            if word == "LIMIT":
                yield from (swapped(at + 1, str(int(after) + step)) for step in (-1, 1))
            if word == "ON":
                yield words[:at] + words[end:]
                start = max(n for n in range(at) if words[n] == "FROM") + 1
                earlier = {words[n + 1] for n in range(start - 1, at - 2) if words[n] in ("FROM", "JOIN")}
                if not earlier & _tested(words, at):  # or the rows that an outer join adds are left out again
                    inner = ["(", *words[start : at - 2], ")"]
                    yield [*words[:start], words[at - 1], "LEFT", "JOIN", *inner, *words[at:]]
        elif word in _SETS:
            yield from (swapped(at, other) for other in _SETS if other != word)
            if word == "EXCEPT":
                yield [*words[at + 1 :], word, *words[:at]]
            yield words[:at]
            yield words[at + 1 :]
        elif word == "IN" and before != "NOT":
            yield swapped(at, "NOT", "IN")
        elif word == "NOT":
            yield words[:at] + words[at + 1 :]
        elif word == "NULL" and before == "IS":
            yield swapped(at, "NOT", "NULL")
        elif word[0] == "'" and before == "LIKE":
            first = word[1:-2]
            yield from (swapped(at, f"'{pattern}'") for pattern in (f"%{first}%", f"%{first}", first, f"{first[0]}%"))
        elif re.fullmatch(r"\d+(\.\d+)?|'\d{4}-\d\d-\d\d'", word) and before not in ("LIMIT",):
            yield from (swapped(at, other) for other in beside(word))
        elif "." in word or word in (name for names in columns.values() for name in names):
            table, _, name = word.rpartition(".")
            for other, names in columns.items():
                if table in ("", other) and name in names:
                    yield from (swapped(at, f"{table}.{one}".lstrip(".")) for one in names
                                if one != name and (at not in joining or one.endswith("id")))  # fmt: skip


def _ends(words: Sequence[str], at: int, stops: Sequence[str]) -> int:
    """Where the clause that starts at ``at`` ends."""
    depth = 0
    for end in range(at + 1, len(words)):
        depth += (words[end] == "(") - (words[end] == ")")
        if depth < 0 or (depth == 0 and words[end] in stops):
            return end
    return len(words)


def _tested(words: list[str], at: int) -> set[str]:
    """The tables whose columns the WHERE after ``at`` compares with something."""
    start = next((n for n in range(at, len(words)) if words[n] == "WHERE"), len(words))
    end = _ends(words, start, _END["WHERE"])
    return {words[n].split(".")[0] for n in range(start, end - 1) if words[n + 1] in (*_COMPARISONS, "LIKE")}


def _conditions(words: list[str], at: int, end: int) -> Iterator[list[str]]:
    """Of several conditions one left out, or any of them enough."""
    ands = [n for n in range(at, end) if words[n] == "AND"]
    for left, right in pairwise([at, *ands, end] if ands else []):
        yield words[:left] + words[right:] if left != at else [*words[: at + 1], *words[right + 1 :]]
    yield from ([*words[:n], "OR", *words[n + 1 :]] for n in ands)
