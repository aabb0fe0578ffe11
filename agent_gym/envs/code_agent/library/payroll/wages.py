"""Wages in cents."""

from work_hours import split_overtime


def gross_pay(shifts: list[tuple[int, int]], weekly: int, hourly: int) -> int:
    """Return the pay of a week: hourly per hour, one and a half times that for overtime, rounded down at the end.

    Raises ValueError if hourly is negative.
    """
    if hourly < 0:
        raise ValueError("negative wage")
    regular, overtime = split_overtime(shifts, weekly)
    return (2 * regular * hourly + 3 * overtime * hourly) // 120


def deductions(gross: int, children: int) -> dict[str, int]:
    """Return 'insurance', 9 percent, and 'tax', 20 percent of what is above 50000 plus 5000 per child, rounded down."""
    free = 50000 + 5000 * children
    return {"insurance": gross * 9 // 100, "tax": max(0, gross - free) * 20 // 100}


def net_pay(gross: int, children: int, advances: list[int]) -> int:
    """Return gross less deductions and advances; raise ValueError if the advances exceed the rest."""
    rest = gross - sum(deductions(gross, children).values())
    if sum(advances) > rest:
        raise ValueError("too many advances")
    return rest - sum(advances)
