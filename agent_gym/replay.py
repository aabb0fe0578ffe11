"""Counterfactual replay: what would this episode have earned and cost without that step?

A recorded trajectory is replayed with one step deleted, swapped, perturbed, or everything after it cut. The
recorded suffix is re-issued literally; no language model is called. *Grounding* keeps the literal suffix honest: a
call whose argument could only have been known from what was removed cannot be issued any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple, cast

import gymnasium as gym

from agent_gym.costs import CHANNELS
from agent_gym.env import Action
from agent_gym.formats import Turn
from agent_gym.snapshot import Snapshot, restore, snapshot, state_hash
from agent_gym.text import fenced, split_lines
from agent_gym.tools import Call, Tool, dump, load
from agent_gym.trajectory import Step, Trajectory

__all__ = [
    "Counterfactual", "Delete", "Drift", "Elimination", "Intervention", "Perturb", "Swap", "ToolCache", "Truncate",
    "atoms", "counterfactuals", "eliminate",
]  # fmt: skip

Validity = Literal["executed", "invalid", "ungrounded"]


class Drift(Exception):
    """The environment did not repeat the recorded prefix, so nothing replayed from it would mean anything."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove ``length`` steps from step ``t`` on, or only call ``call`` of step ``t`` (both 0-based)."""

    t: int
    length: int = 1
    call: int | None = None


@dataclass(frozen=True, slots=True)
class Truncate:
    """Stop after step ``t`` and answer: all later tool steps go, the recorded final answer is given."""

    t: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Play ``action`` in place of step ``t``."""

    t: int
    action: Action


@dataclass(frozen=True, slots=True)
class Perturb:
    """Let the agent see ``fn(observation)`` after step ``t``. ``fn`` must pickle to be used with ``workers``."""

    t: int
    fn: Callable[[str], str]


Intervention = Delete | Truncate | Swap | Perturb


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """One replay.

    Args:
        base: The recorded trajectory.
        intervention: What was changed.
        reward: Reward of the replay: 0 where nothing was submitted, None where there was no verdict.
        cost: Totals by channel of the replay.
        validity: One entry for each suffix action: ``executed``; ``invalid`` when a call of it was answered with
            an error or went over the budget, or the episode had already ended; ``ungrounded`` when it, or one of
            its calls, could not be issued.
        verdict: ``Verdict.to_dict()`` of the replay, or None where nothing was submitted.
    """

    base: Trajectory = field(repr=False)
    intervention: Intervention
    reward: float | None
    cost: dict[str, float]
    validity: tuple[Validity, ...]
    verdict: dict[str, Any] | None

    @property
    def success_credit(self) -> float:
        """u = R(base) - R(replay); NaN where either has no verdict."""
        if self.base.reward is None or self.reward is None:
            return float("nan")
        return self.base.reward - self.reward

    @property
    def cost_credit(self) -> dict[str, float]:
        """v_k = C_k(base) - C_k(replay), by channel."""
        return {name: total - self.cost[name] for name, total in self.base.cost_total.items()}


class ToolCache:
    """Tool outcomes by ``(state_hash, call)``; least recently stored entries leave first.

    Different histories that reach the same state share an entry, which a cache keyed by the history cannot do.

    Args:
        size: Most entries kept.
    """

    def __init__(self, size: int = 100_000) -> None:
        self.size, self.hits, self.misses = size, 0, 0
        self._entries: dict[tuple[str, str], Any] = {}

    def get(self, key: tuple[str, str]) -> Any:
        """The stored outcome, or None."""
        outcome = self._entries.get(key)
        if outcome is None:
            self.misses += 1
        else:
            self.hits += 1
        return outcome

    def put(self, key: tuple[str, str], outcome: Any) -> None:
        """Store an outcome."""
        if len(self._entries) >= self.size:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = outcome

    @property
    def hit_rate(self) -> float:
        """Share of look-ups answered from the cache."""
        return self.hits / max(1, self.hits + self.misses)


# ---- grounding ---------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?x)
    "([^"\n]+)" | '([^'\n]+)'                    # quoted strings
    | ((?:[\w.+-]+@[\w-]+\.[\w.-]*\w)            # addresses
    |  (?:[\w.-]*/[\w./-]*\w)                    # paths
    |  (?:[\w-]*[0-9_][\w:.-]*\w|\d))            # identifiers, numbers, dates
    """
)
_SMALL = re.compile(r"-?\d{1,2}")
_WORD = re.compile(r"\w{3,}")
MOST_WORDS = 6
"""Of a text that is short: a final answer that is an atom as a whole, or a search string that may be a composition."""


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value.strip()
        if "\n" in value:  # a block of text is shown line by line, often each after its number
            yield from (line.strip() for line in split_lines(value))
        yield from (next(filter(None, groups)) for groups in _TOKEN.findall(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield dump(value)


@lru_cache(maxsize=1 << 14)
def _atoms_of_text(text: str) -> frozenset[str]:
    """A final answer's atoms: those of its JSON, or the words that could be copies, and a short text as a whole. Of an
    answer in a fenced block, what stands around it is not submitted."""
    text = fenced(text)
    try:
        return atoms(load(text))
    except ValueError:
        found = {next(filter(None, groups)) for groups in _TOKEN.findall(text)}
        whole = text.strip().strip("\"'`.").strip()
        return frozenset(found | ({whole} if whole and len(whole.split()) <= MOST_WORDS else set()))


def atoms(value: Any) -> frozenset[str]:
    """The argument atoms of a call: strings, numbers, and identifiers, addresses or paths inside strings."""
    return frozenset(atom for atom in _leaves(value) if atom)


def _occurs(atom: str, text: str) -> bool:
    """Whether ``atom`` stands in ``text`` as a whole word (``O12`` does not stand in ``O123``)."""
    at = text.find(atom)
    while at >= 0:
        end = at + len(atom)
        before, after = text[at - 1 : at], text[end : end + 1]
        joined = (before.isalnum() and atom[0].isalnum()) or (after.isalnum() and atom[-1].isalnum())
        if not joined:
            return True
        at = text.find(atom, at + 1)
    return False


def _seen(atom: str, texts: Iterable[str]) -> bool:
    """Whether ``atom`` was shown, plainly or as JSON spells it."""
    spelled = dump(atom)[1:-1]
    return any(_occurs(atom, text) or (spelled != atom and _occurs(spelled, text)) for text in texts)


class _Sight:
    """What the agent of a replay would still have seen, and what was removed from its sight.

    Args:
        kept: Texts shown to it, and its own words.
        removed: Texts that it sees no more.
    """

    def __init__(self, kept: Iterable[str], removed: Iterable[str]) -> None:
        self.kept, self.removed = list(kept), list(removed)

    def _explains(self, atom: str, fold: bool = False) -> bool:
        """Whether nothing that was removed is needed to know an atom."""
        kept: Iterable[str] = self.kept
        removed: Iterable[str] = self.removed
        if fold:
            atom, kept, removed = atom.lower(), (text.lower() for text in kept), (text.lower() for text in removed)
        return not _seen(atom, removed) or _seen(atom, kept)

    def explains_answer(self, text: str) -> bool:
        """Whether a final answer can still be given."""
        return all(map(self._explains, _atoms_of_text(text)))

    def explains_call(self, call: Call, tool: Tool | None) -> bool:
        """Whether a call can still be made. Whole numbers of one or two digits are no copies; in a string of several
        words that was never shown as a whole, each word may be one; names are spelled in either case."""
        named = tool.atoms(call.arguments) if tool is not None and tool.atoms else frozenset()
        found = atoms(call.arguments)
        if call.name != "submit":  # the final answer, in which a small number may well be a copy
            found = frozenset(atom for atom in found if not _SMALL.fullmatch(atom))
        if not all(map(self._explains, found - named)):
            return False
        if not all(self._explains(name, fold=True) for name in named if not _SMALL.fullmatch(name)):
            return False
        composed = (
            atom for atom in found - named if 1 < len(atom.split()) <= MOST_WORDS and not _seen(atom, self.kept)
        )
        return all(self._explains(word, fold=True) for atom in composed for word in _WORD.findall(atom))

    def answer_differs(self, old: str, new: str) -> None:
        """What an action showed before, and what it shows now: the rest is seen no more."""
        self.kept.append(new)
        if old != new:
            self.removed.append(old)


# ---- replay ------------------------------------------------------------------------------------------------------


def counterfactuals(
    env: gym.Env,
    trajectory: Trajectory,
    interventions: Sequence[Intervention],
    *,
    grounding: bool = True,
    cache: ToolCache | None = None,
    snapshots: Sequence[Snapshot] | None = None,
    workers: int | Executor = 0,
) -> list[Counterfactual]:
    """Replay ``trajectory`` under each intervention.

    Args:
        env: An environment made as the recorded one was (its budget and ``on_budget`` apply to the replay too).
            Its own episode is put back afterwards.
        trajectory: The recorded episode.
        interventions: What to change, one replay each.
        grounding: Skip suffix calls that nothing the agent would still have seen can explain. False re-issues
            the suffix literally.
        cache: Tool outcomes shared between replays.
        snapshots: The state before each step, if the rollout kept them; otherwise the trajectory is re-executed
            once to make them.
        workers: Processes to spread the replays over (each with a cache of its own), or an executor to use.
            Needs an environment made by ``gym.make``.

    Raises:
        ValueError: If an intervention names a step the trajectory does not have.
        Drift: If re-execution does not reproduce the recorded hashes and observations.
    """
    for intervention in interventions:
        _check(intervention, trajectory, env)
    if workers:
        return _spread(env, trajectory, interventions, grounding, cache is not None, snapshots, workers)
    with _replaying(env, cache):
        if snapshots is None:
            snapshots = _execute(env, trajectory)
        return [_replay(env, trajectory, one, snapshots, grounding) for one in interventions]


def _check(intervention: Intervention, trajectory: Trajectory, env: gym.Env) -> None:
    """See that an intervention fits.

    Raises:
        ValueError: If it names a step or a call that the trajectory does not have.
    """
    last = intervention.t + (intervention.length if isinstance(intervention, Delete) else 1)
    if intervention.t < 0 or last > len(trajectory.steps) or last <= intervention.t:
        raise ValueError(f"{intervention} does not fit a trajectory of {len(trajectory.steps)} steps (0-based)")
    if isinstance(intervention, Delete) and intervention.call is not None:
        calls = len(trajectory.steps[intervention.t].tool_results)
        if intervention.length != 1 or not 0 <= intervention.call < calls:
            raise ValueError(f"{intervention} does not fit: one call of the {calls} of step {intervention.t} (0-based)")


@contextmanager
def _replaying(env: gym.Env, cache: ToolCache | None) -> Iterator[None]:
    """Let recorders look away, and put the environment's own episode back afterwards."""
    base: Any = env.unwrapped
    before, cache_before = snapshot(env) if base.task is not None else None, base.tool_cache
    base.tool_cache, base.replaying = cache, True
    try:
        yield
    finally:
        base.tool_cache, base.replaying = cache_before, False
        if before is not None:
            restore(env, before)


def _execute(env: gym.Env, trajectory: Trajectory) -> list[Snapshot]:
    """Re-execute the recorded actions; the state before each."""
    observation, info = env.reset(seed=trajectory.seed, options={"task": trajectory.task_id})
    if trajectory.task_hash not in (None, info["task_hash"]):
        raise Drift(
            f"the task {trajectory.task_id!r} has the content {info['task_hash']} here, recorded was "
            f"{trajectory.task_hash}: the environment was made with other arguments, or its tasks have changed"
        )
    snapshots, done, measured = [], False, env.unwrapped.latency == "wall"  # type: ignore[attr-defined]
    for t, step in enumerate(trajectory.steps):
        if done:
            raise Drift(f"step {t}: the episode ended before it")
        if observation != step.observation:
            raise Drift(
                f"step {t}: the environment showed {observation[:80]!r}, recorded was {step.observation[:80]!r}"
            )
        snapshots.append(snapshot(env))
        observation, _, terminated, truncated, info = env.step(step.action)
        done = terminated or truncated
        if info["state_hash"] != step.state_hash:
            raise Drift(f"step {t}: state {info['state_hash']} after the action, recorded was {step.state_hash}")
        cost = info["costs"] if "costs" in info else info["cost"]
        wrong = [
            name for name, spent in cost.items() if not (measured and name == "latency_ms") and spent != step.cost[name]
        ]
        if wrong:
            raise Drift(f"step {t}: {wrong[0]} {cost[wrong[0]]}, recorded was {step.cost[wrong[0]]}")
    return snapshots


def _is_answer(turn: Turn, tools: Mapping[str, Tool]) -> bool:
    return not turn.calls or any(
        call.name == "submit" or (call.name in tools and tools[call.name].ends) for call in turn.calls
    )


def _replay(
    env: gym.Env, trajectory: Trajectory, intervention: Intervention, snapshots: Sequence[Snapshot], grounding: bool
) -> Counterfactual:
    """One intervention, played out."""
    run = _Run(env, trajectory, snapshots, grounding)
    steps, t = trajectory.steps, intervention.t
    start = t + 1 if isinstance(intervention, Truncate | Perturb) else t
    run.go_to(start)
    suffix: Iterable[int] = range(start, len(steps))
    if isinstance(intervention, Delete):
        calls = None if intervention.call is None else {intervention.call}
        run.drop(dict.fromkeys(range(t, t + intervention.length), calls))
        suffix = ()
    elif isinstance(intervention, Truncate):
        answered = start < len(steps) and _is_answer(run.base.read(steps[-1].action), run.base.tools)
        run.sight.removed += run.after[start:-1]
        suffix = suffix[-1:] if answered else ()  # type: ignore[index]
    elif isinstance(intervention, Perturb):
        if start < len(steps):
            shown = run.sight.kept.pop()
            run.sight.answer_differs(shown, intervention.fn(shown))
    else:
        run.sight.removed.append(run.after[t])
        run.issue(intervention.action)
        run.sight.kept.append(run.observation)
        suffix = range(t + 1, len(steps))
    for i in suffix:
        run.follow(i)
    return run.counterfactual(intervention)


class _Run:
    """One replay: the recorded actions are issued again from some step on, with something changed.

    Args:
        env: Where.
        trajectory: The recorded episode.
        snapshots: The state before each of its steps.
        grounding: Whether calls that nothing explains are left out.
    """

    def __init__(self, env: gym.Env, trajectory: Trajectory, snapshots: Sequence[Snapshot], grounding: bool) -> None:
        self.env, self.base, self.trajectory, self.grounding = env, cast(Any, env.unwrapped), trajectory, grounding
        self.old = snapshots
        steps = trajectory.steps
        last = (result["content"] for result in steps[-1].tool_results if result["error"] != "not_run")
        self.after = [*(step.observation for step in steps[1:]), "\n".join(last)]  # what each step showed
        self.validity: list[Validity] = []
        self.steps: list[Step] = []
        self.snapshots: list[Snapshot] = []
        self.kept: list[Unit] = []
        self.total, self.verdict, self.done = trajectory.cost_total, trajectory.verdict, True

    def go_to(self, start: int) -> None:
        """Begin before step ``start``; at the end of the episode nothing is left to be changed."""
        steps, base = self.trajectory.steps, self.base
        choices = " ".join(choice for tool in base.tools.values() for choice in tool.choices)
        shown = [step.observation for step in steps[: start + 1]]
        self.sight = _Sight([base.system_prompt, choices, *map(self._words, steps[:start]), *shown], [])
        self.steps, self.snapshots = list(steps[:start]), list(self.old[:start])
        if start < len(steps):
            restore(self.env, self.old[start])
            self.observation = steps[start].observation
            self.total, self.verdict, self.done = base.cost_total, None, False

    def _words(self, step: Step) -> str:
        """The words that the agent itself has issued."""
        return " ".join(dump(result["arguments"]) for result in step.tool_results if result["error"] != "not_run")

    def drop(self, dropped: Mapping[int, Collection[int] | None]) -> None:
        """Issue all further steps but the dropped ones; of a step that maps to some calls, only these are left out."""
        for i in range(min(dropped), len(self.trajectory.steps)):
            step = self.trajectory.steps[i]
            if i not in dropped:
                self.follow(i)
            elif self._whole(step, dropped[i]):
                self._forget(self.base.read(step.action).calls)
                self.sight.removed.append(self.after[i])
            else:
                self.follow(i, cast(Collection[int], dropped[i]))

    def _whole(self, step: Step, calls: Collection[int] | None) -> bool:
        return calls is None or len(set(calls)) >= len(step.tool_results)

    def _forget(self, calls: Iterable[Call]) -> None:
        """Calls are left out. What the agent wrote in them by itself it still knows, even if only they show it."""
        for call in calls:
            if self.sight.explains_call(call, self.base.tools.get(call.name)):
                self.sight.kept.append(dump(call.arguments))

    def follow(self, i: int, without: Collection[int] = ()) -> None:
        """Issue step ``i`` as far as it can be, ``without`` some of its calls."""
        if self.done:
            self.validity.append("invalid")
            return
        step, tools = self.trajectory.steps[i], self.base.tools
        turn = self.base.read(step.action)
        if turn.calls:
            self._forget(turn.calls[n] for n in without)
            left = [
                n for n, call in enumerate(turn.calls)
                if n not in without and (not self.grounding or self.sight.explains_call(call, tools.get(call.name)))
            ]  # fmt: skip
        else:
            left = [] if self.grounding and not self.sight.explains_answer(turn.text) else [-1]
        if not left:
            self.sight.removed.append(self.after[i])
            self.validity.append("ungrounded")
            return
        whole = left == [-1] or len(left) == len(turn.calls)
        action = step.action if whole else self.base.write(replace(turn, calls=tuple(turn.calls[n] for n in left)))
        info = self.issue(action, step if whole else None)
        was = [result["content"] for result in step.tool_results if result["error"] != "not_run"]
        if whole:
            self.sight.answer_differs(self.after[i], self.observation)
            failed = any(r["error"] not in (None, "not_run") for r in info["tool_results"])
            unpaid = "verdict" in info and info["verdict"]["reason"] == "budget"
            self.validity.append("invalid" if failed or unpaid else "executed")
        else:  # some of the turn's calls were left out, and their results with them
            now = {result["content"] for result in info["tool_results"]}
            self.sight.kept.append(self.observation)
            self.sight.removed += [content for content in was if content not in now]
            if len(left) + len(without) < len(turn.calls):
                self.validity.append("ungrounded")
        self.kept += [i] if len(step.tool_results) < 2 else [(i, n) for n in left]

    def issue(self, action: Action, as_recorded: Step | None = None) -> dict[str, Any]:
        """Play one action, and note the step; its info."""
        self.snapshots.append(snapshot(self.env))
        before = self.observation
        self.observation, _, terminated, truncated, info = self.env.step(action)
        cost = dict(info["costs"] if "costs" in info else info["cost"])
        sampled = (as_recorded.action_ids, as_recorded.logprobs) if as_recorded is not None else (None, None)
        self.steps.append(
            Step(before, action, cost, info["tool_results"], info["state_hash"], terminated, truncated, *sampled)
        )
        self.sight.kept.append(self._words(self.steps[-1]))
        self.total, self.verdict, self.done = info["cost_total"], info.get("verdict"), terminated or truncated
        return info

    @property
    def reward(self) -> float | None:
        """0 where nothing was submitted, None where there is no verdict."""
        return 0.0 if self.verdict is None else {"pass": 1.0, "fail": 0.0, "infra": None}[self.verdict["status"]]

    def counterfactual(self, intervention: Intervention) -> Counterfactual:
        """What came of an intervention."""
        total = dict(self.total)
        return Counterfactual(self.trajectory, intervention, self.reward, total, tuple(self.validity), self.verdict)


# ---- elimination -------------------------------------------------------------------------------------------------

Unit = int | tuple[int, int]
"""A step, or a call of a step that has several."""


class Elimination(NamedTuple):
    """What is left of an episode when all that can go is gone.

    Attributes:
        kept: Indices of the kept steps in the original episode; of a step with several calls, ``(step, call)`` for
            each that was kept.
        trajectory: The shortened episode, as it was replayed: a valid one, with its real observations and costs.
        replays: How many it took.
    """

    kept: tuple[Unit, ...]
    trajectory: Trajectory
    replays: int


def eliminate(
    env: gym.Env,
    trajectory: Trajectory,
    bounds: Mapping[str, float],
    *,
    snapshots: Sequence[Snapshot] | None = None,
    grounding: bool = True,
    cache: ToolCache | None = None,
    among: Collection[Unit] | None = None,
) -> Elimination:
    """Delete steps for good, the dearest first, as long as the episode still passes.

    Leaving out one step at a time says nothing of two steps that provide the same: each alone can go, both cannot.
    Here one goes and the other stays. A step that was kept is tried once more where another went after it. Detours (a
    change and what takes it back) are tried as a whole first.

    Args:
        env: An environment made as the recorded one was. Its own episode is put back afterwards.
        trajectory: An episode that passed.
        bounds: Budget by channel: a step's price is the sum of its costs over their bounds. Of equal price, the later
            step goes first.
        snapshots: The state before each step, if the rollout kept them.
        grounding: See :func:`counterfactuals`.
        cache: Tool outcomes shared between replays.
        among: The only steps and calls to try, each alone and once, to bound the replays; by default all.

    Returns:
        The kept steps, the shortened episode, and the number of replays, at most twice that of the steps and calls.

    Raises:
        ValueError: If the episode did not pass, or a bound is unknown or not a number above 0.
        Drift: If re-execution does not reproduce the recorded hashes and observations.
    """
    if not trajectory.success:
        raise ValueError("eliminate shortens an episode that passed; this one did not")
    for channel, bound in bounds.items():
        if channel not in CHANNELS or isinstance(bound, bool) or not isinstance(bound, int | float) or not bound > 0:
            raise ValueError(f"bounds[{channel!r}]={bound!r}: a number above 0 for one of {', '.join(CHANNELS)}")
    with _replaying(env, cache):
        return _Eliminator(env, trajectory, bounds, snapshots or _execute(env, trajectory), grounding).result(among)


class _Eliminator:
    """The episode as it is now, and the units of the original that it still has."""

    def __init__(
        self,
        env: gym.Env,
        trajectory: Trajectory,
        bounds: Mapping[str, float],
        snapshots: Sequence[Snapshot],
        grounding: bool,
    ) -> None:
        self.env, self.grounding, self.bounds = env, grounding, bounds
        self.trajectory, self.snapshots = trajectory, list(snapshots)
        self.units: list[list[Unit]] = [  # by step of the episode as it is now
            [t] if len(step.tool_results) < 2 else [(t, n) for n in range(len(step.tool_results))]
            for t, step in enumerate(trajectory.steps)
        ]
        self.price = {
            unit: self._price(step, n) for step, units in zip(trajectory.steps, self.units, strict=True)
            for n, unit in enumerate(units)
        }  # fmt: skip
        self.most, self.replays = 2 * len(self.price), 0

    def _price(self, step: Step, n: int) -> float:
        """Of the ``n``-th call of a step that has several; else of the step."""
        cost = step.cost
        if len(step.tool_results) > 1:
            count, result = cast(Any, self.env.unwrapped).token_counter, step.tool_results[n]
            ran = result["error"] != "not_run"
            written = dump({"name": result["name"], "arguments": result["arguments"]})
            shares = (float(ran), count(written), count(result["content"]) * ran, result["latency_ms"])
            cost = dict(zip(CHANNELS, shares, strict=True))
        return sum(cost[channel] / bound for channel, bound in self.bounds.items())

    def result(self, among: Collection[Unit] | None) -> Elimination:
        """Eliminate all that can go, or ``among`` some units."""
        if among is not None:
            for unit in self._candidates():
                if unit in among:
                    self._try([unit])
            return self._elimination()
        for detour in self._detours():
            self._try(detour)
        gone, failed = 0, dict[Unit, int]()  # how many units had gone when one could not
        while left := [unit for unit in self._candidates() if failed.get(unit, -1) < gone]:
            for unit in left:
                if self.replays >= self.most:
                    return self._elimination()
                if self._try([unit]):
                    gone += 1
                else:
                    failed[unit] = gone
        return self._elimination()

    def _elimination(self) -> Elimination:
        kept = tuple(unit for units in self.units for unit in units)
        return Elimination(kept, self.trajectory, self.replays)

    def _candidates(self) -> list[Unit]:
        """All units but a last step of one piece, without which nothing is submitted; the dearest first."""
        units = [unit for there in self.units for unit in there]
        if len(self.units[-1]) == 1:
            units.pop()
        return sorted(units, key=lambda unit: (self.price[unit], _order(unit)), reverse=True)

    def _detours(self) -> list[list[Unit]]:
        """The steps that change the state between two moments of equal state, the dearest detour first."""
        restore(self.env, self.snapshots[0])
        hashes = [state_hash(self.env), *(step.state_hash for step in self.trajectory.steps)]
        found: list[list[Unit]] = []
        for start in range(len(hashes) - 2):
            if hashes[start + 1] != hashes[start] and hashes[start] in hashes[start + 2 : -1]:
                end = hashes.index(hashes[start], start + 2)
                changing = [t for t in range(start, end) if hashes[t] != hashes[t + 1]]
                found.append([unit for t in changing for unit in self.units[t]])
        return sorted(found, key=lambda units: -sum(self.price[unit] for unit in units))[: len(self.units) // 2]

    def _try(self, units: Sequence[Unit]) -> bool:
        """Replay without some units; whether it passed, and so is now the episode."""
        dropped: dict[int, set[int] | None] = {}
        for at, there in enumerate(self.units):
            if gone := [n for n, unit in enumerate(there) if unit in units]:
                dropped[at] = set(gone) if len(there) > 1 else None
        if not dropped:  # it went with another
            return False
        self.replays += 1
        start = min(dropped)
        run = _Run(self.env, self.trajectory, self.snapshots, self.grounding)
        run.go_to(start)
        run.drop(dropped)
        if run.reward != 1.0:
            return False
        followed: dict[int, list[Unit]] = {}
        for unit in run.kept:
            at, n = _order(unit)
            followed.setdefault(at, []).append(self.units[at][n])
        self.units = self.units[:start] + list(followed.values())
        self.trajectory = replace(
            self.trajectory,
            steps=tuple(run.steps),
            cost_total=dict(run.total),
            reward=run.reward,
            verdict=run.verdict,
        )
        self.snapshots = run.snapshots
        return True


def _order(unit: Unit) -> tuple[int, int]:
    return (unit, 0) if isinstance(unit, int) else unit


# ---- processes ---------------------------------------------------------------------------------------------------


def plain_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an environment that JSON can hold: without functions and parser objects, which whoever makes it
    again gives again."""
    return {k: v for k, v in kwargs.items() if k != "token_counter" and (k != "parser" or isinstance(v, str))}


_worker: dict[str, Any] = {}


def _work(spec: str, given: tuple[Any, Any], cached: bool, *job: Any) -> list[Counterfactual]:
    """One chunk of replays in a worker; it keeps its environment and cache between chunks."""
    import agent_gym  # noqa: F401  (registers the environments)

    if _worker.get("spec") != (spec, cached):
        _worker.update(spec=(spec, cached), env=gym.make(gym.envs.registration.EnvSpec.from_json(spec)))
        _worker["cache"] = ToolCache() if cached else None
    env = _worker["env"]
    env.unwrapped.token_counter, env.unwrapped.parser = given
    trajectory, interventions, grounding, snapshots = job
    found = counterfactuals(
        env, trajectory, interventions, grounding=grounding, cache=_worker["cache"], snapshots=snapshots
    )
    return [replace(one, base=None) for one in found]  # type: ignore[arg-type]  # the caller has the base


def _spread(
    env: gym.Env,
    trajectory: Trajectory,
    interventions: Sequence[Intervention],
    grounding: bool,
    cached: bool,
    snapshots: Sequence[Snapshot] | None,
    workers: int | Executor,
) -> list[Counterfactual]:
    if env.spec is None:
        raise ValueError("workers= needs an environment made by gym.make, so that each process can make its own")
    own = None if isinstance(workers, Executor) else ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    pool = own or workers
    size = 1 if own is None else -(-len(interventions) // workers)  # type: ignore[operator]
    chunks = [interventions[at : at + size] for at in range(0, len(interventions), max(1, size))]
    spec = replace(env.spec, kwargs=plain_kwargs(env.spec.kwargs)).to_json()
    base: Any = env.unwrapped
    given = base.token_counter, base.parser
    try:
        jobs = [pool.submit(_work, spec, given, cached, trajectory, c, grounding, snapshots) for c in chunks]  # type: ignore[union-attr]
        return [replace(one, base=trajectory) for job in jobs for one in job.result()]
    finally:
        if own is not None:
            own.shutdown()
