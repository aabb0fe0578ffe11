"""Scores of students in percent."""


def drop_lowest(points: list[int], count: int) -> list[int]:
    """Return the points in order without the count lowest, of equal ones the earlier; at least one always stays.

    Raises ValueError if count is negative.
    """
    if count < 0:
        raise ValueError("count is negative")
    kept = list(points)
    for _ in range(min(count, len(points) - 1)):
        kept.remove(min(kept))
    return kept


def weighted_score(parts: dict[str, int], weights: dict[str, int]) -> int:
    """Return the weighted mean of the parts, halves rounded up; a part that is missing counts 0.

    Raises ValueError if a part has no weight or the weights do not add up to a positive number.
    """
    if any(name not in weights for name in parts):
        raise ValueError("a part has no weight")
    total = sum(weights.values())
    if total <= 0:
        raise ValueError("no weights")
    reached = sum(parts.get(name, 0) * weight for name, weight in weights.items())
    return (2 * reached + total) // (2 * total)


def grade(percent: int) -> str:
    """Return 'A' from 90 on, 'B' from 80, 'C' from 70, 'D' from 60, else 'F'.

    Raises ValueError outside 0..100.
    """
    if not 0 <= percent <= 100:
        raise ValueError("not a percentage")
    for limit, letter in ((90, "A"), (80, "B"), (70, "C"), (60, "D")):
        if percent >= limit:
            return letter
    return "F"
