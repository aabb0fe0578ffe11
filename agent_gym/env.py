"""ToolEnv: the one step loop. Read the turn, run its calls, charge their costs, watch the budgets, verify."""

from __future__ import annotations

import inspect
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import blake2b
from typing import Any, ClassVar, Protocol

import gymnasium as gym
from gymnasium.utils import seeding
from pydantic import BaseModel

from agent_gym.costs import CHANNELS, Latency, approximate_tokens, check_budget
from agent_gym.formats import OpenAIParser, Parser, Turn, canonical_text, check_parser, foreign_format, set_apart
from agent_gym.spaces import Unicode
from agent_gym.tools import Call, Tool, ToolError, canonical, dump, load
from agent_gym.verdict import InfraError, Verdict

__all__ = ["Outcome", "Task", "ToolEnv", "World", "asked_levels", "fingerprint", "tool_env"]

Action = str | Mapping[str, Any]
"""The text of an assistant turn, or the message as a dict."""
Costs = tuple[float, ...]
"""One number a channel."""
NOTHING: Costs = (0.0,) * len(CHANNELS)

REFUSED = Latency(base_ms=5.0)
"""An unknown tool, unreadable call or invalid argument is answered at the door, before any work is done."""


MOST_MESSAGE = 1000
"""Characters of an error's message."""


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

    ``delta`` is None where nothing changed. What it costs is not in here: the time follows from the work, the tokens
    from what is shown.
    """

    content: str
    delta: Any = None
    units: float = 0.0
    error: str | None = None


def _fed(value: Any) -> Iterator[str]:
    """The content of a value in one spelling, piece by piece."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        yield f"{type(value).__name__} {value!r};"
    elif isinstance(value, BaseModel):
        yield value.model_dump_json()
    elif isinstance(getattr(value, "hash", None), str):
        yield value.hash
    elif is_dataclass(value):
        for entry in fields(value):
            yield f"{entry.name}="
            yield from _fed(getattr(value, entry.name))
    elif isinstance(value, Mapping):
        yield f"map {len(value)};"
        for key in sorted(value, key=str):
            yield from _fed(key)
            yield from _fed(value[key])
    elif isinstance(value, set | frozenset):
        yield f"set {sorted(''.join(_fed(item)) for item in value)};"
    elif isinstance(value, tuple | list):
        yield f"list {len(value)};"
        for item in value:
            yield from _fed(item)
    elif type(value).__repr__ is object.__repr__:  # which holds an address
        yield type(value).__qualname__
        yield from _fed(vars(value))
    else:
        yield getattr(value, "__qualname__", None) or repr(value)


def fingerprint(task: Any) -> str:
    """Hash of a task's content: its request, world, expectations and oracle, but not its id.

    Args:
        task: A dataclass. A field's value is plain data, a dataclass, or has a ``hash`` of its own, as worlds have.

    Returns:
        32 hexadecimal digits.
    """
    names = [entry.name for entry in fields(task)] if is_dataclass(task) else ["request", "latency_seed", "world"]
    pieces = (f"{name}={''.join(_fed(getattr(task, name)))}" for name in names if name != "id")
    return blake2b("\n".join(pieces).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


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
        answer: The answer, in the form the request asks for; JSON as text.
    """


SUBMIT = Tool(_submit, name="submit", reads_only=True, cacheable=False, latency=Latency(0.0, 0.0, 0.0), ends=True)


class ToolEnv(gym.Env[str, str], ABC):
    """Base of the suite's environments: text in, text out, a cost on every step.

    A subclass gives ``_make_task``, ``_tools``, ``_execute``, ``_verify`` and ``oracle``; docs/own_environment.md shows
    one whole.

    Args:
        budget: Upper bound by channel (``tool_calls``, ``output_tokens``, ``read_tokens``, ``latency_ms``); those not
            named are free.
        on_budget: ``"truncate"`` ends the episode at the first charge above a bound; the call that was charged
            has no effect and no result; ``"record"`` only reports the overrun through ``info["budget_left"]``.
        latency: ``"model"`` charges the deterministic model, ``"wall"`` the measured time (not reproducible).
        parser: How the model writes calls: a name in ``agent_gym.PARSERS`` (``"hermes"``, ``"openai"``,
            ``"qwen3_coder"``, ``"llama3"``, ``"mistral"``, or one of :func:`~agent_gym.formats.register_parser`), or an
            object with ``parse`` and ``render``.
        reasoning: The tags around the model's reasoning, which is set apart before the turn is read; None for no such
            thing.
        max_turns: Turns after which the episode is truncated.
        max_calls: Calls of one turn that run; further ones are refused.
        token_counter: Counts a text's tokens; four bytes a token by default.
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
        parser: str | Parser = "hermes",
        reasoning: Sequence[str] | None = ("<think>", "</think>"),
        max_turns: int = 16,
        max_calls: int = 16,
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
            ("render_mode", render_mode, (None, "ansi")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}")
        for name, number in (("max_turns", max_turns), ("max_calls", max_calls)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}={number!r}: must be a whole number of 1 or more")
        self.budget, self.on_budget, self.latency = check_budget(budget), on_budget, latency
        self.parser, self.reasoning = check_parser(parser), _check_tags(reasoning)
        self.max_turns, self.max_calls, self.render_mode = max_turns, max_calls, render_mode
        self.token_counter = _check_counter(token_counter) if token_counter is not None else approximate_tokens
        self.tool_cache: Any = None  # a replay.ToolCache, set by whoever owns it
        self.replaying = False  # True inside counterfactuals(): recorders look away
        self.observation_space = Unicode()
        self.action_space = Unicode()
        self.task: Any = None
        self.task_set: Any = None  # the tasksets.TaskSet whose tasks alone are played, where there is one
        self._world: Any = None
        self._progress: Any = None  # what a subclass must remember that is not world; immutable
        self._total = NOTHING
        self._turn = 0
        self._done = True
        self._screen = ""

    # ---- what a subclass gives -------------------------------------------------------------------------------

    @abstractmethod
    def _make_task(self, task_id: str | None) -> Any:
        """The named task, or one drawn from ``self.np_random``; ValueError for an unknown id."""

    @abstractmethod
    def _tools(self) -> Mapping[str, Tool]:
        """The tools of the current task, or before there is one all that a task may have, by name, without
        ``submit``."""

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

    def gambles(self) -> list[tuple[str, list[list[str]]]]:
        """Cheap strategies on the current task, of which none may pass often: what each does, and its equally likely
        outcomes as actions."""
        return []

    def remarks(self) -> list[str]:
        """What the gate's report should say of the current task although it breaks nothing."""
        return []

    def _open_task(self, task_id: str | None) -> Any:
        """The named task, or a drawn one; of the frozen set where there is one."""
        if self.task_set is None:
            return self._make_task(task_id)
        ids = self.task_set.task_ids
        task = self._make_task(ids[int(self.np_random.integers(len(ids)))] if task_id is None else task_id)
        self.task_set.check(task.id, fingerprint(task))
        return task

    def _given_task(self, given: Mapping[str, Any], task_id: str | None) -> Any:
        """The named one of the tasks of a file, or one drawn from ``self.np_random``; ValueError for an unknown id."""
        ids = list(given)
        task_id = ids[int(self.np_random.integers(len(ids)))] if task_id is None else task_id
        if task_id not in given:
            raise ValueError(f"unknown task id {task_id!r}; the first of {len(ids)} is {ids[0]!r}")
        return given[task_id]

    def _check_split(self, split: str, task_id: str) -> None:
        """See that a task of a split may be named here."""
        if split != self.split:  # type: ignore[attr-defined]
            own = self.split  # type: ignore[attr-defined]
            raise ValueError(f"the task {task_id!r} is of the split {split!r}, not of this environment's {own!r}")

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
        if not isinstance(options, Mapping | None):
            raise ValueError(f"reset(options={options!r}): options is a dict, such as {{'task': id}}")
        super().reset(seed=seed)
        if unknown := sorted(set(options or {}) - {"task"}):
            raise ValueError(f"reset has no option {', '.join(map(repr, unknown))}; the only one is 'task'")
        self.task = self._open_task((options or {}).get("task"))
        self._world, self._progress = self.task.world, None
        self._total, self._turn, self._done = NOTHING, 0, False
        self._screen = self.task.request
        messages = [{"role": "system", "content": self.system_prompt}, {"role": "user", "content": self._screen}]
        tools = json.loads(f"[{','.join(tool.schema_json for tool in (*self._tools().values(), SUBMIT))}]")
        kind = {"task_id": self.task.id, "task_hash": self.task_hash, "task_type": self._task_type()}
        return self._screen, {**kind, "tools": tools, "messages": messages, **self._info(NOTHING, [])}

    def step(self, action: Action) -> tuple[str, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """Play one assistant turn.

        Args:
            action: Its text in the format of ``parser``, or an assistant message as a dict: ``content`` (text, read by
                ``parser``, or a list of parts) and ``tool_calls``. A dict may give ``output_tokens``, the turn's own
                count, which is charged instead of ``token_counter``'s, and ``"finish_reason": "length"``: the turn was
                cut before its end, and is an invalid one, never the final answer.

        Returns:
            The tools' results (one a line), the reward (0 until the episode ends, NaN where there is no verdict),
            terminated, truncated, info.

        Raises:
            TypeError: If the action is neither text nor a message.
            RuntimeError: If no episode is running.
        """
        turn = self.read(action) if self.task is not None else Turn(_spelled(action))
        if self._done:
            raise RuntimeError("no episode is running: call reset() before step()")
        self._turn += 1
        own = None if isinstance(action, str) else action.get("output_tokens")
        tokens = float(self.token_counter(canonical_text(turn)) if own is None else own)
        calls = read = latency = 0.0
        results: list[dict[str, Any]] = []  # one a call
        shown: list[dict[str, Any]] = []  # those that arrive
        answer: Any = turn.text
        answered, infra = not turn.calls, None
        over = self._over((calls, tokens, read, latency))
        stop = "the budget was used up" if over else ""  # why the calls that are left do not run
        for number, call in enumerate(turn.calls):
            if stop:
                results.append(_not_run(call, stop))
                continue
            calls += 1.0
            if not (over := self._over((calls, tokens, read, latency))):
                world, refusal = self._world, ""
                if number >= self.max_calls:
                    refusal = f"at most {self.max_calls} calls of a turn run; make this one in the next"
                elif any(one["error"] == "timeout" for one in shown):  # a turn must not add up such calls
                    refusal = "a call of this turn ran out of time; make this one in the next"
                try:
                    result = self._run(call, refusal)
                except InfraError as fault:
                    infra, stop = Verdict("infra", "infra", 0.0, (str(fault),)), "the environment's machinery failed"
                    results.append(_not_run(call, stop))
                    continue
                latency, read = latency + result["latency_ms"], read + float(self.token_counter(result["content"]))
                if over := self._over((calls, tokens, read, latency)):
                    self._world = world  # it ran out of budget: neither its effect nor its answer arrives
            if over:
                stop = "the budget was used up"
                results.append(_not_run(call, stop))
                continue
            results.append(result)
            shown.append(result)
            tool = self._tool(call.name)
            if tool is not None and tool.ends and result["error"] not in ("invalid", "refused"):
                answered, answer = True, call.arguments.get("answer") if tool is SUBMIT else dict(call.arguments)
                stop = "the final answer was given before it"
        self._observe(shown)
        cost = (calls, tokens, read, round(latency, 3))
        self._total = tuple(round(before + spent, 3) for before, spent in zip(self._total, cost, strict=True))
        message = self._next_message(answer) if answered and not over and infra is None else None
        observation = "\n".join([result["content"] for result in shown] + ([message] if message else []))
        observation = self._cut(observation, self.observation_space.max_length)  # type: ignore[attr-defined]
        terminated = answered and not over and message is None and infra is None
        truncated = not terminated and (over or infra is not None or self._turn >= self.max_turns)
        info = self._info(cost, results)
        reward = 0.0
        if terminated or truncated:
            self._done = True
            verdict = infra or self._judge(answer if terminated else None, terminated, over)
            reward, info["verdict"] = verdict.reward, verdict.to_dict()
        self._screen = f"{_spelled(action)}\n{observation}"
        return observation, reward, terminated, truncated, info

    def render(self) -> str | None:  # type: ignore[override]
        """The last turn as text, in ``render_mode="ansi"``."""
        return self._screen if self.render_mode == "ansi" else None

    # ---- the parts of a step ---------------------------------------------------------------------------------

    def read(self, action: Action) -> Turn:
        """The turn that an action spells: reasoning set apart, the calls' arguments as their tools want them. A text in
        another format than the parser's is a call with an error, never an answer.

        Raises:
            TypeError: If the action is neither text nor a message.
        """
        text, limit = _spelled(action), self.action_space.max_length  # type: ignore[attr-defined]
        if len(text) > limit:
            error = f"the message is {len(text)} characters long; at most {limit} are read"
            return Turn("", (Call("", error=error, written=text),))
        if isinstance(action, Mapping) and action.get("finish_reason") == "length":
            error = "the turn was cut before its end, at the most tokens that one may have; nothing in it ran"
            cut = action.get("content") if not action.get("tool_calls") else text
            return Turn("", (Call("", error=error, written=cut if isinstance(cut, str) else text),))
        reasoning = ""
        if isinstance(action, str):
            reasoning, text = set_apart(action, self.reasoning)
            turn = self.parser.parse(text)
        else:
            try:
                turn = _MESSAGES.message(load(text))
            except ValueError as fault:
                return Turn("", (Call("", error=f"the message cannot be read: {fault}", written=text),))
        more, words = set_apart(turn.text, self.reasoning)  # of a message's content
        if turn.reasoning:  # it stands in a field of its own
            reasoning += turn.reasoning.join(self.reasoning or ("", ""))
        reasoning += more
        words, calls = words.strip(), turn.calls
        if not (isinstance(action, str) or calls or isinstance(self.parser, OpenAIParser)):
            inner = self.parser.parse(words)  # a server that reads no calls leaves them in the content
            words, calls = inner.text, inner.calls
        if not calls and (name := foreign_format(words, self.parser)):
            error = (
                f"the message holds a tool call in the format {name!r}, which is not the one read here; it did not run"
            )
            return Turn("", (Call("", error=error, written=words),), reasoning)
        typed = (tool.typed(call) if (tool := self._tool(call.name)) is not None else call for call in calls)
        return Turn(words, tuple(typed), reasoning)

    def write(self, turn: Turn) -> str:
        """An action that :meth:`read` reads as ``turn``; without tags for it, the reasoning is left out."""
        calls = [Call("", {"written": c.written}, c.id) if c.error else c for c in turn.calls]  # stays unreadable
        thought = turn.reasoning if self.reasoning else ""
        if thought and not set_apart(f"{thought}.", self.reasoning)[1]:  # it was never closed
            thought += self.reasoning[1]  # type: ignore[index]
        return thought + self.parser.render(turn.text, calls)

    def _tool(self, name: str) -> Tool | None:
        """The tool of that name, ``submit`` among them."""
        return SUBMIT if name == "submit" else self._tools().get(name)

    def _run(self, call: Call, refusal: str) -> dict[str, Any]:
        """Execute one call, through the cache where there is one, unless it has to be refused, and price it."""
        tool, started = self._tool(call.name), time.perf_counter() if self.latency == "wall" else 0.0
        model = REFUSED
        spelling = call.name
        try:
            if refusal:
                raise ToolError("refused", refusal)
            if call.error is not None:
                raise ToolError("invalid", call.error)
            if tool is None:
                raise ToolError(
                    "unknown_tool", f"there is no tool {call.name!r}; there are {', '.join(sorted(self._tools()))}"
                )
            arguments = tool.validate(call.arguments)
            model, spelling = tool.latency, canonical(call)
            outcome = Outcome("null") if tool is SUBMIT else self._cached(tool, arguments, spelling)
        except ToolError as error:
            message = self._cut(str(error), MOST_MESSAGE)  # it may quote what the model wrote, and stays JSON
            outcome = Outcome(dump({"error": error.kind, "message": message}), error=error.kind)
        if outcome.delta is not None:
            self._world = self._world.apply(outcome.delta)
        if self.latency == "wall":
            milliseconds = (time.perf_counter() - started) * 1000.0
        else:
            milliseconds = model.milliseconds(outcome.units, self.task.latency_seed, spelling)
        content = self._cut(outcome.content, self.observation_space.max_length // 2)  # type: ignore[attr-defined]
        return _result(call, content, outcome.error, milliseconds)

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

    def _over(self, cost: Costs) -> bool:
        """Whether the step so far takes a total above its bound, where that ends the episode."""
        if self.on_budget == "record" or not self.budget:
            return False
        spent = zip(CHANNELS, self._total, cost, strict=True)
        return any(round(before + more, 3) > self.budget[name] for name, before, more in spent if name in self.budget)

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
        """The tools of the current task, by name, without ``submit``; before ``reset`` all that a task may have."""
        return self._tools()

    @property
    def task_hash(self) -> str:
        """The current task's :func:`fingerprint`."""
        return fingerprint(self.task)

    def task_list(self, n: int, seed: int = 0) -> list[tuple[str, str]]:
        """Ids and fingerprints of ``n`` different tasks: the first of a given list, else those that resets with the
        seeds from ``seed`` on would draw. The running episode is not touched.

        Args:
            n: How many; there are fewer where the environment does not have as many.
            seed: The first seed.
        """
        if given := getattr(self, "task_ids", None):
            return [(id, fingerprint(self._make_task(id))) for id in list(given)[:n]]
        found: dict[str, str] = {}
        generator = self._np_random
        try:
            for at in range(seed, seed + 20 * n):
                if len(found) == n:
                    break
                self._np_random = seeding.np_random(at)[0]
                task = self._make_task(None)
                if task.id not in found:
                    found[task.id] = fingerprint(task)
        finally:
            self._np_random = generator
        return list(found.items())

    @property
    def cost_total(self) -> dict[str, float]:
        """What the episode has cost so far, by channel."""
        return dict(zip(CHANNELS, self._total, strict=True))

    def _info(self, cost: Costs, results: list[dict[str, Any]]) -> dict[str, Any]:
        total = self.cost_total
        return {
            "cost": dict(zip(CHANNELS, cost, strict=True)),
            "cost_total": total,
            "budget_left": {name: round(bound - total[name], 3) for name, bound in self.budget.items()},
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


_MESSAGES = OpenAIParser()


def _result(call: Call, content: str, error: str | None, milliseconds: float) -> dict[str, Any]:
    """An entry of ``info["tool_results"]``."""
    return {
        "id": call.id,
        "name": call.name,
        "arguments": dict(call.arguments),
        "content": content,
        "error": error,
        "latency_ms": milliseconds,
    }


def _not_run(call: Call, why: str) -> dict[str, Any]:
    """The entry of a call that has no result: the history of a chat needs one for each call."""
    return _result(
        call, dump({"error": "not_run", "message": f"{why}: this call has no effect and no result"}), "not_run", 0.0
    )


def _check_tags(tags: Any) -> tuple[str, str] | None:
    if tags is None:
        return None
    pair = () if isinstance(tags, str) or not isinstance(tags, Sequence) else tuple(tags)
    if len(pair) != 2 or not all(isinstance(tag, str) and tag for tag in pair) or pair[0] == pair[1]:
        raise ValueError(
            f"reasoning={tags!r}: the opening and the closing tag, such as ['<think>', '</think>'], or None"
        )
    return pair


def _check_counter(counter: Any) -> Callable[[str], int]:
    if not callable(counter):
        raise ValueError(f"token_counter={counter!r}: a function from a text to its number of tokens")
    count = counter("How many tokens?")
    if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < 1e9:
        raise ValueError(f"token_counter: it returned {count!r} for a text; it must return a number of tokens")
    return counter


def _spelled(action: Any) -> str:
    """An action as text; a message as JSON.

    Raises:
        TypeError: If it is neither text nor a message of plain data.
    """
    if isinstance(action, str):
        return action
    if not isinstance(action, Mapping):
        raise TypeError(f"an action is text (str) or an assistant message (dict), not {type(action).__name__}")
    own = action.get("output_tokens")
    if own is not None and (isinstance(own, bool) or not isinstance(own, int | float) or not 0 <= own < 1e12):
        raise TypeError(f"output_tokens={own!r}: a turn's own count is a number of 0 or more")
    try:
        return dump(dict(action))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"an assistant message is plain JSON data: {error}") from None


def tool_env(env: gym.Env[Any, Any]) -> ToolEnv:
    """The :class:`ToolEnv` inside ``env``, whatever wrappers are around it: ``env.unwrapped`` with its type.

    Raises:
        TypeError: If there is none.
    """
    base = env.unwrapped
    if not isinstance(base, ToolEnv):
        raise TypeError(f"{type(base).__name__} is not an environment of agent_gym")
    return base
