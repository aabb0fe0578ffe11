"""Subsequences: what is left of a sequence after removing any elements."""


def is_subsequence(short: str, long: str) -> bool:
    """Return whether short can be got from long by removing characters."""
    position = 0
    for char in long:
        if position < len(short) and char == short[position]:
            position += 1
    return position == len(short)


def longest_common(first: str, second: str) -> int:
    """Return the length of the longest common subsequence."""
    previous = [0] * (len(second) + 1)
    for char in first:
        current = [0]
        for j, other in enumerate(second):
            if char == other:
                current.append(previous[j] + 1)
            else:
                current.append(max(previous[j + 1], current[j]))
        previous = current
    return previous[-1]


def longest_rising(values: list[int]) -> list[int]:
    """Return a longest strictly rising subsequence, of several the one found first going from left to right."""
    best: list[list[int]] = []
    for index, value in enumerate(values):
        longest: list[int] = []
        for earlier in range(index):
            if values[earlier] < value and len(best[earlier]) > len(longest):
                longest = best[earlier]
        best.append([*longest, value])
    return max(best, key=len, default=[])


def longest_palindrome(text: str) -> str:
    """Return the longest stretch of text that reads the same backwards, the first of several."""
    best = ""
    for start in range(len(text)):
        for end in range(start + len(best) + 1, len(text) + 1):
            piece = text[start:end]
            if piece == piece[::-1]:
                best = piece
    return best


def interleaves(first: str, second: str, mixed: str) -> bool:
    """Return whether mixed consists of the characters of first and second, each in their order."""
    if len(first) + len(second) != len(mixed):
        return False
    if not mixed:
        return True
    if first and first[0] == mixed[0] and interleaves(first[1:], second, mixed[1:]):
        return True
    return bool(second) and second[0] == mixed[0] and interleaves(first, second[1:], mixed[1:])
