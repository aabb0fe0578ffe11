"""CodeAgent-v0: a workspace of files, tests in a sandbox."""

from agent_gym.envs.code_agent.env import CodeAgentEnv
from agent_gym.envs.code_agent.tasks import CodeTask, load_tasks

__all__ = ["CodeAgentEnv", "CodeTask", "load_tasks"]
