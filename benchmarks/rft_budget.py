"""What to keep: rft.py with its three rules against ppo_c3rl.py on APIAgent-v0, at equal generated tokens.

Every method starts from the same warm start of its seed and stops with the batch in which the same number of tokens
has been generated; all run at their defaults otherwise. The end figures are on test tasks that are the same for all.
Another trainer that takes --init and --total-tokens is one more line in METHODS.

    python benchmarks/rft_budget.py run       # resumes: finished runs are skipped
    python benchmarks/rft_budget.py report    # writes benchmarks/rft_budget.json, docs/rft_budget.md and .png
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from agent_gym import CHANNELS

ROOT = Path(__file__).parent.parent
ROUNDS = ("--rounds", "100", "--tasks-per-round", "60", "--parallel", "48")  # the tokens end it, after two or three
ENDLESS = ("--total-iterations", "1000", "--checkpoint-every", "1000", "--log-every", "1000")
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rft, success": ("rft.py", ("--keep", "success", *ROUNDS)),
    "rft, success-in-budget": ("rft.py", ("--keep", "success-in-budget", *ROUNDS)),
    "rft, cheapest-per-task": ("rft.py", ("--keep", "cheapest-per-task", *ROUNDS)),
    "c3rl": ("ppo_c3rl.py", ("--method", "c3rl", *ENDLESS)),
}
KEYS = ("success@1", "in-budget success", "violation any", *(f"mean {channel}" for channel in CHANNELS))


def launch(folder: Path, trainer: str, *flags: str) -> Path:
    """One run of a trainer on one core, unless it is finished; what it prints goes to log.txt.

    Returns:
        Its run folder.
    """
    runs = folder / "runs"
    if not list(runs.glob("*/result.json")):
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "cleanrl_llm" / trainer), "--run-dir", str(runs), *flags]
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    return next(runs.glob("*/result.json")).parent


def warm(options: argparse.Namespace, seed: int) -> Path:
    """Warm start of a seed, shared by all methods, and its test."""
    return launch(
        options.out / "warm" / str(seed), "rft.py", "--seed", str(seed), "--rounds", "0",
        "--warm.updates", str(options.warm_updates), "--eval-episodes", str(options.eval_episodes),
    )  # fmt: skip


def job(options: argparse.Namespace, method: str, seed: int) -> Path:
    trainer, flags = METHODS[method]
    return launch(
        place(options.out, method, seed), trainer, "--seed", str(seed), "--no-eval-start",
        "--init", str(warm(options, seed) / "checkpoints" / "warm"),
        "--total-tokens", str(options.tokens), "--eval-episodes", str(options.eval_episodes), *flags,
    )  # fmt: skip


def place(out: Path, method: str, seed: int) -> Path:
    return out / method.replace(", ", "_") / str(seed)


def result(folder: Path) -> dict[str, Any]:
    """What the run below ``folder`` ended with."""
    return json.loads(next(folder.glob("runs/*/result.json")).read_text())


def run(options: argparse.Namespace) -> None:
    with ThreadPoolExecutor(options.workers) as pool:
        list(tqdm(pool.map(lambda seed: warm(options, seed), options.seeds), "warm starts", len(options.seeds)))
        jobs = [(method, seed) for seed in options.seeds for method in METHODS]
        list(tqdm(pool.map(lambda one: job(options, *one), jobs), "runs", len(jobs)))


def report(options: argparse.Namespace) -> None:
    """The figures of the finished runs as JSON, a table and a picture."""
    rows = {"warm start": [result(options.out / "warm" / str(seed)) for seed in options.seeds]}
    rows |= {method: [result(place(options.out, method, seed)) for seed in options.seeds] for method in METHODS}
    finals = {
        name: [one["tables"].get("final", one["tables"].get("start")) for one in runs] for name, runs in rows.items()
    }
    found = {
        "tokens": options.tokens, "test_tasks": options.eval_episodes, "seeds": options.seeds,
        "methods": {
            name: {
                "flags": METHODS[name][1] if name in METHODS else (),
                "generated_tokens": [one["generated_tokens"] for one in runs],
                "kept": [one["counts"]["final"]["kept"] for one in runs if "final" in one.get("counts", {})],
                "final": finals[name],
            }
            for name, runs in rows.items()
        },
    }  # fmt: skip
    lines = ["| method | " + " | ".join(KEYS) + " | generated tokens |", "|---" * (len(KEYS) + 2) + "|"]
    for name, tables in finals.items():
        cells = [cell([table[key][0] for table in tables]) for key in KEYS]
        lines.append(f"| {name} | {' | '.join(cells)} | {cell([one['generated_tokens'] for one in rows[name]])} |")
    text = "\n".join(lines)
    write(options.target / "benchmarks" / "rft_budget.json", json.dumps(found, indent=1) + "\n")
    write(options.target / "docs" / "rft_budget.md", text + "\n")
    draw(finals, options.target / "docs" / "rft_budget.png")
    print(text)


def cell(values: list[float]) -> str:
    """Mean over the seeds and, in brackets, each seed."""
    digits = 2 if max(values) < 20 else 0
    return f"{np.mean(values):.{digits}f} ({' '.join(f'{v:.{digits}f}' for v in values)})"


def draw(finals: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """In-budget success of every seed with its 95% interval, and the mean of the seeds."""
    figure = Figure(figsize=(8, 0.6 * len(finals) + 1.2), layout="constrained")
    axis = figure.subplots()
    for row, (name, tables) in enumerate(finals.items()):
        colour = "tab:gray" if name == "warm start" else f"C{row - 1}"
        for place_, table in enumerate(tables):
            y = row + 0.5 * ((place_ + 0.5) / len(tables) - 0.5)
            mean, low, high = table["in-budget success"]
            axis.plot([low, high], [y, y], color=colour, linewidth=1)
            axis.plot([mean], [y], "o", color=colour, markersize=4)
        mean = float(np.mean([table["in-budget success"][0] for table in tables]))
        axis.plot([mean, mean], [row - 0.35, row + 0.35], color=colour, linewidth=3)
    axis.set_yticks(range(len(finals)), list(finals))
    axis.invert_yaxis()
    axis.set(xlabel="in-budget success on the test tasks; a dot a seed with its 95% interval", xlim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)


def write(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(text, encoding="utf-8")
    path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/rft_budget"), help="folder of the runs")
    parser.add_argument("--target", type=Path, default=ROOT, help="folder below which the report is written")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds")
    parser.add_argument("--tokens", type=int, default=16_000, help="generated tokens of a run")
    parser.add_argument("--eval-episodes", type=int, default=256, help="test tasks")
    parser.add_argument("--warm-updates", type=int, default=-1, help="updates of the warm start; -1 is the preset")
    options = parser.parse_args()
    options.out = options.out.resolve()
    if options.what == "run":
        run(options)
    report(options)
