"""Planning of meetings given as (start, end) hours; a meeting may start when another one ends."""

import heapq


def overlaps(meetings: list[tuple[int, int]]) -> bool:
    """Return whether two of the meetings take place at the same time."""
    ordered = sorted(meetings)
    return any(ordered[i + 1][0] < ordered[i][1] for i in range(len(ordered) - 1))


def most_meetings(meetings: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return as many meetings without overlap as possible, always taking the one that ends first, then starts first."""
    chosen: list[tuple[int, int]] = []
    for start, end in sorted(meetings, key=lambda meeting: (meeting[1], meeting[0])):
        if not chosen or start >= chosen[-1][1]:
            chosen.append((start, end))
    return chosen


def rooms_needed(meetings: list[tuple[int, int]]) -> int:
    """Return the least number of rooms that the meetings need."""
    busy: list[int] = []
    rooms = 0
    for start, end in sorted(meetings):
        while busy and busy[0] <= start:
            heapq.heappop(busy)
        heapq.heappush(busy, end)
        rooms = max(rooms, len(busy))
    return rooms


def free_slot(meetings: list[tuple[int, int]], length: int, opening: int, closing: int) -> int | None:
    """Return the earliest hour from opening on at which length free hours start that end by closing, or None.

    Raises ValueError if length is below 1.
    """
    if length < 1:
        raise ValueError("length must be positive")
    hour = opening
    for start, end in sorted(meetings):
        if start - hour >= length:
            break
        hour = max(hour, end)
    return hour if hour + length <= closing else None
