"""How the ready-made small policies are made: first to copy, from the oracle's demonstrations; then to waste."""

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent_gym.costs import CHANNELS
from agent_gym.lm import tiny
from agent_gym.lm.budget import oracle_costs
from agent_gym.lm.chat import Chat
from agent_gym.lm.demonstrations import Dialogue, Example, WarmStart, demonstrations, encoded, warm_start
from agent_gym.lm.engine import TorchEngine
from agent_gym.lm.models import POLICIES, Model, pack, token_logprobs
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import Limits, environments, evaluate
from agent_gym.lm.seeds import stream
from agent_gym.metrics import share_interval

__all__ = ["RECIPES", "Recipe", "copied", "make"]


@dataclass(frozen=True)
class Recipe:
    """What is trained on, in the order of the fields' names: the oracle's demonstrations, then wasteful ones.

    Args:
        demonstrations: Played for each of the two parts, at most.
        updates: Of 16 demonstrations, in the first part.
        wasteful: Updates of the second part.
        waste: Probability of each of the two needless calls that may stand before a step of a wasteful demonstration.
        lr: Peak learning rate of the first part, which ends at half of it, where the second begins.
        temperature: Taken into the weights in the end: sampled at 1, the policy plays as what was trained does at this.
    """

    demonstrations: int = 32000
    updates: int = 1000
    wasteful: int = 2000
    waste: float = 0.5
    lr: float = 2e-3
    temperature: float = 1.0


RECIPES: dict[str, Recipe] = {
    "APIAgent-v0": Recipe(updates=2200, wasteful=3000, waste=0.43, temperature=0.7),
    "CodeAgent-v0": Recipe(demonstrations=4800, updates=2400, wasteful=600, waste=0.22),
    "SQL-v0": Recipe(updates=2400, wasteful=600, waste=0.55),
    "WebLite-v0": Recipe(updates=1000, wasteful=1000, waste=0.3),
}

LIMITS = Limits(96, 1024)


def copied(model: Model, chat: Chat, examples: Sequence[Example]) -> float:
    """The share of calls whose arguments the model would write as they stand: each token has more than half of the
    probability. Unlike the loss it has no floor where several turns are as good."""
    written = []
    for ids, spans in examples:
        begins = [next((k for k in range(b, e) if '"arguments":' in chat.text(ids[b:k])), e) for b, e in spans]
        own = [(begin, end) for begin, (_, end) in zip(begins, spans, strict=True) if begin < end]
        if own:
            with torch.no_grad():
                logprobs = token_logprobs(model, [ids], [own]).logprobs
            lengths = [end - begin for begin, end in own]
            written += [bool((part > math.log(0.5)).all()) for part in logprobs.split(lengths)]
    return float(np.mean(written))


def make(env_id: str, seed: int, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Train the small policy of an environment, test it on 256 tasks of split validation, and pack it.

    Args:
        env_id: Of a preset; its tasks are the preset's.
        seed: Of all chance.
        folder: Where it is packed; named like the environment.
        recipe: What it is trained on.

    Returns:
        Its card.
    """
    begun, ranks = time.monotonic(), Ranks.start("cpu")
    kwargs = tiny.preset(env_id).env_kwargs

    def played(split: str, what: str, count: int, waste: float) -> list[Dialogue]:
        (env,) = environments(env_id, 1, chat=None, split=split, bounds={}, **kwargs)
        seeds = [stream(seed, what, i) for i in range(count)]
        return demonstrations(env, seeds, wasteful=float(waste > 0), waste=waste, aloud=True)

    some = played("train", "plain", 2000, 0.0) + played("train", "wasteful", 2000, recipe.waste)
    model = tiny.fresh((text for dialogue in some for text in dialogue.texts), seed)
    chat = Chat(model.tokenizer, stops=model.stops, sees_tools=False)
    held_out = [encoded(chat, dialogue) for dialogue in played("validation", "held out", 100, 0.0)]
    curve: list[list[float]] = []
    losses: list[float] = []

    def peek(loss: float) -> None:
        losses.append(loss)
        if len(losses) % 200 == 0:
            mean = round(float(np.mean(losses[-200:])), 4)
            curve.append([len(losses), mean, round(copied(model, chat, held_out), 4)])
            print(f"\n{env_id} update {len(losses)}: loss {mean:.3f}, calls copied {curve[-1][2]:.3f}")

    plain, wasteful = (recipe.updates, recipe.lr, 0.5), (recipe.wasteful, recipe.lr / 2, 0.02)
    for what, waste, (updates, lr, last) in (("plain", 0.0, plain), ("wasteful", recipe.waste, wasteful)):
        needed = min(recipe.demonstrations, updates * WarmStart.batch_size)
        examples = [encoded(chat, dialogue) for dialogue in played("train", what, needed, waste)]
        warm_start(model, examples, WarmStart(updates=updates, lr=lr), context=LIMITS.context, most_tokens=8192,
                   seed=seed, ranks=ranks, last=last, peek=peek)  # fmt: skip
    with torch.no_grad():  # logits are linear in the gain of the last norm
        model.net.model.norm.weight /= recipe.temperature
    hours = round((time.monotonic() - begun) / 3600, 2)

    card: dict[str, Any] = {
        "env_id": env_id, "env_kwargs": kwargs, "seed": seed, "recipe": vars(recipe),
        "parameters": model.net.num_parameters(), "hours": hours, "curve [update, loss, calls copied]": curve,
        "validation": tested(env_id, model, chat, seed, ranks),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")} | {
            "python": platform.python_version()},
    }  # fmt: skip
    pack(model, folder, card)
    return card


def tested(env_id: str, model: Model, chat: Chat, seed: int, ranks: Ranks) -> dict[str, float]:
    """What the policy does on 256 tasks of split validation without budgets, beside what the oracle pays for them."""
    made = {"split": "validation", "bounds": {}, **tiny.preset(env_id).env_kwargs}
    envs, seeds = environments(env_id, 64, chat=chat, **made), [stream("validation", i) for i in range(256)]
    engine = TorchEngine(model, stops=chat.stops)
    found = evaluate(engine, chat, envs, seeds, LIMITS, ranks, draw=stream("evaluate", seed))
    judged = [t for t in found if t.reward is not None]
    mean, low, high = share_interval([t.success for t in judged])
    oracle = oracle_costs(envs[0], seeds).mean(axis=0)
    own = np.array([[t.cost_total[k] for k in CHANNELS] for t in judged]).mean(axis=0)
    costs = {k: round(float(cost), 2) for k, cost in zip(CHANNELS, own, strict=True)}
    paid = {f"oracle's {k}": round(float(cost), 2) for k, cost in zip(CHANNELS, oracle, strict=True)}
    return {"success": round(mean, 4), "low": round(low, 4), "high": round(high, 4), **costs, **paid}


def main() -> None:
    """``python -m agent_gym.lm.tiny make ENV``."""
    parser = argparse.ArgumentParser("python -m agent_gym.lm.tiny", description=__doc__)
    parser.add_argument("command", choices=["make"])
    parser.add_argument("env_id", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=POLICIES, help="folder of the policies (default: the package's)")
    for name in ("demonstrations", "updates", "wasteful"):
        parser.add_argument(f"--{name}", type=int, help="instead of the recipe's")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same sums on every machine
    asked = {name: getattr(args, name) for name in ("demonstrations", "updates", "wasteful")}
    recipe = replace(RECIPES[args.env_id], **{name: value for name, value in asked.items() if value is not None})
    card = make(args.env_id, args.seed, args.out / args.env_id, recipe)
    print(json.dumps(card["validation"], indent=1))
