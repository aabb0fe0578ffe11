"""The environments in verifiers: a taskset, a harness and an environment (extra ``verifiers``; docs/verifiers.md).

The harness plays the episode in this process, and asks the model through verifiers' endpoint, which records every turn
as it was sampled. ``vf-eval`` finds plugins among top-level modules alone, by the one of each kind that they export:
that module is ``agent_gym_verifiers``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from agent_gym.evaluation.endpoint import SAID
from agent_gym.integrations.conversation import Conversation, open_tasks, scores
from agent_gym.verdict import Verdict

try:
    import openai
    import verifiers.v1 as vf
except ImportError as error:
    raise ImportError("agent_gym.integrations.verifiers needs verifiers: pip install 'agent-gym[verifiers]'") from error

__all__ = ["GymEnv", "GymHarness", "GymTaskset", "load_environment"]

PLUGIN = "agent-gym-verifiers"
"""The id of the module that exports what is here."""

OUTCOME = "agent_gym"
"""Where in a trace's ``info`` the episode's outcome is."""


class GymData(vf.TaskData):
    """A task as it goes over the wire and into traces. ``id`` is the task's; ``prompt`` the request."""

    env_id: str
    env_kwargs: dict[str, Any]
    task_hash: str
    task_type: str


class GymTask(vf.Task[GymData, vf.State, vf.TaskConfig]):
    """What an episode is worth."""

    @property
    def key(self) -> str:
        """The task's id."""
        return str(self.data.id)

    @vf.reward
    async def success(self, trace: vf.Trace) -> float:
        """1 for a pass, 0 for a fail."""
        return _scores(trace)["success"]

    @vf.metric
    async def values(self, trace: vf.Trace) -> Mapping[str, float]:
        """``in_budget_success``, and the total of each cost channel."""
        return {name: value for name, value in _scores(trace).items() if name != "success"}


def _scores(trace: vf.Trace) -> dict[str, float]:
    """The numbers of an episode; one that a limit of verifiers ended has failed."""
    found = trace.info[OUTCOME]
    if found["verdict"] is None:
        found["verdict"] = Verdict("fail", "limit", 0.0, (f"{trace.stop_condition} ended the episode",)).to_dict()
    return scores(found)


class GymTasksetConfig(vf.TasksetConfig):
    """What is played, under ``--env.taskset.*``."""

    env_id: str = ""
    """Gymnasium id, such as APIAgent-v0."""
    tasks: str = ""
    """A task set, such as APIAgent-mini-v1, or a source or path of tasks."""
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of gym.make, as JSON."""

    @model_validator(mode="after")
    def _can_be_played(self) -> GymTasksetConfig:
        """The command tells what a config's validation says, in place of a traceback."""
        if self.env_id and self.tasks:
            open_tasks(self.env_id, self.tasks, self.env_kwargs)[1].close()
        return self


class GymTaskset(vf.Taskset[GymTask, GymTasksetConfig]):
    """The tasks of a set, one after another as they are asked for.

    Raises:
        ValueError: If there is no such set, or the environment cannot be made.
    """

    def __init__(self, config: GymTasksetConfig) -> None:
        super().__init__(config)
        if not (config.env_id and config.tasks):
            raise ValueError(
                "nothing to play: give --env.taskset.env-id, such as APIAgent-v0, and --env.taskset.tasks, such as "
                "APIAgent-mini-v1"
            )
        self.task_set, self.env = open_tasks(config.env_id, config.tasks, config.env_kwargs)

    def load(self) -> Iterator[GymTask]:
        """See :class:`verifiers.v1.Taskset`."""
        for task_id in self.task_set.task_ids:
            request, info = self.env.reset(options={"task": task_id})
            data = GymData(
                id=task_id, name=task_id, prompt=request, system_prompt=info["messages"][0]["content"],
                env_id=self.config.env_id, env_kwargs={**self.config.env_kwargs, **self.task_set.env_kwargs},
                task_hash=info["task_hash"], task_type=info["task_type"],
            )  # fmt: skip
            yield GymTask(data, self.config.task)


class GymHarness(vf.Harness[vf.HarnessConfig]):
    """Plays a task in its environment, with its tools, in this process."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: GymData,
    ) -> vf.ProgramResult:
        """See :class:`verifiers.v1.Harness`. The environment works in threads, so that other episodes go on.

        Raises:
            InfraError: If there is no verdict; verifiers counts the rollout as failed, and can run it again.
        """
        talk = await asyncio.to_thread(Conversation, data.env_id, data.env_kwargs, str(data.id))
        messages: list[Any] = [
            {"role": "system", "content": data.system_prompt}, {"role": "user", "content": data.prompt},
        ]  # fmt: skip
        try:
            async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret, timeout=None) as model:
                while talk.verdict is None:
                    try:
                        answer = await model.chat.completions.create(
                            model=ctx.model, messages=messages, tools=talk.info["tools"]
                        )
                    except openai.BadRequestError as error:
                        if trace.stop_condition is not None or "context" not in str(error).lower():
                            raise
                        talk.give_up("context", str(error))
                        break
                    message = answer.choices[0].message.model_dump(exclude_none=True)
                    action = {name: message[name] for name in SAID if name in message}
                    if answer.choices[0].finish_reason == "length":
                        action["finish_reason"] = "length"
                    said, *heard = await asyncio.to_thread(talk.play, action)
                    messages += [message if said is action else said, *heard]
        finally:
            trace.info[OUTCOME] = talk.outcome()
            await asyncio.shield(asyncio.to_thread(talk.env.close))
        return vf.ProgramResult(0, "", "")


class GymEnvConfig(vf.EnvConfig):
    """A seat of its own, because verifiers' default one is a rented sandbox, of which nothing here has use."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class GymEnv(vf.Env[GymEnvConfig]):
    """One agent plays one task."""

    async def run(self, task: GymTask, agents: vf.Agents) -> None:
        """See :class:`verifiers.v1.Env`."""
        await agents.agent.run(task)


def load_environment(env_id: str, tasks: str, **kwargs: Any) -> GymEnv:
    """A task set as an environment of verifiers.

    Args:
        env_id: Gymnasium id.
        tasks: A task set, as :func:`agent_gym.tasksets.open_set` takes it.
        **kwargs: Of ``gym.make``; plain data.

    Raises:
        ValueError: If there is no such set, or the environment cannot be made.
    """
    return GymEnv(GymEnvConfig(taskset=GymTasksetConfig(id=PLUGIN, env_id=env_id, tasks=tasks, env_kwargs=kwargs)))
