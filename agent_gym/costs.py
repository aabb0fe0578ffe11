"""Cost channels, budgets, token counting and the deterministic latency model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

__all__ = ["CHANNELS", "Latency", "approximate_tokens", "check_budget"]

CHANNELS = ("tool_calls", "output_tokens", "read_tokens", "latency_ms")
"""Calls; tokens the agent wrote; tokens of what its tools answered; milliseconds."""


def check_budget(budget: Mapping[str, float] | None) -> dict[str, float]:
    """The finite bounds of a budget, in the order of the channels; an unnamed or infinite one bounds nothing.

    Args:
        budget: Upper bounds by channel, inclusive: a total equal to the bound is within budget.

    Raises:
        ValueError: For an unknown channel, or a bound that is not a non-negative number.
    """
    if budget is not None and not isinstance(budget, Mapping):
        raise ValueError(f"budget={budget!r}: give a bound by channel, such as {{'tool_calls': 6}}")
    budget = dict(budget or {})
    for channel, bound in budget.items():
        if channel not in CHANNELS:
            raise ValueError(f"budget names the unknown channel {channel!r}; the channels are {', '.join(CHANNELS)}")
        if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound) or bound < 0:
            raise ValueError(f"budget[{channel!r}] must be a number of 0 or more, not {bound!r}")
    return {channel: float(budget[channel]) for channel in CHANNELS if math.isfinite(budget.get(channel, math.inf))}


def approximate_tokens(text: str) -> int:
    """Tokens of ``text`` by the usual rule of thumb, four UTF-8 bytes a token, when no tokenizer is at hand."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a tool call takes in the model world.

    Args:
        base_ms: Round trip of one call, in milliseconds.
        per_unit_ms: Milliseconds for each unit of work the tool did (rows read, mostly).
        jitter: Half-width of the relative spread around that mean.
    """

    base_ms: float = 20.0
    per_unit_ms: float = 1.0
    jitter: float = 0.1

    def milliseconds(self, units: float, seed: int, call: str) -> float:
        """Latency of one call. The jitter is a hash of the task's ``seed`` and the ``call``, so that the same
        call on the same task always takes the same time: replay, caching and ``check_env`` stay exact.

        Args:
            units: Work done by the call.
            seed: The task's latency seed.
            call: Canonical text of the call (name and arguments).
        """
        mean = self.base_ms + self.per_unit_ms * units
        digest = blake2b(f"{seed}\0{call}".encode("utf-8", "replace"), digest_size=4).digest()
        spread = int.from_bytes(digest, "big") / 2**31 - 1.0
        return round(mean * (1.0 + self.jitter * spread), 3)
