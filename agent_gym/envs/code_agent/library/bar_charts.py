"""Histograms drawn with characters."""


def bin_counts(values: list[int], low: int, width: int, bins: int) -> list[int]:
    """Return how many values fall in each of the bins [low, low + width), [low + width, ...); others are ignored.

    Raises ValueError if width or bins is below 1.
    """
    if width < 1 or bins < 1:
        raise ValueError("width and bins must be positive")
    counts = [0] * bins
    for value in values:
        index = (value - low) // width
        if 0 <= index < bins:
            counts[index] += 1
    return counts


def horizontal(counts: dict[str, int], width: int) -> list[str]:
    """Return one line 'label | ###' per entry in order; labels are padded to the longest.

    The greatest count gets width marks and the others their share, rounded down; 0 for all if none is positive.
    """
    label_width = max((len(label) for label in counts), default=0)
    greatest = max(counts.values(), default=0)
    lines = []
    for label, count in counts.items():
        marks = count * width // greatest if greatest > 0 else 0
        lines.append(f"{label.ljust(label_width)} | {'#' * marks}")
    return lines


def vertical(counts: list[int]) -> list[str]:
    """Return the rows of columns of '#' as high as the counts, top row first, trailing spaces removed."""
    rows = []
    for level in range(max(counts, default=0), 0, -1):
        row = "".join("#" if count >= level else " " for count in counts)
        rows.append(row.rstrip())
    return rows


def sparkline(values: list[int]) -> str:
    """Return one of '_', '-', '=' and '#' per value, by which quarter of the range from least to greatest it is in.

    The greatest value counts to the last quarter; if all are equal the result is all '_'.
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    if low == high:
        return "_" * len(values)
    return "".join("_-=#"[min(3, (value - low) * 4 // (high - low))] for value in values)
