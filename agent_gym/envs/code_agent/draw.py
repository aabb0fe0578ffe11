"""Combinators for random plain data: every one returns a function of a `numpy.random.Generator`.

All bounds are inclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator], Any]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def const(value: Any) -> Draw:
    """Always a copy of `value`."""
    return lambda rng: deepcopy(value)


def integer(low: int, high: int) -> Draw:
    """An int from `low` to `high`."""
    return lambda rng: int(rng.integers(low, high + 1))


def number(low: float, high: float, step: float = 0.5) -> Draw:
    """A float from `low` to `high` in multiples of `step` above `low`, so that it has a short repr."""
    count = round((high - low) / step)
    return lambda rng: round(low + step * int(rng.integers(0, count + 1)), 6)


def flag() -> Draw:
    """True or False."""
    return lambda rng: bool(rng.integers(0, 2))


def choice(*options: Any) -> Draw:
    """A copy of one of the options."""
    return lambda rng: deepcopy(options[int(rng.integers(0, len(options)))])


def one_of(*draws: Draw) -> Draw:
    """What one of the draws gives, each as likely."""
    return lambda rng: draws[int(rng.integers(0, len(draws)))](rng)


def mostly(usual: Draw, rare: Draw, share: float = 0.15) -> Draw:
    """`rare` with probability `share`, else `usual`."""
    return lambda rng: rare(rng) if rng.random() < share else usual(rng)


def text(alphabet: str | Sequence[str], low: int, high: int) -> Draw:
    """A str of `low` to `high` pieces of `alphabet` (characters, or longer strings)."""

    def draw(rng: np.random.Generator) -> str:
        return "".join(alphabet[int(i)] for i in rng.integers(0, len(alphabet), rng.integers(low, high + 1)))

    return draw


def word(low: int = 1, high: int = 6, alphabet: str = LETTERS) -> Draw:
    """A lowercase word of `low` to `high` letters."""
    return text(alphabet, low, high)


def list_of(item: Draw, low: int, high: int) -> Draw:
    """A list of `low` to `high` items."""
    return lambda rng: [item(rng) for _ in range(int(rng.integers(low, high + 1)))]


def sorted_list(item: Draw, low: int, high: int) -> Draw:
    """A sorted list of `low` to `high` items."""
    return then(list_of(item, low, high), sorted)


def distinct(item: Draw, low: int, high: int) -> Draw:
    """A list of `low` to `high` items without repetition, fewer where `item` repeats itself."""
    return then(list_of(item, low, high), lambda items: list(dict.fromkeys(items)))


def subset(options: Sequence[Any], low: int, high: int) -> Draw:
    """A list of `low` to `high` different options in random order."""

    def draw(rng: np.random.Generator) -> list[Any]:
        order = rng.permutation(len(options))
        return [options[int(i)] for i in order[: int(rng.integers(low, high + 1))]]

    return draw


def pair(*items: Draw) -> Draw:
    """A tuple with one value of each draw."""
    return lambda rng: tuple(item(rng) for item in items)


def args(*items: Draw) -> Draw:
    """The positional arguments of a call; the same as `pair`, named for the table."""
    return pair(*items)


def dict_of(key: Draw, value: Draw, low: int, high: int) -> Draw:
    """A dict of up to `high` entries (equal keys fall together)."""

    def draw(rng: np.random.Generator) -> dict[Hashable, Any]:
        return {key(rng): value(rng) for _ in range(int(rng.integers(low, high + 1)))}

    return draw


def grid(item: Draw, rows: Draw, columns: Draw) -> Draw:
    """A list of equally long rows."""

    def draw(rng: np.random.Generator) -> list[list[Any]]:
        height, width = rows(rng), columns(rng)
        return [[item(rng) for _ in range(width)] for _ in range(height)]

    return draw


def joined(item: Draw, low: int, high: int, separator: str = " ") -> Draw:
    """`low` to `high` strings joined by `separator`."""
    return then(list_of(item, low, high), separator.join)


def then(draw: Draw, function: Callable[[Any], Any]) -> Draw:
    """The value of `function` at a drawn value."""
    return lambda rng: function(draw(rng))


def bind(draw: Draw, function: Callable[[Any], Draw]) -> Draw:
    """What `function` makes of a drawn value is drawn next, for arguments that depend on each other."""
    return lambda rng: function(draw(rng))(rng)


def spoiled(draw: Draw, alphabet: str, share: float = 0.3) -> Draw:
    """A drawn str which, with probability `share`, has one character replaced, removed or inserted."""

    def spoil(rng: np.random.Generator) -> str:
        value = draw(rng)
        if rng.random() >= share:
            return value
        at = int(rng.integers(0, len(value) + 1))
        new = alphabet[int(rng.integers(0, len(alphabet)))]
        kind = int(rng.integers(0, 3))
        return value[:at] + ("" if kind == 0 else new) + value[at + (kind < 2) :]

    return spoil
