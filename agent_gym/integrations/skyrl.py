"""The environments in SkyRL's trainer, as text environments of skyrl-gym (extra ``skyrl``; docs/skyrl.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

import agent_gym  # noqa: F401  # registers the environments
from agent_gym.env import tool_env
from agent_gym.integrations.conversation import check_verdict, scores
from agent_gym.integrations.rows import write_rows
from agent_gym.messages import Message
from agent_gym.wrappers import Messages

try:
    import skyrl_gym
    from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput
except ImportError as error:
    raise ImportError("agent_gym.integrations.skyrl needs skyrl-gym: pip install 'agent-gym[skyrl]'") from error

__all__ = ["SkyRLEnv", "register", "write_dataset"]


class SkyRLEnv(BaseTextEnv):
    """One episode of an environment of agent_gym, as SkyRL plays it. :func:`register` names it to SkyRL.

    The conversation is that of :class:`~agent_gym.wrappers.Messages` in words: the tools stand in the system's message,
    the user says the results.

    Args:
        env_id: Gymnasium id, such as ``"APIAgent-v0"``.
        env_config: SkyRL's, which has nothing for this environment.
        extras: Of the data set's row: ``task``, the id of the task to play, or ``seed``, which draws one; and
            ``task_hash``, where the task is to have that content. ``max_turns`` is SkyRL's own, and bounds the episode
            unless ``kwargs`` do.
        **kwargs: Of ``gym.make``.

    Raises:
        ValueError: If the row names no task.
        gymnasium.error.Error, ImportError, TypeError, ValueError: If the environment cannot be made.
    """

    def __init__(
        self, env_id: str, env_config: Any = None, extras: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        extras = extras or {}
        if (extras.get("task") is None) == (extras.get("seed") is None):
            raise ValueError(
                f"a row of the data set for {env_id} needs task, the id of a task, or seed, which draws one"
            )
        bound = {} if extras.get("max_turns") is None else {"max_turns": extras["max_turns"]}
        self.env = Messages(gym.make(env_id, **{**bound, **kwargs}), native=False)
        self.max_turns = tool_env(self.env).max_turns
        self._extras, self._info = extras, dict[str, Any]()

    def init(self, prompt: list[Message] | None = None) -> tuple[list[Message], dict[str, Any]]:
        """Start the episode.

        Args:
            prompt: The data set's, which is only there to be measured: the environment gives its own.

        Returns:
            The system's and the user's message, and the environment's ``info``.

        Raises:
            ValueError: If there is no such task, or it has another content than the row says.
        """
        task, seed = self._extras.get("task"), self._extras.get("seed")
        chat, self._info = self.env.reset(seed=seed, options=None if task is None else {"task": task})
        self.turns = 0
        if self._extras.get("task_hash") not in (None, self._info["task_hash"]):
            raise ValueError(
                f"the task {self._info['task_id']!r} has the content {self._info['task_hash']} here, the data set says "
                f"{self._extras['task_hash']}: register the environment with the arguments that it was written with"
            )
        return chat, self._info

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Play one turn.

        Args:
            action: The text that the model wrote.

        Returns:
            The results as the user's message (none at the end), the reward, whether the episode is over, and the
            environment's ``info`` as ``metadata``.

        Raises:
            InfraError: There is no verdict, as what runs the environment failed. SkyRL cannot leave an episode out.
        """
        before = len(self.env.messages)
        chat, reward, terminated, truncated, self._info = self.env.step(action)
        self.turns += 1
        done = terminated or truncated
        check_verdict(self._info)
        return BaseTextEnvStepOutput(
            observations=[] if done else chat[before + 1 :], reward=float(reward), done=done, metadata=self._info
        )

    def get_metrics(self) -> dict[str, float]:
        """What SkyRL averages over the episodes: ``success``, ``in_budget_success``, what the episode cost, by channel,
        and ``turns``. An episode that SkyRL cut for its length did not succeed."""
        return {**scores(self._info), "turns": float(self.turns)}

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def register(env_id: str, name: str | None = None, **kwargs: Any) -> None:
    """Name an environment to SkyRL, in the process that makes it: in SkyRL's entry point, before the experiment.

    Args:
        env_id: Gymnasium id, such as ``"APIAgent-v0"``.
        name: As SkyRL's ``env_class`` names it; ``env_id`` by default. With other arguments it needs another name.
        **kwargs: Of ``gym.make``.

    Raises:
        skyrl_gym.error.RegistrationError: If the name is taken.
        gymnasium.error.Error, ImportError, TypeError, ValueError: If the environment cannot be made.
    """
    gym.make(env_id, **kwargs).close()  # what is wrong shows here, not in the middle of a run
    skyrl_gym.register(name or env_id, f"{__name__}:{SkyRLEnv.__name__}", {"env_id": env_id, **kwargs})


def write_dataset(path: str | Path, name: str, n: int, seed: int = 0) -> None:
    """Write a data set for SkyRL (``data.train_data``): one JSON line a task, with ``prompt``, ``env_class``, ``task``
    and ``task_hash``.

    Args:
        path: Ends with ``.jsonl``, by which SkyRL knows what it is.
        name: Of a registered environment.
        n: How many tasks: the first of a set, or as the seeds from ``seed`` on draw them; see ``task_list``.
        seed: The first seed.

    Raises:
        ValueError: If the path ends otherwise.
        skyrl_gym.error.Error: If no environment is registered under that name.
    """
    env_kwargs = dict(skyrl_gym.spec(name).kwargs)

    def row(prompt: list[Message], task: str, task_hash: str) -> dict[str, Any]:
        return {"prompt": prompt, "env_class": name, "task": task, "task_hash": task_hash}

    write_rows(path, env_kwargs.pop("env_id"), env_kwargs, n, seed, row)
