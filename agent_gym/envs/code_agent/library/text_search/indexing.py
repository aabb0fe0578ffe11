"""An index of texts: a dict from term to a dict from text number to the positions of the term."""


def terms(text: str) -> list[str]:
    """Return the lowered runs of letters and digits in order."""
    spaced = "".join(char if char.isalnum() else " " for char in text.lower())
    return spaced.split()


def build_index(texts: list[str]) -> dict[str, dict[int, list[int]]]:
    """Return the index of the texts; texts and positions are counted from 0."""
    index: dict[str, dict[int, list[int]]] = {}
    for number, text in enumerate(texts):
        for position, term in enumerate(terms(text)):
            index.setdefault(term, {}).setdefault(number, []).append(position)
    return index
