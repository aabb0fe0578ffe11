"""``agent-gym replay``: what the steps of recorded episodes were worth, and which of them could go."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from agent_gym.cli.errors import Failure, made
from agent_gym.cli.tasks import costs
from agent_gym.costs import CHANNELS
from agent_gym.replay import Counterfactual, Delete, Drift, Elimination, counterfactuals, eliminate
from agent_gym.trajectory import Step, Trajectory

MOST_LABEL = 52
PICTURED = 3


class Credits(NamedTuple):
    """An episode's credits: by leaving out each step alone, and by elimination where it passed."""

    episode: Trajectory
    alone: list[Counterfactual]
    eliminated: Elimination | None

    def kept(self, t: int) -> tuple[int, int]:
        """How many calls of a step elimination keeps, and of how many; a step without calls counts as one."""
        assert self.eliminated is not None
        calls = len(self.episode.steps[t].tool_results)
        if calls < 2:
            return int(t in self.eliminated.kept), 1
        return sum((t, n) in self.eliminated.kept for n in range(calls)), calls


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    parser = commands.add_parser(
        "replay", help="the credits of recorded episodes",
        description="Replay recorded episodes without each of their steps. For every step: u, the reward lost without "
        "it; what would be saved without it, and all that hangs on it, by channel; and whether elimination, which "
        "takes needless steps out of a success for good, keeps it. No language model is called.",
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE", help="a trajectory file (.jsonl or .jsonl.gz)")
    parser.add_argument("--task", metavar="TASK_ID", help="only the episodes of this task")
    parser.add_argument("--picture", type=Path, metavar="FILE.png",
                        help=f"also draw the first {PICTURED} episodes (needs the extra 'train')")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a table for each episode."""
    from agent_gym.evaluation.result import unpack_trajectories

    if args.picture is not None:
        from agent_gym.lm import figures
    episodes = [e for e in unpack_trajectories(args.file) if args.task in (None, e.task_id)]
    if not episodes:
        raise Failure(f"{args.file} holds no episode" + (f" of the task {args.task!r}" if args.task else ""))
    envs: dict[str, gym.Env] = {}
    maps = []
    for number, episode in enumerate(episodes, start=1):
        key = f"{episode.env_id} {json.dumps(episode.env_kwargs, sort_keys=True)}"
        if key not in envs:
            envs[key] = made(episode.env_id, episode.env_kwargs)
        try:
            found = measure(envs[key], episode)
        except Drift as fault:
            raise Failure(f"{args.file}, episode {number} ({episode.task_id}): {fault}") from fault
        _print(number, found)
        if args.picture is not None and number <= PICTURED:
            maps.append(_map(found, envs[key]))
    if args.picture is not None:
        figures.draw_credits(maps, args.picture)
        print(f"picture: {args.picture}")
    return 0


def measure(env: gym.Env, episode: Trajectory) -> Credits:
    """An episode's credits.

    Args:
        env: Made as the episode's was.
        episode: The episode.

    Raises:
        Drift: If the environment does not repeat it.
    """
    alone = counterfactuals(env, episode, [Delete(t) for t in range(len(episode.steps))])
    bounds = episode.env_kwargs.get("budget") or episode.cost_total  # without a budget: the share of the whole
    prices = {channel: bound for channel, bound in bounds.items() if bound > 0}
    return Credits(episode, alone, eliminate(env, episode, prices) if episode.success else None)


def _print(number: int, found: Credits) -> None:
    episode = found.episode
    verdict = episode.verdict or {"status": "no verdict", "reason": "cut"}
    print(f"episode {number}: {episode.env_id}, task {episode.task_id}: {verdict['status']} ({verdict['reason']})")
    print(f"  {'step':<{MOST_LABEL + 4}} {'u':>5} {' '.join(f'{channel:>13}' for channel in CHANNELS)}  elimination")
    for t, (step, one) in enumerate(zip(episode.steps, found.alone, strict=True)):
        u = "-" if math.isnan(one.success_credit) else f"{one.success_credit:+.1f}"
        saved = " ".join(f"{one.cost_credit[channel]:>13.10g}" for channel in CHANNELS)
        print(f"  {t:>3} {_label(step):<{MOST_LABEL}} {u:>5} {saved}  {_fate(found, t)}".rstrip())
    print(f"  cost: {costs(episode.cost_total)}")
    if found.eliminated is not None:
        print(f"  after elimination: {costs(found.eliminated.trajectory.cost_total)}")
    print()


def _fate(found: Credits, t: int) -> str:
    """What elimination does with a step."""
    if found.eliminated is None:
        return ""
    kept, of = found.kept(t)
    return "kept" if kept == of else "goes" if kept == 0 else f"{kept} of {of} calls kept"


def _label(step: Step) -> str:
    """A step in a line of the table."""
    calls = [f"{r['name']}({', '.join(map(str, r['arguments'].values()))})" for r in step.tool_results]
    said = step.action if isinstance(step.action, str) else step.action.get("content")
    text = " ".join(("; ".join(calls) or f"answer: {said}").split())
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= MOST_LABEL else plain[: MOST_LABEL - 3] + "..."


def _map(found: Credits, env: gym.Env) -> dict[str, Any]:
    """The episode as :func:`agent_gym.lm.figures.draw_credits` takes it."""
    import numpy as np

    from agent_gym.lm.figures import credit_map

    u = np.array([one.success_credit for one in found.alone])
    v = np.array([[one.cost_credit[channel] for channel in CHANNELS] for one in found.alone])
    gone: Sequence[int] = []
    if found.eliminated is not None:
        gone = [t for t in range(len(found.alone)) if found.kept(t)[0] == 0]
    return credit_map(0, found.episode, u, v, gone, env)
