"""WebLite-v0: small web sites in process or in Chromium, and MiniWoB++."""

from typing import Any

from agent_gym.env import ToolEnv
from agent_gym.envs.web_lite.env import WebLiteEnv
from agent_gym.tasksets import of_set

__all__ = ["WebLiteEnv", "make"]


def make(*, tasks: str | None = None, **kwargs: Any) -> ToolEnv:
    """What ``gym.make("WebLite-v0")`` calls: :class:`~agent_gym.envs.web_lite.miniwob.MiniWoBEnv` for
    ``tasks="miniwob"``, :class:`WebLiteEnv` otherwise, of a frozen task set where ``tasks`` names one."""
    if tasks != "miniwob":
        return of_set(WebLiteEnv, "WebLite-v0", tasks, kwargs)
    from agent_gym.envs.web_lite.miniwob import MiniWoBEnv

    return MiniWoBEnv(tasks=tasks, **kwargs)


make.metadata = WebLiteEnv.metadata  # type: ignore[attr-defined]  # gym.make looks here for the render modes
