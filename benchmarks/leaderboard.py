"""The leaderboard: agents on the task sets mini and test, as ``agent-gym eval`` plays them, and the table of it all.

    python benchmarks/leaderboard.py                                    # what is not there yet
    python benchmarks/leaderboard.py --part test --envs SQL             # the 500 tasks of SQL-test-v1
    python benchmarks/leaderboard.py --agents tiny:SQL-v0 --again       # these once more
    python benchmarks/leaderboard.py --agents openai:MODEL@URL --max-tokens 96 --calls text  # another agent, on all
    python benchmarks/leaderboard.py --table                            # the table alone, of the entries there are

An entry is benchmarks/results/leaderboard/SET/AGENT.json with its episodes beside it; the table is the README.md there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_gym.costs import CHANNELS
from agent_gym.evaluation.agents import open_agent
from agent_gym.evaluation.result import Result, read_result
from agent_gym.evaluation.run import evaluate, file_of
from agent_gym.metrics import stratified_interval, task_means
from agent_gym.tasksets import open_set

FOLDER = Path(__file__).parent / "results" / "leaderboard"
BUDGETS: dict[str, dict[str, float]] = {
    "APIAgent": {"tool_calls": 9, "output_tokens": 210, "read_tokens": 200, "latency_ms": 580},
    "CodeAgent": {"tool_calls": 8, "output_tokens": 240, "read_tokens": 800, "latency_ms": 1100},
    "SQL": {"tool_calls": 6, "output_tokens": 160, "read_tokens": 80, "latency_ms": 180},
    "WebLite": {"tool_calls": 10, "output_tokens": 200, "read_tokens": 900, "latency_ms": 900},
}
"""About twice what the oracle spends on a task of the sets mini and test, on average."""
SIMPLE = ("oracle", "baseline", "random", "noop")
POLICIES = {f"tiny:{name}-v0": name for name in BUDGETS}
"""The ready-made small policies, each on the set of its own environment."""
SEEDS = {"random": (0, 1, 2)}
"""Of agents that are played more than once."""


def path_of(name: str, agent: str, seed: int) -> Path:
    """Where an entry stands."""
    return FOLDER / name / f"{file_of(agent)}{f'__seed{seed}' if seed else ''}.json"


def play(agents: Sequence[str], part: str, envs: Sequence[str], again: bool, workers: int, **settings: Any) -> None:
    """Make the entries of some agents that are not there yet, or all of them; ``settings`` are of a language model."""
    for spec in agents:
        for env in envs:
            if POLICIES.get(spec, env) != env:
                continue
            name = f"{env}-{part}-v1"
            for seed in SEEDS.get(spec, (0,)):
                agent = open_agent(spec, timeout=300.0, **settings)  # a server beside us on two cores is slow
                path = path_of(name, agent.name, seed)
                if again or not path.exists():
                    result = evaluate(
                        agent, open_set(name), path, budget=BUDGETS[env], seed=seed, workers=workers, resume=True,
                        compress=True,
                    )  # fmt: skip
                    print(f"{path.relative_to(FOLDER)}: success {result.aggregates.success[0]}", flush=True)


def table(results: Iterable[Result]) -> str:
    """The entries as Markdown: a table a set, the best in budget first; the seeds of an agent are one row."""
    sets: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        sets.setdefault(result.tasks.name, {}).setdefault(result.agent.name, []).append(result)
    parts = [
        "# Leaderboard\n\nMade by `python benchmarks/leaderboard.py`; [how to submit an entry](../../README.md), and "
        "[what the columns mean](../../../docs/evaluation.md). Brackets hold 95% bootstrap intervals: over tasks, and "
        "where there are several seeds, over the seeds of each task.\n"
    ]
    for name in sorted(sets):
        rows = sorted(map(row, sets[name].values()), key=lambda cells: cells[2], reverse=True)
        bounds = ", ".join(
            f"{channel} {bound:g}" for channel, bound in next(iter(sets[name].values()))[0].budget.items()
        )
        titles = ["agent", "success", "in budget", "AUC 1-4x", *(f"{channel} (x oracle)" for channel in CHANNELS),
                  "needless calls", "seeds"]  # fmt: skip
        lines = [f"\n## {name}\n\nBudget: {bounds}.\n", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        parts.append("\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n")
    return "".join(parts)


def row(results: list[Result]) -> list[str]:
    """The cells of an agent."""

    def mean(values: Iterable[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if found else None

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    parts = [result.aggregates for result in results]
    judged = [[one for one in result.outcomes if one.success is not None] for result in results]
    scores = [task_means((one.task_id, bool(one.success)) for one in outcomes) for outcomes in judged]
    middle, low, high = parts[0].success
    if len(results) > 1:
        middle, low, high = stratified_interval(scores, seed=0, statistic=lambda values: values.mean(axis=-1))
    cells = [results[0].agent.name, f"{shown(middle, '.2f')} [{shown(low, '.2f')}, {shown(high, '.2f')}]"]
    cells += [shown(mean(part.in_budget_success[0] for part in parts), ".2f")]
    cells += [shown(mean(part.pareto_auc[0] for part in parts), ".2f")]
    for channel in CHANNELS:
        spent = mean(part.cost[channel][0] for part in parts)
        times = mean(part.relative_cost[channel][0] for part in parts)
        cells.append(f"{shown(spent, '.3g')} ({shown(times, '.2f')})")
    cells.append(shown(mean(part.redundant_call_rate[0] for part in parts), ".2f"))
    return [*cells, str(len(results))]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=[*SIMPLE, *POLICIES], help="as agent-gym eval takes them")
    parser.add_argument("--part", choices=["mini", "test"], default="mini", help="which task sets")
    parser.add_argument("--envs", nargs="+", choices=list(BUDGETS), default=list(BUDGETS), help="of these environments")
    parser.add_argument("--again", action="store_true", help="make entries that are there once more")
    parser.add_argument("--table", action="store_true", help="play nothing")
    parser.add_argument("--workers", type=int, default=4, help="episodes side by side")
    parser.add_argument("--max-tokens", type=int, help="of one turn of a language model")
    parser.add_argument("--calls", choices=["native", "text"], default="native", help="as agent-gym eval takes it")
    args = parser.parse_args()
    try:
        if not args.table:
            native = args.calls == "native"
            play(args.agents, args.part, args.envs, args.again, args.workers, max_tokens=args.max_tokens, native=native)
    except ValueError as error:  # such as a dead server; what was played is kept
        raise SystemExit(f"leaderboard: {error}") from None
    found = map(read_result, sorted(FOLDER.glob("*/*.json")))
    (FOLDER / "README.md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
