"""How fast APIAgent-v0 plays, snapshots and replays, on one core.

    python benchmarks/throughput.py --out throughput.json

Random play draws a tool of the task and arguments from the ids in the world (one in five a made-up id); resets count.
Snapshots are measured on the environment as ``gym.make`` wraps it, against ``copy.deepcopy(env)`` in the same run.
Counterfactuals delete each step of oracle trajectories and of wasteful ones (every call made twice, and a scan first).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from agent_gym import Call, Delete, ToolCache, Trajectory, counterfactuals, restore, snapshot
from agent_gym.tools import Tool
from agent_gym.wrappers import RecordTrajectory

Kinds = list[tuple[Tool, list[tuple[str, Any]]]]


def _kinds(tools: dict[str, Tool]) -> Kinds:
    """Each tool with the values its parameters choose from: "id", "ids", or a list of literals."""
    kinds = []
    for tool in tools.values():
        parameters = json.loads(tool.schema_json)["function"]["parameters"]["properties"]
        fields = [
            (n, s.get("enum") or {"array": "ids", "string": "id"}.get(s.get("type"))) for n, s in parameters.items()
        ]
        if all(kind for _, kind in fields):
            kinds.append((tool, fields))
    return kinds


def _random_action(rng: random.Random, env: Any, kinds: Kinds, ids: list[str]) -> str:
    def identifier() -> str:
        return rng.choice(ids) if rng.random() < 0.8 else f"X{rng.randrange(10_000)}"

    tool, fields = kinds[int(rng.random() * len(kinds))]
    arguments = {}
    for name, kind in fields:
        arguments[name] = identifier() if kind == "id" else [identifier()] if kind == "ids" else rng.choice(kind)
    return env.parser.render("", [Call(tool.name, arguments)])


def random_play(steps: int, seed: int = 0) -> dict[str, float]:
    """Steps a second of random valid calls, resets included."""
    env, rng = gym.make("APIAgent-v0", domains=["shop"]), random.Random(seed)
    base: Any = env.unwrapped
    env.reset(seed=seed)
    kinds, resets = _kinds(base.task.tools), 0
    ids = [key for table in base.task.world.tables.values() for key in table]
    started, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        action = _random_action(rng, base, kinds, ids)
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
            resets += 1
            ids = [key for table in base.task.world.tables.values() for key in table]
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return {
        "steps": steps,
        "resets": resets,
        "steps_per_second": steps / seconds,
        "steps_per_processor_second": steps / processor,
    }


def _median_us(job: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        at = time.perf_counter()
        job()
        times.append(time.perf_counter() - at)
    return statistics.median(times) * 1e6


def snapshots(rounds: int = 3000) -> dict[str, Any]:
    """Median microseconds of snapshot + restore and of a deep copy, at the start and after 100 row updates."""
    env = gym.make("APIAgent-v0", domains=["shop"], difficulty=6, max_turns=1000)
    base: Any = env.unwrapped
    env.reset(seed=0)
    customers = [row.id for row in base.task.world.tables["customers"].values() if row.tier != "gold"]
    found = {}
    for label in ("fresh", "after_100_updates"):
        ours = _median_us(lambda: restore(env, snapshot(env)), rounds)
        deep = _median_us(lambda: copy.deepcopy(env), max(20, rounds // 100))
        found[label] = {"snapshot_restore_us": ours, "deepcopy_us": deep, "times_faster": deep / ours}
        for n in range(100 if label == "fresh" else 0):
            arguments = {
                "customer_id": customers[n % len(customers)],
                "tier": ("silver", "basic")[n // len(customers) % 2],
            }
            env.step(base.parser.render("", [Call("set_tier", arguments)]))
    return found


def record(tasks: int) -> tuple[gym.Env, list[Trajectory]]:
    """Oracle and wasteful trajectories of the same tasks."""
    env = RecordTrajectory(gym.make("APIAgent-v0", domains=["shop"], difficulty=[2, 6], max_turns=32))
    base: Any = env.unwrapped
    for seed in range(tasks):
        env.reset(seed=seed)
        oracle = base.oracle()
        scan = base.parser.render("", [Call("list_orders")])
        wasteful = [scan, *(action for action in oracle[:-1] for _ in range(2)), oracle[-1]]
        for actions in (oracle, wasteful):
            env.reset(seed=seed)
            for action in actions:
                env.step(action)
    return env, env.trajectories


class HistoryCache:
    """The baseline: answers by (task, all calls so far), a prefix tree. Looks up what ToolCache looks up."""

    def __init__(self) -> None:
        self.hits, self.misses = 0, 0
        self.known: set[tuple[str, ...]] = set()

    def look_up(self, key: tuple[str, ...]) -> None:
        """Count a hit or a miss, and remember."""
        self.hits += key in self.known
        self.misses += key not in self.known
        self.known.add(key)

    @property
    def hit_rate(self) -> float:
        """Share of look-ups that were hits."""
        return self.hits / max(1, self.hits + self.misses)


def hit_rates(env: gym.Env, trajectories: list[Trajectory]) -> dict[str, float]:
    """Both caches on the same look-ups: each Delete(t), with the suffix re-issued literally."""
    base: Any = env.unwrapped
    state, history = ToolCache(), HistoryCache()
    for trajectory in trajectories:
        counterfactuals(
            env, trajectory, [Delete(t) for t in range(len(trajectory.steps) - 1)], grounding=False, cache=state
        )
        calls = [
            [f"{call.name}{json.dumps(call.arguments, sort_keys=True)}" for call in base.read(step.action).calls]
            for step in trajectory.steps
        ]
        flat = [(t, call) for t, turn in enumerate(calls) for call in turn]
        runs = [(flat, 0)]  # the re-execution that makes the snapshots, then each replay from where it differs
        runs += [([(t, c) for t, c in flat if t != gone], gone) for gone in range(len(calls) - 1)]
        for run, start in runs:
            for n, (t, _) in enumerate(run):
                if t >= start:
                    history.look_up((trajectory.task_id, *(call for _, call in run[: n + 1])))
    looked = {"state": state.hits + state.misses, "history": history.hits + history.misses}
    if looked["state"] != looked["history"]:
        raise RuntimeError(f"the caches did not see the same look-ups: {looked}")
    return {"lookups": looked["state"], "state_hash": state.hit_rate, "history_prefix": history.hit_rate}


def replays(tasks: int = 60) -> dict[str, Any]:
    """Grounded counterfactuals a second, with and without the cache, and the caches' hit rates."""
    env, trajectories = record(tasks)
    found: dict[str, Any] = {"trajectories": len(trajectories)}
    for label in ("without_cache", "with_cache"):
        cache = ToolCache() if label == "with_cache" else None
        count, started = 0, time.perf_counter()
        for trajectory in trajectories:
            interventions = [Delete(t) for t in range(len(trajectory.steps))]
            count += len(counterfactuals(env, trajectory, interventions, cache=cache))
        found["counterfactuals"] = count
        found[f"per_second_{label}"] = count / (time.perf_counter() - started)
    found["hit_rate"] = hit_rates(env, trajectories)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="steps of random play")
    parser.add_argument("--tasks", type=int, default=60, help="tasks of the replays")
    parser.add_argument("--out", help="write the figures to this JSON file")
    args = parser.parse_args()
    figures = {
        "python": platform.python_version(),
        "random_play": random_play(args.steps),
        "snapshot": snapshots(),
        "replay": replays(args.tasks),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
