"""Run the cells of the tables that have no result yet, the most valuable first.

    python -m benchmarks.tables.sweep --table main --env APIAgent-v0 --workers 2

Each cell is one run of a trainer on one core, in a folder that is deleted afterwards; what the report needs of it stays
in benchmarks/results/tables/TABLE/ENV/METHOD__BUDGET__seedK.json. A cell that fails leaves METHOD__...failed.json with
its last line, is no result, and is left alone until ``--retry``. A sweep that is stopped goes on where it was.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

import gymnasium as gym

from agent_gym import CHANNELS, Trajectory, read_trajectories, tool_env
from agent_gym.files import write
from agent_gym.lm.runs import read_lines
from agent_gym.metrics import distinct_call_sequences

from .cells import ENVS, ROOT, STARTS, Cell, cells, wasteful_start

RESULTS = ROOT / "benchmarks" / "results" / "tables"
SPLITS = ("validation", "test")
SERIES = ("charts/", "cost/", "violation/", "lambda/", "credit/", "conflict/", "seconds/", "validation/")
PACKAGES = ("agent-gym", "gymnasium", "numpy", "torch", "transformers")


def keep(path: Path, data: Any) -> None:
    """As one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n")


def short(value: Any) -> Any:
    """Numbers of five digits, whatever they stand in."""
    if isinstance(value, list):
        return [short(one) for one in value]
    if not isinstance(value, float):
        return value
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() else rounded


# ---- what stays of a run ----


def collect(folder: Path) -> dict[str, Any]:
    """What the report needs of a run folder.

    Returns:
        ``args``; ``generated_tokens``; ``bounds`` of the test's episodes; ``series``, a list over the iterations by
        metric, null where it was not logged; ``tested`` by split, see :func:`tested`; ``credits`` of the episodes whose
        credits were logged.
    """
    rows = read_lines(folder / "metrics.jsonl")
    names = sorted({name for row in rows for name in row if name.startswith(SERIES)})
    played = {split: list(read_trajectories(folder / "trajectories" / f"{split}_final.jsonl")) for split in SPLITS}
    args = json.loads((folder / "args.json").read_text(encoding="utf-8"))
    return {
        "args": {name: value for name, value in args.items() if name != "run_dir"},
        "generated_tokens": json.loads((folder / "result.json").read_text(encoding="utf-8"))["generated_tokens"],
        "bounds": played[SPLITS[0]][0].env_kwargs["budget"],
        "series": {name: [short(row.get(name)) for row in rows] for name in names},
        "tested": {split: tested(episodes) for split, episodes in played.items()},
        "credits": [credit(row) for row in read_lines(folder / "credits.jsonl")],
    }


def tested(episodes: list[Trajectory]) -> dict[str, Any]:
    """The outcomes of a split's tasks, in the order in which they were played.

    Returns:
        ``tasks``, a digest of which they are; ``samples`` of each; ``passed``, 0 or 1 an episode, null without a
        verdict; ``within`` its budget, 0 or 1; ``costs`` of each by channel; ``oracle``, calls of the oracle by task;
        ``ways`` and ``solutions``, different sequences of calls of each task, and of its successes.
    """
    of: dict[int | None, list[Trajectory]] = {}
    for episode in episodes:
        of.setdefault(episode.seed, []).append(episode)
    samples = min(map(len, of.values()))
    groups = [own[:samples] for own in of.values()]
    first, kept = episodes[0], [episode for own in groups for episode in own]
    kwargs = json.dumps({k: v for k, v in first.env_kwargs.items() if k not in ("budget", "on_budget")})
    return {
        "tasks": hashlib.sha256(repr([own[0].task_id for own in groups]).encode()).hexdigest()[:12],
        "samples": samples,
        "passed": [None if one.reward is None else int(one.success) for one in kept],
        "within": [int(not one.violates(one.env_kwargs["budget"])) for one in kept],
        "costs": {k: [round(one.cost_total[k]) for one in kept] for k in CHANNELS},
        "oracle": oracle_calls(first.env_id, kwargs, tuple(of)),
        "ways": [distinct_call_sequences(own) for own in groups],
        "solutions": [distinct_call_sequences(one for one in own if one.success) for own in groups],
    }


@lru_cache
def oracle_calls(env_id: str, kwargs: str, seeds: tuple[int | None, ...]) -> list[int]:
    """Calls of the oracle for each task; ``kwargs`` are those of the environment, as JSON."""
    env = gym.make(env_id, disable_env_checker=True, **json.loads(kwargs))
    base, calls = tool_env(env), []
    for seed in seeds:
        env.reset(seed=seed)
        calls.append(sum(len(base.read(action).calls) for action in base.oracle()))
    env.close()
    return calls


def credit(row: dict[str, Any]) -> dict[str, Any]:
    """A row of credits.jsonl without its words."""
    return {name: short(value) for name, value in row.items() if name not in ("task_id", "steps")}


# ---- running ----


def commit() -> str:
    """The commit of this checkout, with a plus where the code differs from it."""

    def git(*line: str) -> str:
        return subprocess.run(["git", *line], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "agent_gym", "cleanrl_llm")
    return git("rev-parse", "HEAD") + ("+" if changed else "")


def make_start(env: str, runs: Path) -> None:
    """Make the wasteful policy of an environment, unless it is there."""
    start = ROOT / STARTS / env
    if start.exists():
        return
    print(f"making the wasteful start of {env}", flush=True)
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="start__", dir=runs))
    line = [sys.executable, *wasteful_start(env), "--run-dir", str(folder)]
    subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    (made,) = folder.glob("*/checkpoints/start")
    start.parent.mkdir(parents=True, exist_ok=True)
    if not start.exists():  # another sweep may have made it meanwhile
        made.rename(start)
    shutil.rmtree(folder)


class Work:
    """A cell that is running."""

    def __init__(self, cell: Cell, runs: Path, smoke: bool) -> None:
        if cell.start and not smoke:
            make_start(cell.env, runs)
        runs.mkdir(parents=True, exist_ok=True)
        self.cell, self.began, self.commit = cell, time.time(), commit()
        self.folder = Path(tempfile.mkdtemp(prefix=cell.path.replace("/", "__") + "__", dir=runs))
        self.command = cell.command(smoke)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / "log.txt").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command, "--run-dir", str(self.folder / "runs")],
                stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

    def finish(self, results: Path) -> str:
        """Write the result, or how it failed. Returns what to say of it."""
        path = results / f"{self.cell.path}.json"
        failed = path.with_suffix(".failed.json")
        seconds = time.time() - self.began
        about = {
            "cell": vars(self.cell), "command": self.command, "commit": self.commit,
            "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
            "wall_seconds": round(seconds),
        }  # fmt: skip
        if self.process.returncode:
            said = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
            error = said.splitlines()[-1] if said else f"exit status {self.process.returncode}"
            keep(failed, about | {"error": error.replace(str(ROOT), ".")})
            return f"failed: {error}"
        (run,) = (self.folder / "runs").iterdir()
        found = collect(run)
        keep(path, about | found)
        failed.unlink(missing_ok=True)
        passed = [one or 0 for one in found["tested"]["validation"]["passed"]]
        return f"validation success {sum(passed) / len(passed):.2f}, {seconds:.0f} s"

    def stop(self) -> None:
        """End its processes, if they have not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def sweep(
    todo: Sequence[Cell], workers: int, results: Path, runs: Path, *, keep: bool, smoke: bool, stop: Event
) -> None:
    """Run cells side by side. Whatever ends it, the runs that go on are stopped and nothing is half-written.

    Args:
        todo: In this order.
        workers: How many at a time.
        results: Folder of the result files.
        runs: Where the run folders are.
        keep: Leave them there.
        smoke: See :meth:`Cell.command`.
        stop: Ends it.
    """
    queue, running, done = list(todo), list[Work](), 0
    try:
        while (queue or running) and not stop.wait(0.2):
            while queue and len(running) < workers:
                running.append(Work(queue.pop(0), runs, smoke))
            for work in [work for work in running if work.process.poll() is not None]:
                done += 1
                print(f"{done}/{len(todo)} {work.cell.path}: {work.finish(results)}", flush=True)
                running.remove(work)
                if not keep:
                    shutil.rmtree(work.folder)
    finally:
        for work in running:
            work.stop()
            shutil.rmtree(work.folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags and run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", choices=["tune", "wasteful", "main", "modes", "ablations", "passk"], help="of this table only"
    )
    parser.add_argument("--env", choices=ENVS, help="of this environment only")
    parser.add_argument("--budget", choices=["tight", "medium", "loose"], help="of this budget only")
    parser.add_argument("--seeds", type=int, nargs="+", help="of these seeds only")
    parser.add_argument("--only", nargs="+", help="of these methods only")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--keep", action="store_true", help="leave the run folders in runs/tables")
    parser.add_argument("--smoke", action="store_true", help="a few episodes of a small model that has learnt nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(argv)
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    results, todo = options.results.resolve(), []
    for cell in cells():
        path = results / f"{cell.path}.json"
        asked = (
            options.table in (None, cell.table) and options.env in (None, cell.env)
            and options.budget in (None, cell.budget)
            and cell.seed in (options.seeds or [cell.seed]) and cell.method in (options.only or [cell.method])
        )  # fmt: skip
        left_alone = path.with_suffix(".failed.json").exists() and not options.retry
        if asked and not path.exists() and not left_alone:
            todo.append(cell)
    print(f"{len(todo)} cells to run", flush=True)
    runs = ROOT / "runs" / "tables"
    sweep(todo, options.workers, results, runs, keep=options.keep, smoke=options.smoke, stop=stop)
    if stop.is_set():
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
