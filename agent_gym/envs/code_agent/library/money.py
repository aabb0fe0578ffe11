"""Amounts of money in cents."""


def parse_amount(text: str) -> int:
    """Return the cents of a text like '1,234.50', '-3.5' or '7'; commas are ignored.

    Raises ValueError for anything but digits, or more than two of them after the point.
    """
    sign = -1 if text.startswith("-") else 1
    whole, point, fraction = text.removeprefix("-").replace(",", "").partition(".")
    if not whole.isdigit() or (point and not fraction.isdigit()) or len(fraction) > 2:
        raise ValueError("not an amount")
    return sign * (int(whole) * 100 + int(fraction.ljust(2, "0")))


def format_amount(cents: int) -> str:
    """Return the amount with two decimals and a comma before every group of three digits."""
    whole, fraction = divmod(abs(cents), 100)
    digits = str(whole)
    groups: list[str] = []
    while len(digits) > 3:
        groups.insert(0, digits[-3:])
        digits = digits[:-3]
    groups.insert(0, digits)
    sign = "-" if cents < 0 else ""
    return f"{sign}{','.join(groups)}.{fraction:02d}"


def divide_rounded(cents: int, divisor: int) -> int:
    """Return cents / divisor rounded to the nearest whole, halves to the even neighbour.

    Raises ValueError unless divisor is positive.
    """
    if divisor <= 0:
        raise ValueError("divisor must be positive")
    quotient, rest = divmod(cents, divisor)
    if rest * 2 > divisor or (rest * 2 == divisor and quotient % 2 == 1):
        quotient += 1
    return quotient


def split_amount(cents: int, weights: list[int]) -> list[int]:
    """Return shares in proportion to the weights that add up to cents; what rounding down leaves goes to the first.

    Raises ValueError unless the weights add up to a positive number.
    """
    total = sum(weights)
    if total <= 0:
        raise ValueError("no weight")
    shares = [cents * weight // total for weight in weights]
    for index in range(cents - sum(shares)):
        shares[index] += 1
    return shares
