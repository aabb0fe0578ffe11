"""Rejection-sampling fine-tuning under budgets: sample, keep what passed and stayed within the budgets, refit, repeat.

    round r:  sample   n episodes a task with the policy of round r - 1   (or let a teacher play them)
              prune    with --keep pruned: what passed loses the calls that it did not need
              select   what passed within the budgets: once by its call sequence, at most so many a task
              refit    the policy that the run started from to all that was kept so far, the model's tokens only
              test     on unseen tasks: success, pass@k, success within the budgets

The rounds are those of STaR (Zelikman et al. 2022) and ReST-EM (Singh et al. 2023), which begin every refit at the
start; keeping different ways to a solution once each is RFT's (Yuan et al. 2023). New is that the budgets select, and
that a dear success may be pruned until it is within them. Left out: a reward threshold that rises (rewards are 0 or 1),
hints for the tasks that nobody solved, weights. There is no advantage, no ratio and no value function: whoever wants
them goes on with another trainer, which takes the checkpoint with ``--init``.

``--stage sft`` is one refit to trajectory files, or without any the warm start alone.

Docs: docs/rft.md
"""

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import agent_gym.lm  # isort: skip  # noqa: F401  (before torch)
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agent_gym import CHANNELS, ToolCache, Trajectory, eliminate, metrics, read_trajectories
from agent_gym.files import write
from agent_gym.lm.arguments import Common, at_least, env_kwargs_of, fill, model_of, size_of
from agent_gym.lm.budget import bounds
from agent_gym.lm.chat import Chat
from agent_gym.lm.demonstrations import Example, dialogue_of, encoded
from agent_gym.lm.endpoint import Endpoint, play_endpoint
from agent_gym.lm.engine import Engine, Turn
from agent_gym.lm.errors import Refused
from agent_gym.lm.figures import draw_rounds, table
from agent_gym.lm.models import Model, is_tiny, passes, token_logprobs
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import Episode, Limits, environments, evaluate, play
from agent_gym.lm.runs import Run, command, dumps, peak_memory
from agent_gym.lm.seeds import stream
from agent_gym.lm.shards import clip, exchange, in_step
from agent_gym.lm.start import starting_policy
from agent_gym.lm.tiny import preset
from agent_gym.lm.vllm_engine import engine_of

Interval = tuple[float, float, float]  # mean, and both ends of its 95% interval
SPLITS, WHEN = ("validation", "test"), ("start", "final")  # of the table

SIZES: dict[str, dict[str, Any]] = {  # what is not set follows the size of the model
    "tiny": {"learning_rate": 5e-4, "epochs": 12, "parallel": 128},
    "small": {"learning_rate": 2e-4, "epochs": 4, "parallel": 64},  # below one billion parameters
    "large": {"learning_rate": 5e-5, "epochs": 3, "parallel": 64},
}


@dataclass
class Args(Common):
    env_id: str = "APIAgent-v0"
    """Gymnasium id of the environment"""
    env_kwargs: str | None = None
    """keyword arguments of gym.make, as JSON; unset, the preset's; split and budget are set by this script"""
    stage: Literal["rft", "sft"] = "rft"
    """rounds of sampling, selection and refit, or one refit to --data; without data the warm start alone"""
    data: tuple[str, ...] = ()
    """trajectory files for stage sft, which fits what passed in them"""
    keep: Literal["success", "success-in-budget", "cheapest-per-task", "pruned", "pruned-any"] = "success-in-budget"
    """what is kept of the samples: all that passed, what passed within every bound, of each task the cheapest that
    passed, what passes within every bound without the calls that it did not need, or all that passed without those"""

    rounds: int = 2
    """rounds of stage rft"""
    total_tokens: int | None = None
    """sample no more after the batch of --parallel episodes in which this many tokens have been generated"""
    tasks_per_round: int = 96
    """training tasks a round, fresh ones in each"""
    samples_per_task: int = 4
    """n: episodes of one task"""
    most_per_task: int = 2
    """kept episodes of one task, at most, over all rounds: the first ones, or the last ones of those that were pruned;
    cheapest-per-task keeps one"""
    parallel: int | None = None
    """episodes played side by side, over all processes; unset, by the model's size"""
    teacher_url: str | None = None
    """sample from this OpenAI-compatible endpoint instead of the policy, such as http://localhost:8000/v1; a key is
    taken from the variable OPENAI_API_KEY"""
    teacher_model: str | None = None
    """the teacher's name at that endpoint"""
    teacher_timeout: float = 60.0
    """seconds without a byte of an answer, at most"""

    learning_rate: float | None = None
    """learning rate of AdamW in a refit, constant after a linear warm-up; unset, by the model's size, and a tenth of it
    where all parameters of a pretrained model are trained"""
    epochs: int | None = None
    """passes of a refit over what was kept, at most; unset, by the model's size"""
    batch_size: int = 16
    """episodes of one optimiser step"""
    ema: float = 0.9
    """what is left of the average of a refit's weights at each optimiser step; the average is the next policy; 0 takes
    the weights as they are"""
    held_out: float = 0.1
    """share of the kept tasks that a refit does not see: it ends with the epoch before their loss rises; 0 makes all
    epochs"""

    eval_episodes: int | None = None
    """tasks of each split of the table, validation and test; those of validation are played after each round; unset,
    256, or 48 for a pretrained model on a CPU"""
    pass_k: int = 4
    """k of pass@k"""
    pass_tasks: int = 32
    """tasks of a split that are played k times for it"""
    keep_best: bool = False
    """keep the checkpoint with the best in-budget success on validation, as checkpoints/best"""


# ---------------------------------------------------------------------------------------------------------------------
# Selection


def units(bounds: dict[str, float]) -> dict[str, float]:
    """What costs are divided by to be added up: the finite bounds; where nothing is bounded, tokens written count."""
    return {k: max(bound, 1e-9) for k, bound in bounds.items() if math.isfinite(bound)} or {"output_tokens": 1.0}


def price(trajectory: Trajectory, bounds: dict[str, float]) -> float:
    """What an episode cost: the sum of C_k / B_k over the bounded channels; tokens written where nothing is bounded."""
    return sum(trajectory.cost_total[channel] / unit for channel, unit in units(bounds).items())


def pruned(samples: Sequence[Trajectory], env: gym.Env, bounds: dict[str, float], ranks: Ranks) -> list[Trajectory]:
    """The samples, each success without the steps and calls that it can go without: an episode that was replayed and
    passed, with what the tools answered there. A turn keeps its sampled ids, unless it lost some of its calls: then it
    is text in the environment's format.

    Args:
        samples: The same in all processes, which share the work.
        env: Made as those they were played in.
        bounds: B_k by channel; inf is none. The dearest goes first.
    """
    cache = ToolCache()
    mine = [eliminate(env, t, units(bounds), cache=cache).trajectory if t.success else t for t in ranks.share(samples)]
    parts = ranks.gather(mine)
    return [parts[i % ranks.world][i // ranks.world] for i in range(len(samples))]


def select(
    samples: Sequence[Trajectory], keep: str, bounds: dict[str, float], most: int
) -> tuple[list[Trajectory], dict[str, int]]:
    """What is worth learning from: of the samples that ``keep`` allows, each way to solve a task once (equal calls in
    equal order are one way, whatever words stand around them), and at most ``most`` ways.

    Args:
        samples: Of all rounds, in the order they were sampled in; those without a verdict never count.
        keep: The rule, as ``--keep``; for ``pruned`` and ``pruned-any`` the samples are pruned.
        bounds: B_k by channel; inf is none.
        most: Of one task.

    Returns:
        What is kept, and how much each filter left.
    """
    within = keep in ("success-in-budget", "pruned")
    eligible = [t for t in samples if t.success and not (within and t.violates(bounds))]
    if keep == "cheapest-per-task":
        eligible.sort(key=lambda t: price(t, bounds))  # equal ones stay in their order
        most = 1
    onwards = -1 if keep.startswith("pruned") else 1  # the last ones come first
    ways: dict[str, set[tuple[str, ...]]] = {}
    kept = []
    for trajectory in eligible[::onwards]:
        known, way = ways.setdefault(trajectory.task_id, set()), metrics.call_sequence(trajectory)
        if way not in known and len(known) < most:
            kept.append(trajectory)
        known.add(way)
    distinct = sum(map(len, ways.values()))
    counts = {"eligible": len(eligible), "distinct": distinct, "kept": len(kept), "tasks_kept": len(ways)}
    return kept[::onwards], counts


# ---------------------------------------------------------------------------------------------------------------------
# Refit


def losses(model: Model, examples: Sequence[Example], args: Args, ranks: Ranks) -> Iterator[Tensor]:
    """The negative log-likelihood of what the model shall write, summed over the tokens of a forward pass: one scalar
    a pass."""
    rows, spans = [ids for ids, _ in examples], [spans for _, spans in examples]
    for part in in_step(model, ranks, passes(model, rows, spans, args.micro_batch_tokens)):
        yield -token_logprobs(model, [rows[i] for i in part], [spans[i] for i in part]).logprobs.sum()


def written(examples: Sequence[Example]) -> int:
    """Tokens of the model in them."""
    return sum(end - begin for _, spans in examples for begin, end in spans)


def set_apart(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """What is fitted, and every (1 / share)-th task, by which the fit is judged. A task is known by its prompt; no seed
    has a part in it, so that refits of the same data are judged alike."""
    prompts = [tuple(ids[: spans[0][0]]) for ids, spans in examples]
    every = round(1.0 / share) if share else len(prompts) + 1
    held = set(list(dict.fromkeys(prompts))[every - 1 :: every])
    of_both = list(zip(examples, prompts, strict=True))
    return [one for one, prompt in of_both if prompt not in held], [one for one, prompt in of_both if prompt in held]


def refit(model: Model, examples: Sequence[Example], args: Args, ranks: Ranks, seed: int) -> dict[str, float]:
    """Fit the model, from where it stands, to the tokens that it shall write.

    The loss of a batch is the mean over its model tokens, whatever rows and processes they are spread over. A batch
    whose gradient is not finite is skipped, in all processes alike, since they all see the sum.

    One seed's last weights differ much from another's; their average over the steps does not (Polyak and Juditsky 1992;
    in place of a decay of the learning rate, Izmailov et al. 2018). It is judged after each epoch on the tasks that are
    held out, and what is left in the model is the average before their loss rose.

    Args:
        model: Trained in place.
        examples: Ids [tokens] and spans [turns][2] of each episode, the same in all processes.
        seed: Of the order of the episodes.

    Returns:
        Mean loss a model token: while fitting, over the last epoch, and of the held-out tasks; the epochs that count,
        and the batches skipped.
    """
    fitted, held = set_apart(examples, args.held_out)
    rng, size, parameters, updates, skipped = random.Random(seed), args.batch_size, model.trained(), 0, 0
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0)
    average = [p.detach().clone() for p in parameters]
    best, lowest, last = average, math.inf, 0

    for epoch in tqdm(range(1, (args.epochs or 0) + 1), "refit", disable=not ranks.first):
        order = rng.sample(fitted, len(fitted))
        sums = np.zeros(2)  # of this process's share: the negative log-likelihood, tokens
        for at in range(0, len(order), size):
            batch = sorted(order[at : at + size], key=lambda one: len(one[0]))
            count, loss, updates = written(batch), 0.0, updates + 1
            for value in losses(model, ranks.share(batch), args, ranks):
                (value / count).backward()
                loss += float(value.detach())
            ranks.all_reduce_gradients(parameters)
            for group in optimizer.param_groups:
                group["lr"] = (args.learning_rate or 0.0) * min(1.0, updates / 10)
            if math.isfinite(clip(parameters, args.max_grad_norm)):
                optimizer.step()
                sums += loss, count / ranks.world
            else:
                skipped += 1
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for p, q in zip(parameters, average, strict=True):
                    q.lerp_(p, 1.0 - args.ema)
        exchange(parameters, average)
        with torch.no_grad():
            unseen = sum(float(value) for value in losses(model, ranks.share(held), args, ranks))
        exchange(parameters, average)
        judged = float(ranks.sum(np.array([unseen]))[0]) / written(held) if held else math.nan
        if held and not judged < lowest:
            break
        best, lowest, last = [q.clone() for q in average], judged, epoch
    with torch.no_grad():
        for p, q in zip(parameters, best, strict=True):
            p.copy_(q)
    model.eval()
    total, tokens = ranks.sum(sums)
    return {
        "losses/refit": float(total / tokens) if tokens else math.nan, "losses/held_out": lowest,
        "losses/epochs": float(last), "losses/skipped_steps": float(skipped),
    }  # fmt: skip


def sampler_gap(
    engine: Engine, model: Model, examples: Sequence[Example], args: Args, draws: Sequence[int]
) -> dict[str, float]:
    """How far the log-probabilities of the engine are from those of a training pass: it writes the first turn of some
    examples anew, one for each draw."""
    prompts, turns = [ids[: spans[0][0]] for ids, spans in examples[: len(draws)]], list[Turn]()
    for key, prompt in enumerate(prompts):
        engine.submit(key, prompt, min(args.max_new_tokens or 0, (args.max_context or 0) - len(prompt)), draws[key])
    while len(turns) < len(prompts):
        turns += engine.step()
    engine.release(range(len(prompts)))
    gaps = np.zeros(0)
    for key, ids, logprobs, _ in sorted(turns):
        row, span = prompts[key] + ids, (len(prompts[key]), len(prompts[key]) + len(ids))
        with torch.no_grad():
            trained = token_logprobs(model, [row], [[span]], args.temperature).logprobs
        gaps = np.append(gaps, np.abs(trained.cpu().numpy() - logprobs))
    return {"losses/sampler_gap_mean": float(gaps.mean()), "losses/sampler_gap_max": float(gaps.max())}


# ---------------------------------------------------------------------------------------------------------------------
# Sample, and what comes from files


def sample(
    number: int, spent: int, player: Callable[..., Any], args: Args, run: Run, ranks: Ranks
) -> tuple[list[Trajectory], int, int]:
    """All samples of a round: what the run folder holds is read, only the rest is played. Every episode is a file as
    soon as it has ended, and has draws of its own: it is the same whoever plays it, and whenever.

    Args:
        number: Of the round.
        spent: Tokens generated before it.
        player: Plays an episode from each start, with a draw each; calls ``keep`` as each ends.

    Returns:
        The episodes, task by task; their tokens, and those of them that were generated just now.
    """
    parts, n, now = run.path(f"trajectories/round_{number:02d}"), args.samples_per_task, 0
    whole, counted = (parts.with_name(parts.name + end) for end in ("_samples.jsonl", "_tokens.json"))
    tasks = range(args.tasks_per_round)
    step = len(tasks) if args.total_tokens is None else max(1, (args.parallel or 0) // n)

    def keep(place: int, episode: Episode, tokens: int) -> None:
        nonlocal now
        now += tokens
        write(parts / f"{mine[place]:06d}.txt", f"{tokens}\n{episode.trajectory().to_json()}\n")
        bar.update()

    if not whole.exists():
        parts.mkdir(exist_ok=True)
        tokens, lines = 0, ""
        with tqdm(total=len(tasks) * n, desc=f"round {number}, samples", disable=not ranks.first) as bar:
            for at in range(0, len(tasks), step):
                if args.total_tokens is not None and spent + tokens >= args.total_tokens:
                    break
                mine = [task * n + k for task in ranks.share(tasks[at : at + step]) for k in range(n)]
                mine = [i for i in mine if not (parts / f"{i:06d}.txt").exists()]
                starts = [stream("task", args.seed, number, i // n) for i in mine]
                player(starts, [stream("rollout", args.seed, number, i) for i in mine], keep)
                ranks.barrier()
                for i in range(at * n, min(at + step, len(tasks)) * n):
                    count, line = (parts / f"{i:06d}.txt").read_text(encoding="utf-8").split("\n", 1)
                    tokens, lines = tokens + int(count), lines + line
        if ranks.first:
            write(counted, dumps(tokens))
            write(whole, lines)
        ranks.barrier()
    if ranks.first:
        shutil.rmtree(parts, ignore_errors=True)
    return read(whole), json.loads(counted.read_text()), int(ranks.sum(np.array([now]))[0])


def read(path: Path) -> list[Trajectory]:
    """A trajectory file; warns of a last line that is cut off, and leaves it out."""
    try:
        return list(read_trajectories(path))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Refused(str(error)) from None


def opened(trajectories: Sequence[Trajectory], path: Path, chat: Chat, args: Args, ranks: Ranks) -> list[Example]:
    """The episodes of a file that passed and are not too long, as ids and spans. The file does not hold what the model
    saw before an episode, but the reset of its task gives it again.

    Raises:
        Refused: With the file and the line, if it does not.
    """
    envs, examples = dict[str, gym.Env](), list[Example]()
    for line, trajectory in enumerate(trajectories, start=1):
        if not trajectory.success:
            continue
        where, kwargs = f"{path}, line {line}", {"split": "train", **trajectory.env_kwargs, "parser": chat.parser}
        kind = dumps(trajectory.env_kwargs)
        if kind not in envs:
            try:
                envs[kind] = gym.make(args.env_id, disable_env_checker=True, **kwargs)
            except (gym.error.Error, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
                raise Refused(f"{where}: its task {trajectory.task_id!r} cannot be opened: {error}") from None
        examples.append(encoded(chat, dialogue_of(trajectory, envs[kind], where)))
    short = [example for example in examples if len(example[0]) <= (args.max_context or 0)]
    if len(short) < len(examples) and ranks.first:
        print(
            f"{path}: {len(examples) - len(short)} of {len(examples)} episodes are longer than --max-context: left out"
        )
    return short


def given(copy: Path, chat: Chat, args: Args, run: Run, ranks: Ranks) -> list[Example]:
    """What passed in the files of --data, which the run copies: it is resumed from there."""
    files = [(path, read(path)) for path in ([copy] if copy.exists() else map(Path, args.data))]
    examples = [example for path, trajectories in files for example in opened(trajectories, path, chat, args, ranks)]
    passed = [t for _, trajectories in files for t in trajectories if t.success]
    if ranks.first:
        print(f"--data: {len(passed)} of {sum(len(trajectories) for _, trajectories in files)} episodes passed")
    run.trajectories(copy.stem, passed)
    return examples


# ---------------------------------------------------------------------------------------------------------------------
# What the rounds are judged by


def of_samples(
    samples: Sequence[Trajectory], shorter: Sequence[Trajectory], bounds: dict[str, float]
) -> dict[str, float]:
    """What a round's samples are like, and how much of them was pruned; those without a verdict are counted and left
    out."""
    judged = [t for t in samples if t.reward is not None]
    actions = [step.action for t in samples for step in t.steps]
    calls, left = (sum(t.cost_total["tool_calls"] for t in of if t.success) for of in (samples, shorter))
    cut = [isinstance(action, Mapping) and action.get("finish_reason") == "length" for action in actions]
    return {
        "charts/samples": float(len(samples)), "charts/infra": float(len(samples) - len(judged)),
        "charts/sample_success": metrics.success_rate(judged),
        "charts/sample_in_budget": metrics.in_budget_success(judged, bounds),
        "charts/pruned_calls": 1.0 - left / calls if calls else math.nan,
        "charts/cut_turns": float(np.mean(cut)) if cut else math.nan,
    }  # fmt: skip


def summary(tested: Sequence[Trajectory], bounds: dict[str, float], k: int) -> dict[str, Interval]:
    """Every figure of the table with its 95% interval: Wilson for shares, bootstrap over tasks for means.

    Args:
        tested: The first episode of a task counts; pass@k (Chen et al. 2021) looks at all, where there are k.
        bounds: B_k by channel; inf is none.
        k: Of pass@k.
    """
    firsts = {t.seed: t for t in reversed(tested)}.values()
    counted = [t for t in reversed(firsts) if t.reward is not None]
    shares = {"success@1": [t.success for t in counted]}
    shares |= {f"violation {c}": [t.cost_total[c] > bounds[c] for t in counted] for c in CHANNELS}
    shares["violation any"] = [t.violates(bounds) for t in counted]
    shares["in-budget success"] = [t.success and not t.violates(bounds) for t in counted]
    found = {name: metrics.share_interval(hits) for name, hits in shares.items()}
    found |= {f"mean {c}": metrics.mean_interval([t.cost_total[c] for t in counted], seed=0) for c in CHANNELS}
    hits: dict[int | None, list[bool]] = {}
    for t in tested:
        hits.setdefault(t.seed, []).extend([t.success] if t.reward is not None else [])
    chances = [metrics.pass_at_k(len(own), sum(own), k) for own in hits.values() if len(own) >= k]
    return found | {f"pass@{k}": metrics.mean_interval(chances, seed=0)}


def row_of(found: Mapping[str, Interval], k: int) -> dict[str, float]:
    """The summary under the names of metrics.jsonl."""
    row: dict[str, float] = {}
    names = {"success": "success@1", "pass_at_k": f"pass@{k}", "in_budget_success": "in-budget success"}
    for key, name in names.items():
        row |= {f"validation/{key}{end}": x for end, x in zip(("", "_low", "_high"), found[name], strict=True)}
    row |= {f"cost/{channel}": found[f"mean {channel}"][0] for channel in CHANNELS}
    return row | {f"violation/{name}": found[f"violation {name}"][0] for name in (*CHANNELS, "any")}


def report(run: Run, bounds: dict[str, float], args: Args) -> None:
    """The end table and the picture, from the rows and the tests of the starting and the final policy."""
    rows = [row for row in run.rows if "validation/success" in row]
    if not rows:
        return
    draw_rounds(rows, bounds, args.pass_k, run.folder / "rounds.png")
    tables, infra = {split: dict[str, dict[str, Interval]]() for split in SPLITS}, 0
    for split, when in product(SPLITS, WHEN):
        if (path := run.path(f"trajectories/{split}_{when}.jsonl")).exists():
            tested = read(path)
            tables[split][when] = summary(tested, bounds, args.pass_k)
            infra += sum(t.reward is None for t in tested)
    names = ("eligible", "distinct", "kept", "tasks_kept", "generated_tokens")
    counts = {name.replace("_", " "): int(run.rows[-1].get(f"charts/{name}", 0)) for name in names}
    spent = counts["generated tokens"]
    run.json("result.json", {"tables": tables, "counts": counts, "generated_tokens": spent, "infra": infra})
    text = table({f"{split}, {when}": found for split, of in tables.items() for when, found in of.items()},
                 {"validation, final": counts} if "final" in tables["validation"] else None)  # fmt: skip
    run.text("table.md", text + "\n")
    finite = {channel: round(bound, 1) for channel, bound in bounds.items() if math.isfinite(bound)}
    print(f"{args.eval_episodes} unseen tasks a split, budget {finite}, mean [95% interval]\n{text}")


# ---------------------------------------------------------------------------------------------------------------------


def train(args: Args) -> None:
    # ---- set-up ----
    ranks = Ranks.start(args.device)
    kwargs = settle(args, ranks)
    rft, side = args.stage == "rft", -(-(args.parallel or 0) // ranks.world)
    limits, teacher = Limits(args.max_new_tokens or 0, args.max_context or 0), None
    if args.teacher_url:
        teacher = Endpoint(
            url=args.teacher_url, model=args.teacher_model or "", timeout=args.teacher_timeout,
            temperature=args.temperature, max_tokens=limits.new_tokens,
        )  # fmt: skip
    run = Run(args, f"{args.env_id}__rft__{args.keep if rft else 'sft'}__{args.seed}", ranks)
    model, chat = starting_policy(args, run, ranks, [(args.env_id, kwargs)])
    engine = engine_of(model, chat, args)

    made = partial(environments, args.env_id, chat=chat, ray_workers=args.ray_workers, **kwargs)
    seeds = [stream("oracle", i) for i in range(64)]
    own, (free,) = preset(args.env_id).budget, made(1, split="train", bounds={})
    budget = bounds(args.budget, own, free, seeds, tiny=is_tiny(args.model), ranks=ranks)
    count = min(side, args.tasks_per_round * args.samples_per_task) if rft else 0
    envs = made(count, split="train", bounds=budget)
    tests = {split: made(min(side, args.eval_episodes or 0), split=split, bounds=budget) for split in SPLITS}

    def player(starts: list[int], draws: list[int], keep: Callable[[int, Episode, int], None]) -> None:
        if teacher:
            play_endpoint(teacher, envs, starts, draws, keep)
        else:
            play(engine, chat, envs, starts, limits, draws=draws, on_done=lambda e: keep(e.index, e, len(e.logprobs)))

    def test(split: str, number: int) -> list[Trajectory]:
        """One episode on each task, the same for every run; then k - 1 more on some of them, for pass@k."""
        title = f"round {number}" if number else "start"
        tasks, key = [stream(split, i) for i in range(args.eval_episodes or 0)], stream("evaluate", args.seed, title)
        shared = partial(evaluate, engine, chat, tests[split], limits=limits, ranks=ranks, title=f"{split}, {title}")
        tested = shared(tasks, draw=key)
        return tested + shared(tasks[: args.pass_tasks], draw=stream(key, "again"), samples=args.pass_k - 1)

    # ---- the rounds; round 0 is the test of the start ----
    pool, spent, state, tested = list[Trajectory](), 0, dict[str, Any](round=0), list[Trajectory]()
    if newest := run.newest("round"):
        model.restore(newest)
        engine.update(model)
        state = run.state(newest)
    ranks.check_equal(model.trained())
    logged = {row["iteration"] for row in run.rows}
    best = max((row.get("validation/in_budget_success", -1.0) for row in run.rows), default=-1.0)
    for number in range(1 + (args.rounds if rft else bool(args.data))):
        row: dict[str, float] = {"iteration": number}
        clock = [time.perf_counter()]

        # sample
        if number and rft:
            if args.total_tokens is not None and spent >= args.total_tokens:
                break
            samples, tokens, now = sample(number, spent, player, args, run, ranks)
            spent += tokens
        clock.append(time.perf_counter())

        # prune
        if number and rft:
            shorter = pruned(samples, envs[0], budget, ranks) if args.keep.startswith("pruned") else samples
            pool += shorter
        if number in logged:
            continue

        # select
        path = run.path(f"trajectories/round_{number:02d}_kept.jsonl")
        if number and rft:
            kept, counts = select(pool, args.keep, budget, args.most_per_task)
            if not kept:
                raise Refused(
                    f"round {number}: none of {len(pool)} episodes can be kept with --keep {args.keep} "
                    f"({sum(t.success for t in pool)} passed); start from a better policy or sample more"
                )
            run.trajectories(path.stem, kept)
            row |= {f"charts/{name}": float(count) for name, count in counts.items()}
            row |= of_samples(samples, shorter, budget)
            row["speed/tokens_per_second"] = now / (clock[1] - clock[0])

        # refit the start to all that was kept
        if number > state["round"]:
            examples = opened(kept, path, chat, args, ranks) if rft else given(path, chat, args, run, ranks)
            if not examples:
                raise Refused(f"round {number}: no episode has passed and is within --max-context {args.max_context}")
            model.restore(run.path("checkpoints/start"))
            fit = refit(model, examples, args, ranks, stream("refit", args.seed, number))
            engine.update(model)
            fit |= sampler_gap(engine, model, examples, args, [stream("gap", args.seed, number, i) for i in range(8)])
            ranks.check_equal(model.trained())
            state = {"round": number, "fit": fit, "episodes": len(examples)}
            run.save(f"round_{number:02d}", model, state)
        if number:
            row |= state["fit"]
            row.setdefault("charts/kept", float(state["episodes"]))
        clock.append(time.perf_counter())

        # test
        if args.eval_episodes and (number or args.eval_start):
            tested = test("validation", number)
            if not number:
                run.trajectories("validation_start", tested)
                run.trajectories("test_start", test("test", 0))
            row |= row_of(summary(tested, budget, args.pass_k), args.pass_k)
            if args.keep_best and row["validation/in_budget_success"] > best:
                run.save("best", model, state)
            best = max(best, row["validation/in_budget_success"])
        elif not number:
            continue
        clock.append(time.perf_counter())

        row |= dict(zip(("seconds/sample", "seconds/refit", "seconds/test"), np.diff(clock).tolist(), strict=True))
        row |= {"charts/generated_tokens": float(spent), "memory/peak_gib": peak_memory(ranks.device)}
        run.log(row)

    if args.eval_episodes and (number := state["round"]):
        run.trajectories("validation_final", tested or test("validation", number))
        run.trajectories("test_final", test("test", number))
    if ranks.first:
        report(run, budget, args)
    run.close()


def settle(args: Args, ranks: Ranks) -> dict[str, Any]:
    """Refuse what cannot work, and fill in what follows from the environment and the model's size.

    Returns:
        Keyword arguments of the environment.
    """
    kwargs, sft = env_kwargs_of(args.env_kwargs, args.env_id), args.stage == "sft"
    args.model = model_of(args.model, args.env_id)
    ones = ("tasks_per_round", "samples_per_task", "most_per_task", "parallel", "max_new_tokens", "max_context",
            "epochs", "batch_size", "micro_batch_tokens", "pass_tasks")  # fmt: skip
    zeros = ("rounds", "total_tokens", "eval_episodes", "ema", "held_out")
    least = dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0) | {"pass_k": 2}
    at_least(args, least, above=("temperature", "learning_rate", "max_grad_norm"))
    for wrong, sentence in (
        (args.data and not sft,
         "--data belongs to --stage sft; fit the files first, then sample with --init and its checkpoint"),
        (sft and not args.data and (args.init or not (args.model == "tiny" or args.warm.updates)),
         "--stage sft needs --data, or a warm start to make: --warm.updates, without --init"),
        (args.teacher_url and sft, "--teacher-url belongs to --stage rft; --stage sft samples nothing"),
        (args.keep_best and args.eval_episodes == 0, "--keep-best compares tests: it needs --eval-episodes"),
        (args.ema >= 1, f"--ema must be below 1, not {args.ema}: nothing would be learnt"),
        (args.held_out > 0.5, f"--held-out must be 0.5 or less, not {args.held_out}"),
    ):  # fmt: skip
        if wrong:
            raise Refused(sentence)
    if not args.resume:  # a run that goes on has all of it, and --init may be gone
        size = size_of(args.model, args.init)
        whole = size != "tiny" and not args.lora_rank
        rate = SIZES[size]["learning_rate"] * (0.1 if whole else 1.0)
        few = size != "tiny" and ranks.device.type == "cpu"
        fill(args, size, **SIZES[size] | {"learning_rate": rate, "eval_episodes": 48 if few else 256})
        args.env_kwargs = json.dumps(kwargs)
    return kwargs


if __name__ == "__main__":
    command(Args, train, __doc__, "rft", extends=("rounds", "total_tokens"))
