"""What a small policy says before it acts: the way from the request's words to the value that it needs, as text that
stands in a result (a scratchpad: Nye et al. 2021, arXiv:2112.00114).

A model of a million parameters copies what it sees, but hardly ever learns to find it in two steps within one pass: the
record of the asked name, and of that record the id. Said aloud, each step is a copy. An oracle needs none of this, so
only the demonstrations for small policies hold it.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain

from agent_gym.envs.sql_agent.schemas import SCHEMAS

__all__ = ["THOUGHTS"]

Thought = Callable[[str, Sequence[str], Sequence[Sequence[str]]], str]
"""From the request, the results so far, and the values that this action writes and each one after it."""


def _says(text: str, value: object) -> bool:
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text) is not None


def _of_records(request: str, results: Sequence[str], coming: Sequence[Sequence[str]]) -> str:
    """After a list of records of which one is asked for by name: each of them as it stands there, from its id to its
    name, up to the one that is meant; that one to the last value that will be needed."""
    if not results or results[-1] in results[:-1]:  # said when it was read first
        return ""
    try:
        rows = json.loads(results[-1])
    except ValueError:  # an error, in words
        return ""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or len(rows) < 2:
        return ""
    known = "\n".join([request, *results[:-1]])
    needed = {value for value in chain(*coming) if not _says(known, value)}
    for at, row in enumerate(rows):
        named = [
            key for key, value in list(row.items())[1:]
            if _says(request, value) and sum(value == other.get(key) for other in rows) == 1
        ]  # fmt: skip
        wanted = [key for key, value in row.items() if str(value) in needed]
        if named and wanted:
            to = max(named[0], *wanted, key=list(row).index)
            return "\n".join([_stretch(other, named[0]) for other in rows[:at]] + [_stretch(row, to)])
    return ""


def _stretch(record: dict[str, object], key: str) -> str:
    """A record's JSON from within its first value up to within the value of a key."""
    values = {name: record[name] for name in list(record)[: list(record).index(key) + 1]}
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    return text.partition(":")[2].strip('"').removesuffix("}").removesuffix('"')


def _of_elements(request: str, results: Sequence[str], coming: Sequence[Sequence[str]]) -> str:
    """Before a page's element is touched: its label and its number, as they stand on the page. Before an answer that
    ends a line there: that line."""
    asked, _, first = request.partition("\n")
    page = results[-1] if results else first
    for value in coming[0]:
        found = re.search(rf'"[^"\n]*" \[{re.escape(value)}\]|^\S+ {re.escape(value)}$', page, re.MULTILINE)
        if found and not _says(asked, value):
            return found[0]
    return ""


_WORDS = sorted({  # in the same order in every process: of words of one length the first is said
    column.words for schema in chain(*SCHEMAS.values()) for table in schema.tables for column in table.columns
})  # fmt: skip


def _of_columns(request: str, results: Sequence[str], coming: Sequence[Sequence[str]]) -> str:
    """Before a query: the request's word for each column that has another name there, and that name."""
    shown = "\n".join(results)
    pairs = []
    for name in dict.fromkeys(re.findall(r"\w+", re.sub("'[^']*'", "", " ".join(coming[0])))):
        if not _says(request, name) and _says(shown, name):
            said = [
                word.replace("_", " ") for words in _WORDS if any(name == w or name.endswith(f"_{w}") for w in words)
                for word in words if _says(request, word.replace("_", " "))
            ]  # fmt: skip
            pairs += [f"{max(said, key=len)} {name}"] if said else []
    return "\n".join(pairs)


THOUGHTS: dict[str, Thought] = {
    "APIAgent-v0": _of_records, "SQL-v0": _of_columns, "WebLite-v0": _of_elements,
}  # fmt: skip
"""By environment."""
