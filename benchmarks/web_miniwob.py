"""Which tasks of MiniWoB++ load, are seeded, show elements and give their own reward, and which a script solves.

    python benchmarks/web_miniwob.py --out web_miniwob.json

For each task: a random agent plays until the page ends the task and says what it is worth, on two seeds, and on the
first of them twice: the page and then the whole episode must be the same again, and other on the other seed. Then every
scripted solver plays its task on some seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from miniwob_solvers import SOLVERS, solve

from agent_gym import Call

TURNS = 15
"""Of a random episode."""
SOLVER_TURNS = 500


def random_episode(env: gym.Env, task_id: str, seed: int) -> tuple[list[str], dict[str, Any]]:
    """What a random agent sees, and the verdict: it clicks, types and drags until the page ends the task."""
    base: Any = env.unwrapped
    rng = random.Random(seed)
    seen = [env.reset(seed=0, options={"task": task_id})[0]]
    for turn in range(TURNS):
        screen = base._world
        if screen.done:
            break
        numbers = [int(n) for n in re.findall(r"^\[(\d+)\]", screen.text, re.MULTILINE)]
        buttons = [int(n) for n in re.findall(r"^\[(\d+)\] button", screen.text, re.MULTILINE)]
        fields = [int(n) for n in re.findall(r"^\[(\d+)\] (?:input|textarea)\S* (?:text|password)", screen.text, re.M)]
        if fields and rng.random() < 0.3:
            call = Call("fill", {"element": rng.choice(fields), "text": rng.choice(["a", "7", "Paris"])})
        elif not numbers or rng.random() < 0.15:
            places = [rng.randrange(5, 155) for _ in range(4)]
            keys = ("x", "y", "to_x", "to_y")
            call = Call("drag", {k: v + 50 * k.endswith("y") for k, v in zip(keys, places, strict=True)})
        else:  # the buttons that end most tasks, more and more often
            call = Call(
                "click", {"element": rng.choice(buttons if buttons and rng.random() * TURNS < turn else numbers)}
            )
        seen.append(env.step(base.parser.render("", [call]))[0])
    done = base._world.done
    *_, info = env.step("Done.")
    return [*seen, str(base._world.reward)], {**info["verdict"], "done": done, "reward": base._world.reward}


def look_at(env: gym.Env, name: str) -> dict[str, Any]:
    """One task's row."""
    row: dict[str, Any] = {"task": name}
    try:
        runs = [random_episode(env, f"{name}-{seed}", seed) for seed in (1, 1, 2)]
        (first, _), (again, _), (other, _) = runs
        row["loads"] = True
        row["elements"] = len(re.findall(r"^\[\d+\]", first[0], re.MULTILINE))
        row["seeded"], row["repeats"] = first[0] == again[0], first == again
        row["varies"] = first[0] != other[0] or env.reset(options={"task": f"{name}-3"})[0] != first[0]
        row["rewards"] = [verdict["reward"] for _, verdict in runs[1:] if verdict["done"]]
    except Exception as error:  # a page that breaks is a row of the report
        row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return row


def solved_seeds(env: gym.Env, name: str, seeds: int) -> int:
    """On how many seeds a script solves a task."""
    passed = 0
    for seed in range(seeds):
        try:
            passed += solve(env, name, seed)["status"] == "pass"
        except (LookupError, RuntimeError, StopIteration, ValueError):  # the script did not find what it looked for
            continue
    return passed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each scripted solver (5)")
    parser.add_argument("--tasks", nargs="*", help="only these tasks")
    parser.add_argument("--out", help="write the rows to this JSON file; what it has already is not run again")
    args = parser.parse_args(arguments)
    started, old = time.time(), {}
    if args.out and Path(args.out).exists():
        old = json.loads(Path(args.out).read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {row["task"]: row for row in old.get("rows", [])}
    solved: dict[str, int] = old.get("solved", {})
    env, long = (
        gym.make("WebLite-v0", tasks="miniwob", max_turns=turns, disable_env_checker=True)
        for turns in (TURNS + 2, SOLVER_TURNS)
    )
    for name in args.tasks or env.unwrapped.sites:  # type: ignore[attr-defined]
        if name in SOLVERS and name not in solved:
            solved[name] = solved_seeds(long, name, args.seeds)
            print(f"{name:<28} solved on {solved[name]} of {args.seeds} seeds", file=sys.stderr, flush=True)
        if name not in rows:
            rows[name] = look_at(env, name)
            print(" ".join(f"{key}={value}" for key, value in rows[name].items()), file=sys.stderr, flush=True)
        count = {
            "tasks": len(rows),
            "load": sum(row.get("loads", False) for row in rows.values()),
            "show_elements": sum(row.get("elements", 0) > 0 for row in rows.values()),
            "same_seed_same_page": sum(row.get("seeded", False) for row in rows.values()),
            "other_seed_other_page": sum(row.get("varies", False) for row in rows.values()),
            "same_actions_same_episode": sum(row.get("repeats", False) for row in rows.values()),
            "reward_seen_in_random_play": sum(bool(row.get("rewards")) for row in rows.values()),
            "solved_on_all_seeds": sum(passed == args.seeds for passed in solved.values()),
            "seconds": old.get("count", {}).get("seconds", 0) + round(time.time() - started),
        }
        if args.out:
            text = json.dumps({"count": count, "solved": solved, "rows": list(rows.values())}, indent=1)
            Path(args.out).write_text(text + "\n", encoding="utf-8")
    env.close()
    long.close()
    print(json.dumps(count, indent=1))


if __name__ == "__main__":
    main()
