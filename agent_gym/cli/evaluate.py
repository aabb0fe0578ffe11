"""``agent-gym eval``: an agent on a task set, to a result file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from agent_gym.costs import CHANNELS

DESCRIPTION = """Let an agent play the tasks of a set, and write a result file with a trajectory file beside it.

Agents: oracle; noop, which answers at once; random, valid calls drawn evenly; baseline, a scripted agent of the
environment; tiny:ENV or the folder of a checkpoint, with the extra train; openai:MODEL@URL, a model behind a server
that speaks chat completions (a key is taken from OPENAI_API_KEY); MODULE:FUNCTION, a function agent(messages, info)
that returns the next turn, text or message."""


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    parser = commands.add_parser(
        "eval", help="an agent on a task set, to a result file", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--agent", required=True, help="who plays; see above")
    parser.add_argument("--tasks", required=True, metavar="SET", help="a task set, such as SQL-mini-v1, or a path")
    parser.add_argument("--env-id", help="whose tasks a path holds")
    parser.add_argument(
        "--budget", type=_budget, default={}, metavar="CHANNEL=BOUND,...",
        help=f"bounds of an episode, such as tool_calls=6,read_tokens=400; channels: {', '.join(CHANNELS)}; they end "
        "no episode, what is above them is counted",
    )  # fmt: skip
    parser.add_argument("--samples", type=_whole, default=1, help="episodes of each task (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the agent's chance and of the intervals (0)")
    parser.add_argument("--workers", type=_whole, default=4, help="episodes side by side (4)")
    parser.add_argument("--out", type=Path, help="result file (results/SET/AGENT.json)")
    parser.add_argument("--resume", action="store_true", help="go on with an evaluation that was interrupted")
    model = parser.add_argument_group("language models")
    model.add_argument("--temperature", type=float, default=1.0, help="of the sampling (1.0)")
    model.add_argument("--max-tokens", type=_whole, help="of one turn (512; for a checkpoint by its size)")
    model.add_argument("--timeout", type=float, default=60.0, help="seconds without a byte of an answer (60)")
    model.add_argument("--tries", type=_whole, default=6, help="times that a request is sent, at most (6)")
    model.add_argument("--rpm", type=float, help="requests a minute, at most")
    model.add_argument("--calls", choices=["native", "text"], default="native",
                       help="tools as the protocol has them, or written into the conversation")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, and print the aggregates."""
    from agent_gym.evaluation.agents import open_agent
    from agent_gym.evaluation.run import evaluate, file_of
    from agent_gym.tasksets import open_set

    tasks = open_set(args.tasks, args.env_id)
    agent = open_agent(
        args.agent, temperature=args.temperature, max_tokens=args.max_tokens, timeout=args.timeout, tries=args.tries,
        per_minute=args.rpm, native=args.calls == "native",
    )  # fmt: skip
    out = args.out or Path("results", file_of(tasks.name), f"{file_of(agent.name)}.json")
    result = evaluate(
        agent, tasks, out, budget=args.budget, samples=args.samples, seed=args.seed, workers=args.workers,
        resume=args.resume, tell=_tell if sys.stderr.isatty() else lambda done, of: None,
    )  # fmt: skip
    for line in summary(result):
        print(line)
    print(out)
    return 0


def summary(result: Any) -> list[str]:
    """The aggregates, a line each."""
    found, lost = result.aggregates, sum(one.success is None for one in result.outcomes)
    rows = {"success": found.success, "in-budget success": found.in_budget_success} if result.budget else {
        "success": found.success}  # fmt: skip
    rows |= {f"pass@{k}": interval for k, interval in found.pass_at_k.items() if k != "1"}
    rows |= {"success within 1 to 4 times the oracle's cost": found.pareto_auc}
    rows |= found.cost
    rows |= {f"{name} over budget": interval for name, interval in found.violation_rate.items()}
    rows |= {"calls that were for nothing": found.redundant_call_rate}
    width = max(map(len, rows))
    lines = [f"{result.agent.name} on {result.tasks.name}: {result.tasks.count} tasks, {result.samples} each"]
    lines += [f"  {name:<{width}}  {_shown(interval)}" for name, interval in rows.items()]
    lines += [f"  {'failures':<{width}}  {', '.join(f'{n} {kind}' for kind, n in found.failures.items())}"] * bool(
        found.failures
    )
    return lines + [f"  {lost} episodes without a verdict: our machinery failed"] * bool(lost)


def _shown(interval: tuple[float | None, ...]) -> str:
    mean, low, high = (f"{value:.3g}" if value is not None else "-" for value in interval)
    return f"{mean} [{low}, {high}]"


def _tell(done: int, of: int) -> None:
    print(f"\r{done}/{of}", end="\n" if done == of else "", file=sys.stderr, flush=True)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _budget(text: str) -> dict[str, float]:
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, _, bound = part.partition("=")
        try:
            bounds[name.strip()] = float(bound)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is no CHANNEL=BOUND, such as tool_calls=6") from None
        if name.strip() not in CHANNELS:
            raise argparse.ArgumentTypeError(f"unknown channel {name!r}; the channels are {', '.join(CHANNELS)}")
    return bounds
