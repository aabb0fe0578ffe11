"""agent_gym: verifiable tool-use environments for language-model agents, with costs, budgets and exact replay."""

from gymnasium.envs.registration import register as _register

from agent_gym.costs import CHANNELS, Latency
from agent_gym.env import Outcome, Task, ToolEnv, World, tool_env
from agent_gym.formats import PARSERS, Parser, Turn, register_parser
from agent_gym.replay import (
    Counterfactual,
    Delete,
    Drift,
    Elimination,
    Perturb,
    Swap,
    ToolCache,
    Truncate,
    counterfactuals,
    eliminate,
)
from agent_gym.snapshot import Snapshot, restore, snapshot, state_hash
from agent_gym.spaces import Unicode
from agent_gym.tasksets import tasks
from agent_gym.tools import Call, Tool, ToolError, tool
from agent_gym.trajectory import Group, Step, Trajectory, read_trajectories, write_trajectories
from agent_gym.verdict import InfraError, Verdict

__version__ = "0.1.0"

__all__ = [
    "CHANNELS", "PARSERS", "Call", "Counterfactual", "Delete", "Drift", "Elimination", "Group", "InfraError",
    "Latency", "Outcome", "Parser", "Perturb", "Snapshot", "Step", "Swap", "Task", "Tool", "ToolCache", "ToolEnv",
    "ToolError", "Trajectory", "Truncate", "Turn", "Unicode", "Verdict", "World", "counterfactuals", "eliminate",
    "read_trajectories", "register_parser", "restore", "snapshot", "state_hash", "tasks", "tool",
    "tool_env", "write_trajectories",
]  # fmt: skip

# Gymnasium's passive checker takes NaN, the mark of a missing verdict, for a fault, and cannot step after a reset that
# raised. The tests run the full checker instead.
_register("APIAgent-v0", "agent_gym.envs.api_agent:make", disable_env_checker=True)
_register("CodeAgent-v0", "agent_gym.envs.code_agent:make", disable_env_checker=True)
_register("SQL-v0", "agent_gym.envs.sql_agent:make", disable_env_checker=True)
_register("WebLite-v0", "agent_gym.envs.web_lite:make", disable_env_checker=True)
