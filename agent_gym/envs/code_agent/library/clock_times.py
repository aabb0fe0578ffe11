"""Times of the day written as 'HH:MM'."""

DAY = 24 * 60


def to_minutes(clock: str) -> int:
    """Return the minutes since midnight; raise ValueError unless clock is two digits, ':' and two digits of a time."""
    hours, colon, minutes = clock.partition(":")
    if not colon or len(hours) != 2 or len(minutes) != 2 or not (hours + minutes).isdigit():
        raise ValueError("not a time")
    if int(hours) > 23 or int(minutes) > 59:
        raise ValueError("no such time")
    return int(hours) * 60 + int(minutes)


def to_clock(minutes: int) -> str:
    """Return the time that many minutes after midnight, on whatever day that is."""
    hours, rest = divmod(minutes % DAY, 60)
    return f"{hours:02d}:{rest:02d}"


def add_minutes(clock: str, minutes: int) -> str:
    """Return the time minutes later, or earlier if negative, past midnight if need be."""
    return to_clock(to_minutes(clock) + minutes)


def minutes_between(start: str, end: str) -> int:
    """Return the minutes from start to the next end; 0 if they are equal."""
    return (to_minutes(end) - to_minutes(start)) % DAY


def twelve_hours(clock: str) -> str:
    """Return the time like '1:05 pm'; midnight is 12:00 am and noon 12:00 pm."""
    hours, minutes = divmod(to_minutes(clock), 60)
    half = "am" if hours < 12 else "pm"
    return f"{(hours + 11) % 12 + 1}:{minutes:02d} {half}"


def is_open(clock: str, opening: str, closing: str) -> bool:
    """Return whether opening <= clock < closing, where closing may be past midnight; equal times mean always."""
    now, start, end = to_minutes(clock), to_minutes(opening), to_minutes(closing)
    if start < end:
        return start <= now < end
    return now >= start or now < end
