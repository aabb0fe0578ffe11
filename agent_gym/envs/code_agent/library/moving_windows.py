"""Values computed over a moving part of a series."""


def moving_average(values: list[float], size: int) -> list[float]:
    """Return the mean of each window of size values in a row, [] if there are too few.

    Raises ValueError if size is below 1.
    """
    if size < 1:
        raise ValueError("size must be positive")
    return [sum(values[i : i + size]) / size for i in range(len(values) - size + 1)]


def smooth(values: list[float], weight: float) -> list[float]:
    """Return the exponential smoothing: the first value, then weight * value + (1 - weight) * the result before.

    Raises ValueError unless 0 < weight <= 1.
    """
    if not 0 < weight <= 1:
        raise ValueError("bad weight")
    result: list[float] = []
    for value in values:
        result.append(weight * value + (1 - weight) * result[-1] if result else value)
    return result


def window_maxima(values: list[int], size: int) -> list[int]:
    """Return the greatest value of each window of size values in a row, by a queue of candidates.

    Raises ValueError if size is below 1.
    """
    if size < 1:
        raise ValueError("size must be positive")
    candidates: list[int] = []
    maxima = []
    for index, value in enumerate(values):
        while candidates and values[candidates[-1]] <= value:
            candidates.pop()
        candidates.append(index)
        if candidates[0] <= index - size:
            candidates.pop(0)
        if index >= size - 1:
            maxima.append(values[candidates[0]])
    return maxima


def peaks(values: list[int]) -> list[int]:
    """Return the positions of the values that are greater than both their neighbours; the ends are never peaks."""
    return [i for i in range(1, len(values) - 1) if values[i - 1] < values[i] > values[i + 1]]


def best_sum(values: list[int]) -> int:
    """Return the greatest sum of a stretch of values in a row, 0 for the empty stretch."""
    best = current = 0
    for value in values:
        current = max(0, current + value)
        best = max(best, current)
    return best
