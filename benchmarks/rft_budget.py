"""What to keep: rft.py with its rules against ppo_c3rl.py and plain GRPO on APIAgent-v0, at equal tokens.

Every run starts from the warm start of its seed that first_light.py made (or makes now) and stops with the batch in
which the same number of tokens has been generated; all run at their defaults otherwise. The figures are of one episode
on each of 256 test tasks, the same for all, counted from the trajectory files.

    python benchmarks/rft_budget.py run       # resumes: finished runs are skipped
    python benchmarks/rft_budget.py report    # writes benchmarks/rft_budget.json, docs/rft_budget.md and .png
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import first_light
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from agent_gym import CHANNELS, read_trajectories
from agent_gym.metrics import mean_interval, share_interval

ROOT = Path(__file__).parent.parent
ROUNDS = ("--rounds", "100", "--tasks-per-round", "60", "--parallel", "48", "--eval-episodes", "256")
ONCE = ("--eval-tasks", "256", "--eval-samples", "1", "--eval-every", "0", "--group-by", "task-type")
ENDLESS = ("--total-iterations", "1000", "--checkpoint-every", "1000", "--log-every", "1000")
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rft, success": ("rft.py", ("--keep", "success", *ROUNDS)),  # the tokens end it, after two or three rounds
    "rft, success-in-budget": ("rft.py", ("--keep", "success-in-budget", *ROUNDS)),
    "rft, cheapest-per-task": ("rft.py", ("--keep", "cheapest-per-task", *ROUNDS)),
    "rft, pruned": ("rft.py", ("--keep", "pruned", *ROUNDS)),
    "grpo": ("grpo_pcgrad.py", ("--surgery", "none", "--num-episodes", "48", *ONCE, *ENDLESS)),
    "c3rl": ("ppo_c3rl.py", ()),  # as first_light.py runs it
}  # fmt: skip
BUDGET = {"tool_calls": 2.0, "output_tokens": 48.0, "latency_ms": 200.0}  # that of the trainers' presets
MEANS = tuple(f"mean {channel}" for channel in CHANNELS)
KEYS = ("success@1", "in-budget success", "violation any", *MEANS)


def job(options: argparse.Namespace, method: str, seed: int) -> None:
    start = first_light.warm(options.first_light, seed) / "checkpoints" / "start"
    if method == "c3rl":  # at its defaults, it has one setting there
        first_light.job(options.first_light, "c3rl", first_light.KNOBS["c3rl"][1][0], seed)
        return
    trainer, flags = METHODS[method]
    first_light.launch(
        place(options, method, seed), ROOT / "cleanrl_llm" / trainer, "--seed", str(seed), "--no-eval-start",
        "--init", str(start), "--total-tokens", str(first_light.TOKENS), *flags,
    )  # fmt: skip


def place(options: argparse.Namespace, method: str, seed: int) -> Path:
    if method == "warm start":
        return options.first_light / "warm" / str(seed)
    if method == "c3rl":
        return first_light.place(options.first_light, "c3rl", first_light.KNOBS["c3rl"][1][0], seed)
    return options.out / method.replace(", ", "_") / str(seed)


def tested(folder: Path) -> dict[str, Any]:
    """The figures of a finished run, from its last test: mean and 95% interval by name, and the tokens it took."""
    done = next(folder.glob("runs/*/result.json"))
    path = done.parent / "trajectories" / "test_final.jsonl"
    firsts = {t.seed: t for t in reversed(list(read_trajectories(path)))}  # of some tasks there are more, for pass@k
    episodes = [t for t in firsts.values() if t.reward is not None]
    with path.open() as file:
        charged = json.loads(file.readline())["cost_total"]  # what an older run did not count is not 0, but not known
    figures: dict[str, Any] = {"generated tokens": json.loads(done.read_text())["generated_tokens"]}
    for name, hits in (
        ("success@1", [t.success for t in episodes]),
        ("in-budget success", [t.success and not t.violates(BUDGET) for t in episodes]),
        ("violation any", [t.violates(BUDGET) for t in episodes]),
    ):
        figures[name] = share_interval(hits)
    for name, channel in zip(MEANS, CHANNELS, strict=True):
        if channel in charged:
            figures[name] = mean_interval([t.cost_total[channel] for t in episodes], seed=0)
    return figures


def run(options: argparse.Namespace) -> None:
    with ThreadPoolExecutor(options.workers) as pool:
        starts = pool.map(lambda seed: first_light.warm(options.first_light, seed), options.seeds)
        list(tqdm(starts, "warm starts", len(options.seeds)))
        jobs = [(method, seed) for seed in options.seeds for method in METHODS]
        list(tqdm(pool.map(lambda one: job(options, *one), jobs), "runs", len(jobs)))


def report(options: argparse.Namespace) -> None:
    """The figures of the finished runs as JSON, a table and a picture."""
    rows = {name: [tested(place(options, name, seed)) for seed in options.seeds] for name in ("warm start", *METHODS)}
    found = {
        "tokens": first_light.TOKENS, "test_tasks": first_light.EVAL, "seeds": options.seeds, "budget": BUDGET,
        "methods": {name: {"flags": METHODS.get(name, ("", ()))[1], "final": own} for name, own in rows.items()},
    }  # fmt: skip
    lines = ["| method | " + " | ".join(KEYS) + " | generated tokens |", "|---" * (len(KEYS) + 2) + "|"]
    for name, own in rows.items():
        cells = [cell([figures[key][0] for figures in own if key in figures]) for key in KEYS]
        lines.append(f"| {name} | {' | '.join(cells)} | {cell([figures['generated tokens'] for figures in own])} |")
    text = "\n".join(lines)
    first_light.write(ROOT / "benchmarks" / "rft_budget.json", json.dumps(found, indent=1) + "\n")
    first_light.write(ROOT / "docs" / "rft_budget.md", text + "\n")
    draw(rows, ROOT / "docs" / "rft_budget.png")
    print(text)


def cell(values: list[float]) -> str:
    """Mean over the seeds and, in brackets, each seed; a dash where there is none."""
    if not values:
        return "-"
    digits = 2 if max(values) < 20 else 0
    return f"{np.mean(values):.{digits}f} ({' '.join(f'{v:.{digits}f}' for v in values)})"


def draw(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """In-budget success of every seed with its 95% interval, and the mean of the seeds."""
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    for row, (name, own) in enumerate(rows.items()):
        colour = "tab:gray" if name == "warm start" else f"C{row - 1}"
        for at, figures in enumerate(own):
            y = row + 0.5 * ((at + 0.5) / len(own) - 0.5)
            mean, low, high = figures["in-budget success"]
            axis.plot([low, high], [y, y], color=colour, linewidth=1)
            axis.plot([mean], [y], "o", color=colour, markersize=4)
        mean = float(np.mean([figures["in-budget success"][0] for figures in own]))
        axis.plot([mean, mean], [row - 0.35, row + 0.35], color=colour, linewidth=3)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set(xlabel="in-budget success on the test tasks; a dot a seed with its 95% interval", xlim=(0, 1))
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/rft_budget"), help="folder of the runs")
    parser.add_argument("--first-light", type=Path, default=Path("runs/first_light"), help="runs of first_light.py")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(first_light.SEEDS), help="seeds")
    options = parser.parse_args()
    options.out, options.first_light = options.out.resolve(), options.first_light.resolve()
    if options.what == "run":
        run(options)
    report(options)
