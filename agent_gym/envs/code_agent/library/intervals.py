"""Closed intervals of integers, given as (start, end) pairs."""


def merge(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of the intervals as sorted, disjoint pairs; intervals that share a point are joined.

    Raises ValueError if an interval ends before it starts.
    """
    merged: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if end < start:
            raise ValueError("an interval ends before it starts")
        if merged and start <= merged[-1][1]:
            last_start, last_end = merged[-1]
            merged[-1] = (last_start, max(last_end, end))
        else:
            merged.append((start, end))
    return merged


def gaps(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the open stretches between the merged intervals, as (end of one, start of the next) pairs."""
    merged = merge(intervals)
    return [(merged[i][1], merged[i + 1][0]) for i in range(len(merged) - 1)]


def covered_length(intervals: list[tuple[int, int]]) -> int:
    """Return the total length (end - start) of the union of the intervals."""
    return sum(end - start for start, end in merge(intervals))


def intersection(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int] | None:
    """Return the interval common to both, which may be a single point, or None if they do not meet."""
    start = max(first[0], second[0])
    end = min(first[1], second[1])
    return (start, end) if start <= end else None
