"""Profits from series of prices."""


def best_trade(prices: list[int]) -> int:
    """Return the highest profit from buying once and selling later, 0 if no trade makes a profit."""
    best = 0
    lowest = prices[0] if prices else 0
    for price in prices:
        lowest = min(lowest, price)
        best = max(best, price - lowest)
    return best


def total_gain(prices: list[int], fee: int) -> int:
    """Return the highest profit from any number of trades one after the other, each costing fee."""
    cash = 0
    holding: int | None = None
    for price in prices:
        if holding is not None:
            cash = max(cash, holding + price - fee)
        holding = cash - price if holding is None else max(holding, cash - price)
    return cash


def largest_fall(prices: list[int]) -> int:
    """Return the greatest loss from an earlier price to a later one, in whole percent of the earlier, rounded down.

    Raises ValueError if a price is not positive.
    """
    if any(price <= 0 for price in prices):
        raise ValueError("prices must be positive")
    worst = 0
    highest = 1
    for price in prices:
        highest = max(highest, price)
        worst = max(worst, (highest - price) * 100 // highest)
    return worst


def match_lots(trades: list[tuple[str, int, int]]) -> int:
    """Return the profit of ('buy' or 'sell', pieces, price) trades in order; the pieces bought first are sold first.

    Raises ValueError if more is sold than held, or for another kind of trade.
    """
    lots: list[list[int]] = []
    profit = 0
    for kind, pieces, price in trades:
        if kind == "buy":
            lots.append([pieces, price])
            continue
        if kind != "sell" or pieces > sum(lot[0] for lot in lots):
            raise ValueError("impossible trade")
        while pieces > 0:
            sold = min(pieces, lots[0][0])
            profit += sold * (price - lots[0][1])
            pieces -= sold
            lots[0][0] -= sold
            if lots[0][0] == 0:
                lots.pop(0)
    return profit
