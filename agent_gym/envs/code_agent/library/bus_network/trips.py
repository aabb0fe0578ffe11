"""Trips with the bus lines of timetable."""

from typing import Any

from timetable import next_bus, stop_offset


def ride(line: tuple[str, int, int, list[tuple[str, int]]], origin: str, target: str, now: int) -> int:
    """Return when one arrives at target with the next bus from origin at or after now.

    Raises KeyError for an unknown stop and ValueError if target does not come after origin.
    """
    minutes = stop_offset(line, target) - stop_offset(line, origin)
    if minutes <= 0:
        raise ValueError("wrong direction")
    return next_bus(line, origin, now) + minutes


def direct_trip(lines: list[Any], origin: str, target: str, now: int) -> tuple[int, str] | None:
    """Return (arrival, line name) of the earliest direct trip, of several the alphabetically first, or None."""
    best = None
    for line in lines:
        stops = [name for name, _ in line[3]]
        if origin in stops and target in stops and stops.index(origin) < stops.index(target):
            option = (ride(line, origin, target, now), line[0])
            if best is None or option < best:
                best = option
    return best


def transfer_trip(lines: list[Any], origin: str, target: str, now: int, change: int) -> int | None:
    """Return the earliest arrival with exactly one change of bus, which takes change minutes, or None."""
    arrivals = []
    stops = sorted({name for line in lines for name, _ in line[3]} - {origin, target})
    for stop in stops:
        first = direct_trip(lines, origin, stop, now)
        if first is None:
            continue
        second = direct_trip(lines, stop, target, first[0] + change)
        if second is not None:
            arrivals.append(second[0])
    return min(arrivals, default=None)
