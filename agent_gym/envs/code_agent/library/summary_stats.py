"""Summary statistics of lists of numbers."""


def mean(values: list[float]) -> float:
    """Return the arithmetic mean; raise ValueError for an empty list."""
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)


def median(values: list[float]) -> float:
    """Return the middle value, or the mean of the two middle ones; raise ValueError for an empty list."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    half = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


def modes(values: list[int]) -> list[int]:
    """Return, sorted, the values that occur most often; [] for an empty list."""
    counts: dict[int, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    most = max(counts.values(), default=0)
    return sorted(value for value, count in counts.items() if count == most)


def variance(values: list[float]) -> float:
    """Return the sample variance, the sum of squared deviations over n - 1; raise ValueError below two values."""
    if len(values) < 2:
        raise ValueError("at least two values are needed")
    centre = mean(values)
    return sum((value - centre) ** 2 for value in values) / (len(values) - 1)


def trimmed_mean(values: list[float], cut: int) -> float:
    """Return the mean without the cut smallest and the cut largest values.

    Raises ValueError if cut is negative or nothing is left.
    """
    if cut < 0:
        raise ValueError("cut is negative")
    return mean(sorted(values)[cut : len(values) - cut])
