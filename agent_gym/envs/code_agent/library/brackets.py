"""Matching of the brackets (), [] and {} in a text; other characters are ignored."""

PAIRS = {")": "(", "]": "[", "}": "{"}


def first_error(text: str) -> int:
    """Return the index of the first closing bracket that does not match, or else of the last one left open.

    Returns -1 if every bracket is matched.
    """
    stack: list[int] = []
    for index, char in enumerate(text):
        if char in PAIRS.values():
            stack.append(index)
        elif char in PAIRS:
            if not stack or text[stack[-1]] != PAIRS[char]:
                return index
            stack.pop()
    return stack[-1] if stack else -1


def is_balanced(text: str) -> bool:
    """Return whether every bracket is matched by one of its kind in the right order."""
    return first_error(text) == -1


def max_depth(text: str) -> int:
    """Return how many brackets are open at most at the same time; raise ValueError if text is not balanced."""
    if not is_balanced(text):
        raise ValueError("brackets do not match")
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth -= 1
    return deepest


def closers_needed(text: str) -> str:
    """Return the closing brackets to append so that text becomes balanced.

    Raises ValueError if a closing bracket in text does not match.
    """
    opposite = {opener: closer for closer, opener in PAIRS.items()}
    stack: list[str] = []
    for char in text:
        if char in opposite:
            stack.append(opposite[char])
        elif char in PAIRS and (not stack or stack.pop() != char):
            raise ValueError("a closing bracket does not match")
    return "".join(reversed(stack))
