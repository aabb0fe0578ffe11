"""A basket as a list of (article, pieces, price of one piece in cents)."""

from discounts import quantity_percent


def add_article(
    basket: list[tuple[str, int, int]], article: str, pieces: int, price: int
) -> list[tuple[str, int, int]]:
    """Return the basket with the pieces added; an article with the same price is joined with its line.

    Raises ValueError unless pieces is positive. The argument is not changed.
    """
    if pieces <= 0:
        raise ValueError("pieces must be positive")
    result = list(basket)
    for index, (name, count, cost) in enumerate(result):
        if name == article and cost == price:
            result[index] = (name, count + pieces, cost)
            return result
    result.append((article, pieces, price))
    return result


def line_total(pieces: int, price: int) -> int:
    """Return the cost of one line after the quantity discount, which is rounded down."""
    gross = pieces * price
    return gross - gross * quantity_percent(pieces) // 100


def subtotal(basket: list[tuple[str, int, int]]) -> int:
    """Return the cost of all lines."""
    return sum(line_total(pieces, price) for _, pieces, price in basket)
