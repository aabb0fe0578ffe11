"""Bounds of an episode's cost: absolute ones, or multiples of what the oracle pays under the model's own tokenizer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from agent_gym.costs import CHANNELS
from agent_gym.env import tool_env
from agent_gym.lm.errors import Refused
from agent_gym.lm.ranks import Ranks

__all__ = ["Budget", "bounds", "oracle_costs"]


@dataclass
class Budget:
    tool_calls: float | None = None
    """bound on an episode's number of tool calls; inf is none; unset, see relative"""
    output_tokens: float | None = None
    """bound on an episode's number of tokens that the model wrote, as the environment charges them"""
    read_tokens: float | None = None
    """bound on an episode's number of tokens that its tools answered"""
    latency_ms: float | None = None
    """bound on an episode's tool latency, in milliseconds of the environment's model"""
    relative: float | None = None
    """bounds are this multiple of the oracle's mean cost under this tokenizer, for channels without a bound of their
    own; unset, it is 1.3, and small policies have bounds that suit them for each environment"""


def oracle_costs(env: gym.Env, seeds: Sequence[int], ranks: Ranks | None = None) -> np.ndarray:
    """What the oracle pays for the tasks that ``seeds`` draw.

    Args:
        env: Without a bound that would cut it off; its token counter is the model's.
        seeds: One a task.
        ranks: Every process plays its share and has all costs in the end.

    Returns:
        Total costs, shape [tasks, channels], in the order of the seeds; without the tasks that were not passed, since
        what runs them failed or a wrapper cut them.
    """
    ranks = ranks or Ranks()
    base, paid = tool_env(env), []
    for place, seed in ranks.share(list(enumerate(seeds))):
        env.reset(seed=seed)
        for action in base.oracle():
            _, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        if info.get("verdict", {}).get("status") == "pass":
            paid.append((place, [info["cost_total"][channel] for channel in CHANNELS]))
    every = sorted(one for share in ranks.gather(paid) for one in share)
    return np.array([costs for _, costs in every]).reshape(-1, len(CHANNELS))


def bounds(
    budget: Budget,
    preset: Mapping[str, float],
    env: gym.Env,
    seeds: Sequence[int],
    *,
    tiny: bool,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """The bound of every channel; says what they are and how often the oracle itself breaks one.

    Args:
        budget: What the user asked for. A bound of a channel wins over ``relative``, and that over ``preset``.
        preset: Bounds in the tokens of small policies; channels not named are free.
        env: Where the oracle is measured, see :func:`oracle_costs`.
        seeds: Training tasks that it plays.
        tiny: Whether the model is of that size. The preset is for no other: their ``relative`` is 1.3 by default.
        ranks: The measurement is shared out.

    Returns:
        A bound for each of ``CHANNELS``; infinity is none. A multiple of a cost that the oracle never has is none.

    Raises:
        Refused: For a bound that is negative or no number.
    """
    given = {channel: getattr(budget, channel) for channel in CHANNELS}
    for name, value in {**given, "relative": budget.relative}.items():
        if value is not None and not value >= 0:
            raise Refused(f"--budget.{name.replace('_', '-')} must be 0 or more, not {value:g}")
    relative = budget.relative if budget.relative is not None or tiny else 1.3
    costs = oracle_costs(env, seeds, ranks)
    if relative is not None and not len(costs):
        raise Refused(f"the oracle passed none of {len(seeds)} tasks, so there is nothing to measure the budget by")
    mean = dict(zip(CHANNELS, (costs.sum(axis=0) / max(1, len(costs))).tolist(), strict=True))
    found = {}
    for channel in CHANNELS:
        if given[channel] is not None:
            found[channel] = float(given[channel])
        elif relative is None:
            found[channel] = float(preset.get(channel, math.inf))
        else:
            found[channel] = relative * mean[channel] if mean[channel] else math.inf
    broken = float((costs > np.array([found[channel] for channel in CHANNELS])).any(axis=1).sum()) / max(1, len(costs))
    if (ranks or Ranks()).first:
        words = [
            f"{channel} {bound:.4g} ({bound / mean[channel]:.2f} x)" if mean[channel] else f"{channel} {bound:.4g}"
            for channel, bound in found.items()
            if math.isfinite(bound)
        ]
        print(
            f"budget (x the oracle's mean cost): {', '.join(words) or 'none'}; the oracle breaks it in {broken:.0%} of "
            f"{len(costs)} tasks"
        )
        if broken > 0.2:
            print("warning: in more than 20% of tasks even the oracle breaks the budget; raise it (--budget.relative)")
    return found
