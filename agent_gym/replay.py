"""Counterfactual replay: what would this episode have earned and cost without that step?

A recorded trajectory is replayed with one step deleted, swapped, perturbed, or everything after it cut. The
recorded suffix is re-issued literally; no language model is called. *Grounding* keeps the literal suffix honest: a
call whose argument could only have been known from what was removed cannot be issued any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, Literal

import gymnasium as gym

from agent_gym.env import Action
from agent_gym.formats import Turn
from agent_gym.snapshot import Snapshot, restore, snapshot
from agent_gym.text import split_lines
from agent_gym.tools import Call, Tool, dump, load
from agent_gym.trajectory import Trajectory

__all__ = [
    "Counterfactual", "Delete", "Drift", "Intervention", "Perturb", "Swap", "ToolCache", "Truncate", "atoms",
    "counterfactuals",
]  # fmt: skip

Validity = Literal["executed", "invalid", "ungrounded"]


class Drift(Exception):
    """The environment did not repeat the recorded prefix, so nothing replayed from it would mean anything."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove ``length`` steps from step ``t`` on (0-based)."""

    t: int
    length: int = 1


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
    """A final answer's atoms: those of its JSON, or of the words that could be copies."""
    try:
        return atoms(load(text))
    except ValueError:
        return frozenset(next(filter(None, groups)) for groups in _TOKEN.findall(text))


def atoms(value: Any) -> frozenset[str]:
    """The argument atoms of a call: strings, numbers, and identifiers, addresses or paths inside strings."""
    return frozenset(atom for atom in _leaves(value) if atom)


def _call_atoms(call: Call, tools: Mapping[str, Tool]) -> frozenset[str]:
    named = tools[call.name].atoms if call.name in tools else None
    return atoms(call.arguments) | (named(call.arguments) if named else frozenset())


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
        last = intervention.t + (intervention.length if isinstance(intervention, Delete) else 1)
        if intervention.t < 0 or last > len(trajectory.steps) or last <= intervention.t:
            raise ValueError(f"{intervention} does not fit a trajectory of {len(trajectory.steps)} steps (0-based)")
    if workers:
        return _spread(env, trajectory, interventions, grounding, cache is not None, snapshots, workers)
    base = env.unwrapped
    before, cache_before = snapshot(env) if getattr(base, "task", None) is not None else None, base.tool_cache  # type: ignore[attr-defined]
    base.tool_cache, base.replaying = cache, True  # type: ignore[attr-defined]
    try:
        if snapshots is None:
            snapshots = _execute(env, trajectory)
        return [_replay(env, trajectory, one, snapshots, grounding) for one in interventions]
    finally:
        base.tool_cache, base.replaying = cache_before, False  # type: ignore[attr-defined]
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
    steps, base, t = trajectory.steps, env.unwrapped, intervention.t
    shown = [step.observation for step in steps]  # shown[i] is what the agent saw before step i
    last = (result["content"] for result in steps[-1].tool_results if result["error"] != "not_run")
    after = [*shown[1:], "\n".join(last)]
    start = t + 1 if isinstance(intervention, Truncate | Perturb) else t
    choices = " ".join(choice for tool in base.tools.values() for choice in tool.choices)  # type: ignore[attr-defined]
    kept, removed = [base.system_prompt, choices, *shown[: start + 1]], []  # type: ignore[attr-defined]
    suffix = list(range(start, len(steps)))
    if start < len(steps):
        restore(env, snapshots[start])
        total, verdict, done = base.cost_total, None, False  # type: ignore[attr-defined]
    else:  # nothing follows the intervention: the episode ends as recorded
        total, verdict, done = trajectory.cost_total, trajectory.verdict, True

    if isinstance(intervention, Delete):
        suffix = suffix[intervention.length :]
        removed = after[t : t + intervention.length]
    elif isinstance(intervention, Truncate):
        answered = bool(suffix) and _is_answer(base.read(steps[-1].action), base.tools)  # type: ignore[attr-defined]
        removed = after[start:-1]
        suffix = suffix[-1:] if answered else []
    elif isinstance(intervention, Perturb):
        removed = [kept.pop()] if start < len(steps) else []
        kept += [intervention.fn(text) for text in removed]
    else:
        suffix = suffix[1:]
        removed = [after[t]]
        observation, _, terminated, truncated, info = env.step(intervention.action)
        kept.append(observation)
        total, verdict, done = info["cost_total"], info.get("verdict"), terminated or truncated

    validity: list[Validity] = []
    for i in suffix:
        if done:
            validity.append("invalid")
            continue
        action = _grounded(base, steps[i].action, kept, removed) if grounding else steps[i].action
        if action is None:
            removed.append(after[i])
            validity.append("ungrounded")
            continue
        observation, _, terminated, truncated, info = env.step(action)
        if action == steps[i].action:
            failed = any(r["error"] not in (None, "not_run") for r in info["tool_results"])
            unpaid = "verdict" in info and info["verdict"]["reason"] == "budget"
            validity.append("invalid" if failed or unpaid else "executed")
        else:  # some of the turn's calls were left out, and their results with them
            removed.append(after[i])
            validity.append("ungrounded")
        kept.append(observation)
        total, verdict, done = info["cost_total"], info.get("verdict"), terminated or truncated
    reward: float | None = 0.0
    if verdict is not None:
        reward = {"pass": 1.0, "fail": 0.0, "infra": None}[verdict["status"]]
    return Counterfactual(trajectory, intervention, reward, dict(total), tuple(validity), verdict)


def _grounded(base: Any, action: Action, kept: list[str], removed: list[str]) -> Action | None:
    """The action without its ungrounded calls; None when nothing of it can be issued."""
    tools = base.tools

    def known(found: frozenset[str]) -> bool:
        return all(not _seen(atom, removed) or _seen(atom, kept) for atom in found)

    turn = base.read(action)
    if not turn.calls:
        return action if known(_atoms_of_text(turn.text)) else None
    calls = [call for call in turn.calls if known(_call_atoms(call, tools))]
    if len(calls) == len(turn.calls):
        return action
    return base.write(replace(turn, calls=tuple(calls))) if calls else None


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
