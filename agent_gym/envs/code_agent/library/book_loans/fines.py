"""Fines in cents for loans (kind, start, extensions, returned)."""

from loan_days import days_late, due_day


def fine(late: int, child: bool) -> int:
    """Return 20 per day for the first 7 days late and 50 for each further day, at most 1000; half for a child."""
    cents = 20 * min(late, 7) + 50 * max(0, late - 7)
    cents = min(cents, 1000)
    return cents // 2 if child else cents


def total_fines(loans: list[tuple[str, int, int, int]], closed: list[int], child: bool) -> int:
    """Return the fines for all loans together; raise KeyError and ValueError as due_day does."""
    total = 0
    for kind, start, extensions, returned in loans:
        late = days_late(due_day(start, kind, extensions), returned, closed)
        total += fine(late, child)
    return total


def may_borrow(open_loans: list[tuple[str, int, int]], today: int, owed: int) -> bool:
    """Return whether owed is below 500, fewer than 5 loans (kind, start, extensions) are open and none is late."""
    if owed >= 500 or len(open_loans) >= 5:
        return False
    return all(due_day(start, kind, extensions) >= today for kind, start, extensions in open_loans)


def reminders(open_loans: list[tuple[str, int, int]], today: int) -> list[tuple[int, int]]:
    """Return (index, days left) of the open loans due today or within the next 3 days, the most urgent first."""
    found = []
    for index, (kind, start, extensions) in enumerate(open_loans):
        left = due_day(start, kind, extensions) - today
        if 0 <= left <= 3:
            found.append((index, left))
    return sorted(found, key=lambda item: (item[1], item[0]))
