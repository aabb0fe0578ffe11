"""Agents that can be evaluated, by the words that name them: see :func:`open_agent`."""

from __future__ import annotations

import importlib
import queue
import random
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import gymnasium as gym

from agent_gym.env import tool_env
from agent_gym.evaluation.endpoint import ContextExceeded, Endpoint, Reply
from agent_gym.formats import PARSERS
from agent_gym.messages import exchange
from agent_gym.tools import Call
from agent_gym.trajectory import Step, Trajectory
from agent_gym.verdict import Verdict

__all__ = ["OWN_COUNT", "Agent", "Done", "Job", "TurnAgent", "open_agent", "play_turns"]


class Job(NamedTuple):
    """An episode that is to be played.

    Attributes:
        task_id: The task.
        sample: Its number among those of the task.
        draw: Seeds the agent's chance.
    """

    task_id: str
    sample: int
    draw: int


OWN_COUNT = "output_tokens"
"""In a message, what an environment charges instead of its own count; entries are charged alike, so no turn has it."""
Done = Callable[[gym.Env, Job, Trajectory, Mapping[str, int] | None], None]
"""Told of an episode as it ends: a free environment, the job, what was played, tokens by the model's own count."""
Act = Callable[[gym.Env, list[dict[str, Any]], dict[str, Any]], Reply]
"""The next turn: from the environment (which only the oracle looks into), the conversation, and ``info``."""


class Agent(Protocol):
    """Who plays.

    Attributes:
        name: As a table shows it.
        spec: As :func:`open_agent` takes it.
        settings: What else decides how it plays; plain data.
        env_kwargs: Further arguments of the environment that it needs.
        packages: Whose versions matter.
    """

    name: str
    spec: str
    settings: dict[str, Any]
    env_kwargs: dict[str, Any]
    packages: tuple[str, ...]

    def play(self, made: Callable[[], gym.Env], jobs: Sequence[Job], workers: int, done: Done) -> None:
        """Play some episodes, several side by side.

        Args:
            made: Makes an environment.
            jobs: The episodes.
            workers: How many at a time.
            done: Told of each as it ends, by any thread.

        Raises:
            ValueError: If one cannot be played to its end; no other is begun, and those under way end first.
        """


@dataclass
class TurnAgent:
    """An agent that is asked turn by turn."""

    spec: str
    act: Act
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.name = self.name or self.spec

    def play(self, made: Callable[[], gym.Env], jobs: Sequence[Job], workers: int, done: Done) -> None:
        """See :class:`Agent`."""
        free: queue.SimpleQueue[gym.Env] = queue.SimpleQueue()
        workers = min(workers, len(jobs))
        for _ in range(workers):
            free.put(made())
        halt = threading.Event()

        def one(job: Job) -> None:
            if halt.is_set():
                return
            env = free.get()
            try:
                done(env, job, *play_turns(self.act, env, job))
            except BaseException:
                halt.set()
                raise
            finally:
                free.put(env)

        with ThreadPoolExecutor(workers) as pool:
            try:
                faults = [error for future in as_completed([pool.submit(one, job) for job in jobs])
                          if (error := future.exception())]  # fmt: skip
            except BaseException:
                halt.set()
                raise
        while not free.empty():
            free.get().close()
        if faults:
            raise faults[0]


def play_turns(act: Act, env: gym.Env, job: Job) -> tuple[Trajectory, dict[str, int] | None]:
    """Play one episode turn by turn.

    Args:
        act: Gives each turn.
        env: Where.
        job: The task, and the seed of the agent's chance.

    Returns:
        The episode, and the tokens that it took by the model's own count.
    """
    observation, first = env.reset(options={"task": job.task_id})
    base: Any = tool_env(env)
    info = {**first, "seed": job.draw, "turn": 0}
    messages, steps, usage = list(first["messages"]), list[Step](), dict[str, int]()
    reward, verdict = None, None
    while verdict is None:
        try:
            action, used = act(env, messages, info)
        except ContextExceeded as error:
            reward, verdict = 0.0, Verdict("fail", "context", 0.0, (str(error),)).to_dict()
            break
        for name, count in (used or {}).items():
            usage[name] = usage.get(name, 0) + count
        try:
            before, turn = observation, base.read(action)
        except TypeError as error:
            raise ValueError(f"a turn of {job.task_id} cannot be played: {error}") from error
        observation, earned, terminated, truncated, told = env.step(action)
        info = {**info, **told, "turn": info["turn"] + 1}
        steps.append(
            Step(before, action, told["cost"], told["tool_results"], told["state_hash"], terminated, truncated)
        )
        messages += exchange(turn, told["tool_results"], observation, messages)
        if terminated or truncated:
            verdict = told["verdict"]
            reward = None if verdict["status"] == "infra" else float(earned)
    trajectory = Trajectory(
        job.task_id, base.spec.id, dict(base.spec.kwargs), None, tuple(steps), reward, verdict, info["cost_total"],
        task_hash=first["task_hash"],
    )  # fmt: skip
    return trajectory, usage or None


# ---- the simple ones -------------------------------------------------------------------------------------------------


def _oracle(env: gym.Env, messages: list[dict[str, Any]], info: dict[str, Any]) -> Reply:
    if not info["turn"]:
        info["oracle"] = tool_env(env).oracle()
    return Reply(info["oracle"][info["turn"]], None)


def _noop(env: gym.Env, messages: list[dict[str, Any]], info: dict[str, Any]) -> Reply:
    return Reply("Done.", None)


def _random(env: gym.Env, messages: list[dict[str, Any]], info: dict[str, Any]) -> Reply:
    """A valid call of a tool drawn evenly, ``submit`` among them, with words and numbers of the conversation."""
    chance = random.Random(f"{info['seed']} {info['turn']}")
    seen = sorted({word for message in messages for word in _words(message["content"])})
    tool = chance.choice(info["tools"])["function"]
    properties = tool["parameters"]["properties"]
    call = Call(tool["name"], {name: _value(properties[name], seen, chance) for name in tool["parameters"]["required"]})
    return Reply(tool_env(env).parser.render("", [call]), None)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w@./+-]*\w", text)


def _value(schema: Mapping[str, Any], seen: Sequence[str], chance: random.Random) -> Any:
    """A value that a JSON schema allows."""
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if "anyOf" in schema:
        return _value(chance.choice(schema["anyOf"]), seen, chance)
    kinds = schema.get("type", "string")
    kind = chance.choice(kinds) if isinstance(kinds, list) else kinds
    if kind in ("integer", "number"):
        return chance.choice([int(word) for word in seen if word.isascii() and word.isdigit()] or [1])
    if kind == "array":
        return [_value(schema.get("items", {}), seen, chance) for _ in range(chance.randint(1, 3))]
    if kind == "object":
        return {name: _value(inner, seen, chance) for name, inner in schema.get("properties", {}).items()}
    return {"boolean": chance.random() < 0.5, "null": None}.get(kind, chance.choice(seen))


# ---- language models -------------------------------------------------------------------------------------------------


@dataclass
class PolicyAgent:
    """A model of this package's trainers, sampled here: ``tiny:ENV``, a checkpoint folder. Needs the extra train.

    Args:
        spec: As :func:`open_agent` takes it.
        temperature: Of the sampling.
        max_tokens: Of one turn; None for what suits the model's size.
    """

    spec: str
    temperature: float
    max_tokens: int | None
    packages: tuple[str, ...] = ("torch", "transformers")

    def __post_init__(self) -> None:
        import torch

        from agent_gym.lm.arguments import fill, size_of
        from agent_gym.lm.chat import Chat
        from agent_gym.lm.models import is_tiny, load

        self.model = load(self.spec, device="cuda" if torch.cuda.is_available() else "cpu", checkpointing=False)
        small = is_tiny(self.model.name)
        self.chat = Chat(self.model.tokenizer, stops=self.model.stops, sees_tools=not small)
        self.lengths = SimpleNamespace(max_new_tokens=self.max_tokens, max_context=None)
        fill(self.lengths, size_of(self.model.name, None if small else self.spec))
        parser = next((name for name, one in PARSERS.items() if one is self.chat.parser), None)
        if parser is None:
            raise ValueError(f"{self.spec} writes its calls in a format that no parser of agent_gym.PARSERS reads")
        self.name = self.spec
        self.env_kwargs = {"parser": parser}
        self.settings = {"temperature": self.temperature, **vars(self.lengths)}

    def play(self, made: Callable[[], gym.Env], jobs: Sequence[Job], workers: int, done: Done) -> None:
        """See :class:`Agent`."""
        from agent_gym.lm.engine import TorchEngine
        from agent_gym.lm.rollout import Episode, Limits, play

        judge, ids = made(), [job.task_id for job in jobs]

        def ended(episode: Episode) -> None:
            steps = tuple(replace(step, action_ids=None, logprobs=None) for step in episode.steps)
            job, kwargs = jobs[episode.index], tool_env(judge).spec.kwargs  # type: ignore[union-attr]
            trajectory = replace(episode.trajectory(), steps=steps, seed=None, env_kwargs=dict(kwargs))
            done(judge, job, trajectory, {"completion_tokens": len(episode.logprobs)})

        play(
            TorchEngine(self.model, stops=self.chat.stops, temperature=self.temperature),
            self.chat,
            [_Numbered(made(), ids) for _ in range(min(workers, len(jobs)))],
            range(len(jobs)),
            Limits(self.lengths.max_new_tokens, self.lengths.max_context),
            draws=[job.draw for job in jobs],
            on_done=ended,
        )


class _Numbered(gym.Wrapper):
    """The task of a seed is the one at that place of a list."""

    def __init__(self, env: gym.Env, ids: Sequence[str]) -> None:
        super().__init__(env)
        self.ids = ids

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        assert seed is not None
        return self.env.reset(options={"task": self.ids[seed]})


def open_agent(
    spec: str,
    *,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    timeout: float = 60.0,
    tries: int = 6,
    per_minute: float | None = None,
    native: bool = True,
) -> Agent:
    """An agent by its name.

    Args:
        spec: ``oracle``; ``noop``, which answers at once; ``random``, valid calls drawn evenly; ``baseline``, the
            scripted agent of the environment; ``tiny:ENV`` or a checkpoint folder; ``openai:MODEL@URL``, a model behind
            a server; ``MODULE:FUNCTION``, a function ``agent(messages, info)`` that returns a turn's text or message.
        temperature: Of a language model's sampling.
        max_tokens: Of one turn of a language model.
        timeout: See :class:`~agent_gym.evaluation.endpoint.Endpoint`, as are the others.
        tries: See there.
        per_minute: See there.
        native: See there.

    Raises:
        ValueError: If there is none of that name, or it cannot be loaded.
    """
    from agent_gym.evaluation.baselines import baseline

    simple: dict[str, Act] = {"oracle": _oracle, "noop": _noop, "random": _random, "baseline": baseline}
    if spec in simple:
        return TurnAgent(spec, simple[spec])
    if spec.startswith("openai:"):
        model, _, url = spec.removeprefix("openai:").rpartition("@")
        endpoint = Endpoint(
            url=url, model=model, timeout=timeout, temperature=temperature, max_tokens=max_tokens or 512, tries=tries,
            per_minute=per_minute, native=native,
        )  # fmt: skip
        settings = {"temperature": temperature, "max_tokens": endpoint.max_tokens, "native": native}
        return TurnAgent(
            spec, lambda env, messages, info: endpoint.ask(messages, info["tools"], info["seed"] + info["turn"]),
            name=model, settings=settings,
        )  # fmt: skip
    if spec.startswith("tiny:") or Path(spec).is_dir():
        return PolicyAgent(spec, temperature, max_tokens)
    return _of_function(spec)


def _of_function(spec: str) -> Agent:
    """The agent ``MODULE:FUNCTION``; the current folder is looked into too."""
    module, _, name = spec.partition(":")
    if not (module and name):
        raise ValueError(
            f"--agent {spec}: give oracle, noop, random, baseline, tiny:ENV, a checkpoint folder, openai:MODEL@URL or "
            "MODULE:FUNCTION"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--agent {spec} cannot be loaded: {error}") from error

    def act(env: gym.Env, messages: list[dict[str, Any]], info: dict[str, Any]) -> Reply:
        try:
            action = function(messages, info)
        except Exception as error:
            raise ValueError(f"{spec} raised {type(error).__name__} at a turn of {info['task_id']}: {error}") from error
        if isinstance(action, str):
            return Reply(action, None)
        if not isinstance(action, Mapping):
            raise ValueError(f"{spec} returned {type(action).__name__}: a turn is text (str) or a message (dict)")
        return Reply({key: value for key, value in action.items() if key != OWN_COUNT}, None)

    return TurnAgent(spec, act)
