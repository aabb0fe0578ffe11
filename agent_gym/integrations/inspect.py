"""The environments as tasks of Inspect (extra ``inspect``; docs/inspect.md).

A message of the model is one turn of the environment, with all its calls. Inspect's own loop would run call after call
and know no turns, so a solver plays the episode here, and leaves what it was in the sample's store for the scorer.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from agent_gym.env import Action
from agent_gym.evaluation.agents import TurnAgent, open_agent
from agent_gym.integrations.conversation import Conversation, open_tasks, scores
from agent_gym.messages import Message
from agent_gym.verdict import Verdict

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
    from rich.markup import escape
except ImportError as error:
    raise ImportError("agent_gym.integrations.inspect needs Inspect: pip install 'agent-gym[inspect]'") from error

__all__ = ["agent", "outcome", "play", "task"]

OUTCOME = "agent_gym"
"""Where in a sample's store the episode's outcome is."""


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
        task_set, env = open_tasks(env_id, tasks, kwargs)
    except ValueError as error:
        raise PrerequisiteError(escape(str(error))) from error
    about = {"env_id": env_id, "env_kwargs": {**kwargs, **task_set.env_kwargs}}
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

Act = Callable[[Conversation, TaskState], Awaitable[Action | None]]
"""The next turn; None where the conversation has outgrown the model."""


@solver
def play() -> Solver:
    """The model plays the sample's task in its environment, with its tools."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        await _episode(state, _ask)
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
    except ValueError as error:
        raise PrerequisiteError(escape(str(error))) from error
    if not isinstance(found, TurnAgent):
        raise PrerequisiteError(f"{spec} is a language model: serve it, and name it to Inspect with --model")

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        async def act(talk: Conversation, state: TaskState) -> Action:
            talk.info.setdefault("seed", state.epoch)
            return (await run_sync(found.act, talk.env, talk.env.messages, talk.info)).message

        await _episode(state, act)
        return state

    return solve


async def _episode(state: TaskState, act: Act) -> None:
    """Play the sample's task to its end. The environment works in threads, so that other samples go on.

    Raises:
        InfraError: If there is no verdict; Inspect counts the sample as failed, and can run it again.
    """
    made = partial(Conversation, state.metadata["env_id"], state.metadata["env_kwargs"], str(state.sample_id))
    talk = await run_sync(made)
    try:
        while talk.verdict is None:
            action = await act(talk, state)
            if action is None:
                talk.give_up("context", "the conversation has outgrown the model")
                break
            said, *heard = await run_sync(talk.play, action)
            told = {name: talk.info[name] for name in ("cost", "budget_left", "state_hash")}
            transcript().info(told, source="agent_gym")
            state.messages.append(state.output.message if said is action else _message(said))
            state.messages.extend(map(_message, heard))
    finally:
        state.store.set(OUTCOME, talk.outcome())
        with anyio.CancelScope(shield=True):
            await run_sync(talk.env.close)


async def _ask(talk: Conversation, state: TaskState) -> Action | None:
    """The model's next turn."""
    tools = [ToolInfo.model_validate(schema["function"]) for schema in talk.info["tools"]]
    state.output = await get_model().generate(state.messages, tools)
    return None if state.output.stop_reason == "model_length" else _action(state.output)


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


def _message(message: Message) -> ChatMessage:
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
        found = state.store.get(OUTCOME)
        if found is None:
            raise ValueError("no episode was played: the solver must be play or agent of agent_gym")
        if found["verdict"] is None:
            why = "a limit of Inspect ended the episode before its verdict"
            found = {**found, "verdict": Verdict("fail", "limit", 0.0, (why,)).to_dict()}
        verdict = found["verdict"]
        return Score(
            value=scores(found),
            answer=verdict["reason"],
            explanation="\n".join(verdict["diagnostics"]) or verdict["reason"],
            metadata=found,
        )

    return score
