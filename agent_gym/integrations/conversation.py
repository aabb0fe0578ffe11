"""An episode as chat completions hold one, for the frameworks that ask models in that form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

import agent_gym  # noqa: F401  # registers the environments
from agent_gym.cli.errors import one_sentence
from agent_gym.env import Action
from agent_gym.messages import Message
from agent_gym.tasksets import TaskSet, open_set
from agent_gym.verdict import InfraError, Verdict
from agent_gym.wrappers import Messages

__all__ = ["Conversation", "check_verdict", "open_tasks", "scores"]


def open_tasks(env_id: str, tasks: str, kwargs: Mapping[str, Any]) -> tuple[TaskSet, gym.Env]:
    """A task set, and an environment that plays it.

    Args:
        env_id: Gymnasium id.
        tasks: As :func:`agent_gym.tasksets.open_set` takes it.
        kwargs: Further arguments of ``gym.make``.

    Raises:
        ValueError: In one sentence, if there is no such set or the environment cannot be made.
    """
    try:
        task_set = open_set(tasks, env_id)
        return task_set, gym.make(env_id, **{**kwargs, **task_set.env_kwargs})
    except (gym.error.Error, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{env_id}, {tasks}: {one_sentence(error)}") from error


class Conversation:
    """One task, played turn by turn. Every method may block: call them in threads.

    Args:
        env_id: Gymnasium id.
        env_kwargs: Of ``gym.make``.
        task_id: The task.

    Attributes:
        env: The environment, with all that was said so far in ``messages``.
        info: Of the last step, with what ``reset`` gave besides (``tools``, ``task_hash``), and the ``turn``.
        verdict: None until the episode has ended.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any], task_id: str) -> None:
        self.env = Messages(gym.make(env_id, **env_kwargs))
        _, first = self.env.reset(options={"task": task_id})
        self.info: dict[str, Any] = {**first, "turn": 0}
        self.verdict: dict[str, Any] | None = None

    def play(self, action: Action) -> list[Message]:
        """Play a turn.

        Args:
            action: As the environment's ``step`` takes it.

        Returns:
            What it adds to the conversation: the turn, then what came back. The turn is ``action`` itself where that is
            a message whose calls the results belong to, else the message that the environment has read in it.

        Raises:
            InfraError: If the environment's machinery failed: there is no verdict.
        """
        before = len(self.env.messages)
        chat, _, _, _, told = self.env.step(action)
        self.info = {**self.info, **told, "turn": self.info["turn"] + 1}
        said, *heard = chat[before:]
        own = [call.get("id") for call in action.get("tool_calls") or []] if isinstance(action, dict) else None
        answers = [message for message in heard if message["role"] == "tool"]
        if own is not None and len(own) == len(answers) and all(own):
            said = action  # with all that its server wants to see again, and its ids
            for message, id in zip(answers, own, strict=True):
                message["tool_call_id"] = id
        self.verdict = told.get("verdict")
        check_verdict(told)
        return [said, *heard]

    def give_up(self, reason: str, why: str) -> None:
        """End the episode as a failure that is not the environment's to see, such as a conversation that has outgrown
        the model."""
        self.verdict = Verdict("fail", reason, 0.0, (why,)).to_dict()

    def outcome(self) -> dict[str, Any]:
        """How far it has come: plain data."""
        names = ("task_id", "task_hash", "state_hash", "cost_total", "budget_left")
        return {**{name: self.info[name] for name in names}, "turns": self.info["turn"], "verdict": self.verdict}


def check_verdict(info: Mapping[str, Any]) -> None:
    """See that an episode has not ended without a verdict.

    Args:
        info: Of a step.

    Raises:
        InfraError: If the environment's machinery failed.
    """
    verdict = info.get("verdict")
    if verdict is not None and verdict["status"] == "infra":
        raise InfraError(" ".join(verdict["diagnostics"]))


def scores(outcome: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an episode: ``success`` and ``in_budget_success`` as 0 or 1, and the total of each cost channel.

    Args:
        outcome: :meth:`Conversation.outcome`, or the last step's ``info``. Without a verdict it did not succeed.
    """
    success = (outcome.get("verdict") or {}).get("status") == "pass"
    within = all(left >= 0 for left in outcome["budget_left"].values())
    return {"success": float(success), "in_budget_success": float(success and within), **outcome["cost_total"]}
