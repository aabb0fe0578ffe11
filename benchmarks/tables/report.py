"""What came out: reads the committed result files alone, and works on whatever is there of them.

    python -m benchmarks.tables.report

Writes docs/results.md, docs/results_*.png, README's tables and summary.json beside the results, and prints the claims.
With other folders it leaves the README alone.

Every figure is the mean over seeds and tasks. Its 95% interval is by bootstrap: seeds are drawn with replacement, and
so are tasks. Differences are paired by seed and task. A seed that collapsed counts like any other; a run that failed
has no figures.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr

from agent_gym import CHANNELS
from agent_gym.files import replacing, write
from agent_gym.metrics import pareto_front, pass_at_k

from .cells import (
    ABLATIONS,
    ALOUD,
    BASELINES,
    BUDGETS,
    CONSTRAINED,
    CONTROLS,
    ENVS,
    LENGTHS,
    MEASURES,
    METHODS,
    OURS,
    PASSK,
    PASSK_ENVS,
    PLANNED,
    ROOT,
    TOKENS,
    WASTE,
)  # fmt: skip
from .said import ABLATED, MEASURED, MODES_SAID, SQUEEZED, STARTS_SAID, TRIED, TUNED
from .sweep import RESULTS, SPLITS

DOCS, README = ROOT / "docs", ROOT / "README.md"
STARTED = {"main": "from the ready-made policies", "wasteful": "from policies that waste by habit"}
FIGURES = ("in-budget success", "success", "over budget", *CHANNELS)
ROWS = ("sft", *BASELINES, *reversed(OURS))  # of the tables, ours at the end
GOAL = 0.8  # in-budget success, for the tokens that it takes
RECENT = 5  # iterations that a point of a learning curve is the mean of

Interval = tuple[float, float, float]
Cells = dict[int, dict[str, Any]]
"""The result files of one row of a table, by seed."""
NOTHING: Interval = (math.nan, math.nan, math.nan)


@dataclass
class Found:
    """Every result file, by table, environment, method (and setting) and budget; and of what failed the last lines.

    Args:
        table: The one of the methods: ``main``, from the ready-made policies, or ``wasteful``.
    """

    rows: dict[tuple[str, str, str, str], Cells] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    table: str = "main"

    @classmethod
    def read(cls, results: Path) -> "Found":
        """All files of a folder."""
        found = cls()
        for path in sorted(results.glob("*/*/*__seed*.json")):
            data = json.loads(path.read_text(encoding="utf-8"))
            cell = data["cell"]
            if "error" in data:
                found.failed[str(path.relative_to(results)).removesuffix(".failed.json")] = data["error"]
            else:
                key = cell["table"], cell["env"], path.name.split("__")[0], cell["budget"]
                found.rows.setdefault(key, {})[cell["seed"]] = data
        return found

    def main(self, env: str, method: str, budget: str = "medium") -> Cells:
        """A row of the table of the methods."""
        return self.rows.get((self.table, env, method, budget), {})

    def failure(self, env: str, method: str, budget: str = "medium") -> str:
        """The last line of a run of a row that failed; empty where none did."""
        begin = f"{self.table}/{env}/{method}__{budget}__"
        return next((error for name, error in self.failed.items() if name.startswith(begin)), "")

    def names(self, env: str, budget: str = "medium") -> list[str]:
        """The methods that a table is to have, without those of which every run failed: they have no figures."""
        at = [name for name in ROWS if (self.table, env, name, budget) in PLANNED]
        return [name for name in at if self.main(env, name, budget) or not self.failure(env, name, budget)]

    def ablation(self, method: str) -> Cells:
        """A row of the ablations."""
        return self.rows.get(("ablations", ENVS[0], method, "medium"), {})

    def of(self, table: str) -> "Found":
        """The same files, with another table of the methods."""
        return replace(self, table=table)

    @property
    def envs(self) -> list[str]:
        """The environments of which the table has a method at the medium budget."""
        return [env for env in ENVS if any(self.main(env, name) for name in METHODS if name != "sft")]


# ---- figures and their intervals ----


def values(cells: Cells, split: str, figure: str) -> np.ndarray:
    """A figure of every seed and task, the mean of a task's episodes: shape [seeds, tasks]; NaN without a verdict."""
    rows = []
    for seed in sorted(cells):
        tested = cells[seed]["tested"][split]
        passed, within = np.array(tested["passed"], dtype=float), np.array(tested["within"], dtype=float)
        judged = np.where(np.isnan(passed), np.nan, 1.0)
        if figure in CHANNELS:
            row = judged * tested["costs"][figure]
        else:
            row = {"success": passed, "in-budget success": passed * within, "over budget": judged - within}[figure]
        row = row.reshape(-1, tested["samples"])
        known = ~np.isnan(row)
        rows.append(np.nansum(row, axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan))
    return np.array(rows)


@lru_cache
def drawn(count: int, key: int) -> np.ndarray:
    """How often each of so many is drawn, in 2,000 draws with replacement: shape [draws, count]."""
    rng = np.random.default_rng([count, key])
    return rng.multinomial(count, np.full(count, 1 / count), size=2000).astype(float)


def interval(of: np.ndarray) -> Interval:
    """Mean and 95% interval of values, shape [seeds, tasks], by bootstrap over seeds and tasks; NaN is left out."""
    if not of.size or np.isnan(of).all():
        return NOTHING
    seed_weight, task_weight = (drawn(count, axis) for axis, count in enumerate(of.shape))
    known = ~np.isnan(of)
    total = ((seed_weight @ np.where(known, of, 0.0)) * task_weight).sum(axis=1)
    count = ((seed_weight @ known.astype(float)) * task_weight).sum(axis=1)
    low, high = np.quantile(total[count > 0] / count[count > 0], [0.025, 0.975])
    return float(np.nanmean(of)), float(low), float(high)


def over_seeds(of: Sequence[float]) -> Interval:
    """Mean of a figure a seed and its 95% interval by bootstrap over the seeds."""
    return interval(np.array(of, dtype=float).reshape(-1, 1))


def ahead(one: Cells, other: Cells, split: str, figure: str) -> Interval:
    """How far ``one`` is above ``other``, of the seeds that both have; NaN where their tasks are not the same."""
    seeds = one.keys() & other.keys()
    same = [s for s in seeds if one[s]["tested"][split]["tasks"] == other[s]["tested"][split]["tasks"]]
    if not same or len(same) < len(seeds):
        return NOTHING
    pair = [values({s: cells[s] for s in same}, split, figure) for cells in (one, other)]
    return interval(pair[0] - pair[1])


def best(found: Found, env: str, methods: Sequence[str], split: str = "validation") -> str | None:
    """The method of the highest in-budget success at the medium budget."""
    score = {m: float(np.nanmean(values(cells, split, FIGURES[0]))) for m in methods if (cells := found.main(env, m))}
    return max(score, key=lambda m: score[m], default=None)


# ---- over the run ----


def curve(cell: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Generated tokens, and in-budget success of the training episodes up to there, the mean of the last few
    iterations; of rounds the test on the validation split after each. Both of shape [points]."""
    series = cell["series"]
    rounds = "charts/sample_in_budget" in series
    success = series.get("validation/in_budget_success" if rounds else "charts/in_budget_success", [])
    points = [(x, y) for x, y in zip(series.get("charts/generated_tokens", []), success, strict=True) if y is not None]
    recent = 1 if rounds else RECENT
    means = [float(np.mean([y for _, y in points[max(0, i + 1 - recent) : i + 1]])) for i in range(len(points))]
    return np.array([x for x, _ in points], dtype=float), np.array(means)


def on_grid(found: Found, env: str, method: str) -> np.ndarray:
    """The curves of all seeds at 101 counts of tokens from 0 to those of a run, shape [seeds, 101]. They begin with
    what the start does, where that was measured."""
    start = found.main(env, "sft")
    first = [float(np.nanmean(values(start, "validation", FIGURES[0])))] if start else []
    grid, rows = np.linspace(0, TOKENS[env], 101), []
    for _, cell in sorted(found.main(env, method).items()):
        tokens, success = curve(cell)
        rows.append(np.interp(grid, [*[0.0 for _ in first], *tokens], [*first, *success]))
    return np.array(rows)


def tokens_to_goal(cells: Cells) -> list[float]:
    """Tokens until in-budget success is first at the goal, of every seed; infinite where it never is."""
    found = []
    for seed in sorted(cells):
        tokens, success = curve(cells[seed])
        found.append(float(tokens[success >= GOAL][0]) if (success >= GOAL).any() else math.inf)
    return found


def redundant(cells: Cells, split: str) -> Interval:
    """Calls of the successes that are more than the oracle's, as a share of theirs; over seeds."""
    shares = []
    for seed in sorted(cells):
        tested = cells[seed]["tested"][split]
        passed = np.array(tested["passed"], dtype=float) == 1
        calls = np.array(tested["costs"]["tool_calls"])[passed].sum()
        needed = np.repeat(tested["oracle"], tested["samples"])[passed].sum()
        shares.append(1 - needed / calls if calls else math.nan)
    return over_seeds(shares)


def replay_share(cells: Cells) -> float:
    """Measuring, as a share of the time of an iteration."""
    parts = [[np.nansum(np.array(cell["series"].get(f"seconds/{name}", []), dtype=float)) for cell in cells.values()]
             for name in ("measure", "rollout", "update")]  # fmt: skip
    return float(np.sum(parts[0]) / np.sum(parts)) if np.sum(parts) else math.nan


def multiplier(cells: Cells, channel: str) -> str:
    """The last lambda of a channel, mean over the seeds."""
    return f"{np.mean([cell['series'][f'lambda/{channel}'][-1] for cell in cells.values()]):.2f}"


def correlations(cells: Cells) -> tuple[Interval, Interval]:
    """Rank correlation, over the steps of the successes of a run's second half, of u with necessity and of v, in
    budgets, with needlessness: mean and interval over the seeds."""
    found = []
    for seed in sorted(cells):
        cell, points = cells[seed], list[tuple[float, float, bool]]()
        half = max((row["iteration"] for row in cell["credits"]), default=0) / 2
        for row in cell["credits"]:
            if row["iteration"] >= half and row["success"]:
                for t, (u, v) in enumerate(zip(row["u"], row["v"], strict=True)):
                    price = sum(x / cell["bounds"].get(k, math.inf) for k, x in zip(CHANNELS, v, strict=True) if x)
                    points += [] if u is None else [(u, price, t in row["necessary"])]
        u_s, prices, needed = np.array(points, dtype=float).reshape(-1, 3).T
        varied = len(set(needed)) > 1
        found.append([
            spearmanr(credit, sign * needed).statistic if varied and len(set(credit)) > 1 else math.nan
            for credit, sign in ((u_s, 1), (prices, -1))
        ])  # fmt: skip
    by_credit = np.array(found, dtype=float).reshape(-1, 2).T
    return over_seeds(by_credit[0].tolist()), over_seeds(by_credit[1].tolist())


# ---- the claims ----


@dataclass
class Claim:
    """What the method is said to do, whether it does, and by which numbers."""

    text: str
    holds: bool | None
    numbers: str

    @property
    def verdict(self) -> str:
        """In capitals."""
        return {True: "HOLDS", False: "DOES NOT HOLD", None: "NOT MEASURED"}[self.holds]


def claims(found: Found) -> list[Claim]:
    """Three, at the medium budget on the validation split. An environment counts when every baseline has run, or could
    not."""
    envs = [e for e in ENVS if found.main(e, "c3") and all(found.main(e, m) or found.failure(e, m) for m in BASELINES)]
    two = len(envs) >= 2
    margins, speeds, violations = [], [], []
    for env in envs:
        c3, rival = found.main(env, "c3"), best(found, env, BASELINES)
        assert rival is not None
        margins.append((env, METHODS[rival].title, ahead(c3, found.main(env, rival), "validation", FIGURES[0])))
        ours = float(np.median(tokens_to_goal(c3)))
        medians = {m: float(np.median(tokens_to_goal(cells))) for m in BASELINES if (cells := found.main(env, m))}
        fast = min(medians, key=lambda m: medians[m])
        speeds.append((env, METHODS[fast].title, ours, medians[fast]))
        rival = best(found, env, CONSTRAINED)
        assert rival is not None
        own, other = (float(np.nanmean(values(c, "validation", "over budget"))) for c in (c3, found.main(env, rival)))
        violations.append((env, METHODS[rival].title, own, other))
    return [
        Claim(
            "in-budget success at least 3 points above the best baseline on two environments, intervals above 0",
            sum(m >= 0.03 and low > 0 for *_, (m, low, _) in margins) >= 2 if two else None,
            "; ".join(f"{env}: {signed(d)} to {rival}" for env, rival, d in margins),
        ),
        Claim(
            f"at most half the tokens to {GOAL} on two environments",
            sum(math.isfinite(own) and own <= 0.5 * other for *_, own, other in speeds) >= 2 if two else None,
            "; ".join(f"{env}: {count(own)} against {count(other)} of {rival}" for env, rival, own, other in speeds),
        ),
        Claim(
            "violation rate at least 20% below that of the best constrained baseline on two environments",
            sum(own <= 0.8 * other and other > 0 for *_, own, other in violations) >= 2 if two else None,
            "; ".join(f"{env}: {own:.3f} against {other:.3f} of {rival}" for env, rival, own, other in violations),
        ),
    ]


def claims_of_credit(found: Found) -> list[Claim]:
    """The fourth, of the ablations: with the success credit, as the method has it, and where cost alone is credited."""
    pairs = {
        "cost credit beats the global cost term": (found.of("wasteful").main(ENVS[0], "c3"), "global_cost"),
        "cost credit beats the global cost term where there is no success credit": (
            found.ablation("no_success_credit"),
            "no_success_global_cost",
        ),
    }
    stated = []
    for text, (credit, whole) in pairs.items():
        apart = ahead(credit, found.ablation(whole), "validation", FIGURES[0])
        measured = not math.isnan(apart[0])
        numbers = f"{ENVS[0]}: {signed(apart)}" if measured else ""
        stated.append(Claim(text, apart[1] > 0 if measured else None, numbers))
    return stated


# ---- in words ----


def shown(of: Interval, digits: int = 2) -> str:
    """Mean and interval; a dash where there is none."""
    return "-" if math.isnan(of[0]) else f"{of[0]:.{digits}f} [{of[1]:.{digits}f}, {of[2]:.{digits}f}]"


def signed(of: Interval) -> str:
    """The same of a difference."""
    return "-" if math.isnan(of[0]) else f"{of[0]:+.3f} [{of[1]:+.3f}, {of[2]:+.3f}]"


def count(tokens: float) -> str:
    """Tokens in thousands."""
    return f"{tokens / 1000:.0f}k" if math.isfinite(tokens) else "never"


def paragraphs(of: str) -> list[str]:
    """Lines of a text, one a paragraph, whatever its own lines are."""
    return [line for paragraph in of.split("\n\n") for line in (paragraph.replace("\n", " "), "")]


def not_run(names: Sequence[str]) -> list[str]:
    """What is missing."""
    return [f"Not run: {', '.join(names)}.", ""] if names else []


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table. A row that has only its name was not run, and is named below."""
    ran = [row for row in rows if len(row) > 1]
    lines = [f"| {' | '.join(row)} |" for row in (head, *ran)]
    table = [lines[0], "|" + "---|" * len(head), *lines[1:], ""] if ran else []
    return table + not_run([row[0] for row in rows if len(row) == 1])


def comparison(rows: dict[str, Cells], c3: Cells) -> list[str]:
    """A table of methods with both splits: seeds, shares, calls, and how far C3-RL is ahead in budget."""
    head = ["method", "seeds"]
    for split in SPLITS:
        head += [f"{split}: in-budget success", "C3-RL ahead by", "success", "over budget", "calls"]
    lines = []
    for title, cells in rows.items():
        row = [title]
        if cells:
            collapsed = sum(np.nanmean(values({0: cell}, "validation", "success")) < 0.05 for cell in cells.values())
            row.append(f"{len(cells)}" + (f", {collapsed} collapsed" if collapsed else ""))
            for split in SPLITS:
                first, *others = (interval(values(cells, split, figure)) for figure in (*FIGURES[:3], "tool_calls"))
                apart = "" if cells is c3 else signed(ahead(c3, cells, split, FIGURES[0]))
                row += [shown(first), apart, *map(shown, others)]
        lines.append(row)
    return markdown(head, lines)


def within_reach(rows: dict[str, Cells]) -> str:
    """What bounds everybody: how often the oracle's calls are within the budget, which each seed measures; and how
    often the needed calls cost too much otherwise: of the successes with no call more, those over a bound."""
    runs = [cell for cells in rows.values() for cell in cells.values()]
    said = []
    for split in SPLITS:
        shares, over = [], np.zeros(0)
        for cell in runs:
            tested = cell["tested"][split]
            shares.append(np.mean(np.array(tested["oracle"]) <= cell["bounds"]["tool_calls"]))
            lean = np.array(tested["costs"]["tool_calls"]) <= np.repeat(tested["oracle"], tested["samples"])
            lean &= np.array(tested["passed"], dtype=float) == 1.0
            over = np.append(over, 1 - np.array(tested["within"])[lean])
        said.append(f"{min(shares):.2f} to {max(shares):.2f} of the {split} tasks, by seed")
        if len(over):
            said[-1] += f" ({over.mean():.2f} of the successes with no call more are over another bound)"
    return f"The oracle's calls are within the budget in {' and '.join(said)}."


def main_tables(found: Found) -> list[str]:
    """The table of the methods of every environment and budget."""
    text, missing = [f"## The methods, {STARTED[found.table]}", ""], list[str]()
    for env in ENVS:
        for budget, times in BUDGETS.items():
            rows = {METHODS[name].title: found.main(env, name, budget) for name in found.names(env, budget)}
            if not any(rows.values()):
                missing += [f"{env} {budget}"] if rows else []
                continue
            text += [f"### {env}, {budget} budget ({times} x the oracle's mean cost)", ""]
            if env in ALOUD:
                text += [
                    "The bound on output tokens is that for an oracle which thinks aloud, as the policy must.",
                    "",
                ]
            text += [within_reach(rows), ""]
            text += comparison(rows, found.main(env, "c3", budget))
            errors = {METHODS[name].title: found.failure(env, name, budget) for name in ROWS}
            text += [line for title, error in errors.items() if error for line in (f"{title} failed: {error}.", "")]
    return text + not_run(missing)


def ablations(found: Found) -> list[str]:
    """What each part is worth, on the seeds that the ablation has."""
    c3 = found.of("wasteful").main(ENVS[0], "c3")
    rows = {"C3-RL": c3} | {method.title: found.ablation(name) for name, method in ABLATIONS.items()}
    title = f"## Ablations ({ENVS[0]}, medium budget, {STARTED['wasteful']})"
    said = paragraphs(ABLATED) if all(rows.values()) else []
    return [title, "", *comparison(rows, c3), *said]


def measures(found: Found) -> list[str]:
    """In-budget success on validation under each measure of credit, with the multipliers controlled in three ways."""
    text = [f"## Measures of credit ({ENVS[0]}, medium budget, in-budget success on validation)", ""]
    text += paragraphs(MODES_SAID)
    ran = list[Cells]()
    for length in LENGTHS:
        for waste in WASTE:
            lines = []
            for measure, (title, _) in MEASURES.items():
                names = [f"{measure}-{length}-{waste}-{control.replace(' ', '')}" for control in CONTROLS]
                rows = [found.rows.get(("modes", ENVS[0], name, "medium"), {}) for name in names]
                shares = [interval(values(cells, "validation", FIGURES[0])) if cells else NOTHING for cells in rows]
                lines.append([title, *map(shown, shares)] if any(rows) else [title])
                ran += rows
            text += [f"### {length} tasks, {waste} waste", "", *markdown(["measure", *CONTROLS], lines)]
    return text + (paragraphs(MEASURED) if all(ran) else [])


def mechanism(found: Found) -> list[str]:
    """Why it works, or does not: needless calls, multipliers, time, truth of the credit."""
    text = [f"## Mechanism, {STARTED[found.table]}", ""]
    head = ["method", "needless calls, validation", "test", "over budget",
            *(f"multiplier, {k.replace('_', ' ')}" for k in CHANNELS), "replay's share of the time"]  # fmt: skip
    for env in found.envs:
        lines = []
        for name in found.names(env):
            row, cells = [METHODS[name].title], found.main(env, name)
            if cells:
                row += [shown(redundant(cells, split)) for split in SPLITS]
                row.append(shown(interval(values(cells, "validation", "over budget"))))
                row += [multiplier(cells, k) if name.startswith(("c3", "lagrangian")) else "" for k in CHANNELS]
                row.append(f"{replay_share(cells):.0%}" if name.startswith("c3") else "")
            lines.append(row)
        text += [f"### {env}, medium budget", "", *markdown(head, lines)]
    head = ["environment", "method", "u and necessity", "v and needlessness"]
    rows = [[env, title, *map(shown, both)] for env, title, *both in credit_rows(found)]
    text += ["### Truth of the credit: rank correlation over the steps of successes", ""]
    return text + (markdown(head, rows) if rows else ["Not run.", ""])


def credit_rows(found: Found) -> list[tuple[str, str, Interval, Interval]]:
    """Environment, method and both correlations, of every row whose run credits steps."""
    rows = []
    for env in found.envs:
        every = {METHODS[name].title: found.main(env, name) for name in ("c3", "c3_loo")}
        if env == ENVS[0] and found.table == "wasteful":
            every |= {ABLATIONS[name].title: found.ablation(name) for name in ABLATIONS}
        rows += [(env, title, *correlations(cells)) for title, cells in every.items() if cells]
    return [row for row in rows if not math.isnan(row[2][0])]


def efficiency(found: Found) -> list[str]:
    """How soon."""
    text = [f"## Sample efficiency, {STARTED[found.table]} (medium budget)", ""]
    head = ["method", "area", f"tokens to {GOAL}, by seed", "iterations", "minutes"]
    for env in found.envs:
        lines = []
        for name in (name for name in found.names(env) if name != "sft"):
            row, cells = [METHODS[name].title], found.main(env, name)
            if cells:
                area = over_seeds(on_grid(found, env, name).mean(axis=1).tolist())
                iterations = [len(cell["series"].get("charts/generated_tokens", [])) for cell in cells.values()]
                minutes = np.mean([cell["wall_seconds"] for cell in cells.values()]) / 60
                row += [shown(area), " ".join(map(count, tokens_to_goal(cells))), f"{np.mean(iterations):.0f}",
                        f"{minutes:.1f}"]  # fmt: skip
            lines.append(row)
        text += [f"### {env}, {count(TOKENS[env])} tokens", "", *markdown(head, lines)]
    return text


def passing(cells: Cells, split: str, figure: str) -> np.ndarray:
    """A figure of the second paper of every seed and task: pass@1, pass@16, ways or solutions; [seeds, tasks]."""
    rows = []
    for seed in sorted(cells):
        tested = cells[seed]["tested"][split]
        passed = np.array(tested["passed"], dtype=float).reshape(-1, tested["samples"])
        if figure.startswith("pass@"):
            k, counts = int(figure[5:]), [(int((~np.isnan(own)).sum()), int(np.nansum(own))) for own in passed]
            rows.append([pass_at_k(n, c, k) if n >= k else math.nan for n, c in counts])
        else:
            rows.append(tested[figure])
    return np.array(rows, dtype=float)


def second_paper(found: Found) -> list[str]:
    """Plain GRPO against surgery, sixteen episodes a task."""
    text = ["## The second paper (64 tasks, 16 episodes each)", "",
            "The conflict rate is that of the pairs of groups of an iteration. It is empty where it is not measured "
            "(uniqueness, the start), and where no iteration had two groups with both outcomes: then surgery has "
            "nothing to work on, and the runs with and without it are one.", ""]  # fmt: skip
    if all(found.rows.get(("passk", env, name, "medium")) for env in PASSK_ENVS for name in PASSK):
        text += paragraphs(SQUEEZED)
    for env in PASSK_ENVS:
        text += [f"### {env}", "", *surgery(found, env)]
    return text


def surgery(found: Found, env: str) -> list[str]:
    """The second paper's methods in an environment, and their difference to plain GRPO."""
    figures = ("pass@1", "pass@16", "ways", "solutions")
    head = ["method", "seeds", *(f"{split}: {figure}" for split in SPLITS for figure in figures), "conflict rate"]
    every = {name: found.rows.get(("passk", env, name, "medium"), {}) for name in PASSK}
    absolute, apart = [], []
    for name, cells in every.items():
        row, title = [PASSK[name].title], PASSK[name].title
        if cells:
            rates = [np.nanmean(np.array(cell["series"]["conflict/rate"], dtype=float)) for cell in cells.values()
                     if "conflict/rate" in cell["series"]]  # fmt: skip
            row += [str(len(cells)), *(shown(interval(passing(cells, s, f))) for s in SPLITS for f in figures)]
            row.append(f"{np.mean(rates):.2f}" if rates else "")
        absolute.append(row)
        seeds = cells.keys() & every["grpo"].keys()
        if seeds and name != "grpo":
            own, plain = ({s: of[s] for s in seeds} for of in (cells, every["grpo"]))
            differences = [passing(own, s, f) - passing(plain, s, f) for s in SPLITS for f in figures]
            apart.append([title, str(len(seeds)), *(signed(interval(d)) for d in differences)])
    text = markdown(head, absolute)
    return text + (
        ["Difference to plain GRPO, paired by seed and task:", "", *markdown(head[:-1], apart)] if apart else []
    )


def set_to(found: Found, name: str, knob: str) -> str:
    """What a method's knob was in the runs of the table, and where, if not everywhere the same."""
    envs: dict[str, list[str]] = {}  # by setting
    for env in ENVS:
        commands = [cell["command"] for cell in found.main(env, name).values()]
        for setting in sorted({command[command.index(knob) + 1] for command in commands}):
            envs.setdefault(setting, []).append(env)
    return ", ".join(f"{setting} ({', '.join(own)})" if len(envs) > 1 else setting for setting, own in envs.items())


def tuning(found: Found) -> list[str]:
    """In-budget success of every setting of every knob on the tuning seed."""
    lines = []
    for name, method in METHODS.items():
        tried = {
            setting: float(np.nanmean(values(cells, "validation", FIGURES[0])))
            for setting in method.trials
            if (cells := found.rows.get(("tune", ENVS[0], f"{name}={setting}", "medium"), {}))
        }
        row = [method.title]
        if tried:
            highest = max(tried, key=lambda s: (tried[s], s == method.chosen))
            winner = highest if len(tried) == len(method.trials) else "-"
            row += [f"`{method.knob}`", ", ".join(f"{s}: {x:.3f}" for s, x in tried.items()), winner]
            row.append(set_to(found.of("wasteful"), name, method.knob))
        if method.knob:
            lines.append(row)
    head = ["method", "knob", "in-budget success, validation", "winner", "in the wasteful table"]
    title = f"## Knobs ({ENVS[0]}, medium budget, {STARTED['wasteful']}, a seed that is in no table)"
    said = paragraphs(TUNED) if all(len(line) > 1 for line in lines) else []
    return [title, "", *markdown(head, lines), *said]


# ---- pictures ----


def style(name: str) -> dict[str, Any]:
    """Ours are thick, every method has its own colour."""
    colour = colormaps["tab20"](list(METHODS).index(name))
    return {"color": colour, "linewidth": 2.5 if name in OURS else 1.2, "label": METHODS[name].title}


def panels(found: Found) -> tuple[Figure, list[tuple[Found, str, Any]]]:
    """A picture with a panel for each table and environment of which there is something, and room for the names of the
    methods.

    Returns:
        It, and of each panel the table, the environment and the axes.
    """
    shown = [(view, env) for view in map(found.of, STARTED) for env in view.envs]
    columns = min(2, len(shown))
    figure = Figure(figsize=(6.5 * columns + 2.5, 5 * math.ceil(len(shown) / 2)), layout="constrained")
    grid = [figure.add_subplot(math.ceil(len(shown) / 2), columns, at + 1) for at in range(len(shown))]
    return figure, [(*of, axis) for of, axis in zip(shown, grid, strict=True)]


def save(figure: Figure, path: Path) -> None:
    """Write in 256 colours, which halves it."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=90, format="png")
    with replacing(path) as temporary:
        Image.open(drawn).convert("RGB").quantize(256).save(temporary, format="png", optimize=True)


def draw_curves(found: Found, path: Path) -> bool:
    """In-budget success against generated tokens, with intervals over the seeds; whether there was any."""
    figure, parts = panels(found)
    for view, env, axis in parts:
        grid = np.linspace(0, TOKENS[env], 101) / 1000
        for name in (name for name in ROWS if name != "sft" and view.main(env, name)):
            curves = on_grid(view, env, name)
            low, high = np.quantile(drawn(len(curves), 0) @ curves / len(curves), [0.025, 0.975], axis=0)
            axis.plot(grid, curves.mean(axis=0), **style(name))
            axis.fill_between(grid, low, high, color=style(name)["color"], alpha=0.12, linewidth=0)
        axis.axhline(GOAL, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=f"{env}, {STARTED[view.table]}", xlabel="generated tokens, thousands", ylim=(-0.02, 1.02))
        axis.set_ylabel(f"in-budget success (mean of {RECENT} iterations; RFT: validation)", fontsize=8)
    return finish(figure, parts, path)


def draw_pareto(found: Found, path: Path) -> bool:
    """Success against calls on the validation split, a line through the budgets of each method."""
    figure, parts = panels(found)
    for view, env, axis in parts:
        points: list[tuple[float, float]] = []
        for name in ROWS:
            budgets = [b for b in ("tight", "medium", "loose") if view.main(env, name, b)]
            spent, passed = (
                [float(np.nanmean(values(view.main(env, name, b), "validation", f))) for b in budgets]
                for f in ("tool_calls", "success")
            )
            axis.plot(spent, passed, alpha=0.8, **style(name))
            for x, y, budget in zip(spent, passed, budgets, strict=True):
                marker = {"tight": "v", "medium": "o", "loose": "^"}[budget]
                axis.plot([x], [y], marker, color=style(name)["color"])
            points += zip(spent, passed, strict=True)
        front = pareto_front(points)
        axis.step(*zip(*front, strict=True), where="post", color="black", linewidth=0.8, linestyle=":", label="front")
        axis.set(title=f"{env}, {STARTED[view.table]}", ylim=(-0.02, 1.02))
        axis.set_xlabel("calls an episode (v tight, o medium, ^ loose budget)")
        axis.set_ylabel("success on the validation tasks")
    return finish(figure, parts, path)


def finish(figure: Figure, parts: Sequence[tuple[Found, str, Any]], path: Path) -> bool:
    """Name the methods beside the panels and write the picture; whether there was any panel."""
    if parts:
        named = {name: line for *_, axis in parts for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside right center", fontsize=8)
        save(figure, path)
    return bool(parts)


def draw_credit(found: Found, path: Path) -> bool:
    """Rank correlation of both credits with what is known of the steps."""
    rows = credit_rows(found.of("wasteful")) or credit_rows(found)
    if not rows:
        return False
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for at, (_, _, *both) in enumerate(rows):
        for shift, (mean, low, high), colour in zip((-0.18, 0.18), both, ("tab:green", "tab:red"), strict=True):
            bars = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
            axis.barh(at + shift, mean, 0.34, xerr=None if math.isnan(low) else bars, color=colour, capsize=2)
    axis.set_yticks(range(len(rows)), [f"{title}\n{env}" for env, title, *_ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set(xlabel="rank correlation: success credit and necessity (green), cost credit and needlessness (red)")
    axis.set_xlim(-1.05, 1.05)
    save(figure, path)
    return True


# ---- all of it ----


def summary(found: Found, stated: dict[str, list[Claim]]) -> dict[str, Any]:
    """All figures of all rows with their intervals, and the claims."""

    def rounded(of: Interval) -> list[float | None]:
        return [None if math.isnan(x) else round(x, 4) for x in of]

    rows: dict[str, Any] = {}
    for (table, env, method, budget), cells in found.rows.items():
        figures = {split: {f: rounded(interval(values(cells, split, f))) for f in FIGURES} for split in SPLITS}
        rows[f"{table}/{env}/{method}/{budget}"] = {"seeds": sorted(cells), **figures}
    said = {
        start: [{"claim": c.text, "verdict": c.verdict, "numbers": c.numbers} for c in own]
        for start, own in stated.items()
    }
    return {"claims": said, "rows": rows}


def in_short(cells: Cells) -> list[str]:
    """A row of a method in the README's tables: in-budget success on both splits, success and calls on validation."""
    if not cells:
        return ["cannot begin", "", "", ""]
    own, test = (interval(values(cells, split, "in-budget success")) for split in SPLITS)
    success, calls = (float(np.nanmean(values(cells, SPLITS[0], figure))) for figure in ("success", "tool_calls"))
    return [f"{shown(own)} ({len(cells)})", shown(test), f"{success:.2f}", f"{calls:.2f}"]


def readme(found: Found, text: str) -> str:
    """The README with its tables made anew, of two environments on which every method has run, or failed: those with
    the most seeds of the method that has the fewest.

    Args:
        text: The README; a table stands between the comments ``<!-- table: NAME -->`` and ``<!-- end -->``.
    """
    for view in map(found.of, STARTED):
        whole = [env for env in view.envs if all(view.main(env, m) or view.failure(env, m) for m in METHODS)]
        seeds = {env: min(len(cells) for m in METHODS if (cells := view.main(env, m))) for env in whole}
        envs = sorted(sorted(whole, key=lambda env: -seeds[env])[:2], key=ENVS.index)
        rows = [["method"], ["---"] * (1 + 4 * len(envs)), *([METHODS[name].title] for name in ROWS)]
        for env in envs:
            rows[0] += [f"{env}: validation (seeds)", "test", "success", "calls"]
            for row, name in zip(rows[2:], ROWS, strict=True):
                row += in_short(view.main(env, name))
        before, begin, after = text.partition(f"<!-- table: {view.table} -->")
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        text = f"{before}{begin}\n\n{table}\n\n<!-- end -->{after.partition('<!-- end -->')[2]}"
    return text


def how(found: Found) -> list[str]:
    """Where the figures come from."""
    every = [cell for cells in found.rows.values() for cell in cells.values()]
    commits = sorted({cell["commit"][:10] + cell["commit"][40:] for cell in every})
    versions = sorted({", ".join(f"{k} {v}" for k, v in cell["versions"].items()) for cell in every})
    return [
        "## How this was made", "",
        f"`python -m benchmarks.tables.sweep` runs the cells of [cells.py](../benchmarks/tables/cells.py), one core "
        f"each; `python -m benchmarks.tables.report` writes this page from their result files. {len(every)} cells have "
        f"run in {sum(cell['wall_seconds'] for cell in every) / 3600:.1f} core hours. Commits (a plus: with changes): "
        f"{', '.join(commits) or 'none'}. Versions: {'; '.join(versions) or 'none'}. Failed:", "",
        *([f"* {name}: {error}" for name, error in found.failed.items()] or ["* none"]),
    ]  # fmt: skip


def report(results: Path, docs: Path) -> dict[str, list[Claim]]:
    """Write the page, the pictures and the summary.

    Args:
        results: Folder of the result files; summary.json is written there.
        docs: Folder of the page and the pictures.

    Returns:
        The claims, by what the methods started from.
    """
    found = Found.read(results)
    views = [found.of(table) for table in STARTED]
    for folder in (results, docs):
        folder.mkdir(parents=True, exist_ok=True)
    stated = {STARTED[view.table]: claims(view) for view in views}
    stated[STARTED["wasteful"]] += claims_of_credit(found)
    text = ["# Results", "", str(__doc__).split("\n\n")[3].strip(), "", "## The claims", ""]
    for start, own in stated.items():
        text += [f"{start.capitalize()}:", ""]
        text += [f"* **{c.verdict}**: {c.text}{f' ({c.numbers})' if c.numbers else ''}." for c in own] + [""]
    text += [*paragraphs(STARTS_SAID), *paragraphs(TRIED)]
    for part in (main_tables, efficiency, mechanism):
        text += [line for view in views for line in part(view)]
    text += [*ablations(found), *measures(found), *second_paper(found), *tuning(found)]
    pictures = {"curves": draw_curves, "pareto": draw_pareto, "credit": draw_credit}
    drawn = [name for name, draw in pictures.items() if draw(found, docs / f"results_{name}.png")]
    alts = {"curves": "In-budget success against generated tokens", "pareto": "Success against calls",
            "credit": "Rank correlation of credit and necessity"}  # fmt: skip
    text += ["## Pictures", "", *(f"![{alts[name]}](results_{name}.png)\n" for name in drawn)] if drawn else []
    for path, content in (
        (docs / "results.md", "\n".join([*text, *how(found)]) + "\n"),
        (results / "summary.json", json.dumps(summary(found, stated), indent=1, allow_nan=False) + "\n"),
    ):
        write(path, content)
    return stated


def main() -> None:
    """Read the flags, write the report, print the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page and the pictures")
    options = parser.parse_args()
    if options.results == RESULTS and options.docs == DOCS:
        write(README, readme(Found.read(RESULTS), README.read_text(encoding="utf-8")))
    for start, claims_made in report(options.results, options.docs).items():
        print(f"{start}:")
        for claim in claims_made:
            print(f"  {claim.verdict}: {claim.text}" + (f"\n      {claim.numbers}" if claim.numbers else ""))


if __name__ == "__main__":
    main()
