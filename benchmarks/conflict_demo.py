"""A constructed conflict: two task types, one nine times as frequent, that differ in the right first call alone.

A request asks to send something, and names the day with one word: "today" (the frequent type, which must go by
``road``) or "tonight" (the rare one, by ``air``). After that both go the same way: ``pack``, and a final message. The
shared warm start has seen both calls equally often, and either word with either call. So the word says nothing to it,
and whatever makes the first call of one type more likely makes that of the other type less likely, until the policy
reads the word.

Every seed trains each type alone, and both together at 9 to 1 under none, balanced and pcgrad. The table has every
type's success on unseen test tasks, and says which surgery brings both types to within 0.05 of training alone. The
conflict is measured on large batches (36 tasks of the frequent type and 4 of the rare one, 8 episodes each) in the
first three updates without surgery: the mean cosine of the two types' gradients, and the cosine that noise alone would
stay above. In the batches of the other runs, 4 episodes a task, the rare type may have nothing to compare with.

    python benchmarks/conflict_demo.py run       # resumes: finished runs are skipped
    python benchmarks/conflict_demo.py report    # writes benchmarks/conflict_demo.json and docs/conflict_demo.md
"""

import argparse
import json
import os
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import trainer_runs
from tqdm import tqdm

from agent_gym import Call, ToolEnv, Verdict, tool
from agent_gym.env import Outcome
from agent_gym.files import write
from agent_gym.tools import Tool

# ---------------------------------------------------------------------------------------------------------------------
# The environment

WORD = {"common": "today", "rare": "tonight"}
RIGHT = {"common": "road", "rare": "air"}
THINGS = "lamp chair table clock mirror carpet basket kettle pillow candle".split()
PLACES = "Rome Oslo Lima Cairo Delhi Quito Perth Turin Lyon Bern".split()


@dataclass(frozen=True)
class Parcel:
    """What was done to it, in order."""

    done: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        return blake2b(repr(self.done).encode(), digest_size=8).hexdigest()

    def apply(self, delta: str) -> "Parcel":
        return Parcel((*self.done, delta))


@dataclass(frozen=True)
class SendTask:
    id: str
    request: str
    right: str
    kind: str
    latency_seed: int = 0
    world: Parcel = Parcel()


@tool()
def road() -> None:
    """Send by road."""


@tool()
def air() -> None:
    """Send by air."""


@tool()
def pack() -> None:
    """Pack it."""


TOOLS: dict[str, Tool] = {one.name: one for one in (road, air, pack)}


class SendEnv(ToolEnv):
    """Send something the right way, and pack it.

    Args:
        kind: ``"common"``, ``"rare"``, or ``"mixed"``: either word with either way.
        split: ``"train"``, ``"validation"`` or ``"test"``: they share no pair of thing and place.
        **kwargs: Those of ToolEnv.
    """

    def __init__(self, *, kind: str = "mixed", split: str = "train", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.split = kind, split

    def _make_task(self, task_id: str | None) -> SendTask:
        if task_id is None:
            task_id = f"{self.split}-{self.kind}-{self.np_random.integers(2**31)}"
        split, kind, seed = task_id.split("-")
        rng = random.Random(int(seed))
        while True:
            thing, place = rng.randrange(len(THINGS)), rng.randrange(len(PLACES))
            rest = (thing + place) % 8
            if split == ("test" if rest % 4 == 0 else "validation" if rest == 1 else "train"):
                break
        word = WORD[rng.choice(sorted(WORD)) if kind == "mixed" else kind]
        right = RIGHT[rng.choice(sorted(RIGHT)) if kind == "mixed" else kind]
        return SendTask(task_id, f"Send the {THINGS[thing]} to {PLACES[place]} {word}.", right, kind)

    def _task_type(self) -> str:
        return self.task.kind

    def _tools(self) -> Mapping[str, Tool]:
        return TOOLS

    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Outcome:
        return Outcome("ok", tool.name)

    def _verify(self, answer: Any) -> Verdict:
        if self._world.done == (self.task.right, "pack"):
            return Verdict("pass", "passed", 1.0)
        return Verdict("fail", "wrong_state", 0.0)

    def oracle(self) -> list[str]:
        calls = [self.parser.render("", [Call(name)]) for name in (self.task.right, "pack")]
        return [*calls, self.parser.render("Done.", [])]


for _kind in ("common", "rare", "mixed"):
    gym.register(
        f"Send{_kind.capitalize()}-v0", "conflict_demo:SendEnv", kwargs={"kind": _kind}, disable_env_checker=True
    )

# ---------------------------------------------------------------------------------------------------------------------
# The runs

ROOT = Path(__file__).parent.parent
TRAINER = ROOT / "cleanrl_llm" / "grpo_pcgrad.py"
SEEDS = (1, 2, 3, 4, 5)
ITERATIONS, LARGE, CLOSE = 40, 3, 0.05
COMMON, RARE, MIXED = (f"conflict_demo:Send{kind}-v0" for kind in ("Common", "Rare", "Mixed"))
BOTH = ("--env-id", COMMON, RARE, "--env-weights", "9", "1")
RUNS: dict[str, tuple[str, ...]] = {
    "common alone": ("--env-id", COMMON, "--surgery", "none"),
    "rare alone": ("--env-id", RARE, "--surgery", "none"),
    # stats updates as none does, to the bit, and measures
    "none": (*BOTH, "--surgery", "stats"),
    "balanced": (*BOTH, "--surgery", "balanced"),
    "pcgrad": (*BOTH, "--surgery", "pcgrad", "--tau", "0"),
    "measured": (*BOTH, "--surgery", "stats"),
}
KWARGS = '{"max_turns": 4}'
SMALL = (
    "--group-by", "task-type", "--groups", "2", "--pool-tasks", "100",
    "--max-new-tokens", "16", "--max-context", "128", "--kl-coef", "0", "--learning-rate", "5e-4",
    "--eval-tasks", "32", "--eval-samples", "8", "--eval-every", "0", "--no-eval-start",
    "--warm.updates", "60", "--warm.demonstrations", "600", "--warm.wasteful", "0", "--device", "cpu",
    "--checkpoint-every", "1000", "--log-every", "1000",
)  # fmt: skip


def launch(folder: Path, *flags: str) -> Path:
    """One run of the trainer with the environments of this file, unless it is finished; its run folder."""
    kwargs = ("--env-kwargs", *[KWARGS] * sum(flag.startswith("conflict_demo:") for flag in flags))
    paths = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")))
    return trainer_runs.launch(folder, TRAINER, *SMALL, *flags, *kwargs, PYTHONPATH=paths)


def warm(out: Path, seed: int) -> Path:
    """The warm start of a seed, shared by all its runs."""
    folder = launch(out / "warm" / str(seed), "--env-id", MIXED, "--seed", str(seed), "--total-iterations", "0")
    return folder / "checkpoints" / "start"


def job(out: Path, name: str, seed: int) -> Path:
    size = ("--num-episodes", "160", "--group-size", "4", "--total-iterations", str(ITERATIONS))
    if name == "measured":
        size = ("--num-episodes", "320", "--group-size", "8", "--total-iterations", str(LARGE))
    start = ("--seed", str(seed), "--init", str(warm(out, seed)))
    return launch(out / name.replace(" ", "_") / str(seed), *RUNS[name], *start, *size)


def run(out: Path, workers: int, seeds: tuple[int, ...]) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(tqdm(pool.map(lambda seed: warm(out, seed), seeds), "warm starts", len(seeds)))
        jobs = [(name, seed) for seed in seeds for name in RUNS]
        list(tqdm(pool.map(lambda j: job(out, *j), jobs), "runs", len(jobs)))


# ---------------------------------------------------------------------------------------------------------------------
# The report


def successes(folder: Path) -> dict[str, float]:
    """Success on the test tasks by type, of a finished run."""
    table = json.loads((folder / "result.json").read_text())["tables"]["test"]["final"]
    names = {"success, SendCommon-v0": "common", "success, SendRare-v0": "rare"}
    names |= {"success, common": "common", "success, rare": "rare"}
    return {kind: table[name][0] for name, kind in names.items() if name in table}


def conflict(folder: Path) -> tuple[float, float]:
    """Mean cosine of the two types over the updates that had both, and the last noise floor, of a run with large
    batches."""
    rows = trainer_runs.metrics(folder)
    both = [row for row in rows if "cosine/1_0" in row]
    return float(np.mean([row["cosine/1_0"] for row in both])), both[-1]["conflict/floor"]


def report(out: Path, seeds: tuple[int, ...]) -> None:
    """benchmarks/conflict_demo.json and docs/conflict_demo.md, from the finished runs."""
    found = {name: [successes(job(out, name, seed)) for seed in seeds] for name in RUNS if name != "measured"}
    alone = {kind: [one[kind] for one in found[f"{kind} alone"]] for kind in WORD}
    cosines = [conflict(job(out, "measured", seed)) for seed in seeds]
    lines = [
        "| trained | success of the frequent type | of the rare type | both within 0.05 of alone |",
        "|---|---|---|---|",
    ]
    lines.append(f"| alone | {cell(alone['common'])} | {cell(alone['rare'])} | |")
    rescued = []
    for name in ("none", "balanced", "pcgrad"):
        means = {kind: [one[kind] for one in found[name]] for kind in WORD}
        close = all(np.mean(means[kind]) >= np.mean(alone[kind]) - CLOSE for kind in WORD)
        rescued += [name] * close
        lines.append(
            f"| together, {name} | {cell(means['common'])} | {cell(means['rare'])} | {'yes' if close else 'no'} |"
        )
    below = sum(cosine < min(0.0, floor) for cosine, floor in cosines)
    lines += [
        "",
        f"Rescues the rare type: {', '.join(rescued) or 'none of them'}. Mean cosine of the types' gradients in the "
        f"first {LARGE} updates on large batches, without surgery: {cell([c for c, _ in cosines])}; noise floor "
        f"{cell([f for _, f in cosines])}; below zero and below the floor in {below} of {len(seeds)} seeds.",
    ]
    result = {
        "seeds": seeds,
        "iterations": ITERATIONS,
        "success": found,
        "cosine_and_floor": cosines,
        "rescues": rescued,
    }
    write(ROOT / "benchmarks" / "conflict_demo.json", json.dumps(result, indent=1) + "\n")
    write(ROOT / "docs" / "conflict_demo.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def cell(values: list[float]) -> str:
    """Mean over the seeds and, in brackets, each seed."""
    return f"{np.mean(values):.2f} ({' '.join(f'{v:.2f}' for v in values)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/conflict_demo"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    options = parser.parse_args()
    if options.what == "run":
        run(options.out.resolve(), options.workers, tuple(options.seeds))
    report(options.out.resolve(), tuple(options.seeds))
