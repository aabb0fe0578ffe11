"""The environments as tasks of Inspect (extra ``inspect``; docs/inspect.md).

A message of the model is one turn of the environment, with all its calls. Inspect's own loop would run call after call
and know no turns, so a solver plays the episode here, and leaves what it was in the sample's store for the scorer.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import gymnasium as gym
from pydantic import Field

import agent_gym  # noqa: F401  # registers the environments
from agent_gym.cli.errors import one_sentence
from agent_gym.env import Action, tool_env
from agent_gym.evaluation.agents import TurnAgent, open_agent
from agent_gym.evaluation.endpoint import exchange
from agent_gym.tasksets import open_set
from agent_gym.verdict import InfraError, Verdict

try:
    import anyio
    import inspect_ai
    from anyio.to_thread import run_sync
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.log import transcript
    from inspect_ai.model import (
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
        ContentReasoning,
        ModelOutput,
        get_model,
    )
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import Generate, Solver, TaskState, solver
    from inspect_ai.tool import ToolCall, ToolInfo
    from inspect_ai.util import StoreModel, store_as
    from rich.markup import escape
except ImportError as error:
    raise ImportError("agent_gym.integrations.inspect needs Inspect: pip install 'agent-gym[inspect]'") from error

__all__ = ["Played", "agent", "outcome", "play", "task"]


FAULTS = (gym.error.Error, ImportError, OSError, RuntimeError, TypeError, ValueError)
"""What is raised for an environment, a task set or an agent that cannot be had."""


class Played(StoreModel):
    """How far an episode has come, in the store of its sample."""

    task_hash: str = ""
    turns: int = 0
    state_hash: str = ""
    cost_total: dict[str, float] = Field(default_factory=dict)
    budget_left: dict[str, float] = Field(default_factory=dict)
    verdict: dict[str, Any] | None = None


@inspect_ai.task
def task(env_id: str, tasks: str, **kwargs: Any) -> inspect_ai.Task:
    """A task set as a task of Inspect: ``inspect eval agent_gym/task -T env_id=SQL-v0 -T tasks=SQL-mini-v1``.

    Args:
        env_id: Gymnasium id.
        tasks: A task set, as :func:`agent_gym.tasksets.open_set` takes it.
        **kwargs: Of ``gym.make``.

    Raises:
        PrerequisiteError: If there is no such set, or the environment cannot be made; the command shows it alone.
    """
    try:
        task_set = open_set(tasks, env_id)
        about = {"env_id": env_id, "env_kwargs": {**kwargs, **task_set.env_kwargs}}
        env = gym.make(env_id, **about["env_kwargs"])
    except FAULTS as error:
        raise PrerequisiteError(escape(f"{env_id}, {tasks}: {one_sentence(error)}")) from error
    samples = []
    for task_id in task_set.task_ids:
        _, info = env.reset(options={"task": task_id})
        of_task = {"task_hash": info["task_hash"], "task_type": info["task_type"]}
        samples.append(Sample(list(map(_message, info["messages"])), id=task_id, metadata={**about, **of_task}))
    env.close()
    return inspect_ai.Task(
        dataset=MemoryDataset(samples, name=tasks),
        solver=play(),
        scorer=outcome(),
        display_name=tasks,
        metadata={**about, "fingerprint": task_set.fingerprint},
    )


# ---- playing ---------------------------------------------------------------------------------------------------------

Act = Callable[[gym.Env, list[dict[str, Any]], dict[str, Any]], Awaitable[Action | None]]
"""The next turn, from the environment, the conversation and ``info``; None where that has outgrown the model."""


@solver
def play() -> Solver:
    """The model plays the sample's task in its environment, with its tools."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        async def ask(env: gym.Env, messages: list[dict[str, Any]], info: dict[str, Any]) -> Action | None:
            tools = [ToolInfo.model_validate(schema["function"]) for schema in info["tools"]]
            state.output = await get_model().generate(state.messages, tools)
            return None if state.output.stop_reason == "model_length" else _action(state.output)

        await _episode(state, ask)
        return state

    return solve


@solver
def agent(spec: str = "oracle") -> Solver:
    """An agent of agent-gym plays, and no model is asked: ``--solver agent_gym/agent -S spec=noop``. The oracle shows
    whether the tasks can be solved on this machine.

    Args:
        spec: As :func:`agent_gym.evaluation.agents.open_agent` takes it: ``oracle``, ``noop``, ``random``,
            ``baseline`` or ``MODULE:FUNCTION``.

    Raises:
        PrerequisiteError: If there is none of that name, or it is a model.
    """
    try:
        found = open_agent(spec)
    except FAULTS as error:
        raise PrerequisiteError(escape(one_sentence(error))) from error
    if not isinstance(found, TurnAgent):
        raise PrerequisiteError(f"{spec} is a language model: serve it, and name it to Inspect with --model")

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        async def act(env: gym.Env, messages: list[dict[str, Any]], info: dict[str, Any]) -> Action:
            return (await run_sync(found.act, env, messages, info)).message

        await _episode(state, act)
        return state

    return solve


async def _episode(state: TaskState, act: Act) -> None:
    """Play the sample's task to its end. The environment works in threads, so that other samples go on.

    Raises:
        InfraError: If there is no verdict; Inspect counts the sample as failed, and can run it again.
    """
    played = store_as(Played)
    env = await run_sync(partial(gym.make, state.metadata["env_id"], **state.metadata["env_kwargs"]))
    try:
        _, first = await run_sync(partial(env.reset, options={"task": state.sample_id}))
        info = {**first, "seed": state.epoch, "turn": 0}
        messages = list(first["messages"])
        played.task_hash = info["task_hash"]
        _keep(played, info)
        while played.verdict is None:
            action = await act(env, messages, info)
            if action is None:
                played.verdict = Verdict("fail", "context", 0.0, ("the model reads no longer conversation",)).to_dict()
                break
            turn = tool_env(env).read(action)
            observation, _, _, _, told = await run_sync(env.step, action)
            info = {**info, **told, "turn": info["turn"] + 1}
            _keep(played, info)
            transcript().info({name: told[name] for name in ("cost", "budget_left", "state_hash")}, source="agent_gym")
            new = exchange(turn, told["tool_results"], observation, info["turn"])
            messages += new
            said, *heard = map(_message, new)
            answered = sum(isinstance(one, ChatMessageTool) for one in heard)
            if state.output.choices and len(state.output.message.tool_calls or []) == answered:
                said = state.output.message  # with all that the provider wants to see again
            state.messages += [said, *heard]
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(env.close)
    if played.verdict["status"] == "infra":
        raise InfraError(" ".join(played.verdict["diagnostics"]))


def _keep(played: Played, info: dict[str, Any]) -> None:
    played.turns, played.state_hash = info["turn"], info["state_hash"]
    played.cost_total, played.budget_left = info["cost_total"], info["budget_left"]
    played.verdict = info.get("verdict")


def _action(output: ModelOutput) -> dict[str, Any]:
    """The turn that a model wrote, as an assistant message of OpenAI's API."""
    message = output.message
    parts = [] if isinstance(message.content, str) else message.content
    calls = [
        {"id": call.id, "function": {"name": call.function, "arguments": call.parse_error or call.arguments}}
        for call in message.tool_calls or []
    ]
    return {
        "role": "assistant",
        "content": message.text,
        "reasoning": "".join(part.reasoning for part in parts if isinstance(part, ContentReasoning)),
        "tool_calls": calls,
        "finish_reason": "length" if output.stop_reason == "max_tokens" else "stop",
    }


def _message(message: dict[str, Any]) -> ChatMessage:
    """A message of OpenAI's API as one of Inspect."""
    content = message["content"]
    match message["role"]:
        case "system":
            return ChatMessageSystem(content=content)
        case "user":
            return ChatMessageUser(content=content)
        case "tool":
            return ChatMessageTool(content=content, tool_call_id=message["tool_call_id"])
    calls = [
        ToolCall(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", [])
    ]
    return ChatMessageAssistant(content=content, tool_calls=calls or None)


# ---- scoring ---------------------------------------------------------------------------------------------------------


@scorer(metrics={"*": [mean(), stderr()]})
def outcome() -> Scorer:
    """Success, success within the budget, and the costs of an episode; its verdict and hashes are the metadata."""

    async def score(state: TaskState, target: Target) -> Score:
        played = store_as(Played)
        unfinished = Verdict("fail", "limit", 0.0, ("a limit of Inspect ended the episode before its verdict",))
        verdict = played.verdict or unfinished.to_dict()
        success = verdict["status"] == "pass"
        within = all(left >= 0 for left in played.budget_left.values())
        return Score(
            value={"success": float(success), "in_budget_success": float(success and within), **played.cost_total},
            answer=verdict["reason"],
            explanation="\n".join(verdict["diagnostics"]) or verdict["reason"],
            metadata={**played.model_dump(), "verdict": verdict},
        )

    return score
