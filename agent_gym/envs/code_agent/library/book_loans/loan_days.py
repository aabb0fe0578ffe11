"""Periods of loans, in day numbers."""


def due_day(start: int, kind: str, extensions: int) -> int:
    """Return when a loan is due: 28 days for a 'book', 7 for a 'film', plus half as many, rounded down, per extension.

    Raises KeyError for another kind and ValueError unless extensions is within 0..2.
    """
    days = {"book": 28, "film": 7}[kind]
    if not 0 <= extensions <= 2:
        raise ValueError("too many extensions")
    return start + days + extensions * (days // 2)


def days_late(due: int, returned: int, closed: list[int]) -> int:
    """Return how many days after due passed up to the return, the returned day included, closed days not counted."""
    return sum(1 for day in range(due + 1, returned + 1) if day not in closed)
