"""Run-length coding of text."""


def runs(text: str) -> list[tuple[str, int]]:
    """Return the runs of equal characters in order, as (character, length) pairs."""
    found: list[tuple[str, int]] = []
    for char in text:
        if found and found[-1][0] == char:
            found[-1] = (char, found[-1][1] + 1)
        else:
            found.append((char, 1))
    return found


def encode(text: str) -> str:
    """Return text with each run written as its length and its character; a run of one has no number.

    Raises ValueError if text contains a digit.
    """
    if any(char.isdigit() for char in text):
        raise ValueError("digits cannot be encoded")
    return "".join(char if length == 1 else f"{length}{char}" for char, length in runs(text))


def decode(code: str) -> str:
    """Return the text that encode turned into code.

    Raises ValueError if a number has no character after it, or is zero.
    """
    parts: list[str] = []
    number = ""
    for char in code:
        if char.isdigit():
            number += char
            continue
        if number and int(number) == 0:
            raise ValueError("a run of length zero")
        parts.append(char * int(number or "1"))
        number = ""
    if number:
        raise ValueError("a number at the end")
    return "".join(parts)


def longest_run(text: str) -> str:
    """Return the longest run of one character, the first of several equally long, or '' for empty text."""
    best = ""
    for char, length in runs(text):
        if length > len(best):
            best = char * length
    return best
