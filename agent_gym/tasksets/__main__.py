"""``python -m agent_gym.tasksets make``: draw the frozen sets that are not there yet, and see that the others stand."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from itertools import chain

import gymnasium as gym

from agent_gym.env import tool_env
from agent_gym.envs.splits import SPLITS
from agent_gym.tasksets import FOLDER, TaskSet

VERSIONS = {"APIAgent-v0": 1, "CodeAgent-v0": 1, "SQL-v0": 1, "WebLite-v0": 1}
"""Of an environment's sets; raised in the same commit that changes what its generator makes of their ids."""
TASKS, MINI = 500, 40
SPARE = 20
"""Tasks of a level drawn beyond those needed, for those that differ in nothing but their id."""


def draw(env_id: str, split: str, name: str) -> TaskSet:
    """The set of a split: every level of difficulty in turn, so that each beginning of the list is balanced."""
    columns = []
    levels = gym.make(env_id, split=split).unwrapped.levels  # type: ignore[attr-defined]
    most = math.ceil(TASKS / len(levels))
    for level in levels:
        env = tool_env(gym.make(env_id, split=split, difficulty=level))
        once = {digest: id for id, digest in reversed(env.task_list(most + SPARE))}  # the first of equal content
        columns.append([(id, digest) for digest, id in reversed(once.items())][:most])
    ids, hashes = zip(*list(chain(*zip(*columns, strict=True)))[:TASKS], strict=True)
    return TaskSet(name, env_id, ids, hashes, {"split": split})


def main() -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent_gym.tasksets", description=__doc__)
    parser.add_argument("command", choices=["make"])
    parser.parse_args()
    for env_id, version in VERSIONS.items():
        stem = env_id.rpartition("-")[0]
        found = [draw(env_id, split, f"{stem}-{split}-v{version}") for split in SPLITS]
        test, mini = found[-1], f"{stem}-mini-v{version}"
        found.append(replace(test, name=mini, task_ids=test.task_ids[:MINI], task_hashes=test.task_hashes[:MINI]))
        for task_set in found:
            path = FOLDER / f"{task_set.name}.json"
            if path.exists() and path.read_text(encoding="utf-8") != task_set.to_json():
                print(f"{task_set.name} is frozen, and would be other tasks now: raise its version", file=sys.stderr)
                return 1
            path.write_text(task_set.to_json(), encoding="utf-8")
            print(task_set.name, len(task_set.task_ids), task_set.fingerprint)
    return 0


if __name__ == "__main__":
    sys.exit(main())
