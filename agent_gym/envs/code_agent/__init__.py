"""CodeAgent-v0: a workspace of files, tests in a sandbox."""

from typing import Any

from agent_gym.env import ToolEnv
from agent_gym.envs.code_agent.env import CodeAgentEnv
from agent_gym.envs.code_agent.published import load_tasks
from agent_gym.envs.code_agent.tasks import CodeTask
from agent_gym.tasksets import of_set

__all__ = ["CodeAgentEnv", "CodeTask", "load_tasks", "make"]


def make(*, tasks: str | None = None, **kwargs: Any) -> ToolEnv:
    """What ``gym.make("CodeAgent-v0")`` calls: :class:`CodeAgentEnv`, of a frozen task set where ``tasks`` names
    one."""
    return of_set(CodeAgentEnv, "CodeAgent-v0", tasks, kwargs)


make.metadata = CodeAgentEnv.metadata  # type: ignore[attr-defined]  # gym.make looks here for the render modes
