"""Numbers written in bases from 2 to 36, with digits 0-9 and a-z."""

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def to_base(number: int, base: int) -> str:
    """Return number in the given base, with a leading '-' if negative; raise ValueError unless 2 <= base <= 36."""
    if not 2 <= base <= 36:
        raise ValueError("bad base")
    if number == 0:
        return "0"
    digits = ""
    rest = abs(number)
    while rest:
        rest, digit = divmod(rest, base)
        digits = DIGITS[digit] + digits
    return "-" + digits if number < 0 else digits


def from_base(text: str, base: int) -> int:
    """Return the number that text stands for; capitals are allowed and a leading '-' makes it negative.

    Raises ValueError unless 2 <= base <= 36 and text has at least one digit and only digits of the base.
    """
    if not 2 <= base <= 36:
        raise ValueError("bad base")
    digits = text.removeprefix("-").lower()
    if not digits:
        raise ValueError("no digits")
    value = 0
    for char in digits:
        digit = DIGITS.index(char)
        if digit >= base:
            raise ValueError("digit too large")
        value = value * base + digit
    return -value if text.startswith("-") else value


def convert(text: str, source: int, target: int) -> str:
    """Return the number written in base source rewritten in base target; raise ValueError as from_base does."""
    return to_base(from_base(text, source), target)


def digit_sum(number: int, base: int) -> int:
    """Return the sum of the digits of abs(number) in the given base."""
    return sum(DIGITS.index(char) for char in to_base(abs(number), base))


def valid_numbers(texts: list[str], base: int) -> list[int]:
    """Return the numbers of those texts that are numbers in the given base, in order; the others are left out."""
    numbers = []
    for text in texts:
        try:
            numbers.append(from_base(text, base))
        except ValueError:
            continue
    return numbers
