"""Permutations as lists that hold each of 0..n-1 once."""


def next_permutation(order: list[int]) -> list[int] | None:
    """Return the permutation that follows in lexicographic order, or None after the last one."""
    pivot = len(order) - 2
    while pivot >= 0 and order[pivot] >= order[pivot + 1]:
        pivot -= 1
    if pivot < 0:
        return None
    partner = len(order) - 1
    while order[partner] <= order[pivot]:
        partner -= 1
    result = list(order)
    result[pivot], result[partner] = result[partner], result[pivot]
    return result[: pivot + 1] + result[:pivot:-1]


def inverse(order: list[int]) -> list[int]:
    """Return the permutation that undoes this one; raise ValueError if the list is not a permutation."""
    if sorted(order) != list(range(len(order))):
        raise ValueError("not a permutation")
    result = [0] * len(order)
    for position, value in enumerate(order):
        result[value] = position
    return result


def cycles(order: list[int]) -> list[list[int]]:
    """Return the cycles of at least two elements i -> order[i], each from its least element, sorted by that."""
    seen: set[int] = set()
    found = []
    for start in range(len(order)):
        cycle = []
        position = start
        while position not in seen:
            seen.add(position)
            cycle.append(position)
            position = order[position]
        if len(cycle) > 1:
            found.append(cycle)
    return found


def inversions(order: list[int]) -> int:
    """Return how many pairs stand in falling order."""
    return sum(1 for i in range(len(order)) for j in range(i + 1, len(order)) if order[i] > order[j])


def rank(order: list[int]) -> int:
    """Return the position, from 0, of the permutation in lexicographic order."""
    position = 0
    for index, value in enumerate(order):
        smaller = sum(1 for later in order[index + 1 :] if later < value)
        position = position * (len(order) - index) + smaller
    return position
