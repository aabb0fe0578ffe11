"""How the commands read arguments that are more than a word; each is a ``type`` of argparse."""

from __future__ import annotations

import argparse
import json
from typing import Any

from agent_gym.costs import check_budget

__all__ = ["budget", "json_object"]


def budget(text: str) -> dict[str, float]:
    """``"tool_calls=6,latency_ms=900"`` as a budget."""
    try:
        pairs = (part.partition("=") for part in text.split(","))
        return check_budget({channel.strip(): float(bound) for channel, _, bound in pairs})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write CHANNEL=BOUND,CHANNEL=BOUND: {error}") from None


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return found
