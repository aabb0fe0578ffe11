"""The splits of the generated tasks, and which of them a made-up string belongs to."""

from __future__ import annotations

import zlib

__all__ = ["SPLITS", "check_split", "split_of"]

SPLITS = ("train", "validation", "test")
"""They share no entity. The compositions of validation are those of train, the compositions of test are its own."""


def check_split(split: str) -> None:
    """See that there is such a split.

    Raises:
        ValueError: If there is none.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose 'train', 'validation' or 'test'")


def split_of(entity: str) -> str:
    """The split an entity's name or id belongs to: of all strings a quarter is test's and an eighth validation's."""
    rest = zlib.crc32(entity.encode()) % 8
    return "test" if rest % 4 == 0 else "validation" if rest == 1 else "train"
