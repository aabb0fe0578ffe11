"""Converting between styles of names in programs."""


def split_name(name: str) -> list[str]:
    """Return the lowered words of a name; they are divided by '_', '-' or a space, or before a capital
    that follows a character other than a capital."""
    parts = [""]
    previous = ""
    for char in name:
        if char in "_- ":
            parts.append("")
        elif char.isupper() and previous and not previous.isupper():
            parts.append(char)
        else:
            parts[-1] += char
        previous = char
    return [part.lower() for part in parts if part]


def to_snake(name: str) -> str:
    """Return the name like 'two_words'."""
    return "_".join(split_name(name))


def to_camel(name: str) -> str:
    """Return the name like 'twoWords'; raise ValueError if there are no words."""
    parts = split_name(name)
    if not parts:
        raise ValueError("no words")
    return parts[0] + "".join(part.capitalize() for part in parts[1:])


def to_title(name: str) -> str:
    """Return the name like 'Two of Words': of, the, a, an, and, in are not capitalized unless first."""
    titled = []
    for index, part in enumerate(split_name(name)):
        small = part in ("of", "the", "a", "an", "and", "in")
        titled.append(part if small and index > 0 else part.capitalize())
    return " ".join(titled)


def unique_name(name: str, taken: list[str]) -> str:
    """Return name if it is not taken, else the first of name2, name3, ... that is not."""
    number = 2
    candidate = name
    while candidate in taken:
        candidate = f"{name}{number}"
        number += 1
    return candidate
