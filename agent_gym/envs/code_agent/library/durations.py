"""Durations in seconds and text such as '1h30m' or '2d'."""

UNITS = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]


def parse_duration(text: str) -> int:
    """Return the seconds of a text of numbers each followed by d, h, m or s, every unit at most once and falling.

    Raises ValueError for anything else, also for empty text.
    """
    seconds = 0
    rest = text
    for unit, size in UNITS:
        number, found, remainder = rest.partition(unit)
        if found and number.isdigit():
            seconds += int(number) * size
            rest = remainder
    if rest or not text:
        raise ValueError("not a duration")
    return seconds


def format_duration(seconds: int) -> str:
    """Return the text of the duration without units of which there are none; '0s' for 0, ValueError if negative."""
    if seconds < 0:
        raise ValueError("negative duration")
    parts = []
    for unit, size in UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def rounded(seconds: int) -> str:
    """Return the duration in its largest unit alone, rounded to the nearest whole, halves up; '0s' for 0."""
    for unit, size in UNITS:
        if seconds >= size:
            return f"{(seconds + size // 2) // size}{unit}"
    return "0s"


def total_duration(texts: list[str]) -> str:
    """Return the sum of the durations as text; raise ValueError if one cannot be parsed."""
    return format_duration(sum(parse_duration(text) for text in texts))
