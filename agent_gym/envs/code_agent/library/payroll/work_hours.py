"""Working times as (arrival, departure) in minutes since midnight; a night shift departs before it arrives."""


def worked_minutes(arrival: int, departure: int) -> int:
    """Return the minutes worked without the break: 30 minutes from 6 hours on, 45 from 9 hours on."""
    present = (departure - arrival) % (24 * 60)
    if present >= 9 * 60:
        return present - 45
    return present - 30 if present >= 6 * 60 else present


def round_minutes(minutes: int, step: int) -> int:
    """Return minutes rounded down to a multiple of step; raise ValueError if step is below 1."""
    if step < 1:
        raise ValueError("step must be positive")
    return minutes - minutes % step


def split_overtime(shifts: list[tuple[int, int]], weekly: int) -> tuple[int, int]:
    """Return (minutes up to weekly, minutes beyond) of all shifts, each rounded down to 5 minutes."""
    total = sum(round_minutes(worked_minutes(arrival, departure), 5) for arrival, departure in shifts)
    return (min(total, weekly), max(0, total - weekly))
