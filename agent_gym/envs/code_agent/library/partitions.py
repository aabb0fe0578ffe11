"""Dividing collections into parts."""


def set_partitions(items: list[int]) -> list[list[list[int]]]:
    """Return all ways to divide the items into non-empty groups.

    The last item is put into each group of each partition of the others in turn, and then alone at the end.
    """
    if not items:
        return [[]]
    last = items[-1]
    result = []
    for partition in set_partitions(items[:-1]):
        for index in range(len(partition)):
            result.append([*partition[:index], [*partition[index], last], *partition[index + 1 :]])
        result.append([*partition, [last]])
    return result


def can_halve(values: list[int]) -> bool:
    """Return whether the positive values can be divided into two groups with the same sum."""
    total = sum(values)
    if total % 2 == 1:
        return False
    sums = {0}
    for value in values:
        sums |= {known + value for known in sums}
    return total // 2 in sums


def number_partitions(number: int, largest: int) -> int:
    """Return in how many ways number is a sum of positive whole numbers up to largest, their order not counting."""
    if number == 0:
        return 1
    if number < 0 or largest == 0:
        return 0
    return number_partitions(number - largest, largest) + number_partitions(number, largest - 1)


def chunks(items: list[int], parts: int) -> list[list[int]]:
    """Return the items cut into parts lists in order whose lengths differ by at most one, longer ones first.

    Raises ValueError if parts is below 1.
    """
    if parts < 1:
        raise ValueError("parts must be positive")
    size, longer = divmod(len(items), parts)
    result = []
    start = 0
    for index in range(parts):
        end = start + size + (1 if index < longer else 0)
        result.append(items[start:end])
        start = end
    return result
