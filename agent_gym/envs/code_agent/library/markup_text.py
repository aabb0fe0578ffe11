"""A little markup: '# ' headings, '- ' items, *strong* words, `code` and [text](address) links."""


def strip_links(line: str) -> str:
    """Return line with every [text](address) replaced by its text; anything incomplete stays as it is."""
    result = ""
    rest = line
    while True:
        before, bracket, after = rest.partition("[")
        label, middle, tail = after.partition("](")
        _, closing, remainder = tail.partition(")")
        if not (bracket and middle and closing):
            return result + rest
        result += before + label
        rest = remainder


def plain_line(line: str) -> str:
    """Return line without heading marks, stars, backquotes and link addresses; an item starts with '* ' instead."""
    stripped = line.lstrip("#")
    if stripped != line and stripped.startswith(" "):
        line = stripped[1:]
    prefix = ""
    if line.startswith("- "):
        prefix, line = "* ", line[2:]
    return prefix + strip_links(line).replace("*", "").replace("`", "")


def headings(text: str) -> list[tuple[int, str]]:
    """Return (level, title) for every line of 1 to 6 '#', a space and a title, which is stripped."""
    found = []
    for line in text.split("\n"):
        title = line.lstrip("#")
        level = len(line) - len(title)
        if 1 <= level <= 6 and title.startswith(" "):
            found.append((level, title.strip()))
    return found


def outline(text: str) -> list[str]:
    """Return the headings numbered like '1', '1.1', '2', each followed by a space and the title.

    Raises ValueError if a heading is more than one level below the one before it, or the first is not of level 1.
    """
    counters: list[int] = []
    lines = []
    for level, title in headings(text):
        if level > len(counters) + 1:
            raise ValueError("a level is skipped")
        counters = counters[:level]
        if len(counters) < level:
            counters.append(0)
        counters[-1] += 1
        lines.append(".".join(str(counter) for counter in counters) + " " + title)
    return lines
