"""Runs of a trainer for a benchmark: each is made once, and read afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


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


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, a row an iteration."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
