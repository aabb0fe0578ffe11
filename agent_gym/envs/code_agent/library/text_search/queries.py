"""Queries on the index of texts."""

from indexing import build_index, terms


def find_all(texts: list[str], query: str) -> list[int]:
    """Return the numbers of the texts that contain every term of the query; [] for a query without terms."""
    index = build_index(texts)
    wanted = terms(query)
    if not wanted:
        return []
    return [number for number in range(len(texts)) if all(number in index.get(term, {}) for term in wanted)]


def find_phrase(texts: list[str], phrase: str) -> list[tuple[int, int]]:
    """Return (text number, position) wherever the terms of the phrase follow one another.

    Raises ValueError for a phrase without terms.
    """
    wanted = terms(phrase)
    if not wanted:
        raise ValueError("the phrase has no terms")
    found = []
    for number, text in enumerate(texts):
        given = terms(text)
        for start in range(len(given) - len(wanted) + 1):
            if given[start : start + len(wanted)] == wanted:
                found.append((number, start))
    return found


def ranked(texts: list[str], query: str) -> list[tuple[int, int]]:
    """Return (text number, score) by falling score, then by number, without scores of 0.

    Each occurrence of a query term scores 1, and each different query term found in a text scores 5 more.
    """
    index = build_index(texts)
    scores: dict[int, int] = {}
    for term in dict.fromkeys(terms(query)):
        for number, positions in index.get(term, {}).items():
            scores[number] = scores.get(number, 0) + len(positions) + 5
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def snippet(text: str, term: str, around: int) -> str:
    """Return the terms of text from around before the first occurrence of term to around after it.

    '...' stands for terms left out at either end. Raises ValueError if term does not occur.
    """
    given = terms(text)
    position = given.index(term.lower())
    start = max(0, position - around)
    end = position + around + 1
    before = ["..."] if start > 0 else []
    after = ["..."] if end < len(given) else []
    return " ".join(before + given[start:end] + after)
