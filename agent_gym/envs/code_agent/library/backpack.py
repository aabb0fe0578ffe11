"""Choosing what to pack: items are (name, weight, value) triples, each to be taken at most once."""


def best_value(items: list[tuple[str, int, int]], capacity: int) -> int:
    """Return the highest total value with a total weight of at most capacity; raise ValueError if it is negative."""
    if capacity < 0:
        raise ValueError("capacity is negative")
    best = [0] * (capacity + 1)
    for _, weight, value in items:
        for room in range(capacity, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[capacity]


def best_choice(items: list[tuple[str, int, int]], capacity: int) -> list[str]:
    """Return the names of a choice with the highest value, in order; an item is left out if that loses nothing.

    Items are decided from the last to the first. Raises ValueError if capacity is negative.
    """
    if capacity < 0:
        raise ValueError("capacity is negative")
    names: list[str] = []
    for index in range(len(items) - 1, -1, -1):
        name, weight, value = items[index]
        before = items[:index]
        if weight <= capacity and best_value(before, capacity - weight) + value > best_value(before, capacity):
            names.append(name)
            capacity -= weight
    return names[::-1]


def greedy_choice(items: list[tuple[str, int, int]], capacity: int) -> list[str]:
    """Return the names taken when items that fit are taken by falling value, of equal value the lighter first."""
    names = []
    for name, weight, _ in sorted(items, key=lambda item: (-item[2], item[1])):
        if weight <= capacity:
            names.append(name)
            capacity -= weight
    return names
