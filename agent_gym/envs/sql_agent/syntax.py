"""As much of SQL's syntax as is needed without a parser: words, statements, the outer ORDER BY.

What reads a model's text takes a time linear in its length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

__all__ = [
    "CLOCK",
    "alternatives",
    "compiled",
    "holds_fence",
    "identifiers",
    "looks_like_query",
    "order_keys",
    "reads_clock",
    "statements",
    "tokens",
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


def _top_level(query: str) -> Iterator[tuple[int, str]]:
    """Number and text of the tokens outside all parentheses."""
    depth = 0
    for at, word in enumerate(tokens(query)):
        depth -= word == ")"
        if depth == 0 and word not in "()":
            yield at, word.lower()
        depth += word == "("


def order_keys(query: str) -> tuple[str, ...] | None:
    """The terms of the ORDER BY that stands outside all parentheses, or None where there is none.

    A term that is a name (its table left out) or a number comes as such in lower case, any other as ``""``.
    """
    top = list(_top_level(query))
    starts = [n for n, (_, word) in enumerate(top[:-1]) if word == "order" and top[n + 1][1] == "by"]
    if not starts:
        return None
    first = top[starts[-1] + 1][0] + 1
    ends = [at for at, word in top if at >= first and word in ("limit", ";")]
    words = tokens(query)[first : ends[0] if ends else None]
    terms: list[list[str]] = [[]]
    depth = 0
    for word in words:
        depth += (word == "(") - (word == ")")
        if word == "," and depth == 0:
            terms.append([])
        else:
            terms[-1].append(word)
    return tuple(map(_name, terms))


def _name(term: list[str]) -> str:
    words = [word for word in term if word.lower() not in ("asc", "desc", "nulls", "first", "last")]
    if len(words) == 3 and words[1] == ".":
        words = words[2:]
    return words[0].strip('"`[]').lower() if len(words) == 1 and words[0][0] not in "'" else ""


def reads_clock(query: str) -> bool:
    """Whether a query asks for the time of day."""
    words = [word.lower() for word in tokens(query)]
    return any(
        word in ("'now'", '"now"', "current_date", "current_time", "current_timestamp")
        or (word in CLOCK and words[at + 1 : at + 3] == ["(", ")"])
        for at, word in enumerate(words)
    )


def looks_like_query(text: str) -> bool:
    """Whether a text starts as a query does."""
    first = next((found[1] for found in _TOKEN.finditer(text) if found[1]), "")
    return first.lower() in ("select", "with", "values", "(", "explain")


def holds_fence(text: str) -> bool:
    """Whether three backticks stand outside the quoted texts."""
    return any("```" in word and (word[0] == "`" or word[-1] != word[0]) for word in tokens(text))


_AFTER_FROM = frozenset("select where group having order limit window union intersect except set values".split())


def compiled(query: str) -> tuple[int, int]:
    """What SQLite faces when it compiles a query, where nothing counts its instructions.

    Returns:
        The tables that its FROM clauses name, and a bound on the copies made of a common table expression: the product,
        over all of them, of how often each is named in a FROM clause.
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
    return tables, copies


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
