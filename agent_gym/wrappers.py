"""Wrappers: a scalar cost for constrained-RL code, wall time, chats, and recording of trajectories."""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from agent_gym.costs import CHANNELS
from agent_gym.env import tool_env
from agent_gym.messages import Message, exchange, in_words, listing
from agent_gym.replay import plain_kwargs
from agent_gym.spaces import Conversation, Unicode
from agent_gym.tools import Call
from agent_gym.trajectory import Step, Trajectory

__all__ = ["Messages", "RecordTrajectory", "ScalarCost", "WallClock"]

Info = dict[str, Any]


class ScalarCost(gym.Wrapper, RecordConstructorArgs):
    """``info["cost"]`` as one number, as constrained-RL libraries read it (Safety-Gymnasium, OmniSafe).

    ``info["cost"]`` becomes the weighted sum of the step's channels; the channels move to ``info["costs"]``.
    ``info["cost_total"]`` and ``info["budget_left"]`` stay by channel.

    Args:
        env: A ToolEnv, wrapped or not.
        weights: Weight by channel, an unnamed channel weighing 0; ``{"tool_calls": 1.0}`` by default.

    Raises:
        TypeError: For an environment that is not of this suite.
        ValueError: For an unknown channel.
    """

    def __init__(self, env: gym.Env, weights: Mapping[str, float] | None = None) -> None:
        tool_env(env)
        if unknown := sorted(set(weights or ()) - set(CHANNELS)):
            raise ValueError(
                f"weights names the unknown channel {unknown[0]!r}; the channels are {', '.join(CHANNELS)}"
            )
        RecordConstructorArgs.__init__(self, weights=dict(weights) if weights is not None else None)
        gym.Wrapper.__init__(self, env)
        self.weights = {"tool_calls": 1.0} if weights is None else {name: float(w) for name, w in weights.items()}

    def _scalar(self, info: Info) -> Info:
        costs = info["cost"]
        return {**info, "cost": float(sum(w * costs[name] for name, w in self.weights.items())), "costs": costs}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """See :class:`gymnasium.Env`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._scalar(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        """See :class:`gymnasium.Env`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, self._scalar(info)


class WallClock(gym.Wrapper, RecordConstructorArgs):
    """Adds ``info["wall_ms"]``: how long the step really took, in milliseconds. Not reproducible, hence opt-in.

    Args:
        env: Any environment.
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        """See :class:`gymnasium.Env`."""
        started = time.perf_counter()
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "wall_ms": (time.perf_counter() - started) * 1000.0}


class Messages(gym.Wrapper, RecordConstructorArgs):
    """The observation is the whole chat so far, so that an agent needs no memory of its own.

    A chat is a list of messages as OpenAI's API takes them and ``apply_chat_template`` renders them: ``system``,
    ``user``, ``assistant`` with ``tool_calls`` (each with an id that no other has, and its arguments as a JSON string),
    and behind it, for each call, run or not, a ``tool`` message with its id. The last turn is in it too. A call that
    could not be read, or whose name no tool may have, stays words, and the user's next message says what was wrong.
    Reasoning is left out. What the environment itself showed is in ``info["text"]``.

    An action is a turn's text or an assistant message, as ever. The chat belongs to a snapshot. In the replays of
    ``counterfactuals`` the observations are the environment's own.

    Args:
        env: An environment made by ``gym.make``, a ToolEnv inside. ``info["tools"]`` goes with the chat.
        native: False for models and templates that know no tools: the tools stand in the system's message, turns are
            kept as they were written, reasoning and all, and the user says the results. Roles take turns.

    Raises:
        TypeError: For an environment that is not of this suite, or whose observations are no text any more.
    """

    def __init__(self, env: gym.Env, native: bool = True) -> None:
        tool_env(env)
        if not isinstance(env.observation_space, Unicode):
            raise TypeError(f"Messages needs an environment that shows text, not {env.observation_space}")
        RecordConstructorArgs.__init__(self, native=native)
        gym.Wrapper.__init__(self, env)
        self.native = native
        self.observation_space = Conversation()
        self._messages: tuple[Message, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """The chat so far, as the last observation had it."""
        return copy.deepcopy(list(self._messages))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """See :class:`gymnasium.Env`."""
        text, info = self.env.reset(seed=seed, options=options)
        system, *request = copy.deepcopy(info["messages"])
        if not self.native:
            example = tool_env(self).parser.render("", [Call("NAME", {"PARAMETER": "VALUE"})])
            system["content"] += f"\n\n{listing(info['tools'], example)}"
        self._messages = (system, *request)
        return self._shown(text), {**info, "text": text}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        """See :class:`gymnasium.Env`."""
        turn = tool_env(self).read(action)
        text, reward, terminated, truncated, info = self.env.step(action)
        said, *heard = exchange(turn, info["tool_results"], text, self._messages)
        if not self.native:
            (said,), heard = in_words([said], tool_env(self).parser), in_words(heard)
            own = {"content": action} if isinstance(action, str) else action
            if isinstance(own.get("content"), str) and not own.get("tool_calls"):
                said["content"] = own["content"]  # all of the turn, as it was written
        self._messages = (*self._messages, said, *heard)
        return self._shown(text), reward, terminated, truncated, {**info, "text": text}

    def _shown(self, text: str) -> Any:
        return text if tool_env(self).replaying else self.messages

    def get_state(self) -> tuple[Message, ...]:
        """The chat, for ``agent_gym.snapshot``."""
        return self._messages

    def set_state(self, state: tuple[Message, ...]) -> None:
        """Put back what ``get_state`` gave."""
        self._messages = state


class RecordTrajectory(gym.Wrapper, RecordConstructorArgs):
    """Records every finished episode as a :class:`~agent_gym.trajectory.Trajectory`.

    Finished episodes stand in ``trajectories``, oldest first (clear it when it grows too long), and the newest in
    ``last``. The episode in the making belongs to a snapshot, so that a restored episode is recorded as if nothing had
    happened in between; finished ones are not taken back. Replays of ``counterfactuals`` are not recorded.
    An episode that a wrapper inside, such as ``TimeLimit``, cuts has neither a verdict nor a reward.

    Args:
        env: An environment made by ``gym.make``; a ToolEnv inside.
        path: JSONL file to append to, one write an episode; a file for each environment. A cut last line that a
            crash has left is dropped before the first write.

    Raises:
        TypeError: For an environment that is not of this suite.
        ValueError: If the environment was not made by ``gym.make``, or ``path`` cannot be written.
    """

    def __init__(self, env: gym.Env, path: str | Path | None = None) -> None:
        RecordConstructorArgs.__init__(self, path=None if path is None else str(path))
        base = tool_env(env)
        gym.Wrapper.__init__(self, env)
        if env.spec is None:
            raise ValueError("RecordTrajectory needs to know how to remake its environment: make it with gym.make")
        kwargs = plain_kwargs(env.spec.kwargs)
        if "budget" in kwargs:  # without its infinite bounds
            kwargs["budget"] = base.budget
        self._id, self._kwargs = env.spec.id, json.loads(json.dumps(kwargs))
        self.path = None if path is None else _writable(Path(path))
        self.trajectories: list[Trajectory] = []
        self._seed: int | None = None
        self._task_id, self._task_hash, self._observation = "", "", ""
        self._steps: tuple[Step, ...] = ()
        self._mended = False

    @property
    def last(self) -> Trajectory | None:
        """The newest finished episode."""
        return self.trajectories[-1] if self.trajectories else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """See :class:`gymnasium.Env`."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._seed, self._task_id, self._task_hash = seed, info["task_id"], info["task_hash"]
        self._observation, self._steps = info.get("text", observation), ()
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        """See :class:`gymnasium.Env`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self.unwrapped.replaying:  # type: ignore[attr-defined]
            step = Step(
                observation=self._observation,
                action=action if isinstance(action, str) else copy.deepcopy(dict(action)),
                cost=dict(info["costs"] if "costs" in info else info["cost"]),
                tool_results=copy.deepcopy(info["tool_results"]),
                state_hash=info["state_hash"],
                terminated=terminated,
                truncated=truncated,
            )
            self._observation, self._steps = info.get("text", observation), (*self._steps, step)
            if terminated or truncated:
                self._finish(float(reward), info)
        return observation, reward, terminated, truncated, info

    def _finish(self, reward: float, info: Info) -> None:
        verdict = copy.deepcopy(info.get("verdict"))
        trajectory = Trajectory(
            task_id=self._task_id,
            env_id=self._id,
            env_kwargs=copy.deepcopy(self._kwargs),
            seed=self._seed,
            steps=self._steps,
            reward=None if verdict is None or verdict["status"] == "infra" else reward,
            verdict=verdict,
            cost_total=dict(info["cost_total"]),
            task_hash=self._task_hash,
        )
        self.trajectories.append(trajectory)
        if self.path is not None:
            if not self._mended and self.path.exists():
                _mend(self.path)
            self._mended = True
            with self.path.open("ab", buffering=0) as file:
                file.write(trajectory.to_json().encode() + b"\n")

    def get_state(self) -> tuple[Any, ...]:
        """The episode in the making, for ``agent_gym.snapshot``."""
        return self._seed, self._task_id, self._task_hash, self._observation, self._steps

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Put back what ``get_state`` gave."""
        self._seed, self._task_id, self._task_hash, self._observation, self._steps = state


def _writable(path: Path) -> Path:
    """The path, if a file can be written there."""
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder: give a file")
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r}: there is no folder {str(path.parent)!r} to write into")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"path={str(path)!r} cannot be written")
    return path


def _mend(path: Path) -> None:
    """End the file's last line, or drop it if it is cut off, so that the next line stands alone."""
    with path.open("rb+") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
        file.seek(0)
        start = 0
        for line in file:
            last, start = line, start + len(line)
        start -= len(last)
        try:
            Trajectory.from_json(last)
        except ValueError:
            file.truncate(start)
            warnings.warn(f"{path}: the last line was cut off and has been dropped", stacklevel=3)
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
