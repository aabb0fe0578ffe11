"""Version numbers such as '1.4.2' or '2.0-rc1'."""


def parse_version(text: str) -> tuple[list[int], str]:
    """Return the numbers without trailing zeros and the label after the first '-', '' if there is none.

    Raises ValueError if a part between the dots is not made of digits.
    """
    numbers, _, label = text.partition("-")
    parts = numbers.split(".")
    if not all(part.isdigit() for part in parts):
        raise ValueError("not a version")
    values = [int(part) for part in parts]
    while values and values[-1] == 0:
        values.pop()
    return values, label


def compare(first: str, second: str) -> int:
    """Return -1, 0 or 1 as first is older than, the same as or newer than second.

    With equal numbers a labelled version is older than one without a label, and labels compare as text.
    """
    numbers_a, label_a = parse_version(first)
    numbers_b, label_b = parse_version(second)
    if numbers_a != numbers_b:
        return -1 if numbers_a < numbers_b else 1
    if label_a == label_b:
        return 0
    if not label_a or not label_b:
        return 1 if not label_a else -1
    return -1 if label_a < label_b else 1


def newest(candidates: list[str]) -> str:
    """Return the newest version, the first of equal ones; raise ValueError if there are none."""
    if not candidates:
        raise ValueError("no versions")
    best = candidates[0]
    for candidate in candidates[1:]:
        if compare(candidate, best) > 0:
            best = candidate
    return best


def is_compatible(version: str, base: str) -> bool:
    """Return whether version is at least base and has the same first number."""
    first = parse_version(version)[0][:1]
    return compare(version, base) >= 0 and first == parse_version(base)[0][:1]


def split_valid(candidates: list[str]) -> tuple[list[str], list[str]]:
    """Return (the candidates that are versions, those that are not), each in order."""
    valid: list[str] = []
    invalid: list[str] = []
    for candidate in candidates:
        try:
            parse_version(candidate)
            valid.append(candidate)
        except ValueError:
            invalid.append(candidate)
    return (valid, invalid)
