"""How far apart two texts are."""


def distance(first: str, second: str) -> int:
    """Return the least number of inserted, removed or replaced characters that turn first into second."""
    previous = list(range(len(second) + 1))
    for i, char in enumerate(first, start=1):
        current = [i]
        for j, other in enumerate(second, start=1):
            replaced = previous[j - 1] + (char != other)
            current.append(min(replaced, previous[j] + 1, current[j - 1] + 1))
        previous = current
    return previous[-1]


def mismatches(first: str, second: str) -> list[int]:
    """Return the positions at which two equally long texts differ; raise ValueError for different lengths."""
    if len(first) != len(second):
        raise ValueError("lengths differ")
    return [i for i in range(len(first)) if first[i] != second[i]]


def closest_words(word: str, dictionary: list[str], limit: int) -> list[str]:
    """Return the dictionary words within distance limit of word, nearest first, equally near ones alphabetically."""
    found = []
    for candidate in dictionary:
        far = distance(word, candidate)
        if far <= limit:
            found.append((far, candidate))
    return [candidate for _, candidate in sorted(found)]


def common_prefix(first: str, second: str) -> str:
    """Return the longest text that both start with."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return first[:length]
