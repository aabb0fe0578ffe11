"""First light: c3rl against ppo, penalty, truncation and lagrangian on APIAgent-v0, at equal generated tokens.

Every method starts from the same warm start of its seed, sees the same number of generated tokens, and runs the same
code (cleanrl_llm/ppo_c3rl.py). Every baseline has one knob with three settings, all run on the first seed; the best by
in-budget success on the test tasks is kept and run on the other seeds. The first seed thus flatters the baselines.
c3rl runs at its defaults, untuned. A run that collapses stays in the table.

    python benchmarks/first_light.py run       # resumes: finished runs are skipped
    python benchmarks/first_light.py report    # writes benchmarks/first_light.json and docs/first_light.md
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
from tqdm import tqdm

from agent_gym import CHANNELS

ROOT = Path(__file__).parent.parent
TRAINER = ROOT / "cleanrl_llm" / "ppo_c3rl.py"
SEEDS = (1, 2, 3)
TOKENS, EVAL = 16_000, 256
KNOBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "c3rl": ("--dual.lr", ("0.1",)),
    "ppo": ("--learning-rate", ("1e-4", "3e-4", "1e-3")),
    "penalty": ("--penalty-alpha", ("0.1", "0.3", "1.0")),
    "truncation": ("--truncation-slack", ("1.0", "1.5", "2.0")),
    "lagrangian": ("--dual.lr", ("0.05", "0.1", "0.2")),
}


def launch(folder: Path, trainer: Path, *flags: str, **environment: str) -> Path:
    """One run of a trainer on one core, unless it is finished; what it prints goes to log.txt.

    Returns:
        Its run folder.
    """
    runs = folder / "runs"
    if not list(runs.glob("*/result.json")):
        folder.mkdir(parents=True, exist_ok=True)
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, str(trainer), "--run-dir", str(runs), *flags]
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=ROOT)
    return next(runs.glob("*/result.json")).parent


def warm(out: Path, seed: int) -> Path:
    """Warm start of a seed, shared by all methods, and its test."""
    return launch(
        out / "warm" / str(seed), TRAINER, "--seed", str(seed), "--total-iterations", "0", "--no-eval-start",
        "--eval-episodes", str(EVAL), "--model", "tiny",
    )  # fmt: skip


def job(out: Path, method: str, setting: str, seed: int) -> Path:
    knob = KNOBS[method][0]
    return launch(
        place(out, method, setting, seed), TRAINER, "--method", method, knob, setting, "--seed", str(seed),
        "--init", str(warm(out, seed) / "checkpoints" / "start"), "--no-eval-start",
        "--total-iterations", "1000", "--total-tokens", str(TOKENS),
        "--checkpoint-every", "1000", "--log-every", "1000", "--eval-episodes", str(EVAL),
    )  # fmt: skip


def place(out: Path, method: str, setting: str, seed: int) -> Path:
    return out / method / f"{KNOBS[method][0].strip('-')}={setting}" / str(seed)


def table(folder: Path) -> dict[str, list[float]]:
    """The end table of the run below ``folder``: figure, lower and upper end of the interval, by name."""
    return json.loads(next(folder.glob("runs/*/result.json")).read_text())["tables"]["test"]["final"]


def in_budget(folder: Path) -> float:
    return table(folder)["in-budget success"][0]


def best(out: Path) -> dict[str, str]:
    """The setting of each method with the highest in-budget success on the first seed."""
    return {
        method: max(settings, key=lambda s: in_budget(place(out, method, s, SEEDS[0])))
        for method, (_, settings) in KNOBS.items()
    }


def run(out: Path, workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(tqdm(pool.map(lambda seed: warm(out, seed), SEEDS), "warm starts", len(SEEDS)))
        first = [(m, s, SEEDS[0]) for m, (_, settings) in KNOBS.items() for s in settings]
        list(tqdm(pool.map(lambda j: job(out, *j), first), "first seed, every setting", len(first)))
        chosen = best(out)
        others = [(m, chosen[m], seed) for seed in SEEDS[1:] for m in KNOBS]
        list(tqdm(pool.map(lambda j: job(out, *j), others), "other seeds", len(others)))


def report(out: Path) -> None:
    """benchmarks/first_light.json and docs/first_light.md, from the finished runs."""
    chosen, means = best(out), tuple(f"mean {channel}" for channel in CHANNELS)
    keys = ("success@1", "in-budget success", "violation any", *means)
    starts = [table(out / "warm" / str(seed)) for seed in SEEDS]
    result: dict[str, Any] = {"tokens": TOKENS, "test_tasks": EVAL, "seeds": SEEDS, "warm_start": starts, "methods": {}}
    lines = ["| method | kept setting | " + " | ".join(keys) + " | area |", "|---" * (len(keys) + 3) + "|"]
    lines.append(f"| warm start | | {cells([figures(t, keys) for t in starts], None)} |")
    for method, (knob, settings) in KNOBS.items():
        folders = [place(out, method, chosen[method], seed) for seed in SEEDS]
        tables, curves = [table(folder) for folder in folders], []
        for folder in folders:
            curves.append(metrics(next(folder.glob("runs/*"))))
        areas = [area(curve) for curve in curves]
        result["methods"][method] = {
            "knob": knob,
            "kept": chosen[method],
            "first_seed_in_budget_success": {s: in_budget(place(out, method, s, SEEDS[0])) for s in settings},
            "final": tables,
            "area": areas,
            "in_budget_curve": [[row["charts/in_budget_success"] for row in curve] for curve in curves],
            "tokens_curve": [[row["charts/generated_tokens"] for row in curve] for curve in curves],
        }
        lines.append(f"| {method} | {knob} {chosen[method]} | {cells([figures(t, keys) for t in tables], areas)} |")
    text = "\n".join(lines)
    write(ROOT / "benchmarks" / "first_light.json", json.dumps(result, indent=1) + "\n")
    write(ROOT / "docs" / "first_light.md", text + "\n")
    print(text)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, a row an iteration."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    path.with_suffix(".tmp").write_text(text, encoding="utf-8")
    path.with_suffix(".tmp").replace(path)


def area(curve: list[dict[str, Any]]) -> float:
    """Mean in-budget success of the training episodes over the run, weighted by generated tokens."""
    tokens = np.diff([0.0, *(row["charts/generated_tokens"] for row in curve)])
    return float(np.average([row["charts/in_budget_success"] for row in curve], weights=tokens))


def figures(table: dict[str, Any], keys: tuple[str, ...]) -> list[float]:
    """The figures of a table by name; NaN for those that are not known, or that an older run does not have."""
    found = (table.get(key, [None])[0] for key in keys)
    return [np.nan if one is None else one for one in found]


def cells(rows: list[list[float]], areas: list[float] | None) -> str:
    """Mean over the seeds and, in brackets, each seed; a dash where a figure is not known."""
    columns = [*zip(*rows, strict=True), *([areas] if areas else [])]

    def one(values: Any) -> str:
        if np.isnan(values).any():
            return "-"
        digits = 2 if max(values) < 20 else 0
        return f"{np.mean(values):.{digits}f} ({' '.join(f'{v:.{digits}f}' for v in values)})"

    return " | ".join(map(one, columns)) + ("" if areas else " | ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/first_light"), help="folder of the runs")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    options = parser.parse_args()
    if options.what == "run":
        run(options.out.resolve(), options.workers)
    report(options.out.resolve())
