"""Groups of things that are connected, directly or through others, by pairs."""


def find_root(parent: list[int], item: int) -> int:
    """Return the root of item, following parent links until an item that is its own parent."""
    while parent[item] != item:
        item = parent[item]
    return item


def join_all(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Return for each item 0..count-1 the smallest item of its group after joining all pairs.

    Raises IndexError if a pair names an item outside 0..count-1.
    """
    parent = list(range(count))
    for first, second in pairs:
        if not (0 <= first < count and 0 <= second < count):
            raise IndexError("no such item")
        low, high = sorted((find_root(parent, first), find_root(parent, second)))
        parent[high] = low
    return [find_root(parent, item) for item in range(count)]


def groups(count: int, pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Return the groups, each sorted, ordered by their smallest item."""
    members: dict[int, list[int]] = {}
    for item, root in enumerate(join_all(count, pairs)):
        members.setdefault(root, []).append(item)
    return [members[root] for root in sorted(members)]


def redundant_pairs(count: int, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return, in order, the pairs whose items were already connected by the pairs before them."""
    redundant = []
    for index, (first, second) in enumerate(pairs):
        roots = join_all(count, pairs[:index])
        if roots[first] == roots[second]:
            redundant.append((first, second))
    return redundant
