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

ROOT = Path(__file__).parent.parent
TRAINER = ROOT / "cleanrl_llm" / "ppo_c3rl.py"
SEEDS = (1, 2, 3)
TOKENS, EVAL = 30_000, 256
KNOBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "c3rl": ("--dual.lr", ("0.1",)),
    "ppo": ("--learning-rate", ("1e-4", "3e-4", "1e-3")),
    "penalty": ("--penalty-alpha", ("0.1", "0.3", "1.0")),
    "truncation": ("--truncation-slack", ("1.0", "1.5", "2.0")),
    "lagrangian": ("--dual.lr", ("0.05", "0.1", "0.2")),
}


def launch(folder: Path, *flags: str) -> None:
    """One run of the trainer on one core, unless it is finished; what it prints goes to log.txt."""
    if (folder / "result.json").exists() or (folder / "warm_only").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TRAINER), "--run-dir", str(folder / "runs"), *flags]
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    made = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    if not (made / "result.json").exists():
        (folder / "warm_only").write_text(str(made / "checkpoints" / "warm"))
        return
    rows = (made / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(rows)
    (folder / "result.json").write_text((made / "result.json").read_text())


def warm(out: Path, seed: int) -> Path:
    """Warm start of a seed, shared by all methods."""
    folder = out / "warm" / str(seed)
    launch(folder, "--seed", str(seed), "--total-iterations", "0", "--eval-episodes", "0")
    return Path((folder / "warm_only").read_text())


def job(out: Path, method: str, setting: str, seed: int) -> Path:
    knob = KNOBS[method][0]
    folder = out / method / f"{knob.strip('-')}={setting}" / str(seed)
    launch(
        folder, "--method", method, knob, setting, "--seed", str(seed), "--init", str(warm(out, seed)),
        "--total-iterations", "1000", "--total-tokens", str(TOKENS), "--eval-episodes", str(EVAL),
        "--checkpoint-every", "1000", "--log-every", "1000",
    )  # fmt: skip
    return folder


def in_budget(folder: Path, table: str = "final") -> float:
    return json.loads((folder / "result.json").read_text())["tables"][table]["in-budget success"][0]


def best(out: Path) -> dict[str, str]:
    """The setting of each method with the highest in-budget success on the first seed."""
    found = {}
    for method, (knob, settings) in KNOBS.items():
        folders = {s: out / method / f"{knob.strip('-')}={s}" / str(SEEDS[0]) for s in settings}
        found[method] = max(settings, key=lambda s: in_budget(folders[s]))
    return found


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
    chosen = best(out)
    result: dict[str, Any] = {"tokens": TOKENS, "test_tasks": EVAL, "seeds": SEEDS, "methods": {}}
    keys = (
        "success@1",
        "in-budget success",
        "violation any",
        "mean tool_calls",
        "mean output_tokens",
        "mean latency_ms",
    )
    lines = ["| method | kept setting | " + " | ".join(keys) + " | area |", "|---" * (len(keys) + 3) + "|"]
    warm_rows: list[list[float]] = []
    for method, (knob, settings) in KNOBS.items():
        root = out / method / f"{knob.strip('-')}={chosen[method]}"
        tables = [json.loads((root / str(seed) / "result.json").read_text()) for seed in SEEDS]
        if not warm_rows:
            warm_rows = [[t["tables"]["warm start"][key][0] for key in keys] for t in tables]
        rows = [[t["tables"]["final"][key][0] for key in keys] for t in tables]
        curves = [[json.loads(x) for x in (root / str(s) / "metrics.jsonl").read_text().splitlines()] for s in SEEDS]
        areas = [area(curve) for curve in curves]
        tuned = {s: in_budget(out / method / f"{knob.strip('-')}={s}" / str(SEEDS[0])) for s in settings}
        result["methods"][method] = {
            "knob": knob, "kept": chosen[method], "first_seed_in_budget_success": tuned, "final": tables,
            "area": areas, "in_budget_curve": [[row["charts/in_budget_success"] for row in c] for c in curves],
            "tokens_curve": [[row["charts/generated_tokens"] for row in c] for c in curves],
        }  # fmt: skip
        lines.append(f"| {method} | {knob} {chosen[method]} | {cells(rows, areas)} |")
    lines.insert(2, f"| warm start | | {cells(warm_rows, None)} |")
    target = ROOT / "benchmarks" / "first_light.json"
    target.with_suffix(".tmp").write_text(json.dumps(result, indent=1))
    target.with_suffix(".tmp").replace(target)
    text = "\n".join(lines)
    (ROOT / "docs" / "first_light.md").write_text(text + "\n")
    print(text)


def area(curve: list[dict[str, Any]]) -> float:
    """Mean in-budget success of the training episodes over the run, weighted by generated tokens."""
    tokens = np.diff([0.0, *(row["charts/generated_tokens"] for row in curve)])
    return float(np.average([row["charts/in_budget_success"] for row in curve], weights=tokens))


def cells(rows: list[list[float]], areas: list[float] | None) -> str:
    """Mean over the seeds and, in brackets, each seed."""
    columns = [*zip(*rows, strict=True), *([areas] if areas else [])]

    def one(values: Any) -> str:
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
