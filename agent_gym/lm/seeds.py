"""All chance comes from seeds that are computed where they are used, so a resumed run needs no saved state."""

import hashlib
from typing import Any

__all__ = ["stream"]


def stream(*key: Any) -> int:
    """A seed for one purpose at one time: of the same key always the same, of another key independent.

    Args:
        key: What the chance is for, such as ``("rollout", seed, iteration, episode)``; anything with a stable repr.

    Returns:
        A number below 2**56.
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")
