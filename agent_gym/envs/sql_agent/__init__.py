"""SQL-v0: real SQLite behind five tools, generated and given tasks, a verifier that runs the query again elsewhere."""

from typing import Any

from agent_gym.env import ToolEnv
from agent_gym.envs.sql_agent.env import SQLEnv
from agent_gym.envs.sql_agent.tasks import SQLTask, load_tasks
from agent_gym.tasksets import of_set

__all__ = ["SQLEnv", "SQLTask", "load_tasks", "make"]


def make(*, tasks: str | None = None, **kwargs: Any) -> ToolEnv:
    """What ``gym.make("SQL-v0")`` calls: :class:`SQLEnv`, of a frozen task set where ``tasks`` names one."""
    return of_set(SQLEnv, "SQL-v0", tasks, kwargs)


make.metadata = SQLEnv.metadata  # type: ignore[attr-defined]  # gym.make looks here for the render modes
