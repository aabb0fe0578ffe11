"""Steps a second of environments in Ray workers, against threads of this process, in one run.

The oracle plays CodeAgent-v0 with a verifier that sleeps, as one does that waits for a test suite: so a few cores show
how many workers can do. What a step costs beside the sleep is given for APIAgent-v0, whose tools take no time.

    pip install 'agent-gym[ray]'
    python benchmarks/ray_throughput.py      # writes benchmarks/ray_throughput.json
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import gymnasium as gym
import ray

from agent_gym import Verdict, tool_env
from agent_gym.envs.code_agent.env import CodeAgentEnv
from agent_gym.files import write
from agent_gym.remote import RayEnvs, RayExecutor


class Sleeping(CodeAgentEnv):
    """Its tests take as long as they are told, and pass."""

    pause = 0.25

    def _judged(self, number: str | int | None) -> Verdict:
        time.sleep(self.pause)
        return Verdict("pass", "passed", 1.0)


gym.register("SleepingCode-v0", entry_point=Sleeping, disable_env_checker=True)


def made(env_id: str, count: int) -> list[gym.Env]:
    kwargs: dict[str, Any] = {"sandbox": "process"} if env_id == "SleepingCode-v0" else {}
    return [gym.make(env_id, on_budget="record", **kwargs) for _ in range(count)]


def played(envs: Sequence[gym.Env], episodes: int, threads: int) -> dict[str, float]:
    """The oracle's episodes, as many at a time as threads."""
    free: SimpleQueue[gym.Env] = SimpleQueue()
    for env in envs:
        free.put(env)

    def episode(seed: int) -> tuple[int, bool]:
        steps = 0
        env = free.get()
        env.reset(seed=seed)
        for action in tool_env(env).oracle():
            steps += 1
            *_, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        free.put(env)
        return steps, info["verdict"]["status"] == "pass"

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(episode, range(episodes)))
    took = time.perf_counter() - begun
    if not all(passed for _, passed in found):
        raise RuntimeError("the oracle failed: nothing was measured")
    steps = sum(steps for steps, _ in found)
    return {"episodes": episodes, "steps": steps, "seconds": took, "steps a second": steps / took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--address", help="of a cluster; by default one is started here")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    ray.init(address=options.address, include_dashboard=None if options.address else False, log_to_driver=False)
    result: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "ray": ray.__version__, "rows": []}
    for workers in options.workers:
        with RayExecutor(workers) as executor:
            for env_id in ("APIAgent-v0", "SleepingCode-v0"):
                envs = made(env_id, workers)
                local = played(envs, options.episodes, workers)
                far = RayEnvs(envs, executor)
                played(far, workers, workers)  # each worker makes its environment
                row = {
                    "env_id": env_id,
                    "workers": workers,
                    "threads": local,
                    "ray": played(far, options.episodes, workers),
                }
                result["rows"].append(row)
                print(json.dumps(row))
    write(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
