"""Bus lines as (name, first departure, minutes between buses, [(stop, minutes after departure), ...])."""

from typing import Any


def stop_offset(line: tuple[str, int, int, list[tuple[str, int]]], stop: str) -> int:
    """Return the minutes from the departure to the stop; raise KeyError if the line does not serve it."""
    for name, minutes in line[3]:
        if name == stop:
            return minutes
    raise KeyError(stop)


def next_bus(line: tuple[str, int, int, list[tuple[str, int]]], stop: str, now: int) -> int:
    """Return the first time at or after now at which a bus of the line is at the stop; the line never ends."""
    first = line[1] + stop_offset(line, stop)
    if now <= first:
        return first
    waits = (now - first + line[2] - 1) // line[2]
    return first + waits * line[2]


def board(lines: list[Any], stop: str, now: int) -> list[tuple[int, str]]:
    """Return, sorted, (time, line name) of the next bus of each line that serves the stop."""
    entries = []
    for line in lines:
        if stop in [name for name, _ in line[3]]:
            entries.append((next_bus(line, stop, now), line[0]))
    return sorted(entries)
