"""Every task of a real SQL data set through SQL-v0's verifier.

    python benchmarks/sql_defog.py PATH --out report.json

Each gold has to pass, alternatives included; ``SELECT 1`` and an empty submission have to fail. Pairs of different
tasks on one database whose golds pass for each other are counted: there the verifier cannot tell two questions apart.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import combinations
from typing import Any

import gymnasium as gym

from agent_gym import Call


def _submit(env: Any, task_id: str, query: str) -> dict[str, Any]:
    env.reset(seed=0, options={"task": task_id})
    *_, info = env.step(env.unwrapped.parser.render("", [Call("submit_sql", {"query": query})]))
    return info["verdict"]


def report(path: str) -> dict[str, Any]:
    """The verdicts on every task, and the pairs that pass for each other."""
    env = gym.make("SQL-v0", tasks=path)
    base: Any = env.unwrapped
    rows, by_database = [], defaultdict(list)
    for task_id in base.task_ids:
        env.reset(seed=0, options={"task": task_id})
        task = base.task
        by_database[task.world.database.key].append(task)
        golds = [_submit(env, task_id, gold) for gold in task.golds]
        env.reset(seed=0, options={"task": task_id})
        empty = env.step("")[-1]["verdict"]
        rows.append(
            {
                "task": task_id,
                "alternatives": len(golds),
                "golds_passed": sum(verdict["status"] == "pass" for verdict in golds),
                "select_1": _submit(env, task_id, "SELECT 1")["status"],
                "empty": empty["status"],
                "faults": [fault for verdict in golds for fault in verdict["diagnostics"]],
            }
        )
    pairs = []
    for tasks in by_database.values():
        for a, b in combinations(tasks, 2):
            both = (_submit(env, a.id, b.golds[0])["status"], _submit(env, b.id, a.golds[0])["status"])
            if both == ("pass", "pass"):
                pairs.append([a.id, b.id, a.request.splitlines()[0], b.request.splitlines()[0]])
    return {"tasks": rows, "left_out": base.left_out, "indistinguishable_pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="folder of the data set")
    parser.add_argument("--out", help="write the report to this JSON file")
    options = parser.parse_args()
    found = report(options.path)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
    rows = found["tasks"]
    for row in rows:
        sound = row["golds_passed"] == row["alternatives"] and row["select_1"] == row["empty"] == "fail"
        print(f"{row['task']:<24} {'sound' if sound else 'BROKEN'} {' | '.join(row['faults'][:2])}".rstrip())
    for task_id, reason in found["left_out"].items():
        print(f"{task_id:<24} left out: {reason}")
    for a, b, one, two in found["indistinguishable_pairs"]:
        print(f"pass for each other: {a} ({one}) and {b} ({two})")
    golds = sum(row["alternatives"] for row in rows)
    print(
        f"{len(rows)} tasks, {len(found['left_out'])} left out; golds passed: "
        f"{sum(row['golds_passed'] for row in rows)} of {golds}; SELECT 1 failed: "
        f"{sum(row['select_1'] == 'fail' for row in rows)}; empty failed: "
        f"{sum(row['empty'] == 'fail' for row in rows)}; pairs that pass for each other: "
        f"{len(found['indistinguishable_pairs'])}"
    )


if __name__ == "__main__":
    main()
