"""Paying amounts with coins of given values."""


def check_coins(coins: list[int]) -> list[int]:
    """Return the coin values, each once, largest first; raise ValueError if one is below 1."""
    if any(coin < 1 for coin in coins):
        raise ValueError("coins must be positive")
    return sorted(set(coins), reverse=True)


def fewest_coins(coins: list[int], amount: int) -> int | None:
    """Return the least number of coins that make up amount, or None if none do; any coin may be used repeatedly."""
    values = check_coins(coins)
    best: list[int | None] = [0] + [None] * amount
    for total in range(1, amount + 1):
        for coin in values:
            rest = best[total - coin] if coin <= total else None
            known = best[total]
            if rest is not None and (known is None or rest + 1 < known):
                best[total] = rest + 1
    return best[amount]


def count_ways(coins: list[int], amount: int) -> int:
    """Return in how many ways amount can be made up, not counting the order of the coins."""
    ways = [1] + [0] * amount
    for coin in check_coins(coins):
        for total in range(coin, amount + 1):
            ways[total] += ways[total - coin]
    return ways[amount]


def greedy_change(coins: list[int], amount: int) -> list[int]:
    """Return the coins given out, largest first, when always the largest that fits is taken.

    Raises ValueError if a rest is left over.
    """
    given = []
    for coin in check_coins(coins):
        count, amount = divmod(amount, coin)
        given.extend([coin] * count)
    if amount:
        raise ValueError("a rest is left")
    return given
