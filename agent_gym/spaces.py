"""Gymnasium spaces of text, with the batching that Sync- and AsyncVectorEnv need, and of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_uint8
from typing import Any

import numpy as np
from gymnasium.spaces import Space, Tuple
from gymnasium.vector.utils import batch_differing_spaces, create_empty_array
from gymnasium.vector.utils.shared_memory import (
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)

__all__ = ["Conversation", "Unicode"]


class Unicode(Space[str]):
    """Any text of at most ``max_length`` characters that can be encoded as UTF-8.

    Unlike ``gymnasium.spaces.Text`` it has no character set to list, so membership is one encode.

    Args:
        max_length: Longest text, in characters.
        sample_length: Longest text that ``sample`` draws, in characters.
        seed: Seed of ``sample``.
    """

    def __init__(self, max_length: int = 1 << 16, *, sample_length: int = 64, seed: int | None = None) -> None:
        if max_length < 1:
            raise ValueError(f"Unicode(max_length={max_length}): max_length must be 1 or more")
        self.max_length = int(max_length)
        self.sample_length = min(int(sample_length), self.max_length)
        super().__init__(dtype=str, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A random text; half of its characters are ASCII, the rest from all of Unicode."""
        if mask is not None or probability is not None:
            raise ValueError("Unicode.sample takes no mask and no probability: the character set is all of Unicode")
        length = int(self.np_random.integers(0, self.sample_length + 1))
        wide = self.np_random.integers(0x20, 0x110000 - 0x800, size=length)
        codes = np.where(self.np_random.random(length) < 0.5, wide % 95 + 32, wide)
        codes[codes >= 0xD800] += 0x800  # surrogates are no characters
        return "".join(map(chr, codes))

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a text of this space; lone surrogates cannot be encoded and are not."""
        if not isinstance(x, str) or len(x) > self.max_length:
            return False
        try:
            x.encode()
        except UnicodeEncodeError:
            return False
        return True

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed-size array form."""
        return False

    def __repr__(self) -> str:
        return f"Unicode({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode) and self.max_length == other.max_length


# Gymnasium's vector environments find these by single dispatch. Each environment owns one row of bytes:
# four for the length, then the text as UTF-8.


@batch_differing_spaces.register(Unicode)
def _batch(spaces: list[Unicode]) -> Tuple:
    return Tuple(spaces)


@create_empty_array.register(Unicode)
def _empty(space: Unicode, n: int = 1, fn: Any = np.zeros) -> tuple[str, ...]:
    return ("",) * n


def _rows(shared_memory: Any, space: Unicode) -> np.ndarray:
    return np.frombuffer(shared_memory.get_obj(), dtype=np.uint8).reshape(-1, 4 + 4 * space.max_length)


@create_shared_memory.register(Unicode)
def _create(space: Unicode, n: int = 1, ctx: Any = None) -> Any:
    return ctx.Array(c_uint8, n * (4 + 4 * space.max_length))


@write_to_shared_memory.register(Unicode)
def _write(space: Unicode, index: int, value: str, shared_memory: Any) -> None:
    row, data = _rows(shared_memory, space)[index], value.encode()
    row[:4] = np.frombuffer(len(data).to_bytes(4, "little"), dtype=np.uint8)
    row[4 : 4 + len(data)] = np.frombuffer(data, dtype=np.uint8)


class _Live(Sequence[str]):
    """The texts that stand in shared memory now. AsyncVectorEnv reads the memory once, when it is made, and takes
    what it gets for a view, as arrays are; its deep copy (what ``copy=True`` hands out) is a plain tuple."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self)[index]
        row = self._rows[index]
        return row[4 : 4 + int.from_bytes(row[:4].tobytes(), "little")].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Live | tuple) and tuple(self) == tuple(other)

    def __deepcopy__(self, memo: Any) -> tuple[str, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return repr(tuple(self))


@read_from_shared_memory.register(Unicode)
def _read(space: Unicode, shared_memory: Any, n: int = 1) -> Sequence[str]:
    return _Live(_rows(shared_memory, space))


class Conversation(Space[list[dict[str, Any]]]):
    """Messages of a chat, each a dict with a ``role`` and a text ``content``.

    They have no largest size, so that an AsyncVectorEnv needs ``shared_memory=False``.

    Args:
        seed: Seed of ``sample``.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._words = Unicode()
        super().__init__(seed=seed)

    def seed(self, seed: Any = None) -> Any:
        """Seed ``sample``."""
        return self._words.seed(seed)

    def sample(self, mask: Any = None, probability: Any = None) -> list[dict[str, Any]]:
        """A chat of one message."""
        return [{"role": "user", "content": self._words.sample(mask, probability)}]

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a list of messages."""
        return isinstance(x, list) and all(
            isinstance(one, dict)
            and one.get("role") in ("system", "user", "assistant", "tool")
            and isinstance(one.get("content"), str)
            for one in x
        )

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed-size array form."""
        return False

    def __repr__(self) -> str:
        return "Conversation()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conversation)
