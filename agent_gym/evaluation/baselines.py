"""One scripted agent for each environment: it reads the request and what its tools answer, never the oracle."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from agent_gym.env import tool_env
from agent_gym.evaluation.endpoint import Reply

__all__ = ["baseline"]


def baseline(env: gym.Env, messages: list[dict[str, Any]], info: dict[str, Any]) -> Reply:
    """The next turn."""
    return Reply(tool_env(env).parser.render("Done.", []), None)
