"""As much of SQL's syntax as is needed without a parser: words, statements, the outer ORDER BY.

What reads a model's text takes a time linear in its length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

__all__ = [
    "CLOCK",
    "Ordered",
    "alternatives",
    "compiled",
    "holds_fence",
    "identifiers",
    "looks_like_query",
    "ordered",
    "reads_clock",
    "statements",
    "tokens",
    "writes",
]

CLOCK = ("current_date", "current_time", "current_timestamp", "date", "datetime", "julianday", "strftime", "time",
         "unixepoch")  # fmt: skip
_TOKEN = re.compile(
    r"""(?xs)
    --[^\n]* | /\*.*?(?:\*/|\Z)                       # comments
    # quoted texts: one that is never closed takes all that follows
    | ('[^']*(?:''[^']*)*'? | "[^"]*(?:""[^"]*)*"? | `[^`]*(?:``[^`]*)*`? | \[[^\]]*\]?
    |  [\w$\x80-\U0010ffff]+(?:\.\d+)? | \S)          # words, numbers, signs
    """
)
_KEYWORDS = frozenset(
    """add all alter and as asc begin between by case cast check collate commit create cross current default delete
    desc distinct drop each else end escape except exclude exists explain filter first following for foreign from full
    glob group groups having if in index indexed inner insert intersect into is isnull join key last left like limit
    match natural not nothing notnull null nulls of offset on or order others outer over partition preceding primary
    range recursive references regexp release replace returning right row rows select set table then ties to
    transaction trigger unbounded union unique update using values view virtual when where window with without
    integer text real blob numeric count sum avg min max""".split()
)


@lru_cache(maxsize=1024)
def tokens(query: str) -> tuple[str, ...]:
    """Words, numbers, quoted texts and signs, without comments."""
    return tuple(found[1] for found in _TOKEN.finditer(query) if found[1])


def statements(text: str) -> list[str]:
    """The statements that semicolons separate, without them."""
    found, start = [], 0
    for match in _TOKEN.finditer(text):
        if match[1] == ";":
            found.append(text[start : match.start()].strip())
            start = match.end()
    found.append(text[start:].strip())
    return [one for one in found if one]


def identifiers(query: str) -> frozenset[str]:
    """Names and literals of a query: what its writer must have known. Keywords and signs are left out."""
    return frozenset(
        word.strip("'\"`[]")
        for word in tokens(query)
        if (word[0].isalnum() or word[0] in "_'\"`[") and word.lower() not in _KEYWORDS
    ) - {""}


def _top_level(query: str) -> list[tuple[int, int, str]]:
    """Start, end and text, in small letters, of the words outside all parentheses; a parenthesis is a word too."""
    found, depth = [], 0
    for match in _TOKEN.finditer(query):
        if match[1]:
            depth -= match[1] == ")"
            if depth == 0:
                found.append((match.start(), match.end(), match[1].lower()))
            depth += match[1] == "("
    return found


_SETS = ("union", "intersect", "except")
_AFTER_ITEMS = ("from", "where", "group", "order", *_SETS)
_DIRECTIONS = ("asc", "desc", "nulls", "first", "last")


@dataclass(frozen=True)
class Ordered:
    """What an outer ORDER BY sorts by.

    Args:
        columns: For each term the number of a column of the result, from 0, or -1 where it is none.
        keyed: The query with its terms and their rank as further columns, in several spellings: the rank is NULL in
            every second, and the later ones have what AS names in the place of the name. Empty where the terms cannot
            be added.
    """

    columns: tuple[int, ...]
    keyed: tuple[str, ...] = ()


def ordered(query: str, names: Sequence[str]) -> Ordered | None:
    """The outer ORDER BY of a query, or None where there is none.

    Args:
        query: One statement that SQLite accepts.
        names: Of the columns of its result.
    """
    top = _top_level(query)
    words = [word for _, _, word in top]
    at = next((n for n in range(len(top) - 2, -1, -1) if words[n] == "order" and words[n + 1] == "by"), None)
    if at is None or "select" not in words:
        return None
    until = next((n for n in range(at, len(top)) if words[n] in ("limit", ";")), len(top))
    terms = [_term(query, part) for part in _parts(top[at + 2 : until])]
    start = words.index("select") + 1
    start += words[start] in ("distinct", "all")
    stop = next(n for n in range(start, at + 1) if words[n] in _AFTER_ITEMS and words[n - 1] != "distinct")
    items = [_item(query, part) for part in _parts(top[start:stop])]
    several = any(word in words[:at] for word in _SETS)
    starred = any(expression.endswith("*") for expression, _ in items)  # then their numbers say nothing
    lower = [name.lower() for name in names]
    columns, expressions = [], []
    for expression, _ in terms:
        word = "" if expression[0] == "'" else _unquoted(expression).lower()
        spelled = tokens(expression.lower())
        written = [n for n, (_, alias) in enumerate(items) if alias and alias == word]
        written += [n for n, (one, _) in enumerate(items) if tokens(one.lower()) == spelled]
        if expression.isdecimal():
            columns.append(int(expression) - 1)
        elif written and not starred:
            columns.append(written[0])
        else:
            columns.append(lower.index(word) if several and lower.count(word) == 1 else -1)
        expressions.append(expression if starred or columns[-1] < 0 or several else items[columns[-1]][0])
    if several or words[stop] != "from" or any(map(str.isdecimal, expressions)):
        return Ordered(tuple(columns))
    aliases = {alias: expression for expression, alias in reversed(items) if alias}
    keyed = []
    named: Mapping[str, str]
    for named in ({}, aliases):
        keys = [_replaced(one, named) for one in expressions]
        sorting = ", ".join(f"{one} {way}" for one, (_, way) in zip(keys, terms, strict=True))
        for rank in (f"dense_rank() OVER (ORDER BY {sorting})", "NULL"):
            added = ", ".join(["", *keys, rank])
            keyed.append(f"{query[: top[stop][0]]}{added} {query[top[stop][0] :]}")
    return Ordered(tuple(columns), tuple(keyed))


def _parts(top: Sequence[tuple[int, int, str]]) -> list[list[tuple[int, int, str]]]:
    """What commas separate."""
    parts: list[list[tuple[int, int, str]]] = [[]]
    for word in top:
        if word[2] == ",":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _term(query: str, part: list[tuple[int, int, str]]) -> tuple[str, str]:
    """Expression and direction of a term of ORDER BY."""
    end = len(part)
    while end > 1 and part[end - 1][2] in _DIRECTIONS:
        end -= 1
    return query[part[0][0] : part[end - 1][1]], query[part[end - 1][1] : part[-1][1]].strip()


def _item(query: str, part: list[tuple[int, int, str]]) -> tuple[str, str]:
    """Expression of a column of the result, and the name that it is given, or nothing."""
    if len(part) > 1 and _is_name(part[-1][2]):
        before = part[-2][2]
        if before == "as":
            return query[part[0][0] : part[-3][1]], _unquoted(part[-1][2])
        if before in (")", "end", "null") or (
            before not in _KEYWORDS and (before[0].isalnum() or before[0] in "_'\"`[")
        ):
            return query[part[0][0] : part[-2][1]], _unquoted(part[-1][2])
    return query[part[0][0] : part[-1][1]] if part else "", ""


def _is_name(word: str) -> bool:
    return word[0] in "'\"`[_" or (word[0].isalpha() and word not in _KEYWORDS) or ord(word[0]) > 127


def _replaced(expression: str, aliases: Mapping[str, str]) -> str:
    """The expression with the names that AS gave replaced by what they name; a name that is no column must not become a
    text, as one between double quotes would.
    """
    found, end, before = "", 0, ""
    matches = [match for match in _TOKEN.finditer(expression) if match[1]]
    for match, after in zip(matches, [*(match[1] for match in matches[1:]), ""], strict=True):
        name, word = _unquoted(match[1]), match[1]
        if name.lower() in aliases and word[0] != "'" and before != "." and after not in (".", "("):
            word = f"({aliases[name.lower()]})"
        elif word[0] == '"':
            word = "`" + name.replace("`", "``") + "`"
        found += expression[end : match.start()] + word
        end, before = match.end(), match[1]
    return found + expression[end:]


def reads_clock(query: str) -> bool:
    """Whether a query asks for the time of day."""
    words = [word.lower() for word in tokens(query)]
    return any(
        word in ("'now'", '"now"', "current_date", "current_time", "current_timestamp")
        or (word in CLOCK and words[at + 1 : at + 3] == ["(", ")"])
        for at, word in enumerate(words)
    )


def writes(statement: str) -> bool:
    """Whether a statement may change rows."""
    return not {"insert", "update", "delete", "replace"}.isdisjoint(map(str.lower, tokens(statement)))


def looks_like_query(text: str) -> bool:
    """Whether a text starts as a query does."""
    first = next((found[1] for found in _TOKEN.finditer(text) if found[1]), "")
    return first.lower() in ("select", "with", "values", "(", "explain")


def holds_fence(text: str) -> bool:
    """Whether three backticks stand outside the quoted texts."""
    return any("```" in word and (word[0] == "`" or word[-1] != word[0]) for word in tokens(text))


_AFTER_FROM = frozenset("select where group having order limit union intersect except set values".split())


def compiled(query: str) -> tuple[int, int, frozenset[str]]:
    """What SQLite faces when it compiles a query, where nothing counts its instructions.

    Returns:
        The tables that its FROM clauses name; a bound on the copies made of a common table expression: the product,
        over all of them, of how often each is named in a FROM clause; and their names.
    """
    words = tokens(query)
    lower = [word.lower() for word in words]
    opened: list[tuple[bool, int]] = []
    closed: dict[int, int] = {}
    named: list[str] = []
    uses: Counter[str] = Counter()
    tables, inside, before = 0, False, ""  # inside: in a FROM clause
    for at, word in enumerate(lower):
        if word == "(":
            opened.append((inside, at))
            inside = inside and before in ("from", "join", ",", "(")  # tables that are joined first
            if before in ("as", "materialized") and (name := _expression(lower, at, closed)) is not None:
                named.append(name)
        elif word == ")" and opened:
            inside, closed[at] = opened.pop()
        elif word in ("from", "join") and before != "distinct":
            tables, inside = tables + 1, True
        elif word == "," and inside:
            tables += 1
        elif word in _AFTER_FROM:
            inside = False
        elif (inside and before in ("from", "join", ",", "(")) or before == "in":
            uses[_unquoted(word)] += 1
        before = word
    copies = 1
    for name in named:
        copies = min(copies * max(1, uses[name]), 10**9)
    return tables, copies, frozenset(named)


def _expression(lower: Sequence[str], at: int, closed: Mapping[int, int]) -> str | None:
    """Name of the common table expression whose parenthesis opens at ``at``: ``name (columns) AS MATERIALIZED (``."""
    at -= 1
    if lower[at] == "materialized":
        at -= 1 + (lower[at - 1] == "not")
    at -= 1
    if lower[at] == ")":
        at = closed.get(at, 0) - 1
    return _unquoted(lower[at]) if at >= 0 else None


def _unquoted(word: str) -> str:
    quote = word[0]
    return word[1:-1].replace(quote * 2, quote) if quote in "'\"`" else word.strip("[]")


def alternatives(query: str) -> list[str]:
    """The queries that a gold with sets of columns in braces stands for: ``SELECT {a,b}`` accepts any of them.

    Every set but ``GROUP BY {}`` may be any part of it that is not empty; an empty pair repeats the last set whole.
    """
    found = re.search(r"\{([^{}]*)\}", query)
    if found is None:
        return [query]
    names = [name.strip() for name in found[1].split(",") if name.strip()]
    rest = re.sub(r"\{\s*\}", ", ".join(names), query[found.end() :])
    chosen = [part for size in range(len(names), 0, -1) for part in combinations(names, size)]
    return [one for part in chosen for one in alternatives(query[: found.start()] + ", ".join(part) + rest)]
