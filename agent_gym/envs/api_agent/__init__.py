"""APIAgent-v0 and what a domain of your own needs."""

from agent_gym.costs import Latency
from agent_gym.envs.api_agent.domain import Domain, Draft, register_domain
from agent_gym.envs.api_agent.env import APIAgentEnv
from agent_gym.envs.api_agent.world import Record, Transaction
from agent_gym.tools import ToolError

__all__ = ["APIAgentEnv", "Domain", "Draft", "Latency", "Record", "ToolError", "Transaction", "register_domain"]
