"""Roman numerals from 1 to 3999."""

SYMBOLS = [
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
]


def to_roman(number: int) -> str:
    """Return the Roman numeral of number; raise ValueError unless 1 <= number <= 3999."""
    if not 1 <= number <= 3999:
        raise ValueError("number out of range")
    parts = []
    for value, symbol in SYMBOLS:
        count, number = divmod(number, value)
        parts.append(symbol * count)
    return "".join(parts)


def from_roman(numeral: str) -> int:
    """Return the number a Roman numeral in capitals stands for.

    Raises ValueError if it is not the numeral that to_roman writes for that number.
    """
    position = 0
    total = 0
    for value, symbol in SYMBOLS:
        while numeral.startswith(symbol, position):
            total += value
            position += len(symbol)
    if position < len(numeral) or not 0 < total < 4000 or to_roman(total) != numeral:
        raise ValueError("not a Roman numeral")
    return total


def add_roman(first: str, second: str) -> str:
    """Return the sum of two numerals as a numeral; raise ValueError if one is wrong or the sum exceeds 3999."""
    return to_roman(from_roman(first) + from_roman(second))
