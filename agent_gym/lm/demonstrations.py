"""Supervised learning from dialogues: the oracle's demonstrations, wasteful ones, and episodes of files."""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from agent_gym.env import ToolEnv, tool_env
from agent_gym.formats import PARSERS, Parser
from agent_gym.lm.chat import Chat
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import Model, is_tiny, passes, token_logprobs
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import answers
from agent_gym.lm.seeds import stream
from agent_gym.lm.shards import clip, in_step
from agent_gym.lm.thoughts import THOUGHTS
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
    """peak learning rate of AdamW, with linear warm-up and cosine decay; unset, 2e-3 for a tiny model, 2e-4 for
    adapters and 1e-5 for all parameters of another model"""
    wasteful: float = 0.75
    """share of demonstrations with needless calls, so that there is waste to learn away"""
    waste: float = 0.35
    """probability of each of the two needless calls that may stand before a step of a wasteful demonstration"""


SCANS = 0.08  # share of the tools without arguments in what is needless: their answers are long
AT_ONCE = 2  # needless reads before one action, at most: a policy that has learnt from longer rows never stops


def wasteful_actions(env: gym.Env, actions: Sequence[str], waste: float, rng: random.Random) -> list[str]:
    """The oracle's actions with needless reads before some of them: a read that was made before (a re-check), or a
    tool that takes no arguments (the slow scans are such, and what is never needed).

    Args:
        env: Reset to the actions' task.
        actions: What the oracle does.
        waste: Probability of each of the two needless reads that may stand before an action.
        rng: Where the chance comes from.
    """
    base = tool_env(env)
    reads = {name for name, tool in base.tools.items() if tool.reads_only}
    idle = [base.parser.render("", [Call(name)]) for name in sorted(reads) if not base.tools[name].parameters]
    read = {a: [call.name for call in base.read(a).calls] for a in actions}
    checks = [a for a, names in read.items() if names and a not in idle and reads.issuperset(names)]
    played: list[str] = []
    for action in actions:
        for _ in range(AT_ONCE):
            again = [a for a in played if a in checks]
            if rng.random() < waste and (choices := again if checks and rng.random() >= SCANS else idle):
                played.append(rng.choice(choices))
        played.append(action)
    return played


def demonstrations(
    env: gym.Env, seeds: Sequence[int], *, wasteful: float, waste: float, draws: Sequence[int] | None = None,
    ranks: Ranks | None = None, aloud: bool = False,
) -> list[Dialogue]:  # fmt: skip
    """Play the oracle on the tasks that ``seeds`` draw.

    Args:
        env: Where it plays.
        seeds: One a task.
        wasteful: Share of demonstrations with needless calls.
        waste: Probability of each of the two needless calls that may stand before a step of those.
        draws: Seeds of what is needless in each; by default they follow from ``seeds``.
        ranks: Every process plays its share and has all of them in the end.
        aloud: Whether what is looked up in a result is said before it is used (:mod:`agent_gym.lm.thoughts`).

    Returns:
        Those that passed, in the order of the seeds.
    """
    draws = [stream("demonstration", seed) for seed in seeds] if draws is None else draws
    ranks = ranks or Ranks()
    mine = ranks.share(list(enumerate(zip(seeds, draws, strict=True))))
    base, played = tool_env(env), []
    aloud = aloud and base.spec.id in THOUGHTS  # type: ignore[union-attr]
    for place, (seed, draw) in tqdm(mine, "demonstrations", disable=not ranks.first):
        rng = random.Random(draw)
        _, info = env.reset(seed=seed)
        dialogue = Dialogue(info["messages"], info["tools"], [])
        actions = oracle = base.oracle()
        if rng.random() < wasteful:
            actions = wasteful_actions(env, oracle, waste, rng)
        results: list[str] = []
        written = [_written(base, action) for action in actions] if aloud else []
        for at, action in enumerate(actions):
            turn = said_aloud(base, dialogue, results, action, written[at:]) if aloud else action
            observation, _, terminated, truncated, info = env.step(turn)
            if action in oracle:  # nothing is looked up in what was needless
                results.append(observation)
            dialogue.turns.append(Said(turn, None, answers(observation, info["tool_results"])))
            if terminated or truncated:
                break
        if info.get("verdict", {}).get("status") == "pass":
            played.append((place, dialogue))
    every = [one for share in ranks.gather(played) for one in share]
    return [dialogue for _, dialogue in sorted(every, key=lambda one: one[0])]


def said_aloud(
    env: ToolEnv, dialogue: Dialogue, results: Sequence[str], action: str, coming: Sequence[Sequence[str]]
) -> str:
    """An action with what a small policy says before it.

    Args:
        env: Whose action it is, one of those with :data:`agent_gym.lm.thoughts.THOUGHTS`.
        dialogue: What was said so far; a thought is said once.
        results: What the tools have answered to what is needed.
        action: The action.
        coming: The values that it writes, and each one after it.
    """
    thought = THOUGHTS[env.spec.id](dialogue.messages[-1]["content"], results, coming)  # type: ignore[union-attr]
    if not thought or any(thought in turn.action for turn in dialogue.turns):
        return action
    if calls := env.read(action).calls:
        return env.parser.render(thought, calls)
    return f"{thought}\n```\n{action}\n```"  # which answers may be


def _written(env: ToolEnv, action: str) -> list[str]:
    """The values that an action writes."""
    calls = env.read(action).calls
    return list(_leaves([call.arguments for call in calls] if calls else _json(action)))


def _json(text: str) -> Any:
    """The value of an answer, which words are themselves."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _leaves(value: Any) -> Iterator[str]:
    """The scalars in a value, as text."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif value is not None:
        yield str(value)


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
    ranks: Ranks, last: float = 0.02, peek: Callable[[float], None] | None = None,
) -> float:  # fmt: skip
    """Supervised training on what the model itself has to write, the same for any number of processes.

    Args:
        model: Trained in place.
        examples: Encoded dialogues, the same in all processes; those longer than ``context`` are left out.
        warm: How; its ``updates`` are set.
        context: Tokens of an example, at most.
        most_tokens: Padded tokens of one forward pass.
        seed: Of the order of the examples.
        ranks: Each batch is shared over them, and the gradients are summed.
        last: What the learning rate comes down to, as a share of its peak.
        peek: Called after each update with its loss.

    Returns:
        The mean loss of a model token over the last tenth of the updates; NaN without updates.

    Raises:
        Refused: If no example is short enough.
    """
    data = sorted((one for one in examples if len(one[0]) <= context), key=lambda one: len(one[0]))
    if not data:
        raise Refused(f"none of {len(examples)} demonstrations is within {context} tokens; raise --max-context")
    parameters = model.trained()
    peak = warm.lr
    if peak is None:
        peak = 2e-3 if is_tiny(model.name) else 2e-4 if model.adapters else 1e-5
    optimizer = torch.optim.AdamW(parameters, peak, betas=(0.9, 0.95), weight_decay=0.01)
    rng = random.Random(stream(seed, "warm start"))
    size, updates = warm.batch_size, warm.updates or 0
    losses: list[float] = []
    queue: list[list[int]] = []
    bar = tqdm(range(updates), "warm start", disable=not ranks.first)
    for update in bar:
        if not queue:
            pool = sorted(rng.sample(range(len(data)), min(len(data), 8 * size)))  # neighbours are of similar length,
            queue = [pool[at : at + size] for at in range(0, len(pool), size)]  # so that little is padding
            rng.shuffle(queue)
        drawn = [data[i] for i in queue.pop()]
        fallen = (1 - math.cos(math.pi * update / updates)) / 2
        schedule = min(1.0, (update + 1) / 50) * (1 - (1 - last) * fallen)
        optimizer.param_groups[0]["lr"] = peak * schedule
        total, count = 0.0, sum(end - begin for _, spans in drawn for begin, end in spans)
        batch = ranks.share(drawn)
        rows, spans = [ids for ids, _ in batch], [own for _, own in batch]
        for part in in_step(model, ranks, passes(model, rows, spans, most_tokens)):
            scores = token_logprobs(model, [rows[i] for i in part], [spans[i] for i in part])
            loss = -scores.logprobs.sum() / count
            loss.backward()
            total += float(loss.detach())
        ranks.all_reduce_gradients(parameters)
        clip(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        bar.set_postfix(loss=f"{np.mean(losses[-20:]) * ranks.world:.3f}")
        if peek:
            peek(total)
    tenth = losses[-max(1, len(losses) // 10) :]
    return float(ranks.sum(np.array([np.mean(tenth)]))[0]) if tenth else math.nan
