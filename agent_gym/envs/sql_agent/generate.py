"""Tasks of SQL-v0 from a seed: a renamed schema, rows, and a question composed together with its SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np

from agent_gym.envs.splits import split_of
from agent_gym.envs.sql_agent.compare import differences
from agent_gym.envs.sql_agent.database import Database, Result, Row
from agent_gym.envs.sql_agent.mutants import beside, mutants
from agent_gym.envs.sql_agent.schemas import SCHEMAS, Column, Schema, singular
from agent_gym.envs.sql_agent.tasks import SQLTask, gold_result, in_order
from agent_gym.envs.sql_agent.world import World
from agent_gym.tools import Call, ToolError

__all__ = ["KINDS", "LEVELS", "compose", "kind_of"]

LEVELS = (1, 2, 3, 4, 5)
KINDS = ("query", "change")
REFILLS = 2
"""At least; as many more as tell further wrong neighbours of the gold from it."""
MOST_DRAFTS = 400
MOST_FILLS = 60
"""Other rows drawn for one draft."""
ORDERS = 13
"""Beside a task's salt, the seed of the order of its columns; those of its other rows are above it."""
PATIENCE = 16
"""Fillings drawn in a row that tell no further neighbour from the gold: those left say the same, or nearly always."""

Ref = tuple[int, int]
"""A column: the numbers of its table and of itself."""


def kind_of(seed: int) -> str:
    """The kind of the task that a seed gives: every fourth makes a change."""
    return KINDS[seed % 4 == 0]


class _Again(Exception):
    """This draft is no task; draw another."""


# ---- names and rows --------------------------------------------------------------------------------------------------

_SYLLABLES = [
    onset + vowel for onset in "b br d dr f g gl k kl kr l m n p pl r s st t tr v z".split() for vowel in "aeiou"
]


def _words(rng: np.random.Generator, split: str, syllables: int, count: int) -> list[str]:
    """Different made-up words; no two splits have one in common."""
    found: dict[str, None] = {}
    while len(found) < count:
        for numbers in rng.integers(len(_SYLLABLES), size=(4 * count, syllables)).tolist():
            word = "".join([_SYLLABLES[n] for n in numbers]).capitalize()
            if split_of(word) == split:
                found[word] = None
                if len(found) == count:
                    break
    return list(found)


@dataclass
class _Names:
    """A schema with its words chosen: what the database is called, and what the request says.

    ``pools`` holds the values that a column draws from. They belong to the task: all of its databases draw from them.
    ``orders`` has for each table the order of its columns, counted as the id, the references, the others. ``planted``
    has values that must stand in a column for its condition to be told from its neighbours: those on the threshold, and
    those beside it; in the columns ``balanced`` some have to be the average.
    """

    schema: Schema
    tables: list[str]
    columns: dict[Ref, str]
    other_tables: list[str]
    other_columns: dict[Ref, str]
    pools: dict[Ref, list[str]]
    first_ids: list[int]
    orders: list[list[int]] = field(default_factory=list)
    planted: dict[Ref, list[Any]] = field(default_factory=dict)
    balanced: list[Ref] = field(default_factory=list)

    def key(self, table: int, parent: int) -> str:
        """The column of ``table`` that refers to ``parent``."""
        return f"{singular(self.tables[parent])}_id"

    def column(self, ref: Ref) -> Column:
        return self.schema.tables[ref[0]].columns[ref[1]]


def _name(rng: np.random.Generator, split: str, level: int) -> _Names:
    schemas = SCHEMAS[split]
    schema = schemas[int(rng.integers(len(schemas)))]
    tables, columns, others, other_columns = [], {}, [], {}
    pools: dict[Ref, list[str]] = {}
    prefixed = level > 1 and rng.random() < 0.4
    for t, table in enumerate(schema.tables):
        chosen, other = _two(rng, table.words)
        tables.append(chosen)
        others.append(other)
        for c, column in enumerate(table.columns):
            chosen, other = _two(rng, column.words)
            columns[t, c] = f"{tables[t][:2]}_{chosen}" if prefixed else chosen
            other_columns[t, c] = other.replace("_", " ")
            if column.kind in ("name", "place", "kind"):
                size, syllables = {"name": (24, 3), "place": (4, 2), "kind": (3, 2)}[column.kind]
                pools[t, c] = _words(rng, split, syllables, size)
    if level == 1:
        _mix(rng, schema, tables, columns)
    first_ids = [int(rng.integers(1, 900)) for _ in schema.tables]
    return _Names(schema, tables, columns, others, other_columns, pools, first_ids)


_TABLES = [table for schemas in SCHEMAS.values() for schema in schemas for table in schema.tables]
_TABLE_WORDS = sorted({word.capitalize() for table in _TABLES for word in table.words})
_COLUMN_WORDS: dict[str, list[str]] = {}
for _column in sorted({column for table in _TABLES for column in table.columns}, key=lambda column: column.words):
    _known = _COLUMN_WORDS.setdefault(_column.kind, [])
    _known += [word.capitalize() for word in _column.words if word.isalpha() and word.capitalize() not in _known]


def _mix(rng: np.random.Generator, schema: Schema, tables: list[str], columns: dict[Ref, str]) -> None:
    """Give tables and columns the words of any schema, capitalised: ``SELECT Fare FROM Pupils WHERE Crop = ...``.

    Where the request quotes the names, to read them there is the task, and no word should hint at another. In the
    other difficulties words tell what a column is, and the test split's own ones are new; here a small model that has
    no words but those it was trained on can do the test split's tasks too.
    """

    def draw(words: list[str], taken: Collection[str]) -> str:
        free = [word for word in words if word not in taken]
        return free[int(rng.integers(len(free)))]

    for t, table in enumerate(schema.tables):
        tables[t] = draw(_TABLE_WORDS, tables[:t])
        for c, column in enumerate(table.columns):
            columns[t, c] = draw(_COLUMN_WORDS[column.kind], [columns[t, n] for n in range(c)])


def _two(rng: np.random.Generator, words: Sequence[str]) -> tuple[str, str]:
    order = rng.permutation(len(words))
    return words[int(order[0])], words[int(order[-1])]


Rows = dict[str, list[Row]]
"""By table."""


def _fill(names: _Names, seed: Sequence[int], tight: bool = False) -> tuple[list[str], Rows]:
    """The schema, and rows drawn from a seed.

    Args:
        names: The schema with its words.
        seed: Of the rows.
        tight: Whether equal values, groups of all sizes, rows that nothing refers to and rows on the thresholds are
            frequent, as they are where a wrong query gives itself away.
    """
    rng = np.random.default_rng(list(seed))
    ddl, rows, ids = [], {}, []
    for t, table in enumerate(names.schema.tables):
        least, most = (4, 25) if tight else (14, 25) if table.parents else (8, 13)
        count = int(rng.integers(least, most))
        ids.append([names.first_ids[t] + n for n in range(count)])
        parts = ["id INTEGER PRIMARY KEY"]
        values: list[list[Any]] = [list(ids[t])]
        for parent in table.parents:
            parts.append(f"{names.key(t, parent)} INTEGER NOT NULL REFERENCES {names.tables[parent]}(id)")
            values.append(_drawn(rng, ids[parent], count, tight))
        for c, column in enumerate(table.columns):
            kind = {"int": "INTEGER", "money": "REAL"}.get(column.kind, "TEXT")
            parts.append(f"{names.columns[t, c]} {kind}{'' if column.nullable else ' NOT NULL'}")
            pool = names.pools.get((t, c), [])
            if tight:
                drawn = _tight(rng, column, pool, names.planted.get((t, c), []), count)
                balanced = (t, c) in names.balanced and rng.random() < 0.5
                values.append(_balanced(drawn) if balanced else _some_missing(rng, column, drawn))
            else:
                values.append(_values(rng, column, pool, count))
        if tight and rng.random() < 0.5:  # rows that are equal but for the id
            for at, other in rng.integers(0, count, (count // 3, 2)).tolist():
                for entries in values[1:]:
                    entries[at] = entries[other]
        order = names.orders[t]
        ddl.append(f"CREATE TABLE {names.tables[t]} ({', '.join([parts[n] for n in order])})")
        rows[names.tables[t]] = list(zip(*[values[n] for n in order], strict=True))
    return ddl, rows


def _drawn(rng: np.random.Generator, options: Sequence[Any], count: int, skewed: bool) -> list[Any]:
    """Some of the options, or mostly the first of them."""
    if not skewed:
        return [options[int(n)] for n in rng.integers(0, len(options), count)]
    places = rng.random(count)
    places = places * places * places if rng.integers(2) else places
    return [options[int(n)] for n in places * len(options)]


def _balanced(values: list[Any]) -> list[Any]:
    """The numbers with the second half as far below the first value as the first half is above it."""
    middle, half = values[0], (len(values) - 1) // 2
    return [middle, *values[1 : half + 1], *(2 * middle - value for value in values[1 : half + 1]),
            *[middle] * (len(values) - 1 - 2 * half)]  # fmt: skip


def _tight(rng: np.random.Generator, column: Column, pool: Sequence[str], planted: Sequence[Any], count: int) -> list:
    """Values of which many are equal, and many planted."""
    mixed = [a[:2] + b[2:] for a in pool[:4] for b in pool[:4]] if rng.random() < 0.5 else []
    if pool or rng.random() < 0.5:
        values = _drawn(rng, [*pool, *mixed] or _present(rng, column, (), 5), count, True)
    else:
        values = _present(rng, column, (), count)
    if planted:
        share = (0.25, 0.5, 0.8)[int(rng.integers(3))]
        chosen = rng.integers(0, len(planted), count).tolist()
        values = [planted[n] if put else value
                  for value, n, put in zip(values, chosen, rng.random(count) < share, strict=True)]  # fmt: skip
    return values


def _values(rng: np.random.Generator, column: Column, pool: Sequence[str], count: int) -> list[Any]:
    return _some_missing(rng, column, _present(rng, column, pool, count))


def _present(rng: np.random.Generator, column: Column, pool: Sequence[str], count: int) -> list[Any]:
    """Values of a column of which none is missing."""
    values: list[Any]
    if column.kind == "name":
        values = [pool[int(n)] for n in (rng.permutation(len(pool))[:count] if count <= len(pool) else [])]
    elif column.kind in ("place", "kind"):
        values = [pool[int(n)] for n in rng.integers(0, len(pool), count)]
    elif column.kind == "int":
        values = [int(n) for n in rng.integers(column.low, column.high + 1, count)]
    elif column.kind == "money":
        values = [int(n) / 4 for n in rng.integers(column.low * 4, column.high * 4 + 1, count)]
    else:
        values = [_date(int(n)) for n in rng.integers(0, 1080, count)]
    return values


def _some_missing(rng: np.random.Generator, column: Column, values: list[Any]) -> list[Any]:
    if not column.nullable:
        return values
    return [None if missing else value for value, missing in zip(values, rng.random(len(values)) < 0.25, strict=True)]


def _date(day: int) -> str:
    """Years of twelve months of thirty days; no February goes that far, so the days stop at 28."""
    return f"{2021 + day // 360}-{day % 360 // 30 + 1:02d}-{day % 28 + 1:02d}"


# ---- a draft ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Select:
    """A query in parts, so that near misses can be made of it."""

    columns: tuple[str, ...]
    source: str
    where: tuple[str, ...] = ()
    group: str = ""
    having: str = ""
    order: str = ""
    descending: bool = False
    limit: int = 0
    distinct: bool = False

    @property
    def sql(self) -> str:
        parts = [f"SELECT {'DISTINCT ' * self.distinct}{', '.join(self.columns)} FROM {self.source}"]
        parts += [f"WHERE {' AND '.join(self.where)}"] if self.where else []
        parts += [f"GROUP BY {self.group}"] if self.group else []
        parts += [f"HAVING {self.having}"] if self.having else []
        parts += [f"ORDER BY {self.order}{' DESC' * self.descending}"] if self.order else []
        return " ".join(parts + ([f"LIMIT {self.limit}"] if self.limit else []))

    def near_misses(self) -> list[str]:
        """The query with one of its parts left out or turned round."""
        found = [replace(self, where=self.where[:n] + self.where[n + 1 :]) for n in range(len(self.where))]
        if self.having:
            found.append(replace(self, having=""))
        if self.limit:
            found.append(replace(self, limit=0))
        if self.order:
            found.append(replace(self, descending=not self.descending))
        return [one.sql for one in found]


@dataclass
class _Draft:
    """A question as it is composed."""

    sql: str
    request: str
    form: tuple[str, ...]
    """What is asked, names and values left out: compositions are divided between the splits by it."""
    wrong: list[str] = field(default_factory=list)
    longer: str = ""
    """The gold with one row more, where it has a LIMIT: that row must not tie with the one before."""
    single: bool = False
    """Whether the answer may be asked for as a value."""


class _Writer:
    """Draws parts of a question: each as SQL and in words.

    Args:
        rng: Where everything is drawn from.
        names: The schema with its words.
        path: The tables of the question: the first refers to the others, on whatever way.
        level: 1 quotes the schema's names; above, columns have other words.
        known: Whether the request gives the tables' own names.
        rows: The visible rows, by number of the table, without ids and references.
    """

    def __init__(
        self, rng: np.random.Generator, names: _Names, path: Sequence[int], level: int, known: bool, database: Database
    ) -> None:
        self.rng, self.names, self.path, self.level, self.known = rng, names, tuple(path), level, known
        self.database = database
        self.joined = len(path) > 1
        self.spelled: Ref | None = None  # a column whose values the request spells otherwise than the table

    # ---- choices ----

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, options: Sequence[Any]) -> Any:
        if not options:
            raise _Again
        return options[int(self.rng.integers(len(options)))]

    def refs(self, *kinds: str, table: int | None = None, nullable: bool = True) -> list[Ref]:
        tables = self.path if table is None else (table,)
        return [
            (t, c)
            for t in tables
            for c, column in enumerate(self.names.schema.tables[t].columns)
            if (not kinds or column.kind in kinds) and (nullable or not column.nullable)
        ]

    # ---- SQL ----

    def sql(self, ref: Ref) -> str:
        name = self.names.columns[ref]
        return f"{self.names.tables[ref[0]]}.{name}" if self.joined else name

    @property
    def source(self) -> str:
        names, parts = self.names, [self.names.tables[self.path[0]]]
        for at, table in enumerate(self.path[1:], start=1):
            child = self._child(at)
            parts.append(
                f"JOIN {names.tables[table]} ON {names.tables[child]}.{names.key(child, table)}"
                f" = {names.tables[table]}.id"
            )
        return " ".join(parts)

    def _child(self, at: int) -> int:
        """The table of the path that refers to the one at ``at``."""
        return next(t for t in self.path[:at] if self.path[at] in self.names.schema.tables[t].parents)

    # ---- words ----

    def table(self, t: int) -> str:
        return f'"{self.names.tables[t]}"' if self.known else self.names.other_tables[t]

    def one(self, t: int) -> str:
        return singular(self.names.tables[t] if self.known else self.names.other_tables[t])

    def says(self, ref: Ref) -> str:
        if self.level == 1:
            return f'"{self.names.columns[ref]}"'
        word = self.names.other_columns[ref]
        return f"{word} of the {self.one(ref[0])}" if self.joined else word

    @property
    def opening(self) -> str:
        """Which rows are meant, where several tables are joined."""
        if not self.joined:
            return ""
        parts = []
        for at, t in enumerate(self.path[1:], start=1):
            child = self._child(at)
            whose = "its" if child == self.path[0] else f"the {self.one(child)}'s"
            parts.append(f"{whose} {self.one(t)}")
        text = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
        return f"Take every one of the {self.table(self.path[0])} with {text}. "

    @property
    def place(self) -> str:
        """Where the columns are, in one table."""
        return (
            ""
            if self.joined
            else f" of {self.table(self.path[0])}"
            if self.known
            else f" of the {self.table(self.path[0])}"
        )

    # ---- conditions ----

    def values(self, ref: Ref) -> list[Any]:
        """What stands in a column of the visible database, missing values left out."""
        table = self.names.schema.tables[ref[0]]
        at = self.names.orders[ref[0]].index(1 + len(table.parents) + ref[1])
        return [row[at] for row in self.database.rows[self.names.tables[ref[0]]] if row[at] is not None]

    def condition(self, ref: Ref, only: Sequence[str] = ()) -> tuple[str, str, str]:
        """SQL, words, and the kind of condition."""
        column, name, says = self.names.column(ref), self.sql(ref), self.says(ref)
        kinds = {"name": ["eq", "starts"], "place": ["eq", "eq", "ne"], "kind": ["eq", "eq", "ne"]}.get(
            column.kind, ["gt", "lt", "ge", "le"]
        )
        kinds = [kind for kind in kinds if self.level > 1 or kind not in ("starts", "ge", "le")]
        kinds += ["null", "filled"] if column.nullable else []
        kind = self.pick([kind for kind in kinds if not only or kind in only])
        values = sorted(self.values(ref))
        if kind in ("null", "filled"):
            return f"{name} IS {'NOT ' * (kind == 'filled')}NULL", f"{says} is {'not ' * (kind == 'filled')}empty", kind
        if kind in ("eq", "ne"):
            value = self.pick(values)
            self.names.planted[ref] = [value, value, value[:-1], value + value[-1]]
            said = value.capitalize() if ref == self.spelled else value
            sign, word = ("=", "is") if kind == "eq" else ("<>", "is not")
            return f"{name} {sign} '{value}'", f'{says} {word} "{said}"', kind
        if kind == "starts":
            value = self.pick(values)
            start = value[:2]
            inside = f"X{start.lower()}"  # no word starts with this letter
            others = (inside, inside + value[2:], f"{start[0]}y{value[2:]}")
            self.names.planted[ref] = [value, f"{start}y", start, *others]
            return f"{name} LIKE '{start}%'", f'{says} starts with "{start}"', kind
        low, high = len(values) // 5, max(len(values) // 5 + 1, len(values) * 4 // 5)
        value = self.pick(values[low:high])
        literal = f"'{value}'" if column.kind == "date" else str(value)
        self.names.planted[ref] = [value, *(type(value)(one.strip("'")) for one in beside(literal))]
        sign = {"gt": ">", "lt": "<", "ge": ">=", "le": "<="}[kind]
        if column.kind == "date":
            word = {"gt": "after", "lt": "before", "ge": "on or after", "le": "on or before"}[kind]
            return f"{name} {sign} {literal}", f'{says} is {word} "{value}"', f"{kind}-date"
        word = {"gt": "above", "lt": "below", "ge": "at least", "le": "at most"}[kind]
        return f"{name} {sign} {literal}", f"{says} is {word} {value}", kind

    def conditions(self, refs: Sequence[Ref]) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
        """Several conditions, all of which must hold: SQL, words with ``where``, kinds."""
        found = [self.condition(ref) for ref in refs]
        words = " and ".join(words for _, words, _ in found)
        return tuple(f[0] for f in found), f" where {words}" if words else "", tuple(sorted(f[2] for f in found))


# ---- what may be asked -----------------------------------------------------------------------------------------------

_AGGREGATES = {"SUM": "sum of", "AVG": "average of", "MAX": "highest", "MIN": "lowest"}


def _of(w: _Writer, function: str, ref: Ref) -> str:
    the = "the " if w.level > 1 and function in ("SUM", "AVG") else ""
    return f"{_AGGREGATES[function]} {the}{w.says(ref)}"


def _listed(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def _spread(w: _Writer, count: int) -> list[Ref]:
    """Columns of different tables of the path, its ends first, so that no join is idle."""
    middle = [t for at, t in enumerate(w.path) if any(w._child(n) == t for n in range(1, len(w.path)) if n != at)]
    ends = [t for t in w.path if t not in middle]
    order = [ends[int(n)] for n in w.rng.permutation(len(ends))]
    order += [middle[int(n)] for n in w.rng.permutation(len(middle))]
    return [w.pick(w.refs(table=t)) for t in order[: max(count, len(ends))]]


def _project(w: _Writer) -> _Draft:
    """Columns of the rows that fulfil conditions, maybe in order, maybe only the first of them."""
    if w.joined:
        spread = _spread(w, len(w.path))
        shown = spread[: 1 + (len(spread) > 3 or w.chance(0.3))]
        asked = spread[len(shown) :]
        if w.spelled is not None and w.spelled not in asked:
            raise _Again
    else:
        refs = w.refs()
        order = [refs[int(n)] for n in w.rng.permutation(len(refs))]
        if w.spelled is not None:
            order = [*[ref for ref in order if ref != w.spelled], w.spelled]
        many = 1 + w.chance(0.4) + (w.level == 1 and w.chance(0.15))
        shown, asked = order[:many], order[many:][-(1 + w.chance(0.3 if w.level == 1 else 0.4)) :]
    if not asked or not shown:
        raise _Again
    where, words, kinds = w.conditions(asked)
    ordered = w.chance(0.35 if w.level == 1 else 0.45)
    limit, key, tail = 0, "", ""
    form: tuple[str, ...] = ("plain",)
    descending = False
    if ordered:
        keys = w.refs("int", "money", "date", table=w.pick(w.path), nullable=False)
        ref = w.pick([ref for ref in keys if ref not in asked])  # or the condition may say nothing
        key, descending = w.sql(ref), w.chance(0.5)
        limit = int(w.rng.integers(1, 4)) if w.chance(0.5) else 0
        tail = f", ordered by {w.says(ref)}{' descending' * descending}"
        tail += f", only the first {limit}" if limit > 1 else ", only the first" if limit else ""
        form = ("ordered", "down" if descending else "up", "limit" if limit else "all")
    select = _Select(tuple(map(w.sql, shown)), w.source, where, order=key, descending=descending, limit=limit)
    verb = "Show" if w.level == 1 else w.pick(["Show", "Give", "List"])
    the = "" if w.level == 1 else "the "
    request = f"{w.opening}{verb} {the}{_listed([w.says(ref) for ref in shown])}{w.place}{words}{tail}."
    longer = replace(select, limit=limit + 1).sql if limit else ""
    single = len(shown) == 1 and not ordered and w.names.column(shown[0]).kind == "name"
    form = ("project", str(len(shown)), *kinds, *form, str(len(w.path)))
    return _Draft(select.sql, request, form, select.near_misses(), longer, single)


def _aggregate(w: _Writer) -> _Draft:
    """One number over the rows that fulfil conditions."""
    spread = _spread(w, len(w.path)) if w.joined else [w.pick(w.refs())]
    if w.spelled is not None:
        spread = [w.spelled]
    if not w.joined and w.level > 1 and w.chance(0.4):
        spread.append(w.pick([ref for ref in w.refs() if ref not in spread]))
    function = w.pick(["COUNT", *_AGGREGATES])
    if function == "COUNT":
        what, columns = f"Count the rows{w.place}" if not w.joined else "Count these rows", "COUNT(*)"
    else:
        numbers = [ref for ref in w.refs("int", "money") if ref not in spread]
        if w.joined:  # the value comes from one end, or from the rows themselves
            numbers = [ref for ref in numbers if ref[0] in (w.path[0], spread[0][0])]
            spread = [ref for ref in spread if ref[0] != spread[0][0]] if len(spread) > 2 else spread
        ref = w.pick(numbers)
        columns = f"{function}({w.sql(ref)})"
        what = f"Show the {_of(w, function, ref)}{w.place}"
    where, words, kinds = w.conditions(spread)
    select = _Select((columns,), w.source, where)
    form = ("aggregate", function, *kinds, str(len(w.path)))
    single = function != "COUNT"  # a small count is soon guessed
    return _Draft(select.sql, f"{w.opening}{what}{words}.", form, select.near_misses(), single=single)


def _group(w: _Writer) -> _Draft:
    """A number for each group, maybe only of some groups, maybe in order."""
    far = w.path[-1]
    by = w.pick(w.refs("place", "kind", *(["name"] if w.joined else []), table=far))
    numbers = w.refs("int", "money", table=w.path[0])
    function = w.pick(["COUNT", *_AGGREGATES])
    ref = w.pick(numbers)
    what = "COUNT(*)" if function == "COUNT" else f"{function}({w.sql(ref)})"
    says = "number of rows" if function == "COUNT" else _of(w, function, ref)
    where, words, kinds = w.conditions(_rest(w, {far}, by))
    select = _Select((w.sql(by), what), w.source, where, group=w.sql(by))
    request = f"{w.opening}For each {w.says(by)}{w.place}, show it and the {says}{words}"
    form: tuple[str, ...] = ("group", function, *kinds, str(len(w.path)))
    if w.chance(0.6):
        least = int(w.rng.integers(1, 4)) if w.joined or w.chance(0.5) else 2
        select = replace(select, having=f"COUNT(*) > {least}")
        request += f", only where there are more than {least} rows"
        form += ("having",)
    if w.chance(0.5):
        down, limit = w.chance(0.5), int(w.rng.integers(0, 3))
        select = replace(select, order=what, descending=down, limit=limit)
        request += f", ordered by that number{' descending' * down}"
        request += f", only the first {limit}" if limit > 1 else ", only the first" if limit else ""
        form += ("down" if down else "up", "limit" if limit else "all")
    longer = replace(select, limit=select.limit + 1).sql if select.limit else ""
    return _Draft(select.sql, request + ".", form, select.near_misses(), longer)


def _rest(w: _Writer, used: set[int], by: Ref) -> list[Ref]:
    """Columns for the conditions of a grouped question: of each end that it does not mention yet."""
    if not w.joined:
        return [w.pick([ref for ref in w.refs() if ref != by])] if w.chance(0.4) else []
    middle = {w._child(n) for n in range(1, len(w.path))}
    return [w.pick(w.refs(table=t)) for t in w.path if t not in middle and t not in used][:1]


_SETS = {
    "INTERSECT": "that stand both in rows where {a} and in rows where {b}",
    "EXCEPT": "of the rows where {a}, but not those that also stand in rows where {b}",
    "UNION": "of the rows where {a} or where {b}, each only once",
}


def _sets(w: _Writer) -> _Draft:
    """Values of a column in two sets of rows."""
    by = w.pick(w.refs("place", "kind"))
    others = [ref for ref in w.refs() if ref != by]
    if len(others) < 2:
        raise _Again
    order = w.rng.permutation(len(others))
    (one, one_says, a), (two, two_says, b) = (w.condition(others[int(n)]) for n in order[:2])
    operator = w.pick(list(_SETS))
    parts = [_Select((w.sql(by),), w.source, (one,)).sql, _Select((w.sql(by),), w.source, (two,)).sql]
    whole = f" {operator} ".join(parts)
    of_rows = _SETS[operator].format(a=one_says, b=two_says)
    request = f"{w.opening}Show the different values of {w.says(by)}{w.place} {of_rows}."
    wrong = [f" {other} ".join(parts) for other in _SETS if other != operator] + parts
    return _Draft(whole, request, ("sets", operator, *sorted((a, b)), str(len(w.path))), wrong)


def _above(w: _Writer) -> _Draft:
    """Rows above or below the average of all, or with the highest or lowest value."""
    number = w.pick(w.refs("int", "money", table=w.path[0]))
    shown = w.pick([ref for ref in w.refs(table=w.path[-1]) if ref != number])
    table, inner = w.names.tables[number[0]], w.names.columns[number]
    sign, function, words = w.pick(
        [(">", "AVG", "above the average of all rows"), ("<", "AVG", "below the average of all rows"),
         ("=", "MAX", "the highest of all rows"), ("=", "MIN", "the lowest of all rows")]
    )  # fmt: skip
    nested = f"{w.sql(number)} {sign} (SELECT {function}({inner}) FROM {table})"
    w.names.balanced.append(number)
    more = [w.pick([ref for ref in w.refs(table=w.path[0]) if ref not in (number, shown)])] if w.chance(0.4) else []
    where, extra, kinds = w.conditions(more if function == "AVG" else [])
    select = _Select((w.sql(shown),), w.source, (nested, *where))
    request = f"{w.opening}Show the {w.says(shown)}{w.place} where {w.says(number)} is {words}"
    request += f" and {extra.removeprefix(' where ')}" if extra else ""
    return _Draft(select.sql, f"{request}.", ("above", function, sign, *kinds, str(len(w.path))), select.near_misses())


def _related(w: _Writer) -> _Draft:
    """Rows of one table with, or without, a row of another that refers to them."""
    child, parent = w.path[0], w.path[1]
    names = w.names
    inner = replace_path(w, (child,))
    outer = replace_path(w, (parent,))
    some = w.chance(0.5)
    shown = outer.pick(outer.refs(table=parent))
    condition, words, kind = inner.condition(inner.pick(inner.refs(table=child)))
    start = f"SELECT {outer.sql(shown)} FROM {names.tables[parent]}"
    nested = f"SELECT {names.key(child, parent)} FROM {names.tables[child]}"
    sql = f"{start} WHERE id {'NOT ' * (not some)}IN ({nested} WHERE {condition})"
    request = (
        f"Show the {outer.says(shown)} of the {w.table(parent)} that have {'at least one' if some else 'none'} of the "
        f"{w.table(child)} where {words}."
    )
    wrong = [
        start,
        f"{start} WHERE id {'NOT ' * some}IN ({nested} WHERE {condition})",
        f"{start} WHERE id IN ({nested})",
    ]
    return _Draft(sql, request, ("related", "some" if some else "none", kind), wrong)


def replace_path(w: _Writer, path: Sequence[int]) -> _Writer:
    """The same writer on other tables."""
    return _Writer(w.rng, w.names, path, w.level, w.known, w.database)


# ---- changes ---------------------------------------------------------------------------------------------------------


def _change(w: _Writer) -> _Draft:
    """Rows of the path's first table are changed or deleted, by conditions on it or on those it refers to."""
    names, table = w.names, w.path[0]
    inner = replace_path(w, (table,))
    if w.joined:
        target = replace_path(w, (w.path[-1],))
        condition, words, kind = target.condition(target.pick(target.refs(table=w.path[-1])))
        where = f"WHERE {condition}"
        for at in range(len(w.path) - 1, 0, -1):  # from the far end back to the table itself
            child = w._child(at)
            if child != w.path[at - 1]:
                raise _Again
            where = f"WHERE {names.key(child, w.path[at])} IN (SELECT id FROM {names.tables[w.path[at]]} {where})"
        whose = " of the ".join([w.one(t) for t in w.path[:0:-1]])
        words = f" where, for the {whose}, {words}"
        kinds: tuple[str, ...] = (kind,)
    else:
        refs = w.refs()
        chosen = [w.spelled] if w.spelled is not None else [w.pick(refs)]
        conditions, words, kinds = w.conditions(chosen)
        where = f"WHERE {conditions[0]}"
    leaf = all(table not in t.parents for t in names.schema.tables)
    if leaf and w.chance(0.3):
        sql, start = f"DELETE FROM {names.tables[table]} {where}", f"DELETE FROM {names.tables[table]}"
        request = f"Delete the rows of {w.table(table)}{words}." if w.known else f"Delete the {w.table(table)}{words}."
        return _Draft(sql, request, ("delete", *kinds, str(len(w.path))), [start])
    ref = w.pick([r for r in inner.refs(table=table) if names.columns[r] not in where])
    value, said = _new_value(inner, ref)
    start = f"UPDATE {names.tables[table]} SET {names.columns[ref]} = {value}"
    article, of = ("", "") if w.level == 1 else ("the ", "the " * (not w.known))
    request = f"Set {article}{inner.says(ref)} of {of}{w.table(table)} to {said}{words}."
    return _Draft(f"{start} {where}", request, ("update", names.column(ref).kind, *kinds, str(len(w.path))), [start])


def _insert(w: _Writer) -> _Draft:
    """A new row."""
    names, table = w.names, w.path[0]
    if names.schema.tables[table].parents:
        raise _Again
    refs = w.refs()
    drawn = [_new_value(w, ref) for ref in refs]
    number = names.first_ids[table] + int(w.rng.integers(100, 900))
    columns = ", ".join(["id", *(names.columns[ref] for ref in refs)])
    sql = f"INSERT INTO {names.tables[table]} ({columns}) VALUES ({number}, {', '.join(v for v, _ in drawn)})"
    said = ", ".join([f'"id" {number}' if w.level == 1 else f"id {number}",
                      *(f"{w.says(ref)} {words}" for ref, (_, words) in zip(refs, drawn, strict=True))])  # fmt: skip
    the = "" if w.known else "the "
    wrong = [sql.replace(f"({number}, ", f"({number + 1}, ")]
    return _Draft(sql, f"Add a row to {the}{w.table(table)}: {said}.", ("insert", str(len(refs) % 2)), wrong)


def _new_value(w: _Writer, ref: Ref) -> tuple[str, str]:
    """A value as SQL and as the request says it."""
    column = w.names.column(ref)
    if column.kind in ("name", "place", "kind"):
        value = w.pick(w.names.pools[ref])
    else:
        value = _present(w.rng, column, (), 1)[0]
    text = isinstance(value, str)
    return (f"'{value}'", f'"{value}"') if text else (str(value), str(value))


# ---- a task ----------------------------------------------------------------------------------------------------------

Form = Callable[[_Writer], _Draft]

_PARTS = {
    part: number
    for group in (
        "eq gt lt ne ge le null filled starts gt-date lt-date ge-date le-date",
        "COUNT SUM AVG MAX MIN",
        "INTERSECT EXCEPT UNION",
        "> < =",
        "name place kind int money date",
        "plain ordered having",
        "up down",
        "all limit",
        "some none",
    )
    for number, part in enumerate(group.split())
}


def _held_out(form: tuple[str, ...]) -> bool:
    """Whether a composition is kept for the test split.

    A quarter is. The sum of the parts' numbers decides, so each part is met in training, in other company.
    """
    return sum(int(part) if part.isdecimal() else _PARTS[part] for part in form[1:]) % 4 == 0


def _plan(
    rng: np.random.Generator, names: _Names, level: int, change: bool
) -> tuple[list[int], bool, bool, list[Form]]:
    """Tables, whether the request names them, whether a value is spelled otherwise, and the forms to choose from."""

    def pick(*options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    single: list[Form] = [_project, _aggregate]
    if level == 1:
        return _path(rng, names, 1), True, False, [_change, _change, _insert] if change else single
    # looks left after the submission: a description of each table, a sample, a list of the tables
    tables, listed, sample = {
        2: pick((1, False, False), (1, False, False), (0, False, True)),
        3: pick((2, False, False), (2, False, False), (1, True, False), (1, False, True)),
        4: pick((2, True, False), (2, True, False), (3, False, False)),
        5: pick((3, True, False), (3, True, False), (4, False, False)),
    }[level]
    path = _path(rng, names, max(1, tables), chain=change)
    if change:
        return path, not listed, sample, [_change] if sample or tables > 1 else [_change, _change, _insert]
    if sample:
        return path, not listed, True, single
    if len(path) == 1:
        return path, not listed, False, [*single, _group, _sets, _above]
    if len(path) == 2:
        return (
            path,
            not listed,
            False,
            [*single, _group, _above, _sets] + [_related, _related] * (level > 3 or not listed),
        )
    return path, not listed, False, [*single, _group, _above, _sets]


def _path(rng: np.random.Generator, names: _Names, count: int, chain: bool = False) -> list[int]:
    """Tables that references connect, the one that refers to all others first; in a chain each refers to the next."""
    tables = names.schema.tables
    path = [int(rng.integers(len(tables)))]
    while len(path) < count:
        ways = [p for t in (path[-1:] if chain else path) for p in tables[t].parents if p not in path]
        if not ways:
            raise _Again
        path.append(ways[int(rng.integers(len(ways)))])
    return path


def _attempt(rng: np.random.Generator, split: str, level: int, seed: int) -> SQLTask:
    """A task, or :class:`_Again`."""
    change = kind_of(seed) == "change"
    names = _name(rng, split, level)
    path, known, sample, forms = _plan(rng, names, level, change)
    spelled = None
    if sample:
        refs = [ref for ref in names.pools if ref[0] == path[0] and names.column(ref).kind in ("place", "kind")]
        if not refs:
            raise _Again
        spelled = refs[int(rng.integers(len(refs)))]
        names.pools[spelled] = [word.upper() for word in names.pools[spelled]]
    salt = int(rng.integers(2**31))
    order = np.random.default_rng([salt, ORDERS])
    names.orders = [order.permutation(1 + len(t.parents) + len(t.columns)).tolist() for t in names.schema.tables]
    visible = Database(*_fill(names, (salt, 0)))
    if sample and not (level > 2):  # the columns are named, only the value has to be looked up
        names.other_columns = {ref: f'"{name}"' for ref, name in names.columns.items()}
    writer = _Writer(rng, names, path, level, known, visible)
    writer.spelled = spelled
    draft = forms[int(rng.integers(len(forms)))](writer)
    if _held_out(draft.form) != (split == "test") or _idle_join(writer, draft.sql):
        raise _Again
    request = draft.request
    if spelled is not None:
        if not any(word in draft.sql for word in names.pools[spelled]):
            raise _Again
        request += " The table may spell values in other letters, capital or small."
    looks = [] if known or level == 1 else [Call("list_tables", {})]
    if level > 2 or (level == 2 and not sample):
        looks += [Call("describe_table", {"table": names.tables[t]}) for t in path]
    looks += [Call("sample_rows", {"table": names.tables[path[0]], "count": 1})] if sample else []
    if len(looks) + 1 != level:
        raise _Again
    last = Call("submit_sql", {"query": draft.sql})
    task = SQLTask(
        f"{split}-{level}-{seed}", request, World(visible, writable=change), (draft.sql,), wrong=tuple(draft.wrong)
    )
    task = replace(task, refills=_refills(names, salt, draft, visible, change))
    if change:
        return replace(task, calls=(*looks, last))
    result = gold_result(visible, draft.sql)
    if draft.single and level > 1 and len(result.rows) == 1 and rng.random() < 0.5:
        last = Call("run_sql", {"query": draft.sql})
        task = replace(task, value=True, request=f"{request} Answer with the value alone.")
    return replace(task, calls=(*looks, last))


def _idle_join(w: _Writer, sql: str) -> bool:
    """Whether a table is joined to which nothing else refers: the question would be the same without it."""
    joins = sql.count(w.source) if w.joined else 0
    names = [w.names.tables[t] + "." for t in w.path[1:] if all(w._child(n) != t for n in range(1, len(w.path)))]
    return joins > 0 and any(sql.count(name) <= joins * w.source.count(name) for name in names)


class _Trial:
    """Rows under trial, in plain SQLite: what the generator writes needs neither bounds nor a log."""

    def __init__(self, ddl: Sequence[str], rows: Mapping[str, Sequence[Row]]) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ddl:
            self._db.execute(statement)
        for table, entries in rows.items():
            self._db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(entries[0]))})", entries)

    def run(self, query: str) -> Result:
        try:
            cursor = self._db.execute(query)
            return Result(tuple(entry[0] for entry in cursor.description), cursor.fetchall(), False, 0.0, {})
        except sqlite3.Error as error:
            raise ToolError("sql", str(error)) from None

    def judge(self, draft: _Draft) -> Callable[[str], bool] | None:
        """Whether another query gives something else here; None where the gold does not say anything."""
        gold, ties = in_order(self.run, draft.sql)
        if not _telling(gold):
            return None
        if draft.longer:
            _, more = in_order(self.run, draft.longer)
            if len(more or ()) > len(gold.rows) and more[-1] == more[-2]:  # type: ignore[index]
                return None

        def differs(other: str) -> bool:
            try:
                return bool(differences(gold, self.run(other), ties))
            except ToolError:
                return True

        return differs

    def judge_change(self, draft: _Draft) -> Callable[[str], bool] | None:
        """Whether another statement changes something else here; None where the gold does not change anything."""
        words = draft.sql.split()
        rows = f"SELECT * FROM {words[1] if words[0] == 'UPDATE' else words[2]}"

        def after(statement: str) -> list[Row] | None:
            self._db.execute("BEGIN")
            try:
                self._db.execute(statement)
                return self._db.execute(rows).fetchall()
            except sqlite3.Error:
                return None
            finally:
                self._db.execute("ROLLBACK")

        goal = after(draft.sql)
        if goal is None or goal == self._db.execute(rows).fetchall():
            return None
        return lambda other: after(other) != goal


def _copied(trial: _Trial, sql: str, change: bool) -> list[str]:
    """What a statement says on some rows, whatever the rows: its result in literals, or its changes by their ids."""
    if not change:
        rows = trial.run(sql).rows
        return ["VALUES " + ", ".join(f"({', '.join(map(_literal, row))})" for row in rows)]
    start, _, where = sql.partition(" WHERE ")
    if not where:
        return []
    table = start.split()[1 if start.startswith("UPDATE") else 2]
    ids = [str(row[0]) for row in trial.run(f"SELECT id FROM {table} WHERE {where}").rows]
    return [f"{start} WHERE id IN ({', '.join(ids)})"]


def _literal(value: Any) -> str:
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


def _refills(names: _Names, salt: int, draft: _Draft, visible: Database, change: bool) -> tuple[Database, ...]:
    """Other rows on which, and on the visible ones, the gold says something, and its near misses and neighbours, and
    what it says on the visible rows, something else.
    """

    def judge(trial: _Trial) -> Callable[[str], bool] | None:
        return trial.judge_change(draft) if change else trial.judge(draft)

    seen = _Trial(visible.ddl, visible.rows)
    differs = judge(seen)
    if differs is None:
        raise _Again
    schema = names.schema.tables
    columns = {
        table: ["id", *(names.key(t, p) for p in schema[t].parents),
                *(names.columns[t, c] for c in range(len(schema[t].columns)))]
        for t, table in enumerate(names.tables)
    }  # fmt: skip
    nullable = {f"{names.tables[ref[0]]}.{name}" for ref, name in names.columns.items() if names.column(ref).nullable}
    wrong = [*draft.wrong, *_copied(seen, draft.sql, change)]
    alive = [one for one in (*wrong, *mutants(draft.sql, columns, nullable)) if not differs(one)]
    found: list[tuple[list[str], Rows]] = []
    spare: list[tuple[list[str], Rows]] = []
    idle = 0
    for number in range(1, MOST_FILLS + 1):
        if (not alive and len(found) + len(spare) >= REFILLS) or idle >= PATIENCE:
            break
        ddl, rows = _fill(names, (salt, ORDERS + number), tight=True)
        differs = judge(_Trial(ddl, rows))
        if differs is None:
            continue
        left = [one for one in alive if not differs(one)]
        (found if len(left) < len(alive) else spare).append((ddl, rows))
        idle = 0 if len(left) < len(alive) else idle + 1
        alive = left
    found += spare[: max(0, REFILLS - len(found))]
    if len(found) < REFILLS or any(one in alive for one in wrong):
        raise _Again
    return tuple(Database(ddl, rows) for ddl, rows in found)


def _telling(result: Result) -> bool:
    """Whether a result is not empty, nor a lone zero, nor all missing values."""
    return any(any(value not in (None, 0) for value in row) for row in result.rows)


@lru_cache(maxsize=1024)
def compose(split: str, level: int, seed: int) -> SQLTask:
    """The task of a seed.

    Args:
        split: One of ``SPLITS``.
        level: Difficulty, 1 to 5.
        seed: Any whole number from 0.

    Raises:
        RuntimeError: If no draft became a task.
    """
    rng = np.random.default_rng([crc32(split.encode()), level, seed])
    for _ in range(MOST_DRAFTS):
        try:
            return _attempt(rng, split, level, seed)
        except (_Again, ToolError):
            continue
    raise RuntimeError(f"no task for {split}-{level}-{seed} in {MOST_DRAFTS} drafts")
