"""How fast WebLite-v0 plays and snapshots: in process against Chromium, in one run.

    python benchmarks/web_throughput.py --out web_throughput.json

Both backends play the same random actions on the same tasks; resets count. Snapshot and restore are measured on the
environment as ``gym.make`` wraps it. For Chromium a restore is only felt at the next action, which loads the page, so
restore + one look at the page stands beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym

from agent_gym import Call, restore, snapshot


def random_action(rng: random.Random, base: Any) -> str:
    """Something that the page offers."""
    elements = list(base._backend.show(base._world).elements.values())
    element = rng.choice(elements)
    if element.control.role == "textbox":
        call = Call("fill", {"element": element.number, "text": rng.choice(["a", "Ve", "3"])})
    elif element.control.role == "select":
        call = Call("select", {"element": element.number, "option": rng.choice(element.control.options)})
    else:
        call = Call("click", {"element": element.number})
    return base.parser.render("", [call])


def play(backend: str, steps: int) -> dict[str, float]:
    """Steps a second of random play."""
    env, rng = gym.make("WebLite-v0", backend=backend, disable_env_checker=True), random.Random(0)
    base: Any = env.unwrapped
    env.reset(seed=0)
    env.step(random_action(rng, base))  # the browser's start is not counted
    started, processor, resets = time.perf_counter(), time.process_time(), 0
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(random_action(rng, base))
        if terminated or truncated:
            env.reset()
            resets += 1
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    env.close()
    found: dict[str, float] = {"steps": steps, "resets": resets, "steps_per_second": steps / seconds}
    if backend == "dom":  # the browser works in processes of its own
        found["steps_per_processor_second"] = steps / processor
    return found


def _median_us(job: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        at = time.perf_counter()
        job()
        times.append(time.perf_counter() - at)
    return statistics.median(times) * 1e6


def snapshots(backend: str, rounds: int) -> dict[str, float]:
    """Median microseconds of snapshot + restore, and of a restore to another page and a look at it."""
    env = gym.make("WebLite-v0", backend=backend, difficulty=6, max_turns=10**6, disable_env_checker=True)
    base: Any = env.unwrapped
    env.reset(seed=0)
    look = base.parser.render("", [Call("look")])
    env.step(look)
    before = snapshot(env)
    env.step(base.parser.render("", [Call("go_to", {"path": "/nowhere"})]))
    after, turn = snapshot(env), iter(range(10**9))

    def return_and_look() -> None:
        restore(env, (before, after)[next(turn) % 2])
        env.step(look)

    found = {
        "snapshot_restore_us": _median_us(lambda: restore(env, snapshot(env)), 500),
        "restore_and_look_us": _median_us(return_and_look, rounds),
    }
    env.close()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000, help="steps of random play in process")
    parser.add_argument("--browser-steps", type=int, default=200, help="steps of random play in Chromium")
    parser.add_argument("--out", help="write the figures to this JSON file")
    args = parser.parse_args(arguments)
    figures: dict[str, Any] = {"python": platform.python_version()}
    for backend, steps, rounds in (("dom", args.steps, 500), ("chromium", args.browser_steps, 30)):
        figures[backend] = {"random_play": play(backend, steps), "snapshot": snapshots(backend, rounds)}
    text = json.dumps(figures, indent=2)
    print(text)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
