"""What the commands tell a user who asked for something that cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

import agent_gym  # noqa: F401  # registers the environments

__all__ = ["Failure", "made", "one_sentence"]


class Failure(Exception):
    """One sentence for the user: what was wrong, where, and what would be right. The exit code is 1."""


def one_sentence(error: BaseException) -> str:
    """What an error says, on one line, without what Gymnasium puts after it."""
    return " ".join(str(error).split()).split(" was raised from")[0]


def made(env_id: str, kwargs: Mapping[str, Any]) -> gym.Env:
    """``gym.make(env_id, **kwargs)``.

    Raises:
        Failure: If it cannot be made: an unknown id or argument, a missing package, no sandbox.
    """
    try:
        return gym.make(env_id, **kwargs)
    except (gym.error.Error, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise Failure(f"{env_id}: {one_sentence(error)}") from error
