"""Does plain GRPO trade pass@16 for pass@1, and what do balanced, pcgrad and the baselines change?

Every run starts from the ready-made policy of APIAgent-v0, generates the same number of tokens, calibration included,
and is tested on the same tasks with 16 episodes each. Groups are task types, which need no calibration, but in (c). A
run that collapses stays in the table.

    (a) plain GRPO: pass@1, pass@16 and diversity, before and after
    (b) GRPO with balanced, with pcgrad at three thresholds, and every baseline; the strongest baseline is the one with
        the highest mean pass@16 over the seeds
    (c) pcgrad by task type, difficulty and pattern, with 2, 4 and 8 groups

    python benchmarks/grpo_passk.py run       # resumes: finished runs are skipped
    python benchmarks/grpo_passk.py report    # writes benchmarks/grpo_passk.json, docs/grpo_passk.md and .png

Intervals are of the mean over the seeds, by bootstrap over seeds and tasks together. Differences to plain GRPO are
paired by seed and task.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import trainer_runs
from tqdm import tqdm

from agent_gym import Trajectory, read_trajectories
from agent_gym.files import write
from agent_gym.metrics import by_task, distinct_call_sequences, pass_at_k

ROOT = Path(__file__).parent.parent
TRAINER = ROOT / "cleanrl_llm" / "grpo_pcgrad.py"
TOKENS, TASKS = 60_000, 64
BASELINES = ("dr-grpo", "clip-higher", "resample", "pass-at-k", "unique")
RUNS: dict[str, tuple[str, ...]] = {
    # stats updates as none does, to the bit, and measures
    "grpo": ("--surgery", "stats"),
    "balanced": ("--surgery", "balanced"),
    **{f"pcgrad, tau {tau}": ("--surgery", "pcgrad", "--tau", tau) for tau in ("0", "0.05", "0.2")},
    **{method: ("--surgery", "none", "--method", method) for method in BASELINES if method != "clip-higher"},
    "clip-higher": ("--surgery", "none", "--method", "clip-higher", "--num-minibatches", "2"),  # one step clips nothing
    **{
        f"pcgrad, {groups} by {by}": ("--surgery", "pcgrad", "--group-by", by, "--groups", groups)
        for by in ("task-type", "difficulty", "pattern")
        for groups in ("2", "4", "8")
        if (by, groups) != ("task-type", "4")  # that is "pcgrad, tau 0.05"
    },
}
COMMON = ("--group-by", "task-type", "--groups", "4", "--pool-tasks", "64", "--calibration-samples", "2")
FIGURES = ("pass@1", "pass@4", "pass@8", "pass@16", "different call sequences", "different solutions")


def start(seed: int, options: argparse.Namespace) -> tuple[str, ...]:
    """The flags that all runs of a seed share."""
    tests = ("--eval-tasks", str(options.tasks), "--eval-every", "0", "--no-eval-start", "--device", "cpu")
    return ("--seed", str(seed), *tests, *COMMON)


def untrained(out: Path, seed: int, options: argparse.Namespace) -> Path:
    """The test of the start with a seed's draws."""
    return trainer_runs.launch(
        out / "start" / str(seed), TRAINER, *start(seed, options), "--total-iterations", "0", "--surgery", "none"
    )


def job(out: Path, name: str, seed: int, options: argparse.Namespace) -> Path:
    return trainer_runs.launch(
        out / name.replace(" ", "_").replace(",", "") / str(seed), TRAINER, *start(seed, options), *RUNS[name],
        "--total-iterations", "1000", "--total-tokens", str(options.tokens),
        "--checkpoint-every", "1000", "--log-every", "1000",
    )  # fmt: skip


def run(out: Path, options: argparse.Namespace) -> None:
    with ThreadPoolExecutor(options.workers) as pool:
        list(tqdm(pool.map(lambda s: untrained(out, s, options), options.seeds), "starts", len(options.seeds)))
        jobs = [(name, seed) for name in options.only for seed in options.seeds]
        list(tqdm(pool.map(lambda j: job(out, j[0], j[1], options), jobs), "runs", len(jobs)))


def figures(trajectories: list[Trajectory]) -> np.ndarray:
    """FIGURES of every test task: shape [tasks, figures]; tasks in order, NaN where a verdict is missing."""
    rows, judged = [], by_task(trajectories)
    for task in sorted({(t.env_id, t.task_id) for t in trajectories}):
        own = judged.get(task, [])
        n, c = len(own), sum(t.success for t in own)
        solved = [t for t in own if t.success]
        rates = [pass_at_k(n, c, k) if n >= k else np.nan for k in (1, 4, 8, 16)]
        ways = [distinct_call_sequences(own), distinct_call_sequences(solved)] if own else [np.nan, np.nan]
        rows.append([*rates, *ways])
    return np.array(rows, dtype=float)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of ``values``, shape [seeds, tasks], and its 95% interval by bootstrap over seeds and tasks."""
    rng = np.random.default_rng(0)
    seeds, tasks = values.shape
    draws = [
        _mean(values[np.ix_(rng.integers(seeds, size=seeds), rng.integers(tasks, size=tasks))]) for _ in range(2000)
    ]
    low, high = np.nanquantile(draws, [0.025, 0.975]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return _mean(values), float(low), float(high)


def _mean(values: np.ndarray) -> float:
    """Mean of what is there; NaN of nothing."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def report(out: Path, options: argparse.Namespace) -> None:
    """benchmarks/grpo_passk.json, docs/grpo_passk.md and docs/grpo_passk.png, from the finished runs."""

    def tested(folder: Path) -> np.ndarray:
        return figures(list(read_trajectories(folder / "trajectories" / "test_final.jsonl")))

    found = {"start": np.stack([tested(untrained(out, seed, options)) for seed in options.seeds])}
    for name in options.only:
        found[name] = np.stack([tested(job(out, name, seed, options)) for seed in options.seeds])
    rates = {}
    for name in options.only:
        curves = [trainer_runs.metrics(job(out, name, seed, options)) for seed in options.seeds]
        measured = [row["conflict/rate"] for curve in curves for row in curve if "conflict/rate" in row]
        rates[name] = float(np.mean(measured)) if measured else None
    table = {
        name: {figure: interval(values[:, :, i]) for i, figure in enumerate(FIGURES)} for name, values in found.items()
    }
    apart = {}
    if "grpo" in found:
        others = {name: values - found["grpo"] for name, values in found.items() if name != "grpo"}
        apart = {
            name: {figure: interval(values[:, :, i]) for i, figure in enumerate(FIGURES)}
            for name, values in others.items()
        }
    lines = [
        f"{len(options.seeds)} seeds, {options.tokens} generated tokens a run, {options.tasks} test tasks, 16 episodes "
        "each. Mean and, in brackets, 95% interval over seeds and tasks.",
        "",
        "| run | " + " | ".join(FIGURES) + " | conflict rate |",
        "|---" * (len(FIGURES) + 2) + "|",
    ]
    for name, row in table.items():
        rate = rates.get(name)
        lines.append(f"| {name} | {cells(row, '.2f')} | {'' if rate is None else f'{rate:.2f}'} |")
    if apart:
        lines += ["", "Difference to grpo, paired by seed and task:", "", "| run | " + " | ".join(FIGURES) + " |"]
        lines += ["|---" * (len(FIGURES) + 1) + "|"]
        lines += [f"| {name} | {cells(row, '+.2f')} |" for name, row in apart.items()]
    played = [name for name in BASELINES if name in table]
    strongest = max(played, key=lambda name: table[name]["pass@16"][0]) if played else None
    if strongest:
        lines += ["", f"The strongest baseline by pass@16: {strongest}."]
    result: dict[str, Any] = {
        "seeds": options.seeds, "tokens": options.tokens, "tasks": options.tasks, "table": table,
        "difference_to_grpo": apart, "conflict_rate": rates, "strongest_baseline": strongest,
    }  # fmt: skip
    write(ROOT / "benchmarks" / "grpo_passk.json", json.dumps(result, indent=1) + "\n")
    write(ROOT / "docs" / "grpo_passk.md", "\n".join(lines) + "\n")
    if apart:
        draw(apart, ROOT / "docs" / "grpo_passk.png")
    print("\n".join(lines))


def cells(row: dict[str, tuple[float, float, float]], form: str) -> str:
    return " | ".join(f"{m:{form}} [{low:{form}}, {high:{form}}]" for m, low, high in row.values())


def draw(apart: dict[str, dict[str, tuple[float, float, float]]], path: Path) -> None:
    """Differences of every run to plain GRPO: pass@1, pass@16, and the different solutions a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.2 + 0.32 * len(apart)), layout="constrained")
    for axis, name in zip(
        figure.subplots(1, 3, sharey=True), ("pass@1", "pass@16", "different solutions"), strict=True
    ):
        for at, row in enumerate(apart.values()):
            mean, low, high = row[name]
            axis.errorbar(mean, at, xerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]], fmt="o", color="tab:blue")
        axis.axvline(0.0, color="grey", linewidth=0.8)
        axis.set_title(f"{name}, difference to grpo")
        axis.set_yticks(range(len(apart)), apart)
    axis.invert_yaxis()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/grpo_passk"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tokens", type=int, default=TOKENS, help="generated tokens of a run")
    parser.add_argument("--tasks", type=int, default=TASKS, help="test tasks")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="some of the runs")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    options = parser.parse_args()
    if options.what == "run":
        run(options.out.resolve(), options)
    report(options.out.resolve(), options)
