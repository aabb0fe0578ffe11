"""GRPO that sees the gradient conflict between groups of tasks, and repairs it with PCGrad.

Training on verifiable rewards raises pass@1 and can squeeze out whole groups of tasks. Here every training task belongs
to one of 2 to 8 groups (by difficulty, by type, or by the pattern of its solution), and every group has a gradient of
its own:

    g_i = gradient of the policy loss a token over group i's episodes            one backward pass, each episode once
    cos(g_i, g_j) below zero, and below what noise alone would do: the groups pull the policy apart
    PCGrad: g_i <- g_i - (g_i . g_j / |g_j|^2) g_j   for every j with cos(g_i, g_j) < -tau, in random order

`--surgery none` is plain GRPO; `stats` measures and changes nothing, `balanced` takes the plain mean of the groups'
gradients, `pcgrad` the mean of the projected ones. `--method` chooses a baseline; nothing else changes.

Left out of GRPO: the division of an episode's loss by its own length, which dilutes the credit of long episodes; a
schedule of the learning rate. Nothing is left out of PCGrad: `--tau 0` is the paper's rule.

Docs: docs/grpo_pcgrad.md
"""

import itertools
import json
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import agent_gym.lm  # isort: skip  # noqa: F401  (before torch)
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agent_gym import CHANNELS, Group, Trajectory, metrics, read_trajectories
from agent_gym.lm import figures
from agent_gym.lm.arguments import Common, at_least, env_kwargs_of, fill, model_of, size_of
from agent_gym.lm.budget import bounds
from agent_gym.lm.chat import Chat
from agent_gym.lm.engine import Engine
from agent_gym.lm.errors import Refused
from agent_gym.lm.importance import importance
from agent_gym.lm.models import Model, is_tiny, passes, token_logprobs
from agent_gym.lm.overlap import Rollouts
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import Episode, Limits, environments, evaluate, judged, play
from agent_gym.lm.runs import Run, command, peak_memory
from agent_gym.lm.seeds import stream
from agent_gym.lm.shards import clip, in_step, joined, local, parted
from agent_gym.lm.start import starting_policy
from agent_gym.lm.tiny import preset
from agent_gym.lm.vllm_engine import engine_of

# ---------------------------------------------------------------------------------------------------------------------
# Arguments

RATES = {"tiny": 2e-4, "small": 1e-4, "large": 2e-5}  # learning rate by the model's size; below and above 1 B
PARALLEL = 128  # episodes that a process plays side by side in environments of one kind, at most
SPLITS = ("validation", "test")  # what the policy is tested on


@dataclass
class Args(Common):
    env_id: tuple[str, ...] = ("APIAgent-v0",)
    """Gymnasium ids of the environments"""
    env_kwargs: tuple[str, ...] = ()
    """keyword arguments of gym.make, one JSON object an environment, by default the presets' (tiny.py); split and
    budget are set by this script"""
    env_weights: tuple[float, ...] = ()
    """shares of the environments in the training tasks, one number an environment; by default they are equal"""
    method: Literal["grpo", "dr-grpo", "clip-higher", "resample", "pass-at-k", "unique"] = "grpo"
    """the baseline: GRPO (Shao et al. 2024, arXiv:2402.03300), with KL and entropy by the flags below; Dr. GRPO (Liu
    et al. 2025, arXiv:2503.20783); clip-higher (DAPO, Yu et al. 2025, arXiv:2503.14476); resampling of tasks by
    p (1 - p) of their success rate p (Foster et al. 2025, arXiv:2502.12272); the pass@k objective (PKPO, Walder and
    Karkhanis 2025, arXiv:2505.15201); advantages weighted by uniqueness (Hu et al. 2026, arXiv:2601.08763)"""
    pass_k: int = 4
    """k of method pass-at-k; from 2 to group_size"""
    group_by: Literal["difficulty", "task-type", "pattern"] = "difficulty"
    """what the groups are: quantiles of the reference policy's success rate (ties: of its mean log-probability), the
    environment or, where there is only one, its task type, or the pattern of the solution (tools, length, code)"""
    groups: int = 4
    """number of groups, 2 to 8, at most; the most frequent types or patterns have one each, the rest share one"""
    surgery: Literal["none", "stats", "balanced", "pcgrad"] = "pcgrad"
    """the update: plain GRPO, the same with the conflict measured, the mean of the groups' gradients, or that of the
    projected ones"""
    tau: float = 0.05
    """two gradients conflict when their cosine is below -tau"""
    every: int = 1
    """pcgrad projects in every N-th iteration, and is balanced in the others"""
    worst: int = 0
    """pcgrad projects the n pairs of lowest cosine only; 0 is all pairs"""
    pool_tasks: int = 128
    """training tasks, fixed at the start, over all environments"""
    calibration_samples: int = 4
    """episodes that the starting policy plays of each task, where its success rates or patterns are asked for"""
    total_iterations: int = 24
    """policy updates"""
    total_tokens: int | None = None
    """stop after the iteration in which this many tokens have been generated"""
    num_episodes: int = 96
    """episodes an iteration, over all processes"""
    group_size: int = 8
    """episodes of one task, compared with each other"""
    learning_rate: float | None = None
    """AdamW on the policy; by default 2e-4, 1e-4 or 2e-5 by the model's size (RATES), and a tenth of it where all
    parameters of a pretrained model are trained"""
    update_epochs: int = 1
    """passes over an iteration's episodes"""
    num_minibatches: int = 1
    """optimiser steps a pass"""
    clip_low: float = 0.2
    """PPO clip below 1"""
    clip_high: float | None = None
    """PPO clip above 1; by default 0.28 for method clip-higher and 0.2 for the others"""
    dual_clip: float = 3.0
    """bound on the loss of negative advantages (Ye et al. 2020)"""
    kl_coef: float = 0.01
    """beta: weight of the k3 KL estimate to the reference policy, the one that the run started from"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    loss_norm: Literal["tokens", "constant"] | None = None
    """divide the loss by the batch's model tokens, or by max_context an episode (Dr. GRPO); by default constant for
    method dr-grpo and tokens for the others"""
    importance_cap: float = 2.0
    """bound on the importance weight of a token, its probability in training over that in sampling"""
    importance_mask: float | None = None
    """drop episodes whose geometric mean of these ratios is further than this from 1, such as 0.01; unset, none"""
    async_rollouts: bool = False
    """play the next iteration's episodes while this one's are learnt from, with a policy that is one update older; the
    importance weights correct for that"""
    target_kl: float | None = None
    """stop an iteration's updates when the mean KL to the sampling policy exceeds this, on all ranks"""

    eval_tasks: int | None = None
    """tasks of the validation split and of the test split each; by default 32, or 4 for a pretrained model on a CPU"""
    eval_samples: int = 16
    """episodes of each of them for the tables at the end, of the starting and the final policy"""
    eval_every: int = 8
    """iterations between smaller tests on the validation tasks, of eval_every_samples episodes a task; 0 is never"""
    eval_every_samples: int = 8
    """episodes of each validation task in these"""
    keep_best: bool = False
    """keep the checkpoint of the best test in training, by pass@1, as checkpoints/best"""
    log_every: int = 20
    """iterations between trajectory samples"""
    checkpoint_every: int = 5
    """iterations between checkpoints"""


# ---------------------------------------------------------------------------------------------------------------------
# Tasks, and who plays them


@dataclass
class Task:
    """One that is played again and again, and what the reference policy makes of it."""

    env: int  # which of the environments
    seed: int  # draws it there
    id: str
    type: str
    rate: float = math.nan  # success rate of the reference policy
    logp: float = math.nan  # its mean log-probability a token


class Sample(NamedTuple):
    """An episode and its place in the iteration's batch, which is the same for any number of processes."""

    episode: Episode
    task: int  # index into the pool
    slot: int  # episodes of one slot are of one task and are compared with each other
    group: int
    trajectory: Trajectory


@dataclass
class Stage:
    """What plays the tasks of one split."""

    engine: Engine
    chat: Chat
    pools: list[Sequence[gym.Env]]  # of each environment, instances that play side by side
    limits: Limits


def find_tasks(stage: Stage, seeds: list[int], which: list[int], args: Args) -> list[Task]:
    """The tasks that ``seeds`` draw in the environments ``which``, both of shape [tasks]."""
    tasks = []
    for seed, env in zip(seeds, which, strict=True):
        _, info = stage.pools[env][0].reset(seed=seed)
        name = args.env_id[env].split(":")[-1]
        name = f"{name}#{env}" if args.env_id.count(args.env_id[env]) > 1 else name
        tasks.append(Task(env, seed, info["task_id"], name if len(args.env_id) > 1 else info["task_type"]))
    return tasks


def dealt(count: int, shares: Sequence[float], offset: float) -> list[int]:
    """The environment of each of ``count`` tasks: every environment has its share, to within one task."""
    ends = np.cumsum(shares)
    at = (np.arange(count) + offset) / count * ends[-1]  # [count]
    return np.minimum(np.searchsorted(ends, at, side="right"), len(ends) - 1).tolist()


def draw(pool: list[Task], rates: np.ndarray, args: Args, iteration: int) -> list[int]:
    """The tasks of an iteration's slots, as indices of the pool, shape [slots]: each environment has its share, and the
    draw is the same in all processes. ``rates``, the success rates of the pool's tasks, has the shape [tasks]."""
    rng = np.random.default_rng(stream("tasks", args.seed, iteration))
    which = dealt(args.num_episodes // args.group_size, args.env_weights or [1.0] * len(args.env_id), rng.random())
    chosen: list[int] = []
    for env in sorted(set(which)):
        members = np.array([i for i, task in enumerate(pool) if task.env == env])
        weight = np.ones(len(members))
        if args.method == "resample":  # p (1 - p) is what there is to learn; without the rest, a task that was never
            weight = rates[members] * (1.0 - rates[members]) + 0.02  # solved would not be tried again
        count = which.count(env)
        chosen += rng.choice(members, count, replace=count > len(members), p=weight / weight.sum()).tolist()
    return chosen


def follow(rates: np.ndarray, samples: list[Sample], ranks: Ranks) -> np.ndarray:
    """Move the success rates of the pool's tasks, shape [tasks], half way to what they were in this iteration."""
    sums = np.zeros((2, len(rates)))
    for s in samples:
        sums[:, s.task] += s.episode.success, 1.0
    sums = ranks.sum(sums)
    return np.where(sums[1] > 0, 0.5 * rates + 0.5 * sums[0] / np.maximum(sums[1], 1.0), rates)


def roll_out(
    stage: Stage, tasks: list[Task], chosen: list[int], draws: list[int], stop: threading.Event | None = None
) -> list[Episode]:
    """Play an episode of each task that ``chosen`` names by its index, shape [episodes], those of each environment in
    its own pool, until ``stop`` is set. ``draws`` are the sampling seeds, shape [episodes]."""
    played: dict[int, Episode] = {}
    for env, pool in enumerate(stage.pools):
        own = [n for n, i in enumerate(chosen) if tasks[i].env == env]
        starts, seeds = [tasks[chosen[n]].seed for n in own], [draws[n] for n in own]
        found = play(stage.engine, stage.chat, pool, starts, stage.limits, draws=seeds, stop=stop)
        played |= zip(own, found, strict=True)
    return [played[n] for n in range(len(chosen))]


def examine(stage: Stage, tasks: list[Task], samples: int, ranks: Ranks, seed: int, title: str) -> list[Trajectory]:
    """Play every task, shared over the processes: all trajectories in all of them, shape [tasks x samples], task by
    task."""
    found: dict[int, list[Trajectory]] = {}
    for env, pool in enumerate(stage.pools):
        own = [i for i, task in enumerate(tasks) if task.env == env]
        seeds = [tasks[i].seed for i in own]
        played = evaluate(
            stage.engine, stage.chat, pool, seeds, stage.limits, ranks,
            draw=stream(seed, env), samples=samples, title=title,
        )  # fmt: skip
        found |= {i: played[n * samples : (n + 1) * samples] for n, i in enumerate(own)}
    return [trajectory for i in range(len(tasks)) for trajectory in found[i]]


# ---------------------------------------------------------------------------------------------------------------------
# Groups


def calibrate(tasks: list[Task], played: list[Trajectory]) -> None:
    """Note what the reference policy makes of each task, by its episodes, shape [tasks x samples], task by task. A task
    of which none has a verdict and a token keeps NaN."""
    samples = len(played) // max(1, len(tasks))
    for at, task in enumerate(tasks):
        own = [t for t in played[at * samples : (at + 1) * samples] if t.reward is not None]
        logprobs = [logp for t in own for step in t.steps for logp in step.logprobs or ()]
        if logprobs:
            task.rate, task.logp = float(np.mean([t.success for t in own])), float(np.mean(logprobs))


def tools_of(trajectory: Trajectory) -> list[str]:
    """The tools that it called, in order; calls that did not run left aside."""
    results = [result for step in trajectory.steps for result in step.tool_results]
    return [result["name"] for result in results if result.get("error") != "not_run"]


def pattern(trajectory: Trajectory) -> str:
    """How an episode went about its task: whether it wrote code, whether it made more than two calls, which tools."""
    names = tools_of(trajectory)
    code = "code, " if metrics.program(trajectory) else ""
    return f"{code}{'long' if len(names) > 2 else 'short'}: {'+'.join(sorted(set(names))) or 'no call'}"


@dataclass
class Grouping:
    """The groups of a run, fixed before training: for difficulty the upper edges of all but the last group, otherwise
    the types or patterns that have a group of their own."""

    by: str
    names: list[str]
    edges: list[tuple[float, float]] = field(default_factory=list)

    def index(self, task: Task, way: str) -> int:
        """The group of an episode of ``task`` that went by the pattern ``way``."""
        if self.by == "difficulty":  # a task that could not be calibrated has NaN, and is above no edge
            return sum((-task.rate, -task.logp) > edge for edge in self.edges)
        key = task.type if self.by == "task-type" else way
        return self.names.index(key) if key in self.names else len(self.names) - 1

    def of(self, task: Task, trajectory: Trajectory) -> Group:
        """The group of an episode of ``task``, with the features it follows from."""
        if self.by == "difficulty":
            features = {"reference_success": task.rate, "reference_logp": task.logp}
        elif self.by == "task-type":
            features = {"environment": float(task.env)}
        else:
            names, code = tools_of(trajectory), bool(metrics.program(trajectory))
            features = {"calls": float(len(names)), "tools": float(len(set(names))), "code": float(code)}
        known = {name: value for name, value in features.items() if not math.isnan(value)}
        return Group(self.names[self.index(task, pattern(trajectory))], known)


def form_groups(pool: list[Task], tests: Sequence[Task], ways: list[str], args: Args) -> Grouping:
    """The groups: quantiles of the calibrated pool's difficulty, or the most frequent types or patterns and one for the
    rest. ``ways`` are the patterns of the calibration's episodes, shape [episodes]."""
    if args.group_by == "difficulty":
        hardness = sorted((-task.rate, -task.logp) for task in pool if not math.isnan(task.rate))
        if not hardness:
            raise Refused("--group-by difficulty: no episode of the calibration reached a verdict")
        cuts = [max(0, len(hardness) * (i + 1) // args.groups - 1) for i in range(args.groups - 1)]
        names = [f"difficulty {i + 1} of {args.groups}" for i in range(args.groups)]
        return Grouping("difficulty", names, [hardness[cut] for cut in cuts])
    keys = Counter(task.type for task in pool) if args.group_by == "task-type" else Counter(ways)
    ranked = sorted(keys, key=lambda key: (-keys[key], key))
    known = args.group_by == "task-type" and {task.type for task in tests} <= set(keys)
    if known and len(ranked) <= args.groups:
        return Grouping(args.group_by, ranked)
    return Grouping(args.group_by, [*ranked[: args.groups - 1], "other"])


def grouped(
    stages: dict[str, Stage], run: Run, args: Args, ranks: Ranks
) -> tuple[Grouping, list[Task], dict[str, list[Task]], int]:
    """The groups, the training tasks, those of the tests by split, and the tokens that the calibration took of the
    training tasks; as groups.json has them in a run that is resumed."""
    path = run.path("groups.json")
    if not run.fresh and path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda found: {
            k: math.nan if v is None else v for k, v in found.items()})  # fmt: skip
        pool, *tests = ([Task(**one) for one in saved[name]] for name in ("pool", *SPLITS))
        grouping = Grouping(saved["by"], saved["names"], [tuple(e) for e in saved["edges"]])
        return grouping, pool, dict(zip(SPLITS, tests, strict=True)), saved["tokens"]
    stage = stages["train"]
    which = dealt(args.pool_tasks, args.env_weights or [1.0] * len(stage.pools), 0.5)
    pool = find_tasks(stage, [stream("pool", args.seed, i) for i in range(len(which))], which, args)
    which = [i % len(stage.pools) for i in range(args.eval_tasks or 0)]
    held_out = {  # the same tasks for every run
        split: find_tasks(stages[split], [stream(split, i) for i in range(len(which))], which, args) for split in SPLITS
    }
    played: list[Trajectory] = []
    if args.group_by != "task-type" or args.method == "resample":
        key = stream("calibration", args.seed)
        played = examine(stage, pool, args.calibration_samples, ranks, key, "calibration")
        calibrate(pool, played)
    if args.group_by == "difficulty":  # the tests' tasks are placed by the same edges, and cost no training tokens
        for split, tasks in held_out.items():
            title = f"calibration of {split}"
            key = stream(title, args.seed)
            calibrate(tasks, examine(stages[split], tasks, args.calibration_samples, ranks, key, title))
    ways = [pattern(t) for t in played if t.reward is not None]
    grouping = form_groups(pool, list(itertools.chain(*held_out.values())), ways, args)
    spent = sum(len(step.action_ids or ()) for t in played for step in t.steps)
    listed = {name: [asdict(task) for task in tasks] for name, tasks in {"pool": pool, **held_out}.items()}
    run.json("groups.json", {**asdict(grouping), "tokens": spent, **listed})
    return grouping, pool, held_out, spent


# ---------------------------------------------------------------------------------------------------------------------
# Advantages: each function takes what the episodes of one task achieved, 1 or 0 each, shape [episodes]


def grpo(success: np.ndarray) -> np.ndarray:
    """Relative to the group's mean, in its standard deviations (GRPO: Shao et al. 2024, arXiv:2402.03300)."""
    spread = success.std()
    return (success - success.mean()) / spread if spread > 1e-6 else np.zeros_like(success)


def dr_grpo(success: np.ndarray) -> np.ndarray:
    """Relative to the group's mean, without the standard deviation, which weighs tasks by their difficulty
    (Dr. GRPO: Liu et al. 2025, arXiv:2503.20783)."""
    return success - success.mean()


def pass_at_k_gain(success: np.ndarray, k: int) -> np.ndarray:
    """What an episode adds to pass@k: the mean over all subsets of k episodes that contain it of max(subset) -
    max(subset without it), times k / n (PKPO: Walder and Karkhanis 2025, arXiv:2505.15201, the leave-one-out form).

    A failed episode adds nothing; a success counts for as much as the others are likely to fail. Where fewer than k
    episodes are left, k is their number; one alone has nothing to compare with.
    """
    n, c = len(success), int(success.sum())
    k = min(k, n)
    alone = 1.0 - metrics.pass_at_k(n - 1, c - 1, k - 1) if c and k > 1 else 0.0
    return success * k / n * alone


def unique(success: np.ndarray, ways: list[Any]) -> np.ndarray:
    """GRPO, in which a success counts inversely to how many successes of its group went the same way; the mean weight
    of the successes stays 1 (after Hu et al. 2026, arXiv:2601.08763; the way is the sequence of calls, where the paper
    asks a language model)."""
    counts = Counter(way for way, passed in zip(ways, success, strict=True) if passed)
    weight = np.array([1.0 / counts[way] if passed else 1.0 for way, passed in zip(ways, success, strict=True)])
    passed = success > 0
    if passed.any():
        weight[passed] /= weight[passed].mean()
    return grpo(success) * weight


def advantages(samples: list[Sample], args: Args) -> np.ndarray:
    """One advantage an episode, shape [samples]. This is the one place in which the methods differ, but for two
    defaults (see ``settle``) and the draw of the tasks."""
    result = np.zeros(len(samples))
    for slot in {s.slot for s in samples}:
        members = [i for i, s in enumerate(samples) if s.slot == slot]
        success = np.array([samples[i].episode.success for i in members])
        if args.method == "dr-grpo":
            result[members] = dr_grpo(success)
        elif args.method == "pass-at-k":
            result[members] = pass_at_k_gain(success, args.pass_k)
        elif args.method == "unique":
            result[members] = unique(success, [metrics.call_sequence(samples[i].trajectory) for i in members])
        else:
            result[members] = grpo(success)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Conflict and surgery. Everything here needs only the dot products of the group gradients.


def gram(vectors: Tensor) -> Tensor:
    """All dot products of the rows, in double precision: shape [rows, rows], on the CPU."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
    for part in vectors.split(1 << 18, dim=1):
        total += part.double() @ part.double().T
    return total.cpu()


def cosines(products: Tensor) -> Tensor:
    """From dot products, shape [rows, rows]; 0 where a vector is zero."""
    norms = products.diagonal().clamp_min(0.0).sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0.0, products / scale.clamp_min(1e-300), 0.0)


def project(products: Tensor, tau: float, worst: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """PCGrad (Yu et al. 2020, arXiv:2001.06782): each gradient in turn loses its component along every other one that
    it conflicts with, in random order. As in the paper, the conflict is judged by the gradient as it is by then.

    Args:
        products: Dot products of the groups' gradients, shape [n, n].
        tau: Conflict is a cosine below -tau; 0 is the paper's rule.
        worst: Only so many pairs may be projected, those of the lowest cosine below -tau; 0 is all pairs.
        generator: Draws the order.

    Returns:
        Coefficients, shape [n, n]: row i is the projected gradient i as a combination of the given ones. And how many
        projections were made.
    """
    n = len(products)
    allowed = torch.ones(n, n, dtype=torch.bool)
    if worst:
        cosine = cosines(products)
        pairs = [(float(cosine[i, j]), i, j) for i in range(n) for j in range(i) if cosine[i, j] < -tau]
        allowed[:] = False
        for _, i, j in sorted(pairs)[:worst]:
            allowed[i, j] = allowed[j, i] = True
    result, made = torch.eye(n, dtype=torch.float64), 0
    for i in range(n):
        for j in torch.randperm(n, generator=generator).tolist():
            if j == i or not allowed[i, j]:
                continue
            dot = float(products[j] @ result[i])
            length = math.sqrt(max(0.0, float(result[i] @ products @ result[i])) * float(products[j, j]))
            if dot < -tau * length:
                result[i, j] -= dot / products[j, j]
                made += 1
    return result, made


@dataclass
class Conflict:
    """What one update says of the groups' gradients; NaN for groups that were not in the batch."""

    cosine: np.ndarray  # [groups, groups]
    dot: np.ndarray  # [groups, groups]
    split_half: np.ndarray  # [groups]: cosine between the gradients of a group's two halves
    cross: float  # variances of a pair's cosine, mean over the pairs: noise against gradients, both ways
    noise: float  # noise against noise

    def pairs(self) -> np.ndarray:
        """The cosines of the pairs that are there, shape [pairs]."""
        found = self.cosine[np.tril_indices(len(self.cosine), -1)]
        return found[~np.isnan(found)]


def means_of(weights: Tensor) -> Tensor:
    """The group means as combinations of the sums over their halves: weights of shape [groups, 2] make [groups, 2
    groups], with rows of zeros for groups that are not there."""
    result = torch.zeros(len(weights), 2 * len(weights), dtype=torch.float64)
    for i, total in enumerate(weights.sum(1).tolist()):
        if total > 0.0:
            result[i, 2 * i : 2 * i + 2] = 1.0 / total
    return result


def measure(products: Tensor, weights: Tensor) -> Conflict:
    """Cosines and dot products of the groups' mean gradients, and how much of them may be noise.

    A group's halves a and b have different tasks. Their scaled difference n = (mean_a - mean_b) sqrt(w_a w_b) / w holds
    no signal, and has the variance of the noise in the group's mean g. So the variance of g_i . g_j that comes from
    noise is estimated, without bias, by (n_i . g_j)^2 + (g_i . n_j)^2 - (n_i . n_j)^2.

    Args:
        products: Dot products of the sums over the halves (a and b of the first group, a and b of the second ...),
            shape [2 groups, 2 groups].
        weights: What each sum is to be divided by, tokens or a constant an episode, shape [groups, 2].
    """
    count = len(weights)
    there = (weights.sum(1) > 0.0).numpy()  # [groups]
    whole = (weights > 0.0).all(1)  # [groups]: both halves are there
    halves = torch.zeros(2 * count, 2 * count, dtype=torch.float64)  # the mean of each half
    apart = torch.zeros(count, 2 * count, dtype=torch.float64)  # n
    for i in range(count):
        if whole[i]:
            a, b = weights[i].tolist()
            scale = math.sqrt(a * b) / (a + b)
            apart[i, 2 * i], apart[i, 2 * i + 1] = scale / a, -scale / b
            halves[2 * i, 2 * i], halves[2 * i + 1, 2 * i + 1] = 1.0 / a, 1.0 / b
    mean = means_of(weights)
    dot = mean @ products @ mean.T  # [groups, groups]
    mixed, noise = apart @ products @ mean.T, apart @ products @ apart.T  # [groups, groups]
    within = cosines(halves @ products @ halves.T)  # [2 groups, 2 groups]
    squares = dot.diagonal().clamp_min(1e-300)
    pairs = [(i, j) for i in range(count) for j in range(i) if whole[i] and whole[j] and dot[i, i] > 0 < dot[j, j]]
    cross = [float((mixed[i, j] ** 2 + mixed[j, i] ** 2) / (squares[i] * squares[j])) for i, j in pairs]
    alone = [float(noise[i, j] ** 2 / (squares[i] * squares[j])) for i, j in pairs]
    missing = ~(there[:, None] & there[None, :])
    return Conflict(
        np.where(missing, math.nan, cosines(dot).numpy()),
        np.where(missing, math.nan, dot.numpy()),
        np.array([float(within[2 * i, 2 * i + 1]) if whole[i] else math.nan for i in range(count)]),
        float(np.mean(cross)) if pairs else math.nan,
        float(np.mean(alone)) if pairs else math.nan,
    )


def noise_floor(cross: list[float], noise: list[float]) -> float:
    """The cosine below which noise alone takes a pair without conflict in 2.5% of cases, from the variances of several
    updates, shape [updates]; NaN where there are none."""
    if not cross:
        return math.nan
    variance = max(float(np.mean(cross)) - float(np.mean(noise)), float(np.mean(noise)))
    return -1.96 * math.sqrt(variance)


# ---------------------------------------------------------------------------------------------------------------------
# The update

LOGGED = ("policy_loss", "kl", "entropy", "clip_fraction", "old_kl", "ratio")
WEIGHED = ("sampler_gap_mean", "importance_mean", "importance_cut")


def policy_loss(
    logp: Tensor, old: Tensor, ref: Tensor | None, entropy: Tensor, a: Tensor, args: Args
) -> tuple[Tensor, Tensor]:
    """PPO-clip with a bound on negative advantages, KL and entropy, summed over the tokens of a micro-batch.

    Args:
        logp: Log-probabilities of the model's tokens under the policy that is trained, shape [tokens].
        old: Under the policy that sampled, by a training pass, shape [tokens].
        ref: Under the policy the run started from, shape [tokens]; None without a KL term.
        entropy: Of the policy's distribution at each token, shape [tokens].
        a: Advantages times importance weights, shape [tokens].
        args: The arguments.

    Returns:
        The loss, and the sums of the figures in LOGGED, shape [6].
    """
    apart = (logp - old).clamp(-10.0, 10.0)  # [tokens]; exp of more is no figure, and one token would rule the batch
    ratio = apart.exp()  # [tokens]
    low, high = 1.0 - args.clip_low, 1.0 + (args.clip_high or 0.0)
    clipped = ratio.clamp(low, high)  # [tokens]
    gain = torch.min(ratio * a, clipped * a)  # [tokens]
    gain = torch.where(a < 0, torch.max(gain, args.dual_clip * a), gain)  # [tokens]
    kl = torch.zeros_like(logp)  # [tokens]
    if ref is not None:
        behind = (ref - logp).clamp(-10.0, 10.0)  # [tokens]
        kl = behind.exp() - behind - 1.0  # [tokens]; k3, an unbiased estimate of KL(policy, reference)
    loss = -gain.sum() + args.kl_coef * kl.sum() - args.entropy_coef * entropy.sum()  # []
    with torch.no_grad():
        outside = ((ratio < low) | (ratio > high)).to(logp)  # [tokens]
        moved = (-apart).exp() + apart - 1.0  # [tokens]; k3 of the sampling policy against the new one
        figures = torch.stack([-gain, kl, entropy, outside, moved, ratio])  # [6, tokens]
    return loss, figures.detach().double().sum(1).cpu()


def placed(homes: dict[int, int], minibatches: int, seed: int) -> dict[int, tuple[int, int]]:
    """The minibatch and the half of every slot: the slots of each group take turns in them, in random order.

    A task's episodes are never parted: they are compared with each other, so two halves that share a task would have
    opposite errors.

    Args:
        homes: The group of each slot of the batch, over all processes.
        minibatches: How many there are.
        seed: Of the order, the same in all processes.
    """
    order = sorted(homes)
    random.Random(seed).shuffle(order)
    order.sort(key=homes.__getitem__)
    return {slot: (at // 2 % minibatches, at % 2) for at, slot in enumerate(order)}


def update(
    model: Model,
    optimizer: torch.optim.Optimizer,
    samples: list[Sample],
    advantage: np.ndarray,
    groups: int,
    args: Args,
    iteration: int,
    ranks: Ranks,
) -> tuple[dict[str, float], Conflict | None]:
    """One backward pass over each group's episodes, then surgery: as one process would with the episodes of all.

    A micro-batch holds episodes of one half of one group, so that the groups' gradients cost no second backward pass.
    Tasks without any advantage teach nothing: they leave the batch and its denominators. Micro-batches are fixed, so
    that old, reference and new log-probabilities come from passes of the same shape. What decides about a collective
    (weights, target_kl) is itself summed over the processes: all make the same ones, whoever has no episodes.

    ``samples`` are this process's episodes with a verdict, and ``advantage`` theirs, shape [samples]; no slot is spread
    over processes. Returns figures, and the conflict in the first step; None where it is not asked for or there was
    nothing to compare.
    """

    def rows_of(part: list[int]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Ids and spans of episodes."""
        return [samples[i].episode.ids for i in part], [samples[i].episode.spans for i in part]

    worth = {s.slot for s, a in zip(samples, advantage, strict=True) if a != 0.0}
    homes = {s.slot: s.group for s in reversed(samples) if s.slot in worth}
    homes = {slot: group for part in ranks.gather(homes) for slot, group in part.items()}
    place = placed(homes, args.num_minibatches, stream("halves", args.seed, iteration))
    cells: dict[tuple[int, int], list[int]] = {}  # minibatch, 2 group + half: samples
    weights = np.zeros((args.num_minibatches, 2 * groups))
    for i, s in enumerate(samples):
        if s.slot in worth:
            minibatch, half = place[s.slot]
            cells.setdefault((minibatch, 2 * s.group + half), []).append(i)
            constant = args.loss_norm == "constant"
            weights[minibatch, 2 * s.group + half] += (args.max_context or 0) if constant else len(s.episode.logprobs)
    weights = ranks.sum(weights)  # [minibatches, 2 groups]
    parts: dict[tuple[int, int], list[list[int]]] = {}  # the cells in micro-batches
    for cell, members in cells.items():
        joint = passes(model, *rows_of(members), args.micro_batch_tokens)
        parts[cell] = [[members[at] for at in part] for part in joint]

    def passed(part: list[int]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of a micro-batch, both of shape [tokens]."""
        scores = token_logprobs(model, *rows_of(part), args.temperature, entropy_grad=args.entropy_coef != 0.0)
        return scores.logprobs, scores.entropies

    once = args.update_epochs == args.num_minibatches == 1  # the policy is still the one that sampled
    olds, refs = dict[int, Tensor](), dict[int, Tensor]()  # by a micro-batch's first sample, [tokens] each
    with torch.no_grad():
        every = [part for cell in parts.values() for part in cell]
        if args.kl_coef > 0.0:
            with model.reference():
                refs = {part[0]: passed(part)[0] for part in in_step(model, ranks, every)}
        if not once:
            olds = {part[0]: passed(part)[0] for part in in_step(model, ranks, every)}

    parameters = model.trained()
    sizes = [local(p).numel() for p in parameters]  # of a sharded model, all vectors are this process's part
    log: dict[str, list[float]] = {"skipped_steps": [0.0]}
    gap_max, found = 0.0, None
    for epoch, b in itertools.product(range(args.update_epochs), range(args.num_minibatches)):
        if not weights[b].sum():
            continue
        whole = torch.zeros(sum(sizes), device=model.device)  # [parameters]
        halves = whole.new_zeros(2 * groups if args.surgery != "none" else 0, len(whole))  # [2 groups, parameters]
        sums = torch.zeros(len(LOGGED) + len(WEIGHED) + 1, dtype=torch.float64)
        for c in np.flatnonzero(weights[b]).tolist():
            for part in in_step(model, ranks, parts.get((b, c), [])):
                old, ref = olds.get(part[0]), refs.get(part[0])
                logp, entropy = passed(part)  # [tokens]
                old = logp.detach() if old is None else old  # [tokens]
                sampled = logp.new_tensor([lp for i in part for lp in samples[i].episode.logprobs])  # [tokens]
                lengths = [len(samples[i].episode.logprobs) for i in part]  # [samples of the part]
                weight, gaps = importance(old, sampled, lengths, args.importance_cap, args.importance_mask)
                a = logp.new_tensor(np.repeat(advantage[part], lengths)) * weight  # [tokens]
                loss, logged = policy_loss(logp, old, ref, entropy, a, args)
                loss.backward()
                sums[:-1] += torch.cat([logged, gaps.double().sum(1).cpu()])
                sums[-1] += len(logp)
                gap_max = max(gap_max, float(gaps[0].max()))
            ranks.all_reduce_gradients(parameters)  # with zeros of whoever has no episodes of this group
            gradient = torch.cat([local(g).flatten().float() for p in parameters if (g := p.grad) is not None])
            optimizer.zero_grad(set_to_none=True)
            whole += gradient
            if len(halves):
                halves[c] = gradient
        weight = torch.from_numpy(weights[b]).view(groups, 2)
        direction = whole / float(weight.sum())  # [parameters]
        if len(halves):
            products = gram(halves)  # [2 groups, 2 groups]
            products = ranks.all_reduce(products) if model.sharded else products
            found = measure(products, weight) if found is None else found
            if args.surgery != "stats":  # every group in the batch counts the same
                means = means_of(weight)
                means = means[means.abs().sum(1) > 0.0]  # [groups in the batch, 2 groups]
                if args.surgery == "pcgrad" and iteration % args.every == 0:
                    order = torch.Generator().manual_seed(stream("surgery", args.seed, iteration, epoch, b))
                    coefficients, made = project(means @ products @ means.T, args.tau, args.worst, order)
                    means = coefficients @ means
                    log.setdefault("projections", []).append(made)
                direction = means.mean(0).to(halves) @ halves  # [parameters]
        for p, gradient in zip(parameters, direction.split(sizes), strict=True):
            p.grad = torch.zeros_like(p)
            local(p.grad).copy_(gradient.view_as(local(p)))
        norm = clip(parameters, args.max_grad_norm)
        if math.isfinite(norm):  # of sums over all processes: they agree
            optimizer.step()
        log["skipped_steps"].append(float(not math.isfinite(norm)))
        optimizer.zero_grad(set_to_none=True)
        total = ranks.sum(sums.numpy())
        for name, value in zip((*LOGGED, *WEIGHED, "grad_norm"), (*total[:-1] / total[-1], norm), strict=True):
            log.setdefault(name, []).append(float(value))
        if args.target_kl is not None and log["old_kl"][-1] > args.target_kl:
            break
    result = {f"losses/{name}": float(np.mean(values)) for name, values in log.items()}
    result["losses/skipped_steps"] = sum(log["skipped_steps"])
    result["losses/sampler_gap_max"] = max(ranks.gather(gap_max))
    return result, found


def check_memory(model: Model, args: Args) -> None:
    """Refuse group gradients that the device cannot hold: two float32 vectors a group, of all trained parameters."""
    count, device = sum(p.numel() for p in model.trained()), model.device
    needed = 8 * args.groups * sum(local(p).numel() for p in model.trained())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    if args.surgery != "none" and needed > there:
        raise Refused(
            f"--surgery {args.surgery} keeps two float32 gradients of {count} parameters for each of {args.groups} "
            f"groups, {needed / 2**30:.1f} GiB, and {device} has {there / 2**30:.1f} GiB: train adapters "
            "(--lora-rank), or choose fewer --groups or --surgery none"
        )


# ---------------------------------------------------------------------------------------------------------------------
# The report


def conflict_row(conflict: Conflict, history: list[dict[str, float]], tau: float) -> dict[str, float]:
    """The figures of an update's conflict; NaN is not defined. The noise floor is that of the last ten updates."""
    cosine = conflict.pairs()  # [pairs]
    row = {"conflict/cross": conflict.cross, "conflict/noise": conflict.noise}
    known = [r for r in [*history[-9:], row] if not math.isnan(r.get("conflict/cross", math.nan))]
    floor = noise_floor([r["conflict/cross"] for r in known], [r["conflict/noise"] for r in known])
    row["conflict/floor"] = floor
    if len(cosine):
        row |= {
            "conflict/rate": float((cosine < -tau).mean()),
            "conflict/mean_cosine": float(cosine.mean()),
            "conflict/lowest": float(cosine.min()),
            "conflict/below_floor": math.nan if math.isnan(floor) else float((cosine < floor).mean()),
        }
    halves = conflict.split_half[~np.isnan(conflict.split_half)]
    row["conflict/split_half"] = float(halves.mean()) if len(halves) else math.nan
    for i in range(len(conflict.cosine)):
        row[f"group/{i}_norm"] = math.sqrt(conflict.dot[i, i])
        row[f"group/{i}_split_half"] = float(conflict.split_half[i])
        for j in range(i):
            row[f"cosine/{i}_{j}"], row[f"dot/{i}_{j}"] = float(conflict.cosine[i, j]), float(conflict.dot[i, j])
    return row


def passing(trajectories: list[Trajectory]) -> dict[str, tuple[float, float, float]]:
    """pass@k with its 95% interval, for every k that there are enough episodes for."""
    intervals = metrics.pass_at_k_intervals(trajectories, seed=0)
    return {f"pass@{k}": one for k, one in intervals.items() if k == 1 or not math.isnan(one[0])}


def summary(trajectories: list[Trajectory], budget: dict[str, float]) -> dict[str, tuple[float, float, float]]:
    """Every figure of the table with its 95% interval, by bootstrap over tasks."""
    tasks = list(metrics.by_task(trajectories).values())
    means: dict[str, list[float]] = {
        "different call sequences a task": [metrics.distinct_call_sequences(own) for own in tasks],
        "different solutions a task": [metrics.distinct_call_sequences(t for t in own if t.success) for own in tasks],
        "different programs a task": [metrics.distinct_programs(own) for own in tasks],
        **{f"distinct-{n} of a task's tokens": [metrics.distinct_n(own, n) for own in tasks] for n in (1, 2)},
        **{f"mean {k}": [float(np.mean([t.cost_total[k] for t in own])) for own in tasks] for k in CHANNELS},
        "violation any": [float(np.mean([t.violates(budget) for t in own])) for own in tasks],
    }
    table = passing(trajectories)
    table["in-budget success"] = metrics.mean_interval([metrics.in_budget_success(own, budget) for own in tasks], 0)
    for name, values in means.items():
        values = [value for value in values if not math.isnan(value)]
        if any(values):  # no row of zeros where no code was written, or no budget set
            table[name] = metrics.mean_interval(values, seed=0)
    return table | {f"success, {name}": one for name, one in metrics.success_by_group(trajectories, seed=0).items()}


def report(run: Run, names: list[str], budget: dict[str, float], spent: int, args: Args) -> None:
    """Pictures, and the tables of the tests of the starting and the final policy, for each split."""
    tables: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}  # by split, start or final, and figure
    infra, rows = 0, run.rows
    for split in SPLITS if args.eval_tasks else ():
        paths = {name: run.path(f"trajectories/{split}_{name}.jsonl") for name in ("start", "final")}
        tests = {name: list(read_trajectories(path)) for name, path in paths.items() if path.exists()}
        infra += sum(t.reward is None for trajectories in tests.values() for t in trajectories)
        tables[split] = {name: summary(trajectories, budget) for name, trajectories in tests.items()}
        curve = [row | {"iteration": row["iteration"] + 1} for row in rows]
        curve = [{name.removeprefix(f"{split}/"): x for name, x in row.items()} for row in curve]
        ends = {name: {k: one[0] for k, one in table.items()} for name, table in tables[split].items()}
        curve = [{"iteration": 0, **ends.get("start", {})}, *curve, {"iteration": len(rows), **ends["final"]}]
        figures.draw_passk(curve, rows, run.path(f"passk_{split}.png"))
        figures.draw_diversity(tables[split], run.path(f"diversity_{split}.png"))
        if rows:
            figures.draw_groups(rows, names, tables[split], run.path(f"groups_{split}.png"))
    if tables:
        run.json("result.json", {"tables": tables, "generated_tokens": spent, "infra": infra})
        text = figures.table({f"{split}: {name}": one for split, own in tables.items() for name, one in own.items()})
        run.text("table.md", text + "\n")
        print(f"{args.eval_tasks} unseen tasks a split, {args.eval_samples} episodes each, mean [95% interval]\n{text}")
    if rows and args.surgery != "none":
        figures.draw_conflict(rows, names, run.path("conflict.png"))


# ---------------------------------------------------------------------------------------------------------------------


def train(args: Args) -> None:
    # ---- set-up: the starting policy, which is the reference, and who plays its tasks ----
    ranks = Ranks.start(args.device)
    kinds = settle(args, ranks)
    title = "+".join(env_id.split(":")[-1] for env_id in args.env_id)
    run = Run(args, f"{title}__grpo_pcgrad__{args.method}-{args.surgery}__{args.seed}", ranks)
    model, chat = starting_policy(args, run, ranks, kinds)
    check_memory(model, args)
    model.freeze_reference()
    engine = engine_of(model, chat, args)
    limits = Limits(args.max_new_tokens or 0, args.max_context or 0)
    budget = {k: math.inf if (bound := getattr(args.budget, k)) is None else bound for k in CHANNELS}

    def staged(split: str, count: int) -> Stage:
        given: dict[str, Any] = {"chat": chat, "split": split, "bounds": budget, "ray_workers": args.ray_workers}
        pools = [environments(name, count, **given, **kwargs) for name, kwargs in kinds]
        return Stage(engine, chat, pools, limits)

    if len(kinds) == 1:  # several environments have no bounds but those that are given
        (oracle,), seeds = staged("train", 1).pools[0], [stream("oracle", i) for i in range(64)]
        suits = preset(args.env_id[0]).budget
        budget = bounds(args.budget, suits, oracle, seeds, tiny=is_tiny(args.model), ranks=ranks)
    stages = {"train": staged("train", min(PARALLEL, args.num_episodes))}
    stages |= {split: staged(split, PARALLEL if args.eval_tasks else 1) for split in SPLITS}

    # ---- the groups, fixed by what the starting policy makes of the tasks ----
    grouping, pool, held_out, spent = grouped(stages, run, args, ranks)
    names = grouping.names

    # group_size episodes of each task; slots and episodes have the same numbers in any world
    slots = ranks.share(range(args.num_episodes // args.group_size))
    own = [slot * args.group_size + i for slot in slots for i in range(args.group_size)]
    drawn: dict[int, list[int]] = {}  # by iteration, [slots]

    def batch(iteration: int) -> list[Episode]:
        chosen = [drawn[iteration][n // args.group_size] for n in own]
        draws = [stream("rollout", args.seed, iteration, n) for n in own]
        return roll_out(stages["train"], pool, chosen, draws, rollouts.stop)

    rollouts = Rollouts(engine, model, batch, args.total_iterations, ahead=args.async_rollouts)

    def test(split: str, title: str, samples: int) -> list[Trajectory]:
        """So many episodes of each task that a split is tested on, with their groups; the same list on all ranks."""
        rollouts.settle()
        tasks, key = held_out[split], stream(split, args.seed, title)
        played = examine(stages[split], tasks, samples, ranks, key, f"{split}, {title}")
        return [replace(t, group=grouping.of(tasks[i // samples], t)) for i, t in enumerate(played)]

    tested = SPLITS if args.eval_tasks else ()
    for split in tested if args.eval_start else ():
        if not run.path(f"trajectories/{split}_start.jsonl").exists():
            run.trajectories(f"{split}_start", test(split, "start", args.eval_samples))

    # ---- where a resumed run stands ----
    first, best = 0, -1.0
    rates = np.array([0.5 if math.isnan(task.rate) else task.rate for task in pool])  # [tasks]
    ahead = int(args.async_rollouts)  # iterations
    drawn[0] = draw(pool, rates, args, 0)
    optimizer = torch.optim.AdamW(model.trained(), lr=args.learning_rate or 0.0, weight_decay=0.0)
    if newest := run.newest("iteration"):
        model.restore(newest)
        state = run.state(newest)
        rollouts.restore(state)
        first, spent, best, rates = state["iteration"], state["tokens"], state["best"], np.array(state["rates"])
        drawn[first] = state["drawn"]
        optimizer.load_state_dict(parted(state["optimizer"], optimizer))
    run.keep(first)
    ranks.check_equal(model.trained())

    # ---- the loop ----
    most_tokens = math.inf if args.total_tokens is None else args.total_tokens
    bar = tqdm(range(first, args.total_iterations), f"{args.method}, {args.surgery}", args.total_iterations,
               initial=first, disable=not ranks.first)  # fmt: skip
    for iteration in rollouts.over(bar):
        if spent >= most_tokens:
            break
        clock = [time.perf_counter()]

        # roll out, or wait for what is rolled out already
        drawn[iteration + ahead] = draw(pool, rates, args, iteration + ahead)
        played = rollouts.take(iteration)
        clock.append(time.perf_counter())

        # group
        learnt = set(judged(played, ranks, f"iteration {iteration}"))
        samples = []
        for n, episode in zip(own, played, strict=True):
            if episode in learnt:
                slot = n // args.group_size
                task = drawn[iteration][slot]
                group = grouping.of(pool[task], episode.trajectory())
                samples.append(Sample(episode, task, slot, names.index(group.name), episode.trajectory(group)))

        # advantages, update
        advantage = advantages(samples, args)  # [samples]
        losses, conflict = update(model, optimizer, samples, advantage, len(names), args, iteration, ranks)
        rollouts.updated()
        rates = follow(rates, samples, ranks)
        clock.append(time.perf_counter())

        # report
        counts = [(len(e.logprobs), -sum(e.logprobs), e.cut, len(e.steps), e not in learnt) for e in played]
        tokens, surprise, cut, turns, lost = ranks.sum(np.array(counts, dtype=float).reshape(-1, 5).sum(0)).tolist()
        spent += round(tokens)
        last = iteration + 1 == args.total_iterations or spent >= most_tokens
        success = np.array([s.episode.success for s in samples])  # [samples], as are the next two
        over = np.array([s.trajectory.violates(budget) for s in samples], dtype=bool)
        member = np.array([s.group for s in samples])
        worth = {s.slot for s, a in zip(samples, advantage, strict=True) if a != 0.0}
        shares: dict[str, Any] = {
            "charts/success": success, "charts/in_budget_success": success * ~over, "violation/any": over,
            "charts/turns": [len(s.episode.steps) for s in samples],
            "charts/flat_groups": [slot not in worth for slot in {s.slot for s in samples}],
            **{f"cost/{k}": [s.episode.cost_total[k] for s in samples] for k in CHANNELS},
            **{f"group/{i}_share": member == i for i in range(len(names))},
            **{f"group/{i}_success": np.where(member == i, success, math.nan) for i in range(len(names))},
        }  # fmt: skip
        row = {"iteration": iteration, **{name: float(ranks.mean(of)[0]) for name, of in shares.items()}}
        row |= {"charts/infra": lost, "charts/generated_tokens": spent} | losses
        row |= {"charts/entropy": surprise / max(1.0, tokens), "charts/cut_turns": cut / max(1.0, turns)}
        if conflict is not None:
            row |= conflict_row(conflict, run.rows, args.tau)
        if iteration % args.log_every == 0 or last:
            every = sorted((one for part in ranks.gather([(s.slot, s.trajectory) for s in samples]) for one in part),
                           key=lambda one: one[0])  # fmt: skip
            run.trajectories(f"iteration_{iteration:06d}", [trajectory for _, trajectory in every])
        bar.set_postfix_str(
            f"success {row['charts/success']:.2f} entropy {row['charts/entropy']:.2f} flat "
            f"{row['charts/flat_groups']:.2f} conflict {row.get('conflict/rate', math.nan):.2f} calls "
            f"{row['cost/tool_calls']:.1f} tokens {row['cost/output_tokens']:.0f}"
        )

        # test, and keep what a killed run goes on from
        better = False
        if tested and args.eval_every and (iteration + 1) % args.eval_every == 0 and not last:
            trajectories = test("validation", f"update {iteration + 1}", args.eval_every_samples)
            row |= {f"validation/{name}": one[0] for name, one in passing(trajectories).items()}
            row["validation/success"] = metrics.success_rate(trajectories)
            row["validation/in_budget_success"] = metrics.in_budget_success(trajectories, budget)
            better, best = row["validation/pass@1"] > best, max(best, row["validation/pass@1"])
        clock.append(time.perf_counter())
        row |= zip(("seconds/wait", "seconds/update", "seconds/test"), np.diff(clock).tolist(), strict=True)
        row |= {"seconds/rollout": rollouts.seconds, "speed/tokens_per_second": tokens / rollouts.seconds}
        row["speed/idle"] = row["seconds/wait"] / (row["seconds/wait"] + row["seconds/update"])
        row["memory/peak_gib"] = peak_memory(ranks.device)
        run.log(row)
        places = ["best"] if better and args.keep_best else []
        if (iteration + 1) % args.checkpoint_every == 0 or last:
            places.append(f"iteration_{iteration + 1:06d}")
        if places:
            ranks.check_equal(model.trained())
            state = {"iteration": iteration + 1, "tokens": spent, "best": best, "rates": rates.tolist(),
                     "drawn": drawn.get(iteration + 1, []), "optimizer": joined(optimizer.state_dict(), ranks.first),
                     **rollouts.state()}  # fmt: skip
            for name in places:
                run.save(name, model, state)

    # ---- the tables and the pictures ----
    for split in tested:
        run.trajectories(f"{split}_final", test(split, "final", args.eval_samples))
    if ranks.first:
        report(run, names, budget, spent, args)
    run.close()


def settle(args: Args, ranks: Ranks) -> list[tuple[str, dict[str, Any]]]:
    """Refuse what cannot work, and fill in what follows from the environments, the method and the model's size.

    Returns:
        Id and keyword arguments of each environment.
    """
    count, size, weights = len(args.env_id), args.group_size, args.env_weights
    texts = args.env_kwargs or (None,) * count
    ones = ("num_episodes", "num_minibatches", "update_epochs", "max_new_tokens", "max_context", "micro_batch_tokens",
            "log_every", "checkpoint_every", "calibration_samples", "every", "eval_samples",
            "eval_every_samples")  # fmt: skip
    zeros = ("tau", "worst", "eval_every", "eval_tasks", "kl_coef", "lora_rank", "total_iterations", "total_tokens")
    at_least(args, dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0),
             above=("temperature", "learning_rate", "importance_cap"))  # fmt: skip
    wrong = [
        (not count, "--env-id must name at least one environment"),
        (len(texts) != count, f"--env-kwargs must be one JSON object an environment: {count}, not {len(texts)}"),
        (weights and (len(weights) != count or not all(0 < w < math.inf for w in weights)),
         f"--env-weights must be {count} numbers above 0, one an environment"),
        (size < 2, f"--group-size must be 2 or more: the episodes of a task are compared; not {size}"),
        (args.num_episodes % max(1, size),
         f"--num-episodes {args.num_episodes} is no multiple of --group-size {size}"),
        (args.tau >= 1, f"--tau must be below 1: no cosine is below -1; not {args.tau}"),
        (not 2 <= args.groups <= 8, f"--groups must be from 2 to 8, not {args.groups}"),
        (args.pool_tasks < max(args.groups, count),
         f"--pool-tasks {args.pool_tasks} is fewer than the groups or environments"),
        (args.method == "pass-at-k" and not 2 <= args.pass_k <= size,
         f"--pass-k must be from 2 to --group-size {size}, not {args.pass_k}"),
        (args.keep_best and not args.eval_every, "--keep-best needs --eval-every, the tests that it compares"),
        (count > 1 and args.budget.relative is not None, "--budget.relative needs a single environment"),
    ]  # fmt: skip
    for holds, sentence in wrong:
        if holds:
            raise Refused(sentence)
    alone = len(set(args.env_id)) == 1  # a ready-made policy knows one environment
    args.model = model_of(args.model, args.env_id[0]) if alone else args.model or "tiny"
    kinds = [(env_id, env_kwargs_of(text, env_id)) for env_id, text in zip(args.env_id, texts, strict=True)]
    kind = size_of(args.model, None if args.resume else args.init)  # in a resumed run all is set, and init may be gone
    fill(
        args, kind, learning_rate=RATES[kind] * (0.1 if kind != "tiny" and not args.lora_rank else 1.0),
        eval_tasks=4 if kind != "tiny" and ranks.device.type == "cpu" else 32,
        clip_high=0.28 if args.method == "clip-higher" else 0.2,
        loss_norm="constant" if args.method == "dr-grpo" else "tokens",
    )  # fmt: skip
    return kinds


if __name__ == "__main__":
    command(Args, train, __doc__, "grpo_pcgrad", extends=("total_iterations", "total_tokens"))
