"""How fast SQL-v0 plays, and what its snapshots cost beside copying the database.

    python benchmarks/sql_throughput.py --out sql_throughput.json

A database of the given size is made in a temporary folder. Snapshot and restore are measured on it as it is, and after
100 rows were updated; there, restoring includes one query, which is what brings the connection back to the world.
Copying is ``sqlite3.Connection.backup`` into memory and ``shutil.copyfile``, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_gym import Call, restore, snapshot
from agent_gym.envs.sql_agent.database import Database
from agent_gym.envs.sql_agent.world import World


def make_database(path: Path, megabytes: int) -> int:
    """A database of about that size; returns its size in bytes."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE reading (id INTEGER PRIMARY KEY, sensor INTEGER, value REAL, note TEXT)")
    count = megabytes * 1_000_000 // 117
    rows = ((n, n % 997, n / 7, f"reading {n} ".ljust(90, "x")) for n in range(1, count + 1))
    db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?)", rows)
    db.commit()
    db.close()
    return path.stat().st_size


def _median_us(job: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        at = time.perf_counter()
        job()
        times.append(time.perf_counter() - at)
    return statistics.median(times) * 1e6


def snapshots(folder: Path, megabytes: int) -> dict[str, Any]:
    """Median microseconds of snapshot + restore, and of copying the database."""
    path = folder / "database" / "big" / "big.sqlite"
    path.parent.mkdir(parents=True)
    size = make_database(path, megabytes)
    record = {"db_id": "big", "question": "How many?", "query": "SELECT value FROM reading WHERE id = 7"}
    (folder / "dev.json").write_text(json.dumps([record]))
    env = gym.make("SQL-v0", tasks=str(folder), max_turns=1_000_000, disable_env_checker=True)
    base: Any = env.unwrapped
    env.reset(seed=0)
    look = base.parser.render("", [Call("run_sql", {"query": "SELECT value FROM reading WHERE id = 7"})])
    env.step(look)

    def copy() -> None:
        source, target = sqlite3.connect(path), sqlite3.connect(":memory:")
        source.backup(target)
        source.close()
        target.close()

    copied = _median_us(copy, 5)
    found: dict[str, Any] = {
        "database_bytes": size,
        "copy_into_memory_us": copied,
        "copy_file_us": _median_us(lambda: shutil.copyfile(path, folder / "copy"), 5),
        "read_only": {"snapshot_restore_us": _median_us(lambda: restore(env, snapshot(env)), 2000)},
    }
    read_only = found["read_only"]

    def and_a_query() -> None:
        restore(env, snapshot(env))
        env.step(look)

    read_only["with_a_query_us"] = _median_us(and_a_query, 300)

    world = World(Database(path=str(path)), writable=True)
    at = time.perf_counter()
    _ = world.session
    opened = (time.perf_counter() - at) * 1e6
    changed = world.apply(world.run("UPDATE reading SET value = -1 WHERE id <= 100", write=True).changes)
    base._world = world
    before = snapshot(env)
    base._world = changed
    after = snapshot(env)

    def there_and_back() -> None:
        restore(env, after)
        base._world.run("SELECT value FROM reading WHERE id = 7")
        restore(env, before)
        base._world.run("SELECT value FROM reading WHERE id = 7")

    found["after_100_rows"] = {
        "opened_once_us": opened,
        "rows_kept": len(changed.delta),
        "snapshot_restore_us": _median_us(lambda: restore(env, snapshot(env)), 2000),
        "restore_other_world_with_a_query_us": _median_us(there_and_back, 50) / 2,
    }
    for part, key in (
        ("read_only", "snapshot_restore_us"),
        ("read_only", "with_a_query_us"),
        ("after_100_rows", "snapshot_restore_us"),
        ("after_100_rows", "restore_other_world_with_a_query_us"),
    ):
        found[part][f"copy_over_{key.removesuffix('_us')}"] = copied / found[part][key]
    return found


def play(steps: int) -> dict[str, dict[str, float]]:
    """Steps a second of oracle play, by difficulty; composing the tasks counts, and is given alone."""
    found = {}
    for level in (1, 3, 5):
        env = gym.make("SQL-v0", difficulty=level, disable_env_checker=True)
        base: Any = env.unwrapped
        env.reset(seed=level)
        count, resets, composing = 0, 0, 0.0
        started = time.process_time()
        while count < steps:
            at = time.process_time()
            env.reset()
            composing += time.process_time() - at
            resets += 1
            for action in base.oracle():
                env.step(action)
                count += 1
        seconds = time.process_time() - started
        found[str(level)] = {
            "steps_per_processor_second": count / seconds,
            "without_resets": count / (seconds - composing),
            "reset_ms": composing / resets * 1000,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50, help="size of the database (50)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of play at each difficulty (1000)")
    parser.add_argument("--out", help="write the figures to this JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "processors": os.cpu_count(),
            "play": play(options.steps),
            "snapshot": snapshots(Path(folder), options.megabytes),
        }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
