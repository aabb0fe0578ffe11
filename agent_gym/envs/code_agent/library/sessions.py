"""Grouping of events, given by their times in seconds."""


def split_sessions(times: list[int], pause: int) -> list[list[int]]:
    """Return the sorted times in groups; a new group starts where more than pause seconds have passed.

    Raises ValueError if pause is negative.
    """
    if pause < 0:
        raise ValueError("pause is negative")
    sessions: list[list[int]] = []
    for time in sorted(times):
        if sessions and time - sessions[-1][-1] <= pause:
            sessions[-1].append(time)
        else:
            sessions.append([time])
    return sessions


def session_spans(times: list[int], pause: int) -> list[tuple[int, int, int]]:
    """Return (first time, last time, number of events) for each session."""
    return [(group[0], group[-1], len(group)) for group in split_sessions(times, pause)]


def busiest_window(times: list[int], length: int) -> tuple[int, int]:
    """Return (start, count) of the window [start, start + length) that starts at an event and holds the most.

    The earliest of several is taken. Raises ValueError if there are no times.
    """
    if not times:
        raise ValueError("no events")
    best_start, best_count = 0, 0
    for start in sorted(set(times)):
        count = sum(1 for time in times if start <= time < start + length)
        if count > best_count:
            best_start, best_count = start, count
    return (best_start, best_count)


def drop_bursts(times: list[int], pause: int) -> list[int]:
    """Return the sorted times without those that come less than pause seconds after the last one kept."""
    kept: list[int] = []
    for time in sorted(times):
        if not kept or time - kept[-1] >= pause:
            kept.append(time)
    return kept
