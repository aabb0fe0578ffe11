"""Breaking text into lines of limited width."""


def wrap(text: str, width: int) -> list[str]:
    """Return the words of text packed into as few lines of at most width characters as possible, in order.

    A word longer than width is cut into pieces of width characters. Raises ValueError if width is below 1.
    """
    if width < 1:
        raise ValueError("width must be positive")
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
            continue
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        lines.append(word)
    return lines


def justify(line: str, width: int) -> str:
    """Return the words of line spread to exactly width characters; spare spaces go to the leftmost gaps.

    A line of a single word is padded on the right. Raises ValueError if the words with single spaces do not fit.
    """
    words = line.split()
    if len(" ".join(words)) > width:
        raise ValueError("the line is too long")
    if len(words) < 2:
        return "".join(words).ljust(width)
    spaces = width - sum(len(word) for word in words)
    each, spare = divmod(spaces, len(words) - 1)
    result = words[0]
    for index, word in enumerate(words[1:]):
        gap = each + (1 if index < spare else 0)
        result += " " * gap + word
    return result


def truncate(text: str, width: int) -> str:
    """Return text if it has at most width characters, else its start followed by '...', width in all.

    Raises ValueError if width is below 3.
    """
    if width < 3:
        raise ValueError("width must be at least 3")
    return text if len(text) <= width else text[: width - 3] + "..."
