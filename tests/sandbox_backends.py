"""Which sandboxes the tests run in."""

import os

import pytest

from agent_gym.sandbox import SandboxUnavailable
from agent_gym.sandbox.backends import choose


def require(backend: str) -> None:
    """Skip, saying why, where a backend cannot be had; fail instead if AGENT_GYM_REQUIRE_SANDBOXES=1."""
    try:
        choose(backend)
    except SandboxUnavailable as error:
        if os.environ.get("AGENT_GYM_REQUIRE_SANDBOXES") == "1":
            pytest.fail(f"{backend} is required: {error}")
        pytest.skip(str(error))
