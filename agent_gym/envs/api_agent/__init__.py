"""APIAgent-v0 and what a domain of your own needs."""

from typing import Any

from agent_gym.costs import Latency
from agent_gym.env import ToolEnv
from agent_gym.envs.api_agent.domain import Domain, Draft, register_domain
from agent_gym.envs.api_agent.env import APIAgentEnv
from agent_gym.envs.api_agent.world import Record, Transaction
from agent_gym.tasksets import of_set
from agent_gym.tools import ToolError

__all__ = ["APIAgentEnv", "Domain", "Draft", "Latency", "Record", "ToolError", "Transaction", "make", "register_domain"]


def make(*, tasks: str | None = None, **kwargs: Any) -> ToolEnv:
    """What ``gym.make("APIAgent-v0")`` calls: :class:`~agent_gym.envs.api_agent.bfcl.BFCLEnv` for ``tasks="bfcl"``,
    :class:`APIAgentEnv` otherwise, of a frozen task set where ``tasks`` names one."""
    if tasks != "bfcl":
        return of_set(APIAgentEnv, "APIAgent-v0", tasks, kwargs)
    from agent_gym.envs.api_agent.bfcl import BFCLEnv

    return BFCLEnv(tasks=tasks, **kwargs)


make.metadata = APIAgentEnv.metadata  # type: ignore[attr-defined]  # gym.make looks here for the render modes
