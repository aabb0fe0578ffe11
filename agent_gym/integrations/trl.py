"""The environments in TRL's GRPOTrainer (extra ``trl``; docs/trl.md).

TRL runs a model's calls one by one, as methods of an object, and tells that object neither where a turn ends nor what
the model says last. So the methods only answer. The rewards come from playing the conversation once more, turn by turn,
as :meth:`~agent_gym.ToolEnv.step` takes it: budgets, costs and the verdict are those of the environment itself.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, Union

import gymnasium as gym

import agent_gym  # noqa: F401  # registers the environments
from agent_gym.costs import CHANNELS
from agent_gym.env import tool_env
from agent_gym.integrations.conversation import scores
from agent_gym.tasksets import open_set
from agent_gym.tools import dump
from agent_gym.verdict import Verdict

try:
    import trl  # noqa: F401  # a module that is not installed should be missed here, not in the middle of a script
    from datasets import Dataset
except ImportError as error:
    raise ImportError("agent_gym.integrations.trl needs TRL: pip install 'agent-gym[trl]'") from error

__all__ = ["Spec", "spec"]

ROW = ("task_id", "task_hash", "task_type")
"""What a row of the data tells of its task, beside the prompt."""
REWARDS = ("success", "in_budget_success")
BROKEN = dump({"error": "infra", "message": "the environment's machinery failed: the episode is over and not judged"})
"""A tool's answer where there is none; no tool answers this of itself."""
OVER = dump({"error": "refused", "message": "the episode is over: this call has no effect and no result"})


@dataclass(frozen=True)
class Spec:
    """What ``GRPOTrainer`` takes of an environment, under the names of its arguments.

    Args:
        train_dataset: A row a task: ``prompt`` (system and user message), ``task_id``, ``task_hash``, ``task_type``.
        environment_factory: Makes the object whose methods are the tools.
        reward_funcs: One function, named as the reward is.
    """

    train_dataset: Dataset
    environment_factory: Callable[[], Any]
    reward_funcs: list[Callable[..., list[float | None]]]


def spec(env_id: str, tasks: str | Sequence[str], *, reward: str = "success", **kwargs: Any) -> Spec:
    """An environment for ``GRPOTrainer``.

    Args:
        env_id: Gymnasium id.
        tasks: What to train on: a task set's name, as :func:`~agent_gym.tasksets.open_set` takes it, or ids of tasks.
        reward: ``"success"`` is 1 where the verdict is a pass; ``"in_budget_success"`` only where, besides, no channel
            is above its bound, which differs with ``on_budget="record"``.
        **kwargs: Of ``gym.make``.

    Raises:
        gymnasium.error.Error, ImportError, TypeError, ValueError: If the environment or a task cannot be had, there is
            no task, or a tool's name is one that TRL keeps for itself.
    """
    if reward not in REWARDS:
        raise ValueError(f"reward={reward!r}: choose one of {', '.join(map(repr, REWARDS))}")
    if kwargs.get("latency") == "wall":
        raise ValueError("latency='wall': a conversation is played twice, so its time cannot be measured; use 'model'")
    if isinstance(tasks, str):
        task_set = open_set(tasks, env_id)
        tasks, kwargs = task_set.task_ids, {**kwargs, **task_set.env_kwargs}
    if not tasks or not isinstance(tasks, Sequence):
        raise ValueError(f"tasks={tasks!r}: give a task set's name, or the ids of one task or more in a list")
    rows, tools = [], {}
    with closing(gym.make(env_id, **kwargs)) as env:
        tool_env(env)  # a TypeError for any other
        for task_id in tasks:
            _, info = env.reset(options={"task": task_id})
            rows.append({"prompt": info["messages"], **{name: info[name] for name in ROW}})
            tools.update({tool["function"]["name"]: tool["function"] for tool in info["tools"]})
    _episode_class(dump(tools))  # what is wrong with a tool shows here
    factory = partial(_episode, env_id, kwargs, dump(tools))
    return Spec(Dataset.from_list(rows), factory, [_Reward(reward, env_id, kwargs)])


# ---- the tools -------------------------------------------------------------------------------------------------------


class _Episode:
    """A rollout's environment. A subclass has the tools as methods."""

    def __init__(self, env_id: str, kwargs: Mapping[str, Any]) -> None:
        self._env = gym.make(env_id, **kwargs)
        base = tool_env(self._env)
        base.max_turns *= base.max_calls  # each call is a turn here; how many there really are is seen at the end
        self._over = ""

    def reset(self, task_id: str, **row: Any) -> None:
        """Begin the task of a row, whose prompt is complete."""
        self._env.reset(options={"task": task_id})
        self._over = ""

    def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        if self._over:
            return self._over
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        text, _, terminated, truncated, info = self._env.step({"role": "assistant", "tool_calls": [call]})
        if terminated or truncated:
            self._over = BROKEN if info["verdict"]["status"] == "infra" else OVER
        if self._over == BROKEN:
            return BROKEN
        return text or info["tool_results"][-1]["content"]  # of a call that ran out of budget nothing is shown


def _episode(env_id: str, kwargs: Mapping[str, Any], tools: str) -> _Episode:
    return _episode_class(tools)(env_id, kwargs)


@cache
def _episode_class(tools: str) -> type[_Episode]:
    """A class with a method for every tool; made where it is used, since it does not pickle.

    Args:
        tools: Names and schemas, as JSON.

    Raises:
        ValueError: If TRL could not take a tool for one.
    """
    methods = {}
    for name, function in json.loads(tools).items():
        if name.startswith("_") or name in ("reset", "get_reward"):
            raise ValueError(f"the tool {name!r}: TRL has no tools of that name, or one that begins with an underscore")
        methods[name] = _method(function)
    return type("Episode", (_Episode,), methods)


def _method(function: Mapping[str, Any]) -> Callable[..., str]:
    """A tool as a method, of which ``transformers.utils.get_json_schema`` makes the tool's schema again."""
    name, schema = function["name"], function["parameters"]

    def method(self: _Episode, /, **arguments: Any) -> str:
        return self._call(name, arguments)

    properties = schema.get("properties", {})
    hints = {key: _hint(entry, schema.get("$defs", {})) for key, entry in properties.items()}
    lines = [f"    {key}: {' '.join(entry.get('description', key).split())}" for key, entry in properties.items()]
    parameters = [
        inspect.Parameter(
            key, inspect.Parameter.KEYWORD_ONLY, annotation=hint,
            default=inspect.Parameter.empty if key in schema.get("required", ()) else None,
        )
        for key, hint in hints.items()
    ]  # fmt: skip
    method.__name__, method.__qualname__ = name, f"Episode.{name}"
    method.__doc__ = "\n".join([" ".join(function["description"].split()), *(["", "Args:", *lines] if lines else [])])
    method.__annotations__ = hints
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
    return method


_TYPES = {
    "any": Any,
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "null": type(None),
    "object": dict,
}


def _hint(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """The annotation of a JSON schema."""
    if "$ref" in entry:
        return _hint(definitions[entry["$ref"].rpartition("/")[2]], definitions)
    if "enum" in entry or "const" in entry:
        return Literal[tuple(entry.get("enum", [entry.get("const")]))]
    if "anyOf" in entry:
        return Union[tuple(_hint(one, definitions) for one in entry["anyOf"])]  # noqa: UP007
    kinds = entry.get("type", "any")
    if not isinstance(kinds, str):
        return Union[tuple(_hint({**entry, "type": kind}, definitions) for kind in kinds)]  # noqa: UP007
    if kinds == "array":
        return list[_hint(entry["items"], definitions)] if "items" in entry else list  # type: ignore[misc]
    return _TYPES[kinds]


# ---- the rewards -----------------------------------------------------------------------------------------------------


class _Reward:
    """A reward function of TRL's, which logs what an episode cost beside what it earned."""

    def __init__(self, name: str, env_id: str, kwargs: Mapping[str, Any]) -> None:
        self.__name__ = name  # under which TRL logs it
        self._env_id, self._kwargs = env_id, kwargs
        self._env: gym.Env | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes an environment of its own."""
        return {**vars(self), "_env": None}

    def __call__(
        self,
        completions: Sequence[Sequence[Mapping[str, Any]]],
        task_id: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **row: Any,
    ) -> list[float | None]:
        """The rewards of a batch of conversations.

        Args:
            completions: What the model wrote and the tools answered, as messages.
            task_id: Of each.
            log_metric: TRL's, where the trainer has it.
            log_extra: As ``log_metric``.
            **row: What else TRL hands to a reward function.

        Returns:
            1.0 or 0.0 each; None where there is no verdict, since the machinery failed.
        """
        ends = [self._play(*one) for one in zip(task_id, completions, strict=True)]
        rewards = [self._reward(end) for end in ends]
        judged = [end for end, reward in zip(ends, rewards, strict=True) if reward is not None]
        if log_metric is not None:
            log_metric("infra", 1.0 - len(judged) / len(ends))
            for channel in CHANNELS if judged else ():
                log_metric(f"costs/{channel}", sum(end["cost_total"][channel] for end in judged) / len(judged))
        if log_extra is not None:
            log_extra("verdict", [end["verdict"]["reason"] for end in ends])
            for channel in CHANNELS:
                log_extra(channel, [end["cost_total"][channel] for end in ends])
        return rewards

    def _play(self, task_id: str, completion: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The last ``info`` of a conversation's episode, with a verdict."""
        if self._env is None:
            self._env = gym.make(self._env_id, **self._kwargs)
        _, info = self._env.reset(options={"task": task_id})
        done = False
        for message in completion:
            if message["content"] == BROKEN:
                return {**info, "verdict": Verdict("infra", "infra", 0.0).to_dict()}
            if message["role"] == "assistant" and not done:
                _, _, terminated, truncated, info = self._env.step(message)
                done = terminated or truncated
        # at one of the trainer's limits, a conversation ends before the episode
        return info if done else {**info, "verdict": Verdict("fail", "unanswered", 0.0).to_dict()}

    def _reward(self, end: Mapping[str, Any]) -> float | None:
        return None if end["verdict"]["status"] == "infra" else scores(end)[self.__name__]
