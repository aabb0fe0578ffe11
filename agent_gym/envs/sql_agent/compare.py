"""Whether two results say the same: as bags of rows, with the columns in any order, floats within a tolerance."""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from agent_gym.envs.sql_agent.database import Result, Row, cut, spelled

__all__ = ["differences", "same_rows", "same_value"]

TOLERANCE = 1e-6
"""Relative, and absolute below 1."""
MOST_ORDERS = 2000
"""Orders of columns tried, among those that give each column the right values, if there are few rows."""
MOST_COMPARED = 1_000_000
"""Rows compared in all of them."""
MOST_GREEDY = 300


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def same_value(a: Any, b: Any) -> bool:
    """NULL equals NULL alone, text never equals a number, whole numbers are equal or not."""
    if _is_number(a) and _is_number(b):
        if a == b or (isinstance(a, int) and isinstance(b, int)) or max(abs(a), abs(b)) > sys.float_info.max:
            return bool(a == b)  # a whole number may be too large for a float
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(a) is type(b) and a == b


def same_rows(a: Row, b: Row) -> bool:
    """Whether two rows are equal, value by value."""
    return len(a) == len(b) and all(map(same_value, a, b))


def _unmatched(expected: Sequence[Row], found: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of two bags that have no partner in the other."""
    have = Counter(found)
    missing = []
    for row in expected:
        if have[row] > 0:
            have[row] -= 1
        else:
            missing.append(row)
    extra = list(have.elements())
    if not missing or not extra:
        return missing, extra
    boxes: defaultdict[tuple[Any, ...], tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((missing, extra)):
        for row in rows:  # within a box only the numbers differ
            boxes[tuple(0.0 if _is_number(v) else (type(v).__name__, v) for v in row)][side].append(row)
    missing, extra = [], []
    for left, right in boxes.values():
        left.sort(key=_numbers)
        right.sort(key=_numbers)
        if len(left) != len(right) or not all(map(same_rows, left, right)):
            left, right = _greedy(left, right)
            missing += left
            extra += right
    return missing, extra


def _numbers(row: Row) -> tuple[Any, ...]:
    return tuple(value for value in row if _is_number(value))


def _greedy(left: list[Row], right: list[Row]) -> tuple[list[Row], list[Row]]:
    if len(left) * len(right) > MOST_GREEDY**2:
        return left, right
    rest, alone = list(right), []
    for row in left:
        at = next((n for n, other in enumerate(rest) if same_rows(row, other)), None)
        if at is None:
            alone.append(row)
        else:
            del rest[at]
    return alone, rest


def _orders(expected: Sequence[Row], found: Sequence[Row], width: int) -> Iterator[tuple[int, ...]]:
    """Orders of the found columns in which each has the values of the expected column at its place."""
    wanted, have = [list(zip(*rows, strict=True)) for rows in (expected, found)]
    fits = [
        [j for j in range(width) if not any(_unmatched([(v,) for v in wanted[i]], [(v,) for v in have[j]]))]
        for i in range(width)
    ]
    if not all(fits):
        return iter(())
    chosen: list[int] = []

    def search(i: int) -> Iterator[tuple[int, ...]]:
        if i == width:
            yield tuple(chosen)
            return
        tried: list[int] = []
        # the column that stands at this place is tried first
        for j in sorted(fits[i], key=lambda j: j != i):
            if j in chosen or any(have[j] == have[k] for k in tried):  # equal columns stand in for each other
                continue
            tried.append(j)
            chosen.append(j)
            yield from search(i + 1)
            chosen.pop()

    return search(0)


def _in_order(expected: Sequence[Row], found: Sequence[Row], ties: Sequence[int]) -> bool:
    """Whether the rows come in the same order; those of one tie may change places."""
    at = 0
    while at < len(expected):
        end = at + 1
        while end < len(expected) and ties[at] == ties[end]:
            end += 1
        if any(_unmatched(expected[at:end], found[at:end])):
            return False
        at = end
    return True


def differences(expected: Result, found: Result, ties: Sequence[int] | None = None) -> list[str]:
    """Where a result differs from the gold's, one line each; empty where they say the same.

    Args:
        expected: The gold's.
        found: The submission's.
        ties: Where the gold orders, a number for each of its rows: those with the same one, which stand together, may
            come in any order (see :func:`~agent_gym.envs.sql_agent.tasks.gold_order`).
    """
    width = len(expected.columns)
    if len(found.columns) != width:
        names = ", ".join(found.columns) or "none"
        return [f"expected {width} column{'s' * (width != 1)}, found {len(found.columns)}: {cut(names)}"]
    if not expected.rows and not found.rows:
        return []
    best: tuple[list[Row], list[Row]] | None = None
    if expected.rows and len(found.rows) == len(expected.rows) and not found.more:
        misplaced = False
        for number, places in enumerate(_orders(expected.rows, found.rows, width)):
            rows = [tuple(row[j] for j in places) for row in found.rows]
            left = _unmatched(expected.rows, rows)
            if not any(left):
                if ties is None or _in_order(expected.rows, rows, ties):
                    return []
                misplaced = True
            elif best is None:
                best = left
            if number >= min(MOST_ORDERS, MOST_COMPARED // len(rows)):
                break
        if misplaced:
            return ["the rows are right, their order is not"]
    missing, extra = best or _unmatched(expected.rows, found.rows)
    count = f"{'more than ' if found.more else ''}{len(found.rows)}"
    lines = [f"expected {len(expected.rows)} rows, found {count}"] if count != str(len(expected.rows)) else []
    lines += [f"missing row: {spelled(missing[0])}"] if missing else []
    return lines + ([f"unexpected row: {spelled(extra[0])}"] if extra else [])
