"""Dates of the Gregorian calendar as (year, month, day) with year >= 1."""

MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def is_leap(year: int) -> bool:
    """Return whether year has a 29 February: every fourth, but of the hundreds only every fourth hundred."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def days_in_month(year: int, month: int) -> int:
    """Return the number of days of the month; raise ValueError unless 1 <= month <= 12."""
    if not 1 <= month <= 12:
        raise ValueError("no such month")
    return 29 if month == 2 and is_leap(year) else MONTH_DAYS[month - 1]


def day_of_year(year: int, month: int, day: int) -> int:
    """Return the number of the day in its year, counting from 1; raise ValueError if there is no such date."""
    if not 1 <= day <= days_in_month(year, month):
        raise ValueError("no such day")
    return sum(days_in_month(year, earlier) for earlier in range(1, month)) + day


def day_number(year: int, month: int, day: int) -> int:
    """Return the number of the day counted from 1 January of year 1, which is 1; ValueError for no such date."""
    past = year - 1
    return past * 365 + past // 4 - past // 100 + past // 400 + day_of_year(year, month, day)


def weekday(year: int, month: int, day: int) -> str:
    """Return the English name of the weekday; 1 January of year 1 is a Monday."""
    return WEEKDAYS[(day_number(year, month, day) - 1) % 7]


def add_days(year: int, month: int, day: int, count: int) -> tuple[int, int, int]:
    """Return the date count days later (count >= 0); raise ValueError if count is negative."""
    if count < 0:
        raise ValueError("count is negative")
    day += count
    while day > days_in_month(year, month):
        day -= days_in_month(year, month)
        month += 1
        if month > 12:
            year, month = year + 1, 1
    return (year, month, day)
