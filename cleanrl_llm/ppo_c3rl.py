"""C3-RL: counterfactual cost-credit constrained reinforcement learning for tool-use agents.

    max_pi E[R]   subject to   E[C_k] <= B_k   for k in {tool_calls, output_tokens, read_tokens, latency_ms}

R is verified at the end of the episode only. Each step's part in it (u_t), and in each cost (v_tk), is measured by
counterfactual replay, which re-issues the recorded steps as far as they are still grounded: what a success can do
without is eliminated, or each step is left out alone (cut, swapped) and the outcome compared. The advantage:

    A_t = [ z(R)_i + c z(u_t) - g_i sum_k lambda_k z(v_tk) ] / (1 + sum_k lambda_k)

and lambda follows the constraint violation by dual ascent. `--method` swaps that one line for PPO without costs, a
fixed penalty, hard truncation, a trajectory-level Lagrangian, or step credit without costs; nothing else changes.

Left out of PPO: the value network (groups of episodes of one task take its place; `--critic` brings it back, by turns),
discounting, and whitening of the advantage, whose terms are normalised one by one.

Docs: docs/ppo_c3rl.md
"""

import itertools
import math
import random
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import agent_gym.lm  # isort: skip  (before torch)
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import agent_gym
from agent_gym import CHANNELS, Counterfactual, Delete, Step, Swap, ToolCache, Trajectory, Truncate
from agent_gym.lm.arguments import Common, at_least, env_kwargs_of, fill, model_of, size_of
from agent_gym.lm.budget import bounds
from agent_gym.lm.chat import Chat
from agent_gym.lm.engine import Engine
from agent_gym.lm.errors import Refused
from agent_gym.lm.figures import credit_map, draw_credits, draw_dual, table
from agent_gym.lm.importance import importance
from agent_gym.lm.models import Model, is_tiny, passes, token_logprobs
from agent_gym.lm.overlap import Rollouts
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import Branch, Episode, Limits, environments, evaluate, judged, play
from agent_gym.lm.runs import Run, command, peak_memory, read_lines
from agent_gym.lm.seeds import stream
from agent_gym.lm.shards import clip, in_step, joined, parted
from agent_gym.lm.start import starting_policy
from agent_gym.lm.tiny import preset
from agent_gym.lm.vllm_engine import engine_of
from agent_gym.metrics import mean_interval, share_interval

K, CALLS = len(CHANNELS), CHANNELS.index("tool_calls")
SPLITS = ("validation", "test")  # of the tests

# ---------------------------------------------------------------------------------------------------------------------
# Arguments

RATES = {"tiny": 3e-4, "small": 1e-4, "large": 2e-5}  # learning rate by the model's size; below and above 1 B


@dataclass
class Credit:
    mode: Literal["eliminate", "leave-one-out"] = "eliminate"
    """how a success is measured: delete for good what it can do without, dearest first; or one step at a time, as
    failures always are"""
    cost: Literal["excess-group", "excess-best", "own", "leave-one-out", "trajectory"] | None = None
    """v of a step: what is left of it pays the excess over the cheapest pruned success of its group, or ever of its
    task type; its own cost; by leave-one-out; or the whole episode's cost, as without credit (the ablation). Unset,
    excess-group with mode eliminate and leave-one-out with the other"""
    episodes: Literal["successes", "near-misses", "all"] = "all"
    """which episodes are replayed; near-misses are successes and failures of a score of 0.5 or more"""
    interventions: tuple[Literal["delete", "truncate", "swap", "replace"], ...] = ("delete",)
    """what leave-one-out does to a step; replace draws fresh samples from the policy and plays them to the end"""
    grounding: bool = True
    """skip suffix calls that only the removed step could have explained (False: literal replay)"""
    z_reward: bool = True
    """keep the trajectory's own group-relative success in the advantage"""
    success_gate: bool = True
    """let a step's cost count only in episodes that succeeded"""
    selection: Literal["uncertain", "dearest", "all", "random"] = "all"
    """which steps are measured: those that the policy was least sure of, the dearest, all of them, or random ones"""
    most_steps: int = 4
    """M: steps measured an episode, unless selection is all (the last step is always known)"""
    block: int = 1
    """steps that leave-one-out deletes together; they share the block's credit"""
    most_interventions: int = 8
    """K: replays an episode, at most, the steps chosen first before the others; selection all has no such cap"""
    replace_samples: int = 2
    """fresh continuations a measured step, for the intervention replace"""
    weight: float = 1.0
    """c: weight of the success credit, and of the step term of stepgroup"""


@dataclass
class Dual:
    lr: float = 0.1
    """eta: step size of the multipliers"""
    fixed: float | None = None
    """keep every lambda at this value instead of updating it"""
    warmup: int = 3
    """iterations during which lambda stays 0"""
    ema: float = 0.5
    """rho: smoothing of the relative violation"""
    lambda_max: float = 5.0
    """upper bound of every lambda"""
    channels: tuple[str, ...] = CHANNELS
    """constrained channels; name one for the single-cost ablation"""
    pid: bool = False
    """PID control of lambda (Stooke et al. 2020) instead of integral control alone"""
    kp: float = 0.5
    """proportional gain, with pid"""
    kd: float = 0.5
    """derivative gain, with pid"""
    curriculum: int = 0
    """iterations over which the budget tightens from the starting policy's own mean cost; 0 is off"""


@dataclass
class Args(Common):
    env_id: str = "APIAgent-v0"
    """Gymnasium id of the environment"""
    env_kwargs: str | None = None
    """keyword arguments of gym.make, as JSON, by default the preset's; split and budget are set by this script"""
    method: Literal["c3rl", "ppo", "penalty", "truncation", "lagrangian", "stepgroup"] = "c3rl"
    """the advantage: C3-RL, reward only, R - alpha C, reward only in an environment that cuts at the budget,
    trajectory-level multipliers, or reward with step credit by groups of equal states (GiGPO, Feng et al. 2025)"""
    penalty_alpha: float = 0.3
    """alpha of method penalty: R - alpha mean_k C_k / B_k"""
    truncation_slack: float = 1.0
    """method truncation cuts training episodes at this multiple of the budget"""
    lagrangian_to_go: bool = False
    """method lagrangian charges a step with the cost from there on instead of the episode's"""
    credit: Credit = field(default_factory=Credit)
    """counterfactual credit"""
    dual: Dual = field(default_factory=Dual)
    """multipliers"""

    total_iterations: int = 40
    """policy updates"""
    total_tokens: int | None = None
    """stop after the iteration in which this many tokens have been generated"""
    num_episodes: int = 48
    """episodes an iteration, over all processes"""
    group_size: int = 4
    """episodes of one task, compared with each other"""
    learning_rate: float | None = None
    """AdamW on the policy"""
    anneal_lr: bool = True
    """let the learning rate fall linearly to 0 over the run's iterations, or its tokens if they end it first"""
    update_epochs: int = 1
    """passes over an iteration's episodes"""
    num_minibatches: int = 2
    """optimiser steps a pass"""
    clip_low: float = 0.2
    """PPO clip below 1"""
    clip_high: float = 0.28
    """PPO clip above 1 (clip-higher, DAPO)"""
    dual_clip: float = 3.0
    """bound on the loss of negative advantages (Ye et al. 2020)"""
    kl_coef: float = 0.01
    """beta: weight of the k3 KL estimate to the policy that the run started from"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    loss_norm: Literal["tokens", "constant"] = "tokens"
    """divide the loss by the batch's model tokens, or by max_context an episode (Dr. GRPO); never by the episode's own
    length, which would dilute the credit of long episodes"""
    importance_cap: float = 2.0
    """bound on the importance weight of a token, its probability in training over that in sampling"""
    importance_mask: float | None = None
    """drop episodes whose geometric mean of these ratios is further than this from 1, such as 0.01; unset, none"""
    async_rollouts: bool = False
    """play the next iteration's episodes while this one's are learnt from, with a policy that is one update older; the
    importance weights correct for that"""
    target_kl: float | None = None
    """stop an iteration's updates when the mean KL to the sampling policy exceeds this, on all ranks"""
    critic: bool = False
    """turn-level value heads, one for reward and one a cost, with GAE in place of the group baseline"""
    gae_lambda: float = 0.95
    """lambda of GAE over turns, with critic"""
    critic_lr: float = 1e-3
    """AdamW on the value heads"""

    eval_episodes: int | None = None
    """tasks of each split, validation and test, in the table of the end (and of the start); by default 256, or
    num_episodes for a pretrained model on a CPU"""
    eval_every: int = 0
    """iterations between tests on the validation split; 0 is never"""
    keep_best: bool = False
    """keep the checkpoint of the best of these tests, by in-budget success, as checkpoints/best"""
    log_every: int = 20
    """iterations between trajectory samples"""
    checkpoint_every: int = 5
    """iterations between checkpoints"""


# ---------------------------------------------------------------------------------------------------------------------
# Counterfactual credit


@dataclass
class Credits:
    """What was measured of an episode.

    Args:
        u: Success credit of every step, shape [steps]; NaN where it was not measured, as in v.
        v: Cost credits, shape [steps, channels].
        left: Of a success that was pruned, the cost of what it kept of each step, shape [steps, channels].
        replays: How many it took.
    """

    u: np.ndarray
    v: np.ndarray
    left: np.ndarray | None = None
    replays: int = 0

    @property
    def eliminated(self) -> list[int]:
        """The steps of which nothing is left: every turn that is played writes a token."""
        return [] if self.left is None else np.flatnonzero(~self.left.any(axis=1)).tolist()


def replayed(episode: Episode, credit: Credit) -> bool:
    """Whether an episode is one of those to measure."""
    near = credit.episodes == "near-misses" and episode.verdict is not None and episode.verdict["score"] >= 0.5
    return bool(credit.episodes == "all" or episode.success or near)


def chosen_steps(episode: Episode, bounds: np.ndarray, credit: Credit, rng: random.Random) -> list[int]:
    """The steps to measure, the most wanted first. The last one needs no replay: without it nothing is submitted."""
    steps = list(range(len(episode.steps) - episode.steps[-1].terminated))
    if credit.selection == "uncertain":
        steps.sort(key=lambda t: np.mean(episode.steps[t].logprobs or 0.0))  # its mean estimates minus the entropy
    elif credit.selection == "dearest":
        price = (step_costs(episode) / bounds).sum(axis=1)
        steps.sort(key=lambda t: (-price[t], -t))
    elif credit.selection == "random":
        rng.shuffle(steps)
    return steps if credit.selection == "all" else steps[: credit.most_steps]


def calls_of(step: Step) -> list[int | None]:
    """The numbers of a step's calls where it has several, which are measured one by one; else None, the step itself."""
    return [*range(len(step.tool_results))] if len(step.tool_results) > 1 else [None]


def first_tool(step: Step) -> str | None:
    """The first tool that the step called, if one ran."""
    return next((result["name"] for result in step.tool_results if result.get("error") != "not_run"), None)


def shares(block: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A block's credit by channel, shared by its steps as they share its cost, or equally where it had none.

    Args:
        block: Shape [channels].
        own: Cost of its steps, shape [steps, channels].
    """
    total = own.sum(axis=0)
    return block * np.where(total > 0, own / np.where(total > 0, total, 1.0), 1.0 / len(own))


def left_out(episode: Episode, results: list[Counterfactual]) -> Iterator[tuple[int, float, np.ndarray]]:
    """What replays without some steps say: a step, its u, its v [channels], as often as it was measured."""
    own, by_call = step_costs(episode), dict[int, list[Counterfactual]]()
    for one in results:
        if isinstance(one.intervention, Truncate) or one.reward is None:
            continue
        if isinstance(one.intervention, Delete) and one.intervention.call is not None:
            by_call.setdefault(one.intervention.t, []).append(one)
            continue
        removed = range(one.intervention.t, one.intervention.t + getattr(one.intervention, "length", 1))
        for t, v in zip(removed, shares(np.array(list(one.cost_credit.values())), own[removed]), strict=True):
            yield t, one.success_credit / len(removed), v
    for t, ones in by_call.items():
        if len(ones) == len(episode.steps[t].tool_results):
            v = np.sum([list(one.cost_credit.values()) for one in ones], axis=0)
            yield t, max(one.success_credit for one in ones), v
    cuts = [one.intervention.t for one in results if isinstance(one.intervention, Truncate) and one.reward == 1.0]
    if cuts and episode.success:  # the earliest cut that still passes earns the success; the rest was only paid for
        yield min(cuts), episode.success, np.full(K, math.nan)
        for t in range(min(cuts) + 1, len(episode.steps) - episode.steps[-1].terminated):
            yield t, 0.0, own[t]


def measure(
    episodes: list[Episode],
    envs: Sequence[gym.Env],
    engine: Engine,
    chat: Chat,
    budget: dict[str, float],
    ways: dict[str, np.ndarray],
    args: Args,
    ranks: Ranks,
    key: int,
) -> tuple[list[Credits], int]:
    """What each step was worth and what it cost: replay the episodes with steps eliminated, or left out alone.

    A turn of several calls is measured call by call: its u is the largest of theirs (it is needed if one of them is),
    its v their sum.

    Args:
        budget: B by channel, which makes one price of several costs.
        ways: The cheapest ways known; see :func:`charge`.

    Returns:
        The credits, and the tokens the policy had to generate for them (0 without ``replace``).
    """
    cache, credit, bounds = ToolCache(), args.credit, np.array([budget[k] for k in CHANNELS])
    by_tool: dict[str, list[Any]] = {}  # what the whole batch did with each tool
    calls = [(e.index, t, first_tool(s), s.action) for e in episodes for t, s in enumerate(e.steps)]
    for *_, tool, action in sorted((one for part in ranks.gather(calls) for one in part), key=lambda one: one[:2]):
        if tool is not None:
            by_tool.setdefault(tool, []).append(action)
    found: list[list[tuple[int, float, np.ndarray]]] = [[] for _ in episodes]
    pruned, replays, fresh = dict[int, Credits](), [0] * len(episodes), list[tuple[int, int]]()
    for i, episode in enumerate(episodes):
        if not replayed(episode, credit):
            continue
        todo, rng = list[Any](), random.Random(stream(key, episode.index))
        chosen = chosen_steps(episode, bounds, credit, rng)
        if credit.mode == "eliminate" and episode.success:
            pruned[i] = prune(episode, envs[0], chosen, budget, credit, cache)
            if credit.cost != "leave-one-out":
                continue
        last = len(episode.steps) - episode.steps[-1].terminated  # a block must not take the last step with it
        for t in chosen:
            if "delete" in credit.interventions:
                one_by_one = [Delete(t, call=n) for n in calls_of(episode.steps[t])]
                todo += one_by_one if credit.block == 1 else [Delete(t, min(credit.block, last - t))]
            if "swap" in credit.interventions and (name := first_tool(episode.steps[t])):
                others = [a for a in by_tool[name] if a != episode.steps[t].action]
                todo += [Swap(t, rng.choice(others))] if others else []
            if "truncate" in credit.interventions:
                todo.append(Truncate(t))
            if "replace" in credit.interventions:
                fresh += [(i, t)] * credit.replace_samples
        if credit.selection != "all":
            todo = todo[: credit.most_interventions]
        results = agent_gym.counterfactuals(
            envs[0], episode.trajectory(), todo, grounding=credit.grounding, cache=cache, snapshots=episode.snapshots
        )
        replays[i] = len(results)
        found[i] += left_out(episode, results)
    branches = [Branch(episodes[i], t) for i, t in fresh]  # closed loop: fresh samples of the step, played to the end
    draws = [stream("replace", key, episodes[i].index, at) for at, (i, _) in enumerate(fresh)]
    played = play(engine, chat, envs, branches, limits_of(args), draws=draws) if fresh else []
    for (i, t), branch in zip(fresh, played, strict=True):
        if not branch.infra:
            v = np.array([episodes[i].cost_total[k] - branch.cost_total[k] for k in CHANNELS])
            found[i].append((t, episodes[i].success - branch.success, v))
    credits = []
    for i, episode in enumerate(episodes):
        measurements = [[np.append(u, v) for at, u, v in found[i] if at == t] for t in range(len(episode.steps))]
        mean = np.array([Ranks().mean(own, width=1 + K) for own in measurements])  # NaN where there is nothing
        credits.append(pruned.get(i, Credits(mean[:, 0], mean[:, 1:])))
        credits[-1].replays += replays[i]
        if credit.cost == "leave-one-out":
            credits[-1].v = mean[:, 1:]
    if credit.cost not in ("own", "leave-one-out"):
        charge(episodes, credits, ways, credit, ranks)
    last_steps(episodes, credits, credit)
    return credits, sum(len(b.logprobs) for b in played)


def prune(
    episode: Episode, env: gym.Env, chosen: list[int], budget: dict[str, float], credit: Credit, cache: ToolCache
) -> Credits:
    """Eliminate what a success can do without, of all its steps or, with another selection, of the chosen ones: u = R
    for what is kept, 0 for what goes, v the step's own cost. Kept steps that were not tried have no u."""
    units = [[t if n is None else (t, n) for n in calls_of(step)] for t, step in enumerate(episode.steps)]
    among = None
    if credit.selection != "all":
        among = [unit for t in chosen for unit in units[t]][: credit.most_interventions]
    found = agent_gym.eliminate(
        env, episode.trajectory(), budget, snapshots=episode.snapshots, grounding=credit.grounding, cache=cache,
        among=among,
    )  # fmt: skip
    u, left = np.zeros(len(units)), np.zeros((len(units), K))
    kept = list(dict.fromkeys(unit if isinstance(unit, int) else unit[0] for unit in found.kept))
    u[kept], left[kept] = episode.success, step_costs(found.trajectory)
    if among is not None:
        u[[t for t in kept[:-1] if not set(units[t]) <= set(among)]] = math.nan
    return Credits(u, step_costs(episode), left, found.replays)


def charge(
    episodes: list[Episode], credits: list[Credits], ways: dict[str, np.ndarray], credit: Credit, ranks: Ranks
) -> None:
    """Write v of the steps of pruned successes, their excess over the cheapest way known:

        v_tk = c_tk - c'_tk C*_k / C'_k

    c is the step's cost, c' that of what is left of it in the pruned episode (0 where it was eliminated), C' the total
    of these, and C* the lowest C' in the group, or so far among the tasks of the type. Over an episode, v adds up to
    its cost minus C*.

    Args:
        ways: C* by task type, shape [channels] each; brought up to date for ``excess-best``.
    """
    ways = ways if credit.cost == "excess-best" else {}
    kinds = [e.task_type if credit.cost == "excess-best" else str(e.seed) for e in episodes]
    totals = [(kind, c.left.sum(axis=0)) for kind, c in zip(kinds, credits, strict=True) if c.left is not None]
    for kind, total in (one for part in ranks.gather(totals) for one in part):
        ways[kind] = np.minimum(ways.get(kind, total), total)
    for kind, episode, c in zip(kinds, episodes, credits, strict=True):
        if c.left is not None:
            total = c.left.sum(axis=0)
            c.v = step_costs(episode) - c.left * np.divide(ways[kind], total, out=np.ones(K), where=total > 0)
            c.v[np.isnan(c.u)] = math.nan


def last_steps(episodes: list[Episode], credits: list[Credits], credit: Credit) -> None:
    """Write the credit of answers: the success is theirs too, and they bear at least what the cheapest answer that
    passed in their group did without. Where none passed, that is not known."""
    for group in {e.seed for e in episodes}:
        answers = [i for i, e in enumerate(episodes) if e.seed == group and e.steps[-1].terminated]
        passed = [step_costs(episodes[i])[-1] for i in answers if episodes[i].success]
        for i in answers:
            if replayed(episodes[i], credit):
                credits[i].u[-1] = episodes[i].success
                if passed:
                    above = step_costs(episodes[i])[-1] - np.min(passed, axis=0)
                    credits[i].v[-1] = np.fmax(credits[i].v[-1], above)  # the first may not have been measured


def step_costs(episode: Episode | Trajectory) -> np.ndarray:
    """Cost of every step by channel, shape [steps, channels]."""
    return np.array([[step.cost[k] for k in CHANNELS] for step in episode.steps])


def states_before(episodes: list[Episode], env: gym.Env) -> list[list[str]]:
    """Hash of the world's state before each step of each episode."""
    found = []
    for episode in episodes:
        agent_gym.restore(env, episode.snapshots[0])
        found.append([agent_gym.state_hash(env), *(step.state_hash for step in episode.steps[:-1])])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Advantages


def z(values: np.ndarray, ranks: Ranks) -> np.ndarray:
    """z-score over what was measured on all ranks, clipped to +-3; 0 where not measured or where all is equal."""
    mean, square = ranks.mean(np.stack([values, values**2], axis=1), width=2)
    std = math.sqrt(max(0.0, square - mean**2)) if not math.isnan(square) else 0.0
    if std < 1e-6:
        return np.zeros_like(values)
    return np.where(np.isnan(values), 0.0, np.clip((values - mean) / std, -3.0, 3.0))


def relative(values: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Leave-one-out: each value minus the mean of its group's others (RLOO, Ahmadian et al. 2024)."""
    result = np.zeros_like(values)
    for group in set(groups):
        members = np.array([i for i, g in enumerate(groups) if g == group])
        if len(members) > 1:
            mean = values[members].mean(axis=0)
            result[members] = (values[members] - mean) * len(members) / (len(members) - 1)
    return result


def gae(rewards: np.ndarray, values: np.ndarray, lam: float) -> np.ndarray:
    """Generalised advantage over the turns of one episode, undiscounted (Schulman et al. 2016).

    Args:
        rewards: Of each turn, shape [turns, ...].
        values: Before each turn, same shape.
        lam: lambda of GAE.
    """
    result, running = np.zeros_like(values), np.zeros(values.shape[1:])
    for t in reversed(range(len(values))):
        following = values[t + 1] if t + 1 < len(values) else 0.0
        running = rewards[t] + following - values[t] + lam * running
        result[t] = running
    return result


def to_go(costs: np.ndarray) -> np.ndarray:
    """From each step on: the reversed running sum of shape [steps, ...]."""
    return costs[::-1].cumsum(axis=0)[::-1]


def advantages(
    episodes: list[Episode],
    credits: list[Credits] | None,
    values: list[np.ndarray] | None,
    states: list[list[str]] | None,
    lambdas: np.ndarray,
    bounds: np.ndarray,
    args: Args,
    ranks: Ranks,
) -> list[np.ndarray]:
    """A_t of every step of every episode. This is the one place in which the methods differ.

    Args:
        credits: What was measured; only C3-RL looks at it.
        values: With critics, what they expect before each turn: reward and costs in bounds, [turns, 1 + channels].
        states: Before each step, for method stepgroup, which compares steps of a task that were taken in one state
            (GiGPO, arXiv:2505.10978, undiscounted).
        lambdas: Multipliers, shape [channels].
        bounds: B, shape [channels]; costs count relative to them, and a channel without one (inf) costs nothing.
    """
    owner = np.repeat(np.arange(len(episodes)), [len(e.steps) for e in episodes])  # [all steps] -> episode
    groups = [e.seed for e in episodes]
    success = np.array([e.success for e in episodes])
    steps = [step_costs(e) for e in episodes]
    cost = np.array([s.sum(axis=0) for s in steps]).reshape(-1, K)

    def z_each(columns: np.ndarray) -> np.ndarray:
        return np.stack([z(columns[:, k], ranks) for k in range(K)], axis=1)

    def joined(parts: list[np.ndarray], *shape: int) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros((0, *shape))

    if values is not None:
        flows = [np.concatenate([np.zeros((len(s), 1)), s / bounds], axis=1) for s in steps]
        for flow, e in zip(flows, episodes, strict=True):
            flow[-1, 0] = e.success
        ahead = joined([gae(f, v, args.gae_lambda) for f, v in zip(flows, values, strict=True)], 1 + K)
        z_reward, z_cost = z(ahead[:, 0], ranks), z_each(ahead[:, 1:])
    else:
        z_reward = z(relative(success, groups), ranks)[owner]
        if args.lagrangian_to_go:
            z_cost = z_each(joined([to_go(s) for s in steps], K))
        else:
            z_cost = z_each(relative(cost, groups))[owner]

    scale = 1.0 + lambdas.sum()
    if args.method in ("ppo", "truncation"):
        advantage = z_reward
    elif args.method == "penalty":
        spent = (cost / bounds).sum(axis=1) / max(1, np.isfinite(bounds).sum())
        advantage = z(relative(success - args.penalty_alpha * spent, groups), ranks)[owner]
    elif args.method == "lagrangian":
        advantage = (z_reward - z_cost @ lambdas) / scale
    elif args.method == "stepgroup":
        assert states is not None
        places = [(e.seed, state) for e, own in zip(episodes, states, strict=True) for state in own]
        advantage = z_reward + args.credit.weight * z(relative(success[owner], places), ranks)
    else:
        assert credits is not None
        z_u, z_v = z(joined([c.u for c in credits]), ranks), z_each(joined([c.v for c in credits], K))
        z_v = z_cost if args.credit.cost == "trajectory" else z_v
        gate = success[owner] if args.credit.success_gate else 1.0
        advantage = (args.credit.z_reward * z_reward + args.credit.weight * z_u - gate * (z_v @ lambdas)) / scale
    return np.split(advantage, np.cumsum([len(s) for s in steps])[:-1]) if episodes else []


# ---------------------------------------------------------------------------------------------------------------------
# Multipliers


@dataclass
class DualState:
    """The multipliers and what their controller remembers; each of shape [channels]."""

    lambdas: np.ndarray = field(default_factory=lambda: np.zeros(K))
    ema: np.ndarray = field(default_factory=lambda: np.zeros(K))
    integral: np.ndarray = field(default_factory=lambda: np.zeros(K))
    loosest: np.ndarray = field(default_factory=lambda: np.zeros(K))  # where the curriculum began

    def bounds(self, final: np.ndarray, cost: np.ndarray, iteration: int, dual: Dual) -> np.ndarray:
        """The bounds of this iteration: the final ones, or on the way to them from the first mean cost."""
        if iteration == 0:
            self.loosest = np.maximum(final, cost)
        left = max(0.0, 1.0 - iteration / dual.curriculum) if dual.curriculum else 0.0
        return final + left * np.where(np.isfinite(final), self.loosest - np.where(np.isfinite(final), final, 0.0), 0.0)

    def update(self, cost: np.ndarray, bounds: np.ndarray, iteration: int, dual: Dual) -> None:
        """lambda follows the smoothed relative violation e_k = (J_k - B_k) / B_k.

        Args:
            cost: J, the batch's mean cost by channel.
            bounds: B; an infinite one is no constraint.
        """
        constrained = np.isfinite(bounds) & np.array([k in dual.channels for k in CHANNELS])
        error = np.where(constrained, (cost - bounds) / np.where(constrained, bounds, 1.0), 0.0)
        before, self.ema = self.ema, dual.ema * self.ema + (1.0 - dual.ema) * error
        if dual.fixed is not None:
            self.lambdas = np.full(K, dual.fixed)
        elif iteration < dual.warmup:
            self.lambdas = np.zeros(K)
        elif dual.pid:
            self.integral = np.clip(self.integral + dual.lr * self.ema, 0.0, dual.lambda_max)
            rising = np.maximum(0.0, self.ema - before)
            self.lambdas = np.clip(dual.kp * self.ema + self.integral + dual.kd * rising, 0.0, dual.lambda_max)
        else:
            self.lambdas = np.clip(self.lambdas + dual.lr * self.ema, 0.0, dual.lambda_max)
        self.lambdas = np.where(constrained, self.lambdas, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# The PPO update


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's estimate of a KL divergence a token, shape [tokens]; clamped, or one token could outweigh a batch."""
    log_ratio = log_ratio.clamp(-10.0, 10.0)
    return log_ratio.exp() - log_ratio - 1.0


def policy_loss(
    logp: Tensor, old: Tensor, ref: Tensor | None, entropy: Tensor, advantage: Tensor, args: Args
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO-clip with KL and entropy terms, summed over tokens.

    Args:
        logp, old, ref: Log-probabilities under the policy, the policy that sampled, the reference; shape [tokens].
        entropy: Of the policy's distribution at each token, shape [tokens].
        advantage: A of each token's turn, shape [tokens].

    Returns:
        The loss, and sums over the tokens for the log.
    """
    ratio = (logp - old).exp()  # [tokens]
    clipped = ratio.clamp(1.0 - args.clip_low, 1.0 + args.clip_high)
    gain = torch.min(ratio * advantage, clipped * advantage)
    gain = torch.where(advantage < 0, torch.max(gain, args.dual_clip * advantage), gain)
    kl = torch.zeros_like(logp) if ref is None else k3(ref - logp)
    loss = -gain.sum() + args.kl_coef * kl.sum() - args.entropy_coef * entropy.sum()
    with torch.no_grad():
        sums = {
            "policy_loss": -gain.sum(), "kl": kl.sum(), "entropy": entropy.sum(), "old_kl": k3(logp - old).sum(),
            "clip_fraction": ((ratio < 1.0 - args.clip_low) | (ratio > 1.0 + args.clip_high)).sum(),
            "ratio": ratio.sum(),
        }  # fmt: skip
    return loss, sums


class Critic:
    """Linear heads on the state before each turn: what is still to come of the reward and of each cost in bounds. Their
    optimiser is their own, so that they do not share the policy's clipping."""

    def __init__(self, size: int, args: Args, device: torch.device) -> None:
        self.heads = torch.nn.Linear(size, 1 + K).to(device)
        torch.nn.init.zeros_(self.heads.weight)
        torch.nn.init.zeros_(self.heads.bias)
        self.optimizer = torch.optim.AdamW(self.heads.parameters(), lr=args.critic_lr, weight_decay=0.0)

    def values(self, states: Tensor) -> Tensor:
        """Shape [turns, 1 + channels] from the states before the turns, [turns, size]."""
        return self.heads(states)

    def loss(self, states: Tensor, episodes: list[Episode], bounds: np.ndarray) -> Tensor:
        """Summed squared error to what really came."""
        came = [np.concatenate([np.full((len(e.steps), 1), e.success), to_go(step_costs(e) / bounds)], axis=1)
                for e in episodes]  # fmt: skip
        return (self.values(states) - torch.from_numpy(np.concatenate(came)).to(states)).square().sum()


def update(
    model: Model,
    critic: Critic | None,
    optimizer: torch.optim.Optimizer,
    episodes: list[Episode],
    steps_advantages: list[np.ndarray],
    bounds: np.ndarray,
    args: Args,
    ranks: Ranks,
    seed: int,
) -> dict[str, float]:
    """Passes of PPO over the episodes; every token of a turn has the turn's advantage.

    An episode's minibatch depends on its number in the whole batch alone, so any number of processes, and episodes that
    dropped out, leave the minibatches what they are: every rank makes the same number of steps. The micro-batches are
    fixed, so that old, reference and new log-probabilities come from passes of the same shape.
    """
    place = np.random.default_rng(seed).permutation(args.num_episodes) * args.num_minibatches // args.num_episodes

    def rows_of(part: list[int]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Ids and spans of episodes."""
        return [episodes[i].ids for i in part], [episodes[i].spans for i in part]

    minibatches = []  # of micro-batches of indices of episodes
    for b in range(args.num_minibatches):
        mine = [i for i, e in enumerate(episodes) if place[e.index] == b]
        parts = passes(model, *rows_of(mine), args.micro_batch_tokens)
        minibatches.append([[mine[i] for i in part] for part in parts])

    def passed(part: list[int]) -> Any:
        return token_logprobs(model, *rows_of(part), args.temperature, entropy_grad=args.entropy_coef != 0.0)

    fixed: dict[int, tuple[Tensor, Tensor | None, Tensor]] = {}  # by a micro-batch's first episode, [tokens] each
    gaps, refs = [np.zeros((0, 3))], dict[int, Tensor]()
    with torch.no_grad():
        every = [part for minibatch in minibatches for part in minibatch]
        if args.kl_coef > 0.0:
            with model.reference():
                refs = {part[0]: passed(part).logprobs for part in in_step(model, ranks, every)}
        for part in in_step(model, ranks, every):
            old = passed(part).logprobs
            sampled = old.new_tensor([lp for i in part for lp in episodes[i].logprobs])
            lengths = [len(episodes[i].logprobs) for i in part]
            weight, found = importance(old, sampled, lengths, args.importance_cap, args.importance_mask)
            fixed[part[0]] = old, refs.get(part[0]), weight
            gaps.append(found.T.cpu().numpy())

    log: dict[str, list[float]] = {}
    skipped = 0
    for minibatch in minibatches * args.update_epochs:
        here = [i for part in minibatch for i in part]
        tokens, turns, count = ranks.sum(
            np.array(
                [sum(len(episodes[i].logprobs) for i in here), sum(len(episodes[i].steps) for i in here), len(here)]
            )
        )
        total = tokens if args.loss_norm == "tokens" else count * float(args.max_context or 0)
        sums = dict.fromkeys(("policy_loss", "kl", "entropy", "old_kl", "clip_fraction", "ratio"), 0.0)
        for part in in_step(model, ranks, minibatch):
            old, ref, weight = fixed[part[0]]
            logp, entropy, states = passed(part)
            spread = [np.repeat(steps_advantages[i], [end - begin for begin, end in episodes[i].spans]) for i in part]
            advantage = torch.from_numpy(np.concatenate(spread)).to(logp)  # [tokens]
            loss, terms = policy_loss(logp, old, ref, entropy, advantage * weight, args)
            (loss / total).backward()
            if critic:
                (critic.loss(states, [episodes[i] for i in part], bounds) / turns).backward()
            sums = {name: value + float(terms[name]) for name, value in sums.items()}
        norm = step(model.trained(), optimizer, args, ranks)
        skipped += not math.isfinite(norm)
        if critic:
            step(list(critic.heads.parameters()), critic.optimizer, args, ranks)
        means = ranks.sum(np.array(list(sums.values()))) / max(tokens, 1.0)
        for name, value in zip([*sums, "grad_norm"], [*means, norm], strict=True):
            log.setdefault(name, []).append(float(value))
        if args.target_kl is not None and log["old_kl"][-1] > args.target_kl:  # the same on all ranks
            break
    gap = np.concatenate(gaps)
    gap_mean, weight_mean, cut = ranks.mean(gap, width=3)
    return {
        **{f"losses/{name}": float(np.mean(found)) for name, found in log.items()},
        "losses/skipped_steps": float(skipped),
        "losses/sampler_gap_mean": float(gap_mean),
        "losses/sampler_gap_max": max(ranks.gather(float(gap[:, 0].max(initial=0.0)))),
        "losses/importance_mean": float(weight_mean),
        "losses/importance_cut": float(cut),
    }


def step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, args: Args, ranks: Ranks) -> float:
    """Sum the gradients over the ranks, clip, step; a gradient that is not finite is thrown away, on all ranks alike.

    Returns:
        The gradient's norm before clipping.
    """
    ranks.all_reduce_gradients(parameters)
    norm = clip(parameters, args.max_grad_norm)
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


# ---------------------------------------------------------------------------------------------------------------------
# The end table


def summary(trajectories: list[Trajectory], bounds: dict[str, float]) -> dict[str, tuple[float, float, float]]:
    """Every figure of the table with its 95% interval: Wilson for shares, bootstrap over tasks for means."""
    counted = [t for t in trajectories if t.reward is not None]
    shares = {"success@1": [t.success for t in counted]}
    shares |= {f"violation {k}": [t.cost_total[k] > bounds[k] for t in counted] for k in CHANNELS}
    shares["violation any"] = [t.violates(bounds) for t in counted]
    shares["in-budget success"] = [t.success and not t.violates(bounds) for t in counted]
    means = {f"mean {k}": [t.cost_total[k] for t in counted] for k in CHANNELS}
    return {name: share_interval(hits) for name, hits in shares.items()} | {
        name: mean_interval(values, seed=0) for name, values in means.items()
    }


# ---------------------------------------------------------------------------------------------------------------------


def train(args: Args) -> None:
    # ---- set-up ----
    ranks = Ranks.start(args.device)
    env_kwargs = settle(args, ranks)
    run = Run(args, f"{args.env_id.split(':')[-1]}__ppo_c3rl__{args.method}__{args.seed}", ranks)
    model, chat = starting_policy(args, run, ranks, [(args.env_id, env_kwargs)])
    model.freeze_reference()
    limits = limits_of(args)

    def made(count: int, split: str, slack: float = math.inf, on_budget: str = "record") -> Sequence[gym.Env]:
        """Environments whose budget is so many times the bounds."""
        most = {k: b * slack for k, b in budget.items()}
        return environments(
            args.env_id, count, chat=chat, split=split, bounds=most, on_budget=on_budget, ray_workers=args.ray_workers,
            **env_kwargs,
        )  # fmt: skip

    budget = dict.fromkeys(CHANNELS, math.inf)
    tasks = [stream("oracle", i) for i in range(64)]
    own = preset(args.env_id).budget
    budget = bounds(args.budget, own, made(1, "train")[0], tasks, tiny=is_tiny(args.model), ranks=ranks)
    bound = np.array(list(budget.values()))  # [channels]
    cut = args.method == "truncation"
    groups = ranks.share(range(args.num_episodes // args.group_size))
    mine = [group * args.group_size + i for group in groups for i in range(args.group_size)]
    slack = (args.truncation_slack, "truncate") if cut else (1.0, "record")
    envs = made(len(mine), "train", *slack)
    lab = made(1, "train", *slack) if args.async_rollouts else envs  # to replay in, while the next episodes are played
    tests = {split: made(min(128, args.eval_episodes or 0), split, 1.0) for split in SPLITS}

    engine = engine_of(model, chat, args)
    optimizer = torch.optim.AdamW(model.trained(), lr=args.learning_rate or 0.0, weight_decay=0.0)
    critic = Critic(model.net.config.get_text_config().hidden_size, args, ranks.device) if args.critic else None
    first, spent, best, dual, maps = 0, 0, -1.0, DualState(), list[dict[str, Any]]()
    ways: dict[str, np.ndarray] = {}  # the cheapest pruned success by task type, shape [channels] each

    def roll_out(iteration: int) -> list[Episode]:
        """group_size episodes of each task."""
        tasks = [stream("task", args.seed, iteration, i // args.group_size) for i in mine]
        draws = [stream("rollout", args.seed, iteration, i) for i in mine]
        return play(engine, chat, envs, tasks, limits, draws=draws, stop=rollouts.stop)

    rollouts = Rollouts(engine, model, roll_out, args.total_iterations, ahead=args.async_rollouts)

    def test(split: str, title: str) -> list[Trajectory]:
        rollouts.settle()
        seeds = [stream(split, i) for i in range(args.eval_episodes or 0)]  # the same tasks for every run
        draw = stream("evaluate", args.seed, title)
        return evaluate(engine, chat, tests[split], seeds, limits, ranks, draw=draw, title=f"{split} {title}")

    for split in SPLITS if args.eval_episodes and args.eval_start else ():
        if not run.path(f"trajectories/{split}_start.jsonl").exists():
            run.trajectories(f"{split}_start", test(split, "start"))
    if newest := run.newest("iteration"):
        model.restore(newest)
        state = run.state(newest)
        rollouts.restore(state)
        first, spent, best = state["iteration"], state["tokens"], state["best"]
        dual = DualState(**{name: np.array(value) for name, value in state["dual"].items()})
        ways = {name: np.array(value) for name, value in state["ways"].items()}
        optimizer.load_state_dict(parted(state["optimizer"], optimizer))
        if critic:
            critic.heads.load_state_dict(state["critic"])
            critic.optimizer.load_state_dict(state["critic_optimizer"])
        maps = [row for row in read_lines(run.path("credits.jsonl")) if row["iteration"] < first]
    run.keep(first)
    ranks.check_equal(model.trained())

    # ---- the loop ----
    most_tokens = math.inf if args.total_tokens is None else args.total_tokens
    bar = tqdm(range(first, args.total_iterations), args.method, args.total_iterations, initial=first,
               disable=not ranks.first)  # fmt: skip
    for iteration in rollouts.over(bar):
        if spent >= most_tokens:
            break
        logging = iteration % args.log_every == 0 or iteration == args.total_iterations - 1
        clock = [time.perf_counter()]

        # roll out, or wait for what is rolled out already
        played = rollouts.take(iteration)
        for i, episode in zip(mine, played, strict=True):
            episode.index = i  # its number in the whole batch
        episodes = judged(played, ranks, f"iteration {iteration}")
        generated = sum(len(e.logprobs) for e in played)
        clock.append(time.perf_counter())

        # measure: what was each step worth, and what did it cost?
        credits = None
        if args.method == "c3rl" or logging:
            key = stream("measure", args.seed, iteration)
            credits, extra = measure(episodes, lab, engine, chat, budget, ways, args, ranks, key)
            generated += extra
        clock.append(time.perf_counter())

        # the multipliers follow the violation
        mean_cost = ranks.mean([[e.cost_total[k] for k in CHANNELS] for e in episodes], width=K)
        now = dual.bounds(bound, mean_cost, iteration, args.dual)
        dual.update(mean_cost, now, iteration, args.dual)

        # improve
        values = None
        if critic:
            with torch.no_grad():
                hidden = [token_logprobs(model, [e.ids], [e.spans]).states for e in in_step(model, ranks, episodes)]
                values = [critic.values(h).cpu().double().numpy() for h in hidden]
        states = states_before(episodes, lab[0]) if args.method == "stepgroup" else None
        relative_to = bound if args.critic else now
        if args.anneal_lr:
            done = max(iteration / args.total_iterations, spent / most_tokens)
            optimizer.param_groups[0]["lr"] = (args.learning_rate or 0.0) * (1.0 - done)
        steps_advantages = advantages(episodes, credits, values, states, dual.lambdas, relative_to, args, ranks)
        losses = update(
            model, critic, optimizer, episodes, steps_advantages, bound, args, ranks,
            stream("update", args.seed, iteration),
        )  # fmt: skip
        rollouts.updated()
        clock.append(time.perf_counter())

        # report
        spent += (new := round(float(ranks.sum(np.array([generated]))[0])))
        last = iteration == args.total_iterations - 1 or spent >= most_tokens
        row = {"iteration": iteration, "charts/generated_tokens": float(spent), **losses}
        row |= figures(episodes, credits, bound, ranks)
        row["charts/infra"] = float(ranks.sum(np.array([sum(e.infra for e in played)]))[0])
        for k, channel in enumerate(CHANNELS):
            row[f"lambda/{channel}"] = float(dual.lambdas[k])
            row[f"budget/{channel}"] = float(now[k]) if math.isfinite(now[k]) else -1.0
        row |= dict(zip(("seconds/wait", "seconds/measure", "seconds/update"), np.diff(clock).tolist(), strict=True))
        row |= {"seconds/rollout": rollouts.seconds, "speed/tokens_per_second": new / rollouts.seconds}
        row["speed/idle"] = row["seconds/wait"] / (clock[-1] - clock[0])
        row["memory/peak_gib"] = peak_memory(ranks.device)
        if logging and credits is not None and ranks.first:
            run.trajectories(f"iteration_{iteration:06d}", [e.trajectory() for e in episodes])
            for i in longest(episodes)[:3]:
                c = credits[i]
                maps.append(credit_map(iteration, episodes[i], c.u, c.v, c.eliminated, lab[0]))
            run.lines("credits.jsonl", maps)
        bar.set_postfix_str(
            f"success {row['charts/success']:.2f} in-budget {row['charts/in_budget_success']:.2f} "
            f"calls {mean_cost[0]:.1f} tokens {mean_cost[1]:.0f} read {mean_cost[2]:.0f} ms {mean_cost[3]:.0f} "
            f"violation {row['violation/any']:.2f} lambda {' '.join(f'{x:.2f}' for x in dual.lambdas)}"
        )
        better = False
        if args.eval_every and (iteration + 1) % args.eval_every == 0:
            tested = summary(test("validation", f"update {iteration + 1}"), budget)
            row["validation/success"] = tested["success@1"][0]
            row["validation/in_budget_success"] = reached = tested["in-budget success"][0]
            better, best = reached > best, max(best, reached)
        run.log(row)
        if (iteration + 1) % args.checkpoint_every == 0 or last or (better and args.keep_best):
            ranks.check_equal(model.trained())
            state = {
                "iteration": iteration + 1, "tokens": spent, "best": best,
                "optimizer": joined(optimizer.state_dict(), ranks.first),
                "dual": {name: value.tolist() for name, value in asdict(dual).items()},
                "ways": {name: value.tolist() for name, value in ways.items()}, **rollouts.state(),
            }  # fmt: skip
            if critic:
                state |= {"critic": critic.heads.state_dict(), "critic_optimizer": critic.optimizer.state_dict()}
            if better and args.keep_best:
                run.save("best", model, state)
            if (iteration + 1) % args.checkpoint_every == 0 or last:
                run.save(f"iteration_{iteration + 1:06d}", model, state)

    # ---- the table and the pictures ----
    for split in SPLITS if args.eval_episodes else ():
        run.trajectories(f"{split}_final", test(split, "final"))
    if ranks.first:
        report(run, maps, budget, spent)
    run.close()


def figures(
    episodes: list[Episode], credits: list[Credits] | None, bound: np.ndarray, ranks: Ranks
) -> dict[str, float]:
    """What an iteration's episodes did, over all ranks: shares and means of what ``rows`` lists one by one."""
    over = np.array([[e.cost_total[k] for k in CHANNELS] for e in episodes]).reshape(-1, K) > bound
    any_over = [any(above) for above in over.tolist()]
    of_task = {e.seed: {other.success for other in episodes if other.seed == e.seed} for e in episodes}
    rows: dict[str, Any] = {
        "charts/success": [e.success for e in episodes],
        "charts/in_budget_success": [e.success * (not above) for e, above in zip(episodes, any_over, strict=True)],
        "charts/turns": [len(e.steps) for e in episodes],
        "charts/cut_turns": [turn < e.cut for e in episodes for turn in range(len(e.steps))],
        "charts/flat_groups": [len(found) == 1 for found in of_task.values()],
        "violation/any": any_over,
    }
    for k, channel in enumerate(CHANNELS):
        rows[f"violation/{channel}"] = over[:, k]
        rows[f"cost/{channel}"] = [e.cost_total[channel] for e in episodes]
    if credits is not None:
        rows["credit/u_mean"] = [u for c in credits for u in c.u]
        rows["credit/measured"] = [not math.isnan(u) for c in credits for u in c.u]
        rows["credit/replays"] = [c.replays for c in credits]
        pruned = [(e.cost_total["tool_calls"], c.left[:, CALLS].sum()) for e, c in zip(episodes, credits, strict=True)
                  if c.left is not None]  # fmt: skip
        rows["credit/redundant_share"] = [call >= kept for calls, kept in pruned for call in range(round(calls))]
    return {name: float(ranks.mean(np.asarray(of, dtype=float))[0]) for name, of in rows.items()}


def longest(episodes: list[Episode]) -> list[int]:
    """One episode of each task, successes first, then those of most steps."""
    order = sorted(range(len(episodes)), key=lambda i: (-episodes[i].success, -len(episodes[i].steps)))
    return list({episodes[i].task_id: i for i in reversed(order)}.values())[::-1]


def report(run: Run, maps: list[dict[str, Any]], budget: dict[str, float], spent: int) -> None:
    """Pictures, and the table of the tests of the starting and the final policy on both splits."""
    if run.rows:
        draw_dual(run.rows, run.folder / "dual.png")
    if maps:
        draw_credits(maps, run.folder / "credit_map.png")
    tables: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    infra = 0
    for split, name in itertools.product(SPLITS, ("start", "final")):
        if (path := run.path(f"trajectories/{split}_{name}.jsonl")).exists():
            tested = list(agent_gym.read_trajectories(path))
            tables[split][name] = summary(tested, budget)
            infra += sum(t.reward is None for t in tested)
    if tables["test"]:
        run.json("result.json", {"tables": tables, "generated_tokens": spent, "infra": infra})
        shown = table({f"{split} {name}": one for split, own in tables.items() for name, one in own.items()})
        run.text("table.md", shown + "\n")
        finite = {k: round(b, 1) for k, b in budget.items() if math.isfinite(b)}
        print(f"{len(tested)} unseen tasks of each split, budget {finite}, mean [95% interval]\n{shown}")


def limits_of(args: Args) -> Limits:
    return Limits(args.max_new_tokens or 0, args.max_context or 0)


def settle(args: Args, ranks: Ranks) -> dict[str, Any]:
    """Refuse what cannot work, and fill in what follows from the environment and the model's size.

    Returns:
        Keyword arguments of the environment.
    """
    env_kwargs = env_kwargs_of(args.env_kwargs, args.env_id)
    ones = ("num_episodes", "group_size", "num_minibatches", "update_epochs", "max_new_tokens", "max_context",
            "micro_batch_tokens", "log_every", "checkpoint_every")  # fmt: skip
    zeros = ("total_iterations", "total_tokens", "eval_episodes", "eval_every", "kl_coef", "lora_rank", "penalty_alpha")
    at_least(args, dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0),
             above=("temperature", "truncation_slack", "learning_rate", "importance_cap"))  # fmt: skip
    for k, bound in asdict(args.budget).items():
        if bound == 0:
            raise Refused(f"--budget.{k.replace('_', '-')} must be above 0: only to do nothing meets it")
    if args.group_size == 1 and not args.critic:
        raise Refused("--group-size 1 leaves nothing to compare an episode with; choose 2 or more, or --critic")
    if args.num_episodes % (args.group_size * ranks.world):
        raise Refused(
            f"--num-episodes {args.num_episodes} is no multiple of --group-size {args.group_size} x {ranks.world} "
            "processes"
        )
    if unknown := set(args.dual.channels) - set(CHANNELS):
        raise Refused(f"--dual.channels: unknown {sorted(unknown)}; the channels are {', '.join(CHANNELS)}")
    if args.keep_best and not args.eval_every:
        raise Refused("--keep-best needs --eval-every, the iterations between the tests that it compares")
    credit = args.credit
    if credit.mode == "eliminate" and (credit.interventions != ("delete",) or credit.block != 1):
        raise Refused("--credit.interventions and --credit.block are for --credit.mode leave-one-out")
    if credit.mode == "leave-one-out" and credit.cost not in (None, "leave-one-out", "trajectory"):
        raise Refused(f"--credit.cost {credit.cost} needs --credit.mode eliminate")
    if args.async_rollouts and "replace" in credit.interventions:
        raise Refused("--credit.interventions replace samples too, and --async-rollouts leaves it no engine; drop one")
    credit.cost = credit.cost or ("excess-group" if credit.mode == "eliminate" else "leave-one-out")
    args.model = model_of(args.model, args.env_id)
    size = size_of(args.model, None if args.resume else args.init)
    rate = RATES[size] * (0.1 if size != "tiny" and not args.lora_rank else 1.0)  # of all parameters a tenth
    few = size != "tiny" and ranks.device.type == "cpu"
    fill(args, size, learning_rate=rate, eval_episodes=args.num_episodes if few else 256)
    return env_kwargs


if __name__ == "__main__":
    command(Args, train, __doc__, "ppo_c3rl", extends=("total_iterations", "total_tokens"))
