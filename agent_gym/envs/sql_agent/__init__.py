"""SQL-v0: real SQLite behind five tools, generated and given tasks, a verifier that runs the query again elsewhere."""

from agent_gym.envs.sql_agent.env import SQLEnv
from agent_gym.envs.sql_agent.tasks import SQLTask, load_tasks

__all__ = ["SQLEnv", "SQLTask", "load_tasks"]
