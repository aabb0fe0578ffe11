"""Polynomials with integer coefficients, lowest power first; the zero polynomial is []."""


def trim(coefficients: list[int]) -> list[int]:
    """Return the coefficients without zeros at the high end."""
    size = len(coefficients)
    while size > 0 and coefficients[size - 1] == 0:
        size -= 1
    return coefficients[:size]


def add(left: list[int], right: list[int]) -> list[int]:
    """Return the sum, trimmed."""
    size = max(len(left), len(right))
    padded_left = left + [0] * (size - len(left))
    padded_right = right + [0] * (size - len(right))
    return trim([a + b for a, b in zip(padded_left, padded_right, strict=True)])


def product(left: list[int], right: list[int]) -> list[int]:
    """Return the product, trimmed."""
    result = [0] * (len(left) + len(right))
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            result[i + j] += a * b
    return trim(result)


def derivative(coefficients: list[int]) -> list[int]:
    """Return the derivative, trimmed."""
    return trim([power * coefficients[power] for power in range(1, len(coefficients))])


def value_at(coefficients: list[int], x: int) -> int:
    """Return the value at x."""
    value = 0
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def to_text(coefficients: list[int]) -> str:
    """Return the polynomial as text like '3x^2 - x + 5', highest power first, '0' for the zero polynomial."""
    text = ""
    for power in range(len(coefficients) - 1, -1, -1):
        factor = coefficients[power]
        if factor == 0:
            continue
        sign = "-" if factor < 0 else "+"
        text += f" {sign} " if text else ("-" if factor < 0 else "")
        if abs(factor) != 1 or power == 0:
            text += str(abs(factor))
        if power > 0:
            text += "x" if power == 1 else f"x^{power}"
    return text or "0"
