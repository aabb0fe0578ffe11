"""What ``vf-eval agent-gym-verifiers`` finds: see :mod:`agent_gym.integrations.verifiers`."""

from agent_gym.integrations.verifiers import GymEnv, GymHarness, GymTaskset

__all__ = ["GymEnv", "GymHarness", "GymTaskset"]
