"""Ranks of five-card poker hands; a card is written like 'TD': a rank of 23456789TJQKA and a suit of CDHS."""

RANKS = "23456789TJQKA"
NAMES = ["high card", "pair", "two pairs", "three", "straight", "flush", "full house", "four", "straight flush"]


def card_values(hand: list[str]) -> list[int]:
    """Return the values 2..14 of the cards, those that occur more often first, then the higher first.

    Raises ValueError for an unknown rank.
    """
    values = [RANKS.index(card[0]) + 2 for card in hand]
    return sorted(values, key=lambda value: (-values.count(value), -value))


def is_straight(hand: list[str]) -> bool:
    """Return whether the five ranks follow one another; the ace counts high, or low in A2345."""
    values = sorted(card_values(hand))
    if values == [2, 3, 4, 5, 14]:
        return True
    return all(values[i] + 1 == values[i + 1] for i in range(len(values) - 1))


def category(hand: list[str]) -> int:
    """Return the index in NAMES of the best category the hand belongs to."""
    values = card_values(hand)
    flush = len({card[1] for card in hand}) == 1
    counts = sorted((values.count(value) for value in set(values)), reverse=True)
    if is_straight(hand):
        return 8 if flush else 4
    if counts[0] == 4:
        return 7
    if counts[:2] == [3, 2]:
        return 6
    if flush:
        return 5
    if counts[0] == 3:
        return 3
    return 2 if counts[:2] == [2, 2] else int(counts[0] == 2)


def describe(hand: list[str]) -> str:
    """Return the name of the hand's category; raise ValueError unless it has five cards."""
    if len(hand) != 5:
        raise ValueError("a hand has five cards")
    return NAMES[category(hand)]


def better_hand(first: list[str], second: list[str]) -> int:
    """Return 1 or 2 for the stronger hand, by category and then card_values, or 0 if they are equal."""
    key_first = (category(first), card_values(first))
    key_second = (category(second), card_values(second))
    if key_first == key_second:
        return 0
    return 1 if key_first > key_second else 2
