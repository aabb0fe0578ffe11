"""CodeAgent-v0: a workspace of files, tests in a sandbox."""

from agent_gym.envs.code_agent.env import CodeAgentEnv
from agent_gym.envs.code_agent.published import load_tasks
from agent_gym.envs.code_agent.tasks import CodeTask

__all__ = ["CodeAgentEnv", "CodeTask", "load_tasks"]
