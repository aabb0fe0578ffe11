"""Searching in sorted lists of integers."""


def lower_bound(values: list[int], target: int) -> int:
    """Return the first index whose value is at least target, or len(values) if there is none."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < target:
            low = middle + 1
        else:
            high = middle
    return low


def index_of(values: list[int], target: int) -> int:
    """Return the index of the first value equal to target; raise ValueError if it is not there."""
    index = lower_bound(values, target)
    if index == len(values) or values[index] != target:
        raise ValueError("the target is not in the list")
    return index


def count_between(values: list[int], low: int, high: int) -> int:
    """Return how many values v satisfy low <= v <= high; 0 if high is below low."""
    if high < low:
        return 0
    return lower_bound(values, high + 1) - lower_bound(values, low)


def closest(values: list[int], target: int) -> int:
    """Return the value nearest to target, the smaller one of two equally near.

    Raises ValueError if the list is empty.
    """
    if not values:
        raise ValueError("no values")
    index = lower_bound(values, target)
    if index == 0:
        return values[0]
    if index == len(values):
        return values[-1]
    before, after = values[index - 1], values[index]
    return before if target - before <= after - target else after
