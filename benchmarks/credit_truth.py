"""Is a step's credit right? Episodes whose needless steps are known by construction, credited in two ways.

    python benchmarks/credit_truth.py --n 300 --out benchmarks/credit_truth.json

Each episode is an oracle's, with noise of one or several kinds put into it:

* repeat: a reading that is needed is made twice (one of the two is needed);
* look: a reading that nothing needs;
* error: a call that fails;
* aside: a needless call beside a needed one, in one turn;
* detour: a change, and what takes it back.

Two rates, by kind and in all: of the needed steps, those with u = 0; of the needless ones, those with u > 0. A step of
the oracle's that is not missed in its own episode, without any noise, is counted apart (``unmissed``): nothing that it
shows is copied later, as with a test run that only says that a fault is there.
``leave one out`` is ``counterfactuals`` with ``Delete``, ``elimination`` is ``eliminate``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
from tqdm import tqdm

from agent_gym import Call, Delete, ToolCache, ToolEnv, Turn, counterfactuals, eliminate, tool_env
from agent_gym.metrics import wilson_interval
from agent_gym.wrappers import RecordTrajectory

BOUNDS = {"tool_calls": 4.0, "output_tokens": 200.0, "read_tokens": 400.0, "latency_ms": 400.0}
ENVIRONMENTS = ("APIAgent-v0", "SQL-v0", "WebLite-v0", "CodeAgent-v0")
METHODS = ("leave one out", "elimination")
NOISE = ("repeat", "look", "error", "aside", "detour")
KINDS = ("needed", "unmissed", *NOISE)

Marked = tuple[str, list[str]]
"""An action, and for each of its calls (or its answer) what it is: ``needed``, or the kind of noise."""


def _written(env: ToolEnv, *calls: Call) -> str:
    return env.write(Turn("", calls))


def _looks(env: ToolEnv) -> list[Call]:
    """Readings that show nothing the oracle needs: without arguments and not its own, or a search without a hit."""
    if "search" in env.tools:
        return [Call("search", {"text": "no such text"})]
    needed = {call.name for action in env.oracle() for call in env.read(action).calls}
    return [Call(n) for n, tool in env.tools.items() if tool.reads_only and not tool.parameters and n not in needed]


def _detours(env: ToolEnv) -> list[list[Call]]:
    """Two calls that leave everything as it was, from where the episode starts."""
    if "go_to" in env.tools:
        return [[Call("go_to", {"path": "/"}), Call("back")]]
    world: Any = env.task.world
    if "set_tier" in env.tools:
        plain = [row.key for row in world.tables["customers"].values() if row.tier == "basic"]
        return [[Call("set_tier", {"customer_id": key, "tier": tier}) for tier in ("silver", "basic")] for key in plain]
    if "write_file" in env.tools:
        text = next(iter(world.files.items()))
        return [[Call("write_file", {"path": text[0], "text": new}) for new in (f"{text[1]}\n", text[1])]]
    return []


def _missed(env: gym.Env, seed: int) -> list[list[bool]]:
    """Whether each call of each of the oracle's actions is missed in the oracle's own episode."""
    env.reset(seed=seed)
    for action in tool_env(env).oracle():
        env.step(action)
    episode = env.last  # type: ignore[attr-defined]
    counts = [max(1, len(step.tool_results)) for step in episode.steps]
    single = [Delete(t, call=n if of > 1 else None) for t, of in enumerate(counts) for n in range(of)]
    credits = iter(one.success_credit > 0 for one in counterfactuals(env, episode, single))
    return [[next(credits) for _ in range(of)] for of in counts]


def noisy(env: ToolEnv, rng: random.Random, missed: list[list[bool]]) -> Iterator[Marked]:
    """The oracle's actions of the current task with noise among them."""
    looks, detours = _looks(env), _detours(env)
    if detours and rng.random() < 0.3:
        for call in rng.choice(detours):
            yield _written(env, call), ["detour"]
    for action, needed in zip(env.oracle(), missed, strict=True):
        calls, marks = env.read(action).calls, ["needed" if one else "unmissed" for one in needed]
        reads = bool(calls) and all(c.name in env.tools and env.tools[c.name].reads_only for c in calls)
        dice = rng.random()
        if looks and dice < 0.25:
            yield _written(env, rng.choice(looks)), ["look"]
        elif dice < 0.35:
            yield _written(env, Call("no_such_tool", {"n": rng.randrange(9)})), ["error"]
        if reads and looks and "go_to" not in env.tools and rng.random() < 0.25:
            yield _written(env, *calls, rng.choice(looks)), [*marks, "aside"]
        else:
            yield action, marks
            if reads and rng.random() < 0.3:
                yield action, ["repeat"] * len(calls)


def _units(plan: list[Marked]) -> dict[Any, str]:
    """What each step, or call of a step that has several, is."""
    return {
        (t if len(marks) == 1 else (t, n)): mark for t, (_, marks) in enumerate(plan) for n, mark in enumerate(marks)
    }


def credited(env: gym.Env, seed: int) -> tuple[dict[Any, str], dict[str, set[Any]], list[str]] | None:
    """One episode: what its units are, which have credit by each method, and its actions; None if it did not pass."""
    base, missed = tool_env(env), _missed(env, seed)
    env.reset(seed=seed)
    plan = list(noisy(base, random.Random(seed), missed))
    env.reset(seed=seed)
    for at, (action, _) in enumerate(plan):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            plan = plan[: at + 1]
            break
    episode = env.last  # type: ignore[attr-defined]
    if not episode.success:
        return None
    units, cache = _units(plan), ToolCache()
    single = [Delete(u) if isinstance(u, int) else Delete(u[0], call=u[1]) for u in units]
    replays = counterfactuals(env, episode, single, cache=cache)
    alone = {unit for unit, one in zip(units, replays, strict=True) if one.success_credit > 0}
    return units, {
        "leave one out": alone, "elimination": set(eliminate(env, episode, BOUNDS, cache=cache).kept)
    }, [action for action, _ in plan]  # fmt: skip


def judged(units: dict[Any, str], with_credit: set[Any], actions: list[str]) -> Counter[tuple[str, bool]]:
    """How many units of each kind are right and wrong. A reading and its repetition are one needed unit and one
    needless one, whichever of the two has the credit."""
    found: Counter[tuple[str, bool]] = Counter()
    twins = {unit: unit - 1 for unit, mark in units.items() if mark == "repeat" and isinstance(unit, int)}
    paired = {*twins, *twins.values()}
    for unit, mark in units.items():
        if unit not in paired:
            found[mark, (unit in with_credit) == (mark in ("needed", "unmissed"))] += 1
    for repeat, first in twins.items():
        assert actions[repeat] == actions[first]
        credits = (repeat in with_credit) + (first in with_credit)
        found[units[first], credits > 0] += 1
        found["repeat", credits < 2] += 1
    return found


def measure(env_id: str, n: int, **kwargs: Any) -> dict[str, Any]:
    """The counts of ``n`` episodes of an environment, and the seeds of those that were credited wrongly."""
    env = RecordTrajectory(gym.make(env_id, disable_env_checker=True, max_turns=64, **kwargs))
    counts: dict[str, Counter[tuple[str, bool]]] = defaultdict(Counter)
    wrong: dict[str, list[int]] = defaultdict(list)
    episodes = failed = 0
    for seed in tqdm(range(n), desc=env_id):
        if (found := credited(env, seed)) is None:
            failed += 1
            continue
        episodes += 1
        for method, with_credit in found[1].items():
            counted = judged(found[0], with_credit, found[2])
            counts[method] += counted
            if any(not right for _, right in counted):
                wrong[method].append(seed)
        env.trajectories.clear()
    env.close()
    rows = {
        method: {kind: [counted[kind, False], counted[kind, True] + counted[kind, False]] for kind in KINDS}
        for method, counted in counts.items()
    }
    return {"episodes": episodes, "failed": failed, "wrong of": rows, "seeds": dict(wrong)}


def table(results: dict[str, Any]) -> str:
    """The rates as a table: wrong of all, and the share with its 95% interval for the two rates."""
    lines = [
        f"| environment | method | needed with u = 0 | needless with u > 0 | {' | '.join(NOISE)} | unmissed, u = 0 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for env_id, result in results.items():
        for method in METHODS:
            rows = result["wrong of"][method]
            needless = [sum(part) for part in zip(*(rows[kind] for kind in NOISE), strict=True)]
            counts = [f"{rows[kind][0]}/{rows[kind][1]}" if rows[kind][1] else "-" for kind in (*NOISE, "unmissed")]
            cells = [_rate(rows["needed"]), _rate(needless), *counts]
            lines.append(f"| {env_id} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(row: list[int]) -> str:
    wrong, of = row
    low, high = wilson_interval(wrong, of)
    return f"{wrong}/{of}: {wrong / max(1, of):.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    """Measure, environment by environment; those already in the file are left as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300, help="episodes an environment (300)")
    parser.add_argument("--envs", nargs="+", default=list(ENVIRONMENTS), choices=ENVIRONMENTS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/credit_truth.json"))
    options = parser.parse_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for env_id in options.envs:
        if env_id not in results:
            results[env_id] = measure(env_id, options.n)
            temporary = options.out.with_suffix(".part")
            temporary.write_text(json.dumps(results, indent=1) + "\n")
            temporary.replace(options.out)
    print(table(results))


if __name__ == "__main__":
    main()
