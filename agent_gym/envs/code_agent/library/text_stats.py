"""Counting words and sentences."""


def words(text: str) -> list[str]:
    """Return the words in order, lowered, without the marks .,;:!? at either end; empty words are left out."""
    stripped = [part.strip(".,;:!?").lower() for part in text.split()]
    return [part for part in stripped if part]


def word_counts(text: str) -> dict[str, int]:
    """Return how often each word occurs."""
    counts: dict[str, int] = {}
    for name in words(text):
        counts[name] = counts.get(name, 0) + 1
    return counts


def top_words(text: str, limit: int) -> list[tuple[str, int]]:
    """Return the limit most frequent (word, count) pairs, equally frequent words alphabetically."""
    ranked = sorted(word_counts(text).items(), key=lambda item: (-item[1], item[0]))
    return ranked[:limit]


def sentence_lengths(text: str) -> list[int]:
    """Return the number of words of each sentence; it ends with a word ending in '.', '!' or '?', or with the text."""
    lengths = []
    current = 0
    for part in text.split():
        current += 1
        if part[-1] in ".!?":
            lengths.append(current)
            current = 0
    if current:
        lengths.append(current)
    return lengths


def longest_word(text: str) -> str:
    """Return the longest word, the first of equally long ones; raise ValueError if there are no words."""
    found = words(text)
    if not found:
        raise ValueError("no words")
    return max(found, key=len)
