"""ToolEnv: the one step loop. Parse the turn, run its calls, charge their costs, watch the budgets, verify."""

from __future__ import annotations

import inspect
import json
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import gymnasium as gym

from agent_gym.costs import CHANNELS, Latency, approximate_tokens, check_budget
from agent_gym.spaces import Unicode
from agent_gym.tools import PARSERS, Call, Tool, ToolError, canonical, dump
from agent_gym.verdict import InfraError, Verdict

__all__ = ["Outcome", "Task", "ToolEnv", "World", "asked_levels"]

REFUSED = Latency(base_ms=5.0)
"""An unknown tool, unreadable call or invalid argument is answered at the door, before any work is done."""


class World(Protocol):
    """An immutable value. Structure is shared between successive worlds, so a snapshot is a reference."""

    @property
    def hash(self) -> str:
        """A function of the content alone, not of the history that led to it."""
        ...

    def apply(self, delta: Any) -> World:
        """The world after a change that a tool call reported."""
        ...


class Task(Protocol):
    """What an episode is about. Immutable and picklable."""

    @property
    def id(self) -> str:
        """As ``reset(options={"task": id})`` takes it."""
        ...

    @property
    def request(self) -> str:
        """The user's words."""
        ...

    @property
    def latency_seed(self) -> int:
        """Seeds the latency model."""
        ...

    @property
    def world(self) -> Any:
        """Where the episode starts."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool did: its answer, the change it made, and how much work that was.

    ``delta`` is None where nothing changed. The time it took is not in here: it follows from the work. ``tokens`` are
    charged to ``output_tokens`` beside those the agent wrote.
    """

    content: str
    delta: Any = None
    units: float = 0.0
    error: str | None = None
    tokens: float = 0.0


def asked_levels(difficulty: int | Sequence[int], most: int, unit: str = "") -> tuple[int, ...]:
    """The levels that a ``difficulty`` argument names.

    Args:
        difficulty: A whole number, or ``[least, most]``.
        most: The highest level there is; the lowest is 1.
        unit: What a level counts, for the message.

    Raises:
        ValueError: For anything else.
    """
    bounds = tuple(difficulty) if isinstance(difficulty, Sequence) else (difficulty, difficulty)
    whole = len(bounds) == 2 and all(isinstance(b, int) and not isinstance(b, bool) for b in bounds)
    if not whole or not 1 <= bounds[0] <= bounds[1] <= most:
        number = f"a whole number of {unit}" if unit else "a whole number"
        raise ValueError(f"difficulty={difficulty!r}: {number} from 1 to {most}, or [least, most]")
    return tuple(range(bounds[0], bounds[1] + 1))


def _submit(answer: Any = None) -> None:
    """Give the final answer and end the episode.

    Args:
        answer: The answer, in the form the request asks for.
    """


SUBMIT = Tool(_submit, name="submit", reads_only=True, cacheable=False, latency=Latency(0.0, 0.0, 0.0), ends=True)


class ToolEnv(gym.Env[str, str]):
    """Base of the suite's environments: text in, text out, a cost on every step.

    A subclass gives ``_task``, ``_tools``, ``_execute``, ``_verify`` and ``oracle``.

    Args:
        budget: Upper bound by channel (``tool_calls``, ``output_tokens``, ``latency_ms``); unnamed ones are free.
        on_budget: ``"truncate"`` ends the episode at the first charge above a bound; the call that was charged
            has no effect and no result; ``"record"`` only reports the overrun through ``info["budget_left"]``.
        latency: ``"model"`` charges the deterministic model, ``"wall"`` the measured time (not reproducible).
        parser: ``"hermes"`` or ``"openai"``.
        max_turns: Turns after which the episode is truncated.
        token_counter: Counts an action's tokens; four bytes a token by default.
        render_mode: ``"ansi"`` or None.

    Raises:
        TypeError: For a keyword argument the environment does not have.
        ValueError: For a value outside what is listed here.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 4}
    system_prompt = "Use the tools to do what the user asks. A message without a tool call is the final answer."

    def __init__(
        self,
        *,
        budget: Mapping[str, float] | None = None,
        on_budget: str = "truncate",
        latency: str = "model",
        parser: str = "hermes",
        max_turns: int = 16,
        token_counter: Callable[[str], int] | None = None,
        render_mode: str | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            signatures = (inspect.signature(kind.__init__) for kind in (type(self), ToolEnv))  # type: ignore[misc]
            known = {name for signature in signatures for name in signature.parameters} - {"self", "kwargs", "unknown"}
            faulty = ", ".join(map(repr, sorted(unknown)))
            raise TypeError(f"{type(self).__name__} has no keyword argument {faulty}, only {', '.join(sorted(known))}")
        for name, value, allowed in (
            ("on_budget", on_budget, ("truncate", "record")),
            ("latency", latency, ("model", "wall")),
            ("parser", parser, tuple(PARSERS)),
            ("render_mode", render_mode, (None, "ansi")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}")
        if isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 1:
            raise ValueError(f"max_turns={max_turns!r}: must be a whole number of 1 or more")
        self.budget, self.on_budget, self.latency = check_budget(budget), on_budget, latency
        self.parser, self.max_turns, self.render_mode = PARSERS[parser], max_turns, render_mode
        self.token_counter = token_counter or approximate_tokens
        self.tool_cache: Any = None  # a replay.ToolCache, set by whoever owns it
        self.replaying = False  # True inside counterfactuals(): recorders look away
        self.observation_space = Unicode()
        self.action_space = Unicode()
        self.task: Any = None
        self._world: Any = None
        self._progress: Any = None  # what a subclass must remember that is not world; immutable
        self._total = (0.0, 0.0, 0.0)
        self._turn = 0
        self._done = True
        self._screen = ""

    # ---- what a subclass gives -------------------------------------------------------------------------------

    @abstractmethod
    def _make_task(self, task_id: str | None) -> Any:
        """The named task, or one drawn from ``self.np_random``; ValueError for an unknown id."""

    @abstractmethod
    def _tools(self) -> Mapping[str, Tool]:
        """The tools of the current task, by name, without ``submit``."""

    @abstractmethod
    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Outcome:
        """Run one validated call on ``self._world`` without changing it."""

    @abstractmethod
    def _verify(self, answer: Any) -> Verdict:
        """Judge the current world and the answer. May raise InfraError."""

    @abstractmethod
    def oracle(self) -> list[str]:
        """Actions that solve the current task with no needless call. Never shown in ``info``."""

    def cheats(self) -> list[list[str]]:
        """Sequences of actions that must not pass: claims without deeds, deeds on the wrong record ..."""
        return []

    def _given_task(self, given: Mapping[str, Any], task_id: str | None) -> Any:
        """The named one of the tasks of a file, or one drawn from ``self.np_random``; ValueError for an unknown id."""
        ids = list(given)
        task_id = ids[int(self.np_random.integers(len(ids)))] if task_id is None else task_id
        if task_id not in given:
            raise ValueError(f"unknown task id {task_id!r}; the first of {len(ids)} is {ids[0]!r}")
        return given[task_id]

    def _task_type(self) -> str:
        """What kind of task the current one is: what it asks for, not how hard it is."""
        return "task"

    def _observe(self, results: list[dict[str, Any]]) -> None:
        """Told of every turn's results, for a verifier that judges more than the state."""

    def _next_message(self, answer: Any) -> str | None:
        """The user's next message after ``answer``, or None when that ends the episode."""
        return None

    # ---- Gymnasium's API -------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds ``np_random``, from which alone the task is drawn.
            options: ``{"task": id}`` chooses the task instead.

        Raises:
            ValueError: For an unknown option or task id.
        """
        super().reset(seed=seed)
        if unknown := sorted(set(options or {}) - {"task"}):
            raise ValueError(f"reset has no option {', '.join(map(repr, unknown))}; the only one is 'task'")
        self.task = self._make_task((options or {}).get("task"))
        self._world, self._progress = self.task.world, None
        self._total, self._turn, self._done = (0.0, 0.0, 0.0), 0, False
        self._screen = self.task.request
        messages = [{"role": "system", "content": self.system_prompt}, {"role": "user", "content": self._screen}]
        tools = json.loads(f"[{','.join(tool.schema_json for tool in (*self._tools().values(), SUBMIT))}]")
        kind = {"task_id": self.task.id, "task_type": self._task_type()}
        return self._screen, {**kind, "tools": tools, "messages": messages, **self._info((0.0, 0.0, 0.0), [])}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one assistant turn.

        Returns:
            The tools' results (one a line), the reward (0 until the episode ends), terminated, truncated, info.

        Raises:
            TypeError: If the action is not text.
            RuntimeError: If no episode is running.
        """
        if not isinstance(action, str):
            raise TypeError(f"an action is text (str), not {type(action).__name__}")
        if self._done:
            raise RuntimeError("no episode is running: call reset() before step()")
        self._turn += 1
        tokens = float(self.token_counter(action))
        calls = latency = 0.0
        results: list[dict[str, Any]] = []
        turn = self._parse(action)
        answer: Any = turn.text
        answered = not turn.calls
        infra: Verdict | None = None
        over = self._over(calls, tokens, latency)
        for call in () if over else turn.calls:
            calls += 1.0
            if over := self._over(calls, tokens, latency):
                break
            world = self._world
            try:
                result, shown = self._run(call)
            except InfraError as fault:
                infra = Verdict("infra", "infra", 0.0, (str(fault),))
                break
            latency, tokens = latency + result["latency_ms"], tokens + shown
            if over := self._over(calls, tokens, latency):
                self._world = world  # it ran out of budget: neither its effect nor its answer arrives
                break
            results.append(result)
            tool = SUBMIT if call.name == "submit" else self._tools().get(call.name)
            if tool is not None and tool.ends and result["error"] != "invalid":
                answered, answer = True, call.arguments.get("answer") if tool is SUBMIT else dict(call.arguments)
                break
        self._observe(results)
        cost = (calls, tokens, latency)
        before = self._total
        self._total = (before[0] + calls, before[1] + tokens, round(before[2] + latency, 3))
        message = self._next_message(answer) if answered and not over and infra is None else None
        observation = "\n".join([result["content"] for result in results] + ([message] if message else []))
        observation = self._cut(observation, self.observation_space.max_length)  # type: ignore[attr-defined]
        terminated = answered and not over and message is None and infra is None
        truncated = not terminated and (over or infra is not None or self._turn >= self.max_turns)
        info = self._info(cost, results)
        reward = 0.0
        if terminated or truncated:
            self._done = True
            verdict = infra or self._judge(answer if terminated else None, terminated, over)
            reward, info["verdict"] = verdict.reward, verdict.to_dict()
        self._screen = f"{action}\n{observation}"
        return observation, reward, terminated, truncated, info

    def render(self) -> str | None:  # type: ignore[override]
        """The last turn as text, in ``render_mode="ansi"``."""
        return self._screen if self.render_mode == "ansi" else None

    # ---- the parts of a step ---------------------------------------------------------------------------------

    def _parse(self, action: str) -> Any:
        if len(action) <= self.action_space.max_length:  # type: ignore[attr-defined]
            return self.parser.parse(action)
        limit = self.action_space.max_length  # type: ignore[attr-defined]
        error = f"the message is {len(action)} characters long; at most {limit} are read"
        return replace(self.parser.parse(""), calls=(Call("", error=error),))

    def _run(self, call: Call) -> tuple[dict[str, Any], float]:
        """Execute one call, through the cache where there is one, and price it: its result, and tokens it charges."""
        tools, started = self._tools(), time.perf_counter() if self.latency == "wall" else 0.0
        tool = SUBMIT if call.name == "submit" else tools.get(call.name)
        model = REFUSED
        spelling = call.name
        try:
            if call.error is not None:
                raise ToolError("invalid", call.error)
            if tool is None:
                raise ToolError("unknown_tool", f"there is no tool {call.name!r}; there are {', '.join(sorted(tools))}")
            arguments = tool.validate(call.arguments)
            model, spelling = tool.latency, canonical(call)
            outcome = Outcome("null") if tool is SUBMIT else self._cached(tool, arguments, spelling)
        except ToolError as error:
            outcome = Outcome(dump({"error": error.kind, "message": str(error)}), error=error.kind)
        if outcome.delta is not None:
            self._world = self._world.apply(outcome.delta)
        if self.latency == "wall":
            milliseconds = (time.perf_counter() - started) * 1000.0
        else:
            milliseconds = model.milliseconds(outcome.units, self.task.latency_seed, spelling)
        result = {
            "name": call.name,
            "arguments": dict(call.arguments),
            "content": self._cut(outcome.content, self.observation_space.max_length // 2),  # type: ignore[attr-defined]
            "error": outcome.error,
            "latency_ms": milliseconds,
        }
        return result, outcome.tokens

    @staticmethod
    def _cut(text: str, limit: int) -> str:
        mark = "... (cut)"
        return text if len(text) <= limit else text[: limit - len(mark)] + mark

    def _cached(self, tool: Tool, arguments: dict[str, Any], spelling: str) -> Outcome:
        cache = self.tool_cache
        if cache is None or not tool.cacheable:
            return self._execute(tool, arguments)
        key = (self._world.hash, spelling)
        outcome = cache.get(key)
        if outcome is None:
            outcome = self._execute(tool, arguments)
            cache.put(key, outcome)
        return outcome

    def _over(self, calls: float, tokens: float, latency: float) -> bool:
        """Whether the step so far takes a total above its bound, where that ends the episode."""
        if self.on_budget == "record":
            return False
        total, budget = self._total, self.budget
        return (
            total[0] + calls > budget["tool_calls"]
            or total[1] + tokens > budget["output_tokens"]
            or round(total[2] + latency, 3) > budget["latency_ms"]
        )

    def _judge(self, answer: Any, answered: bool, over: bool) -> Verdict:
        try:
            verdict = self._verify(answer)
        except InfraError as error:
            return Verdict("infra", "infra", 0.0, (str(error),))
        if answered:
            return verdict
        return replace(verdict, status="fail", reason="budget" if over else "turn_limit")

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools of the current task, by name, without ``submit``."""
        return self._tools()

    @property
    def cost_total(self) -> dict[str, float]:
        """What the episode has cost so far, by channel."""
        return dict(zip(CHANNELS, self._total, strict=True))

    def _info(self, cost: tuple[float, float, float], results: list[dict[str, Any]]) -> dict[str, Any]:
        total, budget = self._total, self.budget
        return {
            "cost": dict(zip(CHANNELS, cost, strict=True)),
            "cost_total": self.cost_total,
            "budget_left": {name: budget[name] - spent for name, spent in zip(CHANNELS, total, strict=True)},
            "state_hash": self._world.hash,
            "tool_results": results,
        }

    # ---- snapshots -------------------------------------------------------------------------------------------

    def get_state(self) -> tuple[Any, ...]:
        """The whole state of the episode as a tuple of immutable values; see ``agent_gym.snapshot``."""
        generator = self.np_random.bit_generator.state
        return (
            self.task, self._world, self._progress, self._total, self._turn, self._done, self._screen, generator,
        )  # fmt: skip

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Put back what ``get_state`` gave."""
        (
            self.task, self._world, self._progress, self._total, self._turn, self._done, self._screen, generator,
        ) = state  # fmt: skip
        self.np_random.bit_generator.state = generator
