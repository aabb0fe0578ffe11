"""Every picture a run draws, from the rows of its metrics.jsonl and the tables of its tests; needs matplotlib.

A row is a dictionary of figures with ``iteration`` among them; what a row lacks is left out of the picture. A table is
a dictionary from a figure's name to its mean and 95% interval; several tables stand beside each other by title.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from agent_gym.costs import CHANNELS
from agent_gym.env import tool_env
from agent_gym.files import replacing
from agent_gym.lm.rollout import Episode
from agent_gym.tools import canonical
from agent_gym.trajectory import Trajectory

__all__ = [
    "credit_map",
    "draw_conflict",
    "draw_credits",
    "draw_diversity",
    "draw_dual",
    "draw_groups",
    "draw_passk",
    "draw_rounds",
    "necessary",
    "table",
]

Row = Mapping[str, float]
Table = Mapping[str, tuple[float, float, float]]


def table(tables: Mapping[str, Table], counts: Mapping[str, Mapping[str, int]] | None = None) -> str:
    """The tables as one in Markdown: a column each, means with their 95% intervals, and counts below them.

    Args:
        tables: By the title of their column.
        counts: Whole numbers by the same titles. A column that lacks a row has an empty cell there.
    """
    cells: dict[str, dict[str, str]] = {}
    for title, found in tables.items():
        for name, interval in found.items():
            form = "{:.3f} [{:.3f}, {:.3f}]" if abs(interval[0]) < 10 else "{:.1f} [{:.1f}, {:.1f}]"
            cells.setdefault(name, {})[title] = form.format(*interval)
    for title, numbers in (counts or {}).items():
        for name, number in numbers.items():
            cells.setdefault(name, {})[title] = str(number)
    lines = ["| | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    lines += [f"| {name} | " + " | ".join(row.get(title, "") for title in tables) + " |" for name, row in cells.items()]
    return "\n".join(lines)


# ---- what the pictures share ----


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: it keeps figures, and picks a window system

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _points(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Iterations and values of the rows that have the key."""
    there = [row for row in rows if math.isfinite(row.get(key, math.nan))]
    return [row["iteration"] for row in there], [row[key] for row in there]


def _of_five(values: Sequence[float]) -> list[float]:
    """Every value as the mean of it and the four before it."""
    return [float(np.mean(values[max(0, i - 4) : i + 1])) for i in range(len(values))]


def _curve(axis: Any, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    axis.plot(x, y, marker="o" if len(x) == 1 else None, **style)  # one iteration alone has no line


def _whole(axis: Any) -> None:
    axis.xaxis.get_major_locator().set_params(integer=True)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _number(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 10 else f"{x:.2g}"


def _bar(axis: Any, x: float, interval: tuple[float, float, float], **style: Any) -> None:
    mean, low, high = interval
    axis.bar(x, mean, yerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]], capsize=3, **style)


def _heat(axis: Any, colours: np.ndarray, palette: str, texts: Sequence[Sequence[str]] = ()) -> Any:
    """A map of numbers from -1 to 1, grey where there is none, with texts in its fields."""
    axis.set_facecolor("lightgrey")
    image = axis.imshow(colours, cmap=palette, vmin=-1.0, vmax=1.0, aspect="auto", interpolation="none")
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            shade = "white" if abs(colours[i, j]) > 0.6 else "black"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=shade)
    return image


# ---- the pictures ----


def draw_dual(rows: Sequence[Row], path: Path) -> None:
    """The price of every cost channel (``lambda/``), success and violation over the iterations."""
    figure = _figure(8, 7)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for channel in CHANNELS:
        _curve(top, *_points(rows, f"lambda/{channel}"), label=channel.replace("_", " "))
    top.set_ylabel("multiplier $\\lambda_k$")
    top.legend(title="cost channel", loc="upper right")
    for key, label, colour in (
        ("charts/success", "success", "tab:green"),
        ("charts/in_budget_success", "in-budget success", "tab:blue"),
        ("violation/any", "violation of any budget", "tab:red"),
    ):
        _curve(bottom, *_points(rows, key), color=colour, label=label)
    bottom.set(xlabel="iteration", ylabel="share of training episodes", ylim=(-0.02, 1.02))
    _whole(bottom)
    bottom.legend(loc="upper right")
    _save(figure, path)


def necessary(episode: Episode | Trajectory, env: gym.Env) -> list[int]:
    """The steps that the oracle needs as well: those that first make one of its calls, and the answer.

    Args:
        episode: Whose steps.
        env: Like the one it was played in; it is reset.
    """
    env.reset(seed=episode.seed, options={"task": episode.task_id})
    base = tool_env(env)

    def calls(action: Any) -> Counter[str]:
        return Counter(canonical(call) for call in base.read(action).calls)

    left = sum((calls(action) for action in base.oracle()), Counter[str]())
    found = []
    for t, step in enumerate(episode.steps):
        own = calls(step.action)
        if own & left or step.terminated:
            found.append(t)
        left -= own
    return found


def credit_map(
    iteration: int,
    episode: Episode | Trajectory,
    u: np.ndarray,
    v: np.ndarray,
    eliminated: Sequence[int],
    env: gym.Env,
) -> dict[str, Any]:
    """A row of ``draw_credits``: one episode's credits, with a short label a step.

    Args:
        iteration: In which it was played.
        episode: The episode.
        u: Success credit of each step, shape [steps]; NaN is not measured.
        v: Cost credits, shape [steps, channels].
        eliminated: The steps that it could do without.
        env: Like the one it was played in, to ask the oracle; it is reset.
    """
    labels = []
    for step in episode.steps:
        ran = (r for r in step.tool_results if r.get("error") != "not_run")
        calls = [f"{r['name']}({', '.join(map(str, r['arguments'].values()))})" for r in ran]
        labels.append(_short("; ".join(calls) or f"answer: {step.action}", 44))
    return {
        "iteration": iteration, "task_id": episode.task_id, "success": bool(episode.success), "steps": labels,
        "u": [None if math.isnan(x) else x for x in u.tolist()],
        "v": [[None if math.isnan(x) else x for x in row] for row in v.tolist()],
        "eliminated": list(eliminated), "necessary": necessary(episode, env),
    }  # fmt: skip


def draw_credits(maps: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What every step of a handful of episodes was worth and cost, of the first and the last iteration there is.

    Steps that the oracle needs as well have a bold label, eliminated ones a grey one.

    Args:
        maps: One an episode: ``iteration``, ``task_id``, ``success``, ``steps`` (a label each), ``u`` (success credit
            a step) and ``v`` (cost credits a step, one a channel); None is not measured. ``eliminated`` and
            ``necessary`` list steps.
        path: The picture.
    """
    first, last = maps[0]["iteration"], maps[-1]["iteration"]
    chosen = [m for m in maps if m["iteration"] == first][:3]
    chosen += [m for m in maps if m["iteration"] == last != first][:3]
    heights = [len(m["steps"]) + 2.2 for m in chosen]
    figure = _figure(11, 0.34 * sum(heights) + 0.6)
    axes = figure.subplots(len(chosen), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    columns = ["success credit u", *(f"cost credit v:\n{k.replace('_', ' ')}" for k in CHANNELS)]
    for axis, m in zip(axes, chosen, strict=True):
        raw = np.array([[u, *v] for u, v in zip(m["u"], m["v"], strict=True)], dtype=float)
        scale = [1.0, *(np.nanmax(np.abs(raw[:, k]), initial=1e-9) for k in range(1, raw.shape[1]))]
        texts = [["not measured" if math.isnan(x) else _number(x) if k else f"{x:+.1f}" for k, x in enumerate(row)]
                 for row in raw]  # fmt: skip
        _heat(axis, raw / scale, "RdBu_r", texts)
        labels = [f"{t}  {''.join(c if c.isprintable() else '?' for c in x)}" for t, x in enumerate(m["steps"])]
        axis.set_yticks(range(len(raw)), labels, fontsize=8, parse_math=False)  # a model may well write "$x_{$"
        for t, label in enumerate(axis.get_yticklabels()):
            label.set(color="grey" if t in m["eliminated"] else "black",
                      weight="bold" if t in m["necessary"] else "normal")  # fmt: skip
        axis.set_xticks(range(len(columns)), columns, fontsize=8)
        end = "passed" if m["success"] else "failed"
        axis.set_title(f"iteration {m['iteration']}: {m['task_id']} ({end})", fontsize=9, parse_math=False)
    figure.text(0.0, 0.0, "bold: the oracle needs it; grey: eliminated", fontsize=8, va="bottom")
    _save(figure, path)


def draw_conflict(rows: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """The cosine of every two groups' gradients (``cosine/i_j``) over the iterations, and its mean over them.

    One group alone, no picture.

    Args:
        rows: The iterations.
        names: The groups, by number.
        path: The picture.
    """
    count = len(names)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    if not pairs:
        return
    over = np.array([[row.get(f"cosine/{i}_{j}", math.nan) for row in rows] for i, j in pairs])
    figure = _figure(13, 1.6 + max(2.6, 0.3 * len(pairs)))
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 1.4]})
    image = _heat(left, over, "RdBu")
    image.set_extent((rows[0]["iteration"] - 0.5, rows[-1]["iteration"] + 0.5, len(pairs) - 0.5, -0.5))
    _whole(left)
    left.set_yticks(range(len(pairs)), [f"{j} and {i}" for i, j in pairs], fontsize=8)
    left.set(xlabel="iteration", ylabel="groups", title="cosine of two groups' gradients (grey: not both in the batch)")
    mean = np.full((count, count), math.nan)
    for (i, j), cosines in zip(pairs, over, strict=True):
        if not np.isnan(cosines).all():
            mean[i, j] = mean[j, i] = np.nanmean(cosines)
    texts = [["" if math.isnan(x) else f"{x:.2f}" for x in row] for row in mean]
    image = _heat(right, mean, "RdBu", texts)
    right.set_xticks(range(count), range(count), fontsize=8)
    labels = [f"{i}: {_short(name, 28)}" for i, name in enumerate(names)]
    right.set_yticks(range(count), labels, fontsize=8, parse_math=False)
    right.set_title("mean over the run")
    figure.colorbar(image, ax=right, label="cosine")
    _save(figure, path)


def draw_passk(tested: Sequence[Row], rows: Sequence[Row], path: Path) -> None:
    """``pass@k`` of unseen tasks for every k, and the conflict rate of the updates (``conflict/rate``), on one axis.

    Args:
        tested: A row a test; ``iteration`` is the number of updates before it.
        rows: The iterations.
        path: The picture.
    """
    figure = _figure(8, 4.5)
    axis = figure.subplots()
    ks = sorted({int(name[5:]) for row in tested for name in row if name.startswith("pass@")})
    for k, shade in zip(ks, np.linspace(0.45, 1.0, len(ks)), strict=True):
        x, y = _points(tested, f"pass@{k}")
        axis.plot(x, y, marker="o", color=(0.1, 0.3, 0.7, shade), label=f"pass@{k}, unseen tasks")
    x, rate = _points(rows, "conflict/rate")
    if rate:
        _curve(axis, x, rate, color="tab:red", alpha=0.35, linewidth=1, label="conflict rate of an update")
        _curve(axis, x, _of_five(rate), color="tab:red", label="mean of five updates")
    _whole(axis)
    axis.set(xlabel="updates", ylabel="share", ylim=(-0.02, 1.02))
    if ks or rate:
        axis.legend(fontsize=8, loc="upper left")
    _save(figure, path)


def draw_diversity(tables: Mapping[str, Table], path: Path) -> None:
    """How different the episodes of a task are (the rows ``different ...`` and ``distinct-...``), a bar a table.

    No such row, no picture: no episode reached a verdict.
    """
    found = dict.fromkeys(name for one in tables.values() for name in one)
    names = [name for name in found if name.startswith(("different", "distinct"))]
    if not names:
        return
    figure = _figure(2.6 * len(names), 3.6)
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for at, one in enumerate(tables.values()):
            interval = one.get(name, (0.0, 0.0, 0.0))
            _bar(axis, at, interval, color=f"C{at}")
            text = f"{interval[0]:.2f}" if name in one else "none"
            axis.annotate(text, (at, interval[2]), (0, 4), textcoords="offset points", ha="center", fontsize=9)
        axis.margins(y=0.12)
        axis.set_xticks(range(len(tables)), tables)
        axis.set_title(name.replace(" a task", "\na task").replace(" of a", "\nof a"), fontsize=9)
    _save(figure, path)


def draw_groups(rows: Sequence[Row], names: Sequence[str], tables: Mapping[str, Table], path: Path) -> None:
    """Success of every group: in training (``group/i_success``), and on unseen tasks (``success, NAME``).

    Args:
        rows: The iterations.
        names: The groups, by number.
        tables: The tests, one bar each from left to right.
        path: The picture.
    """
    figure = _figure(12, 4.5)
    left, right = figure.subplots(1, 2, sharey=True)
    for i in range(len(names)):
        x, y = _points(rows, f"group/{i}_success")
        _curve(left, x, _of_five(y), color=f"C{i}", label=str(i))
    left.set(xlabel="iteration", ylabel="success", title="training episodes, mean of five iterations", ylim=(0, 1.02))
    _whole(left)
    left.legend(title="group", fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    width = 0.8 / max(1, len(tables))
    for at, one in enumerate(tables.values()):
        for i, name in enumerate(names):
            if interval := one.get(f"success, {name}"):
                x_bar = i + (at - (len(tables) - 1) / 2) * width
                _bar(right, x_bar, interval, width=width, color=f"C{i}", alpha=1.0 if at else 0.45)
    labels = [f"{i}: {_short(name, 24)}" for i, name in enumerate(names)]
    turned = {"rotation": 20, "ha": "right"} if max(map(len, labels)) * len(labels) > 70 else {}
    right.set_xticks(range(len(names)), labels, fontsize=8, parse_math=False, **turned)
    right.set_title(f"unseen tasks: {', '.join(tables)} (left to right)")
    _save(figure, path)


def draw_rounds(rows: Sequence[Row], bounds: Mapping[str, float], pass_k: int, path: Path) -> None:
    """Success with its intervals, and mean costs, on the validation tasks over the rounds.

    Args:
        rows: A row a round: ``validation/`` with pass_at_k, success and in_budget_success, each with its ``_low`` and
            ``_high``, and ``cost/`` with the channels.
        bounds: The budget, which is the unit of a channel's cost; infinite where there is none.
        pass_k: The k of pass_at_k.
        path: The picture.
    """
    figure = _figure(8, 7)
    top, bottom = figure.subplots(2, 1, sharex=True)
    x = [row["iteration"] for row in rows]
    for key, label, colour in (
        ("pass_at_k", f"pass@{pass_k}", "tab:orange"),
        ("success", "success", "tab:green"),
        ("in_budget_success", "in-budget success", "tab:blue"),
    ):
        value, low, high = (
            [row.get(f"validation/{key}{end}", math.nan) for row in rows] for end in ("", "_low", "_high")
        )
        top.plot(x, value, marker="o", color=colour, label=label)
        top.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    top.set(ylabel="share of validation tasks, 95% interval", ylim=(-0.02, 1.02))
    top.legend(loc="upper left")
    for channel in CHANNELS:
        at, costs = _points(rows, f"cost/{channel}")
        bound, name = bounds[channel], channel.replace("_", " ")
        if not 0 < bound < math.inf:
            bound, name = (costs[0] if costs else 0.0) or 1.0, f"{name} (no bound: relative to the first)"
        bottom.plot(at, [cost / bound for cost in costs], marker="o", label=name)
    bottom.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    bottom.set(xlabel="round (0: the start)", ylabel="mean cost, relative to its bound", xticks=x)
    bottom.set_ylim(bottom=0.0)
    bottom.legend(title="cost channel", loc="upper right")
    _save(figure, path)
