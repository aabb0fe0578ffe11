"""A shop's stock as a dict from article to number of pieces."""


def receive(stock: dict[str, int], delivery: list[tuple[str, int]]) -> dict[str, int]:
    """Return the stock after adding every (article, pieces) of the delivery.

    Raises ValueError if a number of pieces is negative. The argument is not changed.
    """
    result = dict(stock)
    for article, pieces in delivery:
        if pieces < 0:
            raise ValueError("pieces must not be negative")
        result[article] = result.get(article, 0) + pieces
    return result


def ship(stock: dict[str, int], order: dict[str, int]) -> dict[str, int]:
    """Return the stock after taking out the order; articles that reach 0 are left out.

    Raises KeyError for an unknown article and ValueError if there are too few pieces.
    """
    result = dict(stock)
    for article, pieces in order.items():
        if article not in result:
            raise KeyError(article)
        if result[article] < pieces:
            raise ValueError("too few pieces")
        result[article] -= pieces
    return {article: pieces for article, pieces in result.items() if pieces > 0}


def to_reorder(stock: dict[str, int], minimum: int, lot: int) -> list[tuple[str, int]]:
    """Return (article, pieces to buy) sorted by article for every article below minimum.

    Pieces come in whole lots, as few as reach the minimum. Raises ValueError if lot is below 1.
    """
    if lot < 1:
        raise ValueError("lot must be positive")
    orders = []
    for article in sorted(stock):
        missing = minimum - stock[article]
        if missing > 0:
            lots = (missing + lot - 1) // lot
            orders.append((article, lots * lot))
    return orders
