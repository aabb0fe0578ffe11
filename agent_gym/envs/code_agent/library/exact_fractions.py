"""Fractions as (numerator, denominator), reduced and with a positive denominator."""


def reduce(numerator: int, denominator: int) -> tuple[int, int]:
    """Return the reduced fraction; raise ZeroDivisionError if the denominator is 0."""
    if denominator == 0:
        raise ZeroDivisionError("denominator is 0")
    divisor, rest = abs(numerator), abs(denominator)
    while rest:
        divisor, rest = rest, divisor % rest
    if denominator < 0:
        divisor = -divisor
    return (numerator // divisor, denominator // divisor)


def add_fractions(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """Return the reduced sum."""
    return reduce(first[0] * second[1] + second[0] * first[1], first[1] * second[1])


def divide_fractions(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """Return the reduced quotient; raise ZeroDivisionError if second is 0."""
    return reduce(first[0] * second[1], first[1] * second[0])


def egyptian(numerator: int, denominator: int) -> list[int]:
    """Return the denominators of different unit fractions with that sum, always taking the greatest that fits.

    Raises ValueError unless 0 <= numerator < denominator.
    """
    if not 0 <= numerator < denominator:
        raise ValueError("not a proper fraction")
    parts = []
    while numerator > 0:
        unit = (denominator + numerator - 1) // numerator
        parts.append(unit)
        numerator, denominator = reduce(numerator * unit - denominator, denominator * unit)
    return parts


def decimal_text(numerator: int, denominator: int) -> str:
    """Return a non-negative fraction as a decimal number, a repeating part in round brackets: 1/6 is '0.1(6)'."""
    whole, rest = divmod(numerator, denominator)
    digits = ""
    positions: dict[int, int] = {}
    while rest and rest not in positions:
        positions[rest] = len(digits)
        digit, rest = divmod(rest * 10, denominator)
        digits += str(digit)
    if rest:
        start = positions[rest]
        digits = f"{digits[:start]}({digits[start:]})"
    return f"{whole}.{digits}" if digits else str(whole)
