"""Merging of several ordered queues into one."""


def merge_sorted(first: list[int], second: list[int]) -> list[int]:
    """Return all values of two sorted lists as one sorted list."""
    merged = []
    i = j = 0
    while i < len(first) and j < len(second):
        if first[i] <= second[j]:
            merged.append(first[i])
            i += 1
        else:
            merged.append(second[j])
            j += 1
    return merged + first[i:] + second[j:]


def merge_by_priority(queues: list[list[tuple[int, str]]]) -> list[str]:
    """Return the names of all (priority, name) entries by taking the head with the highest priority again and again.

    Of equal heads the one in the earlier queue is taken; the order within a queue is kept.
    """
    positions = [0] * len(queues)
    names = []
    for _ in range(sum(len(queue) for queue in queues)):
        best = -1
        for index, queue in enumerate(queues):
            if positions[index] == len(queue):
                continue
            if best == -1 or queue[positions[index]][0] > queues[best][positions[best]][0]:
                best = index
        names.append(queues[best][positions[best]][1])
        positions[best] += 1
    return names


def round_robin(queues: list[list[int]], share: int) -> list[int]:
    """Return all values by taking up to share values from each queue in turn until all are empty.

    Raises ValueError if share is below 1.
    """
    if share < 1:
        raise ValueError("share must be positive")
    taken: list[int] = []
    longest = max((len(queue) for queue in queues), default=0)
    for start in range(0, longest, share):
        for queue in queues:
            taken.extend(queue[start : start + share])
    return taken
