"""Supervised learning from dialogues: the oracle's demonstrations, wasteful ones, and episodes of files."""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agent_gym.env import tool_env
from agent_gym.formats import PARSERS, Parser
from agent_gym.lm.chat import Chat
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import Model, micro_batches, token_logprobs
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import answers
from agent_gym.lm.seeds import stream
from agent_gym.tools import Call, load
from agent_gym.trajectory import Trajectory

__all__ = [
    "Dialogue", "Said", "WarmStart", "demonstrations", "dialogue_of", "encoded", "sampled_here", "spelled",
    "warm_start", "wasteful_actions",
]  # fmt: skip

Example = tuple[list[int], list[tuple[int, int]]]
"""Ids of a dialogue, and where the model wrote: [begin, end) of each of its turns."""


class Said(NamedTuple):
    """One assistant turn: its text, its sampled ids where there are any, and the messages that answered it."""

    action: str
    ids: list[int] | None
    answers: list[dict[str, Any]]


@dataclass
class Dialogue:
    """An episode to learn from: the conversation before it, its tools, and its turns."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    turns: list[Said]

    @property
    def texts(self) -> Iterator[str]:
        """All that was said in it, except for the system's words."""
        yield from (message["content"] for message in self.messages if message["role"] != "system")
        for turn in self.turns:
            yield turn.action
            yield from (message["content"] for message in turn.answers)


@dataclass
class WarmStart:
    updates: int | None = None
    """supervised updates on demonstrations; unset, the tiny model's number for this environment, and 0 for another
    model"""
    batch_size: int = 16
    """demonstrations an update"""
    demonstrations: int | None = None
    """demonstrations played; unset, the tiny model's number for this environment"""
    lr: float | None = None
    """peak learning rate of AdamW, with linear warm-up and cosine decay; unset, 3e-3 for the tiny model (whose matrices
    Muon trains, at 20/3 of it), 2e-4 for adapters and 1e-5 for all parameters of another model"""
    other_tokens: float = 0.5
    """weight of the tokens the model did not write (requests, results) in this loss: ids recur there, and copying
    them is what has to be learnt"""
    wasteful: float = 0.75
    """share of demonstrations with needless calls, so that there is waste to learn away"""
    waste: float = 0.35
    """probability of a needless call before each step of a wasteful demonstration"""


def wasteful_actions(env: gym.Env, actions: Sequence[str], waste: float, rng: random.Random) -> list[str]:
    """The oracle's actions with needless reads before some of them: a tool that takes no arguments (the slow scans
    are such, and what is never needed), or a read that was made before (a re-check).

    Args:
        env: Reset to the actions' task.
        actions: What the oracle does.
        waste: Probability of one more needless read before each action.
        rng: Where the chance comes from.
    """
    base = tool_env(env)
    reads = {name for name, tool in base.tools.items() if tool.reads_only}
    idle = [base.parser.render("", [Call(name)]) for name in sorted(reads) if not base.tools[name].parameters]
    played: list[str] = []
    for action in actions:
        while rng.random() < waste:
            again = [a for a in played if all(call.name in reads for call in base.read(a).calls)]
            if choices := again if again and (not idle or rng.random() < 0.5) else idle:
                played.append(rng.choice(choices))
        played.append(action)
    return played


def demonstrations(
    env: gym.Env, seeds: Sequence[int], *, wasteful: float, waste: float, draws: Sequence[int] | None = None,
    ranks: Ranks | None = None,
) -> list[Dialogue]:  # fmt: skip
    """Play the oracle on the tasks that ``seeds`` draw.

    Args:
        env: Where it plays.
        seeds: One a task.
        wasteful: Share of demonstrations with needless calls.
        waste: Probability of a needless call before each step of those.
        draws: Seeds of what is needless in each; by default they follow from ``seeds``.
        ranks: Every process plays its share and has all of them in the end.

    Returns:
        Those that passed, in the order of the seeds.
    """
    draws = [stream("demonstration", seed) for seed in seeds] if draws is None else draws
    ranks = ranks or Ranks()
    mine = ranks.share(list(enumerate(zip(seeds, draws, strict=True))))
    base, played = tool_env(env), []
    for place, (seed, draw) in tqdm(mine, "demonstrations", disable=not ranks.first):
        rng = random.Random(draw)
        _, info = env.reset(seed=seed)
        dialogue = Dialogue(info["messages"], info["tools"], [])
        actions = base.oracle()
        if rng.random() < wasteful:
            actions = wasteful_actions(env, actions, waste, rng)
        for action in actions:
            observation, _, terminated, truncated, info = env.step(action)
            dialogue.turns.append(Said(action, None, answers(observation, info["tool_results"])))
            if terminated or truncated:
                break
        if info.get("verdict", {}).get("status") == "pass":
            played.append((place, dialogue))
    every = [one for share in ranks.gather(played) for one in share]
    return [dialogue for _, dialogue in sorted(every, key=lambda one: one[0])]


def dialogue_of(trajectory: Trajectory, env: gym.Env, where: str = "trajectory") -> Dialogue:
    """An episode of a trajectory file. The file does not hold what the model saw before it, but its task's reset gives
    it again. A turn that was played as a message becomes text in the environment's format, as a model will write it.

    Args:
        trajectory: The episode.
        env: Made with its ``env_kwargs``, and the parser of whoever is to learn from it.
        where: Where it stands, for the messages.

    Raises:
        Refused: If it is of another environment, not of split train, or made by another version.
    """
    base: Any = tool_env(env)
    if trajectory.env_id != base.spec.id:
        raise Refused(f"{where}: an episode of {trajectory.env_id}, not of --env-id {base.spec.id}")
    if (split := trajectory.env_kwargs.get("split")) in ("validation", "test"):
        raise Refused(
            f"{where}: an episode of the {split} split, which is kept for the tests; choose episodes of split train"
        )
    task = trajectory.task_id
    try:
        observation, info = env.reset(seed=trajectory.seed, options={"task": task})
    except ValueError as error:
        raise Refused(f"{where}: its task {task!r} cannot be opened: {error}") from error
    if trajectory.steps and trajectory.steps[0].observation != observation:
        raise Refused(f"{where}: task {task!r} does not begin as the file says; another version made it")
    if trajectory.task_hash not in (None, info["task_hash"]):
        raise Refused(f"{where}: task {task!r} has other content than the file's; another version made it")
    seen = [step.observation for step in trajectory.steps[1:]] + [""]
    turns = [
        Said(
            step.action if isinstance(step.action, str) else spelled(step.action, base.parser),
            step.action_ids,
            answers(after, step.tool_results),
        )
        for step, after in zip(trajectory.steps, seen, strict=False)
    ]
    return Dialogue(info["messages"], info["tools"], turns)


def spelled(message: Mapping[str, Any], parser: Parser) -> str:
    """A message as text in a parser's format. A call whose arguments are not valid stays so; words that were cut before
    their end stay as they are."""
    if message.get("finish_reason") == "length" and not message.get("tool_calls"):
        return str(message.get("content") or "")
    turn = PARSERS["openai"].parse(json.dumps(message))
    if not turn.calls:
        return turn.text
    calls = [
        replace(call, arguments=load(call.written).get("arguments")) if call.error and call.name else call
        for call in turn.calls
    ]
    return parser.render(turn.text, calls)


def sampled_here(chat: Chat, turn: Said) -> bool:
    """Whether the turn's ids are of this tokenizer: decoded, they are its text."""
    return bool(turn.ids) and max(turn.ids or ()) < len(chat.tokenizer) and chat.text(turn.ids or ()) == turn.action


def encoded(chat: Chat, dialogue: Dialogue) -> Example:
    """Ids of a dialogue and the spans the model has to learn: sampled ids as they were, if they are of this tokenizer,
    or else the text and its end."""
    ids, spans = list(chat.prompt(dialogue.messages, dialogue.tools)), []
    for number, turn in enumerate(dialogue.turns, start=1):
        written = list(turn.ids or ()) if sampled_here(chat, turn) else list(chat.spelled(turn.action))
        spans.append((len(ids), len(ids) + len(written)))
        ids += written
        if number < len(dialogue.turns):
            ids += chat.reply(turn.answers, written[-1] in chat.stops)
    return ids, spans


def warm_start(
    model: Model, examples: Sequence[Example], warm: WarmStart, *, context: int, most_tokens: int, seed: int,
    ranks: Ranks,
) -> float:  # fmt: skip
    """Supervised training, the same for any number of processes.

    Args:
        model: Trained in place.
        examples: Encoded dialogues, the same in all processes; those longer than ``context`` are left out.
        warm: How; its ``updates`` are set.
        context: Tokens of an example, at most.
        most_tokens: Padded tokens of one forward pass.
        seed: Of the order of the examples.
        ranks: Each batch is shared over them, and the gradients are summed.

    Returns:
        The mean loss of a model token over the last tenth of the updates; NaN without updates.

    Raises:
        Refused: If no example is short enough.
    """
    data = sorted((one for one in examples if len(one[0]) <= context), key=lambda one: len(one[0]))
    if not data:
        raise Refused(f"none of {len(examples)} demonstrations is within {context} tokens; raise --max-context")
    parameters, optimizers = model.trained(), _optimizers(model, warm.lr)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    rng = random.Random(stream(seed, "warm start"))
    size, updates = warm.batch_size, warm.updates or 0
    losses: list[float] = []
    queue: list[list[int]] = []
    bar = tqdm(range(updates), "warm start", disable=not ranks.first)
    for update in bar:
        progress = update / updates
        if not queue:  # short dialogues first: copying is learnt there, at a fraction of the price
            within = max(1, int(len(data) * min(1.0, 0.3 + progress / 0.6 * 0.7)))
            pool = sorted(rng.sample(range(within), min(within, 8 * size)))  # neighbours are of similar length,
            queue = [pool[at : at + size] for at in range(0, len(pool), size)]  # so that little is padding
            rng.shuffle(queue)
        drawn = [data[i] for i in queue.pop()]
        schedule = min(1.0, (update + 1) / 30) * (0.55 + 0.45 * math.cos(math.pi * progress))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule
        total, count = 0.0, sum(end - begin for _, spans in drawn for begin, end in spans)
        batch = ranks.share(drawn)
        for part in micro_batches([len(ids) for ids, _ in batch], most_tokens):
            rows = [batch[i][0] for i in part]
            own = torch.zeros(sum(len(row) - 1 for row in rows), dtype=torch.bool)
            at = -1  # of a row's first token, which nothing foretells
            for i in part:
                for begin, end in batch[i][1]:
                    own[at + begin : at + end] = True
                at += len(batch[i][0]) - 1
            logprobs = token_logprobs(model, rows, [[(1, len(row))] for row in rows]).logprobs
            own = own.to(logprobs.device)
            (-(logprobs * torch.where(own, 1.0, warm.other_tokens)).sum() / count).backward()
            total -= float(logprobs.detach()[own].sum()) / count
        ranks.all_reduce_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        bar.set_postfix(loss=f"{np.mean(losses[-20:]) * ranks.world:.3f}")
    last = losses[-max(1, len(losses) // 10) :]
    return float(ranks.sum(np.array([np.mean(last)]))[0]) if last else math.nan


def _optimizers(model: Model, lr: float | None) -> list[torch.optim.Optimizer]:
    """AdamW; for the matrices of the small model Muon, with which it learns to copy in half the updates."""
    if model.name != "tiny":
        peak = lr if lr is not None else 2e-4 if model.adapters else 1e-5
        return [torch.optim.AdamW(model.trained(), peak, betas=(0.9, 0.99), weight_decay=0.01)]
    peak = 3e-3 if lr is None else lr
    matrices = [p for name, p in model.net.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for p in model.trained() if not any(p is matrix for matrix in matrices)]
    return [_Muon(matrices, 20 / 3 * peak), torch.optim.AdamW(others, peak, betas=(0.9, 0.99), weight_decay=0.0)]


class _Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), in float32: ``torch.optim.Muon`` computes in
    bfloat16, which takes ten times as long on a processor without units for it."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.95, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        alike: dict[Any, list[torch.nn.Parameter]] = {}
        for p in group["params"]:
            alike.setdefault(p.shape, []).append(p)
        for (rows, columns), parameters in alike.items():  # of one shape: one multiplication does for all
            moved = []
            for p in parameters:
                grad = torch.zeros_like(p) if p.grad is None else p.grad
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(grad, 1.0 - group["momentum"])
                moved.append(grad.lerp(momentum, group["momentum"]))
            size = group["lr"] * max(1.0, rows / columns) ** 0.5
            for p, update in zip(parameters, _orthogonal(torch.stack(moved)), strict=True):
                p.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, by five Newton-Schulz steps."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(3.4445 * x, 2.0315 * square @ square - 4.775 * square, x)
    return x.mT if tall else x
